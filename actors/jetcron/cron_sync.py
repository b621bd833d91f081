"""cron-sync: applies sync commands to the registry, arms schedules, keeps the run consumers.

Owns the registry: nobody else writes definitions. Commands come one at a time. If it dies in one, the command
is delivered again: it finds its own sequence in the entries it wrote and repeats only what follows them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from jetcron import dispatch
from jetcron.bus import MAX_BATCH, TTL, Bus, Delivery, Outgoing, StoredMessage, fenced
from jetcron.clock import Clock
from jetcron.cron import CronError, parse
from jetcron.cycle import Entry, first_tick, successor_armed_from
from jetcron.errors import TryAgain, Unconfirmed, WrongSequence, leaves
from jetcron.journal import RunJournal
from jetcron.process import Process
from jetcron.settings import Settings
from jetcron_protocol import topology
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.messages import (
    AppEntry,
    Failure,
    Function,
    FunctionState,
    JournalEntry,
    Past,
    Replaced,
    Run,
    Schedule,
    ScheduleState,
    SyncCommand,
    SyncReply,
)
from jetcron_protocol.subjects import InvalidName, Names

log = structlog.get_logger("jetcron.cron-sync")

PAST_KEPT = 30 * topology.DAY
"""How long a replaced revision is kept, in seconds."""
FAR_OFF_MS = 60_000
"""A held tick of an older revision is purged when it is further away; a nearer one settles itself."""
_AT_ONCE = 32
"""Consumers made, or runs cancelled, at one time."""

T = TypeVar("T")


class Refused(Exception):
    """A command that cannot be applied; the reasons reach the caller and the dead stream."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


