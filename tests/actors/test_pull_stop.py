"""A consumer that is stopped under traffic hands back what was under way: nothing waits for `ack_wait`."""

import asyncio
import contextlib
import time

from jetcron.bus import Bus
from jetcron.settings import Settings
from tests.support.nats_server import NatsServer

STOPS = 150


async def test_stopping_under_traffic_delays_nothing(shared_nats: NatsServer, namespace: str) -> None:
    settings = Settings.load(nats_url=shared_nats.url, namespace=namespace, storage="memory", ack_wait=60)
    names = settings.names
    got: set[int] = set()
    sent = 0
    async with Bus(settings) as bus, Bus(settings) as publisher:
        await bus.apply_topology()

        async def publish() -> None:
            nonlocal sent
            while True:
                await publisher.publish(names.event("x"), b"{}")
                sent += 1

        publishing = asyncio.create_task(publish())
        for _ in range(STOPS):
            async with bus.consume(names.events, names.event_router) as consumer:
                fetching = asyncio.create_task(consumer.fetch(500, wait=5))
                await asyncio.sleep(0.003)
                fetching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    for delivery in await fetching:
                        got.add(delivery.sequence)
                        await delivery.ack()
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        deadline = time.monotonic() + 15
        async with bus.consume(names.events, names.event_router) as consumer:
            while len(got) < sent and time.monotonic() < deadline:
                for delivery in await consumer.fetch(500, wait=0.2):
                    got.add(delivery.sequence)
                    await delivery.ack()
    assert sent > STOPS
    assert sent <= len(got) <= sent + 1  # the last publish may have been stored and not answered
