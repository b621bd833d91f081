"""Durations as people write them: `90s`, `5m`, `1h30m`.

Owns: the reading of a duration. Never does: arithmetic on instants (see `expression`). Source: the units and
their order follow Go's time.ParseDuration, plus `d` (24 h) and `w` (7 d), less what is finer than a second.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction

from .errors import CronError

_UNITS = {
    "w": Fraction(604_800),
    "d": Fraction(86_400),
    "h": Fraction(3_600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 1_000),
}
_LONGEST_TEXT = 100
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[wdhms])", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def is_duration(text: str) -> bool:
    """Whether the text has the shape of a duration, acceptable or not."""
    return _WHOLE.fullmatch(text.lower()) is not None


def parse_duration(text: str) -> timedelta:
    """Read a duration such as `90s`, `5m`, `1h30m` or `1d`; each unit once, any order, any case.

    Raises `CronError` for anything else, and for less than a second or fractions of one.
    """
    lowered = text.strip().lower()
    if len(lowered) > _LONGEST_TEXT or not is_duration(lowered):
        raise CronError(
            f"the duration {text[:_LONGEST_TEXT]!r} cannot be read; write numbers with the units "
            "w, d, h, m, s, as in '90s' or '1h30m'"
        )
    parts = _PART.findall(lowered)
    units = [unit for _, unit in parts]
    if len(set(units)) < len(units):
        raise CronError(f"the duration {text!r} names a unit twice; write each once, as in '1h30m'")
    seconds = sum((Fraction(number) * _UNITS[unit] for number, unit in parts), start=Fraction(0))
    if seconds < 1 or seconds.denominator != 1:
        raise CronError(f"the duration {text!r} is not allowed; the least is 1s, and whole seconds only")
    try:
        return timedelta(seconds=int(seconds))
    except OverflowError:
        raise CronError(f"the duration {text!r} is too long; the longest is {timedelta.max.days}d") from None
