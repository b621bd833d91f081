"""What durable steps cost: a run of ten, steps a second in one executor, resuming a thousand, and many that wait.

The bare loop appends to one subject a run, fenced and one after the other as a journal is written, with nothing
around it: what the server and the client library allow.
"""

import asyncio
import time
from secrets import token_hex

import nats

from benchmarks.stack import Actor, Stack, percentile, resident, stack
from jetcron.client import Client
from jetcron.events import Event

ALONE = 200
TOGETHER = 600
STEPS = 10
RESUMED = 20
SAMPLES = 20
MANY = 100_000
FEW = 10


async def alone(client: Client) -> list[float]:
    """Milliseconds from start to end of the user's code, for runs of ten no-op steps, one at a time."""
    took = []
    for _ in range(ALONE):
        run = await client.run("bench.steps", {"n": STEPS})
        await run.result(30)
        (attempt,) = (await run.history()).attempts
        assert attempt.started is not None
        assert attempt.ended is not None
        took.append(float(attempt.ended - attempt.started))
    return took


async def together(client: Client, executor: Actor) -> tuple[float, float]:
    """Steps a second of many such runs, from the first event's publishing to the last end; CPU seconds a step."""

    def ended() -> float:
        return executor.metric("jetcron_runs_ended_total", function="bench.steps", outcome="completed")

    before, cpu = ended(), executor.cpu()
    began = time.perf_counter()
    await client.send([Event("bench.steps", {"n": STEPS}) for _ in range(TOGETHER)])
    while ended() - before < TOGETHER:
        await asyncio.sleep(0.02)
    took = time.perf_counter() - began
    steps = TOGETHER * STEPS
    return steps / took, (executor.cpu() - cpu) / steps


async def bare(url: str) -> float:
    """Appends a second, as many journals at one time as runs above: claim, ten steps, end."""
    client = await nats.connect(url)
    js = client.jetstream()
    stream = f"BARE{token_hex(4)}"
    await client.request(
        f"$JS.API.STREAM.CREATE.{stream}",
        f'{{"name":"{stream}","subjects":["{stream}.>"],"allow_msg_ttl":true,"allow_rollup_hdrs":true}}'.encode(),
    )
    body = b"x" * 150

    async def one() -> None:
        subject, last = f"{stream}.{token_hex(8)}", 0
        for number in range(STEPS + 2):
            headers = {"Nats-Expected-Last-Subject-Sequence": str(last)}
            if number == STEPS + 1:
                headers |= {"Nats-Rollup": "sub", "Nats-TTL": "86400s"}
            last = (await js.publish(subject, body, headers=headers)).seq

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(TOGETHER)))
    took = time.perf_counter() - began
    await client.close()
    return TOGETHER * STEPS / took


async def resume(client: Client, steps: int) -> list[float]:
    """Milliseconds from the publishing of the event a run waits for to its end, `steps` steps being done."""
    took = []
    for number in range(RESUMED):
        id = f"resume-{steps}-{number}"
        run = await client.run("bench.resumed", {"n": steps, "id": id})
        while await run.status() != "waiting":
            await asyncio.sleep(0.05)
        sent = time.time()
        await client.send(Event("bench.go", {"id": id}))
        await run.result(60)
        ended = (await run.history()).attempts[-1].ended
        assert ended is not None
        took.append(ended - sent * 1000)
    return took


async def waiting(running: Stack, client: Client, executor: Actor, count: int) -> tuple[list[float], float]:
    """Milliseconds from an event to the end of the run that waits for it, while `count` runs wait for its name;
    and how many runs a second came to wait."""

    def waiting_now() -> float:
        return executor.metric("jetcron_runs_ended_total", function="bench.waiter", outcome="waiting")

    before = waiting_now()
    began = time.perf_counter()
    for start in range(0, count, 1000):
        ids = range(start, min(start + 1000, count))
        await client.send([Event("bench.wait", {"id": f"{count}-{n}"}) for n in ids])
    while waiting_now() - before < count:
        await asyncio.sleep(0.2)
    speed = count / (time.perf_counter() - began)
    runs = [await client.run("bench.waiter", {"id": f"{count}-sample-{n}"}) for n in range(SAMPLES)]
    took = []
    for number, run in enumerate(runs):
        while await run.status() != "waiting":
            await asyncio.sleep(0.05)
        sent = time.time()
        await client.send(Event("bench.go", {"id": f"{count}-sample-{number}"}))
        await run.result(30)
        ended = (await run.history()).attempts[-1].ended
        assert ended is not None
        took.append(ended - sent * 1000)
    return took, speed


async def measure_steps(notes: str) -> None:
    async with stack() as running:
        await running.start(("cron-sync",))
        await running.start(("event-router",))
        (executor,) = await running.start(
            ("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes}
        )
        async with Client(running.settings) as client:
            await together(client, executor)
            took = await alone(client)
            print(
                f"ten no-op steps, one run at a time: p50 {percentile(took, 0.5):.1f} ms, "
                f"p99 {percentile(took, 0.99):.1f} ms"
            )
            ours, bare_ = [], []
            for _ in range(3):
                speed, cpu = await together(client, executor)
                ours.append(speed)
                bare_.append(await bare(running.server.url))
                print(
                    f"{TOGETHER} runs of ten steps at one time: {speed:,.0f} steps/s ({cpu * 1e6:.0f} us of CPU each "
                    f"in the executor); bare appends: {bare_[-1]:,.0f}/s"
                )
            ratio = percentile(ours, 0.5) / percentile(bare_, 0.5)
            print(f"median {percentile(ours, 0.5):,.0f} steps/s: ratio {ratio:.2f}")
            few, many = await resume(client, 10), await resume(client, 999)
            print(
                f"event to end of a resumed run: p50 {percentile(few, 0.5):.0f} ms with 10 steps done, "
                f"{percentile(many, 0.5):.0f} ms with 999"
            )


async def measure_waits(notes: str) -> None:
    for count in (FEW, MANY):
        async with stack() as running:
            await running.start(("cron-sync",))
            (router,) = await running.start(("event-router",))
            (executor,) = await running.start(
                ("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes}
            )
            async with Client(running.settings) as client:
                took, speed = await waiting(running, client, executor, count)
            memory = f"executor {executor.memory():.0f}, router {router.memory():.0f}"
            print(
                f"{count:,} runs wait for one event name ({speed:,.0f}/s came to wait): event to end of the run it "
                f"is for p50 {percentile(took, 0.5):.1f} ms, p90 {percentile(took, 0.9):.1f} ms; memory in MB: "
                f"{memory}, server {resident(running.server.pid):.0f}"
            )
