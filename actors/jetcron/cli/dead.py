"""`jetcron dead`: what nobody could decode, and runs that failed for good."""

from typing import Annotated, Any

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.client import Client
from jetcron.errors import ConfigurationError, NotFound
from jetcron.replay import Dead
from jetcron_protocol.codec import DecodeError, unpack

app = typer.Typer(no_args_is_help=True, help="Dead letters: failed runs, and what cannot be read.")

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As in jetcron dead list.")]


@app.command("list")
def list_dead(
    kind: Annotated[
        str | None, typer.Option("--kind", "-k", help="failed, run, event, tick, sync or health.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 50,
    json: Json = False,
) -> None:
    """The newest first."""

    async def work(client: Client) -> list[Dead]:
        return await client.dead.list(kind=kind, limit=limit)

    found = session.with_client(work)
    if json:
        output.print_json([_brief(one) for one in found])
        return
    output.table(
        found,
        {
            "NUMBER": lambda one: str(one.sequence),
            "KIND": lambda one: one.letter.letter,
            "AT": lambda one: output.shown(one.letter.at),
            "WHAT": lambda one: output.escape(one.letter.function or one.letter.subject),
            "RUN": lambda one: one.letter.run or "",
            "REASON": lambda one: output.first_line(one.letter.reason),
        },
        empty="no dead letters",
    )


@app.command("show")
def show(number: Number, json: Json = False) -> None:
    """One dead letter with its body."""

    async def work(client: Client) -> Dead:
        return await client.dead.get(number)

    found = session.with_client(work)
    plain = _brief(found) | {
        "headers": found.letter.headers,
        "size": found.letter.size,
        "body": _body(found.letter.body),
    }
    if json:
        output.print_json(plain)
        return
    rows = [(key, value) for key, value in plain.items() if value not in (None, {}, "")]
    output.table(rows, {"": lambda row: f"[dim]{row[0]}[/dim]", " ": lambda row: _cell(row[1])}, empty="")


@app.command("replay")
def replay(
    numbers: Annotated[
        list[int], typer.Argument(metavar="NUMBER...", min=1, help="As in jetcron dead list.")
    ],
) -> None:
    """Send again and remove: a failed run starts anew, anything else is published as it was."""

    async def work(client: Client) -> int:
        missed = 0
        for number in numbers:
            try:
                typer.echo(await client.dead.replay(number))
            except (NotFound, ConfigurationError) as error:
                output.say(f"[red]{output.escape(str(error))}[/red]")
                missed += 1
        return missed

    if session.with_client(work):
        raise typer.Exit(1)


def _brief(dead: Dead) -> dict[str, Any]:
    letter = dead.letter
    return {
        "number": dead.sequence,
        "kind": letter.letter,
        "at": output.moment(letter.at),
        "function": letter.function,
        "run": letter.run,
        "reason": letter.reason,
        "subject": letter.subject,
        "stream": letter.stream,
        "sequence": letter.sequence,
    }


def _body(body: bytes) -> Any:
    """As a value where it can be read, as text where it is text, else as it is."""
    try:
        value = unpack(body)
    except DecodeError:
        return body
    return value if isinstance(value, dict | list) else body


def _cell(value: Any) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value, default=output.jsonable, ensure_ascii=False)
    return output.escape(text)
