"""What a million schedules cost: creating and holding them, sweeping them, a tick among them, 20,000 due in one second.

The cost of a tick is measured twice, with the first 10,000 schedules and with all, on the same processes: alone, as
the time from a released tick to its run, and in bursts, as cron-tick's CPU. Those that fire are scattered evenly
over the registry. All are created by a client, through cron-sync.
"""

import asyncio
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.apps import app
from benchmarks.lateness import flush, read
from benchmarks.stack import Actor, Stack, percentile, resident, spent, stack
from jetcron import Client, dispatch
from jetcron.bus import Outgoing
from jetcron.registration import register
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Tick

FEW = 10_000
MANY = 1_000_000
ALONE = 200
BURST = 5_000
BURSTS = 5
HERD = 20_000
YEAR = 365 * 86_400
PORTION = 20_000
COLD = 15.0
"""Seconds after which nats-server has dropped what it had read of a stream."""

Revisions = array
"""The revision of each schedule, by its number."""


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


async def create(running: Stack, revisions: "Revisions[int]", count: int) -> None:
    """Schedules number len(revisions) to `count`, as a user creates many."""
    async with Client(running.settings) as client:
        for start in range(len(revisions), count, PORTION):
            made = await client.schedules.create_many(
                {
                    "id": f"tenant-{number}",
                    "function": "bench.due",
                    "every": YEAR,
                    "payload": {"tenant": number, "format": "pdf"},
                    "tags": [f"plan-{number % 3}"],
                }
                for number in range(start, min(start + PORTION, count))
            )
            revisions.extend(one.revision or 0 for one in made)


def scattered(revisions: "Revisions[int]", count: int, shift: int) -> list[int]:
    """Numbers of `count` schedules, evenly over all there are."""
    step = len(revisions) // count
    return [(number * step + shift) % len(revisions) for number in range(count)]


def ticks_of(revisions: "Revisions[int]", numbers: Sequence[int], at: int) -> list[Tick]:
    return [Tick(schedule=f"tenant-{number}", revision=revisions[number], at=at) for number in numbers]


async def alone(running: Stack, revisions: "Revisions[int]", shift: int) -> list[float]:
    """Milliseconds from a tick's release to its run, one after the other."""
    bus, found = running.bus, []
    async with bus.listen(bus.names.run_ready("bench.due")) as runs:
        for number in scattered(revisions, ALONE, shift):
            (tick,) = ticks_of(revisions, [number], bus.clock.now() + 500)
            began = time.perf_counter()
            await bus.post(bus.names.tick_due(tick.schedule, tick.revision, tick.at), encode(tick))
            await runs.get()
            found.append((time.perf_counter() - began) * 1000)
    return found


@dataclass(frozen=True)
class Burst:
    """Many ticks released together: CPU for one, in ms, and seconds until all were turned."""

    cpu: float
    server: float
    seconds: float


async def burst(running: Stack, cron_tick: Actor, revisions: "Revisions[int]", shift: int) -> Burst:
    """A burst, after nothing was read for a while."""
    bus, server = running.bus, running.server.pid
    await asyncio.sleep(COLD)
    at = bus.clock.now() + 1_500
    messages = [
        Outgoing(bus.names.tick_due(tick.schedule, tick.revision, tick.at), encode(tick))
        for tick in ticks_of(revisions, scattered(revisions, BURST, shift), at)
    ]
    turned = cron_tick.metric("jetcron_ticks_turned_total")
    cpu, theirs, began = cron_tick.cpu(), spent(server), time.perf_counter()
    for start in range(0, BURST, 1000):
        await bus.publish_atomic(messages[start : start + 1000], timeout=60)
    while cron_tick.metric("jetcron_ticks_turned_total") < turned + BURST:
        await asyncio.sleep(0.05)
    took = time.perf_counter() - began
    return Burst((cron_tick.cpu() - cpu) / BURST * 1000, (spent(server) - theirs) / BURST * 1000, took)


async def cost(running: Stack, cron_tick: Actor, revisions: "Revisions[int]") -> tuple[float, float]:
    """The cost of a tick among so many: CPU in ms, and the median of its latency in ms."""
    first = await alone(running, revisions, 1)
    again = await alone(running, revisions, 1)
    bursts = [await burst(running, cron_tick, revisions, 3 + number) for number in range(BURSTS)]
    cpu = percentile([one.cpu for one in bursts], 0.5)
    print(
        f"a tick among {len(revisions):,}: {cpu:.3f} ms of cron-tick's CPU in bursts of {BURST:,} "
        f"({', '.join(f'{one.cpu:.3f}' for one in bursts)}), of nats-server's "
        f"{', '.join(f'{one.server:.3f}' for one in bursts)}; "
        f"turned in {', '.join(f'{one.seconds:.2f}' for one in bursts)} s; "
        f"alone, release to run: p50 {percentile(first, 0.5):.1f} ms, p99 {percentile(first, 0.99):.1f}, "
        f"max {max(first):.1f}; the same again p50 {percentile(again, 0.5):.1f}, "
        f"p99 {percentile(again, 0.99):.1f} ({load()})"
    )
    return cpu, percentile(first, 0.5)