@dataclass(slots=True)
class Applied:
    """What a command has done so far, for its reply."""

    revisions: dict[str, int] = field(default_factory=dict)
    next: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class CronSync:
    """Takes sync commands, gives registry entries, first ticks and run consumers."""

    name = "cron-sync"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._process = process

    async def run(self) -> None:
        """Apply commands until told to stop."""
        await self._process.take(self._names.work, self._names.cron_sync, self.handle, most=1)

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Apply one command after the other; each is acknowledged once all it asks for is stored."""
        for delivery in deliveries:
            try:
                command = decode(SyncCommand, delivery.payload)
            except DecodeError as error:
                await self._bury(delivery, str(error))
                continue
            applied = Applied()
            errors: list[str] = []
            try:
                await self._apply(command, delivery, applied)
            except Refused as refusal:
                errors = refusal.reasons
                await self._bury(delivery, f"refused: {refusal}", acknowledge=False)
            await self._reply(command, applied, errors)
            await delivery.ack()
            outcome = "refused" if errors else "applied"
            self._process.metrics.commands.labels(command.command, outcome).inc()
            log.info(
                outcome,
                command=command.command,
                app=command.app,
                changed=len(applied.revisions),
                errors=errors or None,
            )

    async def _bury(self, delivery: Delivery, reason: str, *, acknowledge: bool = True) -> None:
        await self._bus.store(dispatch.undecodable(self._names, delivery, "sync", reason, self._clock.now()))
        self._process.metrics.dead.labels("sync").inc()
        log.error("a sync command went to the dead stream", subject=delivery.subject, reason=reason)
        if acknowledge:
            await delivery.ack()

    async def _reply(self, command: SyncCommand, applied: Applied, errors: list[str]) -> None:
        if command.reply:
            reply = SyncReply(
                id=command.id,
                revisions=applied.revisions,
                next=applied.next,
                errors=errors,
                warnings=applied.warnings,
            )
            await self._bus.post(command.reply, encode(reply))

    async def _apply(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        match command.command:
            case "register":
                await self._register(command, delivery, applied)
            case "pause":
                await self._set_state(command.items, "paused", delivery, applied)
            case "unpause":
                await self._set_state(command.items, "active", delivery, applied)
            case "archive":
                await self._set_state(command.items, "archived", delivery, applied)
            case "ended":
                await self._ended(command, delivery, applied)

    # Register.

    async def _register(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        app = await self._app(command.app)
        if app is not None and not command.force and app.command != delivery.sequence:
            if app.hash == command.hash:
                return
            since = self._clock.now() - self._settings.rolled_back_within_ms
            if any(old.hash == command.hash and old.at > since for old in app.replaced):
                applied.warnings.append(
                    f"these definitions of {command.app} were replaced by newer ones a short while ago and do not "
                    "come back by themselves; 'jetcron sync --force' brings them back"
                )
                return
        _check(command)
        wanted = {function.id: function for function in command.functions}
        known = [*wanted, *(id for id in (app.functions if app else []) if id not in wanted)]
        found = await self._functions(known)
        gone = [
            replace(function, state="archived", command=delivery.sequence)
            for id, function in found.items()
            if id not in wanted and (function.state != "archived" or function.command == delivery.sequence)
        ]
        kept = [
            replace(function, state=_kept_state(found.get(function.id)), command=delivery.sequence)
            for function in wanted.values()
        ]
        await self._consumers(kept, found)
        await self._put_functions(gone, found)  # before their runs are cancelled: nobody starts another
        await self._put_schedules(_schedules([*kept, *gone], found), delivery, applied)
        for function in gone:
            await self._retire(function)
        # Only now: the entries these replace say which schedules a function had, should we die before here.
        await self._put_functions(kept, found)
        await self._put_app(command, delivery, app)

    async def _app(self, app: str) -> AppEntry | None:
        stored = await self._bus.entry(self._names.app_key(app))
        return None if stored is None else decode(AppEntry, stored.payload)

    async def _put_app(self, command: SyncCommand, delivery: Delivery, app: AppEntry | None) -> None:
        if app is not None and app.command == delivery.sequence:
            return
        now = self._clock.now()
        since = now - self._settings.rolled_back_within_ms
        replaced = [old for old in app.replaced if old.at > since and old.hash != command.hash] if app else []
        if app is not None and app.hash != command.hash:
            replaced.append(Replaced(hash=app.hash, at=now))
        entry = AppEntry(
            app=command.app,
            hash=command.hash or "",
            functions=[function.id for function in command.functions],
            replaced=replaced,
            command=delivery.sequence,
        )
        await self._bus.publish(self._names.app_key(command.app), encode(entry))

    async def _functions(self, ids: Sequence[str]) -> dict[str, Function]:
        keys = {self._names.function_key(id): id for id in ids}
        entries = await self._bus.entries(list(keys))
        return {keys[key]: decode(Function, entry.payload) for key, entry in entries.items()}

    async def _put_functions(self, written: Sequence[Function], found: dict[str, Function]) -> None:
        changed = [f for f in written if _unlike(f, found.get(f.id))]
        messages = [Outgoing(self._names.function_key(f.id), encode(f)) for f in changed]
        for start in range(0, len(messages), MAX_BATCH):
            await self._bus.publish_atomic(messages[start : start + MAX_BATCH])

    async def _consumers(self, written: Sequence[Function], found: dict[str, Function]) -> None:
        """A consumer for every function that runs; before any run of it can be published."""
        wanted = [f for f in written if f.state != "archived" and _needs_consumer(f, found.get(f.id))]

        async def put(function: Function) -> None:
            await self._bus.apply_consumer(
                *topology.run_consumer(self._names, function.id, function.concurrency, self._settings.limits)
            )

        await _each(put, wanted)

    # Pause, unpause, archive a function.

    async def _set_state(
        self, ids: Sequence[str], state: FunctionState, delivery: Delivery, applied: Applied
    ) -> None:
        found = await self._functions(ids)
        missing = [id for id in ids if id not in found]
        if missing:
            raise Refused(
                *(f"there is no function {id!r}; 'jetcron functions list' shows them" for id in missing)
            )
        archived = [
            id for id in ids if found[id].state == "archived" and found[id].command != delivery.sequence
        ]
        if archived and state != "archived":
            raise Refused(*(f"{id} is archived; registering its app again brings it back" for id in archived))
        written = [replace(found[id], state=state, command=delivery.sequence) for id in ids]
        await self._put_functions(written, found)
        await self._put_schedules(_schedules(written, found), delivery, applied)
        for function in written:
            if state == "archived":
                await self._retire(function)
            else:
                await self._bus.pause_consumer(
                    self._names.work, self._names.run_consumer(function.id), paused=state == "paused"
                )

    async def _ended(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        """A revision that fired for the last time; ignored when a newer one is in force."""
        for schedule in command.items:
            stored = await self._bus.entry(self._names.schedule_key(schedule))
            if stored is None or stored.sequence != command.revision:
                continue
            entry = decode(Schedule, stored.payload)
            if entry.state == "active":
                await self._put_schedules([replace(entry, state="ended")], delivery, applied)

    async def _retire(self, function: Function) -> None:
        """Cancel what an archived function has ready and held, then delete its consumer."""

        async def cancel(message: StoredMessage) -> None:
            await self._cancel(message.payload, function)

        subjects = (self._names.runs_later_of(function.id), self._names.run_ready(function.id))
        for subject in subjects:
            async for page in self._bus.pages(self._names.work, subject):
                await _each(cancel, page)
        await self._bus.delete_consumer(self._names.work, self._names.run_consumer(function.id))
        for subject in subjects:
            await self._bus.purge(self._names.work, subject)

    async def _cancel(self, payload: bytes, function: Function) -> None:
        """Journal one run as cancelled, unless it finished or somebody is executing it: that one finishes."""
        try:
            run = decode(Run, payload)
            journal = RunJournal(self._bus, function.id, run.run, patience=10)
            history = await journal.read()
        except DecodeError as error:
            log.error("a run of an archived function cannot be read", function=function.id, reason=str(error))
            return
        if history.finished or history.claim is not None:
            return
        entry = JournalEntry(
            entry="cancelled",
            turn=run.turn,
            at=self._clock.now(),
            executor=self.name,
            error=Failure(type="Archived", message=f"{function.id} was archived before it ran"),
        )
        try:
            await journal.finish(entry, keep=self._settings.keep_failed, keep_steps=True)
        except WrongSequence:
            pass  # somebody claimed it meanwhile: it runs
        except Unconfirmed as error:
            raise TryAgain(0, 0, str(error)) from None

    # Schedules.

    async def _put_schedules(self, wanted: Sequence[Schedule], delivery: Delivery, applied: Applied) -> None:
        """Write what differs, each replaced entry to `past` in the same batch; then arm what was written."""
        half = MAX_BATCH // 2
        for start in range(0, len(wanted), half):
            part = wanted[start : start + half]
            while True:
                try:
                    await self._put_part(part, delivery, applied)
                    break
                except WrongSequence as error:
                    # Another copy of us, with this same command: read again what it wrote.
                    log.info("the registry moved, reading again", reason=str(error))

    async def _put_part(self, wanted: Sequence[Schedule], delivery: Delivery, applied: Applied) -> None:
        keys = {self._names.schedule_key(schedule.id): schedule for schedule in wanted}
        stored = await self._bus.entries(list(keys))
        found = {key: Entry(decode(Schedule, entry.payload), entry.sequence) for key, entry in stored.items()}
        batch: list[Outgoing] = []
        written: list[tuple[int, Schedule, Entry | None]] = []
        armed: list[Entry] = []
        replaced: list[Entry] = []
        now = self._clock.now()
        for key, schedule in keys.items():
            previous = found.get(key)
            if previous is not None and previous.schedule.command == delivery.sequence:
                armed.append(previous)
                replaced.append(previous)
                continue
            if previous is None and schedule.state in ("archived", "deleted"):
                continue
            if previous is not None and _same(previous.schedule, schedule):
                continue
            entry = replace(
                schedule,
                armed_from=successor_armed_from(
                    previous.schedule if previous else None,
                    stored_at=delivery.stored_at,
                    now=now,
                    settle=self._settings.lead_ms + self._settings.settle_ms,
                ),
                command=delivery.sequence,
            )
            if previous is not None:
                past = Past(schedule=previous.schedule, end=entry.armed_from)
                batch.append(
                    Outgoing(
                        self._names.past_key(schedule.id, previous.revision),
                        encode(past),
                        {TTL: f"{PAST_KEPT}s"},
                    )
                )
            written.append((len(batch), entry, previous))
            batch.append(Outgoing(key, encode(entry), fenced(previous.revision if previous else 0)))
        last = await self._bus.publish_atomic(batch)
        first = last - len(batch) + 1
        for position, schedule, previous in written:
            revision = Entry(schedule, first + position)
            armed.append(revision)
            if previous is not None and previous.schedule.state == "active":
                replaced.append(revision)
        await self._arm(armed, applied)
        for revision in replaced:
            await self._purge_far_off(revision, now)

    async def _arm(self, entries: Sequence[Entry], applied: Applied) -> None:
        groups: list[list[Outgoing]] = []
        for entry in entries:
            applied.revisions[entry.schedule.id] = entry.revision
            tick = first_tick(entry)
            if tick is not None:
                applied.next[entry.schedule.id] = tick.at
                groups.append([dispatch.held_tick(self._names, tick, self._settings.lead_ms)])
        standing = await self._bus.publish_groups(groups)
        if len(standing) < len(groups):
            raise TryAgain(0, 0, f"{len(groups) - len(standing)} first ticks were not confirmed")

    async def _purge_far_off(self, entry: Entry, now: int) -> None:
        """Ticks of older revisions: left to stand, they would hide that the chain of this one is broken."""
        held = self._names.ticks_of(entry.schedule.id, state="held")
        for subject in await self._bus.subjects(self._names.work, held):
            tick = self._names.parse_tick(subject)
            if tick.revision < entry.revision and tick.at - now > FAR_OFF_MS:
                await self._bus.purge(self._names.work, subject)


async def _each(work: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Do this for every item, some at one time; storage that does not answer is one `TryAgain`."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> None:
        async with gate:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(one(item))
    except ExceptionGroup as errors:
        found = list(leaves(errors))
        if all(isinstance(error, TryAgain) for error in found):
            raise found[0] from None
        raise


def _check(command: SyncCommand) -> None:
    """Refuse definitions nobody could run: every fault at once."""
    problems = []
    for function in command.functions:
        try:
            Names().run_consumer(function.id)
            for number, cron in enumerate(function.cron, 1):
                parse(
                    cron.expression,
                    timezone=cron.timezone,
                    dst=cron.dst,
                    seed=schedule_id(function.id, number),
                )
        except (CronError, InvalidName) as error:
            problems.append(f"{function.id}: {error}")
        if not function.id.startswith(f"{command.app}."):
            problems.append(f"{function.id} is not a function of the app {command.app!r}")
    if problems:
        raise Refused(*problems)


def schedule_id(function: str, number: int) -> str:
    """The schedule of a function's n-th cron trigger, from 1."""
    return function if number == 1 else f"{function}:{number}"


