"""event-router: turns events into runs of the functions whose triggers match, and keeps future events.

Owns no state but a copy of the functions' triggers, as fresh as the registry's leader at every batch. If it
dies before the runs are stored, the events are delivered again and make the same runs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from jetcron import dispatch
from jetcron.bus import MSG_ID, Bus, Delivery, Outgoing, StoredMessage
from jetcron.clock import Clock
from jetcron.dead_letters import bury
from jetcron.endings import Endings
from jetcron.errors import TryAgain
from jetcron.history import status_of
from jetcron.many import each
from jetcron.process import Process
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.codec import EVENT_HEADER, DecodeError, VersionError, decode, decode_event
from jetcron_protocol.ids import event_run_id
from jetcron_protocol.messages import CancelTrigger, Event, Failure, Function, Met, Run, Wait
from jetcron_protocol.subjects import InvalidName, pattern_matches

log = structlog.get_logger("jetcron.event-router")

BATCH = 500
WORKERS = 2
"""Batches in hand at one time: one is read and matched while another is being stored."""
_MEETING = 50
"""Events whose waits are looked for at one time: each may have very many."""
_REMEMBERED = 10_000
_HEADERS = 1024
"""Bytes a run's headers may take."""


@dataclass(slots=True)
class Triggers:
    """Which functions an event starts. Grows with the functions, never with events: the memory is bounded."""

    sequence: int = -1
    cancels: dict[str, Sequence[CancelTrigger]] = field(default_factory=dict)
    exact: dict[str, list[str]] = field(default_factory=dict)
    patterns: list[tuple[str, str]] = field(default_factory=list)
    _matched: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, function: Function) -> None:
        """Take in a function's triggers; those of an archived one do not count."""
        if function.state == "archived":
            return
        if function.cancel_on:
            self.cancels[function.id] = function.cancel_on
        for name in function.on:
            tokens = name.split(".")
            if "*" in tokens or tokens[-1] == ">":
                self.patterns.append((name, function.id))
            else:
                self.exact.setdefault(name, []).append(function.id)

    def match(self, name: str) -> tuple[str, ...]:
        """The functions an event of this name starts, each once."""
        found = self._matched.get(name)
        if found is None:
            ids = [
                *self.exact.get(name, ()),
                *(id for pattern, id in self.patterns if pattern_matches(pattern, name)),
            ]
            found = tuple(dict.fromkeys(ids))
            if len(self._matched) >= _REMEMBERED:
                self._matched.clear()
            self._matched[name] = found
        return found


