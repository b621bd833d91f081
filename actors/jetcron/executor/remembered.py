"""What an attempt remembers of its run: the steps that are done, those that wait, and how far the code has come again.

Owns the way of a step through the journal: a finished one is given back in its turn, what is new is journaled before
the code goes on. Never does what a step does. If the process dies, whoever takes the run over reads all of it, and
remembers the same.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jetcron.errors import LimitExceeded, NonRetriableError, PayloadTooLarge, StepError
from jetcron.executor import nesting
from jetcron.executor.branches import OUTSIDE, Branches
from jetcron.executor.claimed import Claimed
from jetcron.executor.nesting import WITHIN
from jetcron.executor.step_results import Results
from jetcron.settings import Settings, variable_of
from jetcron_protocol.messages import Op, OpenStep, StepResult

_SEEN = 20
"""Events that a wait knows the run to have had, at the most."""


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is done, and what it gave."""

    result: Any


class Remembered:
    """The journaled steps of one attempt. `forget` is told where a finished step has waited."""

    def __init__(
        self,
        settings: Settings,
        claimed: Claimed,
        branches: Branches,
        results: Results,
        *,
        forget: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._settings = settings
        self._claimed = claimed
        self._branches = branches
        self._results = results
        self._forget = forget
        self._history = claimed.journal.history
        self._order = {id: order for order, id in enumerate(self._history.steps)}
        self._unreached = {*self._history.steps, *self._history.waits}
        self._known = set(self._unreached)
        """The run's steps, those included that run and are in no journal yet."""
        self._nested = {id for id in self._unreached if WITHIN in id}

    @property
    def replaying(self) -> bool:
        """Whether the code is still where an earlier attempt has been."""
        return bool(self._unreached) and nesting.outer() is None

    async def done(self, step: str, op: Op, target: str | None = None) -> Done | None:
        """What the finished step of this id gave, once its turn has come; raises its error if it failed for good."""
        self._claimed.check_running(step)
        if self._claimed.broken is not None:
            raise self._claimed.broken
        done = self._history.steps.get(step)
        if done is None:
            if step not in self._history.waits:
                self._begins(step)
            return None
        self._same_kind(step, done, op, target)
        result = await self._in_turn(step, done)
        self._reached(step)
        self._claimed.check_running(step)
        if done.error is not None:
            raise StepError(step, done.error.type, done.error.message, done.error.traceback)
        return Done(result)

    def opened(self, step: str, op: Op, target: str | None = None) -> OpenStep | None:
        """The step of this id that has begun and waits, if it does."""
        opened = self._history.waits.get(step)
        if opened is not None:
            self._same_kind(step, opened, op, target)
            self._unreached.discard(step)
        return opened

    async def open(self, step: str, op: Op, **what: Any) -> OpenStep:
        """Journal that a step waits."""
        await self._append("opened", step=step, op=op, **what)
        return self._history.waits[step]

    async def record(self, step: str, op: Op, **what: Any) -> None:
        """Journal that a step is done; only then, and in its turn, may the code go on."""
        await self._append("step", step=step, op=op, **what)
        if not self._branches.owed:
            self._unreached.clear()  # what is left of them the code has no more: it was changed
        self._reached(step)
        await self._branches.turn(self._order_of(step))
        self._claimed.check_running(step)

    def events_had(self, name: str) -> list[str]:
        """Ids of the events of this name the run has had: delivered once more, they must not meet a new wait."""
        event = self._claimed.run.event
        had = [event.id] if event is not None and event.name == name else []
        for done in self._history.steps.values():
            if done.op == "wait" and done.target == name and isinstance(done.result, dict):
                had.append(str(done.result.get("id")))
        return had[-_SEEN:]

    def _begins(self, step: str) -> None:
        """The code is where no attempt has been before."""
        if not self._branches.owed:
            self._unreached.clear()
        if len(self._known) >= self._settings.max_steps:
            self._claimed.fail(
                LimitExceeded(
                    f"run {self._claimed.run.run}, step {step!r}: a run may have {self._settings.max_steps} steps "
                    f"({variable_of('max_steps')}); start other functions for parts of it"
                )
            )
        self._known.add(step)

    async def _in_turn(self, step: str, done: StepResult) -> Any:
        """The result of a finished step, once its turn has come. What is loaded takes its turn all the same."""
        order = self._order_of(step)
        if done.object is None:
            await self._branches.turn(order)
            return await self._results.loaded(done.result, None)
        loading = asyncio.create_task(self._results.loaded(None, done.object), context=OUTSIDE.copy())
        try:
            await self._branches.turn(order, loading)
            return loading.result()
        finally:
            loading.cancel()

    def _reached(self, step: str) -> None:
        """The code has this finished step's result; what the step did itself is not done again."""
        self._unreached.discard(step)
        if self._nested:
            self._unreached -= {one for one in self._nested if one.startswith(f"{step}{WITHIN}")}

    def _same_kind(self, step: str, found: StepResult | OpenStep, op: Op, target: str | None) -> None:
        if (found.op, found.target) != (op, target):
            self._claimed.fail(
                NonRetriableError(
                    f"run {self._claimed.run.run}, step {step!r}: it is {_kind(op, target)} now, but was journaled "
                    f"as {_kind(found.op, found.target)}; code that changes while runs are under way must give "
                    "changed steps new ids"
                )
            )

    def _order_of(self, step: str) -> int:
        """Its place among the finished steps; whoever recorded it may have been cancelled while it was."""
        if step not in self._order:
            for id in islice(self._history.steps, len(self._order), None):
                self._order[id] = len(self._order)
        return self._order[step]

    async def _append(self, kind: str, *, step: str, **what: Any) -> int:
        """Append to the journal; how many steps are done by then. What a finished step waited for is forgotten."""
        self._claimed.check_running(step)
        opened = self._history.waits.get(step) if kind == "step" else None
        over = opened.wait if opened is not None else None
        try:
            return await self._claimed.append(
                self._claimed.entry(kind, step=step, **what),
                most=self._settings.max_journal,
                then=None if over is None else lambda: self._forget(over),
            )
        except PayloadTooLarge as error:
            self._claimed.fail(
                LimitExceeded(
                    f"run {self._claimed.run.run}, step {step!r}: its history would take {error.size} bytes; allowed "
                    f"are {error.limit} ({variable_of('max_journal')})"
                )
            )


def _kind(op: str, target: str | None) -> str:
    shown = {
        "run": "a step that runs a function",
        "sleep": "a sleep",
        "wait": "a wait",
        "invoke": "an invoke",
        "send": "a send",
    }
    joined = {"wait": "for", "invoke": "of"}.get(op, "with")
    return f"{shown.get(op, op)} {joined} {target!r}" if target else shown.get(op, op)
