"""The branches of a run's code: which tasks it has, when all of them stand still, and whether all of them wait.

Owns two questions about asyncio that it answers itself to nobody. Results reach the code one at a time, each only
when the code has done all it can with those before: so it makes the same calls in the same order however often it is
replayed, and repeated ids find their own results. And a run is released only when every branch waits.
"""

import asyncio
import heapq
from collections.abc import Coroutine, Iterable, Iterator
from contextvars import Context, ContextVar
from itertools import count
from typing import Any

from jetcron.clock import Clock

_QUIET = 3
"""Turns of the loop without a runnable task after which the code stands still: a task that ended reaches the one
that awaits it through callbacks, which take a turn or two in which neither could run."""
_MOST_TURNS = 200
"""After so many turns the next result is delivered all the same: a task that polls never stands still."""
_JOINS = {
    "asyncio.tasks": ("wait", "_wait", "wait_for"),
    "asyncio.taskgroups": ("__aexit__", "_aexit"),
    "anyio._backends._asyncio": ("__aexit__",),
}
"""Coroutines that wait for other tasks, by their modules."""

_SHIELDS = "shield.<locals>._outer_done_callback"

_tasks: "ContextVar[set[asyncio.Task[Any]] | None]" = ContextVar("jetcron_tasks", default=None)
OUTSIDE = Context()
"""A context of no run, for tasks of ours that are no branch of its code."""


def watch_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """From now on, know the tasks that a run's code starts. Once for a loop."""
    before = loop.get_task_factory()
    if getattr(before, "knows_runs", False):
        return

    def make(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **more: Any) -> Any:
        task = asyncio.Task(coro, loop=loop, **more) if before is None else before(loop, coro, **more)
        context = more.get("context")
        tasks = _tasks.get() if context is None else context.get(_tasks)
        if tasks is not None and isinstance(task, asyncio.Task):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task

    make.knows_runs = True  # type: ignore[attr-defined]
    loop.set_task_factory(make)  # type: ignore[arg-type]  # typeshed knows no keywords of later versions


class Branches:
    """The tasks of one attempt's code, from the one that is made here on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.main: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # there is a running one
        self._live: set[asyncio.Task[Any]] = {self.main}
        self._callers: set[asyncio.Task[Any]] = set()
        """The tasks that have called a step: branches, also where no other task waits for them."""
        self._standing: set[asyncio.Task[Any]] = set()
        self._due: list[tuple[int, int, asyncio.Future[None], asyncio.Future[Any] | None]] = []
        self._numbers = count()
        self._delivering: asyncio.Task[None] | None = None
        _tasks.set(self._live)

    def close(self) -> None:
        """The code has ended: its branches go no further, and what it left waiting for its steps would for ever."""
        _tasks.set(None)
        self._cancel({*self._awaiting(self._standing), *self._callers})
        if self._delivering is not None:
            self._delivering.cancel()

    def calls_steps(self) -> None:
        """The current task calls a step: the run leaves only when this task waits, too."""
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)

    @property
    def callers(self) -> "set[asyncio.Task[Any]]":
        """The first task, and those that have called a step and have not ended."""
        self._callers = {task for task in self._callers if not task.done()}
        return {self.main, *self._callers}

    @property
    def owed(self) -> bool:
        """Whether a branch waits for a result that is there."""
        return bool(self._due)

    async def turn(self, order: int, loading: "asyncio.Future[Any] | None" = None) -> None:
        """Wait until the result of this order may reach the code: it stands still, and no earlier one is due.

        `loading` brings the result, if it is not here; those after it do not overtake it.
        """
        if len(self._live) == 1 and not self._due:
            if loading is not None:
                await asyncio.wait({loading})
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._due, (order, next(self._numbers), future, loading))
        if self._delivering is None or self._delivering.done():
            self._delivering = asyncio.create_task(self._deliver(), context=OUTSIDE.copy())
        await self.standing(future)

    async def standing(self, future: "asyncio.Future[Any]") -> Any:
        """Await a future of ours: until it is done, this task does not run."""
        task = asyncio.current_task()
        assert task is not None
        self._standing.add(task)
        try:
            return await future
        finally:
            self._standing.discard(task)

    def unwind(self, waiting: "Iterable[asyncio.Task[Any]]") -> None:
        """Cancel those that wait, and whoever awaits them: a group takes a member's cancellation for its end."""
        self._cancel(self._awaiting(waiting))

    def _awaiting(self, waiting: "Iterable[asyncio.Task[Any]]") -> "list[asyncio.Task[Any]]":
        these = set(waiting)
        return [task for task in self._live if _awaits(task, these, set())]

    def _cancel(self, tasks: "Iterable[asyncio.Task[Any]]") -> None:
        for task in tasks:
            if task is not self.main:
                task.cancel()

    async def _deliver(self) -> None:
        while self._due:
            await self.settle()
            _, _, future, loading = self._due[0]
            if loading is not None and not loading.done():
                await asyncio.wait({loading})
                continue
            heapq.heappop(self._due)
            if not future.done():
                future.set_result(None)

    async def settle(self) -> None:
        """Return when no task of the code can run."""
        quiet = 0
        for _ in range(_MOST_TURNS):
            await self._clock.sleep(0)
            # Who was given a result counts too, until it has run: it may be about to wake others.
            quiet = 0 if any(map(_can_run, self._live)) else quiet + 1
            if quiet == _QUIET:
                return

    def all_wait(self, waiting: "set[asyncio.Task[Any]]") -> bool:
        """Whether the first task and those that have called a step are `waiting`, or await only tasks that are."""
        return not self._due and all(_waits(task, waiting, set()) for task in self.callers)


