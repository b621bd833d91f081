"""`jetcron runs`: what ran, how it went, what happens now; to end it, or begin it again."""

import json as json_
from enum import StrEnum
from typing import Annotated, Any

import typer

from jetcron import loop
from jetcron.cli import follow, output, session
from jetcron.cli.functions import Json, nobodys
from jetcron.cli.one_run import page
from jetcron.cli.run_facts import child_runs, line_of, took, tries, waits_for
from jetcron.cli.run_json import brief, whole
from jetcron.client import Client
from jetcron.clock import SystemClock
from jetcron.errors import ConfigurationError, RunNotFound
from jetcron.lanes import waits_for_turn
from jetcron.runs import GapView, RunView
from jetcron.schedules.search import RunsOf
from jetcron_protocol.messages import Reason

_WHY: dict[Reason, str] = {
    "catch_up": "missed, and catch_up left it out",
    "too_old": "missed, and older than catch_up lets run",
    "too_many": "missed, with more than catch_up='all' runs",
    "handed_over": "left to the other scheduler, which executes it",
    "archived": "its function was archived before its tick was turned",
    "unknown_history": "so long ago that nobody can tell whether it ran",
    "overlap": "another one of its schedule went on, and overlap left it out",
}

app = typer.Typer(no_args_is_help=True, help="Runs: those whose journal stands.")

Of = Annotated[
    str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Of this function alone.")
]
Ids = Annotated[list[str], typer.Argument(metavar="RUN...", help="As in jetcron runs list.")]


class Standing(StrEnum):
    """How a run with a journal stands."""

    running = "running"
    waiting = "waiting"
    retrying = "retrying"
    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"


@app.command("list")
def list_runs(
    function: Of = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            metavar="ID",
            help="Of this schedule alone, triggered and backfilled ones too; looks at its function's runs.",
        ),
    ] = None,
    status: Annotated[
        list[Standing] | None,
        typer.Option("--status", "-s", help="Those that stand so alone; may be repeated.", show_choices=True),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 20,
    json: Json = False,
) -> None:
    """The newest runs first. A run nobody has taken yet has no journal and is not shown."""

    empty = "no run is remembered that is so" if function or status or schedule else "no runs are remembered"

    async def work(client: Client) -> tuple[list[RunView], str, str]:
        wanted = [one.value for one in status] if status else None
        if schedule is None:
            runs, bound = await client.runs.list(function=function, status=wanted, limit=limit), ""
        else:
            of = await client.schedules.runs(schedule, function=function, status=wanted, limit=limit)
            runs, bound = of.runs, _bound(of) if len(of.runs) < limit else ""
        return runs, bound, (None if runs else await nobodys(client, function=function)) or empty

    found, bound, empty = session.with_client(work)
    if bound:
        output.say(f"[dim]{bound}[/dim]")
    if json:
        output.print_json([brief(run) for run in found])
        return
    output.table(
        found,
        {
            "RUN": lambda run: run.id,
            "FUNCTION": lambda run: output.escape(run.function),
            "STATUS": lambda run: output.state(run.status),
            "BY": _by,
            "FOR": lambda run: output.shown(run.history.about.fire_at if run.history.about else None),
            "TOOK": lambda run: output.span(took(run)),
            "TRIES": lambda run: str(tries(run.history.attempts)),
            "NOTE": lambda run: output.first_line(_note(run), 80),
        },
        narrow=("RUN", "STATUS", "FOR", "FUNCTION"),
        below=lambda run: output.first_line(_note(run), 76),
        empty=empty,
    )


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=100_000, help="Rows of the timeline, about.")
    ] = 100,
    all: Annotated[bool, typer.Option("--all", "-a", help="Every row of the timeline.")] = False,
    result: Annotated[
        bool, typer.Option("--result", help="Only what it returned, whole, as JSON; 1 if it did not.")
    ] = False,
    json: Json = False,
) -> None:
    """One run as a timeline: attempts, steps, waits, child runs, the last error, the result."""

    async def work(client: Client) -> tuple[RunView, dict[str, str]]:
        found = await client.runs.get(run)
        return found, dict(await client.runs.statuses(child_runs(found)))

    if result:
        output.print_json(session.with_client(lambda client: client.runs.result(run)))
        return
    found, children = session.with_client(work)
    if json:
        output.print_json(whole(found, children))
        return
    console = output.out()
    width = console.width if console.is_terminal else None
    most = None if all else limit
    for line in page(found, now=SystemClock().now(), children=children, most=most, width=width):
        console.print(line)
    if found.status == "failed":
        output.say(f"[dim]again from its last good step: jetcron runs retry {found.id}[/dim]")


