"""How a run leaves an executor that is told to stop, when it did not end within the grace.

Owns that this costs the run no more than time: its journal says that it waits, for nothing, and its next turn goes on
wherever there is room. So an attempt that is cut off by a deploy does not count as lost, as one does whose process
dies. Takes only a moment, and never begins once the run may be another's. If the process dies here, or is not answered,
the run is delivered again, and its journal says whether it waits or was lost.
"""

import asyncio
from collections.abc import Callable

import structlog

from jetcron.errors import BusError, LeaseLost
from jetcron.executor.claimed import Claimed
from jetcron.executor.invoke import Waiting
from jetcron.executor.record import Recorder

log = structlog.get_logger("jetcron.executor")

LEAVE_SECONDS = 5.0
"""How long leaving may take: much less than a supervisor gives a process after the grace."""


class Leaving:
    """Lets runs go that are cut off. `stopping`: whether we were told to stop."""

    def __init__(self, recorder: Recorder, *, stopping: Callable[[], bool]) -> None:
        self._recorder = recorder
        self._stopping = stopping

    async def leave(self, claimed: Claimed) -> None:
        """Hand over a run that is ours, whose code was cancelled and has ended; its message is acknowledged then.

        Does nothing where the run may be another's by now, or the process is ending for another reason.
        """
        if not self._stopping() or claimed.lease.expired(claimed.identity):
            return
        # In a task of its own: this one was cancelled.
        leaving = asyncio.create_task(self._leave(claimed))
        try:
            await asyncio.wait({leaving}, timeout=LEAVE_SECONDS)
        finally:
            leaving.cancel()
            await asyncio.wait({leaving})
        if leaving.cancelled():
            log.warning("a run could not be handed over in time", run=claimed.run.run)
        else:
            leaving.result()

    async def _leave(self, claimed: Claimed) -> None:
        try:
            await claimed.settle()
            claimed.check()
            await self._recorder.record(claimed, Waiting())
        except (LeaseLost, BusError) as error:
            # Delivered again, its journal says whose it is.
            log.warning("a run was not handed over", run=claimed.run.run, reason=str(error))
            return
        await claimed.delivery.ack()
        log.info("handed over", function=claimed.run.function, run=claimed.run.run, attempt=claimed.attempt)
