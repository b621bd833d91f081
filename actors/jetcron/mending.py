"""How a broken chain is made to go on, whoever finds it: a sweep, or cron-sync before it replaces the revision.

Owns no state. Whatever is written is deterministic: the tick has its occurrence's own subject, the runs it leads to
have their ids, and a gap that is told twice is told once. If the process dies here, whoever finds the chain next does
the same again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from jetcron import dispatch, ledger
from jetcron.bus import Bus, Outgoing
from jetcron.clock import Clock
from jetcron.cron import CronError
from jetcron.cycle import Entry, Repair, repair
from jetcron.errors import TryAgain
from jetcron_protocol.codec import DecodeError
from jetcron_protocol.messages import Tick
from jetcron_protocol.subjects import split_function

log = structlog.get_logger("jetcron.mending")


@dataclass(frozen=True, slots=True)
class Broken:
    """An active schedule without a tick; `end` is that of its revision, if that is about to be replaced."""

    entry: Entry
    healthy_at: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Mended:
    """How one of them goes on."""

    broken: Broken
    repair: Repair

    @property
    def schedule(self) -> str:
        return self.broken.entry.schedule.id


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
            made = repair(one.entry, healthy_at=one.healthy_at, horizon=horizon, end=one.end)
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
        elif one.broken.end is None and gap is not None:
            app, _ = split_function(entry.schedule.function)
            last = Tick(schedule=one.schedule, revision=entry.revision, at=gap.to)
            groups.append([dispatch.command(bus.names, dispatch.ended(app, [last]))])
    if len(await bus.publish_groups(groups)) < len(groups):
        raise TryAgain(0, 0, "what mends cycles was not confirmed")
