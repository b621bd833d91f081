"""Sets of numbers as the fields of an expression.

Owns how a set is written shortest, and how two restricted day fields are made to be needed *both*, as Celery and
APScheduler mean them: in an expression either is enough, unless one begins with `*` (Vixie).
"""

from collections.abc import Callable, Collection

from jetcron.migrate.entries import Refused

DAYS = frozenset(range(1, 32))
WEEKDAYS = frozenset(range(7))
_DAY_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_LEAST_RANGE = 3
BOTH = "both day fields must match: a '*' before one of them says so"


def numbers(values: Collection[int], low: int, high: int) -> str:
    """A field that names these values of `low` to `high`: ``*``, ``*/5``, ``1-5,9``."""
    found = sorted(values)
    if len(found) == high - low + 1:
        return "*"
    if len(found) > 2 and found == list(range(low, high + 1, found[1] - found[0])):
        return f"*/{found[1] - found[0]}"
    return _listed(found, str)


def weekdays(values: Collection[int]) -> str:
    """The same for weekdays, 0 being Sunday: ``MON-FRI``."""
    return "*" if len(values) == 7 else _listed(sorted(values), lambda day: _DAY_NAMES[day])


def nth(weekday: int, number: int) -> str:
    """The `number`-th weekday (0 is Sunday) of the month; the last one, if `number` is 0."""
    return f"{_DAY_NAMES[weekday]}#{number}" if number else f"L{weekday}"


def _listed(found: list[int], name: Callable[[int], str]) -> str:
    items: list[str] = []
    while found:
        length = next((n for n in range(1, len(found)) if found[n] != found[0] + n), len(found))
        if length < _LEAST_RANGE:
            length = 1
        items.append(name(found[0]) if length == 1 else f"{name(found[0])}-{name(found[length - 1])}")
        found = found[length:]
    return ",".join(items)


def both_days(days: Collection[int], week: Collection[int]) -> tuple[str, str]:
    """The two day fields of an expression that fires where `days` *and* `week` (0 is Sunday) match.

    Raises `Refused` where no expression does.
    """
    days, week = frozenset(days), frozenset(week)
    if days == DAYS or week == WEEKDAYS:
        return numbers(days, 1, 31), weekdays(week)
    by_place = _by_place(days, week)
    if by_place:
        return "*", by_place
    text = numbers(days, 1, 31)
    if text.startswith("*"):
        return text, weekdays(week)
    if 1 in days:  # */31 is the 1st alone
        return _begun("*/31", _listed(sorted(days - {1}), str)), weekdays(week)
    if 0 in week:  # */7 is Sunday alone
        return text, _begun("*/7", weekdays(week - {0}))
    raise Refused(
        f"it fires where day of month {text} and day of week {weekdays(week)} both match; an expression fires "
        "where either does. Run it on one of them, and look at the other in the function"
    )


def _begun(star: str, rest: str) -> str:
    return f"{star},{rest}" if rest else star


def _by_place(days: frozenset[int], week: frozenset[int]) -> str:
    """The first to seventh day and a Monday are the first Monday; nothing, where days are no such weeks."""
    whole: list[int] = []
    for number in range(1, 6):
        part = frozenset(range(7 * number - 6, min(7 * number, 31) + 1))
        if part <= days:
            whole.append(number)
        elif part & days:
            return ""
    return ",".join(nth(day, number) for day in sorted(week) for number in whole)
