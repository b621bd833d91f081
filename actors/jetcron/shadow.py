"""Shadow mode: when the old scheduler fired, beside when Jetcron would have.

Owns what a report is, and how reports and occurrences are told to belong together. Pure: no I/O, no clock. What is
compared is stored elsewhere: reports are events, occurrences are computed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any, Literal

from jetcron.clock import to_ms
from jetcron.cycle import occurrences
from jetcron.errors import ConfigurationError
from jetcron.options import MILLISECOND, readable
from jetcron_protocol.messages import MAX_TIME, MIN_TIME, Schedule

EVENT = "shadow.fired"
"""The event that reports a firing."""
MOST = 2_000_000
"""Occurrences of one comparison."""
LATE_MS = 3_600_000
"""A report is that of an occurrence up to so long before, if none is nearer and that one lacks its own."""
ALLOWED = (
    "allowed is a map with 'schedule' or 'function', and, if it is known, "
    "'at' (ISO 8601 with a zone, or epoch seconds)"
)
_LOOKED_AT = 1_000
"""Occurrences of an expression that are looked at for its shortest period."""
Kind = Literal["missing", "extra", "late"]


@dataclass(frozen=True, slots=True)
class Report:
    """The old scheduler fired at `at` (epoch ms): a schedule, or at least a function."""

    at: int
    schedule: str | None = None
    function: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """An occurrence nobody reported, a report of none, or one that came late. Times are epoch ms."""

    kind: Kind
    schedule: str | None
    function: str | None
    due: int | None = None
    reported: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many occurrences there were, how many were reported in time, and what differs, by time."""

    occurrences: int
    in_time: int
    differences: list[Difference]


def read_report(data: Any, stored_at: int) -> Report:
    """A report from an event's data; it was stored at `stored_at`, which is its time where it names none.

    Raises `ConfigurationError`.
    """
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{data!r:.80}; {ALLOWED}")
    schedule, function = data.get("schedule"), data.get("function")
    named = [name for name in (schedule, function) if name is not None]
    if not named or not all(isinstance(name, str) for name in named):
        raise ConfigurationError(f"{data!r:.80}; {ALLOWED}")
    return Report(_time(data.get("at"), stored_at), schedule, function)


def _time(given: Any, stored_at: int) -> int:
    if given is None:
        return stored_at
    try:
        if isinstance(given, str) and not given.replace(".", "", 1).isdigit():
            found = to_ms(datetime.fromisoformat(given))
        else:
            found = int(float(given) * 1_000)
        if MIN_TIME <= found <= MAX_TIME:
            return found
    except (ValueError, TypeError, OverflowError):
        pass
    raise ConfigurationError(f"at={given!r:.80}; {ALLOWED}")


@dataclass(slots=True)
class _Due:
    """An occurrence that is looked for; `width` is its jitter."""

    at: int
    schedule: Schedule
    width: int
    found: int | None = None


def check_tolerance(schedules: Iterable[Schedule], *, since: int, until: int, tolerance: int) -> None:
    """Refuses a tolerance (ms) in which a report could be of either of two occurrences of one schedule.

    Raises `ConfigurationError`, with the shortest period there is in [`since`, `until`).
    """
    periods = [
        (period, schedule.id)
        for schedule in schedules
        if (period := _period(schedule, since - 2 * tolerance, until + 2 * tolerance)) is not None
    ]
    shortest, id = min(periods, default=(2 * tolerance + 1, ""))
    if shortest <= 2 * tolerance:
        raise ConfigurationError(
            f"the tolerance is {_readable(tolerance)}, and schedule {id!r} fires {_readable(shortest)} apart; allowed "
            f"is under half of that, less than {_readable(shortest / 2)}"
        )


def _period(schedule: Schedule, after: int, until: int) -> int | None:
    if schedule.every is not None:
        return schedule.every
    times = occurrences(schedule, after, until, _LOOKED_AT).newest
    return min((later - earlier for earlier, later in pairwise(times)), default=None)


def _readable(ms: float) -> str:
    return readable(ms * MILLISECOND)


