"""health-checker: finds broken cycles and restarts them, removes orphan ticks, frees what was not released.

Owns no state but what a sweep notes in the registry: when a group of shards was last found whole, and how far
its long reads came. The server releases one sweep message a group every minute, to any copy. If it dies in a
sweep, the message is delivered again or the next one comes; every repair can be repeated.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import structlog

from jetcron import dispatch, ledger
from jetcron.bus import (
    SCHEDULE,
    SCHEDULE_TARGET,
    SCHEDULE_TTL,
    Bus,
    Delivery,
    Outgoing,
    StoredMessage,
    fenced,
    rfc3339_ms,
)
from jetcron.clock import Clock
from jetcron.cron import CronError
from jetcron.cycle import Entry, repair
from jetcron.dead_letters import bury
from jetcron.errors import WrongSequence
from jetcron.process import Process
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.ids import GROUPS, shards_of
from jetcron_protocol.ids import shard as shard_of
from jetcron_protocol.messages import Schedule, Sweep
from jetcron_protocol.subjects import InvalidName, TickName

log = structlog.get_logger("jetcron.health-checker")

PAGE = 500
"""Held runs and events looked at in one request."""
MOST_HELD = 20_000
"""Held runs and events looked at in one sweep; the next one goes on where this one stopped."""
PERIODS_KEPT = 5
"""How many periods a sweep message waits to be read."""
MOST_REPAIRED = 10_000
"""Cycles restarted in one sweep; the next one goes on."""
RUNS_GROUP = 0
EVENTS_GROUP = 1
"""The sweeps of these two groups also look through held runs and held events."""


@dataclass(slots=True)
class Findings:
    """What one sweep saw and mended, by cause. `whole`: nothing was left that it could not read or mend."""

    healthy_at: int = 0
    whole: bool = True
    schedules: int = 0
    repaired: dict[str, int] = field(default_factory=dict)

    def count(self, cause: str) -> None:
        self.repaired[cause] = self.repaired.get(cause, 0) + 1


class HealthChecker:
    """Takes sweep messages, gives repairs and figures."""

    name = "health-checker"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._process = process

    async def run(self) -> None:
        """Arm the sweeps that are absent, then sweep until told to stop."""
        await arm(self._bus, self._settings)
        await self._process.take(self._names.work, self._names.health_checker, self.handle, most=1)

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Sweep the groups these messages name."""
        for delivery in deliveries:
            try:
                group = _group(delivery.payload)
            except DecodeError as error:
                await bury(self._bus, self._process.metrics, delivery, "health", str(error))
            else:
                await self.sweep(group)
            await delivery.ack()

    async def sweep(self, group: int) -> Findings:
        """Look at every schedule of a group, and mend what is broken. One swept a moment ago is left alone."""
        began = self._clock.monotonic()
        seen_at = self._clock.now()
        note = await self._note(group)
        findings = Findings(healthy_at=min(seen_at - self._settings.repair_grace_ms, await self._settled()))
        if 0 <= seen_at - note.swept_at < self._settings.sweep_every_ms // 2:
            return findings
        await self._schedules(group, note, findings)
        cursor = 0
        if group == RUNS_GROUP:
            cursor = await self._free(self._names.work, self._names.run_later_all, note.cursor, findings)
        elif group == EVENTS_GROUP:
            cursor = await self._free(self._names.later, self._names.later_held_all, note.cursor, findings)
        healthy_at = max(note.healthy_at, findings.healthy_at) if findings.whole else note.healthy_at
        entry = Sweep(group=group, healthy_at=healthy_at, swept_at=seen_at, cursor=cursor)
        await self._bus.publish(self._names.health_key(group), encode(entry))
        metrics = self._process.metrics
        metrics.sweeps.inc()
        metrics.sweep_seconds.observe(self._clock.monotonic() - began)
        metrics.schedules.labels(f"{group:x}").set(findings.schedules)
        for cause, times in findings.repaired.items():
            metrics.repairs.labels(cause).inc(times)
        log.debug("swept", group=group, schedules=findings.schedules, repaired=findings.repaired)
        return findings

    async def _note(self, group: int) -> Sweep:
        stored = await self._bus.entry(self._names.health_key(group))
        if stored is not None:
            try:
                return decode(Sweep, stored.payload)
            except DecodeError as error:
                log.error("a sweep's note cannot be read, starting afresh", group=group, reason=str(error))
        return Sweep(group=group, healthy_at=0)

    async def _settled(self) -> int:
        """Up to when no sync command stands: one that does may have written an entry and not yet its tick."""
        oldest = await self._bus.next_on(self._names.work, self._names.sync_all, 1)
        return oldest.stored_at - 1 if oldest is not None else self._clock.now()

    # Schedules and their ticks: names narrow the search, entries are read only of what looks broken.

    async def _schedules(self, group: int, note: Sweep, findings: Findings) -> None:
        """Compare names twice, a grace apart; what is broken both times is mended."""
        suspects: set[str] = set()
        orphans: set[str] = set()
        for shard in shards_of(group):
            ticks, registered = await self._look(shard)
            findings.schedules += len(registered)
            await self._release_overdue(ticks, findings)
            ticking = {tick.schedule for tick in ticks}
            suspects |= await self._active(sorted(registered - ticking), findings)
            orphans |= ticking - registered
        if len(suspects) > MOST_REPAIRED:
            suspects, findings.whole = set(sorted(suspects)[:MOST_REPAIRED]), False
        if not suspects and not orphans:
            return
        await self._clock.sleep(self._settings.repair_grace)
        for shard in sorted({shard_of(schedule) for schedule in suspects | orphans}):
            ticks, registered = await self._look(shard)
            ticking = {tick.schedule for tick in ticks}
            await self._restart(sorted(suspects & (registered - ticking)), note, findings)
            await self._remove(sorted(orphans & (ticking - registered)), findings)

    async def _look(self, shard: str) -> tuple[list[TickName], set[str]]:
        """The ticks of a shard, held and due, and its registered schedules.

        Ticks are read first: a schedule created in between has an entry and, a moment later, a tick.
        """
        ticks = []
        for subject in await self._bus.subjects(self._names.work, self._names.ticks_of_shard(shard)):
            try:
                ticks.append(self._names.parse_tick(subject))
            except InvalidName as error:
                log.error("a tick has a subject nobody can read", reason=str(error))
        keys = await self._bus.subjects(self._names.registry, self._names.schedules_of_shard(shard))
        registered = set()
        for key in keys:
            try:
                registered.add(self._names.parse_schedule_key(key))
            except InvalidName as error:
                log.error("the registry has a key nobody can read", reason=str(error))
        return ticks, registered

    async def _active(self, schedules: Sequence[str], findings: Findings) -> set[str]:
        """Those among them that should have a tick; the paused, archived, ended and deleted need none."""
        active = set()
        entries = await self._bus.entries([self._names.schedule_key(schedule) for schedule in schedules])
        for key, stored in entries.items():
            try:
                entry = decode(Schedule, stored.payload)
            except DecodeError as error:
                findings.whole = False
                log.error("a registry entry cannot be read", key=key, reason=str(error))
                continue
            if entry.state == "active":
                active.add(entry.id)
        return active

    async def _restart(self, schedules: Sequence[str], note: Sweep, findings: Findings) -> None:
        """Re-arm active schedules that have had no tick for the grace period."""
        entries = await self._bus.entries([self._names.schedule_key(schedule) for schedule in schedules])
        for key, stored in entries.items():
            try:
                entry = Entry(decode(Schedule, stored.payload), stored.sequence)
                keep = await ledger.kept(self._bus, entry.schedule.function)
                horizon = self._clock.now() - keep * 1000
                mended = repair(entry, healthy_at=note.healthy_at, horizon=horizon)
            except (DecodeError, CronError) as error:
                findings.whole = False
                log.error("a broken cycle cannot be restarted here", key=key, reason=str(error))
                continue
            if mended is None:
                continue
            if mended.gap is not None:
                await ledger.record(self._bus, mended.gap, entry.schedule.function)
            if mended.tick is not None:
                tick = dispatch.held_tick(self._names, mended.tick, self._settings.lead_ms)
                await self._bus.store(tick)
            findings.count("broken")
            log.error("a broken cycle was restarted", schedule=entry.schedule.id)

    async def _remove(self, schedules: Sequence[str], findings: Findings) -> None:
        """Purge ticks whose schedule the leader does not know."""
        for schedule in schedules:
            if await self._bus.entry(self._names.schedule_key(schedule)) is None:
                await self._bus.purge(self._names.work, self._names.ticks_of(schedule))
                findings.count("orphan")
                log.warning("ticks of an unknown schedule were removed", schedule=schedule)

    async def _release_overdue(self, ticks: Sequence[TickName], findings: Findings) -> None:
        """Publish again, on their own subjects, held ticks the server should have released: it does not retry."""
        latest = self._clock.now() + self._settings.lead_ms - self._settings.repair_grace_ms
        for tick in ticks:
            # What stands overdue is not settled: were it lost, its chain must go on from before it.
            findings.healthy_at = min(findings.healthy_at, tick.at - 1)
            if tick.state == "held" and tick.at < latest:
                subject = self._names.tick_held(tick.schedule, tick.revision, tick.at)
                stored = await self._bus.last(self._names.work, subject)
                if stored is not None:
                    await self._again(self._names.work, stored, findings)

    # Held runs and future events: their subjects do not tell their time, so they are read, a part each sweep.

    async def _free(self, stream: str, subject: str, start: int, findings: Findings) -> int:
        """Publish overdue ones again; where the next sweep goes on, 0 for the beginning."""
        latest = self._clock.now() - self._settings.repair_grace_ms
        # What is published again comes to stand at the end: looking further, we would find it for ever.
        end = (await self._bus.stream_state(stream)).last_sequence
        seen = 0
        async for message in self._held(stream, subject, max(start, 1)):
            if message.sequence > end:
                return 0
            seen += 1
            if _due(message) < latest:
                await self._again(stream, message, findings)
            if seen >= MOST_HELD:
                return message.sequence + 1
        return 0

    async def _held(self, stream: str, subject: str, start: int) -> AsyncIterator[StoredMessage]:
        async for page in self._bus.pages(stream, subject, start=start, size=PAGE):
            for message in page:
                yield message

    async def _again(self, stream: str, message: StoredMessage, findings: Findings) -> None:
        """The same message on its own subject, unless it has just been released."""
        kept = {name: message.headers[name] for name in _KEPT if name in message.headers}
        headers = kept | fenced(message.sequence)
        try:
            await self._bus.publish(message.subject, message.payload, headers)
        except WrongSequence:
            return
        findings.count("overdue")
        log.error("a held message was overdue and is published again", stream=stream, subject=message.subject)


