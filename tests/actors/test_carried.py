"""The copy of its entry that a tick carries: what it spares, and what voids it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace as replace_
from typing import Any
from unittest import mock

import pytest
import pytest_asyncio

from jetcron import Client, carried
from jetcron.bus import StoredMessage
from jetcron.carried import CARRIED_FOR, GOOD_FOR, MAX_COPY, PAST_KEPT, Copy, copy_of, keep
from jetcron.cycle import next_occurrence
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import MAX_TIME, MIN_TIME, Function, Past, Restored, Run, Schedule, Tick
from tests.support.command_line import acall
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack, take

HOUR = 3_600_000
DAY = 24 * HOUR
ID = "tenant 1"


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tick is one of those that are turned by the registry whatever they carry, and all clocks are the same."""
    monkeypatch.setattr(carried, "ASKED", 1 << 40)
    monkeypatch.setattr(carried, "_CLOCKS", 0)


@pytest.fixture
def read(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys cron-tick looked up."""
    keys: list[str] = []
    entries = stack.bus.entries

    async def noted(some: Sequence[str]) -> dict[str, StoredMessage]:
        keys.extend(some)
        return await entries(some)

    monkeypatch.setattr(stack.bus, "entries", noted)
    return keys


def report(**more: Any) -> Schedule:
    return Schedule(
        **({"id": ID, "function": "app.f", "origin": "data", "every": HOUR, "payload": "stored"} | more)
    )


async def put(stack: Stack, schedule: Schedule) -> int:
    return (await stack.bus.publish(stack.names.schedule_key(schedule.id), encode(schedule))).sequence


async def replace(stack: Stack, old: int, **more: Any) -> int:
    """Put another in its place, as cron-sync does; its revision."""
    past = Past(schedule=report(), end=stack.clock.now() + 10 * HOUR)
    await stack.bus.publish(stack.names.past_key(ID, old), encode(past))
    return await put(stack, report(**more))


async def due(
    stack: Stack, revision: int, entry: bytes | None, *, age: int = HOUR, at: int | None = None
) -> Tick:
    """Have a tick released that carries this, read so many milliseconds ago."""
    now = stack.clock.now()
    tick = Tick(
        schedule=ID,
        revision=revision,
        at=now // HOUR * HOUR + HOUR if at is None else at,
        entry=entry,
        read_at=None if entry is None else now - age,
    )
    await stack.bus.publish(stack.names.tick_due(ID, revision, tick.at), encode(tick))
    return tick


async def turn(stack: Stack, count: int = 1) -> None:
    deliveries = await take(stack.bus, stack.names.work, stack.names.cron_tick, count)
    await stack.make("cron-tick", stack.bus).handle(deliveries)
    await stack.settled(stack.names.work, stack.names.cron_tick)


async def payloads(stack: Stack) -> list[Any]:
    filter = f"{stack.names.namespace}.run.>"
    return [decode(Run, message.payload).payload for message in await stack.stored(stack.names.work, filter)]


async def held(stack: Stack) -> list[Tick]:
    filter = f"{stack.names.namespace}.tick.held.>"
    return [decode(Tick, message.payload) for message in await stack.stored(stack.names.work, filter)]


async def test_what_a_tick_carries_is_not_read(stack: Stack, read: list[str]) -> None:
    revision = await put(stack, report())
    copy = encode(report(payload="carried"))
    tick = await due(stack, revision, copy)
    await turn(stack)
    assert await payloads(stack) == ["carried"]
    (following,) = await held(stack)
    assert (following.revision, following.at, following.entry) == (revision, tick.at + HOUR, copy)
    assert tick.read_at is not None
    assert following.read_at is not None
    assert tick.read_at + HOUR <= following.read_at <= stack.clock.now(), (
        "what it says was so when it was turned"
    )
    assert read == []


async def test_one_in_some_ticks_is_turned_by_what_the_registry_says(
    stack: Stack, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "ASKED", 1)
    revision = await put(stack, report())
    await due(stack, revision, encode(report(payload="carried")))
    await turn(stack)
    assert (await payloads(stack), read) == (["stored"], [stack.names.schedule_key(ID)])


def test_one_in_so_many_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those due at one instant, and of one schedule's, however regular its times."""
    monkeypatch.setattr(carried, "ASKED", 64)
    together = [
        Tick(schedule="s", revision=number, at=DAY, entry=b"x", read_at=1) for number in range(64_000)
    ]
    daily = [
        Tick(schedule="s", revision=7, at=day * DAY, entry=b"x", read_at=day * DAY) for day in range(64_000)
    ]
    for ticks in (together, daily):
        assert 800 < sum(copy_of(tick, tick.at) is None for tick in ticks) < 1_200


async def test_a_tick_without_a_copy_leaves_one_to_the_next(stack: Stack, read: list[str]) -> None:
    entry = encode(report())
    revision = await put(stack, report())
    before = stack.clock.now()
    await due(stack, revision, None)
    await turn(stack)
    assert await payloads(stack) == ["stored"]
    (following,) = await held(stack)
    assert following.entry == entry
    assert following.read_at is not None
    assert before <= following.read_at <= stack.clock.now()
    assert read == [stack.names.schedule_key(ID)]


async def test_the_first_tick_carries_what_cron_sync_wrote(stack: Stack) -> None:
    async with Client(stack.settings) as client:
        await stack.start("cron-sync")
        await stack.bus.publish(stack.names.function_key("app.f"), encode(Function(id="app.f")))
        await client.schedules.create(ID, "app.f", every=3600)
        await carries_its_entry(stack)
        await client.schedules.update(ID, payload={"n": 2})
        await carries_its_entry(stack)


async def carries_its_entry(stack: Stack) -> None:
    stored = await stack.bus.entry(stack.names.schedule_key(ID))
    assert stored is not None
    newest = max(await held(stack), key=lambda tick: tick.revision)
    assert (newest.revision, newest.entry) == (stored.sequence, stored.payload)


async def test_a_replaced_revision_is_not_believed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    rare = stack.bus.rare

    async def noted(stream: str, subjects: Sequence[str], *, witness: str) -> Any:
        read.extend(subjects)
        return await rare(stream, subjects, witness=witness)

    monkeypatch.setattr(stack.bus, "rare", noted)
    old = await put(stack, report())
    new = await replace(stack, old, payload="new")
    await due(stack, old, encode(report(payload="carried")))
    await due(stack, new, encode(report(payload="carried by the new one")))
    await turn(stack, 2)
    assert sorted(await payloads(stack)) == ["stored"], "one occurrence, one run, by the one that governs"
    assert {tick.revision: tick.entry for tick in await held(stack)} == {
        old: None,
        new: encode(report(payload="carried by the new one")),
    }
    assert read.count(stack.names.past_key(ID, old)) == 2, "beside the copy, and again after the entry"


@pytest.mark.parametrize(
    "copy",
    [
        encode(report(id="another", payload="carried")),
        b"\xc1",
        b"",
        encode(Tick(schedule=ID, revision=1, at=1)),
    ],
    ids=["of another", "undecodable", "empty", "no schedule"],
)
async def test_what_is_no_copy_of_its_entry_is_passed_over(stack: Stack, copy: bytes) -> None:
    revision = await put(stack, report())
    await due(stack, revision, copy)
    await turn(stack)
    assert await payloads(stack) == ["stored"]
    assert [tick.entry for tick in await held(stack)] == [encode(report())], "and replaced by one"


@pytest.mark.parametrize(
    "when",
    [
        {"every": HOUR},
        {"every": 400 * DAY},
        {"every": None, "cron": "0 9 1 * *"},
        {"every": None, "cron": "0 9 29 2 *", "timezone": "Europe/Prague"},
        {"every": None, "at": 200 * 365 * DAY},
        {"every": None, "at": MAX_TIME},
        {"every": HOUR, "state": "paused"},
    ],
    ids=str,
)
def test_no_copy_counts_for_longer_than_it_is_known_that_its_revision_was_replaced(
    when: dict[str, Any],
) -> None:
    """Whoever read the entry up to that moment may hold its next tick at any time afterwards."""
    schedule = report(**when)
    for now in range(0, 3_000 * DAY, 37 * DAY + HOUR):
        end = now + 2_500
        forgotten = now + keep(schedule, end, now) * 1000
        following = next_occurrence(schedule, end) if schedule.state == "active" else None
        for at in (now - HOUR, end, following):
            laden = Copy(b"x", now).on(Tick(schedule=ID, revision=1, at=now if at is None else at))
            if at is not None and at - now <= CARRIED_FOR * 1000:
                last = max(now, at) + GOOD_FOR * 1000
                assert copy_of(laden, last) == Copy(b"x", now)
                assert copy_of(laden, last + 1) is None
                assert last < forgotten
            elif at is not None:
                assert laden.entry is None, "too far off"
                older = replace_(laden, entry=b"x", read_at=now)
                assert copy_of(older, at) is None, "nor believed of whoever carried it all the same"


def test_replaced_revisions_are_kept_for_a_month_and_while_a_tick_may_carry_them() -> None:
    assert keep(report(), HOUR - 1, HOUR - 2) == PAST_KEPT
    assert keep(report(state="paused", every=300 * DAY), 0, 0) == PAST_KEPT
    assert keep(report(every=90 * DAY), 0, 0) == PAST_KEPT + 90 * 86_400
    assert keep(report(every=400 * DAY), 0, 0) == PAST_KEPT + CARRIED_FOR
    unknown = report(every=None, cron="0 9 * * *", timezone="Mars/Olympus")
    assert keep(unknown, 0, 0) == PAST_KEPT + CARRIED_FOR, "as long as any"


@pytest.mark.parametrize(("age", "at"), [(GOOD_FOR * 1000 + HOUR, -GOOD_FOR * 1000 - HOUR), (-HOUR, 0)])
async def test_a_copy_too_old_or_from_the_future_is_read_anew(stack: Stack, age: int, at: int) -> None:
    revision = await put(stack, report())
    hour = stack.clock.now() // HOUR * HOUR
    await due(stack, revision, encode(report(payload="carried")), age=age, at=hour + at)
    await turn(stack)
    assert await payloads(stack) == ["stored"]
    assert [tick.entry for tick in await held(stack)] == [encode(report())]


async def test_a_rare_schedule_s_copy_counts_when_its_time_comes(stack: Stack, read: list[str]) -> None:
    revision = await put(stack, report())
    await due(stack, revision, encode(report(payload="carried")), age=99 * DAY)
    await turn(stack)
    assert (await payloads(stack), read) == (["carried"], [])


async def test_what_is_void_stays_void(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever noted it from an older time, or by another clock."""
    names, bus = stack.names, stack.bus

    async def noted() -> Restored:
        entry = await bus.entry(names.restored_key)
        assert entry is not None
        return decode(Restored, entry.payload)

    await carried.void_copies(bus, 7, 2 * HOUR)
    await carried.void_copies(bus, 8, HOUR)
    assert await noted() == Restored(at=2 * HOUR, revision=8)
    monkeypatch.setattr(carried, "_CLOCKS", 10_000)
    await carried.void_copies(bus, 8, 3 * HOUR)
    assert await noted() == Restored(at=3 * HOUR + 10_000, revision=8)
    await carried.note_restored(bus, 8, 3 * HOUR + DAY)
    assert (await noted()).at == 3 * HOUR + 10_000, "it is known"
    await carried.note_restored(bus, 8, 3 * HOUR + DAY + 10_000)
    assert (await noted()).at == 3 * HOUR + DAY + 20_000, "and a day later it is another"
    await bus.publish(names.restored_key, b"\xc1")
    await carried.void_copies(bus, 1, 4 * HOUR)
    assert await noted() == Restored(at=4 * HOUR + 10_000, revision=1)


async def test_a_large_entry_is_not_carried(stack: Stack) -> None:
    revision = await put(stack, report(payload="x" * MAX_COPY))
    await due(stack, revision, None)
    await turn(stack)
    assert [tick.entry for tick in await held(stack)] == [None]


async def test_a_restored_registry_voids_every_copy_read_before(stack: Stack, read: list[str]) -> None:
    """Also of revisions it does know, or will, when as many commands have come as were lost."""
    revision = await put(stack, report())
    await due(stack, revision + 5, encode(report(payload="lost")))
    await turn(stack)
    (anew,) = await held(stack)
    assert (anew.revision, anew.entry) == (revision, encode(report())), "armed anew, with what stands"
    assert await payloads(stack) == []
    while await put(stack, report(id="other")) < revision + 5:
        pass
    await due(stack, revision + 5, encode(report(payload="lost")), at=anew.at + HOUR)
    await turn(stack)
    assert await payloads(stack) == [], "the registry has reached that number, and it is another's"
    await due(stack, revision, anew.entry, age=0)
    read.clear()
    await turn(stack)
    assert (await payloads(stack), read) == (["stored"], []), "what was read since counts"


async def test_a_sweep_notices_that_the_registry_was_restored(stack: Stack) -> None:
    revision = await put(stack, report())
    lost = Tick(schedule=ID, revision=revision + 100, at=MAX_TIME // 2)
    await stack.bus.publish(stack.names.tick_due(ID, lost.revision, lost.at), encode(lost))
    checker = stack.make("health-checker", stack.bus)
    before = stack.clock.now()
    for group in range(16):
        await checker.sweep(group)
    noted = await stack.bus.entry(stack.names.restored_key)
    assert noted is not None
    entry = decode(Restored, noted.payload)
    assert entry.revision == lost.revision
    assert before <= entry.at <= stack.clock.now()
    await carried.note_restored(stack.bus, lost.revision, stack.clock.now())
    again = await stack.bus.entry(stack.names.restored_key)
    assert again == noted, "once: it would void what was read since"
    await carried.note_restored(stack.bus, lost.revision, stack.clock.now(), read_at=entry.at)
    assert await stack.bus.entry(stack.names.restored_key) == noted
    await carried.note_restored(stack.bus, lost.revision - 1, stack.clock.now(), read_at=entry.at + 1)
    again = await stack.bus.entry(stack.names.restored_key)
    assert again is not None
    assert decode(Restored, again.payload).revision == lost.revision - 1, (
        "restored since, to what had this note"
    )
    await carried.note_restored(stack.bus, lost.revision + 1, stack.clock.now() + 1)
    again = await stack.bus.entry(stack.names.restored_key)
    assert again is not None
    assert decode(Restored, again.payload).revision == lost.revision + 1, "restored once more"


async def test_a_sweep_misses_its_own_note(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the registry has long given more numbers than the lost note had, and no tick shows it."""
    names, bus = stack.names, stack.bus
    checker = stack.make("health-checker", bus)
    now = stack.clock.now()
    monkeypatch.setattr(stack.clock, "now", lambda: now)
    monkeypatch.setattr(carried, "_CLOCKS", 10_000)

    async def swept() -> Restored | None:
        nonlocal now
        now += HOUR
        await checker.sweep(3)
        noted = await bus.entry(names.restored_key)
        return None if noted is None else decode(Restored, noted.payload)

    assert [await swept(), await swept()] == [None, None]
    note = await bus.entry(names.health_key(3))
    assert note is not None
    await put(stack, report())
    await bus.purge(names.registry, names.health_key(3))
    found = await swept()
    assert found is not None
    assert found.at > now, "and nobody's clock is that wrong"
    assert found.revision == note.sequence
    assert await swept() == found, "once"


async def test_whoever_restored_the_registry_says_so(
    stack: Stack, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = await put(stack, report())
    await due(stack, revision, encode(report(payload="lost")))
    monkeypatch.setenv("NATS_URL", stack.settings.nats_url)
    monkeypatch.setenv("JETCRON_NAMESPACE", stack.settings.namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    said = await acall("init", "--restored")
    assert (said.exit_code, "those in the registry count" in said.stderr) == (0, True)
    await turn(stack)
    assert await payloads(stack) == ["stored"]
    assert read == [stack.names.schedule_key(ID)]


async def test_a_pause_shows_that_the_registry_was_restored(stack: Stack) -> None:
    """cron-sync finds a tick of a later revision than it replaces: the lost one goes on no longer."""
    async with Client(stack.settings) as client:
        await stack.start("cron-sync")
        await stack.bus.publish(stack.names.function_key("app.f"), encode(Function(id="app.f")))
        made = await client.schedules.create(ID, "app.f", every=3600)
        assert made.revision is not None
        lost = Tick(schedule=ID, revision=made.revision + 50, at=stack.clock.now() + HOUR)
        await stack.bus.publish(stack.names.tick_due(ID, lost.revision, lost.at), encode(lost))
        await client.schedules.pause(ID)
    noted = await stack.bus.entry(stack.names.restored_key)
    assert noted is not None
    assert decode(Restored, noted.payload).revision == lost.revision


async def test_rare_keys_are_found_and_the_absent_cost_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, bus = stack.names, stack.bus
    keys = [names.past_key("s", number) for number in range(1_500)]
    for key in keys[::700]:
        await bus.publish(key, b"x")
    last = await bus.publish(names.schedule_key("s"), b"witness")
    found = await bus.rare(names.registry, keys, witness=names.schedule_key("s"))
    assert found is not None
    assert (set(found[0]), found[1]) == (set(keys[::700]), last.sequence)
    assert await bus.rare(names.registry, keys[1:3], witness=keys[0]) == ({}, last.sequence)

    batch, state = bus._batch, await bus.stream_state(names.registry)

    async def three(stream: str) -> Any:
        return replace_(state, config={**state.config, "num_replicas": 3})

    monkeypatch.setattr(bus, "stream_state", three)
    found = await bus.rare(names.registry, keys[1:3], witness=names.schedule_key("s"))
    assert found == ({names.schedule_key("s"): mock.ANY}, last.sequence), (
        "it says how far the replica has read"
    )
    assert await bus.rare(names.registry, keys[1:3], witness=keys[1]) is None, "nobody says it"

    async def answered(**more: Any) -> Any:
        async def with_(stream: str, query: dict[str, Any]) -> Any:
            return replace_(await batch(stream, query), **more)

        monkeypatch.setattr(bus, "_batch", with_)
        return await bus.rare(names.registry, keys[1:3], witness=names.schedule_key("s"))

    assert await answered(up_to=last.sequence - 1) is None, "it is behind"
    assert await answered(whole=False) is None, "it left something out"


def test_a_note_that_cannot_be_read_voids_all() -> None:
    assert carried.restored(StoredMessage("s", 1, b"\xc1")).at == MAX_TIME
    assert carried.restored(None).at == MIN_TIME


def test_what_is_carried_makes_no_other_tick() -> None:
    tick = Tick(schedule=ID, revision=1, at=2)
    laden = Copy(b"x", 3).on(tick)
    assert laden == tick
    assert hash(laden) == hash(tick)
    back = decode(Tick, encode(laden))
    assert (back, back.entry, back.read_at) == (tick, b"x", 3)
