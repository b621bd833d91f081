"""Which local days and which times of day an expression names.

Owns: the calendar arithmetic of one expression on the local time line: next, previous, how many. Never does:
zones. A local time here is a count of seconds since 1970-01-01T00:00 on the wall clock, as if no clock were
ever changed; `zones` says when, if ever, the wall clock shows it.

A month's matching days depend on two things only: its length and the weekday of its first. There are 28 such
kinds, so a set of day fields is 28 bit masks, and a search is a shift, whatever L, W and # are in it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

DAY = 86_400
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
LAST_ORDINAL = date.max.toordinal()

_LENGTHS = (0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LAST_WEEKDAY = 32
"""In `DayFields.nearest`: LW, the last day of the month from Monday to Friday."""


@dataclass(frozen=True, slots=True)
class DayFields:
    """The two day fields of an expression, read.

    `nearest` is the n of `nW`, or `LAST_WEEKDAY`, or 0. `nth` holds pairs of a weekday (0 = Sunday) and 1 to
    5, or 0 for the last of the month. `either`: both fields are restricted, so one of them is enough.
    """

    days: frozenset[int]
    last: bool
    nearest: int
    weekdays: frozenset[int]
    nth: frozenset[tuple[int, int]]
    either: bool

    def mask(self, first: int, length: int) -> int:
        """The matching days, as bits 1-31, of a month of this length that begins on this weekday."""
        by_day = sum(1 << day for day in self.days if day <= length)
        if self.last:
            by_day |= 1 << length
        if self.nearest:
            by_day |= _nearest_weekday(self.nearest, first, length)
        by_weekday = 0
        for weekday in self.weekdays:
            by_weekday |= sum(1 << day for day in _each(weekday, first, length))
        for weekday, nth in self.nth:
            found = _each(weekday, first, length)
            if nth <= len(found):
                by_weekday |= 1 << found[nth - 1]  # 0, the last, is found[-1]
        return by_day | by_weekday if self.either else by_day & by_weekday


@lru_cache(maxsize=1_024)
def masks(fields: DayFields) -> tuple[int, ...]:
    """The mask of each kind of month, at weekday of the first * 4 + length - 28."""
    return tuple(fields.mask(first, length) for first in range(7) for length in range(28, 32))


def _each(weekday: int, first: int, length: int) -> range:
    return range(1 + (weekday - first) % 7, length + 1, 7)


def _nearest_weekday(day: int, first: int, length: int) -> int:
    """The nearest Monday to Friday in the same month; none in a month without that day, as in Quartz."""
    if day == LAST_WEEKDAY:
        day = length
    elif day > length:
        return 0
    weekday = (first + day - 1) % 7
    if weekday == 6:
        day += -1 if day > 1 else 2
    elif weekday == 0:
        day += 1 if day < length else -2
    return 1 << day


def never(kinds: tuple[int, ...], months: frozenset[int]) -> bool:
    """Whether no month of any year has a matching day."""
    lengths = {length for month in months for length in ((28, 29) if month == 2 else (_LENGTHS[month],))}
    return not any(kinds[first * 4 + length - 28] for first in range(7) for length in lengths)


def _kind(year: int, month: int, first_ordinal: int) -> int:
    length = _LENGTHS[month]
    if month == 2 and year % 4 == 0 and (year % 100 != 0 or year % 400 == 0):
        length = 29
    return first_ordinal % 7 * 4 + length - 28  # an ordinal divisible by 7 is a Sunday


class Pattern:
    """The local times one expression names. All times are local seconds since 1970-01-01T00:00."""

    __slots__ = (
        "_every_day",
        "_following",
        "_hours",
        "_masks",
        "_minutes",
        "_months",
        "_preceding",
        "_seconds",
    )

    def __init__(
        self,
        hours: tuple[int, ...],
        minutes: tuple[int, ...],
        seconds: tuple[int, ...],
        months: frozenset[int],
        kinds: tuple[int, ...],
    ) -> None:
        self._hours, self._minutes, self._seconds = hours, minutes, seconds
        self._months, self._masks = months, kinds
        self._every_day = len(months) == 12 and all(
            mask == (2 << 28 + index % 4) - 2 for index, mask in enumerate(kinds)
        )
        ascending = sorted(months)
        # From each month to the nearest one named, as (years on, month).
        self._following = {
            m: next(((0, n) for n in ascending if n > m), (1, ascending[0])) for m in range(1, 13)
        }
        self._preceding = {
            m: next(((0, n) for n in reversed(ascending) if n < m), (-1, ascending[-1])) for m in range(1, 13)
        }

    def next(self, local: int) -> int | None:
        """The first named time at or after this one; None after year 9999."""
        day, second = divmod(local, DAY)
        if second:
            rank = self._rank(second)
            if rank < self.per_day and self._matches(day):
                return day * DAY + self._at(rank)
            day += 1
        found = self._next_day(day)
        return None if found is None else found * DAY + self._at(0)

    def previous(self, local: int) -> int | None:
        """The last named time at or before this one; None before year 1."""
        day, second = divmod(local, DAY)
        rank = self._rank(second + 1)
        if rank and self._matches(day):
            return day * DAY + self._at(rank - 1)
        found = self._previous_day(day - 1)
        return None if found is None else found * DAY + self._at(self.per_day - 1)

    def names(self, local: int) -> bool:
        return self.next(local) == local

    def within(self, start: int, end: int) -> bool:
        """Whether any time in [start, end) is named."""
        found = self.next(start)
        return found is not None and found < end

    def count(self, start: int, end: int) -> int:
        """How many times in [start, end) are named: whole days by their number, never one by one."""
        first, after_midnight = divmod(start, DAY)
        last, before_end = divmod(end, DAY)
        total = self._count_days(first, last) * self.per_day
        if after_midnight and self._matches(first):
            total -= self._rank(after_midnight)
        if before_end and self._matches(last):
            total += self._rank(before_end)
        return total

    @property
    def per_day(self) -> int:
        return len(self._hours) * len(self._minutes) * len(self._seconds)

    def _rank(self, second: int) -> int:
        """How many times of a day come before this second of it."""
        hour, rest = divmod(second, 3_600)
        hours, minutes, seconds = self._hours, self._minutes, self._seconds
        i = bisect_left(hours, hour)
        rank = i * len(minutes) * len(seconds)
        if i < len(hours) and hours[i] == hour:
            minute, second = divmod(rest, 60)
            j = bisect_left(minutes, minute)
            rank += j * len(seconds)
            if j < len(minutes) and minutes[j] == minute:
                rank += bisect_left(seconds, second)
        return rank

    def _at(self, rank: int) -> int:
        rest, k = divmod(rank, len(self._seconds))
        i, j = divmod(rest, len(self._minutes))
        return self._hours[i] * 3_600 + self._minutes[j] * 60 + self._seconds[k]

    def _matches(self, day: int) -> bool:
        ordinal = day + EPOCH_ORDINAL
        if not 1 <= ordinal <= LAST_ORDINAL:
            return False
        if self._every_day:
            return True
        at = date.fromordinal(ordinal)
        month = at.month
        if month not in self._months:
            return False
        return bool(self._masks[_kind(at.year, month, ordinal - at.day + 1)] >> at.day & 1)

    def _next_day(self, day: int) -> int | None:
        ordinal = max(day + EPOCH_ORDINAL, 1)
        if ordinal > LAST_ORDINAL:
            return None
        if self._every_day:
            return ordinal - EPOCH_ORDINAL
        at = date.fromordinal(ordinal)
        year, month = at.year, at.month
        if month in self._months:
            rest = self._masks[_kind(year, month, ordinal - at.day + 1)] >> at.day
            if rest:
                return ordinal - EPOCH_ORDINAL + (rest & -rest).bit_length() - 1
        while True:
            years, month = self._following[month]
            year += years
            if year > date.max.year:
                return None
            first = date(year, month, 1).toordinal()
            mask = self._masks[_kind(year, month, first)]
            if mask:
                return first - EPOCH_ORDINAL + (mask & -mask).bit_length() - 2

    def _previous_day(self, day: int) -> int | None:
        ordinal = min(day + EPOCH_ORDINAL, LAST_ORDINAL)
        if ordinal < 1:
            return None
        if self._every_day:
            return ordinal - EPOCH_ORDINAL
        at = date.fromordinal(ordinal)
        year, month, first = at.year, at.month, ordinal - at.day + 1
        if month in self._months:
            mask = self._masks[_kind(year, month, first)] & (2 << at.day) - 1
            if mask:
                return first - EPOCH_ORDINAL + mask.bit_length() - 2
        while True:
            years, month = self._preceding[month]
            year += years
            if year < 1:
                return None
            first = date(year, month, 1).toordinal()
            mask = self._masks[_kind(year, month, first)]
            if mask:
                return first - EPOCH_ORDINAL + mask.bit_length() - 2

    def _count_days(self, start: int, end: int) -> int:
        """How many days in [start, end) match."""
        low, high = max(start + EPOCH_ORDINAL, 1), min(end + EPOCH_ORDINAL, LAST_ORDINAL + 1)
        if low >= high:
            return 0
        if self._every_day:
            return high - low
        at = date.fromordinal(low)
        year, month, first = at.year, at.month, low - at.day + 1
        total = 0
        if month in self._months:
            total -= (self._masks[_kind(year, month, first)] & (1 << at.day) - 1).bit_count()
        else:
            years, month = self._following[month]
            year += years
        while year <= date.max.year:
            first = date(year, month, 1).toordinal()
            if first >= high:
                break
            mask = self._masks[_kind(year, month, first)]
            if high - first < 31:
                mask &= (2 << high - first) - 1
            total += mask.bit_count()
            years, month = self._following[month]
            year += years
        return total
