"""The example, run for real and judged: what `make demo` starts.

    python -m examples.demo                 until Ctrl-C
    python -m examples.demo --seconds 20    then stop, count, and exit 1 if anything was lost or doubled

Starts the receiver, and `jetcron dev` on `notifications.py` with a store of its own: nats-server, every actor
and an executor. After the given seconds it takes the firings up to that moment, waits until what they led to
has ended, and compares three accounts: the database (what was due), the journal (what ran) and the receiver
(what arrived).
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from examples import notifications
from examples.receiver import Receiver, serve
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.errors import BusError
from jetcron.replay import Dead
from jetcron.runs import RunView
from jetcron.settings import Settings

DISPATCH = "notifications.dispatch"
POST = "notifications.post_to_slack"
FIRINGS = 3
"""As many are judged at least: the dead letter comes from the second."""
DRAIN = 5.0
"""So long before the end nothing more is judged, that retries may end by then."""
PATIENCE = 25.0
"""How long the demo may overrun: for a slow start, and for retries to end."""
_POLL = 0.25
_ENDED = ("completed", "failed", "cancelled")


@dataclass
class Account:
    """What became of the firings up to `until`, as the database, the journal and the receiver tell it."""

    fired: list[datetime] = field(default_factory=list)
    open: int = 0
    due: Counter[str] = field(default_factory=Counter)
    posted: Counter[str] = field(default_factory=Counter)
    hopeless: set[str] = field(default_factory=set)
    dead: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    repeated: int = 0

    @property
    def skipped(self) -> int:
        """Firings that should stand between the first and the last, and do not."""
        if not self.fired:
            return 0
        span = (self.fired[-1] - self.fired[0]).total_seconds()
        return round(span / notifications.EVERY_SECONDS) + 1 - len(self.fired)

    @property
    def lost(self) -> Counter[str]:
        return self.due - self.posted - self.dead

    @property
    def doubled(self) -> Counter[str]:
        return (self.posted + self.dead) - self.due

    @property
    def enough(self) -> bool:
        """There was something to see of each kind."""
        return len(self.fired) >= FIRINGS and bool(self.posted and self.dead and self.retried)

    def problems(self) -> list[str]:
        """What is not as it should be; nothing when all is well."""
        found = {
            f"cron fired {len(self.fired)} times; at least {FIRINGS} were expected": len(self.fired)
            < FIRINGS,
            f"{self.skipped} firings are missing between the first and the last": self.skipped,
            f"{self.open} runs have not ended": self.open,
            "nothing was retried": not self.retried,
            "no dead letter": not self.dead,
            f"lost: {sorted(self.lost)}": self.lost,
            f"doubled: {sorted(self.doubled)}": self.doubled,
            f"{self.repeated} posts came again after they were taken": self.repeated,
            f"dead, but should have been posted: {sorted(set(self.dead) - self.hopeless)}": (
                set(self.dead) - self.hopeless
            ),
        }
        return [text for text, wrong in found.items() if wrong]

    def table(self) -> str:
        rows = [
            ("cron fired", len(self.fired), f"every {notifications.EVERY_SECONDS} s, {self.skipped} missing"),
            ("notifications due", self.due.total(), "says the database"),
            ("posted", self.posted.total(), "says the receiver"),
            ("dead letters", self.dead.total(), f"for {notifications.GONE}, which always fails"),
            ("posts retried", self.retried, "refused with 500 or 429, posted a moment later"),
            ("lost", self.lost.total(), ""),
            ("doubled", self.doubled.total() + self.repeated, ""),
        ]
        return "\n".join(f"  {name:<18}{count:>5}   {remark}".rstrip() for name, count, remark in rows)


def key_of(notification: int, due: datetime | str) -> str:
    """One notification at one of its times."""
    return f"{notification} at {datetime.fromisoformat(str(due)).isoformat()}"


def account(
    dispatched: list[RunView], posts: list[RunView], dead: list[Dead], receiver: Receiver, until: float
) -> Account:
    """Compare what was due with what ran and what arrived, for firings up to `until` (epoch seconds)."""
    result = Account()
    for run in dispatched:
        about = run.history.about
        if about is None or about.scheduled_at is None or about.scheduled_at > until * 1000:
            continue
        fired = from_ms(about.scheduled_at)
        result.fired.append(fired)
        if run.status not in _ENDED:
            result.open += 1
            continue
        for each in notifications.due_at(notifications.pretended(fired)):
            result.due[key_of(each.id, each.due)] += 1
            if each.channel == notifications.GONE:
                result.hopeless.add(key_of(each.id, each.due))
    result.fired.sort()
    letters = {one.letter.run for one in dead}
    failed = {run.id for run in posts if run.status == "failed"}
    for key, body in dict(receiver.posts).items():
        if (name := key_of(body["id"], body["due"])) in result.due:
            result.posted[name] += 1
            result.retried += receiver.refused[key] > 0
    # A run that failed for good is told twice, by its journal and by its dead letter; both must be there.
    for key in failed & letters:
        body = receiver.refused_bodies.get(key)
        if body is not None and (name := key_of(body["id"], body["due"])) in result.due:
            result.dead[name] += 1
    result.repeated = len(receiver.repeated)
    return result


async def watch(client: Client, receiver: Receiver, seconds: float, began: float) -> Account:
    """Wait out the seconds, or a little longer until there is enough to judge; then until all has ended."""
    last = began + seconds + PATIENCE
    until: float | None = None
    while True:
        await asyncio.sleep(_POLL)
        now = time.time()
        if now < began + seconds - DRAIN:
            continue
        try:
            dead, dispatched, posts = await asyncio.gather(
                client.dead.list(kind="failed", limit=10_000),
                client.runs.list(function=DISPATCH, limit=10_000),
                client.runs.list(function=POST, limit=10_000),
            )
        except BusError as error:
            if now > last:
                raise
            print(f"  (waiting for the server: {error})")
            continue
        found = account(dispatched, posts, dead, receiver, until or now)
        if until is None and (found.enough or now > last - PATIENCE / 2):
            until = now  # later firings are not judged: what these led to has time to end
        settled = until is not None and not found.open and not found.lost
        if (settled and now >= began + seconds) or now > last:
            return found


async def demo(seconds: float | None) -> int:
    """Run it; the exit code."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    receiver = Receiver(notifications.GONE)
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="jetcron-demo-") as folder, serve(receiver) as webhook:
        notifications.DATABASE = Path(folder) / "notifications.db"
        dev = await start(Path(folder), webhook)
        waiting = {"ended": asyncio.create_task(dev.wait()), "stop": asyncio.create_task(interrupted.wait())}
        judged = asyncio.create_task(judge(receiver, Path(folder), seconds, began)) if seconds else None
        try:
            everything = [*waiting.values(), *([judged] if judged else [])]
            done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        finally:
            code = await stop(dev)
            for task in everything:
                task.cancel()
    if judged is not None and judged in done:
        return verdict(judged.result(), code)
    refusals = receiver.refused.total()
    print(f"\n{len(receiver.posts)} posted, {refusals} refused, {len(receiver.repeated)} posted again")
    if waiting["stop"] not in done:
        print(f"jetcron dev ended by itself, with {code}")
    return 0 if waiting["stop"] in done and seconds is None else 1


