"""executor and client, what they once stumbled over: cut-off appends, leaked tasks, errors of every kind, credits."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jetcron import App, Context, Retry, RunFailed
from jetcron.bus import pull as pull_module
from jetcron.bus import with_id
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.errors import NonRetriableError
from jetcron.events import Event
from jetcron.executor.lease import Lease
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import DeadLetter, JournalEntry, Run
from tests.actors.test_executor import house, outcomes
from tests.support.faults import FaultyBus, Wait
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Steps that are stored (the first event) and not answered before the second event is set."""
    stored, go = asyncio.Event(), asyncio.Event()
    append = FaultyBus.append

    async def slow(self: FaultyBus, subject: str, payload: bytes, *args: Any, **more: Any) -> int:
        sequence = await append(self, subject, payload, *args, **more)
        if decode(JournalEntry, payload).entry == "step":
            stored.set()
            await go.wait()
        return sequence

    monkeypatch.setattr(FaultyBus, "append", slow)
    yield stored, go
    go.set()


async def test_a_time_out_around_a_step_that_is_being_stored_does_not_lose_the_run(
    shared_nats: NatsServer, slow_steps: tuple[asyncio.Event, asyncio.Event]
) -> None:
    app = App("cut")
    stored, go = slow_steps

    async def cut(bound: asyncio.Timeout) -> None:
        await stored.wait()
        bound.reschedule(asyncio.get_running_loop().time())

    @app.function(retries=0)
    async def impatient(ctx: Context) -> str:
        try:
            async with asyncio.timeout(PATIENCE) as bound:
                cutting = asyncio.create_task(cut(bound))
                await ctx.step.send("slow", Event("sent"))
        except TimeoutError:
            await cutting
            asyncio.get_running_loop().call_soon(go.set)
            return "cut off"
        return "not cut off"

    async with house(shared_nats, app) as h:
        handle = await h.run("impatient")
        assert await handle.result(PATIENCE) == "cut off"
        history = await handle.history()
        assert outcomes(history) == ["completed"]
        assert list(history.steps) == ["slow"]


async def test_a_task_that_outlives_its_run_records_nothing(shared_nats: NatsServer) -> None:
    app = App("leak")
    gate = asyncio.Event()
    leaked: list[asyncio.Task[None]] = []

    @app.function(retries=0)
    async def leaks(ctx: Context) -> str:
        async def later() -> None:
            await gate.wait()
            await ctx.step.send("late", Event("late"))

        leaked.append(asyncio.create_task(later()))
        return "done"

    async with house(shared_nats, app) as h:
        handle = await h.run("leaks")
        assert await handle.result(PATIENCE) == "done"
        gate.set()
        with pytest.raises(NonRetriableError, match="its run has ended"):
            await leaked[0]
        kinds = [entry.entry.entry for entry in h.stack.journal.of(run=handle.id)]
        assert kinds == ["claimed", "completed"]
        assert await h.stack.stored(h.stack.names.events) == []


async def test_a_task_that_was_sending_when_its_run_ended_records_nothing(shared_nats: NatsServer) -> None:
    app = App("leak")
    reached, go = asyncio.Event(), asyncio.Event()
    leaked: list[asyncio.Task[None]] = []

    @app.function(retries=0)
    async def leaks(ctx: Context) -> str:
        leaked.append(asyncio.create_task(ctx.step.send("late", Event("late"))))
        await reached.wait()
        return "done"

    async with house(shared_nats, app) as h:
        h.executors[0].bus.arm(Wait(reached, go), on=h.stack.names.event("late"))
        handle = await h.run("leaks")
        assert await handle.result(PATIENCE) == "done"
        go.set()
        await asyncio.gather(*leaked, return_exceptions=True)
        await h.stack.bus.settled()
        view = await handle.view()
        assert view.status == "completed", "the journal goes on after its end"
        kinds = [entry.entry.entry for entry in h.stack.journal.of(run=handle.id)]
        assert kinds == ["claimed", "completed"]


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Own(BaseException):
    pass


