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

from jetcron import probe
from jetcron.bus import Bus, Consumer, Delivery
from jetcron.clock import Clock, SystemClock
from jetcron.errors import NotFound, TryAgain
from jetcron.metrics import Metrics
from jetcron.settings import Settings

log = structlog.get_logger("jetcron.process")

T = TypeVar("T")

_PULLED_LATELY = 15.0
_CLOCK_EVERY = 10.0
_PAUSE = 0.5
_HAND_BACK_SECONDS = 1.0


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
        offset = abs(self._bus.clock_offset_ms)
        if offset > self._settings.lead_ms:
            return f"this machine's clock is off the server's by {offset / 1000:.1f} s; set it right"
        now = self._clock.monotonic()
        if not self._consumers:
            return "not pulling yet"
        for consumer in tuple(self._consumers):
            if consumer.pulled_at is None or now - consumer.pulled_at > _PULLED_LATELY:
                return f"nothing heard from {consumer.durable} lately"
        return None

    async def measure_clock(self) -> None:
        """Keep the measured offset of our clock fresh, until cancelled."""
        while True:
            with contextlib.suppress(TryAgain):
                await self._bus.stream_state(self._bus.names.work)
                self.metrics.clock_offset.set(self._bus.clock_offset_ms / 1000)
            await self._clock.sleep(_CLOCK_EVERY)

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

    async def take(
        self, stream: str, durable: str, handle: Callable[[Sequence[Delivery]], Awaitable[None]], *, most: int
    ) -> None:
        """Feed a durable consumer's messages to `handle`, batch by batch, until told to stop.

        When storage does not answer (`TryAgain`), the batch is handed back; what was acknowledged already
        does not come again.
        """
        async with self._bus.consume(stream, durable) as consumer:
            with self.watching(consumer):
                while not self.stopping.is_set():
                    try:
                        deliveries = await self.unless_stopping(consumer.fetch(most, wait=5.0))
                    except (TryAgain, NotFound) as error:
                        log.debug("cannot pull", consumer=durable, reason=str(error))
                        await self._clock.sleep(_PAUSE)
                        continue
                    if deliveries:
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

    async def hand_back(self, deliveries: Sequence[Delivery]) -> None:
        """Have them delivered again soon: what they should cause could not be stored now."""
        self.metrics.handed_back.inc(len(deliveries))
        for delivery in deliveries:
            await delivery.hand_back(_HAND_BACK_SECONDS)


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
            log.info(
                "started", actor=name, server=bus.server_version, namespace=settings.namespace, http=port
            )
            if started is not None:
                started(process, port)
            async with _background(heartbeat.beat(), process.measure_clock()):
                await _until_stopped(actor, process, settings, clock, signals=signals)
        log.info("stopped", actor=name)


def _calm_collector() -> None:
    """Look for cycles seldom: what is loaded stays, and a thousand runs in hand are no garbage.

    With the default thresholds the collector walks all runs in hand again and again: a tenth of an
    executor's time, and pauses just when a thousand runs are due.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


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
    actor: Actor, process: Process, settings: Settings, clock: Clock, *, signals: bool
) -> None:
    work = asyncio.ensure_future(actor.run())
    watch = asyncio.ensure_future(_drain(work, process, settings, clock))
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
