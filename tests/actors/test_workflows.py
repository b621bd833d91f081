"""Random workflows on a real server: undisturbed, and with executors and routers killed between any two writes.

Each must come to what was reckoned beside the product (`workflows.expected`). What is drawn, and what dies when,
follows from seeds; `make soak-durable` draws others, for longer, and kills real processes.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from tests.support.faults import Die, Fault, LoseAnswer, Refuse
from tests.support.nats_server import NatsServer
from tests.support.stack import Running, Stack
from tests.support.workflow_app import app
from tests.support.workflow_play import Diary, Play

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS: dict[str, Any] = {
    "ack_wait": 1.0,
    "executor_ttl": 1.0,
    "executor_beat": 0.2,
    "short_wait": 0.1,
    "max_inline": 2048,
    "lost_attempts": 1_000,
}
"""The dead are found dead soon, runs leave early and die as often as they must, large results are objects."""
WRITES = ("", "", "", ".event.", ".wait.", ".journal.", ".run.later.", ".run.ready.", "PURGE", "+ACK")
"""Parts of the names of what faults strike; those of rare writes, for most are entries of journals."""
HARMS: tuple[Fault, ...] = (Die(), Die(), Die(after=True), LoseAnswer(), Refuse())


@dataclass
class Company:
    """A stack with two routers and two executors of the workflows' app."""

    stack: Stack
    diary: Diary
    notes: Path
    actors: list[Running]
    dead: Counter[str] = field(default_factory=Counter)
    """How often each actor died."""
    _plays: "count[int]" = field(default_factory=count)

    @contextlib.asynccontextmanager
    async def play(self, seed: int) -> AsyncIterator[Play]:
        """Workflows that are under way only here."""
        self.diary.forget()
        play = Play(self.stack.bus, self.diary, self.notes, seed, name=str(next(self._plays)))
        posting = asyncio.create_task(play.post())
        try:
            yield play
        finally:
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)

    async def harm(self, chance: Random) -> None:
        """One fault after another in the writes of one actor after another, until cancelled."""
        try:
            while True:
                await asyncio.sleep(chance.uniform(0.01, 0.15))
                victim, fault = chance.choice(self.actors), chance.choice(HARMS)
                if chance.random() < 0.5:
                    victim.bus.disarm()
                where = chance.choice(WRITES)
                victim.bus.arm(fault, on=where, nth=chance.randrange(3 if where else 12))
        finally:
            for actor in self.actors:
                actor.bus.disarm()

    async def tend(self) -> None:
        """Start anew whoever died, until cancelled."""
        while True:
            for number, actor in enumerate(self.actors):
                if actor.bus.dead or actor.task.done():
                    await actor.kill()
                    self.dead[actor.name] += 1
                    self.actors[number] = await self.start(actor.name)
            await asyncio.sleep(0.02)

    async def start(self, name: str) -> Running:
        return await self.stack.execute(app) if name == "executor" else (await self.stack.start(name))[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def company(
    shared_nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Company]:
    folder = tmp_path_factory.mktemp("workflows")
    notes, marks = folder / "notes", folder / "marks"
    notes.touch()
    marks.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKFLOW_NOTES", str(notes))
        patch.setenv("WORKFLOW_MARKS", str(marks))
        async with Stack(shared_nats, **SETTINGS) as stack:
            await stack.start("cron-sync")
            await stack.register(app)
            diary = Diary(stack.bus)
            await diary.open()
            keeping = asyncio.create_task(diary.keep())
            found = Company(stack, diary, notes, [])
            found.actors = [await found.start(name) for name in ("event-router", "executor") * 2]
            yield found
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize("seed", range(2))
async def test_workflows_come_to_what_they_should(company: Company, seed: int) -> None:
    async with company.play(seed) as play:
        await play.all(60, Random(f"undisturbed {seed}"), at_once=20)
        await play.finished(patience=20)
        await play.judge(disturbed=False)


@pytest.mark.parametrize("seed", range(2))
async def test_workflows_come_to_the_same_whoever_dies_between_two_writes(
    company: Company, seed: int
) -> None:
    chance = Random(f"disturbed {seed}")
    dead_before = company.dead.total()
    async with company.play(seed) as play:
        tending = asyncio.create_task(company.tend())
        harming = asyncio.create_task(company.harm(chance))
        try:
            await play.all(100, chance, at_once=30)
            harming.cancel()
            await play.finished(patience=30)
        finally:
            for task in (harming, tending):
                task.cancel()
            await asyncio.gather(harming, tending, return_exceptions=True)
        assert company.dead.total() > dead_before + 10
        await play.judge(disturbed=True)
