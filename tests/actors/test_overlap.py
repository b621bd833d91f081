"""Occurrences that come while another one of their schedule goes on, on a real server with two executors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest

from jetcron import App, CancelOn, Context, Retry
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.cycle import make_run
from jetcron.dispatch import new_run
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Gap, Lane, Overlap, Run, Schedule
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Entry, Running, Stack, take, until, waits_of

F = "lane.f"
NEVER = "0 0 29 2 *"


@dataclass
class Doing:
    """What the user's code is doing: who runs now, who began in which order, who met whom."""

    began: list[int] = field(default_factory=list)
    now: list[int] = field(default_factory=list)
    met: list[tuple[int, int]] = field(default_factory=list)
    may_end: dict[int, asyncio.Event] = field(default_factory=dict)
    at: dict[int, int] = field(default_factory=dict)
    """Occurrence number by its time."""

    @contextlib.contextmanager
    def one(self, ctx: Context) -> Any:
        assert ctx.scheduled_at is not None
        number = self.at[int(ctx.scheduled_at.timestamp() * 1000)]
        self.met += [(other, number) for other in self.now]
        self.began.append(number)
        self.now.append(number)
        try:
            yield number
        finally:
            self.now.remove(number)

    def end(self, number: int) -> asyncio.Event:
        return self.may_end.setdefault(number, asyncio.Event())


@dataclass
class House:
    stack: Stack
    client: Client
    doing: Doing
    policy: Overlap
    executors: list[Running]
    base: int
    runs: dict[int, Run] = field(default_factory=dict)

    def occurrence(self, number: int, *, function: str = F, schedule: str | None = None) -> Run:
        """The run of the n-th occurrence, one a millisecond, all of them due."""
        of = Schedule(id=schedule or function, function=function, cron=NEVER, overlap=self.policy)
        run = make_run(of, self.base + number)
        self.doing.at[self.base + number] = number
        self.runs[number] = run
        return run

    async def fire(self, *numbers: int, again: bool = False) -> None:
        for number in numbers:
            message = new_run(self.stack.names, self.occurrence(number), now=self.stack.clock.now(), lead=500)
            await self.stack.bus.store(message.without_id() if again else message)

    async def began(self, *numbers: int) -> None:
        await until(
            lambda: self.doing.began == list(numbers), what=f"{numbers} began, not {self.doing.began}"
        )

    async def ended(self, kind: str, *numbers: int) -> list[Entry]:
        """Wait until these have ended so."""
        return [(await self.stack.journal.wait(kind, run=self.runs[number].run))[-1] for number in numbers]

    async def settled(self) -> None:
        await self.stack.settled(self.stack.names.work, "run==lane==f")

    async def gaps(self) -> list[Gap]:
        return [view.gap for view in await self.client.runs.gaps()]

    async def left_out(self) -> list[int]:
        gaps = await self.gaps()
        assert all(gap.reason == "overlap" and gap.start == gap.to and gap.count == 1 for gap in gaps)
        return [self.doing.at[gap.start] for gap in gaps]

    async def lane(self) -> Lane:
        (found,) = await self.stack.stored(self.stack.names.journal, self.stack.names.lane_all)
        return decode(Lane, found.payload)

    async def waits(self, number: int) -> None:
        await self.stack.journal.wait("waiting", run=self.runs[number].run)
        await self.settled_but(len(self.doing.now))

    async def settled_but(self, executing: int) -> None:
        async def done() -> bool:
            return await self.stack.left(self.stack.names.work, "run==lane==f") == executing

        await until(done, what="all but those executing are acknowledged")


Declare = Callable[[App, Doing], None]


def waits_to_be_told(**options: Any) -> Declare:
    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, **options)
        async def f(ctx: Context) -> int:
            with doing.one(ctx) as number:
                await doing.end(number).wait()
                return number

    return declare


