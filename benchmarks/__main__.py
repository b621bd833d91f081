"""`make bench`: throughput, precision and memory on this machine, beside what they are compared with."""

import argparse
import tempfile
from pathlib import Path

from benchmarks import lateness, memory, scale, schedules, throughput


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "what", nargs="*", choices=["throughput", "lateness", "memory", "schedules", "scale", []], default=[]
    )
    parser.add_argument("--seconds", type=int, default=300, help="how long ten functions fire each second")
    parser.add_argument(
        "--schedules", type=int, default=schedules.COUNT, help="how many schedules are created"
    )
    arguments = parser.parse_args()
    wanted = arguments.what or ["throughput", "lateness", "memory", "schedules"]
    with tempfile.TemporaryDirectory() as folder:
        if "throughput" in wanted:
            throughput.run(str(Path(folder) / "throughput"))
        if "lateness" in wanted:
            lateness.run(str(Path(folder) / "lateness"), arguments.seconds)
        if "memory" in wanted:
            memory.run(str(Path(folder) / "memory"))
        if "schedules" in wanted:
            schedules.run(arguments.schedules)
        if (
            "scale" in arguments.what
        ):  # only when asked for: with a million schedules it takes a quarter of an hour
            scale.run(arguments.schedules, str(Path(folder) / "scale"))


main()
