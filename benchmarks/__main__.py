"""`make bench`: throughput, precision and memory on this machine, beside what they are compared with."""

import argparse
import tempfile
from pathlib import Path

import uvloop

from benchmarks import lateness, memory, orders, schedules, steps, throughput


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        choices=["throughput", "lateness", "memory", "orders", "schedules", "steps", "waits", []],
        default=[],
    )
    parser.add_argument("--seconds", type=int, default=300, help="how long ten functions fire each second")
    parser.add_argument("--schedules", type=int, default=None, help="how many schedules are created")
    arguments = parser.parse_args()
    wanted = arguments.what or ["throughput", "lateness", "memory", "orders", "steps", "waits"]
    with tempfile.TemporaryDirectory() as folder:
        if "throughput" in wanted:
            throughput.run(str(Path(folder) / "throughput"))
        if "lateness" in wanted:
            lateness.run(str(Path(folder) / "lateness"), arguments.seconds)
        if "memory" in wanted:
            memory.run(str(Path(folder) / "memory"))
        if "steps" in wanted:
            uvloop.run(steps.measure_steps(str(Path(folder) / "steps")))
        if "waits" in wanted:
            uvloop.run(steps.measure_waits(str(Path(folder) / "waits")))
        if "orders" in wanted:
            orders.run(arguments.schedules or orders.COUNT)
        # Only when asked for: with a million schedules it takes minutes.
        if "schedules" in arguments.what:
            schedules.run(arguments.schedules or schedules.MANY, str(Path(folder) / "schedules"))


main()
