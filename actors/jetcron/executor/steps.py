"""The steps of one attempt: what is journaled is given back, the rest is done, and journaled before the code goes on.

Owns what a step does besides the user's function: its retries, its waits, its place in the journal. A wait that is
short stays here; when all branches wait for longer, the run is released, and this ends. If the process dies, whoever
takes the run over finds in the journal every step that is done, and every one that waits, with its time.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from typing import Any, NoReturn, TypeVar

import anyio
import structlog

from jetcron import dispatch, retry
from jetcron.bus import Bus, Outgoing
from jetcron.clock import Clock
from jetcron.errors import (
    LimitExceeded,
    NonRetriableError,
    PayloadTooLarge,
    RunReleased,
    StepError,
    TryAgain,
)
from jetcron.events import store_events
from jetcron.executor import timers
from jetcron.executor.branches import OUTSIDE, Branches
from jetcron.executor.claimed import Claimed
from jetcron.executor.invoke import describe
from jetcron.executor.threads import call
from jetcron.journal import most_inline
from jetcron.options import Retry
from jetcron.results import result_reader
from jetcron.settings import Settings, variable_of
from jetcron.waits import Waits
from jetcron_protocol import messages
from jetcron_protocol.codec import EncodeError, decode, pack, unpack
from jetcron_protocol.ids import child_run_id
from jetcron_protocol.matching import match_of
from jetcron_protocol.messages import (
    Event,
    Failure,
    Function,
    Met,
    ObjectRef,
    Op,
    OpenStep,
    Run,
    StepResult,
    Wait,
)

T = TypeVar("T")
log = structlog.get_logger("jetcron.executor")

_SOON = 0.01
_LATER = 0.5
"""How often a run that waits here looks whether it may leave, and whether what it waits for has come: first, and
at last, in seconds."""
_AGAIN = 0.2
_SEEN = 20
_PATIENT, _REFUSALS, _PAUSE = 10, 1000, 1.0
"""So many calls of steps are refused to code that is over before it is cancelled at each; and before each takes so
many seconds."""
_WITHIN = "#/"
"""Between a step and one of its own steps; no id of a user's has a '#'."""
_SCALARS = (bool, int, float, str, bytes)


@dataclass(slots=True, eq=False)
class _Running:
    """A step whose function runs, in the step `outer` if that is one's. Ended, it may be called again."""

    step: str
    outer: "_Running | None"
    ended: bool = False


_running: "ContextVar[_Running | None]" = ContextVar("jetcron_step", default=None)
"""The step whose function runs, or ran when it started what is left of it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What steps need of their executor."""

    bus: Bus
    clock: Clock
    settings: Settings
    limiter: anyio.CapacityLimiter
    waits: Waits


@dataclass(frozen=True, slots=True)
class _Done:
    result: Any


@dataclass(slots=True)
class _Waiting:
    opened: OpenStep
    future: "asyncio.Future[Met | None]"


