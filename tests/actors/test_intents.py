"""The word that a revision is about to be replaced: what waits for it, what outlives it, and who is refused."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest import mock

import pytest
import pytest_asyncio

from jetcron import Client, intents, registry
from jetcron.bus import OPERATION, Delivery, Outgoing, StoredMessage, read
from jetcron.clock import from_ms
from jetcron.errors import TryAgain, WrongSequence
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import (
    DeadLetter,
    Function,
    Intent,
    Past,
    Run,
    Schedule,
    SyncCommand,
    Tick,
    replace,
)
from tests.support.command_line import acall
from tests.support.faults import Die, FaultyBus, Killed, Refuse, Wait
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack, take, until

HOUR = 3_600_000
ID = "tenant 1"
ENTRY = "_REGISTRY.schedule."
"""Where the successor is written."""
INTENT = "_REGISTRY.intent."
"""Where the intent is: what is stored with a successor has the successor's name."""
PAST = "_REGISTRY.past."


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        await stack.bus.publish(stack.names.function_key("app.f"), encode(Function(id="app.f")))
        made = {"id": ID, "function": "app.f", "every": HOUR, "payload": "old"}
        await apply(stack, await ordered(stack, "create", schedules=[made]))
        await stack.bus.purge(stack.names.work, stack.names.ticks_of(ID))
        yield stack


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """An intent is forgotten after two seconds."""
    monkeypatch.setattr(intents, "INTENT_KEPT", 2)


async def ordered(stack: Stack, what: str, **more: Any) -> Delivery:
    """An order for cron-sync, delivered."""
    command = SyncCommand(id=what, command=f"schedules.{what}", app="schedules", **more)  # type: ignore[arg-type]
    await stack.bus.publish(stack.names.sync("schedules"), encode(command))
    (delivery,) = await take(stack.bus, stack.names.work, stack.names.cron_sync)
    return delivery


async def apply(stack: Stack, delivery: Delivery, bus: FaultyBus | None = None) -> None:
    await stack.make("cron-sync", bus or stack.bus).handle([delivery])


def update(stack: Stack) -> Any:
    return ordered(stack, "update", schedules=[{"id": ID, "payload": "new"}])


@contextlib.asynccontextmanager
async def held_up(
    stack: Stack, delivery: Delivery, on: str = ENTRY
) -> AsyncIterator[tuple[asyncio.Event, "asyncio.Task[None]"]]:
    """A copy of cron-sync that has come to its write `on`, and what lets it go on."""
    async with FaultyBus(stack.settings) as bus:
        reached, go = asyncio.Event(), asyncio.Event()
        bus.arm(Wait(reached, go), on=on)
        task = asyncio.create_task(apply(stack, delivery, bus))
        async with asyncio.timeout(10):
            await reached.wait()
        yield go, task
        go.set()
        await task


async def current(stack: Stack) -> tuple[Schedule, int]:
    entry = await stack.bus.entry(stack.names.schedule_key(ID))
    assert entry is not None
    return decode(Schedule, entry.payload), entry.sequence


async def past(stack: Stack, revision: int) -> Past | None:
    entry = await stack.bus.entry(stack.names.past_key(ID, revision))
    return None if entry is None else decode(Past, entry.payload)


async def intent(stack: Stack) -> Intent | None:
    """That of the only part of a command."""
    entry = await stack.bus.entry(stack.names.intent_key(0))
    return None if entry is None else decode(Intent, entry.payload)


async def due(stack: Stack, at: int, *, copy: bool) -> Tick:
    """A released tick of the revision in force."""
    schedule, revision = await current(stack)
    carried = {"entry": encode(schedule), "read_at": stack.clock.now()} if copy else {}
    tick = Tick(schedule=ID, revision=revision, at=at, **carried)  # type: ignore[arg-type]
    await stack.bus.publish(stack.names.tick_due(ID, revision, at), encode(tick))
    return tick


