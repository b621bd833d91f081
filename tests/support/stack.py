"""Jetcron on a real server, in the test's own process: topology, actors, what they wrote, waiting for it.

Owns the settings tests run under, which are the real ones made fast, and the actors it started: each has a
connection and a process of its own, and is stopped, or killed, with the stack. Nothing here sleeps blindly:
what is waited for is listened to, or asked for until it is so.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from unittest import mock

from jetcron.app import App
from jetcron.bus import Bus, Delivery, StoredMessage, fenced
from jetcron.clock import Clock, SystemClock
from jetcron.cron_sync import CronSync
from jetcron.cron_tick import CronTick
from jetcron.errors import BusError, TryAgain
from jetcron.event_router import EventRouter
from jetcron.executor import Executor
from jetcron.health_checker import HealthChecker
from jetcron.process import Actor, Process, run_actor
from jetcron.registration import register
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode, unpack
from jetcron_protocol.messages import DeadLetter, JournalEntry, SyncReply
from jetcron_protocol.subjects import Names
from tests.support.faults import Die, Fault, FaultyBus, Killed, LoseAnswer, Refuse, was_killed
from tests.support.nats_server import NatsServer

PATIENCE = 20.0
"""Seconds a wait may take before the test fails: far more than anything takes here."""
ACTORS: dict[str, type[Any]] = {
    actor.name: actor for actor in (CronSync, CronTick, EventRouter, HealthChecker)
}
FAST: dict[str, Any] = {
    "lead": 0.5,
    "settle": 0.25,
    "ack_wait": 2.0,
    "executor_beat": 0.3,
    "executor_ttl": 2.0,
    "sweep_every": 1,
    "repair_grace": 1.0,
    "canary_every": 0,
    "grace": 5.0,
    "storage": "memory",
}


def fast_settings(server: NatsServer, namespace: str, **more: Any) -> Settings:
    """Settings for a test: the server's address, the namespace, everything that waits made short."""
    return Settings.load(**{"nats_url": server.url, "namespace": namespace} | FAST | more)


async def until(
    condition: Callable[[], Any], *, patience: float = PATIENCE, what: str = "the condition"
) -> Any:
    """Ask again and again until `condition`, plain or async, gives something true; returns that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while True:
                found = condition()
                if isinstance(found, Awaitable):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.01)
    raise AssertionError(f"{what} was not so within {patience:g} s")


@dataclass(eq=False)
class Running:
    """An actor that runs: its task, and its own bus and process."""

    name: str
    task: "asyncio.Task[None]"
    bus: FaultyBus
    process: Process
    actor: Any

    async def ready(self) -> None:
        """Wait until it has pulled, as /readyz would say."""
        await until(self._ready, what=f"{self.name} ready")

    def _ready(self) -> bool:
        if self.task.done():
            self.task.result()
        return self.process.unready() is None

    async def stop(self) -> None:
        """Tell it to stop, as SIGTERM would, and wait until it has; raises what broke it."""
        self.process.stopping.set()
        async with asyncio.timeout(PATIENCE):
            await self.task

    async def kill(self) -> None:
        """End it at once: nothing more of it reaches the server."""
        self.bus.kill()
        self.task.cancel()
        (ended,) = await asyncio.gather(self.task, return_exceptions=True)
        if isinstance(ended, BaseException) and not (
            isinstance(ended, asyncio.CancelledError) or was_killed(ended)
        ):
            raise ended


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal entry as it was published."""

    function: str
    run: str
    entry: JournalEntry


