"""`jetcron schedules apply`: have schedules stand as a file says, YAML or JSON Lines; what changes is shown first.

Owns asking, and what is said when it broke off: what is applied by then stands, and the same again goes on. What is in
such a file means what the arguments of `client.schedules.create` mean.
"""

import sys
from typing import Annotated

import typer

from jetcron.cli import output, schedule_diff, session
from jetcron.cli.functions import Json
from jetcron.cli.schedule_reading import read
from jetcron.client import Client
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.schedules.plan import Plan

_INTERRUPTED = 130
"""The exit code after Ctrl-C."""


def add_to(app: typer.Typer) -> None:
    """Add this verb."""
    app.command("apply")(apply)


def apply(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="YAML, or JSON Lines (.jsonl, .ndjson); - reads stdin.")
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete schedules of the same functions that are not in the file.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Create, update and, with --prune, delete schedules, so that they stand as a file says."""
    wanted = read(file)

    if prune and not wanted:
        output.say(
            f"[yellow]{output.escape(file)} has no schedules in it, and so names no function whose schedules --prune "
            "could delete: nothing is pruned[/yellow]"
        )
    done = 0

    async def look(client: Client) -> Plan:
        return await client.schedules.plan(wanted, prune=prune)

    async def carry_out(client: Client) -> None:
        with output.progress("applying", plan.size) as advance:

            def progress(more: int) -> None:
                nonlocal done
                done += more
                advance(more)

            await client.schedules.apply(plan, progress=progress)

    plan = session.with_client(look)
    if json:
        output.print_json(schedule_diff.plain(plan))
    else:
        schedule_diff.show(plan)
    if dry_run or not plan.size:
        return
    if not yes:
        _ask(plan, file)  # it may take long: nobody is connected meanwhile
    try:
        session.with_client(carry_out)
    except TryAgain as error:
        output.fail(f"not all of it is applied; the same again goes on: {error.description}")
    except KeyboardInterrupt:
        output.say(
            f"interrupted: {done:,} of {output.counted(plan.size, 'schedule')} are applied, and what was sent may be; "
            "the same again goes on"
        )
        raise typer.Exit(_INTERRUPTED) from None
    applied = f"{output.counted(plan.size, 'schedule')} {'is' if plan.size == 1 else 'are'} applied"
    output.say(f"{applied}, {plan.unchanged:,} stood already")


def _ask(plan: Plan, file: str) -> None:
    if file == "-" or not sys.stdin.isatty():
        raise ConfigurationError("nobody can be asked here; --yes applies it, --dry-run only shows it")
    changes = f"{output.counted(plan.size, 'schedule')} {'changes' if plan.size == 1 else 'change'}"
    output.say(f"[bold]{changes}.[/bold]")
    if not typer.confirm("Apply?", err=True):
        raise typer.Exit(1)