async def test_errors_of_any_kind_are_failed_attempts(shared_nats: NatsServer) -> None:
    app = App("strange")
    errors: dict[str, tuple[BaseException, str]] = {
        "surrogate": (ValueError("\udcff"), "\\udcff"),
        "mute": (Mute(), "RuntimeError"),
        "own": (Own("mine"), "mine"),
    }

    @app.function(retry=Retry(attempts=2, waits=[0.1], jitter=0))
    async def raises(ctx: Context, kind: str) -> str:
        if ctx.attempt == 0:
            raise errors[kind][0]
        return "again"

    @app.function(retries=0)
    async def fails(ctx: Context, kind: str) -> None:
        raise errors[kind][0]

    async with house(shared_nats, app) as h:
        for kind, (error, text) in errors.items():
            handle = await h.run("raises", kind)
            assert await handle.result(PATIENCE) == "again"
            assert outcomes(await handle.history()) == ["retrying", "completed"]
            failed = await h.failure("fails", kind)
            assert failed.type.endswith(type(error).__name__)
            assert text in failed.message
        assert not h.executors[0].task.done()


async def test_many_long_tracebacks_end_in_a_journal_that_fits(tmp_path: Path) -> None:
    app = App("long")
    attempts = 14

    @app.function(retry=Retry(attempts=attempts, waits=[0], jitter=0))
    async def fails(ctx: Context) -> None:
        raise ValueError("x" * 20_000)

    async with NatsServer(tmp_path / "small", max_payload=128 * 1024) as server, house(server, app) as h:
        handle = await h.run("fails")
        with pytest.raises(RunFailed):
            await handle.result(PATIENCE)
        (last,) = await h.stack.stored(
            h.stack.names.journal, h.stack.names.journal_of("long.fails", handle.id)
        )
        assert len(last.payload) < 128 * 1024
        history = await handle.history()
        assert outcomes(history) == ["retrying"] * (attempts - 1) + ["failed"]
        assert len(h.stack.journal.of("claimed", run=handle.id)) == attempts
        assert not h.executors[0].task.done()


async def test_an_identity_retired_many_times_at_once_is_followed_by_one(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats) as stack:
        lease = Lease(stack.bus, stack.clock, stack.settings, "app", running=lambda: 0)
        await lease.open()
        first = lease.current
        await asyncio.gather(*(lease.retire(first) for _ in range(4)))
        assert lease.current is not first
        keys = {message.subject for message in await stack.stored(stack.names.executors)}
        named = {stack.names.executor_key("app", identity.id) for identity in (first, lease.current)}
        assert keys == named


async def test_what_a_burst_reserved_goes_back_to_others(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "_EXPIRES", 1.0)
    monkeypatch.setattr(pull_module, "_HEARTBEAT", 0.2)
    app = App("burst")
    go = asyncio.Event()
    running = 0

    @app.function()
    async def bursts(ctx: Context) -> None: ...

    @app.function()
    async def holds(ctx: Context) -> None:
        nonlocal running
        running += 1
        await go.wait()

    async with house(shared_nats, app, slots=40) as h:
        try:
            await asyncio.gather(*(h.run("bursts") for _ in range(300)))
            await h.stack.journal.wait("completed", 300)
            await asyncio.gather(*(h.run("holds") for _ in range(60)))
            # An idle function keeps a pull open for its share: 10 of 40.
            await until(lambda: running >= 35, what="30 of the other function run at once")
        finally:
            go.set()


async def test_after_a_restart_of_the_server_a_new_run_does_not_wait_for_an_old_pull(
    nats: NatsServer,
) -> None:
    app = App("restart")

    @app.function()
    async def prompt(ctx: Context) -> str:
        return "done"

    async with house(nats, app, storage="file", executor_ttl=30.0) as h:
        (executor,) = h.executors
        await executor.ready()
        generation = executor.bus.generation
        await nats.restart(kill=True)
        await until(lambda: executor.bus.generation > generation and executor.bus.connected)
        await until(lambda: h.client._bus.connected, what="the client connected again")
        handle = await h.run("prompt")
        assert await handle.result(10) == "done"


