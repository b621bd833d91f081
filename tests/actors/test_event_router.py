"""event-router on a real server: which events start what, at what time, and what becomes of the rest."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator

import msgpack
import pytest_asyncio

from jetcron import App, Context
from jetcron.bus import with_id
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.dispatch import event_id
from jetcron.events import Event
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import event_run_id, ulid_time
from jetcron_protocol.messages import Event as WireEvent
from jetcron_protocol.messages import Function, Run
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until

FUNCTIONS = (
    Function(id="app.exact", on=["order.created"]),
    Function(id="app.one", on=["order.*"]),
    Function(id="app.rest", on=["order.>"]),
    Function(id="app.both", on=["order.created", "order.*"]),
    Function(id="app.paused", on=["order.created"], state="paused"),
    Function(id="app.archived", on=[">"], state="archived"),
)


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        for function in FUNCTIONS:
            await stack.bus.publish(stack.names.function_key(function.id), encode(function))
        await stack.start("event-router")
        yield stack


async def routed(stack: Stack) -> list[Run]:
    """The runs of every event published so far, in order of their functions."""
    await stack.settled(stack.names.events, stack.names.event_router)
    messages = await stack.stored(stack.names.work, f"{stack.names.namespace}.run.ready.>")
    return sorted((decode(Run, message.payload) for message in messages), key=lambda run: run.function)


async def test_names_and_wildcards_start_each_function_once(stack: Stack) -> None:
    await stack.bus.publish(stack.names.event("order.created"), b"{}")
    names = [run.function for run in await routed(stack)]
    assert names == ["app.both", "app.exact", "app.one", "app.paused", "app.rest"]
    await stack.bus.purge(stack.names.work, f"{stack.names.namespace}.run.ready.>")
    await stack.bus.publish(stack.names.event("order.line.added"), b"{}")
    await stack.bus.publish(stack.names.event("order"), b"{}")
    assert [run.function for run in await routed(stack)] == ["app.rest"]


async def test_bare_maps_become_events(stack: Stack) -> None:
    subject = stack.names.event("order.line.added")
    first = (await stack.bus.publish(subject, json.dumps({"n": 1}).encode())).sequence
    await stack.bus.publish(subject, msgpack.packb({"n": 2}), with_id("mine"))
    await stack.bus.publish(subject, b'{"n": 3}', with_id("order.line.added:named"))
    events = [run.event for run in await routed(stack)]
    found = {event.id: event.data for event in events if event is not None}
    assert found == {str(first): {"n": 1}, "mine": {"n": 2}, "named": {"n": 3}}


async def test_the_run_of_an_event_without_an_id_has_the_time_it_was_stored(stack: Stack) -> None:
    before = stack.clock.now()
    await stack.bus.publish(stack.names.event("order.line.added"), b"{}")
    await stack.bus.publish(stack.names.event("order.line.added"), b"{}", with_id("mine"))
    times = sorted(ulid_time(run.run) or 0 for run in await routed(stack))
    assert times[0] == 0, "an id its sender gave makes a second sending the same run, whenever it is stored"
    assert before - 1_000 <= times[1] <= stack.clock.now() + 1_000


async def test_the_same_id_twice_is_one_run(stack: Stack) -> None:
    """Also when the server stored the event twice, as it does once it has forgotten the id."""
    event = WireEvent(id="same", name="order.line.added", ts=1)
    await stack.bus.publish(stack.names.event(event.name), encode(event), event_id(event))
    await stack.bus.publish(stack.names.event(event.name), encode(event), {"Jetcron-Event": "1"})
    await stack.bus.publish(stack.names.event(event.name), b"{}", with_id("same"))
    (run,) = await routed(stack)
    assert len(await stack.stored(stack.names.events)) == 3
    assert run.run == event_run_id("app.rest", event.name, "same")


async def test_future_events_are_held_and_start_their_runs_in_time(stack: Stack) -> None:
    at = stack.clock.now() + 2_500
    event = WireEvent(id="later", name="order.line.added", ts=1, at=at)
    await stack.bus.publish(stack.names.event(event.name), encode(event), event_id(event))
    moment = dt.datetime.fromtimestamp(at / 1000, dt.UTC).isoformat()
    await stack.bus.publish(stack.names.event(event.name), b"{}", with_id("bare") | {"Jetcron-At": moment})
    assert await routed(stack) == []
    held = await stack.bus.subjects(stack.names.later, stack.names.later_held_all)
    assert sorted(held) == sorted(stack.names.later_held(event.name, id) for id in ("later", "bare"))

    async def released() -> bool:
        return len(await routed(stack)) == 2

    await until(released, what="released")
    assert stack.clock.now() >= at - stack.settings.lead_ms - 50
    assert {run.fire_at for run in await routed(stack)} == {at}
    await stack.settled(stack.names.later, stack.names.event_router_later)


async def test_an_event_whose_time_has_passed_starts_at_once(stack: Stack) -> None:
    event = WireEvent(id="past", name="order.line.added", ts=1, at=1_000)
    await stack.bus.publish(stack.names.event(event.name), encode(event), event_id(event))
    (run,) = await routed(stack)
    assert run.fire_at == 1_000


async def test_what_is_no_event_goes_to_the_dead_stream_and_stops_nothing(stack: Stack) -> None:
    subject = stack.names.event("order.line.added")
    lying = encode(WireEvent(id="a", name="another", ts=1))
    bodies = [
        (b"\xc1", {}, "msgpack"),
        (b"[1]", {}, "a JSON or msgpack map was expected, not b'[1]'"),
        (b'{"n": ', {}, "JSON"),
        (lying, {"Jetcron-Event": "1"}, "another"),
        (b"{}", {"Jetcron-At": "tomorrow"}, "RFC 3339"),
        (b"{}", {"Nats-Msg-Id": "x" * 300}, "300 characters"),
    ]
    for body, headers, _ in bodies:
        await stack.bus.publish(subject, body, headers or None)
    await stack.bus.publish(subject, b"{}", with_id("good"))
    (run,) = await routed(stack)
    assert run.event is not None
    assert run.event.id == "good"
    letters = sorted(await stack.dead(), key=lambda letter: letter.sequence)
    assert [letter.body for letter in letters] == [body for body, _, _ in bodies]
    for letter, (_, headers, reason) in zip(letters, bodies, strict=True):
        assert reason in letter.reason
        assert letter.subject == subject
        assert headers.items() <= letter.headers.items()


async def test_a_large_body_is_kept_in_part(stack: Stack) -> None:
    size = 200_000
    await stack.bus.publish(stack.names.event("order.line.added"), b"\xc1" * size)
    (letter,) = await until(stack.dead)
    assert (letter.size, len(letter.body)) == (size, 64 * 1024)


async def test_an_event_sent_right_after_a_registration_finds_its_function(stack: Stack) -> None:
    await stack.start("cron-sync")
    async with Client(stack.settings) as client:
        for n in range(5):
            app = App(f"fresh{n}")

            @app.function(on="news")
            async def hears(ctx: Context) -> None: ...

            await stack.register(app)
            await client.send(Event("news", id=str(n)))
            functions = {run.function for run in await routed(stack) if run.event and run.event.id == str(n)}
            assert functions == {f"fresh{m}.hears" for m in range(n + 1)}


async def test_many_copies_route_every_event_once(stack: Stack) -> None:
    await stack.start("event-router", copies=2)
    async with Client(stack.settings) as client:
        await asyncio.gather(
            *(
                client.send([Event("order.line.added", id=f"{batch}-{n}") for n in range(100)])
                for batch in range(5)
            )
        )
    ids = [run.event.id for run in await routed(stack) if run.event is not None]
    assert sorted(ids) == sorted(f"{batch}-{n}" for batch in range(5) for n in range(100))


async def test_from_an_outside_client_to_user_code(shared_nats: NatsServer) -> None:
    """Held by the server, released, run at its time, with its data."""
    app = App("app")
    seen: asyncio.Queue[tuple[object, int]] = asyncio.Queue()
    async with Stack(shared_nats) as stack:

        @app.function(on="ping")
        async def hears(ctx: Context, data: dict[str, int]) -> None:
            seen.put_nowait((data, stack.clock.now()))

        await stack.start("cron-sync", "event-router")
        await stack.register(app)
        await stack.execute(app)
        at = stack.clock.now() + 900
        headers = {"Jetcron-At": from_ms(at).isoformat()}
        await stack.bus.publish(stack.names.event("ping"), b'{"n": 7}', headers)
        data, started = await asyncio.wait_for(seen.get(), PATIENCE)
        assert data == {"n": 7}
        assert started >= at
