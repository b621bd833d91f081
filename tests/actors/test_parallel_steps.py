"""Steps side by side on real actors: whose result is whose, when a run leaves, and how its code unwinds."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
import pytest_asyncio

from jetcron import Context, StepError
from jetcron.events import Event
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE
from tests.support.stage import AWAY, AWHILE, QUICK, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, {"brief": {"retries": 0, "timeout": 0.1}}) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


Together = Callable[..., Awaitable[list[Any]]]


async def gathered(*branches: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*branches))


async def grouped(*branches: Any) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(branch) for branch in branches]
    return [task.result() for task in tasks]


async def anyio_grouped(*branches: Any) -> list[Any]:
    results: dict[int, Any] = {}

    async def note(index: int, branch: Awaitable[Any]) -> None:
        results[index] = await branch

    async with anyio.create_task_group() as group:
        for index, branch in enumerate(branches):
            group.start_soon(note, index, branch)
    return [results[index] for index in range(len(branches))]


async def waited_for(*branches: Any) -> list[Any]:
    tasks = [asyncio.create_task(branch) for branch in branches]
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in tasks]


async def one_by_one(*branches: Any) -> list[Any]:
    tasks = [asyncio.create_task(branch) for branch in branches]
    return [await task for task in tasks]


ALL = (gathered, grouped, anyio_grouped, waited_for, one_by_one)


@pytest.mark.parametrize("together", ALL)
async def test_every_kind_of_step_runs_side_by_side(stage: Stage, calls: Calls, together: Together) -> None:
    async def child(ctx: Context, data: Any) -> Any:
        return f"child of {data}"

    stage.codes[-1] = child
    name = f"mixed.{together.__name__}"
    left = []

    async def code(ctx: Context, _: Any) -> Any:
        left.append(1)
        results = await together(
            ctx.step.run("run", calls.note, "ran"),
            ctx.step.sleep("sleep", 0.05),
            ctx.step.wait_for_event("wait", name, match={"a.b": 1}, timeout=60),
            ctx.step.wait_for_event("none", "nobody.sends", timeout=0.05),
            ctx.step.invoke("invoke", "here.once", {"code": -1, "data": "mine"}),
            ctx.step.send("send", Event("sent.aside")),
            ctx.step.run("retried", calls.failing, 1, "x", retry=QUICK),
        )
        results[2] = results[2].data["n"]
        return results

    handle = await stage.play(code)
    await stage.waiting(handle)
    await stage.send(Event(name, {"a": {"b": 2}, "n": "not this"}), Event(name, {"a": {"b": 1}, "n": "this"}))
    assert await handle.result(PATIENCE) == ["ran", None, "this", None, "child of mine", None, "x"]
    assert calls.made.count("ran") == 1
    assert calls.made.count("x") == 2
    assert len(left) > 1


@pytest.mark.parametrize("together", ALL)
async def test_results_find_their_own_branches_whatever_the_order_they_came_in(
    stage: Stage, together: Together
) -> None:
    """Branches that use the same ids again and again, with other durations at every turn and a crash in between."""
    made: list[str] = []
    moods = random.Random(together.__name__)

    async def code(ctx: Context, crash: bool) -> Any:
        async def part(name: str, number: int) -> str:
            await asyncio.sleep(moods.random() * 0.01)
            made.append(f"{name}{number}")
            return made[-1]

        async def branch(name: str) -> list[str]:
            found = []
            for number in range(4):
                found.append(await ctx.step.run("part", part, name, number))
                if number == 1:
                    await ctx.step.sleep("rest", AWHILE + moods.random() * 0.03)
                if crash and ctx.attempt == 0 and len(made) >= 8:
                    raise ValueError("crash")
            return found

        return await together(*(branch(name) for name in "abc"))

    async def played(crash: bool) -> Any:
        made.clear()
        handle = await stage.play(code, crash, on=f"{AWAY}.again")
        result = await handle.result(PATIENCE)
        history = await handle.history()
        assert ("retrying" in outcomes(history)) is crash
        assert "waiting" in outcomes(history)
        assert len([id for id in history.steps if id.startswith("part")]) == 12
        return result

    undisturbed = [[f"{name}{number}" for number in range(4)] for name in "abc"]
    assert await played(False) == undisturbed
    assert sorted(made) == sorted(part for branch in undisturbed for part in branch), "a part was made twice"
    assert await played(True) == undisturbed


async def test_a_group_that_failed_and_was_handled_lets_the_run_leave_and_end(stage: Stage) -> None:
    """On Python 3.11 a task group that failed leaves its task marked as being cancelled."""
    turns = []

    async def bad() -> None:
        raise ValueError("bad")

    async def code(ctx: Context, _: Any) -> Any:
        turns.append(1)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step.run("bad", bad))
        except* StepError:
            pass
        await ctx.step.sleep("long", AWHILE)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(bad())
        except* ValueError:
            pass
        # Not raised in there: Python 3.11.2 makes a group of what is raised in `except*`.
        raise asyncio.CancelledError("the code's own")

    handle = await stage.play(code)
    failed = await stage.failure_of(handle)
    assert failed.type.endswith("CancelledError")
    assert outcomes(await handle.history()) == ["waiting", "failed"]
    assert len(turns) == 2


async def test_a_time_out_is_one_also_after_a_group_that_failed(stage: Stage) -> None:
    async def bad() -> None:
        raise ValueError("bad")

    async def code(ctx: Context, _: Any) -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(bad())
        except* ValueError:
            pass
        await asyncio.sleep(60)

    failed = await stage.failure(code, on=f"{AWAY}.brief")
    assert failed.type == "TimeoutError"
    assert "0.1 s" in failed.message
