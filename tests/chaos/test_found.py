"""What dying actors brought to light, each in its smallest form."""

from jetcron.bus import Outgoing
from jetcron_protocol.codec import EVENT_HEADER, encode
from jetcron_protocol.messages import Event, Schedule, Tick
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack, take

HOUR = 3_600_000


async def test_a_tick_released_twice_into_one_batch_holds_one_next_tick(shared_nats: NatsServer) -> None:
    """Refused as a whole (10111), every cron-tick ended, and ended again at the redelivery: nothing fired any more."""
    async with Stack(shared_nats) as stack:
        names = stack.names
        now = stack.clock.now()
        at = now - now % HOUR + HOUR
        schedule = Schedule(id="app.one", function="app.one", every=HOUR)
        revision = (await stack.bus.publish(names.schedule_key("app.one"), encode(schedule))).sequence
        tick = Outgoing(
            names.tick_due("app.one", revision, at),
            encode(Tick(schedule="app.one", revision=revision, at=at)),
        )
        await stack.bus.store(tick)
        await stack.bus.store(tick)
        twins = await take(stack.bus, names.work, names.cron_tick, 2)
        await stack.make("cron-tick", stack.bus).handle(twins)
        assert await stack.bus.subjects(names.work, names.ticks_of("app.one", state="held")) == [
            names.tick_held("app.one", revision, at + HOUR)
        ]
        await stack.settled(names.work, names.cron_tick)


async def test_a_future_event_stored_twice_is_held_once(shared_nats: NatsServer) -> None:
    """As above: two copies in one batch ended every event-router, and anyone may publish an event twice."""
    async with Stack(shared_nats) as stack:
        names = stack.names
        now = stack.clock.now()
        event = encode(Event(id="x", name="order", ts=now, at=now + HOUR))
        for _ in range(2):
            await stack.bus.publish(names.event("order"), event, {EVENT_HEADER: "1"})
        twins = await take(stack.bus, names.events, names.event_router, 2)
        await stack.make("event-router", stack.bus).handle(twins)
        assert await stack.bus.subjects(names.later, names.later_held_all) == [names.later_held("order", "x")]
        await stack.settled(names.events, names.event_router)
