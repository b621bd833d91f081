"""`make bench`: throughput, precision and memory on this machine, beside what they are compared with."""

import argparse
import tempfile
from pathlib import Path

import uvloop

from benchmarks import lanes, lateness, memory, scale, schedules, steps, throughput


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        choices=["throughput", "lateness", "memory", "schedules", "lanes", "scale", "steps", "waits", []],
        default=[],
    )
    parser.add_argument("--seconds", type=int, default=300, help="how long ten functions fire each second")
    parser.add_argument(
        "--schedules", type=int, default=schedules.COUNT, help="how many schedules are created"
    )
    arguments = parser.parse_args()
    wanted = arguments.what or ["throughput", "lateness", "memory", "schedules", "lanes", "steps", "waits"]
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
        if "schedules" in wanted:
            schedules.run(arguments.schedules)
        if "lanes" in wanted:
            lanes.run(str(Path(folder) / "lanes"))
        # Only when asked for: with a million schedules it takes minutes.
        if "scale" in arguments.what:
            scale.run(arguments.schedules, str(Path(folder) / "scale"))


main()