@contextlib.asynccontextmanager
async def house(
    server: NatsServer, policy: Overlap, declare: Declare | None = None, executors: int = 2, **settings: Any
) -> AsyncIterator[House]:
    doing, app = Doing(), App("lane")
    (declare or waits_to_be_told(overlap=policy))(app, doing)
    async with Stack(server, **settings) as stack, Client(stack.settings) as client:
        await stack.start("cron-sync")
        await stack.register(app)
        base = stack.clock.now() - 60_000
        yield House(stack, client, doing, policy, [await stack.execute(app) for _ in range(executors)], base)


# allow


async def test_allowed_they_run_side_by_side(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "allow") as h:
        await h.fire(1, 2)
        await until(lambda: sorted(h.doing.now) == [1, 2], what="both run")
        h.doing.end(1).set(), h.doing.end(2).set()
        await h.ended("completed", 1, 2)
        assert await h.stack.stored(h.stack.names.journal, h.stack.names.lane_all) == []


# skip


async def test_skip_leaves_out_what_comes_meanwhile_and_says_so(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "skip") as h:
        await h.fire(1)
        await h.began(1)
        await h.fire(2, 3)
        await h.settled_but(1)
        assert await h.left_out() == [2, 3]
        h.doing.end(1).set()
        await h.ended("completed", 1)
        await h.settled()
        # Delivered again, they find themselves in the ledger, though nothing goes on any more.
        await h.fire(2, 3, again=True)
        await h.settled()
        assert await h.left_out() == [2, 3]
        assert h.doing.began == [1]
        assert h.stack.journal.of(run=h.runs[2].run) == []
        h.base = h.stack.clock.now() - 4
        await h.fire(4)
        h.doing.end(4).set()
        await h.ended("completed", 4)
        assert [gap.schedule for gap in await h.gaps()] == [F, F]


async def test_what_is_left_out_waits_for_nothing_that_would_cancel_it(shared_nats: NatsServer) -> None:
    declare = waits_to_be_told(overlap="skip", cancel_on=CancelOn("stop"))
    async with house(shared_nats, "skip", declare) as h:
        await h.fire(1)
        await h.began(1)
        waits = waits_of(h.stack.names, "*")
        before = await h.stack.bus.subjects(h.stack.names.journal, waits)
        await h.fire(2)
        await h.settled_but(1)
        assert await h.left_out() == [2]
        assert await h.stack.bus.subjects(h.stack.names.journal, waits) == before
        assert len(before) == 1
        h.doing.end(1).set()
        await h.ended("completed", 1)


async def test_an_archived_function_leaves_no_lane(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "skip") as h:
        h.doing.end(1).set()
        await h.fire(1)
        await h.ended("completed", 1)
        await h.settled()
        assert (await h.lane()).run == h.runs[1].run
        await h.client.functions.archive(F, wait=PATIENCE)
        assert await h.stack.stored(h.stack.names.journal, h.stack.names.lane_all) == []


async def test_skip_goes_by_the_time_of_an_occurrence_not_by_when_there_was_room(
    shared_nats: NatsServer,
) -> None:
    """With a concurrency of 1, nothing is delivered while another run goes on."""
    declare = waits_to_be_told(overlap="skip", concurrency=1)
    async with house(shared_nats, "skip", declare) as h:
        await h.fire(1)
        await h.began(1)
        await h.fire(2)
        h.doing.end(1).set()
        await h.settled()
        assert await h.left_out() == [2]
        assert h.doing.began == [1]


async def test_an_older_occurrence_that_comes_late_is_not_skipped_once_the_newer_one_has_ended(
    shared_nats: NatsServer,
) -> None:
    async with house(shared_nats, "skip") as h:
        h.doing.end(1).set(), h.doing.end(2).set()
        await h.fire(2)
        await h.ended("completed", 2)
        await h.fire(1)
        await h.ended("completed", 1)
        assert await h.left_out() == []


