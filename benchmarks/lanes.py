"""Schedules whose occurrences must not overlap: many lanes of one function at one instant, and one lane with many runs.

At one instant: how late each of `n` schedules starts, and the executor's CPU until all have; each run then takes
4 s, so that all of them stand side by side. One after another: how many runs of one schedule, which do nothing, a
queue moves in a second.
"""

import asyncio
import time

import uvloop

from benchmarks.apps import app
from benchmarks.lateness import arm_herd, flush, read
from benchmarks.stack import Actor, Stack, percentile, stack
from jetcron import dispatch
from jetcron.cycle import make_run
from jetcron.registration import register
from jetcron_protocol.messages import Overlap, Schedule

COUNTS = (100, 300, 900)
POLICIES: tuple[Overlap, ...] = ("skip", "queue")
QUEUED = 500
PATIENCE = 120.0


def ended(executors: list[Actor], function: str) -> float:
    """Runs of this function that have completed."""
    return sum(
        executor.metric("jetcron_runs_ended_total", function=function, outcome="completed")
        for executor in executors
    )


async def at_one_instant(running: Stack, executor: Actor, notes: str, policy: Overlap, count: int) -> None:
    known = set(read(notes))
    before = ended([executor], "bench.hold")
    at = (int(time.time()) + 6) * 1000
    await arm_herd(running, count, at, f"{policy}-{count}", function="bench.hold", overlap=policy)
    await asyncio.sleep(at / 1000 - 0.5 - time.time())
    cpu = executor.cpu()
    deadline = time.monotonic() + PATIENCE
    while ended([executor], "bench.hold") < before + count and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    spent = executor.cpu() - cpu
    await flush(running)
    lates = [lates[0] for run, lates in read(notes).items() if run not in known]
    print(
        f"{count} {policy} schedules of one function at one instant: p50 {percentile(lates, 0.5):.0f} ms, "
        f"p99 {percentile(lates, 0.99):.0f} ms, max {max(lates):.0f} ms; executor {spent:.1f} s of CPU to their ends; "
        f"missing {count - len(lates)}"
    )


async def one_after_another(running: Stack, executors: list[Actor]) -> None:
    names, bus = running.bus.names, running.bus
    schedule = Schedule(
        id=f"queue-{len(executors)}", function="bench.noop", origin="data", every=1000, overlap="queue"
    )
    now = bus.clock.now()
    before = ended(executors, "bench.noop")
    began = time.monotonic()
    for number in range(QUEUED):
        run = make_run(schedule, (now // 1000 - QUEUED + number) * 1000)
        await bus.store(dispatch.new_run(names, run, now=now, lead=running.settings.lead_ms))
    while (done := ended(executors, "bench.noop") - before) < QUEUED and time.monotonic() < began + PATIENCE:
        await asyncio.sleep(0.2)
    took = time.monotonic() - began
    print(
        f"one queue, {len(executors)} executors: {done / took:.0f} runs/s that do nothing ({done:.0f} in {took:.1f} s)"
    )


async def main(notes: str) -> None:
    async with stack() as running:
        await running.start(("cron-sync",), ("cron-tick",))
        await register(running.bus, app, clock=running.bus.clock, wait=30)
        command = ("executor", "benchmarks.apps:app")
        executors = await running.start(command, environment={"BENCH_NOTES": notes})
        for policy in POLICIES:
            for count in COUNTS:
                await at_one_instant(running, executors[0], notes, policy, count)
        await one_after_another(running, executors)
        executors += await running.start(command)
        await one_after_another(running, executors)


def run(notes: str) -> None:
    uvloop.run(main(notes))
