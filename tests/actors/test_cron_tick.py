"""cron-tick on a real server: what each tick leads to, in time and late, under every revision."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Client
from jetcron.bus import TTL, Bus, Outgoing, StoredMessage
from jetcron.dispatch import held_tick
from jetcron.registration import order
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import code_run_id, schedule_run_id
from jetcron_protocol.messages import CronTrigger, Function, Gap, Past, Run, Schedule, SyncCommand, Tick
from tests.support.faults import FaultyBus, Refuse
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, clear_of_full, take, until

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


def hourly(id: str = "app.f", **more: Any) -> Schedule:
    return Schedule(id=id, **({"function": "app.f", "every": HOUR} | more))


async def put(stack: Stack, schedule: Schedule) -> int:
    """Write an entry as cron-sync would; its revision."""
    return (await stack.bus.publish(stack.names.schedule_key(schedule.id), encode(schedule))).sequence


async def due(stack: Stack, schedule: str, revision: int, at: int) -> None:
    """Put a released tick there."""
    tick = Tick(schedule=schedule, revision=revision, at=at)
    await stack.bus.publish(stack.names.tick_due(schedule, revision, at), encode(tick))


async def turn(stack: Stack, count: int = 1) -> None:
    """Have cron-tick turn what is due, and see all of it acknowledged."""
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick, count)
    await stack.make("cron-tick", stack.bus).handle(deliveries)
    await stack.settled(stack.names.work, stack.names.cron_tick)


async def one_left(stack: Stack) -> None:
    """Wait until cron-tick is done with all messages but one: an acknowledgement may be under way."""

    async def so() -> bool:
        return await stack.left(stack.names.work, stack.names.cron_tick) == 1

    await until(so, what="one message left")


async def runs(stack: Stack, state: str = "ready") -> list[Run]:
    subject = f"{stack.names.namespace}.run.{state}.>"
    return [decode(Run, message.payload) for message in await stack.stored(stack.names.work, subject)]


async def held(stack: Stack) -> list[tuple[str, int, int]]:
    subjects = await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.tick.>")
    ticks = [stack.names.parse_tick(subject) for subject in subjects]
    return sorted((tick.schedule, tick.revision, tick.at) for tick in ticks)


async def gaps(stack: Stack) -> list[Gap]:
    return [decode(Gap, message.payload) for message in await stack.stored(stack.names.journal)]


def next_hour(stack: Stack) -> int:
    return (stack.clock.now() // HOUR + 1) * HOUR


async def test_a_tick_becomes_a_run_and_the_next_tick_in_one_batch(stack: Stack) -> None:
    at = next_hour(stack)
    revision = await put(stack, hourly())
    await due(stack, "app.f", revision, at)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick)
    async with FaultyBus(stack.settings) as bus:
        await stack.make("cron-tick", bus).handle(deliveries)
        assert len(bus.writes) == 1, "one batch"
    (run,) = await runs(stack, "later" if at - stack.clock.now() > 500 else "ready")
    assert (run.run, run.turn, run.scheduled_at, run.fire_at) == (code_run_id("app.f", at), 0, at, at)
    assert (run.function, run.schedule, run.trigger) == ("app.f", "app.f", "cron")
    assert await held(stack) == [("app.f", revision, at + HOUR)]


async def test_a_schedule_made_as_data_names_its_runs_and_brings_its_payload(stack: Stack) -> None:
    at = stack.clock.now() // 1000 * 1000
    revision = await put(stack, hourly("tenant 1", origin="data", payload={"tenant": 1}, every=1000))
    await due(stack, "tenant 1", revision, at)
    await turn(stack)
    (run,) = await runs(stack)
    assert run.run == schedule_run_id("app.f", "tenant 1", at)
    assert run.payload == {"tenant": 1}


async def test_many_that_end_at_one_instant_are_told_in_a_few_commands(stack: Stack) -> None:
    at = stack.clock.now()
    ids = [f"once {n}" for n in range(120)]
    for id in ids:
        revision = await put(stack, hourly(id, origin="data", every=None, at=at))
        await due(stack, id, revision, at)
    await due(stack, "app.f", await put(stack, hourly()), at)
    await turn(stack, 121)
    assert sorted(run.schedule or "" for run in await runs(stack)) == ["app.f", *sorted(ids)]
    orders = [
        decode(SyncCommand, message.payload)
        for message in await stack.stored(stack.names.work, stack.names.sync_all)
    ]
    assert sorted(id for order in orders for id in order.items) == sorted(ids)
    assert len(orders) < 10
    await stack.start("cron-sync")
    await stack.settled(stack.names.work, stack.names.cron_sync)
    for id in (ids[0], ids[-1]):
        entry = await stack.bus.entry(stack.names.schedule_key(id))
        assert entry is not None
        assert decode(Schedule, entry.payload).state == "deleted"


async def test_the_last_occurrence_tells_cron_sync_that_it_ended(stack: Stack) -> None:
    at = stack.clock.now()
    revision = await put(stack, hourly("once", every=None, at=at))
    await due(stack, "once", revision, at)
    await turn(stack)
    assert [run.scheduled_at for run in await runs(stack)] == [at]
    assert await held(stack) == []
    (message,) = await stack.stored(stack.names.work, stack.names.sync_all)
    ended = decode(SyncCommand, message.payload)
    assert (ended.command, ended.app, ended.items, ended.revision) == ("ended", "app", ["once"], revision)
    await stack.start("cron-sync")
    await stack.settled(stack.names.work, stack.names.cron_sync)
    entry = await stack.bus.entry(stack.names.schedule_key("once"))
    assert entry is not None
    assert decode(Schedule, entry.payload).state == "ended"


async def test_a_superseded_revision_is_settled_by_what_stood_then(stack: Stack) -> None:
    """Up to its end it governs, its chain goes on to there, and not beyond."""
    await clear_of_full(stack.clock, MINUTE)
    now = stack.clock.now() // MINUTE * MINUTE
    old = hourly(every=MINUTE, function="app.old")
    revision = await put(stack, old)
    await put(stack, hourly(function="app.new", armed_from=now + 2 * MINUTE))
    past = Outgoing(
        stack.names.past_key("app.f", revision), encode(Past(schedule=old, end=now + 2 * MINUTE)), {TTL: "1h"}
    )
    await stack.bus.store(past)
    for at in (now, now + 2 * MINUTE, now + 3 * MINUTE):
        await due(stack, "app.f", revision, at)
    await turn(stack, 3)
    everything = [*await runs(stack), *await runs(stack, "later")]
    assert sorted(run.scheduled_at or 0 for run in everything) == [now, now + 2 * MINUTE]
    assert {run.function for run in everything} == {"app.old"}
    assert await held(stack) == [("app.f", revision, now + MINUTE)]


@pytest.mark.parametrize("state", ["paused", "archived", "deleted", "ended", None])
async def test_a_schedule_that_is_not_active_ends_its_chain(state: Any, stack: Stack) -> None:
    revision = 7 if state is None else await put(stack, hourly(state=state))
    await due(stack, "app.f", revision, stack.clock.now())
    await turn(stack)
    assert (await runs(stack), await held(stack), await gaps(stack)) == ([], [], [])


async def test_a_revision_replaced_and_forgotten_ends_its_chain(stack: Stack) -> None:
    revision = await put(stack, hourly())
    await put(stack, hourly(every=MINUTE))
    await due(stack, "app.f", revision, stack.clock.now())
    await turn(stack)
    assert (await runs(stack), await held(stack)) == ([], [])


async def test_a_restored_registry_starts_the_chain_anew(stack: Stack) -> None:
    """The tick is of a revision the registry has not reached: it was restored to an older entry."""
    at = next_hour(stack)
    revision = await put(stack, hourly())
    await due(stack, "app.f", revision + 5, at)
    await turn(stack)
    assert await held(stack) == [("app.f", revision, at)], "from just before the tick: nothing is lost"
    assert await runs(stack) == []


@pytest.mark.parametrize(
    ("catch_up", "ran", "reason"), [("latest", 1, "catch_up"), ("all", 5, None), ("skip", 0, "catch_up")]
)
async def test_late_occurrences_are_one_group(
    catch_up: Any, ran: int, reason: str | None, stack: Stack
) -> None:
    await clear_of_full(stack.clock, HOUR)
    newest = stack.clock.now() // HOUR * HOUR
    first = newest - 4 * HOUR
    revision = await put(stack, hourly(catch_up=catch_up))
    await due(stack, "app.f", revision, first)
    await turn(stack)
    times = [run.scheduled_at for run in await runs(stack)]
    assert times == [newest - n * HOUR for n in reversed(range(ran))]
    assert await held(stack) == [("app.f", revision, newest + HOUR)]
    found = await gaps(stack)
    assert [(gap.start, gap.count, gap.reason) for gap in found] == (
        [(first, 5 - ran, reason)] if reason else []
    )
    for gap in found:
        assert first <= gap.to
        assert ran == 0 or gap.to < newest


async def test_missed_occurrences_outside_the_window_or_beyond_the_cap_are_in_the_ledger(
    stack: Stack,
) -> None:
    await clear_of_full(stack.clock, HOUR)
    newest = stack.clock.now() // HOUR * HOUR
    window, cap = {"catch_up_within": 3 * HOUR + MINUTE, "catch_up": "all"}, {"catch_up_most": 2}
    for id, more in {"app.f": window, "app.g": window | cap}.items():
        revision = await put(stack, hourly(id, function=id, **more))
        await due(stack, id, revision, newest - 9 * HOUR)
    await turn(stack, 2)
    assert [(run.function, run.scheduled_at) for run in await runs(stack) if run.function == "app.g"] == [
        ("app.g", newest - HOUR),
        ("app.g", newest),
    ]
    ran = [run.scheduled_at for run in await runs(stack) if run.function == "app.f"]
    assert ran[-3:] == [newest - n * HOUR for n in (2, 1, 0)]
    found = {gap.schedule: (gap.start, gap.count, gap.reason) for gap in await gaps(stack)}
    assert found == {
        "app.f": (newest - 9 * HOUR, 10 - len(ran), "too_old"),
        "app.g": (newest - 9 * HOUR, 8, "too_many"),
    }


async def test_at_most_a_thousand_missed_occurrences_are_caught_up(stack: Stack) -> None:
    now = stack.clock.now()
    newest = now // MINUTE * MINUTE
    first = newest - 1_299 * MINUTE
    revision = await put(stack, hourly(every=MINUTE, catch_up="all"))
    await due(stack, "app.f", revision, first)
    await turn(stack)
    times = {run.scheduled_at for run in await runs(stack)}
    (gap,) = await gaps(stack)
    assert len(times) == 1_000
    assert gap.reason == "too_many"
    assert gap.count + len(times) == (max(t or 0 for t in times) - first) // MINUTE + 1
    assert gap.start == first
    assert min(t or 0 for t in times) == gap.to + 1
    assert await held(stack) == [("app.f", revision, max(t or 0 for t in times) + MINUTE)]


async def test_what_a_replaced_revision_left_out_is_told_under_its_own_function(stack: Stack) -> None:
    newest = stack.clock.now() // HOUR * HOUR
    old = hourly("a", origin="data", catch_up="skip", function="app.old")
    revision = await put(stack, old)
    past = Past(schedule=old, end=newest)
    await stack.bus.publish(stack.names.past_key("a", revision), encode(past))
    await put(stack, hourly("a", origin="data", armed_from=newest))
    await due(stack, "a", revision, newest - 2 * HOUR)
    await turn(stack)
    (message,) = await stack.stored(stack.names.journal)
    assert stack.names.parse_journal(message.subject)[0] == "app.old"
    assert decode(Gap, message.payload).count == 3


async def test_a_late_tick_whose_chain_has_gone_on_is_settled(stack: Stack) -> None:
    at = stack.clock.now() // HOUR * HOUR - 3 * HOUR
    revision = await put(stack, hourly(catch_up="all"))
    await stack.bus.store(
        held_tick(stack.names, Tick(schedule="app.f", revision=revision, at=at + 9 * HOUR), 500)
    )
    await due(stack, "app.f", revision, at)
    await turn(stack)
    assert (await runs(stack), await gaps(stack)) == ([], [])
    assert await held(stack) == [("app.f", revision, at + 9 * HOUR)]


async def test_jitter_beyond_the_lead_holds_the_run(stack: Stack) -> None:
    at = stack.clock.now() // 1000 * 1000
    revision = await put(stack, hourly(jitter=DAY, every=1000))
    await due(stack, "app.f", revision, at)
    await turn(stack)
    assert await runs(stack) == []
    (run,) = await runs(stack, "later")
    assert (run.turn, run.scheduled_at) == (0, at)
    assert at + 500 < run.fire_at < at + DAY
    (message,) = await stack.stored(stack.names.work, stack.names.run_later_all)
    assert message.subject == stack.names.run_later("app.f", run.run, 0)
    assert message.headers["Nats-Schedule-Target"] == stack.names.run_ready("app.f")


async def test_a_tick_nobody_can_read_goes_to_the_dead_stream_and_the_others_go_on(stack: Stack) -> None:
    at = next_hour(stack)
    revision = await put(stack, hourly())
    await stack.bus.publish(stack.names.tick_due("app.f", revision, 1), b"\xc1")
    lying = encode(Tick(schedule="another", revision=1, at=1))
    await stack.bus.publish(stack.names.tick_due("app.f", revision, 2), lying)
    await stack.bus.publish(f"{stack.names.namespace}.tick.due.no.tick", b"x")
    await due(stack, "app.f", revision, at)
    await turn(stack, 4)
    assert await held(stack) == [("app.f", revision, at + HOUR)]
    letters = await stack.dead()
    assert [(letter.letter, letter.body) for letter in letters] == [
        ("tick", b"\xc1"),
        ("tick", lying),
        ("tick", b"x"),
    ]


async def test_an_entry_nobody_can_read_stops_only_its_own_schedule(stack: Stack) -> None:
    """It is handed back, never acknowledged: a newer program may read it."""
    at = next_hour(stack)
    good = await put(stack, hourly())
    bad = (await stack.bus.publish(stack.names.schedule_key("bad"), b"\xc1")).sequence
    await due(stack, "bad", bad, at)
    await due(stack, "app.f", good, at)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick, 2)
    await stack.make("cron-tick", stack.bus).handle(deliveries)
    await one_left(stack)
    assert ("app.f", good, at + HOUR) in await held(stack)
    assert await stack.dead() == []
    await one_left(stack)


async def test_what_storage_does_not_confirm_is_not_acknowledged(stack: Stack) -> None:
    at = next_hour(stack)
    revision = await put(stack, hourly())
    await due(stack, "app.f", revision, at)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick)
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Refuse())
        await stack.make("cron-tick", bus).handle(deliveries)
    assert await stack.left(stack.names.work, stack.names.cron_tick) == 1
    await turn(stack)
    assert await held(stack) == [("app.f", revision, at + HOUR)]


async def test_five_hundred_ticks_in_one_batch(stack: Stack) -> None:
    at = next_hour(stack)
    entries = [
        Outgoing(stack.names.schedule_key(f"s{n}"), encode(hourly(f"s{n}", function=f"app.f{n % 7}")))
        for n in range(500)
    ]
    first = await stack.bus.publish_atomic(entries) - 499
    ticks = []
    for n in range(500):
        tick = Tick(schedule=f"s{n}", revision=first + n, at=at)
        ticks.append([Outgoing(stack.names.tick_due(f"s{n}", first + n, at), encode(tick))])
    await stack.bus.publish_groups(ticks)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick, 500)
    async with FaultyBus(stack.settings) as bus:
        await stack.make("cron-tick", bus).handle(deliveries)
        assert len(bus.writes) == 1, "one batch"
    await stack.settled(stack.names.work, stack.names.cron_tick)
    assert await held(stack) == sorted((f"s{n}", first + n, at + HOUR) for n in range(500))
    everything = [*await runs(stack), *await runs(stack, "later")]
    # Seven functions: what falls on one instant for one of them is one run.
    assert {run.run for run in everything} == {code_run_id(f"app.f{n}", at) for n in range(7)}
    assert len(everything) == 7


async def test_many_copies_turn_every_occurrence_once(stack: Stack) -> None:
    """Three copies, a schedule a second: every second is a run, none is two."""
    await stack.start("cron-tick", copies=3)
    start = stack.clock.now()
    for n in range(20):
        schedule = hourly(f"s{n}", function=f"app.f{n}", every=1000, armed_from=start)
        revision = await put(stack, schedule)
        first = Tick(schedule=schedule.id, revision=revision, at=start // 1000 * 1000 + 1000)
        await stack.bus.store(held_tick(stack.names, first, stack.settings.lead_ms))

    async def three_each() -> bool:
        return len(await runs(stack)) >= 60

    await until(three_each, what="three runs of each")
    by_function: dict[str, list[int]] = {}
    for run in await runs(stack):
        by_function.setdefault(run.function, []).append(run.scheduled_at or 0)
    assert len(by_function) == 20
    for times in by_function.values():
        first_at = start // 1000 * 1000 + 1000
        assert sorted(times) == [first_at + n * 1000 for n in range(len(times))]


async def test_a_stale_reader_does_not_lose_a_schedule(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that knows nothing of a new schedule answers as if it were up to date: the leader is asked."""
    at = next_hour(stack)
    revision = await put(stack, hourly())
    await due(stack, "app.f", revision, at)

    async def knows_nothing(self: Bus, stream: str, query: dict[str, Any]) -> tuple[list[Any], int]:
        return [], 1 << 60

    monkeypatch.setattr(Bus, "_direct", knows_nothing)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick)
    await stack.make("cron-tick", stack.bus).handle(deliveries)
    monkeypatch.undo()
    await stack.settled(stack.names.work, stack.names.cron_tick)
    assert await held(stack) == [("app.f", revision, at + HOUR)]


