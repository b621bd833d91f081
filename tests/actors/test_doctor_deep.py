"""jetcron doctor --deep on a real server: every held tick beside its definition."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest_asyncio

from jetcron.bus import SCHEDULE, SCHEDULE_TARGET, Outgoing
from jetcron.cli.cycles import Finding
from jetcron.cli.doctor import examine
from jetcron.dispatch import held_tick
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Past, Schedule, Tick
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack

PERIOD = 1_000 * 3_600_000
"""So long that the last two minutes of one, in which the next is near, as good as never come while tests run, ms."""
ID = "report"


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


async def put(stack: Stack, **more: Any) -> int:
    schedule = Schedule(id=ID, **({"function": "app.f", "every": PERIOD} | more))
    return (await stack.bus.publish(stack.names.schedule_key(ID), encode(schedule))).sequence


def period(stack: Stack, number: int) -> int:
    """The end of the n-th full period from now that is not near."""
    return ((stack.clock.now() + 120_000) // PERIOD + number) * PERIOD


async def hold(stack: Stack, revision: int, at: int) -> Outgoing:
    message = held_tick(stack.names, Tick(schedule=ID, revision=revision, at=at), stack.settings.lead_ms)
    await stack.bus.store(message)
    return message


async def look(stack: Stack) -> list[Finding]:
    return [one for one in await examine(stack.settings, deep=True) if one.about == "schedules"]


async def wrong(stack: Stack) -> list[str]:
    found = await look(stack)
    assert all(one.level == "wrong" and one.do for one in found)
    return sorted(one.what.partition(" of ")[2][2:] for one in found)


async def test_ticks_that_are_as_their_definitions_say(stack: Stack) -> None:
    old = await put(stack)
    end = period(stack, 1)
    await stack.bus.publish(
        stack.names.past_key(ID, old),
        encode(Past(schedule=Schedule(id=ID, function="app.f", every=PERIOD), end=end)),
    )
    revision = await put(stack, armed_from=end)
    await hold(stack, old, end)
    await hold(stack, revision, period(stack, 2))
    (found,) = await look(stack)
    assert (found.level, found.what) == ("ok", "2 ticks of 1 schedules: each is as its definition says")


async def test_a_tick_at_a_time_its_definition_does_not_name(stack: Stack) -> None:
    revision = await put(stack)
    await hold(stack, revision, period(stack, 1))
    await hold(stack, revision, period(stack, 1) + 1)
    assert await wrong(stack) == [f"have a tick at a time their definition does not name: {ID}"]


async def test_a_tick_that_leaves_occurrences_out(stack: Stack) -> None:
    revision = await put(stack)
    await hold(stack, revision, period(stack, 5))
    assert await wrong(stack) == [f"are held for a time after their next one: {ID}"]


async def test_ticks_of_a_replaced_revision_alone(stack: Stack) -> None:
    """By their names all have a tick: doctor without --deep is content."""
    old = await put(stack)
    await put(stack)
    await hold(stack, old, period(stack, 1))
    assert await wrong(stack) == [
        f"are active and have no tick of their revision: {ID}",
        f"have a tick of a replaced revision: {ID}",
    ]
    (shallow,) = [one for one in await examine(stack.settings) if one.about == "schedules"]
    assert shallow.level == "ok"


async def test_ticks_of_what_is_paused_or_unknown(stack: Stack) -> None:
    revision = await put(stack, state="paused")
    await hold(stack, revision, period(stack, 1))
    assert await wrong(stack) == [f"have a tick and are paused: {ID}"]
    await stack.bus.purge(stack.names.registry, stack.names.schedule_key(ID))
    assert await wrong(stack) == [f"have ticks and no definition: {ID}"]


async def test_a_held_message_that_is_not_what_its_subject_says(stack: Stack) -> None:
    at = period(stack, 1)
    revision = await put(stack)
    sound = await hold(stack, revision, at)
    headers = dict(sound.headers or {})
    tick = Tick(schedule=ID, revision=revision, at=at)
    for message, text in (
        (
            sound._replace(payload=encode(replace(tick, at=at + PERIOD))),
            "have a tick that says something else than its subject",
        ),
        (sound._replace(payload=b"\xc1"), "cannot be read by this program"),
        (
            sound._replace(headers=headers | {SCHEDULE_TARGET: stack.names.tick_due("other", revision, at)}),
            "have a held tick that goes somewhere else",
        ),
        (
            sound._replace(headers=headers | {SCHEDULE: "@at 2199-01-01T00:00:00Z"}),
            "have a tick that is held until another time than its own",
        ),
    ):
        await stack.bus.store(message)
        assert await wrong(stack) == [f"{text}: {ID}"]
    await stack.bus.store(sound)
    assert [one.level for one in await look(stack)] == ["ok"]


async def test_what_is_once_and_has_no_tick_is_missed_though_its_time_has_passed(stack: Stack) -> None:
    """By both doctors; not while an order may stand that ends it."""
    await put(stack, every=None, at=stack.clock.now() - PERIOD, origin="data", armed_from=stack.clock.now())
    assert await wrong(stack) == [f"are active and have no tick of their revision: {ID}"]
    (shallow,) = [one for one in await examine(stack.settings) if one.about == "schedules"]
    assert (shallow.level, shallow.what) == ("wrong", f"1 of 1 schedules have no tick: {ID}")
    await stack.bus.publish(stack.names.sync("app"), b"")
    assert [one.level for one in await look(stack)] == ["ok"]
    (shallow,) = [one for one in await examine(stack.settings) if one.about == "schedules"]
    assert shallow.level == "ok"
