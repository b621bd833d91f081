"""`make soak`: run for long while chance kills, freezes and restarts everything, and count what was lost or doubled.

The functions and the books are those of the chaos tests. Ends with 1 if an occurrence was lost or doubled.
"""

import argparse
import asyncio
import contextlib
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import uvloop

from jetcron.client import Client
from jetcron_protocol.messages import Gap
from tests.chaos.apps import PERIODS
from tests.support.chaos import Chaos, Load, Mischief, Tally, chaos, now_ms

LATE_AFTER = 4.0
"""Seconds: short, so that what happens also makes occurrences late, and the catch-up policies have work."""
EVENTS_PAUSE = 0.25
REPORT_EVERY = 30.0
HARM = {
    "one": 40,
    "pair": 10,
    "all": 3,
    "server": 8,
    "server away": 3,
    "freeze": 12,
    "freeze server": 4,
}
"""What may happen, by weight."""


async def harm(mischief: Mischief, until: float) -> None:
    """Do one bad thing after another until this monotonic time."""
    chance = mischief.random
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(0.3, 3.0))
        match chance.choices(list(HARM), list(HARM.values())):
            case ["one"]:
                mischief.kill_one()
            case ["pair"]:
                mischief.kill_pair()
            case ["all"]:
                mischief.kill_all()
            case ["server"]:
                await mischief.kill_server()
            case ["server away"]:
                await mischief.kill_server(away=chance.uniform(1, 8))
            case ["freeze"]:
                await mischief.freeze_one(chance.uniform(0.5, 8))
            case ["freeze server"]:
                await mischief.freeze_server(chance.uniform(0.2, 4))


async def soak(minutes: float, seed: int, folder: Path) -> Tally:
    """Run for so long; returns the tally of everything due in that time."""
    async with chaos(folder, JETCRON_LATE_AFTER=str(LATE_AFTER)) as running:
        mischief = Mischief(running, seed)
        load = Load(running, "soak", pause=EVENTS_PAUSE)
        began = now_ms()
        started = time.monotonic()
        load.start()
        harming = asyncio.create_task(harm(mischief, started + minutes * 60))
        while not harming.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(harming), REPORT_EVERY)
            sent = sum(map(len, load.sent.values()))
            done = sum(1 for run in list(running.books.runs) if running.books.completed(run))
            what = ", ".join(f"{times} {name}" for name, times in sorted(mischief.done.items()))
            print(
                f"{(time.monotonic() - started) / 60:5.1f} min  {sent} events sent, {done} runs completed; {what}",
                flush=True,
            )
        harming.result()
        await load.stop()
        over = now_ms()
        await running.all_begun()
        tally = await running.settled(began, over)
        await running.drained(*load.sent, "chaos.relayed")
        await running.books.complete()
        running.check_events(tally, load.sent)
        running.check_relayed(tally, len(load.sent["chaos.relay"]))
        await report(running, mischief, load, tally, over - began)
        return tally


async def report(running: Chaos, mischief: Mischief, load: Load, tally: Tally, took: int) -> None:
    """The figures, and what is worth a second look."""
    starts = running.notes(what="start")
    begun: dict[tuple[str, int], int] = defaultdict(int)
    for note in starts:
        begun[note.run, note.attempt] += 1
    again = sum(times - 1 for times in begun.values())
    async with Client(running.settings) as client:
        shown = await client.runs.gaps()
    written = sum(len(gaps) for gaps in running.books.gaps.values())
    hidden = hidden_gaps(running, [view.gap for view in shown])
    lives = sum(member.lives for member in running.members) - len(running.members)
    print(f"\n{took / 60_000:.1f} minutes; {lives} processes started anew")
    for name, times in sorted(mischief.done.items()):
        print(f"  {name:<16} {times}")
    print(f"  events sent      {sum(map(len, load.sent.values()))}")
    print(
        f"  occurrences      {tally.expected} due: {tally.runs} runs, {tally.in_gaps} in {written} gap entries"
    )
    print(f"  code begun again {again} times, of {len(starts)}: its process died or froze in it")
    print(f"  repairs          {len(running.repairs())}")
    print(f"  lost             {len(tally.lost)}")
    print(f"  doubled          {len(tally.doubled)}")
    print(f"  otherwise wrong  {len(tally.wrong)}")
    print(f"  not in listing   {len(hidden)} (in a gap entry that a later one on its subject hides)")
    for line in [*tally.lost[:20], *tally.doubled[:20], *tally.wrong[:20], *hidden[:10]]:
        print(f"    {line}")
    for line in [*running.repairs()[:5], *running.unexpected()[:5]]:
        print(f"  ! {line[-1500:]}")


def hidden_gaps(running: Chaos, shown: list[Gap]) -> list[str]:
    """Occurrences that a gap entry names, but none that the client lists, and that did not run."""
    found = []
    for function, gaps in running.books.gaps.items():
        runs = running.books.scheduled(function)
        listed = [gap for gap in shown if gap.schedule.removesuffix(":2") == function]
        times = {
            time
            for gap in gaps.values()
            for period in PERIODS[function]
            for time in range(-(-gap.start // period) * period, gap.to + 1, period)
        }
        for at in sorted(times):
            if not any(running.books.completed(run) for run in runs.get(at, ())) and not any(
                gap.start <= at <= gap.to for gap in listed
            ):
                found.append(f"{function} at {at}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to do harm")
    parser.add_argument("--seed", type=int, default=None, help="the same seed chooses the same harm")
    parser.add_argument("--keep", type=Path, default=None, help="an empty folder for logs and notes, kept")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    print(f"soak: {arguments.minutes:g} minutes, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="jetcron-soak-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tally = uvloop.run(soak(arguments.minutes, seed, folder))
    sys.exit(0 if tally.clean else 1)


if __name__ == "__main__":
    main()
