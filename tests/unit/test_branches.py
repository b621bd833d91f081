"""When the code of a run stands still, and when all its branches wait.

Whoever finds all branches waiting releases the run, and then nothing wakes it before what they wait for: so a result
that is on its way through the code must be seen, however the turns of the loop fall.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jetcron.clock import SystemClock
from jetcron.executor.branches import OUTSIDE, Branches, watch_tasks

Part = Callable[[Branches], Awaitable[None]]


async def delivered(branches: Branches) -> None:
    """A result of an earlier attempt."""
    await branches.turn(1)


async def recorded(branches: Branches) -> None:
    """A result that is written first: by a task of ours, which no time-out of the code cuts off."""

    async def write() -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    await asyncio.shield(asyncio.create_task(write(), context=OUTSIDE.copy()))


async def read(branches: Branches) -> None:
    """A result that comes from the server, once the code has stood still for long."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.001, answer.set_result, None)
    await answer


async def calling(branches: Branches, part: Awaitable[None]) -> None:
    """A branch."""
    branches.calls_steps()
    await part


@pytest.mark.parametrize("part", [delivered, recorded, read])
@pytest.mark.parametrize("turns", range(16))
async def test_the_first_of_two_waits_is_over_and_the_code_is_about_to_go_on(turns: int, part: Part) -> None:
    watch_tasks(asyncio.get_running_loop())
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    made: list[Branches] = []
    callers: list[asyncio.Task[None]] = []
    went_on = asyncio.Event()

    async def code() -> None:
        branches = Branches(SystemClock())
        made.append(branches)
        callers.append(asyncio.ensure_future(calling(branches, part(branches))))
        callers.append(asyncio.ensure_future(calling(branches, branches.standing(never))))
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
        went_on.set()
        callers[1].cancel()

    running = asyncio.create_task(code())
    for _ in range(turns + 1):
        await asyncio.sleep(0)
    while not went_on.is_set():
        await made[0].settle()
        assert went_on.is_set() or not made[0].all_wait({callers[1]})
    await running
