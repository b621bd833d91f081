"""Held messages the server should have released: it does not retry a release that failed, so they are published again.

Owns no state. What is published again stands on its own subject as before, fenced by its sequence, so that one that
is being released at this moment is left alone. If the process dies here, the next sweep does the rest.
"""

from collections.abc import AsyncIterator, Sequence

import structlog

from jetcron.bus import SCHEDULE, SCHEDULE_TARGET, Bus, StoredMessage, fenced, rfc3339_ms
from jetcron.clock import Clock
from jetcron.errors import WrongSequence
from jetcron.health_checker.breaks import BreakCounts
from jetcron.health_checker.findings import Findings
from jetcron.many import each
from jetcron.settings import Settings
from jetcron_protocol.subjects import TickName

log = structlog.get_logger("jetcron.health-checker")

PAGE = 500
"""Held messages looked at in one request."""
MOST_HELD = 20_000
"""Held runs and events looked at in one sweep; the next one goes on where this one stopped."""
_KEPT = (SCHEDULE, SCHEDULE_TARGET, "Jetcron-Event")


class Overdue:
    """Frees what was not released."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, breaks: BreakCounts) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._breaks = breaks

    def latest(self) -> int:
        """Ticks held for a time before this are overdue."""
        return self._clock.now() + self._settings.lead_ms - self._settings.repair_grace_ms

    async def ticks(self, ticks: Sequence[TickName], findings: Findings) -> None:
        """Publish these held ticks again, many at a time; each is a break of its cycle."""
        for start in range(0, len(ticks), PAGE):
            freed = await self._free(ticks[start : start + PAGE])
            if freed:
                await self._breaks.count("overdue", freed, findings)

    async def _free(self, ticks: Sequence[TickName]) -> list[str]:
        """The schedules of those that were published again."""
        subjects = {self._names.tick_held(one.schedule, one.revision, one.at): one.schedule for one in ticks}
        stored = await self._bus.multi_last_all(self._names.work, list(subjects))
        freed: set[str] = set()

        async def free(message: StoredMessage) -> None:
            if await self._again(self._names.work, message):
                freed.add(subjects[message.subject])

        await each(free, stored.values())
        return sorted(freed)

    async def messages(self, stream: str, subject: str, start: int, findings: Findings) -> int:
        """Publish overdue runs or events again; where the next sweep goes on, 0 for the beginning.

        Their subjects do not tell their time, so they are read, a part each sweep.
        """
        latest = self._clock.now() - self._settings.repair_grace_ms
        # What is published again comes to stand at the end: looking further, we would find it for ever.
        end = (await self._bus.stream_state(stream)).last_sequence
        seen = 0
        async for message in self._held(stream, subject, max(start, 1)):
            if message.sequence > end:
                return 0
            seen += 1
            if _due(message) < latest and await self._again(stream, message):
                findings.count("overdue")
            if seen >= MOST_HELD:
                return message.sequence + 1
        return 0

    async def _held(self, stream: str, subject: str, start: int) -> AsyncIterator[StoredMessage]:
        async for page in self._bus.pages(stream, subject, start=start, size=PAGE):
            for message in page:
                yield message

    async def _again(self, stream: str, message: StoredMessage) -> bool:
        """The same message on its own subject, unless it has just been released."""
        kept = {name: value for name, value in message.headers.items() if name in _KEPT}
        headers = kept | fenced(message.sequence)
        try:
            await self._bus.publish(message.subject, message.payload, headers)
        except WrongSequence:
            return False
        log.error("a held message was overdue and is published again", stream=stream, subject=message.subject)
        return True


def _due(message: StoredMessage) -> int:
    """When a held message should have been released, epoch ms; far in the future when it does not say."""
    schedule = message.headers.get(SCHEDULE, "")
    try:
        return rfc3339_ms(schedule.removeprefix("@at "))
    except ValueError:
        return 1 << 62
