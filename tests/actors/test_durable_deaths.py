"""Durable runs whose executor, router or canceller dies between any two writes: nothing is missed, or done twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context
from jetcron.control import RunControl
from jetcron.errors import TryAgain
from jetcron.events import Event
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Event as WireEvent
from tests.support.faults import Die, Fault, FaultyBus, Killed, LoseAnswer, Wait, was_killed
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, take, take_rest, until, waits_of
from tests.support.stage import AWAY, HERE, LOSSES, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRITES = (".journal.", ".wait.", ".run.ready.", ".run.later.", ".event.", "STREAM.PURGE", "+ACK")
"""What an executor writes for a run, but for its own key."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, **LOSSES) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def workflow(ctx: Context, case: str) -> Any:
    """Every kind of step, one after another and side by side."""

    async def load(name: str) -> str:
        return name

    first = await ctx.step.run("load", load, "a")
    event = await ctx.step.wait_for_event("wait", "death.go", match={"case": case}, timeout=60)
    child, _, second = await asyncio.gather(
        ctx.step.invoke("child", f"{HERE}.once", {"code": -1, "data": case}),
        ctx.step.sleep("sleep", 0.05),
        ctx.step.run("load", load, "b"),
    )
    await ctx.step.send("send", Event("death.sent", case))
    assert event is not None
    return [first, event.data["case"], child, second]


async def disturbed(
    stage: Stage, children: list[str], case: str, on: str, nth: int, fault: Fault | None
) -> Any:
    """The workflow in an app of its own, with a fault in its executor; the writes of the executor."""
    executor = await stage.add(case)
    executor.bus.writes.clear()
    if fault is not None:
        executor.bus.arm(fault, on=on, nth=nth)
    handle = await stage.play(workflow, case, on=f"{case}.once")
    result = asyncio.create_task(handle.result(2 * PATIENCE))
    opened = asyncio.create_task(stage.opened(handle))
    died = asyncio.create_task(until(lambda: executor.bus.dead, patience=2 * PATIENCE))
    await asyncio.wait({opened, died}, return_when=asyncio.FIRST_COMPLETED)
    if not opened.done():
        await stage.restart(case)
    await opened
    await stage.client.send(Event("death.go", {"case": case}))
    await asyncio.wait({result, died}, return_when=asyncio.FIRST_COMPLETED)
    if not result.done():
        await stage.restart(case)
    died.cancel()
    where = f"{fault} at write {nth} of {on}"
    assert await result == ["a", case, f"child of {case}", "b"], where
    assert children.count(case) == 1, f"another child after {where}"
    history = await handle.history()
    assert set(history.steps) == {"load", "load#2", "wait", "child", "sleep", "send"}, where
    return executor.bus.writes


async def test_an_executor_may_die_in_any_write_of_a_run(stage: Stage) -> None:
    children: list[str] = []

    async def child(ctx: Context, case: str) -> str:
        children.append(case)
        return f"child of {case}"

    stage.codes[-1] = child
    writes = await disturbed(stage, children, "case", "", 0, None)
    found = Counter(on for write in writes for on in WRITES if on in write)
    assert set(found) == set(WRITES), "the workflow writes everything"
    # To die after a write is to die before the next one.
    cases = [(on, nth, Die()) for on, count in found.items() for nth in range(count)]
    async with asyncio.TaskGroup() as group:
        for number, (on, nth, fault) in enumerate(cases):
            group.create_task(disturbed(stage, children, f"case{number}", on, nth, fault))
    names = stage.stack.names
    sent = [
        decode(WireEvent, m.payload)
        for m in await stage.stack.stored(names.events, names.event("death.sent"))
    ]
    assert len({event.id for event in sent}) == len(cases) + 1, (
        "an event has another id when it is sent again"
    )


# What a run waits for comes while somebody dies.


async def waits(ctx: Context, match: Any) -> Any:
    event = await ctx.step.wait_for_event("wait", "death.met", match=match, timeout=60)
    return event and event.data


@pytest.mark.parametrize("dies", [False, True])
async def test_an_event_between_a_wait_and_its_journal_is_not_missed(stage: Stage, dies: bool) -> None:
    """It is routed when the wait is stored and the journal does not say yet that anything waits."""
    executor = stage.executors[AWAY]
    reached, go = asyncio.Event(), asyncio.Event()
    executor.bus.arm(Wait(reached, go), on=".journal.", nth=1)
    handle = await stage.play(waits, {"dies": dies})
    await asyncio.wait_for(reached.wait(), PATIENCE)
    await stage.send(Event("death.met", {"dies": dies}))
    if dies:
        await stage.restart(AWAY)
    go.set()
    assert await handle.result(PATIENCE) == {"dies": dies}
    assert "waiting" not in outcomes(await handle.history()), "it had what it waits for"


