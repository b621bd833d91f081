"""When schedules fire: cron expressions, periods, zones and daylight saving.

Owns: the meaning of every expression a user can write. Never does: read a clock, wait, or talk to anything;
every function here is given the time and returns times, so a process that dies here leaves nothing behind.

`syntax` reads fields (over croniter), `days` finds days on the wall clock's line, `zones` maps that line to
instants, `expression` puts them together.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from .durations import parse_duration
from .errors import CronError
from .expression import CronExpression, Dst, Window, parse

__all__ = ["CronError", "CronExpression", "Window", "fire_times", "parse", "parse_duration"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def fire_times(
    expression: str,
    *,
    timezone: str = "UTC",
    after: datetime,
    count: int = 1,
    dst: Dst = "default",
    seed: str = "",
) -> list[datetime]:
    """The next `count` times an expression fires strictly after `after`, in UTC; fewer past year 9999.

    `timezone` is an IANA name; a prefix `CRON_TZ=Zone ` in the expression wins over it. `seed` is what `H` is
    spread by; a schedule uses its id.

    Where clocks change: an expression whose seconds, minutes and hours are all fixed (no `*` in any of them)
    fires once for each local time it names. If that is skipped, at the first instant after the gap, unless
    `dst="skip"`; if it occurs twice, at the first, or at both if `dst="both"`. Any other expression follows
    the wall clock as it really passes, whatever `dst` says. Times that fall on one instant are one. Source:
    Debian's cron(8).

    Raises `CronError` (a ValueError) for an expression, zone or `dst` that cannot be used, and for what never
    fires; ValueError for an `after` without a zone or a negative `count`.
    """
    if after.tzinfo is None or after.utcoffset() is None:
        raise ValueError(
            f"after is {after.isoformat()}, without a time zone; write it with one, such as datetime.UTC"
        )
    if count < 0:
        raise ValueError(f"count is {count}; allowed are 0 and above")
    parsed = parse(expression, timezone=timezone, dst=dst, seed=seed)
    found: list[datetime] = []
    now_ms = (after - _EPOCH) // _MILLISECOND
    while len(found) < count and (next_ms := parsed.next_after(now_ms)) is not None:
        found.append(_EPOCH + timedelta(milliseconds=next_ms))
        now_ms = next_ms
    return found
