"""`jetcron schedules history`: the last occurrences of a schedule, and what became of each."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from jetcron.cli import output, runs, session
from jetcron.cli.functions import Json
from jetcron.client import Client
from jetcron.clock import to_ms
from jetcron.schedules.history import Outcome


def add_to(app: typer.Typer) -> None:
    """Add this verb."""
    app.command("history")(history)


def history(
    id: Annotated[str, typer.Argument(metavar="ID")],
    since: Annotated[
        str | None, typer.Option("--since", metavar="ISO", help="None before this time, given with its zone.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 50,
    json: Json = False,
) -> None:
    """Its occurrences, the newest first, run or not: how late each began, what came of it, why it did not run."""

    async def work(client: Client) -> Sequence[Outcome]:
        return await client.schedules.history(id, limit=limit, since=since)

    found = session.with_client(work)
    if json:
        output.print_json([plain(one) for one in found])
        return
    show(found, id, "since" if since is not None else "yet")


def show(found: Sequence[Outcome], id: str, when: str = "yet") -> None:
    """Occurrences of this schedule as a table. Without any, it may still have runs."""
    output.table(
        found,
        {
            "FOR": lambda one: output.moment(to_ms(one.at)) or "",
            "OUTCOME": lambda one: output.state(one.outcome),
            "LATE": lambda one: output.span(_ms(one)),
            "REVISION": lambda one: str(one.revision),
            "RUN": lambda one: _run(one) or "",
            "WHY": _note,
        },
        empty=f"it has had no occurrence {when}; what was triggered or backfilled: jetcron runs list --schedule {id}",
    )


def plain(one: Outcome) -> dict[str, Any]:
    """An occurrence for programs; `run` is none where there is none, or nobody remembers it."""
    return {
        "at": output.moment(to_ms(one.at)),
        "outcome": one.outcome,
        "late_ms": _ms(one),
        "function": one.function,
        "revision": one.revision,
        "run": _run(one),
        "reason": one.reason,
        "why": None if one.reason is None else runs.why(one.reason),
    }


def _run(one: Outcome) -> str | None:
    return one.id if one.run is not None or one.awaited == "queued" else None


def _ms(one: Outcome) -> float | None:
    return None if one.late is None else one.late.total_seconds() * 1_000


def _note(one: Outcome) -> str:
    if one.reason is not None:
        return runs.why(one.reason)
    error = one.run.error if one.run is not None else None
    return "" if error is None else output.first_line(error.message, 60)
