"""The object store on a real server: whole or not there, readable by others, whatever fails while it is written."""

import asyncio
import contextlib
import json
import re
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from hashlib import sha256
from random import Random
from typing import Any

import nats
import pytest
import pytest_asyncio

from jetcron import Context, Event
from jetcron.bus import ROLLUP, TTL, Bus, Outgoing, StoredMessage
from jetcron.bus.objects import CHUNK, LONGEST
from jetcron.errors import ApiError, NotFound, TryAgain, WrongSequence
from jetcron.runs import RunHandle
from jetcron_protocol.messages import ObjectRef
from tests.support.faults import Die, Fault, FaultyBus, LoseAnswer, Refuse, Wait, was_killed
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until
from tests.support.stage import AWAY, Stage, stage_of

RUN = "01HZZZZZZZZZZZZZZZZZZZZZZZ"
OTHER = "01HZZZZZZZZZZZZZZZZZZZZZZY"
FAULTS: tuple[Fault, ...] = (LoseAnswer(), Refuse(), Die(), Die(after=True))


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


def some(size: int, seed: int = 1) -> bytes:
    """So many bytes, always the same for one seed."""
    return Random(seed).randbytes(size)


async def chunks(stack: Stack, run: str = RUN) -> list[StoredMessage]:
    """All chunks of a run's objects, oldest first."""
    return await stack.stored(stack.names.objects, stack.names.object_chunks(f"{run}.*"))


async def assert_whole(stack: Stack, ref: ObjectRef, body: bytes) -> None:
    """It reads as `body`, and nothing else of its run is stored."""
    assert await stack.bus.get_object(ref) == body
    assert b"".join([message.payload for message in await chunks(stack)]) == body


