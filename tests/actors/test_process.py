"""An actor as a process: starting, readiness, its endpoint, stopping, and storage that does not answer."""

import asyncio
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from jetcron import App, Context
from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.errors import TopologyMissing, TryAgain
from jetcron.executor.lease import Lease
from jetcron.health_checker import actor as health_checker
from jetcron.process import Process, run_actor
from jetcron.settings import Settings
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Running, Stack, fast_settings, until

Work = Callable[[Process], Awaitable[None]]


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


class Scripted:
    """An actor that does what the test says."""

    def __init__(self, process: Process, work: Work) -> None:
        self._process = process
        self._work = work

    async def run(self) -> None:
        await self._work(self._process)


class Started:
    """A process that runs `work`; an async context manager that waits for its start and its end."""

    def __init__(
        self, settings: Settings, work: Work, *, signals: bool = False, http: int | None = None
    ) -> None:
        self.begun = asyncio.Event()
        self.port: int | None = None
        self.process: Process | None = None

        def make(bus: Bus, clock: Clock, settings: Settings, process: Process) -> Scripted:
            return Scripted(process, work)

        def started(process: Process, port: int | None) -> None:
            self.process, self.port = process, port
            self.begun.set()

        self.task = asyncio.create_task(
            run_actor("scripted", make, settings, http=http, signals=signals, started=started)
        )

    async def __aenter__(self) -> "Started":
        await asyncio.wait_for(self.begun.wait(), PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await asyncio.wait_for(asyncio.gather(self.task, return_exceptions=True), PATIENCE)

    def stop(self) -> None:
        assert self.process is not None
        self.process.stopping.set()


async def until_stopped(process: Process) -> None:
    await process.stopping.wait()


async def test_without_its_streams_it_does_not_start(shared_nats: NatsServer, namespace: str) -> None:
    with pytest.raises(TopologyMissing, match="jetcron init"):
        await Started(fast_settings(shared_nats, namespace), until_stopped).task


async def test_what_breaks_the_actor_ends_the_process(stack: Stack) -> None:
    async def breaks(process: Process) -> None:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        await Started(stack.settings, breaks).task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_work_finish_and_a_second_one_does_not(number: int, stack: Stack) -> None:
    finish = asyncio.Event()
    ended: list[str] = []

    async def works(process: Process) -> None:
        try:
            await process.stopping.wait()
            await finish.wait()
            ended.append("finished")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    for second in (False, True):
        finish.clear()
        async with Started(stack.settings, works, signals=True) as started:
            os.kill(os.getpid(), number)
            assert started.process is not None
            await asyncio.wait_for(started.process.stopping.wait(), PATIENCE)
            assert started.process.unready() == "stopping"
            if second:
                os.kill(os.getpid(), number)
            else:
                finish.set()
            await asyncio.wait_for(started.task, PATIENCE)
    assert ended == ["finished", "cancelled"]


async def test_work_that_outlasts_the_grace_period_is_given_up(stack: Stack) -> None:
    cancelled = asyncio.Event()

    async def hangs(process: Process) -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    settings = stack.settings.model_copy(update={"grace": 0.1})
    async with Started(settings, hangs) as started:
        started.stop()
        await asyncio.wait_for(started.task, PATIENCE)
    assert cancelled.is_set()


async def fetch(port: int, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_the_endpoint_says_whether_it_is_ready(stack: Stack) -> None:
    async def pulls(process: Process) -> None:
        await process.take(stack.names.events, stack.names.event_router, nothing, most=1)

    async def nothing(deliveries: Sequence[Delivery]) -> None: ...

    async with Started(stack.settings, until_stopped, http=0) as idle:
        assert idle.port is not None
        assert await fetch(idle.port, "/readyz") == (503, "not pulling yet\n")
        assert (await fetch(idle.port, "/livez"))[0] == 200
        assert "jetcron_ticks_turned_total 0.0" in (await fetch(idle.port, "/metrics"))[1]
        assert (await fetch(idle.port, "/other"))[0] == 404
        assert idle.process is not None
        idle.process.blocked("not registered yet")
        assert await fetch(idle.port, "/readyz") == (503, "not registered yet\n")
    async with Started(stack.settings, pulls, http=0) as pulling:
        port = pulling.port
        assert port is not None

        async def ready() -> bool:
            return await fetch(port, "/readyz") == (200, "ok\n")

        await until(ready, what="ready")


async def test_a_clock_far_off_the_server_s_is_not_ready(stack: Stack) -> None:
    (running,) = await stack.start("cron-tick")
    await running.ready()
    running.bus.clock_offset_ms = stack.settings.lead_ms + 1.0
    assert "clock is off" in (running.process.unready() or "")
    running.bus.clock_offset_ms = -stack.settings.lead_ms + 1.0
    assert running.process.unready() is None


async def test_a_process_without_its_server_is_not_ready(nats: NatsServer) -> None:
    async with Stack(nats, storage="file") as stack:
        (running,) = await stack.start("event-router")
        await running.ready()
        await nats.kill()
        await until(lambda: "not connected" in (running.process.unready() or ""), what="not ready")
        await nats.start()
        await running.ready()


async def test_what_storage_does_not_answer_for_is_delivered_again(stack: Stack) -> None:
    seen: list[int] = []

    async def handle(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            seen.append(delivery.delivered)
            if len(seen) == 1:
                raise TryAgain(503, 0, "not now")
            await delivery.ack()

    async def takes(process: Process) -> None:
        await process.take(stack.names.events, stack.names.event_router, handle, most=10)

    async with Started(stack.settings, takes) as started:
        await stack.bus.publish(stack.names.event("x"), b"{}")
        await stack.settled(stack.names.events, stack.names.event_router)
        assert seen == [1, 2]
        assert started.process is not None
        assert not started.task.done()


async def _start(stack: Stack, name: str) -> Running:
    if name == "executor":
        app = App("app")

        @app.function()
        async def work(ctx: Context) -> None: ...

        return await stack.execute(app)
    (running,) = await stack.start(name)
    return running


BEGINNINGS = {"executor": (Lease, "open"), "health-checker": (health_checker, "arm")}


@pytest.mark.parametrize("name", BEGINNINGS)
async def test_an_actor_begins_once_storage_answers(
    name: str, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, what = BEGINNINGS[name]
    begin = getattr(where, what)
    answers = asyncio.Event()
    refused = asyncio.Event()

    async def begins(*given: Any) -> Any:
        if not answers.is_set():
            refused.set()
            raise TryAgain(503, 0, "nobody answers")
        return await begin(*given)

    monkeypatch.setattr(where, what, begins)
    await stack.start("cron-sync")
    waiting, running = await _start(stack, name), await _start(stack, name)
    await asyncio.wait_for(refused.wait(), PATIENCE)
    await waiting.stop()
    assert not running.task.done()
    answers.set()
    await running.ready()
    await running.stop()


async def test_an_actor_goes_on_when_its_consumer_comes_back(stack: Stack) -> None:
    (running,) = await stack.start("event-router")
    await running.ready()
    await stack.bus.delete_consumer(stack.names.events, stack.names.event_router)
    await stack.bus.apply_topology()
    await stack.bus.publish(stack.names.event("x"), b"{}")
    await stack.settled(stack.names.events, stack.names.event_router)


async def test_starting_and_stopping_again_and_again_loses_nothing(stack: Stack) -> None:
    """Every copy that is stopped hands back what it has not handled."""
    for n in range(30):
        await stack.bus.publish(stack.names.event("x"), b"%d" % n)
    for _ in range(8):
        running = await stack.start("event-router", "cron-tick", "cron-sync", "health-checker")
        for actor in running:
            await actor.stop()
            assert actor.task.done()
    await stack.start("event-router")
    await stack.settled(stack.names.events, stack.names.event_router)
    assert len(await stack.dead()) == 30, "bare numbers are no events: each has its letter, once"
