"""The history of a schedule: each occurrence of each revision, with its run or what the ledger says of it."""

import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import pytest_asyncio

from jetcron import App, Client, ConfigurationError, Context
from jetcron import ledger as ledger_
from jetcron.bus import Bus
from jetcron.clock import from_ms, to_ms
from jetcron.cycle import make_run
from jetcron.dispatch import new_run
from jetcron.errors import NotFound
from jetcron_protocol.codec import encode
from jetcron_protocol.ids import code_run_id, overlap_token, schedule_run_id
from jetcron_protocol.messages import Gap, Past, Schedule
from tests.support.command_line import acall
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack

MINUTE, DAY = 60_000, 86_400_000
FUNCTION = "teams.report"


def teams() -> App:
    app = App("teams")

    @app.function(retries=0)
    async def report(ctx: Context, fail: bool = False) -> None:
        if fail:
            raise ValueError("no such team")

    @app.function(retries=0)
    async def other(ctx: Context) -> None:
        pass

    @app.function(cron="0 3 * * *")
    async def nightly(ctx: Context) -> None:
        pass

    return app


@pytest_asyncio.fixture
async def stack(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    async with Stack(shared_nats, namespace) as stack:
        await stack.start("cron-sync")
        await stack.register(teams())
        yield stack


@pytest_asyncio.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(stack.settings) as client:
        yield client


class Lived:
    """A schedule of every minute that has been in force for hours, written as cron-sync would have.

    It ends with its last occurrence: a minute may end while a test looks at it.
    """

    def __init__(self, stack: Stack, id: str = "team-7") -> None:
        self._stack = stack
        self.id = id
        self.now = stack.clock.now()
        self.last = self.now // MINUTE * MINUTE
        """Its last occurrence; `at` counts back from it."""

    def at(self, back: int) -> int:
        return self.last - back * MINUTE

    def revision(self, back: int, **more: Any) -> Schedule:
        """In force from just after the occurrence so many minutes back."""
        return Schedule(
            **{"id": self.id, "function": FUNCTION, "origin": "data", "every": MINUTE, "end": self.last}
            | more,
            armed_from=self.at(back),
        )

    async def write(self, *revisions: Schedule) -> list[int]:
        """One after the other, each the end of the one before; their numbers."""
        bus, names = self._stack.bus, self._stack.names
        numbers: list[int] = []
        for index, revision in enumerate(revisions):
            if numbers:
                past = Past(schedule=revisions[index - 1], end=revision.armed_from)
                await bus.publish(names.past_key(self.id, numbers[-1]), encode(past))
            stored = await bus.publish(names.schedule_key(self.id), encode(revision))
            numbers.append(stored.sequence)
        return numbers

    async def gap(self, back: int, to: int, reason: str = "catch_up", function: str = FUNCTION) -> None:
        gap = Gap(
            schedule=self.id,
            start=self.at(back),
            to=self.at(to),
            count=back - to + 1,
            reason=reason,  # type: ignore[arg-type]
        )
        await ledger_.record(self._stack.bus, gap, function)

    async def tick(self, schedule: Schedule, revision: int, back: int) -> None:
        subject = self._stack.names.tick_due(self.id, revision, self.at(back))
        await self._stack.bus.publish(subject, b"")


async def ok(*arguments: str) -> Any:
    result = await acall("schedules", "history", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


async def test_each_occurrence_of_each_revision_has_its_run_or_its_reason(
    stack: Stack, client: Client
) -> None:
    lived = Lived(stack)
    first, second, third = await lived.write(
        lived.revision(20, function="teams.other"),
        lived.revision(10, state="paused"),
        lived.revision(6, payload=True),
    )
    await lived.gap(19, 17, function="teams.other")
    await lived.gap(16, 16, "handed_over", function="teams.other")
    await lived.gap(3, 2)
    await stack.execute(teams())
    start, end = from_ms(lived.at(5)), from_ms(lived.at(4))
    await client.schedules.backfill(lived.id, start, end)
    await stack.journal.wait("failed", 2)
    await lived.tick(lived.revision(6), third, 1)

    found = await client.schedules.history(lived.id)
    told = {(lived.last - to_ms(one.at)) // MINUTE: one for one in found}
    assert [one.at for one in found] == sorted((one.at for one in found), reverse=True)
    assert list(told) == [0, 1, 2, 3, 4, 5, *range(10, 20)], "none of the time it was paused"
    assert {back: one.outcome for back, one in told.items()} == {
        **dict.fromkeys((0, 1), "due"),
        **dict.fromkeys((2, 3, 16, 17, 18, 19), "not run"),
        **dict.fromkeys((4, 5), "failed"),
        **dict.fromkeys(range(10, 16), "not remembered"),
    }
    assert {back: one.gap.reason for back, one in told.items() if one.gap is not None} == {
        **dict.fromkeys((2, 3, 17, 18, 19), "catch_up"),
        16: "handed_over",
    }
    assert {one.revision for back, one in told.items() if back < 6} == {third}
    assert {one.revision for back, one in told.items() if back >= 10} == {first}
    assert {one.function for back, one in told.items() if back >= 10} == {"teams.other"}
    assert second not in {one.revision for one in found}
    assert told[4].id == make_run(lived.revision(6), lived.at(4)).run
    assert told[4].late is not None
    assert timedelta(0) <= told[4].late < timedelta(seconds=30), (
        "what is run belatedly was due when it was asked for"
    )
    assert [one.late for back, one in told.items() if back not in (4, 5)] == [None] * 14

    assert await client.schedules.history(lived.id, limit=7) == list(found[:7])
    assert await client.schedules.history(lived.id, since=from_ms(lived.at(11))) == list(found[:8])

    plain = await ok(lived.id, "--json", "--limit", "4")
    assert [one["outcome"] for one in plain] == ["due", "due", "not run", "not run"]
    assert [one["reason"] for one in plain] == [None, None, "catch_up", "catch_up"]
    assert plain[2]["at"] == from_ms(lived.at(2)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    text = await ok(lived.id)
    for said in (
        "missed, and catch_up left it out",
        "left to the other scheduler",
        "no such team",
        told[5].id,
    ):
        assert said in text


async def test_a_gap_that_began_long_before_what_is_shown_is_found(stack: Stack, client: Client) -> None:
    lived = Lived(stack)
    await lived.write(lived.revision(5_000))
    await lived.gap(4_900, 1_201, "too_many")
    await lived.gap(1_200, 0)
    found = await client.schedules.history(lived.id, limit=3)
    assert [(one.outcome, one.gap and one.gap.count) for one in found] == [("not run", 1_201)] * 3
    found = await client.schedules.history(lived.id, limit=1_300)
    assert [one.gap and one.gap.reason for one in found] == ["catch_up"] * 1_201 + ["too_many"] * 99


async def test_what_is_shown_of_the_last_occurrences_is_what_the_history_says(
    stack: Stack, client: Client
) -> None:
    lived = Lived(stack)
    _, revision = await lived.write(lived.revision(2_000, payload=1), lived.revision(9))
    await lived.gap(1_900, 8)
    await lived.gap(7, 5)
    await lived.gap(4, 4, "handed_over")
    await client.schedules.backfill(lived.id, from_ms(lived.at(3)), from_ms(lived.at(2)))
    await lived.tick(lived.revision(9), revision, 1)

    shown = await client.schedules.show(lived.id)
    assert shown.outcomes == await client.schedules.history(lived.id, limit=10)
    assert [one.outcome for one in shown.outcomes] == [
        *["due"] * 2,
        *["queued"] * 2,
        *["not run"] * 4,
        "not remembered",
        "not run",
    ], "no entry of its own revision tells of the one at 8, and no run of it waits"
    plain = json.loads((await acall("schedules", "show", lived.id, "--json")).stdout)["outcomes"]
    assert [one["outcome"] for one in plain] == [one.outcome for one in shown.outcomes]
    assert [one["run"] for one in plain[:5]] == [None, None, shown.outcomes[2].id, shown.outcomes[3].id, None]
    text = (await acall("schedules", "show", lived.id)).stdout
    assert text.count("not remembered") == 1
    assert text.count("missed, and catch_up left it out") == 4
    assert text.count("left to the other scheduler") == 1


async def test_what_the_other_scheduler_took_did_not_run_here(stack: Stack, client: Client) -> None:
    lived = Lived(stack)
    await lived.write(lived.revision(3, executes="other"))
    assert (await client.schedules.fired(lived.id, from_ms(lived.at(1)))).here
    found = await client.schedules.history(lived.id)
    assert (found[1].outcome, found[1].reason) == ("not run", "handed_over")
    plain = await ok(lived.id, "--json", "--limit", "2")
    assert (plain[1]["outcome"], plain[1]["reason"]) == ("not run", "handed_over")
    assert plain[1]["why"] == "left to the other scheduler, which executes it"
    assert "cancelled" not in await ok(lived.id)


async def test_what_is_left_out_while_another_goes_on_is_told(stack: Stack, client: Client) -> None:
    lived = Lived(stack)
    revision = lived.revision(2, overlap="skip")
    await lived.write(revision)
    run = make_run(revision, lived.at(1)).run
    gap = Gap(schedule=lived.id, start=lived.at(1), to=lived.at(1), count=1, reason="overlap")
    subject = stack.names.journal_of(FUNCTION, overlap_token(run))
    await stack.bus.publish(subject, encode(gap))
    found = await client.schedules.history(lived.id)
    assert [(one.outcome, one.gap and one.gap.reason) for one in found] == [
        ("not remembered", None),
        ("not run", "overlap"),
    ]


async def test_a_run_counts_where_the_ledger_has_a_gap_too(stack: Stack, client: Client) -> None:
    lived = Lived(stack)
    await lived.write(lived.revision(3))
    await lived.gap(2, 0)
    await stack.execute(teams())
    await client.schedules.backfill(lived.id, from_ms(lived.at(2)), from_ms(lived.at(2)))
    await stack.journal.wait("completed")
    found = await client.schedules.history(lived.id)
    assert [(one.outcome, one.gap and one.gap.reason) for one in found] == [
        ("not run", "catch_up"),
        ("not run", "catch_up"),
        ("completed", None),
    ]


async def test_a_run_no_executor_has_begun_is_queued(stack: Stack, client: Client) -> None:
    """As ready as it was stored, as the server released it, or held; no other, though there are runs that wait."""
    lived = Lived(stack)
    revision = lived.revision(2_000)
    await lived.write(revision)
    await client.schedules.backfill(lived.id, from_ms(lived.at(1)), from_ms(lived.at(0)))
    ready = stack.names.run_ready(FUNCTION)
    await stack.bus.publish(ready, encode(make_run(revision, lived.at(3))))
    await stack.bus.publish(ready, b"\xc1")
    held = replace(make_run(revision, lived.at(5)), fire_at=7_258_118_400_000)
    await stack.bus.store(new_run(stack.names, held, now=0, lead=500))
    found = await client.schedules.history(lived.id, limit=2_000)
    assert [one.outcome for one in found[:6]] == [
        *["queued"] * 2,
        "not remembered",
        "queued",
        "not remembered",
        "queued",
    ]
    assert {one.outcome for one in found[6:]} == {"not remembered"}


async def test_a_run_that_begins_while_it_is_looked_for_is_told(stack: Stack, client: Client) -> None:
    """Its journal had nothing, and then its message is gone."""
    lived = Lived(stack)
    await lived.write(lived.revision(1))
    await client.schedules.backfill(lived.id, from_ms(lived.at(0)), from_ms(lived.at(0)))
    kept = ledger_.kept

    async def run_first(bus: Bus, function: str) -> int:
        await stack.execute(teams())
        await stack.journal.wait("completed")
        await stack.settled(stack.names.work, stack.names.run_consumer(FUNCTION))
        return await kept(bus, function)

    with mock.patch("jetcron.ledger.kept", run_first):
        (found,) = await client.schedules.history(lived.id)
    assert (found.outcome, found.late is None) == ("completed", False)


async def test_of_very_many_that_are_ready_not_all_are_looked_at(stack: Stack, client: Client) -> None:
    """What was not found may be behind them: it is not said to be lost."""
    lived = Lived(stack)
    revision = lived.revision(2)
    await lived.write(revision)
    await client.schedules.backfill(lived.id, from_ms(lived.at(0)), from_ms(lived.at(0)))
    outcomes = {}
    for most in (1_000_000, 100):
        with mock.patch("jetcron.schedules.history._LOOKED", most):
            outcomes[most] = [one.outcome for one in await client.schedules.history(lived.id)]
    assert outcomes == {1_000_000: ["queued", "not remembered"], 100: ["queued", "queued"]}


async def test_more_revisions_than_one_request_reads(stack: Stack, client: Client) -> None:
    lived = Lived(stack)
    written = [lived.revision(1_100 - n, payload=n) for n in range(1_100)]
    numbers = await lived.write(*written)
    found = await client.schedules.history(lived.id, limit=1_090)
    assert [one.revision for one in found] == list(reversed(numbers[-1_090:]))
    shown = await client.schedules.show(lived.id)
    assert [one.revision for one in shown.outcomes] == list(reversed(numbers[-10:]))
    assert not (await client.schedules.fired(lived.id, from_ms(lived.at(500)))).here


async def test_what_is_declared_in_code_and_what_is_gone_have_a_history(stack: Stack, client: Client) -> None:
    stored = await stack.bus.entry(stack.names.schedule_key("teams.nightly"))
    assert stored is not None
    assert await client.schedules.history("teams.nightly") == []
    lived = Lived(stack, "teams.nightly")
    code = lived.revision(3, function="teams.nightly", origin="code")
    await lived.write(code)
    assert [one.id for one in await client.schedules.history("teams.nightly")] == [
        code_run_id("teams.nightly", lived.at(back)) for back in range(3)
    ]
    once = Lived(stack, "once")
    await once.write(
        once.revision(9, every=None, at=once.at(8)),
        once.revision(2, every=None, at=once.at(8), state="deleted"),
    )
    (one,) = await client.schedules.history("once")
    assert (one.at, one.id) == (from_ms(once.at(8)), schedule_run_id(FUNCTION, "once", once.at(8)))
    with pytest.raises(NotFound, match="'once' any more; 'jetcron schedules history once' tells"):
        await client.schedules.get("once")
    with pytest.raises(NotFound, match="'never'"):
        await client.schedules.history("never")
    with pytest.raises(ConfigurationError, match="limit=0"):
        await client.schedules.history("once", limit=0)
    with pytest.raises(ConfigurationError, match="since"):
        await client.schedules.history("once", since="yesterday")


async def test_what_was_triggered_or_backfilled_is_found_by_its_schedule(
    stack: Stack, client: Client
) -> None:
    now = stack.clock.now()
    await client.schedules.create("young", FUNCTION, every=86_400)
    await client.schedules.create("other", FUNCTION, every=86_400)
    text = (await acall("schedules", "history", "young")).output
    assert "no occurrence yet" in text
    assert "jetcron runs list --schedule young" in text
    assert "jetcron runs list --schedule young" in (await acall("schedules", "show", "young")).output

    arguments = (
        "backfill",
        "young",
        from_ms(now - 10 * DAY).isoformat(),
        from_ms(now - 5 * DAY).isoformat(),
    )
    said = await acall("schedules", *arguments)
    assert said.exit_code == 0, said.output
    backfilled = said.stdout.split()
    assert (
        f"{len(backfilled)} occurrences of young: {len(backfilled)} to run, 0 ran or run already"
        in said.stderr
    )
    triggered = [(await client.schedules.trigger("young")).id, (await client.schedules.trigger("young")).id]
    await client.schedules.trigger("other")
    assert (await client.schedules.runs("young")).runs == [], "nobody has taken one yet"
    await stack.execute(teams())
    await stack.journal.wait("completed", len(backfilled) + 3)

    listed = json.loads((await acall("runs", "list", "--schedule", "young", "--json")).stdout)
    assert [one["run"] for one in listed] == sorted([*triggered, *backfilled], reverse=True)
    assert {one["status"] for one in listed} == {"completed"}
    assert {(one["schedule"], one["attempts"]) for one in listed} == {("young", 1)}
    again = await acall("schedules", *arguments)
    assert f": 0 to run, {len(backfilled)} ran or run already" in again.stderr
    assert again.stdout.split() == backfilled

    found = await client.schedules.runs("young", limit=1, status="completed")
    assert [one.id for one in found.runs] == [listed[0]["run"]]
    assert (await client.schedules.runs("young", status="failed")).runs == []
    assert len((await client.schedules.runs("other")).runs) == 1
    with pytest.raises(NotFound):
        await client.schedules.runs("never")
    assert (await client.schedules.runs("never", function=FUNCTION)).runs == []
    with pytest.raises(ConfigurationError, match="status='fine'"):
        await client.schedules.runs("young", status="fine")


async def test_a_search_for_runs_goes_page_by_page_and_says_where_it_stopped(
    stack: Stack, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetcron.schedules.search._PAGE", 2)
    await client.schedules.create("a", FUNCTION, every=3600)
    await client.schedules.create("b", FUNCTION, every=3600)
    a = [(await client.schedules.trigger("a")).id for _ in range(2)]
    await client.schedules.create("c", "teams.other", every=3600)
    await client.schedules.update("a", function="teams.other")
    late = [(await client.schedules.trigger("b")).id for _ in range(3)]
    a.append((await client.schedules.trigger("a")).id)
    await stack.execute(teams())
    await stack.journal.wait("completed", 6)
    found = await client.schedules.runs("a")
    assert [one.id for one in found.runs] == sorted(a, reverse=True)
    assert (found.looked_at, found.journals) == (6, 6)
    assert [one.id for one in (await client.schedules.runs("b", limit=2)).runs] == sorted(late)[:0:-1]

    monkeypatch.setattr("jetcron.schedules.search.LOOKED_AT", 3)
    found = await client.schedules.runs("a")
    assert [one.id for one in found.runs] == [run for run in sorted([*a, *late])[:-4:-1] if run in a]
    assert (found.looked_at, found.journals) == (3, 6)
    said = await acall("runs", "list", "--schedule", "a")
    assert "the newest 3 of the 6 runs of its functions were looked at" in said.stderr


async def test_a_run_of_a_schedule_is_found_while_it_goes_on(stack: Stack, client: Client) -> None:
    app = App("teams")

    @app.function(retries=0)
    async def report(ctx: Context) -> None:
        await ctx.step.run("one", lambda: None)
        await ctx.step.sleep("long", 3_600)

    await stack.register(app)
    await stack.execute(app)
    await client.schedules.create("a", FUNCTION, every=3600)
    run = await client.schedules.trigger("a")
    await stack.journal.wait("waiting")
    (found,) = (await client.schedules.runs("a", status=["waiting", "running"])).runs
    assert (found.id, found.status, list(found.history.steps)) == (run.id, "waiting", ["one"])
