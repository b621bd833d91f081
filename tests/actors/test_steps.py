"""Steps on real actors: done once, remembered, numbered, retried; their failures caught and undone."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context, NonRetriableError, Retry, RetryAfterError, StepError
from jetcron.errors import ConfigurationError
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE
from tests.support.stage import AWAY, AWHILE, HERE, QUICK, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


# Once, and remembered.


async def test_a_step_is_journaled_before_the_code_goes_on(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        result = await ctx.step.run("load", calls.note, 7)
        view = await stage.client.runs.get(ctx.run_id)
        return [result, view.history.steps["load"].result]

    assert await stage.result(code) == [7, 7]


async def test_whatever_can_be_called_can_be_a_step(stage: Stage) -> None:
    main = threading.get_ident()

    class Callable_:
        async def __call__(self, value: int) -> int:
            return value

    async def plus(a: int, *, b: int) -> int:
        return a + b

    async def code(ctx: Context, _: Any) -> Any:
        return [
            await ctx.step.run("async", plus, 1, b=2),
            await ctx.step.run("partial", functools.partial(plus, 1), b=3),
            await ctx.step.run("lambda", lambda: plus(1, b=4)),
            await ctx.step.run("object", Callable_(), 6),
            await ctx.step.run("builtin", sum, [3, 4]),
            await ctx.step.run("thread", lambda: threading.get_ident() != main),
            await ctx.step.run("keyword", lambda function, id, retry_=1: [function, id], "f", id="i"),
        ]

    assert await stage.result(code) == [3, 4, 5, 6, 7, True, ["f", "i"]]


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_finished_steps_are_not_done_again_whatever_happens_after(
    stage: Stage, calls: Calls, app: str
) -> None:
    """A failed attempt, a wait, a step's retries: none of it does a finished step again."""

    async def code(ctx: Context, _: Any) -> Any:
        a = await ctx.step.run("a", calls.note, "a")
        await ctx.step.sleep("pause", AWHILE)
        b = await ctx.step.run("b", calls.plainly, "b")
        if ctx.attempt == 0:
            raise ValueError("outside any step")
        c = await ctx.step.run("c", calls.failing, 2, "c")
        return a + b + c

    handle = await stage.play(code, on=f"{app}.again")
    assert await handle.result(PATIENCE) == "abc"
    assert calls.made == ["a", "b", "c", "c", "c"]
    history = await handle.history()
    assert [outcome for outcome in outcomes(history) if outcome != "waiting"] == ["retrying", "completed"]
    assert ("waiting" in outcomes(history)) is (app == AWAY)
    assert [(done, history.steps[done].tries) for done in "abc"] == [("a", 0), ("b", 0), ("c", 2)]


async def test_repeated_ids_are_numbered_in_loops_and_side_by_side(stage: Stage) -> None:
    async def value(number: int) -> int:
        await asyncio.sleep(0.01 * (5 - number))
        return number

    async def code(ctx: Context, _: Any) -> Any:
        loop = [await ctx.step.run("load", value, number) for number in range(3)]
        beside = await asyncio.gather(*(ctx.step.run("load", value, number) for number in range(3)))
        if ctx.attempt == 0:
            raise ValueError("once more")
        return [loop, beside]

    handle = await stage.play(code, on=f"{AWAY}.again")
    assert await handle.result(PATIENCE) == [[0, 1, 2], [0, 1, 2]]
    assert sorted((await handle.history()).steps) == [
        "load",
        "load#2",
        "load#3",
        "load#4",
        "load#5",
        "load#6",
    ]


