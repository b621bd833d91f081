"""Writing: single publishes, atomic batches, held messages, fenced appends, compare-and-set.

Everything here can be repeated: by its subject, its message id, or the nonce in its body. Nothing is taken
as stored that the server did not confirm. If the process dies here, the batch stands whole or not at all.
"""

import asyncio
import datetime as dt
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from secrets import token_hex
from typing import NamedTuple

import structlog

from jetcron.bus.link import REQUEST_SECONDS, parse_answer
from jetcron.bus.read import Reader
from jetcron.bus.wire import Headers, write_headers
from jetcron.errors import KnownId, NotFound, PayloadTooLarge, TryAgain, Unconfirmed, WrongSequence

log = structlog.get_logger("jetcron.bus")

MAX_BATCH = 1000
"""Messages in one atomic batch (ADR-50)."""
MAX_BATCH_BYTES = 8 * 1024 * 1024
"""Bytes in one atomic batch: more would fill the server's buffers for one client."""
_OPEN_BATCHES = 8
_BATCH_HEADERS = 128
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0

_LAST_RELEASE = 9_223_372_036_000

MSG_ID = "Nats-Msg-Id"
EXPECTED_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"
SCHEDULE_TTL = "Nats-Schedule-TTL"
SCHEDULER = "Nats-Scheduler"
SCHEDULE_NEXT = "Nats-Schedule-Next"
TTL = "Nats-TTL"
ROLLUP = "Nats-Rollup"


