"""How late user code starts: many schedules due at one instant, and ten functions each second.

Late is the start of user code minus the scheduled time, by one machine's clock.
"""

import asyncio
import time

import uvloop

from benchmarks.stack import Stack, percentile, stack
from jetcron import dispatch
from jetcron.bus import Outgoing, fenced
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Overlap, Schedule, Tick


async def arm_herd(
    running: Stack,
    count: int,
    at: int,
    prefix: str,
    *,
    function: str = "bench.due",
    overlap: Overlap = "allow",
) -> None:
    """Schedules as cron-sync writes them, all due once, at the same instant."""
    bus = running.bus
    entries = [
        Schedule(
            id=f"{prefix}-{n}",
            function=function,
            origin="data",
            at=at,
            overlap=overlap,
            armed_from=at - 60_000,
        )
        for n in range(count)
    ]
    for start in range(0, count, 1000):
        part = entries[start : start + 1000]
        last = await bus.publish_atomic(
            [Outgoing(bus.names.schedule_key(s.id), encode(s), fenced(0)) for s in part]
        )
        first = last - len(part) + 1
        await bus.publish_groups(
            [
                dispatch.held_tick(
                    bus.names, Tick(schedule=s.id, revision=first + n, at=at), running.settings.lead_ms
                )
            ]
            for n, s in enumerate(part)
        )


def read(notes: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with open(notes) as lines:
        for line in lines:
            words = line.split()
            if len(words) == 3 and words[0] == "due":
                found.setdefault(words[1], []).append(float(words[2]))
    return found


async def herd(running: Stack, notes: str, count: int, prefix: str) -> None:
    """`count` schedules at one instant on one executor."""
    known = set(read(notes))
    at = (int(time.time()) + 8 + count // 2000) * 1000
    await arm_herd(running, count, at, prefix)
    executor = running.actors[-1]
    while (
        executor.metric("jetcron_runs_ended_total", function="bench.due", outcome="completed")
        < len(known) + count
    ):
        await asyncio.sleep(0.2)
        if time.time() * 1000 > at + 60_000:
            break
    await flush(running)
    fresh = {run: lates for run, lates in read(notes).items() if run not in known}
    lates = [lates[0] for lates in fresh.values()]
    twice = sum(len(each) > 1 for each in fresh.values())
    print(
        f"{count:,} due at one instant: p50 {percentile(lates, 0.5):.0f} ms, p99 {percentile(lates, 0.99):.0f} ms, "
        f"max {max(lates):.0f} ms; early {sum(late < 0 for late in lates)}, missing {count - len(fresh)}, twice {twice}"
    )


async def flush(running: Stack) -> None:
    from jetcron.client import Client

    async with Client(running.settings) as client:
        await (await client.run("bench.flush")).result(30)


async def each_second(notes: str, seconds: int) -> None:
    """Ten functions each second."""
    async with stack() as running:
        await running.start(("cron-sync",), ("cron-tick",))
        await running.start(("executor", "benchmarks.apps:seconds"), environment={"BENCH_NOTES": notes})
        await asyncio.sleep(seconds + 3)
        found = read(notes)
        lates = [lates[0] for lates in found.values()]
        twice = sum(len(each) > 1 for each in found.values())
        print(
            f"10 functions each second for {seconds} s: {len(lates)} runs, p50 {percentile(lates, 0.5):.1f} ms, "
            f"p99 {percentile(lates, 0.99):.1f} ms, max {max(lates):.1f} ms; "
            f"early {sum(late < 0 for late in lates)}, twice {twice}"
        )


async def main(notes: str, seconds: int) -> None:
    async with stack() as running:
        await running.start(("cron-sync",))
        await running.start(("cron-tick",))
        await running.start(("executor", "benchmarks.apps:app"), environment={"BENCH_NOTES": notes})
        for repeat in range(3):
            await herd(running, notes, 1000, f"k{repeat}")
        for repeat in range(3):
            await herd(running, notes, 5000, f"m{repeat}")
    await each_second(notes + ".seconds", seconds)


def run(notes: str, seconds: int = 300) -> None:
    uvloop.run(main(notes, seconds))
