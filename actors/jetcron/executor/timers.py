"""The time-outs that a run's code has set around its waits: while one may end a wait, the run must not leave.

Owns where they can be seen: asyncio and anyio tell nobody of them, so they are looked for in what suspended coroutines
hold. One that is not found is none: the run leaves, and the time-out begins anew when it is back.
"""

import asyncio
import contextlib
import gc
from collections.abc import Iterable, Iterator
from types import CellType, MethodType
from typing import Any

import anyio

_FIRING = 1.0
"""Seconds within which a time-out fires that is due."""


def first_of(tasks: "Iterable[asyncio.Task[Any]]") -> float | None:
    """When the first time-out fires that the code of these tasks has set around what it awaits, on the loop's clock.

    One that fired a while ago, and whose block the code is in all the same, is none.
    """
    passed = asyncio.get_running_loop().time() - _FIRING
    coroutines = (coroutine for task in tasks for coroutine in _chain(task.get_coro()))
    return min((at for coroutine in coroutines for at in _set_in(coroutine) if at > passed), default=None)


def _chain(coroutine: Any) -> Iterator[Any]:
    """A coroutine of the user's and those it awaits, ours left out: their time-outs are for the whole attempt."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and not str(frame.f_globals.get("__name__")).startswith("jetcron."):
            yield coroutine
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)


def _set_in(coroutine: Any) -> Iterator[float]:
    """The times at which the time-outs fire whose blocks a coroutine is in."""
    for held in gc.get_referents(coroutine):
        with contextlib.suppress(ValueError):  # a cell that is empty
            found: Any = held.cell_contents if isinstance(held, CellType) else held
            # Of `with` and `async with`, what is kept is the method to leave with.
            found = found.__self__ if isinstance(found, MethodType) else found
            match found:
                case asyncio.Timeout():
                    at = found.when()
                    if at is not None:
                        yield at
                case anyio.CancelScope():
                    if found.deadline < float("inf"):
                        yield found.deadline
                case contextlib._GeneratorContextManager():
                    yield from _set_in(found.gen)  # `anyio.fail_after`
                case _ if type(found).__name__ == "TimerHandle" and not found.cancelled():
                    yield found.when()  # `asyncio.wait`, and `wait_for` before Python 3.12
