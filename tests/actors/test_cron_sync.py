"""cron-sync on a real server: what each command leads to, and what it leaves alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from unittest import mock

import pytest
import pytest_asyncio

from jetcron import App, Context
from jetcron.bus import rfc3339_ms
from jetcron.carried import keep
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.cron import CronError
from jetcron.errors import NotFound
from jetcron.registration import order
from jetcron.registry import Applied, Registry
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import (
    AppEntry,
    CronTrigger,
    Function,
    JournalEntry,
    Past,
    Schedule,
    SyncCommand,
    SyncReply,
)
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until

YEARLY = CronTrigger(expression="0 9 1 3 *")
LEAP_DAY = CronTrigger(expression="5 5 29 2 *")
F = Function(id="app.f", cron=[YEARLY], concurrency=2)
G = Function(id="app.g", on=["x"])


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        await stack.start("cron-sync")
        yield stack


async def command(stack: Stack, kind: str, *items: str, app: str = "app") -> SyncReply:
    return await order(
        stack.bus,
        SyncCommand(id=f"{kind}-{items}", command=kind, app=app, items=list(items)),  # type: ignore[arg-type]
        wait=PATIENCE,
    )


async def register(stack: Stack, hash: str, *functions: Function, force: bool = False) -> SyncReply:
    ordered = SyncCommand(
        id=hash, command="register", app="app", functions=list(functions), hash=hash, force=force
    )
    return await order(stack.bus, ordered, wait=PATIENCE)


async def schedule(stack: Stack, id: str) -> tuple[Schedule, int]:
    entry = await stack.bus.entry(stack.names.schedule_key(id))
    assert entry is not None, f"{id} has no entry"
    return decode(Schedule, entry.payload), entry.sequence


async def function(stack: Stack, id: str) -> Function:
    entry = await stack.bus.entry(stack.names.function_key(id))
    assert entry is not None, f"{id} has no entry"
    return decode(Function, entry.payload)


async def held(stack: Stack, id: str) -> list[tuple[int, int]]:
    """Revision and time of each held tick of a schedule."""
    subjects = await stack.bus.subjects(stack.names.work, stack.names.ticks_of(id))
    return sorted((tick.revision, tick.at) for tick in map(stack.names.parse_tick, subjects))


async def last_sequence(stack: Stack) -> int:
    return (await stack.bus.stream_state(stack.names.registry)).last_sequence


async def test_a_new_app_gets_entries_first_ticks_and_consumers(stack: Stack) -> None:
    reply = await register(stack, "one", F, G)
    found, revision = await schedule(stack, "app.f")
    assert (found.cron, found.state, found.origin) == ("0 9 1 3 *", "active", "code")
    assert reply.revisions == {"app.f": revision}
    assert await held(stack, "app.f") == [(revision, reply.next["app.f"])]
    assert from_ms(reply.next["app.f"]).strftime("%H:%M:%S") == "09:00:00"
    info = await stack.bus.consumer(stack.names.work, stack.names.run_consumer("app.f"))
    assert info["config"]["max_ack_pending"] == 2
    info = await stack.bus.consumer(stack.names.work, stack.names.run_consumer("app.g"))
    assert info["config"]["max_ack_pending"] == -1
    entry = await stack.bus.entry(stack.names.app_key("app"))
    assert entry is not None
    assert decode(AppEntry, entry.payload).functions == ["app.f", "app.g"]


async def test_schedules_have_the_policies_of_their_function(stack: Stack) -> None:
    await register(
        stack, "one", replace(F, overlap="queue", catch_up="all", catch_up_within=60_000, catch_up_most=5)
    )
    found, _ = await schedule(stack, "app.f")
    assert (found.overlap, found.catch_up, found.catch_up_within, found.catch_up_most) == (
        "queue",
        "all",
        60_000,
        5,
    )
    reply = await register(stack, "two", replace(F, overlap="cancel_running", concurrency=1))
    assert reply.errors == ["app.f: overlap='cancel_running' needs a concurrency of 2 or more, or none"]


async def test_the_same_definitions_again_write_nothing(stack: Stack) -> None:
    await register(stack, "one", F, G)
    before = await last_sequence(stack)
    reply = await register(stack, "one", F, G)
    assert (reply.errors, reply.warnings, reply.revisions) == ([], [], {})
    assert await last_sequence(stack) == before


async def test_only_what_changed_is_written(stack: Stack) -> None:
    await register(stack, "one", F, G, replace(F, id="app.h"))
    _, untouched = await schedule(stack, "app.h")
    first = (await register(stack, "two", replace(F, cron=[LEAP_DAY]), G, replace(F, id="app.h"))).revisions
    assert list(first) == ["app.f"]
    assert (await schedule(stack, "app.h"))[1] == untouched
    assert (await schedule(stack, "app.f"))[0].cron == "5 5 29 2 *"


async def test_a_replaced_revision_goes_to_the_past_with_its_end(stack: Stack) -> None:
    await register(stack, "one", F)
    old, revision = await schedule(stack, "app.f")
    before = stack.clock.now()
    await register(stack, "two", replace(F, cron=[LEAP_DAY]))
    after = stack.clock.now()
    new, _ = await schedule(stack, "app.f")
    settle = stack.settings.lead_ms + stack.settings.settle_ms
    assert before + settle <= new.armed_from <= after + settle
    entry = await stack.bus.entry(stack.names.past_key("app.f", revision))
    assert entry is not None
    assert decode(Past, entry.payload) == Past(schedule=old, end=new.armed_from)
    kept = int(entry.headers["Nats-TTL"].removesuffix("s"))
    assert keep(old, new.armed_from, after) <= kept <= keep(old, new.armed_from, before)


async def test_a_new_schedule_counts_from_when_its_command_was_stored(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats) as stack:
        ordered = SyncCommand(id="1", command="register", app="app", functions=[F], hash="one")
        sequence = (await stack.bus.publish(stack.names.sync("app"), encode(ordered))).sequence
        info = await stack.bus.api(f"STREAM.MSG.GET.{stack.names.work}", {"seq": sequence})
        await until(lambda: stack.clock.now() > rfc3339_ms(info["message"]["time"]) + 50)
        await stack.start("cron-sync")
        await stack.settled(stack.names.work, stack.names.cron_sync)
        assert (await schedule(stack, "app.f"))[0].armed_from == rfc3339_ms(info["message"]["time"])


async def test_a_function_no_longer_declared_is_archived(stack: Stack) -> None:
    await register(stack, "one", F, G)
    await register(stack, "two", G)
    assert (await function(stack, "app.f")).state == "archived"
    assert (await schedule(stack, "app.f"))[0].state == "archived"
    assert await held(stack, "app.f") == []

    async def nothing_left() -> bool:
        return await stack.bus.subjects(stack.names.work, ">") == []

    await until(nothing_left, what="no message left, the command neither")
    with pytest.raises(NotFound):
        await stack.bus.consumer(stack.names.work, stack.names.run_consumer("app.f"))
    back = await register(stack, "three", F, G)
    assert (await function(stack, "app.f")).state == "active"
    assert [revision for revision, _ in await held(stack, "app.f")] == [back.revisions["app.f"]]


async def test_a_trigger_no_longer_declared_is_archived(stack: Stack) -> None:
    await register(stack, "one", replace(F, cron=[YEARLY, LEAP_DAY]))
    assert (await schedule(stack, "app.f:2"))[0].cron == "5 5 29 2 *"
    await register(stack, "two", F)
    assert (await schedule(stack, "app.f:2"))[0].state == "archived"
    assert await held(stack, "app.f:2") == []
    assert len(await held(stack, "app.f")) == 1


async def test_definitions_just_replaced_do_not_come_back_by_themselves(stack: Stack) -> None:
    await register(stack, "old", F)
    await register(stack, "new", replace(F, cron=[LEAP_DAY]))
    before = await last_sequence(stack)
    reply = await register(stack, "old", F)
    assert "jetcron sync --force" in reply.warnings[0]
    assert (reply.errors, await last_sequence(stack)) == ([], before)
    reply = await register(stack, "old", F, force=True)
    assert reply.warnings == []
    assert (await schedule(stack, "app.f"))[0].cron == "0 9 1 3 *"


async def test_definitions_replaced_long_ago_come_back(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats, rolled_back_within=0) as stack:
        await stack.start("cron-sync")
        await register(stack, "old", F)
        await register(stack, "new", replace(F, cron=[LEAP_DAY]))
        assert (await register(stack, "old", F)).warnings == []
        assert (await schedule(stack, "app.f"))[0].cron == "0 9 1 3 *"


async def test_pausing_and_unpausing(stack: Stack) -> None:
    await register(stack, "one", F)
    assert (await command(stack, "pause", "app.f")).errors == []
    paused, _ = await schedule(stack, "app.f")
    assert (paused.state, await held(stack, "app.f")) == ("paused", [])
    durable = stack.names.run_consumer("app.f")
    assert (await stack.bus.consumer(stack.names.work, durable))["paused"]
    before = await last_sequence(stack)
    await command(stack, "pause", "app.f")
    assert (await schedule(stack, "app.f"))[0] == paused
    assert await last_sequence(stack) == before, "pausing what is paused writes nothing"
    reply = await command(stack, "unpause", "app.f")
    active, revision = await schedule(stack, "app.f")
    assert active.state == "active"
    assert active.armed_from > paused.armed_from
    assert await held(stack, "app.f") == [(revision, reply.next["app.f"])]
    assert not (await stack.bus.consumer(stack.names.work, durable)).get("paused")


async def test_a_paused_function_stays_paused_when_its_app_changes(stack: Stack) -> None:
    await register(stack, "one", F)
    await command(stack, "pause", "app.f")
    await register(stack, "two", replace(F, cron=[LEAP_DAY], concurrency=9))
    assert (await function(stack, "app.f")).state == "paused"
    found, _ = await schedule(stack, "app.f")
    assert (found.state, found.cron) == ("paused", "5 5 29 2 *")
    assert await held(stack, "app.f") == []
    info = await stack.bus.consumer(stack.names.work, stack.names.run_consumer("app.f"))
    assert (info["paused"], info["config"]["max_ack_pending"]) == (True, 9)


async def test_concurrency_changes_in_place(stack: Stack) -> None:
    await register(stack, "one", F)
    durable = stack.names.run_consumer("app.f")
    created = (await stack.bus.consumer(stack.names.work, durable))["created"]
    for number, limit in enumerate((7, 0)):
        await register(stack, f"more-{number}", replace(F, concurrency=limit))
        info = await stack.bus.consumer(stack.names.work, durable)
        assert (info["config"]["max_ack_pending"], info["created"]) == (limit or -1, created)


async def test_archiving_cancels_what_waits_and_lets_what_runs_finish(stack: Stack) -> None:
    app = App("app")
    gate, started = asyncio.Event(), asyncio.Event()

    @app.function(concurrency=1)
    async def f(ctx: Context) -> str:
        started.set()
        await gate.wait()
        return "finished"

    await stack.register(app)
    executor = await stack.execute(app)
    async with Client(stack.settings) as client:
        running = await client.run("app.f")
        await asyncio.wait_for(started.wait(), PATIENCE)
        ready = await client.run("app.f")
        later = await client.run("app.f", at=from_ms(stack.clock.now() + 3_600_000))
        await client.functions.archive("app.f")
        for handle in (ready, later):
            assert await handle.status() == "cancelled"
        assert await running.status() == "running"
        gate.set()
        assert await running.result(PATIENCE) == "finished"

        async def nothing_left() -> bool:
            return await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.run.>") == []

        await until(nothing_left, what="no message left")
    await executor.stop()
    kinds = [entry.entry.entry for entry in stack.journal.entries if isinstance(entry.entry, JournalEntry)]
    assert sorted(kinds) == ["cancelled", "cancelled", "claimed", "completed"]


async def test_a_schedule_that_ended_says_so_unless_it_was_replaced(stack: Stack) -> None:
    await register(stack, "one", F)
    _, old = await schedule(stack, "app.f")
    await register(stack, "two", replace(F, cron=[LEAP_DAY]))
    _, new = await schedule(stack, "app.f")
    for revision, state in ((old, "active"), (new, "ended")):
        await order(
            stack.bus,
            SyncCommand(id=str(revision), command="ended", app="app", items=["app.f"], revision=revision),
            wait=PATIENCE,
        )
        assert (await schedule(stack, "app.f"))[0].state == state


async def test_a_command_that_cannot_be_applied_is_refused_with_every_fault(stack: Stack) -> None:
    bad = CronTrigger(expression="61 * * * *")
    reply = await register(
        stack, "one", F, replace(F, id="app.bad", cron=[bad]), Function(id="other.f", cron=[YEARLY])
    )
    assert len(reply.errors) == 2
    assert "app.bad" in reply.errors[0]
    assert "61" in reply.errors[0]
    assert "other.f" in reply.errors[1]
    assert await last_sequence(stack) == 0, "nothing of it was written"
    reply = await command(stack, "pause", "app.absent", "app.f")
    assert "app.absent" in reply.errors[0]
    letters = await stack.dead()
    assert [letter.letter for letter in letters] == ["sync", "sync"]
    assert "61" in letters[0].reason
    await register(stack, "two", F)
    await command(stack, "archive", "app.f")
    assert "archived" in (await command(stack, "unpause", "app.f")).errors[0]


async def test_a_command_nobody_can_read_goes_to_the_dead_stream_and_the_next_is_applied(
    stack: Stack,
) -> None:
    for body in (b"\xc1", b"", encode(F)):
        await stack.bus.publish(stack.names.sync("app"), body)
    assert (await register(stack, "one", F)).errors == []
    assert [letter.body for letter in await stack.dead()] == [b"\xc1", b"", encode(F)]
    await stack.settled(stack.names.work, stack.names.cron_sync)


async def test_hundreds_of_functions_in_one_command(stack: Stack) -> None:
    functions = [Function(id=f"app.f{n}", cron=[YEARLY]) for n in range(300)]
    reply = await register(stack, "many", *functions)
    assert len(reply.revisions) == len(reply.next) == 300
    subjects = await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.tick.held.>")
    ticks = {(t.schedule, t.revision) for t in map(stack.names.parse_tick, subjects)}
    assert ticks == set(reply.revisions.items())


async def test_copies_of_cron_sync_apply_commands_in_their_order(stack: Stack) -> None:
    await stack.start("cron-sync", copies=2)
    await register(stack, "0", F)
    last = None
    for n in range(12):
        crons = [CronTrigger(expression=f"{n} 9 * * *")]
        last = await register(stack, str(n + 1), replace(F, cron=crons))
    assert last is not None
    found, revision = await schedule(stack, "app.f")
    assert (found.cron, {"app.f": revision}) == ("11 9 * * *", last.revisions)
    assert await held(stack, "app.f") == [(revision, last.next["app.f"])]


async def test_what_stands_unchanged_is_refused_for_nothing(stack: Stack) -> None:
    """A schedule in a zone that this host does not know: who registers it as it stands changes nothing about it."""
    await register(stack, "one", F, G)
    entry, revision = await schedule(stack, "app.f")
    elsewhere = replace(entry, timezone="Mars/Olympus", cron="0 9 * * *")
    stands = await stack.bus.publish(stack.names.schedule_key("app.f"), encode(elsewhere))
    held = Registry(stack.bus, stack.clock, stack.settings)
    delivery = mock.Mock(sequence=stands.sequence + 100, stored_at=stack.clock.now())
    await held.put_schedules([elsewhere], delivery, Applied())
    assert (await schedule(stack, "app.f")) == (elsewhere, stands.sequence)
    with pytest.raises(CronError, match="Mars/Olympus"):
        await held.put_schedules([replace(elsewhere, jitter=5)], delivery, Applied())
    assert (await schedule(stack, "app.f")) == (elsewhere, stands.sequence)
    assert revision < stands.sequence
