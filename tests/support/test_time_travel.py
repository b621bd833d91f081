"""The stand-in for the server's clock does what the server does."""

from datetime import timedelta

from jetcron import App, Context
from jetcron.bus import SCHEDULER
from jetcron.client import Client
from jetcron.dispatch import next_turn
from jetcron_protocol.messages import Run
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until
from tests.support.time_travel import TRAVELLING, TimeTravel, TravelClock

HOUR = timedelta(hours=1)


async def test_a_release_is_what_the_server_s_would_be(shared_nats: NatsServer) -> None:
    clock = TravelClock()
    async with Stack(shared_nats) as stack:
        for run, after in (("BY0THE0SERVER", 0), ("BY0US", 3_600_000)):
            message = Run(run=run, function="a.f", trigger="manual", fire_at=clock.now() + after)
            await stack.bus.store(next_turn(stack.names, message, turn=1, fire_at=message.fire_at, lead=500))

        async def released(count: int) -> bool:
            return len(await stack.stored(stack.names.work, stack.names.run_ready_all)) == count

        await until(lambda: released(1), what="released by the server")
        await TimeTravel(stack, clock).forward(0.9 * HOUR)
        assert not await released(2), "it came early"
        await TimeTravel(stack, clock).forward(0.2 * HOUR)
        ready = await stack.stored(stack.names.work, stack.names.run_ready_all)
        theirs, ours = [await stack.bus.at_sequence(stack.names.work, one.sequence) for one in ready]
        assert theirs is not None
        assert ours is not None
        by_server, by_us = theirs.headers, ours.headers
        assert by_server.pop(SCHEDULER) == stack.names.run_later("a.f", "BY0THE0SERVER", 1)
        assert by_us.pop(SCHEDULER) == stack.names.run_later("a.f", "BY0US", 1)
        assert by_us == by_server
        assert ours.subject == theirs.subject
        assert await stack.bus.subjects(stack.names.work, stack.names.run_later_all) == []


async def test_each_turn_comes_at_its_own_time(shared_nats: NatsServer) -> None:
    app, clock = App("clocks"), TravelClock()

    @app.function()
    async def hourly(ctx: Context) -> None:
        for hour in range(1, 6):
            await ctx.step.sleep(f"{hour}", HOUR)

    async with Stack(shared_nats, **TRAVELLING) as stack, Client(stack.settings, clock=clock) as client:
        await stack.start("cron-sync")
        await stack.register(app)
        await stack.execute(app, clock=clock)
        began = clock.now()
        handle = await client.run("clocks.hourly")
        travel = TimeTravel(stack, clock)

        async def slept() -> list[tuple[str, int]]:
            steps = (await handle.history()).steps.values()
            return [(done.id, (done.at - began) // 3_600_000) for done in steps]

        await travel.forward(2.5 * HOUR)
        assert await slept() == [("1", 1), ("2", 2)]
        await travel.forward(24 * HOUR)
        await handle.result(PATIENCE)
        assert await slept() == [(f"{hour}", hour) for hour in range(1, 6)]
        assert clock.now() - began >= 26.5 * 3_600_000
