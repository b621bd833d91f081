"""What a run's log says, on real actors: whose line it is, and each line once, however often its code is replayed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import structlog

from jetcron import Context, StepError
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE
from tests.support.stage import AWAY, HERE, QUICK, Calls, Stage, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What functions logged, as it would be written."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:
        yield captured


def said(lines: list[dict[str, Any]], *more: str) -> list[Any]:
    """The events of users' lines, with these values."""
    ours = [line for line in lines if str(line["event"]).startswith("user: ")]
    return [
        (line["event"][6:], *(line.get(key) for key in more)) if more else line["event"][6:] for line in ours
    ]


async def test_lines_carry_run_attempt_and_step(stage: Stage, lines: list[dict[str, Any]]) -> None:
    async def code(ctx: Context, _: Any) -> None:
        log = ctx.log.bind(order=7, more=1).unbind("more").try_unbind("others")

        async def inner() -> None:
            log.info("user: inner")

        async def outer() -> None:
            log.info("user: outer")
            await ctx.step.run("inner", inner)
            log.info("user: outer again")

        def plainly() -> None:
            log.info("user: in a thread")

        log.info("user: outside")
        await asyncio.gather(ctx.step.run("outer", outer), ctx.step.run("plainly", plainly))
        if ctx.attempt == 0:
            raise ValueError("once more")
        await log.ainfo("user: at last")

    handle = await stage.play(code, on=f"{AWAY}.again")
    await handle.result(PATIENCE)
    assert len(said(lines)) == 6
    assert set(said(lines, "step", "attempt")) == {
        ("outside", None, 0),
        ("outer", "outer", 0),
        ("in a thread", "plainly", 0),
        ("inner", "outer#/inner", 0),
        ("outer again", "outer", 0),
        ("at last", None, 1),
    }
    for line in lines:
        if str(line["event"]).startswith("user: "):
            assert (line["run"], line["function"], line["order"]) == (handle.id, "away.again", 7)
            assert "more" not in line


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_a_replay_says_nothing_again(
    stage: Stage, calls: Calls, lines: list[dict[str, Any]], app: str
) -> None:
    async def code(ctx: Context, _: Any) -> None:
        ctx.log.info("user: begins")
        ctx.log.new(a=1).info("user: made anew")
        await ctx.step.run("a", calls.note)
        ctx.log.warning("user: a is done")
        await ctx.step.sleep("pause", 0.05)
        ctx.log.info("user: paused")
        try:
            await ctx.step.run("b", calls.failing, 2, "b", retry=QUICK)
            await ctx.step.run("c", calls.failing, 9, "c")
        except StepError:
            ctx.log.exception("user: c failed")
        await ctx.step.wait_for_event("nothing", "nobody.sends.this", timeout=0.05)
        ctx.log.info("user: ends")

    handle = await stage.play(code, on=f"{app}.once")
    await handle.result(PATIENCE)
    assert said(lines) == ["begins", "made anew", "a is done", "paused", "c failed", "ends"]


async def test_a_failed_attempt_says_again_only_what_comes_after_its_last_step(
    stage: Stage, calls: Calls, lines: list[dict[str, Any]]
) -> None:
    async def code(ctx: Context, _: Any) -> None:
        ctx.log.info("user: begins")
        await ctx.step.run("a", calls.note)
        ctx.log.info("user: between")
        await ctx.step.run("b", calls.note)
        ctx.log.info("user: after b")
        if ctx.attempt == 0:
            raise ValueError("once more")

    await stage.result(code, on=f"{AWAY}.again")
    assert said(lines, "attempt") == [("begins", 0), ("between", 0), ("after b", 0), ("after b", 1)]


async def test_a_step_that_takes_another_way_when_it_is_tried_again_silences_nothing_after_it(
    stage: Stage, calls: Calls, lines: list[dict[str, Any]]
) -> None:
    """Of what its first try did, nobody asks any more."""

    async def code(ctx: Context, _: Any) -> None:
        async def outer() -> None:
            calls.made.append("outer")
            if len(calls.made) == 1:
                await ctx.step.run("only the first time", calls.note)
                raise ValueError("once more")

        await ctx.step.run("outer", outer, retry=QUICK)
        ctx.log.info("user: after it")

    await stage.result(code)
    assert said(lines) == ["after it"]


async def test_branches_say_each_line_once(stage: Stage, calls: Calls, lines: list[dict[str, Any]]) -> None:
    async def code(ctx: Context, _: Any) -> None:
        async def branch(name: str) -> None:
            for number in range(3):
                await ctx.step.run(f"{name}{number}", calls.note)
                ctx.log.info(f"user: {name}{number}")
                await ctx.step.sleep(f"{name} pause {number}", 0.03)

        await asyncio.gather(branch("a"), branch("b"))
        ctx.log.info("user: all")

    await stage.result(code)
    assert sorted(set(said(lines))) == ["a0", "a1", "a2", "all", "b0", "b1", "b2"]
    assert len(said(lines)) == 7
