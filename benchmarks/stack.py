"""A real nats-server and real actors, each a process of its own, for a measurement.

Owns starting and ending them. Figures are the measurement's; this only keeps the processes.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from jetcron.bus import Bus
from jetcron.health_checker import arm
from jetcron.settings import Settings
from tests.support.nats_server import NatsServer

ROOT = Path(__file__).resolve().parents[1]


class Actor:
    """One actor as its command starts it, with its endpoint."""

    def __init__(self, settings: Settings, *command: str, environment: dict[str, str] | None = None) -> None:
        self.command = command
        variables = {
            **os.environ,
            "NATS_URL": settings.nats_url,
            "JETCRON_LOG_FORMAT": "json",
            "JETCRON_LOG_LEVEL": "info",
            **(environment or {}),
        }
        self._log = tempfile.NamedTemporaryFile(prefix="jetcron-bench-", suffix=".log", delete=False)  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jetcron", *command, "--http", "0"],
            cwd=ROOT,
            env=variables,
            stderr=self._log,
            stdout=self._log,
        )
        self.port = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return Path(self._log.name).read_text()

    async def ready(self, seconds: float = 120) -> None:
        """Wait until /readyz says so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.command} ended: {self.log()[-3000:]}")
            if not self.port:
                found = re.search(r'"http": ?(\d+)', self.log())
                self.port = int(found[1]) if found else 0
            if self.port:
                with contextlib.suppress(OSError):
                    self._get("/readyz")
                    return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{self.command} is not ready: {self.log()[-3000:]}")

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self._get("/metrics").splitlines():
            if (
                line.startswith(name)
                and (line[len(name)] in "{ ")
                and all(f'{k}="{v}"' in line for k, v in labels.items())
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def memory(self) -> float:
        """Resident memory in MB."""
        return resident(self.pid)

    def cpu(self) -> float:
        """CPU seconds used so far."""
        return spent(self.pid)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        os.unlink(self._log.name)


@dataclass(frozen=True)
class Collection:
    """One of nats-server's garbage collections: from when to when, by the monotonic clock, and its CPU seconds."""

    began: float
    ended: float
    cpu: float

    def within(self, began: float, ended: float) -> float:
        """CPU seconds of it between two times, as if it took as much at each."""
        shared = min(ended, self.ended) - max(began, self.began)
        return self.cpu * max(shared, 0.0) / (self.ended - self.began)


_COLLECTED = re.compile(r"^gc \d+ @([\d.]+)s \d+%: ([\d.+]+) ms clock, ([\d.+/]+) ms cpu", re.MULTILINE)


def started(pid: int) -> float:
    """When a process was started, by the monotonic clock (Linux, proc_pid_stat(5), field 22)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return since_boot - time.clock_gettime(time.CLOCK_BOOTTIME) + time.monotonic()


def spent(pid: int) -> float:
    """CPU seconds a process has used so far, to the nanosecond (Linux, clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


class Stack:
    """A server with the topology applied, and actors started on it."""

    def __init__(self, server: NatsServer, settings: Settings, bus: Bus) -> None:
        self.server = server
        self.settings = settings
        self.bus = bus
        self.actors: list[Actor] = []

    def collections(self) -> list[Collection]:
        """The server's garbage collections so far, as the runtime of Go tells them (GODEBUG, gctrace)."""
        start, found = started(self.server.pid), []
        for at, clock, cpu in _COLLECTED.findall(self.server.log()):
            took = sum(map(float, clock.split("+"))) / 1000
            began = start + float(at)
            found.append(Collection(began, began + took, sum(map(float, re.split("[+/]", cpu))) / 1000))
        return found

    async def start(
        self, *commands: tuple[str, ...], environment: dict[str, str] | None = None
    ) -> list[Actor]:
        started = [Actor(self.settings, *command, environment=environment) for command in commands]
        self.actors += started
        for actor in started:
            await actor.ready()
        return started

    def stop(self, actor: Actor) -> None:
        """End one of them."""
        self.actors.remove(actor)
        actor.stop()


@contextlib.asynccontextmanager
async def stack() -> AsyncIterator[Stack]:
    """A server in a temporary folder; everything ends with the context."""
    with tempfile.TemporaryDirectory(prefix="jetcron-bench-") as folder:
        async with NatsServer(Path(folder) / "nats", environment={"GODEBUG": "gctrace=1"}) as server:
            settings = Settings.load(nats_url=server.url)
            async with Bus(settings, name="benchmark") as bus:
                await bus.apply_topology()
                await arm(bus, settings)
                running = Stack(server, settings, bus)
                try:
                    yield running
                finally:
                    for actor in running.actors:
                        actor.stop()


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")
