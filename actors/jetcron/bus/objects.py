"""The object store: values too large for a run's journal, laid out as every NATS client knows it (ADR-20).

Owns how a value is cut into chunks, and how it is put together and checked. Each put has a place of its own for
its chunks, and writes the object's meta, which names the place, when all of them stand: what a meta names is
whole, and nobody removes what another is writing. Never decides how long an object is kept. If the process dies
here, it leaves chunks that no meta names: `drop_objects` removes them, or else their time to live. If it was only
frozen, and somebody else has put the object meanwhile, its meta is refused.
"""

import asyncio
import contextlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from secrets import token_hex
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, Field, ValidationError

from jetcron.bus.admin import Admin
from jetcron.bus.publish import ROLLUP, TTL, fenced
from jetcron.bus.read import StoredMessage
from jetcron.bus.wire import Headers
from jetcron.errors import BusError, NotFound, TryAgain, WrongSequence
from jetcron.values.annotations import problems_in, shown
from jetcron_protocol.messages import ObjectRef
from jetcron_protocol.subjects import escape

log = structlog.get_logger("jetcron.bus")

T = TypeVar("T")
_Found = StoredMessage | None

CHUNK = 128 * 1024
"""Bytes of a chunk, all but the last: what other clients write."""
LONGEST = 2 * 366 * 86_400
"""Seconds that anything of a run that has not ended is kept at the most, should nobody remove it."""
PATIENCE = 30.0
_IN_FLIGHT = 16
_PAGE = 16
"""Chunks read at one time: about as long as the loop is kept from others."""
_DIGESTED = 1024 * 1024
_AGAIN = 0.1


class _Meta(BaseModel):
    """What a stored meta says. No wildcard is a place: what it names may be purged."""

    nuid: str = Field(pattern=r"^[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*$")
    size: int = 0
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Content:
    """What an object is to hold: `says` is its meta but for the place, `life` its time to live as a header."""

    name: str
    parts: list[memoryview]
    says: dict[str, Any]
    life: Headers

    def meta(self, place: str) -> bytes:
        """The same bytes for the same content in the same place: by them a put knows its own."""
        return json.dumps(self.says | {"nuid": place}).encode()

    def stands(self, found: _Found) -> bool:
        """Whether a stored meta is of the same content, with the same time to live."""
        if found is None or found.headers.get(TTL) != self.life[TTL]:
            return False
        return found.payload == self.meta(_place(found))


