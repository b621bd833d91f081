"""What a million schedules cost: creating and holding them, sweeping them, a tick among them, 20,000 due in one second.

The cost of a tick is measured twice, with the first 10,000 schedules and with all, on the same processes: alone, as
the time from a released tick to its run, and in bursts, as the CPU of cron-tick and of the server from release to the
next held tick. Those that fire are scattered evenly over the registry, of which nothing was read for a while, and their
ticks stand where the ticks before them would have put them. All are created by a client, through cron-sync.
"""

import asyncio
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.apps import app
from benchmarks.lateness import flush, read
from benchmarks.stack import Actor, Stack, percentile, resident, spent, stack
from jetcron import Client, dispatch
from jetcron.carried import Copy
from jetcron.many import each
from jetcron.registration import register
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Schedule, Tick
from jetcron_protocol.topology import DAY

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


def shown(number: int) -> dict[str, Any]:
    """What tells one schedule from another."""
    return {"payload": {"tenant": number, "format": "pdf"}, "tags": [f"plan-{number % 3}"]}


async def create(running: Stack, revisions: "Revisions[int]", count: int) -> None:
    """Schedules number len(revisions) to `count`, as a user creates many."""
    async with Client(running.settings) as client:
        for start in range(len(revisions), count, PORTION):
            made = await client.schedules.create_many(
                {
                    "id": f"tenant-{number}",
                    "function": "bench.due",
                    "every": YEAR,
                    **shown(number),
                }
                for number in range(start, min(start + PORTION, count))
            )
            revisions.extend(one.revision or 0 for one in made)


def scattered(revisions: "Revisions[int]", count: int, shift: int) -> list[int]:
    """Numbers of `count` schedules, evenly over all there are."""
    step = len(revisions) // count
    return [(number * step + shift) % len(revisions) for number in range(count)]


def ticks_of(revisions: "Revisions[int]", numbers: Sequence[int], at: int) -> list[Tick]:
    """Their ticks, each with the copy of its entry that the tick before it would have left."""
    return [_laden(number, revisions[number], at) for number in numbers]


