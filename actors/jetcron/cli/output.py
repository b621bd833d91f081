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
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape as escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

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
    "waiting": "cyan",
    "failed": "red",
    "lost": "red",
    "cancelled": "magenta",
    "archived": "dim",
    "ended": "dim",
    "deleted": "dim",
    "unchanged": "dim",
}


_FOLDED = 26
"""The last column of a table is not made narrower than this."""


def out() -> Console:
    """stdout; made anew each time, for a test replaces the stream."""
    return Console(highlight=False, emoji=False, soft_wrap=True)


def say(text: str) -> None:
    """A line on stderr: what is going on, not the result."""
    Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(text)


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
    for factor, unit, most in ((1_000, "s", 120), (60_000, "min", 120), (3_600_000, "h", 48)):
        if ms < factor * most:
            return f"{ms / factor:.3g} {unit}"
    days = ms / 86_400_000
    return f"{days:.3g} days" if days < 1_000 else f"{days:.0f} days"


def length(seconds: float) -> str:
    """A duration as it was defined, to the millisecond: ``10 min``, ``1 h 30 min``."""
    left = round(seconds * 1_000)
    parts = []
    if days := left // 86_400_000:
        parts.append(counted(days, "day"))
        left %= 86_400_000
    for unit, size in (("h", 3_600_000), ("min", 60_000)):
        if number := left // size:
            parts.append(f"{number} {unit}")
            left %= size
    if left or not parts:
        parts.append(f"{left / 1_000:g} s")
    return " ".join(parts)


def offset(ms: int) -> str:
    """Milliseconds since a beginning, in at most eight characters."""
    sign, ms = ("-", -ms) if ms < 0 else ("+", ms)
    seconds, minutes = ms // 1_000, ms // 60_000
    if ms < 1_000:
        return f"{sign}{ms}ms"
    if ms < 60_000:
        return f"{sign}{ms / 1_000:.2f}s" if ms < 10_000 else f"{sign}{ms / 1_000:.1f}s"
    if ms < 3_600_000:
        return f"{sign}{minutes}m{seconds % 60:02d}s"
    if ms < 86_400_000:
        return f"{sign}{minutes // 60}h{minutes % 60:02d}m"
    hours = minutes // 60
    return f"{sign}{hours // 24}d{hours % 24:02d}h"


def ahead(ms: int, now: int) -> str:
    """A time to come, and how far off it is; how it was, if it is past."""
    return f"{shown(ms)} (in {span(ms - now)})" if ms > now else shown(ms)


def compact(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, default=jsonable, ensure_ascii=False)


def counted(number: int, noun: str) -> str:
    """So many of something: ``1 schedule``, ``1,000 schedules``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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


def table(
    rows: Sequence[Any],
    columns: Mapping[str, Callable[[Any], str]],
    *,
    empty: str,
    narrow: Sequence[str] = (),
    below: Callable[[Any], str] | None = None,
) -> None:
    """Rows as a table; cells are rich markup. `empty` is said when there are none.

    In a terminal too narrow for it, only the columns in `narrow`, each row with what `below` says of it on a line of
    its own.
    """
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
    console = Console(highlight=False, emoji=False)
    if console.is_terminal:
        wide = Measurement.get(console, console.options.update(width=10_000), grid).maximum
        last = max(Text.from_markup(list(columns.values())[-1](row), emoji=False).cell_len for row in rows)
        # The last column may fold, and its padding be cut off.
        if narrow and wide - max(last - _FOLDED, 0) - 2 > console.width:
            _narrow(rows, {name: columns[name] for name in narrow}, below)
        else:
            console.print(grid)
        return
    # Whoever reads us by lines and columns must find whole words, and nothing after the last.
    console = Console(highlight=False, emoji=False, width=10_000)
    with console.capture() as capture:
        console.print(grid)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def _narrow(
    rows: Sequence[Any], columns: Mapping[str, Callable[[Any], str]], below: Callable[[Any], str] | None
) -> None:
    cells = [[Text(name, "dim") for name in columns]]
    cells += [[Text.from_markup(cell(row), emoji=False) for cell in columns.values()] for row in rows]
    for column in list(zip(*cells, strict=True))[:-1]:
        width = max(cell.cell_len for cell in column)
        for cell in column:
            cell.pad_right(width - cell.cell_len)
    console = out()
    for line, row in zip(cells, [None, *rows], strict=True):
        console.print(Text("  ").join(line))
        note = below(row) if below is not None and row is not None else ""
        if note:
            console.print(f"  [dim]{note}[/dim]")


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
    """The beginning of a text, for one cell: at most so many columns wide."""
    lines = text.splitlines()
    line = lines[0] if lines else ""
    return escape(line if cell_len(line) <= width else f"{set_cell_size(line, width - 1).rstrip()}…")
