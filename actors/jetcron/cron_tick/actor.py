"""cron-tick: turns released ticks into runs and next ticks, in batches.

Owns no state: what it needs it reads for each batch. If it dies before the atomic batch is stored, nothing
happened; if it dies after, the ticks are delivered again and lead to the same messages.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from jetcron import dispatch, ledger
from jetcron.bus import Bus, Delivery, Outgoing
from jetcron.carried import note_restored
from jetcron.clock import Clock
from jetcron.cron import CronError
from jetcron.cron_tick.definitions import Definitions, read
from jetcron.cycle import Decision, Nothing, Rearm, Turn, Undecided, decide_turn, is_late
from jetcron.dead_letters import bury
from jetcron.many import each
from jetcron.process import Process
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Gap, Tick
from jetcron_protocol.subjects import InvalidName

log = structlog.get_logger("jetcron.cron-tick")

BATCH = 500
LATE = 5
"""Late ticks turned at one time."""
ENDED = 50
"""Schedules that one command says have ended, whose runs are stored with it."""
UNREADY_SECONDS = 30.0
"""A tick whose schedule cannot be read here is handed back for so long."""
UNDECIDED_SECONDS = 0.1
"""A tick whose revision is being replaced is handed back for so long: as a rule cron-sync needs less."""
WORKERS = 2
"""Batches in hand at one time: one is read and decided while another is being stored."""


@dataclass(frozen=True, slots=True)
class Released:
    """A released tick and the deliveries that brought it: of several copies, as two chains make, one is turned."""

    tick: Tick
    deliveries: list[Delivery]


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
        """One batch: read the definitions, decide, store everything, acknowledge what stands.

        Late ticks go in small parts of their own: each may lead to a thousand runs.
        """
        released = await self._decode(deliveries)
        now = self._clock.now()
        late: list[Released] = []
        on_time: list[Released] = []
        for item in released:
            (late if is_late(item.tick, now, self._settings.late_after_ms) else on_time).append(item)
        for part in (on_time, *(late[start : start + LATE] for start in range(0, len(late), LATE))):
            if part:
                await self._turn(part)

    async def _turn(self, released: Sequence[Released]) -> None:
        # The time comes first: what is read after it was in force then, should we be frozen in between.
        now = self._clock.now()
        known = await read(self._bus, [item.tick for item in released], now=now)
        gone_on = await self._gone_on([item.tick for item in released], now)
        decided: list[tuple[Released, Decision]] = []
        unready: list[Delivery] = []
        undecided: list[Delivery] = []
        for item in released:
            try:
                decision = self._decide(item.tick, known, now, later_stands=item.tick in gone_on)
            except (DecodeError, CronError) as error:
                unready += self._unready(item, error)
                continue
            if isinstance(decision, Undecided):
                undecided += item.deliveries
            else:
                decided.append((item, decision))
        for item, decision in decided:
            if isinstance(decision, Rearm):
                await note_restored(self._bus, item.tick.revision, now, read_at=item.tick.read_at)
        turned, untold = await self._told(decided, known)
        unready += untold
        groups = [self._messages(item.tick, decision, known, now) for item, decision in turned]
        ended: dict[str, list[int]] = {}
        for index, (item, decision) in enumerate(turned):
            if isinstance(decision, Turn) and decision.ended:
                ended.setdefault(known.app(item.tick), []).append(index)
        standing = await self._store(turned, groups, ended)
        for index, (item, decision) in enumerate(turned):
            if index in standing:
                for delivery in item.deliveries:
                    await delivery.ack()
                self._report(item.tick, decision)
        left = [
            one for index, (item, _) in enumerate(turned) if index not in standing for one in item.deliveries
        ]
        await self._process.hand_back(left)
        await self._process.hand_back(unready, seconds=UNREADY_SECONDS)
        for delivery in undecided:  # not counted: nothing failed
            await delivery.hand_back(UNDECIDED_SECONDS)

    def _unready(self, item: Released, error: Exception) -> list[Delivery]:
        """A newer program wrote it, or this host lacks its zone: another copy may know better, and nothing is lost."""
        log.error("a schedule cannot be read here", schedule=item.tick.schedule, reason=str(error))
        return item.deliveries

    async def _told(
        self, decided: Sequence[tuple[Released, Decision]], known: Definitions
    ) -> tuple[list[tuple[Released, Decision]], list[Delivery]]:
        """Write what does not run into the ledger; those of which it tells all, and what brought the others."""
        unready: dict[Tick, list[Delivery]] = {}

        async def tell(told: tuple[Released, Gap]) -> None:
            item, gap = told
            try:
                await ledger.record(self._bus, gap, known.function(item.tick))
            except DecodeError as error:
                unready[item.tick] = self._unready(item, error)

        gaps = [
            (item, decision.gap)
            for item, decision in decided
            if isinstance(decision, Turn) and decision.gap is not None
        ]
        await each(tell, gaps)
        return (
            [(item, decision) for item, decision in decided if item.tick not in unready],
            [one for deliveries in unready.values() for one in deliveries],
        )

    async def _store(
        self,
        turned: Sequence[tuple[Released, Decision]],
        groups: Sequence[list[Outgoing]],
        ended: dict[str, list[int]],
    ) -> set[int]:
        """Store each group whole; which of them stand.

        What fired for the last time is told cron-sync in a few commands, each stored with the runs of those it names:
        it takes one command after the other, and thousands may end at one instant.
        """
        last = {index for indices in ended.values() for index in indices}
        together = [[index] for index in range(len(groups)) if index not in last]
        commands: dict[int, Outgoing] = {}
        for app, indices in ended.items():
            for start in range(0, len(indices), ENDED):
                some = indices[start : start + ENDED]
                order = dispatch.ended(app, [turned[index][0].tick for index in some])
                commands[len(together)] = dispatch.command(self._names, order)
                together.append(some)
        merged = [[message for index in some for message in groups[index]] for some in together]
        for number, command in commands.items():
            merged[number].append(command)
        standing = await self._bus.publish_groups(merged)
        return {index for number in standing for index in together[number]}

    def _decide(self, tick: Tick, known: Definitions, now: int, *, later_stands: bool) -> Decision:
        problem = known.unreadable.get(tick.schedule) or known.unreadable.get((tick.schedule, tick.revision))
        if problem is not None:
            raise problem
        return decide_turn(
            tick,
            known.current.get(tick.schedule),
            known.past.get((tick.schedule, tick.revision)),
            now=now,
            late_after=self._settings.late_after_ms,
            later_stands=later_stands,
            replacing=(tick.schedule, tick.revision) in known.replacing,
            archived=(tick.schedule, tick.revision) in known.archived,
        )

    async def _decode(self, deliveries: Sequence[Delivery]) -> list[Released]:
        released: dict[Tick, Released] = {}
        for delivery in deliveries:
            try:
                tick = decode(Tick, delivery.payload)
                named = self._names.parse_tick(delivery.subject)
                if (named.schedule, named.revision, named.at) != (tick.schedule, tick.revision, tick.at):
                    raise DecodeError(f"Tick: it says {tick} but came on {delivery.subject}")
            except (DecodeError, InvalidName) as error:
                await bury(self._bus, self._process.metrics, delivery, "tick", str(error))
                await delivery.ack()
            else:
                released.setdefault(tick, Released(tick, [])).deliveries.append(delivery)
        return list(released.values())

    async def _gone_on(self, ticks: Sequence[Tick], now: int) -> set[Tick]:
        """The late ones among them whose chain has a later tick of the same revision, held or due."""
        gone_on = set()

        async def look(tick: Tick) -> None:
            filter = self._names.ticks_of(tick.schedule, tick.revision)
            names = await self._bus.subjects(self._names.work, filter)
            if any(self._names.parse_tick(name).at > tick.at for name in names):
                gone_on.add(tick)

        await each(look, [tick for tick in ticks if is_late(tick, now, self._settings.late_after_ms)])
        return gone_on

    def _messages(self, tick: Tick, decision: Decision, known: Definitions, now: int) -> list[Outgoing]:
        lead = self._settings.lead_ms
        match decision:
            case Nothing() | Undecided():
                return []
            case Rearm(tick=first):
                return [dispatch.held_tick(self._names, known.laden(first), lead)]
            case Turn(runs=runs, next=following):
                messages = [dispatch.new_run(self._names, run, now=now, lead=lead) for run in runs]
                if following is not None:
                    messages.append(dispatch.held_tick(self._names, known.laden(following), lead))
                return messages

    def _report(self, tick: Tick, decision: Decision) -> None:
        match decision:
            case Nothing(reason=reason):
                log.debug("tick settled", schedule=tick.schedule, at=tick.at, reason=reason)
            case Rearm():
                log.warning("registry restored, chain started anew", schedule=tick.schedule)
            case Turn(runs=runs, gap=gap):
                self._process.metrics.ticks.inc()
                for run in runs:
                    log.debug("fired", schedule=tick.schedule, run=run.run, at=run.scheduled_at)
                if gap is not None and gap.reason == "handed_over":
                    log.debug("handed over", schedule=tick.schedule, at=tick.at, count=gap.count)
                elif gap is not None:
                    self._process.metrics.missed.inc(gap.count)
                    log.warning(
                        "occurrences missed", schedule=tick.schedule, count=gap.count, reason=gap.reason
                    )
