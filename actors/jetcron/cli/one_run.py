"""One run on a terminal: what it is, its timeline, its last error, its result.

Owns how rows look, at 80 columns and on one line each where somebody reads us by lines, and which of them are left
out when there are many. Pure: gives lines of rich markup.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import wrap

from rich.cells import cell_len

from jetcron.cli import output
from jetcron.cli.run_facts import began, lateness, step_shown, trigger
from jetcron.cli.timeline import Row, timeline
from jetcron.history import FINISHED
from jetcron.lanes import waits_for_turn
from jetcron.runs import RunView
from jetcron_protocol.messages import Failure

_MARKS = {
    "begun": ("▶", "blue"),
    "done": ("✓", "green"),
    "open": ("○", "cyan"),
    "again": ("↻", "yellow"),
    "failed": ("✗", "red"),
    "cancelled": ("⊘", "magenta"),
    "left out": ("⋮", "dim"),
}
_OFFSET, _WHAT, _TOOK = 8, 9, 8
_NAME = 26
"""The widest column of names; a longer name has a line to itself."""
_DEEPEST = 6
_SHORTEST, _WIDEST = 8, 200
"""Cells that a result or an error takes beside the rest."""
_RESULT = 1_000
"""Characters of a result that are shown."""


def page(
    run: RunView,
    *,
    now: int,
    children: Mapping[str, str],
    most: int | None = None,
    width: int | None = None,
) -> Iterator[str]:
    """Lines of rich markup. `most`: about so many rows; `width`: of the terminal, None where there is none."""
    yield from _head(run, now)
    whole = timeline(run, now=now, children=children)
    rows = whole if most is None else shortened(whole, most)
    if rows:
        yield ""
        start = began(run)
        yield from _drawn(rows, rows[0].at if start is None else start, width)
    for step, error in last_errors(run):
        yield ""
        yield from _error(step, error)
    if run.status == "completed":
        yield ""
        yield f"[dim]result[/dim]  {_result(run)}"


def last_errors(run: RunView) -> list[tuple[str, Failure]]:
    """Why it failed, after the error of the step behind it; of one that has not ended, the latest. With their steps."""
    if run.status in FINISHED:
        # A reason somebody gave stands in the timeline.
        if run.error is None or run.error.type == "Cancelled":
            return []
        return [*_behind(run, run.error), ("", run.error)]
    errors = [(one.ended or 0, "", one.error) for one in run.history.attempts if one.error is not None]
    errors += [(one.at, one.id, one.error) for one in run.history.waits.values() if one.error is not None]
    return [max(errors, key=lambda one: one[0])[1:]] if errors else []


def _behind(run: RunView, error: Failure) -> list[tuple[str, Failure]]:
    """The error of the step that failed the run, where the run's own says no more than that it did."""
    if not error.type.endswith(".StepError"):
        return []
    for done in run.history.steps.values():
        own = done.error
        if (
            own is not None
            and own.traceback
            and error.message.startswith(f"step {done.id!r} failed: {own.type}")
        ):
            return [(done.id, own)] if own.traceback.strip() not in error.traceback else []
    return []


# What it is.


def _head(run: RunView, now: int) -> Iterator[str]:
    yield f"[bold]{output.escape(run.function)}[/bold]  {output.escape(run.id)}"
    yield _key("status", f"{output.state(run.status)}{output.escape(_standing(run, now))}")
    about = run.history.about
    if about is None:
        return
    yield _key("trigger", output.escape(trigger(run)))
    if about.scheduled_at is not None and about.scheduled_at != about.fire_at:
        yield _key("schedule", f"{_moment(about.scheduled_at)}, with jitter")
    yield _key("due", _moment(about.fire_at))
    late = lateness(run)
    if late is not None:
        yield _key("started", f"{_moment(run.history.attempts[0].started)}, {output.span(late)} late")
    if about.parent is not None:
        step = f", step {step_shown(about.parent_step)}" if about.parent_step is not None else ""
        yield _key("parent", output.escape(f"{about.parent_function or ''} {about.parent}{step}".strip()))


def _key(name: str, text: str) -> str:
    return f"[dim]{name:<8}[/dim] {text}"


def _moment(ms: int | None) -> str:
    return (output.moment(ms) or "").replace("T", " ")


def _standing(run: RunView, now: int) -> str:
    """What follows its status."""
    last, about, start = run.history.last, run.history.about, began(run)
    if last is None:
        if about is not None and about.fire_at > now:
            return f" until {output.ahead(about.fire_at, now)}"
        return ", no executor has taken it yet"
    match run.status:
        case "waiting" if waits_for_turn(last):
            return " for its turn, another one of its schedule goes on"
        case "running" if start is not None:
            return f" for {output.span(max(now - start, 0))}" if start <= now else ", held until it is due"
        case "waiting" | "retrying" if last.next_at is not None:
            word = "until" if run.status == "waiting" else "at"
            return f" {word} {output.ahead(last.next_at, now)}"
        case "completed" | "failed" if start is not None:
            return f" in {output.span(max(last.at - start, 0))}"
        case "cancelled":
            return f" at {_moment(last.at)}"
    return ""


