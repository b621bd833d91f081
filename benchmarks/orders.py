"""Orders about schedules: how many a second one cron-sync creates, changes and deletes, and how fast they are listed.

Thirty of them share an expression, as tenants' schedules do; each has a zone, a payload
and a tag. The listing is that of the client, from the call to the page. `jetcron schedules apply` is measured as whole
commands, from the start of Python to their end: reading the file, comparing it with what stands, and showing what
changes are in it. Beside each stands what a plain loop of Python took then, for small machines are not always as fast.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.stack import Actor, Stack, percentile, resident, spent, stack
from jetcron import App, Client, Context
from jetcron.registration import register
from jetcron.schedules.plan import Plan

COUNT = 100_000
CHANGED = 10_000
LISTINGS = 5
ZONES = ("Europe/Prague", "America/New_York", "Asia/Tokyo", "UTC")

app = App("bench")


@app.function()
async def report(ctx: Context, wanted: dict[str, Any]) -> None:
    """What the schedules run."""


def definition(number: int) -> dict[str, Any]:
    minute, hour = (number // 30) % 60, (number // 1800) % 24
    return {
        "id": f"tenant-{number}",
        "function": "bench.report",
        "cron": f"{minute} {hour} * * *",
        "timezone": ZONES[number % len(ZONES)],
        "payload": {"tenant": number, "format": "pdf"},
        "tags": [f"plan-{number % 3}"],
    }


async def main(count: int) -> None:
    async with stack() as running:
        (cron_sync,) = await running.start(("cron-sync",))
        await register(running.bus, app, clock=running.bus.clock, wait=30)
        async with Client(running.settings) as client:
            await _writing(running, client, cron_sync, count)
            await _listing(client, count)
    async with stack() as running:
        (cron_sync,) = await running.start(("cron-sync",))
        await register(running.bus, app, clock=running.bus.clock, wait=30)
        await _applying(running, cron_sync, count)


async def _applying(running: Stack, cron_sync: Actor, count: int) -> None:
    server = running.server.pid
    wanted = [definition(number) for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="jetcron-bench-") as folder:
        file = Path(folder) / "schedules.jsonl"
        await _command(running, folder, "--version")  # as it is from then on, compiled
        for what, payload in (("new", 1), ("changed", 2), ("changed once more", 3), ("unchanged", 3)):
            lines = (json.dumps(one | {"payload": {"format": payload}}) for one in wanted)
            file.write_text("\n".join(lines))
            pace, before, began = _pace(), (cron_sync.cpu(), spent(server)), time.perf_counter()
            await _command(running, folder, "schedules", "apply", str(file), "--yes")
            took = time.perf_counter() - began
            print(
                f"jetcron schedules apply, {what}: {count / took:,.0f} schedules/s ({count:,} in {took:.1f} s; "
                f"cron-sync {cron_sync.cpu() - before[0]:.1f} s of CPU, nats-server {spent(server) - before[1]:.1f} s; "
                f"a plain loop took {pace:.2f} s)"
            )


async def _command(running: Stack, folder: str, *arguments: str) -> None:
    environment = {**os.environ, "NATS_URL": running.settings.nats_url, "PYTHONPYCACHEPREFIX": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    quiet = asyncio.subprocess.DEVNULL
    command = [sys.executable, "-m", "jetcron", *arguments]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=quiet, stderr=quiet)
    if await process.wait():
        raise RuntimeError(f"{' '.join(command)} failed: {process.returncode}")


def _pace() -> float:
    """Seconds of CPU for a loop that is always the same."""
    began = time.process_time()
    total = 0
    for number in range(5_000_000):
        total += number * number
    return time.process_time() - began


async def _writing(running: Stack, client: Client, cron_sync: Actor, count: int) -> None:
    server = running.server.pid

    async def timed(what: str, number: int, work: Callable[[], Awaitable[object]]) -> None:
        before, began = cron_sync.cpu(), time.perf_counter()
        await work()
        took = time.perf_counter() - began
        print(
            f"{what}: {number / took:,.0f} schedules/s ({number:,} in {took:.1f} s; cron-sync "
            f"{cron_sync.cpu() - before:.1f} s of CPU, {cron_sync.memory():.0f} MB; server {resident(server):.0f} MB)"
        )

    wanted = [definition(number) for number in range(count)]
    some = [f"tenant-{number}" for number in range(min(CHANGED, count))]
    changed = [one | {"payload": {"tenant": 0}} for one in wanted[: len(some)]]

    plans: list[Plan] = []

    async def compare() -> None:
        plans.append(await client.schedules.plan(changed))

    await timed("create_many", count, lambda: client.schedules.create_many(wanted))
    await timed("create_many, all of it once more", count, lambda: client.schedules.create_many(wanted))
    await timed("plan, payloads changed", len(some), compare)
    await timed("apply, payloads changed", len(some), lambda: client.schedules.apply(plans[0]))
    await timed("pause", len(some), lambda: client.schedules.pause(*some, wait=120))
    await timed("unpause", len(some), lambda: client.schedules.unpause(*some, wait=120))


async def _listing(client: Client, count: int) -> None:
    async def timed(what: str, work: Callable[[], Awaitable[object]]) -> None:
        took = []
        for _ in range(LISTINGS):
            began = time.perf_counter()
            await work()
            took.append(time.perf_counter() - began)
        print(f"{what}, of {count:,}: median {percentile(took, 0.5):.2f} s, worst {max(took):.2f} s")

    schedules = client.schedules
    first = await schedules.list()
    await timed("first page of 50", lambda: schedules.list())
    await timed("second page", lambda: schedules.list(after=first.after))
    await timed("within an hour", lambda: schedules.list(within=3_600))
    await timed("of a tag that a third has", lambda: schedules.list(tag="plan-1"))
    await timed("the load of the next day", lambda: schedules.load())
    await timed("one, with all that surrounds it", lambda: schedules.show("tenant-7"))


def run(count: int = COUNT) -> None:
    uvloop.run(main(count))
