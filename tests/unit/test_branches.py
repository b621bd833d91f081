"""When the code of a run stands still, and when all its branches wait."""

import asyncio

import pytest

from jetcron.clock import SystemClock
from jetcron.executor.branches import Branches, watch_tasks


@pytest.mark.parametrize("turns", range(12))
async def test_a_result_on_its_way_through_the_code_is_no_standing_still(turns: int) -> None:
    """However the turns of the loop fall: the first of two waits is over, and the code is about to go on.

    Whoever finds all branches waiting releases the run, and then nothing would wake it before the other wait ends.
    """
    watch_tasks(asyncio.get_running_loop())
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    made: list[Branches] = []
    went_on = asyncio.Event()
    waiting: set[asyncio.Task[None]] = set()

    async def code() -> None:
        branches = Branches(SystemClock())
        made.append(branches)
        over = asyncio.create_task(branches.turn(1))
        waits = asyncio.create_task(branches.standing(never))
        waiting.add(waits)
        await asyncio.wait({over, waits}, return_when=asyncio.FIRST_COMPLETED)
        went_on.set()
        waits.cancel()

    running = asyncio.create_task(code())
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    (branches,) = made
    await branches.settle()
    released = branches.all_wait(waiting, ()) and not went_on.is_set()
    await running
    assert not released