async def test_a_run_that_waits_or_is_to_be_retried_still_goes_on(shared_nats: NatsServer) -> None:
    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, overlap="skip", retry=Retry(attempts=2, waits=[1.5], jitter=0))
        async def f(ctx: Context) -> None:
            with doing.one(ctx) as number:
                await ctx.step.sleep("nap", 1.5)
                if number == 1 and ctx.attempt == 0:
                    raise ValueError("again")

    async with house(shared_nats, "skip", declare, short_wait=0) as h:
        await h.fire(1)
        await h.stack.journal.wait("waiting", run=h.runs[1].run)
        await h.fire(2)
        await h.settled()
        await h.stack.journal.wait("retrying", run=h.runs[1].run)
        await h.fire(3)
        await h.ended("completed", 1)
        await h.settled()
        assert await h.left_out() == [2, 3]


@pytest.mark.parametrize("policy", ["skip", "queue"])
async def test_a_run_that_a_stop_cuts_off_still_goes_on(shared_nats: NatsServer, policy: Overlap) -> None:
    """Handed over, it has its lane all the same: another occurrence does not go in before its next turn does."""
    async with house(shared_nats, policy, grace=0.1) as h:
        await h.fire(1)
        await h.began(1)
        (holder,) = [executor for executor in h.executors if executor.actor._in_hand]
        stopping = asyncio.create_task(holder.stop())
        await h.ended("waiting", 1)
        await h.fire(2)
        await h.began(1, 1)
        await stopping
        h.doing.end(2).set()
        if policy == "skip":
            await h.settled_but(1)
            assert await h.left_out() == [2]
        else:
            await h.waits(2)
        h.doing.end(1).set()
        await h.ended("completed", 1)
        if policy == "queue":
            await h.ended("completed", 2)
        await h.settled()
        assert h.doing.began == ([1, 1] if policy == "skip" else [1, 1, 2])
        assert h.doing.met == []


# queue


async def test_queued_they_run_one_after_another_in_their_order(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "queue") as h:
        await h.fire(1)
        await h.began(1)
        await h.fire(2, 3, 4, 5)
        for number in (2, 3, 4, 5):
            await h.waits(number)
        assert (await h.lane()).queue == [h.runs[number].run for number in (2, 3, 4, 5)]
        assert await h.client.runs.get(h.runs[3].run)
        for number in (1, 2, 3, 4, 5):
            await h.began(*range(1, number + 1))
            h.doing.end(number).set()
        await h.ended("completed", 1, 2, 3, 4, 5)
        await h.settled()
        assert h.doing.met == []
        assert await h.left_out() == []
        assert (await h.lane()).queue == []


async def test_of_all_that_come_at_once_each_runs_in_its_order(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "queue") as h:
        for number in range(1, 31):
            h.doing.end(number).set()
        await h.fire(*range(1, 31))
        await h.ended("completed", *range(1, 31))
        assert h.doing.began == list(range(1, 31))
        assert h.doing.met == []


async def test_one_that_is_cancelled_while_it_waits_holds_up_nobody(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "queue") as h:
        await h.fire(1)
        await h.began(1)
        await h.fire(2, 3, 4)
        for number in (2, 3, 4):
            await h.waits(number)
        assert await h.client.runs.cancel(h.runs[2].run) == "cancelled"
        assert await h.client.runs.cancel(h.runs[3].run) == "cancelled"
        h.doing.end(1).set()
        await h.began(1, 4)
        # Cancelled, the one that has the lane makes way too.
        await h.fire(5)
        await h.waits(5)
        assert await h.client.runs.cancel(h.runs[4].run) == "cancelled"
        await h.began(1, 4, 5)
        h.doing.end(5).set()
        await h.ended("completed", 1, 5)
        assert h.doing.met == []


