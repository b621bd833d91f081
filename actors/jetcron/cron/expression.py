"""A parsed expression and the instants it fires at.

Owns: `parse`, and for one expression "when next" and "how often between". Never does: read a clock, or any
I/O but zoneinfo's reading of its files. Instants are whole milliseconds since the epoch; schedules fire on
whole seconds.

Everything memoised here is a pure function of its arguments and bounded; losing a cache loses time, nothing
else.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from .days import Pattern, masks, never
from .durations import is_duration, parse_duration
from .errors import CronError
from .syntax import read, spread
from .zones import CHUNK, FIRST, LAST, REACH, Piece, Rule, check_zone, timeline

Dst = Literal["default", "skip", "both"]

_LONGEST_TEXT = 1_000
_ZONE_PREFIX = re.compile(r"\s*(?:CRON_)?TZ=(\S+)\s+(.*)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Window:
    """How often something fires in a stretch of time, and the newest of its times, in epoch milliseconds."""

    count: int
    newest: tuple[int, ...]


@dataclass(frozen=True)
class CronExpression(ABC):
    """A parsed expression: immutable, hashable, and equal to any other that fires alike for the same reasons.

    `expression` is the text in capitals, without its zone prefix, each H replaced by its value; `timezone` is
    the zone in force.
    """

    expression: str
    timezone: str
    dst: Dst

    @abstractmethod
    def next_after(self, after_ms: int) -> int | None:
        """The first occurrence strictly after an instant, in epoch milliseconds; None if past year 9999."""

    @abstractmethod
    def window(self, after_ms: int, until_ms: int, newest: int) -> Window:
        """How many occurrences there are in (after, until], and up to `newest` of the last of them.

        Costs about the same for a schedule of every second as for one of every hour.
        Raises ValueError for a negative `newest`.
        """


@dataclass(frozen=True)
class _Every(CronExpression):
    """A period, counted from the epoch whatever the zone."""

    period_ms: int

    def next_after(self, after_ms: int) -> int | None:
        found = (max(after_ms, FIRST * 1_000) // self.period_ms + 1) * self.period_ms
        return found if found <= LAST * 1_000 else None

    def window(self, after_ms: int, until_ms: int, newest: int) -> Window:
        _check_newest(newest)
        first = max(after_ms, FIRST * 1_000) // self.period_ms + 1
        last = min(until_ms, LAST * 1_000) // self.period_ms
        kept = range(max(first, last - newest + 1), last + 1)
        return Window(max(0, last - first + 1), tuple(number * self.period_ms for number in kept))


@dataclass(frozen=True)
class _Calendar(CronExpression):
    """Fields, in a zone, under a rule."""

    pattern: Pattern = field(compare=False, repr=False)
    rule: Rule = field(compare=False, repr=False)

    def next_after(self, after_ms: int) -> int | None:
        found = _next(self, after_ms // 1_000 + 1)
        return None if found is None else found * 1_000

    def window(self, after_ms: int, until_ms: int, newest: int) -> Window:
        _check_newest(newest)
        pieces = list(self._between(max(after_ms // 1_000 + 1, FIRST), min(until_ms // 1_000, LAST) + 1))
        count = 0
        for piece in pieces:
            count += self.pattern.count(piece.start + piece.offset, piece.end + piece.offset)
            count += self._fires_for_gap(piece)
        kept: list[int] = []
        for piece in reversed(pieces):
            if len(kept) >= newest:
                break
            self._newest_first(piece, newest, kept)
        return Window(count, tuple(reversed(kept)))

    def search(self, instant: int) -> int | None:
        """The first occurrence at or after an instant, both in seconds since the epoch."""
        instant = max(instant, FIRST)
        pattern = self.pattern
        while instant <= LAST:
            pieces, end = timeline(self.timezone, self.rule, instant // CHUNK)
            offset = 0
            for start, stop, offset, gaps in pieces:
                if start < instant:
                    if stop <= instant:
                        continue
                    start = instant
                elif gaps and any(pattern.within(*gap) for gap in gaps):
                    return start
                local = pattern.next(start + offset)
                if local is not None and local < stop + offset:
                    found = local - offset
                    return found if found <= LAST else None
            # Nothing in this chunk. Whatever the offset becomes, no named time before this can come now ...
            local = pattern.next(end + offset - REACH)
            if local is None:
                return None
            # ... and it comes no earlier than this, so rare schedules do not walk through every chunk.
            instant = max(end, local - offset - REACH)
        return None

    def _between(self, start: int, end: int) -> Iterator[Piece]:
        """The pieces in [start, end), those of neighbouring chunks joined where nothing changes."""
        joined: Piece | None = None
        while start < end:
            pieces, stop = timeline(self.timezone, self.rule, start // CHUNK)
            for piece in pieces:
                gaps = piece.gaps if start <= piece.start < end else ()
                low, high = max(piece.start, start), min(piece.end, end)
                if low > high or (low == high and not gaps):
                    continue
                if joined and joined.end == low and joined.offset == piece.offset and not gaps:
                    joined = Piece(joined.start, high, joined.offset, joined.gaps)
                    continue
                if joined:
                    yield joined
                joined = Piece(low, high, piece.offset, gaps)
            start = stop
        if joined:
            yield joined

    def _fires_for_gap(self, piece: Piece) -> bool:
        """Whether the start of a piece is an occurrence only because of times that were skipped."""
        return any(self.pattern.within(*gap) for gap in piece.gaps) and not (
            piece.start < piece.end and self.pattern.names(piece.start + piece.offset)
        )

    def _newest_first(self, piece: Piece, newest: int, kept: list[int]) -> None:
        local = self.pattern.previous(piece.end + piece.offset - 1)
        while local is not None and local >= piece.start + piece.offset and len(kept) < newest:
            kept.append((local - piece.offset) * 1_000)
            local = self.pattern.previous(local - 1)
        if len(kept) < newest and self._fires_for_gap(piece):
            kept.append(piece.start * 1_000)


def parse(expression: str, *, timezone: str = "UTC", dst: Dst = "default", seed: str = "") -> CronExpression:
    """Read an expression: five fields, six with seconds first, `@daily` and such, `@every 90s`, or `5m`.

    `timezone` is an IANA name; a prefix `CRON_TZ=Zone ` or `TZ=Zone ` in the expression wins over it. `seed`
    is what H is spread by: the same seed gives the same times, always and everywhere. `dst` is explained in
    `fire_times`. Raises `CronError` for what cannot be read and for what would never fire.
    """
    return _parse(expression, timezone, dst, seed if "H" in expression.upper() else "")


@lru_cache(maxsize=16_384)
def _parse(expression: str, timezone: str, dst: Dst, seed: str) -> CronExpression:
    if len(expression) > _LONGEST_TEXT:
        raise CronError(
            f"it has {len(expression)} characters; allowed are {_LONGEST_TEXT}",
            about=f"cron expression {expression[:40]!r}...: ",
        )
    text = expression
    if match := _ZONE_PREFIX.fullmatch(text):
        timezone, text = match[1], match[2]
    reasons: list[str] = []
    if dst not in get_args(Dst):
        reasons.append(f"dst is {dst!r}; allowed are 'default', 'skip' and 'both'")
    try:
        check_zone(timezone)
    except CronError as error:
        reasons += error.reasons
    try:
        found = _read(text, timezone, dst, seed)
    except CronError as error:
        reasons += error.reasons
    if reasons:
        raise CronError(*reasons, about=f"cron expression {expression!r}: ")
    return found


def _read(text: str, timezone: str, dst: Dst, seed: str) -> CronExpression:
    period = re.sub(r"^@every(?:\s+|$)", "", text.strip(), flags=re.IGNORECASE)
    if period != text.strip() or is_duration(period):
        return _every(period, timezone, dst)
    return _calendar(spread(text, seed), timezone, dst)


def _every(text: str, timezone: str, dst: Dst) -> CronExpression:
    seconds = int(parse_duration(text).total_seconds())
    if seconds > LAST:
        raise CronError(f"the duration {text!r} never ends before year 9999, so it never fires")
    return _Every(f"@EVERY {seconds}S", timezone, dst, seconds * 1_000)


def _calendar(text: str, timezone: str, dst: Dst) -> CronExpression:
    pattern, fixed = _pattern(text)
    return _Calendar(text, timezone, dst, pattern, dst if fixed else "wall")


@lru_cache(maxsize=16_384)
def _pattern(text: str) -> tuple[Pattern, bool]:
    """What fields say, in whatever zone; and whether their times are fixed ones."""
    fields = read(text)
    kinds = masks(fields.days)
    if never(kinds, fields.months):
        raise CronError(
            "it never fires: in no year has a month it names a day that its day fields allow; "
            "mind that February has 29 days at most, and four other months 30"
        )
    return Pattern(fields.hours, fields.minutes, fields.seconds, fields.months, kinds), fields.fixed


@lru_cache(maxsize=65_536)
def _next(expression: _Calendar, instant: int) -> int | None:
    return expression.search(instant)


def _check_newest(newest: int) -> None:
    if newest < 0:
        raise ValueError(f"newest is {newest}; allowed are 0 and above")
