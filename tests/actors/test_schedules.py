"""Schedules as data on a real server: what an order leads to, what is refused, what a client reads of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from jetcron import App, Client, ConfigurationError, Context
from jetcron.clock import from_ms
from jetcron.dispatch import held_tick
from jetcron.errors import NotFound, ScheduleRefused, TryAgain
from jetcron.registration import order
from jetcron_protocol.codec import decode, encode, pack
from jetcron_protocol.ids import code_run_id, group_of, schedule_run_id, shard
from jetcron_protocol.messages import (
    CronTrigger,
    Function,
    Past,
    Run,
    Schedule,
    Sweep,
    SyncCommand,
    SyncReply,
    Tick,
)
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until

SEND = Function(id="reports.send")
NIGHTLY = Function(id="reports.nightly", cron=[CronTrigger(expression="0 3 * * *")])
YEARLY: dict[str, Any] = {"cron": "0 9 1 3 *"}


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        await stack.start("cron-sync")
        await order(
            stack.bus,
            SyncCommand(id="1", command="register", app="reports", functions=[SEND, NIGHTLY], hash="1"),
            wait=PATIENCE,
        )
        yield stack


@pytest_asyncio.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(stack.settings) as client:
        yield client


async def stored(stack: Stack, id: str) -> tuple[Schedule, int]:
    entry = await stack.bus.entry(stack.names.schedule_key(id))
    assert entry is not None, f"{id} has no entry"
    return decode(Schedule, entry.payload), entry.sequence


async def held(stack: Stack, id: str) -> list[tuple[int, int]]:
    subjects = await stack.bus.subjects(stack.names.work, stack.names.ticks_of(id))
    return sorted((tick.revision, tick.at) for tick in map(stack.names.parse_tick, subjects))


async def command(stack: Stack, kind: str, **fields: Any) -> SyncReply:
    """An order as anybody may send it."""
    made = SyncCommand(id=f"{kind}-{fields}"[:200], command=kind, app="schedules", **fields)  # type: ignore[arg-type]
    return await order(stack.bus, made, wait=PATIENCE)


async def ended(stack: Stack) -> None:
    await stack.settled(stack.names.work, stack.names.cron_sync)


# Create.


async def test_a_schedule_is_in_force_when_create_returns(stack: Stack, client: Client) -> None:
    made = await client.schedules.create(
        "team-7",
        "reports.send",
        cron="0 9 * * MON",
        timezone="Europe/Prague",
        payload={"team": 7},
        tags=["weekly"],
        by="me",
    )
    entry, revision = await stored(stack, "team-7")
    assert (entry.origin, entry.payload, entry.tags, entry.by) == ("data", {"team": 7}, ["weekly"], "me")
    assert made.revision == revision
    assert made.next is not None
    assert await held(stack, "team-7") == [(revision, int(made.next.timestamp() * 1000))]
    found = await client.schedules.get("team-7")
    assert (found.id, found.state, found.revision, found.next) == ("team-7", "active", revision, made.next)
    assert (found.timezone, found.by, found.every) == ("Europe/Prague", "me", None)
    assert abs(found.changed_at.timestamp() * 1000 - stack.clock.now()) < 60_000


async def test_the_same_once_more_changes_nothing_and_another_is_refused(
    stack: Stack, client: Client
) -> None:
    first = await client.schedules.create("a", "reports.send", **YEARLY)
    again = await client.schedules.create("a", "reports.send", **YEARLY)
    assert again == first
    await client.schedules.pause("a")
    assert (await client.schedules.create("a", "reports.send", **YEARLY)).next is None
    assert (await client.schedules.get("a")).state == "paused"
    with pytest.raises(ScheduleRefused, match="there is a schedule 'a' already"):
        await client.schedules.create("a", "reports.send", cron="0 10 1 3 *")


async def test_every_fault_of_every_schedule_is_told_at_once_and_nothing_is_created(
    stack: Stack, client: Client
) -> None:
    wrong = [
        {"id": "x" * 201, "function": "reports.send", "every": 0.5},
        {"id": "good", "function": "reports.send", **YEARLY},
        {"id": "late", "function": "reports.absent", "cron": "0 0 31 2 *", "timezone": "Mars"},
        {"id": "good", "function": "reports.send", **YEARLY},
    ]
    with pytest.raises(ConfigurationError) as caught:
        await client.schedules.create_many(wrong)
    assert isinstance(caught.value, ScheduleRefused)
    assert {id: len(faults) for id, faults in caught.value.faults.items()} == {
        "x" * 201: 2,
        "late": 3,
        "good": 1,
    }
    for said in ("200", "every=0.5", "reports.absent", "Mars", "never fires", "twice"):
        assert said in str(caught.value)
    assert await stack.bus.subjects(stack.names.registry, stack.names.schedules_of_shard("*")) == [
        stack.names.schedule_key("reports.nightly")
    ]


async def test_cron_sync_refuses_what_others_send_with_every_fault_and_keeps_it(stack: Stack) -> None:
    reply = await command(
        stack,
        "schedules.create",
        schedules=[
            {"id": "a", "function": "reports.send", "every": 10, "end": 1, "start": 2, "overlap": "perhaps"},
            {"id": "b", "function": "reports.absent", "cron": "0 9 * * *"},
            {"id": "c", "function": "reports.send", "cron": "0 9 * * *"},
            7,
        ],
        by="x" * 10,
    )
    assert {id: len(faults) for id, faults in reply.faults.items()} == {"a": 3, "b": 1, "#4": 1}
    assert len(reply.errors) == 5
    assert reply.revisions == {}
    (letter,) = await stack.dead()
    assert letter.letter == "sync"
    for said in ("every=10", "before start", "overlap='perhaps'", "reports.absent", "'#4'"):
        assert said in letter.reason
    assert await stack.bus.entry(stack.names.schedule_key("c")) is None
    assert (await command(stack, "schedules.pause", items=["c"], by="a\nb")).errors


@pytest.mark.parametrize("kind", ["schedules.update", "schedules.create"])
async def test_what_is_no_schedule_at_all_is_refused(stack: Stack, kind: str) -> None:
    reply = await command(stack, kind, schedules=[None, {"id": 5}, {"id": ""}, [], {"id": "a"}, {"id": "a"}])
    assert reply.errors
    await ended(stack)


async def test_hundreds_in_a_command_some_of_which_stood_before(stack: Stack, client: Client) -> None:
    many = [{"id": f"t-{n}", "function": "reports.send", "cron": f"{n % 60} 9 1 3 *"} for n in range(900)]
    await client.schedules.create("t-450", "reports.send", cron="30 9 1 3 *")
    seen: list[int] = []
    made = await client.schedules.create_many(many, progress=seen.append)
    assert sum(seen) == 900
    assert [one.id for one in made] == [one["id"] for one in many]
    subjects = await stack.bus.subjects(stack.names.work, stack.names.ticks)
    ticks = {(t.schedule, t.revision) for t in map(stack.names.parse_tick, subjects)}
    assert ticks >= {(one.id, one.revision) for one in made}


async def test_ids_as_long_as_they_may_be(stack: Stack, client: Client) -> None:
    ids = [f"{'é' * 196}{n:04}" for n in range(1_200)]
    made = await client.schedules.create_many(
        [{"id": id, "function": "reports.send", "every": 86_400} for id in ids]
    )
    assert all(one.revision is not None for one in made)
    page = await client.schedules.list(function="reports.send", limit=1_200)
    assert {one.id for one in page.schedules} == set(ids)
    assert len(await client.schedules.pause(*ids, wait=PATIENCE)) == 1_200
    assert (await client.schedules.get(ids[-1])).state == "paused"


async def test_nobody_is_waited_for_unless_asked(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats) as stack, Client(stack.settings) as client:
        await stack.bus.publish(stack.names.function_key("reports.send"), encode(SEND))
        made = await client.schedules.create("a", "reports.send", **YEARLY, wait=None)
        assert (made.revision, made.next) == (None, None)
        with pytest.raises(TryAgain, match="cron-sync has not answered"):
            await client.schedules.create("b", "reports.send", **YEARLY, wait=0.1)
        await stack.start("cron-sync")
        await ended(stack)
        assert len((await client.schedules.list()).schedules) == 2


# Update.


async def test_an_update_changes_what_it_names_and_the_former_revision_goes_to_the_past(
    stack: Stack, client: Client
) -> None:
    first = await client.schedules.create("a", "reports.send", **YEARLY, payload=1, tags=["x"])
    second = await client.schedules.update("a", every="1d", tags=[], if_revision=first.revision, by="you")
    entry, revision = await stored(stack, "a")
    assert (entry.cron, entry.every, entry.payload, entry.tags, entry.by) == (None, 86_400_000, 1, [], "you")
    assert second.revision == revision
    past = await stack.bus.entry(stack.names.past_key("a", first.revision or 0))
    assert past is not None
    assert decode(Past, past.payload).end == entry.armed_from
    assert [tick for tick, _ in await held(stack, "a")] == [revision]


async def test_a_stale_update_is_refused_with_the_revision_that_stands(stack: Stack, client: Client) -> None:
    first = await client.schedules.create("a", "reports.send", **YEARLY)
    second = await client.schedules.update("a", payload=2)
    with pytest.raises(ScheduleRefused, match=f"if_revision={first.revision}") as caught:
        await client.schedules.update("a", payload=3, if_revision=first.revision)
    assert caught.value.stale == {"a": second.revision}
    for move in (client.schedules.pause, client.schedules.delete):
        with pytest.raises(ScheduleRefused):
            await move("a", if_revision=first.revision)
    assert (await stored(stack, "a"))[0].payload == 2
    await client.schedules.pause("a", if_revision=second.revision)


async def test_an_update_that_cannot_be_names_every_fault(stack: Stack, client: Client) -> None:
    await client.schedules.create("a", "reports.send", every=60)
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.update("a", at="noon", function="reports.absent", jitter=-5)
    assert len(caught.value.faults["a"]) == 3
    with pytest.raises(ScheduleRefused, match="never fires"):
        await client.schedules.update("a", end="2001-01-01T00:00:00Z")
    with pytest.raises(NotFound, match="there is no schedule 'absent'"):
        await client.schedules.update("absent", every=60)
    with pytest.raises(ScheduleRefused, match="declared in code"):
        await client.schedules.update("reports.nightly", payload=1)
    reply = await command(
        stack, "schedules.update", schedules=[{"id": "a", "end": 5, "tags": 1}, {"id": "b"}]
    )
    assert set(reply.faults) == {"a", "b"}


async def test_what_can_be_seen_of_an_update_is_refused_before_it_is_sent(
    stack: Stack, client: Client
) -> None:
    await client.schedules.create("x2", "reports.send", every=60)
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.update(
            "x2",
            jitter=-1,
            max_runs=0,
            overlap="never",  # type: ignore[arg-type]
            catch_up="x",  # type: ignore[arg-type]
            cron="61 * * * *",
            timezone="Mars",
        )
    told = caught.value.faults["x2"]
    names = [
        "jitter=-1",
        "timezone='Mars'",
        "catch_up='x'",
        "overlap='never'",
        "max_runs=0",
        "cron='61 * * * *'",
    ]
    assert [text[: len(name)] for text, name in zip(told, names, strict=True)] == names
    await ended(stack)
    assert await stack.dead() == []
    assert (await client.schedules.get("x2")).every == timedelta(seconds=60)


async def test_what_has_no_id_or_one_too_long_is_told_shortly(stack: Stack, client: Client) -> None:
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.create("", "reports.send", every=0.5)
    assert "#1" not in str(caught.value)
    assert str(caught.value).splitlines() == [
        "schedule '': every=0.5; allowed are seconds or a timedelta, from 1 s to 3660 days",
        "schedule '': its id is empty; give at least one character",
    ]
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.create("x" * 201, "reports.absent", every=0.5)
    assert set(caught.value.faults) == {"x" * 201}
    for line in str(caught.value).splitlines():
        assert line.startswith(f"schedule '{'x' * 40}'…: ")
        assert "x" * 41 not in line
    raw = {"id": "x" * 201, "function": "reports.send", "every": 10}
    reply = await command(stack, "schedules.create", schedules=[raw, raw | {"id": ""}])
    assert set(reply.faults) == {"x" * 201, "#2"}
    assert all("x" * 41 not in error for error in reply.errors)


# States.


async def test_pause_unpause_archive_delete(stack: Stack, client: Client) -> None:
    schedules = client.schedules
    await schedules.create_many([{"id": id, "function": "reports.send", **YEARLY} for id in "ab"])
    assert [one.next for one in await schedules.pause("a", "b")] == [None, None]
    assert await held(stack, "a") == []
    (on,) = await schedules.unpause("a")
    assert await held(stack, "a") == [(on.revision, int((on.next or from_ms(0)).timestamp() * 1000))]
    await schedules.archive("a")
    assert (await schedules.get("a")).state == "archived"
    with pytest.raises(ScheduleRefused, match="'a' is archived"):
        await schedules.pause("a")
    assert [one.id for one in (await schedules.list()).schedules] == ["reports.nightly", "b"]
    await schedules.unpause("a")
    await schedules.delete("a")
    with pytest.raises(NotFound):
        await schedules.get("a")
    entry = await stack.bus.entry(stack.names.schedule_key("a"))
    assert entry is not None
    assert decode(Schedule, entry.payload).state == "deleted"
    assert entry.headers["Nats-TTL"] == f"{30 * 86_400}s"
    with pytest.raises(ScheduleRefused, match="no schedule 'a'"):
        await schedules.delete("b", "a")
    assert (await schedules.get("b")).state == "paused", "refused whole"
    back = await schedules.create("a", "reports.send", every=3_600)
    assert back.revision is not None
    assert "Nats-TTL" not in ((await stack.bus.entry(stack.names.schedule_key("a"))) or entry).headers


async def test_what_names_no_schedule_is_refused_before_it_is_sent(stack: Stack, client: Client) -> None:
    for wrong in ("", "x" * 201, "a\nb", 7):
        with pytest.raises(ScheduleRefused, match="id"):
            await client.schedules.pause("a", wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="id"):
            await client.schedules.get(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="by="):
        await client.schedules.pause("a", by="")
    with pytest.raises(ConfigurationError, match="allowed is one"):
        await client.schedules.pause("a", "b", if_revision=4)
    with pytest.raises(ConfigurationError, match="if_revision=0"):
        await client.schedules.pause("a", if_revision=0)
    assert await client.schedules.pause() == []
    assert await stack.dead() == []


async def test_what_does_not_exist_is_not_found_or_a_fault_of_an_order_of_many(
    stack: Stack, client: Client
) -> None:
    schedules = client.schedules
    for one in (
        schedules.update("absent", payload=1),
        schedules.get("absent"),
        schedules.show("absent"),
        schedules.history("absent"),
        schedules.preview("absent"),
        schedules.trigger("absent"),
        schedules.backfill("absent", from_ms(0), from_ms(1)),
        schedules.hand_over("absent"),
    ):
        with pytest.raises(NotFound, match="there is no schedule 'absent'") as caught:
            await one
        assert not isinstance(caught.value, ConfigurationError)
        assert not hasattr(caught.value, "faults")
    for move in (schedules.pause, schedules.unpause, schedules.archive, schedules.delete):
        with pytest.raises(ScheduleRefused) as refused:
            await move("absent", "too")
        assert set(refused.value.faults) == {"absent", "too"}


async def test_code_and_data_do_not_take_each_others_ids(stack: Stack, client: Client) -> None:
    for move in (client.schedules.pause, client.schedules.archive, client.schedules.delete):
        with pytest.raises(ScheduleRefused, match="declared in code"):
            await move("reports.nightly")
    with pytest.raises(ScheduleRefused, match="declared in code"):
        await client.schedules.create("reports.nightly", "reports.send", **YEARLY)
    await client.schedules.create("reports.weekly", "reports.send", **YEARLY)
    weekly = Function(id="reports.weekly", cron=[CronTrigger(expression="0 3 * * MON")])
    registered = SyncCommand(
        id="2", command="register", app="reports", functions=[SEND, NIGHTLY, weekly], hash="2"
    )
    reply = await order(stack.bus, registered, wait=PATIENCE)
    assert "'reports.weekly' is taken" in reply.errors[0]
    assert (await client.schedules.get("reports.weekly")).origin == "data"


async def test_what_fired_for_the_last_time_has_ended_and_what_is_once_is_gone(
    stack: Stack, client: Client
) -> None:
    await stack.start("cron-tick")
    soon = stack.clock.now() + 1_500
    await client.schedules.create("once", "reports.send", at=from_ms(soon), payload=1)
    await client.schedules.create("past", "reports.send", at=from_ms(soon - 86_400_000), payload=2)
    limited = await client.schedules.create("thrice", "reports.send", every=1, max_runs=3)
    assert limited.next is not None

    async def runs() -> list[Run]:
        found = [
            decode(Run, message.payload)
            for message in await stack.stored(stack.names.work, f"{stack.names.namespace}.run.>")
        ]
        return found if len(found) == 5 else []

    found = await until(runs, what="five runs")
    assert sorted((run.schedule, run.payload) for run in found if run.schedule != "thrice") == [
        ("once", 1),
        ("past", 2),
    ]
    thrice = [run for run in found if run.schedule == "thrice"]
    first = int(limited.next.timestamp() * 1000)
    assert sorted(run.scheduled_at or 0 for run in thrice) == [first, first + 1_000, first + 2_000]
    assert {run.run for run in thrice} == {
        schedule_run_id("reports.send", "thrice", first + n * 1_000) for n in range(3)
    }

    async def gone() -> bool:
        states = [(await stored(stack, id))[0].state for id in ("once", "past", "thrice")]
        return states == ["deleted", "deleted", "ended"]

    await until(gone, what="all three over")
    assert {(await stored(stack, id))[0].by for id in ("once", "past", "thrice")} == {"its end"}
    with pytest.raises(NotFound):
        await client.schedules.get("once")
    with pytest.raises(ScheduleRefused, match="'thrice' is ended"):
        await client.schedules.unpause("thrice")
    more = await client.schedules.update("thrice", max_runs=4, every=3_600, by="me")
    assert more.next is not None
    assert (await client.schedules.get("thrice")).by == "me"


async def test_schedules_follow_their_function_and_what_was_paused_before_stays_so(
    stack: Stack, client: Client
) -> None:
    await client.schedules.create_many(
        [{"id": f"s{n}", "function": "reports.send", **YEARLY} for n in range(30)]
    )
    await client.schedules.create("other", "reports.nightly", **YEARLY)
    await client.schedules.pause("s7")

    async def states() -> list[str]:
        return [(await stored(stack, f"s{n}"))[0].state for n in range(30)]

    def all_but_one(state: str, one: str = "paused") -> list[str]:
        return [one if n == 7 else state for n in range(30)]

    await client.functions.pause("reports.send", wait=PATIENCE)
    assert await states() == ["paused"] * 30
    await client.functions.unpause("reports.send", wait=PATIENCE)
    assert await states() == all_but_one("active")
    assert [revision for revision, _ in await held(stack, "s3")] == [(await stored(stack, "s3"))[1]]
    await client.functions.archive("reports.send", wait=PATIENCE)
    assert await states() == all_but_one("archived")
    with pytest.raises(ScheduleRefused, match=r"reports\.send' is archived"):
        await client.schedules.unpause("s3")
    again = SyncCommand(
        id="2", command="register", app="reports", functions=[SEND, NIGHTLY], hash="2", force=True
    )
    await order(stack.bus, again, wait=PATIENCE)
    assert await states() == all_but_one("active")
    gone = SyncCommand(id="3", command="register", app="reports", functions=[NIGHTLY], hash="3")
    await order(stack.bus, gone, wait=PATIENCE)
    assert await states() == all_but_one("archived")
    assert (await stored(stack, "other"))[0].state == "active"


# Runs.


async def test_the_function_receives_the_payload_on_time_now_and_afterwards(
    stack: Stack, client: Client
) -> None:
    app = App("teams")
    seen: list[tuple[str, Any]] = []

    @app.function()
    async def report(ctx: Context, wanted: dict[str, int]) -> int:
        seen.append((ctx.run_id, wanted))
        return wanted["team"]

    await stack.start("cron-tick")
    await stack.register(app)
    await stack.execute(app)
    at = from_ms(stack.clock.now() + 1_200)
    await client.schedules.create("once", "teams.report", at=at, payload={"team": 7})
    await client.schedules.create("hourly", "teams.report", every=3_600, payload={"team": 8})
    handle = await client.schedules.trigger("hourly")
    assert await handle.result(PATIENCE) == 8
    (ran,) = await stack.journal.wait(
        "completed", 1, run=schedule_run_id("teams.report", "once", int(at.timestamp() * 1000))
    )
    assert ran.entry.result == 7

    now = datetime.now(UTC)
    runs = await client.schedules.backfill("hourly", now - timedelta(hours=5, minutes=1), now)
    assert 5 <= len(runs) <= 6
    assert [await run.result(PATIENCE) for run in runs] == [8] * len(runs)
    before = len(seen)
    again = await client.schedules.backfill("hourly", now - timedelta(hours=5, minutes=1), now)
    assert [run.id for run in again] == [run.id for run in runs]
    await stack.settled(stack.names.work, stack.names.run_consumer("teams.report"))
    assert len(seen) == before, "what ran runs no more"


async def test_what_cannot_be_run_is_refused(stack: Stack, client: Client) -> None:
    await client.schedules.create("a", "reports.send", every=1)
    now = datetime.now(UTC)
    for start, end in ((now, now - timedelta(hours=1)), (now, now + timedelta(hours=1))):
        with pytest.raises(ConfigurationError, match="allowed are a start before the end"):
            await client.schedules.backfill("a", start, end)
    with pytest.raises(ConfigurationError, match="allowed are 100,000 at one time; do it in parts"):
        await client.schedules.backfill("a", now - timedelta(days=3), now)
    with pytest.raises(NotFound):
        await client.schedules.trigger("absent")
    await client.functions.archive("reports.send")
    with pytest.raises(NotFound, match=r"reports\.send.*archived"):
        await client.schedules.trigger("a")
    with pytest.raises(ScheduleRefused, match="archived"):
        await client.schedules.create("b", "reports.send", every=60)


# Reading.


async def test_pages_by_when_they_fire_next_and_filters(stack: Stack, client: Client) -> None:
    schedules = client.schedules
    hours = [
        {
            "id": f"h.{n:02}",
            "function": "reports.send",
            "at": from_ms(stack.clock.now() + 3_600_000 * (n + 1)),
            "tags": [f"t{n % 3}"],
        }
        for n in range(30)
    ]
    await schedules.create_many(hours)
    await schedules.create("off", "reports.nightly", **YEARLY)
    await schedules.pause("off", "h.05")
    await schedules.create("old", "reports.send", **YEARLY)
    await schedules.archive("old")

    async def ids(**more: Any) -> list[str]:
        found: list[str] = []
        after = None
        while True:
            page = await schedules.list(after=after, **more)
            found += [one.id for one in page.schedules]
            after = page.after
            if after is None:
                return found

    ticking = [f"h.{n:02}" for n in range(30) if n != 5]
    everything = await ids(limit=7)
    assert [id for id in everything if id != "reports.nightly"] == [*ticking, "h.05", "off"]
    assert await ids(limit=1) == everything
    assert len((await schedules.list(limit=32)).schedules) == 32
    assert await ids(state="paused", limit=1) == ["h.05", "off"]
    assert await ids(state="archived") == ["old"]
    assert await ids(tag="t0", limit=4) == [f"h.{n:02}" for n in range(0, 30, 3)]
    assert sorted(await ids(function="reports.nightly")) == ["off", "reports.nightly"]
    assert await ids(app="other") == []
    assert await ids(within=3_600 * 3 + 60, function="reports.send") == ["h.00", "h.01", "h.02"]
    with pytest.raises(ConfigurationError, match="after="):
        await schedules.list(after="yesterday.x")
    with pytest.raises(ConfigurationError, match="state='gone'"):
        await schedules.list(state="gone")  # type: ignore[arg-type]


async def test_the_next_times_are_those_in_force(stack: Stack, client: Client) -> None:
    await client.schedules.create("a", "reports.send", every=3_600, max_runs=2)
    assert len(await client.schedules.preview("a")) == 2
    await client.schedules.update("a", max_runs=None)
    times = await client.schedules.preview("a", 3)
    assert [later - sooner for sooner, later in pairwise(times)] == [timedelta(hours=1)] * 2
    await client.schedules.pause("a")
    assert await client.schedules.preview("a") == []


async def test_details_tell_of_ticks_times_outcomes_and_lateness(stack: Stack, client: Client) -> None:
    app = App("teams")

    @app.function(retries=0)
    async def report(ctx: Context, fail: bool) -> None:
        if fail:
            raise ValueError("no")

    await stack.start("cron-tick")
    await stack.register(app)
    await stack.execute(app)
    await client.schedules.create("a", "teams.report", every=1, payload=True, timezone="Asia/Tokyo")
    await stack.journal.wait("failed", 2)
    await client.schedules.update("a", payload=False)
    await stack.journal.wait("completed", 2)
    found = await client.schedules.show("a")
    assert (found.schedule.id, found.zone, len(found.upcoming)) == ("a", "Asia/Tokyo", 10)
    assert any(tick.revision == found.schedule.revision and tick.sequence > 0 for tick in found.ticks)
    assert "completed" in {one.outcome for one in found.outcomes}
    assert len(found.late) >= 4, "the two that failed, the two that did not"
    times = [one.at for one in found.outcomes]
    assert times == sorted(times, reverse=True)
    median, worst = found.lateness(0.5), found.lateness(0.99)
    assert median is not None
    assert worst is not None
    assert timedelta(0) <= median <= worst < timedelta(seconds=30)


async def test_what_is_declared_in_code_is_read_and_run_like_the_others(stack: Stack, client: Client) -> None:
    found = await client.schedules.show("reports.nightly")
    assert (found.schedule.origin, found.schedule.cron, found.schedule.by) == ("code", "0 3 * * *", None)
    assert [tick.revision for tick in found.ticks] == [found.schedule.revision]
    assert found.ticks[0].at == found.upcoming[0] == found.schedule.next
    handle = await client.schedules.trigger("reports.nightly")
    now = datetime.now(UTC)
    (run,) = await client.schedules.backfill("reports.nightly", now - timedelta(days=1), now)
    assert (handle.function, run.function) == ("reports.nightly", "reports.nightly")
    stored_ = [
        decode(Run, message.payload)
        for message in await stack.stored(stack.names.work, f"{stack.names.namespace}.run.>")
    ]
    assert stored_[1].run == code_run_id("reports.nightly", stored_[1].scheduled_at or 0)


# Plans.


async def test_a_plan_says_what_it_takes_and_applying_it_leaves_nothing_to_do(
    stack: Stack, client: Client
) -> None:
    await client.schedules.create_many(
        [{"id": id, "function": "reports.send", **YEARLY, "payload": 1} for id in ("same", "other", "extra")]
    )
    await client.schedules.create("elsewhere", "reports.nightly", **YEARLY)
    wanted = [
        {"id": "same", "function": "reports.send", **YEARLY, "payload": 1},
        {"id": "other", "function": "reports.send", "every": 60},
        {"id": "new", "function": "reports.send", **YEARLY},
    ]
    plan = await client.schedules.plan(wanted, prune=True)
    assert ([p.id for p in plan.create], [p.id for p in plan.delete], plan.unchanged) == (
        ["new"],
        ["extra"],
        1,
    )
    (change,) = plan.update
    assert change.fields == {"cron": ("0 9 1 3 *", None), "every": (None, 60_000), "payload": (1, None)}
    assert len(await client.schedules.apply(plan)) == plan.size == 3
    entry, _ = await stored(stack, "other")
    assert (entry.cron, entry.every, entry.payload) == (None, 60_000, None)
    again = await client.schedules.plan(wanted, prune=True)
    assert (again.size, again.unchanged) == (0, 3)


async def test_a_plan_of_many_is_in_their_order_and_names_every_fault_at_once(
    stack: Stack, client: Client
) -> None:
    many = [{"id": f"m{n}", "function": "reports.send", **YEARLY, "payload": n} for n in range(2_345)]
    await client.schedules.create_many(many[:2_000])
    changed = [one | {"payload": 1} for one in many]
    plan = await client.schedules.plan(one for one in changed)
    assert [p.id for p in plan.create] == [one["id"] for one in many[2_000:]]
    assert [change.part.id for change in plan.update] == [f"m{n}" for n in range(2_000) if n != 1]
    assert plan.unchanged == 1
    await client.schedules.archive("m1500")
    wrong = [*changed, {"id": "x", "function": "reports.send"}, changed[0], {"id": "reports.nightly"}, 5]
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.plan(wrong)  # type: ignore[arg-type]
    assert set(caught.value.faults) == {"m1500", "x", "m0", "reports.nightly", "#2349"}
    assert caught.value.faults["m0"] == ("it is given twice; allowed is once",)
    assert (await client.schedules.plan([], prune=True)).size == 0


async def test_a_plan_says_what_it_cannot_read_beside_all_else(stack: Stack, client: Client) -> None:
    await client.schedules.create("a", "reports.send", **YEARLY)
    entry, _ = await stored(stack, "a")
    newer = encode(entry).replace(pack("v") + pack(1), pack("v") + pack(99), 1)
    await stack.bus.publish(stack.names.schedule_key("a"), newer)
    given = [
        {"id": id, "function": f"reports.{name}", **YEARLY} for id, name in (("a", "send"), ("b", "absent"))
    ]
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.plan(given)
    assert set(caught.value.faults) == {"a", "b"}
    assert "version 99 is newer" in caught.value.faults["a"][0]


async def test_a_plan_overtaken_by_somebody_is_refused(stack: Stack, client: Client) -> None:
    await client.schedules.create("a", "reports.send", **YEARLY)
    plan = await client.schedules.plan([{"id": "a", "function": "reports.send", "every": 60}])
    await client.schedules.update("a", payload=5)
    with pytest.raises(ScheduleRefused) as caught:
        await client.schedules.apply(plan)
    assert list(caught.value.stale) == ["a"]
    await client.schedules.archive("a")
    with pytest.raises(ScheduleRefused, match="archived"):
        await client.schedules.plan([{"id": "a", "function": "reports.send", "every": 60}])


# Many at one time.


async def test_updates_from_everywhere_leave_one_chain(stack: Stack, client: Client) -> None:
    await stack.start("cron-sync")
    await client.schedules.create("a", "reports.send", **YEARLY)
    await asyncio.gather(
        *(client.schedules.update("a", payload=n, cron=f"{n} 9 1 3 *", wait=PATIENCE) for n in range(20)),
        *(client.schedules.pause("a", wait=PATIENCE) for _ in range(3)),
        *(client.schedules.unpause("a", wait=PATIENCE) for _ in range(3)),
    )
    (last,) = await client.schedules.unpause("a", wait=PATIENCE)
    entry, revision = await stored(stack, "a")
    assert last.revision == revision
    assert entry.cron == f"{entry.payload} 9 1 3 *"
    assert [number for number, _ in await held(stack, "a")] == [revision]


# Beside the function's own state.


async def order_function(stack: Stack, what: str, *ids: str) -> None:
    made = SyncCommand(id=f"{what}-{stack.clock.now()}", command=what, app="reports", items=list(ids))  # type: ignore[arg-type]
    assert not (await order(stack.bus, made, wait=PATIENCE)).errors


async def test_a_pause_of_one_s_own_outlasts_that_of_the_function(stack: Stack, client: Client) -> None:
    for id in ("mine", "edited"):
        await client.schedules.create(id, "reports.send", every=3_600)
    await order_function(stack, "pause", "reports.send")
    assert (await client.schedules.get("mine")).with_function
    await client.schedules.pause("mine")
    await client.schedules.update("edited", payload={"new": 1})
    await order_function(stack, "unpause", "reports.send")
    assert [(await client.schedules.get(id)).state for id in ("mine", "edited")] == ["paused", "active"]


async def test_what_is_ordered_of_a_paused_function_waits_for_it(stack: Stack, client: Client) -> None:
    await client.schedules.create("own", "reports.send", every=3_600)
    await client.schedules.pause("own")
    await order_function(stack, "pause", "reports.send")
    reply = await command(
        stack, "schedules.create", schedules=[{"id": "new", "function": "reports.send", "every": 1_000}]
    )
    assert "reports.send is paused" in reply.warnings[0]
    assert reply.next == {}
    await client.schedules.unpause("own")
    for id in ("new", "own"):
        found = await client.schedules.get(id)
        assert (found.state, found.with_function, found.next) == ("paused", True, None)
    await client.schedules.create("new", "reports.send", every=1)  # once more changes nothing
    assert await stack.bus.subjects(stack.names.work, stack.names.ticks_of("new")) == []
    await order_function(stack, "unpause", "reports.send")
    assert [(await client.schedules.get(id)).state for id in ("new", "own")] == ["active", "active"]


async def test_cancel_running_needs_room_for_two(stack: Stack, client: Client) -> None:
    one = replace(SEND, id="narrow.one", concurrency=1)
    made = SyncCommand(id="n", command="register", app="narrow", functions=[one], hash="1")
    await order(stack.bus, made, wait=PATIENCE)
    with pytest.raises(ScheduleRefused, match="one at a time"):
        await client.schedules.create("a", "narrow.one", every=60, overlap="cancel_running")
    raw = {"id": "a", "function": "narrow.one", "every": 60_000, "overlap": "cancel_running"}
    reply = await command(stack, "schedules.create", schedules=[raw])
    assert "one at a time" in reply.faults["a"][0]
    await client.schedules.create("a", "narrow.one", every=60)
    with pytest.raises(ScheduleRefused, match="one at a time"):
        await client.schedules.update("a", overlap="cancel_running")


async def test_a_refused_registration_changes_nothing(stack: Stack, client: Client) -> None:
    await client.schedules.create("reports.new", "reports.send", every=3_600)
    new = replace(NIGHTLY, id="reports.new")
    made = SyncCommand(id="2", command="register", app="reports", functions=[SEND, new], hash="2")
    reply = await order(stack.bus, made, wait=PATIENCE)
    assert "taken by one created as data" in reply.errors[0]
    stored = await stack.bus.entry(stack.names.function_key("reports.nightly"))
    assert stored is not None
    assert decode(Function, stored.payload).state == "active"
    assert await stack.bus.entry(stack.names.function_key("reports.new")) is None
    with pytest.raises(NotFound):
        await stack.bus.consumer(stack.names.work, stack.names.run_consumer("reports.new"))


async def test_what_is_no_command_is_answered_where_it_says_where(stack: Stack) -> None:
    async with stack.bus.replies() as (inbox, queue):
        raw = {"v": 1, "id": "x", "command": "register", "app": "reports", "functions": [{"id": 7}]}
        for reply in (inbox, 5, "a b", None):
            await stack.bus.publish(stack.names.sync("reports"), pack(raw | {"reply": reply}))
        async with asyncio.timeout(PATIENCE):
            answer = decode(SyncReply, (await queue.get()).data)
    assert (answer.id, answer.revisions) == ("x", {})
    assert "functions" in answer.errors[0]
    await ended(stack)
    assert [letter.letter for letter in await stack.dead()] == ["sync"] * 4


async def test_what_is_no_command_and_too_large_to_be_answered_stops_no_other(
    stack: Stack, client: Client
) -> None:
    raw = {"v": 1, "command": "register", "app": "reports", "reply": "nobody", "functions": [{"id": 7}]}
    size = stack.bus.max_payload - len(pack(raw | {"id": ""})) - 10
    await stack.bus.post(stack.names.sync("reports"), pack(raw | {"id": "x" * size}))
    await stack.bus.settled()
    await client.schedules.create("next", "reports.send", every=3_600)
    await ended(stack)
    assert [letter.letter for letter in await stack.dead()] == ["sync"]


async def test_every_cron_of_a_function_that_is_wrong_is_named(stack: Stack) -> None:
    bad = replace(SEND, cron=[CronTrigger(expression=text) for text in ("61 * * * *", "* 25 * * *", "x")])
    made = SyncCommand(id="3", command="register", app="reports", functions=[bad], hash="3")
    assert len((await order(stack.bus, made, wait=PATIENCE)).errors) == 3


# What broke before it was replaced.


async def broken_since(stack: Stack, id: str, back: int, **more: Any) -> tuple[int, int]:
    """A schedule of every second in force since `back` seconds ago, whose tick is lost; its revision and start."""
    start = (stack.clock.now() // 1000 - back) * 1000
    entry = Schedule(
        **{"id": id, "function": "reports.send", "origin": "data", "every": 1000} | more, armed_from=start
    )
    revision = (await stack.bus.publish(stack.names.schedule_key(id), encode(entry))).sequence
    return revision, start


@pytest.mark.parametrize("what", ["update", "pause", "archive", "delete", "its function"])
async def test_a_chain_that_broke_before_it_was_replaced_loses_nothing(
    stack: Stack, client: Client, what: str
) -> None:
    """Afterwards its schedule looks whole, and no sweep would find what was lost."""
    revision, start = await broken_since(stack, "a", 5)
    match what:
        case "update":
            await client.schedules.update("a", payload=1)
        case "its function":
            await order(
                stack.bus,
                SyncCommand(id="p", command="pause", app="reports", items=["reports.send"]),
                wait=PATIENCE,
            )
        case _:
            await getattr(client.schedules, what)("a")
    past = await stack.bus.entry(stack.names.past_key("a", revision))
    assert past is not None
    end = decode(Past, past.payload).end
    assert min(await held(stack, "a")) == (revision, start + 1000)
    await stack.start("cron-tick")
    ready = stack.names.run_ready("reports.send")

    async def made() -> list[int]:
        runs = [decode(Run, message.payload) for message in await stack.stored(stack.names.work, ready)]
        return sorted(run.scheduled_at or 0 for run in runs if run.payload is None)

    wanted = list(range(start + 1000, end + 1, 1000))

    async def all_made() -> bool:
        return await made() == wanted

    await until(all_made, what=f"a run at each of {wanted}")


async def test_a_chain_goes_on_from_when_its_group_was_last_whole(stack: Stack, client: Client) -> None:
    _, start = await broken_since(stack, "a", 50)
    group = group_of(shard("a"))
    note = Sweep(group=group, healthy_at=start + 40_500)
    await stack.bus.publish(stack.names.health_key(group), encode(note))
    await client.schedules.pause("a")
    assert [at for _, at in await held(stack, "a")] == [start + 41_000]


async def test_what_has_a_tick_or_is_over_is_replaced_as_it_is(stack: Stack, client: Client) -> None:
    """Held, due, or its last one turned, of which cron-sync is told."""
    ids = {id: await broken_since(stack, id, 5) for id in ("held", "due", "over")}
    revision, start = ids["held"]
    far = Tick(schedule="held", revision=revision, at=start + 3_600_000)
    await stack.bus.store(held_tick(stack.names, far, 500))
    revision, start = ids["due"]
    tick = Tick(schedule="due", revision=revision, at=start + 3_000)
    await stack.bus.publish(stack.names.tick_due("due", revision, tick.at), encode(tick))
    await client.schedules.pause("held")
    await client.schedules.pause("due")
    over = SyncCommand(id="e", command="ended", app="reports", items=["over"], revision=ids["over"][0])
    await order(stack.bus, over, wait=PATIENCE)
    assert (await stored(stack, "over"))[0].state == "ended"
    assert [await held(stack, id) for id in ids] == [[], [(revision, tick.at)], []], (
        "the far-off one is purged"
    )
