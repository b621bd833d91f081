"""The actor verbs as processes: they start, are ready, drain at a signal, and say why they do not start."""

import asyncio
import json
import re
import signal
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.command_line import Command, acall, running
from tests.support.nats_server import NatsServer

VERBS = ("cron-sync", "cron-tick", "event-router", "health-checker")
MODULE = """
from jetcron import App, Context
app = App("shop")

@app.function()
async def double(ctx: Context, number: int) -> int:
    return number * 2
"""


async def ready(command: Command) -> None:
    """Wait until /readyz says so."""
    await command.sees('"event": ?"started"')
    (started,) = [json.loads(line) for line in command.lines if '"started"' in line]
    url = f"http://127.0.0.1:{started['http']}/readyz"

    def ask() -> int:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status)
        except OSError:
            return 0

    async with asyncio.timeout(20):
        while await asyncio.to_thread(ask) != 200:  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(0.05)


async def test_all_actors_as_processes(
    shared_nats: NatsServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    env = {"NATS_URL": shared_nats.url, "JETCRON_NAMESPACE": namespace}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:

        async def start(*arguments: str) -> Command:
            return await stack.enter_async_context(
                running(*arguments, "--http", "0", cwd=tmp_path, **env, JETCRON_LOG_FORMAT="json")
            )

        refused = await start("cron-tick")
        assert await refused.ends() == 1
        assert "jetcron init" in refused.text
        assert len(refused.lines) == 1
        assert (await acall("init")).exit_code == 0
        actors = [await start(name) for name in VERBS]
        actors.append(await start("executor", "shop:app", "--slots", "3"))
        for actor in actors:
            await ready(actor)
        result = await acall("run", "shop.double", "21", "--wait", "20")
        assert json.loads(result.stdout) == 42, result.output
        for actor, number in zip(actors, [signal.SIGTERM, signal.SIGINT] * 3, strict=False):
            actor.signal(number)
        for actor in actors:
            assert await actor.ends() == 0, actor.text
            assert re.search('"event": ?"stopped"', actor.text)


async def test_an_executor_of_no_module(tmp_path: Path) -> None:
    async with running("executor", "nothing:app", cwd=tmp_path, NATS_URL="nats://127.0.0.1:1") as command:
        assert await command.ends() == 1
        assert len(command.lines) == 1
        assert "no module 'nothing'" in command.text


async def test_no_server_for_an_actor(tmp_path: Path) -> None:
    async with running("cron-sync", cwd=tmp_path, NATS_URL="nats://127.0.0.1:1") as command:
        assert await command.ends() == 1
        assert len(command.lines) == 1
        assert "no NATS server answers" in command.text