def _can_run(task: "asyncio.Task[Any]") -> bool:
    awaited = _awaited(task)
    return not task.done() and (awaited is None or awaited.done())


def _awaited(task: "asyncio.Task[Any]") -> "asyncio.Future[Any] | None":
    return getattr(task, "_fut_waiter", None)


def _waits(
    task: "asyncio.Task[Any]", waiting: "set[asyncio.Task[Any]]", seen: "set[asyncio.Task[Any]]"
) -> bool:
    if task in waiting or task in seen or task.done():
        return True
    seen.add(task)
    # When all that it awaits is done, it is about to be told so: that takes a turn of the loop or two.
    joined = [one for one in _joined(task) if not one.done()]
    return bool(joined) and all(
        isinstance(one, asyncio.Task) and _waits(one, waiting, seen) for one in joined
    )


def _awaits(
    task: "asyncio.Task[Any]", these: "set[asyncio.Task[Any]]", seen: "set[asyncio.Task[Any]]"
) -> bool:
    """Whether a task is one of these, or awaits one, whatever else it awaits."""
    if task in these:
        return True
    if task in seen or task.done():
        return False
    seen.add(task)
    return any(isinstance(one, asyncio.Task) and _awaits(one, these, seen) for one in _joined(task))


def _joined(task: "asyncio.Task[Any]") -> "Iterator[asyncio.Future[Any]]":
    """What a task awaits, where that can be seen: a task, those of `gather`, of a task group, of `asyncio.wait`."""
    awaited = _awaited(task)
    if isinstance(awaited, asyncio.Task):
        yield awaited
        return
    if awaited is not None:
        opened = list(_opened([awaited]))
        if opened != [awaited]:
            yield from opened
            return
    frame: Any = task.get_coro()
    while frame is not None:
        yield from _joined_in(frame)
        frame = (
            getattr(frame, "cr_await", None)
            or getattr(frame, "gi_yieldfrom", None)
            or getattr(frame, "ag_await", None)
        )


def _opened(futures: "Iterable[asyncio.Future[Any]]") -> "Iterator[asyncio.Future[Any]]":
    """These futures; instead of a `gather` its own, and what is behind a `shield`, opened in turn."""
    for future in futures:
        children = getattr(future, "_children", None)
        shielded = _shielded(future)
        if children is not None:
            yield from _opened(children)
        elif shielded is not None:
            yield from _opened([shielded])
        else:
            yield future


def _shielded(future: "asyncio.Future[Any]") -> "asyncio.Future[Any] | None":
    """What `asyncio.shield` made this future for: only a callback of it knows."""
    for callback, _ in getattr(future, "_callbacks", None) or ():
        if getattr(callback, "__qualname__", "") == _SHIELDS and callback.__module__ == "asyncio.tasks":
            behind = dict(zip(callback.__code__.co_freevars, callback.__closure__ or (), strict=False))
            return behind["inner"].cell_contents if "inner" in behind else None
    return None


def _joined_in(coroutine: Any) -> "Iterator[asyncio.Future[Any]]":
    """The tasks for which a coroutine of asyncio's or anyio's waits."""
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None or frame.f_code.co_name not in _JOINS.get(frame.f_globals.get("__name__"), ()):
        return
    for name, value in frame.f_locals.items():
        if name == "self":
            value = getattr(value, "_tasks", ())
        if isinstance(value, asyncio.Task):
            yield value
        elif isinstance(value, set | list | tuple | frozenset | dict):
            yield from (one for one in value if isinstance(one, asyncio.Task))
