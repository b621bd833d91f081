"""Lanes as they are stored: who has one, who is next, and how that one is woken.

Owns what is read of a lane: always of the leader, for a run that goes in on an old answer would run beside another.
A lane is one message, replaced by compare-and-set in one atomic batch with what its change means: the claim of the run
that goes in, the ledger's entry of one left out, the journal's of one that waits. So whoever changes it knows that
nobody did since it was read, and dying leaves all of it or nothing.

Nobody hands a lane on. The run that has it ends in its own journal, and with that the lane is free for the first
that waits. `pass_on` only wakes that one: it is called by whatever follows an end, until that is acknowledged,
by the run that has just begun to wait, and by every later occurrence; and a run that waits comes by itself
now and then. Each may die, or do it twice.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jetcron.bus import LONGEST, ROLLUP, TTL, Bus, Outgoing, fenced
from jetcron.errors import TryAgain
from jetcron.history import FINISHED
from jetcron.overlap import Place
from jetcron.waits import Waits
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.ids import lane_of, overlap_token, ulid_time
from jetcron_protocol.messages import About, JournalEntry, Lane, Run, Wait

LANE_STEP = "#lane"
"""What a run that waits for its turn waits on, in its journal."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A lane as it is stored, if it is, and the sequence to replace it by.

    `last` is the last entry in the journal of the run that has it; `queue` are those that wait, as they stand.
    """

    function: str
    lane: str
    stored: Lane | None = None
    sequence: int = 0
    last: JournalEntry | None = None
    queue: tuple[Place, ...] = ()

    @property
    def ended_at(self) -> int | None:
        """When the run that has it ended, epoch ms; None while it goes on, 0 if it is forgotten or there is none."""
        if self.last is None:
            return 0
        return self.last.at if self.last.entry in FINISHED else None


def lane_for(function: str, run: str, origin: Run | About) -> str | None:
    """The lane an occurrence goes by; None for a run that goes by none."""
    if origin.overlap is None or origin.schedule is None or origin.scheduled_at is None:
        return None
    return lane_of(function, origin.schedule, origin.scheduled_at, run)


def places(lane: Lane) -> tuple[Place, ...]:
    """Who waits, and when they were due."""
    due = lane.due or {}
    return tuple([Place(due.get(run) or ulid_time(run) or 0, run) for run in lane.queue])


def waits_for_turn(entry: JournalEntry) -> bool:
    """Whether a run whose journal ends so waits for its lane to be free."""
    return entry.entry == "waiting" and LANE_STEP in (entry.on or ())


def _goes_on(last: JournalEntry | None) -> bool:
    return last is not None and last.entry not in FINISHED


class Lanes:
    """Reads lanes, and wakes who is next."""

    def __init__(self, bus: Bus, waits: Waits) -> None:
        self._bus = bus
        self._names = bus.names
        self._waits = waits

    async def read(self, function: str, lane: str) -> Standing:
        """The lane, then the journal of the run that has it: in this order, for that run may end in between."""
        standing = await self._read(function, lane)
        if standing.stored is None:
            return standing
        return replace(standing, last=await self._last_entry(function, standing.stored.run))

    async def _read(self, function: str, lane: str) -> Standing:
        """The lane alone."""
        found = await self._bus.last(self._names.journal, self._names.lane(function, lane))
        if found is None:
            return Standing(function, lane)
        try:
            stored = decode(Lane, found.payload)
        except DecodeError as error:
            raise TryAgain(0, 0, f"a lane cannot be read: {error}") from None
        return Standing(function, lane, stored, found.sequence, queue=places(stored))

    async def waiting(self, standing: Standing, *, going: str | None = None) -> tuple[Place, ...]:
        """Who waits, without the first ones that were ended while they did; `going` is known to go on."""
        queue = standing.queue
        for index, place in enumerate(queue):
            if place.run == going:
                return queue[index:]
            if _goes_on(await self._last_entry(standing.function, place.run)):
                return queue[index:]
        return ()

    def change(self, standing: Standing, *, run: str, message: int, queue: Sequence[Place]) -> Outgoing:
        """What stands there from now on, unless somebody changed it since it was read."""
        lane = Lane(
            function=standing.function,
            lane=standing.lane,
            run=run,
            message=message,
            queue=[place.run for place in queue],
            due={place.run: place.due for place in queue if place.due != ulid_time(place.run)} or None,
        )
        headers = fenced(standing.sequence) | {ROLLUP: "sub", TTL: f"{LONGEST}s"}
        return Outgoing(self._names.lane(standing.function, standing.lane), encode(lane), headers)

    async def pass_on(self, function: str, lane: str, *, ended: str | None = None) -> None:
        """Wake the first run that waits, if no run has the lane any more; that the run `ended` has not is known."""
        standing = await self._read(function, lane)
        if standing.stored is None or not standing.stored.queue:
            return
        if standing.stored.run != ended and _goes_on(await self._last_entry(function, standing.stored.run)):
            return
        for place in standing.queue:
            last = await self._last_entry(function, place.run)
            if _goes_on(last):
                wait = Wait(function=function, run=place.run, step=LANE_STEP)
                await self._waits.wake(wait, last=last)
                return

    async def settled(self, function: str, run: str) -> tuple[bool, bool]:
        """Whether an occurrence has begun, and whether it was left out."""
        journal = self._names.journal
        begun, left_out = await asyncio.gather(
            self._bus.last(journal, self._names.journal_of(function, run)),
            self._bus.last(journal, self._names.journal_of(function, overlap_token(run))),
        )
        return begun is not None, left_out is not None

    async def is_to_come(self, function: str, run: str, sequence: int) -> bool:
        """Whether an occurrence stands under `sequence`, neither begun nor left out.

        What changes that changes the lane: who read the lane before, and is told that it is not, need not ask again.
        """
        found, settled = await asyncio.gather(
            self._bus.at_sequence(self._names.work, sequence), self.settled(function, run)
        )
        return found is not None and not any(settled)

    async def _last_entry(self, function: str, run: str) -> JournalEntry | None:
        found = await self._bus.last(self._names.journal, self._names.journal_of(function, run))
        if found is None:
            return None
        try:
            return decode(JournalEntry, found.payload)
        except DecodeError as error:
            # A newer program wrote it: whether it goes on is not ours to say.
            raise TryAgain(0, 0, f"the journal of run {run} cannot be read: {error}") from None
