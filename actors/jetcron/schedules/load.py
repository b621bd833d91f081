"""How many schedules fire in each minute of a stretch of time, so that a herd is seen before it runs.

Owns the counting. Schedules that fire alike are counted once, for most of many share an expression; jitter is told
apart for each, as it will be. Pure: no I/O, no clock.
"""

from dataclasses import dataclass, field

from jetcron.cycle import occurrences
from jetcron_protocol.ids import spread
from jetcron_protocol.messages import Schedule

MINUTE = 60_000
MOST = 1_000_000
"""Most occurrences of one schedule that are counted: one that fires each second has as many in eleven days."""


@dataclass(slots=True)
class Load:
    """Counts by minute, from `start` (epoch ms, a whole minute) on; what has jitter may fire after the last."""

    start: int
    counts: list[int] = field(default_factory=list)
    schedules: int = 0
    _alike: dict[tuple[object, ...], tuple[Schedule, int]] = field(default_factory=dict, repr=False)

    @property
    def end(self) -> int:
        return self.start + len(self.counts) * MINUTE

    @property
    def total(self) -> int:
        return sum(self.counts)

    def peaks(self, count: int) -> list[tuple[int, int]]:
        """The minutes in which most fire, epoch ms and how many, the fullest first."""
        fullest = sorted(range(len(self.counts)), key=lambda n: (-self.counts[n], n))
        return [(self.start + n * MINUTE, self.counts[n]) for n in fullest[:count] if self.counts[n]]

    def add(self, schedule: Schedule) -> None:
        """Count an active schedule in; it shows once `settle` was called."""
        self.schedules += 1
        if schedule.jitter:
            self._count(schedule, 1)
            return
        alike = _times(schedule)
        _, before = self._alike.get(alike, (schedule, 0))
        self._alike[alike] = schedule, before + 1

    def settle(self) -> None:
        """Count those that fire alike."""
        for schedule, times in self._alike.values():
            self._count(schedule, times)
        self._alike.clear()

    def _count(self, schedule: Schedule, times: int) -> None:
        # What is late by its jitter may be due before, and fire within.
        after = self.start - 1 - schedule.jitter
        for at in occurrences(schedule, after, self.end - 1, MOST).newest:
            fires = at + spread(schedule.id, at, schedule.jitter)
            number = (fires - self.start) // MINUTE
            if 0 <= number < len(self.counts):
                self.counts[number] += times


def _times(schedule: Schedule) -> tuple[object, ...]:
    """What tells when it fires: the same for those that fire alike."""
    spread_by = schedule.id if "H" in (schedule.cron or "").upper() else ""
    return (
        schedule.cron,
        spread_by,
        schedule.every,
        schedule.at,
        schedule.timezone,
        schedule.dst,
        schedule.start,
        schedule.end,
    )


def empty(now: int, minutes: int) -> Load:
    """Nothing yet, for so many minutes from the one that begins after `now`."""
    return Load((now // MINUTE + 1) * MINUTE, [0] * minutes)