# Its timeline.


def shortened(rows: Sequence[Row], most: int) -> list[Row]:
    """At most about `most` rows: what failed or waits, then the latest; one row for each stretch that is left out."""
    if len(rows) <= most:
        return list(rows)
    latest = range(len(rows) - 1, -1, -1)
    ranked = [n for n in latest if rows[n].notable] + [n for n in latest if not rows[n].notable]
    chosen = {0, *ranked[:most]}
    outer: list[int] = []
    for number, row in enumerate(rows):  # those a chosen step is within
        outer = [n for n in outer if rows[n].depth < row.depth] if row.depth else []
        if number in chosen:
            chosen.update(outer)
        if row.depth:
            outer.append(number)
    found: list[Row] = []
    for is_chosen, stretch in groupby(range(len(rows)), key=lambda n: n in chosen):
        numbers = list(stretch)
        if is_chosen:
            found += [rows[n] for n in numbers]
        else:
            found.append(Row(rows[numbers[0]].at, "left out", f"{len(numbers):,} more", depth=1))
    return found


def _drawn(rows: Sequence[Row], start: int, width: int | None) -> Iterator[str]:
    room = max((cell_len(row.name) + _indent(row) for row in rows if row.mark != "left out"), default=0)
    room = min(room, _NAME)
    for row in rows:
        yield from _row(row, start, room, width)


def _indent(row: Row) -> int:
    return 2 * min(row.depth, _DEEPEST)


def _row(row: Row, start: int, room: int, width: int | None) -> Iterator[str]:
    mark, style = _MARKS[row.mark]
    if row.mark == "left out":
        yield f"{' ' * _OFFSET}    [dim]{mark} {row.name}[/dim]"
        return
    indent = _indent(row)
    under = _OFFSET + indent + 6
    line = f"[dim]{output.offset(row.at - start):>{_OFFSET}}[/dim]  {' ' * indent}[{style}]{mark}[/{style}] "
    line += output.escape(row.name)
    left = room - indent - cell_len(row.name)
    if left < 0 and width is not None:
        yield line
        line, left = "", _OFFSET + 4 + room
    took = output.span(row.took)
    line += f"{' ' * left}  {_stated(row)}{' ' * (_WHAT - len(row.what))}{took:>{_TOOK}}"
    used = _OFFSET + 4 + room + 2 + _WHAT + max(_TOOK, len(took))
    note = ", ".join(row.notes)
    below: list[str] = []
    if note and (width is None or used + 2 + cell_len(note) <= width):
        line += f"  {output.escape(note)}"
        used += 2 + cell_len(note)
    elif note and width is not None:
        below = _packed(row.notes, max(width - under, 20))
    if row.result is not None:
        most = _WIDEST if width is None else width - used - 4
        if most >= _SHORTEST:
            line += f"  [dim]→ {output.first_line(output.compact(row.result), most)}[/dim]"
    yield line.rstrip()
    yield from (f"{' ' * under}{output.escape(part)}" for part in below)
    if row.error:
        style = "red" if row.mark == "failed" or row.what in ("failed", "lost") else "yellow"
        most = _WIDEST if width is None else max(width - under, 20)
        yield f"{' ' * under}[{style}]{output.first_line(row.error, most)}[/{style}]"


def _packed(notes: Sequence[str], width: int) -> list[str]:
    """Phrases on as few lines as hold them whole, where that can be."""
    lines: list[str] = []
    for note in notes:
        if lines and len(lines[-1]) + 2 + len(note) <= width:
            lines[-1] += f", {note}"
        else:
            lines.append(note)
    return [part for line in lines for part in wrap(line, width)]


def _stated(row: Row) -> str:
    """A state in its colour; what a step does is dim."""
    if not row.what:
        return ""
    return output.state(row.what) if row.depth == 0 else f"[dim]{output.escape(row.what)}[/dim]"


# How it ended.


def _error(step: str, error: Failure) -> Iterator[str]:
    yield f"[dim]{f'error of step {output.escape(step_shown(step))}' if step else 'last error'}[/dim]"
    text = f"{error.type}: {error.message}" if error.message else error.type
    trace = error.traceback.rstrip()
    if trace.startswith("Traceback"):
        frames = trace.removesuffix(text).rstrip().splitlines()
        yield from (f"[dim]{output.escape(line)}[/dim]" for line in frames)
    yield from (f"[red]{output.escape(line)}[/red]" for line in text.splitlines())


def _result(run: RunView) -> str:
    kept = run.history.last.object if run.history.last is not None else None
    whole = f"jetcron runs show {run.id} --result"
    if kept is not None:
        return f"{output.size(kept.size)}, kept as an object; the whole: {whole}"
    text = output.compact(run.result)
    if len(text) <= _RESULT:
        return output.escape(text)
    return f"{output.escape(text[:_RESULT])}… [dim]{len(text):,} characters; the whole: {whole}[/dim]"
