"""Functions that invoke others and send events, on real actors: one child, one result, nothing sent twice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context, StepError
from jetcron.errors import ConfigurationError
from jetcron.events import Event
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Event as WireEvent
from tests.support.faults import Die
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, HERE, LOSSES, Calls, Stage, ops, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, {"heard": {"retries": 0, "on": "step.sent.heard"}}, **LOSSES) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


def invokes(stage: Stage, child: Any, *, on: str = f"{HERE}.once", **more: Any) -> Any:
    """Code that invokes this one and returns its result or [type, message] of its failure."""
    number = -1 - len(stage.codes)
    stage.codes[number] = child

    async def code(ctx: Context, data: Any) -> Any:
        try:
            return await ctx.step.invoke("child", on, {"code": number, "data": data}, **more)
        except StepError as error:
            return [error.type, error.message]

    return code


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_the_result_is_the_child_s_and_both_know_each_other(
    stage: Stage, calls: Calls, app: str
) -> None:
    async def child(ctx: Context, data: Any) -> Any:
        calls.made.append(ctx.run_id)
        return {"got": data, "raw": b"\xff"}

    parent = await stage.play(invokes(stage, child), [1, "x"], on=f"{app}.once")
    assert await parent.result(PATIENCE) == {"got": [1, "x"], "raw": b"\xff"}
    step = (await parent.history()).steps["child"]
    assert (step.op, step.target, step.child) == ("invoke", "here.once", calls.made[0])
    about = (await stage.client.runs.get(calls.made[0])).history.about
    assert about is not None
    assert (about.trigger, about.parent, about.parent_function, about.parent_step) == (
        "invoke",
        parent.id,
        f"{app}.once",
        "child",
    )


async def test_a_child_that_fails_is_a_step_that_failed(stage: Stage) -> None:
    attempts = []

    async def child(ctx: Context, _: Any) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("the child's")

    seen = []

    async def code(ctx: Context, _: Any) -> Any:
        try:
            await ctx.step.invoke("child", f"{AWAY}.again", {"code": -100, "data": None})
        except StepError as error:
            seen.append([error.type, error.message, "in child" in error.traceback])
        await ctx.step.sleep("pause", 0.5)  # so long that the run leaves, and its code begins again

    stage.codes[-100] = child
    await stage.result(code)
    assert attempts == [0, 1, 2]
    assert seen == [["ValueError", "the child's", True]] * 2


async def test_a_child_that_takes_too_long_goes_on(stage: Stage) -> None:
    gate = asyncio.Event()

    async def child(ctx: Context, _: Any) -> str:
        await gate.wait()
        return "late"

    parent = await stage.play(invokes(stage, child, timeout=0.05))
    kind, message = await parent.result(PATIENCE)
    child_id = (await parent.history()).steps["child"].child
    assert child_id is not None
    assert kind == "TimeoutError"
    assert message == f"here.once did not end within 0.05 s; its run {child_id} goes on"
    gate.set()
    (ended,) = await stage.entries("completed", run=child_id)
    assert ended.entry.result == "late"


async def test_a_function_that_is_not_there_fails_the_run(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, function: Any) -> Any:
        calls.made.append(function)
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the code makes of it
            await ctx.step.invoke("child", function)
        return "went on"

    failed = await stage.failure(code, "nowhere.none", on=f"{AWAY}.again")
    assert "step 'child': there is no function 'nowhere.none'" in failed.message
    assert calls.made == ["nowhere.none"]

    async def wrong(ctx: Context, function: Any) -> Any:
        with pytest.raises(ConfigurationError, match=r"write 'app\.function'"):
            await ctx.step.invoke("child", function)
        return "refused"

    for function in ("nodot", "", 7, None):
        assert await stage.result(wrong, function) == "refused"


async def test_a_replay_starts_no_second_child(stage: Stage, calls: Calls) -> None:
    """Neither while it runs nor when it has ended, before or after the parent waits."""
    gate = asyncio.Event()

    async def slow(ctx: Context, _: Any) -> str:
        calls.made.append("slow")
        await gate.wait()
        return "slow"

    async def fast(ctx: Context, _: Any) -> str:
        calls.made.append("fast")
        return "fast"

    async def code(ctx: Context, _: Any) -> Any:
        async def busy() -> None:
            await ctx.step.run("busy", gate.wait)
            if ctx.attempt == 0:
                raise ValueError("once more")

        both = asyncio.gather(
            ctx.step.invoke("slow", "here.once", {"code": -101, "data": None}),
            ctx.step.invoke("fast", "here.once", {"code": -102, "data": None}),
        )
        if ctx.attempt == 0:
            await busy()
        await ctx.step.sleep("pause", 0.02)
        return await both

    stage.codes[-101], stage.codes[-102] = slow, fast
    parent = await stage.play(code, on=f"{AWAY}.again")
    await stage.opened(parent, 2)
    await until(lambda: len(calls.made) == 2)
    gate.set()
    assert await parent.result(PATIENCE) == ["slow", "fast"]
    assert sorted(calls.made) == ["fast", "slow"]


async def test_a_parent_begun_again_starts_another_child_for_one_that_failed(
    stage: Stage, calls: Calls
) -> None:
    """What a child gave stands; one that failed is left as it is, and another one is tried."""

    async def child(ctx: Context, name: str) -> str:
        calls.made.append((name, ctx.run_id))
        if name == "bad" and len([made for made in calls.made if made[0] == "bad"]) == 1:
            raise ValueError("the first time")
        return name

    stage.codes[-105] = child

    async def code(ctx: Context, _: Any) -> Any:
        return [
            await ctx.step.invoke(name, "here.once", {"code": -105, "data": name}) for name in ("good", "bad")
        ]

    parent = await stage.play(code)
    await stage.failure_of(parent)
    names = stage.stack.names
    await stage.stack.settled(names.work, names.run_consumer(parent.function))
    await stage.client.runs.retry(parent.id)
    assert await parent.result(PATIENCE) == ["good", "bad"]
    assert [name for name, _ in calls.made] == ["good", "bad", "bad"]
    assert len({run for _, run in calls.made}) == 3


async def test_children_side_by_side_and_children_of_children(stage: Stage) -> None:
    async def grown(ctx: Context, depth: int) -> int:
        if depth == 0:
            return 1
        below = await asyncio.gather(
            *(ctx.step.invoke("grow", f"{AWAY}.once", {"code": -103, "data": depth - 1}) for _ in range(3))
        )
        return sum(below) + 1

    stage.codes[-103] = grown
    assert await stage.result(grown, 2) == 13


async def test_a_parent_hears_of_a_child_whose_function_is_archived(stage: Stage, calls: Calls) -> None:
    """Archived before it began: nobody will ever take its message."""
    await (await stage.add("retired")).stop()
    parent = await stage.play(invokes(stage, calls.note, on="retired.once"))
    await stage.waiting(parent)
    await stage.client.functions.archive("retired.once", wait=PATIENCE)
    assert await parent.result(PATIENCE) == ["Archived", "retired.once was archived before it ran"]
    assert calls.made == []


# Sending.


async def test_events_are_sent_once_whatever_happens_to_the_run(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.send("one", Event("step.sent", 1))
        for number in range(2):
            await ctx.step.send("list", [Event("step.sent", [number, index]) for index in range(3)])
        await ctx.step.send("none", [])
        await ctx.step.send("own", Event("step.sent", "own", id="given"))
        await ctx.step.sleep("pause", 0.02)
        if ctx.attempt == 0:
            raise ValueError("once more")

    handle = await stage.play(code, on=f"{AWAY}.again")
    await handle.result(PATIENCE)
    names = stage.stack.names
    sent = [
        decode(WireEvent, m.payload) for m in await stage.stack.stored(names.events, names.event("step.sent"))
    ]
    assert [event.data for event in sent] == [1, [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], "own"]
    assert len({event.id for event in sent}) == 8
    assert sent[-1].id == "given"
    assert ops(await handle.history()) == [
        *((id, "send") for id in ("one", "list", "list#2", "none", "own")),
        ("pause", "sleep"),
    ]


async def test_a_send_whose_record_was_lost_sends_the_same_events(stage: Stage, calls: Calls) -> None:
    """The process dies after the events were stored and before the journal says so: their runs run once."""

    async def heard(ctx: Context, number: int) -> None:
        calls.made.append(number)

    stage.codes[-104] = heard
    dying = []

    async def code(ctx: Context, _: Any) -> str:
        events = [Event("step.sent.heard", {"code": -104, "data": number}) for number in range(20)]
        if not dying:
            dying.append(1)
            stage.executors[AWAY].bus.arm(Die(), on=".journal.")
        await ctx.step.send("many", events)
        return "sent"

    handle = await stage.play(code)
    await until(lambda: stage.executors[AWAY].bus.dead, what="died")
    await stage.restart(AWAY)
    assert await handle.result(PATIENCE) == "sent"
    names = stage.stack.names
    await stage.stack.settled(names.events, names.event_router)
    for app in (AWAY, HERE):
        await stage.stack.settled(names.work, names.run_consumer(f"{app}.heard"))
    assert sorted(calls.made) == sorted([*range(20), *range(20)]), "once in each app"
    assert outcomes(await handle.history()) == ["lost", "completed"]


async def test_long_lists_go_in_batches(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        await ctx.step.send("many", [Event("step.sent.many", number) for number in range(2_500)])

    await stage.result(code)
    names = stage.stack.names
    stored = await stage.stack.stored(names.events, names.event("step.sent.many"))
    assert [decode(WireEvent, one.payload).data for one in stored] == list(range(2_500))


async def test_what_cannot_be_sent_is_refused_before_anything_is_stored(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        with pytest.raises(ConfigurationError, match="is not an Event"):
            await ctx.step.send("a", [Event("refused"), "no event"])  # type: ignore[list-item]
        with pytest.raises(ConfigurationError, match="Jetcron's own"):
            await ctx.step.send("b", Event("jetcron.function.failed"))
        with pytest.raises(Exception, match="bytes; at most"):
            await ctx.step.send("c", [Event("refused"), Event("refused", b"x" * 2**20)])
        with pytest.raises(Exception, match=r"builtins\.set"):
            await ctx.step.send("d", [Event("refused"), Event("refused", {1})])

    await stage.result(code)
    names = stage.stack.names
    assert await stage.stack.stored(names.events, names.event("refused")) == []
