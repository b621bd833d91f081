"""How much one executor takes, and when what it took may start.

Owns credits for pulls, slots for execution, places for runs that wait for their time, and the one alarm that
wakes them. Waiting runs fill no slot; a run that is due and finds none waits here for its turn.
"""

import asyncio
import heapq
from itertools import count

from jetcron.clock import Clock

_YIELDS = 16
"""How often a run that ended lets others start before it records its end."""

_Waiting = tuple[float, int, int, float, "asyncio.Future[None]"]


class Room:
    """Credits, in messages. A pull reserves what it may bring; a run keeps its credit until it ends.

    A run that waits for its time gives its credit back while there are places to wait in, and takes it again
    when it is due, even if that leaves fewer than none: then nothing is pulled until enough runs have ended.
    """

    def __init__(self, clock: Clock, slots: int, places: int, functions: int) -> None:
        # Every function keeps one open pull: with fewer slots than functions, those pulls still must fit.
        self._free = max(slots, 2 * functions)
        self._places = places
        self._slots = asyncio.Semaphore(slots)
        self._changed = asyncio.Event()
        self._clock = clock
        self._starting = 0
        self.running = 0
        """Runs executing now."""
        self._waiting: list[_Waiting] = []
        self._numbers = count()
        self._sooner = asyncio.Event()

    async def any_free(self) -> None:
        """Wait until there is a credit."""
        while self._free <= 0:
            self._changed.clear()
            await self._changed.wait()

    def reserve_now(self, most: int) -> int:
        """Take up to `most` credits, and up to half of what is free: others pull too. 0 when there is none."""
        taken = max(0, min(most, (self._free + 1) // 2))
        self._free -= taken
        return taken

    def give_back(self, credits: int) -> None:
        """Return credits that were reserved and are not needed."""
        self._free += credits
        if self._free > 0:
            self._changed.set()

    @property
    def holding(self) -> int:
        """Runs that wait for their time."""
        return len(self._waiting)

    # Waiting for a time.

    async def wait_until(self, fire_at: int, *, most: float) -> None:
        """Wait until `fire_at` (epoch ms) on our clock, but no longer than `most` seconds: ours may be wrong.

        Must be followed by `enter` at once: whoever wakes counts as starting.
        """
        left = (fire_at - self._clock.now()) / 1000
        if left <= 0:
            self._starting += 1
            return
        parked = self._places > 0
        if parked:
            self._places -= 1
            self.give_back(1)
        now = self._clock.monotonic()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first = (now + min(left, most), next(self._numbers), fire_at, now + most, future)
        heapq.heappush(self._waiting, first)
        if self._waiting[0] is first:
            self._sooner.set()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._starting -= 1
            raise
        finally:
            if parked:
                self._places += 1
                self._free -= 1

    async def until(self, fire_at: int, *, most: float) -> None:
        """As `wait_until`, for whoever has something to find out first and is not to be waited for."""
        await self.wait_until(fire_at, most=most)
        self._starting -= 1

    async def ring(self) -> None:
        """Wake the waiting runs at their times, all that are due at once. Until cancelled."""
        while True:
            self._sooner.clear()
            if not self._waiting:
                await self._sooner.wait()
                continue
            left = self._waiting[0][0] - self._clock.monotonic()
            if left > 0:
                try:
                    async with asyncio.timeout(left):
                        await self._sooner.wait()
                except TimeoutError:
                    pass
                continue
            self._wake()

    def _wake(self) -> None:
        """One pass: whoever is due by the wall clock too, or has waited as long as it may."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        while self._waiting and self._waiting[0][0] <= monotonic:
            _, number, fire_at, limit, future = heapq.heappop(self._waiting)
            if future.done():
                continue
            if fire_at > now and monotonic < limit:
                again = min(monotonic + (fire_at - now) / 1000, limit)
                heapq.heappush(self._waiting, (again, number, fire_at, limit, future))
                continue
            self._starting += 1
            future.set_result(None)

    # Executing.

    async def enter(self) -> None:
        """Take a slot to execute in."""
        try:
            await self._slots.acquire()
        finally:
            self._starting -= 1
        self.running += 1

    def leave(self) -> None:
        """Free the slot."""
        self.running -= 1
        self._slots.release()

    async def let_others_start(self) -> None:
        """Recording can wait a moment, starting cannot: of a thousand runs due at one instant, all start first."""
        for _ in range(_YIELDS):
            if not self._starting:
                return
            await self._clock.sleep(0)
