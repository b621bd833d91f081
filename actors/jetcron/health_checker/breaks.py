"""How often the same cycle broke: counted only where something was mended, so that a healthy schedule costs nothing.

Owns the counts, one registry key for each schedule that was mended within a day, which then goes by itself. A break
is counted once, however many copies find it: the sweep message it was found by is noted, and whoever began to look
before it was counted saw the same one. If the process dies here, the sweep comes again and counts no second time.
"""

from collections.abc import Sequence

import structlog

from jetcron.bus import TTL, Bus, Outgoing, StoredMessage, fenced
from jetcron.clock import Clock
from jetcron.errors import TryAgain, WrongSequence
from jetcron.health_checker.findings import Findings
from jetcron.metrics import Metrics
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.messages import Breaks
from jetcron_protocol.topology import DAY

log = structlog.get_logger("jetcron.health-checker")

KEPT = DAY
"""Seconds without another break after which the count is forgotten."""
TOO_OFTEN = 3
"""Breaks of one cycle, each within a day of the one before, that somebody has to look into."""
_TRIES = 5


class BreakCounts:
    """The counts of breaks."""

    def __init__(self, bus: Bus, clock: Clock, metrics: Metrics) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._metrics = metrics

    async def count(self, cause: str, schedules: Sequence[str], findings: Findings) -> None:
        """One more break and repair for each of these schedules (500 at most), unless it is counted already."""
        for _ in range(_TRIES):
            try:
                counted = await self._count(cause, schedules, findings)
            except WrongSequence:
                continue  # another copy counts at this moment
            findings.count(cause, len(counted))
            for entry in counted:
                if entry.times >= TOO_OFTEN:
                    self._metrics.escalations.inc()
                    log.error(
                        "the same cycle broke again and again; find out who removes its ticks",
                        schedule=entry.schedule,
                        times=entry.times,
                        causes=entry.causes,
                    )
            return
        raise TryAgain(0, 0, "the counts of breaks keep moving")

    async def _count(self, cause: str, schedules: Sequence[str], findings: Findings) -> list[Breaks]:
        keys = {self._names.breaks_key(schedule): schedule for schedule in schedules}
        stored = await self._bus.entries(list(keys))
        counted = []
        messages = []
        for key, schedule in keys.items():
            before = _read(stored.get(key))
            if before is not None and _same_break(before, findings):
                continue
            causes = dict(before.causes) if before is not None else {}
            causes[cause] = causes.get(cause, 0) + 1
            entry = Breaks(
                schedule=schedule,
                times=sum(causes.values()),
                causes=causes,
                at=self._clock.now(),
                message=findings.message,
            )
            counted.append(entry)
            sequence = stored[key].sequence if key in stored else 0
            messages.append(Outgoing(key, encode(entry), {**fenced(sequence), TTL: f"{KEPT}s"}))
        await self._bus.publish_atomic(messages)
        return counted


def _same_break(before: Breaks, findings: Findings) -> bool:
    if findings.message and before.message == findings.message:
        return True
    return findings.seen_at <= before.at


def _read(stored: StoredMessage | None) -> Breaks | None:
    if stored is None:
        return None
    try:
        return decode(Breaks, stored.payload)
    except DecodeError as error:
        log.error("a count of breaks cannot be read, starting afresh", key=stored.subject, reason=str(error))
        return None