class Outgoing(NamedTuple):
    """A message to store."""

    subject: str
    payload: bytes
    headers: Headers | None = None

    @property
    def is_held(self) -> bool:
        """Whether the server keeps it until a time."""
        return self.headers is not None and SCHEDULE in self.headers

    def with_headers(self, headers: Headers) -> "Outgoing":
        """The same with these headers too."""
        return Outgoing(self.subject, self.payload, {**(self.headers or {}), **headers})

    def without_id(self) -> "Outgoing":
        """The same without its message id, so that nothing refuses it as known."""
        if not self.headers or MSG_ID not in self.headers:
            return self
        return Outgoing(
            self.subject, self.payload, {k: v for k, v in self.headers.items() if k != MSG_ID} or None
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """The server's confirmation. `duplicate`: its message id was known, and nothing was stored."""

    sequence: int
    duplicate: bool = False


def with_id(id: str) -> Headers:
    return {MSG_ID: id}


def fenced(sequence: int) -> Headers:
    """Store only if `sequence` is still the last one on the subject; 0: only if there is none."""
    return {EXPECTED_SUBJECT_SEQUENCE: str(sequence)}


def purging(held: str) -> Headers:
    """Remove the held message on this subject in the step that stores the one with these headers (server ADR-51).

    Nothing happens where there is none. What has them may be held itself: at its release they are left out.
    """
    return {SCHEDULER: held, SCHEDULE_NEXT: "purge"}


def hold(held: str, target: str, at_ms: int, payload: bytes, headers: Headers | None = None) -> Outgoing:
    """A message the server keeps on `held` and releases to `target` at `at_ms` (server ADR-51).

    Or in the year 2262, if that is earlier: the server counts nanoseconds, and releases what lies later at once.
    """
    return Outgoing(held, payload, {SCHEDULE: _at(at_ms), SCHEDULE_TARGET: target, **(headers or {})})


@lru_cache(maxsize=1_024)
def _at(ms: int) -> str:
    """When the server releases it; many are held for one instant."""
    moment = dt.datetime.fromtimestamp(min(max(ms, 0), _LAST_RELEASE) / 1000, dt.UTC)
    return f"@at {moment.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}"


class Publisher(Reader):
    """The writing half of the bus."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._batches = asyncio.Semaphore(_OPEN_BATCHES)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Headers | None = None,
        *,
        timeout: float = REQUEST_SECONDS,
    ) -> Stored:
        """Store one message; raises the typed refusal, `TryAgain` when no confirmation came."""
        msg = await self.request(subject, payload, headers=headers, timeout=timeout)
        answer = parse_answer(msg.data)
        return Stored(int(answer["seq"]), bool(answer.get("duplicate", False)))

    async def store(self, message: Outgoing, *, patience: float = math.inf) -> Stored:
        """`publish` an `Outgoing`, again and again until the server answers: for what can be repeated.

        Raises `TryAgain` when it has not within `patience` seconds.
        """
        deadline = self.clock.monotonic() + patience
        pauses = _pauses()
        while True:
            try:
                return await self.publish(message.subject, message.payload, message.headers)
            except TryAgain as error:
                if self.clock.monotonic() >= deadline:
                    raise
                log.debug("publishing again", subject=message.subject, reason=str(error))
                await self.clock.sleep(next(pauses))

    async def publish_atomic(self, messages: Sequence[Outgoing], *, timeout: float = REQUEST_SECONDS) -> int:
        """Store all of `messages` (up to 1,000, one stream) or none (server ADR-50).

        Returns the sequence of the last; the others stand right before it, in order. 0 for no messages.
        Raises `KnownId` when a message id is known, `WrongSequence` when an expectation failed, `TryAgain`
        when nothing is said about success.
        """
        if not messages:
            return 0
        if len(messages) == 1:
            only = messages[0]
            stored = await self.publish(only.subject, only.payload, only.headers, timeout=timeout)
            if stored.duplicate:
                raise KnownId(400, 10201, f"the message id on {only.subject} is known")
            return stored.sequence
        limit, usual = self.max_payload, self.max_body
        for message in messages:
            size = len(message.payload)
            if message.headers and size > usual:
                size += len(write_headers(message.headers)) + _BATCH_HEADERS
            if size > limit:
                raise PayloadTooLarge(size, limit)
        batch = token_hex(11)
        async with self._batches:
            await self.post_all(
                (message.subject, message.payload, _in_batch(message, batch, number))
                for number, message in enumerate(messages[:-1], start=1)
            )
            message = messages[-1]
            headers = {**_in_batch(message, batch, len(messages)), "Nats-Batch-Commit": "1"}
            msg = await self.request(message.subject, message.payload, headers=headers, timeout=timeout)
        return int(parse_answer(msg.data)["seq"])

    async def publish_groups(self, groups: Iterable[Sequence[Outgoing]]) -> list[int]:
        """Store groups of messages, each whole, as many as fit in one atomic batch.

        A batch refused because an id is known is repeated group by group: a message whose id is known is
        done already and the rest is stored. Messages with equal ids are stored once.
        Returns the indices of the groups that stand; those missing could not be stored now (`TryAgain`) and
        their cause must not be acknowledged. A group of more than 1,000 messages goes in several batches, in order.
        """
        numbered = [(index, list(group)) for index, group in enumerate(groups)]
        standing: list[int] = []
        packed: list[list[tuple[int, list[Outgoing]]]] = [[]]
        count = size = 0
        for index, group in numbered:
            bytes_ = sum(len(message.payload) for message in group)
            if packed[-1] and (count + len(group) > MAX_BATCH or size + bytes_ > MAX_BATCH_BYTES):
                packed.append([])
                count = size = 0
            packed[-1].append((index, group))
            count += len(group)
            size += bytes_
        for pack in packed:
            standing += await self._publish_pack(pack)
        return standing

    async def _publish_pack(self, pack: list[tuple[int, list[Outgoing]]]) -> list[int]:
        merged = _merge(message for _, group in pack for message in group)
        if len(merged) <= MAX_BATCH:
            try:
                await self.publish_atomic(merged)
            except TryAgain as error:
                log.warning("a batch was not confirmed, it will be repeated", reason=str(error))
                return []
            except KnownId:
                log.debug("a batch holds a known id, repeating it part by part", parts=len(pack))
            else:
                return [index for index, _ in pack]

        async def alone(index: int, group: list[Outgoing]) -> int | None:
            try:
                await self._publish_group(group)
            except TryAgain as error:
                log.warning("a group was not confirmed, it will be repeated", reason=str(error))
                return None
            return index

        # All at one time, for none needs another: one by one, a batch of known ids takes longer than its
        # messages may wait for their acknowledgement, and comes again while it is repeated.
        found = await asyncio.gather(*(alone(index, group) for index, group in pack))
        return [index for index in found if index is not None]

    async def _publish_group(self, group: list[Outgoing]) -> None:
        """One group, whole. What a message id shows to be stored already is left out."""
        merged = _merge(group)
        for start in range(0, len(merged), MAX_BATCH):
            part = merged[start : start + MAX_BATCH]
            try:
                await self.publish_atomic(part)
            except KnownId:
                # Which of them is known is not said. Alone, a known one is answered as a duplicate and is
                # done; the rest comes after, so that a chain never moves on without its run.
                named = [message for message in part if MSG_ID in (message.headers or {})]
                await asyncio.gather(*(self.publish(m.subject, m.payload, m.headers) for m in named))
                await self.publish_atomic(
                    [message for message in part if MSG_ID not in (message.headers or {})]
                )

    async def append(self, subject: str, payload: bytes, headers: Headers, *, patience: float = 30.0) -> int:
        """Append to a fenced subject: `headers` carry the expected sequence, `payload` a nonce. Returns the sequence.

        Without an answer it is repeated for `patience` seconds, then `Unconfirmed`. Refused, it is ours all the
        same if the last message holds these very bytes; else `WrongSequence`.
        """
        return await self.append_all([Outgoing(subject, payload, headers)], patience=patience)

    async def append_all(self, messages: Sequence[Outgoing], *, patience: float = 30.0) -> int:
        """`append` several messages, all or none of them; the last one is what they are known by."""
        subject, payload = messages[-1].subject, messages[-1].payload
        deadline = self.clock.monotonic() + patience
        pauses = _pauses()
        while True:
            try:
                return await self.publish_atomic(messages)
            except WrongSequence:
                mine = await self._is_last(subject, payload, deadline)
                if mine is None:
                    raise
                return mine
            except TryAgain as error:
                if self.clock.monotonic() >= deadline:
                    raise Unconfirmed(
                        f"an append to {subject} was not confirmed in {patience:g} s: {error}"
                    ) from None
                await self.clock.sleep(next(pauses))

    async def _is_last(self, subject: str, payload: bytes, deadline: float) -> int | None:
        pauses = _pauses()
        while True:
            try:
                last = await self.last(self.names.journal, subject)
            except NotFound:
                return None
            except TryAgain as error:
                if self.clock.monotonic() >= deadline:
                    raise Unconfirmed(
                        f"an append to {subject} was refused and cannot be read: {error}"
                    ) from None
                await self.clock.sleep(next(pauses))
                continue
            return last.sequence if last is not None and last.payload == payload else None


def _in_batch(message: Outgoing, batch: str, number: int) -> Headers:
    return {**(message.headers or {}), "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}


def _merge(messages: Iterable[Outgoing]) -> list[Outgoing]:
    """Messages with equal ids once, those held on one subject once, the rest as they are, in order.

    A held subject names its occurrence: twice the same is the same. The server refuses it twice in one batch (10111).
    """
    seen: set[tuple[str, str]] = set()
    merged = []
    for message in messages:
        headers = message.headers or {}
        keys = {(MSG_ID, headers[MSG_ID])} if MSG_ID in headers else set()
        if SCHEDULE in headers:
            keys.add((SCHEDULE, message.subject))
        if keys.isdisjoint(seen):
            seen |= keys
            merged.append(message)
    return merged


def _pauses() -> Iterator[float]:
    for n in count():
        yield min(_FIRST_PAUSE * 2**n, _LONGEST_PAUSE)
