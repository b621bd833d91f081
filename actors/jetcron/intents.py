"""The word that a revision is about to be replaced: left before it is, so that nobody acts on it meanwhile.

A successor governs from a time that is taken before it is stored, and however long storing it takes, what is due later
must not be turned by the revision it replaces. So an intent goes first, under the key at which that one will stand once
it is replaced: whoever turns a tick and meets it asks again later. What was turned before the intent was stored had
been released by then. Only after that is the time taken; and the successor is stored in place of this very intent, or
not at all.

Owns how an intent begins, and that it ends by itself: if cron-sync dies or is frozen, its intents are forgotten after
`INTENT_KEPT` seconds, and the revision governs as before. Who then wakes up finds that its intent is gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from jetcron import dispatch
from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.cycle import Entry
from jetcron.errors import WrongSequence
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Past, replace

INTENT_KEPT = 5
"""How long an intent counts, in seconds: so long, at most, the ticks of its revision wait."""

log = structlog.get_logger("jetcron.intents")


@dataclass(frozen=True, slots=True)
class Announced:
    """Intents that were stored: the sequence of each, by its schedule; and since when, at the earliest (monotonic)."""

    intents: Mapping[str, int]
    since: float

    def check(self, clock: Clock) -> None:
        """Raises `WrongSequence` when they may be forgotten soon.

        Of several servers each forgets them by its own clock: that one of them has, and the one that stores a
        successor has not, must not be.
        """
        if self.intents and clock.monotonic() - self.since > INTENT_KEPT / 2:
            raise WrongSequence(400, 0, "it took long since the intents were stored")


async def announce(bus: Bus, to_replace: Sequence[Entry]) -> Announced:
    """Store an intent for each of these revisions. Raises `WrongSequence` when one of them was replaced already."""
    since = bus.clock.monotonic()
    try:
        return Announced(await _store(bus, to_replace, {}), since)
    except WrongSequence:
        return Announced(await _store(bus, to_replace, await _standing(bus, to_replace)), since)


async def _store(bus: Bus, to_replace: Sequence[Entry], expected: Mapping[str, int]) -> dict[str, int]:
    batch = [
        dispatch.past(
            bus.names,
            one.revision,
            Past(schedule=replace(one.schedule, payload=None)),
            keep=INTENT_KEPT,
            expected=expected.get(one.schedule.id, 0),
        )
        for one in to_replace
    ]
    first = await bus.publish_atomic(batch) - len(batch) + 1
    return {one.schedule.id: first + position for position, one in enumerate(to_replace)}


async def _standing(bus: Bus, to_replace: Sequence[Entry]) -> dict[str, int]:
    """What stands in the way: intents somebody left who died, was frozen, or is about to find that we were faster.

    What was replaced has an end there, and another entry: that is read after it.
    """
    keys = {bus.names.past_key(one.schedule.id, one.revision): one for one in to_replace}
    found = await bus.multi_last_all(bus.names.registry, list(keys))
    entries = await bus.entries([bus.names.schedule_key(one.schedule.id) for one in to_replace])
    for key, one in keys.items():
        entry = entries.get(bus.names.schedule_key(one.schedule.id))
        if entry is None or entry.sequence != one.revision:
            raise WrongSequence(400, 0, f"revision {one.revision} of {one.schedule.id!r} was replaced")
        if key in found and not _is_intent(found[key].payload):
            log.error("what stands in the place of the end of a revision in force is overwritten", key=key)
    return {one.schedule.id: found[key].sequence for key, one in keys.items() if key in found}


def _is_intent(payload: bytes) -> bool:
    try:
        return decode(Past, payload).end is None
    except DecodeError:
        return False
