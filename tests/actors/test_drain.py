"""Runs in hand when an executor is told to stop and its grace runs out: they go on elsewhere, none counts as lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context
from jetcron.events import Event
from jetcron.runs import RunHandle
from tests.support.faults import Die, Fault, LoseAnswer, Refuse, was_killed
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import HERE, LOSSES, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONCE = f"{HERE}.once"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, **LOSSES) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def stop(stage: Stage, app: str = HERE) -> None:
    """Tell the executor of an app to stop, and wait until it has."""
    await stage.executors[app].stop()


async def start(stage: Stage, app: str = HERE) -> None:
    stage.executors[app] = await stage.execute(app)


async def nothing_left(stage: Stage, handle: RunHandle) -> None:
    """Wait until the messages of a run are dealt with, and none is held; what was held twice is released first."""
    stack, names = stage.stack, stage.stack.names

    async def held() -> list[str]:
        return await stack.bus.subjects(names.work, names.runs_later_of(handle.function, handle.id))

    async def none() -> bool:
        return (
            not await held()
            and not await stack.left(names.work, names.run_consumer(handle.function))
            and not await held()
        )

    await until(none, what="nothing of the run left")


async def test_a_run_that_outlives_many_executors_is_not_lost(stage: Stage) -> None:
    """Three lost attempts in a row end a run: so did three deploys."""
    deploys = stage.stack.settings.lost_attempts + 1
    began: asyncio.Queue[None] = asyncio.Queue()
    ended: list[str] = []

    async def code(ctx: Context, _: Any) -> int:
        began.put_nowait(None)
        if len(ended) == deploys:
            return ctx.attempt
        try:
            await asyncio.sleep(600)
        finally:
            ended.append((await stage.client.runs.get(ctx.run_id)).status)
        return -1

    handle = await stage.play(code, on=ONCE)
    for _ in range(deploys):
        await asyncio.wait_for(began.get(), PATIENCE)
        await stop(stage)
        await start(stage)
    assert await handle.result(PATIENCE) == 0, "no attempt is spent"
    assert outcomes(await handle.history()) == ["waiting"] * deploys + ["completed"]
    assert ended == ["running"] * deploys, "it is handed over when its code has ended"
    await nothing_left(stage, handle)


async def test_what_was_done_is_not_done_again_and_what_is_waited_for_is_not_missed(
    stage: Stage, calls: Calls
) -> None:
    """An event comes while no executor is there: the run waits inside one, and its journal names no wait to wake it."""

    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.run("one", calls.note, "one")
        event = await ctx.step.wait_for_event("go", "drain.go", timeout=50)
        await ctx.step.run("two", calls.note, "two")
        return event and event.data

    handle = await stage.play(code, on=ONCE)
    await stage.opened(handle)
    await stop(stage)
    await stage.send(Event("drain.go", 7))
    await start(stage)
    assert await handle.result(PATIENCE) == 7
    assert calls.made == ["one", "two"]
    assert outcomes(await handle.history()) == ["waiting", "completed"]
    await nothing_left(stage, handle)


async def test_a_run_that_was_cancelled_as_it_is_cut_off_stays_cancelled(stage: Stage, calls: Calls) -> None:
    cancelled = asyncio.Event()

    async def code(ctx: Context, _: Any) -> None:
        calls.made.append(ctx.attempt)
        try:
            await asyncio.sleep(600)
        finally:
            stage.executors[HERE].actor._worker.cancel = lambda run: (
                None
            )  # the word of it is not heard in time
            await handle.cancel()
            cancelled.set()

    handle = await stage.play(code, on=ONCE)
    await until(lambda: calls.made == [0])
    await stop(stage)
    assert cancelled.is_set()
    await start(stage)
    assert (await stage.failure_of(handle)).type == "Cancelled"
    await nothing_left(stage, handle)
    assert calls.made == [0]


async def disturbed(stage: Stage, app: str, fault: Fault | None, nth: int) -> list[str]:
    """A run is cut off in an app of its own, with a fault in the executor's `nth` write; what it wrote."""
    executor = await stage.add(app)
    made: list[str] = []

    async def code(ctx: Context, _: Any) -> str:
        await ctx.step.run("one", note, "one")
        if len(made) == 1:
            made.append("cut off")
            await asyncio.sleep(600)
        return "done"

    async def note(value: str) -> None:
        made.append(value)

    handle = await stage.play(code, on=f"{app}.once")
    await until(lambda: made == ["one", "cut off"])
    executor.bus.writes.clear()
    if fault is not None:
        executor.bus.arm(fault, nth=nth)
    executor.process.stopping.set()
    (ended,) = await asyncio.gather(executor.task, return_exceptions=True)
    assert ended is None or was_killed(ended)
    writes = list(executor.bus.writes)
    await start(stage, app)
    where = f"{fault} at write {nth} of {writes}"
    assert await handle.result(PATIENCE) == "done", where
    assert made == ["one", "cut off"], where
    assert [one.entry.step for one in stage.stack.journal.of("step", run=handle.id)] == ["one"], where
    assert len(await stage.entries("completed", run=handle.id)) == 1, where
    assert outcomes(await handle.history()) in (["waiting", "completed"], ["lost", "completed"]), where
    await nothing_left(stage, handle)
    return writes


async def test_an_executor_may_die_in_any_write_of_its_leaving(stage: Stage) -> None:
    writes = await disturbed(stage, "whole", None, 0)
    order = [kind for write in writes for kind in (".journal.", ".run.later.", "+ACK") if kind in write]
    assert order == [".journal.", ".run.later.", "+ACK"]
    faults: list[Fault] = [Die(), Die(after=True), LoseAnswer(), Refuse()]
    async with asyncio.TaskGroup() as group:
        for number, fault in enumerate(faults):
            for nth in range(len(writes)):
                group.create_task(disturbed(stage, f"leaves{number}-{nth}", fault, nth))


async def test_an_executor_that_cannot_hand_over_leaves_all_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, calls: Calls
) -> None:
    """Storage does not answer: the run is lost, as if the process had died."""
    monkeypatch.setattr("jetcron.executor.leaving.LEAVE_SECONDS", 0.3)
    executor = stage.executors[HERE]

    async def code(ctx: Context, _: Any) -> None:
        calls.made.append(ctx.attempt)
        if len(calls.made) == 1:
            await asyncio.sleep(600)

    handle = await stage.play(code, on=ONCE)
    await until(lambda: calls.made == [0])
    executor.bus.arm(Refuse(), on=".journal.", times=100_000)
    await stop(stage)
    executor.bus.disarm()
    await start(stage)
    await handle.result(PATIENCE)
    assert outcomes(await handle.history()) == ["lost", "completed"]
