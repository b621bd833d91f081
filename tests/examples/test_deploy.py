"""What is in deploy/: every unit starts its actor, every file says what is so.

The units' own ExecStart lines are run, with paths and specifiers put in as systemd would.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
import typer.main

from jetcron.cli import app as cli
from jetcron.settings import Settings
from jetcron_protocol.topology import MIN_SERVER
from tests.examples.small_yaml import read_yaml
from tests.support.nats_server import NatsServer, binary
from tests.support.stack import until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ACTORS = ["cron-sync", "cron-tick", "event-router", "health-checker", "executor"]
INSTANCE = "reports:app"
PASSWORDS = {"JETCRON_NATS_PASSWORD": "one", "PUBLISHER_NATS_PASSWORD": "two"}
REPORTS = """
from jetcron import App

app = App("reports")


@app.function(cron="0 9 * * *")
async def daily(ctx):
    pass
"""


class Unit:
    """A unit file, read as systemd does: sections of keys, each of which may come again."""

    def __init__(self, actor: str) -> None:
        self.file = DEPLOY / "systemd" / (f"{actor}@.service" if actor == "executor" else f"{actor}.service")
        self.values: dict[str, list[str]] = {}
        for line in self.file.read_text().splitlines():
            if line and line[0] not in "#[":
                key, _, value = line.partition("=")
                self.values.setdefault(key, []).append(value.replace("%i", INSTANCE))

    def one(self, key: str) -> str:
        (value,) = self.values[key]
        return value

    def environment(self, machine: Path) -> dict[str, str]:
        """What it sets; files win over `Environment`, a leading '-' forgives one that is missing."""
        found = dict(shlex.split(value)[0].split("=", 1) for value in self.values.get("Environment", []))
        for name in self.values["EnvironmentFile"]:
            file = machine / name.lstrip("-/")
            assert file.exists() or name.startswith("-"), f"{self.file.name} needs {name}"
            if file.exists():
                found |= read_environment(file)
        return found

    def command(self, environment: dict[str, str]) -> list[str]:
        """ExecStart with its variables put in, and this environment's programs for the installed ones."""
        words = shlex.split(re.sub(r"\$\{(\w+)\}", lambda m: environment[m[1]], self.one("ExecStart")))
        assert words[0] == "/opt/jetcron/bin/jetcron"
        return [str(Path(sys.executable).with_name("jetcron")), *words[1:]]


def read_environment(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def machine(tmp_path: Path, shared_nats: NatsServer, namespace: str) -> Path:
    """A root with what operations.md has one put into /etc/jetcron and /srv/jetcron."""
    etc, srv = tmp_path / "etc" / "jetcron", tmp_path / "srv" / "jetcron"
    etc.mkdir(parents=True)
    srv.mkdir(parents=True)
    text = (DEPLOY / "systemd" / "jetcron.env").read_text()
    assert "NATS_URL=nats://127.0.0.1:4222" in text
    text = text.replace("nats://127.0.0.1:4222", shared_nats.url) + f"JETCRON_NAMESPACE={namespace}\n"
    (etc / "jetcron.env").write_text(text)
    for name in [*ACTORS[:-1], f"executor-{INSTANCE}"]:
        (etc / f"{name}.env").write_text("HTTP_PORT=0\n")  # any free one; the log says which
    (srv / "reports.py").write_text(REPORTS)
    return tmp_path


@pytest.mark.parametrize("actor", ACTORS)
async def test_unit_starts_its_actor_and_stops_it(actor: str, machine: Path) -> None:
    base = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
    unit = Unit(actor)
    environment = base | unit.environment(machine)
    await run(["init"], environment, machine)
    syncing = await start(Unit("cron-sync"), environment, machine) if actor == "executor" else None
    try:
        started = await start(unit, environment, machine)
        try:
            port = await reported_port(started, actor)
            await until_ready(port)
        finally:
            started.send_signal(signal.SIGTERM)
        assert await started.wait() == 0
    finally:
        if syncing is not None:
            syncing.terminate()
            await syncing.wait()


async def run(verb: list[str], environment: dict[str, str], cwd: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("jetcron"), *verb), env=environment, cwd=cwd
    )
    assert await process.wait() == 0


