"""The fields of APScheduler's CronTrigger as an expression.

Owns how they read: 0 is Monday, steps count from a field's lowest value, every field must match. Reads the
parts of its fields by their attributes. Pure.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from jetcron.clock import to_ms
from jetcron.migrate.entries import Entry, Refused
from jetcron.migrate.fields import BOTH, DAYS, WEEKDAYS, both_days, nth, numbers, weekdays

_BOUNDS = {
    "month": (1, 12),
    "day": (1, 31),
    "day_of_week": (0, 6),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}
_PLACES = 6
"""1st to 5th, and the last."""
_LAST_YEAR = 9_998


def cron(entry: Entry, fields: Mapping[str, Any], zone: str) -> tuple[str, int | None, int | None]:
    """The expression, and from and until when it counts if years are named (epoch ms). Raises `Refused`."""
    if str(fields["week"]) != "*":
        raise Refused(f"week={fields['week']}: an expression has no field for weeks of the year")
    start, end = _years(fields["year"], zone)
    months, hours, minutes, seconds = (_set(fields[name]) for name in ("month", "hour", "minute", "second"))
    days, week = _days(entry, fields["day"], {(day + 1) % 7 for day in _set(fields["day_of_week"])})
    parts = [numbers(minutes, 0, 59), numbers(hours, 0, 23), days, numbers(months, 1, 12), week]
    if seconds != {0}:
        parts.insert(0, numbers(seconds, 0, 59))
    return " ".join(parts), start, end


def _years(field: Any, zone: str) -> tuple[int | None, int | None]:
    if str(field) == "*":
        return None, None
    first, last = (getattr(field.expressions[0], name, None) for name in ("first", "last"))
    if (
        len(field.expressions) > 1
        or first is None
        or last is None
        or field.expressions[0].step not in (None, 1)
    ):
        raise Refused(f"year={field}: allowed are all years, one, or some in a row, such as 2030-2032")
    if last > _LAST_YEAR:
        raise Refused(f"year={field}: allowed are years up to {_LAST_YEAR}")
    begin, end = (datetime(year, 1, 1, tzinfo=ZoneInfo(zone)) for year in (first, last + 1))
    return to_ms(begin), to_ms(end) - 1


def _set(field: Any) -> set[int]:
    """The numbers a field names."""
    return {number for item in field.expressions for number in _numbers(field, item)}


def _numbers(field: Any, item: Any) -> range:
    low, high = _BOUNDS[field.name]
    kind = type(item).__name__
    if kind not in ("AllExpression", "RangeExpression", "MonthRangeExpression", "WeekdayRangeExpression"):
        raise Refused(f"{field.name}={field}: {item} is not known")
    first, last = getattr(item, "first", low), getattr(item, "last", None)
    return range(first, (high if last is None else last) + 1, item.step or 1)


def _days(entry: Entry, field: Any, week: set[int]) -> tuple[str, str]:
    """Both day fields: `field` has days of the month, ``last`` and places such as ``1st mon``; all of `week` (0 is
    Sunday) must match, too.
    """
    plain: set[int] = set()
    last = False
    places: list[str] = []
    special = False
    for item in field.expressions:
        match type(item).__name__:
            case "LastDayOfMonthExpression":
                last = special = True
            case "WeekdayPositionExpression":
                special = True
                day = (item.weekday + 1) % 7
                if day in week:
                    places.append(nth(day, (item.option_num + 1) % _PLACES))
            case _:
                plain.update(_numbers(field, item))
    if plain >= DAYS or not special:
        found = both_days(plain, week)
        if "*" not in found:
            entry.remarks.append(BOTH)
        return found
    if week == WEEKDAYS:
        days = ",".join([*map(str, sorted(plain)), *(["L"] if last else [])])
        # With both restricted either is enough; and where one is not, the other alone counts.
        return days or "*", ",".join(places) or "*"
    if plain or last:
        raise Refused(
            f"day={field} and day_of_week={weekdays(week)} must both match, which no expression says"
        )
    if not places:
        raise Refused(f"day={field} and day_of_week={weekdays(week)} never meet")
    return "*", ",".join(places)
