"""Verbs of `jetcron schedules` that change them, from create to delete, or run them: trigger, backfill."""

import enum
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.cli.sending import parsed
from jetcron.client import Client
from jetcron.clock import to_ms
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.runs import RunHandle
from jetcron.schedules.orders import InForce

# Fields are taken as they are written: what is wrong with them is told by the client, of all of them at once.

Id = Annotated[str, typer.Argument(metavar="ID", help="The schedule's id.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...")]
Cron = Annotated[str | None, typer.Option("--cron", "-c", metavar="EXPR", help="Such as '0 9 * * MON-FRI'.")]
Every = Annotated[
    str | None, typer.Option("--every", metavar="DURATION", help="90s, 5m, 1h30m; at least 1s.")
]
At = Annotated[str | None, typer.Option("--at", metavar="ISO", help="Once, then; gone after it ran.")]
Zone = Annotated[str | None, typer.Option("--timezone", "-z", metavar="ZONE", help="An IANA zone.")]
Payload = Annotated[
    str | None,
    typer.Option("--payload", "-p", metavar="JSON", help="The function's data; - reads it from stdin."),
]
DstRule = Annotated[
    str | None, typer.Option("--dst", metavar="RULE", help="Where clocks change: default, skip, both.")
]
Jitter = Annotated[str | None, typer.Option("--jitter", metavar="DURATION", help="Up to so much later.")]
CatchUp = Annotated[
    str | None,
    typer.Option("--catch-up", metavar="POLICY", help="What was missed: latest, all, skip."),
]
CatchUpWithin = Annotated[
    str | None,
    typer.Option("--catch-up-within", metavar="DURATION", help="Nothing missed longer ago runs."),
]
CatchUpMost = Annotated[
    str | None, typer.Option("--catch-up-most", metavar="N", help="Of all that was missed, the newest N.")
]
Overlap = Annotated[
    str | None,
    typer.Option(
        "--overlap",
        metavar="POLICY",
        help="While the one before goes on: allow, skip, queue, cancel_running.",
    ),
]
Start = Annotated[str | None, typer.Option("--start", metavar="ISO", help="Not before this time.")]
End = Annotated[str | None, typer.Option("--end", metavar="ISO", help="Not after this time.")]
MaxRuns = Annotated[str | None, typer.Option("--max-runs", metavar="N", help="At most so many occurrences.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", "-t", help="A tag; may be given several times.")]
IfRevision = Annotated[
    int | None, typer.Option("--if-revision", metavar="N", help="Only if that is its revision.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when the order is stored.")]


class Field(enum.StrEnum):
    """What an update can take away."""

    payload = "payload"
    jitter = "jitter"
    catch_up_within = "catch_up_within"
    catch_up_most = "catch_up_most"
    start = "start"
    end = "end"
    max_runs = "max_runs"
    tags = "tags"


def add_to(app: typer.Typer) -> None:
    """Add these verbs."""
    for verb in (create, update, pause, unpause, archive, delete, trigger, backfill):
        app.command(verb.__name__)(verb)


def create(
    id: Id,
    function: Annotated[str, typer.Argument(metavar="APP.FUNCTION", help="What it runs.")],
    cron: Cron = None,
    every: Every = None,
    at: At = None,
    timezone: Zone = None,
    payload: Payload = None,
    dst: DstRule = None,
    jitter: Jitter = None,
    catch_up: CatchUp = None,
    catch_up_within: CatchUpWithin = None,
    catch_up_most: CatchUpMost = None,
    overlap: Overlap = None,
    start: Start = None,
    end: End = None,
    max_runs: MaxRuns = None,
    tag: Tags = None,
    no_wait: NoWait = False,
    json: Json = False,
) -> None:
    """Create a schedule: one of --cron, --every and --at."""
    given = _given(
        cron=cron,
        every=every,
        at=at,
        timezone=timezone,
        payload=payload,
        dst=dst,
        jitter=jitter,
        catch_up=catch_up,
        catch_up_within=catch_up_within,
        catch_up_most=catch_up_most,
        overlap=overlap,
        start=start,
        end=end,
        max_runs=max_runs,
        tag=tag,
    )

    async def work(client: Client) -> Sequence[InForce]:
        return [await client.schedules.create(id, function, **given, **_wait(no_wait))]

    _report("created", *_ordered([id], work), json=json)


def update(
    id: Id,
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="What it runs.")
    ] = None,
    cron: Cron = None,
    every: Every = None,
    at: At = None,
    timezone: Zone = None,
    payload: Payload = None,
    dst: DstRule = None,
    jitter: Jitter = None,
    catch_up: CatchUp = None,
    catch_up_within: CatchUpWithin = None,
    catch_up_most: CatchUpMost = None,
    overlap: Overlap = None,
    start: Start = None,
    end: End = None,
    max_runs: MaxRuns = None,
    tag: Tags = None,
    clear: Annotated[list[Field] | None, typer.Option("--clear", help="Take this away.")] = None,
    if_revision: IfRevision = None,
    no_wait: NoWait = False,
    json: Json = False,
) -> None:
    """Change what is given, and leave the rest. In force 2.5 s later."""
    given = _given(
        cron=cron,
        every=every,
        at=at,
        timezone=timezone,
        payload=payload,
        dst=dst,
        jitter=jitter,
        catch_up=catch_up,
        catch_up_within=catch_up_within,
        catch_up_most=catch_up_most,
        overlap=overlap,
        start=start,
        end=end,
        max_runs=max_runs,
        tag=tag,
    )
    if function is not None:
        given["function"] = function
    for field in clear or ():
        if field.value in given:
            raise typer.BadParameter(f"--clear {field.value}: it is given too")
        given[field.value] = () if field is Field.tags else None
    if not given:
        raise typer.BadParameter("nothing is to change; give an option, such as --cron or --payload")

    async def work(client: Client) -> Sequence[InForce]:
        return [await client.schedules.update(id, **given, if_revision=if_revision, **_wait(no_wait))]

    _report("updated", *_ordered([id], work), json=json)


