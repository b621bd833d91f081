"""The clocks, the real one and the tests' own; milliseconds to datetime and back."""

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.clock import Clock, SystemClock, from_ms, to_ms
from tests.support.fake_clock import FakeClock


async def test_the_system_clock_tells_the_time_and_waits() -> None:
    clock: Clock = SystemClock()
    before = time.time() * 1_000
    now = clock.now()
    assert before - 1 <= now <= time.time() * 1_000
    started = clock.monotonic()
    await clock.sleep(0.02)
    assert clock.monotonic() - started >= 0.019


async def test_a_sleep_of_zero_or_less_yields_once() -> None:
    for clock in (SystemClock(), FakeClock()):
        turned = asyncio.Event()
        asyncio.get_running_loop().call_soon(turned.set)
        await clock.sleep(-1)
        assert turned.is_set()


@pytest.mark.parametrize(
    ("moment", "ms"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1970, 1, 1, 0, 0, 0, 1_999, tzinfo=UTC), 1),
        (datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), -1),
        (datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 1_893_456_000_000),
    ],
)
def test_to_ms(moment: datetime, ms: int) -> None:
    assert to_ms(moment) == ms


@given(st.integers(to_ms(datetime.min.replace(tzinfo=UTC)), to_ms(datetime.max.replace(tzinfo=UTC))))
def test_milliseconds_survive_the_round_trip(ms: int) -> None:
    moment = from_ms(ms)
    assert moment.tzinfo is UTC
    assert to_ms(moment) == ms


def test_a_naive_datetime_is_refused() -> None:
    with pytest.raises(ValueError, match="2030-01-01T00:00:00 has no zone; give an aware datetime"):
        to_ms(datetime(2030, 1, 1))


def test_what_no_datetime_can_say_is_refused() -> None:
    with pytest.raises(ValueError, match="is outside the years 1 to 9999"):
        from_ms(10**15)


async def test_advancing_wakes_sleepers_in_order_each_at_its_time() -> None:
    clock = FakeClock(now=1_000)
    woken: list[tuple[str, int]] = []

    async def wait(name: str, *times: float) -> None:
        for seconds in times:
            await clock.sleep(seconds)
            woken.append((name, clock.now()))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait("late", 3))
        tasks.create_task(wait("twice", 1, 1.5))
        tasks.create_task(wait("never in time", 10))
        await clock.until_sleeping(3)
        await clock.advance(5)
        assert woken == [("twice", 2_000), ("twice", 3_500), ("late", 4_000)]
        assert (clock.now(), clock.monotonic(), clock.sleeping) == (6_000, 5.0, 1)
        await clock.advance(5)
    assert woken[-1] == ("never in time", 11_000)


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(1))
    await clock.until_sleeping()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleeping == 0
    await clock.advance(2)
    assert clock.monotonic() == 2


async def test_a_jump_moves_the_wall_clock_alone() -> None:
    clock = FakeClock(now=10_000)
    clock.jump(-4)
    assert (clock.now(), clock.monotonic()) == (6_000, 0)