async def test_steps_within_steps_have_their_own_ids(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        async def outer(name: str) -> list[Any]:
            first = await ctx.step.run("inner", calls.note, f"{name}1")
            await ctx.step.sleep("pause", 0.02)
            second = await ctx.step.run("inner", calls.note, f"{name}2")
            if calls.made.count(name) == 0:
                calls.made.append(name)
                raise ValueError("outer fails once")
            return [first, second]

        both = await asyncio.gather(ctx.step.run("outer", outer, "a"), ctx.step.run("outer", outer, "b"))
        return [*both, await ctx.step.run("inner", calls.note, "last")]

    handle = await stage.play(code, on=f"{AWAY}.again")
    assert await handle.result(PATIENCE) == [["a1", "a2"], ["b1", "b2"], "last"]
    assert sorted(calls.made) == ["a", "a1", "a2", "b", "b1", "b2", "last"]
    history = await handle.history()
    assert set(history.steps) == {
        "inner",
        *("outer", "outer#/inner", "outer#/inner#2", "outer#/pause"),
        *("outer#2", "outer#2#/inner", "outer#2#/inner#2", "outer#2#/pause"),
    }
    assert history.attempts[-1].number == 0, "a step's failure took an attempt of the run"


@pytest.mark.parametrize("id", ["", "a#2", "a\nb", "x" * 201, None, 3])
async def test_ids_that_cannot_be_are_refused(stage: Stage, calls: Calls, id: Any) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        with pytest.raises(ConfigurationError, match="allowed are 1 to"):
            await ctx.step.run(id, calls.note)
        return "refused"

    assert await stage.result(code) == "refused"
    assert calls.made == []


async def test_what_is_no_function_is_refused_before_anything_is_done(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        called = calls.note(1)
        with pytest.raises(ConfigurationError, match="without calling it"):
            await ctx.step.run("called", called)  # type: ignore[arg-type]
        called.close()
        with pytest.raises(ConfigurationError, match="allowed is a Retry"):
            await ctx.step.run("retry", calls.note, retry=3)  # type: ignore[arg-type]

    await stage.result(code)
    assert calls.made == []


# Failure.


async def test_a_step_is_retried_by_its_own_rule(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        a = await ctx.step.run("a", calls.failing, 1, "a", retry=QUICK)
        with pytest.raises(StepError):
            await ctx.step.run("b", calls.failing, 1, "b")  # the function's: none
        with pytest.raises(StepError):
            await ctx.step.run(
                "c", calls.failing, 9, "c", retry=Retry(attempts=4, waits=[0.01, 0.02], jitter=0)
            )
        return a

    handle = await stage.play(code)
    assert await handle.result(PATIENCE) == "a"
    assert calls.made == ["a", "a", "b", *"cccc"]
    opened = [one.entry for one in stage.stack.journal.of("opened", run=handle.id)]
    assert [(one.step, one.op, one.tries) for one in opened] == [
        ("a", "run", 1),
        ("c", "run", 1),
        ("c", "run", 2),
        ("c", "run", 3),
    ]
    assert all(one.error is not None and one.error.type == "ValueError" for one in opened)


async def test_a_step_may_end_its_retries_or_name_their_time(stage: Stage, calls: Calls) -> None:
    async def hopeless() -> None:
        calls.made.append("hopeless")
        raise NonRetriableError("no use")

    async def busy() -> int:
        calls.made.append("busy")
        if calls.made.count("busy") < 2:
            raise RetryAfterError(0.05)
        return 1

    async def code(ctx: Context, _: Any) -> Any:
        with pytest.raises(StepError, match="no use"):
            await ctx.step.run("hopeless", hopeless, retry=QUICK)
        return await ctx.step.run("busy", busy, retry=Retry(attempts=2, waits=[3600]))

    assert await stage.result(code) == 1
    assert calls.made == ["hopeless", "busy", "busy"]


class Declined(Exception):
    pass


async def charge(amount: int) -> None:
    raise Declined(f"{amount} is too much")


async def test_a_failure_can_be_caught_and_undone_also_after_a_replay(stage: Stage, calls: Calls) -> None:
    seen = []

    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.run("reserve", calls.note, "reserve")
        try:
            await ctx.step.run("charge", charge, 5)
        except StepError as error:
            seen.append(error)
            await ctx.step.run("release", calls.note, "release")
            await ctx.step.sleep("pause", AWHILE)
            return await ctx.step.run("tell", calls.note, error.message)

    assert await stage.result(code) == "5 is too much"
    assert calls.made == ["reserve", "release", "5 is too much"]
    live, replayed = seen
    for error in (live, replayed):
        assert (error.step, error.message) == ("charge", "5 is too much")
        assert error.type.endswith("test_steps.Declined")
        assert "in charge" in error.traceback
        assert "jetcron/executor" not in error.traceback, "our frames are in the traceback"
        assert str(error) == f"step 'charge' failed: {error.type}: 5 is too much"
    assert isinstance(live.__cause__, Declined)


async def test_a_failure_nobody_catches_fails_the_run_without_another_attempt(
    stage: Stage, calls: Calls
) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        calls.made.append(ctx.attempt)
        await ctx.step.run("charge", charge, 5, retry=Retry(attempts=1))

    failed = await stage.failure(code, on=f"{AWAY}.again")
    assert failed.type.endswith("StepError")
    assert "step 'charge' failed" in failed.message
    assert "Declined" in failed.traceback
    assert calls.made == [0]


async def test_a_step_can_fail_while_others_beside_it_go_on(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        results = await asyncio.gather(
            ctx.step.run("bad", calls.failing, 9, "bad"),
            ctx.step.run("good", calls.note, "good"),
            ctx.step.sleep("pause", 0.02),
            return_exceptions=True,
        )
        return [type(result).__name__ if isinstance(result, Exception) else result for result in results]

    assert await stage.result(code) == ["StepError", "good", None]
    assert calls.made == ["bad", "good"]
