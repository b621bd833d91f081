"""What an executor knows of the runs that stand ready: each is read once, what is gone dropped, no backlog read."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

import pytest

from jetcron.cycle import make_run
from jetcron.errors import TryAgain
from jetcron.executor.arrivals import Arrivals
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import Run, Schedule
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack

F = "lane.f"
LAST = (1 << 40, "")


def occurrence(number: int, lane: str = "team-1", **more: Any) -> Run:
    schedule = Schedule(id=lane, function=F, origin="data", every=1_000, overlap="queue", **more)
    return make_run(schedule, number * 1_000)


class Shelf:
    """The messages that stand on a function's subject."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.arrivals = Arrivals(stack.bus)

    async def put(self, *runs: Run) -> list[int]:
        subject = self.stack.names.run_ready(F)
        return [(await self.stack.bus.publish(subject, encode(run))).sequence for run in runs]

    async def remove(self, *sequences: int) -> None:
        for sequence in sequences:
            await self.stack.bus.api(f"STREAM.MSG.DELETE.{self.stack.names.work}", {"seq": sequence})

    async def earlier(self, before: int, *, lane: str = "team-1", than: tuple[int, str] = LAST) -> list[int]:
        found = await self.arrivals.earlier(F, lane, than=than, before=before)
        return [arrival.sequence for arrival in found]


@contextlib.asynccontextmanager
async def shelf(server: NatsServer) -> AsyncIterator[Shelf]:
    async with Stack(server) as stack:
        yield Shelf(stack)


@pytest.fixture
def read() -> Iterator[mock.Mock]:
    with mock.patch("jetcron.executor.arrivals.decode", side_effect=decode) as counted:
        yield counted


async def test_of_a_lane_those_that_are_due_earlier_and_were_stored_before(shared_nats: NatsServer) -> None:
    async with shelf(shared_nats) as s:
        late, first, other, own, after = await s.put(
            occurrence(3),
            occurrence(1),
            occurrence(1, "team-2"),
            occurrence(2),
            occurrence(0),  # published last though it is due first
        )
        of_own = (2_000, occurrence(2).run)
        assert await s.earlier(own, than=of_own) == [first]
        assert await s.earlier(after, than=of_own) == [first]
        assert await s.earlier(after) == [first, own, late]
        assert await s.earlier(after, lane="team-2") == [other]
        (again,) = await s.put(occurrence(2))  # woken, it is stored anew
        assert await s.earlier(again, than=of_own) == [after, first]
        s.arrivals.forget(F, "team-1", first)
        assert await s.earlier(again, than=of_own) == [after]


async def test_later_turns_and_what_is_in_no_lane_are_not_known(shared_nats: NatsServer) -> None:
    async with shelf(shared_nats) as s:
        allowed = make_run(Schedule(id="t", function=F, origin="data", every=1_000), 1_000)
        woken = Run(**{name: getattr(occurrence(1), name) for name in Run.__slots__} | {"turn": 1})
        sequences = await s.put(allowed, woken)
        await s.stack.bus.publish(s.stack.names.run_ready(F), b"not a run")
        (last,) = await s.put(occurrence(2))
        assert await s.earlier(last, than=LAST) == []
        assert len(s.arrivals) == 1
        assert sequences[-1] < last


async def test_each_message_is_read_once(shared_nats: NatsServer, read: mock.Mock) -> None:
    async with shelf(shared_nats) as s:
        for number in range(40):
            (own,) = await s.put(occurrence(number, f"team-{number}"))
            assert await s.earlier(own, lane=f"team-{number}") == []
            assert read.call_count == number + 1
        assert await s.earlier(own, lane="team-0") != []
        assert read.call_count == 40


async def test_a_backlog_that_was_not_delivered_yet_is_not_read(
    shared_nats: NatsServer, read: mock.Mock
) -> None:
    async with shelf(shared_nats) as s:
        sequences = await s.put(*(occurrence(number) for number in range(600)))
        assert await s.earlier(sequences[2]) == sequences[:2]
        assert read.call_count < 300, "a page"
        assert await s.earlier(sequences[-1]) == sequences[:-1]
        assert read.call_count == 600


async def test_what_is_gone_is_dropped_though_nobody_says_so(shared_nats: NatsServer) -> None:
    """Lanes that are never looked at again: their runs were another executor's."""
    with mock.patch("jetcron.executor.arrivals._FEW", 10):
        async with shelf(shared_nats) as s:
            (stands,) = await s.put(occurrence(0, "team-0"))
            for number in range(1, 101):
                (own,) = await s.put(occurrence(number, f"team-{number}"))
                assert await s.earlier(own, lane="team-0") == [stands]
                await s.remove(own)
                assert len(s.arrivals) <= 11


async def test_however_many_stand_they_are_not_read_again_and_again(
    shared_nats: NatsServer, read: mock.Mock
) -> None:
    with mock.patch("jetcron.executor.arrivals._FEW", 10):
        async with shelf(shared_nats) as s:
            (first,) = await s.put(occurrence(0, "team-0"))
            for number in range(1, 160):
                (own,) = await s.put(occurrence(number, f"team-{number}"))
                assert await s.earlier(own, lane="team-0") == [first]
            # Begun anew at 11, and from there each time their number has doubled.
            assert 160 < read.call_count < 3 * 160
            assert len(s.arrivals) == 160


async def test_after_a_reconnect_sequences_may_mean_other_messages(shared_nats: NatsServer) -> None:
    async with shelf(shared_nats) as s:
        first, last = await s.put(occurrence(1), occurrence(2))
        assert await s.earlier(last) == [first]
        await s.remove(first)
        assert await s.earlier(last) == [first], "it says where to look"
        s.stack.bus.generation += 1
        assert await s.earlier(last) == []


async def test_a_server_that_lags_behind_is_not_believed(shared_nats: NatsServer) -> None:
    async with shelf(shared_nats) as s:
        first, last = await s.put(occurrence(1), occurrence(2))
        with pytest.raises(TryAgain, match="lags behind"):
            await s.earlier(last + 1)
        (own,) = await s.put(occurrence(3))
        assert await s.earlier(own) == [first, last]