async def start(unit: Unit, environment: dict[str, str], machine: Path) -> asyncio.subprocess.Process:
    where = machine / unit.values.get("WorkingDirectory", ["/"])[0].lstrip("/")
    return await asyncio.create_subprocess_exec(
        *unit.command(environment), env=environment, cwd=where, stderr=asyncio.subprocess.PIPE
    )


async def reported_port(process: asyncio.subprocess.Process, actor: str) -> int:
    """The port its first lines name; the rest of its log is read away, so that it never waits for us."""
    assert process.stderr is not None
    said = []
    async with asyncio.timeout(20):
        while line := await process.stderr.readline():
            said.append(line.decode())
            entry = json.loads(line)
            if entry["event"] == "started" and entry.get("actor") == actor:
                drain = asyncio.create_task(process.stderr.read())
                process.drained = drain  # type: ignore[attr-defined]  # kept as long as the process
                return int(entry["http"])
    raise AssertionError("it ended:\n" + "".join(said))


async def until_ready(port: int) -> None:
    async with asyncio.timeout(20):
        while (answer := await asyncio.to_thread(get, f"http://127.0.0.1:{port}/readyz"))[0] != 200:
            assert answer[0] == 503, answer
            await asyncio.sleep(0.05)
    assert (await asyncio.to_thread(get, f"http://127.0.0.1:{port}/livez"))[0] == 200
    status, metrics = await asyncio.to_thread(get, f"http://127.0.0.1:{port}/metrics")
    assert (status, "jetcron_clock_offset_seconds" in metrics) == (200, True)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_there_is_one_unit_for_each_actor_and_no_other() -> None:
    names = {
        file.name.removesuffix(".service").removesuffix("@") for file in DEPLOY.glob("systemd/*.service")
    }
    assert names == set(ACTORS)
    assert names <= set(verbs())


@pytest.mark.parametrize("actor", ACTORS)
def test_unit_restarts_and_waits_for_the_grace_period(actor: str) -> None:
    unit = Unit(actor)
    assert unit.one("Restart") == "always"
    assert unit.one("StartLimitIntervalSec") == "0"
    assert int(unit.one("TimeoutStopSec")) > Settings.model_fields["grace"].default
    assert unit.one("WantedBy") == unit.one("PartOf") == "jetcron.target"
    assert (DEPLOY / "systemd" / "jetcron.target").exists()
    assert unit.one("NoNewPrivileges") == "yes"
    assert unit.one("User") == "jetcron"


def test_no_two_units_of_a_machine_take_one_port() -> None:
    ports = [Unit(actor).one("Environment") for actor in ACTORS]
    assert len(set(ports)) == len(ACTORS)


def test_nats_configuration_is_accepted(tmp_path: Path) -> None:
    for name in ("nats-server.conf", "users.conf"):
        check(DEPLOY / "nats" / name)
    # Together too, as its last line proposes.
    text = (DEPLOY / "nats" / "nats-server.conf").read_text()
    assert '\n#include "users.conf"' in text
    (tmp_path / "nats-server.conf").write_text(text.replace('#include "users', 'include "users'))
    (tmp_path / "users.conf").write_text((DEPLOY / "nats" / "users.conf").read_text())
    check(tmp_path / "nats-server.conf")


def check(file: Path) -> None:
    done = subprocess.run(
        [binary(), "-c", file, "-t"], capture_output=True, text=True, env=os.environ | PASSWORDS
    )
    assert done.returncode == 0, done.stderr


def test_nats_configuration_keeps_monitoring_on_the_machine() -> None:
    text = (DEPLOY / "nats" / "nats-server.conf").read_text()
    assert re.search(r'^http: "127\.0\.0\.1:\d+"$', text, re.M)
    assert re.search(r'^listen: "127\.0\.0\.1:4222"$', text, re.M)
    needed = ".".join(map(str, MIN_SERVER))
    assert f"Needs {needed} or later" in text


