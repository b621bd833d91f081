"""A clock that stands still until a test moves it."""

import asyncio
import heapq
from itertools import count

_ROUNDS = 20
"""How often the loop turns after each wake-up, so that what woke may go to sleep again."""


class FakeClock:
    """`jetcron.clock.Clock`, moved by hand. `asyncio.timeout` does not know it: that stays real time."""

    def __init__(self, now: int = 1_900_000_000_000) -> None:
        self._started_at = now
        self._elapsed = 0  # microseconds: sums of floats would drift
        self._jumped = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._changed = asyncio.Event()

    def now(self) -> int:
        return self._started_at + self._jumped + self._elapsed // 1_000

    def monotonic(self) -> float:
        return self._elapsed / 1_000_000

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + _micro(seconds), next(self._order), future))
        self._changed.set()
        await future

    @property
    def sleeping(self) -> int:
        """How many tasks wait on this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def until_sleeping(self, sleepers: int = 1) -> None:
        """Wait, in real time, until so many tasks wait on this clock."""
        while self.sleeping < sleepers:
            self._changed.clear()
            await self._changed.wait()

    async def advance(self, seconds: float) -> None:
        """Let time pass; who sleeps wakes in order, each at its own time, and may sleep again within it."""
        until = self._elapsed + _micro(seconds)
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                self._elapsed = at
                future.set_result(None)
                await self._settle()
        self._elapsed = until

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator would; the monotonic clock does not see it."""
        self._jumped += round(seconds * 1_000)

    async def _settle(self) -> None:
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)


def _micro(seconds: float) -> int:
    return round(seconds * 1_000_000)
