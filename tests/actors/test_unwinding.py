"""What code may do about it that its run leaves, on real actors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context, StepError
from jetcron.clock import from_ms
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until, waits_of
from tests.support.stage import AWAY, AWHILE, HERE, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def pausing(ctx: Context, _: Any) -> str:
    await ctx.step.sleep("pause", 0.05)
    return "paused"


async def test_handlers_of_exceptions_do_not_see_that_the_run_leaves(stage: Stage, calls: Calls) -> None:
    seen: list[Any] = []

    async def code(ctx: Context, _: Any) -> str:
        while True:
            try:
                await ctx.step.sleep("long", AWHILE)
                break
            except Exception as error:
                seen.append(error)
                await asyncio.sleep(0.01)
        with contextlib.suppress(Exception):
            # Over at one moment: else the run may leave once more for the second.
            moment = from_ms(stage.stack.clock.now() + round(AWHILE * 1000))
            await asyncio.gather(ctx.step.sleep_until("a", moment), ctx.step.sleep_until("b", moment))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step.sleep("c", AWHILE))
        except* Exception as errors:
            seen.append(errors)
        return "through"

    handle = await stage.play(code)
    assert await handle.result(PATIENCE) == "through"
    assert seen == []
    assert outcomes(await handle.history()) == ["waiting"] * 3 + ["completed"]


async def test_finally_may_await_and_its_steps_wait_for_the_end(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> str:
        try:
            await ctx.step.sleep("long", AWHILE)
            return "through"
        finally:
            await asyncio.sleep(0.01)
            calls.made.append("awaited")
            await ctx.step.run("cleanup", calls.note, "cleanup")

    handle = await stage.play(code)
    assert await handle.result(PATIENCE) == "through"
    assert calls.made == ["awaited", "awaited", "cleanup"]
    assert list((await handle.history()).steps) == ["long", "cleanup"]


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_code_that_catches_everything_does_no_harm(stage: Stage, calls: Calls, app: str) -> None:
    """What it returns or raises once it has been told to leave is nobody's."""

    async def code(ctx: Context, how: str) -> Any:
        try:
            await ctx.step.sleep("long", AWHILE)
        except BaseException:
            calls.made.append(how)
            match how:
                case "returns":
                    return "not the result"
                case "raises":
                    raise ValueError("not the failure") from None
                case "goes on":
                    await ctx.step.run("other", calls.note, "other")
                case "catches again":
                    with contextlib.suppress(BaseException):
                        await ctx.step.sleep("other", 30)
                    return "not the result"
        return "through"

    for how in ("returns", "raises", "goes on", "catches again"):
        handle = await stage.play(code, how, on=f"{app}.once")
        assert await handle.result(PATIENCE) == "through"
        assert list((await handle.history()).steps) == ["long"]
    assert calls.made == (["returns", "raises", "goes on", "catches again"] if app == AWAY else [])


@pytest.mark.parametrize("pause", [0, 0.001])
async def test_a_loop_that_catches_everything_comes_to_an_end(
    stage: Stage, calls: Calls, pause: float
) -> None:
    async def code(ctx: Context, _: Any) -> str:
        while True:
            try:
                await ctx.step.sleep("long", AWHILE)
                return "through"
            except BaseException:
                calls.made.append(1)
                await asyncio.sleep(pause)

    assert await stage.result(code) == "through"
    assert 1 <= len(calls.made) < 20


async def test_a_loop_that_never_lets_go_stops_nobody_else(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> str:
        while not let_go.is_set():
            try:
                await ctx.step.sleep("long", AWHILE)
                break
            except BaseException:
                calls.made.append(1)
        return "through"

    let_go = asyncio.Event()
    handle = await stage.play(code)
    await until(lambda: len(calls.made) >= 1000, what="told a thousand times")
    assert await stage.result(pausing) == "paused"
    made = len(calls.made)
    let_go.set()
    assert await handle.result(PATIENCE) == "through"
    assert len(calls.made) <= made + 1, "the loop span"


async def test_tasks_the_code_leaves_behind_record_nothing_more(stage: Stage, calls: Calls) -> None:
    refused = []

    async def code(ctx: Context, _: Any) -> str:
        async def late(gate: asyncio.Event) -> None:
            await gate.wait()
            try:
                await ctx.step.run("late", calls.note, "late")
            except BaseException as error:
                refused.append(error)

        gates.append(asyncio.Event())
        tasks.append(asyncio.create_task(late(gates[-1])))
        await ctx.step.sleep("long", AWHILE)
        return "through"

    gates: list[asyncio.Event] = []
    tasks: list[asyncio.Task[None]] = []
    handle = await stage.play(code)
    assert await handle.result(PATIENCE) == "through"
    for gate in gates:
        gate.set()
    await asyncio.wait(tasks)
    assert [type(error).__name__ for error in refused] == ["RunReleased", "NonRetriableError"]
    assert "await every step before you return" in str(refused[1])
    assert calls.made == []


async def test_a_branch_that_fails_beside_one_that_waits_fails_the_run_at_once(stage: Stage) -> None:
    async def bad() -> None:
        raise ValueError("bad")

    async def code(ctx: Context, how: str) -> None:
        branches = ctx.step.wait_for_event("wait", "never.comes", timeout=600), ctx.step.run("bad", bad)
        if how == "gather":
            await asyncio.gather(*branches)
        else:
            async with asyncio.TaskGroup() as group:
                for branch in branches:
                    group.create_task(branch)

    for how, kind in (("gather", StepError.__name__), ("group", "ExceptionGroup")):
        handle = await stage.play(code, how)
        failed = await stage.failure_of(handle)
        assert failed.type.endswith(kind)
        assert "bad" in failed.traceback
        names = stage.stack.names

        async def forgotten() -> bool:
            return await stage.stack.stored(names.journal, waits_of(names, handle.id)) == []  # noqa: B023

        await until(forgotten, what="its wait purged")