@pytest.mark.parametrize("held", [False, True])
async def test_an_event_while_a_run_is_leaving_is_not_missed(stage: Stage, held: bool) -> None:
    """It is routed before the journal says `waiting`, or after that and before the next turn is held."""
    executor = stage.executors[AWAY]
    reached, go = asyncio.Event(), asyncio.Event()
    executor.bus.arm(Wait(reached, go), on=".run.later." if held else ".journal.", nth=0 if held else 2)
    handle = await stage.play(waits, {"held": held})
    await asyncio.wait_for(reached.wait(), PATIENCE)
    await stage.send(Event("death.met", {"held": held}))
    go.set()
    assert await handle.result(PATIENCE) == {"held": held}
    assert outcomes(await handle.history()) == ["waiting", "completed"]


async def test_a_waiting_run_is_nobody_s_whose_executor_dies(stage: Stage) -> None:
    handle = await stage.play(waits, {"n": 1})
    await stage.waiting(handle)
    await stage.executors[AWAY].kill()
    await stage.send(Event("death.met", {"n": 1}))
    assert await handle.status() == "waiting"
    stage.executors[AWAY] = await stage.execute(AWAY)
    assert await handle.result(PATIENCE) == {"n": 1}
    assert outcomes(await handle.history()) == ["waiting", "completed"]


ROUTER_FAULTS: list[Fault] = [Die(), Die(after=True), LoseAnswer()]


async def test_a_router_may_die_in_any_write_of_a_meeting(stage: Stage, calls: Calls) -> None:
    """Two runs wait for the event, another one for it and more; it is delivered again until it is dealt with."""
    (router,) = [running for running in stage.stack.running if running.name == "event-router"]
    await router.stop()  # until the end: this test routes
    names = stage.stack.names

    async def both(ctx: Context, match: Any) -> Any:
        calls.made.append(match["n"])
        found = await asyncio.gather(
            ctx.step.wait_for_event("one", "death.met", match=match, timeout=60),
            ctx.step.wait_for_event("other", "death.met", match={**match, "more": 1}, timeout=60),
        )
        return [event and event.data["n"] for event in found]

    async def meeting(number: int, nth: int, fault: Fault | None) -> list[str]:
        handles = [await stage.play(code, {"n": number}) for code in (waits, waits, both)]
        for handle in handles:
            await stage.waiting(handle)
        data = {"n": number, "more": 1}
        await stage.client.send(Event("death.met", data))
        async with FaultyBus(stage.stack.settings) as bus:
            deliveries = await take(bus, names.events, names.event_router)
            bus.writes.clear()
            if fault is not None:
                bus.arm(fault, nth=nth)
            try:
                await stage.stack.make("event-router", bus).handle(deliveries)
            except TryAgain:
                pass
            except BaseException as error:
                if not was_killed(error):
                    raise
            writes = list(bus.writes)
        for delivery in deliveries:
            await stage.stack.bus.post(delivery._reply, b"-NAK")
        await take_rest(
            stage.stack,
            names.events,
            names.event_router,
            lambda bus, found: stage.stack.make("event-router", bus).handle(found),
        )
        assert [await handle.result(PATIENCE) for handle in handles] == [data, data, [number, number]], (
            fault,
            nth,
        )
        return writes

    writes = await meeting(0, 0, None)
    assert sum(".wait." in write for write in writes) == 4, writes
    assert sum(".run.ready." in write for write in writes) >= 3, writes
    assert writes[-1] == "+ACK"
    number = 0
    for fault in ROUTER_FAULTS:
        for nth in range(len(writes)):
            number += 1
            await meeting(number, nth, fault)
    await stage.stack.start("event-router")


async def test_who_cancels_may_die_in_any_write(stage: Stage) -> None:
    """Called again it does the rest; and if it is not, whoever gets the run's next turn does."""
    names = stage.stack.names

    async def cancelled(nth: int, fault: Fault | None, *, again: bool) -> list[str]:
        async def code(ctx: Context, _: Any) -> None:
            await ctx.step.wait_for_event("wait", "never.comes", timeout=600 if again else 3.0)

        async with FaultyBus(stage.stack.settings) as bus:
            handle = await stage.play(code)
            await stage.waiting(handle)
            if fault is not None:
                bus.arm(fault, nth=nth)
            try:
                await RunControl(bus).cancel(handle.function, handle.id, "test")
            except Killed:
                pass
            writes = list(bus.writes)
        if again:
            assert await handle.cancel("again") == "cancelled"
        if nth > 0 or again:
            failed = await stage.failure_of(handle)
            assert failed.type == "Cancelled"

            async def nothing_left() -> bool:
                held = await stage.stack.stored(names.work, names.runs_later_of(handle.function, handle.id))
                return held == await stage.stack.stored(names.journal, waits_of(names, handle.id)) == []

            await until(nothing_left, what=f"nothing left after {fault} at {nth}")
        else:
            assert await handle.result(PATIENCE) is None
        return writes

    writes = await cancelled(0, None, again=True)
    async with asyncio.TaskGroup() as group:
        for again in (False, True):
            for nth in range(len(writes)):
                group.create_task(cancelled(nth, Die(), again=again))