def pause(ids: Ids, if_revision: IfRevision = None, no_wait: NoWait = False, json: Json = False) -> None:
    """No more occurrences until unpause; those of the meantime do not run."""
    _move("pause", ids, if_revision, no_wait, json)


def unpause(ids: Ids, if_revision: IfRevision = None, no_wait: NoWait = False, json: Json = False) -> None:
    """Go on from now; brings back an archived one, too."""
    _move("unpause", ids, if_revision, no_wait, json)


def archive(ids: Ids, if_revision: IfRevision = None, no_wait: NoWait = False, json: Json = False) -> None:
    """Retire: it fires no more and is not listed; unpause brings it back."""
    _move("archive", ids, if_revision, no_wait, json)


def delete(ids: Ids, if_revision: IfRevision = None, no_wait: NoWait = False, json: Json = False) -> None:
    """Take it away for good. What was due before still runs."""
    _move("delete", ids, if_revision, no_wait, json)


def trigger(id: Id, json: Json = False) -> None:
    """Run it now with its payload; prints the run's id."""

    async def work(client: Client) -> RunHandle:
        return await client.schedules.trigger(id)

    run = session.with_client(work)
    if json:
        output.print_json({"run": run.id, "function": run.function, "schedule": id})
    else:
        typer.echo(run.id)


def backfill(
    id: Id,
    start: Annotated[str, typer.Argument(metavar="START", help="ISO 8601 with its zone.")],
    end: Annotated[str, typer.Argument(metavar="END", help="ISO 8601 with its zone, up to now.")],
    json: Json = False,
) -> None:
    """Run the occurrences between two times now; what ran runs no more. Prints the ids of their runs."""

    async def work(client: Client) -> Sequence[RunHandle]:
        with output.progress("starting runs") as advance:
            return await client.schedules.backfill(id, start, end, progress=advance)

    found = session.with_client(work)
    if json:
        output.print_json([run.id for run in found])
        return
    for run in found:
        typer.echo(run.id)
    known = sum(run.known for run in found)
    output.say(
        f"{output.counted(len(found), 'occurrence')} of {output.escape(id)}: {len(found) - known:,} to run, "
        f"{known:,} ran or run already"
    )
    if found:
        output.say(f"[dim]what became of them: jetcron runs list --schedule {output.escape(id)}[/dim]")


def _given(*, payload: str | None, tag: list[str] | None, **options: Any) -> dict[str, Any]:
    """The arguments of `create` and `update` for the options that are given."""
    given = {name: value for name, value in (options | {"tags": tag}).items() if value is not None}
    for name in ("max_runs", "catch_up_most"):
        if name in given:
            given[name] = _number(given[name])
    if payload is not None:
        try:
            given["payload"] = parsed(payload)
        except ConfigurationError as error:
            given["payload"] = error  # the client tells it beside what else is wrong
    return given


def _number(text: str) -> int | str:
    """The number a text is; any other text as it stands."""
    try:
        return int(text)
    except ValueError:
        return text


def _wait(no_wait: bool) -> dict[str, Any]:
    return {"wait": None} if no_wait else {}


def _move(
    what: Literal["pause", "unpause", "archive", "delete"],
    ids: list[str],
    if_revision: int | None,
    no_wait: bool,
    json: bool,
) -> None:
    async def work(client: Client) -> Sequence[InForce]:
        move = getattr(client.schedules, what)
        found: Sequence[InForce] = await move(*ids, if_revision=if_revision, **_wait(no_wait))
        return found

    _report(f"{what}{'' if what.endswith('e') else 'e'}d", *_ordered(ids, work), json=json)


def _ordered(
    ids: Sequence[str], work: Callable[[Client], Awaitable[Sequence[InForce]]]
) -> tuple[Sequence[InForce], dict[str, int]]:
    """What is in force, and the revisions that stood before."""

    async def order(client: Client) -> tuple[Sequence[InForce], dict[str, int]]:
        before = await client.schedules.revisions(*ids)
        return await work(client), before

    try:
        return session.with_client(order)
    except TryAgain as error:
        output.fail(f"sent but not applied yet: {error.description}")


def _report(what: str, found: Sequence[InForce], before: dict[str, int], *, json: bool) -> None:
    if json:
        output.print_json(
            [
                {
                    "id": one.id,
                    "revision": one.revision,
                    "next": _iso(one.next),
                    "changed": None if one.revision is None else one.revision != before.get(one.id),
                }
                for one in found
            ]
        )
        return
    for one in found:
        id = output.escape(one.id)
        following = f", next {_iso(one.next)}" if one.next is not None else ""
        if one.revision is None:
            output.say(f"{id} is ordered to be {what} [dim](nobody was waited for)[/dim]")
        elif one.revision == before.get(one.id):
            output.say(f"{id} stands unchanged [dim](revision {one.revision}{following})[/dim]")
        else:
            output.say(f"{id} {what} [dim](revision {one.revision}{following})[/dim]")


def _iso(at: datetime | None) -> str | None:
    return None if at is None else output.moment(to_ms(at))
