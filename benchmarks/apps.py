"""The functions the measurements run. What they note goes to the file named by BENCH_NOTES, a line each."""

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
