"""The canary: a schedule of Jetcron's own, whose runs each health-checker takes itself, to see how late they come.

Owns the function ``jetcron.canary``, registered as any app's is, so that a canary passes through all that a user's
occurrence does: cron-sync, the server's release, cron-tick, the run's consumer. It is held to its time as an executor
holds a run. Copies share it. Who pauses the function pauses the canary: it stays so. If the process dies with one in
hand, it is delivered again, and its lateness says so.
"""

import math
from dataclasses import replace

import structlog

from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.dead_letters import bury
from jetcron.errors import ConfigurationError, NotFound, TryAgain
from jetcron.process import Process
from jetcron.registration import ensure_registered
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.ids import digest
from jetcron_protocol.messages import Canary, CronTrigger, Function, Run
from jetcron_protocol.subjects import CANARY, OWN_APP

log = structlog.get_logger("jetcron.canary")

_MOST = 16
_PAUSE = 5.0
_CLOCK_SLACK_MS = 1_000
"""How much longer than by the server's clock a canary is held at most."""
PERIODS_SILENT = 4
"""So many periods without a canary are silence."""


class CanaryApp:
    """What is registered: one function, every `every` seconds; what was missed is not made up for."""

    name = OWN_APP

    def __init__(self, every: int) -> None:
        self._function = Function(
            id=CANARY,
            cron=[CronTrigger(expression=f"@every {every}s")],
            catch_up="skip",
            attempts=1,
            description="Shows the health-checker how late runs come.",
        )

    @property
    def hash(self) -> str:
        return digest(self.name, encode(replace(self._function, description="")).hex(), size=16).hex()

    def wire(self) -> list[Function]:
        """The definitions as they are registered."""
        return [self._function]


class CanaryWatch:
    """Takes canaries, gives their lateness and the time since the last one."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._every = settings.canary_every
        self._process = process
        self._last = clock.now()
        """When the last one was due that came through anywhere; at first, when we began to wait for one."""
        self._active = True
        self._looked = -math.inf
        self._said = False

    async def run(self) -> None:
        """Register the canary and take it until told to stop. Sweeps go on whatever becomes of it."""
        if not self._every:
            return
        self._process.metrics.canary_age.set_function(self.age)
        app = CanaryApp(self._every)
        registered = ensure_registered(
            self._bus, app, clock=self._clock, process=self._process, blocking=False
        )
        try:
            await self._process.unless_stopping(registered)
        except ConfigurationError as error:
            log.error("the canary was refused", reason=str(error))
            return
        await self._take()

    async def _take(self) -> None:
        """As `Process.take`, but whether canaries come says nothing of our being ready: they may be paused."""
        durable = self._names.run_consumer(CANARY)
        async with self._bus.consume(self._names.work, durable) as consumer:
            while not self._process.stopping.is_set():
                try:
                    await self._look()
                    wait = min(self._every, _PAUSE)
                    for delivery in (
                        await self._process.unless_stopping(consumer.fetch(_MOST, wait=wait)) or []
                    ):
                        await self.handle(delivery)
                except (TryAgain, NotFound) as error:
                    log.debug("cannot take canaries", reason=str(error))
                    await self._process.unless_stopping(self._clock.sleep(_PAUSE))

    async def handle(self, delivery: Delivery) -> None:
        """One canary: hold it to its time, say how late it is, note it."""
        try:
            run = decode(Run, delivery.payload)
        except DecodeError as error:
            await bury(self._bus, self._process.metrics, delivery, "run", str(error))
            await delivery.ack()
            return
        if run.schedule == CANARY and run.scheduled_at is not None:
            # Our clock may be wrong, and must not keep it.
            most = max(run.fire_at - delivery.stored_at, 0) + _CLOCK_SLACK_MS
            await self._clock.sleep(min(max(run.fire_at - self._clock.now(), 0), most) / 1000)
            late = max(self._clock.now() - run.scheduled_at, 0)
            await self._note(Canary(at=run.scheduled_at, late=late))
            self._process.metrics.canary_lateness.observe(late / 1000)
        else:
            log.warning("what runs here is the canary's alone", run=run.run, trigger=run.trigger)
        await delivery.ack()

    async def _note(self, canary: Canary) -> None:
        """For the other copies and for doctor. One delivered again does not take a newer one's place."""
        last = await read_note(self._bus)
        if last is None or last.at < canary.at:
            await self._bus.publish(self._names.canary_key, encode(canary))
        self._last = max(self._last, canary.at)

    async def _look(self) -> None:
        """Once a period: whether the canary is active, and whether one came through elsewhere."""
        if self._clock.monotonic() - self._looked < self._every:
            return
        self._looked = self._clock.monotonic()
        active = await is_active(self._bus)
        if active and not self._active:
            self._last = self._clock.now()
        self._active = active
        last = await read_note(self._bus)
        if last is not None:
            self._last = max(self._last, last.at)
        silent = self.age() > PERIODS_SILENT * self._every
        if silent and not self._said:
            log.error("no canary comes through: what is due now does not run", seconds=round(self.age()))
        self._said = silent

    def age(self) -> float:
        """Seconds since the last canary was due; NaN while it is paused. Called from the endpoint's thread too."""
        return max(self._clock.now() - self._last, 0) / 1000 if self._active else math.nan


async def read_note(bus: Bus) -> Canary | None:
    """The last canary that came through; None when there was none, or it cannot be read."""
    stored = await bus.entry(bus.names.canary_key)
    if stored is None:
        return None
    try:
        return decode(Canary, stored.payload)
    except DecodeError as error:
        log.error("the canary's note cannot be read", reason=str(error))
        return None


async def is_active(bus: Bus) -> bool:
    """Whether the canary is registered and neither paused nor archived."""
    stored = await bus.entry(bus.names.function_key(CANARY))
    if stored is None:
        return False
    try:
        return decode(Function, stored.payload).state == "active"
    except DecodeError as error:
        log.error("the canary's entry cannot be read", reason=str(error))
        return True