class EventRouter:
    """Takes events, gives runs; future events it hands to the server to hold."""

    name = "event-router"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._process = process
        self._waits = Waits(bus, clock, settings)
        self._endings = Endings(bus, clock, settings, self._waits, by=self.name)
        self._triggers = Triggers()
        self._loading = asyncio.Lock()
        self._meeting = asyncio.Lock()
        """Batches meet waits one after another, in the order in which they came: the first event counts."""

    async def run(self) -> None:
        """Route events until told to stop."""
        take = self._process.take
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(take(self._names.events, self._names.event_router, self.handle, most=BATCH))
            group.create_task(
                take(self._names.later, self._names.event_router_later, self.handle_released, most=BATCH)
            )

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """One batch of events as users published them."""
        await self._route(deliveries, self._published)

    async def handle_released(self, deliveries: Sequence[Delivery]) -> None:
        """One batch of future events whose time has come."""
        await self._route(deliveries, _released)

    def _published(self, delivery: Delivery) -> Event:
        try:
            name = self._names.parse_event(delivery.subject)
        except InvalidName as error:
            raise DecodeError(f"Event: {error}") from None
        return decode_event(
            name, delivery.payload, delivery.headers, sequence=delivery.sequence, stored_at=delivery.stored_at
        )

    async def _route(self, deliveries: Sequence[Delivery], read: Callable[[Delivery], Event]) -> None:
        triggers = await self._current_triggers()
        now = self._clock.now()
        routed: list[_Routed] = []
        held: list[_Routed] = []
        for delivery in deliveries:
            try:
                event = read(delivery)
            except DecodeError as error:
                await self._bury(delivery, str(error))
                continue
            if event.at is not None and read is not _released and event.at - now > self._settings.lead_ms:
                future = dispatch.held_event(
                    self._names, event, self._settings.lead_ms, named=_named(delivery)
                )
                one = _Routed(delivery, event, (), [future])
                kind = held
            else:
                functions = triggers.match(event.name)
                log.debug("routed", name=event.name, id=event.id, functions=functions)
                runs = tuple(_run(id, event, delivery) for id in functions)
                one = _Routed(
                    delivery,
                    event,
                    runs,
                    [
                        dispatch.new_run(self._names, run, now=now, lead=self._settings.lead_ms)
                        for run in runs
                    ],
                )
                kind = routed
            longest = max((len(message.payload) for message in one.messages), default=0)
            if longest > self._bus.max_payload - _HEADERS:
                # Numbers take more room here than in JSON: what fitted the server may not fit it any more.
                await self._bury(
                    delivery, f"its run would have {longest} bytes; the server takes {self._bus.max_payload}"
                )
                continue
            kind.append(one)
        async with self._meeting:
            unmet = await self._apart(routed, lambda one: self._open_cancels(triggers, one))
            waited = await self._waits.waited_for({one.event.name for one in routed})
            meeting = [one for one in routed if one.event.name in waited]
            for start in range(0, len(meeting), _MEETING):
                unmet |= await self._meet(meeting[start : start + _MEETING])
        await self._process.hand_back([one.delivery for one in unmet])
        await self._store([one for one in routed if one not in unmet])
        await self._store(held)
        self._process.metrics.events.inc(len(deliveries))
        self._process.metrics.event_runs.inc(sum(len(one.messages) for one in routed))

    async def _apart(
        self, routed: "Sequence[_Routed]", work: "Callable[[_Routed], Awaitable[None]]"
    ) -> "set[_Routed]":
        """Those for which it could not be done now: they stop none of the others."""
        failed: set[_Routed] = set()

        async def one(item: _Routed) -> None:
            try:
                await work(item)
            except (TryAgain, DecodeError) as error:
                # The latter of a journal that a newer program wrote: a router that can read it will do it.
                log.warning("an event is handed back", name=item.event.name, reason=str(error))
                failed.add(item)

        await each(one, routed)
        return failed

    async def _open_cancels(self, triggers: Triggers, one: "_Routed") -> None:
        """Before a run is stored: what cancels it may come before it begins."""
        for run in one.runs:
            await self._waits.open_cancels_of_new(triggers.cancels.get(run.function, ()), run)

    async def _meet(self, routed: "Sequence[_Routed]") -> "set[_Routed]":
        """Wake or cancel the runs that wait for these events; those for which it could not be done now.

        Of several for one wait, the one that was published first meets it.
        """
        meetings: dict[str, list[tuple[_Routed, StoredMessage, Wait]]] = {}

        async def find(one: _Routed) -> None:
            for stored, wait in await self._waits.found_by(one.event):
                meetings.setdefault(stored.subject, []).append((one, stored, wait))

        failed = await self._apart(routed, find)

        async def in_turn(subject: str) -> None:
            for one, stored, wait in sorted(meetings[subject], key=lambda found: found[0].delivery.sequence):
                failed.update(await self._apart([one], lambda one: self._wake(one, stored, wait)))  # noqa: B023

        await each(in_turn, meetings)
        return failed

    async def _wake(self, one: "_Routed", stored: StoredMessage, wait: Wait) -> None:
        """Wake or cancel a run that waits for this event."""
        event = one.event
        if wait.met is None:
            # An event may name a time long before it was published, and counts for waits from when it was.
            at = max(event.at or 0, one.delivery.stored_at)
            # Twice delivered, or of a time before the wait: two clocks may differ by as much as the lead.
            if event.id in wait.seen or at < stored.stored_at - self._settings.lead_ms:
                return
            if wait.purpose == "cancel":
                text = f"the event {event.name!r} ({event.id}) cancels it"
                ended = await self._endings.cancel(
                    wait.function, wait.run, Failure(type="CancelledByEvent", message=text)
                )
                if ended is not None and status_of(ended.last) == "cancelled":
                    log.debug("cancelled", name=event.name, function=wait.function, run=wait.run)
                await self._waits.close(stored.subject)  # though the run had ended before
                return
            if not await self._waits.meet(stored, wait, Met(at=self._clock.now(), event=event)):
                return
        elif wait.met.event is None or wait.met.event.id != event.id:
            return  # another event was first
        log.debug("met", name=event.name, function=wait.function, run=wait.run, step=wait.step)
        await self._waits.wake(wait)

    async def _store(self, routed: "Sequence[_Routed]") -> None:
        """What each delivery leads to, and then its acknowledgement; hand back what could not be stored."""
        standing = set(await self._bus.publish_groups(one.messages for one in routed))
        for index, one in enumerate(routed):
            if index in standing:
                await one.delivery.ack()
        await self._process.hand_back(
            [one.delivery for index, one in enumerate(routed) if index not in standing]
        )

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        await bury(self._bus, self._process.metrics, delivery, "event", reason)
        await delivery.ack()

    async def _current_triggers(self) -> Triggers:
        """The triggers as of now: an event published after a registration was confirmed finds its function."""
        async with self._loading:
            last = await self._bus.last(self._names.registry, self._names.functions)
            sequence = last.sequence if last is not None else 0
            if sequence != self._triggers.sequence:
                self._triggers = await self._load(sequence)
            return self._triggers

    async def _load(self, sequence: int) -> Triggers:
        triggers = Triggers(sequence=sequence)
        keys = await self._bus.subjects(self._names.registry, self._names.functions)
        for key, stored in sorted((await self._bus.entries(keys)).items()):
            try:
                triggers.add(decode(Function, stored.payload))
            except VersionError as error:
                # Without it events would be taken for nobody's: a newer router must have them.
                raise TryAgain(0, 0, f"{key}: {error}") from None
            except DecodeError as error:
                log.error("a function's registry entry cannot be read", key=key, reason=str(error))
        log.debug("triggers loaded", functions=len(keys), sequence=sequence)
        return triggers


@dataclass(frozen=True, slots=True, eq=False)
class _Routed:
    """An event and what it leads to: runs, or a message that is held."""

    delivery: Delivery
    event: Event
    runs: tuple[Run, ...]
    messages: list[Outgoing]


def _released(delivery: Delivery) -> Event:
    return decode(Event, delivery.payload)


def _named(delivery: Delivery) -> bool:
    """Whether the event's id was given by its sender, and is not the sequence it is stored under."""
    return delivery.headers.get(EVENT_HEADER) == "1" or MSG_ID in delivery.headers


def _run(function: str, event: Event, delivery: Delivery) -> Run:
    """The run of one function for one event; the same after any redelivery."""
    return Run(
        run=event_run_id(function, event.name, event.id, stored_at=0 if _named(delivery) else event.ts),
        function=function,
        trigger="event",
        fire_at=event.at if event.at is not None else delivery.stored_at,
        event=event,
    )
