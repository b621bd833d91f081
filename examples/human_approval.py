"""A purchase that a human must approve: asked, reminded, and, should nothing come, passed on to the next one up.

Shows two events waited for side by side, the first of which counts; a branch that asks, sleeps and reminds meanwhile;
and another function invoked for the action, with its own retries and its own history.

    APPROVAL_DAY=10 jetcron dev examples.human_approval:app

Here a day takes 10 seconds; leave the variable out, and it takes a day. In a second terminal, in the same folder:

    jetcron send purchase.requested '{"request": "r1", "what": "a coffee machine", "cost": 250, "by": "ada"}'
    jetcron send approval.given '{"request": "r1", "by": "grace"}'
    jetcron runs list

Or refuse, or say nothing for five days:

    jetcron send purchase.requested '{"request": "r2", "what": "a ship", "cost": 9000000, "by": "ada"}'
    jetcron send approval.refused '{"request": "r2", "by": "grace"}'
    jetcron send purchase.requested '{"request": "r3", "what": "a sofa", "cost": 900, "by": "ada"}'
    jetcron runs list

Mails and purchases are lines in the first terminal.
"""

import asyncio
import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from jetcron import App, Context, Event, NonRetriableError, Retry, StepError

DAY = timedelta(seconds=float(os.environ.get("APPROVAL_DAY", 86_400)))
REMIND_AFTER = 1 * DAY
ESCALATE_AFTER = 1 * DAY
"""After the reminder."""
GIVE_UP_AFTER = 5 * DAY
"""After all."""
MANAGER, DIRECTOR = "grace", "the director"

app = App("purchases")


class Purchase(BaseModel):
    request: str
    what: str
    cost: int
    by: str


@app.function(on="purchase.requested")
async def approve(ctx: Context, purchase: Purchase) -> str:
    """Ask, wait, and do what the answer says."""
    text = f"{purchase.what} for {purchase.cost}, says {purchase.by} ({purchase.request})"
    async with asyncio.TaskGroup() as group:
        # One wait, open all the while, and the asking beside it: between two waits an answer would be missed.
        asking = group.create_task(ask(ctx, text))
        answer = await first_answer(ctx, purchase.request)
        asking.cancel()

    match answer:
        case None:
            outcome = "nobody answered"
        case Event(name="approval.refused"):
            outcome = "refused"
        case _:
            try:
                receipt = await ctx.step.invoke("buy", "purchases.buy", purchase)
                outcome = f"bought: {receipt}"
            except StepError as failed:
                outcome = f"approved, but it could not be bought: {failed.message}"
    await ctx.step.run("tell", mail, f"{ctx.run_id} tell", purchase.by, f"{purchase.what}: {outcome}")
    return outcome


async def ask(ctx: Context, text: str) -> None:
    """Ask the manager, remind the manager, go over the manager's head. Cancelled when there is an answer."""
    await ctx.step.run("ask", mail, f"{ctx.run_id} ask", MANAGER, f"may we buy {text}?")
    await ctx.step.sleep("a day's patience", REMIND_AFTER)
    await ctx.step.run("remind", mail, f"{ctx.run_id} remind", MANAGER, f"still waiting: {text}")
    await ctx.step.sleep("another day's", ESCALATE_AFTER)
    await ctx.step.run("escalate", mail, f"{ctx.run_id} escalate", DIRECTOR, f"{MANAGER} is silent: {text}")


async def first_answer(ctx: Context, request: str) -> Event | None:
    """The first answer to this request, or None when nobody gave one."""
    waits = {
        asyncio.create_task(
            ctx.step.wait_for_event(name, name, match={"request": request}, timeout=GIVE_UP_AFTER)
        )
        for name in ("approval.given", "approval.refused")
    }
    answer = None
    while waits and answer is None:
        done, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        answer = next((found for task in done if (found := task.result()) is not None), None)
    for task in waits:
        task.cancel()
    return answer


@app.function(retry=Retry(attempts=3, waits=(1, 2)))
def buy(ctx: Context, purchase: Purchase) -> str:
    """The action. As a function of its own it can be retried, watched and started by itself."""
    return place_order(purchase)


# The outside world: a file of SQLite in place of a mail service and a shop. Each does once what it is asked to do
# under one key, however often it is asked: the shop's is the request.

WORLD = Path(os.environ.get("PURCHASES_DB", ".jetcron/purchases.db"))


def mail(key: str, to: str, text: str) -> None:
    once(key, f"mail to {to}: {text}")


def place_order(purchase: Purchase) -> str:
    if "unicorn" in purchase.what:
        raise NonRetriableError("there are no unicorns")
    once(f"buy {purchase.request}", f"bought: {purchase.what}")
    return f"receipt-{purchase.request}"


def once(key: str, what: str) -> None:
    """Do something, unless it was done under this key before."""
    WORLD.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(WORLD, timeout=30, isolation_level=None)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, what TEXT)")
        if db.execute("INSERT INTO effects VALUES (?, ?) ON CONFLICT DO NOTHING", (key, what)).rowcount:
            print(f"    {what}", flush=True)