def compare(
    schedules: Sequence[Schedule], reports: Iterable[Report], *, since: int, until: int, tolerance: int
) -> Comparison:
    """What differs in [`since`, `until`), epoch ms. A report within `tolerance` ms of an occurrence is in time.

    States are no matter: a paused schedule is compared as if it were active. Raises `ConfigurationError` where there
    are too many occurrences.
    """
    left = sorted(reports, key=lambda report: report.at)
    due = _due(schedules, since - tolerance, _looked_for_until(schedules, left, until) + tolerance)
    by_schedule: dict[str, list[_Due]] = {}
    by_function: dict[str, list[_Due]] = {}
    for one in due:
        by_schedule.setdefault(one.schedule.id, []).append(one)
        by_function.setdefault(one.schedule.function, []).append(one)
    # The more exact first: what names its schedule is not to lose its occurrence to what names a function only.
    for take in (_in_time, _late):
        left = _matched(take, by_schedule, left, lambda report: report.schedule, tolerance)
        left = _matched(
            take, by_function, left, lambda report: None if report.schedule else report.function, tolerance
        )
    inside = [one for one in due if since <= one.at < until]
    differences = [found for one in inside if (found := _difference(one, tolerance)) is not None]
    differences += [
        Difference("extra", report.schedule, report.function, reported=report.at)
        for report in left
        if since <= report.at < until
    ]
    late = sum(one.kind != "extra" for one in differences)
    return Comparison(
        len(inside), len(inside) - late, sorted(differences, key=lambda one: one.due or one.reported or 0)
    )


def _looked_for_until(schedules: Iterable[Schedule], reports: Sequence[Report], until: int) -> int:
    """Until when there may be occurrences of reports that might else be taken for late ones of before `until`."""
    latest = reports[-1].at if reports else until
    widest = max((schedule.jitter for schedule in schedules), default=0)
    return max(until, min(latest, until + max(LATE_MS, widest)))


def _due(schedules: Sequence[Schedule], since: int, until: int) -> list[_Due]:
    found: list[_Due] = []
    for schedule in schedules:
        window = occurrences(schedule, since - 1, until, MOST - len(found) + 1)
        if len(found) + window.count > MOST:
            raise ConfigurationError(
                f"over {MOST:,} occurrences in this time; allowed are as many: compare fewer schedules, or less time"
            )
        found += [_Due(at, schedule, schedule.jitter) for at in window.newest]
    return sorted(found, key=lambda one: one.at)


_Take = Callable[[list[_Due], list[Report], int], list[Report]]


def _matched(
    take: _Take,
    due: Mapping[str, list[_Due]],
    reports: list[Report],
    key: Callable[[Report], str | None],
    tolerance: int,
) -> list[Report]:
    """Give each report of these keys its occurrence, by `take`; those left over."""
    groups: dict[str, list[Report]] = {}
    left: list[Report] = []
    for report in reports:
        name = key(report)
        if name is None or name not in due:
            left.append(report)
        else:
            groups.setdefault(name, []).append(report)
    for name, some in groups.items():
        left += take([one for one in due[name] if one.found is None], some, tolerance)
    return sorted(left, key=lambda report: report.at)


def _in_time(due: list[_Due], reports: list[Report], tolerance: int) -> list[Report]:
    """Each report to the occurrence, of those it is in time for, that could wait least: so the most find theirs."""
    left = []
    open_: list[tuple[int, int]] = []
    index = 0
    for report in reports:
        while index < len(due) and due[index].at - tolerance <= report.at:
            heappush(open_, (due[index].at + due[index].width + tolerance, index))
            index += 1
        while open_ and open_[0][0] < report.at:
            heappop(open_)
        if open_:
            due[heappop(open_)[1]].found = report.at
        else:
            left.append(report)
    return left


def _late(due: list[_Due], reports: list[Report], tolerance: int) -> list[Report]:
    """Each report to the last occurrence before it that has none."""
    left = []
    waiting: list[_Due] = []
    index = 0
    for report in reports:
        while index < len(due) and due[index].at <= report.at:
            waiting.append(due[index])
            index += 1
        if waiting and report.at - waiting[-1].at <= LATE_MS:
            waiting.pop().found = report.at
        else:
            left.append(report)
    return left


def _difference(one: _Due, tolerance: int) -> Difference | None:
    if one.found is None:
        return Difference("missing", one.schedule.id, one.schedule.function, due=one.at)
    if one.found > one.at + one.width + tolerance:
        return Difference("late", one.schedule.id, one.schedule.function, due=one.at, reported=one.found)
    return None
