"""An order that three others carry out: a warehouse, a card processor, a carrier. All of it is done, or nothing.

When a step fails for good, it is undone together with those before it, the last one first; undoing is done in steps
too, and tried for hours. (This is called a saga.) Then the run fails, and `tell_support` is started. A customer
may call the order off at any time: `order.cancelled` ends the run, and `call_off` undoes what it did.

    jetcron dev examples.order_saga:app

In a second terminal, in the same folder: an order that goes well, one whose card is refused, one that nobody can ship.

    jetcron send order.placed '{"order": "o1", "item": "globe", "price": "19.90", "card": "visa", "to": "Oslo"}'
    jetcron send order.placed '{"order": "o2", "item": "globe", "price": "19.90", "card": "stolen", "to": "Oslo"}'
    jetcron send order.placed '{"order": "o3", "item": "globe", "price": "19.90", "card": "visa", "to": "Atlantis"}'
    jetcron runs list

Each waits 20 seconds before it is shipped, during which it is in no process. Call one off meanwhile:

    jetcron send order.placed '{"order": "o4", "item": "globe", "price": "19.90", "card": "visa", "to": "Oslo"}'
    jetcron send order.cancelled '{"order": "o4"}'
    jetcron runs list

What the others did, and undid, are lines in the first terminal.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel

from jetcron import App, CancelOn, Context, Event, NonRetriableError, Retry, StepError

TIME_TO_CANCEL = timedelta(seconds=20)
CARRIER = Retry(attempts=3, waits=(1, 2))
UNDO = Retry(attempts=100, waits=(1, 10, 60, 300))

app = App("orders")


class Order(BaseModel):
    order: str
    item: str
    price: Decimal
    card: str
    to: str


class Charge(BaseModel):
    receipt: str
    amount: Decimal


class Cancelled(BaseModel):
    order: str


class Failed(BaseModel):
    """What a handler of failures is given, as much of it as we need."""

    error: dict[str, str]
    data: Order


def tell_support(ctx: Context, failed: Failed) -> None:
    """`fulfil` has failed for good. This runs in a run of its own, with retries of its own."""
    mail(ctx.run_id, f"{failed.data.order} failed: {failed.error['message']}")


@app.function(
    on="order.placed",
    cancel_on=CancelOn("order.cancelled", match={"order": "order"}),
    on_failure=tell_support,
)
async def fulfil(ctx: Context, order: Order) -> str:
    """Reserve, charge, ship."""
    begun: list[str] = []
    try:
        # Noted before it is begun: a step that failed may have had its effect all the same.
        begun.append("stock")
        await ctx.step.run("reserve stock", reserve_stock, order)
        begun.append("card")
        charge = await ctx.step.run("charge card", charge_card, order)
        await ctx.step.sleep("time to cancel", TIME_TO_CANCEL)
        begun.append("shipment")
        parcel = await ctx.step.run("book shipment", book_shipment, order, retry=CARRIER)
    except StepError as failed:
        ctx.log.warning("undoing", order=order.order, because=failed.message)
        await undo(ctx, order.order, begun)
        raise
    await ctx.step.send("tell others", Event("order.fulfilled", {"order": order.order, "parcel": parcel}))
    return f"{order.order}: {charge.amount} charged ({charge.receipt}), sent as {parcel}"


@app.function(on="order.cancelled")
async def call_off(ctx: Context, cancelled: Cancelled) -> None:
    """Undo an order, however far it has come; what of it has not been done never will be."""
    await undo(ctx, cancelled.order, list(UNDOING))


async def undo(ctx: Context, order: str, begun: list[str]) -> None:
    """Undo these parts of an order, the last one first, each in a step."""
    for part in reversed(begun):
        await ctx.step.run(f"undo {part}", UNDOING[part], order, retry=UNDO)


# The outside world: a file of SQLite in place of a warehouse, a card processor and a carrier. What they are asked
# to do they do once for each order, however often they are asked. What they are asked to undo stays undone, even
# when the request to do it comes later, as it may from a process that was thought dead.

WORLD = Path(os.environ.get("ORDERS_DB", ".jetcron/orders.db"))
STOCK = {"globe": 1_000, "unicorn": 0}


def reserve_stock(order: Order) -> None:
    if not STOCK.get(order.item):
        raise NonRetriableError(f"there is no {order.item}")
    do("stock", order.order, f"1 {order.item} reserved")


def charge_card(order: Order) -> Charge:
    if order.card == "stolen":
        raise NonRetriableError("the card was refused")
    do("card", order.order, f"{order.price} charged to {order.card}")
    return Charge(receipt=f"receipt-{order.order}", amount=order.price)


def book_shipment(order: Order) -> str:
    if order.to == "Atlantis":
        raise ConnectionError("no ship answers")
    do("shipment", order.order, f"a parcel to {order.to} booked")
    return f"parcel-{order.order}"


def put_stock_back(order: str) -> None:
    undone("stock", order)


def refund_card(order: str) -> None:
    undone("card", order)


def call_parcel_back(order: str) -> None:
    undone("shipment", order)


UNDOING: dict[str, Callable[[str], None]] = {
    "stock": put_stock_back,
    "card": refund_card,
    "shipment": call_parcel_back,
}


def do(part: str, order: str, what: str) -> None:
    with closing(open_world()) as db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute("SELECT 1 FROM effects WHERE key = ?", (f"undo {part} {order}",)).fetchone():
            raise NonRetriableError(f"the {part} of {order} has been called off")
        note(db, f"{part} {order}", f"{order}: {what}")
        db.execute("COMMIT")


def undone(part: str, order: str) -> None:
    with closing(open_world()) as db:
        db.execute("BEGIN IMMEDIATE")
        done = db.execute("SELECT what FROM effects WHERE key = ?", (f"{part} {order}",)).fetchone()
        note(
            db,
            f"undo {part} {order}",
            f"undone: {done[0]}" if done else f"{order}: no {part} to undo, nor ever",
        )
        db.execute("COMMIT")


def mail(key: str, text: str) -> None:
    with closing(open_world()) as db:
        note(db, key, f"mail to support: {text}")


def note(db: sqlite3.Connection, key: str, what: str) -> None:
    """Do something, once for its key."""
    if db.execute("INSERT INTO effects VALUES (?, ?) ON CONFLICT DO NOTHING", (key, what)).rowcount:
        print(f"    {what}", flush=True)


def open_world() -> sqlite3.Connection:
    WORLD.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(WORLD, timeout=30, isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, what TEXT)")
    return db
