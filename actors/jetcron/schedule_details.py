"""One schedule with what surrounds it: its held tick, its next times, what became of its last occurrences.

Owns nothing. The runs of occurrences are found by their ids, which are computed: nothing lists them by schedule.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from jetcron.bus import DELETED, OPERATION, Bus
from jetcron.clock import from_ms
from jetcron.cycle import make_run, next_occurrence, occurrences
from jetcron.definitions import zone_of
from jetcron.history import fold
from jetcron.runs import RunView
from jetcron.runs import view as run_view
from jetcron.schedule_views import ScheduleView, entry, view
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import JournalEntry, Past, Schedule

UPCOMING = 10
LOOKED_AT = 200
"""Occurrences whose outcome is looked for: lateness is that of their runs."""


@dataclass(frozen=True, slots=True)
class HeldTick:
    """A tick as it stands: ``held`` by the server until shortly before `at`, or ``due``, on its way to a run."""

    state: Literal["held", "due"]
    at: datetime
    revision: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """An occurrence and its run; `run` is None where none is remembered: it did not run, or was forgotten.

    `late` is how much later than its time, jitter included, the user's code began.
    """

    at: datetime
    id: str
    run: RunView | None = None
    late: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """A schedule and what surrounds it. `outcomes` are of its last occurrences, the newest first."""

    schedule: ScheduleView
    zone: str
    ticks: list[HeldTick]
    upcoming: list[datetime]
    outcomes: list[Outcome] = field(default_factory=list)

    def lateness(self, share: float) -> timedelta | None:
        """The lateness that `share` (0.5, 0.99) of the runs among `outcomes` did not exceed."""
        late = sorted(one.late for one in self.outcomes if one.late is not None)
        return late[min(int(len(late) * share), len(late) - 1)] if late else None


async def details(bus: Bus, id: str) -> Details:
    """Read all of it; raises `NotFound`."""
    stored, schedule = await entry(bus, id)
    now = bus.clock.now()
    return Details(
        view(stored, schedule, now=now),
        zone_of(schedule),
        await _ticks(bus, id),
        upcoming(schedule, now, UPCOMING),
        await _outcomes(bus, schedule, now),
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


async def _outcomes(bus: Bus, schedule: Schedule, now: int) -> list[Outcome]:
    """What became of the last occurrences, each as the revision in force at its time defined it."""
    found: dict[str, tuple[int, str]] = {}
    stored = await bus.multi_last(bus.names.registry, [bus.names.pasts_of(schedule.id)])
    replaced = [
        decode(Past, message.payload)
        for message in stored.values()
        if message.headers.get(OPERATION) not in DELETED
    ]
    for revision, end in _reigns(schedule, replaced, now):
        window = occurrences(revision, _since(revision), end, LOOKED_AT - len(found))
        for at in reversed(window.newest):
            run = make_run(revision, at)
            found[bus.names.journal_of(run.function, run.run)] = (at, run.run)
        if len(found) >= LOOKED_AT:
            break
    journals = await bus.multi_last(bus.names.journal, list(found))
    outcomes = []
    for subject, (at, id) in found.items():
        last = journals.get(subject)
        if last is None:
            outcomes.append(Outcome(from_ms(at), id))
            continue
        function, _ = bus.names.parse_journal(subject)
        run_ = run_view(function, id, fold([(last.sequence, decode(JournalEntry, last.payload))]))
        outcomes.append(Outcome(from_ms(at), id, run_, _late(run_)))
    return outcomes


def _reigns(schedule: Schedule, replaced: list[Past], now: int) -> Iterator[tuple[Schedule, int]]:
    """The active revisions and until when each was in force, the newest first."""
    if schedule.state == "active":
        yield schedule, now
    for past in sorted(replaced, key=lambda past: past.end, reverse=True):
        if past.schedule.state == "active":
            yield past.schedule, min(past.end, now)


def _since(revision: Schedule) -> int:
    return revision.armed_from if revision.at is None else min(revision.armed_from, revision.at - 1)


def _late(run: RunView) -> timedelta | None:
    about = run.history.about
    started = next((one.started for one in run.history.attempts if one.started is not None), None)
    if about is None or started is None:
        return None
    return timedelta(milliseconds=max(started - about.fire_at, 0))
