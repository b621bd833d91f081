"""A small JetStream in memory: the work queue with its schedules, the registry, the journal, liveness keys.

Owns what the server really does, its hazards included: a release is up to 250 ms late and purges whatever
stands on its subject; releases double and, while the disk is full, fail; message ids are forgotten; replicas
lag. Calls happen at one instant; `clockwork.Network` loses them. Subjects are tuples, the kind of message first.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.model.clockwork import KnownId, Task, TryAgain, World, WrongSequence

ACK_WAIT = 30_000
WINDOW = 120_000
"""How long message ids are remembered, in ms."""
TIMER = 250
"""The server's timer: how late a release may be, in ms."""

Subject = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Out:
    """A message to store. With `at`, it is held on `subject` until then and released to `target`."""

    subject: Subject
    body: Any
    id: str | None = None
    at: int | None = None
    target: Subject | None = None


@dataclass(slots=True, eq=False)
class Stored:
    """A message as the stream holds it."""

    sequence: int
    out: Out
    stored_at: int
    collected: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message in a consumer's hands; `count` says how often the server believes to have delivered it."""

    sequence: int
    body: Any
    stored_at: int
    count: int


class Consumer:
    """A durable: who has which message, and until when. `delivered`: when each message last was."""

    def __init__(self, work: "Work", *, most_pending: int = 0) -> None:
        self._work = work
        self._world = work.world
        self._ready: deque[int] = deque()
        self._pending: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._waiting: list[Task] = []
        self.delivered: dict[int, int] = {}
        self.most_pending = most_pending

    def park(self, task: Task) -> None:
        """Resume `task` when there may be something to fetch."""
        if self._ready and self._room():
            self._world.after(1, task.step)
        else:
            self._waiting.append(task)

    def fetch(self, most: int) -> list[Delivery]:
        if self._work.down:
            return []
        found: list[Delivery] = []
        while self._ready and len(found) < most and self._room():
            sequence = self._ready.popleft()
            stored = self._work.messages.get(sequence)
            if stored is None or sequence in self._pending:
                continue
            count = self._counts.get(sequence, 0) + 1
            self._counts[sequence] = count
            self._have(sequence, ACK_WAIT)
            self.delivered[sequence] = self._world.now
            found.append(Delivery(sequence, stored.out.body, stored.stored_at, count))
        return found

    def in_progress(self, sequence: int) -> None:
        if sequence in self._pending:
            self._have(sequence, ACK_WAIT)

    def _have(self, sequence: int, time: int) -> None:
        deadline = self._world.now + time
        self._pending[sequence] = deadline
        self._world.at(deadline, self._expire, sequence, deadline)

    def ack(self, sequence: int) -> None:
        """Remove the message, whoever has it now."""
        self._pending.pop(sequence, None)
        self._work.remove(sequence)
        self._wake()

    def hand_back(self, sequence: int, delay: int) -> None:
        """Deliver it again after `delay`; until then it counts as pending."""
        if sequence in self._pending:
            self._have(sequence, delay)

    def offer(self, sequence: int) -> None:
        self._ready.append(sequence)
        self._wake()

    def restart(self, standing: list[int]) -> None:
        self._pending.clear()
        self._counts.clear()
        self._ready = deque(standing)
        self._wake()

    def _expire(self, sequence: int, deadline: int) -> None:
        if self._pending.get(sequence) == deadline and not self._work.down:
            del self._pending[sequence]
            self._ready.appendleft(sequence)  # what comes again comes before what is new
            self._wake()

    def _room(self) -> bool:
        return not self.most_pending or len(self._pending) < self.most_pending

    def _wake(self) -> None:
        if self._waiting and self._ready and not self._work.down and self._room():
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                self._world.after(1, task.step)


