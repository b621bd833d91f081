"""Which occurrences stand ready, by their lanes: whoever goes in asks who was due before it and has not begun.

Owns an index of the runs that stand on a function's subject, kept by this process as far as it had to read: each
message is read once, not once for each run that goes in. It only says where to look. What it names may have begun,
at another executor perhaps, or be gone; the caller asks the leader and says so (`forget`). Nothing is lost with it: a
new process reads what stands then, and so does this one after a reconnect, for a server that came back without its
last messages gives their sequences to others.

It holds no more than twice what stood between the oldest message and the one that goes in. What stands before a
message that was delivered was delivered too: a backlog that nobody has been given yet is not read.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from jetcron.bus import Bus, StoredMessage
from jetcron.errors import TryAgain
from jetcron.lanes import lane_for
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Run

_FEW = 500
"""Entries that are kept without looking whether their messages still stand."""


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """An occurrence at its first turn, as it was stored under `sequence`. Sorts by when it is due."""

    due: int
    run: str
    sequence: int


@dataclass(slots=True)
class _Index:
    """What is known of one function's messages up to the sequence `read_to`."""

    lanes: dict[str, dict[int, Arrival]] = field(default_factory=dict)
    read_to: int = 0
    size: int = 0
    most: int = _FEW
    generation: int = -1
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def begin_anew(self, generation: int) -> None:
        self.lanes.clear()
        self.read_to = self.size = 0
        self.most = _FEW
        self.generation = generation

    def note(self, page: list[StoredMessage]) -> None:
        for message in page:
            self.read_to = message.sequence
            try:
                run = decode(Run, message.payload)
            except DecodeError:
                continue  # it will never run
            lane = lane_for(run.function, run.run, run)
            if run.turn == 0 and lane is not None:
                arrival = Arrival(run.fire_at, run.run, message.sequence)
                self.lanes.setdefault(lane, {})[message.sequence] = arrival
                self.size += 1

    def forget(self, lane: str, sequence: int) -> None:
        arrived = self.lanes.get(lane)
        if arrived is not None and arrived.pop(sequence, None) is not None:
            self.size -= 1
            if not arrived:
                del self.lanes[lane]


class Arrivals:
    """The indexes of the functions of one executor."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._of: dict[str, _Index] = {}

    def __len__(self) -> int:
        """How many messages are known."""
        return sum(index.size for index in self._of.values())

    async def earlier(self, function: str, lane: str, *, than: tuple[int, str], before: int) -> list[Arrival]:
        """The occurrences of `lane` due earlier than (time, run) that were stored before the sequence `before`.

        What was stored after that may be due earlier too, and is not waited for: where `concurrency` leaves no
        room, it is not delivered before the one that waits has gone. Raises `TryAgain` if the answering replica
        has not come as far as `before`.
        """
        index = self._of.setdefault(function, _Index())
        async with index.reading:
            if index.generation != self._bus.generation or index.size > index.most:
                index.begin_anew(self._bus.generation)
            if index.read_to < before:
                await self._read(index, function, before)
        return sorted(self._found(index, lane, than, before))

    async def _read(self, index: _Index, function: str, to: int) -> None:
        whole = index.read_to == 0
        subject = self._bus.names.run_ready(function)
        async for page in self._bus.pages(self._bus.names.work, subject, start=index.read_to + 1):
            index.note(page)
            if index.read_to >= to:
                break
        else:
            raise TryAgain(0, 0, "a server that lags behind was asked for the runs that stand")
        if whole:
            index.most = max(_FEW, 2 * index.size)

    @staticmethod
    def _found(index: _Index, lane: str, than: tuple[int, str], before: int) -> Iterator[Arrival]:
        for arrival in index.lanes.get(lane, {}).values():
            if arrival.sequence < before and (arrival.due, arrival.run) < than:
                yield arrival

    def forget(self, function: str, lane: str, sequence: int) -> None:
        """The message under `sequence` is gone, or its run has begun or was left out."""
        index = self._of.get(function)
        if index is not None:
            index.forget(lane, sequence)