class Steps:
    """The memory of one attempt. See `context.Memory`."""

    def __init__(self, tools: Tools, claimed: Claimed, branches: Branches, policy: Retry) -> None:
        self._tools = tools
        self._clock = tools.clock
        self._settings = tools.settings
        self._claimed = claimed
        self._branches = branches
        self._policy = policy
        self._history = claimed.journal.history
        self._order = {id: order for order, id in enumerate(self._history.steps)}
        self._unreached = {*self._history.steps, *self._history.waits}
        self._known = set(self._unreached)
        """The run's steps, those included that run and are in no journal yet."""
        self._nested = {id for id in self._unreached if _WITHIN in id}
        self._used: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
        """How often each id was used, in the function and in each of its steps that runs."""
        self._callers: set[asyncio.Task[Any]] = set()
        """The tasks that have called a step: branches, also where no other task waits for them."""
        self._refused = 0
        self._waiting: dict[asyncio.Task[Any], _Waiting] = {}
        self._changed = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.broken: NonRetriableError | None = None
        """Why the run must fail, whatever its code makes of the error."""

    def close(self) -> None:
        """The code has ended. Branches that it left go no further: the next attempt has its own."""
        if self._keeping is not None:
            self._keeping.cancel()
        self._branches.close(self._callers)

    # What `context.Memory` asks for.

    @property
    def replaying(self) -> bool:
        """Whether the code is still where an earlier attempt has been."""
        return bool(self._unreached) and _running.get() is None

    def now(self) -> int:
        return self._clock.now()

    async def number(self, id: str) -> str:
        """``id``, ``id#2`` …; under the step whose function uses it, if one runs."""
        try:
            self._check_running(id)
        except BaseException:
            await self._refuse()
            raise
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        running = _running.get()
        outer = running.step if running is not None else None
        self._used[outer][id] += 1
        times = self._used[outer][id]
        name = id if times == 1 else f"{id}#{times}"
        return name if outer is None else f"{outer}{_WITHIN}{name}"

    async def run(
        self,
        step: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        policy: Retry | None,
    ) -> Any:
        done = await self._done(step, "run")
        if done is not None:
            return result_reader(function).read(done.result)
        opened = self._open_here(step, "run")
        tries = 0
        while True:
            if opened is not None:
                await self._until(opened)
                tries = opened.tries
            started = self._clock.now()
            try:
                result = await self._call(step, function, args, kwargs)
                stored = await self._storable(step, result)
            except Exception as error:
                if self.broken is not None:
                    raise
                opened = await self._failed(step, error, tries, policy or self._policy, started)
            else:
                await self._record(step, "run", started=started, tries=tries, **stored)
                return result

    async def sleep(self, step: str, until: int | timedelta) -> None:
        if await self._done(step, "sleep") is not None:
            return
        opened = self._open_here(step, "sleep")
        now = self._clock.now()
        if opened is None:
            at = until if isinstance(until, int) else now + until // timedelta(milliseconds=1)
            if at <= now:
                await self._record(step, "sleep")
                return
            opened = await self._open(step, "sleep", until=at)
        await self._until(opened)
        await self._record(step, "sleep", started=opened.at)

    async def wait_for_event(
        self, step: str, name: str, match: Mapping[str, Any], timeout: timedelta
    ) -> messages.Event | None:
        done = await self._done(step, "wait", name)
        if done is not None:
            return None if done.result is None else Event(**done.result)
        opened = self._open_here(step, "wait", name)
        if opened is None:
            until = self._clock.now() + timeout // timedelta(milliseconds=1)
            wait = Wait(
                function=self._run.function, run=self._run.run, step=step, seen=self._events_had(name)
            )
            matched = match_of(match)
            names = self._tools.bus.names
            self._claimed.opening[step] = names.wait_for(
                name, matched.token, matched.values, self._run.run, step
            )
            subject = await self._surely(lambda: self._tools.waits.open(name, matched, wait, until=until))
            opened = await self._open(step, "wait", until=until, target=name, wait=subject)
            del self._claimed.opening[step]
        met = await self._until(opened)
        event = met.event if met is not None else None
        if event is not None and met is not None and met.object is not None:
            event = replace(event, data=await self._outcome(met))
        stored = await self._storable(step, None if event is None else _fields(event))
        await self._record(step, "wait", started=opened.at, target=name, **stored)
        return event

    async def invoke(self, step: str, function: str, data: Any, timeout: timedelta) -> Any:
        done = await self._done(step, "invoke", function)
        if done is not None:
            return done.result
        opened = self._open_here(step, "invoke", function)
        child = opened.child if opened is not None and opened.child is not None else self._child_id(step)
        run = self._child(step, function, data, child)
        if opened is None:
            registered = await self._registered(step, function)
            opened = await self._open(
                step,
                "invoke",
                until=self._clock.now() + timeout // timedelta(milliseconds=1),
                target=function,
                child=child,
                wait=self._tools.bus.names.wait_for_child(self._run.run, child),
            )
            await self._start(registered, run)
        elif await self._child_is_unknown(opened):
            await self._start(await self._registered(step, function), run)
        met = await self._until(opened)
        started = opened.at
        about = {"started": started, "target": function, "child": opened.child}
        if met is not None and met.outcome == "completed":
            result = await self._outcome(met)
            await self._record(step, "invoke", **about, **await self._storable(step, result))
            return result
        if met is None:
            error = Failure(
                type="TimeoutError",
                message=f"{function} did not end within {timeout.total_seconds():g} s; its run {opened.child} goes on",
            )
        else:
            error = met.error or Failure(type=met.outcome or "failed", message="")
        await self._record(step, "invoke", error=error, **about)
        raise StepError(step, error.type, error.message, error.traceback)

    async def send(self, step: str, events: Callable[[], Sequence[messages.Event]]) -> None:
        if await self._done(step, "send") is not None:
            return
        started = self._clock.now()
        self._claimed.check()
        sent = events()
        try:
            await store_events(self._tools.bus, sent)
        except PayloadTooLarge as error:
            raise NonRetriableError(f"run {self._run.run}, step {step!r}: {error}") from error
        await self._record(step, "send", started=started, result=len(sent))

    # What is journaled.

    @property
    def _run(self) -> Run:
        return self._claimed.run

    def _check_running(self, step: str) -> None:
        """Raise unless the code may go on: neither the run nor a step that this one is part of has ended."""
        self._claimed.check_running(step)
        running = _running.get()
        while running is not None:
            if running.ended:
                raise NonRetriableError(
                    f"step {step!r}: the step it is part of, {running.step!r}, has ended; await every step before "
                    "its function returns"
                )
            running = running.outer

    async def _refuse(self) -> None:
        """Code that is over calls a step. One that catches whatever is raised, in a loop, must come to an end too."""
        self._refused += 1
        if self._refused == _REFUSALS:
            log.error("code does not let go of its run, which has ended or left", run=self._run.run)
        await self._clock.sleep(0 if self._refused < _REFUSALS else _PAUSE)
        task = asyncio.current_task()
        if _PATIENT < self._refused < _REFUSALS and task is not None:
            task.cancel()  # what it awaits between its calls

    async def _done(self, step: str, op: Op, target: str | None = None) -> _Done | None:
        """What the finished step of this id gave, once its turn has come; raises its error if it failed for good."""
        self._check_running(step)
        if self.broken is not None:
            raise self.broken
        done = self._history.steps.get(step)
        if done is None:
            if step not in self._history.waits:
                if not self._branches.owed:
                    self._unreached.clear()  # where no attempt has been before
                if len(self._known) >= self._settings.max_steps:
                    self._break(
                        LimitExceeded(
                            f"run {self._run.run}, step {step!r}: a run may have {self._settings.max_steps} steps "
                            f"({variable_of('max_steps')}); start other functions for parts of it"
                        )
                    )
                self._known.add(step)
            return None
        self._same_kind(step, done, op, target)
        result = await self._in_turn(step, done)
        self._reached(step)
        self._check_running(step)
        if done.error is not None:
            raise StepError(step, done.error.type, done.error.message, done.error.traceback)
        return _Done(result)

    async def _in_turn(self, step: str, done: StepResult) -> Any:
        """The result of a finished step, once its turn has come. What is loaded takes its turn all the same."""
        order = self._order_of(step)
        if done.object is None:
            await self._branches.turn(order)
            return await self._loaded(done.result, None)
        loading = asyncio.create_task(self._loaded(None, done.object), context=OUTSIDE.copy())
        try:
            await self._branches.turn(order, loading)
            return loading.result()
        finally:
            loading.cancel()

    def _open_here(self, step: str, op: Op, target: str | None = None) -> OpenStep | None:
        """The step of this id that has begun and waits, if it does."""
        opened = self._history.waits.get(step)
        if opened is not None:
            self._same_kind(step, opened, op, target)
            self._unreached.discard(step)
        return opened

    def _reached(self, step: str) -> None:
        """The code has this finished step's result; what the step did itself is not done again."""
        self._unreached.discard(step)
        if self._nested:
            self._unreached -= {one for one in self._nested if one.startswith(f"{step}{_WITHIN}")}

    def _same_kind(self, step: str, found: StepResult | OpenStep, op: Op, target: str | None) -> None:
        if (found.op, found.target) != (op, target):
            self._break(
                NonRetriableError(
                    f"run {self._run.run}, step {step!r}: it is {_kind(op, target)} now, but was journaled as "
                    f"{_kind(found.op, found.target)}; code that changes while runs are under way must give "
                    "changed steps new ids"
                )
            )

    def _break(self, error: NonRetriableError) -> NoReturn:
        """Fail the run, even if its code catches the error."""
        self.broken = error
        raise error

    async def _record(self, step: str, op: Op, **what: Any) -> None:
        """Journal that a step is done; only then, and in its turn, may the code go on."""
        await self._append("step", step=step, op=op, **what)
        if not self._branches.owed:
            self._unreached.clear()  # what is left of them the code has no more: it was changed
        self._reached(step)
        await self._branches.turn(self._order_of(step))
        self._check_running(step)

    def _order_of(self, step: str) -> int:
        """Its place among the finished steps; whoever recorded it may have been cancelled while it was."""
        if step not in self._order:
            for id in islice(self._history.steps, len(self._order), None):
                self._order[id] = len(self._order)
        return self._order[step]

    async def _open(self, step: str, op: Op, **what: Any) -> OpenStep:
        """Journal that a step waits."""
        await self._append("opened", step=step, op=op, **what)
        return self._history.waits[step]

    async def _append(self, kind: str, *, step: str, **what: Any) -> int:
        """Append to the journal; how many steps are done by then. What a finished step waited for is forgotten."""
        self._check_running(step)
        opened = self._history.waits.get(step) if kind == "step" else None
        over = opened.wait if opened is not None else None
        try:
            return await self._claimed.append(
                self._claimed.entry(kind, step=step, **what),
                most=self._settings.max_journal,
                then=None if over is None else lambda: self._forget(over),
            )
        except PayloadTooLarge as error:
            self._break(
                LimitExceeded(
                    f"run {self._run.run}, step {step!r}: its history would take {error.size} bytes; allowed are "
                    f"{error.limit} ({variable_of('max_journal')})"
                )
            )

    async def _storable(self, step: str, result: Any) -> dict[str, Any]:
        """A result as fields of its entry: itself, or where it is kept if it is large."""
        self._check_running(step)
        if result is None:
            return {}
        try:
            body = pack(result)
        except EncodeError as error:
            raise NonRetriableError(f"run {self._run.run}, step {step!r}: {error}") from None
        if len(body) <= most_inline(self._tools.bus, self._settings):
            # A copy: the code may change what it was given.
            return {"result": result if isinstance(result, _SCALARS) else unpack(body)}
        if len(body) > self._settings.max_result:
            self._break(
                LimitExceeded(
                    f"run {self._run.run}, step {step!r}: its result takes {len(body)} bytes; allowed are "
                    f"{self._settings.max_result} ({variable_of('max_result')})"
                )
            )
        # Under a name of our own: if we are frozen, and another has the run, we must not replace what it journals.
        name = f"{step}/{self._claimed.identity.id}"
        return {"object": await self._surely(lambda: self._tools.bus.put_object(self._run.run, name, body))}

    async def _outcome(self, met: Met) -> Any:
        return await self._loaded(met.result, met.object)

    async def _loaded(self, result: Any, ref: ObjectRef | None) -> Any:
        """A stored result, the caller's own: what it does to it is not done to what is remembered."""
        if ref is None:
            return result if result is None or isinstance(result, _SCALARS) else unpack(pack(result))
        return unpack(await self._surely(lambda: self._tools.bus.get_object(ref)))

    async def _surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """Do what may be repeated until the server answers; `LeaseLost` when the run may be another's by then."""
        while True:
            self._claimed.check()
            if self._claimed.ended:
                raise NonRetriableError("the run has ended; await every step before you return")
            try:
                return await call()
            except TryAgain as error:
                log.debug("trying again", run=self._run.run, reason=str(error))
                await self._clock.sleep(_AGAIN)

    # Functions of the user's.

    async def _call(
        self, step: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        self._used.pop(step, None)  # a second try uses the same ids
        running = _Running(step, _running.get())
        token = _running.set(running)
        try:
            with structlog.contextvars.bound_contextvars(step=step):
                name = f"{self._run.function}, step {step!r}"
                return await call(name, function, args, kwargs, limiter=self._tools.limiter)
        finally:
            running.ended = True  # what it left running does nothing more, beside its next try or after it
            _running.reset(token)

    async def _failed(self, step: str, error: Exception, tries: int, policy: Retry, started: int) -> OpenStep:
        """Open the step's next try, or record that it failed for good and raise."""
        failure = describe(error)
        decision = retry.decide(
            policy, attempt=tries, error=error, now=self._clock.now(), spread=random.random()
        )
        match decision:
            case retry.RetryAt(at_ms=at):
                return await self._open(
                    step, "run", until=at, tries=tries + 1, error=failure, started=started
                )
            case retry.GiveUp():
                await self._record(step, "run", error=failure, started=started, tries=tries)
                raise StepError(step, failure.type, failure.message, failure.traceback) from error

    # Other runs, and events.

    async def _registered(self, step: str, function: str) -> Function:
        """The function to invoke; the run fails if there is none."""
        bus = self._tools.bus
        stored = await self._surely(lambda: bus.entry(bus.names.function_key(function)))
        found = None if stored is None else decode(Function, stored.payload)
        if found is None or found.state == "archived":
            self._break(
                NonRetriableError(
                    f"run {self._run.run}, step {step!r}: there is no function {function!r}; "
                    "'jetcron functions list' shows those that are registered"
                )
            )
        return found

    async def _start(self, function: Function, run: Run) -> None:
        """Store the run a step invokes, and before it what waits for the events that cancel it."""
        await self._surely(lambda: self._tools.waits.open_cancels(function.cancel_on, run))
        await self._surely(lambda: self._tools.bus.store(self._message(run)))

    def _child_id(self, step: str) -> str:
        """The run a step invokes; another one when the run that had failed begins again."""
        life = self._history.reopened
        return child_run_id(self._run.run, f"{step}{_WITHIN}{life}" if life else step)

    def _child(self, step: str, function: str, data: Any, child: str) -> Run:
        """The run a step invokes: the same however often it is stored."""
        run = Run(
            run=child,
            function=function,
            trigger="invoke",
            fire_at=self._clock.now(),
            payload=data,
            parent=self._run.run,
            parent_function=self._run.function,
            parent_step=step,
            quiet=dispatch.is_quiet(self._run),
        )
        size, most = len(self._message(run).payload), self._tools.bus.max_body
        if size > most:
            self._break(
                LimitExceeded(
                    f"run {self._run.run}, step {step!r}: the data for {function} makes a message of {size} bytes; "
                    f"the server takes {most}"
                )
            )
        return run

    def _message(self, run: Run) -> Outgoing:
        bus = self._tools.bus
        return dispatch.new_run(bus.names, run, now=run.fire_at, lead=self._settings.lead_ms)

    async def _child_is_unknown(self, opened: OpenStep) -> bool:
        """Whether nothing is known of a run that was to be started: we may have died just before."""
        assert opened.child is not None
        assert opened.target is not None
        if await self._look(opened) is not None:
            return False
        bus = self._tools.bus
        journal = bus.names.journal_of(opened.target, opened.child)
        return await self._surely(lambda: bus.last(bus.names.journal, journal)) is None

    def _events_had(self, name: str) -> list[str]:
        """Ids of the events of this name the run has had: delivered once more, they must not meet a new wait."""
        had = [self._run.event.id] if self._run.event is not None and self._run.event.name == name else []
        for done in self._history.steps.values():
            if done.op == "wait" and done.target == name and isinstance(done.result, dict):
                had.append(str(done.result.get("id")))
        return had[-_SEEN:]

    # Waiting.

    async def _until(self, opened: OpenStep) -> Met | None:
        """Wait until its time has come, or what it waits for; `RunReleased` if the run leaves meanwhile."""
        self._check_running(opened.id)
        # Told before the look, which may take long: what comes meanwhile comes in time.
        is_over = opened.until <= self._clock.now()
        if opened.wait is not None:
            # At its time too: what came before we look wins.
            found = await self._look(opened)
            if found is not None:
                return found
        if is_over:
            return None
        task = asyncio.current_task()
        assert task is not None
        future: asyncio.Future[Met | None] = asyncio.get_running_loop().create_future()
        self._waiting[task] = _Waiting(opened, future)
        self._changed.set()
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep(), context=OUTSIDE.copy())
        try:
            met: Met | None = await self._branches.standing(future)
        finally:
            del self._waiting[task]
        self._check_running(opened.id)
        return met

    async def _look(self, opened: OpenStep) -> Met | None:
        subject = opened.wait
        assert subject is not None
        return await self._surely(lambda: self._tools.waits.look(subject))

    async def _forget(self, subject: str) -> None:
        """A wait is over: an event must not find it any more. It would only wake the run for nothing."""
        while not self._claimed.lease.expired(self._claimed.identity):
            try:
                await self._tools.waits.close(subject)
                return
            except TryAgain as error:
                log.debug("trying again", run=self._run.run, reason=str(error))
                await self._clock.sleep(_AGAIN)

    async def _keep(self) -> None:
        """Keep those that wait; what breaks this breaks their waiting."""
        try:
            await self._keep_waits()
        except Exception as error:
            log.exception("waits cannot be kept", run=self._run.run)
            for one in self._waiting.values():
                if not one.future.done():
                    one.future.set_exception(error)

    async def _keep_waits(self) -> None:
        """End waits whose time has come, or what they wait for; release the run when all its branches wait long."""
        pause = _SOON
        look = False
        while True:
            self._changed.clear()
            now = self._clock.now()
            here = [one for one in self._waiting.values() if not one.future.done()]
            for one in here:
                if one.opened.until <= now or (look and one.opened.wait is not None):
                    await self._end_if_met(one)
            here = [one for one in here if not one.future.done()]
            if not here:
                pause = _SOON
                await self._changed.wait()
                continue
            earliest = min(one.opened.until for one in here)
            if earliest - now > self._settings.short_wait_ms:
                await self._branches.settle()
                if self._changed.is_set():
                    continue
                if self._all_wait() and not self._may_time_out(max(one.opened.until for one in here) - now):
                    self._release([one.opened for one in here])
                    return
            try:
                async with asyncio.timeout(min(pause, max(earliest - now, 0) / 1000)):
                    await self._changed.wait()
                pause, look = _SOON, False
            except TimeoutError:
                pause, look = min(pause * 2, _LATER), True

    async def _end_if_met(self, one: _Waiting) -> None:
        is_over = one.opened.until <= self._clock.now()
        try:
            met = await self._tools.waits.look(one.opened.wait) if one.opened.wait is not None else None
        except TryAgain:
            return  # looked at again in a moment
        if (met is not None or is_over) and not one.future.done():
            one.future.set_result(met)

    def _all_wait(self) -> bool:
        waiting = {task for task, one in self._waiting.items() if not one.future.done()}
        self._callers = {task for task in self._callers if not task.done()}
        return self._branches.all_wait(waiting, self._callers)

    def _may_time_out(self, longest: int) -> bool:
        """Whether a time-out of the code's own fires before the waits are over, the last in `longest` ms."""
        fires = timers.first_of((self._branches.main, *self._callers))
        return fires is not None and fires < asyncio.get_running_loop().time() + longest / 1000

    def _release(self, waits_on: list[OpenStep]) -> None:
        """Unwind the code: its slot, its place in `concurrency` and its memory are others' now."""
        self._claimed.waits_on = waits_on
        self._claimed.interrupt(RunReleased())
        self._branches.unwind(self._waiting)


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


def _fields(event: messages.Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "name": event.name,
        "data": event.data,
        "ts": event.ts,
        "at": event.at,
        "user": event.user,
    }
