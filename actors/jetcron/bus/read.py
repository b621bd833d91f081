"""Reading: last messages, many at once, names, histories.

A replica may answer a direct get, and may be behind. Whatever is missing or old is asked of the leader before
anyone believes it. Nothing here changes anything.
"""

import asyncio
import base64
import datetime as dt
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from jetcron.bus.link import REQUEST_SECONDS, Link
from jetcron.bus.wire import DESCRIPTION, STATUS, Headers, Message, parse_headers
from jetcron.errors import NotFound, TryAgain
from jetcron.many import each

MAX_MULTI = 1000
"""Subjects asked for in one multi-get; the server returns at most 1,024."""
_NAMES_PAGE = 100_000
_DELETED = ("DEL", "PURGE")
OPERATION = "KV-Operation"
_OPERATION = OPERATION.encode()
_SUBJECT = b"\r\nNats-Subject: "


class StoredMessage(NamedTuple):
    """A message as a stream holds it. `stored_at` in epoch milliseconds; `block` has its headers."""

    subject: str
    sequence: int
    payload: bytes
    block: bytes = b""
    stored_at: int = 0

    @property
    def headers(self) -> Headers:
        """Its headers, read anew each time."""
        return parse_headers(self.block)

    @property
    def deleted(self) -> bool:
        """Whether it says that its key was removed."""
        return _OPERATION in self.block and self.headers.get(OPERATION) in _DELETED


