"""health-checker on a real server: it mends what is broken, and leaves alone what is not."""

from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

import pytest_asyncio

from jetcron.bus import ROLLUP, Outgoing, StoredMessage, hold
from jetcron.dispatch import held_tick, new_run, next_turn
from jetcron.health_checker import arm
from jetcron.health_checker.archived import ArchivedRuns
from jetcron.health_checker.findings import Findings
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import GROUPS, group_of, manual_run_id, shard
from jetcron_protocol.messages import Event, Function, Gap, Run, Schedule, Sweep, Tick
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import HastyClock, Stack, until

HOUR = 3_600_000
DAY = 24 * HOUR
YEAR_2200 = 7_258_118_400_000
ID = next(f"s{n}" for n in count() if group_of(shard(f"s{n}")) == 5)


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


@pytest_asyncio.fixture
async def slow_stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    """A sweep message lives as long as a period: on a busy machine that must not be too short."""
    async with Stack(shared_nats, sweep_every=3) as stack:
        yield stack


def hourly(**more: Any) -> Schedule:
    return Schedule(id=ID, **({"function": "app.f", "every": HOUR} | more))


async def put(stack: Stack, schedule: Schedule) -> int:
    return (await stack.bus.publish(stack.names.schedule_key(schedule.id), encode(schedule))).sequence


async def note(stack: Stack, group: int, healthy_at: int) -> None:
    """Say when the group was last found whole."""
    sweep = Sweep(group=group, healthy_at=healthy_at)
    await stack.bus.publish(stack.names.health_key(group), encode(sweep), {ROLLUP: "sub"})


async def sweep(stack: Stack, group: int = 5, ahead: int = 0) -> dict[str, int]:
    """Sweep a group; what was mended, by cause."""
    findings = await stack.make("health-checker", stack.bus, clock=HastyClock(ahead)).sweep(group)
    return dict(findings.repaired)


async def held(stack: Stack) -> list[tuple[str, int, int]]:
    subjects = await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.tick.>")
    ticks = [stack.names.parse_tick(subject) for subject in subjects]
    return sorted((tick.schedule, tick.revision, tick.at) for tick in ticks)


