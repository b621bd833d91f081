"""The end of an archived function: what it has ready and held is cancelled, then its consumer goes.

Owns nothing but the order: journal first, then the message. A run that somebody is executing finishes; its
message, and the consumer it is acknowledged through, stay until then. If the process dies here, the command, or the
next sweep, comes again and finds the rest.
"""

import structlog

from jetcron.bus import Bus, StoredMessage
from jetcron.clock import Clock
from jetcron.endings import Endings
from jetcron.history import History, about
from jetcron.many import each
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Failure, Function, Run
from jetcron_protocol.subjects import split_function

log = structlog.get_logger("jetcron.retirement")


class Retirement:
    """Cancels the runs of archived functions."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, *, by: str) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._endings = Endings(bus, clock, settings, Waits(bus, clock, settings), by=by)

    async def settle(self) -> None:
        """Wait until what was released, or read as active, before the function was archived has become a run."""
        await self._clock.sleep(self._settings.lead + 2 * self._settings.settle)

    async def retire(self, function: Function) -> None:
        """Cancel what it has, then delete its consumer, unless one of its runs is still being executed."""
        _, left = await self.cancel(function)
        subjects = (self._names.runs_later_of(function.id), self._names.run_ready(function.id))
        standing = [await self._bus.next_on(self._names.work, subject, 1) for subject in subjects]
        if left or any(standing):
            log.warning("an archived function still has runs executing", function=function.id, runs=left)
        else:
            await self._bus.delete_consumer(self._names.work, self._names.run_consumer(function.id))
            await self._bus.purge(self._names.journal, self._names.lanes_of(function.id))

    async def cancel(self, function: Function, *, until: int | None = None) -> tuple[int, int]:
        """Cancel its runs, stored under the sequence `until` at the latest; how many were, and how many go on."""
        gone: list[int] = []
        left: list[int] = []

        async def cancel(message: StoredMessage) -> None:
            if await self._cancelled(message, function):
                await self._bus.delete(self._names.work, message.sequence)
                gone.append(message.sequence)
            else:
                left.append(message.sequence)

        for subject in (self._names.runs_later_of(function.id), self._names.run_ready(function.id)):
            async for page in self._bus.pages(self._names.work, subject):
                await each(cancel, [one for one in page if until is None or one.sequence <= until])
        return len(gone), len(left)

    async def _cancelled(self, message: StoredMessage, function: Function) -> bool:
        """Whether the run behind this message has ended, journaled as cancelled if it had not; False: it runs."""
        try:
            run = decode(Run, message.payload)
            return await self._end(run, function)
        except DecodeError as error:
            log.error("a run of an archived function cannot be read", function=function.id, reason=str(error))
            return False

    async def _end(self, run: Run, function: Function) -> bool:
        async def executing(history: History) -> bool:
            return history.claim is not None and await self._alive(function, history.claim.executor)

        failure = Failure(type="Archived", message=f"{function.id} was archived before it ran")
        ended = await self._endings.cancel(function.id, run.run, failure, about=about(run), unless=executing)
        return ended is not None

    async def _alive(self, function: Function, executor: str) -> bool:
        app, _ = split_function(function.id)
        key = self._names.executor_key(app, executor)
        return await self._bus.last(self._names.executors, key) is not None
