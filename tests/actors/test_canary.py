"""The canary: a schedule of Jetcron's own, through everything a user's occurrence passes."""

import math
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from jetcron import App, Client, ConfigurationError
from jetcron.bus import Delivery
from jetcron.cli.cycles import Finding
from jetcron.cli.doctor import examine
from jetcron.dispatch import new_run
from jetcron.health_checker.canary import CanaryApp, read_note
from jetcron.registration import order
from jetcron_protocol import topology
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import manual_run_id
from jetcron_protocol.messages import Canary, Function, Run, SyncCommand, SyncReply
from jetcron_protocol.subjects import CANARY, OWN_APP
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Running, Scenario, Stack, every_fault, play, take, until


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats, canary_every=1) as stack:
        yield stack


def came(copies: Sequence[Running]) -> float:
    """Canaries that came, over all copies."""
    total = 0.0
    for copy in copies:
        for metric in copy.process.metrics.canary_lateness.collect():
            total += sum(one.value for one in metric.samples if one.name.endswith("_count"))
    return total


def age(copy: Running) -> float:
    return copy.process.metrics.canary_age.collect()[0].samples[0].value  # type: ignore[no-any-return]


async def say(stack: Stack, command: str, **fields: object) -> SyncReply:
    made = SyncCommand(id=f"{command}-1", command=command, app=OWN_APP, **fields)  # type: ignore[arg-type]
    return await order(stack.bus, made, wait=PATIENCE)


async def finding(stack: Stack) -> Finding:
    return next(one for one in await examine(stack.settings) if one.about == "canary")


async def state(stack: Stack) -> str:
    entry = await stack.bus.entry(stack.names.function_key(CANARY))
    assert entry is not None
    return decode(Function, entry.payload).state


async def test_canaries_come_through_to_whichever_copy_is_there(stack: Stack) -> None:
    await stack.start("cron-sync", "cron-tick")
    copies = await stack.start("health-checker", copies=2)
    await until(lambda: came(copies) >= 3, what="three canaries")
    note = await read_note(stack.bus)
    assert note is not None
    assert note.at % 1000 == 0
    assert all(0 <= age(copy) < PATIENCE for copy in copies), "each knows of what came to the other"

    async def well() -> bool:
        return (await finding(stack)).level == "ok"

    await until(well, what="one in time")
    assert not [one for one in await examine(stack.settings) if one.about == OWN_APP], (
        "no executor is asked for"
    )
    assert await stack.stored(stack.names.journal) == []


async def test_one_that_is_paused_stays_so(stack: Stack) -> None:
    await stack.start("cron-sync", "cron-tick")
    (first,) = await stack.start("health-checker")
    await until(lambda: came([first]) >= 1, what="a canary")
    assert not (await say(stack, "pause", items=[CANARY])).errors
    await until(lambda: math.isnan(age(first)), what="an age that is none")
    (second,) = await stack.start("health-checker")
    await until(lambda: math.isnan(age(second)), what="the same in a copy that starts")
    assert await state(stack) == "paused"
    assert (await finding(stack)).level == "note"
    before = came([first, second])
    assert not (await say(stack, "unpause", items=[CANARY])).errors
    await until(lambda: came([first, second]) > before, what="canaries again")
    assert not (await say(stack, "archive", items=[CANARY])).errors
    await until(lambda: math.isnan(age(first)), what="an age that is none again")
    (third,) = await stack.start("health-checker")
    await until(lambda: math.isnan(age(third)), what="the same in another copy")
    assert await state(stack) == "archived"


