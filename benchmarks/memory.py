"""Memory of every actor, with 100,000 schedules held and 100,000 runs finished: it must grow with neither.

Resident memory is read before, at steps on the way, and at the end, of each actor's own process.
"""

import asyncio
import time

import uvloop

from benchmarks.lateness import arm_herd
from benchmarks.stack import Actor, Stack, stack
from benchmarks.throughput import end_to_end

SCHEDULES = 100_000
RUNS = 100_000
STEPS = 5


def show(label: str, actors: list[Actor]) -> None:
    figures = ", ".join(f"{actor.command[0]} {actor.memory():.0f}" for actor in actors)
    print(f"{label:>28}: {figures} MB")


async def sweeps(running: Stack, health: Actor) -> None:
    """Wait until every group has been swept once more."""
    before = health.metric("jetcron_sweeps_total")
    deadline = time.monotonic() + 180
    while health.metric("jetcron_sweeps_total") < before + 17 and time.monotonic() < deadline:
        await asyncio.sleep(1)


async def main(notes: str) -> None:
    async with stack() as running:
        await running.start(("cron-sync",), ("cron-tick",), ("health-checker",))
        health = running.actors[-1]
        await running.start(("event-router",))
        await running.start(("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes})
        await end_to_end(running, 5_000)
        show("start, 5,000 runs", running.actors)
        far = (int(time.time()) + 86_400) * 1000
        for step in range(STEPS):
            began = time.perf_counter()
            await arm_herd(running, SCHEDULES // STEPS, far, f"s{step}")
            took = time.perf_counter() - began
            await sweeps(running, health)
            show(f"{(step + 1) * SCHEDULES // STEPS:,} schedules, swept", running.actors)
        print(f"armed the last {SCHEDULES // STEPS:,} at {SCHEDULES / STEPS / took:,.0f} a second")
        seconds = health.metric("jetcron_sweep_seconds_sum") / health.metric("jetcron_sweep_seconds_count")
        print(
            f"a sweep of one group takes {seconds * 1000:.0f} ms on average, {health.cpu():.1f} s of CPU so far"
        )
        for step in range(STEPS):
            speed, _ = await end_to_end(running, RUNS // STEPS)
            show(f"{(step + 1) * RUNS // STEPS:,} runs ({speed:,.0f}/s)", running.actors)


def run(notes: str) -> None:
    uvloop.run(main(notes))
