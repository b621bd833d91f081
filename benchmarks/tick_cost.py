"""What a tick costs among few schedules and among many, on two servers side by side.

The speed of a shared machine may change by half from one second to the next, so the two take turns: a lone tick here,
then one there, as the time from when it is due until its run can be taken; then a thousand together here and there, as
the CPU that cron-tick and nats-server take from their release until all are turned and their successors held. What is
compared are pairs that follow each other within seconds; figures are medians [and quartiles]. Each round has new
cron-ticks, for no two processes are equally fast. Once with ticks that carry copies of their entries, as all do but the
first after a repair and those of large entries; one in 1,024 is turned without it, among them too. Once with such as do
not. No health-checker sweeps meanwhile: that is measured by itself.

The server's garbage collector is told apart. It goes over all the server has in memory, whenever as much again was
allocated, and every two minutes even if nothing was: what it takes for a million is a price of having them, a second
of CPU that comes to lie in one burst or between two.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.due import COLD, Revisions, hold, let_go, scattered, soonest, tick_of
from benchmarks.stack import Actor, Collection, Stack, percentile, spent
from jetcron.bus import Consumer
from jetcron_protocol.codec import encode

ALONE = 80
"""In a round, on each side, beside the first few, which warm a new process."""
WARM = 20
BURST = 1_000
BURSTS = 10
"""In a round, on each side: together no more ticks than the smaller side has schedules."""
ROUNDS = {True: 3, False: 1}
"""With copies, and without."""
APART = {True: 1500, False: 5000}
"""Milliseconds from one burst to the other side's."""
REST = 0.2
"""Seconds without work after which cron-tick has turned what there was."""
LATEST = 2.0
"""Seconds within which it has begun."""
WORK = 0.001
"""CPU seconds within 0.01 s that are work."""
COLLECTED = 3.0
"""Seconds within which a collection ends, and is told."""
MUCH = 0.2
"""The share of a burst's CPU that a collection may have: what it takes is known too roughly to be told from more."""

T = TypeVar("T")


@dataclass(eq=False)
class Side:
    """A server with so many schedules, and the cron-tick that works for it."""

    running: Stack
    cron_tick: Actor
    revisions: "Revisions[int]"

    async def renew(self) -> None:
        """Another cron-tick, and no run waits."""
        self.running.stop(self.cron_tick)
        (self.cron_tick,) = await self.running.start(("cron-tick",))
        bus = self.running.bus
        await bus.purge(bus.names.work, bus.names.run_ready("bench.due"))

    @property
    def turned(self) -> float:
        return self.cron_tick.metric("jetcron_ticks_turned_total")


@dataclass(frozen=True)
class Burst:
    """CPU that one of the ticks took, in ms: the server's without its garbage collector's."""

    cron_tick: float
    server: float
    collector: float

    @property
    def both(self) -> float:
        return self.cron_tick + self.server

    @property
    def all(self) -> float:
        return self.both + self.collector

    @property
    def clear(self) -> bool:
        return self.collector < MUCH * self.all


@dataclass(frozen=True)
class Spent:
    """CPU seconds that a burst took, and from when to when it was measured, by the monotonic clock."""

    began: float
    ended: float
    cron_tick: float
    server: float

    def of_each(self, collections: Sequence[Collection]) -> Burst:
        collector = sum(one.within(self.began, self.ended) for one in collections)
        each = 1000 / BURST
        return Burst(self.cron_tick * each, (self.server - collector) * each, collector * each)


async def compare(few: Side, many: Side) -> None:
    """Print what a tick costs on either side, and how the two compare."""
    began = time.monotonic()
    for copy in (True, False):
        lone: list[tuple[float, float]] = []
        bursts: list[tuple[Burst, Burst]] = []
        for number in range(ROUNDS[copy]):
            for side in (few, many):
                await side.renew()
            lone += (await lone_pairs(few, many, number, copy=copy))[WARM:]
            bursts += await burst_pairs(few, many, number, copy=copy)
        clear = [pair for pair in bursts if all(one.clear for one in pair)]
        print(
            f"ticks {'with copies of their entries' if copy else 'without copies'} "
            f"({len(bursts) - len(clear)} pairs of bursts set aside, with a collection in them):"
        )
        for side, times, costs in zip(
            (few, many), zip(*lone, strict=True), zip(*clear, strict=True), strict=True
        ):
            print(
                f"  among {len(side.revisions):,}, {len(costs)} bursts of {BURST:,}: "
                f"cron-tick's CPU {middle([cost.cron_tick for cost in costs], 3)} ms, "
                f"nats-server's {middle([cost.server for cost in costs], 3)} ms without its garbage collector's; "
                f"{len(times)} alone, due to run: {middle(times, 1)} ms, p99 {percentile(list(times), 0.99):.1f}"
            )
        print(
            f"  among {len(many.revisions):,} instead of {len(few.revisions):,}, as a ratio: "
            f"CPU {compared(clear, lambda cost: cost.both)} "
            f"(cron-tick's {compared(clear, lambda cost: cost.cron_tick)}, "
            f"nats-server's {compared(clear, lambda cost: cost.server)}; "
            f"with the collector's, of all {compared(bursts, lambda cost: cost.all)}), "
            f"time alone {compared(lone, float)}"
        )
    for side in (few, many):
        told = [one.cpu for one in side.running.collections() if one.began > began]
        print(
            f"garbage collections among {len(side.revisions):,}: {len(told)} within {time.monotonic() - began:.0f} s, "
            f"{statistics.fmean(told or [0]):.3f} s of CPU each"
        )


