"""What verbs print: results on stdout, all else on stderr; tables for people, JSON for programs.

Owns the two consoles and how times, durations and errors look.
"""

import base64
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Never

import typer
from rich.console import Console
from rich.markup import escape as escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jetcron.clock import from_ms
from jetcron.errors import JetcronError, leaves
from jetcron.loading import ImportFailed
from jetcron_protocol.codec import DecodeError, EncodeError
from jetcron_protocol.subjects import InvalidName

TOLD = (JetcronError, InvalidName, DecodeError, EncodeError)
"""What a person can act on: told in a line, without a traceback. Anything else is a bug."""
STATES = {
    "active": "green",
    "completed": "green",
    "created": "green",
    "updated": "yellow",
    "paused": "yellow",
    "retrying": "yellow",
    "running": "blue",
    "failed": "red",
    "cancelled": "magenta",
    "archived": "dim",
    "ended": "dim",
    "deleted": "dim",
    "unchanged": "dim",
}


def out() -> Console:
    """stdout; made anew each time, for a test replaces the stream."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A line on stderr: what is going on, not the result."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Errors a person can act on become red lines on stderr and exit code 1; bugs keep their traceback."""
    try:
        yield
    except (*TOLD, ExceptionGroup) as error:
        causes = list(leaves(error))
        if not all(isinstance(cause, TOLD) for cause in causes):
            raise
        for text in dict.fromkeys(_told(cause) for cause in causes):
            say(text)
        raise typer.Exit(1) from None


def _told(error: BaseException) -> str:
    before = f"{escape(error.traceback)}\n" if isinstance(error, ImportFailed) else ""
    return f"{before}[red]{escape(str(error))}[/red]"


def fail(text: str) -> Never:
    """A red line, exit code 1."""
    say(f"[red]{escape(text)}[/red]")
    raise typer.Exit(1)


def print_json(value: Any) -> None:
    """One JSON document on stdout: times are ISO 8601 in UTC."""
    sys.stdout.write(json.dumps(value, default=jsonable, ensure_ascii=False, indent=2) + "\n")


def jsonable(value: object) -> Any:
    """What `json` does not know itself."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


def moment(ms: int | None) -> str | None:
    """Epoch milliseconds as ISO 8601 in UTC, for JSON."""
    return None if ms is None else from_ms(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(ms: int | None) -> str:
    """Epoch milliseconds for a table: UTC, to the second."""
    return "" if ms is None else f"{from_ms(ms):%Y-%m-%d %H:%M:%S}Z"


def span(ms: float | None) -> str:
    """Milliseconds as people say them."""
    if ms is None:
        return ""
    if ms < 1_000:
        return f"{ms:.0f} ms"
    for factor, unit in ((1_000, "s"), (60_000, "min"), (3_600_000, "h")):
        if ms < factor * 120 or unit == "h":
            return f"{ms / factor:.3g} {unit}"
    raise AssertionError


def size(octets: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if octets < 1024:
            return f"{octets:.0f} {unit}" if unit == "bytes" else f"{octets:.1f} {unit}"
        octets /= 1024
    return f"{octets:.1f} TiB"


def state(text: str) -> str:
    """A state in its colour."""
    style = STATES.get(text)
    return f"[{style}]{escape(text)}[/{style}]" if style else escape(text)


def table(rows: Sequence[Any], columns: Mapping[str, Callable[[Any], str]], *, empty: str) -> None:
    """Rows as a table; cells are rich markup. `empty` is said when there are none."""
    if not rows:
        say(f"[dim]{escape(empty)}[/dim]")
        return
    grid = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 2, 0, 0),
        show_header=any(map(str.strip, columns)),
    )
    for name in columns:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*(cell(row) for cell in columns.values()))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(grid)
        return
    # Whoever reads us by lines and columns must find whole words, and nothing after the last.
    console = Console(highlight=False, width=10_000)
    with console.capture() as capture:
        console.print(grid)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the context is open, for something with `total` parts (None: nobody knows how many).

    Call what it gives with how many more are done.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(escape(what), total=total)
        yield lambda done: bars.advance(task, done)


def first_line(text: str, width: int = 80) -> str:
    """The beginning of a text, for one cell."""
    lines = text.splitlines()
    line = lines[0] if lines else ""
    return escape(line if len(line) <= width else f"{line[: width - 1]}…")