async def test_a_second_call_does_not_move_what_the_first_holds(shared_nats: NatsServer) -> None:
    app = App("held")

    @app.function()
    async def far(ctx: Context) -> None: ...

    async with house(shared_nats, app, executors=0, duplicate_window=1) as h:
        first = h.stack.clock.now() + 3_600_000
        handle = await h.run("far", id="mine", at=from_ms(first))
        called = h.stack.clock.now()
        again = await h.run("far", id="mine", at=from_ms(first + 60_000))
        await until(lambda: h.stack.clock.now() > called + 1_500, what="the id forgotten by the server")
        later = await h.run("far", id="mine", at=from_ms(first + 120_000))
        assert handle.id == again.id == later.id
        held = await h.stack.stored(h.stack.names.work, h.stack.names.runs_later_of("held.far"))
        assert [decode(Run, message.payload).fire_at for message in held] == [first]


async def test_an_event_replayed_at_once_is_stored_again(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats) as stack, Client(stack.settings) as client:
        await stack.start("event-router")
        names = stack.names
        await stack.bus.publish(names.event("x"), b"\xc1", with_id("mine"))
        stored = await stack.bus.publish(names.event("y"), b'{"n": 1}', with_id("y:known"))
        await stack.settled(names.events, names.event_router)
        # A letter that an older router wrote, which could not read what can be read now.
        readable = DeadLetter(
            letter="event",
            reason="old",
            at=stack.clock.now(),
            subject=names.event("y"),
            stream=names.events,
            sequence=stored.sequence,
            size=8,
            body=b'{"n": 1}',
            headers=with_id("y:known"),
        )
        await stack.bus.publish(
            names.dead_letter("event", names.events, str(stored.sequence)), encode(readable)
        )
        for dead in await client.dead.list():
            await client.dead.replay(dead.sequence)
        for name in ("x", "y"):
            assert len(await stack.stored(names.events, names.event(name))) == 2, name
        await stack.settled(names.events, names.event_router)
        (again,) = await client.dead.list()
        assert again.letter.subject == names.event("x"), "it is as unreadable as it was"


async def test_an_end_is_heard_before_it_can_be_read(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server passes a message on before it has stored it: then nothing more is heard, and the end must be read."""
    app = App("early")
    gate = asyncio.Event()

    @app.function()
    async def waits(ctx: Context) -> str:
        await gate.wait()
        return "done"

    async with house(shared_nats, app) as h:
        handle = await h.run("waits")
        await h.stack.journal.wait("claimed")
        monkeypatch.setattr("jetcron.runs._LISTEN_SECONDS", 10 * PATIENCE)
        last, stale = handle._bus.last, []
        listening = asyncio.Event()

        async def late(stream: str, subject: str) -> Any:
            found = await last(stream, subject)
            listening.set()
            if (
                found is not None
                and decode(JournalEntry, found.payload).entry == "completed"
                and len(stale) < 3
            ):
                stale.append(found)
                return None
            return found

        monkeypatch.setattr(handle._bus, "last", late)
        result = asyncio.create_task(handle.result(PATIENCE))
        await asyncio.wait_for(listening.wait(), PATIENCE)
        gate.set()
        assert await result == "done"
        assert len(stale) == 3


async def test_an_executor_is_not_ready_before_its_app_is_registered(shared_nats: NatsServer) -> None:
    """One of its functions was registered before, and is pulled at once; an event for the other would start nothing."""

    def grown(*names: str) -> App:
        app = App("grown")
        for name in names:

            async def nothing(ctx: Context) -> None: ...

            nothing.__name__ = name
            app.function(on=f"{name}.wanted")(nothing)
        return app

    async with Stack(shared_nats) as stack:
        (cron_sync,) = await stack.start("cron-sync")
        await stack.register(grown("old"))
        await cron_sync.stop()
        executor = await stack.execute(grown("old", "new"))
        await until(lambda: [one for one in executor.process._consumers if one.pulled_at is not None])
        assert "not registered yet" in str(executor.process.unready())
        await stack.start("cron-sync")
        await executor.ready()
