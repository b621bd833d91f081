"""`jetcron functions`: the registered functions, and orders about them."""

from typing import Annotated, Any, Literal

import typer

from jetcron.bus import Bus
from jetcron.cli import output, session
from jetcron.client import Client
from jetcron.clock import SystemClock, from_ms
from jetcron.cron import CronError, fire_times
from jetcron.cron_sync.declared import schedule_id
from jetcron.errors import NotFound, TryAgain
from jetcron_protocol.messages import Function
from jetcron_protocol.subjects import HANDLER

app = typer.Typer(no_args_is_help=True, help="The registered functions.")

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Ids = Annotated[list[str], typer.Argument(metavar="APP.FUNCTION...")]


@app.command("list")
def list_functions(
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones too.")] = False,
    json: Json = False,
) -> None:
    """All functions: state, triggers, next time."""

    async def work(client: Client) -> list[Function]:
        return await client.functions.list()

    found = [one for one in session.with_client(work) if archived or one.state != "archived"]
    now = SystemClock().now()
    if json:
        output.print_json([_plain(one, now) for one in found])
        return
    output.table(
        found,
        {
            "FUNCTION": lambda one: output.escape(one.id),
            "STATE": lambda one: output.state(one.state),
            "TRIGGERS": lambda one: output.escape(", ".join(_triggers(one)) or "by name"),
            "NEXT": lambda one: output.shown(
                min((at for at in _next(one, now).values() if at), default=None)
            ),
            "WHAT": lambda one: output.first_line(one.description, 60),
        },
        empty="no functions are registered; an executor does it, or jetcron sync MODULE:APP",
    )


@app.command("show")
def show(id: Annotated[str, typer.Argument(metavar="APP.FUNCTION")], json: Json = False) -> None:
    """One function: its definition, its next times, its runs waiting and running."""
    settings = session.settings()

    async def work(client: Client) -> tuple[Function, dict[str, int] | None]:
        function = await client.functions.get(id)
        async with Bus(settings, name="jetcron functions show") as bus:
            try:
                info = await bus.consumer(bus.names.work, bus.names.run_consumer(id))
            except NotFound:
                return function, None
        return function, {"ready": info["num_pending"], "running": info["num_ack_pending"]}

    function, load = session.with_client(work)
    plain = _plain(function, SystemClock().now()) | {"runs": load}
    if json:
        output.print_json(plain)
        return
    rows = [(key, value) for key, value in plain.items() if value not in (None, [], {}, "")]
    output.table(rows, {"": lambda row: f"[dim]{row[0]}[/dim]", " ": lambda row: _cell(row[1])}, empty="")


@app.command("pause")
def pause(ids: Ids) -> None:
    """Stop schedules and runs: what is due, retried or started by events waits for unpause."""
    _order("pause", ids)


@app.command("unpause")
def unpause(ids: Ids) -> None:
    """Go on: schedules from now, waiting runs at once."""
    _order("unpause", ids)


@app.command("archive")
def archive(ids: Ids) -> None:
    """Retire: what waits is cancelled. Registering the app again brings the function back."""
    _order("archive", ids)


def _order(what: Literal["pause", "unpause", "archive"], ids: list[str]) -> None:
    async def work(client: Client) -> None:
        await getattr(client.functions, what)(*ids)

    try:
        session.with_client(work)
    except TryAgain as error:
        output.fail(f"sent but not applied yet: {error.description}")
    for id in ids:
        output.say(f"{output.escape(id)} {what}{'' if what.endswith('e') else 'e'}d")


async def nobodys(client: Client, *, function: str | None, app: str | None = None) -> str | None:
    """Why a listing of this function, or app, has nothing: nobody registered it; None if somebody did."""
    if function is None and app is None:
        return None
    ids = {one.id for one in await client.functions.list()}
    if function is not None and function not in ids:
        return f"there is no function {function!r}; jetcron functions list shows them"
    if app is not None and app not in {id.partition(".")[0] for id in ids}:
        return f"there is no app {app!r}; jetcron functions list shows them"
    return None


def _triggers(function: Function) -> list[str]:
    crons = [
        cron.expression if cron.timezone == "UTC" else f"{cron.expression} {cron.timezone}"
        for cron in function.cron
    ]
    handled = (
        [f"when {function.id.removesuffix(HANDLER)} has failed"] if function.id.endswith(HANDLER) else []
    )
    return [*crons, *(f"on {name}" for name in function.on), *handled]


def _next(function: Function, now: int) -> dict[str, int | None]:
    """Epoch ms of each schedule's next time; none when it is not active."""
    found: dict[str, int | None] = {}
    for number, cron in enumerate(function.cron, 1):
        id = schedule_id(function.id, number)
        found[id] = None
        if function.state == "active":
            try:
                times = fire_times(
                    cron.expression, timezone=cron.timezone, after=from_ms(now), dst=cron.dst, seed=id
                )
            except CronError:
                continue  # registered by another version, which knew it
            found[id] = int(times[0].timestamp() * 1000) if times else None
    return found


def _plain(function: Function, now: int) -> dict[str, Any]:
    return {
        "id": function.id,
        "state": function.state,
        "description": function.description,
        "cron": [
            {"expression": cron.expression, "timezone": cron.timezone, "dst": cron.dst}
            for cron in function.cron
        ],
        "on": function.on,
        "next": {id: output.moment(at) for id, at in _next(function, now).items()},
        "attempts": function.attempts,
        "concurrency": function.concurrency or None,
        "timeout_ms": function.timeout,
        "jitter_ms": function.jitter or None,
        "keep_ms": function.keep,
        "catch_up": function.catch_up,
        "catch_up_within_ms": function.catch_up_within,
        "catch_up_most": function.catch_up_most,
        "overlap": function.overlap,
    }


def _cell(value: Any) -> str:
    match value:
        case list():
            return "\n".join(_cell(one) for one in value)
        case dict():
            return "\n".join(output.escape(f"{key}: {one}") for key, one in value.items() if one is not None)
    return output.escape(str(value))
