"""A second opinion on when an expression fires, by walking through real minutes.

Owns: the rules of time as a reader would apply them by hand, minute after minute, on the clock of a zone. It
shares nothing with `jetcron.cron`: it knows no sets of numbers, masks, pieces or bisections, only "does this
local minute match" and "which real minutes show it". Never does: anything fast, seconds, H, or checks of
syntax.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_MINUTE = timedelta(minutes=1)
_NAMES = {name.upper(): i for i, name in enumerate(calendar.month_abbr) if name}
_DAYS = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}


def _number(text: str, names: dict[str, int]) -> int:
    return names[text] if text in names else int(text)


def _item_matches(item: str, value: int, low: int, high: int, names: dict[str, int]) -> bool:
    span, _, step = item.partition("/")
    if span in ("*", "?"):
        start, end = low, high
    elif "-" in span:
        start, end = (_number(end, names) for end in span.split("-"))
    else:
        start = _number(span, names)
        end = high if step else start
    distance = value - start
    if end < start:  # round the end of the cycle
        cycle = high - low + 1
        distance, end = distance % cycle, end + cycle
    return 0 <= distance <= end - start and distance % int(step or 1) == 0


def _matches(text: str, value: int, low: int, high: int, names: dict[str, int] | None = None) -> bool:
    return any(_item_matches(item, value, low, high, names or {}) for item in text.split(","))


def _nearest_weekday(day: date, wanted: int) -> bool:
    try:
        goal = day.replace(day=wanted)
    except ValueError:
        return False
    same_month = [goal + timedelta(days=n) for n in (0, -1, 1, -2, 2)]
    return day == next(d for d in same_month if d.month == goal.month and d.weekday() < 5)


def _day_of_month_matches(text: str, day: date) -> bool:
    last = calendar.monthrange(day.year, day.month)[1]
    if text == "LW":
        return day == max(d for n in range(1, last + 1) if (d := day.replace(day=n)).weekday() < 5)
    if text.endswith("W"):
        return _nearest_weekday(day, int(text[:-1]))
    return any(
        day.day == last if item == "L" else _item_matches(item, day.day, 1, 31, {})
        for item in text.split(",")
    )


def _day_of_week_matches(text: str, day: date) -> bool:
    weekday = day.isoweekday() % 7
    for item in text.split(","):
        name, hash_sign, nth = item.partition("#")
        if hash_sign:
            found = _number(name, _DAYS) % 7 == weekday and (day.day + 6) // 7 == int(nth)
        elif item.startswith("L"):
            found = _number(item[1:], _DAYS) % 7 == weekday and (day + timedelta(days=7)).month != day.month
        elif item == "7":
            found = weekday == 0
        else:
            found = _item_matches(item, weekday, 0, 6, _DAYS) or (
                "-7" in item and weekday == 0 and _item_matches(item, 7, 0, 7, _DAYS)
            )
        if found:
            return True
    return False


@lru_cache(maxsize=100_000)
def day_matches(expression: str, day: date) -> bool:
    _, _, days, months, weekdays = expression.upper().split()
    if not _matches(months, day.month, 1, 12, _NAMES):
        return False
    by_day, by_weekday = _day_of_month_matches(days, day), _day_of_week_matches(weekdays, day)
    either = days[0] not in "*?" and weekdays[0] not in "*?"
    return by_day or by_weekday if either else by_day and by_weekday


@lru_cache(maxsize=1_000_000)
def _minute_matches(expression: str, hour: int, minute: int) -> bool:
    minutes, hours, *_ = expression.upper().split()
    return _matches(minutes, minute, 0, 59) and _matches(hours, hour, 0, 23)


def matches(expression: str, local: datetime) -> bool:
    """Whether a five-field expression names this local minute."""
    return _minute_matches(expression, local.hour, local.minute) and day_matches(expression, local.date())


class Minutes:
    """The real minutes from one instant up to another, with what a zone's clock shows in each."""

    def __init__(self, zone: ZoneInfo, start: datetime, end: datetime) -> None:
        self.shown: list[tuple[datetime, datetime]] = []
        instant = start
        while instant < end:
            self.shown.append((instant, instant.astimezone(zone).replace(tzinfo=None)))
            instant += _MINUTE
        self.instants: dict[datetime, list[datetime]] = {}
        for instant, local in self.shown:
            self.instants.setdefault(local, []).append(instant)

    def skipped(self) -> Iterator[tuple[datetime, datetime]]:
        """(first instant after the gap, local minute that was never shown)"""
        for (_, before), (instant, after) in zip(self.shown, self.shown[1:], strict=False):
            local = before + _MINUTE
            while local < after:
                if local not in self.instants:
                    yield instant, local
                local += _MINUTE


def fires(expression: str, minutes: Minutes, dst: str = "default") -> list[datetime]:
    """The instants (UTC) at which a five-field expression fires, by the rules told in `fire_times`."""
    minute, hour, *_ = expression.split()
    if "*" in minute or "*" in hour:
        return [instant for instant, local in minutes.shown if matches(expression, local)]
    found: set[datetime] = set()
    for local, instants in minutes.instants.items():
        if matches(expression, local):
            found.update(instants if dst == "both" else instants[:1])
    if dst != "skip":
        found.update(instant for instant, local in minutes.skipped() if matches(expression, local))
    return sorted(found)


def changes(zone: ZoneInfo, first_year: int, last_year: int) -> list[datetime]:
    """The first minutes of new offsets of a zone, by day, then by hour, then by minute."""
    return list(
        _changes(zone, datetime(first_year, 1, 1, tzinfo=UTC), datetime(last_year + 1, 1, 1, tzinfo=UTC), 0)
    )


def _changes(zone: ZoneInfo, start: datetime, end: datetime, level: int) -> Iterator[datetime]:
    step = (timedelta(days=1), timedelta(hours=1), _MINUTE)[level]
    offset = start.astimezone(zone).utcoffset()
    while start < end:
        later = start + step
        then = later.astimezone(zone).utcoffset()
        if then != offset:
            if step == _MINUTE:
                yield later
            else:
                yield from _changes(zone, start, later, level + 1)
        start, offset = later, then
