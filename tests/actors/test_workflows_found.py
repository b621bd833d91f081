"""What random workflows brought to light, each in its smallest form."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import pytest
import pytest_asyncio

from jetcron import Context, Event
from jetcron.bus import TTL
from jetcron.waits import Waits
from tests.support.faults import Die, LoseAnswer, Wait
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until, waits_of
from tests.support.stage import AWAY, AWHILE, HERE, QUICK, Calls, Stage, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats) as stage:
        yield stage


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_what_a_failed_try_of_a_step_left_running_records_nothing_more(stage: Stage, app: str) -> None:
    """It did, beside the next try, under the same names: a step was journaled twice."""
    gates = [asyncio.Event(), asyncio.Event()]
    calls = Calls()

    async def inner() -> int:
        number = len(calls.made)
        await calls.note(number)
        await gates[number].wait()
        return number

    async def code(ctx: Context, _: Any) -> Any:
        async def fails_at_first() -> None:
            await asyncio.sleep(0)
            if len(calls.made) == 1:
                raise ValueError("at first")

        async def outer() -> Any:
            found, _ = await asyncio.gather(ctx.step.run("inner", inner), fails_at_first())
            return found

        return await ctx.step.run("outer", outer, retry=QUICK)

    handle = await stage.play(code, on=f"{app}.once")
    await until(lambda: len(calls.made) == 2)
    gates[0].set()
    await asyncio.sleep(0.05)
    gates[1].set()
    assert await handle.result(PATIENCE) == 1
    recorded = [one.entry.step for one in stage.stack.journal.of("step", run=handle.id)]
    assert recorded == ["outer#/inner", "outer"]


async def test_what_a_step_left_running_does_not_take_the_ids_of_its_next_try(stage: Stage) -> None:
    calls = Calls()
    late: list[BaseException] = []

    async def code(ctx: Context, _: Any) -> Any:
        async def straggler(tried: asyncio.Event) -> None:
            try:
                await tried.wait()
                await ctx.step.run("inner", calls.note, "straggler")
            except Exception as error:
                late.append(error)

        tries: list[asyncio.Task[None]] = []
        again = asyncio.Event()

        async def outer() -> Any:
            tries.append(asyncio.create_task(straggler(again)))
            if len(tries) == 1:
                raise ValueError("at first")
            again.set()
            await asyncio.wait(tries[:1])
            return [await tries[1], await ctx.step.run("inner", calls.note, "second")]

        return await ctx.step.run("outer", outer, retry=QUICK)

    handle = await stage.play(code, on=f"{HERE}.once")
    assert await handle.result(PATIENCE) == [None, "second"]
    recorded = [one.entry.step for one in stage.stack.journal.of("step", run=handle.id)]
    assert recorded == ["outer#/inner", "outer#/inner#2", "outer"]
    assert calls.made == ["straggler", "second"], "of the second try"
    assert ["'outer', has ended" in str(error) for error in late] == [True]


async def test_what_a_run_left_waiting_is_cancelled_with_it(stage: Stage) -> None:
    """It waited for what nobody would give it any more, until it was collected, in any context."""
    cleaned = []

    async def code(ctx: Context, _: Any) -> Any:
        async def waits() -> None:
            try:
                await ctx.step.wait_for_event("never", "never", timeout=3600)
            finally:
                cleaned.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]

        waiting = asyncio.create_task(waits())
        await ctx.step.sleep("a moment", 0.05)
        return waiting.done()

    assert await stage.result(code, on=f"{HERE}.once") is False
    await until(lambda: cleaned == [1])


@pytest.mark.parametrize("where", ["wait", "purge"])
async def test_a_wait_whose_executor_dies_beside_it_is_forgotten_with_its_run(
    where: str, stage: Stage
) -> None:
    """Over and not removed. Stored and not journaled, of a way the code does not take again, it ends by itself."""
    names = stage.stack.names
    tries = []

    async def code(ctx: Context, _: Any) -> None:
        tries.append(ctx.run_id)
        if where == "wait" and len(tries) > 1:
            return  # the code may take another way, where nothing was journaled
        await ctx.step.wait_for_event("go", "found.go", timeout=0.05)

    executor = stage.executors[HERE]
    if where == "wait":
        executor.bus.arm(Die(after=True), on=f"{names.wait_paths('found.go')}.")
    else:
        executor.bus.arm(Die(), on=f"PURGE.{names.journal}")
    handle = await stage.play(code, on=f"{HERE}.once")
    await until(lambda: executor.bus.dead)
    await stage.restart(HERE)
    await handle.result(PATIENCE)
    assert len(tries) == 2
    left = await stage.stack.stored(names.journal, waits_of(names, handle.id))
    assert [TTL in message.headers for message in left] == ([True] if where == "wait" else [])


async def test_a_wait_whose_branch_is_cancelled_as_it_ends_is_forgotten(stage: Stage) -> None:
    """Nobody removed what its branch would have removed next."""
    names = stage.stack.names
    stored = Wait(asyncio.Event(), asyncio.Event(), after=True)

    async def code(ctx: Context, _: Any) -> list[str]:
        async def waits() -> None:
            await ctx.step.wait_for_event("go", "cancelled.go", timeout=0.02)

        # The second entry from here on, after that which opens it.
        journal = names.journal_of(ctx.function_id, ctx.run_id)
        stage.executors[HERE].bus.arm(stored, on=journal, nth=1)
        waiting = asyncio.create_task(waits())
        await stored.reached.wait()
        waiting.cancel()
        stored.go.set()
        await asyncio.wait([waiting])
        return [ctx.run_id, str(waiting.cancelled())]

    run, cancelled = await stage.result(code, on=f"{HERE}.once")
    assert cancelled == "True"
    assert await stage.stack.bus.subjects(names.journal, waits_of(names, run)) == []


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_a_step_recorded_while_its_branch_was_cancelled_is_found_by_the_next_try(
    stage: Stage, app: str
) -> None:
    """Its place in the order of results was not known: the try failed with it, and so did all that followed."""
    calls = Calls()
    tries = 0

    async def code(ctx: Context, _: Any) -> Any:
        async def outer() -> Any:
            nonlocal tries
            tries += 1
            called = asyncio.Event()

            async def inner() -> int:
                called.set()
                return await calls.note(tries)

            async def fails_at_first() -> None:
                if tries == 1:
                    await called.wait()
                    raise ValueError("while the step is recorded")

            async with asyncio.TaskGroup() as group:
                step = group.create_task(ctx.step.run("inner", inner))
                group.create_task(fails_at_first())
            return step.result()

        return await ctx.step.run("outer", outer, retry=QUICK)

    assert await stage.result(code, on=f"{app}.once") == 1
    assert calls.made == [1]


async def test_a_turn_that_is_held_again_after_it_was_woken_is_not_left_behind(stage: Stage) -> None:
    """Its answer was lost, it was published again, and stood there for as long as the run had meant to wait."""
    names = stage.stack.names
    again = Wait(asyncio.Event(), asyncio.Event())

    async def code(ctx: Context, _: Any) -> Any:
        found = await ctx.step.wait_for_event("go", "held.again", timeout=3600)
        return found is not None

    executor = stage.executors[AWAY]
    executor.bus.arm(LoseAnswer(), on=".run.later.")
    executor.bus.arm(again, on=".run.later.")
    handle = await stage.play(code)
    await again.reached.wait()
    await stage.send(Event("held.again"))
    assert await handle.result(PATIENCE) is True
    again.go.set()
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    assert await stage.stack.bus.subjects(names.work, names.runs_later_of(handle.function, handle.id)) == []


async def test_a_large_result_that_is_loaded_is_not_overtaken_by_those_after_it(stage: Stage) -> None:
    """They reached the code first, which then made its calls in another order, and got the results of others."""
    taken: list[tuple[str, str]] = []

    async def code(ctx: Context, _: Any) -> Any:
        large_is_here = asyncio.Event()

        async def large() -> str:
            return "x" * 600_000

        async def small() -> str:
            await large_is_here.wait()
            return "y"

        async def note(by: str) -> str:
            return by

        async def first() -> str:
            await ctx.step.run("large", large)
            large_is_here.set()
            return await ctx.step.run("next", note, "first")

        async def second() -> str:
            await ctx.step.run("small", small)
            return await ctx.step.run("next", note, "second")

        taken.append(tuple(await asyncio.gather(second(), first())))  # type: ignore[arg-type]
        await ctx.step.sleep("away", AWHILE)

    await stage.result(code)
    assert taken == [("second", "first")] * 2


def groups() -> dict[str, Any]:
    """Ways to wait for a coroutine in a group of tasks."""

    async def in_asyncio(work: Coroutine[Any, Any, None]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work)
            group.create_task(asyncio.sleep(0.2))  # something else, too

    async def in_anyio(work: Coroutine[Any, Any, None]) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: work)

    return {"asyncio": in_asyncio, "anyio": in_anyio}


@pytest.mark.parametrize("kind", groups())
@pytest.mark.parametrize("way", ["leaves", "ends", "is cancelled"])
async def test_code_that_waits_for_those_that_wait_is_unwound_with_them(
    stage: Stage, kind: str, way: str
) -> None:
    """Those were cancelled, and a group takes that for their end: its code went on, as if all had been done."""
    went_on: list[bool] = []
    done: list[bool] = []
    unwound: list[bool] = []

    async def code(ctx: Context, _: Any) -> None:
        async def waits() -> None:
            await ctx.step.wait_for_event("go", "unwound.go", match={"run": ctx.run_id}, timeout=3600)
            done.append(True)

        async def host() -> None:
            try:
                await groups()[kind](waits())
                went_on.append(len(done) == 1)
            finally:
                unwound.append(True)

        hosts = asyncio.create_task(host())
        if way == "ends":
            await ctx.step.sleep("a moment", 0.1)
        else:
            await asyncio.wait([hosts])

    handle = await stage.play(code, on=f"{AWAY if way == 'leaves' else HERE}.once")
    await stage.opened(handle)
    if way == "is cancelled":
        await handle.cancel()
        await stage.failure_of(handle)
    else:
        if way == "leaves":
            await stage.waiting(handle)
            await stage.send(Event("unwound.go", {"run": handle.id}))
        await handle.result(PATIENCE)
    await until(lambda: len(unwound) == (2 if way == "leaves" else 1))
    assert went_on == ([True] if way == "leaves" else [])


@pytest.mark.parametrize("nth", [1, 2])
async def test_an_event_that_comes_in_time_while_a_look_takes_long_is_not_missed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The time was told after the look, by when it was over: nothing had come before that."""
    look = Waits.look
    looks = 0
    timeout = 1.2

    async def slowly(self: Waits, subject: str) -> Any:
        nonlocal looks
        found = await look(self, subject)
        if "slow=2Ego" in subject:
            looks += 1
            if looks == nth:
                await stage.send(Event("slow.go"))
                await asyncio.sleep(timeout)  # as a process that was frozen
        return found

    monkeypatch.setattr(Waits, "look", slowly)

    async def code(ctx: Context, _: Any) -> bool:
        return await ctx.step.wait_for_event("go", "slow.go", timeout=timeout) is not None

    assert await stage.result(code, on=f"{HERE}.once") is True
    assert looks > nth