async def test_too_many_that_wait_are_left_out(shared_nats: NatsServer) -> None:
    with mock.patch("jetcron.overlap.MAX_QUEUE", 2):
        async with house(shared_nats, "queue") as h:
            await h.fire(1)
            await h.began(1)
            await h.fire(2, 3)
            await h.waits(2)
            await h.waits(3)
            await h.fire(4)
            await h.settled_but(1)
            assert await h.left_out() == [4]
            for number in (1, 2, 3):
                h.doing.end(number).set()
            await h.ended("completed", 1, 2, 3)


async def test_one_whose_executor_died_before_it_went_in_is_waited_for(shared_nats: NatsServer) -> None:
    """Its message stands, with nobody at it: what was due after it must not overtake it."""
    async with house(shared_nats, "queue", executors=0) as h:
        await h.fire(1)
        await take(h.stack.bus, h.stack.names.work, "run==lane==f")
        await h.fire(2, 3)
        app = App("lane")
        waits_to_be_told(overlap="queue")(app, h.doing)
        for number in (1, 2, 3):
            h.doing.end(number).set()
        await h.stack.execute(app)
        await h.stack.execute(app)
        await h.ended("completed", 1, 2, 3)
        assert h.doing.began == [1, 2, 3]


async def test_pausing_the_function_stops_the_queue_where_it_is(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "queue") as h:
        await h.fire(1)
        await h.began(1)
        await h.fire(2, 3)
        await h.waits(2)
        await h.waits(3)
        await h.client.functions.pause(F)
        h.doing.end(1).set()
        await h.ended("completed", 1)
        ready = h.stack.names.run_ready(F)

        async def released() -> list[str]:
            return [run for run in await ready_runs() if run == h.runs[2].run]

        async def ready_runs() -> list[str]:
            return [decode(Run, one.payload).run for one in await h.stack.stored(h.stack.names.work, ready)]

        await until(released, what="2 is ready")
        assert h.doing.began == [1]
        h.doing.end(2).set()
        h.doing.end(3).set()
        await h.client.functions.unpause(F)
        await h.ended("completed", 2, 3)
        assert h.doing.began == [1, 2, 3]


async def test_one_that_waits_comes_by_itself_now_and_then(shared_nats: NatsServer) -> None:
    """Should whoever ended the run before it have died with nobody to do what follows."""
    with mock.patch("jetcron.executor.entrance.SOONEST_LOOK_MS", 300):
        async with house(shared_nats, "queue") as h:
            h.base = h.stack.clock.now()
            await h.fire(1)
            await h.began(1)
            await h.fire(2)
            await h.stack.journal.wait("waiting", 3, run=h.runs[2].run)
            with mock.patch("jetcron.lanes.Lanes.pass_on"):
                h.doing.end(1).set()
                await h.ended("completed", 1)
                await h.began(1, 2)
            h.doing.end(2).set()
            await h.ended("completed", 2)
            assert (await h.lane()).queue == []


async def test_one_that_waits_too_long_to_begin_is_cancelled(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "queue", waits_to_be_told(overlap="queue", start_timeout=3.0)) as h:
        h.base = h.stack.clock.now()
        await h.fire(1)
        await h.began(1)
        await h.fire(2)
        await h.waits(2)
        (entry,) = await h.ended("cancelled", 2)
        assert entry.entry.error is not None
        assert entry.entry.error.type == "StartTimeout"
        h.doing.end(1).set()
        await h.ended("completed", 1)


async def test_a_failed_run_begun_again_waits_for_its_turn(shared_nats: NatsServer) -> None:
    failing = {1}

    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, overlap="skip", retries=0)
        async def f(ctx: Context) -> None:
            with doing.one(ctx) as number:
                if number in failing:
                    raise ValueError("not now")
                await doing.end(number).wait()

    async with house(shared_nats, "skip", declare) as h:
        await h.fire(1)
        await h.ended("failed", 1)
        await h.settled()
        failing.clear()
        h.base = h.stack.clock.now() - 2
        await h.fire(2)
        await h.began(1, 2)
        await h.client.runs.retry(h.runs[1].run)
        await h.stack.journal.wait("waiting", run=h.runs[1].run)
        h.doing.end(1).set()
        assert h.doing.began == [1, 2]
        h.doing.end(2).set()
        await h.ended("completed", 1, 2)
        assert h.doing.began == [1, 2, 1]
        assert h.doing.met == []
        assert await h.left_out() == []


