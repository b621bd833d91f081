"""executor: pulls the runs of one app's functions and executes them.

Owns the pull loops, the liveness of the process and its drain. Killed at any moment, its runs are delivered
again and taken over; told to stop, it pulls nothing more, finishes what it has, and hands the rest over.
"""

import asyncio

import anyio
import structlog

from jetcron.app import App, FunctionDefinition
from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.errors import LeaseLost, NotFound, TryAgain, Unconfirmed, WrongSequence
from jetcron.executor.branches import watch_tasks
from jetcron.executor.demand import Demand
from jetcron.executor.lease import Identity, Lease
from jetcron.executor.room import Room
from jetcron.executor.worker import Worker
from jetcron.process import FATAL, UNHANDLED_SECONDS, Process
from jetcron.registration import ensure_registered
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Cancelled

log = structlog.get_logger("jetcron.executor")

_MOST = 500
"""Messages asked for in one pull."""
_IDLE_WAIT = 10.0
_BUSY_WAIT = 2.0
"""How long nothing may come before a function asks for less, in seconds."""
_MISSING_PAUSE = 1.0
_HAND_BACK_SECONDS = 1.0


class Executor:
    """Takes the runs of an app's functions, gives their outcomes."""

    name = "executor"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process, app: App) -> None:
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._process = process
        self._app = app
        self._in_hand: dict[asyncio.Task[None], tuple[Delivery, Identity]] = {}
        self._given_up: list[Delivery] = []
        """Handed back once our key is gone: whoever gets them may take them over at once."""
        self._lease = Lease(bus, clock, settings, app.name, running=lambda: len(self._in_hand))
        self._room = Room(clock, settings.slots, settings.holding, len(app.functions))
        process.metrics.running.set_function(lambda: self._room.running)
        process.metrics.holding.set_function(lambda: self._room.holding)
        self._demand = Demand(bus, clock)
        self._worker = Worker(
            bus,
            clock,
            settings,
            process.metrics,
            self._lease,
            self._room,
            anyio.CapacityLimiter(settings.slots),
            told=lambda: self._demand.wanted,
            stopping=process.stopping.is_set,
        )

    async def run(self) -> None:
        """Register, then execute until told to stop; returns when what was in hand has ended."""
        self._app.check()
        watch_tasks(asyncio.get_running_loop())
        if not await self._process.begin(self._lease.open):
            return
        try:
            registration = asyncio.create_task(
                ensure_registered(self._bus, self._app, clock=self._clock, process=self._process)
            )
            keeping = [
                asyncio.create_task(work)
                for work in (
                    self._lease.keep(),
                    self._progress(),
                    self._room.ring(),
                    self._demand.keep(),
                    self._hear_cancelled(),
                )
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    for definition in self._app.functions.values():
                        group.create_task(self._pull(definition, group))
                    group.create_task(self._watch(keeping, registration))
            finally:
                for task in [*keeping, registration]:
                    task.cancel()
                await asyncio.gather(*keeping, registration, return_exceptions=True)
        finally:
            await self._lease.close()
            for delivery in self._given_up:
                await delivery.hand_back()

    async def _watch(self, keeping: "list[asyncio.Task[None]]", registration: "asyncio.Task[None]") -> None:
        """Fail with whatever the background work fails with."""
        stop = asyncio.create_task(self._process.stopping.wait())
        watched: set[asyncio.Task[object]] = {stop, registration, *keeping}
        while not stop.done():
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
                watched.discard(task)

    # Taking.

    async def _pull(self, definition: FunctionDefinition, group: asyncio.TaskGroup) -> None:
        """Keep one function's consumer open until told to stop."""
        durable = self._bus.names.run_consumer(definition.id)
        missing = False
        while not self._process.stopping.is_set():
            try:
                await self._drain_consumer(definition, durable, group)
            except NotFound:
                if not missing:
                    log.info("waiting for cron-sync to register the function", function=definition.id)
                missing = True
                await self._process.unless_stopping(self._clock.sleep(_MISSING_PAUSE))
            except TryAgain as error:
                log.debug("cannot pull", function=definition.id, reason=str(error))
                await self._process.unless_stopping(self._clock.sleep(_MISSING_PAUSE))

    async def _drain_consumer(
        self, definition: FunctionDefinition, durable: str, group: asyncio.TaskGroup
    ) -> None:
        reserved = 0
        want = 1
        try:
            async with self._bus.consume(self._bus.names.work, durable) as consumer:
                with self._process.watching(consumer):
                    while not self._process.stopping.is_set():
                        if reserved < want:
                            consumer.resting = reserved == 0
                            reserved += await self._reserve(want - reserved, needed=reserved == 0)
                            consumer.resting = False
                        if not reserved:
                            continue  # told to stop while there was no room
                        wait = _IDLE_WAIT if want == 1 else _BUSY_WAIT
                        deliveries = await self._process.unless_stopping(consumer.fetch(reserved, wait=wait))
                        for delivery in deliveries or ():
                            self._start(definition, delivery, group)
                        taken = len(deliveries or ())
                        reserved -= taken
                        # Ask for more when what was asked for ran low, for less when nothing came. A pull takes
                        # a round trip: asked for one by one, runs that come in a trickle would come late.
                        if taken and consumer.open <= want // 2:
                            want = min(_MOST, want * 2)
                        elif not taken:
                            want = max(1, want // 4)
                        # What a busy moment reserved goes back once nothing asked for can still arrive.
                        surplus = reserved - max(want, consumer.asked)
                        if surplus > 0:
                            self._room.give_back(surplus)
                            reserved -= surplus
        finally:
            self._room.give_back(reserved)

    async def _reserve(self, most: int, *, needed: bool) -> int:
        """Credits for a pull, once our key stands and, if one is `needed`, there is one; 0 when told to stop."""
        if await self._process.unless_stopping(self._lease.usable()) is None:
            return 0
        if not needed:
            return self._room.reserve_now(most)
        await self._process.unless_stopping(self._room.any_free())
        return self._room.reserve_now(most)

    def _start(self, definition: FunctionDefinition, delivery: Delivery, group: asyncio.TaskGroup) -> None:
        identity = self._lease.current
        task = group.create_task(self._one(definition, delivery, identity))
        self._in_hand[task] = delivery, identity
        identity.tasks.add(task)
        task.add_done_callback(self._in_hand.pop)
        task.add_done_callback(identity.tasks.discard)

    async def _one(self, definition: FunctionDefinition, delivery: Delivery, identity: Identity) -> None:
        """One run. What is not acknowledged here is delivered again, to us or to another executor."""
        try:
            await self._worker.handle(definition, delivery, identity)
        except TryAgain as error:
            log.warning(
                "storage does not answer, a run is handed back", function=definition.id, reason=str(error)
            )
            await delivery.hand_back(_HAND_BACK_SECONDS)
        except (WrongSequence, LeaseLost):
            # Another executor has it. Whoever has it records it; we say nothing more, to anyone.
            self._process.metrics.lost.inc()
            log.warning("a run was lost to another executor", function=definition.id)
        except Unconfirmed as error:
            # It may stand or not. Under a new identity, whoever gets the run decides by its journal.
            log.error("an outcome is unknown, the run is left to be taken over", reason=str(error))
            await self._lease.retire(identity)
        except FATAL:
            raise
        except Exception as error:
            # Claimed by us, it would be held for alive: under a new id it counts as lost, and lost runs end.
            log.exception("a run cannot be handled and is left to be taken over", function=definition.id)
            self._process.metrics.unhandled.labels(type(error).__name__).inc()
            await self._lease.retire(identity)
            await delivery.hand_back(UNHANDLED_SECONDS)
        except asyncio.CancelledError:
            if not identity.lapsed:
                if not delivery.settled:
                    self._given_up.append(delivery)
                raise
            self._process.metrics.lost.inc()
        finally:
            self._room.give_back(1)

    async def _progress(self) -> None:
        """Tell the server that what is in hand is still being worked on; silent once the lease is lost."""
        while True:
            await self._clock.sleep(self._settings.ack_wait / 3)
            for delivery, identity in list(self._in_hand.values()):
                if not self._lease.expired(identity):
                    await delivery.in_progress()
            try:
                await self._worker.look_for_cancelled()
            except TryAgain as error:
                log.debug("cannot look for cancelled runs", reason=str(error))

    async def _hear_cancelled(self) -> None:
        """Stop the code of runs that somebody ended, from when the server can be asked for word of them."""
        while True:
            try:
                async with self._bus.listen(self._bus.names.cancelled(self._app.name)) as heard:
                    await self._cancel(heard)
            except TryAgain as error:
                log.debug("cannot hear of runs that are cancelled", reason=str(error))
                await self._clock.sleep(_MISSING_PAUSE)

    async def _cancel(self, heard: "asyncio.Queue[tuple[str, bytes]]") -> None:
        while True:
            _, payload = await heard.get()
            try:
                self._worker.cancel(decode(Cancelled, payload).run)
            except DecodeError as error:
                log.warning("a word of a cancelled run cannot be read", reason=str(error))
