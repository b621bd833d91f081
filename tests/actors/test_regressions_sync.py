"""cron-sync, what it once stumbled over: commands that cannot be applied, missing entries, the order of commands."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest_asyncio

from jetcron import dispatch
from jetcron.bus import OPERATION, Delivery
from jetcron.client import Client
from jetcron.dispatch import new_run
from jetcron.registration import order
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import manual_run_id
from jetcron_protocol.messages import CronTrigger, Function, Run, Schedule, SyncCommand, SyncReply
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, take

DAILY = CronTrigger(expression="0 9 * * *")
HOURLY = CronTrigger(expression="0 * * * *")
F = Function(id="app.f", cron=[DAILY], concurrency=2)


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


def ordered(kind: str, *items: str) -> SyncCommand:
    return SyncCommand(id=f"{kind}-{items}", command=kind, app="app", items=list(items))  # type: ignore[arg-type]


def definitions(hash: str, *functions: Function, force: bool = False) -> SyncCommand:
    return SyncCommand(
        id=hash, command="register", app="app", functions=list(functions), hash=hash, force=force
    )


async def apply(stack: Stack, command: SyncCommand) -> SyncReply:
    return await order(stack.bus, command, wait=PATIENCE)


async def schedule(stack: Stack, id: str) -> Schedule:
    entry = await stack.bus.entry(stack.names.schedule_key(id))
    assert entry is not None, f"{id} has no entry"
    return decode(Schedule, entry.payload)


async def test_a_command_that_names_no_function_is_refused_and_the_next_applied(stack: Stack) -> None:
    (sync,) = await stack.start("cron-sync")
    await apply(stack, definitions("one", F))
    reply = await apply(stack, ordered("pause", "nodot"))
    assert len(reply.errors) == 1
    assert "nodot" in reply.errors[0]
    (letter,) = await stack.dead()
    assert letter.letter == "sync"
    assert "nodot" in letter.reason
    assert decode(SyncCommand, letter.body).items == ["nodot"]
    assert (await apply(stack, ordered("pause", "app.f"))).errors == []
    assert (await schedule(stack, "app.f")).state == "paused"
    assert not sync.task.done()


async def test_pausing_a_function_without_its_consumer_makes_it_anew(stack: Stack) -> None:
    await stack.start("cron-sync")
    await apply(stack, definitions("one", F))
    durable = stack.names.run_consumer("app.f")
    await stack.bus.delete_consumer(stack.names.work, durable)
    assert (await apply(stack, ordered("pause", "app.f"))).errors == []
    info = await stack.bus.consumer(stack.names.work, durable)
    assert (info["paused"], info["config"]["max_ack_pending"]) == (True, 2)


async def test_a_deleted_key_does_not_stop_a_registration(stack: Stack) -> None:
    await stack.start("cron-sync")
    await apply(stack, definitions("one", F))
    await stack.bus.publish(stack.names.schedule_key("app.f"), b"", {OPERATION: "DEL"})
    reply = await apply(stack, definitions("two", replace(F, cron=[HOURLY])))
    assert reply.errors == []
    found = await schedule(stack, "app.f")
    assert (found.cron, found.state) == ("0 * * * *", "active")
    assert await stack.dead() == []


async def delivered(stack: Stack, command: SyncCommand) -> Delivery:
    """A command as cron-sync gets it; the server will not deliver it again."""
    message = dispatch.command(stack.names, command)
    await stack.bus.publish(message.subject, message.payload)
    (delivery,) = await take(stack.bus, stack.names.work, stack.names.cron_sync)
    await delivery.ack()
    return delivery


async def test_a_command_older_than_what_stands_changes_nothing(stack: Stack) -> None:
    sync = stack.make("cron-sync", stack.bus)
    await sync.handle([await delivered(stack, definitions("zero", F))])
    durable = stack.names.run_consumer("app.f")
    pairs = (
        (ordered("pause", "app.f"), ordered("unpause", "app.f")),
        (
            definitions("one", replace(F, concurrency=3), force=True),
            definitions("two", replace(F, cron=[HOURLY])),
        ),
    )
    for first, second in pairs:
        # Applied by another copy, while the one that had it first was frozen.
        older = await delivered(stack, first)
        await sync.handle([older])
        await sync.handle([await delivered(stack, second)])
        before = (await stack.bus.stream_state(stack.names.registry)).last_sequence
        await sync.handle([older])
        state = await stack.bus.stream_state(stack.names.registry)
        assert state.last_sequence == before, f"{first.command} was written after {second.command}"
        info = await stack.bus.consumer(stack.names.work, durable)
        assert (info.get("paused", False), info["config"]["max_ack_pending"]) == (False, 2)
    found = await schedule(stack, "app.f")
    assert (found.cron, found.state) == ("0 * * * *", "active")


async def test_an_older_pause_does_not_undo_an_unpause_that_wrote_nothing_else(stack: Stack) -> None:
    sync = stack.make("cron-sync", stack.bus)
    await sync.handle([await delivered(stack, definitions("zero", F))])
    await sync.handle([await delivered(stack, ordered("pause", "app.f"))])
    older = await delivered(stack, ordered("pause", "app.f"))
    await sync.handle([await delivered(stack, ordered("unpause", "app.f"))])
    await sync.handle([older])
    assert (await schedule(stack, "app.f")).state == "active"


async def test_an_older_registration_does_not_bring_back_what_was_archived_since(stack: Stack) -> None:
    sync = stack.make("cron-sync", stack.bus)
    older = await delivered(stack, definitions("one", F))
    await sync.handle([older])
    await sync.handle([await delivered(stack, ordered("archive", "app.f"))])
    await sync.handle([older])
    entry = await stack.bus.entry(stack.names.function_key("app.f"))
    assert entry is not None
    assert decode(Function, entry.payload).state == "archived"
    assert (await schedule(stack, "app.f")).state == "archived"


async def test_all_the_runs_of_an_archived_function_are_cancelled(stack: Stack) -> None:
    count = 600
    await stack.start("cron-sync")
    await apply(stack, definitions("one", F))
    now = stack.clock.now()
    runs = [
        Run(run=manual_run_id("app.f", str(n)), function="app.f", trigger="manual", fire_at=now)
        for n in range(count)
    ]
    groups = [[new_run(stack.names, run, now=now, lead=500)] for run in runs]
    assert len(await stack.bus.publish_groups(groups)) == count
    async with Client(stack.settings) as client:
        await client.functions.archive("app.f", wait=PATIENCE)
    cancelled = await stack.journal.wait("cancelled", count)
    assert {entry.run for entry in cancelled} == {run.run for run in runs}
    assert await stack.stored(stack.names.work, stack.names.run_ready("app.f")) == []
