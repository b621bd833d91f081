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

from jetcron import dispatch
from jetcron.bus import Bus
from jetcron.cycle import Entry
from jetcron.errors import WrongSequence
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Past


async def announce(bus: Bus, replaced: Sequence[Entry]) -> dict[str, int]:
    """Store an intent for each of these revisions; the sequence of each, by its schedule.

    Raises `WrongSequence` when one of them was replaced already.
    """
    try:
        return await _store(bus, replaced, {})
    except WrongSequence:
        return await _store(bus, replaced, await _standing(bus, replaced))


async def _store(bus: Bus, replaced: Sequence[Entry], expected: Mapping[str, int]) -> dict[str, int]:
    batch = [
        dispatch.past(bus.names, one.revision, Past(schedule=one.schedule), expected.get(one.schedule.id, 0))
        for one in replaced
    ]
    first = await bus.publish_atomic(batch) - len(batch) + 1
    return {one.schedule.id: first + position for position, one in enumerate(replaced)}


async def _standing(bus: Bus, replaced: Sequence[Entry]) -> dict[str, int]:
    """The intents that somebody left, who died, was frozen, or is about to find that we were faster."""
    keys = {bus.names.past_key(one.schedule.id, one.revision): one for one in replaced}
    standing = {}
    for key, stored in (await bus.entries(list(keys))).items():
        one = keys[key]
        if decode(Past, stored.payload).end is not None:
            raise WrongSequence(400, 10071, f"revision {one.revision} of {one.schedule.id!r} was replaced")
        standing[one.schedule.id] = stored.sequence
    return standing