async def test_a_run_replayed_from_its_dead_letter_is_no_occurrence(shared_nats: NatsServer) -> None:
    failing = {1}

    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, overlap="skip", retries=0)
        async def f(ctx: Context) -> None:
            with doing.one(ctx) as number:
                if number in failing:
                    raise ValueError("not now")
                await doing.end(number).wait()

    async with house(shared_nats, "skip", declare) as h:
        await h.fire(1)
        await h.ended("failed", 1)
        await h.settled()
        failing.clear()
        h.base = h.stack.clock.now() - 2
        await h.fire(2)
        await h.began(1, 2)
        (dead,) = await h.client.dead.list()
        await h.client.dead.replay(dead.sequence)
        await h.began(1, 2, 1)
        assert h.doing.met == [(2, 1)]
        assert await h.left_out() == []
        h.doing.end(1).set()
        h.doing.end(2).set()
        await h.ended("completed", 2)
        await h.settled()


# cancel_running


async def test_cancel_running_ends_the_one_before(shared_nats: NatsServer) -> None:
    unwound = []

    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, overlap="cancel_running")
        async def f(ctx: Context) -> None:
            with doing.one(ctx) as number:
                try:
                    await doing.end(number).wait()
                finally:
                    await asyncio.sleep(0.3)  # it takes its time to clean up
                    unwound.append(number)

    async with house(shared_nats, "cancel_running", declare) as h:
        await h.fire(1)
        await h.began(1)
        await h.fire(3)
        await h.began(1, 3)
        assert unwound == [1]
        (entry,) = await h.ended("cancelled", 1)
        assert entry.entry.error is not None
        assert entry.entry.error.type == "Overlap"
        # Published again, as a crash of the server may, one that ran is not told to be left out.
        await h.fire(1, again=True)
        await h.settled_but(1)
        assert await h.left_out() == []
        # An older one that comes late has been superseded, also when the newer one has ended.
        await h.fire(2)
        await h.settled_but(1)
        assert await h.left_out() == [2]
        h.doing.end(3).set()
        await h.ended("completed", 3)
        await h.fire(0)
        await h.settled()
        assert await h.left_out() == [0, 2]
        assert h.doing.met == []


async def test_cancel_running_ends_one_that_waits(shared_nats: NatsServer) -> None:
    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, overlap="cancel_running")
        async def f(ctx: Context) -> None:
            with doing.one(ctx) as number:
                await ctx.step.sleep("long", 3600 if number == 1 else 0)

    async with house(shared_nats, "cancel_running", declare) as h:
        await h.fire(1)
        await h.stack.journal.wait("waiting", run=h.runs[1].run)
        await h.fire(2)
        await h.ended("completed", 2)
        await h.ended("cancelled", 1)
        await h.settled()
        assert await h.stack.stored(h.stack.names.work, h.stack.names.run_later_all) == []


# All of them.


@pytest.mark.parametrize("policy", ["skip", "queue", "cancel_running"])
async def test_a_run_whose_process_died_still_goes_on(policy: Overlap, shared_nats: NatsServer) -> None:
    async with house(shared_nats, policy, executors=1) as h:
        await h.fire(1)
        await h.began(1)
        app = App("lane")
        waits_to_be_told(overlap=policy)(app, h.doing)
        await h.executors[0].kill()
        assert h.doing.now == []
        await h.stack.execute(app)
        await h.fire(2)
        match policy:
            case "skip":
                await h.began(1, 1)
                assert await h.left_out() == [2]
                h.doing.end(1).set()
                await h.ended("completed", 1)
            case "queue":
                await h.stack.journal.wait("waiting", run=h.runs[2].run)
                await h.began(1, 1)
                h.doing.end(1).set(), h.doing.end(2).set()
                await h.ended("completed", 1, 2)
                assert h.doing.began == [1, 1, 2]
            case _:
                h.doing.end(2).set()
                await h.ended("cancelled", 1)
                await h.ended("completed", 2)
        assert h.doing.met == []