class Objects(Admin):
    """Objects, each belonging to a step of a run: its name is ``<run>/<step>``."""

    async def put_object(
        self, run: str, step: str, body: bytes, *, ttl: int | None = None, patience: float = PATIENCE
    ) -> ObjectRef:
        """Store `body` as the object of this step, in place of what it had; it ends after `ttl` seconds (at least 1).

        Can be repeated: the same content is the same object, with a `ttl` that counts from now. What stood before
        can be read until this stands. Whatever is not confirmed is begun again; raises `TryAgain` when that fails
        after `patience` seconds, `WrongSequence` when somebody else put or dropped the object meanwhile: theirs
        stands then.
        """
        ref = ObjectRef(name=f"{run}/{step}", size=len(body))
        content = await self._content(ref.name, body, LONGEST if ttl is None else ttl)
        deadline = self.clock.monotonic() + patience
        standing = await self._insist(lambda: self._meta(ref.name), deadline)
        if ttl is None and content.stands(standing):
            with contextlib.suppress(NotFound):  # not whole
                await self._insist(lambda: self._read(ref, standing), deadline)
                return ref
        await self._replace(standing, content, deadline)
        return ref

    async def get_object(self, ref: ObjectRef) -> bytes:
        """The object's bytes. Raises `NotFound`, naming it, when it is absent, incomplete, replaced or damaged."""
        return (await self._fetch(ref))[0]

    async def expire_object(self, ref: ObjectRef, *, ttl: int, patience: float = PATIENCE) -> None:
        """Have the object end `ttl` seconds (at least 1) from now; nothing happens when it cannot be read.

        It stands until it ends, whatever fails here. Raises `TryAgain` as `put_object`.
        """
        deadline = self.clock.monotonic() + patience
        while True:
            try:
                body, standing = await self._insist(lambda: self._fetch(ref), deadline)
                await self._replace(standing, await self._content(ref.name, body, ttl), deadline)
            except WrongSequence:
                continue  # it was put again since it was read
            except NotFound as error:
                log.debug("no object to expire", object=ref.name, reason=str(error))
            return

    async def drop_object(self, ref: ObjectRef) -> None:
        """Remove the object; nothing happens when it is absent. What is put meanwhile stands."""
        standing = await self._meta(ref.name)
        if standing is not None:
            await self._empty(_place(standing))
            # The meta last: by it, the same call again finds what is left.
            await self.delete(self.names.objects, standing.sequence)

    async def drop_objects(self, run: str) -> None:
        """Remove what all objects of the run hold, in one request, also what no meta names.

        Their metas, a few hundred bytes each, stay until they end: only who knows a name finds its meta.
        """
        await self.purge(self.names.objects, self.names.object_chunks(f"{escape(run)}.*"))

    async def _meta(self, name: str) -> _Found:
        return await self.last(self.names.objects, self.names.object_meta(name))

    # Writing.

    async def _content(self, name: str, body: bytes, ttl: int) -> _Content:
        """What is to be put; lets the loop turn."""
        seen, view = sha256(), memoryview(body)
        for start in range(0, len(body), _DIGESTED):
            seen.update(view[start : start + _DIGESTED])
            await self.clock.sleep(0)
        chunk = min(CHUNK, self.max_body)
        parts = [view[start : start + chunk] for start in range(0, len(body), chunk)]
        says = {
            "name": name,
            "bucket": self.names.objects.removeprefix("OBJ_"),
            "size": len(body),
            "chunks": len(parts),
            "digest": _written(seen.digest()),
            "options": {"max_chunk_size": chunk},
        }
        return _Content(name, parts, says, {TTL: f"{max(ttl, 1)}s"})

    async def _replace(self, standing: _Found, content: _Content, deadline: float) -> None:
        """Put the object in place of the one whose meta is `standing`, and of no other: else `WrongSequence`."""
        left: list[str] = []  # places that no meta names, nor will
        try:
            await self._insist(lambda: self._put(standing, content, left, deadline), deadline)
            left.append(_place(standing))
        except BaseException:
            deadline = 0  # cancelled, perhaps: nobody waits for a server that does not answer
            raise
        finally:
            with contextlib.suppress(BusError):  # what is left ends
                for place in left:
                    await self._insist(partial(self._empty, place), deadline)

    async def _put(self, standing: _Found, content: _Content, left: list[str], deadline: float) -> None:
        """One try, in a place that nobody has had."""
        place = f"{escape(content.name.partition('/')[0])}.{token_hex(8)}"
        left.append(place)
        await self._send(self.names.object_chunks(place), content)
        left.remove(place)  # it may stand soon, and we not hear it
        await self._insist(lambda: self._commit(standing, content, place, left), deadline)

    async def _send(self, subject: str, content: _Content) -> None:
        """Store the chunks, in order: one connection's messages are stored as they were sent, but for failures."""
        last = 0
        for first in range(0, len(content.parts), _IN_FLIGHT):
            parts = content.parts[first : first + _IN_FLIGHT]
            # All are answered before one's failure counts: what is on its way would come after the purge.
            sent = [self.publish(subject, bytes(part), content.life) for part in parts]
            for stored in await asyncio.gather(*sent, return_exceptions=True):
                if isinstance(stored, BaseException):
                    raise stored
                if stored.sequence < last:
                    raise TryAgain(0, 0, f"the chunks on {subject} do not stand as they were sent")
                last = stored.sequence

    async def _commit(self, standing: _Found, content: _Content, place: str, left: list[str]) -> None:
        """Write the meta, in place of `standing`; as good is that of somebody who has put the same meanwhile."""
        headers = {ROLLUP: "sub"} | content.life | fenced(_sequence(standing))
        try:
            await self.publish(self.names.object_meta(content.name), content.meta(place), headers)
        except WrongSequence as error:
            last = await self._meta(content.name)
            if _sequence(last) == _sequence(standing):
                raise TryAgain(0, 0, f"a meta is on its way: {error}") from None
            if _place(last) == place:
                return  # ours, whose answer was lost
            left.append(place)
            if not content.stands(last):
                raise

    async def _empty(self, place: str) -> None:
        if place:
            body = {"filter": self.names.object_chunks(place)}
            await self.api(f"STREAM.PURGE.{self.names.objects}", body)

    async def _insist(self, call: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Again and again until the server answers, or `TryAgain` after the deadline."""
        while True:
            try:
                return await call()
            except TryAgain as error:
                if self.clock.monotonic() >= deadline:
                    raise
                log.debug("writing an object again", reason=str(error))
            await self.clock.sleep(_AGAIN)

    # Reading.

    async def _fetch(self, ref: ObjectRef) -> tuple[bytes, _Found]:
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

    async def _read(self, ref: ObjectRef, found: _Found) -> bytes:
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
                    for message in page:
                        body.write(message.payload)
                        seen.update(message.payload)
                    count += len(page)
        if (count, body.tell()) != (meta.chunks, meta.size):
            raise NotFound(
                f"the object {ref.name!r} is incomplete: of {meta.chunks} chunks with {meta.size} bytes "
                f"there are {count} with {body.tell()}"
            )
        if _written(seen.digest()) != meta.digest:
            raise NotFound(f"the object {ref.name!r} is damaged: its digest is not that in its meta")
        return body.getvalue()


def _written(sha: bytes) -> str:
    return f"SHA-256={urlsafe_b64encode(sha).decode()}"


def _parse(name: str, found: _Found) -> _Meta:
    """Raises `NotFound` for none, for one that cannot be read, and for one that says the object was deleted."""
    if found is None:
        raise NotFound(f"there is no object {name!r}")
    try:
        meta = _Meta.model_validate_json(found.payload)
    except ValidationError as error:
        problem = shown(problems_in(error))
        raise NotFound(f"the meta of the object {name!r} cannot be read: {problem}") from None
    if meta.deleted:
        raise NotFound(f"the object {name!r} was deleted")
    return meta


def _sequence(found: _Found) -> int:
    return found.sequence if found is not None else 0


def _place(found: _Found) -> str:
    """Where the chunks are; empty if nobody can tell."""
    try:
        return _parse("", found).nuid
    except NotFound:
        return ""
