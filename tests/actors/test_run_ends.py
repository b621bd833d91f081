"""What is left when runs end: nothing that acts on them later, nothing of theirs that goes on, nothing half read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest_asyncio

from jetcron import CancelOn, Context, Event
from jetcron.bus import Bus, StoredMessage
from tests.support.faults import LoseAnswer
from tests.support.nats_server import NatsServer
from tests.support.stack import until, waits_of
from tests.support.stage import HERE, Stage, stage_of

FUNCTIONS: dict[str, Any] = {
    "order": {
        "on": "ends.placed",
        "retries": 0,
        "cancel_on": CancelOn("ends.dropped", match={"id": "data.id"}),
    },
}


@pytest_asyncio.fixture
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, FUNCTIONS) as stage:
        yield stage


async def test_an_event_that_is_routed_again_opens_nothing_of_a_run_that_ended(stage: Stage) -> None:
    """The wait stood for a year, and an event that met it later ended anew what had been forgotten."""
    names, ran = stage.stack.names, []

    async def code(ctx: Context, _: Any) -> None:
        ran.append(ctx.run_id)

    stage.codes[999] = code
    router = next(one for one in stage.stack.running if one.name == "event-router")
    router.bus.arm(LoseAnswer(), on="run.ready")
    await stage.client.send(Event("ends.placed", {"code": 999, "data": {"id": 7}}))
    await until(lambda: len(ran) == 2)
    await stage.stack.settled(names.events, names.event_router)

    async def nothing_waits() -> bool:
        return not any([await stage.stack.bus.subjects(names.journal, waits_of(names, run)) for run in ran])

    await until(nothing_waits)
    assert len(ran) == len(set(ran)) == 2, "a run of each app, once"


async def test_a_run_that_ends_while_it_is_read_is_read_ended(stage: Stage) -> None:
    """Its last entry takes the place of all: between two reads, what was there is gone."""
    go = asyncio.Event()

    async def code(ctx: Context, _: Any) -> str:
        await go.wait()
        return "done"

    handle = await stage.play(code, on=f"{HERE}.once")
    await stage.entries("claimed", 1, run=handle.id)
    original = Bus.last

    async def last(bus: Bus, stream: str, subject: str) -> StoredMessage | None:
        found = await original(bus, stream, subject)
        if bus is handle._bus and not go.is_set():
            go.set()
            await stage.entries("completed", 1, run=handle.id)
        return found

    with mock.patch.object(Bus, "last", last):
        found = await handle.view()
    assert (found.status, found.result) == ("completed", "done")


async def test_a_branch_goes_no_further_than_its_attempt(stage: Stage) -> None:
    """Beside an attempt that failed, its step went on, and was begun again by the next."""
    at_once, most, ends = [0], [0], []
    tries: list[int] = []

    async def slow() -> None:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        try:
            await asyncio.sleep(0.5)
        finally:
            at_once[0] -= 1

    async def code(ctx: Context, _: Any) -> str:
        async def fails() -> None:
            await asyncio.sleep(0.01)
            tries.append(1)
            if len(tries) < 3:
                raise ValueError("not yet")

        await asyncio.gather(ctx.step.run("slow", slow), fails())
        return "done"

    assert await stage.result(code, on=f"{HERE}.again") == "done"
    assert most == [1]

    begun = asyncio.Event()

    async def longer() -> None:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            ends.append("ended")

    async def leaves_it(ctx: Context, _: Any) -> None:
        task = asyncio.create_task(ctx.step.run("longer", longer))
        await asyncio.sleep(600)
        await task

    handle = await stage.play(leaves_it, on=f"{HERE}.once")
    await begun.wait()
    assert await handle.cancel() == "cancelled"
    await until(lambda: ends == ["ended"])
