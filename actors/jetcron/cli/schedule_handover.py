"""`jetcron schedules fired` and `hand-over`: for schedules that another scheduler executes, all or a part.

Owns how they are asked on the command line; the rule both sides go by is in `jetcron.schedules.handover`.
"""

import sys
from typing import Annotated, Any

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.cli.times import parse_moment
from jetcron.client import Client
from jetcron.cron import CronError, parse_duration
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.schedules.handover import Fired, Shift

ELSEWHERE = 3
"""The exit code of `fired` for an occurrence that is executed elsewhere: no failure, and not to be executed."""


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
        str, typer.Option("--within", metavar="DURATION", help="No further from it: under half the period.")
    ] = "1s",
    token: Annotated[
        str | None, typer.Option("--token", metavar="TEXT", help="Who asks: may ask again, as a retry does.")
    ] = None,
) -> None:
    """Ask, where another scheduler fired, who executes it. Exit code 0: it is taken, execute it; 3: leave it."""
    try:
        span = parse_duration(within)
    except CronError as error:
        raise typer.BadParameter(f"--within: {error}") from None
    moment = parse_moment(at) if at is not None else None

    async def work(client: Client) -> Fired:
        return await client.schedules.fired(id, moment, within=span, token=token)

    if not session.with_client(work).here:
        raise typer.Exit(ELSEWHERE)


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
    output.say(f"{planned.size:,} schedules changed hands")


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