class Work:
    """The work queue: messages, held ones among them, and consumers by kind of subject.

    A kind in `sinks` is handed over and consumed at once. `on_remove` hears of every acknowledgement.
    """

    def __init__(self, world: World, *, double: float = 0.02, busy: float = 0.01) -> None:
        self.world = world
        self.down = False
        self.full = False
        self.messages: dict[int, Stored] = {}
        self.held: dict[Subject, Stored] = {}
        self.consumers: dict[str, Consumer] = {}
        self.sinks: dict[str, Callable[[Out], None]] = {}
        self.on_store: Callable[[Out], None] | None = None
        self.on_remove: Callable[[Out], None] | None = None
        self._ids: dict[str, int] = {}
        self._sequence = 0
        self._double = double
        self._busy = busy

    # What clients ask for.

    def publish(self, out: Out) -> bool:
        """Store one message; False if its id is known."""
        self._writable()
        if out.id is not None and self._known(out.id):
            return False
        self._store(out)
        return True

    def batch(self, outs: list[Out]) -> None:
        """All or nothing."""
        self._writable()
        if len(outs) > 1 and self.world.chance(self._busy):
            raise TryAgain("in process")
        if any(out.id is not None and self._known(out.id) for out in outs):
            raise KnownId
        assert len(outs) <= 1_000, "an atomic batch takes 1,000 messages"
        for out in outs:
            self._store(out)

    def purge(self, subject: Subject) -> None:
        stored = self.held.pop(subject, None)
        if stored is not None:
            del self.messages[stored.sequence]

    def standing(self, *kinds: str) -> list[Stored]:
        return [stored for stored in self.messages.values() if stored.out.subject[0] in kinds]

    def stands(self, sequence: int) -> bool:
        return sequence in self.messages

    # The server's own life.

    def stop(self) -> None:
        self.world.note("server down")
        self.down = True

    def start(self) -> None:
        """After kill -9: everybody's messages come again; ids of what was consumed are forgotten."""
        self.world.note("server up")
        self.down = False
        now = self.world.now
        self._ids = {
            stored.out.id: stored.stored_at for stored in self.messages.values() if stored.out.id is not None
        }
        for stored in list(self.held.values()):
            if stored.out.at is not None and (stored.out.at <= now or stored.collected):
                self._time(stored)
        for kind, consumer in self.consumers.items():
            consumer.restart([stored.sequence for stored in self.standing(kind)])

    def remove(self, sequence: int) -> None:
        stored = self.messages.pop(sequence, None)
        if stored is not None and self.on_remove is not None:
            self.on_remove(stored.out)

    def _writable(self) -> None:
        if self.full:
            raise TryAgain("storage is full")

    def _known(self, id: str) -> bool:
        stored_at = self._ids.get(id)
        return stored_at is not None and self.world.now - stored_at < WINDOW

    def _store(self, out: Out) -> None:
        if out.id is not None:
            self._ids[out.id] = self.world.now
        if self.on_store is not None:
            self.on_store(out)
        kind = out.subject[0]
        if kind in self.sinks:
            self.sinks[kind](out)
            return
        self._sequence += 1
        stored = Stored(self._sequence, out, self.world.now)
        if out.at is not None:
            self.purge(out.subject)
            self.held[out.subject] = stored
        self.messages[stored.sequence] = stored
        if out.at is not None:
            self._time(stored)
        elif kind in self.consumers:
            self.consumers[kind].offer(stored.sequence)

    def _time(self, stored: Stored) -> None:
        stored.collected = False
        self.world.at(
            max(stored.out.at or 0, self.world.now) + self.world.between(0, TIMER), self._due, stored
        )

    def _due(self, stored: Stored) -> None:
        if self.down or stored.collected or self.held.get(stored.out.subject) is not stored:
            return
        stored.collected = True
        if self.full:
            self.world.note("a release failed", *stored.out.subject)
            return
        self.world.after(self.world.between(0, 20), self._release, stored)

    def _release(self, stored: Stored) -> None:
        if self.down:
            return
        out = stored.out
        assert out.target is not None
        self._store(Out(out.target, out.body))
        if self.world.chance(self._double):
            self.world.note("released twice", *out.subject)
            self.world.after(self.world.between(300, 5_000), self._again, stored)
        else:
            # The consumer may deliver before the purge, which has no look at what it removes.
            self.world.after(self.world.between(0, 60), self.purge, out.subject)

    def _again(self, stored: Stored) -> None:
        if self.held.get(stored.out.subject) is stored:
            self._time(stored)


@dataclass(frozen=True, slots=True)
class Record:
    """A registry entry: `sequence` is its revision."""

    sequence: int
    key: Hashable
    value: Any
    stored_at: int


