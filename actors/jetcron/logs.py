"""Logs: structlog configured once, when a process starts, never at import.

Owns how a line looks: for people in a terminal, JSON everywhere else, on stderr either way, so that stdout is
free for results. What the standard library's loggers say (nats, asyncio, the user's own) takes the same way.
A line that cannot be written is lost and stops nothing.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from jetcron.settings import Settings

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
Stream = Literal["stderr", "stdout"]
Renderer = Callable[[WrappedLogger, str, EventDict], str]


def configure(
    settings: Settings,
    *,
    renderer: Renderer | None = None,
    level: str | None = None,
    to: Stream = "stderr",
    long_lived: bool = False,
) -> None:
    """Send what this process logs to `to`, as the settings say; a `renderer` of the caller's replaces theirs.

    `long_lived`: loggers are kept ready after their first line, which a later call then no longer changes.
    """
    least = LEVELS[level or settings.log_level]
    processors = _processors(renderer or _renderer(settings, getattr(sys, to)))
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *_stamps(), *processors],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=_Factory(to),
        cache_logger_on_first_use=long_lived,
    )
    handler = _Handler(to)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors],
            foreign_pre_chain=_stamps(),
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries' debug lines are not ours to show.
    root.setLevel(max(least, logging.INFO))
    logging.captureWarnings(True)
    # The bus reports what the nats client reports, in its own words.
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def quiet() -> None:
    """Where structlog is as it comes, what we log below a warning is not shown, and the rest goes to stderr.

    For programs that use us as a library: whatever else they log with it is as it was.
    """
    if not structlog.is_configured():
        before = structlog.get_config()["processors"]
        structlog.configure(processors=[_warnings_of_ours, *before], logger_factory=_loggers_of_ours)


def _warnings_of_ours(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    if isinstance(logger, _Logger) and LEVELS.get(method, logging.CRITICAL) < logging.WARNING:
        raise structlog.DropEvent
    return event


def _loggers_of_ours(*names: Any) -> WrappedLogger:
    ours = bool(names) and str(names[0]).partition(".")[0] == "jetcron"
    return _Logger(str(names[0]), "stderr") if ours else structlog.PrintLogger()


def _stamps() -> list[Processor]:
    return [
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]


def _renderer(settings: Settings, stream: TextIO) -> Sequence[Processor]:
    terminal = stream.isatty()
    if settings.log_format == "json" or (settings.log_format == "auto" and not terminal):
        return [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ]
    return [
        _short_time,
        structlog.dev.ConsoleRenderer(
            colors=terminal,
            pad_event_to=0,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _processors(renderer: Renderer | Sequence[Processor]) -> list[Processor]:
    return list(renderer) if isinstance(renderer, Sequence) else [renderer]


def _short_time(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """`2026-01-31T12:00:00.003456Z` as local `12:00:00.003`."""
    event["timestamp"] = local_time(str(event.get("timestamp", "")))
    return event


def local_time(stamp: str) -> str:
    """An ISO time stamp as this machine's time of day, with milliseconds."""
    try:
        moment = datetime.fromisoformat(stamp).astimezone()
    except ValueError:
        return stamp
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


class _Logger:
    """Writes a finished line. The stream is looked up each time: a test or a daemon may replace it."""

    def __init__(self, name: str, to: Stream) -> None:
        self.name = name
        self._to = to

    def msg(self, line: str) -> None:
        write(self._to, line)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _Factory:
    def __init__(self, to: Stream) -> None:
        self._to = to

    def __call__(self, *names: Any) -> _Logger:
        return _Logger(str(names[0]) if names else "", self._to)


class _Handler(logging.Handler):
    def __init__(self, to: Stream) -> None:
        super().__init__()
        self._to = to

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write(self._to, self.format(record))
        except structlog.DropEvent:
            pass


def write(to: Stream, line: str) -> None:
    """One line; whoever read us may be gone."""
    try:
        stream: TextIO = getattr(sys, to)
        stream.write(f"{line}\n")
        stream.flush()
    except (OSError, ValueError):
        pass
