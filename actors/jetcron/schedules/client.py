"""Schedules as data: create, change, read, pause and run them, by the thousand.

Owns no state: what is ordered is applied by cron-sync, and what is read is what the registry's leader has. Every call
that changes something waits, unless told not to, until it is in force.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jetcron.errors import ConfigurationError, ScheduleRefused
from jetcron.given import UNCHANGED, Unchanged, changed, moment
from jetcron.options import YEAR, ZERO, CatchUp, Duration, check_choice, check_duration, check_int
from jetcron.schedules.checks import check_functions, checked_parts
from jetcron.schedules.details import Details, details, upcoming
from jetcron.schedules.handover import HandOver
from jetcron.schedules.history import Outcome, history
from jetcron.schedules.load import Load, empty
from jetcron.schedules.orders import InForce, Order, Part, Progress, named, submit
from jetcron.schedules.plan import Plan, make_plan
from jetcron.schedules.runs import Moment, ScheduleRuns
from jetcron.schedules.views import SHOWN, Filter, Page, ScheduleView, active, entry, page, view
from jetcron_protocol.messages import CatchUpPolicy, Dst, Executes, Overlap, ScheduleState

WAIT = 5.0
"""Seconds one order is waited for."""
BULK_WAIT = 120.0
"""Seconds each of many is waited for: others are before it."""
MAX_PAGE = 10_000
MAX_REVISION = (1 << 63) - 1
_STATES = (*SHOWN, "archived", "deleted")


class Schedules(HandOver, ScheduleRuns):
    """The schedules. Those of cron triggers in code are changed in code; here they are read and run.

    An order raises `ScheduleRefused`, a `ConfigurationError`, when it cannot be carried out: its `faults` have all that
    is wrong with every schedule in it, by id; that there is none is such a fault in `pause`, `unpause`, `archive` and
    `delete`, which take many ids. Calls about one schedule, `update` among them, raise `NotFound` when there is none:
    no `ConfigurationError`, and without faults. What is wrong with the call rather than a schedule (`limit`, `by`,
    `if_revision`) is a `ConfigurationError` without faults. `TryAgain`: cron-sync has not answered in `wait` seconds;
    the order stands, and is carried out once cron-sync runs. With ``wait=None`` it returns when the order is stored.
    `by` says who orders it, as `jetcron schedules show` tells; this process's user and host where it is not given.
    """

    async def create(
        self,
        id: str,
        function: str,
        *,
        cron: str | None = None,
        every: Duration | str | None = None,
        at: Moment | None = None,
        timezone: str = "UTC",
        payload: Any = None,
        dst: Dst = "default",
        jitter: Duration | str | None = None,
        catch_up: CatchUpPolicy | CatchUp = "latest",
        catch_up_within: Duration | str | None = None,
        catch_up_most: int | None = None,
        overlap: Overlap = "allow",
        executes: Executes = "jetcron",
        start: Moment | None = None,
        end: Moment | None = None,
        max_runs: int | None = None,
        tags: Iterable[str] = (),
        by: str | None = None,
        wait: float | None = WAIT,
    ) -> InForce:
        """Create a schedule of `function` (``app.function``): one of `cron`, `every` (at least a second) and `at`.

        It counts from when the order is stored; an `at` in the past is due at once, and is gone when it has run.
        `payload` is what the function's second parameter receives. Between `start` and `end`, both included, it has at
        most `max_runs` occurrences. The same once more changes nothing; another definition under an id that exists is
        refused.
        """
        values = {
            "id": id,
            "function": function,
            "cron": cron,
            "every": every,
            "at": at,
            "timezone": timezone,
            "payload": payload,
            "dst": dst,
            "jitter": jitter,
            "catch_up": catch_up,
            "catch_up_within": catch_up_within,
            "catch_up_most": catch_up_most,
            "overlap": overlap,
            "executes": executes,
            "start": start,
            "end": end,
            "max_runs": max_runs,
            "tags": _listed(tags),
        }
        parts = await checked_parts(self._bus, [values], numbered=False)
        (made,) = await submit(self._bus, "create", parts, by=by, wait=wait)
        return made

    async def create_many(
        self,
        schedules: Iterable[Mapping[str, Any]],
        *,
        by: str | None = None,
        wait: float | None = BULK_WAIT,
        progress: Progress | None = None,
    ) -> list[InForce]:
        """Create many, each a map of `create`'s arguments; what is in force then, in their order.

        All are looked at before one is sent: nothing is created if one of them cannot be. They go in parts of
        hundreds, each created whole or not at all. `progress` is called with how many more are done.
        """
        parts = await checked_parts(self._bus, schedules)
        return await submit(self._bus, "create", parts, by=by, wait=wait, progress=progress)

    async def update(
        self,
        id: str,
        *,
        if_revision: int | None = None,
        function: str | Unchanged = UNCHANGED,
        cron: str | Unchanged | None = UNCHANGED,
        every: Duration | str | Unchanged | None = UNCHANGED,
        at: Moment | Unchanged | None = UNCHANGED,
        timezone: str | Unchanged = UNCHANGED,
        payload: Any = UNCHANGED,
        dst: Dst | Unchanged = UNCHANGED,
        jitter: Duration | str | Unchanged | None = UNCHANGED,
        catch_up: CatchUpPolicy | CatchUp | Unchanged = UNCHANGED,
        catch_up_within: Duration | str | Unchanged | None = UNCHANGED,
        catch_up_most: int | Unchanged | None = UNCHANGED,
        overlap: Overlap | Unchanged = UNCHANGED,
        executes: Executes | Unchanged = UNCHANGED,
        start: Moment | Unchanged | None = UNCHANGED,
        end: Moment | Unchanged | None = UNCHANGED,
        max_runs: int | Unchanged | None = UNCHANGED,
        tags: Iterable[str] | Unchanged = UNCHANGED,
        by: str | None = None,
        wait: float | None = WAIT,
    ) -> InForce:
        """Change what is given; None takes away. Another kind of time takes the place of the one there was.

        In force 2.5 s after cron-sync applied it; what is due before runs as it was. With `if_revision` it is refused
        unless that is the revision that stands. Where there is a `max_runs`, occurrences so far count. Raises
        `NotFound` when there is no such schedule.
        """
        values = {
            "function": function,
            "cron": cron,
            "every": every,
            "at": at,
            "timezone": timezone,
            "payload": payload,
            "dst": dst,
            "jitter": jitter,
            "catch_up": catch_up,
            "catch_up_within": catch_up_within,
            "catch_up_most": catch_up_most,
            "overlap": overlap,
            "executes": executes,
            "start": start,
            "end": end,
            "max_runs": max_runs,
            "tags": tags if isinstance(tags, Unchanged) else _listed(tags),
        }
        await self.get(id)
        raw, faults = changed(id, values)
        told = {id: faults} if faults else {}
        if isinstance(function, str):
            await check_functions(self._bus, {function: [(id, raw.get("overlap"))]}, told)
        if told:
            raise ScheduleRefused(told)
        part = Part(id, raw, _revision(if_revision))
        (made,) = await submit(self._bus, "update", [part], by=by, wait=wait)
        return made

    async def get(self, id: str) -> ScheduleView:
        """One schedule as it stands; raises `NotFound`, for one that was deleted too."""
        stored, schedule = await entry(self._bus, id)
        return view(stored, schedule, now=self._bus.clock.now())

    async def revisions(self, *ids: str) -> dict[str, int]:
        """The revisions of those among these that there are."""
        keys = {self._bus.names.schedule_key(part.id): part.id for part in named(ids)}
        found = await self._bus.entries(list(keys))
        return {id: found[key].sequence for key, id in keys.items() if key in found}

    async def show(self, id: str) -> Details:
        """One schedule with what surrounds it: held tick, next times, last outcomes, lateness. Raises `NotFound`."""
        return await details(self._bus, id)

    async def history(self, id: str, *, limit: int = 50, since: Moment | None = None) -> Sequence[Outcome]:
        """Its last occurrences, the newest first, none before `since`: each with its run, or why there is none.

        Each is that of the revision that was in force. One that was deleted has a history for 30 days; runs and
        what the ledger says of others are remembered a day, or as the function's `keep` says. Raises `NotFound`.
        """
        check_int("schedules.history", "limit", limit, 1, MAX_PAGE)
        return await history(
            self._bus, id, limit=limit, since=None if since is None else moment("since", since)
        )

    async def list(
        self,
        *,
        app: str | None = None,
        function: str | None = None,
        state: ScheduleState | None = None,
        tag: str | None = None,
        within: Duration | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> Page:
        """A page of them, by when they fire next; those that do not, by id, at the end.

        Those of an app, of a function, in a state (else all but archived and deleted ones), with a tag, that fire
        `within` so long (seconds or a timedelta). `after` is what the page before gave. A filter other than `within`
        reads until it has found a page of those it lets through.
        """
        if state is not None:
            check_choice("schedules.list", "state", state, _STATES)
        check_int("schedules.list", "limit", limit, 1, MAX_PAGE)
        span = None if within is None else check_duration("schedules.list", "within", within, ZERO, 10 * YEAR)
        chosen = Filter(app, function, state, tag, span)
        return await page(self._bus, chosen, after=after, limit=limit)

    async def pause(self, *ids: str, **more: Any) -> Sequence[InForce]:
        """No more occurrences until `unpause`; those of the meantime do not run. Takes `if_revision`, `by`, `wait`."""
        return await self._move("pause", ids, **more)

    async def unpause(self, *ids: str, **more: Any) -> Sequence[InForce]:
        """Go on from now; brings back an archived one, too."""
        return await self._move("unpause", ids, **more)

    async def archive(self, *ids: str, **more: Any) -> Sequence[InForce]:
        """Retire them: they fire no more and are not listed, and `unpause` brings them back."""
        return await self._move("archive", ids, **more)

    async def delete(self, *ids: str, **more: Any) -> Sequence[InForce]:
        """Take them away for good. What was due before still runs."""
        return await self._move("delete", ids, **more)

    async def _move(
        self,
        what: Order,
        ids: Sequence[str],
        *,
        if_revision: int | None = None,
        by: str | None = None,
        wait: float | None = WAIT,
        progress: Progress | None = None,
    ) -> Sequence[InForce]:
        if if_revision is not None and len(ids) != 1:
            raise ConfigurationError(f"if_revision={if_revision} of {len(ids)} schedules; allowed is one")
        parts = named(ids, _revision(if_revision))
        return await submit(self._bus, what, parts, by=by, wait=wait, progress=progress)

    async def preview(self, id: str, n: int = 10) -> Sequence[datetime]:
        """Its next `n` times, in UTC: as many as there are, none when it is not active. Raises `NotFound`."""
        check_int("schedules.preview", "n", n, 0, MAX_PAGE)
        _, schedule = await entry(self._bus, id)
        return upcoming(schedule, self._bus.clock.now(), n)

    async def load(self, minutes: int = 1_440, *, progress: Progress | None = None) -> Load:
        """How many fire in each of the next `minutes`; reads every schedule there is."""
        check_int("schedules.load", "minutes", minutes, 1, MAX_PAGE)
        found = empty(self._bus.clock.now(), minutes)
        async for schedules, read in active(self._bus):
            for schedule in schedules:
                found.add(schedule)
            if progress is not None:
                progress(read)
        found.settle()
        return found

    async def count(self) -> int:
        """How many there are, of all states, deleted ones of the last 30 days too."""
        return len(await self._bus.subjects(self._bus.names.registry, self._bus.names.schedules))

    async def plan(self, schedules: Iterable[Mapping[str, Any]], *, prune: bool = False) -> Plan:
        """What it takes for these to stand as given, each a map of `create`'s arguments; nothing is done yet.

        `prune`: schedules created as data of the functions named here, which are not among these, are to go.
        """
        return await make_plan(self._bus, schedules, prune=prune)

    async def apply(
        self,
        plan: Plan,
        *,
        by: str | None = None,
        wait: float | None = BULK_WAIT,
        progress: Progress | None = None,
    ) -> Sequence[InForce]:
        """Carry a plan out. What somebody changed since it was made is refused."""
        done: list[InForce] = []
        orders: tuple[tuple[Order, Sequence[Part]], ...] = (
            ("create", plan.create),
            ("update", [change.part for change in plan.update]),
            ("delete", plan.delete),
        )
        for what, parts in orders:
            done += await submit(self._bus, what, parts, by=by, wait=wait, progress=progress)
        return done


def _listed(tags: Iterable[str]) -> Any:
    """What is one text is no list of them, and is told so."""
    return tags if isinstance(tags, str) or not isinstance(tags, Iterable) else list(tags)


def _revision(number: int | None) -> int | None:
    return None if number is None else check_int("schedules", "if_revision", number, 1, MAX_REVISION)
