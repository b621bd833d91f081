"""Where an import fires otherwise than the old scheduler did, because clocks change.

Owns the comparison of what either makes of a local time that is skipped or comes twice, over the year from now. The
old rule: a skipped time fires so much later as the clock went forward; of one that comes twice, `again` says whether
the second fires too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo

from jetcron.clock import from_ms
from jetcron.cron import CronError, CronExpression, parse
from jetcron.migrate.entries import Entry, Refused

_HOUR = 3_600
_YEAR = 366 * 24 * _HOUR
_MOST = 7_200
"""Times of one change that are compared: every second of two hours."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A change of clocks around which the two fire at different times: those in [`start`, `end`], epoch ms."""

    start: int
    end: int
    skipped: bool


def zone_name(zone: object) -> str:
    """The IANA name of a zone, as zoneinfo, pytz and datetime have it; `Refused` where there is none."""
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if name is None and isinstance(zone, timezone):
        hours, rest = divmod(zone.utcoffset(None), timedelta(hours=1))
        if not rest:
            name = f"Etc/GMT{-hours:+d}" if hours else "UTC"  # the sign is POSIX's: west is positive
    if not isinstance(name, str):
        raise Refused(f"its zone {zone!r} has no IANA name; give it one, such as 'Europe/Prague'")
    try:
        parse("* * * * *", timezone=name)
    except CronError as error:
        raise Refused(str(error).partition("': ")[2]) from None
    return name


def changes_clocks(zone: str, now: int) -> bool:
    """Whether a zone's clocks change in the year from `now` (epoch ms)."""
    return bool(_changes(zone, now // 1_000 // _HOUR * _HOUR))


def differences(expression: str, zone: str, dst: str, *, again: bool, now: int) -> list[Difference]:
    """The changes in the year from `now` (epoch ms) at which the old rule and ours differ."""
    ours = parse(expression, timezone=zone, dst=dst)  # type: ignore[arg-type]
    named = parse(expression)
    found = []
    for at, before, after in _changes(zone, now // 1_000 // _HOUR * _HOUR):
        width = abs(after - before)
        start, end = (at, at + width) if after > before else (at - width, at + width)
        if _fires(ours, start, end) != _old(named, start, end, at, before, after, again):
            found.append(Difference(start * 1_000, end * 1_000, after > before))
    return found


def tell(entry: Entry, schedule: Mapping[str, object], who: str, *, again: bool, now: int) -> None:
    """Remark on what differs where clocks change."""
    zone = str(schedule["timezone"])
    found = differences(
        str(schedule["cron"]), zone, str(schedule.get("dst", "default")), again=again, now=now
    )
    for skipped in (True, False):
        one = next((one for one in found if one.skipped is skipped), None)
        if one is None:
            continue
        day = f"{from_ms(one.start).astimezone(ZoneInfo(zone)):%Y-%m-%d}"
        if skipped:
            entry.remarks.append(
                f"clocks go forward on {day}: times that are skipped fire by Jetcron's rule "
                f"(jetcron next shows them), by {who}'s so much later"
            )
        else:
            entry.remarks.append(
                f"clocks go back on {day}: in the hour that comes twice, {who} fires "
                f"{'both times' if again else 'the first time only'}, Jetcron {'once' if again else 'both times'}"
            )


def _fires(expression: CronExpression, start: int, end: int) -> list[int]:
    """The times in [start, end), in seconds."""
    return [at // 1_000 for at in expression.window(start * 1_000 - 1, end * 1_000 - 1, _MOST).newest]


def _old(
    named: CronExpression, start: int, end: int, at: int, before: int, after: int, again: bool
) -> list[int]:
    """When the old scheduler fires in [start, end): local times are those of a clock that is never changed."""
    found = {local - after for local in _fires(named, at + after, end + after)}
    if after > before:
        found |= {local - before for local in _fires(named, at + before, at + after)}
        return sorted(found)
    first = {local - before for local in _fires(named, start + before, at + before)}
    return sorted(first | (found if again else set()))


@lru_cache(maxsize=64)
def _changes(name: str, since: int) -> list[tuple[int, int, int]]:
    """(instant, offset before, offset after) of each change in a year, in seconds; to the quarter of an hour."""
    zone = ZoneInfo(name)

    def offset(at: int) -> int:
        local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)).astimezone(zone)
        return int((local.utcoffset() or timedelta()).total_seconds())

    found, before = [], offset(since)
    for at in range(since, since + _YEAR, _HOUR):
        after = offset(at + _HOUR)
        if after != before:
            exact = next(
                quarter
                for quarter in range(at + _HOUR // 4, at + _HOUR + 1, _HOUR // 4)
                if offset(quarter) == after
            )
            found.append((exact, before, after))
        before = after
    return found
