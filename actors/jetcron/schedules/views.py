"""Schedules as users read them: one by its id, or pages of them by when they fire next.

Owns nothing: the names of ticks tell what fires when, so that only the entries of the page that is shown are read.
"""

import heapq
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from jetcron.bus import Bus, StoredMessage
from jetcron.clock import from_ms
from jetcron.cycle import next_occurrence
from jetcron.definitions import given_end
from jetcron.errors import ConfigurationError, NotFound
from jetcron.options import MILLISECOND
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Schedule, ScheduleState
from jetcron_protocol.subjects import InvalidName, check_id, split_function, unescape

T = TypeVar("T")

SHOWN: tuple[ScheduleState, ...] = ("active", "paused", "ended")
"""What a listing shows where no state is asked for."""
LINGER_MS = 65_000
"""A tick of a revision that was replaced may stand so long: it is left to be released."""
_MOST_READ = 1_000
"""Entries read in one request: as many as the page shows, then more while a filter lets few through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleView:
    """A schedule as it stands. `next` is when it fires next; `changed_at` and `by` tell of its last change.

    `origin` is ``code`` for a cron trigger of a function, ``data`` for what was created.
    """

    id: str
    function: str
    state: ScheduleState
    origin: str
    revision: int
    next: datetime | None
    cron: str | None
    every: timedelta | None
    at: datetime | None
    timezone: str
    dst: str
    jitter: timedelta
    catch_up: str
    catch_up_within: timedelta | None
    catch_up_most: int | None
    overlap: str
    executes: str
    payload: Any
    start: datetime | None
    end: datetime | None
    max_runs: int | None
    tags: tuple[str, ...]
    changed_at: datetime
    by: str | None
    with_function: bool = False
    """Whether it is paused or archived because its function is, and becomes active again with it."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some schedules, by when they fire next; those that do not come last. `after` asks for the following page."""

    schedules: list[ScheduleView]
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """What a listing lets through; None: anything."""

    app: str | None = None
    function: str | None = None
    state: ScheduleState | None = None
    tag: str | None = None
    within: timedelta | None = None

    def passes(self, schedule: Schedule) -> bool:
        """Whether it is to be shown."""
        if schedule.state not in (SHOWN if self.state is None else (self.state,)):
            return False
        return (
            (self.app is None or split_function(schedule.function)[0] == self.app)
            and self.function in (None, schedule.function)
            and (self.tag is None or self.tag in schedule.tags)
        )


def view(stored: StoredMessage, schedule: Schedule, *, now: int, at: int | None = None) -> ScheduleView:
    """An entry as users see it; `at` is when its tick says that it fires."""
    if at is None:
        at = next_occurrence(schedule, max(now, schedule.armed_from))
    end = given_end(schedule)
    return ScheduleView(
        id=schedule.id,
        function=schedule.function,
        state=schedule.state,
        origin=schedule.origin,
        revision=stored.sequence,
        next=_moment(at) if schedule.state == "active" else None,
        cron=schedule.cron,
        every=None if schedule.every is None else schedule.every * MILLISECOND,
        at=_moment(schedule.at),
        timezone=schedule.timezone,
        dst=schedule.dst,
        jitter=schedule.jitter * MILLISECOND,
        catch_up=schedule.catch_up,
        catch_up_within=(
            None if schedule.catch_up_within is None else schedule.catch_up_within * MILLISECOND
        ),
        catch_up_most=schedule.catch_up_most,
        overlap=schedule.overlap,
        executes=schedule.executes,
        payload=schedule.payload,
        start=_moment(schedule.start),
        end=_moment(end),
        max_runs=schedule.max_runs,
        tags=tuple(schedule.tags),
        changed_at=from_ms(stored.stored_at),
        by=schedule.by,
        with_function=schedule.with_function,
    )


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else from_ms(ms)


async def entry(bus: Bus, id: str) -> tuple[StoredMessage, Schedule]:
    """A schedule's entry, as the leader has it; raises `NotFound`, for one that was deleted too."""
    stored, schedule = await last_entry(bus, id)
    if schedule.state == "deleted":
        raise NotFound(
            f"there is no schedule {id!r} any more; 'jetcron schedules history {id}' tells what became of it"
        )
    return stored, schedule


async def last_entry(bus: Bus, id: str) -> tuple[StoredMessage, Schedule]:
    """As `entry`, but one that was deleted too, as long as its key is kept."""
    try:
        check_id("the schedule id", id)
    except InvalidName as error:
        raise ConfigurationError(str(error)) from None
    stored = await bus.entry(bus.names.schedule_key(id))
    if stored is None:
        raise _absent(id)
    return stored, decode(Schedule, stored.payload)


