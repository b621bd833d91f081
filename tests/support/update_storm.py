"""Orders about schedules by the hundred a second, most of them around the instants at which the schedules fire."""

import asyncio
from collections import Counter
from random import Random
from typing import Any

from jetcron.bus import Bus
from jetcron.errors import BusError, NotFound
from jetcron.schedules.orders import Order, Part, submit
from tests.support.stack import not_done

FUNCTION = "updates.work"
SECOND = 1_000
_WAITING = 8
"""Orders that may wait for cron-sync: it is to be hit now, not later."""
_TIMES: tuple[dict[str, Any], ...] = (
    {"every": 1_000},
    {"every": 1_500},
    {"cron": "*/1 * * * * *"},
    {"cron": "*/2 * * * * *"},
)


class Storm:
    """What is ordered of `many` schedules together, and of `few` one by one. The same seed, the same choices."""

    def __init__(self, bus: Bus, seed: int, *, many: int, few: int, settles: int) -> None:
        self.many = [f"many-{n}" for n in range(many)]
        self.few = [f"few-{n}" for n in range(few)]
        self.done: Counter[str] = Counter()
        self._bus = bus
        self._random = Random(seed)
        self._settles = settles
        self._number = 0

    @property
    def ids(self) -> list[str]:
        return self.many + self.few

    async def create(self) -> None:
        """Create them all; returns when they are in the registry."""
        await submit(self._bus, "create", [Part(id, self._new(id)) for id in self.ids], by="storm", wait=20)

    async def run(self, seconds: float, *, least: int = 0) -> None:
        """Order for so long, and until so much is ordered, whatever is down meanwhile."""
        clock = self._bus.clock
        until = clock.now() + seconds * SECOND
        while clock.now() < until or self.done.total() < least:
            try:
                await self._aim()
                if await self._waiting() < _WAITING:
                    await self._many()
                    await self._one()
            except BusError:
                self.done["not stored"] += 1
                await asyncio.sleep(0.1)

    async def drained(self) -> bool:
        """Whether cron-sync has applied all of it."""
        return await self._waiting() == 0

    async def _waiting(self) -> int:
        try:
            info = await self._bus.consumer(self._bus.names.work, self._bus.names.cron_sync)
        except NotFound:
            return 0
        return await not_done(self._bus, info)

    async def _aim(self) -> None:
        """Wait until a change is in force about when they fire, or is made when they do, or their ticks are out."""
        now = self._bus.clock.now()
        wanted = self._random.choice((-self._settles, 0, -500, self._random.randrange(SECOND)))
        offset = wanted + self._random.randrange(-80, 80)
        wait = (offset - now) % SECOND
        if wait < 120:
            await self._bus.clock.sleep(wait / SECOND)

    async def _many(self) -> None:
        some = self._random.sample(self.many, self._random.randint(1, len(self.many)))
        what = self._random.choice(
            ("update", "update", "update", "time", "executes", "pause", "unpause", "unpause")
        )
        if what in ("pause", "unpause"):
            await self._order(what, [Part(id) for id in some])  # type: ignore[arg-type]
            return
        changes: dict[str, Any] = {"payload": self._next()}
        if what == "time":
            changes |= self._random.choice(_TIMES)
        elif what == "executes":
            changes["executes"] = self._random.choice(("other", "jetcron", "jetcron"))
        await self._order("update", [Part(id, {"id": id, **changes}) for id in some])

    async def _one(self) -> None:
        """What may be refused goes alone."""
        id = self._random.choice(self.few)
        match self._random.randrange(7):
            case 0:
                await self._order("delete", [Part(id)])
            case 1 | 2:
                await self._order("create", [Part(id, self._new(id))])
            case 3:
                await self._order("archive", [Part(id)])
            case 4:
                await self._order("unpause", [Part(id)])
            case 5:
                limit = self._random.choice((1, 3, None))
                changes = {"id": id, "payload": self._next(), "max_runs": limit} | self._random.choice(_TIMES)
                await self._order("update", [Part(id, changes)])
            case _:
                at = self._bus.clock.now() + self._settles + self._random.randrange(100, 1_500)
                changes = {"id": id, "payload": self._next(), "at": at, "max_runs": None}
                await self._order("update", [Part(id, changes)])

    async def _order(self, what: Order, parts: list[Part]) -> None:
        await submit(self._bus, what, parts, by="storm", wait=None)
        self.done[what] += len(parts)

    def _new(self, id: str) -> dict[str, Any]:
        return {"id": id, "function": FUNCTION, "payload": self._next(), "every": SECOND}

    def _next(self) -> int:
        self._number += 1
        return self._number
