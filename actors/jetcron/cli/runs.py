"""`jetcron runs`: what ran, how it went, and what happens now."""

import dataclasses
from typing import Annotated, Any

import typer

from jetcron import loop
from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.logs import local_time
from jetcron.runs import GapView, RunView
from jetcron_protocol.messages import Attempt, JournalEntry

_WHY = {
    "catch_up": "missed, and catch_up left it out",
    "too_many": "missed, with more than catch_up='all' runs",
    "handed_over": "left to the other scheduler, which executes it",
    "unknown_history": "so long ago that nobody can tell whether it ran",
}

app = typer.Typer(no_args_is_help=True, help="Runs: those whose journal stands.")


@app.command("list")
def list_runs(
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Of this function alone.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 20,
    json: Json = False,
) -> None:
    """The newest runs first. A run nobody has taken yet has no journal and is not shown."""

    async def work(client: Client) -> list[RunView]:
        return await client.runs.list(function=function, limit=limit)

    found = session.with_client(work)
    if json:
        output.print_json([_brief(run) for run in found])
        return
    output.table(
        found,
        {
            "RUN": lambda run: run.id,
            "FUNCTION": lambda run: output.escape(run.function),
            "STATUS": lambda run: output.state(run.status),
            "BY": lambda run: _trigger(run),
            "FOR": lambda run: output.shown(run.history.about.fire_at if run.history.about else None),
            "TOOK": lambda run: output.span(_took(run)),
            "TRIES": lambda run: str(len(run.history.attempts)),
            "ERROR": lambda run: output.first_line(_error(run), 60),
        },
        empty="no runs are remembered",
    )


@app.command("show")
def show(run: Annotated[str, typer.Argument(metavar="RUN")], json: Json = False) -> None:
    """One run: attempts, steps, error, result."""

    async def work(client: Client) -> RunView:
        return await client.runs.get(run)

    found = session.with_client(work)
    if json:
        output.print_json(_whole(found))
        return
    console = output.out()
    console.print(f"[bold]{output.escape(found.function)}[/bold]  {found.id}  {output.state(found.status)}")
    about = found.history.about
    if about is not None:
        console.print(f"[dim]by {_trigger(found)}, for {output.moment(about.fire_at)}[/dim]")
    output.table(
        found.history.attempts,
        {
            "ATTEMPT": lambda one: str(one.number + 1),
            "OUTCOME": lambda one: output.state(one.outcome or "running"),
            "STARTED": lambda one: output.moment(one.started) or "",
            "LATE": lambda one: output.span(_late(found, one)),
            "TOOK": lambda one: output.span(
                one.ended - one.started if one.ended is not None and one.started is not None else None
            ),
            "EXECUTOR": lambda one: output.escape(one.executor),
            "ERROR": lambda one: (
                output.first_line(f"{one.error.type}: {one.error.message}") if one.error else ""
            ),
        },
        empty="no attempt was made",
    )
    steps = list(found.history.steps.values())
    if steps:
        output.table(
            steps,
            {
                "STEP": lambda one: output.escape(one.id),
                "WHAT": lambda one: one.op,
                "AT": lambda one: output.moment(one.at) or "",
                "RESULT": lambda one: output.first_line(_compact(one.result)),
            },
            empty="",
        )
    error = found.error or next((one.error for one in reversed(found.history.attempts) if one.error), None)
    if error is not None and found.status != "completed":
        if error.traceback:
            console.print(output.escape(error.traceback.rstrip()))
        console.print(f"[red]{output.escape(error.type)}: {output.escape(error.message)}[/red]")
    if found.status == "completed":
        console.print(f"[dim]result[/dim] {output.escape(_compact(found.result))}")


@app.command("gaps")
def gaps(
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Of this function alone.")
    ] = None,
    json: Json = False,
) -> None:
    """The ledger: occurrences that did not run, and why."""

    async def work(client: Client) -> list[GapView]:
        return list(await client.runs.gaps(function=function))

    found = session.with_client(work)
    if json:
        output.print_json([{"function": view.function, **dataclasses.asdict(view.gap)} for view in found])
        return
    output.table(
        found,
        {
            "SCHEDULE": lambda view: output.escape(view.gap.schedule),
            "FUNCTION": lambda view: output.escape(view.function),
            "FROM": lambda view: output.moment(view.gap.start) or "",
            "TO": lambda view: output.moment(view.gap.to) or "",
            "MISSED": lambda view: str(view.gap.count),
            "WHY": lambda view: _WHY[view.gap.reason],
        },
        empty="every occurrence ran, as far as the ledger goes back",
    )