class CountingBus(FaultyBus):
    """Counts what is sent, reads too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.posted: list[str] = []

    async def post(self, subject: str, payload: bytes = b"", **more: Any) -> None:
        self.posted.append(subject)
        await super().post(subject, payload, **more)


# Round trips.


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 10 * 1024 * 1024])
async def test_what_is_put_is_got(size: int, stack: Stack) -> None:
    body = some(size)
    ref = await stack.bus.put_object(RUN, "a step", body)
    assert ref == ObjectRef(name=f"{RUN}/a step", size=size)
    await assert_whole(stack, ref, body)
    assert len(await chunks(stack)) == -(-size // CHUNK)


async def test_each_put_has_a_place_of_its_own(stack: Stack) -> None:
    names = stack.names
    places = set()
    for body in (b"x", b"y", b"x"):
        await stack.bus.put_object(RUN, "a/b ü", body)
        meta = await stack.bus.last(names.objects, names.object_meta(f"{RUN}/a/b ü"))
        assert meta is not None
        assert meta.headers[ROLLUP] == "sub"
        said = json.loads(meta.payload)
        place = said.pop("nuid")
        assert re.fullmatch(rf"{RUN}\.[0-9a-f]{{16}}", place)
        assert said == {
            "name": f"{RUN}/a/b ü",
            "bucket": names.objects.removeprefix("OBJ_"),
            "size": 1,
            "chunks": 1,
            "digest": f"SHA-256={urlsafe_b64encode(sha256(body).digest()).decode()}",
            "options": {"max_chunk_size": CHUNK},
        }
        assert [message.subject for message in await chunks(stack)] == [names.object_chunks(place)]
        places.add(place)
    assert len(places) == 3


async def test_others_read_what_we_write(stack: Stack) -> None:
    names = stack.names
    small, large = b"", some(3 * CHUNK + 5)
    client = await nats.connect(stack.server.url)
    try:
        store = await client.jetstream().object_store(names.objects.removeprefix("OBJ_"))
        for step, body in {"small": small, "large": large, "third": large[: 2 * CHUNK]}.items():
            ref = await stack.bus.put_object(RUN, step, body)
            found = await store.get(ref.name)
            assert (found.data or b"") == body
            assert await stack.bus.get_object(ref) == found.data
            assert (found.info.size, found.info.chunks) == (len(body), -(-len(body) // CHUNK))
        await stack.bus.put_object(RUN, "large", small + b"!", ttl=60)
        assert (await store.get(f"{RUN}/large")).data == b"!"
        assert {info.name for info in await store.list()} == {
            f"{RUN}/{s}" for s in ("small", "large", "third")
        }
    finally:
        await client.close()


async def test_what_others_write_and_delete_is_read_as_it_is(stack: Stack) -> None:
    body = some(5 * CHUNK + 1)
    client = await nats.connect(stack.server.url)
    try:
        store = await client.jetstream().object_store(stack.names.objects.removeprefix("OBJ_"))
        await store.put(f"{RUN}/theirs", body)
        ref = ObjectRef(name=f"{RUN}/theirs", size=len(body))
        assert await stack.bus.get_object(ref) == body
        await store.delete(ref.name)
        with pytest.raises(NotFound, match="deleted"):
            await stack.bus.get_object(ref)
        assert await stack.bus.get_object(await stack.bus.put_object(RUN, "theirs", body)) == body
    finally:
        await client.close()


@pytest.mark.parametrize("sizes", [(5 * CHUNK, 1), (1, 5 * CHUNK), (CHUNK, CHUNK), (3 * CHUNK, 0)])
async def test_overwriting_leaves_nothing_of_the_old(sizes: tuple[int, int], stack: Stack) -> None:
    for again in range(3):
        for seed, size in enumerate(sizes):
            ref = await stack.bus.put_object(RUN, "s", some(size, seed + again))
            await assert_whole(stack, ref, some(size, seed + again))
    assert len(await stack.stored(stack.names.objects, stack.names.object_metas)) == 1


async def test_the_same_again_writes_nothing(stack: Stack) -> None:
    body = some(3 * CHUNK)
    await stack.bus.put_object(RUN, "s", body)
    before = await stack.stored(stack.names.objects)
    ref = await stack.bus.put_object(RUN, "s", body)
    assert await stack.stored(stack.names.objects) == before
    await stack.bus.purge(stack.names.objects, before[0].subject)
    assert await stack.bus.put_object(RUN, "s", body) == ref
    await assert_whole(stack, ref, body)


async def test_the_ref_of_a_replaced_object_finds_nothing_else(stack: Stack) -> None:
    ref = await stack.bus.put_object(RUN, "s", b"12")
    await stack.bus.put_object(RUN, "s", b"123")
    with pytest.raises(NotFound, match="another was put in its place"):
        await stack.bus.get_object(ref)


async def test_the_loop_turns_between_a_few_chunks_and_the_next(stack: Stack) -> None:
    """While one is written, and while it is read."""
    body = some(16 * 1024 * 1024)
    turn = 0
    sent: Counter[int] = Counter()
    read: Counter[int] = Counter()

    class Watched(Bus):
        async def post(self, subject: str, payload: bytes = b"", **more: Any) -> None:
            sent[turn] += len(payload)
            await super().post(subject, payload, **more)

        async def _direct(self, *args: Any) -> tuple[list[StoredMessage], int]:
            messages, up_to = await super()._direct(*args)
            read[turn] += sum(len(message.payload) for message in messages)
            return messages, up_to

    async def others() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    async with Watched(stack.settings) as bus:
        task = asyncio.create_task(others())
        ref = await bus.put_object(RUN, "s", body)
        assert await bus.get_object(ref) == body
        task.cancel()
    assert sum(sent.values()) > len(body) == sum(read.values())
    assert max(sent.values()) <= 16 * CHUNK
    assert max(read.values()) <= 16 * CHUNK


# What ends.


async def test_a_time_to_live_is_on_every_message(stack: Stack) -> None:
    await stack.bus.put_object(RUN, "s", some(20 * CHUNK), ttl=3_600)
    stored = await stack.stored(stack.names.objects)
    assert len(stored) == 21
    assert await lives(stack) == {"3600s"}


async def test_an_object_ends_when_it_should(stack: Stack) -> None:
    body = some(3 * CHUNK)
    ref = await stack.bus.put_object(RUN, "s", body)
    kept = await stack.bus.put_object(RUN, "kept", body)
    assert await lives(stack) == {f"{LONGEST}s"}
    await stack.bus.expire_object(ref, ttl=3_600)
    assert await stack.bus.get_object(ref) == body
    await stack.bus.expire_object(ref, ttl=0)
    await until(lambda: _is_gone(stack, ref), what="gone")
    await until(lambda: _holds(stack, 4), what="no chunk left")
    assert await stack.bus.get_object(kept) == body
    await stack.bus.expire_object(ref, ttl=1)
    assert await _holds(stack, 4)
    assert await stack.bus.get_object(await stack.bus.put_object(RUN, "s", b"anew")) == b"anew"


async def lives(stack: Stack) -> set[str]:
    """The times to live of all that is stored."""
    return {message.headers[TTL] for message in await stack.stored(stack.names.objects)}


async def _is_gone(stack: Stack, ref: ObjectRef) -> bool:
    try:
        await stack.bus.get_object(ref)
    except NotFound:
        return True
    return False


async def _holds(stack: Stack, messages: int) -> bool:
    return (await stack.bus.stream_state(stack.names.objects)).messages == messages


async def test_a_put_without_an_end_keeps_what_was_to_end(stack: Stack) -> None:
    ref = await stack.bus.put_object(RUN, "s", b"x", ttl=3_600)
    await stack.bus.put_object(RUN, "s", b"x")
    assert await lives(stack) == {f"{LONGEST}s"}
    await assert_whole(stack, ref, b"x")


async def test_a_time_to_live_counts_from_the_last_put(stack: Stack) -> None:
    ref = await stack.bus.put_object(RUN, "s", b"x", ttl=3_600)
    before = await stack.stored(stack.names.objects)
    assert await stack.bus.put_object(RUN, "s", b"x", ttl=3_600) == ref
    after = await stack.stored(stack.names.objects)
    assert len(before) == len(after) == 2
    assert min(message.sequence for message in after) > max(message.sequence for message in before)


async def test_dropping_a_runs_objects_leaves_those_of_others(stack: Stack) -> None:
    mine = [await stack.bus.put_object(RUN, f"s{n}", some(2 * CHUNK, n)) for n in range(3)]
    theirs = await stack.bus.put_object(OTHER, "s0", some(2 * CHUNK))
    await stack.bus.drop_objects(RUN)
    assert await chunks(stack) == []
    for ref in mine:
        with pytest.raises(NotFound, match=ref.name):
            await stack.bus.get_object(ref)
    assert await stack.bus.get_object(theirs) == some(2 * CHUNK)
    again = await stack.bus.put_object(RUN, "s0", some(2 * CHUNK, 0))
    await assert_whole(stack, again, some(2 * CHUNK, 0))


async def test_dropping_one_object_leaves_the_others(stack: Stack) -> None:
    one, two = [await stack.bus.put_object(RUN, f"s{n}", some(2 * CHUNK, n)) for n in range(2)]
    await stack.bus.drop_object(one)
    await stack.bus.drop_object(one)
    with pytest.raises(NotFound, match="there is no object"):
        await stack.bus.get_object(one)
    await assert_whole(stack, two, some(2 * CHUNK, 1))
    await stack.bus.drop_object(two)
    assert await stack.stored(stack.names.objects) == []


async def test_what_is_put_while_the_object_is_dropped_stands(stack: Stack) -> None:
    ref = await stack.bus.put_object(RUN, "s", some(2 * CHUNK, 1))
    for number in range(2):
        async with FaultyBus(stack.settings) as bus:
            frozen = Wait(asyncio.Event(), asyncio.Event())
            bus.arm(frozen, nth=number)
            dropping = asyncio.create_task(bus.drop_object(ref))
            await frozen.reached.wait()
            newer = await stack.bus.put_object(RUN, "s", some(CHUNK, number))
            frozen.go.set()
            await dropping
        await assert_whole(stack, newer, some(CHUNK, number))


@pytest.mark.parametrize("place", [">", "*.*", f"{OTHER}.*", "", "a b"])
async def test_a_meta_that_names_no_place_empties_none(place: str, stack: Stack) -> None:
    """Neither when it is replaced nor when it is dropped; nor is it read."""
    subject = stack.names.object_meta(f"{RUN}/s")
    meta = json.dumps({"nuid": place, "size": 6, "chunks": 1, "digest": "SHA-256="}).encode()
    theirs = await stack.bus.put_object(OTHER, "s", b"theirs")
    ref = ObjectRef(name=f"{RUN}/s", size=6)
    await stack.bus.publish(subject, meta, {ROLLUP: "sub"})
    with pytest.raises(NotFound, match="cannot be read"):
        await stack.bus.get_object(ref)
    await stack.bus.drop_object(ref)
    with pytest.raises(NotFound, match="there is no object"):
        await stack.bus.get_object(ref)
    await stack.bus.publish(subject, meta, {ROLLUP: "sub"})
    await assert_whole(stack, await stack.bus.put_object(RUN, "s", b"mine"), b"mine")
    assert await stack.bus.get_object(theirs) == b"theirs"


async def test_no_wildcard_drops_all(stack: Stack) -> None:
    ref = await stack.bus.put_object(RUN, "s", b"x")
    for run in ("*", ">", RUN[:5]):
        await stack.bus.drop_objects(run)
    await assert_whole(stack, ref, b"x")


# What is broken.


async def test_absent_and_incomplete_objects_are_not_found(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    body = some(4 * CHUNK)
    with pytest.raises(NotFound, match="there is no object 'never/was'"):
        await bus.get_object(ObjectRef(name="never/was", size=1))
    for lost in range(4):
        ref = await bus.put_object(RUN, f"s{lost}", body)
        before = await stack.stored(names.objects, names.object_chunks(f"{RUN}.*"))
        await bus.delete(names.objects, before[lost - 4].sequence)
        with pytest.raises(NotFound, match="incomplete: of 4 chunks") as raised:
            await bus.get_object(ref)
        assert ref.name in str(raised.value)
    ref = await bus.put_object(RUN, "no chunk", body)
    await bus.drop_objects(RUN)
    with pytest.raises(NotFound, match="there are 0"):
        await bus.get_object(ref)
    ref = await bus.put_object(RUN, "no meta", body)
    await bus.purge(names.objects, names.object_meta(ref.name))
    with pytest.raises(NotFound, match="there is no object"):
        await bus.get_object(ref)


async def test_a_damaged_object_is_not_believed(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    parts = [some(CHUNK, n) for n in range(3)]
    ref = await bus.put_object(RUN, "s", b"".join(parts))
    subject = (await chunks(stack))[0].subject
    for wrong in ([parts[0], parts[2], parts[1]], [parts[0], parts[1], b"!" + parts[2][1:]]):
        await bus.purge(names.objects, subject)
        for part in wrong:
            await bus.publish(subject, part)
        with pytest.raises(NotFound, match="damaged") as raised:
            await bus.get_object(ref)
        assert ref.name in str(raised.value)
    await bus.put_object(RUN, "s", b"".join(parts))
    await assert_whole(stack, ref, b"".join(parts))


@pytest.mark.parametrize("meta", [b"", b"\xff", b"[]", b"{}", b'{"nuid": "x", "size": {}}'])
async def test_a_meta_nobody_can_read_is_replaced_by_the_next(meta: bytes, stack: Stack) -> None:
    await stack.bus.publish(stack.names.object_meta(f"{RUN}/s"), meta)
    with pytest.raises(NotFound, match=f"{RUN}/s"):
        await stack.bus.get_object(ObjectRef(name=f"{RUN}/s", size=0))
    await assert_whole(stack, await stack.bus.put_object(RUN, "s", b"x"), b"x")


async def test_a_replica_that_is_behind_is_not_believed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still has what was purged, lacks the end, or does not answer: the leader has the last word."""
    bus, direct = stack.bus, stack.bus._direct
    body = some(20 * CHUNK)
    await bus.put_object(OTHER, "before", b"x")
    ref = await bus.put_object(RUN, "s", body)
    (first, *_) = await chunks(stack)

    async def behind(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        messages, up_to = await direct(stream, query)
        stale = [StoredMessage(first.subject, 1, b"purged")] if query["seq"] <= 1 else []
        return stale + [m for m in messages if m.sequence < first.sequence + 13], up_to

    async def deaf(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        raise TryAgain(408, 0, "not answered")

    for replica in (behind, deaf):
        monkeypatch.setattr(bus, "_direct", replica)
        assert await bus.get_object(ref) == body


async def test_an_object_put_anew_while_it_is_read_is_read_anew(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = some(40 * CHUNK)
    ref = await stack.bus.put_object(RUN, "s", body)
    async with FaultyBus(stack.settings) as bus:
        direct, asked = bus._direct, 0

        async def meanwhile(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
            nonlocal asked
            asked += 1
            if asked == 2:
                await stack.bus.expire_object(ref, ttl=60)
            return await direct(stream, query)

        monkeypatch.setattr(bus, "_direct", meanwhile)
        assert await bus.get_object(ref) == body


# Faults.


async def through_every_fault(
    stack: Stack, prepare: Callable[[], Awaitable[object]], work: Callable[[Bus], Awaitable[object]]
) -> AsyncIterator[tuple[str, bool]]:
    """Do `work` once for each fault in each of its writes, after `prepare`; says where, and whether it died there."""
    await prepare()
    async with FaultyBus(stack.settings) as bus:
        await work(bus)
        writes = list(bus.writes)
    for number, name in enumerate(writes):
        for fault in FAULTS:
            await prepare()
            died = False
            async with FaultyBus(stack.settings) as bus:
                bus.arm(fault, nth=number)
                try:
                    await work(bus)
                except BaseException as error:
                    if not was_killed(error):
                        raise
                    died = True
            assert died == isinstance(fault, Die)
            yield f"{fault} at write {number}, {name}, of {len(writes)}", died


async def test_whatever_fails_the_next_put_is_whole(stack: Stack) -> None:
    body = some(2 * CHUNK + 1)
    ref = ObjectRef(name=f"{RUN}/s", size=len(body))

    async def nothing() -> None:
        await stack.bus.drop_object(ref)
        await stack.bus.drop_objects(RUN)
        assert await stack.stored(stack.names.objects) == []

    async def put(bus: Bus) -> None:
        await bus.put_object(RUN, "s", body)

    async for where, died in through_every_fault(stack, nothing, put):
        if died:
            assert await _is_gone(stack, ref) or await stack.bus.get_object(ref) == body, where
            await put(stack.bus)
            assert await stack.bus.get_object(ref) == body, where
        else:
            await assert_whole(stack, ref, body)


async def test_whatever_fails_an_object_stands(stack: Stack) -> None:
    """Replaced by another, it is the one or the other at any time; it is never neither."""
    old, new = some(3 * CHUNK, 1), some(2 * CHUNK, 2)
    ref = ObjectRef(name=f"{RUN}/s", size=len(old))
    newer = ObjectRef(name=ref.name, size=len(new))

    async def put(bus: Bus) -> None:
        await bus.put_object(RUN, "s", new)

    async def prepare() -> None:
        await stack.bus.drop_objects(RUN)
        await stack.bus.put_object(RUN, "s", old)

    async for where, died in through_every_fault(stack, prepare, put):
        if died:
            is_old = await _is_gone(stack, newer)
            assert await stack.bus.get_object(ref if is_old else newer) == (old if is_old else new), where
            await put(stack.bus)
            assert await stack.bus.get_object(newer) == new, where
        else:
            await assert_whole(stack, newer, new)


async def test_whatever_fails_an_object_to_expire_stands_until_it_does(stack: Stack) -> None:
    body = some(2 * CHUNK)
    ref = ObjectRef(name=f"{RUN}/s", size=len(body))

    async def expire(bus: Bus) -> None:
        await bus.expire_object(ref, ttl=3_600)

    async def prepare() -> None:
        await stack.bus.drop_objects(RUN)
        await stack.bus.put_object(RUN, "s", body)

    async for where, died in through_every_fault(stack, prepare, expire):
        assert await stack.bus.get_object(ref) == body, where
        if died:
            await expire(stack.bus)
            assert await stack.bus.get_object(ref) == body, where
            assert "3600s" in await lives(stack), where
        else:
            await assert_whole(stack, ref, body)
            assert await lives(stack) == {"3600s"}, where


async def test_a_put_that_came_to_nothing_leaves_nothing(stack: Stack) -> None:
    """Refused, or cancelled: at its chunks, and at its meta."""
    for number in range(3):
        async with FaultyBus(stack.settings) as bus:
            bus.arm(Refuse(ApiError(400, 1, "never")), nth=number, on=".C.")
            with pytest.raises(ApiError, match="never"):
                await bus.put_object(RUN, "s", some(3 * CHUNK))
        assert await stack.stored(stack.names.objects) == []
        async with FaultyBus(stack.settings) as bus:
            frozen = Wait(asyncio.Event(), asyncio.Event())
            bus.arm(frozen, nth=number, on=".C.")
            putting = asyncio.create_task(bus.put_object(RUN, "s", some(3 * CHUNK)))
            await frozen.reached.wait()
            await until(lambda: _has_chunks(stack, 2), what="the others stored")
            putting.cancel()
            (ended,) = await asyncio.gather(putting, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError)
        assert await stack.stored(stack.names.objects) == []
    async with FaultyBus(stack.settings) as bus:
        frozen = Wait(asyncio.Event(), asyncio.Event())
        bus.arm(frozen, on=".M.")
        putting = asyncio.create_task(bus.put_object(RUN, "s", b"mine"))
        await frozen.reached.wait()
        ref = await stack.bus.put_object(RUN, "s", b"theirs")
        frozen.go.set()
        with pytest.raises(WrongSequence):
            await putting
    await assert_whole(stack, ref, b"theirs")


async def test_a_put_that_may_stand_is_left_as_it_is(stack: Stack) -> None:
    """Its meta was stored, and every answer lost; or it was cancelled before the answer came."""
    body = some(2 * CHUNK)
    ref = ObjectRef(name=f"{RUN}/s", size=len(body))
    async with FaultyBus(stack.settings) as bus:
        bus.arm(LoseAnswer(), times=1_000_000, on=".M.")
        with pytest.raises(TryAgain):
            await bus.put_object(RUN, "s", body, patience=0.2)
    await assert_whole(stack, ref, body)
    before = await stack.stored(stack.names.objects)
    assert await stack.bus.put_object(RUN, "s", body) == ref
    assert await stack.stored(stack.names.objects) == before

    newer = ObjectRef(name=ref.name, size=5)
    async with Hurt(stack.settings) as bus:
        putting = asyncio.create_task(bus.put_object(RUN, "s", b"other"))
        await bus.stored.wait()
        putting.cancel()
        (ended,) = await asyncio.gather(putting, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)
    assert await stack.bus.get_object(newer) == b"other"


class Hurt(Bus):
    """Its metas are stored, and it does not hear of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stored = asyncio.Event()

    async def publish(self, subject: str, *args: Any, **more: Any) -> Any:
        found = await super().publish(subject, *args, **more)
        if ".M." in subject:
            self.stored.set()
            await asyncio.Event().wait()
        return found


async def test_what_the_dead_leave_goes_with_the_run(stack: Stack) -> None:
    body = some(3 * CHUNK)
    for number in range(4):
        async with FaultyBus(stack.settings) as bus:
            bus.arm(Die(after=True), nth=number)
            (ended,) = await asyncio.gather(bus.put_object(RUN, "s", body), return_exceptions=True)
            assert isinstance(ended, BaseException)
            assert was_killed(ended)
    theirs = await stack.bus.put_object(OTHER, "s", body)
    left = await chunks(stack)
    assert len(left) > 3
    assert await lives(stack) == {f"{LONGEST}s"}, "should nobody drop it"
    ref = ObjectRef(name=f"{RUN}/s", size=len(body))
    assert await stack.bus.get_object(ref) == body, "the last of them had written its meta"
    await stack.bus.drop_object(ref)
    await stack.bus.drop_objects(RUN)
    assert await chunks(stack) == []
    assert await stack.bus.get_object(theirs) == body


async def test_chunks_stored_out_of_order_are_written_anew(stack: Stack) -> None:
    body = some(6 * CHUNK)
    async with FaultyBus(stack.settings) as bus:
        wait = Wait(asyncio.Event(), asyncio.Event())
        bus.arm(wait, nth=2, on=".C.")
        putting = asyncio.create_task(bus.put_object(RUN, "s", body))
        await wait.reached.wait()
        await until(lambda: _has_chunks(stack, 5), what="the others stored")
        wait.go.set()
        ref = await putting
        assert sum(".C." in name and "PURGE" not in name for name in bus.writes) == 12
    await assert_whole(stack, ref, body)


async def _has_chunks(stack: Stack, count: int) -> bool:
    return len(await chunks(stack)) == count


async def test_writers_of_one_step_leave_the_object_of_one(stack: Stack) -> None:
    """And the others hear of it, unless they had not begun or were done."""
    bodies = [some(size, seed) for seed, size in enumerate((20 * CHUNK, 20 * CHUNK, 7 * CHUNK))]
    async with FaultyBus(stack.settings) as second, FaultyBus(stack.settings) as third:
        for _ in range(5):
            await assert_one_prevails(stack, [stack.bus, second, third], bodies)


@pytest.mark.parametrize("seed", range(6))
async def test_writers_of_one_step_with_faults_leave_the_object_of_one(seed: int, stack: Stack) -> None:
    random = Random(seed)
    bodies = [some(random.randint(0, 5 * CHUNK), n) for n in range(4)]
    async with contextlib.AsyncExitStack() as buses:
        writers = [await buses.enter_async_context(FaultyBus(stack.settings)) for _ in bodies]
        for _ in range(2):
            for writer in writers:
                for _ in range(2):
                    fault = random.choice((LoseAnswer(), Refuse()))
                    writer.arm(fault, nth=random.randint(0, 4), on=random.choice((".C.", ".M.", "")))
            await assert_one_prevails(stack, writers, bodies, clean=False)
            for writer in writers:
                writer.disarm()
        await assert_one_prevails(stack, writers, bodies, clean=False)
    await stack.bus.drop_object(ObjectRef(name=f"{RUN}/s", size=0))
    await stack.bus.drop_objects(RUN)
    assert await stack.stored(stack.names.objects) == []


async def assert_one_prevails(
    stack: Stack, writers: Sequence[Bus], bodies: list[bytes], *, clean: bool = True
) -> None:
    """All put the object: it is whole, and of one who was told so; `clean`: nobody left anything else."""
    ended = await asyncio.gather(
        *(bus.put_object(RUN, "s", body) for bus, body in zip(writers, bodies, strict=True)),
        return_exceptions=True,
    )
    assert all(isinstance(one, ObjectRef | WrongSequence) for one in ended)
    stored = await _what_stands(stack, "s")
    assert stored in [body for body, one in zip(bodies, ended, strict=True) if isinstance(one, ObjectRef)]
    if clean:
        assert b"".join([message.payload for message in await chunks(stack)]) == stored


async def test_writers_of_the_same_bytes_do_not_mind_each_other(stack: Stack) -> None:
    body = some(9 * CHUNK)
    async with FaultyBus(stack.settings) as other:
        refs = await asyncio.gather(*(bus.put_object(RUN, "s", body) for bus in (stack.bus, other)))
    assert refs[0] == refs[1]
    await assert_whole(stack, refs[0], body)


async def _what_stands(stack: Stack, step: str) -> bytes:
    meta = await stack.bus.last(stack.names.objects, stack.names.object_meta(f"{RUN}/{step}"))
    assert meta is not None
    size = json.loads(meta.payload)["size"]
    return await stack.bus.get_object(ObjectRef(name=f"{RUN}/{step}", size=size))


@pytest.mark.parametrize("before", [False, True])
async def test_a_writer_who_was_frozen_spoils_nothing(before: bool, stack: Stack) -> None:
    """Wherever it stood still, while somebody else put the object: theirs is whole when it wakes, and after."""
    mine, theirs = some(4 * CHUNK, 1), some(3 * CHUNK, 2)

    async def prepare() -> None:
        await stack.bus.drop_object(ObjectRef(name=f"{RUN}/s", size=0))
        if before:
            await stack.bus.put_object(RUN, "s", b"before")

    await prepare()
    async with FaultyBus(stack.settings) as bus:
        await bus.put_object(RUN, "s", mine)
        writes = list(bus.writes)
    assert len(writes) == 5 + before, "four chunks, the meta, and a purge of what was before"
    for number, name in enumerate(writes):
        await prepare()
        async with FaultyBus(stack.settings) as bus:
            frozen = Wait(asyncio.Event(), asyncio.Event())
            bus.arm(frozen, nth=number, times=1_000_000)
            putting = asyncio.create_task(bus.put_object(RUN, "s", mine))
            await frozen.reached.wait()
            ref = await stack.bus.put_object(RUN, "s", theirs)
            frozen.go.set()
            (ended,) = await asyncio.gather(putting, return_exceptions=True)
            # At its last write it was done, and replaced.
            assert isinstance(ended, ObjectRef if number == 5 else WrongSequence), (number, name, ended)
            await assert_whole(stack, ref, theirs)


async def test_expiring_what_was_replaced_meanwhile_replaces_nothing(stack: Stack) -> None:
    old, new = some(2 * CHUNK, 1), some(2 * CHUNK, 2)
    ref = await stack.bus.put_object(RUN, "s", old)
    async with FaultyBus(stack.settings) as bus:
        frozen = Wait(asyncio.Event(), asyncio.Event())
        bus.arm(frozen, on=".C.")
        expiring = asyncio.create_task(bus.expire_object(ref, ttl=60))
        await frozen.reached.wait()
        await stack.bus.put_object(RUN, "s", new)
        frozen.go.set()
        await expiring
    assert await stack.bus.get_object(ref) == new
    assert "60s" in await lives(stack), "of the same size, it is what the reference names"


async def test_a_put_gives_up_in_bounded_time(stack: Stack) -> None:
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Refuse(), times=1_000_000, on=".C.")
        with pytest.raises(TryAgain):
            await bus.put_object(RUN, "s", some(3 * CHUNK), patience=0.2)
        bus.disarm()
        bus.arm(Refuse(ApiError(400, 1, "never")), nth=1, on=".C.")
        with pytest.raises(ApiError, match="never"):
            await bus.put_object(RUN, "s", some(3 * CHUNK))
    assert await _is_gone(stack, ObjectRef(name=f"{RUN}/s", size=3 * CHUNK))


async def test_a_put_goes_on_after_the_server_was_killed(nats_server: NatsServer) -> None:
    async with Stack(nats_server, storage="file") as stack:
        body = some(32 * 1024 * 1024)
        halfway = Wait(asyncio.Event(), asyncio.Event())
        stack.bus.arm(halfway, nth=100, on=".C.")
        putting = asyncio.create_task(stack.bus.put_object(RUN, "s", body))
        await halfway.reached.wait()
        await nats_server.restart(kill=True)
        halfway.go.set()
        async with asyncio.timeout(60):
            ref = await putting
        await assert_whole(stack, ref, body)


async def test_no_more_than_a_few_chunks_are_on_their_way(stack: Stack) -> None:
    class Watched(Bus):
        now = most = 0

        async def publish(self, *args: Any, **more: Any) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await super().publish(*args, **more)
            finally:
                self.now -= 1

    async with Watched(stack.settings) as bus:
        await bus.put_object(RUN, "s", some(100 * CHUNK))
        assert 2 <= bus.most <= 16


# Histories.


async def test_a_long_history_is_whole_and_takes_few_requests(stack: Stack) -> None:
    names = stack.names
    subject, other = names.journal_of("app.f", RUN), names.journal_of("app.f", OTHER)
    count = 2_500
    await stack.bus.publish_groups(
        [[Outgoing(subject, b"%d" % n), Outgoing(other, b"other")] for n in range(count)]
    )
    async with CountingBus(stack.settings) as bus:
        await bus.settled()
        before = len(bus.posted)
        found = await bus.history(names.journal, subject)
        assert [message.payload for message in found] == [b"%d" % n for n in range(count)]
        assert len(bus.posted) - before == 4, "the last from the leader, and three pages"


async def test_a_history_takes_as_many_requests_as_the_servers_bound_on_bytes_wants(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = stack.names
    subject = names.journal_of("app.f", RUN)
    await stack.bus.publish_groups([[Outgoing(subject, some(4_000, n))] for n in range(500)])
    async with CountingBus(stack.settings) as bus:
        direct = bus._direct

        async def bounded(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
            return await direct(stream, query | {"max_bytes": 200_000})

        monkeypatch.setattr(bus, "_direct", bounded)
        before = len(bus.posted)
        found = await bus.history(names.journal, subject)
        assert [message.payload for message in found] == [some(4_000, n) for n in range(500)]
        assert 10 < len(bus.posted) - before < 15


async def test_only_what_the_replica_lacks_is_asked_of_the_leader(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = stack.names
    subject = names.journal_of("app.f", RUN)
    await stack.bus.publish_groups([[Outgoing(subject, b"%d" % n)] for n in range(2_500)])
    async with CountingBus(stack.settings) as bus:
        direct = bus._direct

        async def behind(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
            messages, up_to = await direct(stream, query)
            return [message for message in messages if message.sequence <= 2_490], up_to

        monkeypatch.setattr(bus, "_direct", behind)
        before = len(bus.posted)
        found = await bus.history(names.journal, subject)
        assert [message.payload for message in found] == [b"%d" % n for n in range(2_500)]
        assert len(bus.posted) - before == 1 + 4 + 10


# Of runs.


@pytest_asyncio.fixture
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, max_inline=1_000, ack_wait=1.0, executor_ttl=1.0) as stage:
        yield stage


async def large(ctx: Context, data: Any) -> int:
    """Steps with results too large for the journal."""
    one = await ctx.step.run("one", some, 200_000)
    event = await ctx.step.wait_for_event("two", "large.event", timeout=60)
    assert event is not None
    assert await ctx.step.run("small", len, one) == len(one)
    if data == "fail":
        raise ValueError("as it was told")
    return len(one) + len(event.data["bytes"])


async def begun(stage: Stage, data: Any = None) -> RunHandle:
    """A run of `large` whose steps are done, and which has not ended by far; a dead writer left chunks of it."""
    handle = await stage.play(large, data)
    await stage.waiting(handle)
    place = stage.stack.names.object_chunks(f"{handle.id}.dead")
    await stage.stack.bus.publish(place, some(1_000), {TTL: "3600s"})
    return handle


async def test_an_object_is_named_by_its_writer(stage: Stage) -> None:
    """So that nobody who was frozen overwrites what another has journaled, whatever its clock says."""
    handle = await begun(stage)
    await stage.send(Event("large.event", {"bytes": some(5_000)}))
    assert await handle.result(PATIENCE) == 205_000
    steps = {one.entry.step: one.entry for one in stage.stack.journal.of("step", run=handle.id)}
    for step in ("one", "two"):
        ref = steps[step].object
        assert ref is not None
        assert ref.name == f"{handle.id}/{step}/{steps[step].executor}"
    assert steps["small"].object is None


@pytest.mark.parametrize("dies_at", [None, 0, 4])
async def test_a_completed_run_leaves_no_object(dies_at: int | None, stage: Stage) -> None:
    """Nor a meta, nor what the dead left: also when its executor dies while it tidies up."""
    stack, executor = stage.stack, stage.executors[AWAY]
    other = await stack.bus.put_object(OTHER, "s", some(1_000))
    handle = await begun(stage)
    assert len(await chunks(stack, handle.id)) == 3, "two of an object, and one of the dead"
    if dies_at is not None:
        executor.bus.arm(Die(), nth=dies_at, on=f".{stack.names.objects}")
    await stage.send(Event("large.event", {"bytes": some(5_000)}))
    assert await handle.result(PATIENCE) == 205_000
    if dies_at is not None:
        await until(lambda: executor.bus.dead, what="dead")
        assert not await _holds(stack, 2)
        await stage.restart(AWAY)
    await until(lambda: _holds(stack, 2), what="nothing else left")
    assert await stack.bus.get_object(other) == some(1_000)


async def test_a_failed_run_keeps_its_objects_as_long_as_itself(stage: Stage) -> None:
    stack = stage.stack
    handle = await begun(stage, "fail")
    await stage.send(Event("large.event", {"bytes": some(5_000)}))
    await stage.failure_of(handle)
    keep = f"{stack.settings.keep_failed}s"

    async def all_end() -> bool:
        found = [
            message for message in await stack.stored(stack.names.objects) if len(message.payload) != 1_000
        ]
        return len(found) == 5 and {message.headers[TTL] for message in found} == {keep}

    await until(all_end, what="three chunks and two metas that end with the run")
    history = await handle.history()
    for step, size in (("one", 200_000), ("two", 5_000)):
        ref = history.steps[step].object
        assert ref is not None
        assert size < len(await stack.bus.get_object(ref)) < size + 200
