"""The syntax of the fields of an expression.

Owns: splitting an expression into fields, checking each value, and what H, L, W, # and reversed ranges mean.
Never does: dates or zones.

croniter turns names, lists, ranges and steps into numbers. What it reads otherwise than we do is rewritten or
read here first: seconds last; `1-1` and `JAN-JAN` as the whole cycle; the step of a reversed range off by
one; `31W` as the last day of shorter months; lists that hold both `5` and `5#2`; reversed hours as hours past
23.

Sources: crontab(5) of Vixie cron for fields and the two day fields; Quartz for L, W and #; Jenkins for H.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from croniter import CroniterError, croniter

from .days import LAST_WEEKDAY, DayFields
from .errors import CronError

ALIASES = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}

_ITEM = re.compile(r"(\*|[0-9]+|[A-Z]+)(?:-([0-9]+|[A-Z]+))?(?:/([0-9]+))?", re.ASCII)
_HASH = re.compile(r"H(?:\(([0-9]+)-([0-9]+)\))?(?:/([0-9]+))?", re.ASCII)
_NEAREST = re.compile(r"([0-9]+)W|(LW|WL)", re.ASCII)
_NTH = re.compile(r"([0-9]+|[A-Z]+)#([0-9]+)", re.ASCII)
_LAST_NAMED = re.compile(r"L([0-9]+|[A-Z]+)", re.ASCII)
_LAST_AFTER = re.compile(r"([0-9]|[A-Z]{3})L", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    spread: int = 0
    """The highest value H takes: every month has a 28th, and 7 is Sunday again."""

    def allowed(self) -> str:
        special = {"day of month": ", L, 15W, LW", "day of week": ", L5, 5#2"}.get(self.name, "")
        names = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        return f"{self.low}-{self.high}{names}{special}"


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS = (
    _Field("second", 0, 59, spread=59),
    _Field("minute", 0, 59, spread=59),
    _Field("hour", 0, 23, spread=23),
    _Field("day of month", 1, 31, spread=28),
    _Field("month", 1, 12, _MONTHS, spread=12),
    _Field("day of week", 0, 7, _WEEKDAYS, spread=6),
)
_DAY_OF_MONTH, _MONTH, _DAY_OF_WEEK = 3, 4, 5


@dataclass(frozen=True, slots=True)
class Fields:
    """An expression, read. `fixed`: no `*` in its seconds, minutes or hours."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    days: DayFields
    fixed: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """A field where it stands in the text, for messages."""

    field: _Field
    text: str
    position: int

    def refuse(self, value: str, detail: str = "") -> CronError:
        ordinal = ("1st", "2nd", "3rd", "4th", "5th", "6th")[self.position]
        inside = "" if value == self.text else f", where {value!r} is wrong"
        said = detail or f"allowed are {self.field.allowed()}"
        return CronError(f"the {ordinal} field ({self.field.name}) is {self.text!r}{inside}; {said}")


def _places(text: str) -> list[_Place]:
    parts = text.split()
    if len(parts) not in (5, 6):
        raise CronError(
            f"it has {len(parts)} field{'' if len(parts) == 1 else 's'}; allowed are 5 (minute, hour, "
            "day of month, month, day of week) or 6 (a second before them)"
        )
    fields = _FIELDS[-len(parts) :]
    return [_Place(field, part, i) for i, (field, part) in enumerate(zip(fields, parts, strict=True))]


