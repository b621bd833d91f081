"""A series of mails to a new user, over two weeks; it stops when the user has had enough.

Shows the three ways to wait: for so long (`sleep`), until a time (`sleep_until`), and for an event, but no longer
than (`wait_for_event`). A run that waits for days costs nothing but its place on the server's disk: no process has
it, and any may die. When its time comes, the code begins again from the top, and what its steps did is
not done again. So the whole series reads as one function.

    CAMPAIGN_DAY=5 jetcron dev examples.drip_campaign:app

Here a day takes 5 seconds; leave the variable out, and it takes a day. In a second terminal, in the same folder:

    jetcron send user.signed_up '{"user": "u1", "name": "Ada", "email": "ada@example.com"}'
    jetcron runs list
    jetcron send user.signed_up '{"user": "u2", "name": "Bob", "email": "bob@example.com"}'
    jetcron send user.unsubscribed '{"user": "u2"}'
    jetcron runs list

The mails are lines in the first terminal: Ada gets four, Bob those before he left.
"""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jetcron import App, Context

DAY = timedelta(seconds=float(os.environ.get("CAMPAIGN_DAY", 86_400)))

app = App("campaign")


@dataclass(frozen=True)
class User:
    user: str
    name: str
    email: str


@dataclass(frozen=True)
class Leaver:
    user: str


@app.function(on="user.signed_up")
async def welcome(ctx: Context, user: User) -> str:
    """Four mails in two weeks."""

    async def mail(subject: str) -> bool:
        """Whether the mail was sent: never to one who has unsubscribed."""
        sent: bool = await ctx.step.run(subject, send_mail, f"{ctx.run_id} {subject}", user, subject)
        return sent

    # What may be another at every replay, such as the time, is asked for in a step.
    joined = await ctx.step.run("joined", now)
    await mail("Welcome!")

    await ctx.step.sleep("a day to look around", 1 * DAY)
    if not await mail("Three things to try first"):
        return "unsubscribed within a day"

    # A wait that an event may cut short: the run ends now, and not only when the next mail would be due.
    left = await ctx.step.wait_for_event(
        "five days to try them", "user.unsubscribed", match={"user": user.user}, timeout=5 * DAY
    )
    if left is not None or not await mail("What others made of it"):
        return "unsubscribed within a week"

    await ctx.step.sleep_until("two weeks are over", joined + 14 * DAY)
    return "all sent" if await mail("Shall we talk?") else "unsubscribed within two weeks"


def now() -> datetime:
    return datetime.now(UTC)


@app.function(on="user.unsubscribed")
def unsubscribe(ctx: Context, leaver: Leaver) -> None:
    """Send this user nothing more, from this series or any other."""
    never_mail(leaver.user)


# The outside world: a file of SQLite in place of a mail service. As a good one does, it sends a mail once for each
# idempotency key, however often it is asked, and none to those on its list.

WORLD = Path(os.environ.get("CAMPAIGN_DB", ".jetcron/campaign.db"))


def send_mail(key: str, user: User, subject: str) -> bool:
    """Whether it is sent: now, or before under this key."""
    with closing(open_world()) as db:
        db.execute("BEGIN IMMEDIATE")
        if not db.execute("SELECT 1 FROM effects WHERE key = ?", (key,)).fetchone():
            if db.execute("SELECT 1 FROM unsubscribed WHERE user = ?", (user.user,)).fetchone():
                return False
            db.execute("INSERT INTO effects VALUES (?, ?)", (key, f"mail to {user.email}: {subject}"))
            print(f"    mail to {user.email}: {subject}", flush=True)
        db.execute("COMMIT")
    return True


def never_mail(user: str) -> None:
    with closing(open_world()) as db:
        db.execute("INSERT INTO unsubscribed VALUES (?) ON CONFLICT DO NOTHING", (user,))


def open_world() -> sqlite3.Connection:
    WORLD.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(WORLD, timeout=30, isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, what TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS unsubscribed (user TEXT PRIMARY KEY)")
    return db
