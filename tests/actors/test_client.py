"""The client on a real server: what it sends, starts, reads and orders."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from jetcron import App, ConfigurationError, Context, Retry, RunFailed, RunNotFound
from jetcron import runs as runs_module
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.errors import NotFound, PayloadTooLarge, SendFailed, TryAgain
from jetcron.events import Event
from jetcron_protocol.codec import EncodeError, decode, encode
from jetcron_protocol.messages import Event as WireEvent
from jetcron_protocol.messages import Gap, JournalEntry
from tests.support.faults import FaultyBus, LoseAnswer, Refuse
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until


@contextlib.asynccontextmanager
async def connected(server: NatsServer, **settings: Any) -> AsyncIterator[tuple[Stack, Client]]:
    async with Stack(server, **settings) as stack, Client(stack.settings) as client:
        yield stack, client


async def sent(stack: Stack) -> list[WireEvent]:
    return [decode(WireEvent, message.payload) for message in await stack.stored(stack.names.events)]


@contextlib.asynccontextmanager
async def faulty(stack: Stack) -> AsyncIterator[tuple[Client, FaultyBus]]:
    """A client on a bus whose writes can fail."""
    client = Client(stack.settings)
    client._bus.__class__ = FaultyBus
    bus: Any = client._bus
    bus.writes, bus.dead, bus._armed = [], False, []
    async with client:
        yield client, bus


@dataclass
class Order:
    n: int


@pytest.mark.parametrize("wrong", ["nats://127.0.0.1:4222", {"nats_url": "x"}])
def test_what_is_no_settings_is_told_how_to_say_it(wrong: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"Client: settings is no Settings .*Settings\.load\(nats_url="
    ):
        Client(wrong)


async def test_one_event_and_many(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        (id,) = await client.send(Event("one", {"n": 1}))
        ids = await client.send([Event("many", Order(n), id=f"id-{n}") for n in range(3)])
        assert ids == ["id-0", "id-1", "id-2"]
        found = await sent(stack)
        assert [(event.name, event.id, event.data) for event in found] == [
            ("one", id, {"n": 1}),
            *(("many", f"id-{n}", {"n": n}) for n in range(3)),
        ]
        assert abs(found[0].ts - stack.clock.now()) < 10_000
        await client.send(Event("many", id="id-0"))
        assert len(await sent(stack)) == 4, "a known id stores nothing again"
        assert await client.send([]) == []


async def test_fifteen_hundred_go_in_two_batches(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, _), faulty(stack) as (client, bus):
        await client.send([Event("x", n) for n in range(1_500)])
        assert len(bus.writes) == 2
        assert [event.data for event in await sent(stack)] == list(range(1_500))


async def test_a_list_that_was_not_stored_whole_says_how_much_was(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, _), faulty(stack) as (client, bus):
        bus.arm(Refuse(), nth=1, times=100)
        with pytest.raises(SendFailed) as raised:
            await client.send([Event("x", n) for n in range(1_500)])
        assert (raised.value.stored, raised.value.total) == (1_000, 1_500)
        assert len(await sent(stack)) == 1_000


@pytest.mark.parametrize("count", [1, 3])
async def test_a_lost_answer_makes_no_second_event(count: int, shared_nats: NatsServer) -> None:
    """Or one with the same id, which starts nothing again."""
    async with connected(shared_nats) as (stack, _), faulty(stack) as (client, bus):
        bus.arm(LoseAnswer())
        ids = await client.send([Event("x", n) for n in range(count)])
        assert {event.id for event in await sent(stack)} == set(ids)


async def test_what_is_too_large_is_refused_before_anything_is_stored(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        limit = stack.bus.max_body
        with pytest.raises(PayloadTooLarge) as raised:
            await client.send([Event("small"), Event("large", b"x" * 2_000_000)])
        assert raised.value.limit == limit
        assert str(limit) in str(raised.value)
        assert str(raised.value.size) in str(raised.value)
        assert raised.value.size > 2_000_000
        with pytest.raises(EncodeError, match=r"event 'odd'.*builtins\.object"):
            await client.send([Event("small"), Event("odd", object())])
        with pytest.raises(ConfigurationError, match=r"jetcron\.mine"):
            await client.send(Event("jetcron.mine"))
        with pytest.raises(ConfigurationError, match="not an Event"):
            await client.send(["x"])  # type: ignore[list-item]
        assert await sent(stack) == []


@contextlib.asynccontextmanager
async def at_work(server: NatsServer) -> AsyncIterator[tuple[Stack, Client]]:
    app = App("app")

    @app.function()
    async def double(ctx: Context, n: int) -> int:
        return 2 * n

    @app.function(retries=0)
    async def fails(ctx: Context, data: Any) -> None:
        raise LookupError("not there")

    @app.function(retry=Retry(attempts=2, waits=[3600]))
    async def waits(ctx: Context) -> None:
        raise LookupError("not yet")

    @app.function()
    async def hangs(ctx: Context) -> None:
        await asyncio.sleep(600)

    async with connected(server, grace=0) as (stack, client):
        await stack.start("cron-sync")
        await stack.register(app)
        await stack.execute(app)
        yield stack, client


async def test_a_run_and_its_result(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        handle = await client.run("app.double", 21)
        assert await handle.result(PATIENCE) == 42
        assert await handle.result(PATIENCE) == 42, "and again"
        view = await client.runs.get(handle.id)
        assert (view.status, view.result, view.function) == ("completed", 42, "app.double")
        with pytest.raises(RunFailed, match="LookupError: not there") as raised:
            await (await client.run("app.fails")).result(PATIENCE)
        assert (raised.value.type, raised.value.message) == ("LookupError", "not there")
        hanging = await client.run("app.hangs")
        await stack.journal.wait("claimed", run=hanging.id)
        with pytest.raises(TimeoutError):
            await hanging.result(0.3)
        assert await hanging.status() == "running"


async def test_a_retry_shows_as_retrying(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        handle = await client.run("app.waits")
        await stack.journal.wait("retrying")
        assert await handle.status() == "retrying"


async def test_the_same_id_starts_one_run(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        first = await client.run("app.double", 1, id="mine")
        again = await client.run("app.double", 2, id="mine")
        assert first.id == again.id
        assert await again.result(PATIENCE) == 2
        await stack.settled(stack.names.work, stack.names.run_consumer("app.double"))
        assert len(stack.journal.of("completed")) == 1
        other = await client.run("app.double", 2)
        assert other.id != first.id


async def test_a_run_at_a_time_does_not_start_before(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        at = stack.clock.now() + 900
        handle = await client.run("app.double", 1, at=from_ms(at))
        assert await handle.result(PATIENCE) == 2
        (attempt,) = (await handle.history()).attempts
        assert (attempt.started or 0) >= at


async def test_a_run_of_what_does_not_exist_is_refused(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        with pytest.raises(NotFound, match=r"app\.absent"):
            await client.run("app.absent")
        with pytest.raises(ConfigurationError, match=r"APP\.FUNCTION"):
            await client.run("double")
        with pytest.raises(PayloadTooLarge):
            await client.run("app.double", b"x" * 2_000_000)
        with pytest.raises(EncodeError):
            await client.run("app.double", object())
        await client.functions.archive("app.double")
        with pytest.raises(NotFound, match="archived"):
            await client.run("app.double", 1)
        for unknown in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "", "*"):
            with pytest.raises(RunNotFound):
                await client.runs.get(unknown)
        assert await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.run.>") == []


async def test_runs_are_listed_newest_first(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        ids = []
        for n in range(5):
            ids.append((await client.run("app.double", n)).id)
            await asyncio.sleep(0.002)  # an id holds its millisecond
        await stack.journal.wait("completed", 5)
        listed = await client.runs.list(function="app.double", limit=3)
        assert [view.id for view in listed] == ids[::-1][:3]
        assert [view.result for view in listed] == [8, 6, 4]
        assert await client.runs.list(function="app.fails") == []


async def test_runs_are_followed_as_they_happen(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (_, client):
        listening = asyncio.Event()
        tail = client.runs.tail(listening=listening.set)
        first = asyncio.ensure_future(anext(tail))
        await listening.wait()
        handle = await client.run("app.double", 1)
        found = [await asyncio.wait_for(first, PATIENCE), await asyncio.wait_for(anext(tail), PATIENCE)]
        await tail.aclose()  # type: ignore[attr-defined]
        assert [(function, run, entry.entry) for function, run, entry in found] == [
            ("app.double", handle.id, "claimed"),
            ("app.double", handle.id, "completed"),
        ]


async def test_a_claim_in_vain_is_not_followed(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        listening = asyncio.Event()
        tail = client.runs.tail(listening=listening.set)
        found = []
        first = asyncio.ensure_future(anext(tail))
        await listening.wait()
        subject = stack.names.journal_of("app.f", "R")
        for turn, lost, executor in [(0, 0, "a"), (0, 0, "b"), (0, 1, "c"), (1, 0, "d"), (1, 0, "e")]:
            entry = JournalEntry(entry="claimed", turn=turn, lost=lost, at=1, executor=executor)
            await stack.bus.publish(subject, encode(entry))
        await stack.bus.publish(stack.names.journal_of("app.f", "gap-1"), b"x")
        await stack.bus.publish(subject, b"\xc1")
        await stack.bus.publish(subject, encode(JournalEntry(entry="completed", turn=1, at=1, executor="d")))
        found.append(await asyncio.wait_for(first, PATIENCE))
        while found[-1][2].entry != "completed":
            found.append(await asyncio.wait_for(anext(tail), PATIENCE))
        await tail.aclose()  # type: ignore[attr-defined]
        assert [entry.executor for _, _, entry in found] == ["a", "c", "d", "d"]


async def test_gaps_are_read_from_the_ledger(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        gaps = [Gap(schedule="s", start=n, to=n + 1, count=1, reason="catch_up") for n in (5, 2)]
        for gap in gaps:
            await stack.bus.publish(stack.names.journal_of("app.f", f"gap-{gap.start}"), encode(gap))
        assert [view.gap for view in await client.runs.gaps()] == gaps[::-1]
        assert await client.runs.gaps(function="app.g") == []
        assert await client.runs.list() == []


async def test_functions_are_listed_and_ordered_about(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (_, client):
        listed = await client.functions.list()
        assert [function.id for function in listed] == ["app.double", "app.fails", "app.hangs", "app.waits"]
        await client.functions.pause("app.double", "app.fails")
        states = {function.id: function.state for function in await client.functions.list()}
        assert states["app.double"] == states["app.fails"] == "paused"
        assert states["app.hangs"] == "active"
        await client.functions.unpause("app.double")
        assert (await client.functions.get("app.double")).state == "active"
        with pytest.raises(ConfigurationError, match=r"app\.absent"):
            await client.functions.pause("app.absent")
        with pytest.raises(ConfigurationError, match=r"APP\.FUNCTION"):
            await client.functions.pause("absent")


async def test_an_order_nobody_applies_says_so_and_stands(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        with pytest.raises(TryAgain, match="cron-sync"):
            await client.functions.pause("app.f", wait=0.2)
        assert await stack.left(stack.names.work, stack.names.cron_sync) == 1


async def test_dead_letters_are_listed_and_sent_again(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        failed = await client.run("app.fails", {"n": 1})
        with pytest.raises(RunFailed):
            await failed.result(PATIENCE)
        await stack.settled(stack.names.work, stack.names.run_consumer("app.fails"))
        await stack.bus.publish(stack.names.run_ready("app.double"), b"\xc1")
        await stack.settled(stack.names.work, stack.names.run_consumer("app.double"))
        broken, run = await client.dead.list()
        assert [dead.letter.letter for dead in (broken, run)] == ["run", "failed"]
        assert await client.dead.list(kind="failed") == [run]
        assert await client.dead.list(kind="event") == []
        assert await client.dead.list(limit=1) == [broken]
        again = await client.dead.replay(run.sequence)
        assert again != failed.id
        await stack.journal.wait("failed", run=again)
        with pytest.raises(NotFound):
            await client.dead.get(run.sequence)
        with pytest.raises(NotFound):
            await client.dead.replay(run.sequence)
        assert await client.dead.replay(broken.sequence) == stack.names.run_ready("app.double")
        await stack.settled(stack.names.work, stack.names.run_consumer("app.double"))
        await stack.settled(stack.names.work, stack.names.run_consumer("app.fails"))
        letters = await client.dead.list()
        assert sorted(dead.letter.letter for dead in letters) == ["failed", "run"], "both are there again"


async def test_a_letter_kept_in_part_is_not_sent_again(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        await stack.start("event-router")
        await stack.bus.publish(stack.names.event("x"), b"\xc1" * 100_000)
        await stack.settled(stack.names.events, stack.names.event_router)
        (dead,) = await client.dead.list()
        with pytest.raises(ConfigurationError, match="100000 bytes"):
            await client.dead.replay(dead.sequence)
        assert await client.dead.get(dead.sequence) == dead


async def test_an_event_replayed_comes_as_it_was(shared_nats: NatsServer) -> None:
    async with connected(shared_nats, duplicate_window=1) as (stack, client):
        await stack.start("event-router")
        headers = {"Nats-Msg-Id": "mine", "Jetcron-At": "2030-01-01T00:00:00Z", "Other": "gone"}
        await stack.bus.publish(stack.names.event("x"), b"\xc1", headers)
        await stack.settled(stack.names.events, stack.names.event_router)
        (dead,) = await client.dead.list()
        assert dead.letter.headers == headers
        await until(lambda: stack.clock.now() > dead.letter.at + 1_500, what="the id forgotten by the server")
        assert await client.dead.replay(dead.sequence) == stack.names.event("x")
        await stack.settled(stack.names.events, stack.names.event_router)
        first, again = await stack.stored(stack.names.events)
        assert (again.payload, again.headers["Jetcron-At"]) == (b"\xc1", headers["Jetcron-At"])
        assert "Other" not in again.headers
        assert again.sequence > first.sequence


async def test_waiting_for_a_far_result_survives_a_restart_of_the_server(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_LISTEN_SECONDS", 0.5)
    app = App("app")

    @app.function()
    async def later(ctx: Context) -> str:
        return "done"

    async with connected(nats, storage="file") as (stack, client):
        await stack.start("cron-sync")
        await stack.register(app)
        executor = await stack.execute(app)
        handle = await client.run("app.later", at=from_ms(stack.clock.now() + 2_000))
        waiting = asyncio.create_task(handle.result(PATIENCE))
        await nats.restart(kill=True)
        assert await waiting == "done"
        await executor.stop()
