"""One stack for many tests of durable runs: registered functions that play whatever code a test gives them.

Owns two apps, each with an executor: runs of `away` leave it whenever all their branches wait, those of `here` wait
inside it. A test hands over a coroutine function; nothing of it is registered, so that no test waits for cron-sync.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from jetcron import App, Context, Retry, RunFailed
from jetcron.client import Client
from jetcron.events import Event
from jetcron.history import History
from jetcron.runs import RunHandle
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Entry, Running, Stack, until

Code = Callable[..., Awaitable[Any]]

QUICK = Retry(attempts=3, waits=[0.02], jitter=0)
"""Three attempts, nearly at once."""
AWAY, HERE = "away", "here"
AWHILE = 0.3
"""Seconds for which a run of `away` leaves it: on a busy machine, less may be over before all of it waits."""
LOSSES = {"ack_wait": 1.0, "executor_ttl": 1.0, "executor_beat": 0.2}
"""Settings under which a dead executor is found dead within two seconds."""


@dataclass
class Stage:
    """A stack with cron-sync, event-router, a client, and an executor of each app."""

    stack: Stack
    client: Client
    functions: Mapping[str, "Options"]
    apps: dict[str, App] = field(default_factory=dict)
    executors: dict[str, Running] = field(default_factory=dict)
    codes: dict[int, Code] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=count)

    async def play(self, code: Code, data: Any = None, *, on: str = f"{AWAY}.once", **more: Any) -> RunHandle:
        """Start a run of this code, which gets (ctx, data), as the function `on`; see `house_of`."""
        number = next(self._numbers)
        self.codes[number] = code
        return await self.client.run(on, {"code": number, "data": data}, **more)

    async def result(self, code: Code, data: Any = None, *, on: str = f"{AWAY}.once") -> Any:
        """What a run of this code returns."""
        return await (await self.play(code, data, on=on)).result(PATIENCE)

    async def failure(self, code: Code, data: Any = None, *, on: str = f"{AWAY}.once") -> RunFailed:
        """What a run of this code fails with."""
        return await self.failure_of(await self.play(code, data, on=on))

    async def failure_of(self, handle: RunHandle) -> RunFailed:
        """What a run fails with."""
        with pytest.raises(RunFailed) as raised:
            await handle.result(PATIENCE)
        return raised.value

    async def send(self, *events: Event) -> None:
        """Publish events; returns once they are routed."""
        await self.client.send(events)
        await self.stack.settled(self.stack.names.events, self.stack.names.event_router)

    async def waiting(self, handle: RunHandle, times: int = 1) -> Entry:
        """Wait until a run has left its executor so many times; the last such entry of its journal."""
        return (await self.entries("waiting", times, run=handle.id))[times - 1]

    async def opened(self, handle: RunHandle, times: int = 1) -> list[Entry]:
        """Wait until so many steps of a run have begun to wait."""
        return await self.entries("opened", times, run=handle.id)

    async def entries(self, kind: str, count: int = 1, *, run: str = "", function: str = "") -> list[Entry]:
        """Wait until so many journal entries of this kind are stored."""
        return await self.stack.journal.wait(kind, count, run=run, function=function)

    async def add(self, name: str) -> Running:
        """Register an app of this name and start an executor of it."""
        app = self.apps[name] = App(name)

        async def play(ctx: Context, data: Any = None) -> Any:
            return await self.codes[data["code"]](ctx, data["data"])

        for id, options in {"once": {"retries": 0}, "again": {"retry": QUICK}, **self.functions}.items():
            app.function(id=id, **options)(play)
        await self.stack.register(app)
        self.executors[name] = await self.execute(name)
        return self.executors[name]

    async def restart(self, app: str) -> None:
        """Kill the executor of an app and start another."""
        await self.executors[app].kill()
        self.executors[app] = await self.execute(app)

    async def execute(self, app: str) -> Running:
        """Start an executor of an app."""
        return await self.stack.execute(self.apps[app], short_wait=60.0 if app == HERE else 0.0)


Options = Mapping[str, Any]


@contextlib.asynccontextmanager
async def stage_of(
    server: NatsServer, functions: Mapping[str, Options] | None = None, **settings: Any
) -> AsyncIterator[Stage]:
    """A stage whose apps have the functions `once`, that has no retries, `again`, that has two, and these."""
    # Runs that wait in `here` when the tests are over are not waited for.
    async with Stack(server, **{"grace": 0.2, **settings}) as stack, Client(stack.settings) as client:
        await stack.start("cron-sync", "event-router")
        stage = Stage(stack, client, functions or {})
        for name in (AWAY, HERE):
            await stage.add(name)
        yield stage


class Calls:
    """Functions for steps that note how often they were called."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    async def note(self, value: Any = None) -> Any:
        self.made.append(value)
        return value

    def plainly(self, value: Any = None) -> Any:
        self.made.append(value)
        return value

    async def failing(self, times: int, value: Any = None) -> Any:
        """Fails so many times, then returns `value`."""
        self.made.append(value)
        if self.made.count(value) <= times:
            raise ValueError(f"failure {self.made.count(value)} of {value}")
        return value


def outcomes(history: History) -> list[str | None]:
    """How each attempt ended."""
    return [attempt.outcome for attempt in history.attempts]


def ops(history: History) -> list[tuple[str, str]]:
    """The finished steps, in the order they were recorded, with what each does."""
    return [(done.id, done.op) for done in history.steps.values()]


async def all_of(handles: Sequence[RunHandle]) -> list[Any]:
    """Their results."""
    return list(await asyncio.gather(*(handle.result(PATIENCE) for handle in handles)))


__all__ = [
    "AWAY",
    "AWHILE",
    "HERE",
    "LOSSES",
    "QUICK",
    "Calls",
    "Stage",
    "all_of",
    "ops",
    "outcomes",
    "stage_of",
    "until",
]
