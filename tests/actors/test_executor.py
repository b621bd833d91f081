"""The executor on a real server: user code of every kind, its ends, retries, take-overs, drain."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from jetcron import App, Context, NonRetriableError, Retry, RetryAfterError, RunFailed
from jetcron.client import Client
from jetcron.clock import SystemClock, from_ms
from jetcron.dispatch import new_run
from jetcron.errors import LeaseLost, TryAgain
from jetcron.events import Event
from jetcron.runs import RunHandle
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import manual_run_id
from jetcron_protocol.messages import DeadLetter, Run
from jetcron_protocol.messages import Event as WireEvent
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Running, Stack, until

SOON = Retry(attempts=3, waits=[0.2], jitter=0)
LOSSES = {"ack_wait": 1.0, "executor_ttl": 1.0, "executor_beat": 0.2}
"""Settings under which a dead executor is found dead within two seconds."""


@dataclass
class House:
    """A stack with cron-sync, a client, and executors of one app."""

    stack: Stack
    client: Client
    app: App
    executors: list[Running]

    async def run(self, name: str, data: Any = None, **more: Any) -> RunHandle:
        return await self.client.run(f"{self.app.name}.{name}", data, **more)

    async def result(self, name: str, data: Any = None) -> Any:
        return await (await self.run(name, data)).result(PATIENCE)

    async def failure(self, name: str, data: Any = None) -> RunFailed:
        with pytest.raises(RunFailed) as raised:
            await self.result(name, data)
        return raised.value


@contextlib.asynccontextmanager
async def house(
    server: NatsServer, app: App, *actors: str, executors: int = 1, **settings: Any
) -> AsyncIterator[House]:
    async with Stack(server, **settings) as stack, Client(stack.settings) as client:
        await stack.start("cron-sync", *actors)
        await stack.register(app)
        yield House(stack, client, app, [await stack.execute(app) for _ in range(executors)])


def outcomes(history: Any) -> list[str]:
    return [attempt.outcome for attempt in history.attempts]


# What a function may be.


class Model(BaseModel):
    n: int
    names: list[str] = []


@dataclass
class Data:
    n: int


class Typed(TypedDict):
    n: int


async def test_async_plain_and_typed_functions(shared_nats: NatsServer) -> None:
    app = App("kinds")
    main = threading.get_ident()

    @app.function()
    async def plainly(ctx: Context, data: Any) -> Any:
        return [data, ctx.function_id, ctx.attempt, ctx.scheduled_at, ctx.event, list(ctx.events)]

    @app.function()
    def in_a_thread(ctx: Context, data: Any) -> Any:
        return [data, threading.get_ident() != main]

    @app.function()
    async def model(ctx: Context, data: Model) -> Any:
        assert isinstance(data, Model)
        return data

    @app.function()
    async def a_dataclass(ctx: Context, data: Data) -> Any:
        assert isinstance(data, Data)
        return data

    @app.function()
    async def typed_dict(ctx: Context, data: Typed) -> Any:
        return data["n"] + 1

    @app.function()
    async def nothing(ctx: Context) -> None: ...

    async with house(shared_nats, app) as h:
        assert await h.result("plainly", {"a": b"\x00"}) == [
            {"a": b"\x00"},
            "kinds.plainly",
            0,
            None,
            None,
            [],
        ]
        assert await h.result("in_a_thread", 1) == [1, True]
        assert await h.result("model", {"n": "3", "names": ["x"]}) == {"n": 3, "names": ["x"]}
        assert await h.result("a_dataclass", {"n": 1}) == {"n": 1}
        assert await h.result("typed_dict", {"n": 1}) == 2
        assert await h.result("nothing") is None


async def test_data_that_does_not_fit_fails_the_run_at_once(shared_nats: NatsServer) -> None:
    app = App("typed")
    called = []

    @app.function(retries=4)
    async def model(ctx: Context, data: Model) -> None:
        called.append(data)

    async with house(shared_nats, app) as h:
        handle = await h.run("model", {"n": "many", "names": 1})
        with pytest.raises(RunFailed) as raised:
            await handle.result(PATIENCE)
        assert raised.value.type.endswith("PayloadInvalid")
        assert "n: " in raised.value.message
        assert "names: " in raised.value.message
        assert "many" not in raised.value.message, "a value is in the message"
        assert outcomes(await handle.history()) == ["failed"]
        assert called == []


# How it may end.


async def test_retries_come_after_their_waits_and_end_with_success(shared_nats: NatsServer) -> None:
    app = App("retry")
    attempts = []

    @app.function(retry=SOON)
    async def third_time(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt < 2:
            raise ValueError(f"not yet, {ctx.attempt}")
        return "done"

    async with house(shared_nats, app) as h:
        handle = await h.run("third_time")
        assert await handle.result(PATIENCE) == "done"
        history = await handle.history()
        assert attempts == [0, 1, 2]
        assert outcomes(history) == ["retrying", "retrying", "completed"]
        assert [a.error.message for a in history.attempts if a.error] == ["not yet, 0", "not yet, 1"]
        waits = [entry.entry.next_at for entry in h.stack.journal.of("retrying")]
        starts = [attempt.started for attempt in history.attempts]
        for wait, start in zip(waits, starts[1:], strict=True):
            assert wait is not None
            assert start >= wait, "a retry came early"


async def test_the_last_failure_is_in_the_dead_stream(shared_nats: NatsServer) -> None:
    app = App("retry")

    @app.function(retry=Retry(attempts=2, waits=[0.1], jitter=0))
    async def never(ctx: Context, data: Any) -> None:
        raise ValueError("never")

    async with house(shared_nats, app) as h:
        handle = await h.run("never", {"n": 1})
        with pytest.raises(RunFailed, match="never") as raised:
            await handle.result(PATIENCE)
        assert raised.value.type == "ValueError"
        assert "in never" in raised.value.traceback
        assert "jetcron/executor" not in raised.value.traceback, "our frames are in the traceback"
        assert outcomes(await handle.history()) == ["retrying", "failed"]
        (letter,) = await until(h.stack.dead)
        assert (letter.letter, letter.run, letter.function) == ("failed", handle.id, "retry.never")
        assert decode(Run, letter.body).payload == {"n": 1}


async def test_retry_after_names_its_own_time(shared_nats: NatsServer) -> None:
    app = App("retry")

    @app.function(retry=Retry(attempts=2, waits=[3600]))
    async def busy(ctx: Context) -> int:
        if ctx.attempt == 0:
            raise RetryAfterError(timedelta(seconds=0.3))
        return ctx.attempt

    async with house(shared_nats, app) as h:
        handle = await h.run("busy")
        assert await handle.result(PATIENCE) == 1
        (retrying,) = h.stack.journal.of("retrying")
        first, second = (await handle.history()).attempts
        assert retrying.entry.next_at >= first.started + 300
        assert second.started >= retrying.entry.next_at


async def test_a_non_retriable_error_ends_the_run(shared_nats: NatsServer) -> None:
    app = App("retry")

    @app.function(retries=4)
    async def hopeless(ctx: Context) -> None:
        raise NonRetriableError("no use")

    async with house(shared_nats, app) as h:
        failed = await h.failure("hopeless")
        assert failed.message == "no use"
        assert len(h.stack.journal.of("claimed")) == 1


async def test_an_attempt_past_its_timeout_fails(shared_nats: NatsServer) -> None:
    app = App("slow")
    go = threading.Event()
    cancelled = []

    @app.function(timeout=0.1, retries=0)
    async def awaits(ctx: Context) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    @app.function(timeout=0.1, retries=0)
    def blocks(ctx: Context) -> str:
        go.wait(30)
        return "too late"

    @app.function(timeout=0.1, retry=Retry(attempts=2, waits=[0], jitter=0))
    async def once(ctx: Context) -> int:
        if ctx.attempt == 0:
            await asyncio.sleep(60)
        return ctx.attempt

    async with house(shared_nats, app) as h:
        try:
            for name in ("awaits", "blocks"):
                failed = await h.failure(name)
                assert failed.type == "TimeoutError"
                assert "0.1 s" in failed.message
            assert cancelled == [True]
            assert await h.result("once") == 1
        finally:
            go.set()


async def test_a_result_nobody_can_store_fails_the_run(shared_nats: NatsServer) -> None:
    app = App("results")

    @app.function()
    async def a_set(ctx: Context) -> Any:
        return {1, 2}

    @app.function()
    async def too_large(ctx: Context) -> Any:
        return b"x" * 65 * 1024**2

    async with house(shared_nats, app) as h:
        failed = await h.failure("a_set")
        assert "builtins.set" in failed.message
        failed = await h.failure("too_large")
        assert "at most 67108864 can be stored" in failed.message
        assert len(h.stack.journal.of("claimed")) == 2, "neither is retried"


async def test_whatever_code_raises_is_a_failure_of_its_run_alone(shared_nats: NatsServer) -> None:
    app = App("wild")
    errors: dict[str, Callable[[], BaseException]] = {
        "exit": lambda: SystemExit(3),
        "cancelled": asyncio.CancelledError,
        "group": lambda: BaseExceptionGroup("several", [ValueError("a"), SystemExit(1)]),
    }

    @app.function(retries=0)
    async def raises(ctx: Context, kind: str) -> None:
        raise errors[kind]()

    @app.function()
    async def fine(ctx: Context) -> str:
        return "fine"

    async with house(shared_nats, app) as h:
        for kind, name in (
            ("exit", "SystemExit"),
            ("cancelled", "CancelledError"),
            ("group", "BaseExceptionGroup"),
        ):
            assert (await h.failure("raises", kind)).type.endswith(name)
        assert await h.result("fine") == "fine"
        assert not h.executors[0].task.done()


# Concurrency, claims.


@pytest.mark.parametrize("limit", [1, 3])
async def test_concurrency_holds_over_all_executors(limit: int, shared_nats: NatsServer) -> None:
    app = App("limited")
    running: list[int] = []
    now = 0

    @app.function(concurrency=limit)
    async def counted(ctx: Context) -> None:
        nonlocal now
        now += 1
        running.append(now)
        await asyncio.sleep(0.1)
        now -= 1

    async with house(shared_nats, app, executors=2) as h:
        for _ in range(15):
            await h.run("counted")
        await h.stack.journal.wait("completed", 15)
        assert len(running) == 15
        assert min(2, limit) <= max(running) <= limit


async def test_the_same_run_published_twice_runs_once(shared_nats: NatsServer) -> None:
    app = App("twice")
    calls = []
    gate = asyncio.Event()

    @app.function()
    async def counted(ctx: Context) -> None:
        calls.append(ctx.run_id)
        await gate.wait()

    async with house(shared_nats, app, executors=2) as h:
        now = h.stack.clock.now()
        run = Run(
            run=manual_run_id("twice.counted", "1"), function="twice.counted", trigger="manual", fire_at=now
        )
        message = new_run(h.stack.names, run, now=now, lead=500).without_id()
        for _ in range(5):
            await h.stack.bus.store(message)
        durable = h.stack.names.run_consumer("twice.counted")
        await h.stack.journal.wait("claimed")

        async def one_left() -> bool:
            return await h.stack.left(h.stack.names.work, durable) == 1

        await until(one_left, what="duplicates acknowledged")
        gate.set()
        await h.stack.settled(h.stack.names.work, durable)
        assert calls == [run.run]
        assert len(h.stack.journal.of("completed")) == 1


async def test_a_run_nobody_can_read_goes_to_the_dead_stream_and_stops_nothing(
    shared_nats: NatsServer,
) -> None:
    app = App("dead")

    @app.function(concurrency=1)
    async def fine(ctx: Context) -> str:
        return "fine"

    async with house(shared_nats, app) as h:
        ready = h.stack.names.run_ready("dead.fine")
        other = Run(run="X", function="dead.other", trigger="manual", fire_at=1)
        for body in (b"\xc1", encode(other), b""):
            await h.stack.bus.publish(ready, body)
        assert await h.result("fine") == "fine"
        letters = await h.stack.dead()
        assert [letter.letter for letter in letters] == ["run"] * 3
        assert [letter.body for letter in letters] == [b"\xc1", encode(other), b""]
        assert "dead.other" in letters[1].reason


# Time.


async def test_nothing_starts_early(shared_nats: NatsServer) -> None:
    app = App("early")
    starts: dict[str, int] = {}
    clock = SystemClock()

    @app.function()
    async def timed(ctx: Context) -> None:
        starts[ctx.run_id] = clock.now()

    @app.function(cron="@every 1s")
    async def ticking(ctx: Context) -> None:
        assert ctx.scheduled_at is not None
        starts[ctx.run_id] = clock.now()

    async with house(shared_nats, app, "cron-tick") as h:
        begun = clock.now()
        due: dict[str, int] = {}
        for wait in (0, 1, 7, 40, 333, 700, 1_100, 1_500):
            handle = await h.run("timed", at=from_ms(begun + wait))
            due[handle.id] = begun + wait
        for handle_id, at in due.items():
            await h.stack.journal.wait("completed", run=handle_id)
            assert starts[handle_id] >= at
        for entry in await h.stack.journal.wait("completed", 2, function="early.ticking"):
            about = entry.entry.about
            assert about is not None
            assert about.scheduled_at is not None
            assert starts[entry.run] >= about.scheduled_at
            assert about.scheduled_at % 1_000 == 0


# Processes that die, freeze, stop.


async def test_the_runs_of_a_killed_executor_are_taken_over(shared_nats: NatsServer) -> None:
    app = App("killed")
    started: asyncio.Queue[int] = asyncio.Queue()

    @app.function(retries=0)
    async def hangs_once(ctx: Context) -> int:
        started.put_nowait(ctx.attempt)
        if started.qsize() == 1:
            await asyncio.sleep(600)
        return ctx.attempt

    async with house(shared_nats, app, **LOSSES) as h:
        handle = await h.run("hangs_once")
        await h.stack.journal.wait("claimed")
        await until(lambda: started.qsize() == 1)
        await h.executors[0].kill()
        await h.stack.execute(app)
        assert await handle.result(PATIENCE) == 0, "a loss is no attempt"
        history = await handle.history()
        assert outcomes(history) == ["lost", "completed"]
        assert len({attempt.executor for attempt in history.attempts}) == 2


async def test_a_run_that_kills_its_process_ends_in_the_dead_stream(shared_nats: NatsServer) -> None:
    app = App("deadly")
    calls: list[Running] = []
    executor: list[Running] = []
    struck = asyncio.Event()

    @app.function(retries=4)
    async def deadly(ctx: Context) -> None:
        calls.append(executor[-1])
        struck.set()
        await asyncio.sleep(600)

    async with house(shared_nats, app, executors=0, **LOSSES) as h:
        handle = await h.run("deadly")
        for _ in range(3):
            executor.append(await h.stack.execute(app))
            await asyncio.wait_for(struck.wait(), PATIENCE)
            struck.clear()
            await executor[-1].kill()
        await h.stack.execute(app)
        with pytest.raises(RunFailed, match="died 3 times in a row") as raised:
            await handle.result(PATIENCE)
        assert raised.value.type == "ProcessDied"
        assert len(calls) == 3
        (letter,) = await until(h.stack.dead)
        assert letter.run == handle.id


class Freezable(SystemClock):
    """A clock of a process that can be frozen: who sleeps does not wake while it is."""

    def __init__(self) -> None:
        self._going = asyncio.Event()
        self._going.set()

    def freeze(self) -> None:
        self._going.clear()

    def thaw(self) -> None:
        self._going.set()

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await self._going.wait()


@pytest.mark.parametrize("unaware", [False, True])
async def test_an_executor_frozen_past_its_lease_records_nothing(
    unaware: bool, shared_nats: NatsServer
) -> None:
    """`unaware`: it does not even see that its lease lapsed, and the journal's fence alone holds."""
    app = App("frozen")
    gates: dict[int, asyncio.Event] = {0: asyncio.Event(), 1: asyncio.Event()}
    calls = []
    sent: list[BaseException] = []

    @app.function(retries=0)
    async def slow(ctx: Context) -> int:
        number = len(calls)
        calls.append(number)
        await gates[number].wait()
        if number == 0:
            try:
                await ctx.step.send("late", Event("too.late"))
            except BaseException as error:
                sent.append(error)
                raise
        return number

    async with house(shared_nats, app, executors=0, **LOSSES) as h:
        clock = Freezable()
        frozen = await h.stack.execute(app, clock=clock)
        handle = await h.run("slow")
        await until(lambda: len(calls) == 1)
        clock.freeze()
        await h.stack.execute(app)
        await until(lambda: len(calls) == 2, what="taken over")
        if unaware:
            frozen.actor._lease.expired = lambda identity: False
        gates[0].set()
        await until(lambda: not frozen.actor._in_hand, what="given up")
        assert await handle.status() == "running", "the frozen one recorded an end"
        gates[1].set()
        assert await handle.result(PATIENCE) == 1
        clock.thaw()
        assert outcomes(await handle.history()) == ["lost", "completed"]
        assert all(isinstance(error, LeaseLost) for error in sent)
        if not unaware:
            assert await h.stack.stored(h.stack.names.events) == []


