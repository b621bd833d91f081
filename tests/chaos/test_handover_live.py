"""A thousand schedules change hands while both schedulers run: each occurrence is executed once, by one of the two.

What was due is reckoned here, by the periods; what the old scheduler took and what Jetcron executed is noted as it
happens. A copy of cron-tick is killed in the middle.
"""

import asyncio
import heapq
from collections import Counter

from jetcron import App, Client, Context
from jetcron.clock import from_ms
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Gap
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack, until

SCHEDULES = 1_000
PERIODS = {f"job-{n}": 1_000 * (1 + n % 60) for n in range(SCHEDULES)}
"""From every second to every minute, in ms."""
PHASE = 5.0
"""Seconds between two changes of hands."""
Occurrence = tuple[str, int]


class OldScheduler:
    """Fires each schedule at its times, and executes what it is told to."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self._stack = stack
        self._client = client
        self.since = stack.clock.now()
        """It fires at what is due later than this."""
        self.executed: list[Occurrence] = []
        self.firing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled; what it fires meanwhile is waited for by `done`."""
        due = [((self.since // period + 1) * period, id) for id, period in PERIODS.items()]
        heapq.heapify(due)
        while True:
            at, id = due[0]
            await self._stack.clock.sleep((at - self._stack.clock.now()) / 1_000)
            if self._stack.clock.now() >= at:
                heapq.heapreplace(due, (at + PERIODS[id], id))
                task = asyncio.create_task(self._fire(id, at))
                self.firing.add(task)

    async def _fire(self, id: str, at: int) -> None:
        fired = await self._client.schedules.fired(id, from_ms(at), within=0)
        if fired.here:
            self.executed.append((id, at))

    async def done(self) -> None:
        await asyncio.gather(*self.firing)


async def test_a_thousand_schedules_change_hands_live(nats: NatsServer) -> None:
    executed: list[Occurrence] = []
    app = App("jobs")

    @app.function()
    async def work(ctx: Context, id: str) -> None:
        assert ctx.scheduled_at is not None
        executed.append((id, round(ctx.scheduled_at.timestamp() * 1_000)))

    # All in one process, a busy one: an executor that stalled for as long as its lease is taken for dead, its runs
    # begin again.
    settings = {"ack_wait": 6.0, "executor_ttl": 6.0}
    async with Stack(nats, **settings) as stack, Client(stack.settings) as client:
        await stack.start("cron-sync", "health-checker")
        first, _second = await stack.start("cron-tick", copies=2)
        await stack.register(app)
        await stack.execute(app)
        await client.schedules.create_many(
            {"id": id, "function": "jobs.work", "every": period / 1_000, "payload": id, "executes": "other"}
            for id, period in PERIODS.items()
        )
        old = OldScheduler(stack, client)
        firing = asyncio.create_task(old.run())
        changed = []
        for percent in (5, 50, 100):
            await stack.clock.sleep(PHASE)
            changed.append(len(await client.schedules.hand_over(app="jobs", percent=percent)))
            if percent == 50:
                await first.kill()
        await stack.clock.sleep(PHASE)
        assert not firing.done(), firing.result()
        firing.cancel()
        until_ = stack.clock.now() - 1
        await old.done()
        due = {
            (id, at)
            for id, period in PERIODS.items()
            for at in range(old.since // period * period + period, until_ + 1, period)
        }
        await until(lambda: due <= {*old.executed, *executed}, what="every occurrence executed")
        await client.schedules.pause(*PERIODS)
        for durable in (stack.names.cron_tick, stack.names.run_consumer("jobs.work")):
            await stack.settled(stack.names.work, durable)
        gaps = [
            decode(Gap, message.payload)
            for message in await stack.stored(stack.names.journal, stack.names.journal_of("jobs.work"))
            if ".gap-" in message.subject
        ]

    counted = Counter([*old.executed, *executed])
    assert [one for one, count in counted.items() if count > 1] == [], "doubled"
    assert sum(changed) == SCHEDULES
    assert min(changed) > 0
    left = {(gap.schedule, gap.start) for gap in gaps}
    assert {gap.reason for gap in gaps} == {"handed_over"}
    assert due & left == due & {*old.executed}, "the ledger tells what was left to the other"
    assert len(due & {*executed}) > 200, "and much was Jetcron's"