async def test_a_broken_cycle_goes_on_from_the_last_healthy_sweep(stack: Stack) -> None:
    healthy = stack.clock.now() // HOUR * HOUR - 3 * HOUR + 1
    revision = await put(stack, hourly())
    await note(stack, 5, healthy)
    assert await sweep(stack) == {"broken": 1}
    assert await held(stack) == [(ID, revision, (healthy // HOUR + 1) * HOUR)]
    assert await stack.stored(stack.names.journal) == []
    due = stack.names.tick_due(ID, revision, (healthy // HOUR + 1) * HOUR)

    async def released() -> bool:
        return await stack.bus.subjects(stack.names.work, due) == [due]

    await until(released, what="the tick, whose time has passed, released")
    assert await sweep(stack) == {}, "mended once"


async def test_no_cycle_starts_before_its_schedule_counts(stack: Stack) -> None:
    armed_from = stack.clock.now() // HOUR * HOUR + 5 * HOUR
    revision = await put(stack, hourly(armed_from=armed_from))
    await note(stack, 5, 1)
    assert await sweep(stack) == {"broken": 1}
    assert await held(stack) == [(ID, revision, armed_from + HOUR)]


async def test_what_lies_before_finished_runs_are_remembered_is_a_gap(stack: Stack) -> None:
    now = stack.clock.now()
    healthy = now // HOUR * HOUR - 100 * HOUR
    await put(stack, hourly(armed_from=1))
    await note(stack, 5, healthy)
    assert await sweep(stack) == {"broken": 1}
    ((_, _, at),) = await held(stack)
    (message,) = await stack.stored(stack.names.journal)
    gap = decode(Gap, message.payload)
    horizon = stack.settings.keep_completed_ms
    assert (gap.reason, gap.start) == ("unknown_history", healthy + HOUR)
    assert now - horizon - 60_000 < gap.to < at <= now - horizon + HOUR + 60_000
    assert gap.count == (at - healthy) // HOUR - 1, "each occurrence is in the gap or runs"


async def test_schedules_that_are_not_active_are_no_fault(stack: Stack) -> None:
    for state in ("paused", "archived", "ended", "deleted"):
        await put(stack, hourly(state=state))
        await note(stack, 5, 1)
        assert await sweep(stack) == {}
    assert await held(stack) == []


async def test_a_schedule_with_a_tick_held_or_due_is_whole(stack: Stack) -> None:
    revision = await put(stack, hourly())
    tick = Tick(schedule=ID, revision=revision, at=YEAR_2200)
    due = stack.names.tick_due(ID, revision, YEAR_2200)
    await stack.bus.publish(due, encode(tick))
    assert await sweep(stack) == {}
    await stack.bus.purge(stack.names.work, due)
    await stack.bus.store(held_tick(stack.names, tick, 500))
    assert await sweep(stack) == {}
    assert await held(stack) == [(ID, revision, YEAR_2200)]


async def test_ticks_of_an_unknown_schedule_are_removed(stack: Stack) -> None:
    for revision in (1, 2):
        tick = Tick(schedule=ID, revision=revision, at=YEAR_2200)
        await stack.bus.store(held_tick(stack.names, tick, 500))
    assert await sweep(stack) == {"orphan": 1}
    assert await held(stack) == []


async def test_an_overdue_tick_is_published_again_as_it_stands(stack: Stack) -> None:
    """By this checker's clock it is overdue; the server, whose clock is right, goes on holding it."""
    at = stack.clock.now() + HOUR
    revision = await put(stack, hourly())
    await stack.bus.store(held_tick(stack.names, Tick(schedule=ID, revision=revision, at=at), 500))
    subject = stack.names.tick_held(ID, revision, at)
    before = await stack.bus.last(stack.names.work, subject)
    assert await sweep(stack, ahead=HOUR // 2) == {}
    assert await sweep(stack, ahead=2 * HOUR) == {"overdue": 1}
    after = await stack.bus.last(stack.names.work, subject)
    assert before is not None
    assert after is not None
    assert (after.payload, after.headers.get("Nats-Schedule")) == (
        before.payload,
        before.headers["Nats-Schedule"],
    )
    assert after.sequence > before.sequence


async def test_many_overdue_ticks_are_freed_and_counted_together(stack: Stack) -> None:
    """Each is published once; their breaks are counted in a few writes, not one after another."""
    at = stack.clock.now() + HOUR
    ids = [id for n in range(20_000) if group_of(shard(id := f"many{n}")) == 5][:600]
    entries = [encode(Schedule(id=id, function="app.f", every=HOUR)) for id in ids]
    keys = [stack.names.schedule_key(id) for id in ids]
    groups = [[Outgoing(key, entry)] for key, entry in zip(keys, entries, strict=True)]
    assert len(await stack.bus.publish_groups(groups)) == 600
    stored = await stack.bus.entries(keys)
    held_ = [
        [held_tick(stack.names, Tick(schedule=id, revision=stored[key].sequence, at=at), 500)]
        for id, key in zip(ids, keys, strict=True)
    ]
    assert len(await stack.bus.publish_groups(held_)) == 600
    async with FaultyBus(stack.settings) as bus:
        checker = stack.make("health-checker", bus, clock=HastyClock(2 * HOUR))
        assert (await checker.sweep(5)).repaired == {"overdue": 600}
        assert sum(".tick.held." in name for name in bus.writes) == 600
        assert sum(".breaks." in name for name in bus.writes) <= 16, "a batch for each shard"
    counted = await stack.bus.subjects(
        stack.names.registry, f"{stack.names.breaks_key('x').rsplit('.', 2)[0]}.>"
    )
    assert len(counted) == 600


async def test_overdue_runs_and_events_are_published_again_without_their_ids(stack: Stack) -> None:
    names, at = stack.names, stack.clock.now() + HOUR
    run = Run(run=manual_run_id("app.f", "1"), function="app.f", trigger="manual", fire_at=at)
    message = next_turn(names, run, turn=1, fire_at=at, lead=500)
    message.headers["Nats-Msg-Id"] = "known"
    await stack.bus.store(message)
    body = encode(Event(id="1", name="x", ts=1, at=at))
    event = hold(names.later_held("x", "1"), names.later_due("x"), at, body, {"Jetcron-Event": "1"})
    await stack.bus.store(event)
    for group, stream, held_message in ((0, names.work, message), (1, names.later, event)):
        assert await sweep(stack, group) == {}
        assert await sweep(stack, group, ahead=2 * HOUR) == {"overdue": 1}
        stored = await stack.bus.last(stream, held_message.subject)
        assert stored is not None
        assert stored.sequence > 1
        assert stored.payload == held_message.payload
        assert stored.headers["Nats-Schedule"] == held_message.headers["Nats-Schedule"]
        assert stored.headers["Nats-Schedule-Target"] == held_message.headers["Nats-Schedule-Target"]
        assert "Nats-Msg-Id" not in stored.headers


async def test_a_sweep_notes_what_it_found_whole_less_the_grace(stack: Stack) -> None:
    before = stack.clock.now()
    await sweep(stack, 7)
    entry = await stack.bus.entry(stack.names.health_key(7))
    assert entry is not None
    found = decode(Sweep, entry.payload)
    grace = stack.settings.repair_grace_ms
    assert before - grace <= found.healthy_at <= stack.clock.now() - grace
    assert found.group == 7


async def test_many_copies_arm_each_sweep_once(slow_stack: Stack) -> None:
    """And every group is swept, by whichever copy is there."""
    stack = slow_stack
    await stack.start("health-checker", copies=3)
    subjects = await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.health.held.*")
    assert sorted(subjects) == sorted(stack.names.health_held(group) for group in range(GROUPS))
    assert await arm(stack.bus, stack.settings) == 0

    async def all_swept() -> bool:
        keys = [stack.names.health_key(group) for group in range(GROUPS)]
        return len(await stack.bus.entries(keys)) == GROUPS

    await until(all_swept, what="every group swept")
    messages = await stack.stored(stack.names.work, f"{stack.names.namespace}.health.held.>")
    assert len(messages) == GROUPS
    other = stack.settings.model_copy(update={"sweep_every": 30})
    assert await arm(stack.bus, other) == GROUPS, "another period replaces them"


async def test_a_sweep_message_nobody_can_read_goes_to_the_dead_stream(stack: Stack) -> None:
    await stack.start("health-checker")
    for body in (b"", b"16", b"-1", b"\xff"):
        await stack.bus.publish(stack.names.health_due, body)

    async def four() -> bool:
        return len(await stack.dead()) == 4

    await until(four, what="four letters")
    assert {letter.letter for letter in await stack.dead()} == {"health"}


async def test_a_running_checker_mends_a_cycle_that_has_no_tick(slow_stack: Stack) -> None:
    """Everything real: the entry is there and its tick is not, and the chain goes on all the same."""
    stack = slow_stack
    await stack.start("cron-tick", "health-checker")
    revision = await put(stack, Schedule(id=ID, function="app.f", every=1000, armed_from=stack.clock.now()))

    async def running() -> bool:
        subjects = await stack.stored(stack.names.work, stack.names.run_ready("app.f"))
        return len(subjects) >= 2

    await until(running, what="runs again")
    assert {tick[1] for tick in await held(stack)} == {revision}


async def test_what_is_once_and_was_past_when_it_was_set_is_mended(stack: Stack) -> None:
    now = stack.clock.now()
    once = hourly(every=None, at=now - HOUR, armed_from=now - 60_000, origin="data")
    revision = await put(stack, once)
    await note(stack, 5, now)
    assert await sweep(stack) == {"broken": 1}
    assert await held(stack) == [(ID, revision, now - HOUR)]


async def test_what_is_once_and_was_due_before_anybody_remembers_is_told_and_over(stack: Stack) -> None:
    """Else it would be missed for ever: its end is told cron-sync, as cron-tick does."""
    at = stack.clock.now() - 100 * HOUR
    await put(stack, hourly(every=None, at=at, armed_from=at - HOUR, origin="data"))
    assert await sweep(stack) == {"broken": 1}
    (message,) = await stack.stored(stack.names.journal)
    gap = decode(Gap, message.payload)
    assert (gap.start, gap.to, gap.count, gap.reason) == (at, at, 1, "unknown_history")
    assert await held(stack) == []
    await stack.start("cron-sync")
    await stack.settled(stack.names.work, stack.names.cron_sync)
    entry = await stack.bus.entry(stack.names.schedule_key(ID))
    assert entry is not None
    assert decode(Schedule, entry.payload).state == "deleted"
    assert await sweep(stack) == {}


async def test_a_chain_that_breaks_twice_goes_on_from_where_it_was_whole(stack: Stack) -> None:
    """What mends it stands for a time that is past: the sweep that mended it does not vouch for that."""
    healthy = stack.clock.now() // HOUR * HOUR - 3 * HOUR + 1
    revision = await put(stack, hourly())
    await note(stack, 5, healthy)
    first = (healthy // HOUR + 1) * HOUR
    due = stack.names.tick_due(ID, revision, first)
    for ahead in (0, 2_000):
        assert await sweep(stack, ahead=ahead) == {"broken": 1}
        # Purged while it is being released, it would come after the purge.
        await until(lambda: stack.bus.subjects(stack.names.work, due), what="released")
        assert await held(stack) == [(ID, revision, first)]
        await stack.bus.purge(stack.names.work, stack.names.ticks_of(ID))


async def test_a_run_whose_function_is_archived_is_cancelled_and_told(stack: Stack) -> None:
    """It was stored by somebody who read its entry before. One that is stored after we have looked stays."""
    late = Run(run=manual_run_id("app.gone", "late"), function="app.gone", trigger="manual", fire_at=0)
    runs = [
        Run(run=manual_run_id(function, "1"), function=function, trigger="manual", fire_at=0)
        for function in ("app.gone", "app.paused", "app.unknown")
    ]
    for function, state in (("app.gone", "archived"), ("app.paused", "paused")):
        entry = Function(id=function, state=state)  # type: ignore[arg-type]
        await stack.bus.publish(stack.names.function_key(function), encode(entry))
    for run in runs:
        await stack.bus.store(new_run(stack.names, run, now=0, lead=500))
    findings = Findings()

    class Slow(FaultyBus):
        async def entries(self, keys: Sequence[str]) -> dict[str, StoredMessage]:
            found = await super().entries(keys)
            await self.store(new_run(stack.names, late, now=0, lead=500))
            return found

    async with Slow(stack.settings) as bus:
        await ArchivedRuns(bus, stack.clock, stack.settings, by="test").cancel(findings)
    assert findings.repaired == {"archived": 1}
    (ended,) = await stack.journal.wait("cancelled")
    assert (ended.run, ended.entry.error and ended.entry.error.type) == (runs[0].run, "Archived")
    left = await stack.stored(stack.names.work, stack.names.run_ready_all)
    assert {decode(Run, message.payload).run for message in left} == {late.run, runs[1].run, runs[2].run}
    assert await sweep(stack, 0) == {"archived": 1}, "the next sweep has it"
