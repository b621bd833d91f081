"""What a running function sees: where its run comes from, a log bound to it, and its steps.

Owns nothing that outlives the attempt: what must be remembered is in the journal before the code goes on. If
the process dies here, the run is retried, and finished steps are found in the journal.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Protocol

import structlog

from jetcron.clock import from_ms, to_ms
from jetcron.errors import ConfigurationError
from jetcron.events import Event, check_sendable, from_wire, to_wire
from jetcron.options import MILLISECOND, YEAR, ZERO, Duration, Retry, check_duration, check_path
from jetcron_protocol import messages
from jetcron_protocol.ids import step_event_id
from jetcron_protocol.messages import Run
from jetcron_protocol.subjects import MAX_ID, InvalidName, check_event_name, split_function

_MAKERS = ("new", "unbind", "try_unbind")
"""What gives another logger."""
_LEVELS = ("debug", "info", "warning", "warn", "error", "critical", "fatal", "exception", "log", "msg")


class Memory(Protocol):
    """What an attempt needs of its executor: steps that are done once, and remembered."""

    @property
    def replaying(self) -> bool:
        """Whether the code is still where an earlier attempt has been."""
        ...

    async def number(self, id: str) -> str:
        """The name of a step with this id, here: the same at every replay, and no other step's."""
        ...

    def now(self) -> int:
        """Epoch milliseconds."""
        ...

    async def run(
        self,
        step: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        policy: Retry | None,
    ) -> Any:
        """What `function` returned; `policy` None is the function's."""
        ...

    async def sleep(self, step: str, until: int | timedelta) -> None:
        """Wait until an instant (epoch ms), or so long."""
        ...

    async def wait_for_event(
        self, step: str, name: str, match: Mapping[str, Any], timeout: timedelta
    ) -> messages.Event | None:
        """An event, or None when none came."""
        ...

    async def invoke(self, step: str, function: str, data: Any, timeout: timedelta) -> Any:
        """The result of another function."""
        ...

    async def send(self, step: str, events: Callable[[], Sequence[messages.Event]]) -> None:
        """Store events, all or nothing by the thousand; they are made only if they are not stored yet."""
        ...