@dataclass(slots=True)
class Journal:
    """Every journal entry since the stack started, in the order it was published."""

    stored: Callable[[], Awaitable[None]]
    """Waits until what was heard so far is stored, or refused."""
    entries: list[Entry] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def of(self, kind: str = "", *, run: str = "", function: str = "") -> list[Entry]:
        """Those of one kind, run or function."""
        return [
            one
            for one in self.entries
            if kind in ("", one.entry.entry) and run in ("", one.run) and function in ("", one.function)
        ]

    async def wait(self, kind: str, count: int = 1, *, run: str = "", function: str = "") -> list[Entry]:
        """The entries of one kind, once there are `count` of them, and they are stored."""

        def enough() -> bool:
            return len(self.of(kind, run=run, function=function)) >= count

        try:
            async with asyncio.timeout(PATIENCE), self.changed:
                await self.changed.wait_for(enough)
        except TimeoutError:
            seen = [(one.function, one.entry.entry) for one in self.entries]
            raise AssertionError(
                f"waited for {count} {kind!r} entries {function} {run}; there are {seen}"
            ) from None
        await self.stored()
        return self.of(kind, run=run, function=function)


class Stack:
    """A namespace on a server with its topology applied, and the actors a test runs in it.

    An async context manager. `bus` is the test's own connection; it is nobody's actor.
    """

    def __init__(self, server: NatsServer, namespace: str | None = None, **settings: Any) -> None:
        self.server = server
        self.settings = fast_settings(server, namespace or f"t{uuid.uuid4().hex[:12]}", **settings)
        self.names = self.settings.names
        self.clock = SystemClock()
        self.bus = FaultyBus(self.settings, name="test")
        self.journal = Journal(self._journal_is_stored)
        self.running: list[Running] = []
        self._cleanup = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(mock.patch("jetcron.process.Bus", FaultyBus))
            stack.enter_context(mock.patch("jetcron.executor.worker.HAND_BACK_SECONDS", 0.3))
            # It is for processes that have one actor and live long.
            stack.enter_context(mock.patch("jetcron.process._calm_collector", create=True))
            await stack.enter_async_context(self.bus)
            await self.bus.apply_topology()
            heard = await stack.enter_async_context(self.bus.listen(self.names.journal_all))
            listener = asyncio.create_task(self._note(heard))
            stack.callback(listener.cancel)
            stack.push_async_callback(self._stop_all)
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    async def _note(self, heard: "asyncio.Queue[tuple[str, bytes]]") -> None:
        while True:
            subject, payload = await heard.get()
            function, run = self.names.parse_journal(subject)
            if not run.startswith("gap-"):
                async with self.journal.changed:
                    with contextlib.suppress(DecodeError):
                        self.journal.entries.append(Entry(function, run, decode(JournalEntry, payload)))
                    self.journal.changed.notify_all()

    async def _journal_is_stored(self) -> None:
        """The server passes a message on before it has stored it, but stores those of a stream in their order."""
        with contextlib.suppress(BusError):
            # Refused, once it is its turn; on a subject nobody listens to. No write that a fault may be armed for.
            subject = f"{self.names.namespace}.lane.barrier"
            await Bus.request(self.bus, subject, headers=fenced(2**53))

    async def _stop_all(self) -> None:
        standing = [running for running in self.running if not running.task.done()]
        for running in standing:
            running.process.stopping.set()
        async with asyncio.timeout(PATIENCE):
            ended = await asyncio.gather(*(running.task for running in standing), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException) and not was_killed(error):
                raise error

    # Actors.

    async def start(self, *names: str, copies: int = 1, clock: Clock | None = None) -> list[Running]:
        """Start `copies` of each of these actors; returns once they run."""
        return [
            await self._run(name, ACTORS[name], self.settings, clock) for name in names for _ in range(copies)
        ]

    async def execute(self, app: App, *, clock: Clock | None = None, **settings: Any) -> Running:
        """Start an executor of this app; returns once it runs."""

        def make(bus: Bus, clock: Clock, settings: Settings, process: Process) -> Executor:
            return Executor(bus, clock, settings, process, app)

        own = self.settings.model_copy(update=settings)
        return await self._run(Executor.name, make, own, clock)

    async def _run(self, name: str, make: Any, settings: Settings, clock: Clock | None) -> Running:
        begun = asyncio.Event()
        made: list[tuple[FaultyBus, Process, Any]] = []

        def keep(bus: FaultyBus, clock: Clock, settings: Settings, process: Process) -> Actor:
            made.append((bus, process, make(bus, clock, settings, process)))
            return made[0][2]  # type: ignore[no-any-return]

        task = asyncio.create_task(
            run_actor(
                name,
                keep,  # type: ignore[arg-type]
                settings,
                clock=clock,
                signals=False,
                started=lambda *_: begun.set(),
            )
        )
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not begun.is_set():
            waiting.cancel()
            task.result()
        bus, process, actor = made[0]
        running = Running(name, task, bus, process, actor)
        self.running.append(running)
        return running

    async def register(self, app: App, *, force: bool = False) -> SyncReply:
        """Register an app; a cron-sync must run."""
        return await register(self.bus, app, clock=self.clock, force=force, wait=PATIENCE)

    def process(self, bus: Bus) -> Process:
        """The process of an actor whose `handle` a test calls itself."""
        return Process(bus, self.clock, self.settings)

    def make(self, name: str, bus: Bus, *, clock: Clock | None = None) -> Any:
        """An actor that does not run: a test calls its `handle`."""
        return ACTORS[name](bus, clock or self.clock, self.settings, self.process(bus))

    # What is stored.

    async def stored(self, stream: str, subject: str = ">") -> list[StoredMessage]:
        """The messages of a stream, oldest first."""
        return [message async for page in self.bus.pages(stream, subject) for message in page]

    async def dead(self) -> list[DeadLetter]:
        """The dead letters, oldest first."""
        return [decode(DeadLetter, message.payload) for message in await self.stored(self.names.dead)]

    async def left(self, stream: str, durable: str) -> int:
        """How many messages a consumer has not done with: to be delivered, or delivered and not acknowledged."""
        return await not_done(self.bus, await self.bus.consumer(stream, durable))

    async def settled(self, stream: str, durable: str) -> None:
        """Wait until a consumer is done with everything that is stored."""

        async def done() -> bool:
            return await self.left(stream, durable) == 0

        await until(done, what=f"{durable} done")


