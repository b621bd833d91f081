"""How many no-op runs a second one executor process completes, beside a bare nats-py loop of the same writes.

End to end: events are stored, routed, claimed in the journal, executed, recorded and acknowledged. The bare loop
reads the same kind of messages and does the executor's reads and writes with nothing around them.
"""

import asyncio
import time
from secrets import token_hex

import nats
import uvloop

from benchmarks.stack import Stack, percentile, stack
from jetcron.client import Client
from jetcron.events import Event

EVENTS = 30_000
PRELOADED = 30_000


async def end_to_end(running: Stack, events: int) -> tuple[float, dict[str, float]]:
    """Runs a second from the first event's publishing to the last run's record, and CPU seconds by process."""
    executor, router = running.actors[-1], running.actors[-2]
    done = executor.metric("jetcron_runs_ended_total", function="bench.noop", outcome="completed")
    before = {"executor": executor.cpu(), "router": router.cpu()}
    async with Client(running.settings) as client:
        began = time.perf_counter()
        for start in range(0, events, 1000):
            await client.send([Event("bench.noop") for _ in range(min(1000, events - start))])
        published = time.perf_counter() - began
        while (
            executor.metric("jetcron_runs_ended_total", function="bench.noop", outcome="completed") - done
            < events
        ):
            await asyncio.sleep(0.05)
        took = time.perf_counter() - began
    cpu = {"executor": executor.cpu() - before["executor"], "router": router.cpu() - before["router"]}
    return events / took, cpu | {"publishing": published}


async def bare_loop(running: Stack, messages: int) -> float:
    """Messages a second: pull 500, claim (fenced append), finish (roll-up with a TTL), acknowledge."""
    url = running.server.url
    client = await nats.connect(url)
    js = client.jetstream()
    await js.add_stream(name="BARE", subjects=["bare.run"], retention="workqueue", allow_atomic=True)
    await client.request(
        "$JS.API.STREAM.CREATE.BAREJ",
        b'{"name":"BAREJ","subjects":["bare.journal.>"],"allow_msg_ttl":true,"allow_rollup_hdrs":true}',
    )
    body = b"x" * 150
    for _ in range(0, messages, 1000):
        await asyncio.gather(*(js.publish("bare.run", body) for _ in range(1000)))
    pull = await js.pull_subscribe("bare.run", durable="bare")

    async def one(msg: nats.aio.msg.Msg) -> None:
        subject = f"bare.journal.{token_hex(8)}"
        claim = await js.publish(subject, body, headers={"Nats-Expected-Last-Subject-Sequence": "0"})
        await js.publish(
            subject,
            body,
            headers={
                "Nats-Expected-Last-Subject-Sequence": str(claim.seq),
                "Nats-Rollup": "sub",
                "Nats-TTL": "86400s",
            },
        )
        await msg.ack()

    began = time.perf_counter()
    done = 0
    while done < messages:
        found = await pull.fetch(500, timeout=5)
        await asyncio.gather(*(one(msg) for msg in found))
        done += len(found)
    took = time.perf_counter() - began
    await client.close()
    return messages / took


async def latency(running: Stack, notes: str, events: int = 500) -> list[float]:
    """Milliseconds from publishing to the start of user code, at 100 events a second."""
    async with Client(running.settings) as client:
        for _ in range(events):
            await client.send(Event("bench.stamp", {"sent": time.time()}))
            await asyncio.sleep(0.01)
    while True:
        with open(notes) as lines:
            found = [float(line.split()[1]) for line in lines if line.startswith("latency")]
        if len(found) >= events:
            return found
        await asyncio.sleep(0.1)


async def main(notes: str) -> None:
    async with stack() as running:
        await running.start(("cron-sync",))
        await running.start(("event-router",))
        await running.start(("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes})
        await end_to_end(running, 2000)
        low = await latency(running, notes)
        print(
            f"publish to start, low load: p50 {percentile(low, 0.5):.1f} ms, p99 {percentile(low, 0.99):.1f} ms"
        )
        ours, bare = [], []
        for _ in range(3):
            speed, cpu = await end_to_end(running, EVENTS)
            ours.append(speed)
            shown = ", ".join(f"{name} {value:.1f} s" for name, value in cpu.items())
            print(f"end to end: {speed:,.0f} runs/s ({EVENTS:,} events; {shown})")
    for _ in range(3):
        async with stack() as running:
            bare.append(await bare_loop(running, PRELOADED))
            print(f"bare nats-py loop, same reads and writes: {bare[-1]:,.0f}/s")
    ours_, bare_ = percentile(ours, 0.5), percentile(bare, 0.5)
    print(f"median {ours_:,.0f} runs/s, bare {bare_:,.0f}/s: ratio {ours_ / bare_:.2f}")


def run(notes: str) -> None:
    uvloop.run(main(notes))
