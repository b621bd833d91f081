"""One schedule with what surrounds it: its held tick, its next times, what became of its last occurrences.

Owns nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from jetcron.bus import Bus
from jetcron.clock import from_ms
from jetcron.cycle import next_occurrence
from jetcron.definitions import zone_of
from jetcron.schedules.history import Outcome, outcomes
from jetcron.schedules.views import ScheduleView, entry, view
from jetcron_protocol.messages import Schedule

UPCOMING = 10
LAST = 10
"""Occurrences of which it is told what became of them."""
LOOKED_AT = 200
"""Occurrences whose runs are looked for: lateness is theirs."""


@dataclass(frozen=True, slots=True)
class HeldTick:
    """A tick as it stands: ``held`` by the server until shortly before `at`, or ``due``, on its way to a run."""

    state: Literal["held", "due"]
    at: datetime
    revision: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Details:
    """A schedule and what surrounds it. `outcomes` are of its last occurrences, the newest first, `late` of more."""

    schedule: ScheduleView
    zone: str
    ticks: list[HeldTick]
    upcoming: list[datetime]
    outcomes: list[Outcome] = field(default_factory=list)
    late: list[timedelta] = field(default_factory=list)

    def lateness(self, share: float) -> timedelta | None:
        """The lateness that `share` (0.5, 0.99) of its last runs that are remembered did not exceed."""
        late = sorted(self.late)
        return late[min(int(len(late) * share), len(late) - 1)] if late else None


async def details(bus: Bus, id: str) -> Details:
    """Read all of it; raises `NotFound`."""
    stored, schedule = await entry(bus, id)
    now = bus.clock.now()
    found = await outcomes(bus, schedule, stored.sequence, limit=LOOKED_AT, told=LAST)
    return Details(
        view(stored, schedule, now=now),
        zone_of(schedule),
        await _ticks(bus, id),
        upcoming(schedule, now, UPCOMING),
        found[:LAST],
        [one.late for one in found if one.late is not None],
    )


def upcoming(schedule: Schedule, now: int, count: int) -> list[datetime]:
    """Its next times, in UTC; none when it is not active."""
    found: list[datetime] = []
    at: int | None = max(now, schedule.armed_from)
    if schedule.at is not None and schedule.at <= schedule.armed_from:
        at = schedule.at - 1  # due at once
    while schedule.state == "active" and len(found) < count:
        assert at is not None
        at = next_occurrence(schedule, at)
        if at is None:
            break
        found.append(from_ms(at))
    return found


async def _ticks(bus: Bus, id: str) -> list[HeldTick]:
    ticks = []
    for subject in await bus.subjects(bus.names.work, bus.names.ticks_of(id)):
        stored = await bus.last(bus.names.work, subject)
        if stored is not None:
            tick = bus.names.parse_tick(subject)
            ticks.append(HeldTick(tick.state, from_ms(tick.at), tick.revision, stored.sequence))
    return sorted(ticks, key=lambda tick: (tick.at, tick.revision))
