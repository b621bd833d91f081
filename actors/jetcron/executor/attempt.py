"""One attempt: the user's code in a task of its own, until it ends, leaves because it waits, or is stopped.

Owns the line between what stops the code, which is ours, and what its code does to its own task. Records nothing. If
the process dies here, the run is claimed and not recorded: it is taken over.
"""

import asyncio

import structlog

from jetcron.app import FunctionDefinition
from jetcron.clock import Clock
from jetcron.context import Context
from jetcron.errors import DeadlineExceeded, RunReleased, Signal
from jetcron.executor.branches import Branches
from jetcron.executor.claimed import Claimed
from jetcron.executor.invoke import Bound, Outcome, Raised, Waiting, invoke
from jetcron.executor.steps import Steps, Tools
from jetcron.metrics import Metrics
from jetcron_protocol.messages import data_of

log = structlog.get_logger("jetcron.executor")


class Attempts:
    """Executes claimed runs."""

    def __init__(self, clock: Clock, metrics: Metrics, tools: Tools) -> None:
        self._clock = clock
        self._metrics = metrics
        self._tools = tools

    async def execute(self, claimed: Claimed) -> Outcome:
        """Call the code of a run and say how it ended. Raises the signal that stopped it, if it is none of waiting."""
        outer = asyncio.current_task()
        assert outer is not None
        before = outer.cancelling()
        # Of its own: a task that was cancelled and went on, as a task group that failed leaves its own, cannot be
        # told from one that somebody else cancels.
        outcome: Outcome | None = None
        signal: Signal | None = None
        try:
            outcome = await asyncio.create_task(self._run(claimed))
        except Signal as passed:
            signal = passed
        if outer.cancelling() > before:
            raise asyncio.CancelledError  # whatever the code made of it
        match claimed.interrupted or signal:
            case None:
                assert outcome is not None
                return outcome
            case RunReleased():
                return Waiting()
            case stopped:
                raise stopped

    async def _run(self, claimed: Claimed) -> Outcome:
        if claimed.interrupted is not None:
            raise claimed.interrupted  # before it began
        definition, run = claimed.definition, claimed.run
        branches = Branches(self._clock)
        steps = Steps(self._tools, claimed, branches, definition.retry)
        context = Context(run, attempt=claimed.attempt, memory=steps)
        self._metrics.of(run.function).started.inc()
        claimed.started = self._clock.now()
        late = max(claimed.started - run.fire_at, 0)
        self._metrics.lateness.observe(late / 1000)
        log.debug(
            "started",
            function=run.function,
            run=run.run,
            attempt=claimed.attempt,
            late_ms=late,
            trigger=run.trigger,
        )
        claimed.executing = branches.main
        try:
            outcome = await invoke(
                definition, context, data_of(run), self._tools.limiter, self._bound(claimed)
            )
        finally:
            claimed.executing = None
            steps.close()
            self._metrics.of(run.function).duration.observe((self._clock.now() - claimed.started) / 1000)
        return Raised(claimed.broken) if claimed.broken is not None else outcome

    def _bound(self, claimed: Claimed) -> Bound | None:
        """The function's timeout or what is left until the run's deadline, whichever is shorter."""
        definition = claimed.definition
        bound: Bound | None = None
        if definition.timeout is not None:
            seconds = definition.timeout.total_seconds()
            note = "" if definition.is_async else "; its thread cannot be stopped and may still be running"
            text = f"{definition.id} did not end within its timeout of {seconds:g} s{note}"
            bound = Bound(seconds, TimeoutError(text))
        if claimed.deadline is not None:
            left = max(claimed.deadline - self._clock.now(), 0) / 1000
            if bound is None or left < bound.seconds:
                bound = Bound(left, deadline_exceeded(definition))
        return bound


def deadline_exceeded(definition: FunctionDefinition) -> DeadlineExceeded:
    """What a run fails with that did not end by its deadline."""
    assert definition.deadline is not None
    return DeadlineExceeded(
        f"{definition.id} did not end within its deadline of {definition.deadline.total_seconds():g} s"
    )