async def not_done(bus: Bus, info: dict[str, Any]) -> int:
    """How many messages a consumer has not done with, by what the server says of it.

    The consumer hears of a message a moment after that is stored: if it knows of none to come, the stream is asked.
    """
    count = int(info["num_pending"]) + int(info["num_ack_pending"])
    if not info["num_pending"]:
        config, after = info["config"], int(info["delivered"]["stream_seq"]) + 1
        for filter in config.get("filter_subjects") or [config.get("filter_subject") or ">"]:
            count += await bus.next_on(info["stream_name"], filter, after) is not None
    return count


def waits_of(names: Names, run: str) -> str:
    """A filter for everything a run waits for. Not for the product: the server walks every wait there is."""
    return f"{names.namespace}.wait.*.*.*.{run}.*"


class HastyClock(SystemClock):
    """The machine's clock, `ahead` ms ahead, on which nobody waits longer than a moment."""

    def __init__(self, ahead: int = 0) -> None:
        self.ahead = ahead

    def now(self) -> int:
        return super().now() + self.ahead

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


async def clear_of_full(clock: Clock, period: int, *, seconds: float = 5.0) -> None:
    """Let the next full `period` (ms: an hour, a minute) come if it is so near: what is due changes with it."""
    await until(lambda: clock.now() % period < period - seconds * 1_000, what="clear of what is due next")


async def take(bus: Bus, stream: str, durable: str, count: int = 1) -> list[Delivery]:
    """So many messages of a durable consumer; an error when they do not come."""
    found: list[Delivery] = []
    async with asyncio.timeout(PATIENCE), bus.consume(stream, durable) as consumer:
        while len(found) < count:
            found += await consumer.fetch(count - len(found))
    return found


async def take_rest(
    stack: Stack,
    stream: str,
    durable: str,
    handle: Callable[[FaultyBus, list[Delivery]], Awaitable[None]],
    count: int = 1,
) -> None:
    """Hand what a consumer has not done with to `handle`, each time on a connection of its own, until all is done.

    An acknowledgement may be under way while `left` still counts its message: nothing need come of what is left.
    """
    async with asyncio.timeout(PATIENCE):
        while await stack.left(stream, durable):
            async with FaultyBus(stack.settings) as bus, bus.consume(stream, durable) as consumer:
                if found := await consumer.fetch(count):
                    await handle(bus, found)
                    await bus.settled()


