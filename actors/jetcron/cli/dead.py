"""`jetcron dead`: what nobody could decode, and runs that failed for good."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.cli.times import parse_past
from jetcron.client import Client
from jetcron.clock import SystemClock
from jetcron.errors import NotFound
from jetcron.replay import Dead, Replayed
from jetcron_protocol.codec import DecodeError, unpack

_PREVIEW = 10
"""Letters that are shown before many are sent again."""
_MANY = 50
"""So many have a bar."""

app = typer.Typer(no_args_is_help=True, help="Dead letters: failed runs, and what cannot be read.")

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As in jetcron dead list.")]


class Kind(StrEnum):
    """What a letter holds."""

    failed = "failed"
    run = "run"
    event = "event"
    tick = "tick"
    sync = "sync"
    health = "health"


OfKind = Annotated[
    Kind | None,
    typer.Option("--kind", "-k", help="A failed run, or what could not be read.", show_choices=True),
]
OfFunction = Annotated[
    str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Failed runs of this function.")
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Not before: how long ago (2h, 7d), or ISO 8601."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before: as --since.")]


@app.command("list")
def list_dead(
    kind: OfKind = None,
    function: OfFunction = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000)] = 50,
    json: Json = False,
) -> None:
    """The newest first."""
    chosen = _chosen(kind, function, since, until)

    async def work(client: Client) -> list[Dead]:
        return await client.dead.list(**chosen, limit=limit)

    found = session.with_client(work)
    if json:
        output.print_json([_brief(one) for one in found])
        return
    _table(found, "no dead letters" if not any(chosen.values()) else "no dead letter is so")


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
        list[int] | None, typer.Argument(metavar="NUMBER...", min=1, help="As in jetcron dead list.")
    ] = None,
    kind: OfKind = None,
    function: OfFunction = None,
    since: Since = None,
    until: Until = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however many.")] = False,
) -> None:
    """Send again and remove: a failed run starts anew, as a new run; anything else is published as it was.

    By number, or all that --function, --kind, --since and --until choose;
    more than one is shown first, and asked about.

    Prints what each became: the new run's id, or the subject.
    """
    chosen = _chosen(kind, function, since, until)
    by_filter = any(chosen.values())
    if bool(numbers) == by_filter:
        raise typer.BadParameter(
            "give NUMBERs or choose by --function, --kind, --since, --until, not both"
            if by_filter
            else "give NUMBERs as in jetcron dead list, or choose by --function, --kind, --since, --until"
        )

    async def find(client: Client) -> "_Found":
        first: list[Dead] = []
        sequences: list[int] = []
        async for dead in client.dead.find(**chosen):
            sequences.append(dead.sequence)
            if len(first) < _PREVIEW:
                first.append(dead)
        return _Found(first, sequences)

    if numbers:
        # In the order they are given, for that is how their ids are read.
        missed = sum(_send([number], gone_is_done=False) for number in dict.fromkeys(numbers))
    else:
        found = session.with_client(find)
        if not found.sequences:
            output.say("[dim]no dead letter is so[/dim]")
            return
        if len(found.sequences) > 1 and not yes:
            _ask(found)
        missed = _send(found.sequences, gone_is_done=True)
        output.say(f"[dim]{len(found.sequences) - missed:,} of {len(found.sequences):,} sent again[/dim]")
    if missed:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Found:
    """Letters that were chosen: all sequences, the newest of them whole."""

    first: list[Dead]
    sequences: list[int]


def _ask(found: _Found) -> None:
    """Show what would be sent again; exit code 1 unless somebody says yes."""
    count = len(found.sequences)
    _table(found.first, "")
    if count > len(found.first):
        output.say(f"[dim]and {count - len(found.first):,} older ones[/dim]")
    if not sys.stdin.isatty():
        output.fail(f"nothing was sent: these are {count:,}; add --yes to send all of them again")
    if not typer.confirm(f"Send all {count:,} again?", err=True):
        output.fail("nothing was sent")


def _send(numbers: Sequence[int], *, gone_is_done: bool) -> int:
    """Replay these, and print what each became; how many could not be. `gone_is_done`: somebody else was faster."""
    missed = 0

    def told(one: Replayed) -> None:
        nonlocal missed
        if one.error is None:
            # A bar may have taken stdout over; an echo would go past it.
            sys.stdout.write(f"{one.sent}\n")
        elif not (gone_is_done and isinstance(one.error, NotFound)):
            output.say(f"[red]{output.escape(str(one.error))}[/red]")
            missed += 1

    with _progress(len(numbers), told) as telling:

        async def work(client: Client) -> None:
            await client.dead.replay_each(numbers, told=telling)

        session.with_client(work)
    return missed


@contextlib.contextmanager
def _progress(count: int, told: Callable[[Replayed], None]) -> Iterator[Callable[[Replayed], None]]:
    """A bar on a terminal, when there are many."""
    console = Console(stderr=True)
    if count < _MANY or not console.is_terminal:
        yield told
        return
    columns = (TextColumn("sent again"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # A pipe must get what is printed; a terminal would mix it with the bar.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
    with bar:
        task = bar.add_task("", total=count)

        def both(one: Replayed) -> None:
            told(one)
            bar.advance(task)

        yield both


def _chosen(kind: Kind | None, function: str | None, since: str | None, until: str | None) -> dict[str, Any]:
    """What chooses letters, as the client takes it; a usage error for times that cannot be."""
    now = SystemClock().now()
    start = parse_past(since, now) if since is not None else None
    end = parse_past(until, now) if until is not None else None
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter(f"--since {since} is not before --until {until}: no letter can be so")
    return {"kind": kind.value if kind else None, "function": function, "since": start, "until": end}


def _table(found: Sequence[Dead], empty: str) -> None:
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
        empty=empty,
        narrow=("NUMBER", "KIND", "AT", "WHAT"),
        below=lambda one: f"{one.letter.run or ''}  {output.first_line(one.letter.reason, 48)}".strip(),
    )


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
