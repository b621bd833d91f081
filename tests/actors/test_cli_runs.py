"""Verbs about runs and dead letters against a real server: looked at, ended, begun again, sent again."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jetcron import App, Context, Event
from jetcron.client import Client
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import DeadLetter, Run
from tests.support.command_line import acall, on_a_terminal, running
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack, until

NOBODY = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What moves a terminal's cursor."""


@dataclass
class Shop:
    """An app, what its functions have done, and what they may do."""

    stack: Stack
    client: Client
    folder: Path
    did: list[str] = field(default_factory=list)
    broken: bool = True
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> App:
        app = App("shop")

        @app.function(retries=0)
        async def charge(ctx: Context, order: int) -> int:
            await ctx.step.run("load", self.note, f"load {order}")
            if self.broken:
                raise ValueError(f"no {order}")
            return order

        @app.function(retries=0)
        async def other(ctx: Context, order: int) -> None:
            raise LookupError("gone")

        @app.function()
        async def wait(ctx: Context, order: int) -> str:
            await ctx.step.run("load", self.note, f"load {order}")
            bill, paid = await asyncio.gather(
                ctx.step.invoke("bill", "shop.double", order),
                ctx.step.wait_for_event("paid", "order.paid", match={"id": order}, timeout=3_600),
            )
            return f"{bill} {paid is not None}"

        @app.function()
        async def double(ctx: Context, number: int) -> int:
            return 2 * number

        @app.function()
        async def hang(ctx: Context) -> None:
            try:
                await self.freed.wait()
            finally:
                self.did.append("stopped")

        return app

    def note(self, what: str) -> dict[str, str]:
        self.did.append(what)
        return {"did": what}

    async def failed(self, *orders: int, function: str = "charge") -> list[str]:
        """Runs that have failed, one after the other, whose dead letters stand."""
        runs = []
        for order in orders:
            run = (await self.client.run(f"shop.{function}", order)).id
            await self.stack.journal.wait("failed", run=run)
            await self.buried(run)
            runs.append(run)
        return runs

    async def buried(self, *runs: str) -> None:
        async def all_are() -> bool:
            return all([await self.client.dead.of_run(run) is not None for run in runs])

        await until(all_are, what="dead letters")

    async def waiting(self, order: int) -> str:
        """A run that waits for an event alone."""
        run = (await self.client.run("shop.wait", order)).id

        async def bill_has_come() -> bool:
            view = await self.client.runs.get(run)
            return view.status == "waiting" and list(view.history.waits) == ["paid"]

        await until(bill_has_come, what="a run that waits for its event")
        return run


