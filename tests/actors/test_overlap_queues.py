"""Queues of many schedules, with jitter, and behind an occurrence that nobody is at: on a real server."""

from dataclasses import replace
from unittest import mock

import pytest

from jetcron import App
from jetcron.cycle import make_run
from jetcron.dispatch import new_run
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Run, Schedule
from tests.actors.test_overlap import NEVER, F, House, house, waits_to_be_told
from tests.support.nats_server import NatsServer
from tests.support.stack import take, until


async def store(h: House, run: Run) -> None:
    await h.stack.bus.store(new_run(h.stack.names, run, now=h.stack.clock.now(), lead=500))


async def of_team(h: House, number: int) -> Run:
    """An occurrence of a schedule of its own, which goes by a lane of its own."""
    schedule = Schedule(id=f"team-{number}", function=F, origin="data", cron=NEVER, overlap="queue")
    run = h.runs[number] = make_run(schedule, h.base + number)
    h.doing.at[h.base + number] = number
    await store(h, run)
    return run


async def test_with_jitter_the_order_is_that_in_which_they_fall_due(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "queue") as h:
        await h.fire(1)
        await h.began(1)
        await store(h, replace(h.occurrence(2), fire_at=h.base + 50))
        await h.waits(2)
        await h.fire(3, 4)
        await h.waits(3)
        await h.waits(4)
        assert (await h.lane()).queue == [h.runs[number].run for number in (3, 4, 2)]
        h.doing.end(1).set()
        await h.began(1, 3)
        await store(h, replace(h.occurrence(5), fire_at=h.base + 40))
        await h.waits(5)
        for number in (2, 3, 4, 5):
            h.doing.end(number).set()
        await h.ended("completed", 1, 2, 3, 4, 5)
        assert h.doing.began == [1, 3, 4, 5, 2]
        assert h.doing.met == []


@pytest.mark.parametrize("executors", [1, 2])
async def test_what_others_have_in_hand_is_read_once_and_not_for_each_that_goes_in(
    executors: int, shared_nats: NatsServer
) -> None:
    count = 60
    with mock.patch("jetcron.executor.arrivals.decode", side_effect=decode) as read:
        async with house(shared_nats, "queue", executors=executors) as h:
            for number in range(1, count + 1):
                await of_team(h, number)
            await until(lambda: len(h.doing.now) == count, what="all of them run, side by side")
            assert count <= read.call_count <= executors * count
            for number in range(1, count + 1):
                h.doing.end(number).set()
            await h.ended("completed", *range(1, count + 1))
            await h.settled()


async def test_who_is_due_after_one_that_nobody_is_at_waits_in_the_queue_until_that_has_ended(
    shared_nats: NatsServer,
) -> None:
    async with house(shared_nats, "queue", executors=1, ack_wait=60.0) as h:
        h.doing.end(1).set()
        await h.fire(1)
        await h.ended("completed", 1)
        await h.settled()
        await h.executors[0].stop()
        await h.fire(2)
        (lost,) = await take(h.stack.bus, h.stack.names.work, "run==lane==f")
        app = App("lane")
        waits_to_be_told(overlap="queue")(app, h.doing)
        for _ in range(2):
            await h.stack.execute(app)
        await h.fire(5, 3, 4)
        for number in (3, 4, 5):
            await h.stack.journal.wait("waiting", run=h.runs[number].run)
        await h.settled_but(1)
        assert h.doing.began == [1], "the lane is free, and none of them goes in before the second"
        assert (await h.lane()).queue == [h.runs[number].run for number in (3, 4, 5)]
        for number in (3, 4, 5):
            subject = h.stack.names.journal_of(F, h.runs[number].run)
            assert len(await h.stack.stored(h.stack.names.journal, subject)) == 1, "none was woken in vain"
        for number in (2, 3, 4, 5):
            h.doing.end(number).set()
        await lost.hand_back()
        await h.ended("completed", 2, 3, 4, 5)
        assert h.doing.began == [1, 2, 3, 4, 5]
        assert h.doing.met == []


async def test_one_that_comes_while_who_was_waited_for_is_cancelled_goes_in(shared_nats: NatsServer) -> None:
    """Who never began still ends, and what follows that wakes who waits."""
    async with house(shared_nats, "queue", executors=1, ack_wait=60.0) as h:
        h.doing.end(1).set()
        await h.fire(1)
        await h.ended("completed", 1)
        await h.settled()
        await h.executors[0].stop()
        await h.fire(2)
        (lost,) = await take(h.stack.bus, h.stack.names.work, "run==lane==f")
        app = App("lane")
        waits_to_be_told(overlap="queue")(app, h.doing)
        await h.stack.execute(app)
        await h.fire(3)
        await h.stack.journal.wait("waiting", run=h.runs[3].run)
        await h.settled_but(1)
        assert await h.client.runs.cancel(h.runs[2].run) == "cancelled"
        h.doing.end(3).set()
        await lost.hand_back()
        await h.ended("completed", 3)
        assert h.doing.began == [1, 3]