async def turn(stack: Stack) -> None:
    await stack.make("cron-tick", stack.bus).handle(
        await take(stack.bus, stack.names.work, stack.names.cron_tick)
    )


def every_run(stack: Stack) -> str:
    return f"{stack.names.namespace}.run.>"


async def payloads(stack: Stack) -> list[Any]:
    """Of the runs that are ready, or held until their time."""
    stored = await stack.stored(stack.names.work, every_run(stack))
    return [decode(Run, message.payload).payload for message in stored]


def next_hour(stack: Stack) -> int:
    return stack.clock.now() // HOUR * HOUR + HOUR


@pytest.mark.parametrize("copy", [True, False], ids=["a tick with a copy", "a tick without"])
async def test_a_tick_waits_until_it_is_said_who_governs(stack: Stack, copy: bool) -> None:
    """One in an hour is the successor's; one a moment ago is of the revision in force then."""
    _, old = await current(stack)
    for at, what in ((stack.clock.now() // HOUR * HOUR, ["old"]), (next_hour(stack), [])):
        await due(stack, at, copy=copy)
        delivery = await update(stack)
        async with held_up(stack, delivery):
            await turn(stack)
            assert await payloads(stack) == []
            assert await stack.left(stack.names.work, stack.names.cron_tick) == 1, "handed back"
            assert await intent(stack) == Intent(revisions={ID: old})
            assert await past(stack, old) is None
        assert await intent(stack) == Intent(), "it is over"
        await turn(stack)
        assert await payloads(stack) == what
        await stack.settled(stack.names.work, stack.names.cron_tick)
        await stack.bus.purge(stack.names.work, every_run(stack))
        await apply(stack, await ordered(stack, "update", schedules=[{"id": ID, "payload": "old"}]))
        _, old = await current(stack)


@pytest.mark.usefixtures("brief")
async def test_a_revision_governs_as_before_when_cron_sync_died(stack: Stack) -> None:
    before, old = await current(stack)
    await due(stack, next_hour(stack), copy=True)
    delivery = await update(stack)
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Die(), on=ENTRY)
        with pytest.raises(Killed):
            await apply(stack, delivery, bus)
    assert await intent(stack) == Intent(revisions={ID: old})
    await turn(stack)
    assert await payloads(stack) == [], "its word stands"
    await stack.start("cron-tick")
    await until(lambda: payloads(stack), what="the tick turned")
    assert await payloads(stack) == ["old"]
    assert await intent(stack) is None
    assert await past(stack, old) is None
    assert (await current(stack)) == (before, old)
    await stack.start("cron-sync")

    async def replaced() -> bool:
        return (await current(stack))[1] != old

    await until(replaced, what="the order applied by another copy")
    await stack.clock.sleep(intents.INTENT_KEPT + 1)
    found = await past(stack, old)
    assert found == Past(schedule=before, end=(await current(stack))[0].armed_from), "and that is kept"


@pytest.mark.usefixtures("brief")
async def test_who_was_frozen_for_longer_than_its_intent_takes_the_time_again(stack: Stack) -> None:
    _, old = await current(stack)
    delivery = await update(stack)
    async with held_up(stack, delivery) as (go, task):
        assert await intent(stack) is not None

        async def forgotten() -> bool:
            return await intent(stack) is None

        await until(forgotten, what="the intent forgotten")
        woken = stack.clock.now()
        go.set()
        await task
    entry, revision = await current(stack)
    assert entry.payload == "new"
    assert revision > old
    assert entry.armed_from >= woken + stack.settings.lead_ms, "what was turned meanwhile was the old one's"
    found = await past(stack, old)
    assert found is not None
    assert found.end == entry.armed_from


@pytest.mark.parametrize("where", [INTENT, ENTRY], ids=["before its intent", "after its intent"])
async def test_a_copy_that_was_frozen_changes_nothing_that_another_did(stack: Stack, where: str) -> None:
    _, old = await current(stack)
    delivery = await update(stack)
    async with held_up(stack, delivery, where) as (go, task):
        await apply(stack, delivery)
        pause = await ordered(stack, "pause", items=[ID])
        await apply(stack, pause)
        stands, ended = await current(stack), await past(stack, old)
        assert (stands[0].payload, stands[0].state) == ("new", "paused")
        go.set()
        await task
    assert await current(stack) == stands
    assert await past(stack, old) == ended


@pytest.mark.parametrize("again", [False, True], ids=["at its intent", "past its intent"])
async def test_an_intent_somebody_left_is_no_obstacle(stack: Stack, again: bool) -> None:
    """Of several copies at one command, one does it: whose intent was overwritten begins anew, and finds it done."""
    delivery = await update(stack)
    _, old = await current(stack)
    async with held_up(stack, delivery), contextlib.AsyncExitStack() as others:
        if again:
            await others.enter_async_context(held_up(stack, delivery))
        await apply(stack, delivery)
        entry, revision = await current(stack)
        assert (entry.payload, revision > old) == ("new", True)
    assert await current(stack) == (entry, revision)


@pytest.fixture
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", stack.settings.nats_url)
    monkeypatch.setenv("JETCRON_NAMESPACE", stack.settings.namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))


