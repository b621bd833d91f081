"""What the schedules run that are changed while they fire: it returns its payload, which tells the revision."""

from jetcron import App, Context

app = App("updates")


@app.function()
async def work(ctx: Context, number: int) -> int:
    return number
