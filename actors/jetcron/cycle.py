"""The cycle of a schedule, decided purely: which occurrences run, which do not, which tick comes next.

Owns PROTOCOL's rules for arming, turning and repairing a chain of ticks. Never reads a clock, a server or a
registry: callers bring `now` and what they read, and carry the decision out. Times are epoch milliseconds.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jetcron.cron import CronExpression, Window, parse
from jetcron_protocol.ids import code_run_id, schedule_run_id, spread
from jetcron_protocol.messages import MAX_CATCH_UP, Gap, Past, Run, Schedule, Tick


class Entry(NamedTuple):
    """A schedule as the registry holds it; its revision is the sequence it is stored under."""

    schedule: Schedule
    revision: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """There is nothing to do for this tick: acknowledge it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rearm:
    """The registry was restored to an older entry: its chain starts anew with this tick."""

    tick: Tick


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the chain: `gap` is appended first, then `runs` and `next` are stored, all or nothing.

    `ended`: the revision in force has no further occurrence.
    """

    runs: tuple[Run, ...]
    next: Tick | None
    gap: Gap | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Undecided:
    """Its revision is being replaced, and whether it governs this tick is not said yet: to be asked again."""


Decision = Nothing | Rearm | Turn | Undecided


def next_occurrence(schedule: Schedule, after: int) -> int | None:
    """The first occurrence later than `after`, within the schedule's `start` and `end`; None if there is none."""
    if schedule.start is not None:
        after = max(after, schedule.start - 1)
    if schedule.at is not None:
        found: int | None = schedule.at if schedule.at > after else None
    elif schedule.every is not None:
        found = (after // schedule.every + 1) * schedule.every
    else:
        found = _expression(schedule).next_after(after)
    if found is not None and schedule.end is not None and found > schedule.end:
        return None
    return found


def occurrences(schedule: Schedule, after: int, until: int, newest: int) -> Window:
    """How many occurrences lie in (`after`, `until`], and the `newest` of them; cheap over years."""
    if schedule.start is not None:
        after = max(after, schedule.start - 1)
    if schedule.end is not None:
        until = min(until, schedule.end)
    if until <= after:
        return Window(0, ())
    if schedule.at is not None:
        inside = after < schedule.at <= until
        return Window(int(inside), (schedule.at,) if inside and newest else ())
    if schedule.every is not None:
        every = schedule.every
        count = until // every - after // every
        last = until // every
        return Window(count, tuple(n * every for n in range(last - min(count, newest) + 1, last + 1)))
    return _expression(schedule).window(after, until, newest)


def _expression(schedule: Schedule) -> CronExpression:
    return parse(schedule.cron or "", timezone=schedule.timezone, dst=schedule.dst, seed=schedule.id)


def make_run(schedule: Schedule, at: int) -> Run:
    """The run of one occurrence: the same whoever makes it, from whichever revision."""
    if schedule.origin == "code":
        run = code_run_id(schedule.function, at)
    else:
        run = schedule_run_id(schedule.function, schedule.id, at)
    return Run(
        run=run,
        function=schedule.function,
        trigger="cron",
        schedule=schedule.id,
        scheduled_at=at,
        fire_at=at + spread(schedule.id, at, schedule.jitter),
        payload=schedule.payload,
        overlap=None if schedule.overlap == "allow" else schedule.overlap,
    )


def is_late(tick: Tick, now: int, late_after: int) -> bool:
    """Whether the tick is turned so long after its time that the catch-up policy decides."""
    return now - tick.at > late_after


def decide_turn(
    tick: Tick,
    current: Entry | None,
    past: Past | None,
    *,
    now: int,
    late_after: int,
    later_stands: bool,
    replacing: bool = False,
    archived: bool = False,
) -> Decision:
    """What a released tick leads to.

    `current` is the registry's entry, and `past` the tick's own revision where it was replaced: both as the leader has
    them, and read so that neither is older than the other says. `replacing`: an intent, read no later than `past`,
    names the tick's revision; who left it may have died since, or come too late. `later_stands` (asked only of a late
    tick): a later tick of the same revision is held or due. `archived` (asked only of a replaced revision): its
    function is, and nobody would take its runs.
    """
    if current is None:
        return Nothing("its schedule does not exist")
    if current.revision < tick.revision:
        return _restored(tick, current)
    end: int | None
    if replacing and (past is None or current.revision == tick.revision):
        return Undecided()
    if current.revision == tick.revision:
        schedule, end = current.schedule, None
    elif past is not None:
        schedule, end = past.schedule, past.end
    else:
        return Nothing("its revision was replaced and is no longer kept")
    if schedule.state != "active":
        return Nothing(f"its schedule is {schedule.state}")
    if end is not None and tick.at > end:
        return Nothing("a newer revision governs its time")
    late = is_late(tick, now, late_after)
    if late and later_stands:
        return Nothing("its chain has gone on")
    if schedule.executes == "other":
        return _leave(schedule, tick, end, now if late else tick.at, "handed_over")
    if archived:
        return _leave(schedule, tick, end, now if late else tick.at, "archived")
    if not late:
        return _turn(schedule, tick, end, runs=(tick.at,), after=tick.at)
    return _catch_up(schedule, tick, end, now)


def _restored(tick: Tick, current: Entry) -> Decision:
    schedule = current.schedule
    if schedule.state != "active":
        return Nothing(f"its schedule is {schedule.state}")
    at = next_occurrence(schedule, max(tick.at - 1, schedule.armed_from))
    if at is None:
        return Nothing("its schedule has no further occurrence")
    return Rearm(Tick(schedule=tick.schedule, revision=current.revision, at=at))


def _turn(
    schedule: Schedule,
    tick: Tick,
    end: int | None,
    *,
    runs: tuple[int, ...],
    after: int,
    gap: Gap | None = None,
) -> Turn:
    following = next_occurrence(schedule, after)
    held = None
    if following is not None and (end is None or following <= end):
        held = Tick(schedule=tick.schedule, revision=tick.revision, at=following)
    return Turn(
        runs=tuple(make_run(schedule, at) for at in runs),
        next=held,
        gap=gap,
        ended=following is None and end is None,
    )


def _catch_up(schedule: Schedule, tick: Tick, end: int | None, now: int) -> Turn:
    """All occurrences from this one to now are one group; those that do not run, the oldest, are one gap."""
    until = now if end is None else min(now, end)
    most = MAX_CATCH_UP if schedule.catch_up_most is None else schedule.catch_up_most
    wanted = {"latest": 1, "all": most, "skip": 0}[schedule.catch_up]
    group = young = occurrences(schedule, tick.at - 1, until, wanted)
    if schedule.catch_up_within is not None:
        young = occurrences(schedule, max(tick.at, now - schedule.catch_up_within) - 1, until, wanted)
    gap = None
    left = group.count - len(young.newest)
    if left:
        gap = Gap(
            schedule=tick.schedule,
            start=tick.at,
            to=young.newest[0] - 1 if young.newest else _last_of(schedule, until),
            count=left,
            reason=_why_left(schedule, young),
        )
    return _turn(schedule, tick, end, runs=young.newest, after=max(now, tick.at), gap=gap)


def _why_left(schedule: Schedule, young: Window) -> Literal["catch_up", "too_old", "too_many"]:
    """Why the youngest of those that were left out does not run; `young` are those within the policy's window."""
    if schedule.catch_up != "skip" and young.count == len(young.newest):
        return "too_old"
    return "too_many" if schedule.catch_up == "all" else "catch_up"


def _last_of(schedule: Schedule, until: int) -> int:
    """Where a gap ends that reaches `until`.

    An `at` that was past when it was set is one time alone: what lies between belongs to the revisions before.
    """
    return until if schedule.at is None else schedule.at


def _leave(
    schedule: Schedule, tick: Tick, end: int | None, until: int, reason: Literal["handed_over", "archived"]
) -> Turn:
    """The occurrences from this one to `until` make no runs here, and it is told why."""
    last = until if end is None else min(until, end)
    count = occurrences(schedule, tick.at - 1, last, 0).count
    to = _last_of(schedule, last)
    gap = Gap(schedule=tick.schedule, start=tick.at, to=to, count=count, reason=reason)
    return _turn(schedule, tick, end, runs=(), after=max(until, tick.at), gap=gap)


def successor_armed_from(previous: Schedule | None, *, stored_at: int, now: int, settle: int) -> int:
    """From when a new revision governs.

    A new schedule: from the time its command was stored. A successor: `settle` (lead + 500 ms) later than that
    and than now, for until then ticks of the old one may be out; never before its predecessor.
    """
    if previous is None:
        return stored_at
    return max(max(stored_at, now) + settle, previous.armed_from)


def first_tick(entry: Entry) -> Tick | None:
    """The tick that starts a revision's chain; None when it is not active or never fires.

    An `at` in the past is due at once.
    """
    schedule = entry.schedule
    if schedule.state != "active":
        return None
    at = next_occurrence(schedule, counts_after(schedule))
    return None if at is None else Tick(schedule=schedule.id, revision=entry.revision, at=at)


def counts_after(schedule: Schedule) -> int:
    """The time after which this revision's occurrences lie: that from which it governs.

    An `at` that was past then is its occurrence too.
    """
    return schedule.armed_from if schedule.at is None else min(schedule.armed_from, schedule.at - 1)


def awaited(schedule: Schedule, now: int) -> int | None:
    """The occurrence for which an active schedule has a tick, were all in order; None: it needs none.

    One with an `at` is over when its state says so, and until then it is awaited, however long past.
    """
    if schedule.at is not None:
        return schedule.at
    return next_occurrence(schedule, max(now, schedule.armed_from))


@dataclass(frozen=True, slots=True)
class Repair:
    """How a broken chain goes on: `gap` for what lies too far back to be known, then `tick`, if there is another."""

    tick: Tick | None
    gap: Gap | None = None


def repair(entry: Entry, *, healthy_at: int, horizon: int) -> Repair | None:
    """Restart an active schedule that has no tick.

    From `healthy_at`, when its group was last found whole, but no further back than `horizon`, before which
    finished journals are gone and nobody can tell what ran. None: nothing is due any more.
    """
    schedule = entry.schedule
    if schedule.state != "active":
        return None
    since = max(healthy_at, schedule.armed_from)
    start = max(since, horizon)
    if schedule.at is not None:
        # Active, it has not been settled, whatever sweeps have seen since. It ran, if at all, when it was armed or
        # later: while that is remembered, to run it once more is to run it once.
        since = counts_after(schedule)
        start = since if max(schedule.at, schedule.armed_from) > horizon else schedule.at
    at = next_occurrence(schedule, start)
    gap = None
    if start > since:
        unknown = occurrences(schedule, since, start, 0)
        if unknown.count:
            first = next_occurrence(schedule, since)
            gap = Gap(
                schedule=schedule.id,
                start=first if first is not None else since,
                to=start,
                count=unknown.count,
                reason="unknown_history",
            )
    if at is None and gap is None:
        return None
    return Repair(None if at is None else Tick(schedule=schedule.id, revision=entry.revision, at=at), gap)