@dataclass(frozen=True, slots=True)
class StreamState:
    """What STREAM.INFO says of a stream; `now` is the server's clock, epoch ms."""

    last_sequence: int
    first_sequence: int
    messages: int
    bytes: int
    now: int
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What a batched direct get brought, and how far the replica had read. `whole`: it left nothing out."""

    messages: list[StoredMessage]
    up_to: int
    whole: bool = True


class Reader(Link):
    """The reading half of the bus."""

    async def stream_state(self, stream: str) -> StreamState:
        """State and configuration of a stream, from its leader; keeps `clock_offset_ms` up to date."""
        before = self.clock.now()
        info = await self.api(f"STREAM.INFO.{stream}")
        after = self.clock.now()
        state = info["state"]
        now = rfc3339_ms(info["ts"])
        if after - before <= self.settings.lead_ms:  # a slower answer says too little of the time between
            self.clock_offset_ms = (before + after) / 2 - now
        return StreamState(
            last_sequence=state["last_seq"],
            first_sequence=state["first_seq"],
            messages=state["messages"],
            bytes=state["bytes"],
            now=now,
            config=info["config"],
        )

    async def last(self, stream: str, subject: str) -> StoredMessage | None:
        """The last message on a subject or wildcard, from the leader; None if there is none."""
        return await self._get(stream, {"last_by_subj": subject})

    async def at_sequence(self, stream: str, sequence: int) -> StoredMessage | None:
        """The message stored under `sequence`, from the leader; None if it is gone."""
        return await self._get(stream, {"seq": sequence})

    async def next_on(self, stream: str, subject: str, sequence: int) -> StoredMessage | None:
        """The first message on `subject` (wildcards allowed) from `sequence` on, from the leader."""
        return await self._get(stream, {"seq": sequence, "next_by_subj": subject})

    async def _get(self, stream: str, query: dict[str, Any]) -> StoredMessage | None:
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", query)
        except NotFound:
            return None
        found = answer["message"]
        return StoredMessage(
            subject=found["subject"],
            sequence=int(found["seq"]),
            payload=base64.b64decode(found.get("data", "")),
            block=base64.b64decode(found.get("hdrs", "")),
            stored_at=rfc3339_ms(found["time"]),
        )

    async def entry(self, subject: str) -> StoredMessage | None:
        """The registry entry stored on `subject`, from the leader; None if absent or deleted."""
        found = await self.last(self.names.registry, subject)
        return None if found is None or found.deleted else found

    async def multi_last(self, stream: str, subjects: Sequence[str]) -> dict[str, StoredMessage]:
        """The last message of each subject (wildcards allowed), by subject; at most 1,024 come back.

        Reads as of now or later: if the answering replica had not reached the stream's last sequence, the
        leader is asked for each subject; if it leaves out a plain subject, the leader is asked for that one.
        """
        if not subjects:
            return {}
        behind = (await self.stream_state(stream)).last_sequence
        found, up_to = await self._direct(stream, {"multi_last": list(subjects)})
        fresh = {message.subject: message for message in found}
        plain = [subject for subject in subjects if not _is_wildcard(subject)]
        # Absent may also mean that the answer was cut off at the server's bound on its bytes.
        doubted = plain if up_to < behind else [subject for subject in plain if subject not in fresh]
        answers = await asyncio.gather(*(self.last(stream, subject) for subject in doubted))
        for subject, answer in zip(doubted, answers, strict=True):
            fresh.pop(subject, None)
            if answer is not None:
                fresh[subject] = answer
        return fresh

    async def subjects_of(self, stream: str, filters: Sequence[str]) -> list[str]:
        """The names of all subjects that match one of `filters`, many filters in a request.

        For filters that few and small messages match. Reads as of now or later: where the answering replica had not
        reached the stream's last sequence, or too many match, the leader is asked for each filter by itself.
        """
        names: list[str] = []
        for some in _requests(filters, self.max_body // 2, MAX_MULTI // 4):
            behind = (await self.stream_state(stream)).last_sequence
            try:
                found, up_to = await self._direct(stream, {"multi_last": some})
            except TryAgain:
                up_to = -1
            if up_to >= behind:
                names += [message.subject for message in found]
            else:
                for filter in some:
                    names += await self.subjects(stream, filter)
        return names

    async def rare(
        self, stream: str, subjects: Sequence[str], *, witness: str
    ) -> tuple[dict[str, StoredMessage], int] | None:
        """The last messages of subjects of which next to none has one; and the stream's last sequence before.

        What has none is known by its name: the server looks at no message, however many the stream holds. A wildcard
        costs as little where few match it; what does comes under its own subject. Reads as of now or later, and none of
        them earlier than one that stands before it in `subjects`; or None where that cannot be told. Of several
        replicas one says how far it has read when it brings a message: that of `witness`, which is asked for, too.
        """
        state = await self.stream_state(stream)
        alone = state.config.get("num_replicas", 1) == 1
        stand: dict[str, StoredMessage] = {}
        for some in _requests(subjects, self.max_body // 2, MAX_MULTI - 1):
            found = await self._batch(stream, {"multi_last": some if alone else [*some, witness]})
            if not found.whole or not (alone or found.up_to >= state.last_sequence):
                return None
            stand |= {message.subject: message for message in found.messages}
        return stand, state.last_sequence

    async def multi_last_all(self, stream: str, subjects: Sequence[str]) -> dict[str, StoredMessage]:
        """`multi_last` of any number of subjects, in as many requests as it takes; deleted keys are in it."""
        found: dict[str, StoredMessage] = {}

        async def read(some: Sequence[str]) -> None:
            found.update(await self.multi_last(stream, some))

        # The server looks for the next ones while we take in what it found.
        await each(read, _requests(subjects, self.max_body // 2), at_once=2)
        return found

    async def entries(self, keys: Sequence[str]) -> dict[str, StoredMessage]:
        """The registry's entries of these keys, by key, without deleted ones."""
        found = await self.multi_last_all(self.names.registry, keys)
        return {key: entry for key, entry in found.items() if not entry.deleted}

    async def _direct(self, stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        """A batched direct get: the messages, and the sequence up to which the replica had read."""
        found = await self._batch(stream, query)
        return found.messages, found.up_to

    async def _batch(self, stream: str, query: dict[str, Any]) -> Found:
        """A batched direct get (server ADR-31)."""
        found: list[StoredMessage] = []
        async with self.replies() as (inbox, queue):
            await self.post(f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), reply=inbox)
            while True:
                if queue.empty():
                    try:
                        async with asyncio.timeout(REQUEST_SECONDS):
                            msg = await queue.get()
                    except TimeoutError:
                        raise TryAgain(408, 0, f"a read of {stream} was not answered") from None
                else:
                    msg = queue.get_nowait()
                if not msg.is_status:
                    found.append(_stored(msg))
                    continue
                headers = msg.headers
                match headers.get(STATUS):
                    case "204":
                        up_to = int(headers.get("Nats-UpTo-Sequence", headers.get("Nats-Last-Sequence", 0)))
                        return Found(found, up_to, headers.get("Nats-Num-Pending", "0") == "0")
                    case "404":
                        # Any other is of a message that could not be read.
                        whole = headers.get(DESCRIPTION) == "No Results"
                        return Found(found, int(headers.get("Nats-UpTo-Sequence", 0)), whole)
                    case status:
                        raise TryAgain(
                            int(status or 0), 0, f"{stream}: {headers.get(DESCRIPTION, 'refused')}"
                        )

    async def history(self, stream: str, subject: str) -> list[StoredMessage]:
        """All messages on one subject, oldest first, as its leader has them; one request, and one for each 1,000.

        The leader names the last message, see `between` for the rest.
        """
        while True:
            last = await self.last(stream, subject)
            if last is None:
                return []
            pages = self.between(stream, subject, 1, last.sequence)
            found = [message async for page in pages for message in page]
            if found and found[-1].sequence == last.sequence:
                return found
            # Another message took the place of all of them meanwhile, or they were removed.

    async def between(
        self, stream: str, subject: str, first: int, last: int, *, size: int = MAX_MULTI
    ) -> AsyncIterator[list[StoredMessage]]:
        """The messages on one subject with sequences from `first` to `last`, oldest first, page by page.

        A replica gives them `size` at a time, or as many as the server's bound on bytes allows; what it lacks is
        walked on the leader.
        """
        start = first
        replica = True
        while start <= last:
            page: list[StoredMessage] = []
            if replica:
                query = {"seq": start, "next_by_subj": subject, "batch": size}
                try:
                    found, _ = await self._direct(stream, query)
                    page = [message for message in found if message.sequence <= last]
                except TryAgain:
                    pass  # the leader has it all, one request a message
                replica = bool(page)
            if not page:
                following = await self.next_on(stream, subject, start)
                if following is None or following.sequence > last:
                    return
                page = [following]
            yield page
            start = page[-1].sequence + 1

    async def pages(
        self, stream: str, subject: str, *, start: int = 1, since: int | None = None, size: int = 256
    ) -> AsyncIterator[list[StoredMessage]]:
        """The messages on `subject` (wildcards allowed) from sequence `start` on, oldest first, page by page.

        Or from the first that was stored at `since`, epoch ms, or later.
        """
        first: dict[str, Any] = {"seq": start} if since is None else {"start_time": _rfc3339(since)}
        while True:
            # A page may be short without being the last: the server also bounds its bytes.
            found, _ = await self._direct(stream, first | {"next_by_subj": subject, "batch": size})
            if not found:
                return
            yield found
            first = {"seq": found[-1].sequence + 1}

    async def subjects(self, stream: str, filter: str) -> list[str]:
        """The names of all subjects in `stream` that match, in pages of 100,000, from the leader."""
        names: list[str] = []
        while True:
            body = {"subjects_filter": filter, "offset": len(names)}
            info = await self.api(f"STREAM.INFO.{stream}", body, timeout=30)
            page = info["state"].get("subjects") or {}
            names += page
            if len(page) < _NAMES_PAGE or not page:
                return names


