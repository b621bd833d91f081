"""An executor is given a run that it has in hand already: it must know so, whatever it is just doing for it.

The server may deliver a message once more at any moment; here the test asks it to.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context
from jetcron.runs import RunHandle
from tests.support.faults import LoseAnswer, Wait
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, HERE, LOSSES, Calls, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, **LOSSES) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


async def deliver_again(stage: Stage, app: str) -> None:
    """Have the server deliver the run that an executor has in hand; return when it was handed back, or claimed."""
    executor, journal = stage.executors[app], stage.stack.journal
    (delivery,) = [delivery for delivery, _ in executor.actor._in_hand.values()]
    claims, handed_back = len(journal.of("claimed")), executor.bus.writes.count("-NAK") + 1
    await executor.bus.post(delivery._reply, b"-NAK")
    await until(
        lambda: executor.bus.writes.count("-NAK") > handed_back or len(journal.of("claimed")) > claims
    )


async def ended(stage: Stage, handle: RunHandle) -> list[str]:
    """How the attempts of a run ended, once its messages are dealt with."""
    await handle.result(PATIENCE)
    names = stage.stack.names
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    return outcomes(await handle.history())


async def test_a_run_delivered_again_while_its_claim_is_under_way_is_not_taken_over_from_oneself(
    stage: Stage, calls: Calls
) -> None:
    """The claim stood, its answer was under way: the run counted as lost, and its code ran twice at one time."""
    claim = Wait(asyncio.Event(), asyncio.Event(), after=True)

    async def code(ctx: Context, _: Any) -> None:
        await calls.note(ctx.attempt)

    stage.executors[HERE].bus.arm(claim, on=".journal.")
    handle = await stage.play(code, on=f"{HERE}.once")
    await claim.reached.wait()
    await deliver_again(stage, HERE)
    assert calls.made == []
    claim.go.set()
    assert await ended(stage, handle) == ["completed"]
    assert calls.made == [0]
    assert len(stage.stack.journal.of("claimed", run=handle.id)) == 1


async def test_a_claim_that_was_given_up_is_not_held(stage: Stage, calls: Calls) -> None:
    """It stands under an id that lives on, for another run is in hand under it."""
    gate = asyncio.Event()
    executor = stage.executors[HERE]

    async def long(ctx: Context, _: Any) -> None:
        await gate.wait()

    async def code(ctx: Context, _: Any) -> None:
        await calls.note(ctx.attempt)

    other = await stage.play(long, on=f"{HERE}.once")
    await stage.stack.journal.wait("claimed", run=other.id)
    identity = executor.actor._lease.current
    executor.bus.arm(LoseAnswer(), on=".journal.", times=1000)
    handle = await stage.play(code, on=f"{HERE}.once")
    await until(lambda: executor.actor._lease.current is not identity)
    executor.bus.disarm()
    await handle.result(PATIENCE)
    assert outcomes(await handle.history()) == ["lost", "completed"]
    assert calls.made == [0]
    assert identity.claims != set()
    gate.set()
    assert await ended(stage, other) == ["completed"]
    assert identity.claims == set()


async def test_a_turn_that_ends_does_not_let_go_of_the_next(stage: Stage, calls: Calls) -> None:
    """Held and woken, the next turn was in hand before the one before it had heard that it is held."""
    held = Wait(asyncio.Event(), asyncio.Event(), after=True)
    gate = asyncio.Event()
    executor = stage.executors[AWAY]

    async def code(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("pause", 0.5)  # so long that the run leaves
        await calls.note(ctx.attempt)
        await gate.wait()

    executor.bus.arm(held, on=".run.later.")
    handle = await stage.play(code)
    await held.reached.wait()
    await until(lambda: calls.made == [0], what="the next turn begun")
    held.go.set()
    await until(lambda: len(executor.actor._in_hand) == 1, what="the first turn over")
    await deliver_again(stage, AWAY)
    gate.set()
    assert await ended(stage, handle) == ["waiting", "completed"]
    assert calls.made == [0]
