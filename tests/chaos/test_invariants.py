"""The protocol's seven invariants, each held against two copies of every actor, as processes, on a real server.

What was due is reckoned here, by the periods of the functions; what ran is read from the journal as it was
stored; what did not, from the ledger of gaps. User code may begin twice when its process dies in it: doubled
means two records of one turn, or two runs of one occurrence. While no executor is killed, code begins once.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from jetcron import dispatch
from jetcron.bus import Outgoing, with_id
from jetcron.cycle import make_run
from jetcron.registration import order
from jetcron_protocol.codec import EVENT_HEADER, decode, encode
from jetcron_protocol.messages import Gap, Run, Schedule, SyncCommand, Tick
from tests.chaos.apps import PERIODS
from tests.support.chaos import KINDS, Chaos, Load, Mischief, chaos, due_times, now_ms, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_unique = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chaos]:
    async with chaos(tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def running(shared: Chaos) -> AsyncIterator[Chaos]:
    """The stack, whole. It has to come out of each test without a crash of its own and without a repair."""
    await shared.all_begun()
    yield shared
    await shared.all_begun()
    assert shared.unexpected() == []
    assert shared.repairs() == [], "an occurrence that has to be repaired was lost first"


async def all_accounted(running: Chaos, load: Load, after: int, relayed_before: int) -> None:
    """Every occurrence and every event has exactly one run, and it completed."""
    tally = await running.settled(after, now_ms())
    await running.drained(*load.sent, "chaos.relayed")
    await running.books.complete()
    running.check_events(tally, load.sent)
    running.check_relayed(tally, relayed_before + len(load.sent["chaos.relay"]))
    assert tally.clean, tally.problems()
    assert tally.in_gaps == 0, "nothing was late: nothing may be missed"
    assert tally.expected > 100


async def relayed(running: Chaos) -> int:
    """How many relayed events have had a run so far, once none is under way."""
    await running.drained("chaos.relay", "chaos.relayed")
    await running.books.complete()
    return len(running.books.of_event("chaos.relayed"))


# 1.


async def test_invariant_1_an_active_schedule_always_has_a_tick_and_chains_flow_together(
    running: Chaos,
) -> None:
    began = now_ms()
    schedules = running.schedules()
    without: list[str] = []
    samples = 0
    crowded = 0

    async def watch() -> None:
        nonlocal samples, crowded
        while True:
            found = await running.all_ticks()
            samples += 1
            crowded = max(crowded, *(len(found[schedule]) for schedule in schedules))
            # The server takes a held tick away and puts it down released: looks may fall in between.
            missing = [schedule for schedule in schedules if not found[schedule]]
            for _ in range(10):
                if missing:
                    await asyncio.sleep(0.02)
                    again = await running.all_ticks()
                    missing = [schedule for schedule in missing if not again[schedule]]
            without.extend(f"{schedule} at {now_ms()}" for schedule in missing)

    watching = asyncio.create_task(watch())
    try:
        mischief = Mischief(running, seed=1)
        for _ in range(10):
            await asyncio.sleep(mischief.random.uniform(0.2, 0.6))
            mischief.kill_one()
        await running.all_begun()

        # A second chain for every schedule: an older occurrence is held once more, and so is the next one.
        for schedule in schedules:
            revision = await running.revision(schedule)
            ticks = await running.ticks(schedule)
            period = PERIODS[schedule.removesuffix(":2")][-1 if schedule.endswith(":2") else 0]
            next_ = max(tick.at for tick in ticks) if ticks else now_ms() // period * period
            for at in (next_ - 3 * period, next_ - 3 * period, next_, next_):
                tick = Tick(schedule=schedule, revision=revision, at=at)
                await running.bus.store(dispatch.held_tick(running.names, tick, running.settings.lead_ms))

        await running.chains_merge()
        assert not watching.done()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    assert without == []
    assert samples > 100
    assert crowded > 2, "there were two chains"
    tally = await running.settled(began, now_ms())
    assert tally.clean, tally.problems()


# 2.


async def test_invariant_2_an_occurrence_is_one_run_whoever_publishes_it_however_often(
    running: Chaos,
) -> None:
    chance = random.Random(2)
    names, lead = running.names, running.settings.lead_ms
    await running.drained("chaos.order")
    began = now_ms()
    entries: dict[str, tuple[Schedule, int]] = {}
    for schedule in running.schedules():
        stored = await running.bus.entry(names.schedule_key(schedule))
        assert stored is not None
        entries[schedule] = decode(Schedule, stored.payload), stored.sequence
    orders = [f"again-{number}" for number in range(60)]

    def occurrence(id: str, at: int) -> list[Outgoing]:
        """What may be published of one occurrence: its tick, held and released, and its run in every guise."""
        schedule, revision = entries[id]
        tick = Tick(schedule=id, revision=revision, at=at)
        run = make_run(schedule, at)
        first = dispatch.new_run(names, run, now=now_ms(), lead=lead)
        ready = Outgoing(names.run_ready(run.function), encode(run), with_id(f"new-{next(_unique)}"))
        return [
            dispatch.held_tick(names, tick, lead),
            Outgoing(names.tick_due(id, revision, at), encode(tick)),
            first,
            first.without_id(),
            *([ready] if run.fire_at - now_ms() <= lead else []),
        ]

    published = 0
    for turn in range(8):
        at = now_ms()
        messages = [
            message
            for id, (schedule, _) in entries.items()
            for time in sorted(due_times(schedule.function, at - 4000, at + 2000))
            if chance.random() < 0.5 and _governed(PERIODS[schedule.function], id, time)
            for message in occurrence(id, time)
            if chance.random() < 0.6
        ]
        chance.shuffle(messages)
        await running.send("chaos.order", orders[: (turn + 1) * 7])
        stored = [
            m async for page in running.bus.pages(names.events, names.event("chaos.order")) for m in page
        ]
        for message in chance.sample(stored, min(len(stored), 30)):
            copy = Outgoing(message.subject, message.payload, {EVENT_HEADER: "1"})
            messages.insert(chance.randrange(len(messages) + 1), copy)
        await asyncio.gather(*(running.bus.store(message) for message in messages))
        published += len(messages)
        await asyncio.sleep(0.3)
    await running.send("chaos.order", chance.sample(orders, len(orders)))
    over = now_ms()

    # The runs of all that ran, once more, when they have long been recorded.
    tally = await running.settled(began, over)
    late = [
        Outgoing(names.run_ready(schedule.function), encode(make_run(schedule, time)))
        for id, (schedule, _) in entries.items()
        for time in sorted(due_times(schedule.function, began, over))
        if _governed(PERIODS[schedule.function], id, time)
    ]
    await asyncio.gather(*(running.bus.store(message) for message in late))
    await running.drained("chaos.order")
    await until(lambda: _nothing_ready(running), "no run is ready")
    await running.books.complete()

    tally = running.tally(began, over)
    running.check_events(tally, {"chaos.order": orders})
    assert tally.clean, tally.problems()
    assert tally.in_gaps == 0
    assert published > 300
    await running.chains_merge()
    # The code of every run began once: nobody was killed.
    starts = Counter(note.run for note in running.notes(what="start") if note.at > began)
    begun_before = {note.run for note in running.notes(what="start") if note.at <= began}
    assert {run: times for run, times in starts.items() if times > 1 or run in begun_before} == {}
    assert set(starts) >= {
        run
        for function in PERIODS
        for time, runs in running.books.scheduled(function).items()
        if began + 2500 < time <= over
        for run in runs
    }


def _governed(periods: tuple[int, ...], schedule: str, time: int) -> bool:
    """Whether this very schedule of a function with several is due at a time its function is due."""
    return time % periods[-1 if schedule.endswith(":2") else 0] == 0


async def _nothing_ready(running: Chaos) -> bool:
    subjects = await running.bus.subjects(running.names.work, f"{running.names.namespace}.run.ready.>")
    left = [await running.left(running.names.work, running.names.run_consumer(id)) for id in PERIODS]
    return not subjects or sum(left) == 0


# 3.


async def test_invariant_3_every_occurrence_is_a_run_or_in_a_gap_that_says_why(running: Chaos) -> None:
    ticks = running.of("cron-tick")
    for member in ticks:
        member.environment["JETCRON_LATE_AFTER"] = "1"
        member.kill()
    try:
        await running.all_begun()
        began = now_ms()
        outages: list[tuple[int, int]] = []
        for away in (3.6, 5.2):
            await asyncio.sleep(1.2)  # on time, between two outages
            for member in ticks:
                member.kill(again=False)
            down = now_ms()
            await asyncio.sleep(away)
            outages.append((down, now_ms()))
            await running.all_begun()
        await asyncio.sleep(1.2)
        over = now_ms()
        tally = await running.settled(began, over)
    finally:
        for member in ticks:
            member.environment["JETCRON_LATE_AFTER"] = running.environment["JETCRON_LATE_AFTER"]
            member.kill()
        await running.all_begun()
    assert tally.clean, tally.problems()
    assert tally.in_gaps > 0

    for function in PERIODS:
        gaps = _ledger(running, function)
        due = due_times(function, began, over)
        ran = {
            time
            for time, runs in running.books.scheduled(function).items()
            if any(running.books.completed(run) for run in runs)
        }
        missed = {time for time in due if any(gap.start <= time <= gap.to for gap in gaps)}
        assert due <= ran | missed
        if len(PERIODS[function]) == 1:  # with two triggers, the one may miss what the other runs
            assert not ran & missed, f"{function}: {sorted(ran & missed)} both ran and are said to be missed"
            for gap in gaps:
                assert gap.count == len(due_times(function, gap.start - 1, gap.to)), gap
                assert gap.reason == "catch_up"
        # What was due in the depth of an outage, more than `late_after` before its end.
        for down, up in outages:
            deep = due_times(function, down + 1000, up - 1600)
            if function == "chaos.all":
                assert deep <= ran
            elif function == "chaos.skip":
                assert deep <= missed
            elif function == "chaos.latest":
                group = [gap for gap in gaps if any(gap.start <= time <= gap.to for time in deep)]
                assert len(group) == 1, f"{group}: one outage, one gap"
                newest = min(due_times(function, group[0].to, group[0].to + 1000))
                assert newest in ran, "the newest of the missed is run"
    assert not _ledger(running, "chaos.all")


def _ledger(running: Chaos, function: str) -> list[Gap]:
    """The gaps of a function; one that was written again stands as it was written last."""
    last = {(gap.schedule, gap.start): gap for _, gap in sorted(running.books.gaps[function].items())}
    return list(last.values())


# 4.


async def test_invariant_4_a_turn_is_recorded_by_one_executor_and_never_by_a_frozen_one(
    running: Chaos,
) -> None:
    first, second = running.of("executor")
    await running.drained("chaos.gated", "chaos.relayed")
    names = running.names
    done_before = running.books.of_event("chaos.relayed")
    second.kill(again=False)
    ids = ("frozen-x", "frozen-y")
    for id in ids:
        await running.send("chaos.gated", [id], gate=id)

    def run_of(id: str) -> str | None:
        return next((note.run for note in running.notes(function="chaos.gated") if note.event == id), None)

    def begun_by(pid: int) -> bool:
        return all(
            any(note.pid == pid and note.event == id for note in running.notes(function="chaos.gated"))
            for id in ids
        )

    await until(lambda: begun_by(first.pid), "the first executor executes both")
    x, y = run_of("frozen-x"), run_of("frozen-y")
    assert x is not None
    assert y is not None
    second.start()
    await until(second.begun, "the second executor runs")
    async with running.bus.listen(names.event("chaos.relayed")) as sent:
        first.freeze()
        await until(lambda: begun_by(second.pid), "the second executor has taken both over")
        (running.gates / "frozen-x").touch()
        await until(lambda: running.books.completed(x), "the second executor has finished the one")

        # The first comes back: to a run that is finished, and to one that is being executed.
        first.thaw()
        await until(lambda: "the executor's key lapsed" in first.log(), "the first one knows that it is late")
        lost = {first.pid}
        await running.send("chaos.order", ["after-the-thaw"])
        await until(lambda: running.books.of_event("chaos.order").get("after-the-thaw"), "runs go on")

        async def one_is_left() -> bool:
            return await running.left(names.work, names.run_consumer("chaos.gated")) == 1

        # The other's acknowledgement may still be under way; what is gone never comes back.
        await until(
            one_is_left, "the message of a run under execution stands, whatever the frozen one acknowledged"
        )
        assert [one.entry.entry for one in running.books.runs[y]] == ["claimed", "claimed"]
        (running.gates / "frozen-y").touch()
        await until(lambda: running.books.completed(y), "the second executor has finished the other")
        await running.drained("chaos.gated", "chaos.relayed")
        assert sent.qsize() == 2, "each run sent its event once: the frozen one sent nothing"
    await running.books.complete()

    for run in (x, y):
        kinds = [one.entry for one in running.books.runs[run]]
        assert [entry.entry for entry in kinds] == ["claimed", "claimed", "step", "completed"]
        one, other = kinds[0].executor, kinds[1].executor
        assert one != other
        assert {entry.executor for entry in kinds[1:]} == {other}
        assert kinds[-1].result == second.pid
        attempts = kinds[-1].attempts or []
        assert [(a.executor, a.outcome) for a in attempts] == [(one, "lost"), (other, "completed")]
        assert not [note for note in running.notes(run=run, what="end") if note.pid in lost]
    new = {id for id in running.books.of_event("chaos.relayed") if id not in done_before}
    assert len(new) == 2

    # Under a new name it takes part again.
    second.kill(again=False)
    await running.send("chaos.order", ["by-the-thawed"])

    def by_the_thawed() -> bool:
        return any(
            note.event == "by-the-thawed" and note.pid == first.pid
            for note in running.notes(function="chaos.order", what="end")
        )

    await until(by_the_thawed, "the thawed executor executes again")
    await running.books.complete()
    executors = {
        one.entry.executor
        for runs in running.books.of_event("chaos.order").get("by-the-thawed", ())
        for one in running.books.runs[runs]
    }
    frozen = running.books.runs[x][0].entry.executor
    assert executors
    assert frozen not in executors
    assert running.books.doubled() == []


# 5.


@pytest.mark.parametrize("seed", [5, 55])
async def test_invariant_5_nothing_is_acknowledged_before_what_it_caused_is_stored(
    seed: int, running: Chaos
) -> None:
    before = await relayed(running)
    load = Load(running, f"five-{seed}")
    mischief = Mischief(running, seed)
    began = now_ms()
    load.start()
    for number in range(14):
        await asyncio.sleep(mischief.random.uniform(0.1, 0.8))
        mischief.kill_one()
        if number in (4, 10):
            await mischief.kill_server(away=mischief.random.uniform(0, 0.8))
    await running.all_begun()
    await asyncio.sleep(0.5)
    await load.stop()
    await all_accounted(running, load, began, before)


async def test_invariant_5_a_run_whose_process_dies_as_its_code_ends_is_not_lost(running: Chaos) -> None:
    """Before its end is recorded, between that and the acknowledgement, after it: every few tenths of a ms."""
    ids = []
    for number in range(12):
        lives = sum(member.lives for member in running.of("executor"))
        ids.append(f"deadly-{number}")
        await running.send("chaos.deadly", ids[-1:], after=number * 0.4)
        await until(
            lambda lives=lives: sum(member.lives for member in running.of("executor")) > lives,
            "an executor has died of it and was started anew",
        )
    await running.all_begun()
    await until(
        lambda: all(
            any(running.books.completed(run) for run in running.books.of_event("chaos.deadly").get(id, ()))
            for id in ids
        ),
        "every run has ended",
    )
    await running.drained("chaos.deadly")
    await running.books.complete()
    assert running.books.doubled() == []
    assert all(len(runs) == 1 for runs in running.books.of_event("chaos.deadly").values())
    starts = Counter(note.event for note in running.notes(function="chaos.deadly", what="start"))
    assert set(starts) == set(ids)
    assert max(starts.values()) <= 3
    assert any(times > 1 for times in starts.values()), "some died before their end was recorded"


# 6.


async def test_invariant_6_no_kill_of_anything_loses_or_doubles_an_occurrence(running: Chaos) -> None:
    before = await relayed(running)
    load = Load(running, "six")
    mischief = Mischief(running, seed=6)
    began = now_ms()
    load.start()
    for kind in KINDS:
        for member in running.of(kind):
            member.kill()
        await running.all_begun()
    mischief.kill_all()
    await running.all_begun()
    await mischief.kill_server()
    await asyncio.sleep(0.7)
    mischief.kill_all()
    await mischief.kill_server(away=0.3)
    await running.all_begun()
    await asyncio.sleep(0.5)
    await load.stop()
    await all_accounted(running, load, began, before)


# 7.


async def test_invariant_7_what_nobody_can_decode_is_dead_with_its_reason_and_stops_nothing_else(
    running: Chaos,
) -> None:
    began = now_ms()
    names = running.names
    junk = b"\xc1 nobody can read this"
    newer = encode(Tick(schedule="chaos.every", revision=1, at=1)).replace(b"\xa1v\x01", b"\xa1v\x02")
    other = encode(Tick(schedule="chaos.every", revision=1, at=1))
    stray = encode(Run(run="stray", function="chaos.flaky", trigger="manual", fire_at=0))
    soon = now_ms() + 200
    broken = {
        "sync": [Outgoing(names.sync("chaos"), junk), Outgoing(names.sync("nobody"), b"")],
        "tick": [
            Outgoing(names.tick_due("chaos.every", 1, 1), junk),
            Outgoing(names.tick_due("chaos.every", 1, 2), newer),
            Outgoing(names.tick_due("chaos.zoned", 1, 1), other),
            dispatch.hold(
                names.tick_held("chaos.every", 1, 7), names.tick_due("chaos.every", 1, 7), soon, junk
            ),
        ],
        "run": [
            Outgoing(names.run_ready("chaos.order"), junk),
            Outgoing(names.run_ready("chaos.order"), stray),
            Outgoing(names.run_ready("chaos.beat-0"), b""),
        ],
        "event": [
            Outgoing(names.event("chaos.order"), b"[1, 2"),
            Outgoing(names.event("chaos.order"), junk, {EVENT_HEADER: "1"}),
            Outgoing(names.event("chaos.order"), b"{}", {"Jetcron-At": "tomorrow"}),
            Outgoing(names.later_due("chaos.order"), junk),
        ],
        "health": [Outgoing(names.health_due, junk)],
    }
    total = sum(map(len, broken.values()))
    known = len(await running.dead())
    orders = [f"beside-{number}" for number in range(total)]
    for id, message in zip(orders, itertools.chain(*broken.values()), strict=True):
        await running.bus.publish(message.subject, message.payload, message.headers)
        await running.send("chaos.order", [id])

    async def buried() -> bool:
        return len(await running.dead()) >= known + total

    await until(buried, "all of it is dead")
    letters = (await running.dead())[known:]
    assert Counter(letter.letter for letter in letters) == {kind: len(them) for kind, them in broken.items()}
    for kind, messages in broken.items():
        bodies = Counter(letter.body for letter in letters if letter.letter == kind)
        assert bodies == Counter(message.payload for message in messages), kind
    for letter in letters:
        assert len(letter.reason) > 10
        assert letter.size == len(letter.body)
        assert letter.subject.startswith(names.namespace)
        assert letter.sequence > 0

    # Nothing of it is left, and everything else goes on: commands, ticks, runs, events.
    reply = await order(
        running.bus, SyncCommand(id="alive", command="pause", app="chaos", items=["chaos.absent"]), wait=20
    )
    assert "there is no function" in reply.errors[0]
    await running.drained("chaos.order")
    tally = await running.settled(began, now_ms())
    running.check_events(tally, {"chaos.order": orders})
    assert tally.clean, tally.problems()
    assert tally.in_gaps == 0
    dead_now = [replace(letter, at=0) for letter in (await running.dead())[known:]]
    assert len([letter for letter in dead_now if letter.body == junk]) == sum(
        message.payload == junk for message in itertools.chain(*broken.values())
    ), "each died once"
    for durable in (names.cron_sync, names.cron_tick, names.health_checker):
        await until(
            lambda durable=durable: _none_stuck(running, durable), f"{durable} has nothing it cannot do"
        )


async def _none_stuck(running: Chaos, durable: str) -> bool:
    return not await running.left(running.names.work, durable)
