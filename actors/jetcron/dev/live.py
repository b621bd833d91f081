"""What `jetcron dev` shows: one readable line for each thing that fires, starts, is retried or ends.

Pure: a log event goes in, a line comes out. The actors know nothing of it; what they log is named here by
logger and event, and whatever is not named is shown as it stands if the log level lets it.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from jetcron.clock import from_ms
from jetcron.dispatch import SYSTEM_EVENTS
from jetcron.logs import LEVELS, local_time, write

_STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "cyan": "36",
}
_WIDEST = 40
_BOUND = ("function", "run", "attempt")
_HOUSEKEEPING = ("started", "stopped", "stopping; a second signal stops at once", "applied")
"""What the actors say of themselves at info: in one process of all of them it tells nothing."""


class Paint:
    """Colours, in a terminal that wants them."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours

    def __call__(self, text: str, *styles: str) -> str:
        if not self._colours or not styles:
            return text
        return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"


def say(line: str = "") -> None:
    """A line of ours, beside the log."""
    write("stdout", line)


def clock_time(now: int) -> str:
    """Epoch milliseconds as this machine's time of day."""
    return local_time(from_ms(now).isoformat())


class Live:
    """A structlog renderer: the last processor, which makes the line, or drops the event."""

    def __init__(self, paint: Paint, level: str, now: Callable[[], int]) -> None:
        self._paint = paint
        self._least = LEVELS[level]
        self._now = now
        self._width = 0
        self._lines: dict[tuple[str, str], Callable[[dict[str, Any]], str]] = {
            ("jetcron.cron-tick", "fired"): self._fired,
            ("jetcron.event-router", "routed"): self._routed,
            ("jetcron.event-router", "met"): self._met,
            ("jetcron.event-router", "cancelled"): self._cancelled,
            ("jetcron.executor", "started"): self._started,
            ("jetcron.executor", "waiting"): self._waiting,
            ("jetcron.executor", "completed"): self._completed,
            ("jetcron.executor", "retrying"): self._retrying,
            ("jetcron.executor", "failed"): self._failed,
            ("jetcron.executor", "cancelled"): self._cancelled,
        }

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> str:
        structlog.processors.format_exc_info(None, "", event)
        logger, name = str(event.get("logger", "")), str(event.get("event", ""))
        line = self._lines.get((logger, name))
        if line is not None:
            text = line(dict(event))
        else:
            level = str(event.get("level", "info"))
            if LEVELS.get(level, self._least) < self._least or self._is_housekeeping(logger, name):
                raise structlog.DropEvent
            text = self._other(logger, level, dict(event))
        return f"{self._paint(local_time(str(event['timestamp'])), 'dim')}  {text}"

    def _is_housekeeping(self, logger: str, name: str) -> bool:
        return self._least > LEVELS["debug"] and logger.startswith("jetcron.") and name in _HOUSEKEEPING

    def _row(self, mark: str, style: str, subject: object, text: str, note: str = "") -> str:
        named = str(subject)
        self._width = max(self._width, min(len(named), _WIDEST))
        padded = self._paint(named.ljust(self._width), "bold")
        return f"{self._paint(mark, style)} {padded}  {text}" + (
            f"  {self._paint(f'({note})', 'dim')}" if note else ""
        )

    def _fired(self, event: dict[str, Any]) -> str:
        at = clock_time(event["at"]).removesuffix(".000")
        return self._row("⏰", "cyan", event["schedule"], f"due at {at}")

    def _routed(self, event: dict[str, Any]) -> str:
        functions = event["functions"]
        if not functions and event["name"].startswith(SYSTEM_EVENTS):
            raise structlog.DropEvent
        to = f"→ {', '.join(functions)}" if functions else self._paint("starts no function", "dim")
        return self._row("✉ ", "cyan", event["name"], to)

    def _met(self, event: dict[str, Any]) -> str:
        return self._row("✉ ", "cyan", event["name"], f"→ {event['function']}, which waits for it")

    def _started(self, event: dict[str, Any]) -> str:
        parts = [event["trigger"], f"{event['late_ms']} ms late"]
        if event["attempt"]:
            parts.insert(0, f"attempt {event['attempt'] + 1}")
        return self._row("▶ ", "blue", event["function"], "started", ", ".join(parts))

    def _waiting(self, event: dict[str, Any]) -> str:
        most = _span(max(event["again_at"] - self._now(), 0), whole=True)
        return self._row("⏸ ", "cyan", event["function"], f"waits, {most} at most: {', '.join(event['on'])}")

    def _cancelled(self, event: dict[str, Any]) -> str:
        if "name" in event:
            text = f"cancelled by {event['name']}"
        elif event.get("error"):
            text = f"cancelled: {_first_line(event['error'])}"
        else:
            text = "stopped, for it was cancelled"
        return self._row("⊘ ", "yellow", event["function"], text)

    def _completed(self, event: dict[str, Any]) -> str:
        return self._row("✓ ", "green", event["function"], f"completed in {_span(event['took_ms'])}")

    def _retrying(self, event: dict[str, Any]) -> str:
        wait = _span(max(event["again_at"] - self._now(), 0), whole=True)
        text = f"retrying in {wait}: {_first_line(event['error'])}"
        return self._with_trace(self._row("↻ ", "yellow", event["function"], text), event)

    def _failed(self, event: dict[str, Any]) -> str:
        text = f"failed for good: {_first_line(event['error'])}"
        row = self._row("✗ ", "red", event["function"], self._paint(text, "red"))
        hint = self._paint(f"jetcron runs show {event['run']}", "dim")
        return self._with_trace(f"{row}  {hint}", event)

    def _with_trace(self, row: str, event: dict[str, Any]) -> str:
        trace = str(event.get("exception") or "")
        # Without a frame of the user's it says no more than the line itself.
        return self._indented(row, trace if trace.startswith("Traceback") else "")

    def _indented(self, row: str, block: str) -> str:
        lines = [self._paint(f"      {line}", "dim") for line in block.rstrip().splitlines()]
        return "\n".join([row, *lines])

    def _other(self, logger: str, level: str, event: dict[str, Any]) -> str:
        """Anything else: the user's own lines, warnings, errors."""
        trace = str(event.pop("exception", "") or "")
        text = str(event.pop("event", ""))
        for key in ("logger", "level", "timestamp"):
            event.pop(key, None)
        style = {"warning": "yellow", "error": "red", "critical": "red"}.get(level)
        subject = logger.removeprefix("jetcron.")
        if logger == "jetcron.function":
            subject = str(event.get("function", subject))
            for key in _BOUND:
                event.pop(key, None)
        rest = " ".join(f"{key}={_value(value)}" for key, value in event.items() if value is not None)
        row = self._row(
            "· " if style is None else "! ",
            style or "dim",
            subject,
            self._paint(text, *([style] if style else [])),
        )
        return self._indented(f"{row}  {self._paint(rest, 'dim')}" if rest else row, trace)


def _value(value: Any) -> str:
    if isinstance(value, str) and value and " " not in value:
        return value
    return json.dumps(value, default=str, ensure_ascii=False)


def _first_line(text: object) -> str:
    lines = str(text).splitlines()
    return lines[0] if lines else ""


def _span(ms: int | None, *, whole: bool = False) -> str:
    """Milliseconds as people say them."""
    if ms is None:
        return "no time"
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 120_000:
        return f"{ms / 1000:.0f} s" if whole else f"{ms / 1000:.1f} s"
    if ms < 7_200_000:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / 3_600_000:.0f} h" if ms < 172_800_000 else f"{ms / 86_400_000:.0f} days"


def until(at: datetime, now: int) -> str:
    """``in 3 s``: how far off `at` is."""
    ms = round((at.astimezone(UTC) - from_ms(now)).total_seconds() * 1000)
    return f"in {_span(max(ms, 0), whole=True)}"


def colours() -> bool:
    """Whether stdout shows them. Source: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