@pytest.mark.usefixtures("environment")
async def test_whoever_looks_meanwhile_sees_the_revision_in_force(stack: Stack) -> None:
    _, old = await current(stack)
    async with Client(stack.settings) as client, held_up(stack, await update(stack)):
        assert (await client.schedules.get(ID)).revision == old
        assert await client.schedules.revisions(ID) == {ID: old}
        assert await client.schedules.history(ID) == []
        assert (await client.schedules.show(ID)).schedule.revision == old
        shown = await acall("schedules", "history", ID)
        assert shown.exit_code == 0, shown.output


async def test_another_scheduler_waits_until_it_is_said_who_governs(stack: Stack) -> None:
    """Of what was due before the intent, or a lead after it, that is known."""
    async with Client(stack.settings) as client, held_up(stack, await update(stack)) as (go, task):
        hour = next_hour(stack) - HOUR
        assert (await client.schedules.fired(ID, from_ms(hour))).here, "it was due before Jetcron had it"
        await stack.clock.sleep(0.1)
        asking = asyncio.create_task(client.schedules.fired(ID, within=3_600))
        assert not (await asyncio.wait([asking], timeout=0.3))[0]
        go.set()
        await task
        assert (await asking).at == from_ms(hour)


async def test_the_time_is_taken_once_the_intent_stands(stack: Stack) -> None:
    async with held_up(stack, await update(stack), INTENT) as (go, task):
        await stack.clock.sleep(stack.settings.settle + 0.1)
        went = stack.clock.now()
        go.set()
        await task
    entry, _ = await current(stack)
    assert entry.armed_from >= went + stack.settings.lead_ms + stack.settings.settle_ms


class Estimating(FaultyBus):
    """One that holds its clock for fast: the process stalled as it read the server's."""

    clock_offset_ms = property(lambda _: 1_400.0, lambda _, measured: None)  # type: ignore[assignment]


async def test_a_successor_settles_by_the_server_s_time(stack: Stack) -> None:
    delivery = await update(stack)
    before = stack.clock.now()
    async with Estimating(stack.settings) as bus:
        await apply(stack, delivery, bus)
    entry, _ = await current(stack)
    assert entry.armed_from >= before + stack.settings.lead_ms + stack.settings.settle_ms


