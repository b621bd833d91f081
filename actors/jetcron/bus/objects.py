"""The object store: values too large for a run's journal, laid out as every NATS client knows it (ADR-20).

Owns how a value is cut into chunks, and how it is put together and checked. An object has two places for its
chunks, and its meta names the one in use: a put fills the other, then writes the meta, then empties the first.
So what stands is whole until the next stands. If the process dies here, it leaves chunks that no meta names:
the next put of that step removes them, or `drop_objects`. If it was only frozen, and somebody else has put the
object meanwhile, it removes nothing that came after it began, its meta is refused, and what it adds to the
other's chunks comes after them and is not read. Never decides how long an object is kept.
"""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from random import uniform
from typing import TypeVar

import structlog

from jetcron.bus.admin import Admin
from jetcron.bus.publish import ROLLUP, TTL, fenced
from jetcron.bus.read import StoredMessage
from jetcron.bus.wire import Headers
from jetcron.errors import BusError, NotFound, TryAgain, WrongSequence
from jetcron_protocol.ids import digest
from jetcron_protocol.messages import ObjectRef
from jetcron_protocol.subjects import escape

log = structlog.get_logger("jetcron.bus")

T = TypeVar("T")

CHUNK = 128 * 1024
"""Bytes of a chunk, all but the last: what other clients write."""
PATIENCE = 30.0
_IN_FLIGHT = 16
_PAGE = 16
"""Chunks read at one time: about as long as the loop is kept from others."""
_DIGESTED = 1024 * 1024
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