# A state to compare: everything stored, without what differs between two runs of the same thing.

_ONE_HOWEVER_OFTEN = (".event.", ".sync.", ".gap-")
"""Events and commands are known by their ids, a gap by its subject: a second copy changes nothing."""
_ATTEMPT = {
    "at",
    "next_at",
    "lost",
    "executor",
    "nonce",
    "message",
    "started",
    "claimed",
    "ended",
    "traceback",
}
_VOLATILE = {
    "work": {"reply", "ts", "entry", "read_at"},
    "events": {"ts"},
    "later": {"ts"},
    "journal": {*_ATTEMPT, "to", "ts"},
    "dead": {"at", "sequence", "body", "size", "ts"},
    "registry": {"armed_from", "end", "at", "healthy_at", "swept_at", "late"},
}


async def snapshot(bus: Bus) -> dict[str, list[Any]]:
    """Everything stored but who is alive, comparable between namespaces; with each run's consumer, and what is left.

    Times of writing and names of processes are left out, as are attempts a process took with it, and second
    copies of what its id makes one, what a tick carries to spare a read, and intents, which end by themselves. So are
    the numbers of revisions in force and of sweeps' notes: they depend on how often something was written.
    """
    names = bus.names
    state: dict[str, list[Any]] = {}
    in_force = await _revisions(bus)
    for part in ("work", "events", "later", "journal", "dead", "registry"):
        found = []
        async for page in bus.pages(getattr(names, part), ">"):
            for message in page:
                subject = message.subject
                if names.is_intent(subject):
                    continue
                body = _plain(message.payload, names.namespace, _VOLATILE[part])
                if ".tick." in subject and _is_in_force(body, in_force):
                    subject = subject.replace(f".{body['revision']}.", ".in force.")
                    body["revision"] = "in force"
                if ".health.noted." in subject:
                    body = "a sequence"
                if part == "work" and isinstance(body, dict) and _fires_when_written(body):
                    body.pop("fire_at")
                claimed = isinstance(body, dict) and body.get("entry") == "claimed"
                if claimed:
                    body.pop("about", None)
                one = [_without(subject, names.namespace, set()), body]
                once = claimed or any(mark in subject for mark in _ONE_HOWEVER_OFTEN)
                if one not in found or not once:
                    found.append(one)
        state[part] = sorted(found, key=repr)
    listing = await bus.api(f"CONSUMER.LIST.{names.work}")
    state["consumers"] = sorted(
        [
            consumer["name"],
            consumer["config"]["max_ack_pending"],
            consumer.get("paused", False),
            consumer["num_ack_pending"],
        ]
        for consumer in listing["consumers"]
    )
    return state


async def _revisions(bus: Bus) -> dict[str, int]:
    """The revision of each schedule."""
    keys = await bus.subjects(bus.names.registry, bus.names.schedules)
    return {
        bus.names.parse_schedule_key(key): stored.sequence
        for key, stored in (await bus.entries(keys)).items()
    }


def _is_in_force(tick: Any, revisions: Mapping[str, int]) -> bool:
    match tick:
        case {"schedule": id, "revision": revision}:
            return revisions.get(id) == revision
        case _:
            return False


def _fires_when_written(run: dict[str, Any]) -> bool:
    """Whether a run's time is that of a retry, or of an event that names none."""
    return "fire_at" in run and bool(run.get("turn") or (run.get("event") or {"at": 0}).get("at") is None)


def _plain(payload: bytes, namespace: str, volatile: set[str]) -> Any:
    try:
        body = unpack(payload)
    except DecodeError:
        return payload
    return _without(body, namespace, volatile)


