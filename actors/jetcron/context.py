"""What a running function sees: where its run comes from, a log bound to it, and its steps.

Owns nothing that outlives the attempt: what must be remembered is in the journal before the code goes on. If
the process dies here, the run is retried, and finished steps are found in the journal.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import structlog

from jetcron.clock import from_ms
from jetcron.errors import ConfigurationError, NonRetriableError
from jetcron.events import Event, check_sendable, from_wire, to_wire
from jetcron_protocol import messages
from jetcron_protocol.ids import step_event_id
from jetcron_protocol.messages import Run, StepResult


class Memory(Protocol):
    """What an attempt needs of its executor: the steps that are done, and a way to record another."""

    def now(self) -> int:
        """Epoch milliseconds."""
        ...

    def done(self, step: str) -> StepResult | None:
        """A finished step of this run, or None."""
        ...

    async def send(self, events: Sequence[messages.Event]) -> None:
        """Store events, all or nothing by the thousand."""
        ...

    async def record(self, step: str, op: str, result: Any) -> None:
        """Journal a finished step; only then may the code go on."""
        ...


class Step:
    """Parts of a run that are remembered: a finished one is not done again when the run is retried.

    An id used twice in one run is numbered: ``notify``, ``notify#2``.
    """

    def __init__(self, memory: Memory, run: Run) -> None:
        self._memory = memory
        self._run = run
        self._used: Counter[str] = Counter()

    async def send(self, id: str, events: Event | Sequence[Event]) -> None:
        """Send one event or a list, once.

        Up to 1,000 stand or fall whole; a longer list goes in batches of 1,000, each whole. Events without an id
        get one made of run, step and position, so that a retry of the run sends nothing twice. Raises
        `ConfigurationError` for a bad step id or event, `PayloadTooLarge` for an event over the server's
        limit, `SendFailed` when the server did not confirm.
        """
        step = self._number(id)
        done = self._memory.done(step)
        if done is not None:
            _same_kind(self._run, done, "send")
            return
        listed = [events] if isinstance(events, Event) else list(events)
        for event in listed:
            if not isinstance(event, Event):
                raise ConfigurationError(f"step {step!r}: {event!r} is not an Event")
            check_sendable(event)
        now = self._memory.now()
        wire = [
            to_wire(event, now=now, id=step_event_id(self._run.run, step, index))
            for index, event in enumerate(listed)
        ]
        await self._memory.send(wire)
        await self._memory.record(step, "send", len(wire))

    def _number(self, id: str) -> str:
        if not isinstance(id, str) or not id or "#" in id or not id.isprintable():
            raise ConfigurationError(
                f"step id {id!r}; allowed are printable characters but '#', at least one: '#' numbers repeated ids"
            )
        self._used[id] += 1
        return id if self._used[id] == 1 else f"{id}#{self._used[id]}"


def _same_kind(run: Run, done: StepResult, op: str) -> None:
    if done.op != op:
        raise NonRetriableError(
            f"run {run.run}: step {done.id!r} is a {op} now but was journaled as a {done.op}; "
            "code that changed between attempts must give changed steps new ids"
        )


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
        """A structlog logger bound to the run and the attempt."""
        return structlog.get_logger("jetcron.function").bind(
            function=self.function_id, run=self.run_id, attempt=self.attempt
        )

    @cached_property
    def step(self) -> Step:
        """Parts of the run that are remembered."""
        return Step(self._memory, self._run)


def data_of(run: Run) -> Any:
    """What the second parameter of a function receives: the event's data, or the payload of a run started by name."""
    return run.event.data if run.event is not None else run.payload
