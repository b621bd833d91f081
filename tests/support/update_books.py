"""The books of schedules that were changed while they fired: what each revision governed, against runs and ledger.

Owns the account. What was due is reckoned here, by plain multiples, from the revisions the registry holds.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from jetcron.bus import Bus
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Gap, Past, Schedule
from tests.support.chaos import Books, Tally

MARGIN = 20_000
"""A run may be known so long before its time."""


@dataclass(frozen=True, slots=True)
class Reign:
    """A revision and the time in which it governs: (`after`, `until`]."""

    schedule: Schedule
    revision: int
    after: int
    until: int

    def due(self, until: int) -> set[int]:
        """When it is due, up to `until`."""
        schedule = self.schedule
        until = min(until, self.until)
        if schedule.state != "active":
            return set()
        if schedule.end is not None:
            until = min(until, schedule.end)
        if schedule.at is not None:
            return {schedule.at} if schedule.at <= until else set()
        period = period_of(schedule)
        return set(range(self.after // period * period + period, until + 1, period))


def period_of(schedule: Schedule) -> int:
    """The period of ``every``, or of an expression of seconds, in ms."""
    if schedule.every is not None:
        return schedule.every
    assert schedule.cron is not None
    seconds, *rest = schedule.cron.split()
    assert rest == ["*"] * 5, schedule.cron
    return 1_000 * int(seconds.removeprefix("*/"))


async def reigns(bus: Bus, ids: Iterable[str], now: int) -> dict[str, list[Reign]]:
    """What governed when, the oldest first."""
    found = {}
    for id in ids:
        stored = await bus.entry(bus.names.schedule_key(id))
        assert stored is not None, f"{id} is gone"
        keys = await bus.subjects(bus.names.registry, bus.names.pasts_of(id))
        replaced = {
            int(key.rsplit(".", 1)[1]): decode(Past, message.payload)
            for key, message in (await bus.entries(keys)).items()
        }
        own = [
            Reign(past.schedule, number, past.schedule.armed_from, past.end)
            for number, past in sorted(replaced.items())
        ]
        current = decode(Schedule, stored.payload)
        found[id] = [*own, Reign(current, stored.sequence, current.armed_from, now + MARGIN)]
    return found


def audit(books: Books, governed: dict[str, list[Reign]], until: int) -> Tally:
    """Every occurrence up to `until`: a run with its revision's payload, in a gap, or lost; whatever is too much."""
    tally = Tally(doubled=books.doubled())
    runs: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, entries in books.runs.items():
        for one in entries:
            about = one.entry.about
            if about is not None and about.schedule is not None and about.scheduled_at is not None:
                runs[about.schedule][about.scheduled_at].add(run)
    gaps: dict[str, list[Gap]] = defaultdict(list)
    for of in books.gaps.values():
        for gap in of.values():
            gaps[gap.schedule].append(gap)
    for id, own in governed.items():
        _check_succession(tally, own)
        due = {at: reign for reign in own for at in reign.due(until + MARGIN)}
        for at, reign in sorted(due.items()):
            if at <= until:
                _account(tally, books, reign, at, runs[id].get(at, set()), gaps[id])
        tally.wrong += [f"{id} ran for {at}, when nothing was due" for at in runs[id] if at not in due]
        for gap in gaps[id]:
            _check_gap(tally, gap, due)
    return tally


def _account(tally: Tally, books: Books, reign: Reign, at: int, runs: set[str], gaps: list[Gap]) -> None:
    tally.expected += 1
    said = f"{reign.schedule.id} at {at}, of revision {reign.revision}"
    told = [gap for gap in gaps if gap.start <= at <= gap.to]
    if len(runs) > 1:
        tally.doubled.append(f"{said} has the runs {sorted(runs)}")
    if reign.schedule.executes == "other":
        tally.in_gaps += bool(told)
        if runs:
            tally.wrong.append(f"{said} ran, and another scheduler was to execute it")
        if not told:
            tally.lost.append(f"{said} is not told to have been left to the other")
        return
    if any(gap.reason == "handed_over" for gap in told):
        tally.wrong.append(f"{said} was handed over")
    ended = [books.ended(run)[-1].entry for run in runs if books.completed(run)]
    if ended:
        tally.runs += 1
        if ended[0].result != reign.schedule.payload:
            tally.wrong.append(f"{said} ran with the payload {ended[0].result}, not {reign.schedule.payload}")
    elif not runs and told:
        tally.in_gaps += 1
    else:
        tally.lost.append(said)


def _check_succession(tally: Tally, own: list[Reign]) -> None:
    for one, following in pairwise(own):
        if one.until != following.after or following.after < one.after:
            tally.wrong.append(
                f"{one.schedule.id}: revision {one.revision} governs until {one.until}, "
                f"{following.revision} from {following.after}"
            )
        if following.schedule.command <= one.schedule.command:
            tally.wrong.append(
                f"{one.schedule.id}: {following.revision} is of an older order than {one.revision}"
            )


def _check_gap(tally: Tally, gap: Gap, due: dict[int, Reign]) -> None:
    inside = [at for at in due if gap.start <= at <= gap.to]
    if len(inside) != gap.count or len({due[at].revision for at in inside}) > 1:
        tally.wrong.append(
            f"{gap} says so of {inside}, of the revisions {sorted({due[at].revision for at in inside})}"
        )