def _without(value: Any, namespace: str, volatile: set[str]) -> Any:
    match value:
        case dict():
            return {
                key: _without(
                    [one for one in item if one.get("outcome") != "lost"]
                    if key == "attempts" and isinstance(item, list)
                    else item,
                    namespace,
                    volatile,
                )
                for key, item in value.items()
                if key not in volatile
            }
        case list():
            return [_without(one, namespace, volatile) for one in value]
        case str():
            return value.replace(namespace, "ns").replace(namespace.upper(), "NS")
    return value


# Kill between any two writes.

Prepare = Callable[[Stack], Awaitable[None]]
Act = Callable[[Stack, FaultyBus, Sequence[Delivery]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A message and who handles it. `prepare` stores it; `act` has a fresh actor handle what is delivered.

    `stream` and `durable` are attributes of `Names`, or say themselves which they are.
    """

    prepare: Prepare
    act: Act
    stream: str = "work"
    durable: str = ""
    count: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    def where(self, stack: Stack) -> tuple[str, str]:
        return getattr(stack.names, self.stream), getattr(stack.names, self.durable, self.durable)


@dataclass(frozen=True, slots=True)
class Played:
    """How a scenario ended, and the writes of the actor that was first, in order."""

    state: dict[str, list[Any]]
    writes: list[str]


async def play(
    server: NatsServer,
    scenario: Scenario,
    *,
    fault: Fault | None = None,
    nth: int = 0,
    again: int = 0,
    forgotten: bool = False,
) -> Played:
    """Play a scenario in a namespace of its own, with a fault in the first actor's `nth` write.

    What it leaves is redelivered at once, to a fresh actor, until nothing is left. `again`: handle each
    delivery so many times more, acknowledged or not, as a lost acknowledgement would have it. `forgotten`:
    redeliveries come with a count of 1, as they do after a crash of the server.
    """
    async with Stack(server, **scenario.settings) as stack:
        await scenario.prepare(stack)
        stream, durable = scenario.where(stack)
        async with FaultyBus(stack.settings) as first:
            deliveries = await take(first, stream, durable, scenario.count)
            first.writes.clear()
            if fault is not None:
                first.arm(fault, nth=nth)
            try:
                await scenario.act(stack, first, deliveries)
            except TryAgain:
                pass  # the process hands them back, as we do below
            except (Killed, BaseExceptionGroup) as error:
                if not was_killed(error):
                    raise
            writes = list(first.writes)
        for _ in range(again):
            async with FaultyBus(stack.settings) as bus:
                copies = [_copy(delivery, bus, forgotten) for delivery in deliveries]
                await scenario.act(stack, bus, copies)
        for delivery in deliveries:
            await stack.bus.post(delivery._reply, b"-NAK")
        await stack.bus.settled()

        async def once_more(bus: FaultyBus, found: list[Delivery]) -> None:
            await scenario.act(stack, bus, [_copy(d, bus, forgotten) for d in found])

        await take_rest(stack, stream, durable, once_more, scenario.count)
        return Played(await snapshot(stack.bus), writes)


def _copy(delivery: Delivery, bus: Bus, forgotten: bool) -> Delivery:
    copy = object.__new__(Delivery)
    for slot in Delivery.__slots__:
        setattr(copy, slot, getattr(delivery, slot))
    copy._bus = bus
    copy.delivered = 1 if forgotten else max(delivery.delivered, 2)
    return copy


FAULTS: tuple[Fault, ...] = (Die(), LoseAnswer())
ALL_FAULTS: tuple[Fault, ...] = (*FAULTS, Refuse())


async def every_fault(
    server: NatsServer, scenario: Scenario, faults: Sequence[Fault] = FAULTS
) -> AsyncIterator[tuple[str, Played, Played]]:
    """Play a scenario undisturbed, then once for each fault in each of its writes.

    Yields what happened where, the undisturbed end, and the end after the fault.
    """
    whole = await play(server, scenario)
    assert whole.writes, "a handler that writes nothing cannot be disturbed in its writes"
    for number, name in enumerate(whole.writes):
        for fault in faults:
            where = f"{type(fault).__name__} at write {number}, {name}, of {whole.writes}"
            yield where, whole, await play(server, scenario, fault=fault, nth=number)
