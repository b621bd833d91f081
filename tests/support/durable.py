"""Workflows in real processes: two copies of each actor, a server of their own, and what is done to them.

Owns the processes and the mischief. What the workflows come to, `workflow_play` judges.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

from jetcron.bus import Bus
from jetcron.settings import Settings
from tests.support.chaos import FAST, Member, unexpected, until
from tests.support.nats_server import NatsServer
from tests.support.workflow_play import Diary, Play

KINDS = ("cron-sync", "event-router", "executor")
COPIES = 2
APP = "tests.support.workflow_app:app"
TTL = float(FAST["JETCRON_EXECUTOR_TTL"])
SETTINGS = FAST | {
    "JETCRON_LOST_ATTEMPTS": "1000",
    "JETCRON_SHORT_WAIT": "0.3",
    "JETCRON_MAX_INLINE": "2048",
    "JETCRON_GRACE": "0.2",
}
HARMS = {
    "executor killed": 30,
    "executor told to stop": 20,
    "router killed": 10,
    "both executors killed": 6,
    "all killed": 3,
    "executor frozen past its lease": 12,
    "router frozen": 6,
    "server killed": 6,
    "server away": 3,
    "server frozen": 3,
}
"""What may happen, by weight."""


class Durable:
    """The processes, and a play for the workflows."""

    def __init__(self, folder: Path, server: NatsServer, seed: int) -> None:
        self.server = server
        notes, marks = folder / "notes", folder / "marks"
        marks.mkdir()
        notes.touch()
        environment = SETTINGS | {
            "NATS_URL": server.url,
            "WORKFLOW_NOTES": str(notes),
            "WORKFLOW_MARKS": str(marks),
        }
        fast = {key.removeprefix("JETCRON_").lower(): value for key, value in SETTINGS.items()}
        self.bus = Bus(Settings.load(nats_url=server.url, **fast), name="durable")
        self.diary = Diary(self.bus)
        self.play = Play(self.bus, self.diary, notes, seed, name=f"w{seed}")
        self.members = [
            Member(kind, number, folder, dict(environment), APP) for kind in KINDS for number in range(COPIES)
        ]
        self.done: Counter[str] = Counter()

    def of(self, *kinds: str) -> list[Member]:
        return [member for member in self.members if member.kind in kinds]

    async def open(self) -> None:
        """Apply the topology, start everything, wait until every copy runs and the app is registered."""
        await self.bus.apply_topology()
        await self.diary.open()
        await self.all_begun()

        async def registered() -> bool:
            names = self.bus.names
            return len(await self.bus.subjects(names.registry, names.functions)) == 4

        await until(registered, "the app is registered")

    async def all_begun(self) -> None:
        """Thaw and start whatever stands still; return when every copy runs."""
        if not self.server.running:
            await self.server.start()
        self.server.resume()
        for member in self.members:
            member.thaw()
            member.start()
        await until(lambda: all(member.begun() for member in self.members), "every actor runs")

    async def tend(self) -> None:
        """Keep the processes running, until cancelled."""
        while True:
            if self.server.running:
                for member in self.members:
                    member.tend()
            await asyncio.sleep(0.1)

    async def harm(self, chance: Random, *, server: bool) -> None:
        """One bad thing after another, until cancelled. `server`: to that, too."""
        harms = {kind: weight for kind, weight in HARMS.items() if server or "server" not in kind}
        while True:
            await asyncio.sleep(chance.uniform(0.2, 1.6))
            kind = chance.choices(list(harms), list(harms.values()))[0]
            await self._do(kind, chance)
            self.done[kind] += 1

    async def _do(self, kind: str, chance: Random) -> None:
        match kind:
            case "executor killed":
                chance.choice(self.of("executor")).kill()
            case "executor told to stop":
                chance.choice(self.of("executor")).tell()
            case "router killed":
                chance.choice(self.of("event-router")).kill()
            case "both executors killed":
                for member in self.of("executor"):
                    member.kill()
            case "all killed":
                for member in self.members:
                    member.kill()
            case "executor frozen past its lease":
                self._freeze(chance.choice(self.of("executor")), TTL + chance.uniform(0.2, 2.5))
            case "router frozen":
                self._freeze(chance.choice(self.of("event-router")), chance.uniform(0.3, 5))
            case "server killed" | "server away":
                await self.server.kill()
                await asyncio.sleep(0 if kind == "server killed" else chance.uniform(0.5, 4))
                await self.server.start()
            case "server frozen":
                self.server.pause()
                await asyncio.sleep(chance.uniform(0.2, TTL + 1))
                self.server.resume()

    def _freeze(self, member: Member, seconds: float) -> None:
        """For so long; whatever else happens meanwhile."""
        member.freeze()
        asyncio.get_running_loop().call_later(seconds, member.thaw)

    def unexpected(self) -> list[str]:
        """Ends of processes nobody here caused, and what their loops threw away but what workflows raise."""
        theirs = ("exception=Crash(", "exception=Hopeless(")
        return [line for line in unexpected(self.members) if not any(text in line for text in theirs)]

    async def problems(self) -> list[str]:
        """Everything that is not as it should be."""
        died = bool(self.done["server killed"] or self.done["server away"])
        return await self.play.problems(disturbed=True, server_died=died) + self.unexpected()


@contextlib.asynccontextmanager
async def durable(folder: Path, seed: int) -> AsyncIterator[Durable]:
    """A server and two copies of every actor; all of it ends with the context."""
    async with NatsServer(folder / "nats") as server:
        running = Durable(folder, server, seed)
        async with running.bus:
            tasks: list[asyncio.Task[None]] = []
            try:
                works = (running.diary.keep(), running.tend(), running.play.post())
                tasks = [asyncio.create_task(work) for work in works]
                await running.open()
                yield running
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for member in running.members:
                    member.kill(again=False)


async def disturbed(
    running: Durable, seconds: float, chance: Random, *, at_once: int, server: bool = True
) -> None:
    """Start workflows for so long while harm is done; return when all have ended in peace."""
    play = running.play
    harming = asyncio.create_task(running.harm(chance, server=server))
    try:
        async with asyncio.timeout(seconds):
            await play.all(1_000_000, chance, at_once=at_once, deadly=True)
    except TimeoutError:
        pass
    finally:
        harming.cancel()
        await asyncio.gather(harming, return_exceptions=True)
        await running.all_begun()
    await play.finished(patience=60)
