"""Runs that an event cancels, on real actors: wherever they are, and before they begin."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import CancelOn, Context, RunFailed
from jetcron.clock import from_ms
from jetcron.events import Event
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, HERE, Calls, Stage, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

FUNCTIONS: dict[str, Any] = {
    "matching": {"retries": 0, "cancel_on": CancelOn("order.deleted", match={"order.id": "data.id"})},
    "any": {"retries": 0, "cancel_on": [CancelOn("never.sent"), CancelOn("stop.all")]},
    "started": {
        "retries": 0,
        "on": "order.placed",
        "cancel_on": CancelOn("order.dropped", match={"id": "data.id"}),
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, FUNCTIONS, ack_wait=300.0) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


def calls_only(calls: Calls) -> Any:
    async def code(ctx: Context, _: Any) -> None:
        calls.made.append(ctx.run_id)

    return code


async def test_an_event_that_matches_cancels_and_others_do_not(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("long", 600)

    one, two = [await stage.play(code, {"id": number}, on=f"{AWAY}.matching") for number in (1, 2)]
    for handle in (one, two):
        await stage.waiting(handle)
    await stage.send(Event("order.deleted", {"order": {"id": 3}}), Event("order.deleted", {"id": 1}))
    assert [await handle.status() for handle in (one, two)] == ["waiting"] * 2
    event = Event("order.deleted", {"order": {"id": 1}}, id="E1")
    await stage.send(event)
    failed = await stage.failure_of(one)
    assert failed.type == "CancelledByEvent"
    assert "'order.deleted' (E1)" in failed.message
    assert await two.status() == "waiting"
    await two.cancel()


async def test_one_event_cancels_all_of_them_wherever_they_are(stage: Stage, calls: Calls) -> None:
    async def code(ctx: Context, kind: str) -> None:
        try:
            await (asyncio.sleep(600) if kind == "running" else ctx.step.sleep("long", 600))
        finally:
            calls.made.append(kind)

    handles = [
        await stage.play(code, "waiting", on=f"{AWAY}.any"),
        await stage.play(code, "here", on=f"{HERE}.any"),
        await stage.play(code, "running", on=f"{AWAY}.any"),
        await stage.play(code, "held", on=f"{AWAY}.any", at=from_ms(stage.stack.clock.now() + 3_600_000)),
    ]
    await stage.waiting(handles[0])
    await stage.opened(handles[1])
    await stage.entries("claimed", run=handles[2].id)
    await stage.send(Event("stop.all"))
    for handle in handles:
        assert (await stage.failure_of(handle)).type == "CancelledByEvent"
    await until(lambda: sorted(calls.made) == ["here", "running", "waiting"], what="unwound")


async def test_an_event_before_the_run_began_cancels_it_all_the_same(stage: Stage, calls: Calls) -> None:
    """Whoever made the run stored the wait: a router, a client, a parent."""
    await stage.executors[AWAY].stop()
    try:
        stage.codes[-1] = calls_only(calls)
        by_hand = await stage.play(calls_only(calls), {"id": 1}, on=f"{AWAY}.matching")
        await stage.send(Event("order.placed", {"code": -1, "data": {"id": 2}}))
        await stage.entries("claimed", function=f"{HERE}.started")

        async def parent(ctx: Context, _: Any) -> Any:
            data = {"code": -1, "data": {"id": 3}}
            await ctx.step.invoke("child", f"{AWAY}.matching", data)

        invoking = await stage.play(parent, on=f"{HERE}.once")
        (opened,) = await stage.opened(invoking)
        await stage.send(
            Event("order.deleted", {"order": {"id": 1}}),
            Event("order.dropped", {"id": 2}),
            Event("order.deleted", {"order": {"id": 3}}),
        )
        cancelled = await stage.entries("cancelled", run=by_hand.id)
        await stage.entries("cancelled", function=f"{AWAY}.started")
        await stage.entries("cancelled", run=opened.entry.child or "")
        assert [one.entry.error and one.entry.error.type for one in cancelled] == ["CancelledByEvent"]
    finally:
        stage.executors[AWAY] = await stage.execute(AWAY)
    with pytest.raises(RunFailed):
        await by_hand.result(PATIENCE)
    assert "CancelledByEvent" in (await stage.failure_of(invoking)).message
    names = stage.stack.names
    for name in ("matching", "started"):
        await stage.stack.settled(names.work, names.run_consumer(f"{AWAY}.{name}"))
    assert len(calls.made) == 1, "that of the other app"


async def test_a_failed_run_begun_again_can_be_cancelled_by_its_event(stage: Stage) -> None:
    attempts = []

    async def code(ctx: Context, _: Any) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("once")
        await ctx.step.sleep("long", 600)

    handle = await stage.play(code, {"id": 9}, on=f"{AWAY}.matching")
    await stage.failure_of(handle)
    names = stage.stack.names
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    await stage.client.runs.retry(handle.id)
    await stage.waiting(handle)
    await stage.send(Event("order.deleted", {"order": {"id": 9}}))
    assert (await stage.failure_of(handle)).type == "CancelledByEvent"
