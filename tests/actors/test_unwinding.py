"""When a run leaves its executor, and what its code may do about it, on real actors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import pytest_asyncio

from jetcron import Context, StepError
from jetcron.events import Event
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, HERE, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, {"single": {"retries": 0, "concurrency": 1}}) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


# When it leaves.


@pytest.mark.parametrize("how", ["gather", "group", "left behind"])
async def test_a_branch_that_is_busy_keeps_the_run(stage: Stage, calls: Calls, how: str) -> None:
    """Between two of its steps a branch awaits something of its own; only then does all of it wait."""
    gate = asyncio.Event()

    async def code(ctx: Context, _: Any) -> Any:
        async def busy() -> str:
            await ctx.step.run("one", calls.note, "one")
            await gate.wait()
            await ctx.step.run("two", calls.note, "two")
            await ctx.step.sleep("rest", 0.05)
            return "busy"

        async def waits() -> None:
            await ctx.step.wait_for_event("wait", f"busy.{how[:4]}", timeout=60)

        match how:
            case "gather":
                return (await asyncio.gather(busy(), waits()))[0]
            case "group":
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(busy())
                    group.create_task(waits())
                return task.result()
        task = asyncio.create_task(busy())
        await waits()
        return await task

    handle = await stage.play(code)
    await stage.opened(handle)
    await stage.entries("step", run=handle.id)
    # Longer than it takes to leave: another run does, meanwhile.
    assert await stage.result(pausing) == "paused"
    assert await handle.status() == "running"
    gate.set()
    await stage.waiting(handle)
    await stage.send(Event(f"busy.{how[:4]}"))
    assert await handle.result(PATIENCE) == "busy"
    assert calls.made == ["one", "two"]


async def pausing(ctx: Context, _: Any) -> str:
    await ctx.step.sleep("pause", 0.05)
    return "paused"


async def test_a_run_that_waits_gives_its_place_to_others(stage: Stage, calls: Calls) -> None:
    async def waits(ctx: Context, _: Any) -> str:
        await ctx.step.wait_for_event("wait", "place", timeout=60)
        return "waited"

    first = await stage.play(waits, on=f"{AWAY}.single")
    await stage.waiting(first)
    assert await stage.result(pausing, on=f"{AWAY}.single") == "paused"
    await stage.send(Event("place"))
    assert await first.result(PATIENCE) == "waited"


async def test_a_shielded_or_bounded_wait_is_one_all_the_same(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        async def bounded() -> None:
            with anyio.fail_after(600):
                await ctx.step.sleep("scope", 0.05)
            async with asyncio.timeout(600):
                await ctx.step.sleep("timeout", 0.05)

        shielded = asyncio.shield(asyncio.gather(ctx.step.sleep("shield", 0.05), bounded()))
        await asyncio.gather(shielded, asyncio.wait_for(ctx.step.sleep("wait_for", 0.05), 600))
        return "done"

    handle = await stage.play(code)
    await stage.waiting(handle)
    assert await handle.result(PATIENCE) == "done"


async def test_a_time_out_of_the_code_s_own_ends_a_wait_in_the_process(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.step.sleep("a", 30), 0.02)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await ctx.step.wait_for_event("b", "nobody.sends.it", timeout=30)
        with anyio.move_on_after(0.02) as scope:
            await ctx.step.run("c", asyncio.sleep, 30)
        await ctx.step.sleep("d", 0.02)
        return scope.cancelled_caught

    assert await stage.result(code, on=f"{HERE}.once") is True


async def test_a_step_is_not_cut_off_while_its_result_is_being_stored(stage: Stage, calls: Calls) -> None:
    """Time-outs of every length around steps: what was recorded is given back, what was not is done again."""
    recorded: list[Any] = []

    async def code(ctx: Context, _: Any) -> Any:
        recorded.append(set((await stage.client.runs.get(ctx.run_id)).history.steps))
        for number in range(30):
            with anyio.move_on_after(0.0001 * number if ctx.attempt == 0 else PATIENCE):
                await ctx.step.run(f"s{number}", calls.note, f"s{number}")
        if ctx.attempt == 0:
            raise ValueError("once more")

    await stage.result(code, on=f"{AWAY}.again")
    done_at_first = recorded[1]
    for number in range(30):
        step = f"s{number}"
        assert calls.made.count(step) == 1 or (step not in done_at_first and calls.made.count(step) == 2)


# What the code may do about it.


async def test_handlers_of_exceptions_do_not_see_that_the_run_leaves(stage: Stage, calls: Calls) -> None:
    seen: list[Any] = []

    async def code(ctx: Context, _: Any) -> str:
        while True:
            try:
                await ctx.step.sleep("long", 0.05)
                break
            except Exception as error:
                seen.append(error)
                await asyncio.sleep(0.01)
        with contextlib.suppress(Exception):
            await asyncio.gather(ctx.step.sleep("a", 0.05), ctx.step.sleep("b", 0.05))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step.sleep("c", 0.05))
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
            await ctx.step.sleep("long", 0.05)
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
            await ctx.step.sleep("long", 0.05)
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
                await ctx.step.sleep("long", 0.05)
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
                await ctx.step.sleep("long", 0.05)
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
        await ctx.step.sleep("long", 0.05)
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
            return await stage.stack.stored(names.journal, names.waits_of(handle.id)) == []  # noqa: B023

        await until(forgotten, what="its wait purged")