@app.command("tail")
def tail(
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Of this function alone.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What happens to runs, as it happens, until Ctrl-C."""
    settings = session.settings()

    async def follow() -> None:
        async with Client(settings) as client:
            output.say("[dim]following; Ctrl-C to stop[/dim]")
            async for of, run, entry in client.runs.tail():
                if function in (None, of):
                    _print_entry(of, run, entry, json=json)

    try:
        loop.run(follow())
    except KeyboardInterrupt:
        pass


def _print_entry(function: str, run: str, entry: JournalEntry, *, json: bool) -> None:
    error = f"{entry.error.type}: {entry.error.message}" if entry.error else None
    if json:
        line = {
            "at": output.moment(entry.at),
            "function": function,
            "run": run,
            "entry": entry.entry,
            "attempt": entry.attempt,
            "step": entry.step,
            "error": error,
            "next_at": output.moment(entry.next_at),
            "result": entry.result,
        }
        import json as json_

        typer.echo(json_.dumps({k: v for k, v in line.items() if v is not None}, default=output.jsonable))
        return
    mark = {
        "claimed": "[blue]▶[/blue]",
        "step": "[dim]•[/dim]",
        "retrying": "[yellow]↻[/yellow]",
        "completed": "[green]✓[/green]",
        "failed": "[red]✗[/red]",
        "cancelled": "[magenta]⊘[/magenta]",
    }[entry.entry]
    notes = [entry.step or "", f"attempt {entry.attempt + 1}" if entry.attempt else "", error or ""]
    note = "  ".join(output.first_line(one) for one in notes if one)
    time = local_time(from_ms(entry.at).isoformat())
    output.out().print(
        f"[dim]{time}[/dim]  {mark} [bold]{output.escape(function)}[/bold]  {entry.entry}  {note}  [dim]{run}[/dim]"
    )


def _trigger(run: RunView) -> str:
    about = run.history.about
    if about is None:
        return ""
    return output.escape(f"event {about.event}") if about.event else about.trigger


def _started(run: RunView) -> int | None:
    return next((one.started for one in reversed(run.history.attempts) if one.started is not None), None)


def _took(run: RunView) -> int | None:
    """From the first attempt's start to the last one's end."""
    starts = [one.started for one in run.history.attempts if one.started is not None]
    ends = [one.ended for one in run.history.attempts if one.ended is not None]
    return ends[-1] - starts[0] if starts and ends and run.history.finished else None


def _late(run: RunView, attempt: Attempt) -> int | None:
    about = run.history.about
    if about is None or attempt.started is None or attempt.turn > 0:
        return None
    return max(attempt.started - about.fire_at, 0)


def _error(run: RunView) -> str:
    errors = [one.error for one in run.history.attempts if one.error]
    error = run.error or (errors[-1] if errors and run.status == "retrying" else None)
    return f"{error.type}: {error.message}" if error else ""


def _brief(run: RunView) -> dict[str, Any]:
    about = run.history.about
    return {
        "run": run.id,
        "function": run.function,
        "status": run.status,
        "trigger": about.trigger if about else None,
        "event": about.event if about else None,
        "schedule": about.schedule if about else None,
        "scheduled_at": output.moment(about.scheduled_at) if about else None,
        "fire_at": output.moment(about.fire_at) if about else None,
        "started": output.moment(_started(run)),
        "took_ms": _took(run),
        "attempts": len(run.history.attempts),
        "error": _error(run) or None,
    }


def _whole(run: RunView) -> dict[str, Any]:
    return _brief(run) | {
        "attempts": [
            {
                "number": one.number + 1,
                "turn": one.turn,
                "outcome": one.outcome,
                "executor": one.executor,
                "claimed": output.moment(one.claimed),
                "started": output.moment(one.started),
                "ended": output.moment(one.ended),
                "error": _failure(one.error),
            }
            for one in run.history.attempts
        ],
        "steps": [
            {"id": one.id, "op": one.op, "at": output.moment(one.at), "result": one.result}
            for one in run.history.steps.values()
        ],
        "result": run.result,
        "error": _failure(run.error),
    }


def _failure(error: Any) -> dict[str, str] | None:
    if error is None:
        return None
    return {"type": error.type, "message": error.message, "traceback": error.traceback}


def _compact(value: Any) -> str:
    import json as json_

    return json_.dumps(value, default=output.jsonable, ensure_ascii=False)