async def start(folder: Path, webhook: str) -> asyncio.subprocess.Process:
    """`jetcron dev` on the example, everything it keeps in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "NATS_URL"} | {
        "NOTIFICATIONS_DEMO": "1",
        "NOTIFICATIONS_DB": str(notifications.DATABASE),
        "NOTIFICATIONS_URL": webhook,
    }
    command = [
        "jetcron",
        "dev",
        "examples.notifications:app",
        "--store",
        str(folder / "jetcron"),
        "--no-reload",
    ]
    print(" ".join(command), flush=True)
    return await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("jetcron"), *command[1:]),
        env=environment,
        start_new_session=True,  # a Ctrl-C in the terminal is ours: it is passed on once, by `stop`
    )


async def stop(dev: asyncio.subprocess.Process) -> int:
    """Ask `jetcron dev` to end in good order; its exit code."""
    if dev.returncode is not None:
        return dev.returncode
    with suppress(ProcessLookupError):
        dev.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(20):
            return await dev.wait()
    except TimeoutError:
        dev.kill()
        await dev.wait()
        print("jetcron dev did not end within 20 s and was killed")
        return 1


def verdict(found: Account, code: int) -> int:
    """Print what was counted; 0 when all is as it should be."""
    problems = found.problems() + ([f"jetcron dev ended with {code}"] if code else [])
    print(f"\n{found.table()}\n")
    print("\n".join(f"  WRONG: {problem}" for problem in problems) or "  All is well.")
    return 1 if problems else 0


async def judge(receiver: Receiver, folder: Path, seconds: float, began: float) -> Account:
    """Connect as soon as the server answers, and watch."""
    while True:
        try:
            address = (folder / "jetcron" / "url").read_text().strip()
            async with Client(Settings.load(nats_url=address)) as client:
                return await watch(client, receiver, seconds, began)
        except (FileNotFoundError, BusError):
            if time.time() > began + seconds + PATIENCE:
                raise
            await asyncio.sleep(_POLL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the example with everything it needs.")
    parser.add_argument("--seconds", type=float, help="stop after so long and judge what happened")
    raise SystemExit(asyncio.run(demo(parser.parse_args().seconds)))


if __name__ == "__main__":
    main()
