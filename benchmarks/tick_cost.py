"""What a tick costs among few schedules and among many, on two servers side by side.

The speed of a shared machine may change by half from one second to the next, so the two take turns: a lone tick here,
then one there, as the time from its release to its run; then a thousand due together here and there, as the CPU of
cron-tick and of nats-server from their release until all are turned and their successors held. Pairs follow each other
within seconds, and it is their ratios that count.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.stack import Actor, Stack, percentile, spent
from benchmarks.yearly import COLD, Revisions, hold, let_go, scattered, soonest, tick
from jetcron_protocol.codec import encode

ALONE = 200
BURST = 1_000
BURSTS = 10
"""In a round, on each side: together no more ticks than the smaller side has schedules."""
ROUNDS = 3
APART = 1500
"""Milliseconds from one burst to the other side's."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Side:
    """A server with so many schedules, and the cron-tick that works for it."""

    running: Stack
    cron_tick: Actor
    revisions: "Revisions[int]"


@dataclass(frozen=True)
class Burst:
    """CPU that one of the ticks took, in ms."""

    cron_tick: float
    server: float

    @property
    def both(self) -> float:
        return self.cron_tick + self.server


async def compare(few: Side, many: Side) -> None:
    """Print what a tick costs on either side, and how the two compare."""
    await lone_pairs(few, many, ALONE // 4, 5)  # warm
    lone = await lone_pairs(few, many, ALONE, 1)
    bursts = [pair for number in range(ROUNDS) for pair in await burst_pairs(few, many, number)]
    for side, times, costs in zip(
        (few, many), zip(*lone, strict=True), zip(*bursts, strict=True), strict=True
    ):
        print(
            f"a tick among {len(side.revisions):,}, in {len(costs)} bursts of {BURST:,}: "
            f"cron-tick's CPU {quartiles([cost.cron_tick for cost in costs])} ms, "
            f"nats-server's {quartiles([cost.server for cost in costs])} ms (median, quartiles); "
            f"alone, release to run: p50 {percentile(list(times), 0.5):.1f} ms, p99 {percentile(list(times), 0.99):.1f}"
        )
    print(
        f"among {len(many.revisions):,} instead of {len(few.revisions):,} a tick costs "
        f"{ratio(bursts, lambda cost: cost.both):.2f} times the CPU "
        f"(cron-tick's {ratio(bursts, lambda cost: cost.cron_tick):.2f}, "
        f"nats-server's {ratio(bursts, lambda cost: cost.server):.2f}) "
        f"and alone {ratio(lone, float):.2f} times the time "
        f"(medians of the ratios of {len(bursts)} and {len(lone)} pairs)"
    )


def ratio(pairs: Sequence[tuple[T, T]], of: Callable[[T], float]) -> float:
    """How the second of a pair compares with the first, as a rule."""
    return statistics.median(of(second) / of(first) for first, second in pairs)


def quartiles(values: Sequence[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def in_turn(few: Side, many: Side, pairs: int) -> Iterator[tuple[Side, Side]]:
    """The two sides, so many times; each goes first in every other."""
    for number in range(pairs):
        yield (few, many) if number % 2 == 0 else (many, few)


async def lone_pairs(few: Side, many: Side, pairs: int, shift: int) -> list[tuple[float, float]]:
    """Milliseconds from a tick's release to its run on either side, one tick at a time."""
    numbers = {side: iter(scattered(side.revisions, pairs, shift)) for side in (few, many)}
    await asyncio.sleep(COLD)
    found = []
    async with listening(few) as here, listening(many) as there:
        runs = {few: here, many: there}
        for order in in_turn(few, many, pairs):
            took = {side: await alone(side, next(numbers[side]), runs[side]) for side in order}
            found.append((took[few], took[many]))
    return found


def listening(side: Side) -> AbstractAsyncContextManager["asyncio.Queue[tuple[str, bytes]]"]:
    """Hear of the runs made there."""
    bus = side.running.bus
    return bus.listen(bus.names.run_ready("bench.due"))


async def alone(side: Side, number: int, runs: "asyncio.Queue[tuple[str, bytes]]") -> float:
    """Milliseconds from this schedule's released tick to its run."""
    bus = side.running.bus
    due = tick(side.revisions, number, bus.clock.now() + 500)
    await let_go(side.running, due)
    began = time.perf_counter()
    await bus.post(bus.names.tick_due(due.schedule, due.revision, due.at), encode(due))
    await runs.get()
    return (time.perf_counter() - began) * 1000


async def burst_pairs(few: Side, many: Side, shift: int) -> list[tuple[Burst, Burst]]:
    """Bursts of scattered schedules, in turn on either side."""
    at = soonest(few.running, 2 * BURST * BURSTS)
    sides = [side for order in in_turn(few, many, BURSTS) for side in order]
    plan = [(side, at + place * APART) for place, side in enumerate(sides)]
    for side in (few, many):
        numbers = scattered(side.revisions, BURST * BURSTS, shift)
        times = [when for which, when in plan if which is side]
        await hold(
            side.running,
            [
                tick(side.revisions, number, when)
                for place, when in enumerate(times)
                for number in numbers[place::BURSTS]
            ],
        )
    found: dict[Side, list[Burst]] = {few: [], many: []}
    for side, when in plan:
        found[side].append(await burst(side, when))
    return list(zip(found[few], found[many], strict=True))


async def burst(side: Side, at: int) -> Burst:
    """Wait for the ticks due at `at`, until all are turned."""
    bus, server, cron_tick = side.running.bus, side.running.server.pid, side.cron_tick
    left = (at - side.running.settings.lead_ms - bus.clock.now()) / 1000
    if left < 0.2:
        raise RuntimeError(
            f"this machine is too slow or too busy: the burst before took {0.2 - left:.1f} s too long"
        )
    await asyncio.sleep(left - 0.2)
    turned = cron_tick.metric("jetcron_ticks_turned_total")
    cpu, theirs = cron_tick.cpu(), spent(server)
    await asyncio.sleep(0.3)
    while cron_tick.metric("jetcron_ticks_turned_total") < turned + BURST:
        await asyncio.sleep(0.05)
    return Burst((cron_tick.cpu() - cpu) / BURST * 1000, (spent(server) - theirs) / BURST * 1000)
