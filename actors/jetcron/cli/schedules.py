"""`jetcron schedules`: list and show. What changes them is in `schedule_orders`, files are in `schedule_files`."""

import json as json_
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import typer

from jetcron.cli import (
    output,
    schedule_files,
    schedule_handover,
    schedule_history,
    schedule_load,
    schedule_orders,
    session,
)
from jetcron.cli.functions import Json, nobodys
from jetcron.client import Client
from jetcron.clock import to_ms
from jetcron.cron import CronError, parse_duration
from jetcron.schedules.details import Details
from jetcron.schedules.views import Page, ScheduleView

app = typer.Typer(no_args_is_help=True, help="Schedules: of cron triggers in code, and created as data.")
schedule_orders.add_to(app)
schedule_files.add_to(app)
schedule_history.add_to(app)
schedule_load.add_to(app)
schedule_handover.add_to(app)

State = Literal["active", "paused", "ended", "archived", "deleted"]


@app.command("list")
def list_schedules(
    app_: Annotated[str | None, typer.Option("--app", metavar="APP", help="Of this app alone.")] = None,
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Of this function alone.")
    ] = None,
    state: Annotated[
        State | None, typer.Option("--state", "-s", help="In this state; else all but archived and deleted.")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", "-t", help="That have this tag.")] = None,
    within: Annotated[
        str | None, typer.Option("--within", metavar="DURATION", help="That fire next within 90s, 5m, 1h30m.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="PLACE", help="The page that follows; the one before says it."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 50,
    json: Json = False,
) -> None:
    """Schedules by when they fire next; those that do not come last."""
    span = _span(within)

    asked = any(one is not None for one in (app_, function, state, tag, within, after))
    empty = "no schedules are so" if asked else "there are no schedules; jetcron schedules create makes one"

    async def work(client: Client) -> tuple[Page, str]:
        page = await client.schedules.list(
            app=app_, function=function, state=state, tag=tag, within=span, after=after, limit=limit
        )
        nobody = None if page.schedules else await nobodys(client, function=function, app=app_)
        return page, nobody or empty

    page, empty = session.with_client(work)
    if json:
        output.print_json({"schedules": [plain(one) for one in page.schedules], "after": page.after})
        return
    output.table(
        page.schedules,
        {
            "SCHEDULE": lambda one: output.escape(one.id),
            "FUNCTION": lambda one: output.escape(one.function),
            "STATE": lambda one: output.state(one.state),
            "NEXT": lambda one: output.shown(to_ms(one.next) if one.next is not None else None),
            "WHEN": lambda one: output.first_line(when(one), 60),
            "TAGS": lambda one: output.first_line(" ".join(one.tags), 40),
        },
        empty=empty,
    )
    if page.after is not None:
        output.say(f"[dim]there are more: --after '{output.escape(page.after)}'[/dim]")


def _span(text: str | None) -> Any:
    try:
        return None if text is None else parse_duration(text)
    except CronError as error:
        raise typer.BadParameter(f"--within: {error}") from None


def when(one: ScheduleView) -> str:
    """When it fires, in few words."""
    zone = "" if one.timezone == "UTC" else f" {one.timezone}"
    if one.cron is not None:
        return f"{one.cron}{zone}"
    if one.every is not None:
        return f"every {output.span(one.every.total_seconds() * 1000)}"
    return f"once at {output.shown(to_ms(one.at))}" if one.at is not None else ""


def plain(one: ScheduleView) -> dict[str, Any]:
    """A schedule for programs: what is not given is left out."""
    found = {
        "id": one.id,
        "function": one.function,
        "state": one.state,
        "origin": one.origin,
        "revision": one.revision,
        "next": _iso(one.next),
        "cron": one.cron,
        "every": one.every.total_seconds() if one.every is not None else None,
        "at": _iso(one.at),
        "timezone": one.timezone,
        "dst": one.dst,
        "jitter": one.jitter.total_seconds() or None,
        "catch_up": one.catch_up,
        "catch_up_within": one.catch_up_within.total_seconds() if one.catch_up_within is not None else None,
        "catch_up_most": one.catch_up_most,
        "overlap": one.overlap,
        "executes": one.executes,
        "payload": one.payload,
        "start": _iso(one.start),
        "end": _iso(one.end),
        "max_runs": one.max_runs,
        "tags": list(one.tags),
        "changed_at": _iso(one.changed_at),
        "by": one.by,
        "with_function": one.with_function or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _iso(moment: Any) -> str | None:
    return None if moment is None else output.moment(to_ms(moment))


@app.command("show")
def show(id: Annotated[str, typer.Argument(metavar="ID")], json: Json = False) -> None:
    """One schedule: definition, who changed it, held tick, next times, last outcomes, lateness."""

    async def work(client: Client) -> Details:
        return await client.schedules.show(id)

    found = session.with_client(work)
    late = {f"p{share}": _ms(found.lateness(share / 100)) for share in (50, 99)}
    if json:
        output.print_json(_whole(found) | {"lateness_ms": late})
        return
    definition = plain(found.schedule)
    changed = f"{output.moment(to_ms(found.schedule.changed_at))} by {found.schedule.by or 'its app'}"
    for name in ("changed_at", "by", "next"):
        definition.pop(name, None)
    for name in ("every", "jitter", "catch_up_within"):
        if name in definition:
            definition[name] = output.length(definition[name])
    rows = [*((name, value) for name, value in definition.items() if value != []), ("changed", changed)]
    output.table(rows, {"": lambda row: f"[dim]{row[0]}[/dim]", " ": lambda row: _cell(row[1])}, empty="")
    console = output.out()
    console.print()
    output.table(
        found.ticks,
        {
            "TICK": lambda one: one.state,
            "FOR": lambda one: _iso(one.at) or "",
            "REVISION": lambda one: str(one.revision),
            "SEQUENCE": lambda one: str(one.sequence),
        },
        empty=_no_tick(found.schedule),
    )
    console.print()
    zone = ZoneInfo(found.zone)
    output.table(
        found.upcoming,
        {
            f"NEXT, {found.zone}": lambda at: f"{at.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}",
            "UTC": lambda at: _iso(at) or "",
        },
        empty="no times to come",
    )
    console.print()
    schedule_history.show(found.outcomes, id)
    if late["p50"] is not None:
        output.out().print(
            f"[dim]lateness of what is remembered: p50 {output.span(late['p50'])}, p99 {output.span(late['p99'])}[/dim]"
        )


def _no_tick(one: ScheduleView) -> str:
    if one.state == "active":
        return "no tick is held: the health-checker restarts such a schedule within minutes"
    return f"no tick is held, for it is {one.state}{', as its function is' if one.with_function else ''}"


def _ms(span: Any) -> float | None:
    return None if span is None else span.total_seconds() * 1000


def _whole(found: Details) -> dict[str, Any]:
    zone = ZoneInfo(found.zone)
    return plain(found.schedule) | {
        "ticks": [
            {"state": one.state, "at": _iso(one.at), "revision": one.revision, "sequence": one.sequence}
            for one in found.ticks
        ],
        "upcoming": [{"local": at.astimezone(zone).isoformat(), "utc": _iso(at)} for at in found.upcoming],
        "outcomes": [schedule_history.plain(one) for one in found.outcomes],
    }


def _cell(value: Any) -> str:
    text = (
        value if isinstance(value, str) else json_.dumps(value, default=output.jsonable, ensure_ascii=False)
    )
    return output.escape(text)