class Registry:
    """A key-value bucket on several servers: the leader knows all, a replica may be behind."""

    def __init__(self, world: World, *, stale: float = 0.2, passing: Callable[[Any], int | None]) -> None:
        """`passing`: for how long a value is kept; None: for good."""
        self._world = world
        self._stale = stale
        self._passing = passing
        self.log: list[Record] = []
        """All that was ever written, in order."""
        self._stream: list[Record] = []
        """What of it was not lost."""
        self._last: dict[Hashable, Record] = {}
        self._sequence = 0

    def write(self, puts: list[tuple[Hashable, Any, int | None]]) -> int:
        """Store all or none, each only if the sequence given is still its key's last; the first's sequence."""
        for key, _, expected in puts:
            if expected is not None and self._revision(key) != expected:
                raise WrongSequence
        first = self._sequence + 1
        for key, value, _ in puts:
            self._sequence += 1
            record = Record(self._sequence, key, value, self._world.now)
            self.log.append(record)
            self._stream.append(record)
            self._last[key] = record
            kept = self._passing(value)
            if kept is not None:
                self._world.after(kept, self._forget, record)
        return first

    def _forget(self, record: Record) -> None:
        if self._last.get(record.key) is record:
            del self._last[record.key]

    def leader(self, key: Hashable) -> Record | None:
        return self._last.get(key)

    def keys(self, kind: str) -> list[Any]:
        return [key for key in self._last if isinstance(key, tuple) and key[0] == kind]

    def direct(self, keys: list[Hashable]) -> dict[Hashable, Record]:
        """What some replica holds."""
        if not self._world.chance(self._stale):
            return {key: self._last[key] for key in keys if key in self._last}
        up_to = max(0, self._sequence - self._world.between(1, 6))
        wanted = set(keys)
        return {r.key: r for r in self._stream if r.sequence <= up_to and r.key in wanted}

    def restore(self, sequence: int) -> None:
        """A backup is put back: it knows nothing after `sequence`."""
        self._sequence = sequence
        self._stream = [r for r in self._stream if r.sequence <= sequence and self._passing(r.value) is None]
        self._last = {record.key: record for record in self._stream}

    def _revision(self, key: Hashable) -> int:
        record = self._last.get(key)
        return record.sequence if record is not None else 0


@dataclass(slots=True)
class _Versions:
    """What a subject held, oldest first, and since when."""

    since: list[int] = field(default_factory=list)
    contents: list[tuple[tuple[int, Any], ...]] = field(default_factory=list)


class Journal:
    """A stream with one subject a run: fenced appends, rollup, age."""

    LAG = 3_000
    """How far a replica may be behind, in ms."""

    def __init__(self, world: World, *, stale: float = 0.2) -> None:
        self._world = world
        self._stale = stale
        self._sequence = 0
        self._subjects: dict[str, _Versions] = {}

    def append(self, subject: str, entry: Any, expected: int | None, keep: int | None = None) -> int:
        """Store `entry`, if `expected` is the subject's last; with `keep` (ms) in place of all before it."""
        before = self.leader(subject)
        if expected is not None and (before[-1][0] if before else 0) != expected:
            raise WrongSequence
        self._sequence += 1
        stored = (self._sequence, entry)
        self._put(subject, (stored,) if keep is not None else (*before, stored))
        if keep is not None:
            self._world.after(keep, self._forget, subject, self._sequence)
        return self._sequence

    def leader(self, subject: str) -> tuple[tuple[int, Any], ...]:
        """All entries of a subject, each with its sequence."""
        versions = self._subjects.get(subject)
        return versions.contents[-1] if versions else ()

    def replica(self, subject: str) -> tuple[tuple[int, Any], ...]:
        """As `leader`, perhaps as it was a moment ago."""
        versions = self._subjects.get(subject)
        if versions is None:
            return ()
        if not self._world.chance(self._stale):
            return versions.contents[-1]
        then = self._world.now - self._world.between(0, self.LAG)
        seen: tuple[tuple[int, Any], ...] = ()
        for since, content in zip(versions.since, versions.contents, strict=True):
            if since <= then:
                seen = content
        return seen

    def purge(self, subject: str) -> None:
        """Remove what a subject has."""
        if self.leader(subject):
            self._put(subject, ())

    def _put(self, subject: str, content: tuple[tuple[int, Any], ...]) -> None:
        versions = self._subjects.setdefault(subject, _Versions())
        versions.since.append(self._world.now)
        versions.contents.append(content)

    def _forget(self, subject: str, sequence: int) -> None:
        entries = self.leader(subject)
        if entries and entries[-1][0] == sequence:
            self._put(subject, ())


class Keys:
    """Liveness: keys that end with their time to live."""

    def __init__(self, world: World, ttl: int) -> None:
        self._world = world
        self._ttl = ttl
        self._until: dict[str, int] = {}

    def put(self, key: str) -> None:
        self._until[key] = self._world.now + self._ttl

    def alive(self, key: str) -> bool:
        return self._until.get(key, 0) > self._world.now


def without_id(out: Out) -> Out:
    return replace(out, id=None)