async def sweep(running: Stack, health: Actor) -> None:
    """One whole round: every group once more."""
    groups = 16
    before, began = health.cpu(), time.perf_counter()
    done = health.metric("jetcron_sweeps_total")
    at_it = health.metric("jetcron_sweep_seconds_sum")
    while health.metric("jetcron_sweeps_total") < done + groups:
        await asyncio.sleep(0.5)
    print(
        f"a sweep of {health.metric('jetcron_schedules'):,.0f}: {health.cpu() - before:.1f} s of CPU, "
        f"{health.metric('jetcron_sweep_seconds_sum') - at_it:.1f} s at it, "
        f"within {time.perf_counter() - began:.0f} s; "
        f"health-checker {health.memory():.0f} MB, repairs {health.metric('jetcron_repairs_total'):.0f} ({load()})"
    )


def memory(running: Stack, count: int) -> None:
    actors = ", ".join(f"{actor.command[0]} {actor.memory():.0f}" for actor in running.actors)
    print(f"memory with {count:,}: nats-server {resident(running.server.pid):.0f}, {actors} MB")


async def hold_herd(running: Stack, revisions: "Revisions[int]", count: int, shift: int) -> int:
    """Have so many held for times within one second, a while from now; the first of them, epoch ms."""
    await asyncio.sleep(COLD)
    bus, lead = running.bus, running.settings.lead_ms
    at = (bus.clock.now() // 1000 + 12) * 1000
    numbers = scattered(revisions, count, shift)
    for start in range(0, count, 1000):
        ticks = [
            tick
            for offset, number in enumerate(numbers[start : start + 1000], start)
            for tick in ticks_of(revisions, [number], at + offset * 1000 // count)
        ]
        await bus.publish_atomic([dispatch.held_tick(bus.names, tick, lead) for tick in ticks], timeout=60)
    return at


async def turned(running: Stack, cron_tick: Actor, revisions: "Revisions[int]") -> None:
    """So many due within one second, turned; nobody executes them yet."""
    count = min(HERD, len(revisions))
    before, cpu = cron_tick.metric("jetcron_ticks_turned_total"), cron_tick.cpu()
    at = await hold_herd(running, revisions, count, 7)
    while cron_tick.metric("jetcron_ticks_turned_total") < before + count:
        await asyncio.sleep(0.05)
    took = time.time() - at / 1000
    print(
        f"{count:,} due within one second among {len(revisions):,}: all turned {took:+.1f} s after the first's time "
        f"(lead {running.settings.lead:g} s), {(cron_tick.cpu() - cpu) / count * 1000:.3f} ms of CPU each ({load()})"
    )


async def executed(running: Stack, revisions: "Revisions[int]", notes: str) -> None:
    """The same, with an executor on the same machine, once it has done what was left for it."""
    count = min(HERD, len(revisions))
    (executor,) = await running.start(("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes})
    bus, runs = running.bus, "jetcron_runs_ended_total"
    while await bus.subjects(bus.names.work, bus.names.run_ready("bench.due")):
        await asyncio.sleep(0.5)
    await flush(running)
    known, done = set(read(notes)), executor.metric(runs, function="bench.due")
    at = await hold_herd(running, revisions, count, 11)
    while executor.metric(runs, function="bench.due") < done + count:
        await asyncio.sleep(0.2)
    took = time.time() - at / 1000
    await flush(running)
    fresh = {run: lates for run, lates in read(notes).items() if run not in known}
    found = [lates[0] for lates in fresh.values()]
    print(
        f"{count:,} more, with one executor: all executed within {took:.1f} s of the first's time; "
        f"p50 {percentile(found, 0.5):.0f} ms, p99 {percentile(found, 0.99):.0f} ms late, "
        f"early {sum(late < 0 for late in found)}, missing {count - len(fresh)}, "
        f"twice {sum(len(each) > 1 for each in fresh.values())} ({load()})"
    )


def canary(health: Actor) -> None:
    came = health.metric("jetcron_canary_lateness_seconds_count")
    late = health.metric("jetcron_canary_lateness_seconds_sum")
    print(f"canary: {came:.0f} came, {late * 1000 / max(came, 1):.0f} ms late on average")


async def main(count: int, notes: str) -> None:
    async with stack() as running:
        (cron_sync,) = await running.start(("cron-sync",))
        await register(running.bus, app, clock=running.bus.clock, wait=30)
        cron_tick, health = await running.start(("cron-tick",), ("health-checker",))
        revisions: Revisions[int] = array("Q")
        await create(running, revisions, min(FEW, count))
        await alone(running, revisions, 5)  # warm
        few = await cost(running, cron_tick, revisions)
        memory(running, len(revisions))
        began, cpu = time.perf_counter(), cron_sync.cpu()
        before = len(revisions)
        await create(running, revisions, count)
        took = time.perf_counter() - began
        print(
            f"created: {count - before:,} more in {took:.0f} s, {(count - before) / took:,.0f} a second; cron-sync "
            f"{cron_sync.cpu() - cpu:.0f} s of CPU ({load()})"
        )
        memory(running, count)
        await sweep(running, health)
        many = await cost(running, cron_tick, revisions)
        print(
            f"among {count:,} instead of {before:,} a tick costs {many[0] / few[0]:.2f} times the CPU "
            f"and {many[1] / few[1]:.2f} times the time"
        )
        await sweep(running, health)
        canary(health)
        await turned(running, cron_tick, revisions)
        await executed(running, revisions, notes)
        canary(health)
        memory(running, count)


def run(count: int, notes: str) -> None:
    uvloop.run(main(count, notes))