def _kept_state(found: Function | None) -> FunctionState:
    """A paused function stays paused across registrations; an archived one comes back."""
    return "paused" if found is not None and found.state == "paused" else "active"


def _needs_consumer(function: Function, found: Function | None) -> bool:
    """Whether its consumer may be absent or another: also when this same command wrote the entry and died."""
    if found is None or found.state == "archived":
        return True
    return found.concurrency != function.concurrency or found.command == function.command


def _unlike(function: Function, found: Function | None) -> bool:
    return found is None or replace(function, command=0) != replace(found, command=0)


def _same(one: Schedule, other: Schedule) -> bool:
    """Whether two entries say the same, whoever wrote them and when."""
    return replace(one, armed_from=0, command=0) == replace(other, armed_from=0, command=0)


_STATES: dict[FunctionState, ScheduleState] = {"active": "active", "paused": "paused", "archived": "archived"}


def _schedules(written: Sequence[Function], found: dict[str, Function]) -> list[Schedule]:
    """The schedules of these functions' cron triggers; those a function no longer has are archived."""
    schedules = []
    for function in written:
        before = found.get(function.id)
        for number, cron in enumerate(function.cron, 1):
            schedules.append(
                Schedule(
                    id=schedule_id(function.id, number),
                    function=function.id,
                    cron=cron.expression,
                    timezone=cron.timezone,
                    dst=cron.dst,
                    jitter=function.jitter,
                    catch_up=function.catch_up,
                    state=_STATES[function.state],
                )
            )
        for number in range(len(function.cron) + 1, len(before.cron) + 1 if before else 0):
            cron = before.cron[number - 1] if before else function.cron[0]
            schedules.append(
                Schedule(
                    id=schedule_id(function.id, number),
                    function=function.id,
                    cron=cron.expression,
                    timezone=cron.timezone,
                    dst=cron.dst,
                    state="archived",
                )
            )
    return schedules
