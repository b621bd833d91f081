"""Two weeks of mails in a second: each at its day, none after the user has left, whoever dies in between."""

import asyncio
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from examples import drip_campaign
from jetcron.clock import from_ms
from jetcron.runs import RunHandle
from tests.examples.play import Play, away, events, executors, playing
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE

ADA, BOB = events(drip_campaign, "user.signed_up")
(LEFT,) = events(drip_campaign, "user.unsubscribed")
DAY = timedelta(days=1)
SUBJECTS = ["Welcome!", "Three things to try first", "What others made of it", "Shall we talk?"]


@pytest.fixture(autouse=True)
def out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away(drip_campaign, tmp_path, monkeypatch)


async def signed_up(play: Play, user: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> RunHandle:
    """Start a campaign; returns when the first mail is sent. The step that asks for the time asks our clock."""

    def now() -> datetime:
        return from_ms(play.clock.now())

    monkeypatch.setattr(drip_campaign, "now", now)
    handle = await play.send("welcome", "user.signed_up", user)
    await play.forward(timedelta(0))
    return handle


def sent(play: Play, user: dict[str, str]) -> list[str]:
    """The subjects of the mails a user got, in order."""
    mails = [re.fullmatch(r"mail to (\S+): (.+)", what) for what in play.world().values()]
    return [mail[2] for mail in mails if mail is not None and mail[1] == user["email"]]


async def test_four_mails_in_two_weeks(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drip_campaign.DAY == DAY
    async with playing(shared_nats, drip_campaign, monkeypatch, "send_mail", travelling=True) as play:
        ada = await signed_up(play, ADA, monkeypatch)
        for days, count in ((0.9, 1), (0.2, 2), (4.8, 2), (0.2, 3), (7.8, 3), (0.2, 4)):
            await play.forward(days * DAY)
            assert sent(play, ADA) == SUBJECTS[:count]
        assert await ada.result(PATIENCE) == "all sent"
        assert play.calls == {"send_mail": 4}
        steps = (await ada.history()).steps
        began = steps["joined"].at
        assert [(from_ms(steps[each].at) - from_ms(began)).days for each in SUBJECTS] == [0, 1, 6, 14]
        assert [a.outcome for a in (await ada.history()).attempts] == ["waiting"] * 3 + ["completed"]


async def test_all_at_once_after_a_long_night(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time let pass in one go: each part still comes at its own time."""
    async with playing(shared_nats, drip_campaign, monkeypatch, travelling=True) as play:
        ada = await signed_up(play, ADA, monkeypatch)
        bob = await signed_up(play, BOB, monkeypatch)
        await play.forward(30 * DAY)
        for handle, user in ((ada, ADA), (bob, BOB)):
            assert await handle.result(PATIENCE) == "all sent"
            assert sent(play, user) == SUBJECTS
            steps = (await handle.history()).steps
            days = [(steps[each].at - steps["joined"].at) // 86_400_000 for each in SUBJECTS]
            assert days == [0, 1, 6, 14]


@pytest.mark.parametrize(
    ("after", "mails", "outcome"),
    [
        (0.5, 1, "unsubscribed within a day"),
        (3, 2, "unsubscribed within a week"),
        (10, 3, "unsubscribed within two weeks"),
    ],
)
async def test_nothing_more_for_who_has_left(
    after: float, mails: int, outcome: str, shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with playing(shared_nats, drip_campaign, monkeypatch, travelling=True) as play:
        ada = await signed_up(play, ADA, monkeypatch)
        bob = await signed_up(play, BOB, monkeypatch)
        await play.forward(after * DAY)
        await play.result("unsubscribe", "user.unsubscribed", LEFT)
        if after == 3:
            # The wait is cut short: nothing has to become due for it.
            assert await bob.result(PATIENCE) == outcome
        await play.forward(30 * DAY)
        assert await bob.result(PATIENCE) == outcome
        assert sent(play, BOB) == SUBJECTS[:mails]
        assert await ada.result(PATIENCE) == "all sent"
        assert sent(play, ADA) == SUBJECTS


async def test_executors_die_on_the_way(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One while the run is in no process, one when a mail is recorded, one when it is sent and not recorded."""
    async with playing(shared_nats, drip_campaign, monkeypatch, "send_mail", travelling=True) as play:
        ada = await signed_up(play, ADA, monkeypatch)
        await play.executors[-1].kill()
        await play.execute()
        play.die_in("send_mail", f"{ada.id} {SUBJECTS[1]}")
        play.die_in("send_mail", f"{ada.id} {SUBJECTS[3]}", before=True)
        for _ in range(2):
            passing = asyncio.create_task(play.forward(10 * DAY))
            await play.take_over()
            await passing
        assert await ada.result(PATIENCE) == "all sent"
        assert sent(play, ADA) == SUBJECTS
        assert play.calls == {"send_mail": 5}
        assert await executors(ada) == 4