@pytest.mark.parametrize("way", ["woken", "cancelled"])
async def test_a_turn_held_again_by_who_then_died_is_not_left_behind(stage: Stage, way: str) -> None:
    names = stage.stack.names
    again = Wait(asyncio.Event(), asyncio.Event())

    async def code(ctx: Context, _: Any) -> Any:
        found = await ctx.step.wait_for_event("go", "died.go", timeout=3600)
        return found is not None

    first = stage.executors[AWAY]
    first.bus.arm(LoseAnswer(), on=".run.later.")
    first.bus.arm(again, on=".run.later.")
    handle = await stage.play(code)
    await again.reached.wait()
    if way == "woken":
        await stage.send(Event("died.go"))
        assert await handle.result(PATIENCE) is True
    else:
        assert await handle.cancel() == "cancelled"
    first.bus.arm(Die(), on="PURGE")  # what would remove it
    again.go.set()
    await until(lambda: first.bus.dead)
    held = names.runs_later_of(handle.function, handle.id)
    assert len(await stage.stack.bus.subjects(names.work, held)) == 1
    await stage.restart(AWAY)
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    assert await stage.stack.bus.subjects(names.work, held) == []


async def test_a_turn_that_is_past_and_delivered_again_leaves_the_one_that_is_held(stage: Stage) -> None:
    """What it may have held once more is removed, and nothing else: the run would wait for it in vain."""
    names = stage.stack.names
    acknowledging = Wait(asyncio.Event(), asyncio.Event())

    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.sleep("pause", AWHILE)
        found = await ctx.step.wait_for_event("go", "past.go", timeout=3600)
        return found is not None

    stage.executors[AWAY].bus.arm(acknowledging, on="+ACK")
    handle = await stage.play(code)
    await acknowledging.reached.wait()
    await stage.waiting(handle, 2)
    await stage.restart(AWAY)
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    held = await stage.stack.bus.subjects(names.work, names.runs_later_of(handle.function, handle.id))
    assert [names.parse_run_later(subject).turn for subject in held] == [2]
    await stage.send(Event("past.go"))
    assert await handle.result(PATIENCE) is True
