"""A purchase waits for a human: answered, reminded, passed on, given up; in no process meanwhile."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from examples import human_approval
from jetcron.runs import RunHandle
from tests.examples.play import Play, away, events, executors, playing, steps
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE

COFFEE, SHIP, SOFA = events(human_approval, "purchase.requested")
(GIVEN,), (REFUSED,) = events(human_approval, "approval.given"), events(human_approval, "approval.refused")
UNICORN = COFFEE | {"request": "r9", "what": "a unicorn"}
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away(human_approval, tmp_path, monkeypatch)


async def requested(play: Play, *purchases: dict[str, Any]) -> list[RunHandle]:
    """Start these; returns when each waits."""
    handles = [await play.send("approve", "purchase.requested", purchase) for purchase in purchases]
    for handle in handles:
        await play.stack.journal.wait("waiting", run=handle.id)
    return handles


async def answered(play: Play, name: str, answer: dict[str, Any]) -> None:
    """Somebody answers; returns when that has had its effect."""
    await play.send("approve", name, answer)
    await play.forward(timedelta(0))


def told(play: Play, what: str) -> list[str]:
    """What was done about a purchase: whom each mail went to, and "bought" when it was."""
    about = [text.partition(":")[0] for text in play.world().values() if what.removeprefix("a ") in text]
    return [text.removeprefix("mail to ") for text in about]


async def test_the_first_answer_counts(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with playing(
        shared_nats, human_approval, monkeypatch, "mail", "place_order", travelling=True
    ) as play:
        coffee, ship, sofa = await requested(play, COFFEE, SHIP, SOFA)
        await play.forward(0.5 * DAY)
        await answered(play, "approval.given", GIVEN)
        assert await coffee.result(PATIENCE) == "bought: receipt-r1"
        await answered(play, "approval.refused", REFUSED)
        assert await ship.result(PATIENCE) == "refused"
        # Too late, and of no effect.
        await answered(play, "approval.refused", GIVEN)
        await answered(play, "approval.given", REFUSED)
        assert await sofa.status() == "waiting"
        assert told(play, "a coffee machine") == ["grace", "bought", "ada"]
        assert told(play, "a ship") == ["grace", "ada"]
        assert told(play, "a sofa") == ["grace"]
        assert play.calls == {"mail": 5, "place_order": 1}
        (bought,) = play.stack.journal.of("completed", function="purchases.buy")
        assert (await coffee.history()).steps["buy"].child == bought.run
        assert bought.entry.about.parent == coffee.id


async def test_silence_is_reminded_passed_on_and_in_the_end_taken_for_no(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with playing(shared_nats, human_approval, monkeypatch, travelling=True) as play:
        (sofa,) = await requested(play, SOFA)
        mails = ["grace"]
        for days, more in ((0.9, []), (0.2, ["grace"]), (0.8, []), (0.2, ["the director"]), (2.8, [])):
            await play.forward(days * DAY)
            mails += more
            assert told(play, "a sofa") == mails
        assert await sofa.status() == "waiting"
        await play.forward(0.2 * DAY)
        assert await sofa.result(PATIENCE) == "nobody answered"
        assert told(play, "a sofa") == [*mails, "ada"]


@pytest.mark.parametrize("days", [1.5, 2.5])
async def test_answered_after_a_reminder(
    days: float, shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is reminded any more, however long the rest takes."""
    async with playing(shared_nats, human_approval, monkeypatch, travelling=True) as play:
        (coffee,) = await requested(play, COFFEE)
        await play.forward(days * DAY)
        before = told(play, "a coffee machine")
        await answered(play, "approval.given", GIVEN)
        await play.forward(30 * DAY)
        assert await coffee.result(PATIENCE) == "bought: receipt-r1"
        assert told(play, "a coffee machine") == [*before, "bought", "ada"]


async def test_approved_and_not_to_be_had(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with playing(shared_nats, human_approval, monkeypatch, travelling=True) as play:
        (unicorn,) = await requested(play, UNICORN)
        await answered(play, "approval.given", GIVEN | {"request": UNICORN["request"]})
        assert await unicorn.result(PATIENCE) == "approved, but it could not be bought: there are no unicorns"
        assert len(play.stack.journal.of("failed", function="purchases.buy")) == 1


async def test_executors_die_on_the_way(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One while the run waits in no process, one when the reminder is recorded, one before the purchase is."""
    async with playing(
        shared_nats, human_approval, monkeypatch, "mail", "place_order", travelling=True
    ) as play:
        (coffee,) = await requested(play, COFFEE)
        await play.executors[-1].kill()
        await play.execute()

        play.die_in("mail", f"{coffee.id} remind")
        passing = asyncio.create_task(play.forward(1.5 * DAY))
        await play.take_over()
        await passing
        assert told(play, "a coffee machine") == ["grace", "grace"]

        play.die_in("place_order", before=True)
        answering = asyncio.create_task(answered(play, "approval.given", GIVEN))
        await play.take_over()
        await answering
        assert await coffee.result(PATIENCE) == "bought: receipt-r1"
        assert told(play, "a coffee machine") == ["grace", "grace", "bought", "ada"]
        assert play.calls == {"mail": 3, "place_order": 2}, "asked for twice, bought once"
        assert await executors(coffee) == 4
        assert (await steps(coffee))[:2] == ["ask", "a day's patience"]
