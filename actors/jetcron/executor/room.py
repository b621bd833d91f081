"""How much one executor takes: credits for pulls, slots for execution, places for runs that wait for their time.

Owns numbers only. Waiting runs fill no slot; a run that is due and finds none waits here for its turn.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jetcron.clock import Clock

_YIELDS = 16
"""How often a run that ended lets others start before it records its end."""


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

    async def reserve(self, most: int, *, at_least: int) -> int:
        """Take up to `most` credits and half of what is free; waits until there are `at_least` (0 or 1)."""
        while self._free < at_least:
            self._changed.clear()
            await self._changed.wait()
        taken = max(0, min(most, (self._free + 1) // 2))
        self._free -= taken
        return taken

    def give_back(self, credits: int) -> None:
        """Return credits that were reserved and are not needed."""
        self._free += credits
        if self._free > 0:
            self._changed.set()

    def park(self) -> bool:
        """A run must wait for its time: give back its credit, if there is a place. True if it was parked."""
        if self._places <= 0:
            return False
        self._places -= 1
        self.give_back(1)
        return True

    def unpark(self) -> None:
        """Its time has come: the credit is taken again."""
        self._places += 1
        self._free -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Take a slot to execute in, and free it at the end."""
        self._starting += 1
        try:
            await self._slots.acquire()
        finally:
            self._starting -= 1
        try:
            yield
        finally:
            self._slots.release()

    async def let_others_start(self) -> None:
        """Recording can wait a moment, starting cannot: of a thousand runs due at one instant, all start first."""
        for _ in range(_YIELDS):
            if not self._starting:
                return
            await self._clock.sleep(0)