async def test_a_told_executor_finishes_what_it_has_and_hands_back_the_rest(
    shared_nats: NatsServer,
) -> None:
    app = App("drained")
    gate = asyncio.Event()
    started = asyncio.Event()

    @app.function()
    async def working(ctx: Context) -> str:
        started.set()
        await gate.wait()
        return "finished"

    @app.function()
    async def waiting(ctx: Context) -> str:
        return "ran"

    # Nothing is delivered again by itself: what comes back was handed back.
    async with house(shared_nats, app, ack_wait=600, grace=1.0, lead=30, late_after=60) as h:
        in_hand = await h.run("working")
        due = h.stack.clock.now() + 4_000
        not_due = await h.run("waiting", at=from_ms(due))
        await h.stack.journal.wait("claimed", 2)
        await asyncio.wait_for(started.wait(), PATIENCE)
        stopping = asyncio.create_task(h.executors[0].stop())
        await until(lambda: h.executors[0].process.stopping.is_set())
        after_stop = await h.run("waiting")
        gate.set()
        await stopping
        assert await in_hand.result(PATIENCE) == "finished"
        assert await not_due.status() == "waiting", "claimed, not run, and handed over"
        assert await after_stop.status() == "queued"
        await h.stack.execute(app)
        assert await after_stop.result(PATIENCE) == "ran"
        assert await not_due.result(PATIENCE) == "ran"
        assert outcomes(await not_due.history()) == ["waiting", "completed"]
        begun = [attempt.started for attempt in (await not_due.history()).attempts]
        assert begun[0] is None
        assert begun[1] is not None
        assert begun[1] >= due


