"""`make soak-durable`: random workflows for long, while chance kills and freezes executors, routers and the server.

The workflows, what they must come to and how they are judged are the tests'. Ends with 1 if a result was not what it
must be, a step was recorded twice or not at all, or something hangs.
"""

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import uvloop

from tests.support.durable import Durable, disturbed, durable
from tests.support.workflows import expected, nodes

REPORT_EVERY = 30.0


async def soak(seconds: float, seed: int, folder: Path, at_once: int) -> list[str]:
    """Run for so long; what is wrong."""
    async with durable(folder, seed) as running:
        started = time.monotonic()
        work = asyncio.create_task(disturbed(running, seconds, Random(seed), at_once=at_once))
        while not work.done():
            await asyncio.wait({work}, timeout=REPORT_EVERY)
            what = ", ".join(f"{times} {name}" for name, times in sorted(running.done.items()))
            print(
                f"{(time.monotonic() - started) / 60:5.1f} min  {len(running.play.flows)} workflows begun, "
                f"{len(running.play.under_way())} under way; {what}",
                flush=True,
            )
        try:
            work.result()
        except AssertionError as error:
            return [str(error)]
        problems = await running.problems()
        report(running, time.monotonic() - started)
        return problems


def report(running: Durable, seconds: float) -> None:
    """The figures."""
    diary = running.diary
    entries = Counter(entry.entry for _, entry in diary.order)
    kinds = Counter(node["do"] for flow in running.play.flows.values() for node in nodes(flow))
    ends = Counter(one.entry.entry for run in diary.runs for one in diary.ended(run))
    lost = sum(
        attempt.outcome == "lost"
        for run in diary.runs
        for one in diary.ended(run)
        for attempt in one.entry.attempts or ()
    )
    done = Counter((line["root"], line["k"]) for line in running.play.notes.of("done"))
    must = sum(len(expected(flow).must) for flow in running.play.flows.values())
    print(
        f"\n{seconds / 60:.1f} minutes; {sum(member.lives - 1 for member in running.members)} processes started anew"
    )
    for name, times in sorted(running.done.items()):
        print(f"  {name:<32} {times}")
    print(f"  workflows                        {len(running.play.flows)}: {dict(kinds.most_common())}")
    print(f"  runs                             {len(diary.runs)}: {dict(ends)}")
    print(f"  journal entries                  {dict(entries.most_common())}")
    print(f"  attempts lost and taken over     {lost}")
    print(f"  effects that had to be           {must}")
    print(
        f"  steps executed                   {len(done)}, {sum(done.values()) - len(done)} again after a loss"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak-durable", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to do harm")
    parser.add_argument(
        "--seed", type=int, default=None, help="the same seed draws the same workflows and harm"
    )
    parser.add_argument("--at-once", type=int, default=40, help="workflows under way at one time")
    parser.add_argument("--keep", type=Path, default=None, help="an empty folder for logs and notes, kept")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    print(f"soak: {arguments.seconds:g} s, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="jetcron-soak-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        problems = uvloop.run(soak(arguments.seconds, seed, folder, arguments.at_once))
    print(f"  wrong                            {len(problems)}")
    for problem in problems[:40]:
        print(f"    {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