def _requests(subjects: Sequence[str], limit: int, most: int = MAX_MULTI) -> Iterator[list[str]]:
    """As many as one request may name, `limit` bytes of them at most: an id of users' may make a long subject."""
    some: list[str] = []
    size = 0
    for subject in subjects:
        if some and (len(some) == most or size + len(subject) > limit):
            yield some
            some, size = [], 0
        some.append(subject)
        size += len(subject) + len('"", ')
    if some:
        yield some


def _stored(msg: Message) -> StoredMessage:
    """What a direct get brought: behind the message's own headers stand those that say which one it is."""
    told = msg.block[msg.block.rindex(_SUBJECT) + len(_SUBJECT) :].decode("utf-8", "replace")
    subject, sequence, stored_at, _ = told.split("\r\n", 3)
    return StoredMessage(
        subject,
        int(sequence.removeprefix("Nats-Sequence: ")),
        msg.data,
        msg.block,
        rfc3339_ms(stored_at.removeprefix("Nats-Time-Stamp: ")),
    )


def _is_wildcard(subject: str) -> bool:
    tokens = subject.split(".")
    return "*" in tokens or tokens[-1] == ">"


def _rfc3339(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat()


def rfc3339_ms(text: str) -> int:
    """Epoch milliseconds of the server's time stamps, which have up to nine decimals."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return _second(whole) + int((fraction + "000")[:3])


@lru_cache(maxsize=256)
def _second(text: str) -> int:
    """Epoch ms; of a thousand messages most were stored within a few seconds."""
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()) * 1000