# A function that is archived while ticks are overdue.


@pytest.mark.parametrize("kind", ["code", "data"])
@pytest.mark.parametrize("late_after", [1.0, 60.0])
async def test_what_is_turned_when_its_function_is_archived_is_told_and_leaves_no_run(
    shared_nats: NatsServer, kind: str, late_after: float
) -> None:
    """cron-tick is down while a deploy drops the function; whatever was due until then is in the ledger."""
    every_second = [CronTrigger(expression="* * * * * *")] if kind == "code" else []
    gone = Function(id="app.gone", cron=every_second)
    async with Stack(shared_nats, late_after=late_after) as stack:
        await stack.start("cron-sync")

        async def register(hash: str, *functions: Function) -> None:
            ordered = SyncCommand(id=hash, command="register", app="app", functions=[*functions], hash=hash)
            assert not (await order(stack.bus, ordered, wait=PATIENCE)).errors

        await register("1", gone, Function(id="app.stays"))
        id = gone.id
        async with Client(stack.settings) as client:
            if kind == "data":
                id = "a"
                await client.schedules.create(id, gone.id, every=1)
            entry = await stack.bus.entry(stack.names.schedule_key(id))
            assert entry is not None
            first = stack.names.ticks_of(id, state="due")
            await until(lambda: stack.bus.subjects(stack.names.work, first), what="a tick released")
            await register("2", Function(id="app.stays"))
            past = await stack.bus.entry(stack.names.past_key(id, entry.sequence))
            assert past is not None
            end = decode(Past, past.payload).end
            await until(lambda: stack.clock.now() > end + 1_500)
            await stack.start("cron-tick")

            async def settled() -> bool:
                return await held(stack) == []

            await until(settled, what="all that was due turned")
            assert await runs(stack) == []
            assert await runs(stack, "later") == []
            found = await client.schedules.history(id)
            assert found, "some were due"
            assert {(one.outcome, one.gap and one.gap.reason) for one in found} == {("not run", "archived")}
            told = await gaps(stack)
            assert sum(gap.count for gap in told) == len(found)


