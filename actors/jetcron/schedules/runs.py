"""Runs of a schedule outside its times: now, or for occurrences that have passed.

Owns which run that is: started now, it is a new one; for an occurrence it is that occurrence's own, whoever else makes
it. If the process dies in between, the same call again stores what is missing.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from secrets import token_bytes

from jetcron import dispatch
from jetcron.bus import Bus
from jetcron.clock import from_ms
from jetcron.cycle import make_run, occurrences
from jetcron.errors import ConfigurationError, NotFound, PayloadTooLarge, TryAgain
from jetcron.given import moment
from jetcron.options import check_int
from jetcron.runs import RunHandle, statuses_of
from jetcron.schedules.checks import check_functions
from jetcron.schedules.orders import Progress
from jetcron.schedules.search import RunsOf, runs_of
from jetcron.schedules.views import entry
from jetcron_protocol.ids import manual_run_id, ulid
from jetcron_protocol.messages import Run, Schedule

MAX_BACKFILL = 100_000
"""Most occurrences of one backfill."""
MAX_LISTED = 10_000
"""Most runs of one listing."""
_STORE_SECONDS = 30.0
_AT_ONCE = 500

Moment = datetime | str
"""An aware datetime, or ISO 8601 with a zone."""


class ScheduleRuns:
    """What `client.schedules` has for runs."""

    _bus: Bus

    async def trigger(self, id: str) -> RunHandle:
        """Run it now, whatever its state, with its payload: a manual run. Returns once the run is stored.

        Raises `NotFound` when there is no such schedule, or its function is archived or not registered.
        """
        return await run_now(self._bus, id)

    async def backfill(
        self, id: str, start: Moment, end: Moment, *, progress: Progress | None = None
    ) -> Sequence[RunHandle]:
        """Run its occurrences from `start` to `end`, both included, now, as it is defined now; their runs.

        Each has the run id of the occurrence: what ran runs no more, as long as its run is remembered, and its handle
        is `known`. At most 100,000; `end` is not later than now. Raises `NotFound` as `trigger` does.
        """
        since, until = moment("start", start), moment("end", end)
        return await run_between(self._bus, id, since, until, progress=progress)

    async def runs(
        self,
        id: str,
        *,
        function: str | None = None,
        status: str | Collection[str] | None = None,
        limit: int = 50,
    ) -> RunsOf:
        """Its runs, the newest first by their ids' time, whatever started them: its time, `trigger`, `backfill`.

        Reads the journals of its functions, or of this one alone, until it has found `limit`; of 100,000 at most. A
        run nobody has taken yet has no journal. Raises `NotFound`, unless the function is given.
        """
        check_int("schedules.runs", "limit", limit, 1, MAX_LISTED)
        statuses = None if status is None else statuses_of(status)
        return await runs_of(self._bus, id, function=function, statuses=statuses, limit=limit)


async def run_now(bus: Bus, id: str) -> RunHandle:
    """A manual run of a schedule, with its payload."""
    schedule = await _runnable(bus, id)
    now = bus.clock.now()
    run = Run(
        run=manual_run_id(schedule.function, ulid(now, token_bytes(10))),
        function=schedule.function,
        trigger="manual",
        fire_at=now,
        schedule=id,
        payload=schedule.payload,
    )
    message = dispatch.new_run(bus.names, run, now=now, lead=bus.settings.lead_ms)
    if len(message.payload) > bus.max_body:
        raise PayloadTooLarge(len(message.payload), bus.max_body)
    await bus.store(message, patience=_STORE_SECONDS)
    return RunHandle(bus, schedule.function, run.run)


async def run_between(
    bus: Bus, id: str, start: int, end: int, *, progress: Progress | None = None
) -> list[RunHandle]:
    """The occurrences in [`start`, `end`] (epoch ms), as the schedule is defined now, each started now."""
    now = bus.clock.now()
    if start > end or end > now:
        raise ConfigurationError(
            f"backfill: start={from_ms(start).isoformat()}, end={from_ms(end).isoformat()}; "
            "allowed are a start before the end, and an end up to now"
        )
    schedule = await _runnable(bus, id)
    found = occurrences(schedule, start - 1, end, MAX_BACKFILL)
    if found.count > MAX_BACKFILL:
        raise ConfigurationError(
            f"backfill: {found.count:,} occurrences of {id!r} lie between; allowed are {MAX_BACKFILL:,} at one time; "
            "do it in parts"
        )
    # Its own id makes it the occurrence's run; its time is now, for an executor may wait for what is to come. It is
    # wanted though others go on, and though it was left out before.
    runs = [replace(make_run(schedule, at), fire_at=now, overlap=None) for at in found.newest]
    known = await _known(bus, schedule.function, [run.run for run in runs])
    lead = bus.settings.lead_ms
    for first in range(0, len(runs), _AT_ONCE):
        some = runs[first : first + _AT_ONCE]
        groups = [[dispatch.new_run(bus.names, run, now=now, lead=lead)] for run in some]
        standing = await bus.publish_groups(groups)
        if len(standing) < len(groups):
            said = f"{first + len(standing)} of {len(runs)} runs are stored; the same again stores the rest"
            raise TryAgain(0, 0, said)
        if progress is not None:
            progress(len(some))
    return [RunHandle(bus, run.function, run.run, known=run.run in known) for run in runs]


async def _known(bus: Bus, function: str, runs: Sequence[str]) -> set[str]:
    """Those whose journals stand: of few each is asked for, of many the names tell."""
    if len(runs) <= _AT_ONCE:
        subjects = [bus.names.journal_of(function, run) for run in runs]
        found: Iterable[str] = await bus.multi_last_all(bus.names.journal, subjects)
    else:
        found = await bus.subjects(bus.names.journal, bus.names.journal_of(function))
    return {bus.names.parse_journal(subject)[1] for subject in found} & set(runs)


async def _runnable(bus: Bus, id: str) -> Schedule:
    _, schedule = await entry(bus, id)
    faults: dict[str, list[str]] = {}
    await check_functions(bus, {schedule.function: [(id, None)]}, faults)
    if faults:
        raise NotFound(f"schedule {id!r}: {'; '.join(faults[id])}")
    return schedule
