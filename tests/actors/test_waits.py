"""Waits for events on real actors: which event meets which wait, once, whatever comes when."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context
from jetcron.clock import from_ms
from jetcron.errors import ConfigurationError
from jetcron.events import Event
from jetcron.runs import RunHandle
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Wait
from tests.support.faults import LoseAnswer
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until, waits_of
from tests.support.stage import AWAY, AWHILE, HERE, Stage, all_of, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, {"started": {"on": "waits.start"}}) as stage:
        yield stage


def waits_for(name: str, match: dict[str, Any] | None = None, timeout: float = 60) -> Any:
    """Code that waits for one event and returns its data, or None."""

    async def code(ctx: Context, _: Any) -> Any:
        event = await ctx.step.wait_for_event("wait", name, match=match, timeout=timeout)
        return event and event.data

    return code


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_the_first_event_after_the_wait_is_the_one(stage: Stage, app: str) -> None:
    name = f"first.{app}"
    await stage.send(Event(name, {"n": 0}))
    # Two clocks may differ by the lead: an event within it might count.
    await asyncio.sleep(stage.stack.settings.lead + 0.1)
    handle = await stage.play(waits_for(name), on=f"{app}.once")
    await stage.opened(handle)
    assert await handle.status() in ("running", "waiting")
    await stage.send(Event(name, {"n": 1}), Event(name, {"n": 2}))
    assert await handle.result(PATIENCE) == {"n": 1}


async def test_an_event_comes_back_whole(stage: Stage) -> None:
    seen = []

    async def code(ctx: Context, _: Any) -> Any:
        seen.append(await ctx.step.wait_for_event("wait", "whole", timeout=60))
        await ctx.step.sleep("pause", AWHILE)

    handle = await stage.play(code)
    await stage.waiting(handle)
    at = datetime(2020, 1, 1, tzinfo=UTC)
    await stage.send(Event("whole", {"raw": b"\xff", "n": [1.5]}, id="given", at=at))
    await handle.result(PATIENCE)
    live, replayed = seen
    assert live == replayed
    assert (live.id, live.name, live.data, live.at) == ("given", "whole", {"raw": b"\xff", "n": [1.5]}, at)
    assert abs(live.ts - from_ms(stage.stack.clock.now())) < timedelta(seconds=PATIENCE)


MATCHES = [
    ({"id": 7}, {"id": 7}, True),
    ({"id": 7}, {"id": 7.0, "more": 1}, True),
    ({"id": 7}, {"id": "7"}, False),
    ({"id": 1}, {"id": True}, False),
    ({"id": None}, {"id": None}, True),
    ({"id": None}, {}, False),
    ({"id": 7}, [7], False),
    ({"order.id": 7}, {"order": {"id": 7}}, True),
    ({"order.id": 7}, {"order.id": 7}, True),
    ({"order.id": 7}, {"order": {"id": 8}}, False),
    ({"order.id": 7}, {"order": 7}, False),
    ({"items.1.sku": "b"}, {"items": [{"sku": "a"}, {"sku": "b"}]}, True),
    ({"items.1.sku": "b"}, {"items": [{"sku": "b"}]}, False),
    ({"a.b": 1, "c": {"y": [1], "x": 2}}, {"c": {"x": 2, "y": [1]}, "a": {"b": 1}}, True),
    ({"a.b": 1, "c": 2}, {"a": {"b": 1}}, False),
    ({"when": datetime(2030, 1, 1, tzinfo=UTC)}, {"when": datetime(2030, 1, 1, tzinfo=UTC)}, True),
    ({}, {"anything": 1}, True),
    ({}, None, True),
]


async def not_met(stage: Stage, handle: RunHandle) -> None:
    """Whatever was routed so far: the run waits as before. Then it is ended."""
    assert await handle.status() == "waiting"
    names = stage.stack.names
    (stored,) = await stage.stack.stored(names.journal, waits_of(names, handle.id))
    assert decode(Wait, stored.payload).met is None
    await handle.cancel()


async def test_equality_on_every_path_decides(stage: Stage) -> None:
    handles = [
        await stage.play(waits_for(f"match.{number}", match)) for number, (match, _, _) in enumerate(MATCHES)
    ]
    for handle in handles:
        await stage.waiting(handle)
    await stage.send(*(Event(f"match.{number}", data) for number, (_, data, _) in enumerate(MATCHES)))
    for handle, (_, data, meets) in zip(handles, MATCHES, strict=True):
        if meets:
            assert set(await handle.result(PATIENCE) or {}) == set(data or {})  # a datetime comes as text
        else:
            await not_met(stage, handle)


async def test_names_are_exact(stage: Stage) -> None:
    handle = await stage.play(waits_for("exact.name"))
    await stage.waiting(handle)
    await stage.send(*(Event(name) for name in ("exact", "exact.name.more", "exact.names", "Exact.name")))
    await not_met(stage, handle)


@pytest.mark.parametrize("name", ["é" * 200, "a.b-c_d.=x", "$sys.(1)"])
async def test_names_and_ids_may_be_long_and_odd(stage: Stage, name: str) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        event = await ctx.step.wait_for_event("ü" * 200, name, match={"ß.ä": "ö"}, timeout=60)
        return event and event.name

    handle = await stage.play(code)
    await stage.waiting(handle)
    await stage.send(Event(name, {"ß": {"ä": "ö"}}))
    assert await handle.result(PATIENCE) == name


async def test_what_cannot_be_waited_for_is_refused(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        for name in ("order.*", "order.>", "", "a b"):
            with pytest.raises(ConfigurationError):
                await ctx.step.wait_for_event("wait", name, timeout=1)
        for match in ({"": 1}, {"a..b": 1}, {".a": 1}, [("a", 1)], {1: 1}):
            with pytest.raises(ConfigurationError, match="match"):
                await ctx.step.wait_for_event("wait", "x", match=match, timeout=1)  # type: ignore[arg-type]
        for timeout in (-1, timedelta(days=367), float("inf"), "1"):
            with pytest.raises(ConfigurationError, match="from 0 s to 366 days"):
                await ctx.step.wait_for_event("wait", "x", timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(Exception, match=r"builtins\.set"):
            await ctx.step.wait_for_event("set", "x", match={"a": {1}}, timeout=1)

    await stage.result(code)


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_none_comes_after_the_time_out_and_the_event_no_more(stage: Stage, app: str) -> None:
    seen = []

    async def code(ctx: Context, _: Any) -> Any:
        seen.append(await ctx.step.wait_for_event("wait", f"late.{app}", timeout=0.05))
        await ctx.step.wait_for_event("go", f"go.{app}", timeout=60)
        return seen[-1]

    handle = await stage.play(code, on=f"{app}.once")
    await stage.opened(handle, 2)
    await stage.send(Event(f"late.{app}", 1))
    await stage.send(Event(f"go.{app}"))
    assert await handle.result(PATIENCE) is None
    assert seen == [None] * (2 if app == AWAY else 1)
    (step, _) = (one.entry for one in stage.stack.journal.of("step", run=handle.id))
    assert step.at >= stage.stack.journal.of("opened", run=handle.id)[0].entry.until


async def test_an_event_and_the_time_out_together_yield_one_of_them_journaled(stage: Stage) -> None:
    """Thirty runs whose event is sent as their time comes: each has the one or the other, at every replay."""
    seen: dict[str, list[Any]] = {}

    async def code(ctx: Context, number: int) -> Any:
        event = await ctx.step.wait_for_event("wait", "close", match={"n": number}, timeout=0.4)
        seen.setdefault(ctx.run_id, []).append(event and event.data["n"])
        await ctx.step.sleep("pause", 0.02)
        return event and event.data["n"]

    handles = [await stage.play(code, number) for number in range(30)]
    for number, handle in enumerate(handles):
        opened = (await stage.opened(handle))[0].entry
        await until(lambda: stage.stack.clock.now() >= opened.until - 15)  # noqa: B023 - awaited here
        await stage.client.send(Event("close", {"n": number}))
    results = await all_of(handles)
    assert all(result in (None, number) for number, result in enumerate(results))
    for handle, result in zip(handles, results, strict=True):
        assert set(seen[handle.id]) == {result}, "a replay had another outcome"
        recorded = [one.entry for one in stage.stack.journal.of("step", run=handle.id)]
        assert [entry.step for entry in recorded] == ["wait", "pause"]


async def test_two_waits_are_met_by_one_event_and_two_events_by_their_own(stage: Stage) -> None:
    async def both(ctx: Context, _: Any) -> Any:
        found = await asyncio.gather(
            ctx.step.wait_for_event("any", "twin", timeout=60),
            ctx.step.wait_for_event("seven", "twin", match={"n": 7}, timeout=60),
        )
        return [event and event.data["n"] for event in found]

    one = await stage.play(both)
    await stage.opened(one, 2)
    await stage.send(Event("twin", {"n": 7}))
    assert await one.result(PATIENCE) == [7, 7]
    two = await stage.play(both)
    await stage.opened(two, 2)
    await stage.send(Event("twin", {"n": 1}))
    await stage.send(Event("twin", {"n": 7}))
    assert await two.result(PATIENCE) == [1, 7]


async def test_one_event_wakes_every_run_that_waits_for_it(stage: Stage) -> None:
    handles = [await stage.play(waits_for("many", {"k": 1})) for _ in range(40)]
    others = [await stage.play(waits_for("many", {"k": 2})) for _ in range(5)]
    for handle in [*handles, *others]:
        await stage.waiting(handle)
    await stage.send(Event("many", {"k": 1}))
    assert await all_of(handles) == [{"k": 1}] * 40
    assert [await other.status() for other in others] == ["waiting"] * 5
    await stage.send(Event("many", {"k": 2}))
    assert await all_of(others) == [{"k": 2}] * 5


async def test_of_events_sent_together_the_first_meets_the_wait(stage: Stage) -> None:
    handles = [await stage.play(waits_for("order", {"k": number})) for number in range(20)]
    for handle in handles:
        await stage.waiting(handle)
    await stage.send(*(Event("order", {"k": number, "n": n}) for n in range(3) for number in range(20)))
    assert await all_of(handles) == [{"k": number, "n": 0} for number in range(20)]


async def test_an_event_sent_twice_is_one_event_for_a_run(stage: Stage) -> None:
    """A run waits for the same name again: what it had already is not what it waits for."""

    async def code(ctx: Context, _: Any) -> Any:
        found = []
        for _number in range(2):
            event = await ctx.step.wait_for_event("wait", "again", timeout=60)
            found.append(event and event.data)
        return found

    handle = await stage.play(code)
    await stage.waiting(handle)
    bus, names = stage.stack.bus, stage.stack.names
    await stage.send(Event("again", 1, id="one"))
    await stage.waiting(handle, 2)
    (first,) = [m for m in await stage.stack.stored(names.events) if m.subject == names.event("again")]
    # As after a restart of the server, which forgets message ids.
    await bus.publish(first.subject, first.payload, {"Jetcron-Event": "1"})
    await stage.stack.settled(names.events, names.event_router)
    assert await handle.status() == "waiting"
    await stage.send(Event("again", 2, id="two"))
    assert await handle.result(PATIENCE) == [1, 2]


async def test_the_event_that_started_a_run_does_not_meet_its_wait(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> Any:
        event = await ctx.step.wait_for_event("wait", "waits.start", timeout=60)
        return event and event.data

    stage.codes[-1] = code
    names = stage.stack.names
    await stage.send(Event("waits.start", {"code": -1, "data": None}))
    runs = [one.run for one in await stage.entries("waiting", function="away.started")]
    (first,) = [m for m in await stage.stack.stored(names.events) if m.subject == names.event("waits.start")]
    await stage.stack.bus.publish(first.subject, first.payload, {"Jetcron-Event": "1"})
    await stage.stack.settled(names.events, names.event_router)
    assert (await stage.client.runs.get(runs[0])).status == "waiting"
    await stage.send(Event("waits.start", {"code": -1, "data": 2}))
    (ended,) = await stage.entries("completed", run=runs[0])
    assert ended.entry.result == {"code": -1, "data": 2}


async def test_a_wait_that_was_being_stored_when_its_run_ended_is_forgotten_too(stage: Stage) -> None:
    """Stored, its answer lost: the journal does not know it."""
    bus = stage.executors[AWAY].bus
    names = stage.stack.names

    async def code(ctx: Context, _: Any) -> None:
        bus.writes.clear()
        bus.arm(LoseAnswer(), on=f".{ctx.run_id}.")

        async def bad() -> None:
            await until(lambda: any(f".{ctx.run_id}." in write for write in bus.writes))
            raise ValueError("beside the wait")

        await asyncio.gather(ctx.step.wait_for_event("wait", "loose", timeout=600), bad())

    handle = await stage.play(code)
    await stage.failure_of(handle)
    assert (await handle.history()).waits == {}
    await stage.stack.settled(names.work, names.run_consumer(handle.function))
    await asyncio.sleep(0.3)  # the time after which it would be stored again
    assert await stage.stack.stored(names.journal, waits_of(names, handle.id)) == []


async def test_waits_leave_nothing_behind(stage: Stage) -> None:
    names = stage.stack.names

    async def code(ctx: Context, _: Any) -> Any:
        await ctx.step.wait_for_event("met", "left.met", timeout=60)
        await ctx.step.wait_for_event("out", "left.out", timeout=0.02)
        await asyncio.gather(
            ctx.step.wait_for_event("other", "left.other", timeout=60), failing(ctx), return_exceptions=False
        )

    async def failing(ctx: Context) -> None:
        await ctx.step.sleep("pause", 0.02)
        raise ValueError("the other wait is open")

    handle = await stage.play(code)
    await stage.opened(handle)
    assert len(await stage.stack.stored(names.journal, waits_of(names, handle.id))) == 1
    await stage.send(Event("left.met"))
    await stage.failure_of(handle)

    async def none_left() -> bool:
        return await stage.stack.stored(names.journal, waits_of(names, handle.id)) == []

    await until(none_left, what="waits purged")
    assert outcomes(await handle.history())[-1] == "failed"
