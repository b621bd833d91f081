"""Room: how much an executor pulls, and when what waits for its time starts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from jetcron.clock import SystemClock
from jetcron.executor.room import Room

CLOCK = SystemClock()


@contextlib.asynccontextmanager
async def room(slots: int = 4, places: int = 10, functions: int = 1) -> AsyncIterator[Room]:
    made = Room(CLOCK, slots, places, functions)
    ringing = asyncio.create_task(made.ring())
    try:
        yield made
    finally:
        ringing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ringing


async def reserve(r: Room, most: int, *, at_least: int) -> int:
    """As the executor does: wait for a credit if there must be one, then take what may be taken."""
    if at_least:
        await r.any_free()
    return r.reserve_now(most)


async def test_a_pull_takes_half_of_what_is_free() -> None:
    async with room(8) as r:
        assert await reserve(r, 100, at_least=1) == 4
        assert await reserve(r, 100, at_least=1) == 2
        assert await reserve(r, 1, at_least=1) == 1
        assert await reserve(r, 100, at_least=1) == 1
        assert await reserve(r, 100, at_least=0) == 0


async def test_who_finds_nothing_free_waits_until_something_is() -> None:
    async with room(2) as r:
        assert await reserve(r, 1, at_least=1) == 1
        assert await reserve(r, 1, at_least=1) == 1
        waiting = asyncio.create_task(reserve(r, 5, at_least=1))
        await asyncio.sleep(0)
        assert not waiting.done()
        r.give_back(1)
        assert await asyncio.wait_for(waiting, 5) == 1


async def test_every_function_finds_room_for_its_pull() -> None:
    async with room(slots=1, functions=50) as r:
        taken = [await asyncio.wait_for(reserve(r, 1, at_least=1), 5) for _ in range(50)]
        assert taken == [1] * 50


async def test_no_more_run_than_there_are_slots() -> None:
    async with room(3) as r:
        most = 0

        async def run() -> None:
            nonlocal most
            await r.wait_until(0, most=1)
            await r.enter()
            most = max(most, r.running)
            await asyncio.sleep(0)
            r.leave()

        await asyncio.gather(*(run() for _ in range(20)))
        assert (most, r.running) == (3, 0)


async def test_waiting_for_a_time_gives_back_the_credit_while_there_are_places() -> None:
    async with room(slots=2, places=1) as r:
        assert await reserve(r, 1, at_least=1) == 1
        assert await reserve(r, 1, at_least=1) == 1
        far = CLOCK.now() + 600_000
        parked = asyncio.create_task(r.wait_until(far, most=600))
        await asyncio.sleep(0)
        assert r.holding == 1
        assert await reserve(r, 5, at_least=0) == 1, "its credit is free"
        unparked = asyncio.create_task(r.wait_until(far, most=600))
        await asyncio.sleep(0)
        assert await reserve(r, 5, at_least=0) == 0, "no place is left: it keeps its credit"
        for task in (parked, unparked):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_who_only_waits_for_a_time_is_not_taken_for_one_that_starts() -> None:
    async with room(1) as r:
        await r.until(0, most=1)
        await r.until(CLOCK.now() + 50, most=1)
        assert r._starting == 0
        await asyncio.wait_for(r.let_others_start(), 1)
        waits = asyncio.create_task(r.until(CLOCK.now() + 600_000, most=600))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert r._starting == 0


async def test_nobody_wakes_early_and_all_wake_in_order() -> None:
    async with room(100) as r:
        now = CLOCK.now()
        woken: list[tuple[int, int]] = []

        async def wait(at: int) -> None:
            await r.wait_until(at, most=10)
            woken.append((at, CLOCK.now()))
            await r.enter()
            r.leave()

        waits = [300, 100, 600, 100, 450, 300]
        await asyncio.gather(*(wait(now + each) for each in waits))
        assert [at - now for at, _ in woken] == sorted(waits)
        for at, when in woken:
            assert when >= at


async def test_a_wrong_clock_keeps_nobody_longer_than_the_server_says() -> None:
    async with room() as r:
        began = CLOCK.monotonic()
        await asyncio.wait_for(r.wait_until(CLOCK.now() + 3_600_000, most=0.05), 5)
        assert CLOCK.monotonic() - began >= 0.04
        await r.enter()
        r.leave()
