"""The example runs for real, and the demo's judge sees what it is there to see."""

import asyncio
import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from examples import demo, notifications
from examples.receiver import Receiver, serve

ROOT = Path(__file__).parents[2]
SECONDS = 18
TIMES = [datetime(2031, 1, 6, 9, tzinfo=UTC) + timedelta(seconds=3 * n) for n in range(4)]


async def test_demo_counts_and_ends_well() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.demo", "--seconds", str(SECONDS)),
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(SECONDS + demo.PATIENCE + 25):
        told = (await process.communicate())[0].decode()
    assert process.returncode == 0, told
    counts = {
        name.strip(): int(count) for name, count in re.findall(r"^  ([a-z ]+?) +(\d+)(?:   .*)?$", told, re.M)
    }
    assert counts["cron fired"] >= demo.FIRINGS
    assert counts["notifications due"] == counts["posted"] + counts["dead letters"]
    assert counts["dead letters"] == 1
    assert counts["posts retried"] > 0
    assert counts["lost"] == counts["doubled"] == 0


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--seconds", "60"), 1)])
async def test_demo_ends_when_it_is_told_to(arguments: tuple[str, ...], code: int) -> None:
    """Until Ctrl-C is how it is meant to run without a time; with one, nothing has been judged yet."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.demo", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    told = b""
    async with asyncio.timeout(40):
        while line := await process.stdout.readline():
            told += line
            if b"ready; Ctrl-C" in line:
                process.send_signal(signal.SIGINT)
        assert await process.wait() == code, told.decode()
    assert b" posted again" in told


def good() -> demo.Account:
    """What a demo without a fault counts."""
    keys = [f"{n} at some time" for n in range(9)]
    return demo.Account(
        fired=TIMES,
        due=Counter(keys),
        posted=Counter(keys[1:]),
        hopeless={keys[0]},
        dead=Counter(keys[:1]),
        retried=3,
    )


def test_judge_finds_nothing_where_nothing_is_wrong() -> None:
    assert good().problems() == []
    assert good().enough


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.posted.subtract(["3 at some time"]), "lost"),
        (lambda a: a.posted.update(["3 at some time"]), "doubled"),
        (lambda a: a.posted.update(["0 at some time"]), "doubled"),
        (lambda a: a.due.update(["another"]), "lost"),
        (lambda a: a.hopeless.clear(), "dead, but"),
        (lambda a: a.dead.clear(), "no dead letter"),
        (lambda a: setattr(a, "fired", [TIMES[0], *TIMES[2:]]), "1 firings are missing"),
        (lambda a: setattr(a, "fired", TIMES[:2]), "cron fired 2 times"),
        (lambda a: setattr(a, "fired", []), "cron fired 0 times"),
        (lambda a: setattr(a, "retried", 0), "nothing was retried"),
        (lambda a: setattr(a, "repeated", 1), "came again"),
        (lambda a: setattr(a, "open", 1), "have not ended"),
    ],
)
def test_judge_sees(change: object, said: str) -> None:
    account = good()
    change(account)  # type: ignore[operator]
    assert any(said in problem for problem in account.problems()), account.problems()


def test_receiver_refuses_some_once_and_the_gone_channel_always() -> None:
    receiver = Receiver("#gone")
    waits: list[str | None] = []
    with serve(receiver) as address:

        def post(key: str, channel: str = "#here") -> int:
            body = json.dumps({"id": 1, "due": "2031-01-06T09:00:00Z", "channel": channel, "text": "hello"})
            request = urllib.request.Request(address, body.encode(), {"Idempotency-Key": key})
            try:
                with urllib.request.urlopen(request) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                waits.append(error.headers["Retry-After"])
                return error.code

        assert [post(key) for key in "abcdef"] == [200, 200, 500, 200, 200, 429]
        assert [post("c"), post("f"), post("a")] == [200, 200, 200]
        assert [post("g", "#gone"), post("g", "#gone")] == [500, 500]
    assert sorted(receiver.posts) == list("abcdef")
    assert waits == [None, "1", None, None]
    assert receiver.repeated == ["a"]
    assert receiver.refused == {"c": 1, "f": 1, "g": 2}


def test_outside_the_demo_it_keeps_the_real_times() -> None:
    assert not notifications.DEMO
    crons = notifications.app.functions["notifications.dispatch"].cron
    assert [(cron.expression, cron.timezone) for cron in crons] == [
        ("0 9,12 * * MON,FRI", zone) for zone in notifications.ZONES
    ]


def test_every_team_is_told_at_its_own_nine_and_twelve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "DATABASE", tmp_path / "teams.db")
    zones = {team: zone for zone, teams in notifications.TEAMS.items() for team in teams}
    told: Counter[tuple[str, str]] = Counter()
    monday = datetime(2031, 3, 24, tzinfo=UTC)
    for time in (moment for moment in notifications.calendar()[: 12 * 2]):
        for each in notifications.due_at(time):
            local = time.astimezone(ZoneInfo(zones.get(each.team, "Asia/Tokyo")))
            assert local.hour in (9, 12)
            assert local.strftime("%a") in ("Mon", "Fri")
            told[each.team, each.text] += 1
    assert len(told) == 9 * 4 + 1
    assert set(told.values()) == {2}
    assert notifications.due_at(monday + timedelta(minutes=30)) == []


def test_a_firing_counts_as_the_same_time_at_every_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "DATABASE", tmp_path / "teams.db")
    counted = [notifications.pretended(time) for time in (*TIMES, *TIMES)]
    assert counted[:4] == counted[4:] == notifications.calendar()[:4]
