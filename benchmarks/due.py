"""Schedules as a user creates many, and their ticks, due when a measurement wants them.

By themselves they fire once a year, so that nothing comes between. A tick is held in the place of the one its schedule
held. It carries a copy of its entry a day old, as the ticks of a daily schedule do; or none: then cron-tick reads the
entry.
"""

from array import array
from collections.abc import Sequence
from typing import Any

from benchmarks.stack import Stack
from jetcron import Client, dispatch
from jetcron.carried import Copy
from jetcron.many import each
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Schedule, Tick
from jetcron_protocol.topology import DAY

YEAR = 365 * 86_400
PORTION = 20_000
COLD = 15.0
"""Seconds after which nats-server has dropped what it had read of a stream."""
PACE = 500
"""Ticks that are surely held within a second."""

Revisions = array
"""The revision of each schedule, by its number."""


def shown(number: int) -> dict[str, Any]:
    """What tells one schedule from another."""
    return {"payload": {"tenant": number, "format": "pdf"}, "tags": [f"plan-{number % 3}"]}


async def create(running: Stack, count: int) -> "Revisions[int]":
    """So many schedules, as a user creates them."""
    revisions: Revisions[int] = array("Q")
    async with Client(running.settings) as client:
        for start in range(0, count, PORTION):
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
    return revisions


def scattered(revisions: "Revisions[int]", count: int, shift: int) -> list[int]:
    """Numbers of `count` schedules, evenly over all there are."""
    step = len(revisions) // count
    return [(number * step + shift) % len(revisions) for number in range(count)]


def tick_of(revisions: "Revisions[int]", number: int, at: int, *, copy: bool = True) -> Tick:
    """The tick of a schedule for `at` (epoch ms), with a copy of its entry or without."""
    bare = Tick(schedule=f"tenant-{number}", revision=revisions[number], at=at)
    if not copy:
        return bare
    read_at = at - DAY * 1000
    entry = Schedule(
        id=bare.schedule,
        function="bench.due",
        origin="data",
        every=YEAR * 1000,
        armed_from=read_at,
        command=bare.revision,
        **shown(number),
    )
    return Copy(encode(entry), read_at).on(bare)


async def let_go(running: Stack, tick: Tick) -> None:
    """Take away the tick this schedule holds, as if it had been released: a chain has one."""
    bus, every = running.bus, YEAR * 1000
    next_at = (tick.at // every + 1) * every
    await bus.purge(bus.names.work, bus.names.tick_held(tick.schedule, tick.revision, next_at))


def soonest(running: Stack, count: int) -> int:
    """The first full second for which `count` ticks can be held and then left alone; epoch ms."""
    now = running.bus.clock.now() // 1000 * 1000
    return now + 1000 + round((COLD + count / PACE) * 1000) + running.settings.lead_ms


async def hold(running: Stack, ticks: Sequence[Tick]) -> None:
    """Have these ticks held, in the place of those that were. Nothing is read for `COLD` before the first is due."""
    bus, lead = running.bus, running.settings.lead_ms
    for start in range(0, len(ticks), 1000):
        messages = [dispatch.held_tick(bus.names, one, lead) for one in ticks[start : start + 1000]]
        await bus.publish_atomic(messages, timeout=60)
    await each(lambda one: let_go(running, one), ticks)
    left = (min(one.at for one in ticks) - lead - bus.clock.now()) / 1000
    if left < COLD:
        raise RuntimeError(f"this machine is too slow or too busy: {left:.1f} s are left of {COLD:g}")


async def hold_spread(
    running: Stack, revisions: "Revisions[int]", numbers: Sequence[int], spread: int
) -> int:
    """Have the ticks of these schedules held for times within `spread` ms; the first of them, epoch ms."""
    at, count = soonest(running, len(numbers)), len(numbers)
    await hold(
        running,
        [tick_of(revisions, number, at + place * spread // count) for place, number in enumerate(numbers)],
    )
    return at
