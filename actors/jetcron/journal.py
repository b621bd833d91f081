"""A run's journal: read it, append to it, fenced.

An append stands only if nobody wrote since we last read: an executor that was frozen and comes back can record
nothing. If the process dies between two appends, whoever gets the run again folds what is there and goes on.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from jetcron.bus import LONGEST, ROLLUP, TTL, Bus, Outgoing, fenced
from jetcron.errors import NotFound, PayloadTooLarge, TryAgain
from jetcron.history import FINISHED, History, finish, reopen, step
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.messages import JournalEntry, ObjectRef, replace

_CLAIMS = 10_000
"""Runs whose last claim is remembered while journals are followed."""


_ENTRY = 8 * 1024
"""Bytes an entry may take besides its result."""


async def read_history(bus: Bus, subject: str) -> History:
    """The journal on this subject, folded; absence believed of the leader only. Raises `DecodeError`, `TryAgain`."""
    history = History()
    for message in await bus.history(bus.names.journal, subject):
        entry = decode(JournalEntry, message.payload)
        if entry.folded is not None:
            entry = await _unfolded(bus, entry, entry.folded)
        step(history, message.sequence, entry)
        history.size += len(message.payload)
    return history


async def follow(
    bus: Bus, *, listening: Callable[[], object] | None = None
) -> AsyncIterator[tuple[str, str, JournalEntry]]:
    """Entries of all runs as they are published: function, run, entry. `listening` is told when nothing more is missed.

    Publishing is heard, not storing: of two executors that claim a turn at one time, only one is told of.
    """
    claims: OrderedDict[str, int] = OrderedDict()
    async with bus.listen(bus.names.journal_all) as heard:
        if listening is not None:
            listening()
        while True:
            subject, payload = await heard.get()
            function, run = bus.names.parse_journal(subject)
            if run.startswith("gap-"):
                continue
            try:
                entry = decode(JournalEntry, payload)
            except DecodeError:
                continue  # written by a newer program; the listing shows it too
            if entry.entry == "claimed":
                if claims.get(run) == entry.turn and not entry.lost:
                    continue  # refused: who takes a turn over says how many were lost
                claims[run] = entry.turn
                if len(claims) > _CLAIMS:
                    claims.popitem(last=False)
            yield function, run, entry


async def _unfolded(bus: Bus, entry: JournalEntry, kept: ObjectRef) -> JournalEntry:
    """`entry` with the history that is kept beside it."""
    try:
        details = decode(JournalEntry, await bus.get_object(kept))
    except NotFound as error:
        if entry.entry in FINISHED:
            return entry  # it ends a moment before its entry; the outcome is what counts
        # Without its steps, the run would do them again.
        raise TryAgain(0, 0, f"the history of a run is gone: {error}") from None
    return replace(entry, attempts=details.attempts, steps=details.steps, waits=details.waits)


def most_inline(bus: Bus, settings: Settings) -> int:
    """Bytes of a result that an entry may carry: as set, and no more than a message of the server's can."""
    return min(settings.max_inline, bus.max_body - _ENTRY)


class RunJournal:
    """The journal of one run, as its executor holds it: knows the last sequence, appends one entry at a time."""

    def __init__(self, bus: Bus, function: str, run: str, *, patience: float) -> None:
        self._bus = bus
        self._beside = f"{run}-history"
        self._subject = bus.names.journal_of(function, run)
        self._patience = patience
        self._turn = asyncio.Lock()
        self.history = History()

    async def read(self) -> History:
        """Fold what is stored, absence believed of the leader only. Raises `DecodeError`, `TryAgain`."""
        self.history = await read_history(self._bus, self._subject)
        return self.history

    async def append(
        self, entry: JournalEntry, *, most: int | None = None, beside: Outgoing | None = None
    ) -> int:
        """Append, and store `beside` in the same step or not at all; how many steps are done by then.

        Raises `WrongSequence` when somebody else wrote, `Unconfirmed` when nobody can tell, and `PayloadTooLarge`
        when the journal would have more than `most` bytes; then nothing is appended.
        """
        body = encode(entry)
        async with self._turn:
            size = self.history.size + len(body)
            if most is not None and size > most:
                raise PayloadTooLarge(size, most)
            headers = fenced(self.history.sequence)
            if beside is None:
                sequence = await self._bus.append(self._subject, body, headers, patience=self._patience)
            else:
                both = [beside, Outgoing(self._subject, body, headers)]
                sequence = await self._bus.append_all(both, patience=self._patience)
            step(self.history, sequence, entry)
            self.history.size = size
            return len(self.history.steps)

    async def finish(self, entry: JournalEntry, *, keep: int, keep_steps: bool) -> JournalEntry:
        """Append the last entry in place of all others, kept `keep` seconds; raises as `append`.

        A history that makes it too large for the server goes to the object store. Raises `PayloadTooLarge` when
        the outcome alone is too large.
        """
        async with self._turn:
            last = finish(self.history, entry, keep_steps=keep_steps)
            reopened = self.history.reopened
            await self._replace(last, {TTL: f"{keep}s"}, keep=keep)
            if reopened:
                await self._bus.drop_object(ObjectRef(name=f"{self._beside}/{reopened}", size=0))
            return last

    async def reopen(self, entry: JournalEntry) -> None:
        """Begin a failed run again with `entry`, in place of all others; raises as `append`."""
        async with self._turn:
            await self._replace(reopen(self.history, entry), {}, keep=LONGEST)

    async def _replace(self, entry: JournalEntry, headers: dict[str, str], *, keep: int) -> None:
        body = encode(entry)
        if len(body) > self._bus.max_body:
            body = encode(await self._aside(entry, keep))
        if len(body) > self._bus.max_body:
            raise PayloadTooLarge(len(body), self._bus.max_body)
        headers = fenced(self.history.sequence) | {ROLLUP: "sub"} | headers
        sequence = await self._bus.append(self._subject, body, headers, patience=self._patience)
        step(self.history, sequence, entry)
        self.history.size = len(body)

    async def _aside(self, entry: JournalEntry, keep: int) -> JournalEntry:
        """`entry` without its folded history, which is kept as an object: it must stand before what names it."""
        details = encode(replace(entry, about=None, result=None, object=None, error=None))
        kept = await self._bus.put_object(self._beside, str(entry.turn), details, ttl=keep)
        return replace(entry, attempts=None, steps=None, waits=None, folded=kept)
