"""The registry of apps, functions and schedules, as cron-sync writes it: fenced, and never back in time.

Owns the rule that a command changes nothing a newer command wrote: every write expects the entry it has read,
and an entry that names a later command is left as it is. If the process dies between a write and what
follows it, the command comes again, finds its own sequence in the entry and repeats only what follows.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import structlog

from jetcron import dispatch
from jetcron.bus import MAX_BATCH, TTL, Bus, Delivery, Outgoing, StoredMessage, fenced
from jetcron.carried import PAST_KEPT, Copy, keep, note_restored
from jetcron.clock import Clock
from jetcron.cycle import Entry, first_tick, next_occurrence, successor_armed_from
from jetcron.errors import TryAgain
from jetcron.intents import Announced, Intents
from jetcron.many import each
from jetcron.mending import carry_out, planned, standing, without_tick
from jetcron.revisions import same, settled
from jetcron.settings import Settings
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import AppEntry, Function, Schedule, replace
from jetcron_protocol.subjects import InvalidName, TickName

_PART = 250
"""Revisions replaced in one batch: of a large command one part is made here while another is at the server."""
_PARTS_AT_ONCE = 3
_LIMITED = 10
"""As many where there is a `max_runs`: to find the last of them may take 0.05 s, and an intent counts for seconds."""
FAR_OFF_MS = 60_000
"""A held tick of an older revision is purged when it is further away; a nearer one settles itself."""

log = structlog.get_logger("jetcron.registry")

M = TypeVar("M")


class Held(NamedTuple, Generic[M]):
    """What a key holds: None when it is absent or deleted, and the sequence a write to it must expect."""

    value: M | None = None
    sequence: int = 0
    stored: bytes = b""
    """The value as it is stored."""


@dataclass(slots=True)
class Applied:
    """What a command has done so far, for its reply."""

    revisions: dict[str, int] = field(default_factory=dict)
    next: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Registry:
    """The registry's entries. Raises `DecodeError` for one that cannot be read, `WrongSequence` for one that moved."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._intents = Intents(bus)

    async def app(self, app: str) -> Held[AppEntry]:
        """An app's entry."""
        return _held(AppEntry, await self._bus.last(self._names.registry, self._names.app_key(app)))

    async def functions(self, ids: Iterable[str]) -> dict[str, Held[Function]]:
        """The entries of these functions; one for each, absent or not."""
        keys = {self._names.function_key(id): id for id in ids}
        stored = await self._bus.multi_last_all(self._names.registry, list(keys))
        return {id: _held(Function, stored.get(key)) for key, id in keys.items()}

    async def schedules(self, ids: Iterable[str]) -> dict[str, Held[Schedule]]:
        """The entries of these schedules; one for each, absent or not."""
        keys = {self._names.schedule_key(id): id for id in ids}
        stored = await self._bus.multi_last_all(self._names.registry, list(keys))
        return {id: _held(Schedule, stored.get(key)) for key, id in keys.items()}

    async def put_app(self, entry: AppEntry, held: Held[AppEntry]) -> None:
        """Write an app's entry in place of the one read."""
        await self._bus.publish(self._names.app_key(entry.app), encode(entry), fenced(held.sequence))

    async def put_functions(self, written: Iterable[Function], held: dict[str, Held[Function]]) -> None:
        """Write those that differ from what was read, and that no newer command wrote."""
        messages = [
            Outgoing(
                self._names.function_key(function.id), encode(function), fenced(held[function.id].sequence)
            )
            for function in written
            if _differs(function, held[function.id].value)
        ]
        for start in range(0, len(messages), MAX_BATCH):
            await self._bus.publish_atomic(messages[start : start + MAX_BATCH])

    async def check_owners(self, wanted: Sequence[Schedule]) -> None:
        """Raises `InvalidName` with every id that is another's: one of code where data stands, or the reverse."""
        held = await self.schedules([one.id for one in wanted])
        taken = [fault for one in wanted if (fault := _taken(one, held[one.id].value))]
        if taken:
            raise InvalidName("; ".join(taken))

    async def put_schedules(
        self,
        wanted: Sequence[Schedule],
        delivery: Delivery,
        applied: Applied,
        *,
        held: Mapping[str, Held[Schedule]] | None = None,
        over: bool = False,
    ) -> None:
        """Announce what is to be replaced; write what differs, each replaced entry to `past` in the same batch; arm it.

        `held` is what the caller has read, or believes: a write where something else stands is refused. `over`: what
        is replaced has no tick any more, and needs none.
        """
        if held is None:
            held = await self.schedules([one.id for one in wanted])
        changed = self._foresee(wanted, held, delivery)
        in_force = {} if over else _in_force(changed, held)
        failed: list[Exception] = []

        async def put(part: Sequence[Schedule]) -> None:
            replaced = [in_force[one.id] for one in part if one.id in in_force]
            async with self._intents.announced(replaced) as announced:
                now, ticks = await asyncio.gather(self._now(after=announced), self._mend(replaced))
                await self._put_part(part, held, changed, delivery, applied, ticks, announced, now)

        async def put_beside(part: Sequence[Schedule]) -> None:
            if failed:
                return
            try:
                await put(part)
            except Exception as error:  # noqa: BLE001 - raised once what the others have written is armed
                failed.append(error)

        # To find the last of a number of runs takes its time: such parts go by themselves.
        limited = bool(in_force) and any(one.max_runs is not None for one in wanted)
        size = _LIMITED if limited else _size(wanted, held, in_force)
        parts = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        await each(put_beside, parts, at_once=1 if limited else _PARTS_AT_ONCE)
        if failed:
            raise failed[0]

    def _foresee(
        self, wanted: Sequence[Schedule], held: Mapping[str, Held[Schedule]], delivery: Delivery
    ) -> set[str]:
        """The ids of those that differ from what is held, and are to be written.

        Raises what a part of them would be refused for, before one is: `InvalidName`, `CronError`.
        """
        changed = set()
        now = self._clock.now()
        for schedule in wanted:
            previous = held[schedule.id].value
            if previous is not None and previous.command == delivery.sequence:
                continue
            if taken := _taken(schedule, previous):
                raise InvalidName(taken)
            if not _replaces(schedule, previous, delivery.sequence):
                continue
            changed.add(schedule.id)
            if schedule.state == "active":
                next_occurrence(schedule, now)
            if schedule.max_runs is not None and previous is not None:
                next_occurrence(previous, now)
        return changed

    async def _now(self, *, after: Announced) -> int:
        """The time as the server has it, from which every actor's clock is measured.

        After an intent it tells itself: what was turned before that was stored was released by then, and an estimate of
        ours is off by as long as we, or its answer, once took.
        """
        if after.revisions:
            return (await self._bus.stream_state(self._names.registry)).now
        return round(self._clock.now() - self._bus.clock_offset_ms)

    async def _mend(self, replaced: Sequence[Entry]) -> dict[str, list[TickName]]:
        """Restart the broken chains of what is to be replaced: once it is, nobody would see that they broke.

        Before the write, so that a command that comes again finds them whole. A chain that is restarted walks on to
        the end of its revision, as any does. Returns the ticks that stand of each of the others.
        """
        ticks = await standing(self._bus, [one.schedule.id for one in replaced])
        await self._notice_lost(replaced, ticks)
        broken = await without_tick(self._bus, replaced, ticks)
        mended, _ = await planned(self._bus, self._clock, broken)
        await carry_out(self._bus, mended)
        for one in mended:
            log.error("a broken cycle was restarted", schedule=one.schedule, cause="replaced")
            del ticks[one.schedule]
        return ticks

    async def _notice_lost(self, replaced: Sequence[Entry], ticks: Mapping[str, Sequence[TickName]]) -> None:
        """A tick of a later revision than the entry: what it is of was lost when the registry was restored."""
        later = [
            tick.revision
            for one in replaced
            for tick in ticks[one.schedule.id]
            if tick.revision > one.revision
        ]
        if later:
            await note_restored(self._bus, max(later), self._clock.now())

    async def _put_part(
        self,
        wanted: Sequence[Schedule],
        found: Mapping[str, Held[Schedule]],
        changed: Collection[str],
        delivery: Delivery,
        applied: Applied,
        ticks: Mapping[str, Sequence[TickName]],
        announced: Announced,
        now: int,
    ) -> None:
        batch = announced.over()
        written: list[tuple[int, Schedule, Schedule | None]] = []
        mine: list[Entry] = []
        successors: list[Entry] = []
        for schedule in wanted:
            held = found[schedule.id]
            previous = held.value
            if previous is not None and previous.command == delivery.sequence:
                # Written by this very command, which died before what follows: repeat that.
                mine.append(Entry(previous, held.sequence))
                successors.append(mine[-1])
                continue
            if schedule.id not in changed:
                if previous is not None and previous.origin == "data":
                    self._stands(Entry(previous, held.sequence), now, applied)
                continue
            entry = self._successor(schedule, previous, delivery, now)
            if previous is not None:
                # Before what replaces it: should the server get no further than this, nothing was replaced.
                end = entry.armed_from
                kept = keep(previous, end, now)
                batch.append(
                    dispatch.past(self._names, schedule.id, held.sequence, held.stored, end, keep=kept)
                )
            written.append((len(batch), entry, previous))
            batch.append(self._entry(entry, held.sequence))
        announced.check(self._clock)
        began = self._clock.monotonic()
        first = await self._bus.publish_atomic(batch) - len(batch) + 1
        self._intents.ended(announced, first, began)
        for position, entry, previous in written:
            mine.append(Entry(entry, first + position))
            if previous is not None and previous.state == "active":
                successors.append(mine[-1])
        copies = {entry.id: Copy(batch[position].payload, now) for position, entry, _ in written}
        far = {one.schedule.id: _far_off(one, ticks.get(one.schedule.id, ()), now) for one in successors}
        left = await self._arm(mine, copies, far, applied)
        await each(self._purge, [*left, *(await self._turned(successors, far, now))])

    async def _turned(
        self, successors: Sequence[Entry], far: Mapping[str, Sequence[TickName] | None], now: int
    ) -> list[TickName]:
        """The far off ticks of those that had a near one: it may have been turned, and the next one be held."""
        unknown = {one.schedule.id: one for one in successors if far[one.schedule.id] is None}
        stand = await standing(self._bus, unknown)
        return [tick for id, ticks in stand.items() for tick in ticks if _is_far_off(tick, unknown[id], now)]

    def _entry(self, schedule: Schedule, expected: int) -> Outgoing:
        headers = fenced(expected)
        if schedule.state == "deleted":
            headers[TTL] = f"{PAST_KEPT}s"
        return Outgoing(self._names.schedule_key(schedule.id), encode(schedule), headers)

    def _stands(self, entry: Entry, now: int, applied: Applied) -> None:
        """There is nothing to write: say what is in force."""
        schedule = entry.schedule
        applied.revisions[schedule.id] = entry.revision
        following = next_occurrence(schedule, max(now, schedule.armed_from))
        if schedule.state == "active" and following is not None:
            applied.next[schedule.id] = following

    def _successor(
        self, schedule: Schedule, previous: Schedule | None, delivery: Delivery, now: int
    ) -> Schedule:
        armed_from = successor_armed_from(
            previous,
            stored_at=delivery.stored_at,
            now=now,
            settle=self._settings.lead_ms + self._settings.settle_ms,
        )
        entry = replace(schedule, armed_from=armed_from, command=delivery.sequence)
        return settled(entry, previous) if schedule.origin == "data" else entry

    async def _arm(
        self,
        entries: Sequence[Entry],
        copies: Mapping[str, Copy],
        far: Mapping[str, Sequence[TickName] | None],
        applied: Applied,
    ) -> list[TickName]:
        """Hold the first tick of each; one of the `far` ones goes in the step that stores it. Returns the others."""
        groups: list[list[Outgoing]] = []
        left: list[TickName] = []
        for entry in entries:
            id = entry.schedule.id
            applied.revisions[id] = entry.revision
            tick = first_tick(entry)
            old = list(far.get(id) or ())
            if tick is not None:
                applied.next[id] = tick.at
                if id in copies:
                    tick = copies[id].on(tick)
                instead_of = old.pop() if old else None
                lead = self._settings.lead_ms
                groups.append([dispatch.held_tick(self._names, tick, lead, instead_of=instead_of)])
            left += old
        stored = await self._bus.publish_groups(groups)
        if len(stored) < len(groups):
            raise TryAgain(0, 0, f"{len(groups) - len(stored)} first ticks were not confirmed")
        return left

    async def _purge(self, tick: TickName) -> None:
        await self._bus.purge(self._names.work, self._names.tick_held(tick.schedule, tick.revision, tick.at))


