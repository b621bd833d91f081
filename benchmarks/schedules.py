"""What a million schedules cost: creating and holding them, sweeping them, a tick among them, 20,000 due in one second.

The cost of a tick is compared with the same among 10,000, on a server of their own beside it (`tick_cost`). Those that
fire are scattered evenly over the registry, and their ticks stand where the ticks before them would have put them. All
are created by a client, through cron-sync.
"""

import asyncio
import os
import time

import uvloop

from benchmarks.apps import app
from benchmarks.due import Revisions, create, hold_spread, scattered
from benchmarks.lateness import flush, read
from benchmarks.stack import Actor, Stack, percentile, resident, spent, stack
from benchmarks.tick_cost import Side, compare
from jetcron.registration import register

FEW = 10_000
MANY = 1_000_000
HERD = 20_000


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


async def sweep(running: Stack, health: Actor) -> None:
    """One whole round: every group once more."""
    groups = 16
    before, theirs, began = health.cpu(), spent(running.server.pid), time.perf_counter()
    done = health.metric("jetcron_sweeps_total")
    at_it = health.metric("jetcron_sweep_seconds_sum")
    while health.metric("jetcron_sweeps_total") < done + groups:
        await asyncio.sleep(0.5)
    print(
        f"a sweep of {health.metric('jetcron_schedules'):,.0f}: {health.cpu() - before:.1f} s of CPU, "
        f"the server's {spent(running.server.pid) - theirs:.1f}, "
        f"{health.metric('jetcron_sweep_seconds_sum') - at_it:.1f} s at it, "
        f"within {time.perf_counter() - began:.0f} s; "
        f"health-checker {health.memory():.0f} MB, repairs {health.metric('jetcron_repairs_total'):.0f} ({load()})"
    )


def memory(running: Stack, count: int) -> None:
    actors = ", ".join(f"{actor.command[0]} {actor.memory():.0f}" for actor in running.actors)
    print(f"memory with {count:,}: nats-server {resident(running.server.pid):.0f}, {actors} MB")


async def turned(running: Stack, cron_tick: Actor, revisions: "Revisions[int]") -> None:
    """So many due within one second, turned; nobody executes them yet."""
    before = cron_tick.metric("jetcron_ticks_turned_total")
    at = await hold_spread(running, revisions, scattered(revisions, HERD, 7), 1000)
    cpu = cron_tick.cpu()
    while cron_tick.metric("jetcron_ticks_turned_total") < before + HERD:
        await asyncio.sleep(0.1)
    took = time.time() - at / 1000
    print(
        f"{HERD:,} due within one second among {len(revisions):,}: all turned {took:+.1f} s after the first's time "
        f"(lead {running.settings.lead:g} s), {(cron_tick.cpu() - cpu) / HERD * 1000:.3f} ms of CPU each ({load()})"
    )


async def executed(running: Stack, revisions: "Revisions[int]", notes: str) -> None:
    """The same, with an executor on the same machine, once it has done what was left for it."""
    (executor,) = await running.start(("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes})
    bus, runs = running.bus, "jetcron_runs_ended_total"
    while await bus.subjects(bus.names.work, bus.names.run_ready("bench.due")):
        await asyncio.sleep(0.5)
    await flush(running)
    known, done = set(read(notes)), executor.metric(runs, function="bench.due")
    at = await hold_spread(running, revisions, scattered(revisions, HERD, 11), 1000)
    while executor.metric(runs, function="bench.due") < done + HERD:
        await asyncio.sleep(0.2)
    took = time.time() - at / 1000
    await flush(running)
    fresh = {run: lates for run, lates in read(notes).items() if run not in known}
    found = [lates[0] for lates in fresh.values()]
    print(
        f"{HERD:,} more, with one executor: all executed within {took:.1f} s of the first's time; "
        f"p50 {percentile(found, 0.5):.0f} ms, p99 {percentile(found, 0.99):.0f} ms late, "
        f"early {sum(late < 0 for late in found)}, missing {HERD - len(fresh)}, "
        f"twice {sum(len(each) > 1 for each in fresh.values())} ({load()})"
    )


def canary(health: Actor) -> None:
    came = health.metric("jetcron_canary_lateness_seconds_count")
    late = health.metric("jetcron_canary_lateness_seconds_sum")
    print(f"canary: {came:.0f} came, {late * 1000 / max(came, 1):.0f} ms late on average")


async def filled(running: Stack, count: int) -> Side:
    """Create so many schedules through a cron-sync, and start a cron-tick."""
    (cron_sync,) = await running.start(("cron-sync",))
    await register(running.bus, app, clock=running.bus.clock, wait=30)
    (cron_tick,) = await running.start(("cron-tick",))
    began, cpu = time.perf_counter(), cron_sync.cpu()
    revisions = await create(running, count)
    took = time.perf_counter() - began
    print(
        f"created: {count:,} in {took:.0f} s, {count / took:,.0f} a second; cron-sync "
        f"{cron_sync.cpu() - cpu:.0f} s of CPU ({load()})"
    )
    memory(running, count)
    return Side(running, cron_tick, revisions)


async def main(count: int, notes: str) -> None:
    async with stack() as running:
        side = await filled(running, count)
        async with stack() as beside:
            await compare(await filled(beside, FEW), side)
        (health,) = await running.start(("health-checker",))
        await sweep(running, health)
        await sweep(running, health)
        canary(health)
        await turned(running, side.cron_tick, side.revisions)
        await executed(running, side.revisions, notes)
        canary(health)
        memory(running, count)


def run(count: int, notes: str) -> None:
    if count < HERD:
        raise SystemExit(
            f"--schedules {count}: it takes at least {HERD:,}, of which so many are due in one second"
        )
    uvloop.run(main(count, notes))