@contextlib.asynccontextmanager
async def deployed_server(folder: Path) -> AsyncIterator[str]:
    """A server of deploy/nats, with its users: its own files but for the ports and the place of its store."""
    text = (DEPLOY / "nats" / "nats-server.conf").read_text()
    for given, taken in (
        ('listen: "127.0.0.1:4222"', 'listen: "127.0.0.1:-1"'),
        ('http: "127.0.0.1:8222"', 'http: "127.0.0.1:-1"'),
        ('"/var/lib/nats"', f'"{folder}/store"'),
        ('#include "users.conf"', 'include "users.conf"'),
    ):
        assert given in text
        text = text.replace(given, taken)
    (folder / "nats-server.conf").write_text(text)
    (folder / "users.conf").write_text((DEPLOY / "nats" / "users.conf").read_text())
    server = await asyncio.create_subprocess_exec(
        *(binary(), "-c", folder / "nats-server.conf"), env=os.environ | PASSWORDS, stderr=subprocess.PIPE
    )
    assert server.stderr is not None
    try:
        port = None
        async with asyncio.timeout(20):
            while (line := await server.stderr.readline()) and b"Server is ready" not in line:
                listening = re.search(rb"Listening for client connections on \S+:(\d+)", line)
                port = int(listening[1]) if listening else port
        assert port is not None, "it did not start"
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.kill()
        await server.wait()


async def test_publishers_reach_events_alone(tmp_path: Path) -> None:
    refused: list[Exception] = []

    async def note(error: Exception) -> None:
        refused.append(error)

    async with deployed_server(tmp_path) as url:
        login = {"NATS_URL": url, "NATS_USER": "jetcron", "NATS_PASSWORD": "one"}
        await run(["init"], os.environ | login, tmp_path)
        async with await nats.connect(url, user="publisher", password="two", error_cb=note) as publisher:
            ack = await publisher.jetstream().publish("jetcron.event.order.placed", b"{}")
            assert ack.stream == "JETCRON_EVENTS"
            for subject in ("jetcron.run.ready.reports.daily", "jetcron.sync.reports", "$JS.API.INFO"):
                with pytest.raises(nats.errors.TimeoutError):
                    await publisher.request(subject, b"{}", timeout=0.5)
            await until(lambda: len(refused) >= 3, what="the server refused each")
    assert len(refused) == 3
    assert all("permissions violation" in str(error).lower() for error in refused)


# compose.yaml.


def verbs() -> dict[str, Any]:
    group = typer.main.get_command(cli)
    return group.commands  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def compose() -> dict[str, Any]:
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    read: dict[str, Any] = read_yaml(text)
    return read


def ours(compose: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, service) for name, service in compose["services"].items() if service["image"] == "jetcron")


def test_compose_runs_every_actor_by_its_verb(compose: dict[str, Any]) -> None:
    for name, service in ours(compose):
        verb, *arguments = service["command"]
        assert verb == name
        command = verbs()[verb]
        command.make_context(verb, arguments)  # refuses what is no option or argument of it
    assert {*ACTORS, "init"} <= set(compose["services"])


def test_compose_starts_in_order_and_stops_in_time(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["init"]["depends_on"] == {"nats": {"condition": "service_healthy"}}
    for actor in ACTORS:
        service = services[actor]
        assert service["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
        assert service["environment"]["NATS_URL"] == "nats://nats:4222"
        assert service["restart"] == "always"
        assert int(service["stop_grace_period"].removesuffix("s")) > Settings.model_fields["grace"].default
        probe = service["healthcheck"]["test"][-1]
        assert f":{service['command'][-1]}/livez" in probe


def test_compose_names_files_that_exist(compose: dict[str, Any]) -> None:
    build = compose["services"]["init"]["build"]
    context = (DEPLOY / "compose" / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).is_file()
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / "compose" / source).is_file(), source
    tag = compose["services"]["nats"]["image"].partition(":")[2]
    assert tuple(map(int, re.findall(r"\d+", tag))) >= MIN_SERVER[:2]


def test_dockerfile_copies_what_there_is() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M) for word in line.split()]
    assert {"pyproject.toml", "README.md", "LICENSE", "actors", "protocol"} <= set(copied)
    allowed = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in allowed, path
    assert re.search(r'^ENTRYPOINT \["jetcron"\]$', text, re.M)
