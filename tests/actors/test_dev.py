"""`jetcron dev` as people use it: a folder, an app, saves, Ctrl-C, kill -9."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.support.command_line import PATIENCE, acall, clean_environment, running
from tests.support.nats_server import NatsServer

APP = """
from jetcron import App, Context
app = App("reports")

@app.function(cron="* * * * * *")
async def dispatch(ctx: Context) -> str:
    ctx.log.info("{word}", n=3)
    return "{word}"

@app.function(on="order.created", retries=0)
async def broken(ctx: Context, order: dict) -> None:
    raise ValueError("HTTPError: 500")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.py").write_text(APP.format(word="hello"))
    return tmp_path


def url(folder: Path) -> str:
    return (folder / ".jetcron" / "url").read_text().strip()


async def gone(address: str) -> None:
    """Wait until nobody listens there."""
    host, _, port = address.removeprefix("nats://").rpartition(":")
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                return
            await asyncio.sleep(0.02)


async def test_it_fires_reloads_and_stops(folder: Path) -> None:
    async with running("dev", "jobs:app", cwd=folder) as dev:
        await dev.sees(r"server +nats://127\.0\.0\.1:\d+ +\(nats-server .*, embedded\)")
        await dev.sees(r"reports\.dispatch +cron \* \* \* \* \* \* +next .* UTC, in \d+ m?s")
        await dev.sees(r"reports\.broken +on order\.created")
        await dev.sees("⏰ reports.dispatch +due at")
        await dev.sees(r"▶  reports\.dispatch +started  \(cron, \d+ ms late\)")
        await dev.sees(r"·  reports\.dispatch +hello  n=3")
        await dev.sees(r"✓  reports\.dispatch +completed in \d+ ms")

        # Other verbs find this server by themselves.
        address = url(folder)
        sent = await acall("send", "order.created", "{}")
        assert sent.exit_code == 0, sent.output
        await dev.sees(r"✉  order\.created +→ reports\.broken")
        await dev.sees(r"✗  reports\.broken +failed for good: ValueError: HTTPError: 500")
        await dev.sees("Traceback")
        listed = json.loads((await acall("runs", "list", "--json")).stdout)
        assert {run["function"] for run in listed} == {"reports.dispatch", "reports.broken"}

        # A save that cannot be imported waits for the next one.
        seen = len(dev.lines)
        (folder / "jobs.py").write_text("def f(:\n")
        seen = await dev.sees(r"jobs\.py changed, reloading", after=seen)
        await dev.sees("SyntaxError", after=seen)
        seen = await dev.sees("waiting for a change", after=seen)
        (folder / "jobs.py").write_text(APP.format(word="goodbye"))
        seen = await dev.sees(r"ready again in", after=seen)
        await dev.sees(r"·  reports\.dispatch +goodbye", after=seen)

        # Two of them cannot share a store.
        async with running("dev", "jobs:app", cwd=folder) as second:
            assert await second.ends() == 1
            assert f"another jetcron dev (process {dev.process.pid})" in second.text

        dev.signal(signal.SIGINT)
        await dev.sees("stopping")
        assert await dev.ends() == 0
        assert "Traceback" not in "\n".join(dev.lines[seen:])
        await gone(address)
        assert not (folder / ".jetcron" / "url").exists()


async def test_killed_it_takes_the_server_and_the_actors_with_it(folder: Path) -> None:
    async with running("dev", "jobs:app", "--no-reload", cwd=folder) as dev:
        await dev.sees("ready")
        address = url(folder)
        dev.signal(signal.SIGKILL)
        await gone(address)
        await dev.ends()  # reads to the end: nobody holds its output any more

    # And the store is whole.
    async with running("dev", "jobs:app", "--once", "0.5", cwd=folder) as again:
        assert await again.ends() == 0, again.text
        assert "ready" in again.text


async def test_once_with_code_at_fault_exits_1(folder: Path) -> None:
    (folder / "jobs.py").write_text("raise RuntimeError('broken')\n")
    async with running("dev", "jobs:app", "--once", "5", cwd=folder) as dev:
        assert await dev.ends() == 1
        assert "RuntimeError: broken" in dev.text
        assert "/jetcron/" not in dev.text


async def test_a_module_nobody_has_is_no_reason_to_wait(folder: Path) -> None:
    async with running("dev", "jobz:app", cwd=folder) as dev:
        assert await dev.ends() == 1
        assert "did you mean 'jobs'?" in dev.text


async def test_without_an_app_and_on_a_server_of_ones_own(
    folder: Path, shared_nats: NatsServer, namespace: str
) -> None:
    async with running(
        "dev", "--once", "0.2", cwd=folder, NATS_URL=shared_nats.url, JETCRON_NAMESPACE=namespace
    ) as dev:
        assert await dev.ends() == 0, dev.text
        assert "every actor but the executor" in dev.text
        assert "embedded" not in dev.text
        assert not (folder / ".jetcron").exists()


async def test_a_server_of_ones_own_is_the_only_one(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"nats://127.0.0.1:{unused.getsockname()[1]}"
        async with running("dev", "--nats-port", "4555", cwd=folder, NATS_URL=address) as dev:
            assert await dev.ends() == 2
            words = " ".join(re.sub(r"[^ -~]", " ", dev.text).split())  # a box is drawn around it
            assert (
                f"--nats-port 4555: NATS_URL={address} is set, and dev starts no server of its own" in words
            )
        async with running("dev", cwd=folder, NATS_URL=address) as dev:
            assert await dev.ends() == 1
            assert f"no NATS server answers at {address}" in dev.text
            assert f"NATS_URL={address} is set, and dev starts no server of its own" in dev.text
    assert not (folder / ".jetcron").exists()


PROGRAM = """
import asyncio, structlog
from jetcron import Client
async def main():
    structlog.get_logger().debug("mine")
    async with Client() as client:
        run = await client.run("reports.dispatch")
        print(await run.result(timeout=20))
    structlog.get_logger().debug("mine")
asyncio.run(main())
"""


async def test_a_program_in_the_same_folder_finds_it_and_is_told_nothing_else(folder: Path) -> None:
    async def program(**env: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM),
            cwd=folder,
            env=clean_environment(**env),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async with running("dev", "jobs:app", "--no-reload", cwd=folder) as dev:
        await dev.sees("ready")
        assert re.search(rf"in another folder first: export NATS_URL={url(folder)}$", dev.text, re.M)
        code, out, err = await program()
        assert (code, err) == (0, ""), err
        first, printed, last = out.splitlines()
        assert printed == "hello"
        assert "mine" in first, "what it logs itself is its own"
        assert "mine" in last
        code, out, err = await program(NATS_URL="nats://127.0.0.1:1")
        assert code == 1, "NATS_URL comes first"
        assert len(out.splitlines()) == 1, "its own line, and none of ours"
        assert err.splitlines()[-1].startswith("jetcron.errors.ServerUnreachable: ")


async def test_a_port_that_is_taken(folder: Path, shared_nats: NatsServer) -> None:
    async with running("dev", "--nats-port", str(shared_nats.port), cwd=folder) as dev:
        assert await dev.ends() == 1
        assert "address already in use" in dev.text
        assert f"choose another port than {shared_nats.port}" in dev.text
