"""An example as a test plays it: on a real server, with executors that may die, and the outside world in a file.

Owns what the tests of the examples share: what a docstring says to type, as it would reach the server; how often the
functions of steps were called; what is in the outside world, in the order in which it came there. Every example
keeps that in the table `effects` of the file `WORLD`.
"""

import contextlib
import functools
import inspect
import json
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jetcron import Client, Event, RunFailed
from jetcron.clock import Clock, SystemClock
from jetcron.runs import RunHandle
from jetcron_protocol.ids import event_run_id
from tests.support.faults import Die
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Running, Stack, until
from tests.support.time_travel import TRAVELLING, TimeTravel, TravelClock

DEATHS = {"ack_wait": 1.0, "executor_ttl": 1.0, "executor_beat": 0.2}
"""Settings under which a dead executor's runs are taken over within two seconds."""


@dataclass(frozen=True, slots=True)
class Trap:
    """The executor dies when this function is called next with these arguments, and its step is recorded."""

    function: str
    arguments: tuple[Any, ...]
    before: bool


@dataclass
class Play:
    """An example's app on a server, with one executor at a time; `calls` counts those of its functions."""

    stack: Stack
    client: Client
    module: ModuleType
    clock: Clock
    calls: Counter[str] = field(default_factory=Counter)
    executors: list[Running] = field(default_factory=list)
    traps: list[Trap] = field(default_factory=list)

    async def execute(self) -> None:
        """Start the next executor."""
        self.executors.append(await self.stack.execute(self.module.app, clock=self.clock))

    async def send(self, function: str, name: str, data: Any) -> RunHandle:
        """Send an event; the run of this function that it starts."""
        (id,) = await self.client.send(Event(name, data))
        started = f"{self.module.app.name}.{function}"
        return RunHandle(self.stack.bus, started, event_run_id(started, name, id))

    async def result(self, function: str, name: str, data: Any) -> Any:
        """Send an event; what the run of this function returns."""
        return await (await self.send(function, name, data)).result(PATIENCE)

    def die_in(self, function: str, *arguments: Any, before: bool = False) -> None:
        """Kill the executor once this function was called: when its step is recorded, or just `before` that.

        It must be a step's, or called by one, and no other may be recorded meanwhile. `arguments`: those that
        it is called with first.
        """
        self.traps.append(Trap(function, arguments, before))

    async def take_over(self) -> None:
        """Wait until the executor has died, and start another."""
        await until(lambda: self.executors[-1].bus.dead, what="the executor's death")
        await self.executors[-1].kill()
        await self.execute()

    async def forward(self, span: timedelta) -> None:
        """Let time pass."""
        assert isinstance(self.clock, TravelClock)
        await TimeTravel(self.stack, self.clock).forward(span)

    def world(self) -> dict[str, str]:
        """What was done in the outside world, by its key, in order."""
        if not self.module.WORLD.exists():
            return {}
        with contextlib.closing(sqlite3.connect(self.module.WORLD)) as db:
            return dict(db.execute("SELECT key, what FROM effects ORDER BY rowid").fetchall())

    def watch(self, name: str, function: Any) -> Callable[..., Any]:
        """`function`, its calls counted, and deadly where it is trapped."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            for trap in list(self.traps):
                if trap.function == name and trap.arguments == args[: len(trap.arguments)]:
                    self.traps.remove(trap)
                    self.executors[-1].bus.arm(Die(after=not trap.before), on=".journal.")
            return function(*args, **kwargs)

        return call


@contextlib.asynccontextmanager
async def playing(
    server: NatsServer,
    module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    *watched: str,
    travelling: bool = False,
    **settings: Any,
) -> AsyncIterator[Play]:
    """An example with everything it needs; the functions to watch, by name.

    `travelling`: its executors and the client have a clock that `Play.forward` sets.
    """
    clock = TravelClock() if travelling else SystemClock()
    settings |= TRAVELLING if travelling else {}
    async with Stack(server, **DEATHS, **settings) as stack, Client(stack.settings, clock=clock) as client:
        play = Play(stack, client, module, clock)
        for name in watched:
            monkeypatch.setattr(module, name, play.watch(name, getattr(module, name)))
        await stack.start("cron-sync", "event-router")
        await stack.register(module.app)
        await play.execute()
        yield play


def away(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the outside world of an example into a folder of the test's own."""
    monkeypatch.setattr(module, "WORLD", folder / "world.db")


async def failure(handle: RunHandle) -> RunFailed:
    """What a run fails with."""
    with pytest.raises(RunFailed) as raised:
        await handle.result(PATIENCE)
    return raised.value


async def steps(handle: RunHandle) -> list[str]:
    """The steps that are done, in order."""
    return list((await handle.history()).steps)


async def executors(handle: RunHandle) -> int:
    """How many have had a run."""
    return len({attempt.executor for attempt in (await handle.history()).attempts})


def typed(module: ModuleType) -> list[list[str]]:
    """The commands a docstring says to type, as words; variables before and remarks after them are left out."""
    lines = (inspect.getdoc(module) or "").splitlines()
    commands = [
        shlex.split(re.split(r" {3,}", line.strip())[0])
        for line in lines
        if re.match(r"    (\w+=\S+ )?jetcron ", line)
    ]
    return [words[words.index("jetcron") :] for words in commands]


def events(module: ModuleType, name: str) -> list[Any]:
    """The data of each event of this name that a docstring says to send, in order."""
    return [json.loads(words[3]) for words in typed(module) if words[1:3] == ["send", name]]
