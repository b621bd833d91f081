"""How a broken chain is made to go on, whoever finds it: a sweep, or cron-sync before it replaces the revision.

Owns no state. Whatever is written is deterministic: the tick has its occurrence's own subject, the runs it leads to
have their ids, and a gap that is told twice is told once. If the process dies here, whoever finds the chain next does
the same again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from jetcron import dispatch, ledger
from jetcron.bus import Bus, Outgoing, StoredMessage
from jetcron.clock import Clock
from jetcron.cron import CronError
from jetcron.cycle import Entry, Repair, repair
from jetcron.errors import TryAgain
from jetcron.many import each
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import group_of, shard
from jetcron_protocol.messages import Sweep, Tick
from jetcron_protocol.subjects import TickName, split_function

log = structlog.get_logger("jetcron.mending")


@dataclass(frozen=True, slots=True)
class Broken:
    """An active schedule without a tick, and when its group was last found whole."""

    entry: Entry
    healthy_at: int


@dataclass(frozen=True, slots=True)
class Mended:
    """How one of them goes on."""

    broken: Broken
    repair: Repair

    @property
    def schedule(self) -> str:
        return self.broken.entry.schedule.id


async def standing(bus: Bus, schedules: Iterable[str]) -> dict[str, list[TickName]]:
    """The ticks of each of these schedules, held and due, of all its revisions."""
    found: dict[str, list[TickName]] = {id: [] for id in schedules}
    for subject in await bus.subjects_of(bus.names.work, [bus.names.ticks_of(id) for id in found]):
        tick = bus.names.parse_tick(subject)
        found[tick.schedule].append(tick)
    return found


async def without_tick(
    bus: Bus, entries: Sequence[Entry], ticks: Mapping[str, Sequence[TickName]]
) -> list[Broken]:
    """Those of these active revisions that have no tick among `ticks`, which are all there are.

    A tick that is being released or turned is never mistaken for one that is lost: the server removes a held one in
    the step that releases it, and a due one stands until it is acknowledged, after the next was stored. So the leader,
    which names all at one instant, always names one of them; of a replica, which names them and then reads each, the
    due one may go between the two: whoever seems to have none is asked for once more. One whose last occurrence has
    been turned has none either: to turn that again makes the same run.
    """
    broken: list[Entry] = []

    async def ask(entry: Entry) -> None:
        own = bus.names.ticks_of(entry.schedule.id, entry.revision)
        if not await bus.subjects(bus.names.work, own):
            broken.append(entry)

    await each(
        ask,
        [one for one in entries if all(tick.revision != one.revision for tick in ticks[one.schedule.id])],
    )
    if not broken:
        return []
    groups = {bus.names.health_key(_group(one)) for one in broken}
    notes = await bus.entries(list(groups))
    return [Broken(one, _healthy_at(notes.get(bus.names.health_key(_group(one))))) for one in broken]


def _group(entry: Entry) -> int:
    return group_of(shard(entry.schedule.id))


def _healthy_at(note: StoredMessage | None) -> int:
    """As far back as it was in force, where there is no note or it cannot be read."""
    try:
        return 0 if note is None else decode(Sweep, note.payload).healthy_at
    except DecodeError:
        return 0


async def planned(bus: Bus, clock: Clock, found: Iterable[Broken]) -> tuple[list[Mended], bool]:
    """How each goes on that has something due; and whether all could be read here."""
    kept: dict[str, int] = {}
    mended = []
    whole = True
    for one in found:
        function = one.entry.schedule.function
        try:
            if function not in kept:
                kept[function] = await ledger.kept(bus, function)
            horizon = clock.now() - kept[function] * 1000
            made = repair(one.entry, healthy_at=one.healthy_at, horizon=horizon)
        except (DecodeError, CronError) as error:
            whole = False
            log.error(
                "a broken cycle cannot be restarted here", schedule=one.entry.schedule.id, reason=str(error)
            )
            continue
        if made is not None:
            mended.append(Mended(one, made))
    return mended, whole


async def carry_out(bus: Bus, mended: Sequence[Mended]) -> None:
    """Tell of what nobody can know, then hold the ticks. One that is over is said to be, to cron-sync."""
    groups: list[list[Outgoing]] = []
    for one in mended:
        entry = one.broken.entry
        gap, tick = one.repair.gap, one.repair.tick
        if gap is not None:
            await ledger.record(bus, gap, entry.schedule.function)
        if tick is not None:
            groups.append([dispatch.held_tick(bus.names, tick, bus.settings.lead_ms)])
        elif gap is not None:
            app, _ = split_function(entry.schedule.function)
            last = Tick(schedule=one.schedule, revision=entry.revision, at=gap.to)
            groups.append([dispatch.command(bus.names, dispatch.ended(app, [last]))])
    if len(await bus.publish_groups(groups)) < len(groups):
        raise TryAgain(0, 0, "what mends cycles was not confirmed")
