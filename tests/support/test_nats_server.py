"""The tests' own server does what its methods say."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nats as client
import pytest
from nats.errors import NoServersError

from tests.support.nats_server import NatsServer


async def _publish(server: NatsServer, body: bytes) -> int:
    nc = await client.connect(server.url, max_reconnect_attempts=1)
    try:
        js = nc.jetstream()
        await js.add_stream(name="S", subjects=["s"])
        return (await js.publish("s", body)).seq
    finally:
        await nc.close()


async def test_a_restarted_server_keeps_its_port_and_its_messages(nats: NatsServer) -> None:
    url = nats.url
    for expected, restart in enumerate([nats.restart, lambda: nats.restart(kill=True), None], start=1):
        assert await _publish(nats, b"x") == expected
        if restart:
            await restart()
        assert nats.url == url


async def test_a_killed_server_is_gone_and_can_be_started_again(nats: NatsServer) -> None:
    await nats.kill()
    assert not nats.running
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", nats.port)
    with pytest.raises(RuntimeError, match="not running"):
        nats.pause()
    await nats.start()
    assert nats.running


async def test_a_frozen_server_answers_only_when_it_goes_on(nats: NatsServer) -> None:
    nats.pause()
    nats.pause()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", nats.port
    )  # the kernel accepts, nobody greets
    line = asyncio.ensure_future(reader.readline())
    done, _ = await asyncio.wait([line], timeout=0.2)
    assert not done
    nats.resume()
    assert (await line).startswith(b"INFO ")
    writer.close()
    nats.pause()
    await nats.stop()
    assert not nats.running


async def test_configuration_is_merged_and_read_at_each_start(tmp_path: Path) -> None:
    async with NatsServer(
        tmp_path, max_payload=1000, max_file_store=10_000_000, user="ann", password="secret"
    ) as server:
        nc = await client.connect(server.url)
        assert nc.max_payload == 1000
        account = await nc.jetstream().account_info()
        assert account.limits is not None
        await nc.close()
        with pytest.raises(NoServersError):
            await client.connect(
                f"nats://127.0.0.1:{server.port}", max_reconnect_attempts=1, reconnect_time_wait=0
            )
        server.config["max_payload"] = 2000
        await server.restart()
        nc = await client.connect(server.url)
        assert nc.max_payload == 2000
        await nc.close()
    assert not server.store.exists()


async def test_without_jetstream_there_is_none() -> None:
    async with NatsServer(jetstream=False) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        info = json.loads((await reader.readline()).removeprefix(b"INFO "))
        writer.close()
        assert not info.get("jetstream")
        directory = server.directory
    assert not directory.exists()


async def test_a_bad_configuration_says_why_it_did_not_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="is string, not int64"):
        async with NatsServer(tmp_path, config={"max_payload": "much"}):
            pass


async def test_many_servers_start_at_once() -> None:
    servers = [NatsServer() for _ in range(8)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        assert len({server.port for server in servers}) == 8
    finally:
        for server in servers:
            server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no parent death signal")
def test_it_dies_with_a_killed_test_process(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, pathlib\n"
        "from tests.support.nats_server import NatsServer\n"
        "async def main():\n"
        f"    async with NatsServer(pathlib.Path({str(tmp_path)!r})) as server:\n"
        "        print(server.pid, flush=True)\n"
        "        server.pause()\n"  # a frozen one must go too
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline, "nats-server outlived its test process"
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_the_shared_server_is_there(shared_nats: NatsServer, namespace: str) -> None:
    nc = await client.connect(shared_nats.url)
    await nc.jetstream().add_stream(name=namespace.upper(), subjects=[f"{namespace}.>"])
    await nc.close()
