"""What `jetcron doctor` says of schedules: an active one always has a tick, held or due.

Only reads, and of very many schedules a sample of the shards.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.cycle import awaited
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import SHARDS
from jetcron_protocol.messages import Schedule

Level = Literal["ok", "note", "wrong"]

_SAMPLE = 20_000
"""Schedules looked at."""
_SETTLES = 2.0
"""Seconds after which what looked broken is looked at again."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at and what was found; `do` is what mends it. A note is no fault."""

    level: Level
    about: str
    what: str
    do: str = ""


class Cycles:
    """The schedules and their ticks, compared by name."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock

    async def look(self) -> list[Finding]:
        """Those that should fire and never would."""
        shards = [f"{number:02x}" for number in range(SHARDS)]
        random.shuffle(shards)
        seen = 0
        suspects: list[str] = []
        looked = 0
        for start in range(0, SHARDS, 16):
            for schedules, ticking in await asyncio.gather(*map(self._shard, shards[start : start + 16])):
                seen += len(schedules)
                suspects += schedules - ticking
            looked += 16
            if seen > _SAMPLE:
                break
        sampled = f"{seen} schedules" if looked == SHARDS else f"{seen} schedules, a sample"
        broken = await self._really_broken(suspects)
        if broken:
            named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
            return [
                Finding(
                    "wrong",
                    "schedules",
                    f"{len(broken)} of {sampled} have no tick: {named}",
                    "the health-checker restarts them within a few minutes; see that it runs",
                )
            ]
        return [Finding("ok", "schedules", f"{sampled}: each active one has its tick")]

    async def _shard(self, shard: str) -> tuple[set[str], set[str]]:
        """The schedules of a shard, and those with a tick. Ticks are read last: a new schedule gets its own later."""
        keys = await self._bus.subjects(self._names.registry, self._names.schedules_of_shard(shard))
        if not keys:
            return set(), set()
        ticks = await self._bus.subjects(self._names.work, self._names.ticks_of_shard(shard))
        return (
            {self._names.parse_schedule_key(key) for key in keys},
            {self._names.parse_tick(tick).schedule for tick in ticks},
        )

    async def _really_broken(self, suspects: Sequence[str]) -> list[str]:
        """Those that are active, await an occurrence, and have still no tick a moment later."""
        candidates = await self._active(suspects)
        if not candidates:
            return []
        await self._clock.sleep(_SETTLES)
        broken = []
        for schedule in await self._active(candidates, over=await orders_stand(self._bus)):
            if not await self._bus.subjects(self._names.work, self._names.ticks_of(schedule)):
                broken.append(schedule)
        return broken

    async def _active(self, schedules: Sequence[str], *, over: bool = False) -> list[str]:
        """Those that need a tick; `over`: of one whose only time has passed, an order that ends it may stand."""
        keys = {self._names.schedule_key(schedule): schedule for schedule in schedules}
        now = self._clock.now()
        found = []
        for key, stored in (await self._bus.entries(list(keys))).items():
            try:
                entry = decode(Schedule, stored.payload)
            except DecodeError:
                found.append(keys[key])
                continue
            due = awaited(entry, now)
            if entry.state == "active" and due is not None and not (over and due <= now):
                found.append(entry.id)
        return sorted(found)


async def orders_stand(bus: Bus) -> bool:
    """Whether cron-sync has orders left; that nobody takes them is another finding."""
    return await bus.next_on(bus.names.work, bus.names.sync_all, 1) is not None
