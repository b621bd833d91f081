"""The steps of one attempt: what is journaled is given back, the rest is done, and journaled before the code goes on.

Owns what each kind of step does besides the user's function, and in which order: a wait is stored before its entry, a
child after it. Never reads or writes the journal: what is `remembered` does. If the process dies, whoever takes the run
over finds there every step that is done, and every one that waits, with its time.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import anyio
import structlog

from jetcron import retry
from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.errors import NonRetriableError, PayloadTooLarge, StepError
from jetcron.events import store_events
from jetcron.executor import nesting
from jetcron.executor.branches import Branches
from jetcron.executor.children import Children
from jetcron.executor.claimed import Claimed
from jetcron.executor.invoke import describe
from jetcron.executor.numbering import Numbering
from jetcron.executor.remembered import Remembered
from jetcron.executor.step_results import Results
from jetcron.executor.threads import call
from jetcron.executor.waiting import Keeper
from jetcron.options import MILLISECOND, Retry
from jetcron.settings import Settings
from jetcron.values.results import result_reader
from jetcron.waits import Waits
from jetcron_protocol import messages
from jetcron_protocol.matching import match_of
from jetcron_protocol.messages import Event, Failure, Met, OpenStep, Wait


@dataclass(frozen=True, slots=True)
class Tools:
    """What steps need of their executor."""

    bus: Bus
    clock: Clock
    settings: Settings
    limiter: anyio.CapacityLimiter
    waits: Waits


class Steps:
    """The memory of one attempt. See `context.Memory`."""

    def __init__(self, tools: Tools, claimed: Claimed, branches: Branches, policy: Retry) -> None:
        bus, clock, settings, waits = tools.bus, tools.clock, tools.settings, tools.waits
        self._bus = bus
        self._clock = clock
        self._waits = waits
        self._limiter = tools.limiter
        self._claimed = claimed
        self._branches = branches
        self._policy = policy
        self._numbering = Numbering(claimed, branches, clock)
        self._results = Results(bus, settings, claimed)
        self._keeper = Keeper(clock, settings, waits, claimed, branches)
        self._remembered = Remembered(settings, claimed, branches, self._results, forget=self._keeper.forget)
        self._children = Children(bus, clock, settings, waits, claimed)

    def close(self) -> None:
        """The code has ended. Branches that it left go no further: the next attempt has its own."""
        self._keeper.close()
        self._branches.close()

    @property
    def replaying(self) -> bool:
        return self._remembered.replaying

    def now(self) -> int:
        return self._clock.now()

    async def number(self, id: str) -> str:
        return await self._numbering.number(id)

    async def run(
        self,
        step: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        policy: Retry | None,
    ) -> Any:
        done = await self._remembered.done(step, "run")
        if done is not None:
            return result_reader(function).read(done.result)
        opened = self._remembered.opened(step, "run")
        tries = 0
        while True:
            if opened is not None:
                await self._keeper.until(opened)
                tries = opened.tries
            started = self._clock.now()
            try:
                result = await self._call(step, function, args, kwargs)
                stored = await self._results.storable(step, result)
            except Exception as error:
                if self._claimed.broken is not None:
                    raise
                opened = await self._failed(step, error, tries, policy or self._policy, started)
            else:
                await self._remembered.record(step, "run", started=started, tries=tries, **stored)
                return result

    async def sleep(self, step: str, until: int | timedelta) -> None:
        if await self._remembered.done(step, "sleep") is not None:
            return
        opened = self._remembered.opened(step, "sleep")
        now = self._clock.now()
        if opened is None:
            at = until if isinstance(until, int) else now + until // MILLISECOND
            if at <= now:
                await self._remembered.record(step, "sleep")
                return
            opened = await self._remembered.open(step, "sleep", until=at)
        await self._keeper.until(opened)
        await self._remembered.record(step, "sleep", started=opened.at)

    async def wait_for_event(
        self, step: str, name: str, match: Mapping[str, Any], timeout: timedelta
    ) -> messages.Event | None:
        done = await self._remembered.done(step, "wait", name)
        if done is not None:
            return None if done.result is None else Event(**done.result)
        opened = self._remembered.opened(step, "wait", name)
        if opened is None:
            opened = await self._open_wait(step, name, match, timeout)
        met = await self._keeper.until(opened)
        event = met.event if met is not None else None
        if event is not None and met is not None and met.object is not None:
            event = replace(event, data=await self._results.loaded(met.result, met.object))
        stored = await self._results.storable(step, None if event is None else _fields(event))
        await self._remembered.record(step, "wait", started=opened.at, target=name, **stored)
        return event

    async def _open_wait(
        self, step: str, name: str, match: Mapping[str, Any], timeout: timedelta
    ) -> OpenStep:
        """Store a wait, then journal it: from then on no event is missed."""
        run, until = self._claimed.run, self._clock.now() + timeout // MILLISECOND
        wait = Wait(function=run.function, run=run.run, step=step, seen=self._remembered.events_had(name))
        matched = match_of(match)
        self._claimed.opening[step] = self._bus.names.wait_for(
            name, matched.token, matched.values, run.run, step
        )
        subject = await self._claimed.surely(lambda: self._waits.open(name, matched, wait, until=until))
        opened = await self._remembered.open(step, "wait", until=until, target=name, wait=subject)
        del self._claimed.opening[step]
        return opened

    async def invoke(self, step: str, function: str, data: Any, timeout: timedelta) -> Any:
        done = await self._remembered.done(step, "invoke", function)
        if done is not None:
            return done.result
        opened = self._remembered.opened(step, "invoke", function)
        child = self._children.of(step, function, data, opened)
        if opened is None:
            registered = await self._children.registered(step, function)
            opened = await self._remembered.open(
                step,
                "invoke",
                until=self._clock.now() + timeout // MILLISECOND,
                target=function,
                child=child.run,
                wait=self._bus.names.wait_for_child(self._claimed.run.run, child.run),
            )
            await self._children.start(registered, child)
        elif await self._keeper.look(opened) is None and await self._children.is_unknown(child):
            await self._children.start(await self._children.registered(step, function), child)
        met = await self._keeper.until(opened)
        about = {"started": opened.at, "target": function, "child": opened.child}
        if met is not None and met.outcome == "completed":
            result = await self._results.loaded(met.result, met.object)
            stored = await self._results.storable(step, result)
            await self._remembered.record(step, "invoke", **about, **stored)
            return result
        error = _failure_of(met, opened, timeout)
        await self._remembered.record(step, "invoke", error=error, **about)
        raise StepError(step, error.type, error.message, error.traceback)

    async def send(self, step: str, events: Callable[[], Sequence[messages.Event]]) -> None:
        if await self._remembered.done(step, "send") is not None:
            return
        started = self._clock.now()
        self._claimed.check()
        sent = events()
        try:
            await store_events(self._bus, sent)
        except PayloadTooLarge as error:
            raise NonRetriableError(f"run {self._claimed.run.run}, step {step!r}: {error}") from error
        await self._remembered.record(step, "send", started=started, result=len(sent))

    # Functions of the user's.

    async def _call(
        self, step: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        self._numbering.begin(step)
        with nesting.Inside(step), structlog.contextvars.bound_contextvars(step=step):
            name = f"{self._claimed.run.function}, step {step!r}"
            return await call(name, function, args, kwargs, limiter=self._limiter)

    async def _failed(self, step: str, error: Exception, tries: int, policy: Retry, started: int) -> OpenStep:
        """Open the step's next try, or record that it failed for good and raise."""
        failure = describe(error)
        decision = retry.decide(
            policy, attempt=tries, error=error, now=self._clock.now(), spread=random.random()
        )
        match decision:
            case retry.RetryAt(at_ms=at):
                return await self._remembered.open(
                    step, "run", until=at, tries=tries + 1, error=failure, started=started
                )
            case retry.GiveUp():
                await self._remembered.record(step, "run", error=failure, started=started, tries=tries)
                raise StepError(step, failure.type, failure.message, failure.traceback) from error


def _failure_of(met: Met | None, opened: OpenStep, timeout: timedelta) -> Failure:
    """Why an invoke failed: its run did, or nothing was heard of it in time."""
    if met is None:
        return Failure(
            type="TimeoutError",
            message=f"{opened.target} did not end within {timeout.total_seconds():g} s; its run {opened.child} goes on",
        )
    return met.error or Failure(type=met.outcome or "failed", message="")


def _fields(event: messages.Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "name": event.name,
        "data": event.data,
        "ts": event.ts,
        "at": event.at,
        "user": event.user,
    }
