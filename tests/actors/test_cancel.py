"""Cancelling runs by hand on real actors: queued, held, waiting, executing."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context, Retry, StepError
from jetcron.clock import from_ms
from jetcron.runs import RunHandle
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until, waits_of
from tests.support.stage import AWAY, HERE, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

FUNCTIONS: dict[str, Any] = {
    "single": {"retries": 0, "concurrency": 1},
    "slow": {"retry": Retry(attempts=2, waits=[600])},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    # Nobody looks for cancelled runs before the end of any test: what is heard is heard by word.
    async with stage_of(shared_nats, FUNCTIONS, ack_wait=300.0, lead=3.0) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def ended_as_cancelled(stage: Stage, handle: RunHandle, reason: str = "") -> None:
    """A run has one end, and is dealt with: nothing of it is queued or held."""
    failed = await stage.failure_of(handle)
    assert (failed.type, failed.message) == ("Cancelled", reason)
    assert await handle.status() == "cancelled"
    names = stage.stack.names

    async def nothing_left() -> bool:
        held = names.runs_later_of(handle.function, handle.id)
        return (
            await stage.stack.left(names.work, names.run_consumer(handle.function)) == 0
            and await stage.stack.stored(names.work, held) == []
            and await stage.stack.stored(names.journal, waits_of(names, handle.id)) == []
        )

    await until(nothing_left, what="nothing left of it")
    journal = await stage.stack.stored(names.journal, names.journal_of(handle.function, handle.id))
    assert len(journal) == 1


async def test_a_queued_run_never_begins(stage: Stage, calls: Calls) -> None:
    gate = asyncio.Event()

    async def blocks(ctx: Context, _: Any) -> None:
        await gate.wait()

    first = await stage.play(blocks, on=f"{AWAY}.single")
    await stage.entries("claimed", run=first.id)
    queued = await stage.play(calls_only(calls), on=f"{AWAY}.single")
    assert await queued.status() == "queued"
    assert await stage.client.runs.cancel(queued.id, "not wanted") == "cancelled"
    assert await queued.status() == "cancelled"
    gate.set()
    await first.result(PATIENCE)
    await ended_as_cancelled(stage, queued, "not wanted")
    assert calls.made == []
    assert outcomes(await queued.history()) == []


def calls_only(calls: Calls) -> Any:
    async def code(ctx: Context, _: Any) -> None:
        calls.made.append(ctx.run_id)

    return code


async def test_a_held_run_never_begins(stage: Stage, calls: Calls) -> None:
    held = await stage.play(calls_only(calls), at=from_ms(stage.stack.clock.now() + 3_600_000))
    assert await stage.client.runs.cancel(held.id) == "cancelled"
    await ended_as_cancelled(stage, held)
    assert calls.made == []


async def test_a_claimed_run_that_waits_for_its_time_never_begins(stage: Stage, calls: Calls) -> None:
    """Within the lead a run is claimed and held by its executor."""
    claimed = await stage.play(calls_only(calls), at=from_ms(stage.stack.clock.now() + 2_500))
    await stage.entries("claimed", run=claimed.id)
    assert await claimed.cancel() == "cancelled"
    await ended_as_cancelled(stage, claimed)
    assert calls.made == []


@pytest.mark.parametrize("app", [AWAY, HERE])
@pytest.mark.parametrize("kind", ["sleep", "event", "invoke", "retry"])
async def test_a_waiting_run_ends_at_once(stage: Stage, calls: Calls, app: str, kind: str) -> None:
    async def child(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("long", 600)

    stage.codes[-1] = child

    async def code(ctx: Context, _: Any) -> None:
        try:
            match kind:
                case "sleep":
                    await ctx.step.sleep("wait", 50)
                case "event":
                    await ctx.step.wait_for_event("wait", "never.sent.too", timeout=50)
                case "invoke":
                    await ctx.step.invoke("wait", f"{app}.once", {"code": -1, "data": None}, timeout=50)
                case "retry":
                    await ctx.step.run("wait", calls.failing, 9, retry=slow)
        finally:
            calls.made.append("finally")
            await ctx.step.run("after", calls.note, "after")

    slow = Retry(attempts=2, waits=[50], jitter=0)
    handle = await stage.play(code, on=f"{app}.once")
    await (stage.waiting(handle) if app == AWAY else stage.opened(handle))
    assert await handle.cancel("enough") == "cancelled"
    await ended_as_cancelled(stage, handle, "enough")
    if app == HERE:
        await until(lambda: "finally" in calls.made, what="unwound")
    assert "after" not in calls.made


async def test_a_run_that_is_to_be_tried_again_is_not(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> None:
        raise ValueError("in ten minutes")

    handle = await stage.play(code, on=f"{AWAY}.slow")
    await stage.entries("retrying", run=handle.id)
    assert await handle.status() == "retrying"
    assert await handle.cancel("enough") == "cancelled"
    await ended_as_cancelled(stage, handle, "enough")


async def test_a_running_one_ends_at_its_next_await_and_unwinds(stage: Stage, calls: Calls) -> None:
    refused = []

    async def code(ctx: Context, _: Any) -> str:
        await ctx.step.run("before", calls.note, "before")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            calls.made.append("cancelled")
        finally:
            await asyncio.sleep(0.01)
            calls.made.append("cleaned")
        try:
            await ctx.step.run("after", calls.note, "after")
        except BaseException as signal:
            refused.append(signal)
        return "went on"

    handle = await stage.play(code, on=f"{HERE}.again")
    await stage.entries("step", run=handle.id)
    assert await handle.cancel() == "cancelled"
    await ended_as_cancelled(stage, handle)
    await until(lambda: refused, what="unwound")
    assert not isinstance(refused[0], Exception)
    assert calls.made == ["before", "cancelled", "cleaned"]
    history = await handle.history()
    assert outcomes(history) == ["cancelled"]
    assert list(history.steps) == ["before"]


async def test_branches_of_a_cancelled_run_are_unwound_too(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> None:
        async def branch(name: str) -> None:
            try:
                await ctx.step.run(name, asyncio.sleep, 600)
            finally:
                calls.made.append(name)

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(branch(name))
            await ctx.step.run("d", calls.note, "d")

    handle = await stage.play(code)
    await stage.entries("step", run=handle.id)
    await handle.cancel()
    await ended_as_cancelled(stage, handle)
    await until(lambda: len(calls.made) == 4, what="unwound")
    assert sorted(calls.made) == ["a", "b", "c", "d"]


async def test_a_plain_function_goes_on_in_its_thread_and_what_it_returns_is_dropped(stage: Stage) -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def blocks() -> str:
        begun.set()
        go.wait(PATIENCE)
        ended.set()
        return "too late"

    async def code(ctx: Context, _: Any) -> Any:
        return await ctx.step.run("blocks", blocks)

    handle = await stage.play(code)
    await until(begun.is_set)
    await handle.cancel()
    await ended_as_cancelled(stage, handle)
    go.set()
    await until(ended.is_set, what="the thread ended")
    assert (await handle.history()).steps == {}


async def test_who_cancels_twice_or_too_late_hears_how_it_ended(stage: Stage, calls: Calls) -> None:
    async def waits(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("long", 600)

    handle = await stage.play(waits)
    await stage.waiting(handle)
    assert await asyncio.gather(handle.cancel("a"), handle.cancel("b")) == ["cancelled"] * 2
    assert await handle.cancel("c") == "cancelled"
    done = await stage.play(calls_only(calls))
    await done.result(PATIENCE)
    assert await done.cancel() == "completed"
    assert await done.status() == "completed"

    async def fails(ctx: Context, _: Any) -> None:
        raise ValueError

    failed = await stage.play(fails)
    await stage.failure_of(failed)
    assert await stage.client.runs.cancel(failed.id) == "failed"


async def test_a_parent_learns_that_its_child_was_cancelled_and_a_child_goes_on(
    stage: Stage, calls: Calls
) -> None:
    gate = asyncio.Event()

    async def child(ctx: Context, _: Any) -> None:
        await gate.wait()
        calls.made.append("child")

    stage.codes[-1] = child

    async def code(ctx: Context, _: Any) -> Any:
        try:
            await ctx.step.invoke("child", f"{HERE}.once", {"code": -1, "data": None})
        except StepError as error:
            return [error.type, error.message]

    for whom in ("child", "parent"):
        parent = await stage.play(code)
        (opened,) = await stage.opened(parent)
        assert opened.entry.child is not None
        await stage.entries("claimed", run=opened.entry.child)
        if whom == "child":
            await stage.client.runs.cancel(opened.entry.child, "no")
            assert await parent.result(PATIENCE) == ["Cancelled", "no"]
        else:
            await parent.cancel()
            await ended_as_cancelled(stage, parent)
            gate.set()
            await stage.entries("completed", run=opened.entry.child)
    assert calls.made == ["child"]
