"""`jetcron schedules fired` and `hand-over`: for schedules that another scheduler executes, all or a part.

Owns how they are asked on the command line; the rule both sides go by is in `jetcron.schedules.handover`.
"""

import sys
from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Any

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.cli.times import parse_moment, parse_span
from jetcron.client import Client
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.options import MILLISECOND
from jetcron.schedules.handover import Fired, Shift

ELSEWHERE = 3
"""The exit code of `fired` for an occurrence that is executed elsewhere: no failure, and not to be executed."""

_LOOKED_AT = 400
"""Occurrences whose shortest period is looked for: a year of a daily one, with its changes of clocks."""


def add_to(app: typer.Typer) -> None:
    """Add these verbs."""
    app.command("fired")(fired)
    app.command("hand-over")(hand_over)


def fired(
    id: Annotated[str, typer.Argument(metavar="ID", help="The schedule's id.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="ISO", help="Of the occurrence nearest to it; else to now.")
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            "--within", metavar="DURATION", help="No further from it: under half the period; else 1s."
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", metavar="TEXT", help="Who asks: may ask again, as a retry does.")
    ] = None,
) -> None:
    """Ask, where another scheduler fired, who executes it. Exit code 0: it is taken, execute it; 3: leave it."""
    span = None if within is None else parse_span("--within", within)
    moment = parse_moment(at) if at is not None else None

    async def work(client: Client) -> Fired:
        if span is None:
            return await client.schedules.fired(id, moment, token=token)
        await _check_within(client, id, span)
        return await client.schedules.fired(id, moment, within=span, token=token)

    if not session.with_client(work).here:
        raise typer.Exit(ELSEWHERE)


async def _check_within(client: Client, id: str, within: timedelta) -> None:
    """Refuses what reaches two occurrences: a firing that is none would be taken for one of them."""
    times = await client.schedules.preview(id, _LOOKED_AT)
    shortest = min((later - earlier for earlier, later in pairwise(times)), default=None)
    if shortest is not None and shortest <= 2 * within:
        raise ConfigurationError(
            f"--within is {_said(within)}, and schedule {id!r} fires {_said(shortest)} apart; allowed is under half of "
            f"that, less than {_said(shortest / 2)}"
        )


def _said(span: timedelta) -> str:
    return output.span(span / MILLISECOND)


def hand_over(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]")] = None,
    percent: Annotated[
        float, typer.Option("--percent", min=0, max=100, help="So many of them; the other executes the rest.")
    ] = 100,
    app_: Annotated[str | None, typer.Option("--app", metavar="APP", help="Those of this app.")] = None,
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Those of this function.")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", "-t", help="Those that have this tag.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Have Jetcron execute schedules that another scheduler executed; --percent 0 gives them back.

    Those that never had another scheduler stay Jetcron's.
    """

    async def look(client: Client) -> Shift:
        return await client.schedules.plan_hand_over(
            *(ids or ()), percent=percent, app=app_, function=function, tag=tag
        )

    async def carry_out(client: Client) -> None:
        with output.progress("handing over", planned.size) as advance:
            await client.schedules.apply_hand_over(planned, progress=advance)

    planned = session.with_client(look)
    if json:
        output.print_json(_plain(planned))
    else:
        _show(planned)
    if dry_run or not planned.size:
        return
    if not yes:
        _ask(planned)  # it may take long: nobody is connected meanwhile
    try:
        session.with_client(carry_out)
    except TryAgain as error:
        output.fail(f"sent but not applied yet: {error.description}")
    output.say(f"{output.counted(planned.size, 'schedule')} changed hands")


def _show(planned: Shift) -> None:
    native = f", of which {planned.native:,} never had another scheduler" if planned.native else ""
    output.out().print(
        f"to Jetcron: {len(planned.to_jetcron):,}, to the other: {len(planned.to_other):,}, "
        f"left as they are: {planned.left:,}{native}"
    )


def _plain(planned: Shift) -> dict[str, Any]:
    return {
        "to_jetcron": [part.id for part in planned.to_jetcron],
        "to_other": [part.id for part in planned.to_other],
        "left": planned.left,
        "native": planned.native,
    }


def _ask(planned: Shift) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody can be asked here; --yes hands over, --dry-run only shows it")
    output.say(f"[bold]{planned.size:,} schedules change hands.[/bold]")
    if not typer.confirm("Hand over?", err=True):
        raise typer.Exit(1)
