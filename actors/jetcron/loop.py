"""Start an event loop: uvloop where there is one, for it takes half the CPU a message; asyncio's elsewhere.

Owns how a process of ours begins and ends beside that: its collector of garbage, and threads that do not end.
"""

import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger("jetcron.process")

T = TypeVar("T")

_MOMENT = 0.2
"""Seconds in which a thread that has nothing to do any more ends."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end on a new loop. The loop of tests and embedders is never touched."""
    found: list[T] = []

    async def kept() -> None:
        # Not as the task's result: at its end the runner makes a text of the task (signal.getsignal), result and all.
        found.append(await work)

    with asyncio.Runner(loop_factory=_factory()) as runner:
        runner.run(kept())
    return found[0]


def calm_collector() -> None:
    """Look for cycles seldom: what is loaded stays, and a thousand runs in hand or the lines of a file are no garbage.

    With the default thresholds the collector walks all of them again and again: a tenth of an executor's time, with
    pauses just when a thousand runs are due, and a fifth of what it takes to compare 100,000 schedules.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def leave_threads() -> None:
    """End the process now if threads are still at work: plain functions that outlasted the grace period.

    Nobody can stop a thread, and the interpreter would wait for it, while another executor has the run.
    """
    left = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
    for thread in left:
        thread.join(_MOMENT / len(left))
    left = [thread for thread in left if thread.is_alive()]
    if left:
        log.warning("leaving plain functions that are still running", threads=len(left))
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
