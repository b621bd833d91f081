"""Limits of durable runs on real actors: steps, results, histories, messages; each error says which, and where."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context, StepError
from jetcron.events import Event
from jetcron.runs import RunHandle
from tests.support.faults import Wait
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, HERE, Calls, Stage, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

KIB = 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    limits = {"max_steps": 10, "max_inline": 10 * KIB, "max_result": 2 * KIB * KIB, "max_journal": 64 * KIB}
    async with stage_of(shared_nats, **limits) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def of_size(size: int) -> bytes:
    return b"x" * size


async def objects_of(stage: Stage, handle: RunHandle) -> list[Any]:
    return [
        message
        for message in await stage.stack.stored(stage.stack.names.objects)
        if handle.id in message.subject or handle.id.encode() in message.payload
    ]


@pytest.mark.parametrize("caught", [False, True])
async def test_a_run_has_so_many_steps(stage: Stage, calls: Calls, caught: bool) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        for number in range(12):
            try:
                await ctx.step.run("step", calls.note, number)
            except Exception:
                if not caught:
                    raise
        return "went on"

    handle = await stage.play(code, on=f"{AWAY}.again")
    failed = await stage.failure_of(handle)
    assert failed.type.endswith("LimitExceeded")
    assert f"run {handle.id}, step 'step#11': a run may have 10 steps (JETCRON_MAX_STEPS)" in failed.message
    assert calls.made == list(range(10)), "not one more is called, nor is it tried again"


async def test_steps_side_by_side_count_before_they_are_done(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        await asyncio.gather(*(ctx.step.run(f"s{number}", calls.note, number) for number in range(30)))

    handle = await stage.play(code)
    failed = await stage.failure_of(handle)
    assert "step 's10': a run may have 10 steps" in failed.message
    assert sorted(calls.made) == list(range(10))


async def test_steps_that_wait_count_and_ten_may_be_replayed(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, extra: int) -> Any:
        await asyncio.gather(*(ctx.step.sleep(f"sleep {number}", 0.05) for number in range(5)))
        for number in range(5 + extra):
            await ctx.step.run(f"run {number}", calls.note, number)
        await ctx.step.sleep("last", 0) if extra else None
        return "done"

    assert await stage.result(code, 0) == "done"
    failed = await stage.failure(code, 1)
    assert "step 'run 5': a run may have 10 steps" in failed.message


async def test_a_large_result_is_an_object_and_comes_back_whole(stage: Stage) -> None:
    seen: list[int] = []

    async def code(ctx: Context, fails: bool) -> int:
        small = await ctx.step.run("small", of_size, 9 * KIB)
        large = await ctx.step.run("large", of_size, 200 * KIB)
        await ctx.step.sleep("pause", 0.02)
        seen.append(len(small) + len(large))
        view = await stage.client.runs.get(ctx.run_id)
        steps = view.history.steps
        kept = steps["large"].object
        assert (steps["small"].object, steps["large"].result) == (None, None)
        assert kept is not None
        assert kept.size > 200 * KIB
        if fails:
            raise ValueError("its steps are kept")
        return len(large)

    handle = await stage.play(code, False)
    assert await handle.result(PATIENCE) == 200 * KIB
    assert seen == [209 * KIB]

    async def gone() -> bool:
        return await objects_of(stage, handle) == []

    await until(gone, what="the objects of a completed run gone")
    failed = await stage.play(code, True)
    await stage.failure_of(failed)
    assert len(await objects_of(stage, failed)) > 0, "what it may be begun again with"


async def test_large_results_of_runs_events_and_children_come_back_whole(stage: Stage) -> None:
    async def child(ctx: Context, size: int) -> bytes:
        return b"c" * size

    stage.codes[-1] = child

    async def code(ctx: Context, _: Any) -> Any:
        event = await ctx.step.wait_for_event("wait", "large.one", timeout=60)
        result = await ctx.step.invoke("child", f"{HERE}.once", {"code": -1, "data": 250 * KIB})
        await ctx.step.sleep("pause", 0.02)
        assert event is not None
        return event.data + result

    handle = await stage.play(code)
    await stage.waiting(handle)
    await stage.send(Event("large.one", b"e" * 40 * KIB))
    assert await handle.result(PATIENCE) == b"e" * 40 * KIB + b"c" * 250 * KIB


@pytest.mark.parametrize("caught", [False, True])
async def test_a_result_has_so_many_bytes(stage: Stage, calls: Calls, caught: bool) -> None:
    async def too_large() -> bytes:
        calls.made.append(1)
        return b"x" * 2049 * KIB

    async def code(ctx: Context, _: Any) -> Any:
        try:
            await ctx.step.run("big", too_large)
        except Exception:
            if not caught:
                raise
        return "went on"

    handle = await stage.play(code, on=f"{AWAY}.again")
    failed = await stage.failure_of(handle)
    assert failed.type.endswith("LimitExceeded")
    assert f"run {handle.id}, step 'big': its result takes 20981" in failed.message
    assert "allowed are 2097152 (JETCRON_MAX_RESULT)" in failed.message
    assert calls.made == [1]

    async def whole(ctx: Context, _: Any) -> bytes:
        return await too_large()

    failed = await stage.failure(whole, on=f"{AWAY}.again")
    assert f"{AWAY}.again returned what cannot be stored" in failed.message
    assert "2097152" in failed.message


async def test_a_history_has_so_many_bytes(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        for number in range(9):
            await ctx.step.run(f"s{number}", of_size, 9 * KIB)

    handle = await stage.play(code, on=f"{AWAY}.again")
    failed = await stage.failure_of(handle)
    assert failed.type.endswith("LimitExceeded")
    assert f"run {handle.id}, step 's6': its history would take" in failed.message
    assert "allowed are 65536 (JETCRON_MAX_JOURNAL)" in failed.message
    assert len((await handle.history()).steps) == 6


async def test_a_step_that_is_given_up_while_others_are_recorded_may_be_too_large(stage: Stage) -> None:
    """It waits for its turn to be appended, a time-out of the code's own ends it, and then it turns out too large."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def code(ctx: Context, _: Any) -> str:
        for number in range(5):
            await ctx.step.run(f"s{number}", of_size, 9 * KIB)
        stage.executors[AWAY].bus.arm(Wait(reached, go), on=".journal.")
        first = asyncio.create_task(ctx.step.run("first", of_size, 9 * KIB))
        await reached.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.step.run("second", of_size, 9 * KIB), 0.01)
        go.set()
        await first
        return "done"

    handle = await stage.play(code)
    assert await handle.result(PATIENCE) == "done"
    assert "second" not in (await handle.history()).steps


