"""Call a user's function, async on the loop or plain in a thread.

Owns what becomes of a thread whose run is over: it goes on, for threads cannot be stopped; what it returns is
dropped, and said to be.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import structlog

log = structlog.get_logger("jetcron.executor")


async def call(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    limiter: anyio.CapacityLimiter,
) -> Any:
    """What `function` returns, awaited if that is an awaitable; `name` is what it is called in the log."""
    called = partial(function, *args, **(kwargs or {}))
    if inspect.iscoroutinefunction(function):
        return await called()
    thread = _Thread(name, called)
    try:
        result = await anyio.to_thread.run_sync(thread.run, abandon_on_cancel=True, limiter=limiter)
    except asyncio.CancelledError:
        thread.abandoned = True
        raise
    return await result if inspect.isawaitable(result) else result


class _Thread:
    """A plain function in its thread, which says so when it ends after nobody waits for it any more."""

    def __init__(self, name: str, called: Callable[[], Any]) -> None:
        self._name = name
        self._called = called
        self.abandoned = False

    def run(self) -> Any:
        try:
            return self._called()
        finally:
            if self.abandoned:
                log.warning(
                    "a function ended after its run was over, what it returned is dropped",
                    function=self._name,
                )
