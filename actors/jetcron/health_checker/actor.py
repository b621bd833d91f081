"""health-checker: finds broken cycles and restarts them, removes orphan ticks, frees what was not released.

Owns no state but what a sweep notes in the registry: when a group of shards was last found whole, and how far
its long reads came. The server releases one sweep message a group every minute, to any copy. If it dies in a
sweep, the message is delivered again or the next one comes; every repair can be repeated. Beside its sweeps each copy
takes canaries.
"""

import asyncio
from collections.abc import Sequence

import structlog

from jetcron.bus import SCHEDULE, SCHEDULE_TARGET, SCHEDULE_TTL, Bus, Delivery, Outgoing
from jetcron.carried import note_lost, note_restored, witness, witnessed
from jetcron.clock import Clock
from jetcron.dead_letters import bury
from jetcron.health_checker.archived import ArchivedRuns
from jetcron.health_checker.breaks import BreakCounts
from jetcron.health_checker.canary import CanaryWatch
from jetcron.health_checker.chains import Chains
from jetcron.health_checker.findings import Findings
from jetcron.health_checker.overdue import Overdue
from jetcron.process import Process
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.ids import GROUPS
from jetcron_protocol.messages import Sweep

log = structlog.get_logger("jetcron.health-checker")

PERIODS_KEPT = 5
"""How many periods a sweep message waits to be read."""
RUNS_GROUP = 0
EVENTS_GROUP = 1
"""The sweeps of these two groups also look through held runs and held events; the first, at runs nobody takes."""


class HealthChecker:
    """Takes sweep messages and canaries, gives repairs and figures."""

    name = "health-checker"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._process = process
        breaks = BreakCounts(bus, clock, process.metrics)
        self._overdue = Overdue(bus, clock, settings, breaks)
        self._chains = Chains(bus, clock, settings, breaks, self._overdue)
        self._archived = ArchivedRuns(bus, clock, settings, by=self.name)
        self._canary = CanaryWatch(bus, clock, settings, process)

    async def run(self) -> None:
        """Arm the sweeps that are absent, then sweep until told to stop."""
        if not await self._process.begin(lambda: arm(self._bus, self._settings)):
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(
                self._process.take(self._names.work, self._names.health_checker, self.handle, most=1)
            )
            group.create_task(self._canary.run())

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Sweep the groups these messages name."""
        for delivery in deliveries:
            try:
                group = _group(delivery.payload)
            except DecodeError as error:
                await bury(self._bus, self._process.metrics, delivery, "health", str(error))
            else:
                await self.sweep(group, message=delivery.sequence)
            await delivery.ack()

    async def sweep(self, group: int, *, message: int = 0) -> Findings:
        """Look at every schedule of a group, and mend what is broken. One swept a moment ago is left alone.

        `message` is the sequence of the sweep message: delivered again, it counts no break a second time.
        """
        began = self._clock.monotonic()
        seen_at = self._clock.now()
        told = await witnessed(self._bus, group)
        note, sequence = await self._note(group)
        if sequence < told:
            await note_lost(self._bus, told, self._clock.now())
        findings = Findings(
            seen_at=seen_at,
            message=message,
            healthy_at=min(seen_at - self._settings.repair_grace_ms, await self._settled()),
        )
        if 0 <= seen_at - note.swept_at < self._settings.sweep_every_ms // 2:
            if told < sequence:  # who noted it died before it was told
                await witness(self._bus, group, sequence)
            return findings
        metrics = self._process.metrics
        try:
            cursor = await self._mend(group, note, findings)
        finally:
            # Also of a sweep that storage interrupts: the next one counts no break a second time.
            for cause, times in findings.repaired.items():
                metrics.repairs.labels(cause).inc(times)
        await self._take_note(group, note, findings, cursor)
        metrics.sweeps.inc()
        metrics.sweep_seconds.observe(self._clock.monotonic() - began)
        metrics.schedules.labels(f"{group:x}").set(findings.schedules)
        log.debug("swept", group=group, schedules=findings.schedules, repaired=findings.repaired)
        return findings

    async def _mend(self, group: int, note: Sweep, findings: Findings) -> int:
        """Everything a sweep looks at; where the next one goes on with what is read in parts."""
        await self._chains.sweep(group, note, findings)
        names = self._names
        if findings.newest > (await self._bus.stream_state(names.registry)).last_sequence:
            await note_restored(self._bus, findings.newest, self._clock.now())
        if group == RUNS_GROUP:
            await self._archived.cancel(findings)
            return await self._overdue.messages(names.work, names.run_later_all, note.cursor, findings)
        if group == EVENTS_GROUP:
            return await self._overdue.messages(names.later, names.later_held_all, note.cursor, findings)
        return 0

    async def _note(self, group: int) -> tuple[Sweep, int]:
        """What the last sweep of a group noted, and the sequence of that; 0: nothing is there."""
        stored = await self._bus.entry(self._names.health_key(group))
        if stored is not None:
            try:
                return decode(Sweep, stored.payload), stored.sequence
            except DecodeError as error:
                log.error("a sweep's note cannot be read, starting afresh", group=group, reason=str(error))
        return Sweep(group=group, healthy_at=0), 0 if stored is None else stored.sequence

    async def _take_note(self, group: int, note: Sweep, findings: Findings, cursor: int) -> None:
        whole = findings.whole and not findings.absent
        entry = Sweep(
            group=group,
            healthy_at=max(note.healthy_at, findings.healthy_at) if whole else note.healthy_at,
            swept_at=findings.seen_at,
            cursor=cursor,
            absent=findings.absent,
            # A rotation in which something could not be mended vouches for nothing.
            rotation_at=findings.rotation_at if findings.whole else 0,
        )
        stored = await self._bus.publish(self._names.health_key(group), encode(entry))
        await witness(self._bus, group, stored.sequence)

    async def _settled(self) -> int:
        """Up to when no sync command stands: one that does may have written an entry and not yet its tick."""
        oldest = await self._bus.next_on(self._names.work, self._names.sync_all, 1)
        return oldest.stored_at - 1 if oldest is not None else self._clock.now()


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