async def test_doctor_tells_when_it_is_late_or_silent(stack: Stack) -> None:
    assert (await finding(stack)).level == "note", "not registered"
    await stack.start("cron-sync")
    (copy,) = await stack.start("health-checker")

    async def registered() -> bool:
        return await stack.bus.entry(stack.names.function_key(CANARY)) is not None

    await until(registered, what="the canary registered")
    assert (await finding(stack)).what == "none has come through yet"
    for ago, late, level, text in (
        (0, 100, "ok", "100 ms late"),
        (0, 5_000, "wrong", "5.0 s late"),
        (60_000, 1, "wrong", "does not run"),
    ):
        note = Canary(at=stack.clock.now() - ago, late=late)
        await stack.bus.publish(stack.names.canary_key, encode(note))
        found = await finding(stack)
        assert (found.level, text in found.what) == (level, True), found
    # Nobody turns ticks: the checker itself says it too.
    await until(lambda: age(copy) > 4, what="silence")


async def test_the_name_of_its_app_is_taken(stack: Stack) -> None:
    with pytest.raises(ConfigurationError, match="Jetcron's own"):
        App(OWN_APP)
    await stack.start("cron-sync")
    reply = await say(stack, "register", functions=[Function(id="jetcron.mine")], hash="1")
    assert "Jetcron's own" in reply.errors[0]
    assert await stack.bus.entry(stack.names.function_key("jetcron.mine")) is None


async def test_its_function_is_nobody_elses(stack: Stack) -> None:
    """Refused at the client and, for what others send, at cron-sync."""
    await stack.start("cron-sync")
    async with Client(stack.settings) as client:
        with pytest.raises(ConfigurationError, match="Jetcron's own"):
            await client.run(CANARY)
        with pytest.raises(ConfigurationError, match="Jetcron's own"):
            await client.schedules.create("mine", CANARY, every=60)
    made = {"id": "mine", "function": CANARY, "every": 60_000}
    command = SyncCommand(id="1", command="schedules.create", app="schedules", schedules=[made])
    reply = await order(stack.bus, command, wait=PATIENCE)
    assert "Jetcron's own" in reply.faults["mine"][0]


def test_another_period_is_another_definition() -> None:
    assert CanaryApp(15).hash == CanaryApp(15).hash != CanaryApp(30).hash


# Faults.


def scenario(*, schedule: str | None = CANARY) -> Scenario:
    async def prepare(stack: Stack) -> None:
        await stack.bus.apply_consumer(*topology.run_consumer(stack.names, CANARY, 0, stack.settings.limits))
        now = stack.clock.now()
        run = Run(
            run=manual_run_id(CANARY, "1"),
            function=CANARY,
            trigger="cron" if schedule else "manual",
            fire_at=now,
            schedule=schedule,
            scheduled_at=now if schedule else None,
        )
        await stack.bus.store(new_run(stack.names, run, now=now, lead=500))

    async def act(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
        checker = stack.make("health-checker", bus)
        for delivery in deliveries:
            await checker._canary.handle(delivery)

    return Scenario(prepare, act, durable="run==jetcron==canary")


async def test_a_fault_in_any_write_changes_nothing(shared_nats: NatsServer) -> None:
    async for where, whole, disturbed in every_fault(shared_nats, scenario()):
        assert disturbed.state == whole.state, where
        assert any("canary" in name for name in whole.writes)


async def test_twice_is_once(shared_nats: NatsServer) -> None:
    once = await play(shared_nats, scenario())
    assert (await play(shared_nats, scenario(), again=1)).state == once.state


async def test_a_run_somebody_else_started_is_no_canary(stack: Stack) -> None:
    await scenario(schedule=None).prepare(stack)
    (delivery,) = await take(stack.bus, stack.names.work, "run==jetcron==canary")
    await stack.make("health-checker", stack.bus)._canary.handle(delivery)
    assert await read_note(stack.bus) is None
    await stack.settled(stack.names.work, "run==jetcron==canary")


async def test_an_older_one_that_comes_late_does_not_hide_a_newer_one(stack: Stack) -> None:
    newer = Canary(at=stack.clock.now() + 60_000, late=3)
    await stack.bus.publish(stack.names.canary_key, encode(newer))
    await scenario().prepare(stack)
    (delivery,) = await take(stack.bus, stack.names.work, "run==jetcron==canary")
    await stack.make("health-checker", stack.bus)._canary.handle(delivery)
    assert await read_note(stack.bus) == newer