def spread(text: str, seed: str) -> str:
    """The expression in capitals, without aliases, each H replaced by what it is for this seed.

    Expressions that mean the same for many seeds so become one text. Raises `CronError`.
    """
    text = " ".join(text.upper().split())
    if text.startswith("@"):
        if text not in ALIASES:
            known = [alias.lower() for alias in ALIASES] + ["@every 5m"]
            close = difflib.get_close_matches(text.lower(), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CronError(f"{text.lower()!r} is not one of {', '.join(known)}{hint}")
        return ALIASES[text]
    if "H" not in text:
        return text
    parts: list[str] = []
    reasons: list[str] = []
    for place in _places(text):
        try:
            parts.append(
                ",".join(
                    _hashed(place, item, seed) if item.startswith("H") else item
                    for item in place.text.split(",")
                )
            )
        except CronError as error:
            reasons += error.reasons
            parts.append(str(place.field.low))
    if reasons:
        try:
            read(" ".join(parts))  # what is wrong with the other fields
        except CronError as error:
            reasons += error.reasons
        raise CronError(*sorted(reasons))
    return " ".join(parts)


def _hashed(place: _Place, item: str, seed: str) -> str:
    field, match = place.field, _HASH.fullmatch(item)
    if match is None:
        raise place.refuse(item, "with H, allowed are H, H/15, H(0-29) and H(0-29)/10")
    low, high, step = field.low, field.spread, 0
    if match[1]:
        low, high = int(match[1]), int(match[2])
        if not field.low <= low <= high <= field.high:
            raise place.refuse(item, f"an H range rises, within {field.low}-{field.high}")
    span = high - low + 1
    if match[3]:
        step = int(match[3])
        if not 1 <= step <= span:
            raise place.refuse(item, f"its step may be 1-{span}")
    # By the field's name, not its position: a sixth field does not move the others.
    digest = blake2b(f"{field.name}\0{seed}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return f"{low + number % step}-{high}/{step}" if step else str(low + number % span)


def read(text: str) -> Fields:
    """Read what `spread` made of an expression. Raises `CronError`, naming each field at fault and its value."""
    places = _places(text)
    if len(places) == 5:
        places.insert(0, _Place(_FIELDS[0], "0", 0))
    second, minute, hour, day, _, weekday = places
    nearest = 0
    last = False
    nth: set[tuple[int, int]] = set()
    plain: list[list[str]] = []
    reasons: list[str] = []
    for place in places:
        items: list[str] = []
        try:
            if place is day:
                nearest = _read_nearest(day)
            for item in place.text.split(","):
                if place is day and nearest:
                    continue
                if place is day and item == "L":
                    last = True
                elif place is weekday and (found := _read_nth(place, item)):
                    nth.add(found)
                else:
                    items.append(_plain(place, item))
        except CronError as error:
            reasons += error.reasons
        plain.append(items)
    if reasons:
        raise CronError(*reasons)
    numbers = [_numbers(index, tuple(items)) for index, items in enumerate(plain)]
    days = DayFields(
        days=numbers[_DAY_OF_MONTH],
        last=last,
        nearest=nearest,
        weekdays=numbers[_DAY_OF_WEEK],
        nth=frozenset(nth),
        either=not day.text.startswith(("*", "?")) and not weekday.text.startswith(("*", "?")),
    )
    seconds, minutes, hours = (tuple(sorted(values)) for values in numbers[:3])
    fixed = not any("*" in place.text for place in (second, minute, hour))
    return Fields(seconds, minutes, hours, numbers[_MONTH], days, fixed)


def _read_nearest(place: _Place) -> int:
    items = place.text.split(",")
    for item in items:
        match = _NEAREST.fullmatch(item)
        if match is None:
            continue
        if len(items) > 1:
            raise place.refuse(item, "W stands alone in its field, as in 15W")
        if match[2]:
            return LAST_WEEKDAY
        if not 1 <= int(match[1]) <= 31:
            raise place.refuse(item, "allowed are 1W-31W and LW")
        return int(match[1])
    return 0


def _read_nth(place: _Place, item: str) -> tuple[int, int] | None:
    if match := _NTH.fullmatch(item):
        if not 1 <= int(match[2]) <= 5:
            raise place.refuse(item, "after #, allowed are 1-5")
        return _number(place, match[1]) % 7, int(match[2])
    if item in ("L", "LW", "WL"):
        raise place.refuse(item, "L needs a day here, as in L5, the last Friday")
    if match := _LAST_NAMED.fullmatch(item):
        return _number(place, match[1]) % 7, 0
    if match := _LAST_AFTER.fullmatch(item):
        raise place.refuse(item, f"the last of a month is written L{match[1]}")
    return None


def _plain(place: _Place, item: str) -> str:
    """One item as croniter reads it our way: a number, a rising range with a step, or a list of numbers."""
    field = place.field
    if item == "?" and field.name.startswith("day of"):
        if place.text != "?":
            raise place.refuse(item, "? stands alone in its field")
        item = "*"
    if item == "R" or item.startswith(("R(", "R/")):
        raise place.refuse(item, "R (random) is refused, for no two processes would agree; write H")
    match = _ITEM.fullmatch(item)
    if match is None or (match[1] == "*" and match[2]):
        raise place.refuse(item)
    # 7 ends a range of weekdays; anywhere else it is 0.
    weekday = field.name == "day of week"
    top = 6 if weekday else field.high
    low = field.low if match[1] == "*" else _number(place, match[1])
    if match[2]:
        high = _number(place, match[2])
    elif match[1] == "*" or match[3]:
        high = top
    else:
        high = low
    if weekday and low == 7:
        low, high = 0, 0 if high == 7 else high
    step = int(match[3] or 1)
    if not 1 <= step <= top - field.low + 1:
        whole = f"; for a longer period write '@every {step}m'" if field.name == "minute" and step else ""
        raise place.refuse(item, f"its step may be 1-{top - field.low + 1}{whole}")
    if low == high:
        return str(low)
    if low < high:
        return f"{low}-{high}/{step}"
    around = [*range(low, top + 1), *range(field.low, high + 1)]
    return ",".join(str(value) for value in around[::step])


def _number(place: _Place, token: str) -> int:
    if token in place.field.names:
        return place.field.names.index(token) + place.field.low
    if not token.isdigit() or not place.field.low <= int(token) <= place.field.high:
        raise place.refuse(token)
    return int(token)


@lru_cache(maxsize=4_096)
def _numbers(index: int, items: tuple[str, ...]) -> frozenset[int]:
    """The numbers of one field, by croniter; a field that has only L, W or # in it has none."""
    if not items:
        return frozenset()
    texts = ["*"] * 6
    texts[index - 1] = ",".join(items)  # croniter has seconds last
    try:
        expanded, _ = croniter.expand(" ".join(texts))
    except CroniterError as error:  # all was checked before: croniter knows something we do not
        raise CronError(str(error)) from error
    values, field = expanded[index - 1], _FIELDS[index]
    if values == ["*"]:
        return frozenset(range(field.low, 7 if index == _DAY_OF_WEEK else field.high + 1))
    return frozenset(int(value) for value in values)
