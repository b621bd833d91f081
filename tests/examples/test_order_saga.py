"""An order is fulfilled, or undone: whatever fails, whoever dies, whenever it is called off."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from examples import order_saga
from jetcron import NonRetriableError, Retry
from jetcron.runs import RunHandle
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Event as WireEvent
from tests.examples.play import Play, away, events, executors, failure, playing, steps
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until

WELL, STOLEN, FAR, CALLED_OFF = events(order_saga, "order.placed")
(CANCELLED,) = events(order_saga, "order.cancelled")


@pytest.fixture(autouse=True)
def quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away(order_saga, tmp_path, monkeypatch)
    monkeypatch.setattr(order_saga, "CARRIER", Retry(attempts=3, waits=[0.01], jitter=0))
    monkeypatch.setattr(order_saga, "UNDO", Retry(attempts=100, waits=[0.01], jitter=0))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_saga, "TIME_TO_CANCEL", timedelta(0))


def done(play: Play, order: dict[str, Any]) -> list[str]:
    """What happened to an order in the outside world, in order; its name is left out."""
    name = f" {order['order']}"
    return [key.removesuffix(name) for key in play.world() if key.endswith(name)]


async def placed(play: Play, order: dict[str, Any]) -> RunHandle:
    return await play.send("fulfil", "order.placed", order)


@pytest.mark.usefixtures("at_once")
async def test_all_is_done_or_what_was_done_is_undone_the_last_first(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = WELL | {"order": "o9", "item": "unicorn"}
    async with playing(shared_nats, order_saga, monkeypatch) as play:
        well, stolen, far, none = [await placed(play, order) for order in (WELL, STOLEN, FAR, gone)]

        assert await well.result(PATIENCE) == "o1: 19.90 charged (receipt-o1), sent as parcel-o1"
        assert done(play, WELL) == ["stock", "card", "shipment"]
        assert play.world()["card o1"] == "o1: 19.90 charged to visa"
        (sent,) = await play.stack.stored(play.stack.names.events, play.stack.names.event("order.fulfilled"))
        assert decode(WireEvent, sent.payload).data == {"order": "o1", "parcel": "parcel-o1"}

        assert "the card was refused" in (await failure(stolen)).message
        assert done(play, STOLEN) == ["stock", "undo card", "undo stock"]
        assert await steps(stolen) == ["reserve stock", "charge card", "undo card", "undo stock"]

        assert "no ship answers" in (await failure(far)).message
        assert done(play, FAR) == ["stock", "card", "undo shipment", "undo card", "undo stock"]
        assert (await far.history()).steps["book shipment"].tries == 2, "the carrier is asked three times"

        assert "there is no unicorn" in (await failure(none)).message
        assert done(play, gone) == ["undo stock"]

        await play.stack.journal.wait("completed", 3, function="orders.fulfil:on_failure")
        told = [text.split()[3] for text in play.world().values() if text.startswith("mail to support: ")]
        assert sorted(told) == ["o2", "o3", "o9"]


async def test_called_off_while_it_waits(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends at once, and by the event for its own order alone."""
    async with playing(shared_nats, order_saga, monkeypatch) as play:
        kept, off = await placed(play, WELL), await placed(play, CALLED_OFF)
        await play.stack.journal.wait("waiting", 2, function="orders.fulfil")
        await play.result("call_off", "order.cancelled", CANCELLED)
        await play.stack.journal.wait("cancelled", run=off.id)
        undone = ["stock", "card", "undo shipment", "undo card", "undo stock"]
        assert done(play, CALLED_OFF) == undone
        assert await kept.status() == "waiting"
        assert done(play, WELL) == ["stock", "card"]
        # Told twice, as by a customer who clicks twice: nothing more happens.
        await play.result("call_off", "order.cancelled", CANCELLED)
        assert done(play, CALLED_OFF) == undone


async def test_called_off_while_the_card_is_charged(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that charges cannot be stopped; but when it comes to it, the order has been called off."""
    charging, go, refused = threading.Event(), threading.Event(), threading.Event()
    charge = order_saga.charge_card

    def slow(order: order_saga.Order) -> order_saga.Charge:
        charging.set()
        go.wait(PATIENCE)
        try:
            return charge(order)
        except NonRetriableError:
            refused.set()
            raise

    monkeypatch.setattr(order_saga, "charge_card", slow)
    async with playing(shared_nats, order_saga, monkeypatch) as play:
        handle = await placed(play, CALLED_OFF)
        await until(charging.is_set)
        await play.result("call_off", "order.cancelled", CANCELLED)
        await play.stack.journal.wait("cancelled", run=handle.id)
        go.set()
        await until(refused.is_set)
        assert done(play, CALLED_OFF) == ["stock", "undo shipment", "undo card", "undo stock"]
        assert await handle.status() == "cancelled"


@pytest.mark.usefixtures("at_once")
async def test_called_off_before_it_was_placed(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events come in any order: what was called off is not done later."""
    async with playing(shared_nats, order_saga, monkeypatch) as play:
        await play.result("call_off", "order.cancelled", {"order": WELL["order"]})
        assert "has been called off" in (await failure(await placed(play, WELL))).message
        assert done(play, WELL) == ["undo shipment", "undo card", "undo stock"]


@pytest.mark.usefixtures("at_once")
async def test_undoing_is_tried_until_it_is_done(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund, asked = order_saga.UNDOING["card"], []

    def busy(order: str) -> None:
        asked.append(order)
        if len(asked) < 4:
            raise ConnectionError("the card processor is down")
        refund(order)

    monkeypatch.setitem(order_saga.UNDOING, "card", busy)
    async with playing(shared_nats, order_saga, monkeypatch) as play:
        await failure(await placed(play, FAR))
        assert len(asked) == 4
        assert done(play, FAR)[-2:] == ["undo card", "undo stock"]


@pytest.mark.usefixtures("at_once")
async def test_begun_again_it_does_not_ship_what_was_refunded(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jetcron runs retry` tries the step that failed once more; by then its order has been undone."""
    async with playing(shared_nats, order_saga, monkeypatch) as play:
        far = await placed(play, FAR)
        await failure(far)
        before = done(play, FAR)
        await until(play.stack.dead)

        def ships_again(order: order_saga.Order) -> None:
            order_saga.do("shipment", order.order, "a parcel booked")

        monkeypatch.setattr(order_saga, "book_shipment", ships_again)
        await play.client.runs.retry(far.id)
        await play.stack.journal.wait("failed", 2, run=far.id)
        assert "has been called off" in (await failure(far)).message
        assert done(play, FAR) == before


@pytest.mark.usefixtures("at_once")
async def test_two_executors_die_on_the_way(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One between two steps, one between a step's effect and its record: that step alone is done again."""
    watched = ("reserve_stock", "charge_card", "book_shipment", "undone")
    async with playing(shared_nats, order_saga, monkeypatch, *watched) as play:
        play.die_in("charge_card")
        play.die_in("undone", "card", before=True)
        far = await placed(play, FAR)
        await play.take_over()
        await play.take_over()
        assert "no ship answers" in (await failure(far)).message
        assert done(play, FAR) == ["stock", "card", "undo shipment", "undo card", "undo stock"]
        assert play.calls == {"reserve_stock": 1, "charge_card": 1, "book_shipment": 3, "undone": 4}
        assert await executors(far) == 3
