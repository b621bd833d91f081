"""The functions the measurements run. What they note goes to the file named by BENCH_NOTES, a line each."""

import asyncio
import os
import time
from typing import Any

from jetcron import App, Context

_NOTES = open(os.environ["BENCH_NOTES"], "a", buffering=1 << 16) if "BENCH_NOTES" in os.environ else None  # noqa: SIM115

app = App("bench")


def note(*values: object) -> None:
    if _NOTES is not None:
        _NOTES.write(" ".join(map(str, values)) + "\n")


@app.function(on="bench.noop")
async def noop(ctx: Context) -> None:
    """Does nothing: what remains is ours."""


@app.function(on="bench.stamp")
async def stamp(ctx: Context, data: dict[str, Any]) -> None:
    """Notes how long after it was sent it started, in milliseconds."""
    now = time.time()
    note("latency", (now - data["sent"]) * 1000)
    if _NOTES is not None:
        _NOTES.flush()


@app.function()
async def due(ctx: Context) -> None:
    """Notes how late after its scheduled time it started, in milliseconds."""
    now = time.time()
    if ctx.scheduled_at is not None:
        note("due", ctx.run_id, (now - ctx.scheduled_at.timestamp()) * 1000)


@app.function()
async def hold(ctx: Context) -> None:
    """As `due`, and then goes on for 4 s."""
    await due(ctx)
    await asyncio.sleep(4)


async def nothing() -> None: ...


@app.function(on="bench.steps")
async def steps(ctx: Context, data: dict[str, Any]) -> None:
    """So many no-op steps, one after the other."""
    for _ in range(data["n"]):
        await ctx.step.run("step", nothing)


@app.function(on="bench.resumed")
async def resumed(ctx: Context, data: dict[str, Any]) -> None:
    """So many no-op steps, then a wait: what it wakes from, it has to replay."""
    for _ in range(data["n"]):
        await ctx.step.run("step", nothing)
    await ctx.step.wait_for_event("go", "bench.go", match={"id": data["id"]}, timeout=3600)


@app.function(on="bench.wait")
async def waiter(ctx: Context, data: dict[str, Any]) -> None:
    """Waits for an event of its own."""
    await ctx.step.wait_for_event("go", "bench.go", match={"id": data["id"]}, timeout=3600)


@app.function()
async def flush(ctx: Context) -> None:
    """Writes the notes down."""
    if _NOTES is not None:
        _NOTES.flush()


seconds = App("seconds")

for number in range(10):

    @seconds.function(id=f"every-second-{number}", cron="* * * * * *")
    async def tick(ctx: Context) -> None:
        now = time.time()
        if ctx.scheduled_at is not None:
            note("due", ctx.run_id, (now - ctx.scheduled_at.timestamp()) * 1000)
        if _NOTES is not None:
            _NOTES.flush()
