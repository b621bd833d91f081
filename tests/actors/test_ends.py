"""When runs must end, on real actors: timeout, deadline, start_timeout."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import structlog

from jetcron import Context, Retry, StepError
from jetcron.clock import from_ms
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, HERE, QUICK, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

FUNCTIONS: dict[str, Any] = {
    "bounded": {"retries": 0, "timeout": 1.0},
    "tried": {"retry": QUICK, "timeout": 0.5},
    "due": {"retry": Retry(attempts=9, waits=[0.2], jitter=0), "deadline": 1.5},
    "hasty": {"retries": 0, "start_timeout": 1.0},
    "slow_retry": {"retry": Retry(attempts=2, waits=[600]), "deadline": 5},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, FUNCTIONS) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


# An attempt.


async def test_a_timeout_bounds_an_attempt_and_the_next_one_goes_on(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.run("first", calls.note, "first")
        if ctx.attempt == 0:
            await ctx.step.run("hangs", asyncio.sleep, 60)
        return ctx.attempt

    handle = await stage.play(code, on=f"{AWAY}.tried")
    assert await handle.result(PATIENCE) == 1
    assert calls.made == ["first"]
    first, second = (await handle.history()).attempts
    assert first.error is not None
    assert first.error.type == "TimeoutError"
    assert "tried did not end within its timeout of 0.5 s" in first.error.message
    assert second.outcome == "completed"


async def test_a_timeout_counts_while_an_executor_has_the_run(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> str:
        await ctx.step.sleep("long", 1.5)
        return "slept"

    assert await stage.result(code, on=f"{AWAY}.bounded") == "slept"
    failed = await stage.failure(code, on=f"{HERE}.bounded")
    assert failed.type == "TimeoutError"


async def test_a_plain_function_that_overruns_is_reported_and_its_result_dropped(stage: Stage) -> None:
    begun, go = threading.Event(), threading.Event()

    def blocks() -> str:
        begun.set()
        go.wait(PATIENCE)
        return "too late"

    async def code(ctx: Context, _: Any) -> Any:
        if ctx.attempt == 0:
            return await ctx.step.run("blocks", blocks)
        return "in time"

    with structlog.testing.capture_logs() as lines:
        handle = await stage.play(code, on=f"{AWAY}.tried")
        assert await handle.result(PATIENCE) == "in time"
        assert begun.is_set()
        go.set()
        late = "a function ended after its run was over, what it returned is dropped"
        (line,) = await until(lambda: [line for line in lines if line["event"] == late], what="reported")
    assert line["function"] == "away.tried, step 'blocks'"
    assert (await handle.history()).steps == {}


# A run.


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_a_deadline_ends_a_run_whatever_it_does(stage: Stage, calls: Calls, app: str) -> None:
    async def code(ctx: Context, kind: str) -> None:
        try:
            match kind:
                case "sleep":
                    await ctx.step.sleep("long", 30)
                case "event":
                    await ctx.step.wait_for_event("long", "never.comes", timeout=30)
                case "running":
                    await asyncio.sleep(30)
                case "failing":
                    raise ValueError("again")
        finally:
            calls.made.append(kind)

    async def ended(kind: str) -> None:
        handle = await stage.play(code, kind, on=f"{app}.due")
        failed = await stage.failure_of(handle)
        history = await handle.history()
        assert history.about is not None
        assert history.last is not None
        assert history.last.entry == "failed"
        if kind == "failing" and failed.type == "ValueError":
            return  # the next attempt would have been too late
        assert failed.type.endswith("DeadlineExceeded")
        assert "did not end within its deadline of 1.5 s" in failed.message
        assert history.last.at - history.about.fire_at >= 1_500

    async with asyncio.TaskGroup() as group:
        for kind in ("sleep", "event", "running", "failing"):
            group.create_task(ended(kind))
    assert 1 < calls.made.count("failing") < 9


async def test_a_retry_after_the_deadline_is_not_waited_for(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        raise ValueError("no use to wait ten minutes")

    handle = await stage.play(code, on=f"{AWAY}.slow_retry")
    assert (await stage.failure_of(handle)).type == "ValueError"
    assert outcomes(await handle.history()) == ["failed"]


async def test_a_run_that_waited_too_long_to_begin_is_not_run(stage: Stage, calls: Calls) -> None:
    """All executors were down; what was started by hand, at once or for later, and by another run."""

    async def never(ctx: Context, _: Any) -> None:
        calls.made.append(ctx.run_id)

    async def parent(ctx: Context, _: Any) -> Any:
        try:
            await ctx.step.invoke("child", f"{AWAY}.hasty", {"code": -1, "data": None})
        except StepError as error:
            return error.type

    stage.codes[-1] = never
    await stage.executors[AWAY].stop()
    try:
        by_hand = await stage.play(never, on=f"{AWAY}.hasty")
        held = await stage.play(never, on=f"{AWAY}.hasty", at=from_ms(stage.stack.clock.now() + 100))
        invoking = await stage.play(parent, on=f"{HERE}.once")
        await stage.opened(invoking)
        await asyncio.sleep(1.5)
    finally:
        stage.executors[AWAY] = await stage.execute(AWAY)
    for handle in (by_hand, held):
        failed = await stage.failure_of(handle)
        assert failed.type == "StartTimeout"
        assert failed.message.startswith("it was due at 20")
        assert "and had not begun by 20" in failed.message
        view = await stage.client.runs.get(handle.id)
        assert view.status == "cancelled"
        assert view.history.attempts == ()
        assert view.history.about is not None
        assert view.history.about.trigger == "manual"
    assert await invoking.result(PATIENCE) == "StartTimeout"
    assert calls.made == []
    assert await stage.result(never, on=f"{AWAY}.hasty") is None, "in time it runs"
    assert len(calls.made) == 1


async def test_a_run_that_has_begun_may_be_late(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> str:
        await ctx.step.sleep("long", 1.3)
        return "slept"

    assert await stage.result(code, on=f"{AWAY}.hasty") == "slept"


async def test_a_run_that_is_begun_again_has_all_its_time_again(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> str:
        await ctx.step.run("first", calls.note, "first")
        if calls.made.count("hung") == 0:
            calls.made.append("hung")
            await asyncio.sleep(30)
        await ctx.step.sleep("pause", 0.1)
        return "in time"

    handle = await stage.play(code, on=f"{AWAY}.due")
    assert (await stage.failure_of(handle)).type.endswith("DeadlineExceeded")
    names = stage.stack.names
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    await stage.client.runs.retry(handle.id)
    assert await handle.result(PATIENCE) == "in time"
    assert calls.made == ["first", "hung"]
