"""The occurrences of a schedule, the newest first, and what became of each: its run, or what the ledger says.

Owns nothing. Occurrences are computed from the revisions that were in force, and runs and gaps are found by their ids,
which are computed too: nothing lists them by schedule, and no more is read than what is asked for.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

from jetcron import ledger
from jetcron.bus import MSG_ID, Bus, StoredMessage
from jetcron.clock import from_ms, to_ms
from jetcron.cycle import counts_after, make_run, occurrences
from jetcron.history import Status, fold
from jetcron.runs import RunView
from jetcron.runs import view as run_view
from jetcron.schedules.handover import TAKEN
from jetcron.schedules.views import last_entry
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import gap_token, overlap_token
from jetcron_protocol.messages import Gap, JournalEntry, Past, Reason, Run, Schedule

_READ = 400
"""Occurrences, and replaced revisions, read at one time."""
_LOOK_BACK = 100_000
"""So many occurrences before those that are shown a gap may begin that covers them: a day of every second."""
_FEW = 400
"""So few subjects are asked for each; of more, the names that there are tell which to read."""
_LOOKED = 32 * 1024 * 1024
"""Bytes of runs that are ready looked at for those that wait."""
_MESSAGE = 512
"""Bytes of a message beside its body, about."""
_SLACK_MS = 60_000
"""A run may be stored so much earlier than by this clock."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An occurrence and what became of it; `revision` governed it, and `id` is that of its run.

    `run` is None where no journal is remembered; then `gap` is what the ledger says of it. `late` is how much
    later than its time, jitter included, the user's code began.
    """

    at: datetime
    id: str
    function: str
    revision: int
    run: RunView | None = None
    late: timedelta | None = None
    gap: Gap | None = None
    awaited: Literal["due", "queued"] | None = None

    @property
    def outcome(self) -> Status | Literal["due", "not run", "not remembered"]:
        """What became of it.

        The status of its run; ``due``: its tick has not been turned; ``queued``: no executor has begun it; ``not
        run``, as `reason` says; ``not remembered``: neither a run nor the ledger knows of it, as a rule because it was
        so long ago that both have forgotten it.
        """
        if self.reason is not None:
            return "not run"
        if self.run is not None:
            return self.run.status
        return self.awaited or "not remembered"

    @property
    def reason(self) -> Reason | None:
        """Why it did not run, as the ledger names it; None where it did, or nobody can tell."""
        if self.run is not None:
            return "handed_over" if _taken(self.run) else None
        return None if self.gap is None else self.gap.reason


@dataclass(frozen=True, slots=True)
class _Occurrence:
    at: int
    revision: int
    run: Run


@dataclass(frozen=True, slots=True)
class _Reign:
    """A revision and the time in which it was in force: (`after`, `until`]."""

    schedule: Schedule
    revision: int
    after: int
    until: int

    def newest(self, until: int, count: int) -> list[_Occurrence]:
        """Its last `count` occurrences up to `until`, the newest first."""
        window = occurrences(self.schedule, self.after, min(until, self.until), count)
        return [_Occurrence(at, self.revision, make_run(self.schedule, at)) for at in reversed(window.newest)]


async def history(bus: Bus, id: str, *, limit: int, since: int | None = None) -> list[Outcome]:
    """The last `limit` occurrences of a schedule, none before `since`; raises `NotFound`.

    One that was deleted has a history as long as its key is kept.
    """
    stored, schedule = await last_entry(bus, id)
    return await outcomes(bus, schedule, stored.sequence, limit=limit, since=since, told=limit)


async def outcomes(
    bus: Bus, schedule: Schedule, revision: int, *, limit: int, since: int | None = None, told: int
) -> list[Outcome]:
    """The last `limit` occurrences of a schedule, the newest first, with the runs that are remembered.

    Of the first `told` of them, it is looked up why there is no run; the others have just their runs.
    """
    id = schedule.id
    reigns = [one async for one in _reigns(bus, schedule, revision, limit, since)]
    found = _occurrences(reigns, limit, since)
    known = dict(zip((one.at for one in found), await _runs(bus, found), strict=True))
    missing = [one for one in found[:told] if known[one.at].run is None]
    covered = partial(_covered, reigns=reigns)
    # What waits for an executor is a guess, and the last: the ledger knows.
    for work in (_due, _told, covered, _queued):
        for at, change in (await work(bus, id, missing)).items():
            known[at] = replace(known[at], **change)
        missing = [one for one in missing if known[one.at].outcome == "not remembered"]
    return list(known.values())


def _occurrences(reigns: Sequence[_Reign], limit: int, since: int | None) -> list[_Occurrence]:
    found: list[_Occurrence] = []
    for reign in reigns:
        found += reign.newest(reign.until, limit - len(found))
    # One time is one occurrence, whichever of two revisions of the same `at` governs it.
    once = {one.run.run: one for one in reversed(found)}
    return [one for one in reversed(once.values()) if since is None or one.at >= since]


async def _reigns(
    bus: Bus, schedule: Schedule, revision: int, limit: int, since: int | None
) -> AsyncIterator[_Reign]:
    """The active revisions, the newest first, as many as it takes for `limit` occurrences or back to `since`."""
    now = bus.clock.now()
    left = limit
    async for one, number, end in _revisions(bus, schedule, revision, now):
        if one.state == "active":
            reign = _Reign(one, number, counts_after(one), min(end, now))
            left -= occurrences(one, reign.after, reign.until, 0).count
            yield reign
        if left <= 0 or (since is not None and one.at is None and one.armed_from < since):
            return


async def _revisions(
    bus: Bus, schedule: Schedule, revision: int, now: int
) -> AsyncIterator[tuple[Schedule, int, int]]:
    """Every revision with its number and its end, the newest first; names tell which there are."""
    yield schedule, revision, now
    names = await bus.subjects(bus.names.registry, bus.names.pasts_of(schedule.id))
    numbers = sorted((int(name.rsplit(".", 1)[1]) for name in names), reverse=True)
    for some in _parts(numbers, _READ):
        keys = {bus.names.past_key(schedule.id, number): number for number in some}
        stored = await bus.entries(list(keys))
        for key, number in keys.items():
            if key in stored:
                past = decode(Past, stored[key].payload)
                yield past.schedule, number, past.end


async def _runs(bus: Bus, found: Sequence[_Occurrence]) -> list[Outcome]:
    outcomes = []
    for some in _parts(found, _READ):
        subjects = {bus.names.journal_of(one.run.function, one.run.run): one for one in some}
        journals = await bus.multi_last_all(bus.names.journal, list(subjects))
        for subject, one in subjects.items():
            outcomes.append(_outcome(one, journals.get(subject)))
    return outcomes


def _outcome(one: _Occurrence, last: StoredMessage | None) -> Outcome:
    if last is None:
        return Outcome(at=from_ms(one.at), id=one.run.run, function=one.run.function, revision=one.revision)
    history = fold([(last.sequence, decode(JournalEntry, last.payload))])
    run = run_view(one.run.function, one.run.run, history)
    return Outcome(
        at=from_ms(one.at),
        id=one.run.run,
        function=one.run.function,
        revision=one.revision,
        run=run,
        late=_late(run),
    )


def _taken(run: RunView) -> bool:
    """Whether the other scheduler took it: that ends its journal before it began."""
    return run.status == "cancelled" and run.error is not None and run.error.type == TAKEN


def _late(run: RunView) -> timedelta | None:
    about = run.history.about
    started = next((one.started for one in run.history.attempts if one.started is not None), None)
    if about is None or started is None:
        return None
    return timedelta(milliseconds=max(started - about.fire_at, 0))


_Changes = dict[int, dict[str, Any]]
"""By the time of an occurrence, what is known of it now."""


async def _due(bus: Bus, id: str, missing: Sequence[_Occurrence]) -> _Changes:
    """Those to which a tick that stands still leads."""
    if not missing:
        return {}
    names = await bus.subjects(bus.names.work, bus.names.ticks_of(id))
    ticks = [bus.names.parse_tick(name) for name in names]
    return {
        one.at: {"awaited": "due"}
        for one in missing
        if any(tick.revision == one.revision and tick.at <= one.at for tick in ticks)
    }


async def _told(bus: Bus, id: str, missing: Sequence[_Occurrence]) -> _Changes:
    """Those of which the ledger tells, in the entries that begin with one of them."""
    left = [bus.names.journal_of(one.run.function, overlap_token(one.run.run)) for one in missing]
    gaps = await _gaps(bus, [*(_ledger(bus, id, one) for one in missing), *left])
    return {one.at: {"gap": gap} for one in missing if (gap := _covering(gaps, one.at)) is not None}


async def _queued(bus: Bus, id: str, missing: Sequence[_Occurrence]) -> _Changes:
    """Those too young to be forgotten whose run stands, ready or held; others may have begun meanwhile."""
    found: _Changes = {}
    now = bus.clock.now()
    for function in {one.run.function for one in missing}:
        since = now - 1_000 * await ledger.kept(bus, function)
        young = [one for one in missing if one.run.function == function and one.run.fire_at > since]
        standing = await _standing(bus, function, young) if young else set()
        found |= {one.at: {"awaited": "queued"} for one in young if one.run.run in standing}
        for told in await _runs(bus, [one for one in young if one.run.run not in standing]):
            if told.run is not None:
                found[to_ms(told.at)] = {"run": told.run, "late": told.late}
    return found


async def _standing(bus: Bus, function: str, young: Sequence[_Occurrence]) -> set[str]:
    """Which of these runs are held, or ready: of what is ready, so much is looked at from when the first was made.

    Where more is ready than that, those that were not found may be among it, and are taken to be.
    """
    wanted = {one.run.run for one in young}
    held = [bus.names.run_later(function, run, 0) for run in sorted(wanted)]
    stored = await bus.multi_last_all(bus.names.work, held)
    found = {bus.names.parse_run_later(subject).run for subject in stored}
    looked = 0
    since = max(min(one.at for one in young) - bus.settings.lead_ms - _SLACK_MS, 0)
    async for page in bus.pages(bus.names.work, bus.names.run_ready(function), since=since):
        found |= wanted & {_run_in(message) for message in page}
        looked += sum(_MESSAGE + len(message.payload) for message in page)
        if wanted <= found:
            break
        if looked > _LOOKED:
            return wanted
    return found


def _run_in(message: StoredMessage) -> str:
    """The run a message is of: its id, unless the server has released it, which takes that away."""
    try:
        return message.headers.get(MSG_ID) or decode(Run, message.payload).run
    except DecodeError:
        return ""


async def _covered(
    bus: Bus, id: str, missing: Sequence[_Occurrence], *, reigns: Sequence[_Reign]
) -> _Changes:
    """Those in a gap that began before all that is shown: names tell which entries there are, few are read."""
    found: _Changes = {}
    for function in {one.run.function for one in missing}:
        names: set[str] | None = None
        for reign in reigns:
            own = [one for one in missing if (one.run.function, one.revision) == (function, reign.revision)]
            if own:
                before = [_ledger(bus, id, one) for one in reign.newest(own[0].at, _LOOK_BACK)]
                if len(before) > _FEW:
                    if names is None:
                        names = set(await bus.subjects(bus.names.journal, bus.names.journal_of(function)))
                    before = [subject for subject in before if subject in names]
                gaps = await _gaps(bus, before)
                found |= {one.at: {"gap": gap} for one in own if (gap := _covering(gaps, one.at)) is not None}
    return found


def _ledger(bus: Bus, id: str, one: _Occurrence) -> str:
    return bus.names.journal_of(one.run.function, gap_token(id, one.at))


async def _gaps(bus: Bus, subjects: Sequence[str]) -> list[Gap]:
    stored = await bus.multi_last_all(bus.names.journal, subjects)
    return [decode(Gap, message.payload) for message in stored.values()]


def _covering(gaps: Iterable[Gap], at: int) -> Gap | None:
    return next((gap for gap in gaps if gap.start <= at <= gap.to), None)


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