async def let_go(running: Stack, tick: Tick) -> None:
    """Take away the tick this schedule holds, as if it had been released: a chain has one."""
    bus, every = running.bus, YEAR * 1000
    next_at = (tick.at // every + 1) * every
    await bus.purge(bus.names.work, bus.names.tick_held(tick.schedule, tick.revision, next_at))


async def hold(running: Stack, revisions: "Revisions[int]", count: int, shift: int, *, spread: int) -> int:
    """Have the ticks of `count` schedules held for times within `spread` ms; the first of them, epoch ms.

    They stand in the place of those that were held, and nothing is read for a while before they are released.
    """
    bus, lead = running.bus, running.settings.lead_ms
    at = bus.clock.now() // 1000 * 1000 + round((COLD + count / 500) * 1000) + lead
    ticks = [
        tick
        for place, number in enumerate(scattered(revisions, count, shift))
        for tick in ticks_of(revisions, [number], at + place * spread // count)
    ]
    for start in range(0, count, 1000):
        messages = [dispatch.held_tick(bus.names, tick, lead) for tick in ticks[start : start + 1000]]
        await bus.publish_atomic(messages, timeout=60)
    await each(lambda tick: let_go(running, tick), ticks)
    left = (at - lead - bus.clock.now()) / 1000
    if left < COLD:
        raise RuntimeError(f"this machine is too slow or too busy: {left:.1f} s are left of {COLD:g}")
    return at


def _laden(number: int, revision: int, at: int) -> Tick:
    tick = Tick(schedule=f"tenant-{number}", revision=revision, at=at)
    read_at = at - DAY * 1000
    entry = Schedule(
        id=tick.schedule,
        function="bench.due",
        origin="data",
        every=YEAR * 1000,
        armed_from=read_at,
        command=revision,
        **shown(number),
    )
    return Copy(encode(entry), read_at).on(tick)


async def alone(running: Stack, revisions: "Revisions[int]", shift: int) -> list[float]:
    """Milliseconds from a tick's release to its run, one after the other."""
    bus, found = running.bus, []
    await asyncio.sleep(COLD)
    async with bus.listen(bus.names.run_ready("bench.due")) as runs:
        for number in scattered(revisions, ALONE, shift):
            (tick,) = ticks_of(revisions, [number], bus.clock.now() + 500)
            await let_go(running, tick)
            began = time.perf_counter()
            await bus.post(bus.names.tick_due(tick.schedule, tick.revision, tick.at), encode(tick))
            await runs.get()
            found.append((time.perf_counter() - began) * 1000)
    return found


@dataclass(frozen=True)
class Burst:
    """Many ticks due together: CPU for one, in ms, and seconds from their release until all were turned."""

    cpu: float
    server: float
    seconds: float


async def burst(running: Stack, cron_tick: Actor, revisions: "Revisions[int]", shift: int) -> Burst:
    """Many due at one instant: their release, their turns, the next ticks."""
    bus, server = running.bus, running.server.pid
    at = await hold(running, revisions, BURST, shift, spread=1)
    await asyncio.sleep((at - running.settings.lead_ms - bus.clock.now()) / 1000 - 0.5)
    turned = cron_tick.metric("jetcron_ticks_turned_total")
    cpu, theirs = cron_tick.cpu(), spent(server)
    while cron_tick.metric("jetcron_ticks_turned_total") < turned + BURST:
        await asyncio.sleep(0.05)
    took = bus.clock.now() - (at - running.settings.lead_ms)
    return Burst((cron_tick.cpu() - cpu) / BURST * 1000, (spent(server) - theirs) / BURST * 1000, took / 1000)


@dataclass(frozen=True)
class Cost:
    """Of a tick among so many: CPU of cron-tick and of the server in ms, and the median of its latency in ms."""

    cpu: float
    server: float
    latency: float


async def cost(running: Stack, cron_tick: Actor, revisions: "Revisions[int]") -> Cost:
    first = await alone(running, revisions, 1)
    again = await alone(running, revisions, 1)
    bursts = [await burst(running, cron_tick, revisions, 3 + number) for number in range(BURSTS)]
    cpu, server = (
        percentile(each, 0.5) for each in zip(*((one.cpu, one.server) for one in bursts), strict=True)
    )
    print(
        f"a tick among {len(revisions):,}: CPU in bursts of {BURST:,}: cron-tick's {cpu:.3f} ms "
        f"({', '.join(f'{one.cpu:.3f}' for one in bursts)}), nats-server's {server:.3f} "
        f"({', '.join(f'{one.server:.3f}' for one in bursts)}); "
        f"turned in {', '.join(f'{one.seconds:.2f}' for one in bursts)} s; "
        f"alone, release to run: p50 {percentile(first, 0.5):.1f} ms, p99 {percentile(first, 0.99):.1f}, "
        f"max {max(first):.1f}; the same again p50 {percentile(again, 0.5):.1f}, "
        f"p99 {percentile(again, 0.99):.1f} ({load()})"
    )
    return Cost(cpu, server, percentile(first, 0.5))


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


async def turned(running: Stack, cron_tick: Actor, revisions: "Revisions[int]") -> None:
    """So many due within one second, turned; nobody executes them yet."""
    count = min(HERD, len(revisions))
    before, cpu = cron_tick.metric("jetcron_ticks_turned_total"), cron_tick.cpu()
    at = await hold(running, revisions, count, 7, spread=1000)
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
    at = await hold(running, revisions, count, 11, spread=1000)
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
            f"among {count:,} instead of {before:,} a tick costs {many.cpu / few.cpu:.2f} times cron-tick's CPU, "
            f"{many.server / few.server:.2f} times the server's, and {many.latency / few.latency:.2f} times the time"
        )
        await sweep(running, health)
        canary(health)
        await turned(running, cron_tick, revisions)
        await executed(running, revisions, notes)
        canary(health)
        memory(running, count)


def run(count: int, notes: str) -> None:
    uvloop.run(main(count, notes))