async def test_who_took_long_after_its_intent_begins_anew(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several servers one may have forgotten it, and another not."""
    monkeypatch.setattr(intents, "INTENT_KEPT", 4)
    state = FaultyBus.stream_state
    stalls = [2.1]

    async def stalling(bus: FaultyBus, stream: str) -> Any:
        announced = any(INTENT in name for name in bus.writes)
        if announced and stream == stack.names.registry and stalls:
            await asyncio.sleep(stalls.pop())
        return await state(bus, stream)

    monkeypatch.setattr(FaultyBus, "stream_state", stalling)
    before = stack.clock.now()
    async with FaultyBus(stack.settings) as bus:
        await apply(stack, await update(stack), bus)
        assert len([name for name in bus.writes if INTENT in name]) > 1
        assert len([name for name in bus.writes if ENTRY in name]) == 1
    entry, _ = await current(stack)
    assert (entry.payload, entry.armed_from > before + 2_000) == ("new", True)


async def test_what_is_replaced_while_it_is_read_governs_up_to_its_end(stack: Stack) -> None:
    delivery = await update(stack)

    class Overtaken(FaultyBus):
        async def entries(self, keys: Sequence[str]) -> dict[str, StoredMessage]:
            found = await super().entries(keys)
            if stack.names.schedule_key(ID) in keys and not delivery.settled:
                await apply(stack, delivery)
            return found

    await due(stack, next_hour(stack), copy=False)
    async with Overtaken(stack.settings) as bus:
        taken = await take(stack.bus, stack.names.work, stack.names.cron_tick)
        await stack.make("cron-tick", bus).handle(taken)
    assert delivery.settled
    await stack.settled(stack.names.work, stack.names.cron_tick)
    assert await payloads(stack) == [], "the successor's"


async def refused(bus: FaultyBus, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why batches of this bus were refused."""
    reasons: list[str] = []
    publish_atomic = bus.publish_atomic

    async def noted(messages: Sequence[Outgoing], **more: Any) -> int:
        try:
            return await publish_atomic(messages, **more)
        except WrongSequence:
            reasons.append(messages[0].subject)
            raise

    monkeypatch.setattr(bus, "publish_atomic", noted)
    return reasons


async def test_a_batch_is_refused_whole_when_another_copy_has_its_intent(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was replaced yet, so that nothing but the intent refuses it."""
    delivery = await update(stack)
    stands = await current(stack)
    key = stack.names.intent_key(0)
    async with FaultyBus(stack.settings) as bus, FaultyBus(stack.settings) as other:
        reasons = await refused(bus, monkeypatch)
        reached, go = asyncio.Event(), asyncio.Event()
        bus.arm(Wait(reached, go), on=ENTRY)
        overtaken = asyncio.create_task(apply(stack, delivery, bus))
        await reached.wait()
        other.arm(Die(), on=ENTRY)
        with pytest.raises(Killed):
            await apply(stack, delivery, other)
        assert (reasons, await current(stack)) == ([], stands)
        assert await past(stack, stands[1]) is None
        # What it stores next is refused: it begins anew, and takes the intent's place.
        again = asyncio.Event()
        bus.arm(Wait(again, proceed := asyncio.Event()), on=INTENT)
        go.set()
        await again.wait()
        assert (reasons, await current(stack)) == ([key], stands)
        assert await past(stack, stands[1]) is None
        proceed.set()
        await overtaken
    assert (await current(stack))[0].payload == "new"
    assert await intent(stack) == Intent()


@pytest.mark.parametrize("asked", ["in one request after the other", "of the leader"])
async def test_what_is_replaced_between_two_reads_is_seen(
    stack: Stack, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who read the intents last would see neither: before, nothing was replaced, and after, the intent is over."""
    delivery = await update(stack)
    await due(stack, next_hour(stack), copy=False)
    async with held_up(stack, delivery) as (go, task), FaultyBus(stack.settings) as bus:

        def overtaken(name: str) -> None:
            """As soon as anything is read of the revision, the other copy goes on."""
            look = getattr(bus, name)

            async def reading(*args: Any) -> Any:
                found = await look(*args)
                if any(key in str(args) for key in (INTENT, PAST)):
                    go.set()
                    await task
                return found

            monkeypatch.setattr(bus, name, reading)

        if asked == "of the leader":
            monkeypatch.setattr(bus, "rare", mock.AsyncMock(return_value=None))
            overtaken("subjects")
            overtaken("entries")
        else:
            monkeypatch.setattr(read, "MAX_MULTI", 2)
            overtaken("_batch")
        taken = await take(stack.bus, stack.names.work, stack.names.cron_tick)
        await stack.make("cron-tick", bus).handle(taken)
        assert delivery.settled, "it was replaced meanwhile"
    await stack.settled(stack.names.work, stack.names.cron_tick)
    assert await payloads(stack) == [], "the successor's"


async def test_what_tells_how_far_a_replica_has_read_is_no_word_of_a_revision(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several replicas, an entry comes with what is asked."""
    state = await stack.bus.stream_state(stack.names.registry)
    three = dataclasses.replace(state, config={**state.config, "num_replicas": 3})
    monkeypatch.setattr(stack.bus, "stream_state", mock.AsyncMock(return_value=three))
    await due(stack, next_hour(stack), copy=False)
    await turn(stack)
    assert await payloads(stack) == ["old"]


async def test_parts_of_a_command_leave_an_intent_each(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two under one key at one time either would be refused, and the command begin anew."""
    monkeypatch.setattr(registry, "_PART", 2)
    ids = [f"tenant {number}" for number in range(2, 9)]
    made = [{"id": id, "function": "app.f", "every": HOUR} for id in ids]
    await apply(stack, await ordered(stack, "create", schedules=made))
    delivery = await ordered(stack, "update", schedules=[{"id": id, "payload": "new"} for id in ids])
    async with FaultyBus(stack.settings) as bus:
        await apply(stack, delivery, bus)
        written = [name for name in bus.writes if INTENT in name]
    assert set(written) == {stack.names.intent_key(number) for number in range(3)}, "three at one time"
    assert len(written) == 4, "who comes after one that is over takes its place at once"
    for id in ids:
        entry = await stack.bus.entry(stack.names.schedule_key(id))
        assert entry is not None
        assert decode(Schedule, entry.payload).payload == "new"


@pytest.mark.parametrize("what", ["a removed key", "nothing readable"])
async def test_an_intent_that_cannot_be_read_keeps_nobody(stack: Stack, what: str) -> None:
    delivery = await update(stack)
    key = stack.names.intent_key(0)
    if what == "a removed key":
        await stack.bus.publish(key, b"", {OPERATION: "DEL"})
    else:
        await stack.bus.publish(key, b"\xc1")
    await due(stack, next_hour(stack) - HOUR, copy=True)
    await turn(stack)
    await due(stack, next_hour(stack), copy=False)
    await turn(stack)
    assert await payloads(stack) == ["old", "old"]
    async with Client(stack.settings) as client, asyncio.timeout(10):
        assert (await client.schedules.fired(ID, from_ms(next_hour(stack) - HOUR))).here
    await apply(stack, delivery)
    assert (await current(stack))[0].payload == "new"


@pytest.mark.parametrize("what", ["an end", "a removed key", "nothing readable"])
async def test_what_is_wrong_about_a_revision_in_force_keeps_nobody(stack: Stack, what: str) -> None:
    """Nobody of ours writes that; an operator, or a restored stream, may."""
    schedule, revision = await current(stack)
    key = stack.names.past_key(ID, revision)
    match what:
        case "an end":
            await stack.bus.publish(key, encode(Past(schedule=schedule, end=1)))
        case "a removed key":
            await stack.bus.publish(key, b"", {OPERATION: "DEL"})
        case _:
            await stack.bus.publish(key, b"\xc1")
    if what != "nothing readable":
        await due(stack, next_hour(stack) - HOUR, copy=True)
        await turn(stack)
        assert await payloads(stack) == ["old"]
        async with Client(stack.settings) as client, asyncio.timeout(10):
            assert (await client.schedules.fired(ID, from_ms(next_hour(stack) - HOUR))).here
    await apply(stack, await update(stack))
    entry, _ = await current(stack)
    assert entry.payload == "new"
    assert await past(stack, revision) == Past(schedule=schedule, end=entry.armed_from)


async def many(stack: Stack, monkeypatch: pytest.MonkeyPatch, count: int = 7) -> list[str]:
    """So many schedules that are far off, of which two at a time are replaced."""
    monkeypatch.setattr(registry, "_PART", 2)
    ids = [f"tenant {number}" for number in range(2, 2 + count)]
    made = [{"id": id, "function": "app.f", "cron": "0 9 29 2 *"} for id in ids]
    await apply(stack, await ordered(stack, "create", schedules=made))
    return ids


async def armed(stack: Stack, id: str) -> tuple[Schedule, bool]:
    """A schedule, and whether it has one tick, which is of the revision in force."""
    entry = await stack.bus.entry(stack.names.schedule_key(id))
    assert entry is not None
    ticks = await stack.bus.subjects(stack.names.work, stack.names.ticks_of(id))
    found = [stack.names.parse_tick(tick).revision for tick in ticks]
    return decode(Schedule, entry.payload), found == [entry.sequence]


async def test_what_one_part_meets_does_not_leave_the_others_unarmed(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await many(stack, monkeypatch)
    delivery = await ordered(stack, "update", schedules=[{"id": id, "payload": "new"} for id in ids])
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Refuse(TryAgain(408, 0, "by the test")), on=stack.names.schedule_key(ids[1]))
        with pytest.raises(TryAgain):
            await apply(stack, delivery, bus)
    found = {id: await armed(stack, id) for id in ids}
    assert all(is_armed for _, is_armed in found.values())
    assert [found[id][0].payload for id in ids[:2]] == [None, None]
    assert [found[id][0].payload for id in ids[2:6]] == ["new"] * 4, "they were on their way beside it"
    await apply(stack, delivery)
    again = [await armed(stack, id) for id in ids]
    assert [(schedule.payload, is_armed) for schedule, is_armed in again] == [("new", True)] * len(ids)


async def test_what_one_part_would_be_refused_for_refuses_all(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await many(stack, monkeypatch)
    await apply(stack, await ordered(stack, "pause", items=ids))
    key = stack.names.schedule_key(ids[-1])
    entry = await stack.bus.entry(key)
    assert entry is not None
    elsewhere = replace(decode(Schedule, entry.payload), timezone="Mars/Olympus")
    await stack.bus.publish(key, encode(elsewhere))
    delivery = await ordered(stack, "unpause", items=ids)
    await apply(stack, delivery)
    assert delivery.settled
    assert {(await armed(stack, id))[0].state for id in ids} == {"paused"}
    (letter,) = await stack.stored(stack.names.dead, ">")
    assert "Mars/Olympus" in decode(DeadLetter, letter.payload).reason


async def test_schedules_with_a_number_of_runs_go_in_small_parts(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find the last of them takes its time, and all the others' intents count meanwhile."""
    monkeypatch.setattr(registry, "_LIMITED", 2)
    ids = [f"tenant {number}" for number in range(2, 7)]
    made = [{"id": id, "function": "app.f", "cron": "0 9 1 * *", "max_runs": 500} for id in ids]
    await apply(stack, await ordered(stack, "create", schedules=made))
    delivery = await ordered(stack, "update", schedules=[{"id": id, "payload": "new"} for id in ids])
    async with FaultyBus(stack.settings) as bus:
        await apply(stack, delivery, bus)
        written = [name for name in bus.writes if INTENT in name]
    assert written == [stack.names.intent_key(0)] * 3, "one after the other"
    assert [await armed(stack, id) for id in ids] == [(mock.ANY, True)] * 5
