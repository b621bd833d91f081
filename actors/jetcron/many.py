"""Do the same for many things, some of them at one time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from jetcron.errors import leaves

T = TypeVar("T")

_AT_ONCE = 32


async def each(work: Callable[[T], Awaitable[None]], items: Iterable[T], *, at_once: int = _AT_ONCE) -> None:
    """Await `work` for every item, `at_once` at one time. The first error that is raised ends all, and is raised."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: T) -> None:
        async with gate:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(one(item))
    except BaseExceptionGroup as errors:
        raise next(iter(leaves(errors))) from None
