"""Steps that wait, in the process: until their time has come, or what they wait for, or all wait and the run leaves.

Owns when a wait is over, and when the run is released. Never journals anything: a step that waits is journaled before
it comes here. If the process dies, whoever takes the run over finds each wait in the journal with its time, and what
came for it where it waits.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from jetcron.clock import Clock
from jetcron.errors import RunReleased, TryAgain
from jetcron.executor import timers
from jetcron.executor.branches import OUTSIDE, Branches
from jetcron.executor.claimed import Claimed
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.messages import Met, OpenStep

log = structlog.get_logger("jetcron.executor")

_SOON = 0.01
_LATER = 0.5
"""How often a run that waits here looks whether it may leave, and whether what it waits for has come: first, and
at last, in seconds."""
_AGAIN = 0.2


@dataclass(slots=True)
class _Waiting:
    opened: OpenStep
    future: "asyncio.Future[Met | None]"

    @property
    def is_over(self) -> bool:
        return self.future.done()


class Keeper:
    """Keeps the waits of one attempt."""

    def __init__(
        self, clock: Clock, settings: Settings, waits: Waits, claimed: Claimed, branches: Branches
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._waits = waits
        self._claimed = claimed
        self._branches = branches
        self._waiting: dict[asyncio.Task[Any], _Waiting] = {}
        self._changed = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def close(self) -> None:
        """The code has ended, and waits no more."""
        if self._keeping is not None:
            self._keeping.cancel()

    async def until(self, opened: OpenStep) -> Met | None:
        """Wait until its time has come, or what it waits for; `RunReleased` if the run leaves meanwhile."""
        self._claimed.check_running(opened.id)
        # Told before the look, which may take long: what comes meanwhile comes in time.
        is_over = opened.until <= self._clock.now()
        # At its time too: what came before we look wins.
        found = await self.look(opened)
        if found is not None:
            return found
        if is_over:
            return None
        task = asyncio.current_task()
        assert task is not None
        future: asyncio.Future[Met | None] = asyncio.get_running_loop().create_future()
        self._waiting[task] = _Waiting(opened, future)
        self._changed.set()
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(), context=OUTSIDE.copy())
        try:
            met: Met | None = await self._branches.standing(future)
        finally:
            del self._waiting[task]
        self._claimed.check_running(opened.id)
        return met

    async def look(self, opened: OpenStep) -> Met | None:
        """What has come for a step that waits, if it waits for anything but its time."""
        subject = opened.wait
        return None if subject is None else await self._claimed.surely(lambda: self._waits.look(subject))

    async def forget(self, subject: str) -> None:
        """A wait is over: an event must not find it any more. It would only wake the run for nothing."""
        while not self._claimed.lease.expired(self._claimed.identity):
            try:
                await self._waits.close(subject)
                return
            except TryAgain as error:
                log.debug("trying again", run=self._claimed.run.run, reason=str(error))
                await self._clock.sleep(_AGAIN)

    async def _keep(self) -> None:
        """Keep those that wait; what breaks this breaks their waiting."""
        try:
            await self._keep_waits()
        except Exception as error:
            log.exception("waits cannot be kept", run=self._claimed.run.run)
            for one in self._waiting.values():
                if not one.is_over:
                    one.future.set_exception(error)

    async def _keep_waits(self) -> None:
        """End waits whose time has come, or what they wait for; release the run when all its branches wait long."""
        pause = _SOON
        look = False
        while True:
            self._changed.clear()
            now = self._clock.now()
            here = [one for one in self._waiting.values() if not one.is_over]
            for one in here:
                if one.opened.until <= now or (look and one.opened.wait is not None):
                    await self._end_if_met(one)
            here = [one for one in here if not one.is_over]
            if not here:
                pause = _SOON
                await self._changed.wait()
                continue
            earliest = min(one.opened.until for one in here)
            if earliest - now > self._settings.short_wait_ms:
                await self._branches.settle()
                if self._changed.is_set():
                    continue
                if self._all_wait() and not self._may_time_out(max(one.opened.until for one in here) - now):
                    self._release([one.opened for one in here])
                    return
            try:
                async with asyncio.timeout(min(pause, max(earliest - now, 0) / 1000)):
                    await self._changed.wait()
                pause, look = _SOON, False
            except TimeoutError:
                pause, look = min(pause * 2, _LATER), True

    async def _end_if_met(self, one: _Waiting) -> None:
        is_over = one.opened.until <= self._clock.now()
        try:
            met = await self._waits.look(one.opened.wait) if one.opened.wait is not None else None
        except TryAgain:
            return  # looked at again in a moment
        if (met is not None or is_over) and not one.is_over:
            one.future.set_result(met)

    def _all_wait(self) -> bool:
        return self._branches.all_wait({task for task, one in self._waiting.items() if not one.is_over})

    def _may_time_out(self, longest: int) -> bool:
        """Whether a time-out of the code's own fires before the waits are over, the last in `longest` ms."""
        fires = timers.first_of(self._branches.callers)
        return fires is not None and fires < asyncio.get_running_loop().time() + longest / 1000

    def _release(self, waits_on: list[OpenStep]) -> None:
        """Unwind the code: its slot, its place in `concurrency` and its memory are others' now."""
        self._claimed.waits_on = waits_on
        self._claimed.interrupt(RunReleased())
        self._branches.unwind(self._waiting)
