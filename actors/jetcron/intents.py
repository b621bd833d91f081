"""The word that revisions are about to be replaced: left before they are, so that nobody acts on them meanwhile.

A successor governs from a time that is taken before it is stored, and however long storing it takes, what is due later
must not be turned by the revision it replaces. So an intent goes first, one message that names all that a part of a
command replaces: whoever turns a tick of one of these asks again later. What was turned before the intent was stored
had been released by then. Only after that is the time taken; and the successors are stored in the batch that ends this
very intent, or not at all.

Whoever looks reads the intents no later than what is said of the revisions: the one batch takes the intent away and
stores the other, and who read them the other way round might see neither.

Owns how an intent begins and ends, and that it ends by itself: if cron-sync dies or is frozen, its intents are
forgotten after `INTENT_KEPT` seconds, and the revisions govern as before. Who then wakes up finds its intent gone.
Commands come one at a time, so there are as many keys as parts are put at one time, and as few are read with each tick.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import structlog

from jetcron import dispatch
from jetcron.bus import Bus, Outgoing, StoredMessage
from jetcron.clock import Clock
from jetcron.cycle import Entry
from jetcron.errors import WrongSequence
from jetcron.many import each
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Intent

INTENT_KEPT = 5
"""How long an intent counts, in seconds: so long, at most, the ticks of its revisions wait."""

log = structlog.get_logger("jetcron.intents")


@dataclass(frozen=True, slots=True)
class Announced:
    """An intent that was stored under `key`, of these `revisions`; since when, at the earliest (monotonic).

    Of no revisions, none was stored.
    """

    key: str
    revisions: Mapping[str, int]
    sequence: int
    since: float

    def check(self, clock: Clock) -> None:
        """Raises `WrongSequence` when it may be forgotten soon.

        Of several servers each forgets it by its own clock: that one of them has, and the one that stores a successor
        has not, must not be.
        """
        if self.revisions and clock.monotonic() - self.since > INTENT_KEPT / 2:
            raise WrongSequence(400, 0, "it took long since the intent was stored")

    def over(self) -> list[Outgoing]:
        """What ends it, for the batch that replaces the revisions: refused, and all with it, if it stands no longer."""
        if not self.revisions:
            return []
        return [dispatch.intent(self.key, Intent(), keep=INTENT_KEPT, expected=self.sequence)]


class Intents:
    """What one cron-sync announces."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._used: set[int] = set()
        self._ended: dict[str, tuple[int, float]] = {}
        """Of each key the sequence of what ended our last intent there, and until when it stands (monotonic)."""

    @contextlib.asynccontextmanager
    async def announced(self, to_replace: Sequence[Entry]) -> AsyncIterator[Announced]:
        """Store an intent for these revisions, under a key that is ours while the context is open.

        Raises `WrongSequence` when one of them was replaced already.
        """
        number = next(number for number in count() if number not in self._used)
        self._used.add(number)
        try:
            yield await self._announce(self._bus.names.intent_key(number), to_replace)
        finally:
            self._used.discard(number)

    async def _announce(self, key: str, to_replace: Sequence[Entry]) -> Announced:
        since = self._bus.clock.monotonic()
        revisions = {one.schedule.id: one.revision for one in to_replace}
        if not revisions:
            return Announced(key, revisions, 0, since)
        ended, until = self._ended.get(key, (0, since))
        try:
            sequence = await self._store(key, revisions, ended if since < until else 0)
        except WrongSequence:
            sequence = await self._store(key, revisions, await self._standing(key, revisions))
        return Announced(key, revisions, sequence, since)

    def ended(self, announced: Announced, sequence: int, since: float) -> None:
        """Take note that what ends it was stored under this sequence, at `since` (monotonic) or later."""
        if announced.revisions:
            self._ended[announced.key] = sequence, since + INTENT_KEPT

    async def _store(self, key: str, revisions: Mapping[str, int], expected: int) -> int:
        intent = Intent(revisions=dict(revisions))
        message = dispatch.intent(key, intent, keep=INTENT_KEPT, expected=expected)
        return (await self._bus.publish(message.subject, message.payload, message.headers)).sequence

    async def _standing(self, key: str, revisions: Mapping[str, int]) -> int:
        """What stands in the way: an intent somebody left who died, was frozen, or is about to find us faster.

        Or one that is over. Should it be about these revisions, another entry is there, which is read after it.
        """
        found = await self._bus.last(self._bus.names.registry, key)
        keys = {self._bus.names.schedule_key(id): id for id in revisions}
        entries = await self._bus.entries(list(keys))
        for entry_key, id in keys.items():
            entry = entries.get(entry_key)
            if entry is None or entry.sequence != revisions[id]:
                raise WrongSequence(400, 0, f"revision {revisions[id]} of {id!r} was replaced")
        return 0 if found is None else found.sequence


async def standing(bus: Bus) -> dict[tuple[str, int], int]:
    """The revisions (schedule, number) about to be replaced, and since when (epoch ms), as the leader has them."""
    found: list[StoredMessage] = []

    async def read(key: str) -> None:
        stored = await bus.last(bus.names.registry, key)
        if stored is not None:
            found.append(stored)

    await each(read, await bus.subjects(bus.names.registry, bus.names.intents))
    return named(found)


def named(messages: Iterable[StoredMessage]) -> dict[tuple[str, int], int]:
    """The revisions (schedule, number) that these intents name, and since when (epoch ms): of several, the first.

    One that cannot be read, as a newer program may write it, is passed over. Which revisions it names nobody knows
    then, and if all ticks waited, that program's commands could keep them waiting for as long as both are in use. What
    is lost is the wait alone: a change takes force half a second later than it has to, and only if storing it takes
    longer than that is an occurrence run as it was before.
    """
    since: dict[tuple[str, int], int] = {}
    for stored in messages:
        if stored.deleted:
            continue
        try:
            revisions = decode(Intent, stored.payload).revisions
        except DecodeError as error:
            log.error("an intent cannot be read", key=stored.subject, reason=str(error))
            continue
        for one in revisions.items():
            since[one] = min(stored.stored_at, since.get(one, stored.stored_at))
    return since