async def test_data_of_an_invoke_has_so_many_bytes(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.invoke("child", f"{HERE}.once", b"x" * 1_048_576)

    handle = await stage.play(code, on=f"{AWAY}.again")
    failed = await stage.failure_of(handle)
    assert failed.type.endswith("LimitExceeded")
    assert f"run {handle.id}, step 'child': the data for here.once makes a message of" in failed.message


async def test_an_error_has_so_many_characters(stage: Stage) -> None:
    async def wordy() -> None:
        raise ValueError("w" * 100_000)

    async def code(ctx: Context, _: Any) -> Any:
        try:
            await ctx.step.run("wordy", wordy)
        except StepError as error:
            return [len(error.message), len(error.traceback)]

    message, traceback = await stage.result(code)
    assert message == 4_000
    assert traceback <= 16_000


async def test_an_event_as_large_as_the_server_takes_wakes_who_waits_for_it(stage: Stage) -> None:
    """Published by an outsider, as bare JSON: with what the wait itself says, it is too large for a message."""

    async def code(ctx: Context, name: str) -> Any:
        event = await ctx.step.wait_for_event("wait", name, timeout=600)
        return event and len(event.data["x"])

    bus, names = stage.stack.bus, stage.stack.names
    for spare in (2_000, 1_000, 300, 0):
        large = await stage.play(code, f"large.{spare}")
        small = await stage.play(code, f"small.{spare}")
        for handle in (large, small):
            await stage.waiting(handle)
        size = bus.max_payload - spare
        await bus.publish(names.event(f"large.{spare}"), b'{"x": "' + b"x" * (size - 9) + b'"}')
        await stage.client.send(Event(f"small.{spare}", {"x": "x"}))
        assert await small.result(PATIENCE) == 1
        await stage.stack.settled(names.events, names.event_router)
        assert await large.result(PATIENCE) == size - 9


async def test_a_server_that_takes_less_has_more_in_objects(tmp_path: Path) -> None:
    """Whatever `max_inline` says: an entry is a message."""
    async with NatsServer(tmp_path / "nats", max_payload=128 * KIB) as server, stage_of(server) as stage:

        async def child(ctx: Context, size: int) -> bytes:
            return b"c" * size

        stage.codes[-1] = child

        async def code(ctx: Context, _: Any) -> Any:
            sizes = []
            for size in (100 * KIB, 104 * KIB, 111 * KIB, 112 * KIB, 500 * KIB):
                sizes.append(len(await ctx.step.run(f"step {size}", of_size, size)))
                sizes.append(
                    len(await ctx.step.invoke(f"child {size}", f"{HERE}.once", {"code": -1, "data": size}))
                )
            await ctx.step.sleep("pause", 0.02)
            return sizes

        assert await stage.result(code) == [
            size * KIB for size in (100, 104, 111, 112, 500) for _ in ("step", "child")
        ]
