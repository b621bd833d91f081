"""Verbs against a real server: what they do, print, and say when something is wrong."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jetcron import App, Context
from jetcron.bus import Bus
from jetcron.cli.cycles import Finding
from jetcron.cli.doctor import examine
from jetcron.errors import ServerTooOld
from tests.support.command_line import acall, running
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack, until

MODULE = """
from jetcron import App, Context
app = App("shop")

@app.function(cron="0 3 * * *", timezone="Europe/Madrid")
async def nightly(ctx: Context) -> None:
    "Tidies up."

@app.function()
async def double(ctx: Context, number: int) -> int:
    return number * 2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest_asyncio.fixture
async def stack(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    """A namespace that verbs find by the environment."""
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    async with Stack(shared_nats, namespace) as stack:
        yield stack


def shop() -> App:
    app = App("shop")

    @app.function(cron="0 3 * * *")
    async def nightly(ctx: Context) -> None:
        """Tidies up."""

    @app.function()
    async def double(ctx: Context, number: int) -> int:
        return number * 2

    @app.function(retries=0, on="order.created")
    async def broken(ctx: Context, order: dict[str, Any]) -> None:
        raise ValueError(f"no {order['id']}")

    @app.function()
    async def slow(ctx: Context) -> None:
        await asyncio.sleep(1)

    return app


async def working(stack: Stack) -> None:
    """Every actor, and an executor of the shop."""
    for running_ in await stack.start("cron-sync", "cron-tick", "event-router", "health-checker"):
        await running_.ready()
    await (await stack.execute(shop())).ready()


def one(result: Any) -> Any:
    """The JSON a verb that succeeded has printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# init, sync


async def test_init_says_what_it_did(shared_nats: NatsServer, namespace: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    first, second = await acall("init"), await acall("init")
    monkeypatch.setenv("JETCRON_EVENTS_MAX_AGE", "7200")
    third = await acall("init")
    assert (first.exit_code, second.exit_code, third.exit_code) == (0, 0, 0)
    assert first.stdout.count("created") == 14
    assert second.stdout.count("unchanged") == 14
    assert second.stdout.splitlines()[0].split() == ["KIND", "NAME", "DONE"]
    assert third.stdout.splitlines()[0].split() == ["KIND", "NAME", "DONE", "WHAT"]
    (updated,) = [line for line in third.stdout.splitlines() if "updated" in line]
    assert updated.split() == ["stream", f"{namespace.upper()}_EVENTS", "updated", "max_age"]


async def test_actors_and_verbs_name_init_when_the_topology_is_missing(
    shared_nats: NatsServer, namespace: str, folder: Path, monkeypatch: Any
) -> None:
    (folder / "shop_missing.py").write_text(MODULE)
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for verb in (["runs", "list"], ["functions", "list"], ["sync", "shop_missing:app"], ["doctor"]):
        result = await acall(*verb)
        assert result.exit_code == 1
        assert "jetcron init" in result.output
        assert "Traceback" not in result.output


async def test_sync_registers(stack: Stack, folder: Path) -> None:
    (folder / "shop_sync.py").write_text(MODULE)
    (cron_sync,) = await stack.start("cron-sync")
    await cron_sync.ready()
    first = await acall("sync", "shop_sync:app")
    assert first.exit_code == 0, first.output
    assert "shop.nightly" in first.stdout
    second = await acall("sync", "shop_sync")
    assert second.exit_code == 0
    assert "no schedule changed" in second.stderr


async def test_sync_says_when_cron_sync_does_not_answer(
    stack: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "shop_alone.py").write_text(MODULE)
    monkeypatch.setattr("jetcron.registration.register.__kwdefaults__", {"force": False, "wait": 0.2})
    result = await acall("sync", "shop_alone:app")
    assert result.exit_code == 1
    assert "is 'jetcron cron-sync' running?" in result.stderr


# run, send, listings


async def test_run_and_wait(stack: Stack) -> None:
    await working(stack)
    assert one(await acall("run", "shop.double", "21", "--wait")) == 42
    failed = await acall("run", "shop.broken", '{"id": 7}', "--wait", "20")
    assert failed.exit_code == 1
    assert "ValueError: no 7" in failed.stderr
    assert "test_cli_verbs.py" in failed.stderr
    assert "jetcron/executor" not in failed.stderr
    slow = await acall("run", "shop.slow", "--wait", "0.2")
    assert slow.exit_code == 1
    assert "has not ended within 0.2 s" in slow.stderr
    unknown = await acall("run", "shop.nothing")
    assert unknown.exit_code == 1
    assert "functions list" in unknown.stderr


async def test_an_id_starts_one_run(stack: Stack) -> None:
    await working(stack)
    started = [await acall("run", "shop.double", "1", "--id", "x") for _ in range(2)]
    assert len({one.stdout for one in started}) == 1, [one.output for one in started]
    await stack.journal.wait("completed", function="shop.double")


async def test_send_then_look(stack: Stack) -> None:
    await working(stack)
    sent = await acall("send", "order.created", "-", "--id", "o1", input='{"id": 9}')
    assert sent.stdout == "o1\n"
    (ended,) = await stack.journal.wait("failed", function="shop.broken")
    (listed,) = one(await acall("runs", "list", "--function", "shop.broken", "--json"))
    assert listed["run"] == ended.run
    assert listed["status"] == "failed"
    assert listed["trigger"] == "event"
    assert listed["event"] == "order.created"
    table = (await acall("runs", "list")).stdout.splitlines()
    assert len(table) == 2
    assert "ValueError: no 9" in table[1]
    shown = (await acall("runs", "show", ended.run)).stdout
    assert "ValueError: no 9" in shown
    assert "Traceback (most recent call last)" in shown
    whole = one(await acall("runs", "show", ended.run, "--json"))
    assert whole["attempts"][0]["outcome"] == "failed"
    assert whole["error"]["type"] == "ValueError"
    missing = await acall("runs", "show", "01K0000000000000000000000A")
    assert missing.exit_code == 1
    assert "there is no run" in missing.stderr

    async def buried() -> bool:
        return bool(await stack.dead())

    await until(buried)
    (dead,) = one(await acall("dead", "list", "--json"))
    assert dead["run"] == ended.run
    assert "ValueError" in (await acall("dead", "show", str(dead["number"]))).stdout
    assert one(await acall("dead", "show", str(dead["number"]), "--json"))["body"]["event"]["data"] == {
        "id": 9
    }
    again = await acall("dead", "replay", str(dead["number"]), "999")
    assert again.exit_code == 1
    assert "no dead letter 999" in again.stderr
    await stack.journal.wait("failed", run=again.stdout.strip())


async def test_functions(stack: Stack) -> None:
    await working(stack)
    await until(lambda: len(stack.running) == 5)

    async def registered() -> bool:
        result = await acall("functions", "list", "--json")
        return len(json.loads(result.stdout)) == 4

    await until(registered)
    shown = one(await acall("functions", "show", "shop.nightly", "--json"))
    assert shown["cron"] == [{"expression": "0 3 * * *", "timezone": "UTC", "dst": "default"}]
    assert shown["next"]["shop.nightly"].endswith("T03:00:00.000Z")
    assert "Tidies up." in (await acall("functions", "list")).stdout
    assert "0 3 * * *" in (await acall("functions", "show", "shop.nightly")).stdout
    assert (await acall("functions", "pause", "shop.nightly", "shop.double")).exit_code == 0
    states = {row["id"]: row["state"] for row in one(await acall("functions", "list", "--json"))}
    assert states["shop.nightly"] == states["shop.double"] == "paused"
    assert (await acall("functions", "unpause", "shop.nightly", "shop.double")).exit_code == 0
    assert (await acall("functions", "archive", "shop.double")).exit_code == 0
    assert len(one(await acall("functions", "list", "--json"))) == 3
    assert len(one(await acall("functions", "list", "--archived", "--json"))) == 4
    refused = await acall("functions", "pause", "shop.nothing")
    assert refused.exit_code == 1
    assert "no function 'shop.nothing'" in refused.stderr
    assert (await acall("functions", "pause", "nothing")).exit_code == 1


async def test_tail_follows(stack: Stack, folder: Path) -> None:
    await working(stack)
    env = {name: value for name, value in os.environ.items() if name.startswith(("JETCRON_", "NATS_"))}
    async with running("runs", "tail", "--json", cwd=folder, **env) as tail:
        await tail.sees("following")
        assert (await acall("run", "shop.double", "4")).exit_code == 0
        await tail.sees('"completed".*"result": 8')
        tail.signal(signal.SIGINT)
        assert await tail.ends() == 0


# doctor


def wrong(found: list[Finding]) -> dict[str, str]:
    return {finding.about: finding.what for finding in found if finding.level == "wrong"}


async def test_doctor_finds_nothing_wrong_where_all_is_well(stack: Stack) -> None:
    await acall("init")
    await working(stack)

    async def well() -> bool:
        result = await acall("doctor", "--json")
        assert json.loads(result.stdout)["ok"] is (result.exit_code == 0)
        return result.exit_code == 0

    await until(well, what="doctor content")
    await acall("functions", "pause", "shop.double")
    # A machine that is busy may hear late what time the server has.
    found = [one for one in await examine(stack.settings) if one.about != "clock"]
    notes = [one for one in found if one.level == "note"]
    assert [(note.about, note.do) for note in notes] == [
        ("shop.double", "jetcron functions unpause shop.double")
    ]


async def test_doctor_names_what_is_missing(stack: Stack) -> None:
    sync, tick, router = await stack.start("cron-sync", "cron-tick", "event-router")
    for actor in (sync, tick, router):
        await actor.ready()
    await stack.register(shop())
    await tick.stop()
    found = wrong(await examine(stack.settings))
    assert "nobody pulls" in found["cron-tick"]
    assert "nobody pulls" in found["health-checker"]
    assert "no executor is alive" in found["shop"]
    assert "sweeps are armed" in found["sweeps"]
    assert not {"cron-sync", "event-router", "schedules"} & set(found)
    result = await acall("doctor")
    assert result.exit_code == 1
    assert "start jetcron cron-tick" in result.stdout


async def test_doctor_finds_a_broken_cycle(stack: Stack) -> None:
    await stack.start("cron-sync")
    await stack.register(shop())
    assert not wrong(await examine(stack.settings)).get("schedules")
    await stack.bus.purge(stack.names.work, stack.names.ticks_of("shop.nightly"))
    assert "shop.nightly" in wrong(await examine(stack.settings))["schedules"]


async def test_doctor_finds_a_function_that_no_executor_has(stack: Stack) -> None:
    await stack.start("cron-sync")
    older = App("shop")

    @older.function()
    async def double(ctx: Context, number: int) -> int:
        return number * 2

    await stack.register(older)
    await stack.register(shop())
    executor = await stack.execute(older)  # refused as rolled back: it goes on with what it has
    await executor.ready()
    found = wrong(await examine(stack.settings))
    assert "no executor pulls its runs" in found["shop.nightly"]
    assert not {"shop.double", "shop"} & set(found)


async def test_doctor_where_there_is_no_jetstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsServer(tmp_path / "plain", jetstream=False) as server:
        monkeypatch.setenv("NATS_URL", server.url)
        for verb in (["doctor"], ["init"], ["runs", "list"]):
            result = await acall(*verb)
            assert result.exit_code == 1
            assert "without JetStream" in result.output
            assert "-js" in result.output


async def test_wrong_credentials_are_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsServer(tmp_path / "closed", user="me", password="right") as server:
        monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{server.port}")
        monkeypatch.setenv("NATS_USER", "me")
        monkeypatch.setenv("NATS_PASSWORD", "wrong")
        for _ in range(3):
            result = await acall("init")
            assert result.exit_code == 1
            assert "refused the credentials" in result.stderr
            assert "NATS_CREDS" in result.stderr
        monkeypatch.setenv("NATS_PASSWORD", "right")
        assert (await acall("init")).exit_code == 0


async def test_a_stream_of_another_shape(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    assert (await acall("init")).exit_code == 0
    async with Stack(shared_nats, f"{namespace}x") as other:
        config = (await other.bus.api(f"STREAM.INFO.{namespace.upper()}_WORK"))["config"]
        await other.bus.api(f"STREAM.UPDATE.{namespace.upper()}_WORK", config | {"max_msgs": 1000})
    result = await acall("doctor")
    assert result.exit_code == 1
    assert "max_msgs=1000" in result.output
    await acall("init")
    assert "max_msgs" not in (await acall("doctor")).output


async def test_a_server_that_is_too_old(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetcron.bus.link.MIN_SERVER", (99, 0, 0))
    result = await acall("functions", "list")
    assert result.exit_code == 1
    assert "is too old; Jetcron needs 99.0.0" in result.stderr
    with pytest.raises(ServerTooOld):
        async with Bus(stack.settings):
            pass
