"""One actor as a process: signals, drain, readiness, the endpoint.

Owns the order of starting and stopping. A first SIGTERM or SIGINT lets work in hand finish within the grace
period; a second one stops at once. An unexpected error ends the process: the supervisor starts it anew,
and the server delivers again what was not acknowledged.
"""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import structlog

from jetcron import loop, probe
from jetcron.bus import Bus, Consumer, Delivery
from jetcron.clock import Clock, SystemClock
from jetcron.errors import (
    AuthorizationFailed,
    BusError,
    JetStreamDisabled,
    NotFound,
    ServerUnreachable,
    TopologyMissing,
    TryAgain,
)
from jetcron.metrics import Metrics
from jetcron.settings import Settings

log = structlog.get_logger("jetcron.process")

T = TypeVar("T")

_PULLED_LATELY = 15.0
_CLOCK_EVERY = 10.0
_PAUSE = 0.5
_HAND_BACK_SECONDS = 1.0
UNHANDLED_SECONDS = 30.0
FATAL = (TopologyMissing, JetStreamDisabled, AuthorizationFailed, ServerUnreachable)
"""No message is at fault: the process ends, and says why."""


class Process:
    """What an actor shares with the process around it: when to stop, what to count, whether it is ready."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings) -> None:
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._consumers: list[Consumer] = []
        self._problem: str | None = None

    @contextlib.contextmanager
    def watching(self, consumer: Consumer) -> Iterator[None]:
        """While open, readiness means that this consumer has pulled lately."""
        self._consumers.append(consumer)
        try:
            yield
        finally:
            self._consumers.remove(consumer)

    def blocked(self, problem: str | None) -> None:
        """Something of the actor's own keeps it from being ready; None when it has passed."""
        self._problem = problem

    def unready(self) -> str | None:
        """Why the actor is not ready, or None. Called from the endpoint's thread: it only reads."""
        if self.stopping.is_set():
            return "stopping"
        if self._problem is not None:
            return self._problem
        if not self._bus.connected:
            return f"not connected to {self._settings.shown_url}"
        if self.clock_is_off:
            offset = self._bus.clock_offset_ms / 1000
            return f"this machine's clock is off the server's by {offset:.1f} s; set it right"
        now = self._clock.monotonic()
        if not self._consumers:
            return "not pulling yet"
        for consumer in tuple(self._consumers):
            silent = consumer.pulled_at is None or now - consumer.pulled_at > _PULLED_LATELY
            if silent and not consumer.resting:
                return f"nothing heard from {consumer.durable} lately"
        return None

    async def measure_clock(self) -> None:
        """Keep the measured offset of our clock fresh, until cancelled."""
        while True:
            try:
                await self._bus.stream_state(self._bus.names.work)
                self.metrics.clock_offset.set(self._bus.clock_offset_ms / 1000)
            except BusError as error:
                log.debug("the server's clock could not be read", reason=str(error))
            await self._clock.sleep(_CLOCK_EVERY)

    @property
    def clock_is_off(self) -> bool:
        """Whether our clock is so far off the server's that what we would decide by it would be wrong."""
        return abs(self._bus.clock_offset_ms) > self._settings.lead_ms

    async def unless_stopping(self, work: Awaitable[T]) -> T | None:
        """The result of `work`, or None when the process is told to stop first; `work` is then cancelled."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def begin(self, store: Callable[[], Awaitable[object]]) -> bool:
        """Have what an actor stores before it works be stored, however long storage does not answer.

        `store` may be repeated. False: told to stop before it was done.
        """
        while not self.stopping.is_set():
            try:
                await self.unless_stopping(store())
                break
            except TryAgain as error:
                log.warning("storage does not answer, beginning again", reason=str(error))
                await self.unless_stopping(self._clock.sleep(_PAUSE))
        return not self.stopping.is_set()

    async def take(
        self, stream: str, durable: str, handle: Callable[[Sequence[Delivery]], Awaitable[None]], *, most: int
    ) -> None:
        """Feed a durable consumer's messages to `handle`, batch by batch, until told to stop.

        A batch that fails is repeated message by message, so that what one message provokes stops no other:
        that one is handed back, for a copy of us that knows better. So is all that storage does not answer
        for. While our clock is off nothing is taken, for what is decided by it would be wrong.
        """
        async with self._bus.consume(stream, durable) as consumer:
            with self.watching(consumer):
                while not self.stopping.is_set():
                    if self.clock_is_off:
                        await self.unless_stopping(self._clock.sleep(_PAUSE))
                        continue
                    try:
                        deliveries = await self.unless_stopping(consumer.fetch(most, wait=5.0))
                    except (TryAgain, NotFound) as error:
                        log.debug("cannot pull", consumer=durable, reason=str(error))
                        await self._clock.sleep(_PAUSE)
                        continue
                    if deliveries:
                        async with self._in_progress(deliveries):
                            await self._handle(deliveries, handle)

    async def _handle(
        self, deliveries: Sequence[Delivery], handle: Callable[[Sequence[Delivery]], Awaitable[None]]
    ) -> None:
        try:
            await handle(deliveries)
        except TryAgain as error:
            log.warning(
                "storage does not answer, messages handed back", count=len(deliveries), reason=str(error)
            )
            await self.hand_back(deliveries)
        except FATAL:
            raise
        except Exception as error:
            if len(deliveries) > 1:
                for delivery in deliveries:
                    await self._handle([delivery], handle)
                return
            log.exception("a message cannot be handled and is handed back", subject=deliveries[0].subject)
            self.metrics.unhandled.labels(type(error).__name__).inc()
            await self.hand_back(deliveries, seconds=UNHANDLED_SECONDS)

    @contextlib.asynccontextmanager
    async def _in_progress(self, deliveries: Sequence[Delivery]) -> AsyncIterator[None]:
        """While open, a long piece of work is not taken for a dead one. After an acknowledgement it means nothing."""

        async def tell() -> None:
            while True:
                await self._clock.sleep(self._settings.ack_wait / 3)
                for delivery in deliveries:
                    await delivery.in_progress()

        task = asyncio.create_task(tell())
        try:
            yield
        finally:
            task.cancel()

    async def hand_back(self, deliveries: Sequence[Delivery], *, seconds: float = _HAND_BACK_SECONDS) -> None:
        """Have them delivered again after `seconds`: what they should cause could not be stored now."""
        self.metrics.handed_back.inc(len(deliveries))
        for delivery in deliveries:
            await delivery.hand_back(seconds)


class Actor(Protocol):
    """What every actor is: runs until `Process.stopping` is set, then returns when its work is done."""

    async def run(self) -> None: ...


Make = Callable[[Bus, Clock, Settings, Process], Actor]


async def run_actor(
    name: str,
    make: Make,
    settings: Settings,
    *,
    http: int | None = None,
    clock: Clock | None = None,
    signals: bool = True,
    started: Callable[[Process, int | None], None] | None = None,
) -> None:
    """Run one actor until a signal, then drain. Raises what keeps it from starting, or what broke it.

    `started` is called once it runs, with the port of its endpoint.
    """
    clock = clock or SystemClock()
    async with Bus(settings, clock=clock, name=f"jetcron {name}") as bus:
        await bus.check_topology()
        process = Process(bus, clock, settings)
        actor = make(bus, clock, settings, process)
        heartbeat = probe.Heartbeat(clock)
        with contextlib.ExitStack() as stack:
            port = None
            if http is not None:
                port = stack.enter_context(
                    probe.serve(
                        http, registry=process.metrics.registry, heartbeat=heartbeat, unready=process.unready
                    )
                )
            gc.collect()
            loop.calm_collector()
            log.info(
                "started", actor=name, server=bus.server_version, namespace=settings.namespace, http=port
            )
            if started is not None:
                started(process, port)
            async with _background(heartbeat.beat(), process.measure_clock()):
                await _until_stopped(bus, actor, process, settings, clock, signals=signals)
        log.info("stopped", actor=name)


@contextlib.asynccontextmanager
async def _background(*work: Awaitable[None]) -> AsyncIterator[None]:
    """Run these beside the body, and end them with it."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _until_stopped(
    bus: Bus, actor: Actor, process: Process, settings: Settings, clock: Clock, *, signals: bool
) -> None:
    work = asyncio.ensure_future(actor.run())
    watch = asyncio.ensure_future(_drain(work, process, settings, clock))
    bus.when_closed(work.cancel)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if process.stopping.is_set():
            log.warning("stopping at once")
            work.cancel()
        else:
            log.info("stopping; a second signal stops at once", grace=settings.grace)
            process.stopping.set()

    handled = (signal.SIGTERM, signal.SIGINT) if signals else ()
    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        await work
    except asyncio.CancelledError:
        bus.check_open()
        if not process.stopping.is_set():
            raise
    finally:
        watch.cancel()
        for number in handled:
            loop.remove_signal_handler(number)
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work


async def _drain(work: "asyncio.Future[None]", process: Process, settings: Settings, clock: Clock) -> None:
    """Once told to stop, give the work its grace period."""
    await process.stopping.wait()
    await clock.sleep(settings.grace)
    log.warning("work in hand did not finish within the grace period and is given up", grace=settings.grace)
    work.cancel()
