"""The functions that run while actors die. Each notes what its code does, so that a test can account for it.

A note is one line, written by one `write` to a file opened for appending: whoever is killed leaves whole lines.
The file is named by CHAOS_NOTES; gates, files a function waits for, lie in the folder CHAOS_GATES.
"""

import asyncio
import json
import os
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

from jetcron import App, Context, Event, Retry

app = App("chaos")

PERIODS: dict[str, tuple[int, ...]] = {
    "chaos.beat-0": (1000,),
    "chaos.beat-1": (1000,),
    "chaos.pair": (2000, 3000),
    "chaos.every": (2000,),
    "chaos.zoned": (5000,),
    "chaos.spread": (1000,),
    "chaos.latest": (1000,),
    "chaos.all": (1000,),
    "chaos.skip": (1000,),
}
"""When each scheduled function is due: at every multiple of its periods since 1970, in ms. Said here a second
time, without cron, so that a fault in the product's own reckoning cannot hide itself."""


@cache
def _notes() -> int:
    return os.open(os.environ["CHAOS_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note(what: str, ctx: Context) -> None:
    """Append one line saying that this code did `what`."""
    line = {
        "what": what,
        "run": ctx.run_id,
        "function": ctx.function_id,
        "scheduled_at": round(ctx.scheduled_at.timestamp() * 1000) if ctx.scheduled_at else None,
        "event": ctx.event.id if ctx.event else None,
        "attempt": ctx.attempt,
        "at": round(time.time() * 1000),
        "pid": os.getpid(),
    }
    os.write(_notes(), json.dumps(line).encode() + b"\n")


async def _beat(ctx: Context) -> None:
    note("start", ctx)
    await asyncio.sleep(0.02)
    note("end", ctx)


for number in range(2):
    app.function(id=f"beat-{number}", cron="* * * * * *")(_beat)
app.function(id="pair", cron=["*/2 * * * * *", "*/3 * * * * *"])(_beat)
app.function(id="every", cron="@every 2s")(_beat)
app.function(id="zoned", cron="*/5 * * * * *", timezone="America/New_York")(_beat)
app.function(id="spread", cron="* * * * * *", jitter=2)(_beat)
app.function(id="latest", cron="* * * * * *", catch_up="latest")(_beat)
app.function(id="all", cron="* * * * * *", catch_up="all")(_beat)
app.function(id="skip", cron="* * * * * *", catch_up="skip")(_beat)

app.function(id="order", on="chaos.order")(_beat)
app.function(id="relayed", on="chaos.relayed")(_beat)


@app.function(on="chaos.relay")
async def relay(ctx: Context, data: dict[str, Any]) -> None:
    """Sends another event, once, however often it is begun."""
    note("start", ctx)
    await ctx.step.send("on", Event("chaos.relayed", data=data))
    note("end", ctx)


@app.function(on="chaos.flaky", retry=Retry(attempts=3, waits=(1,), jitter=0))
async def flaky(ctx: Context) -> None:
    """Fails at first, so that a second turn is held and released."""
    note("start", ctx)
    if ctx.attempt == 0:
        raise RuntimeError("at first it fails")
    note("end", ctx)


@app.function(on="chaos.deadly")
async def deadly(ctx: Context, data: dict[str, Any]) -> None:
    """At its first beginning it has its process killed, so many ms after its code has ended."""
    note("start", ctx)
    marker = Path(os.environ["CHAOS_GATES"], ctx.run_id)
    if not marker.exists():  # noqa: ASYNC240
        marker.touch()  # noqa: ASYNC240
        asyncio.get_running_loop().call_later(data["after"] / 1000, os.kill, os.getpid(), signal.SIGKILL)
    note("end", ctx)


@app.function(on="chaos.gated")
async def gated(ctx: Context, data: dict[str, Any]) -> int:
    """Waits for its gate, then sends an event; what it returns names the process."""
    note("start", ctx)
    gate = Path(os.environ["CHAOS_GATES"], data["gate"])
    while not gate.exists():  # noqa: ASYNC110, ASYNC240 - a gate opened by another process
        await asyncio.sleep(0.02)
    note("through", ctx)
    await ctx.step.send("on", Event("chaos.relayed", data=data))
    note("end", ctx)
    return os.getpid()