def _far_off(successor: Entry, before: Sequence[TickName], now: int) -> list[TickName] | None:
    """Which of the ticks that stood before this revision it governs; None where one of them, or none, was near."""
    if before and all(tick.at > _far(successor, now) for tick in before):
        return [tick for tick in before if _is_far_off(tick, successor, now)]
    return None


def _is_far_off(tick: TickName, successor: Entry, now: int) -> bool:
    """Whether it is an older revision's, of this one's time: left to stand, it would hide that this chain broke."""
    return tick.state == "held" and tick.revision < successor.revision and tick.at > _far(successor, now)


def _far(successor: Entry, now: int) -> int:
    return max(now + FAR_OFF_MS, successor.schedule.armed_from)


def _held(kind: type[M], stored: StoredMessage | None) -> Held[M]:
    if stored is None:
        return Held()
    if stored.deleted:
        return Held(None, stored.sequence)
    return Held(decode(kind, stored.payload), stored.sequence, stored.payload)


def _differs(function: Function, found: Function | None) -> bool:
    if found is None:
        return True
    return found.command <= function.command and replace(function, command=0) != replace(found, command=0)


def _in_force(ids: Iterable[str], held: Mapping[str, Held[Schedule]]) -> dict[str, Entry]:
    """The active revisions among what is held of these, by the schedule's id."""
    return {
        id: Entry(one.value, one.sequence)
        for id in ids
        if (one := held[id]).value is not None and one.value.state == "active"
    }


def _size(
    wanted: Sequence[Schedule], held: Mapping[str, Held[Schedule]], in_force: Mapping[str, Entry]
) -> int:
    """How many go in one part: what takes the place of nothing in force goes whole, as far as a batch holds it.

    Each with what it replaces, if that is there.
    """
    if in_force:
        return _PART
    return MAX_BATCH if all(held[one.id].value is None for one in wanted) else MAX_BATCH // 2


def _replaces(schedule: Schedule, previous: Schedule | None, command: int) -> bool:
    """Whether there is something to write: nothing for what is the same, newer, or gone already."""
    if previous is None:
        return schedule.state not in ("archived", "deleted")
    if previous.command >= command:
        return False
    if schedule.origin == "data":
        return not same(schedule, previous)
    return replace(schedule, armed_from=0, command=0) != replace(previous, armed_from=0, command=0)


def _taken(schedule: Schedule, previous: Schedule | None) -> str | None:
    """What is to be said if a cron trigger in code would take the place of a schedule somebody created under its id."""
    if previous is None or previous.state == "deleted" or previous.origin == schedule.origin:
        return None
    return (
        f"the schedule id {schedule.id!r} is taken by one created as data; delete that one, or give the function "
        "another id"
    )