@dataclass(frozen=True, slots=True)
class _Content:
    """What an object is to hold, and for how long: `life` are the headers that end it."""

    name: str
    body: bytes
    digest: str
    chunk: int
    life: Headers

    @property
    def chunks(self) -> int:
        return -(-len(self.body) // self.chunk)

    def part(self, index: int) -> bytes:
        return self.body[index * self.chunk : (index + 1) * self.chunk]

    def meta(self, bucket: str, nuid: str) -> bytes:
        """The same bytes for the same content in the same place: by them a put knows its own."""
        return json.dumps(
            {
                "name": self.name,
                "bucket": bucket,
                "nuid": nuid,
                "size": len(self.body),
                "chunks": self.chunks,
                "digest": self.digest,
                "options": {"max_chunk_size": self.chunk},
            }
        ).encode()


@dataclass(frozen=True, slots=True)
class _Meta:
    """What a stored meta says."""

    nuid: str
    size: int
    chunks: int
    digest: str


class Objects(Admin):
    """Objects, each belonging to a step of a run: its name is ``<run>/<step>``."""

    async def put_object(
        self, run: str, step: str, body: bytes, *, ttl: int | None = None, patience: float = PATIENCE
    ) -> ObjectRef:
        """Store `body` as the object of this step, in place of what it had; it ends after `ttl` seconds (at least 1).

        Can be repeated: the same content is the same object. What stood before can be read until this stands.
        Whatever is not confirmed is begun again; raises `TryAgain` when that fails after `patience` seconds,
        `WrongSequence` when somebody else put or dropped the object meanwhile: theirs stands then.
        """
        content = await self._content(f"{run}/{step}", body, ttl)
        deadline = self.clock.monotonic() + patience
        began = await self._insist(lambda: self._meta(content.name), deadline)
        await self._insist(lambda: self._put(content, began, deadline), deadline)
        return ObjectRef(name=content.name, size=len(body))

    async def get_object(self, ref: ObjectRef) -> bytes:
        """The object's bytes. Raises `NotFound`, naming it, when it is absent, incomplete, replaced or damaged."""
        body, _ = await self._fetch(ref)
        return body

    async def expire_object(self, ref: ObjectRef, *, ttl: int, patience: float = PATIENCE) -> None:
        """Have the object end `ttl` seconds (at least 1) from now; nothing happens when it cannot be read.

        It stands until it ends, whatever fails here. Raises `TryAgain` as `put_object`.
        """
        deadline = self.clock.monotonic() + patience
        while True:
            try:
                body, found = await self._insist(lambda: self._fetch(ref), deadline)
            except NotFound as error:
                log.debug("no object to expire", object=ref.name, reason=str(error))
                return
            content = await self._content(ref.name, body, ttl)
            try:
                await self._insist(lambda: self._put(content, found, deadline), deadline)  # noqa: B023 - awaited here
                return
            except WrongSequence:
                pass  # it was put again since it was read

    async def drop_object(self, ref: ObjectRef) -> None:
        """Remove the object; nothing happens when it is absent."""
        stream = self.names.objects
        await self.purge(stream, self.names.object_meta(ref.name))
        for nuid in _places(ref.name):
            await self.purge(stream, self.names.object_chunks(nuid))

    async def drop_objects(self, run: str) -> None:
        """Remove what all objects of the run hold, in one request, also what no meta names.

        Their metas, a few hundred bytes each, stay: only who knows an object's name finds its meta.
        """
        await self.purge(self.names.objects, self.names.object_chunks(f"{escape(run)}.*"))

    async def _meta(self, name: str) -> StoredMessage | None:
        return await self.last(self.names.objects, self.names.object_meta(name))

    # Writing.

    async def _content(self, name: str, body: bytes, ttl: int | None) -> _Content:
        """What is to be put; lets the loop turn."""
        found = sha256()
        view = memoryview(body)
        for start in range(0, len(body), _DIGESTED):
            found.update(view[start : start + _DIGESTED])
            await self.clock.sleep(0)
        return _Content(
            name=name,
            body=body,
            digest=_written(found.digest()),
            chunk=min(CHUNK, self.max_body),
            life={} if ttl is None else {TTL: f"{max(ttl, 1)}s"},
        )

    async def _put(self, content: _Content, began: StoredMessage | None, deadline: float) -> None:
        """One try to replace the object whose meta is `began`; raises `TryAgain` when it must be begun again."""
        stream, bucket = self.names.objects, self.names.objects.removeprefix("OBJ_")
        # Before the meta is read: what comes later than this may be somebody else's, and be named by now.
        end = (await self.stream_state(stream)).last_sequence + 1
        standing = await self._meta(content.name)
        used = _nuid(content.name, standing)
        first, second = _places(content.name)
        place, other = (second, first) if used == first else (first, second)
        is_new = _sequence(standing) != _sequence(began)
        if standing is not None and standing.payload == content.meta(bucket, used):
            # Ours, whose answer was lost, or the same of an earlier call; which may be about to end.
            as_wanted = standing.headers.get(TTL) == content.life.get(TTL) and (is_new or not content.life)
            if as_wanted and await self._stands(content, standing, used, whole=not is_new):
                await self._empty(place, end)
                return
        elif is_new:
            raise WrongSequence(0, 0, f"the object {content.name!r} was put by somebody else meanwhile")
        await self._empty(place, end)
        sequences = await self._send(self.names.object_chunks(place), content)
        # Another writer of this step, or a late message of an earlier try, would show in one of these.
        if sequences != sorted(sequences) or await self._count(place) != content.chunks:
            raise TryAgain(0, 0, f"the chunks of the object {content.name!r} do not stand as they were sent")
        await self._insist(lambda: self._commit(content, content.meta(bucket, place), standing), deadline)
        await self._insist(lambda: self._empty(other, end), deadline)

    async def _send(self, subject: str, content: _Content) -> list[int]:
        """The sequences under which the chunks were stored. One connection's messages are stored in the order sent.

        After a failure nothing more is sent, and what is on its way is waited for: it would come after the purge
        with which the next try begins.
        """
        sequences = [0] * content.chunks
        failures: list[BusError] = []
        window = asyncio.Semaphore(_IN_FLIGHT)

        async def send(index: int) -> None:
            try:
                stored = await self.publish(subject, content.part(index), content.life)
                sequences[index] = stored.sequence
            except BusError as error:
                failures.append(error)
            finally:
                window.release()

        async with asyncio.TaskGroup() as group:
            for index in range(content.chunks):
                await window.acquire()
                if failures:
                    break
                group.create_task(send(index))
        if failures:
            raise failures[0]
        return sequences

    async def _commit(self, content: _Content, meta: bytes, standing: StoredMessage | None) -> None:
        """Write the meta, in place of `standing` and of no other: else `WrongSequence`."""
        headers = {ROLLUP: "sub"} | fenced(_sequence(standing)) | content.life
        try:
            await self.publish(self.names.object_meta(content.name), meta, headers)
        except WrongSequence as error:
            last = await self._meta(content.name)
            if last is not None and last.payload == meta:
                return  # ours, whose answer was lost
            if _sequence(last) == _sequence(standing):
                raise TryAgain(0, 0, f"a meta is on its way: {error}") from None
            raise

    async def _stands(self, content: _Content, standing: StoredMessage, used: str, *, whole: bool) -> bool:
        """Whether the chunks of `content` are in the place in use; `whole`: as they were sent, too."""
        if await self._count(used) != content.chunks:
            return False
        try:
            if whole:
                await self._read(ObjectRef(name=content.name, size=len(content.body)), standing)
        except NotFound:
            return False
        return True

    async def _count(self, nuid: str) -> int:
        """How many chunks stand in a place, as the leader has it."""
        subject = self.names.object_chunks(nuid)
        info = await self.api(f"STREAM.INFO.{self.names.objects}", {"subjects_filter": subject})
        return int((info["state"].get("subjects") or {}).get(subject, 0))

    async def _empty(self, nuid: str, end: int) -> None:
        """Remove the chunks in a place whose sequences are below `end`."""
        body = {"filter": self.names.object_chunks(nuid), "seq": end}
        await self.api(f"STREAM.PURGE.{self.names.objects}", body, timeout=30)

    async def _insist(self, call: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Again and again until the server answers, or `TryAgain` after the deadline."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await call()
            except TryAgain as error:
                if self.clock.monotonic() >= deadline:
                    raise
                log.debug("writing an object again", reason=str(error))
            # Not in step: two writers of one step would spoil each other's chunks again and again.
            await self.clock.sleep(uniform(0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    # Reading.

    async def _fetch(self, ref: ObjectRef) -> tuple[bytes, StoredMessage | None]:
        """The bytes, and the meta by which they were read."""
        found = await self._meta(ref.name)
        while True:
            try:
                return await self._read(ref, found), found
            except NotFound:
                # It may have been put again while it was read, and emptied where it was.
                newer = await self._meta(ref.name)
                if _sequence(newer) == _sequence(found):
                    raise
                found = newer

    async def _read(self, ref: ObjectRef, found: StoredMessage | None) -> bytes:
        meta = _parse(ref.name, found)
        if meta.size != ref.size:
            raise NotFound(
                f"the object {ref.name!r} has {meta.size} bytes, not {ref.size}: another was put in its place"
            )
        stream, subject = self.names.objects, self.names.object_chunks(meta.nuid)
        body, seen, count = BytesIO(), sha256(), 0
        if meta.chunks:
            # The leader says from where to where: a replica may still have what was purged before.
            first, last = await asyncio.gather(self.next_on(stream, subject, 1), self.last(stream, subject))
            if first is not None and last is not None:
                async for page in self.between(stream, subject, first.sequence, last.sequence, size=_PAGE):
                    ours = page[: meta.chunks - count]  # more came later, from a writer who did not prevail
                    for message in ours:
                        body.write(message.payload)
                        seen.update(message.payload)
                    count += len(ours)
                    if count == meta.chunks:
                        break
        if (count, body.tell()) != (meta.chunks, meta.size):
            raise NotFound(
                f"the object {ref.name!r} is incomplete: of {meta.chunks} chunks with {meta.size} bytes "
                f"there are {count} with {body.tell()}"
            )
        if _written(seen.digest()) != meta.digest:
            raise NotFound(
                f"the object {ref.name!r} is damaged: its bytes do not have the digest in its meta"
            )
        return body.getvalue()


def _places(name: str) -> tuple[str, str]:
    """The two nuids an object may have: of two tokens each, the first its run's."""
    run, _, step = name.partition("/")
    first, second = digest("step", step, size=8), digest("step", step, 2, size=8)
    return f"{escape(run)}.{first.hex()}", f"{escape(run)}.{second.hex()}"


def _written(sha: bytes) -> str:
    return f"SHA-256={urlsafe_b64encode(sha).decode()}"


def _parse(name: str, found: StoredMessage | None) -> _Meta:
    """Raises `NotFound` for none, for one that cannot be read, and for one that says the object was deleted."""
    if found is None:
        raise NotFound(f"there is no object {name!r}")
    try:
        meta = json.loads(found.payload)
        deleted = bool(meta.get("deleted"))
        parsed = _Meta(
            str(meta["nuid"]), int(meta.get("size", 0)), int(meta.get("chunks", 0)), str(meta.get("digest"))
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NotFound(f"the meta of the object {name!r} cannot be read: {error}") from None
    if deleted:
        raise NotFound(f"the object {name!r} was deleted")
    return parsed


def _sequence(found: StoredMessage | None) -> int:
    return found.sequence if found is not None else 0


def _nuid(name: str, found: StoredMessage | None) -> str:
    """The place in use; empty if there is none."""
    try:
        return _parse(name, found).nuid
    except NotFound:
        return ""
