"""Runs of functions that are archived: there is no consumer for them, and they would stand for ever.

cron-sync cancels what a function has when it archives it. What is stored after that, by whoever read its entry before
and was frozen since, is found here. Owns no state; a consumer is left alone, for a function may come back meanwhile.
If the process dies here, the next sweep does the rest.
"""

import structlog

from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.health_checker.findings import Findings
from jetcron.retirement import Retirement
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Function
from jetcron_protocol.subjects import InvalidName

log = structlog.get_logger("jetcron.health-checker")


class ArchivedRuns:
    """Cancels them."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, *, by: str) -> None:
        self._bus = bus
        self._names = bus.names
        self._retirement = Retirement(bus, clock, settings, by=by)

    async def cancel(self, findings: Findings) -> None:
        """Those that are ready; what is held becomes ready at its time, and is found then.

        Only what stood before the function was seen to be archived: what is stored later may be of one that came back.
        """
        until = (await self._bus.stream_state(self._names.work)).last_sequence
        keys = []
        for subject in await self._bus.subjects(self._names.work, self._names.run_ready_all):
            try:
                keys.append(self._names.function_key(self._names.parse_run_ready(subject)))
            except InvalidName as error:
                log.error("runs stand on a subject nobody can read", reason=str(error))
        for key, stored in (await self._bus.entries(keys)).items():
            try:
                function = decode(Function, stored.payload)
            except DecodeError as error:
                log.error("a function's entry cannot be read", key=key, reason=str(error))
                continue
            if function.state == "archived":
                cancelled, _ = await self._retirement.cancel(function, until=until)
                findings.count("archived", cancelled)
                if cancelled:
                    log.warning(
                        "runs of an archived function were cancelled", function=function.id, runs=cancelled
                    )
