"""`jetcron runs tail`: what happens to runs, a line each, as it happens."""

from collections.abc import Iterator
from typing import Any

from jetcron.cli import output
from jetcron.cli.run_facts import cancelled_by, line_of, step_shown
from jetcron.clock import from_ms
from jetcron.lanes import waits_for_turn
from jetcron.logs import local_time
from jetcron_protocol.messages import JournalEntry

_MARKS = {
    "claimed": ("▶", "blue"),
    "opened": ("○", "cyan"),
    "step": ("•", "dim"),
    "waiting": ("○", "cyan"),
    "retrying": ("↻", "yellow"),
    "completed": ("✓", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("⊘", "magenta"),
}
_MOST = 60
"""Characters of a value or an error."""


def line(function: str, run: str, entry: JournalEntry) -> str:
    """An entry for people, as rich markup."""
    mark, style = _MARKS[entry.entry]
    time = local_time(from_ms(entry.at).isoformat())
    told = "  ".join([_what(entry), *_notes(entry)])
    named = f"[bold]{output.escape(function)}[/bold]  [dim]{run}[/dim]"
    return f"[dim]{time}[/dim]  [{style}]{mark}[/{style}] {named}  {told}"


def plain(function: str, run: str, entry: JournalEntry) -> dict[str, Any]:
    """An entry for programs; what it does not say is left out."""
    fields = {
        "at": output.moment(entry.at),
        "function": function,
        "run": run,
        "entry": entry.entry,
        "turn": entry.turn,
        "attempt": entry.attempt,
        "executor": entry.executor,
        "step": entry.step,
        "op": entry.op,
        "target": entry.target,
        "child": entry.child,
        "until": output.moment(entry.until),
        "on": entry.on,
        "failures": entry.tries or None,
        "started": output.moment(entry.started),
        "error": line_of(entry.error) if entry.error is not None else None,
        "next_at": output.moment(entry.next_at),
        "result": entry.result,
        "result_object": {"name": entry.object.name, "size": entry.object.size} if entry.object else None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _what(entry: JournalEntry) -> str:
    match entry.entry:
        case "claimed" if entry.turn:
            return "resumed" if not entry.attempt else f"attempt {entry.attempt + 1}"
        case "opened" | "step":
            return output.escape(f"{entry.op} {step_shown(entry.step or '')}")
    return entry.entry


def _notes(entry: JournalEntry) -> Iterator[str]:
    until = output.shown(entry.until)
    match entry.entry:
        case "claimed" if entry.lost:
            yield f"taken over, {entry.lost} lost"
        case "opened":
            match entry.op:
                case "run":
                    yield f"failed {entry.tries}×, again at {until}"
                case "invoke":
                    yield output.escape(f"waits for {entry.target} {entry.child}")
                case "wait":
                    yield output.escape(f"waits for {entry.target} until {until}")
                case _:
                    yield f"until {until}"
        case "step":
            if entry.target is not None:
                yield output.escape(entry.target)
            if entry.started is not None:
                yield output.span(entry.at - entry.started)
            if entry.op == "wait" and entry.result is None and entry.object is None:
                yield "none came"
        case "waiting" if waits_for_turn(entry):
            yield "for its turn"
        case "waiting" if not entry.on:
            yield "handed over, its executor was told to stop"
        case "waiting":
            yield f"until {output.shown(entry.next_at)}, on {output.escape(_some(entry.on or []))}"
        case "retrying":
            yield f"again at {output.shown(entry.next_at)}"
        case "cancelled":
            yield output.first_line(cancelled_by(entry), _MOST)
            return
    if entry.error is not None:
        yield output.first_line(line_of(entry.error), _MOST)


def _some(steps: list[str]) -> str:
    return ", ".join(map(step_shown, steps[:3])) + (f" and {len(steps) - 3} more" if len(steps) > 3 else "")