async def test_a_function_is_asked_for_only_where_a_revision_was_replaced(stack: Stack) -> None:
    at = next_hour(stack)
    await due(stack, "app.f", await put(stack, hourly()), at)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick)
    asked: list[str] = []

    class Listening(FaultyBus):
        async def entries(self, keys: Sequence[str]) -> dict[str, StoredMessage]:
            asked.extend(keys)
            return await super().entries(keys)

    async with Listening(stack.settings) as bus:
        await stack.make("cron-tick", bus).handle(deliveries)
    assert asked == [stack.names.schedule_key("app.f")]


async def test_a_replaced_revision_whose_function_cannot_be_read_waits(stack: Stack) -> None:
    """A newer program wrote it: another copy may know whether it is archived."""
    now = stack.clock.now() // MINUTE * MINUTE
    old = hourly(every=MINUTE)
    revision = await put(stack, old)
    await put(stack, hourly(state="paused", armed_from=now + MINUTE))
    past = encode(Past(schedule=old, end=now + MINUTE))
    await stack.bus.publish(stack.names.past_key("app.f", revision), past)
    await stack.bus.publish(stack.names.function_key("app.f"), b"\xc1")
    await due(stack, "app.f", revision, now)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick)
    await stack.make("cron-tick", stack.bus).handle(deliveries)
    assert await stack.left(stack.names.work, stack.names.cron_tick) == 1
    assert await runs(stack) == []


async def test_a_gap_of_a_function_that_cannot_be_read_waits_and_keeps_nobody(stack: Stack) -> None:
    """How long it is kept is in the function's entry. What is turned with it is stored and done."""
    late = stack.clock.now() // HOUR * HOUR - 3 * HOUR
    await stack.bus.publish(stack.names.function_key("app.newer"), b"\xc1")
    for id in ("newer", "one"):
        revision = await put(stack, hourly(id, function=f"app.{id}"))
        await due(stack, id, revision, late)
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick, 2)
    await stack.make("cron-tick", stack.bus).handle(deliveries)
    assert [run.schedule for run in await runs(stack)] == ["one"]
    assert [gap.schedule for gap in await gaps(stack)] == ["one"]
    await one_left(stack)
    assert late in [at for id, _, at in await held(stack) if id == "newer"]
