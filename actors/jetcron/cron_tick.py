"""cron-tick: turns released ticks into runs and next ticks, in batches.

Owns no state: what it needs it reads for each batch. If it dies before the atomic batch is stored, nothing
happened; if it dies after, the ticks are delivered again and lead to the same messages.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from jetcron import dispatch
from jetcron.bus import Bus, Delivery, Outgoing, StoredMessage
from jetcron.clock import Clock
from jetcron.cycle import Decision, Entry, Nothing, Rearm, Turn, decide_turn, is_late
from jetcron.process import Process
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Gap, Past, Schedule, Tick
from jetcron_protocol.subjects import InvalidName, split_function

log = structlog.get_logger("jetcron.cron-tick")

BATCH = 500
WORKERS = 2
"""Batches in hand at one time: one is read and decided while another is being stored."""


@dataclass(frozen=True, slots=True)
class Released:
    """A released tick and the delivery that brought it."""

    tick: Tick
    delivery: Delivery


class CronTick:
    """Takes released ticks, gives runs and next ticks."""

    name = "cron-tick"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._process = process

    async def run(self) -> None:
        """Turn ticks until told to stop."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(
                    self._process.take(self._names.work, self._names.cron_tick, self.handle, most=BATCH)
                )

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """One batch: read the definitions, decide, store everything, acknowledge what stands."""
        released = await self._decode(deliveries)
        try:
            await self._turn(released)
        except DecodeError:
            for item in released:
                try:
                    await self._turn([item])
                except DecodeError as error:
                    # A newer program wrote it, or it is broken: another copy may read it, and nothing is lost.
                    log.error(
                        "a registry entry cannot be read", schedule=item.tick.schedule, reason=str(error)
                    )
                    await self._process.hand_back([item.delivery])

    async def _turn(self, released: Sequence[Released]) -> None:
        """Raises `DecodeError`, before anything is stored, when a definition cannot be read."""
        if not released:
            return
        current, past = await self._definitions([item.tick for item in released])
        now = self._clock.now()
        late = [item.tick for item in released if is_late(item.tick, now, self._settings.late_after_ms)]
        gone_on = await self._gone_on(late)
        groups: list[list[Outgoing]] = []
        decided: list[tuple[Released, Decision]] = []
        for item in released:
            tick = item.tick
            decision = decide_turn(
                tick,
                current.get(tick.schedule),
                past.get((tick.schedule, tick.revision)),
                now=now,
                late_after=self._settings.late_after_ms,
                later_stands=tick in gone_on,
            )
            if isinstance(decision, Turn) and decision.gap is not None:
                await self._bus.store(self._gap(decision.gap, current[tick.schedule].schedule.function))
            groups.append(self._messages(tick, decision, current, now))
            decided.append((item, decision))
        standing = set(await self._bus.publish_groups(groups))
        for index, (item, decision) in enumerate(decided):
            if index in standing:
                await item.delivery.ack()
                self._report(item.tick, decision)
        await self._process.hand_back(
            [item.delivery for index, (item, _) in enumerate(decided) if index not in standing]
        )

    async def _decode(self, deliveries: Sequence[Delivery]) -> list[Released]:
        released = []
        for delivery in deliveries:
            try:
                tick = decode(Tick, delivery.payload)
                named = self._names.parse_tick(delivery.subject)
                if (named.schedule, named.revision, named.at) != (tick.schedule, tick.revision, tick.at):
                    raise DecodeError(f"Tick: it says {tick} but came on {delivery.subject}")
            except (DecodeError, InvalidName) as error:
                await self._bus.store(
                    dispatch.undecodable(self._names, delivery, "tick", str(error), self._clock.now())
                )
                await delivery.ack()
                self._process.metrics.dead.labels("tick").inc()
                log.error("a tick cannot be read", subject=delivery.subject, reason=str(error))
            else:
                released.append(Released(tick, delivery))
        return released

    async def _definitions(
        self, ticks: Sequence[Tick]
    ) -> tuple[dict[str, Entry], dict[tuple[str, int], Past]]:
        """The registry's entries of these ticks, and the replaced revisions among them, as the leader has them."""
        keys = {self._names.schedule_key(tick.schedule): tick.schedule for tick in ticks}
        found = await self._bus.entries(list(keys))
        current: dict[str, Entry] = {}
        for key, schedule in keys.items():
            stored = found.get(key)
            entry = self._entry(stored)
            if entry is None:
                # Absent or unreadable: the leader has the last word.
                entry = self._entry(await self._bus.entry(key))
            if entry is not None:
                current[schedule] = entry
        for tick in ticks:
            entry = current.get(tick.schedule)
            if entry is not None and entry.revision < tick.revision:
                fresh = self._entry(await self._bus.entry(self._names.schedule_key(tick.schedule)))
                if fresh is not None:
                    current[tick.schedule] = fresh
        return current, await self._past(ticks, current)

    async def _past(self, ticks: Sequence[Tick], current: dict[str, Entry]) -> dict[tuple[str, int], Past]:
        replaced = {
            self._names.past_key(tick.schedule, tick.revision): (tick.schedule, tick.revision)
            for tick in ticks
            if tick.schedule in current and current[tick.schedule].revision > tick.revision
        }
        past: dict[tuple[str, int], Past] = {}
        if replaced:
            found = await self._bus.entries(list(replaced))
            for key, which in replaced.items():
                stored = found.get(key) or await self._bus.entry(key)
                if stored is not None:
                    past[which] = decode(Past, stored.payload)
        return past

    def _entry(self, stored: StoredMessage | None) -> Entry | None:
        return None if stored is None else Entry(decode(Schedule, stored.payload), stored.sequence)

    async def _gone_on(self, late: Sequence[Tick]) -> set[Tick]:
        """Those late ticks whose chain has a later tick of the same revision, held or due."""
        gone_on = set()
        for tick in late:
            filter = self._names.ticks_of(tick.schedule, tick.revision)
            names = await self._bus.subjects(self._names.work, filter)
            if any(self._names.parse_tick(name).at > tick.at for name in names):
                gone_on.add(tick)
        return gone_on

    def _messages(
        self, tick: Tick, decision: Decision, current: dict[str, Entry], now: int
    ) -> list[Outgoing]:
        lead = self._settings.lead_ms
        match decision:
            case Nothing():
                return []
            case Rearm(tick=first):
                return [dispatch.held_tick(self._names, first, lead)]
            case Turn(runs=runs, next=following, ended=ended):
                messages = [dispatch.new_run(self._names, run, now=now, lead=lead) for run in runs]
                if following is not None:
                    messages.append(dispatch.held_tick(self._names, following, lead))
                if ended:
                    app, _ = split_function(current[tick.schedule].schedule.function)
                    messages.append(dispatch.command(self._names, dispatch.ended(app, tick)))
                return messages

    def _gap(self, gap: Gap, function: str) -> Outgoing:
        return dispatch.gap(self._names, gap, function, self._settings.keep_completed)

    def _report(self, tick: Tick, decision: Decision) -> None:
        match decision:
            case Nothing(reason=reason):
                log.debug("tick settled", schedule=tick.schedule, at=tick.at, reason=reason)
            case Rearm():
                log.warning("registry restored, chain started anew", schedule=tick.schedule)
            case Turn(runs=runs, gap=gap):
                self._process.metrics.ticks.inc()
                self._process.metrics.missed.inc(gap.count if gap else 0)
                for run in runs:
                    log.debug("fired", schedule=tick.schedule, run=run.run, at=run.scheduled_at)
                if gap is not None:
                    log.warning(
                        "occurrences missed", schedule=tick.schedule, count=gap.count, reason=gap.reason
                    )