def compared(pairs: Sequence[tuple[T, T]], of: Callable[[T], float]) -> str:
    """How the second of a pair compares with the first, and all the seconds with all the firsts."""
    ratios = [of(second) / of(first) for first, second in pairs]
    sums = sum(of(second) for _, second in pairs) / sum(of(first) for first, _ in pairs)
    return f"{middle(ratios, 2)}, of the sums {sums:.2f}"


def middle(values: Sequence[float], digits: int) -> str:
    """The median [and the quartiles]."""
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.{digits}f} [{low:.{digits}f} to {high:.{digits}f}]"


def in_turn(few: Side, many: Side, pairs: int) -> Iterator[tuple[Side, Side]]:
    """The two sides, so many times; each goes first in every other."""
    for number in range(pairs):
        yield (few, many) if number % 2 == 0 else (many, few)


async def lone_pairs(few: Side, many: Side, shift: int, *, copy: bool) -> list[tuple[float, float]]:
    """Milliseconds from a due tick to its run on either side, one at a time. Before, nothing is read for a while."""
    pairs = WARM + ALONE
    numbers = {side: iter(scattered(side.revisions, pairs, shift)) for side in (few, many)}
    await asyncio.sleep(COLD)
    found = []
    async with runs_of(few) as here, runs_of(many) as there:
        runs = {few: here, many: there}
        for order in in_turn(few, many, pairs):
            took = {side: await alone(side, next(numbers[side]), runs[side], copy=copy) for side in order}
            found.append((took[few], took[many]))
    return found


def runs_of(side: Side) -> Consumer:
    bus = side.running.bus
    return bus.consume(bus.names.work, bus.names.run_consumer("bench.due"))


async def alone(side: Side, number: int, runs: Consumer, *, copy: bool) -> float:
    """Milliseconds from this schedule's due tick until its run has come to who asked for it."""
    bus = side.running.bus
    due = tick_of(side.revisions, number, bus.clock.now() + 500, copy=copy)
    await let_go(side.running, due)
    run = asyncio.ensure_future(runs.fetch(1, wait=30))
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    await bus.post(bus.names.tick_due(due.schedule, due.revision, due.at), encode(due))
    (delivery,) = await run
    took = (time.perf_counter() - began) * 1000
    await delivery.ack()
    return took


async def burst_pairs(few: Side, many: Side, shift: int, *, copy: bool) -> list[tuple[Burst, Burst]]:
    """Bursts of scattered schedules, in turn on either side. Before the first, nothing is read for a while."""
    at = soonest(few.running, 2 * BURST * BURSTS)
    sides = [side for order in in_turn(few, many, BURSTS) for side in order]
    plan = [(side, at + place * APART[copy]) for place, side in enumerate(sides)]
    for side in (few, many):
        numbers = scattered(side.revisions, BURST * BURSTS, shift)
        times = [when for which, when in plan if which is side]
        await hold(
            side.running,
            [
                tick_of(side.revisions, number, when, copy=copy)
                for place, when in enumerate(times)
                for number in numbers[place::BURSTS]
            ],
        )
    found: dict[Side, list[Spent]] = {few: [], many: []}
    for side, when in plan:
        found[side].append(await burst(side, when))
    await asyncio.sleep(COLLECTED)
    here, there = few.running.collections(), many.running.collections()
    return [
        (one.of_each(here), other.of_each(there)) for one, other in zip(found[few], found[many], strict=True)
    ]


async def burst(side: Side, at: int) -> Spent:
    """Wait for the ticks due at `at`, until all are turned."""
    left = (at - side.running.settings.lead_ms - side.running.bus.clock.now()) / 1000
    if left < 0.2:
        raise RuntimeError("this machine is too slow or too busy: the burst before took too long")
    await asyncio.sleep(left - 0.2)
    all_turned = side.turned + BURST
    await asyncio.sleep(0.15)
    began, cpu, server = time.monotonic(), side.cron_tick.cpu(), spent(side.running.server.pid)
    rest = await at_rest(side)
    while side.turned < all_turned:  # as a rule they are: to ask costs CPU, so it is done last
        rest = await at_rest(side)
    return Spent(began, time.monotonic(), rest - cpu, spent(side.running.server.pid) - server)


async def at_rest(side: Side) -> float:
    """Wait until cron-tick has worked, and no more since a moment; its CPU seconds when it had done."""
    before = done = side.cron_tick.cpu()
    worked_at = time.monotonic() + LATEST
    while time.monotonic() - worked_at < REST:
        await asyncio.sleep(0.01)
        cpu = side.cron_tick.cpu()
        if cpu - before > WORK:
            done, worked_at = cpu, time.monotonic()
        before = cpu
    return done