@pytest.mark.parametrize("policy", ["skip", "queue", "cancel_running"])
async def test_runs_nobodys_clock_made_go_by_no_lane(policy: Overlap, shared_nats: NatsServer) -> None:
    named = []

    def declare(app: App, doing: Doing) -> None:
        @app.function(cron=NEVER, overlap=policy)
        async def f(ctx: Context) -> None:
            if ctx.scheduled_at is None:
                named.append(ctx.run_id)
                return
            with doing.one(ctx) as number:
                await doing.end(number).wait()

    async with house(shared_nats, policy, declare) as h:
        await h.fire(1)
        await h.began(1)
        run = await h.client.run(F)
        assert await run.result(10) is None
        assert named == [run.id]
        assert h.doing.now == [1]
        h.doing.end(1).set()
        await h.ended("completed", 1)


async def test_all_cron_triggers_of_a_function_share_a_lane(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "skip") as h:
        await h.fire(1)
        await h.began(1)
        other = h.occurrence(2, schedule=f"{F}:2")
        await h.stack.bus.store(new_run(h.stack.names, other, now=h.stack.clock.now(), lead=500))
        await h.settled_but(1)
        assert [(gap.schedule, gap.start) for gap in await h.gaps()] == [(f"{F}:2", h.base + 2)]
        h.doing.end(1).set()
        await h.ended("completed", 1)


async def test_each_schedule_created_as_data_has_a_lane_of_its_own(shared_nats: NatsServer) -> None:
    async with house(shared_nats, "allow", duplicate_window=1) as h:
        await h.stack.start("cron-tick")
        now = h.stack.clock.now()
        for id in ("team-1", "team-2"):
            await h.client.schedules.create(id, F, every=1, overlap="skip")
        h.doing.at.update({(now // 1000 + n) * 1000: n for n in range(60)})

        async def both_left_some_out() -> bool:
            return {gap.schedule for gap in await h.gaps()} == {"team-1", "team-2"}

        await until(both_left_some_out, what="each left some out")
        assert len(h.doing.began) == 2, "one of each runs, beside the other"
        gap = next(gap for gap in await h.gaps() if gap.schedule == "team-1")
        # Wanted all the same, once the server has forgotten the message's id: a backfill waits for nobody.
        await until(lambda: h.stack.clock.now() > gap.start + 2_500, what="its id is forgotten")
        (handle,) = await h.client.schedules.backfill("team-1", from_ms(gap.start), from_ms(gap.to))
        await until(lambda: len(h.doing.began) == 3, what="it runs beside the others")
        await h.client.schedules.pause("team-1", "team-2")
        for number in range(60):
            h.doing.end(number).set()
        await h.stack.journal.wait("completed", run=handle.id)


async def test_what_goes_on_at_its_time_decides_not_what_does_when_it_is_released(
    shared_nats: NatsServer,
) -> None:
    async with house(shared_nats, "skip") as h:
        await h.fire(1)
        await h.began(1)
        now = h.stack.clock.now()
        h.base = now + 2_000
        # Delivered at once, two seconds early.
        await h.stack.bus.store(new_run(h.stack.names, h.occurrence(2), now=now, lead=3_000))
        h.doing.end(1).set()
        h.doing.end(2).set()
        await h.ended("completed", 1, 2)
        assert await h.left_out() == []
        (run,) = h.stack.journal.of("completed", run=h.runs[2].run)
        assert run.entry.started is not None
        assert run.entry.started >= h.base + 2
