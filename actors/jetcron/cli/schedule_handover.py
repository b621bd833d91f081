"""`jetcron schedules fired` and `hand-over`: for schedules that another scheduler executes, all or a part.

Owns how they are asked on the command line; the rule both sides go by is in `jetcron.schedules.handover`.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Annotated

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.cli.times import parse_moment, parse_span
from jetcron.client import Client
from jetcron.clock import to_ms
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.options import MILLISECOND
from jetcron.schedules.handover import Fired
from jetcron.schedules.orders import InForce

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
    json: Json = False,
) -> None:
    """Have Jetcron execute schedules that another scheduler executed; --percent 0 gives them back."""

    async def work(client: Client) -> Sequence[InForce]:
        with output.progress("handing over") as advance:
            return await client.schedules.hand_over(
                *(ids or ()), percent=percent, app=app_, function=function, tag=tag, progress=advance
            )

    try:
        found = session.with_client(work)
    except TryAgain as error:
        output.fail(f"sent but not applied yet: {error.description}")
    if json:
        output.print_json(
            [
                {"id": one.id, "revision": one.revision, "next": one.next and output.moment(to_ms(one.next))}
                for one in found
            ]
        )
    else:
        output.say(f"{output.counted(len(found), 'schedule')} changed hands")