@app.command("cancel")
def cancel(
    runs: Ids,
    reason: Annotated[str, typer.Option("--reason", "-r", metavar="TEXT", help="Kept in the journal.")] = "",
) -> None:
    """End runs: one that waits or is queued at once, one that executes at its next await.

    Prints how each has ended. The runs they invoked go on.
    """

    async def work(client: Client) -> int:
        missed = 0
        for run in dict.fromkeys(runs):
            try:
                before = (await client.runs.get(run)).status
                ended = await client.runs.cancel(run, reason)
            except RunNotFound as error:
                output.say(f"[red]{output.escape(str(error))}[/red]")
                missed += 1
                continue
            was = f"it had {'been ' if ended == 'cancelled' else ''}{ended} before"
            note = was if before == ended else f"it was {before}"
            output.out().print(f"{run}  {output.state(ended)}  [dim]{note}[/dim]")
        return missed

    if session.with_client(work):
        raise typer.Exit(1)


@app.command("retry")
def retry(
    runs: Ids,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Anew, as another run with the same data.")
    ] = False,
) -> None:
    """Begin failed runs again from their last good step; prints the id of each run that runs now.

    What they did stands, what they failed at is tried again, with all attempts once more.
    """

    async def work(client: Client) -> int:
        missed = 0
        for run in dict.fromkeys(runs):
            try:
                typer.echo(await client.runs.retry(run, from_start=from_start))
            except (RunNotFound, ConfigurationError) as error:
                output.say(f"[red]{output.escape(str(error))}[/red]")
                missed += 1
        return missed

    if session.with_client(work):
        raise typer.Exit(1)


def why(reason: Reason) -> str:
    """Why an occurrence did not run."""
    return _WHY[reason]


@app.command("gaps")
def gaps(
    function: Of = None,
    json: Json = False,
) -> None:
    """The ledger: occurrences that did not run, and why."""

    async def work(client: Client) -> tuple[list[GapView], str | None]:
        told = list(await client.runs.gaps(function=function))
        return told, None if told else await nobodys(client, function=function)

    found, nobody = session.with_client(work)
    if json:
        output.print_json([_plain(view) for view in found])
        return
    output.table(
        found,
        {
            "SCHEDULE": lambda view: output.escape(view.gap.schedule),
            "FUNCTION": lambda view: output.escape(view.function),
            "FROM": lambda view: output.moment(view.gap.start) or "",
            "TO": lambda view: output.moment(view.gap.to) or "",
            "MISSED": lambda view: str(view.gap.count),
            "WHY": lambda view: why(view.gap.reason),
        },
        empty=nobody or "every occurrence ran, as far as the ledger goes back",
    )


def _plain(view: GapView) -> dict[str, Any]:
    """A gap for programs."""
    gap = view.gap
    return {
        "function": view.function,
        "schedule": gap.schedule,
        "start": output.moment(gap.start),
        "to": output.moment(gap.to),
        "count": gap.count,
        "reason": gap.reason,
        "why": why(gap.reason),
    }


@app.command("tail")
def tail(
    function: Of = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What happens to runs, as it happens, until Ctrl-C."""
    settings = session.settings()

    async def following() -> None:
        async with Client(settings) as client:
            entries = client.runs.tail(listening=lambda: output.say("[dim]following; Ctrl-C to stop[/dim]"))
            async for of, run, entry in entries:
                if function not in (None, of):
                    continue
                if json:
                    typer.echo(json_.dumps(follow.plain(of, run, entry), default=output.jsonable))
                else:
                    output.out().print(follow.line(of, run, entry))

    try:
        loop.run(following())
    except KeyboardInterrupt:
        pass


def _bound(of: RunsOf) -> str:
    """What a search did not look at; nothing if it looked at all there is."""
    if of.looked_at == of.journals:
        return ""
    return f"the newest {of.looked_at:,} of the {of.journals:,} runs of its functions were looked at"


def _by(run: RunView) -> str:
    about = run.history.about
    if about is None:
        return ""
    return output.escape(f"event {about.event}") if about.event else about.trigger


def _note(run: RunView) -> str:
    """What it waits for, or the error."""
    last = run.history.last
    match run.status:
        case "waiting" if last is not None and waits_for_turn(last):
            return "its turn, another one of its schedule goes on"
        case "waiting" if last is not None:
            steps = [run.history.waits[one] for one in last.on or [] if one in run.history.waits]
            first = waits_for(min(steps, key=lambda one: one.until)) if steps else ""
            others = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
            return f"{first}{others} until {output.shown(last.next_at)}".lstrip()
        case "retrying" if last is not None:
            error = line_of(run.error) if run.error is not None else "begun again"
            return f"at {output.shown(last.next_at)}: {error}"
        case "failed" | "cancelled" if run.error is not None:
            return run.error.message if run.error.type == "Cancelled" else line_of(run.error)
    return ""
