"""event-router, what it once stumbled over: events no server takes back, subjects nobody can read, ids that differ."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest_asyncio

from jetcron.bus import Delivery, with_id
from jetcron.clock import from_ms
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import Function, Run
from tests.support.nats_server import HOST, NatsServer
from tests.support.stack import HastyClock, Stack, take, until

FUNCTION = Function(id="app.rest", on=["order.>"])


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        await stack.bus.publish(stack.names.function_key(FUNCTION.id), encode(FUNCTION))
        yield stack


async def runs(stack: Stack) -> list[Run]:
    messages = await stack.stored(stack.names.work, stack.names.run_ready(FUNCTION.id))
    return [decode(Run, message.payload) for message in messages]


async def routed(stack: Stack) -> list[str]:
    """The ids of the events that started runs, once the router is done with all of them."""
    await stack.settled(stack.names.events, stack.names.event_router)
    return [run.event.id for run in await runs(stack) if run.event is not None]


async def raw_publish(server: NatsServer, subject: bytes, body: bytes) -> None:
    """Publish as a client without manners does: the subject as bytes; returns when the server has read it."""
    reader, writer = await asyncio.open_connection(HOST, server.port)
    try:
        await reader.readline()
        options = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
        writer.write(options + b"PUB %s %d\r\n%s\r\nPING\r\n" % (subject, len(body), body))
        await writer.drain()
        assert (await reader.readline()).strip() == b"PONG"
    finally:
        writer.close()


async def test_an_event_whose_run_fits_no_server_is_buried_and_others_go_on(stack: Stack) -> None:
    body = json.dumps({"n": [0.5] * 125_000}, separators=(",", ":")).encode()
    assert len(body) < 510_000
    subject = stack.names.event("order.line.added")
    await stack.bus.publish(subject, b"{}", with_id("before"))
    await stack.bus.publish(subject, body, with_id("large"))
    await stack.bus.publish(subject, b"{}", with_id("after"))
    await stack.start("event-router")
    assert sorted(await routed(stack)) == ["after", "before"]
    (letter,) = await stack.dead()
    assert (letter.letter, letter.size) == ("event", len(body))
    assert str(stack.bus.max_payload) in letter.reason
    told = [int(word) for word in letter.reason.replace(";", "").split() if word.isdigit()]
    assert max(told) > stack.bus.max_payload, letter.reason


async def test_a_subject_that_is_no_text_is_buried_and_others_go_on(
    stack: Stack, shared_nats: NatsServer
) -> None:
    (router,) = await stack.start("event-router")
    await router.ready()
    prefix = stack.names.event("x").removesuffix("x").encode()
    await raw_publish(shared_nats, prefix + b"\xff\xfe", b"{}")
    await stack.bus.publish(stack.names.event("order.line.added"), b"{}", with_id("good"))

    async def dealt_with() -> bool:
        return bool(
            await stack.dead() or any(one.samples for one in router.process.metrics.unhandled.collect())
        )

    await until(dealt_with, what="dealt with")
    (letter,) = await stack.dead()
    assert (letter.letter, letter.body) == ("event", b"{}")
    assert await routed(stack) == ["good"]
    assert not router.task.done()


async def test_a_bare_future_event_held_and_routed_is_one_run(stack: Stack) -> None:
    """A router holds it; the copy that gets it again finds its time so near that it routes it at once."""
    at = stack.clock.now() + 1_200
    headers = {"Jetcron-At": from_ms(at).isoformat()}
    await stack.bus.publish(stack.names.event("order.line.added"), b"{}", headers)
    (delivery,) = await take(stack.bus, stack.names.events, stack.names.event_router)
    await stack.make("event-router", stack.bus).handle([delivery])
    assert len(await stack.bus.subjects(stack.names.later, stack.names.later_held_all)) == 1
    late = stack.make("event-router", stack.bus, clock=HastyClock(ahead=60_000))
    await late.handle([delivery])
    (direct,) = await runs(stack)
    # What is ready is taken away, so that the server would not drop a second copy unseen.
    await stack.bus.purge(stack.names.work, stack.names.run_ready(FUNCTION.id))
    (released,) = await take(stack.bus, stack.names.later, stack.names.event_router_later)
    heard = await _published(stack, released)
    assert {run.run for run in heard} == {direct.run}


async def _published(stack: Stack, released: Delivery) -> list[Run]:
    """The runs a released event leads to, whether the server knew them or not."""
    async with stack.bus.listen(stack.names.run_ready(FUNCTION.id)) as heard:
        await stack.make("event-router", stack.bus).handle_released([released])
        _, payload = await heard.get()
    return [decode(Run, payload), *await runs(stack)]


async def test_a_dead_letter_carries_headers_in_part(stack: Stack) -> None:
    body = b"\xc1" * 30_000
    headers = {"Small": "kept", "Large": "x" * 50_000}
    await stack.bus.publish(stack.names.event("order.line.added"), body, headers)
    await stack.bus.publish(stack.names.event("order.line.added"), b"{}", with_id("good"))
    await stack.start("event-router")
    (letter,) = await until(stack.dead, what="buried")
    assert letter.body == body
    assert letter.headers == {"Small": "kept"}
    assert await routed(stack) == ["good"]
