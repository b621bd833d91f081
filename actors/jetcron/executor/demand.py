"""Whether anybody wants to know of runs that end: an event for each of them would double the work for nothing.

Owns one answer, looked up again every few seconds. Runs that fail have an event of their own, always.
"""

import structlog

from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.dispatch import FUNCTION_FINISHED
from jetcron.errors import TryAgain
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Function
from jetcron_protocol.subjects import pattern_matches

log = structlog.get_logger("jetcron.executor")

EVERY = 5.0


class Demand:
    """Knows whether a function triggers on `jetcron.function.finished`, or a run waits for it."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._sequence = -1
        self._triggers = False
        self.wanted = False

    async def keep(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except TryAgain as error:
                log.debug("cannot see who wants to hear of runs that end", reason=str(error))
            await self._clock.sleep(EVERY)

    async def look(self) -> None:
        """Look now."""
        names = self._bus.names
        last = await self._bus.last(names.registry, names.functions)
        sequence = last.sequence if last is not None else 0
        if sequence != self._sequence:
            keys = await self._bus.subjects(names.registry, names.functions)
            entries = await self._bus.entries(keys)
            self._triggers = any(_triggers(entry.payload) for entry in entries.values())
            self._sequence = sequence
        waited = await self._bus.last(names.journal, names.wait_paths(FUNCTION_FINISHED))
        self.wanted = self._triggers or waited is not None


def _triggers(entry: bytes) -> bool:
    try:
        function = decode(Function, entry)
    except DecodeError:
        return True  # a newer program wrote it: it may want to know
    return function.state != "archived" and any(
        pattern_matches(pattern, FUNCTION_FINISHED) for pattern in function.on
    )
