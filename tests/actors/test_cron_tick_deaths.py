"""cron-tick dies before any of its writes, or hears nothing of it, or every tick comes twice: the same is stored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from jetcron.bus import TTL, Delivery, Outgoing
from jetcron.clock import SystemClock
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Function, Past, Schedule, Tick
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import ALL_FAULTS, Scenario, Stack, clear_of_full, every_fault, play

HOUR = 3_600_000
MINUTE = 60_000
CLEAR = 15.0
"""Seconds in which a scenario has been played in all its ways: what is late, and what is to come, stays so."""


@dataclass(frozen=True, slots=True)
class Due:
    """Schedules as registered, those some of them replaced, and the ticks that are due."""

    schedules: Sequence[Schedule]
    ticks: Sequence[tuple[str, int]]
    past: dict[str, tuple[Schedule, int]] = field(default_factory=dict)
    raw: bytes | None = None
    archived: Sequence[str] = ()

    async def prepare(self, stack: Stack) -> None:
        """Write the registry, then the ticks, of the revisions that stand or stood."""
        for id in self.archived:
            function = Function(id=id, state="archived")
            await stack.bus.publish(stack.names.function_key(id), encode(function))
        revisions: dict[str, int] = {}
        for schedule in self.schedules:
            key = stack.names.schedule_key(schedule.id)
            if schedule.id in self.past:
                older, end = self.past[schedule.id]
                revisions[schedule.id] = (await stack.bus.publish(key, encode(older))).sequence
                past = stack.names.past_key(schedule.id, revisions[schedule.id])
                body = encode(Past(schedule=older, end=end))
                await stack.bus.store(Outgoing(past, body, {TTL: "1h"}))
                await stack.bus.publish(key, encode(schedule))
            else:
                revisions[schedule.id] = (await stack.bus.publish(key, encode(schedule))).sequence
        for id, at in self.ticks:
            tick = Tick(schedule=id, revision=revisions[id], at=at)
            await stack.bus.publish(stack.names.tick_due(id, tick.revision, at), encode(tick))
        if self.raw is not None:
            await stack.bus.publish(stack.names.tick_due("broken", 1, 1), self.raw)

    def scenario(self) -> Scenario:
        count = len(self.ticks) + (self.raw is not None)
        return Scenario(self.prepare, handle, durable="cron_tick", count=count)


async def handle(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
    """A fresh cron-tick handles what was delivered."""
    await stack.make("cron-tick", bus).handle(deliveries)


def cases() -> dict[str, Due]:
    now = SystemClock().now()
    soon = now + HOUR - now % HOUR

    def hourly(id: str, **more: Any) -> Schedule:
        return Schedule(id=id, function=f"app.{id}", **({"every": HOUR} | more))

    late = soon - 5 * HOUR
    replaced = hourly("replaced", every=2 * HOUR)
    return {
        "a run and the next tick": Due([hourly("one")], [("one", soon)]),
        "three schedules, one ended": Due(
            [hourly("one"), hourly("two", end=soon), hourly("three", state="paused")],
            [("one", soon), ("two", soon), ("three", soon)],
        ),
        "late, all of them": Due([hourly("all", catch_up="all")], [("all", late)]),
        "late, the latest, a gap for the rest": Due([hourly("latest")], [("latest", late)]),
        "late, none": Due([hourly("skip", catch_up="skip")], [("skip", late)]),
        "superseded, settled from the past": Due(
            [hourly("replaced", armed_from=soon + 3 * HOUR)],
            [("replaced", soon)],
            {"replaced": (replaced, soon + 3 * HOUR)},
        ),
        "a run held for its jitter": Due([hourly("jitter", jitter=24 * HOUR)], [("jitter", soon)]),
        "left to the other scheduler": Due(
            [hourly("other", executes="other"), hourly("one")], [("other", soon), ("one", soon)]
        ),
        "left to the other scheduler, late": Due([hourly("other", executes="other")], [("other", late)]),
        "its function was archived since": Due(
            [hourly("replaced", state="archived"), hourly("one")],
            [("replaced", soon), ("one", soon)],
            {"replaced": (replaced, soon + 3 * HOUR)},
            archived=["app.replaced"],
        ),
        "its function was archived since, late": Due(
            [hourly("replaced", state="archived")],
            [("replaced", late)],
            {"replaced": (replaced, late + 3 * HOUR)},
            archived=["app.replaced"],
        ),
        "one that cannot be read": Due([hourly("one")], [("one", soon)], raw=b"\xc1"),
    }


@pytest.mark.parametrize("name", cases())
async def test_a_fault_in_any_write_changes_nothing(name: str, shared_nats: NatsServer) -> None:
    await clear_of_full(SystemClock(), HOUR, seconds=CLEAR)
    async for where, whole, disturbed in every_fault(shared_nats, cases()[name].scenario(), ALL_FAULTS):
        assert disturbed.state == whole.state, where


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("name", cases())
async def test_every_tick_twice_is_every_tick_once(
    name: str, forgotten: bool, shared_nats: NatsServer
) -> None:
    await clear_of_full(SystemClock(), HOUR, seconds=CLEAR)
    scenario = cases()[name].scenario()
    once = await play(shared_nats, scenario)
    twice = await play(shared_nats, scenario, again=1, forgotten=forgotten)
    assert twice.state == once.state