async def test_a_paused_function_keeps_its_runs_waiting(shared_nats: NatsServer) -> None:
    app = App("paused")

    @app.function(on="go")
    async def patient(ctx: Context) -> str:
        return "ran"

    @app.function()
    async def other(ctx: Context) -> str:
        return "other"

    async with house(shared_nats, app, "event-router") as h:
        await h.client.functions.pause("paused.patient")
        by_name = await h.run("patient")
        await h.client.send(Event("go"))
        await h.stack.settled(h.stack.names.events, h.stack.names.event_router)
        assert await h.result("other") == "other"
        assert await by_name.status() == "queued"
        assert await h.stack.left(h.stack.names.work, h.stack.names.run_consumer("paused.patient")) == 2
        await h.client.functions.unpause("paused.patient")
        assert await by_name.result(PATIENCE) == "ran"
        await h.stack.journal.wait("completed", 2, function="paused.patient")


# What a run sends.


async def test_a_step_that_was_done_is_not_done_again(shared_nats: NatsServer) -> None:
    app = App("steps")
    attempts = []

    @app.function(retry=SOON)
    async def sends(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        await ctx.step.send("first", [Event("sent", {"n": n}) for n in range(3)])
        if ctx.attempt == 0:
            raise ValueError("after the first")
        await ctx.step.send("second", Event("sent", {"n": 3}))
        if ctx.attempt == 1:
            raise ValueError("after the second")
        return "done"

    async with house(shared_nats, app) as h:
        handle = await h.run("sends")
        assert await handle.result(PATIENCE) == "done"
        assert attempts == [0, 1, 2]
        events = [decode(WireEvent, m.payload) for m in await h.stack.stored(h.stack.names.events)]
        assert [event.data["n"] for event in events] == [0, 1, 2, 3]
        assert len(h.stack.journal.of("step")) == 2
        assert set((await handle.history()).steps) == {"first", "second"}


async def test_a_failure_is_announced_once_and_its_handler_s_failure_is_not(
    shared_nats: NatsServer,
) -> None:
    app = App("failing")
    heard = []

    @app.function(retries=0)
    async def fails(ctx: Context) -> None:
        raise ValueError("first")

    @app.function(on="jetcron.function.failed", retries=0)
    async def handler(ctx: Context, data: dict[str, Any]) -> None:
        heard.append(data)
        raise ValueError("second")

    async with house(shared_nats, app, "event-router") as h:
        handle = await h.run("fails")
        await h.stack.journal.wait("failed", 2)
        for function in app.functions:
            await h.stack.settled(h.stack.names.work, h.stack.names.run_consumer(function))
        await h.stack.settled(h.stack.names.events, h.stack.names.event_router)
        (event,) = await h.stack.stored(h.stack.names.events, h.stack.names.event("jetcron.>"))
        assert decode(WireEvent, event.payload).data == heard[0]
        assert len(heard) == 1
        assert heard[0]["function"] == "failing.fails"
        assert heard[0]["run"] == handle.id
        assert heard[0]["error"] == {"type": "ValueError", "message": "first"}
        letters = await h.stack.dead()
        assert {letter.function for letter in letters} == {"failing.fails", "failing.handler"}
        assert all(isinstance(letter, DeadLetter) for letter in letters)


async def test_an_executor_outlives_a_server_that_goes_as_it_starts(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot ask for word of cancelled runs at first, and does so later."""
    app = App("app")
    begun = asyncio.Event()

    @app.function(retries=0)
    async def hang(ctx: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("jetcron.executor.actor._MISSING_PAUSE", 0.05)
    async with house(shared_nats, app, executors=0) as home:
        settled, lost = FaultyBus.settled, 0

        async def gone_twice(self: FaultyBus, timeout: float = 5.0) -> None:
            nonlocal lost
            if self is not home.stack.bus and lost < 2:
                lost += 1
                raise TryAgain(0, 0, "the connection to NATS was lost")
            await settled(self, timeout)

        monkeypatch.setattr(FaultyBus, "settled", gone_twice)
        executor = await home.stack.execute(app)
        await until(lambda: lost == 2, what="two refusals")
        handle = await home.run("hang")
        await asyncio.wait_for(begun.wait(), PATIENCE)
        await handle.cancel()
        with pytest.raises(RunFailed):
            await handle.result(PATIENCE)
        assert not executor.task.done()