_KEPT = (SCHEDULE, SCHEDULE_TARGET, "Jetcron-Event")


def _due(message: StoredMessage) -> int:
    """When a held message should have been released, epoch ms; far in the future when it does not say."""
    schedule = message.headers.get(SCHEDULE, "")
    try:
        return rfc3339_ms(schedule.removeprefix("@at "))
    except ValueError:
        return 1 << 62


def _group(payload: bytes) -> int:
    if payload.isdigit() and int(payload) < GROUPS:
        return int(payload)
    raise DecodeError(f"a sweep message names a group from 0 to {GROUPS - 1}, not {payload[:40]!r}")


async def arm(bus: Bus, settings: Settings) -> int:
    """Have the server release a sweep message for each group, once a period; returns how many were absent."""
    armed = 0
    held = set(await bus.subjects(bus.names.work, f"{bus.names.namespace}.health.held.*"))
    every = settings.sweep_every
    for group in range(GROUPS):
        subject = bus.names.health_held(group)
        if subject in held and not await _other_period(bus, subject, every):
            continue
        # Nobody reading must not let them pile up; but all groups come at one instant and wait for each other,
        # so that one period would starve the last of them. A group swept lately costs one read.
        headers = {
            SCHEDULE: f"@every {every}s",
            SCHEDULE_TARGET: bus.names.health_due,
            SCHEDULE_TTL: f"{PERIODS_KEPT * every}s",
        }
        await bus.store(Outgoing(subject, str(group).encode(), headers))
        armed += 1
    return armed


async def _other_period(bus: Bus, subject: str, every: int) -> bool:
    stored = await bus.last(bus.names.work, subject)
    return stored is None or stored.headers.get(SCHEDULE) != f"@every {every}s"