@pytest_asyncio.fixture
async def shop(
    shared_nats: NatsServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    """A shop at work in a namespace that verbs find by the environment."""
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = {f"JETCRON_{name.upper()}": str(value) for name, value in FAST.items()}
    for name, value in {"NATS_URL": shared_nats.url, "JETCRON_NAMESPACE": namespace, **settings}.items():
        monkeypatch.setenv(name, value)
    async with Stack(shared_nats, namespace, short_wait=0) as stack, Client(stack.settings) as client:
        shop = Shop(stack, client, tmp_path)
        await stack.start("cron-sync", "event-router")
        app = shop.app()
        await stack.register(app)
        await stack.execute(app)
        yield shop


def environment() -> dict[str, str]:
    """The settings of the fixture, for a process of its own."""
    return {name: value for name, value in os.environ.items() if name.startswith(("JETCRON_", "NATS_"))}


def one(result: Any) -> Any:
    """The JSON a verb that succeeded has printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def lines(result: Any) -> list[str]:
    return list(result.stdout.splitlines())


# Looking.


async def test_a_waiting_run_is_shown_with_what_it_waits_for(shop: Shop) -> None:
    run = await shop.waiting(7)
    shown = await acall("runs", "show", run)
    assert shown.exit_code == 0, shown.output
    text = shown.stdout
    history = (await shop.client.runs.get(run)).history
    child = history.steps["bill"].child
    assert f"shop.wait  {run}\nstatus   waiting until 20" in text
    for said in (
        "▶ attempt 1",
        "✓ load",
        "✓ bill",
        f"shop.double {child}",
        "waiting for order.paid until 20",
    ):
        assert said in text, text
    # The run has left its executor before the bill came, or it has not.
    rows = len(history.attempts) + 3
    assert len([line for line in lines(shown) if line.startswith("  ")]) == rows, text
    whole = one(await acall("runs", "show", run, "--json"))
    (paid,) = whole["waits"]
    assert (paid["id"], paid["op"], paid["target"]) == ("paid", "wait", "order.paid")
    (bill,) = [step for step in whole["steps"] if step["op"] == "invoke"]
    assert bill["child"] == {"run": child, "function": "shop.double", "status": "completed"}

    (listed,) = one(await acall("runs", "list", "--status", "waiting", "--json"))
    assert (listed["run"], listed["waits_on"]) == (run, ["paid"])
    assert "for order.paid until 20" in (await acall("runs", "list", "-s", "waiting", "-s", "failed")).stdout
    nothing = await acall("runs", "list", "-s", "failed")
    assert (nothing.stdout, nothing.stderr) == ("", "no run is remembered that is so\n")

    parent = (await acall("runs", "show", child)).stdout
    assert f"parent   shop.wait {run}, step bill" in parent
    await shop.client.send(Event("order.paid", {"id": 7}))
    await shop.stack.journal.wait("completed", run=run)
    text = (await acall("runs", "show", run)).stdout
    assert "✓ paid" in text
    assert 'result  "14 True"' in text


async def test_the_result_alone(shop: Shop) -> None:
    done = await shop.client.run("shop.double", 21)
    await shop.stack.journal.wait("completed", run=done.id)
    assert one(await acall("runs", "show", done.id, "--result")) == 42
    (failed,) = await shop.failed(1)
    refused = await acall("runs", "show", failed, "--result")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "ValueError: no 1" in refused.stderr
    waiting = await shop.waiting(1)
    refused = await acall("runs", "show", waiting, "--result")
    assert refused.exit_code == 1
    assert f"run {waiting} of shop.wait has not ended: it is waiting" in refused.stderr


async def test_a_failed_run_says_how_to_begin_it_again(shop: Shop) -> None:
    (run,) = await shop.failed(1)
    shown = await acall("runs", "show", run)
    assert "ValueError: no 1" in shown.stdout
    assert f"jetcron runs retry {run}" in shown.stderr


@pytest.mark.parametrize("verb", ["show", "cancel", "retry"])
async def test_wrong_ids_are_told_apart(shop: Shop, verb: str) -> None:
    for id, said in [
        (NOBODY, f"there is no run {NOBODY}; finished runs are forgotten"),
        (
            "shop.wait",
            "there is no run 'shop.wait'; an id has 26 letters and digits, see 'jetcron runs list'",
        ),
        ("*", "there is no run '*'"),
    ]:
        result = await acall("runs", verb, id)
        assert result.exit_code == 1
        assert said in result.stderr
        assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


async def test_a_queued_run_is_shown(shop: Shop) -> None:
    held = (await acall("run", "shop.double", "1", "--at", "2100-01-01")).stdout.strip()
    shown = (await acall("runs", "show", held)).stdout
    assert "status   queued until 2100-01-01 00:00:00Z (in " in shown
    assert one(await acall("runs", "show", held, "--json"))["status"] == "queued"


async def test_steps_and_waits_are_followed(shop: Shop) -> None:
    async with running("runs", "tail", cwd=shop.folder, **environment()) as tail:
        await tail.sees("following")
        run = await shop.waiting(7)
        await tail.sees(rf"▶ shop.wait  {run}  claimed")
        await tail.sees(rf"• shop.wait  {run}  run load  \d")
        await tail.sees(rf"○ shop.wait  {run}  invoke bill  waits for shop.double ")
        await tail.sees(rf"○ shop.wait  {run}  wait paid  waits for order.paid until 20")
        await tail.sees(rf"○ shop.wait  {run}  waiting  until 20.*, on .*paid")
        tail.signal(signal.SIGINT)
        assert await tail.ends() == 0


# Ending.


async def test_cancel_says_how_each_ended(shop: Shop) -> None:
    waiting = await shop.waiting(7)
    hanging = (await shop.client.run("shop.hang")).id
    await shop.stack.journal.wait("claimed", run=hanging)
    held = (await acall("run", "shop.double", "1", "--at", "2100-01-01")).stdout.strip()
    done = (await shop.client.run("shop.double", 1)).id
    await shop.stack.journal.wait("completed", run=done)

    ended = await acall("runs", "cancel", waiting, hanging, held, done, NOBODY, "--reason", "by mistake")
    assert ended.exit_code == 1
    assert [line.split(maxsplit=2) for line in lines(ended)] == [
        [waiting, "cancelled", "it was waiting"],
        [hanging, "cancelled", "it was running"],
        [held, "cancelled", "it was queued"],
        [done, "completed", "it had completed before"],
    ]
    assert f"there is no run {NOBODY}" in ended.stderr
    await until(lambda: "stopped" in shop.did, what="the running code stopped")
    for run in (waiting, hanging, held):
        entry = (await shop.stack.journal.wait("cancelled", run=run))[0].entry
        assert entry.error is not None
        assert entry.error.message == "by mistake"
    again = await acall("runs", "cancel", waiting, waiting)
    assert again.exit_code == 0
    assert lines(again) == [f"{waiting}  cancelled  it had been cancelled before"]
    assert "by client: by mistake" in (await acall("runs", "show", waiting)).stdout
    assert len(shop.stack.journal.of("cancelled")) == 3


# Beginning again.


async def test_retry_goes_on_after_the_last_good_step(shop: Shop) -> None:
    run, second = await shop.failed(1, 2)
    shop.broken = False
    again = await acall("runs", "retry", run, NOBODY, second)
    assert again.exit_code == 1
    assert lines(again) == [run, second]
    assert f"there is no run {NOBODY}" in again.stderr
    for one_ in (run, second):
        await shop.stack.journal.wait("completed", run=one_)
    assert sorted(shop.did) == ["load 1", "load 2"], "a step that was done was done again"
    assert "↻ begun again" in (await acall("runs", "show", run)).stdout
    refused = await acall("runs", "retry", run)
    assert refused.exit_code == 1
    assert f"run {run} of shop.charge is completed; only one that failed can be retried" in refused.stderr


async def test_retry_from_the_start_is_another_run(shop: Shop) -> None:
    (run,) = await shop.failed(1)
    shop.broken = False
    anew = await acall("runs", "retry", "--from-start", run)
    assert anew.exit_code == 0, anew.output
    (new,) = lines(anew)
    assert new != run
    await shop.stack.journal.wait("completed", run=new)
    assert shop.did == ["load 1", "load 1"]
    assert one(await acall("runs", "show", run, "--json"))["status"] == "failed", "the old one stands"
    refused = await acall("runs", "retry", "--from-start", run)
    assert refused.exit_code == 1
    assert f"the dead letter of run {run} is gone" in refused.stderr
    assert "start shop.charge anew" in refused.stderr


# Dead letters.


async def test_dead_letters_by_function_and_time(shop: Shop) -> None:
    charged = await shop.failed(1, 2)
    (other,) = await shop.failed(3, function="other")
    for arguments, runs in [
        (["--function", "shop.charge"], charged),
        (["-f", "shop.other", "-k", "failed"], [other]),
        (["--since", "1h"], [*charged, other]),
        (["--until", "1h"], []),
        (["--kind", "event"], []),
        (["--since", "2020-01-01", "--until", "2020-02-01T10:00:00+02:00"], []),
        (["--limit", "1"], [other]),
    ]:
        found = one(await acall("dead", "list", "--json", *arguments))
        assert sorted(letter["run"] for letter in found) == sorted(runs), arguments
    refused = await acall("dead", "list", "--function", "charge")
    assert refused.exit_code == 1
    assert "APP.FUNCTION" in refused.stderr


async def test_replay_by_function_is_shown_first(shop: Shop) -> None:
    charged = await shop.failed(1, 2, 3)
    (other,) = await shop.failed(4, function="other")
    shop.broken = False
    asked = await acall("dead", "replay", "--function", "shop.charge")
    assert asked.exit_code == 1
    assert "nothing was sent: these are 3; add --yes" in asked.stderr
    assert all(run in asked.stdout for run in charged)
    assert other not in asked.stdout
    assert len(await shop.client.dead.list()) == 4

    sent = await acall("dead", "replay", "--function", "shop.charge", "--yes")
    assert sent.exit_code == 0, sent.output
    assert "3 of 3 sent again" in sent.stderr
    assert len(set(lines(sent))) == 3
    for run in lines(sent):
        (completed,) = await shop.stack.journal.wait("completed", run=run)
        assert completed.function == "shop.charge"
    assert [dead.letter.run for dead in await shop.client.dead.list()] == [other]
    nothing = await acall("dead", "replay", "--function", "shop.charge", "--yes")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "no dead letter is so\n")


async def test_replay_by_time(shop: Shop) -> None:
    (run,) = await shop.failed(1)
    shop.broken = False
    nothing = await acall("dead", "replay", "--until", "1h")
    assert (nothing.exit_code, nothing.stderr) == (0, "no dead letter is so\n")
    # One alone needs no yes.
    sent = await acall("dead", "replay", "--since", "1h", "--kind", "failed")
    assert sent.exit_code == 0, sent.output
    (new,) = lines(sent)
    await shop.stack.journal.wait("completed", run=new)
    assert new != run


async def test_replay_by_number_keeps_their_order(shop: Shop) -> None:
    await shop.failed(1, 2)
    shop.broken = False
    newer, older = [dead.sequence for dead in await shop.client.dead.list()]
    sent = await acall("dead", "replay", str(newer), "999", str(older), str(newer))
    assert sent.exit_code == 1
    assert sent.stderr == "there is no dead letter 999; 'jetcron dead list' shows them\n"
    results = []
    for run in lines(sent):
        (entry,) = await shop.stack.journal.wait("completed", run=run)
        results.append(entry.entry.result)
    assert results == [2, 1]


# On a terminal.


async def test_lists_read_at_80_columns(shop: Shop) -> None:
    (run,) = await shop.failed(1)
    waiting = await shop.waiting(7)
    code, shown = await on_a_terminal("runs", "list", cwd=shop.folder, **environment())
    assert code == 0
    rows = shown.splitlines()
    assert rows[0].split() == ["RUN", "STATUS", "FOR", "FUNCTION"]
    (at,) = [number for number, row in enumerate(rows) if row.startswith(run)]
    assert rows[at].split()[1::3] == ["failed", "shop.charge"]
    assert rows[at + 1] == "  ValueError: no 1"
    (at,) = [number for number, row in enumerate(rows) if row.startswith(waiting)]
    assert rows[at + 1].startswith("  for order.paid until 20")
    assert max(map(len, rows)) <= 80
    code, shown = await on_a_terminal("runs", "list", cwd=shop.folder, width=160, **environment())
    assert "TRIES  NOTE" in shown
    code, shown = await on_a_terminal("dead", "list", cwd=shop.folder, **environment())
    header, row, below = shown.splitlines()
    assert header.split() == ["NUMBER", "KIND", "AT", "WHAT"]
    assert row.endswith("shop.charge")
    assert below == f"  {run}  ValueError: no 1"
    code, shown = await on_a_terminal("runs", "show", waiting, cwd=shop.folder, **environment())
    assert max(map(len, shown.splitlines())) <= 80
    assert code == 0


@pytest.mark.parametrize(("answer", "exit_code", "left"), [("y\n", 0, 0), ("n\n", 1, 2)], ids=["yes", "no"])
async def test_replay_asks_on_a_terminal(shop: Shop, answer: str, exit_code: int, left: int) -> None:
    await shop.failed(1, 2)
    shop.broken = False
    arguments = ("dead", "replay", "--since", "1h")
    code, shown = await on_a_terminal(*arguments, cwd=shop.folder, answer=answer, **environment())
    assert code == exit_code, shown
    assert "Send all 2 again? [y/N]" in shown
    assert ("2 of 2 sent again" in shown) is (left == 0)
    assert len(await shop.client.dead.list()) == left


async def test_what_many_letters_became_is_not_mixed_with_the_bar(shop: Shop) -> None:
    names = shop.stack.names
    for number in range(60):
        body = encode(
            Run(run=f"R{number}", function="shop.double", trigger="manual", fire_at=1, payload=number)
        )
        letter = DeadLetter(
            letter="failed",
            reason="ValueError: no",
            at=1,
            subject=names.run_ready("shop.double"),
            stream=names.work,
            sequence=number,
            size=len(body),
            body=body,
            function="shop.double",
            run=f"R{number}",
        )
        subject = names.dead_letter("failed", "shop", "double", letter.run or "")
        await shop.stack.bus.publish(subject, encode(letter))
    arguments = ("dead", "replay", "--kind", "failed")
    code, shown = await on_a_terminal(*arguments, cwd=shop.folder, answer="y\n", **environment())
    assert code == 0, shown
    assert "sent again" in shown
    completed = await shop.stack.journal.wait("completed", 60, function="shop.double")
    told = {line.strip() for line in CONTROLS.sub("\n", shown).splitlines()}
    assert {entry.run for entry in completed} <= told, "an id is not on a line of its own"
    assert await shop.client.dead.list() == []
