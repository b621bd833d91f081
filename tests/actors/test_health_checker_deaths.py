"""health-checker dies before any of its writes, or hears nothing of it, or a sweep comes twice: the same is stored."""

from collections.abc import Sequence
from itertools import count

from jetcron.bus import Delivery, hold
from jetcron.clock import SystemClock
from jetcron.dispatch import held_tick, new_run, next_turn
from jetcron_protocol.codec import encode
from jetcron_protocol.ids import group_of, manual_run_id, shard
from jetcron_protocol.messages import Event, Function, Past, Run, Schedule, Tick
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import HastyClock, Scenario, Stack, every_fault, play, until

HOUR = 3_600_000
YEAR_2200 = 7_258_118_400_000


def in_group(group: int, number: int = 1) -> list[str]:
    """Ids of schedules whose shards are of a group."""
    found = (f"s{n}" for n in count() if group_of(shard(f"s{n}")) == group)
    return [next(found) for _ in range(number)]


def sweep(group: int, ahead: int = 0) -> Scenario:
    """A group with a cycle of each kind: broken, whole, paused, stale, one with a leftover, ticks of an unknown one.

    And held messages.
    """
    broken, whole, paused, unknown, stale, leftover = in_group(group, 6)

    async def prepare(stack: Stack) -> None:
        names, bus = stack.names, stack.bus
        for id, state in ((broken, "active"), (whole, "active"), (paused, "paused")):
            schedule = Schedule(id=id, function="app.f", at=YEAR_2200, state=state)  # type: ignore[arg-type]
            revision = (await bus.publish(names.schedule_key(id), encode(schedule))).sequence
            if id == whole:
                await bus.store(held_tick(names, Tick(schedule=id, revision=revision, at=YEAR_2200), 500))
        for id in (stale, leftover):
            schedule = Schedule(id=id, function="app.f", at=YEAR_2200)
            old = (await bus.publish(names.schedule_key(id), encode(schedule))).sequence
            await bus.publish(names.past_key(id, old), encode(Past(schedule=schedule, end=1)))
            revision = (await bus.publish(names.schedule_key(id), encode(schedule))).sequence
            await bus.store(held_tick(names, Tick(schedule=id, revision=old, at=YEAR_2200), 500))
            if id == leftover:
                await bus.store(held_tick(names, Tick(schedule=id, revision=revision, at=YEAR_2200), 500))
        await bus.store(held_tick(names, Tick(schedule=unknown, revision=9, at=YEAR_2200), 500))
        run = Run(run=manual_run_id("app.f", "1"), function="app.f", trigger="manual", fire_at=YEAR_2200)
        await bus.store(next_turn(names, run, turn=3, fire_at=YEAR_2200, lead=500))
        event = Event(id="1", name="x", ts=1, at=YEAR_2200)
        later = names.later_held("x", "1")
        await bus.store(hold(later, names.later_due("x"), YEAR_2200, encode(event), {"Jetcron-Event": "1"}))
        await bus.publish(names.health_due, str(group).encode())

    async def act(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
        await stack.make("health-checker", bus, clock=HastyClock(ahead)).handle(deliveries)

    return Scenario(prepare, act, durable="health_checker")


async def test_a_fault_in_any_write_changes_nothing(shared_nats: NatsServer) -> None:
    async for where, whole, disturbed in every_fault(shared_nats, sweep(5)):
        assert disturbed.state == whole.state, where
        assert any("tick.held" in name for name in whole.writes)
        assert any("PURGE" in name for name in whole.writes)


async def test_a_fault_while_overdue_messages_are_freed_changes_nothing(shared_nats: NatsServer) -> None:
    """By this checker's clock everything held is overdue; the server, whose clock is right, holds it again."""
    for group in (0, 1):
        async for where, whole, disturbed in every_fault(shared_nats, sweep(group, YEAR_2200)):
            assert disturbed.state == whole.state, where
            assert any(".later." in name for name in whole.writes)


async def test_every_sweep_twice_is_every_sweep_once(shared_nats: NatsServer) -> None:
    once = await play(shared_nats, sweep(0))
    twice = await play(shared_nats, sweep(0), again=1)
    assert twice.state == once.state


async def test_a_fault_while_what_is_once_is_mended_changes_nothing(shared_nats: NatsServer) -> None:
    """One that was past when it was set is armed again; of one long ago the ledger is told, then cron-sync."""
    belated, forgotten = in_group(5, 2)
    began = SystemClock().now()

    async def prepare(stack: Stack) -> None:
        for id, armed_from in ((belated, began), (forgotten, 2)):
            once = Schedule(id=id, function="app.f", origin="data", at=1, armed_from=armed_from)
            await stack.bus.publish(stack.names.schedule_key(id), encode(once))
        await stack.bus.publish(stack.names.health_due, b"5")

    async def act(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
        await sweep(5).act(stack, bus, deliveries)
        due = stack.names.ticks_of(belated, state="due")
        await until(lambda: stack.bus.subjects(stack.names.work, due), what="the tick of long ago released")

    scenario = Scenario(prepare, act, durable="health_checker")
    async for where, whole, disturbed in every_fault(shared_nats, scenario):
        assert disturbed.state == whole.state, where
        for part in (f".{belated}.in force.1", ".sync.", ".gap-"):
            assert part in str(whole.state), part


async def test_a_fault_while_runs_of_an_archived_function_are_cancelled_changes_nothing(
    shared_nats: NatsServer,
) -> None:
    async def prepare(stack: Stack) -> None:
        for function, state in (("app.gone", "archived"), ("app.f", "active")):
            entry = Function(id=function, state=state)  # type: ignore[arg-type]
            await stack.bus.publish(stack.names.function_key(function), encode(entry))
            run = Run(run=manual_run_id(function, "1"), function=function, trigger="manual", fire_at=0)
            await stack.bus.store(new_run(stack.names, run, now=0, lead=500))
            await stack.bus.store(next_turn(stack.names, run, turn=3, fire_at=YEAR_2200, lead=500))
        await stack.bus.publish(stack.names.health_due, b"0")

    scenario = Scenario(prepare, sweep(0).act, durable="health_checker")
    async for where, whole, disturbed in every_fault(shared_nats, scenario):
        assert disturbed.state == whole.state, where
        left = [subject for subject, _ in whole.state["work"] if ".run." in subject]
        assert sorted(subject.split(".")[4] for subject in left) == ["f", "f"]