class Step:
    """Parts of a run that are remembered: a finished one is not done again when the run is retried or resumed.

    An id used twice in one run is numbered: ``notify``, ``notify#2``. Steps of a step's own are named under it:
    ``notify#/look up``. Steps may run side by side, under
    `asyncio.gather` or in a task group; when all branches wait, the run leaves its executor until the wait is over,
    and the code begins again from the top. Code outside steps therefore runs more than once.

    Every method raises `ConfigurationError` for a bad id or argument, and `NonRetriableError` when the run has
    another step under this id in its history, or too many.
    """

    def __init__(self, memory: Memory, run: Run) -> None:
        self._memory = memory
        self._run = run

    async def run(
        self,
        id: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        retry: Retry | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call `function`, plain (in a thread) or async, once; its result is remembered.

        It is called again only if it fails, or its process dies before the result is stored. `retry` sets how
        often and when, by default as the app's function is retried. Failed for good, it raises `StepError`.
        A result that is replayed comes back as the type of the function's return annotation.
        """
        step = await self._number(id)
        if not callable(function):
            raise ConfigurationError(
                f"step {step!r}: {function!r} is not a function; write step.run({id!r}, function, argument), "
                "without calling it"
            )
        if retry is not None and not isinstance(retry, Retry):
            raise ConfigurationError(
                f"step {step!r}: retry={retry!r}; allowed is a Retry(attempts, waits, jitter)"
            )
        return await self._memory.run(step, function, args, kwargs, retry)

    async def sleep(self, id: str, duration: Duration) -> None:
        """Wait for seconds or a timedelta, up to 366 days. Longer ones cost no memory, and outlive any process."""
        step = await self._number(id)
        await self._memory.sleep(step, check_duration(f"step {step!r}", "duration", duration, ZERO, YEAR))

    async def sleep_until(self, id: str, moment: datetime) -> None:
        """Wait until an aware datetime, up to 366 days away; one in the past is over at once."""
        step = await self._number(id)
        if not isinstance(moment, datetime) or moment.utcoffset() is None:
            raise ConfigurationError(
                f"step {step!r}: {moment!r}; allowed is an aware datetime, such as datetime(2030, 1, 31, tzinfo=UTC)"
            )
        until = to_ms(moment)
        if until - self._memory.now() > YEAR // MILLISECOND:
            raise ConfigurationError(
                f"step {step!r}: {moment.isoformat()} is too far; a run sleeps 366 days at most"
            )
        await self._memory.sleep(step, until)

    async def wait_for_event(
        self, id: str, name: str, *, match: Mapping[str, Any] | None = None, timeout: Duration
    ) -> Event | None:
        """The first event of this very name from now on, or up to 2 s before; None after `timeout` (at most 366 days).

        `match` has values that must stand at dotted paths of the event's data: ``{"order.id": 7}``.
        """
        step = await self._number(id)
        where = f"step {step!r}"
        try:
            check_event_name(name)
        except InvalidName as error:
            raise ConfigurationError(f"{where}: {error}") from None
        if match is not None and not isinstance(match, Mapping):
            raise ConfigurationError(
                f"{where}: match={match!r}; allowed is a map of paths to values, such as {{'order.id': 7}}"
            )
        for path in match or ():
            check_path(where, "match", path)
        limit = check_duration(where, "timeout", timeout, ZERO, YEAR)
        found = await self._memory.wait_for_event(step, name, match or {}, limit)
        return None if found is None else from_wire(found)

    async def invoke(self, id: str, function: str, data: Any = None, *, timeout: Duration = YEAR) -> Any:
        """Start a function (``app.function``) in a run of its own; returns its result.

        Raises `StepError` when it failed, was cancelled, or did not end within `timeout`; then it goes on.
        """
        step = await self._number(id)
        try:
            split_function(function)
        except (InvalidName, AttributeError):
            raise ConfigurationError(
                f"step {step!r}: {function!r} is not a function id; write 'app.function'"
            ) from None
        limit = check_duration(f"step {step!r}", "timeout", timeout, ZERO, YEAR)
        return await self._memory.invoke(step, function, data, limit)

    async def send(self, id: str, events: Event | Sequence[Event]) -> None:
        """Send one event or a list, once.

        Up to 1,000 stand or fall whole; a longer list goes in batches of 1,000, each whole. Events without an id
        get one made of run, step and position, so that a retry of the run sends nothing twice. Raises
        `NonRetriableError` for an event over the server's limit, `SendFailed` when the server did not confirm.
        """
        step = await self._number(id)
        await self._memory.send(step, lambda: self._wire(step, events))

    def _wire(self, step: str, events: Event | Sequence[Event]) -> list[messages.Event]:
        listed = [events] if isinstance(events, Event) else list(events)
        for event in listed:
            if not isinstance(event, Event):
                raise ConfigurationError(f"step {step!r}: {event!r} is not an Event")
            check_sendable(event)
        now = self._memory.now()
        return [
            to_wire(event, now=now, id=step_event_id(self._run.run, step, index))
            for index, event in enumerate(listed)
        ]

    async def _number(self, id: str) -> str:
        if not isinstance(id, str) or not id or "#" in id or not id.isprintable() or len(id) > MAX_ID:
            raise ConfigurationError(
                f"step id {id!r}; allowed are 1 to {MAX_ID} printable characters but '#', which numbers repeated ids"
            )
        return await self._memory.number(id)


class RunLog:
    """A structlog logger bound to a run. What a replay would say again is not said: it is in the log already."""

    def __init__(self, logger: Any, memory: Memory) -> None:
        self._logger = logger
        self._memory = memory

    def bind(self, **more: Any) -> "RunLog":
        """The same with these values in every line."""
        return RunLog(self._logger.bind(**more), self._memory)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._logger, name)
        if name in _MAKERS:
            return lambda *args, **more: RunLog(method(*args, **more), self._memory)
        if not self._memory.replaying:
            return method
        if name in _LEVELS:
            return _say_nothing
        return _say_nothing_later if name.removeprefix("a") in _LEVELS else method


def _say_nothing(*_: Any, **__: Any) -> None: ...


async def _say_nothing_later(*_: Any, **__: Any) -> None: ...


class Context:
    """One attempt at one run. What is dear to make is made when it is asked for.

    `attempt` counts from 0.
    """

    def __init__(self, run: Run, *, attempt: int, memory: Memory) -> None:
        self._run = run
        self._memory = memory
        self.run_id = run.run
        self.function_id = run.function
        self.attempt = attempt

    @cached_property
    def scheduled_at(self) -> datetime | None:
        """The occurrence's own time, aware and in UTC; None for a run that no schedule started."""
        return from_ms(self._run.scheduled_at) if self._run.scheduled_at is not None else None

    @cached_property
    def event(self) -> Event | None:
        """The event that started the run, if one did."""
        return from_wire(self._run.event) if self._run.event is not None else None

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """All events that started the run."""
        return (self.event,) if self.event is not None else ()

    @cached_property
    def log(self) -> Any:
        """A structlog logger bound to the run and the attempt; the step is added where one runs."""
        logger = structlog.get_logger("jetcron.function").bind(
            function=self.function_id, run=self.run_id, attempt=self.attempt
        )
        return RunLog(logger, self._memory)

    @cached_property
    def step(self) -> Step:
        """Parts of the run that are remembered."""
        return Step(self._memory, self._run)
