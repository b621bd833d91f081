"""health-checker on a real server: each cause told apart, counted once by two copies, escalated at the third break."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from jetcron.cli.doctor import examine
from jetcron.dispatch import held_tick
from jetcron.health_checker import chains
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import Breaks, Past, Schedule, Sweep, Tick
from tests.actors.test_health_checker_deaths import in_group
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import HastyClock, Stack, take

HOUR = 3_600_000
YEAR_2200 = 7_258_118_400_000
BROKEN, STALE, LEFTOVER, OVERDUE, ORPHAN, WHOLE, PAUSED = in_group(5, 7)


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


async def put(stack: Stack, id: str, **more: Any) -> int:
    schedule = Schedule(id=id, **({"function": "app.f", "at": YEAR_2200} | more))
    return (await stack.bus.publish(stack.names.schedule_key(id), encode(schedule))).sequence


async def replaced(stack: Stack, id: str, end: int = 1) -> tuple[int, int]:
    """A schedule that was replaced: its old revision and the one in force."""
    old = await put(stack, id)
    past = Past(schedule=Schedule(id=id, function="app.f", at=YEAR_2200), end=end)
    await stack.bus.publish(stack.names.past_key(id, old), encode(past))
    return old, await put(stack, id)


async def hold(stack: Stack, id: str, revision: int, at: int = YEAR_2200) -> None:
    await stack.bus.store(held_tick(stack.names, Tick(schedule=id, revision=revision, at=at), 500))


async def ticks(stack: Stack, id: str) -> list[tuple[int, int]]:
    subjects = await stack.bus.subjects(stack.names.work, stack.names.ticks_of(id))
    return sorted((tick.revision, tick.at) for tick in map(stack.names.parse_tick, subjects))


async def breaks(stack: Stack, id: str) -> Breaks | None:
    entry = await stack.bus.entry(stack.names.breaks_key(id))
    return None if entry is None else decode(Breaks, entry.payload)


async def sweep(stack: Stack, ahead: int = 0, message: int = 0) -> dict[str, int]:
    checker = stack.make("health-checker", stack.bus, clock=HastyClock(ahead))
    return dict((await checker.sweep(5, message=message)).repaired)


@pytest.mark.parametrize("end", [None, 1], ids=["about to be replaced", "said to be replaced"])
async def test_the_tick_of_a_revision_in_force_is_left_alone(stack: Stack, end: int | None) -> None:
    revision = await put(stack, STALE)
    said = Past(schedule=Schedule(id=STALE, function="app.f", at=YEAR_2200), end=end)
    await stack.bus.publish(stack.names.past_key(STALE, revision), encode(said))
    await hold(stack, STALE, revision)
    assert await sweep(stack) == {}
    assert await ticks(stack, STALE) == [(revision, YEAR_2200)]
    assert await breaks(stack, STALE) is None


async def test_two_copies_tell_each_cause_apart_and_count_it_once(stack: Stack) -> None:
    """Both find everything, at the same time; one of them is said to have mended each."""
    broken = await put(stack, BROKEN)
    old_stale, stale = await replaced(stack, STALE)
    await hold(stack, STALE, old_stale)
    old_leftover, leftover = await replaced(stack, LEFTOVER)
    await hold(stack, LEFTOVER, old_leftover)
    await hold(stack, LEFTOVER, leftover)
    soon = stack.clock.now() + HOUR
    overdue = await put(stack, OVERDUE, at=soon)
    await hold(stack, OVERDUE, overdue, soon)
    await hold(stack, ORPHAN, 7)
    whole = await put(stack, WHOLE)
    await hold(stack, WHOLE, whole)
    await put(stack, PAUSED, state="paused")
    async with FaultyBus(stack.settings) as first, FaultyBus(stack.settings) as second:
        clock = HastyClock(2 * HOUR)
        copies = [stack.make("health-checker", bus, clock=clock) for bus in (first, second)]
        found = await asyncio.gather(*(copy.sweep(5) for copy in copies))
        metrics = [copy._process.metrics.repairs for copy in copies]
    counted = Counter[str]()
    for findings in found:
        counted.update(findings.repaired)
    causes = ("broken", "stale", "leftover", "overdue", "orphan")
    assert counted == dict.fromkeys(causes, 1)
    assert {cause: sum(one.labels(cause)._value.get() for one in metrics) for cause in causes} == counted
    assert await ticks(stack, BROKEN) == [(broken, YEAR_2200)]
    assert await ticks(stack, STALE) == [(stale, YEAR_2200)]
    assert await ticks(stack, LEFTOVER) == [(leftover, YEAR_2200)]
    assert await ticks(stack, OVERDUE) == [(overdue, soon)]
    assert await ticks(stack, ORPHAN) == []
    assert await ticks(stack, WHOLE) == [(whole, YEAR_2200)]
    assert await ticks(stack, PAUSED) == []
    for id, cause in ((BROKEN, "broken"), (STALE, "stale"), (OVERDUE, "overdue")):
        count = await breaks(stack, id)
        assert count is not None
        assert (count.times, count.causes) == (1, {cause: 1})
    for id in (LEFTOVER, ORPHAN, WHOLE, PAUSED):
        assert await breaks(stack, id) is None, "no cycle broke"
    assert await sweep(stack, 3 * HOUR) == {"overdue": 1}, "the server, whose clock is right, holds it still"


async def test_a_replaced_revision_that_still_governs_is_left_alone(stack: Stack) -> None:
    """Its tick lies before its end: it will run, and the one in force has its own."""
    old, revision = await replaced(stack, LEFTOVER, end=YEAR_2200)
    await hold(stack, LEFTOVER, old)
    await hold(stack, LEFTOVER, revision)
    assert await sweep(stack) == {}
    assert await ticks(stack, LEFTOVER) == [(old, YEAR_2200), (revision, YEAR_2200)]


async def test_ticks_of_a_registry_that_was_restored_are_no_fault(stack: Stack) -> None:
    """They are of a later revision than the entry: released, they start the chain anew."""
    old, revision = await replaced(stack, STALE)
    await hold(stack, STALE, revision + 5)
    assert await sweep(stack) == {}
    assert await ticks(stack, STALE) == [(revision + 5, YEAR_2200)]
    assert old < revision


async def test_the_third_break_of_a_cycle_is_escalated(stack: Stack) -> None:
    await put(stack, BROKEN)
    for times in (1, 2, 3):
        await stack.bus.purge(stack.names.work, stack.names.ticks_of(BROKEN))
        checker = stack.make("health-checker", stack.bus, clock=HastyClock(times * 2_000))
        with capture_logs() as lines:
            assert (await checker.sweep(5)).repaired == {"broken": 1}
        again = [line for line in lines if "again and again" in line["event"]]
        found = {one.about: one for one in await examine(stack.settings)}["repairs"]
        escalations = checker._process.metrics.escalations._value.get()
        if times < 3:
            assert (again, escalations, found.level) == ([], 0, "note")
        else:
            assert [(line["log_level"], line["schedule"], line["times"]) for line in again] == [
                ("error", BROKEN, 3)
            ]
            assert escalations == 1
            assert found.level == "wrong"
            assert f"{BROKEN} (3 times)" in found.what
    entry = await stack.bus.entry(stack.names.breaks_key(BROKEN))
    assert entry is not None
    assert entry.headers["Nats-TTL"] == "86400s", "a healthy day, and it is forgotten"


async def test_a_sweep_message_delivered_again_counts_no_break_twice(stack: Stack) -> None:
    """Its first handler died after it had counted and before it mended."""
    await put(stack, BROKEN)
    assert await sweep(stack, 2_000, message=9) == {"broken": 1}
    await stack.bus.purge(stack.names.work, stack.names.ticks_of(BROKEN))
    assert await sweep(stack, 4_000, message=9) == {}
    assert len(await ticks(stack, BROKEN)) == 1, "mended all the same"
    count = await breaks(stack, BROKEN)
    assert count is not None
    assert (count.times, count.message) == (1, 9)


async def test_the_message_that_was_handled_is_the_one_noted(stack: Stack) -> None:
    await put(stack, BROKEN)
    await stack.bus.publish(stack.names.health_due, b"5")
    (delivery,) = await take(stack.bus, stack.names.work, stack.names.health_checker)
    await stack.make("health-checker", stack.bus, clock=HastyClock()).handle([delivery])
    count = await breaks(stack, BROKEN)
    assert count is not None
    assert count.message == delivery.sequence


async def test_very_many_without_a_tick_are_looked_at_in_parts(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is broken is found when its turn comes, and nothing is called whole before all were looked at."""
    monkeypatch.setattr(chains, "MOST_READ", 3)
    ids = in_group(5, 8)
    order = sorted(ids, key=lambda id: stack.names.schedule_key(id))
    for id in order[:-1]:
        await put(stack, id, state="paused")
    await put(stack, order[-1])
    notes = []
    began = stack.clock.now()
    for round_ in range(1, 4):
        repaired = await sweep(stack, round_ * 2_000)
        entry = await stack.bus.entry(stack.names.health_key(5))
        assert entry is not None
        notes.append(decode(Sweep, entry.payload))
        assert repaired == ({"broken": 1} if round_ == 3 else {})
    assert [note.healthy_at for note in notes[:2]] == [0, 0]
    assert all(note.absent for note in notes[:2])
    grace = stack.settings.repair_grace_ms
    assert notes[2].absent == ""
    # All was looked at since the first of them began: no later than that is vouched for.
    assert began + 2_000 - grace - 1_000 <= notes[2].healthy_at <= notes[1].swept_at - grace
