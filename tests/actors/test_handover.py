"""Hand-over on a real server: who executes an occurrence, whoever asks, whenever, and that it is one."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from jetcron import App, Client, ConfigurationError, Context
from jetcron.bus import Outgoing
from jetcron.clock import from_ms
from jetcron.cycle import make_run
from jetcron.dispatch import new_run
from jetcron.errors import NotFound, ScheduleRefused
from jetcron.schedules.handover import TAKEN, HandOver
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import Gap, Past, Schedule
from tests.support.command_line import acall
from tests.support.faults import Die, FaultyBus, Killed, LoseAnswer, Refuse
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack, until

SECOND = timedelta(seconds=1)


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


@pytest_asyncio.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(stack.settings) as client:
        yield client


def noting(began: list[tuple[str, datetime | None]]) -> App:
    app = App("app")

    @app.function()
    async def f(ctx: Context, id: str) -> None:
        began.append((id, ctx.scheduled_at))

    return app


async def put(stack: Stack, id: str = "a", **more: Any) -> Schedule:
    """Write an entry as cron-sync would, in force for an hour."""
    given = {"function": "app.f", "origin": "data", "every": 1000, "payload": id} | more
    schedule = Schedule(id=id, **{"armed_from": stack.clock.now() - 3_600_000} | given)
    await stack.bus.publish(stack.names.schedule_key(id), encode(schedule))
    return schedule


def now(stack: Stack) -> datetime:
    """The last whole second."""
    return from_ms(stack.clock.now() // 1000 * 1000)


async def runs(stack: Stack) -> int:
    return len(await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.run.>"))


async def test_the_others_occurrence_is_taken_once_and_again_with_its_token(
    stack: Stack, client: Client
) -> None:
    await put(stack, executes="other")
    at = now(stack)
    first = await client.schedules.fired("a", at, token="task-1")
    assert (first.here, first.at) == (True, at)
    assert (await client.schedules.fired("a", at, token="task-1")).here is True
    assert (await client.schedules.fired("a", at, token="task-2")).here is False
    assert (await client.schedules.fired("a", at)).here is False
    assert (await client.schedules.fired("a", at - SECOND)).here is True
    assert (await client.schedules.fired("a", at - SECOND)).here is False, "nobody said who it was"
    assert await runs(stack) == 0
    taken = await first.run.view()
    assert (taken.status, taken.error and taken.error.type) == ("cancelled", TAKEN)
    assert taken.history.about is not None
    assert (taken.history.about.schedule, taken.history.about.trigger) == ("a", "cron")


async def test_of_many_that_fire_at_once_one_takes_it(stack: Stack, client: Client) -> None:
    await put(stack, executes="other")
    at = now(stack)
    found = await asyncio.gather(*(client.schedules.fired("a", at, token=f"{n}") for n in range(8)))
    assert sorted(one.here for one in found) == [False] * 7 + [True]


async def test_what_was_taken_is_not_executed_whoever_makes_its_run(stack: Stack, client: Client) -> None:
    began: list[tuple[str, datetime | None]] = []
    schedule = await put(stack, executes="other")
    await stack.start("cron-sync")
    await stack.register(noting(began))
    taken, free = now(stack) - SECOND, now(stack)
    assert (await client.schedules.fired("a", taken)).here is True
    for at in (taken, free):
        run = make_run(schedule, int(at.timestamp() * 1000))
        await stack.bus.store(new_run(stack.names, run, now=stack.clock.now(), lead=500))
    await stack.execute(noting(began))
    await stack.journal.wait("completed")
    await stack.settled(stack.names.work, stack.names.run_consumer("app.f"))
    assert began == [("a", free)]
    assert (await client.schedules.fired("a", free)).here is False, "it ran here, whatever the schedule says"


async def test_jetcrons_occurrence_has_its_run_whoever_stores_it(stack: Stack, client: Client) -> None:
    began: list[tuple[str, datetime | None]] = []
    schedule = await put(stack)
    await stack.start("cron-sync")
    await stack.register(noting(began))
    at = now(stack)
    for _ in range(2):
        found = await client.schedules.fired("a", at)
        assert found.here is False
    assert found.run.id == make_run(schedule, int(at.timestamp() * 1000)).run
    await stack.execute(noting(began))
    await found.run.result(timeout=20)
    assert (await client.schedules.fired("a", at)).here is False
    await stack.settled(stack.names.work, stack.names.run_consumer("app.f"))
    assert began == [("a", at)]


async def test_a_run_that_waits_for_its_jitter_is_one(stack: Stack, client: Client) -> None:
    await put(stack, jitter=86_400_000)
    at = now(stack)
    for _ in range(2):
        assert (await client.schedules.fired("a", at)).here is False
    assert await runs(stack) == 1


@pytest.mark.parametrize("state", ["paused", "archived", "ended"])
async def test_while_it_is_not_active_the_other_executes(state: str, stack: Stack, client: Client) -> None:
    await put(stack, state=state)
    assert (await client.schedules.fired("a", now(stack))).here is True


async def test_the_revision_in_force_then_says_who_executes(stack: Stack, client: Client) -> None:
    start = int(now(stack).timestamp() * 1000) - 20_000
    changed = start + 10_000
    old = await put(stack, executes="other", armed_from=start)
    revision = (await stack.bus.entry(stack.names.schedule_key("a"))).sequence  # type: ignore[union-attr]
    await stack.bus.store(
        Outgoing(stack.names.past_key("a", revision), encode(Past(schedule=old, end=changed)))
    )
    await put(stack, armed_from=changed)
    here = [
        (await client.schedules.fired("a", from_ms(at))).here
        for at in (start - 5_000, start, start + 1_000, changed - 1_000, changed, changed + 1_000)
    ]
    assert here == [True, True, True, True, True, False]
    assert await runs(stack) == 1


async def test_it_is_the_nearest_occurrence_or_none(stack: Stack, client: Client) -> None:
    await put(stack, every=60_000)
    minute = from_ms(stack.clock.now() // 60_000 * 60_000 - 60_000)
    for seconds in (-0.9, 0, 0.9):
        assert (await client.schedules.fired("a", minute + seconds * SECOND)).at == minute
    assert (await client.schedules.fired("a", minute + 20 * SECOND, within=29)).at == minute
    with pytest.raises(NotFound, match="no occurrence within 1 s"):
        await client.schedules.fired("a", minute + 2 * SECOND)
    with pytest.raises(NotFound, match="there is no schedule 'b'"):
        await client.schedules.fired("b")
    with pytest.raises(ConfigurationError, match="is to come"):
        await client.schedules.fired("a", minute + timedelta(hours=1))
    with pytest.raises(ConfigurationError, match="within=-1"):
        await client.schedules.fired("a", within=-1)
    with pytest.raises(ConfigurationError, match="a time with its zone"):
        await client.schedules.fired("a", "2030-01-01T00:00:00")
    nearest = await client.schedules.fired("a", within=3_600)
    assert abs(nearest.at - datetime.now(UTC)) <= timedelta(minutes=1)


@pytest.mark.parametrize("fault", [Die(), Die(after=True), LoseAnswer(), Refuse()])
@pytest.mark.parametrize("executes", ["other", "jetcron"])
async def test_a_fault_in_its_write_leaves_one(executes: str, fault: Any, stack: Stack) -> None:
    began: list[tuple[str, datetime | None]] = []
    await put(stack, executes=executes)
    await stack.start("cron-sync")
    await stack.register(noting(began))
    at = now(stack)
    async with FaultyBus(stack.settings) as bus:
        bus.arm(fault)
        try:
            here = (await HandOver(bus).fired("a", at, token="t")).here
        except Killed:
            async with FaultyBus(stack.settings) as again:
                here = (await HandOver(again).fired("a", at, token="t")).here
    assert here is (executes == "other")
    async with FaultyBus(stack.settings) as late:
        assert (await HandOver(late).fired("a", at, token="u")).here is False
    assert await runs(stack) == (executes == "jetcron")


# Handing over.


async def test_a_percentage_of_them_changes_hands_and_back(stack: Stack, client: Client) -> None:
    await stack.start("cron-sync")
    await stack.register(noting([]))
    ids = [f"team-{n}" for n in range(200)]
    await client.schedules.create_many(
        {"id": id, "function": "app.f", "every": 3600, "executes": "other", "tags": ["old"]} for id in ids
    )
    await client.schedules.create("mine", "app.f", every=3600, executes="other")

    async def jetcrons() -> set[str]:
        page = await client.schedules.list(limit=1_000)
        return {one.id for one in page.schedules if one.executes == "jetcron"}

    before: set[str] = set()
    for percent in (10, 50, 50, 100):
        done = await client.schedules.hand_over(tag="old", percent=percent)
        after = await jetcrons()
        assert before <= after
        assert {one.id for one in done} == after - before
        assert abs(len(after) - 2 * percent) <= 20
        before = after
    assert before == set(ids)
    assert len(await client.schedules.hand_over("team-1", "mine", percent=0)) == 1
    assert await jetcrons() == set(ids) - {"team-1"}
    with pytest.raises(NotFound, match="'nobody'"):
        await client.schedules.hand_over("nobody")
    with pytest.raises(ConfigurationError, match="nothing is named"):
        await client.schedules.hand_over()
    with pytest.raises(ConfigurationError, match="percent=101"):
        await client.schedules.hand_over("mine", percent=101)
    with pytest.raises(ScheduleRefused, match="executes='celery'"):
        await client.schedules.update("mine", executes="celery")  # type: ignore[arg-type]


async def test_the_verb_and_the_ledger(stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", stack.settings.nats_url)
    monkeypatch.setenv("JETCRON_NAMESPACE", stack.settings.namespace)
    began: list[tuple[str, datetime | None]] = []
    await stack.start("cron-sync", "cron-tick")
    await stack.register(noting(began))
    await stack.execute(noting(began))
    await client.schedules.create("a", "app.f", every=1, payload="a", executes="other")

    async def left() -> list[Gap]:
        subjects = await stack.stored(stack.names.journal, f"{stack.names.namespace}.journal.app.f.>")
        return [decode(Gap, one.payload) for one in subjects if ".gap-" in one.subject]

    await until(left, what="a gap")
    asked = ["schedules", "hand-over", "--function", "app.f"]
    for more, code in (("--dry-run", 0), ("--json", 1)):
        result = await acall(*asked, more)
        assert result.exit_code == code, result.output
        assert (await client.schedules.get("a")).executes == "other"
    assert "--yes hands over" in result.output
    result = await acall(*asked, "--yes")
    assert result.exit_code == 0, result.output
    assert "to Jetcron: 1, to the other: 0, left as they are: 0" in result.stdout
    assert "1 schedule changed hands" in result.stderr
    await until(lambda: len(began) >= 2, what="runs here")
    found = await left()
    assert {one.reason for one in found} == {"handed_over"}
    last = max(one.to for one in found)
    times = sorted(int(at.timestamp() * 1000) for _, at in began if at is not None)
    assert times == list(range(last + 1000, last + 1000 * (len(times) + 1), 1000)), "no gap and no double"
    shown = await acall("runs", "gaps")
    assert "left to the other scheduler, which executes it" in shown.stdout
    again = await acall("schedules", "hand-over", "a", "--percent", "0", "--yes", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == {"to_jetcron": [], "to_other": ["a"], "left": 0, "native": 0}
    assert (await client.schedules.get("a")).executes == "other"


async def test_schedules_that_never_had_another_scheduler_are_left_alone(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", stack.settings.nats_url)
    monkeypatch.setenv("JETCRON_NAMESPACE", stack.settings.namespace)
    await stack.start("cron-sync")
    await stack.register(noting([]))
    await client.schedules.create_many(
        {"id": f"own-{n}", "function": "app.f", "every": 3600, "tags": ["pay"]} for n in range(40)
    )
    await client.schedules.create_many(
        {"id": f"old-{n}", "function": "app.f", "every": 3600, "executes": "other"} for n in range(40)
    )
    ask = ["schedules", "hand-over"]
    result = await acall(*ask, "--tag", "pay", "--percent", "1")
    assert result.exit_code == 0, "nothing to ask about"
    assert "to the other: 0, left as they are: 40, of which 40 never had another scheduler" in result.stdout
    await client.schedules.hand_over(app="app", percent=100)
    back = await client.schedules.hand_over(app="app", percent=0)
    assert sorted(one.id for one in back) == sorted(f"old-{n}" for n in range(40))
    page = await client.schedules.list(limit=100)
    assert {one.id for one in page.schedules if one.executes == "other"} == {f"old-{n}" for n in range(40)}
    for more in (
        ["--tag", "nosuch"],
        ["--app", "nosuch", "--yes"],
        ["own-1", "--tag", "nosuch", "--dry-run"],
    ):
        result = await acall(*ask, *more)
        assert result.exit_code == 1
        assert "='nosuch'" in result.stderr
    with pytest.raises(NotFound, match=r"no schedule created as data matches app='app' and tag='x'"):
        await client.schedules.hand_over(app="app", tag="x")
