"""Reminders for teams around the world, on Mondays and Fridays at 9 or 12 o'clock where each team is.

`dispatch` is started by cron, once for each 9 and 12 o'clock of each zone. It asks the database which
notifications are due at that instant and sends one event each. `post_to_slack` is started by these events,
posts one notification, and is retried on its own: a channel that answers 429 waits, one that is gone ends
among the dead letters, and neither keeps another from its post.

    make demo                                    all of it, with something due every few seconds
    jetcron dev examples.notifications:app       the functions alone, at their real times

Code outside steps may run more than once: a process may die at any line, and its run begins again elsewhere.
"""

import asyncio
import json
import os
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

from jetcron import App, Context, Cron, Event, Retry, RetryAfterError
from jetcron.cron import fire_times

DATABASE = Path(os.environ.get("NOTIFICATIONS_DB", ".jetcron/notifications.db"))
WEBHOOK = os.environ.get("NOTIFICATIONS_URL", "http://127.0.0.1:8099/")
DEMO = os.environ.get("NOTIFICATIONS_DEMO") == "1"
"""The demo: cron every few seconds instead of a few times a week, and retries that do not wait long."""

ZONES = ["Asia/Tokyo", "Europe/Prague", "America/New_York"]
MON_FRI_9_12 = "0 9,12 * * MON,FRI"
EVERY_SECONDS = 3

TIMES = [Cron(MON_FRI_9_12, timezone=zone) for zone in ZONES]
RETRY = Retry()  # 5 attempts, 15 s to 2 min apart
if DEMO:
    TIMES = [Cron(f"*/{EVERY_SECONDS} * * * * *")]
    RETRY = Retry(attempts=4, waits=(0.3, 0.6, 1.2))

app = App("notifications")


@dataclass(frozen=True)
class Notification:
    id: int
    team: str
    channel: str
    text: str
    due: datetime


class Refused(Exception):
    """The channel did not take the post."""


@app.function(cron=TIMES)
async def dispatch(ctx: Context) -> str:
    """Send an event for each notification that is due now."""
    if ctx.scheduled_at is None:
        return "started by hand: nothing is due"
    # A read may be repeated: it stands outside the step. What must happen once is the sending, all or none.
    due = await asyncio.to_thread(load_due, ctx.scheduled_at)
    await ctx.step.send("fan out", [Event("notification.due", each) for each in due])
    ctx.log.info("dispatched", due=len(due))
    return f"{len(due)} notifications dispatched"


@app.function(on="notification.due", retry=RETRY, concurrency=20, timeout=30)
def post_to_slack(ctx: Context, notification: Notification) -> None:
    """Post one notification. A plain `def` runs in a thread, so it may block."""
    # The run's id is the same at every attempt: by it the receiver knows a post it has already taken.
    headers = {"Content-Type": "application/json", "Idempotency-Key": ctx.run_id}
    body = json.dumps(asdict(notification), default=str).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(WEBHOOK, body, headers), timeout=10):
            ctx.log.info("posted", team=notification.team, text=notification.text)
    except urllib.error.HTTPError as error:
        if error.code == 429:
            raise RetryAfterError(float(error.headers["Retry-After"]), "the channel is busy") from None
        # Any other error is retried as RETRY says; after the last attempt it is a dead letter.
        raise Refused(f"{notification.channel} answered {error.code}") from None


# The database: a file of SQLite, made and filled the first time it is opened.

TEAMS = {
    "Asia/Tokyo": ["Kestrel", "Heron", "Egret"],
    "Europe/Prague": ["Otter", "Beaver", "Marten"],
    "America/New_York": ["Birch", "Maple", "Cedar"],
}
TEXTS = {
    (1, 9): "Plan the week",
    (1, 12): "Say what is in the way",
    (5, 9): "Close what you can",
    (5, 12): "Write down what you learned",
}
"""By weekday (Monday is 1) and hour, both where the team is."""
GONE = "#closed-in-spring"
"""A channel nobody can post to any more: the receiver always fails on it."""


def open_database() -> sqlite3.Connection:
    """The database; whoever comes first makes it, while all others wait for the lock."""
    DATABASE.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(DATABASE, timeout=30, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE IF NOT EXISTS teams (name TEXT PRIMARY KEY, zone TEXT, channel TEXT)")
    db.execute(
        "CREATE TABLE IF NOT EXISTS notifications "
        "(id INTEGER PRIMARY KEY, team TEXT REFERENCES teams, weekday INTEGER, hour INTEGER, text TEXT)"
    )
    db.execute("CREATE TABLE IF NOT EXISTS demo (began REAL)")
    if db.execute("SELECT count(*) FROM teams").fetchone() == (0,):
        fill(db)
    db.execute("COMMIT")
    return db


def fill(db: sqlite3.Connection) -> None:
    for zone, teams in TEAMS.items():
        for team in teams:
            db.execute("INSERT INTO teams VALUES (?, ?, ?)", (team, zone, f"#{team.lower()}"))
            for (weekday, hour), text in TEXTS.items():
                add_notification(db, team, weekday, hour, text)
    db.execute("INSERT INTO teams VALUES ('Dodo', 'Asia/Tokyo', ?)", (GONE,))
    add_notification(db, "Dodo", 1, 12, "Nobody will read this")


def add_notification(db: sqlite3.Connection, team: str, weekday: int, hour: int, text: str) -> None:
    db.execute(
        "INSERT INTO notifications (team, weekday, hour, text) VALUES (?, ?, ?, ?)",
        (team, weekday, hour, text),
    )


def load_due(scheduled_at: datetime) -> list[Notification]:
    """What is due for one firing of cron."""
    return due_at(pretended(scheduled_at) if DEMO else scheduled_at)


def due_at(now: datetime) -> list[Notification]:
    """The notifications of every team where it is now, to the minute, the weekday and hour they are for."""
    found = []
    with closing(open_database()) as db:
        for zone in ZONES:
            local = now.astimezone(ZoneInfo(zone))
            if local.minute == 0:
                found += db.execute(
                    "SELECT n.id, n.team, t.channel, n.text FROM notifications n JOIN teams t ON t.name = n.team "
                    "WHERE t.zone = ? AND n.weekday = ? AND n.hour = ? ORDER BY n.id",
                    (zone, local.isoweekday(), local.hour),
                ).fetchall()
    return [Notification(*row, due=now) for row in found]


# The demo's calendar: each firing, a few seconds after the last, counts as the next real one.


@cache
def calendar() -> list[datetime]:
    """Every 9 and 12 o'clock of all zones, on the Mondays and Fridays of a year, one after the other."""
    saturday = datetime(2030, 1, 5, tzinfo=UTC)
    return sorted(
        time
        for zone in ZONES
        for time in fire_times(MON_FRI_9_12, timezone=zone, after=saturday, count=4 * 52)
    )


def pretended(scheduled_at: datetime) -> datetime:
    """The time this firing counts as. The first one is written down, so that every attempt counts alike."""
    with closing(open_database()) as db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute("SELECT count(*) FROM demo").fetchone() == (0,):
            db.execute("INSERT INTO demo VALUES (?)", (scheduled_at.timestamp(),))
        (began,) = db.execute("SELECT began FROM demo").fetchone()
        db.execute("COMMIT")
    firing = round((scheduled_at.timestamp() - began) / EVERY_SECONDS)
    return calendar()[firing % len(calendar())]
