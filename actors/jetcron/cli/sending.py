"""Verbs that start something: `send` an event, `run` a function."""

import json as json_
import math
import sys
from datetime import datetime
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from jetcron.cli import output, session
from jetcron.cli.times import parse_moment
from jetcron.client import Client
from jetcron.errors import ConfigurationError, RunFailed
from jetcron.events import Event
from jetcron.runs import RunHandle

_FOREVER = "inf"
_PATIENCE = 5.0
"""Seconds after which a run nobody has taken is worth a word."""

Data = Annotated[str | None, typer.Argument(metavar="JSON", help="The data, as JSON; - reads it from stdin.")]
Id = Annotated[
    str | None, typer.Option("--id", help="The same id again starts nothing while the first is remembered.")
]
At = Annotated[
    str | None, typer.Option("--at", metavar="ISO", help="Not before this time; without an offset, UTC.")
]


class OptionalWait(TyperCommand):
    """`--wait` with or without a number of seconds after it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spelled: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                spelled += [word, *rest]
                break
            if word == "--wait":
                word = f"--wait={rest.pop(0) if rest and _is_seconds(rest[0]) else _FOREVER}"
            spelled.append(word)
        return super().parse_args(ctx, spelled)


def _is_seconds(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def add_to(app: typer.Typer) -> None:
    """Add these verbs."""
    app.command("send")(send)
    app.command("run", cls=OptionalWait)(run)


def send(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The event's name, such as order.created.")],
    data: Data = None,
    id: Id = None,
    at: At = None,
) -> None:
    """Send an event; prints its id once it is stored."""
    event = Event(name, parsed(data), id=id, at=_moment(at))

    async def work(client: Client) -> str:
        return (await client.send(event))[0]

    typer.echo(session.with_client(work))


def run(
    function: Annotated[str, typer.Argument(metavar="APP.FUNCTION", help="The function's id.")],
    data: Data = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            metavar="[SECONDS]",
            min=0,
            help="Print the result as JSON, waiting for it (so long, else until it ends); 1 when it fails.",
        ),
    ] = None,
    id: Id = None,
    at: At = None,
) -> None:
    """Start a function by name; prints the run's id once it is stored."""
    payload, moment = parsed(data), _moment(at)

    async def work(client: Client) -> None:
        handle = await client.run(function, payload, id=id, at=moment)
        if wait is None:
            typer.echo(handle.id)
        else:
            output.say(f"[dim]run {handle.id}[/dim]")
            output.print_json(await _result(handle, wait))

    session.with_client(work)


async def _result(handle: RunHandle, wait: float) -> Any:
    try:
        try:
            return await handle.result(min(wait, _PATIENCE))
        except TimeoutError:
            if await handle.status() == "queued":
                app = output.escape(handle.function.partition(".")[0])
                output.say(f"[yellow]nobody has taken it yet; is an executor of {app!r} running?[/yellow]")
            left = wait - _PATIENCE
            if left <= 0:
                raise
            return await handle.result(None if math.isinf(left) else left)
    except TimeoutError:
        output.fail(
            f"{handle.function} has not ended within {wait:g} s; it goes on: jetcron runs show {handle.id}"
        )
    except RunFailed as error:
        if error.traceback.startswith("Traceback"):
            output.say(output.escape(error.traceback.rstrip()))
        raise


def parsed(data: str | None) -> Any:
    """The value of a JSON text, `-` for that on stdin; `ConfigurationError` for what is none."""
    if data is None:
        return None
    text = sys.stdin.read() if data == "-" else data
    try:
        return json_.loads(text)
    except ValueError as error:
        shown = text if len(text) <= 60 else f"{text[:59]}…"
        raise ConfigurationError(
            f"this is not JSON: {shown!r} ({error}); quote it for your shell, such as '{{\"id\": 7}}'"
        ) from None


def _moment(at: str | None) -> datetime | None:
    return parse_moment(at) if at is not None else None