def _absent(id: str) -> NotFound:
    return NotFound(f"there is no schedule {id!r}; 'jetcron schedules list' shows them")


async def active(bus: Bus) -> AsyncIterator[tuple[list[Schedule], int]]:
    """Every active schedule, some at one time, each time with how many were read."""
    async for some in bus.pages(bus.names.registry, bus.names.schedules, size=_MOST_READ):
        schedules = [schedule for stored in some if (schedule := _decoded(stored)) is not None]
        yield [schedule for schedule in schedules if schedule.state == "active"], len(some)


Place = tuple[int, str]
"""When a schedule fires next, and the token of its id: the order of a listing."""
NEVER = 1 << 62
"""The time of those that do not fire."""


async def page(bus: Bus, filter: Filter, *, after: str | None, limit: int) -> Page:
    """The schedules that come after the place a former page named, or the first ones."""
    start = _place(after)
    shown: list[ScheduleView] = []
    last: Place | None = None
    seen: set[str] = set()
    async for place, found in _all(bus, filter, start, limit + 1):
        if place[1] in seen:
            continue  # an old revision's tick and a new one's
        if len(shown) == limit:
            assert last is not None
            return Page(shown, f"{last[0] if last[0] < NEVER else ''}.{last[1]}")
        seen.add(place[1])
        shown.append(found)
        last = place
    return Page(shown)


def _place(after: str | None) -> Place:
    if after is None:
        return (-NEVER, "")
    at, _, token = after.partition(".")
    try:
        unescape(token)
        return int(at) if at else NEVER, token
    except ValueError:
        raise ConfigurationError(f"after={after!r}; allowed is what the page before gave") from None


async def _all(
    bus: Bus, filter: Filter, start: Place, size: int
) -> AsyncIterator[tuple[Place, ScheduleView]]:
    now = bus.clock.now()
    names = await bus.subjects(bus.names.work, bus.names.ticks)
    async for found in _ticking(bus, filter, start, names, now, size):
        yield found
    if filter.state != "active" and filter.within is None:
        ticking = {_token(name) for name in names}
        async for found in _still(bus, filter, start, ticking, now, size):
            yield found


async def _ticking(
    bus: Bus, filter: Filter, start: Place, names: Sequence[str], now: int, size: int
) -> AsyncIterator[tuple[Place, ScheduleView]]:
    """Those that have a tick, by its time."""
    until = NEVER if filter.within is None else now + filter.within // MILLISECOND
    if filter.state not in (None, "active"):
        until = min(until, now + LINGER_MS)
    ticks = [(at, _token(name), name) for name in names if (at := int(name[name.rfind(".") + 1 :])) <= until]
    if start[0] > -NEVER:
        ticks = [tick for tick in ticks if tick[:2] > start]
    heapq.heapify(ticks)
    popped = (heapq.heappop(ticks) for _ in range(len(ticks)))
    for some in _parts(popped, size):
        keys = {bus.names.schedule_key(unescape(token)) for _, token, _ in some}
        entries = await bus.entries(list(keys))
        for at, token, name in some:
            stored = entries.get(bus.names.schedule_key(unescape(token)))
            schedule = _decoded(stored)
            if stored is None or schedule is None or not filter.passes(schedule):
                continue
            revision = bus.names.parse_tick(name).revision
            # A tick of a revision that was replaced fires only what that one still governs.
            if schedule.state == "active" and revision != stored.sequence and at > schedule.armed_from:
                continue
            yield (at, token), view(stored, schedule, now=now, at=at)


async def _still(
    bus: Bus, filter: Filter, start: Place, ticking: set[str], now: int, size: int
) -> AsyncIterator[tuple[Place, ScheduleView]]:
    """Those that have none, by their ids."""
    keys = await bus.subjects(bus.names.registry, bus.names.schedules)
    tokens = ((key[key.rfind(".") + 1 :], key) for key in keys)
    left = sorted(one for one in tokens if one[0] not in ticking and (NEVER, one[0]) > start)
    for some in _parts(iter(left), size):
        entries = await bus.entries([key for _, key in some])
        for token, key in some:
            stored = entries.get(key)
            schedule = _decoded(stored)
            if stored is not None and schedule is not None and filter.passes(schedule):
                yield (NEVER, token), view(stored, schedule, now=now)


def _parts(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while some := list(islice(items, size)):
        yield some
        size = min(2 * size, _MOST_READ)


def _token(tick: str) -> str:
    return tick.rsplit(".", 3)[1]


def _decoded(stored: StoredMessage | None) -> Schedule | None:
    """An entry; None for one a newer program wrote: it is not ours to show."""
    if stored is None:
        return None
    try:
        return decode(Schedule, stored.payload)
    except DecodeError:
        return None
