"""When a run leaves its executor, and what keeps it there, on real actors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import anyio
import pytest
import pytest_asyncio

from jetcron import Context
from jetcron.events import Event
from jetcron.executor import timers
from jetcron.waits import Waits
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE
from tests.support.stage import AWAY, HERE, Calls, Stage, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, {"single": {"retries": 0, "concurrency": 1}}) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


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
                await ctx.step.sleep("scope", 0.5)
            async with asyncio.timeout(600):
                await ctx.step.sleep("timeout", 0.5)

        shielded = asyncio.shield(asyncio.gather(ctx.step.sleep("shield", 0.5), bounded()))
        await asyncio.gather(shielded, asyncio.wait_for(ctx.step.sleep("wait_for", 0.5), 600))
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


async def fails_after(step: Awaitable[Any]) -> None:
    with anyio.fail_after(0.3):
        await step


async def moves_on(step: Awaitable[Any]) -> None:
    with anyio.move_on_after(0.3) as scope:
        await step
    if scope.cancelled_caught:
        raise TimeoutError


async def waits(step: Any) -> None:
    done, pending = await asyncio.wait({asyncio.create_task(step)}, timeout=0.3)
    for task in pending:
        task.cancel()
    if not done:
        raise TimeoutError


async def times_out(step: Awaitable[Any]) -> None:
    async with asyncio.timeout(0.3):
        await asyncio.gather(step)


async def waits_for(step: Awaitable[Any]) -> None:
    await asyncio.wait_for(step, 0.3)


@pytest.mark.parametrize("bounded", [fails_after, moves_on, waits, times_out, waits_for])
async def test_a_time_out_of_the_code_s_own_keeps_the_run_until_it_fires(stage: Stage, bounded: Any) -> None:
    """If the run left, the time-out would begin anew with each turn, and never fire."""

    async def code(ctx: Context, _: Any) -> str:
        with pytest.raises(TimeoutError):
            await bounded(ctx.step.wait_for_event("wait", "nobody.sends.it", timeout=30))
        await ctx.step.sleep("pause", 0.5)  # so long that the run leaves
        return "timed out"

    handle = await stage.play(code)
    assert await handle.result(PATIENCE) == "timed out"
    (waiting,) = [one.entry for one in stage.stack.journal.of("waiting", run=handle.id)]
    assert waiting.on == ["pause"]


async def test_a_time_out_that_fired_keeps_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is in its block all the same."""
    monkeypatch.setattr(timers, "_FIRING", 0.05)

    async def code(ctx: Context, _: Any) -> str:
        async with asyncio.timeout(0.05):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            await ctx.step.sleep("pause", 0.6)
        return "slept"

    handle = await stage.play(code)
    await stage.waiting(handle)
    assert await handle.result(PATIENCE) == "slept"


async def test_waits_are_kept_again_after_they_could_not_be(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    look = Waits.look

    async def broken(self: Waits, subject: str) -> Any:
        if "unkept" in subject:
            looked.append(subject)
            if len(looked) % 2 == 0:  # a run that was lost meanwhile finds it broken too
                raise ValueError("cannot be looked at")
        return await look(self, subject)

    monkeypatch.setattr(Waits, "look", broken)

    async def code(ctx: Context, _: Any) -> str:
        with pytest.raises(ValueError, match="cannot be looked at"):
            await ctx.step.wait_for_event("wait", "unkept", timeout=50)
        await ctx.step.sleep("pause", 0.05)
        return "kept"

    assert await stage.result(code, on=f"{HERE}.once") == "kept"
    assert len(looked) >= 2


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
