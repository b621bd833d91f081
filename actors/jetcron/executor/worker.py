"""One run from delivery to acknowledgement: claim, hold, execute, record, acknowledge.

Owns the order of these. Whatever is stored can be repeated, so a process that dies in any gap leaves a run
that another executor finds in its journal and takes over. Who lost a run writes nothing: whoever has it now
repairs the rest.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog

from jetcron import dispatch, retry
from jetcron.app import FunctionDefinition
from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.context import Context, data_of
from jetcron.errors import (
    LeaseLost,
    NonRetriableError,
    PayloadTooLarge,
    TryAgain,
    Unconfirmed,
    WrongSequence,
)
from jetcron.events import store_events
from jetcron.executor.decide import Acknowledge, Ask, Claim, FollowUp, GiveUp, HandBack, Verdict, decide
from jetcron.executor.invoke import Outcome, Raised, Returned, describe, invoke
from jetcron.executor.lease import Identity, Lease
from jetcron.executor.room import Room
from jetcron.journal import RunJournal, about
from jetcron.metrics import Metrics
from jetcron.settings import Settings
from jetcron_protocol import messages
from jetcron_protocol.codec import DecodeError, EncodeError, decode, pack
from jetcron_protocol.ids import digest, ulid, ulid_time
from jetcron_protocol.messages import Failure, JournalEntry, Run, StepResult

log = structlog.get_logger("jetcron.executor")

HAND_BACK_SECONDS = 5.0
_CLOCK_SLACK_MS = 1000


@dataclass(slots=True)
class Claimed:
    """A run that is ours to execute, under `identity`. Also the attempt's memory of its steps."""

    run: Run
    delivery: Delivery
    journal: RunJournal
    identity: Identity
    lease: Lease
    bus: Bus
    clock: Clock
    started: int | None = None
    lost: bool = False
    ended: bool = False
    recording: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def attempt(self) -> int:
        return self.journal.history.attempt

    def entry(self, kind: Any, **fields: Any) -> JournalEntry:
        """A journal entry of this attempt, now."""
        return JournalEntry(
            entry=kind,
            turn=self.run.turn,
            at=self.clock.now(),
            executor=self.identity.id,
            nonce=self.identity.nonce(),
            attempt=self.attempt,
            **fields,
        )

    def check(self) -> None:
        """Raise `LeaseLost` when others may hold us for dead: what we would write may be refused, or worse."""
        if self.lost or self.lease.expired(self.identity):
            raise LeaseLost

    # What `context.Memory` asks for.

    def now(self) -> int:
        return self.clock.now()

    def done(self, step: str) -> StepResult | None:
        if self.ended:
            raise NonRetriableError(f"step {step!r}: its run has ended; await every step before you return")
        return self.journal.history.steps.get(step)

    async def send(self, events: Sequence[messages.Event]) -> None:
        self.check()
        await store_events(self.bus, events)

    async def record(self, step: str, op: str, result: Any) -> None:
        self.check()
        # A time-out in the user's code may cancel us here. The append goes on: cut off, its outcome would be
        # unknown, and with it the sequence the next one must expect.
        append = asyncio.create_task(self.journal.append(self.entry("step", step=step, op=op, result=result)))
        self.recording.add(append)
        try:
            await asyncio.shield(append)
        except (WrongSequence, Unconfirmed):
            raise LeaseLost from None

    async def settle(self) -> None:
        """The user's code has ended: wait for what it left being recorded, and let it record nothing more.

        Raises `WrongSequence` or `Unconfirmed` if an append did, whatever the user's code made of it.
        """
        self.ended = True
        for append in self.recording:
            await append


class Worker:
    """Executes the runs of an app's functions, one call of `handle` a delivery."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        settings: Settings,
        metrics: Metrics,
        lease: Lease,
        room: Room,
        limiter: anyio.CapacityLimiter,
    ) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._lease = lease
        self._room = room
        self._limiter = limiter
        # Repeating an append past our own lease is of no use: by then the run may be another's.
        self._patience = settings.executor_ttl
        self._random = random.Random()

    async def handle(self, definition: FunctionDefinition, delivery: Delivery, identity: Identity) -> None:
        """Claim, hold, execute, record, acknowledge. Returns with the run's credit still taken.

        Raises `TryAgain` when storage does not answer before the claim, `Unconfirmed` when an append's outcome
        is unknown, `LeaseLost` or `WrongSequence` when the run is another's.
        """
        try:
            run = decode(Run, delivery.payload)
            if run.function != definition.id:
                raise DecodeError(f"Run: it is of {run.function} but came to {definition.id}")
        except DecodeError as error:
            await self._bury(delivery, str(error))
            return
        claimed = await self._claim(definition, run, delivery, identity)
        if claimed is None:
            return
        await self._hold(run, delivery)
        await self._room.enter()
        try:
            claimed.check()
            outcome = await self._execute(definition, claimed)
        finally:
            self._room.leave()
        if claimed.recording:
            await claimed.settle()
        claimed.ended = True
        await self._room.let_others_start()
        claimed.check()
        await self._record(definition, claimed, outcome)
        await delivery.ack()

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        await self._bus.store(dispatch.undecodable(self._names, delivery, "run", reason, self._clock.now()))
        self._metrics.dead.labels("run").inc()
        log.error("a run went to the dead stream", subject=delivery.subject, reason=reason)
        await delivery.ack()

    # Claim.

    async def _claim(
        self, definition: FunctionDefinition, run: Run, delivery: Delivery, identity: Identity
    ) -> Claimed | None:
        """Make the run ours, or settle its message; None when there is nothing to execute."""
        journal = RunJournal(self._bus, run.function, run.run, patience=self._patience)
        claimed = Claimed(run, delivery, journal, identity, self._lease, self._bus, self._clock)
        if run.turn > 0 or delivery.delivered > 1:
            await self._read(claimed)
        while True:
            try:
                match await self._verdict(claimed):
                    case Claim(attempt=attempt, lost=lost):
                        claimed.check()  # a claim of the dead would only be lost again
                        await journal.append(_claim_entry(claimed, attempt, lost))
                        return claimed
                    case GiveUp(lost=lost):
                        failure = Failure(
                            type="ProcessDied", message=f"the process executing it died {lost} times in a row"
                        )
                        await self._fail(
                            definition, claimed, failure, f"lost {lost} times in a row", lost=lost
                        )
                        await delivery.ack()
                        return None
                    case FollowUp():
                        await self._follow_up(claimed)
                        await delivery.ack()
                        return None
                    case Acknowledge(reason=reason):
                        log.debug("settled", run=run.run, turn=run.turn, reason=reason)
                        await delivery.ack()
                        return None
                    case HandBack(reason=reason):
                        log.debug("handed back", run=run.run, turn=run.turn, reason=reason)
                        await delivery.hand_back(HAND_BACK_SECONDS)
                        return None
            except WrongSequence:
                await self._read(claimed)

    async def _read(self, claimed: Claimed) -> None:
        try:
            await claimed.journal.read()
        except DecodeError as error:
            # A newer program wrote it: another executor may read it. Nothing is acknowledged.
            log.error("a run's journal cannot be read", run=claimed.run.run, reason=str(error))
            raise TryAgain(0, 0, str(error)) from None

    async def _verdict(self, claimed: Claimed) -> Verdict:
        """PROTOCOL's table, with the facts it asks for."""
        other_stands: bool | None = None
        owner_alive: bool | None = None
        while True:
            verdict = decide(
                claimed.journal.history,
                turn=claimed.run.turn,
                message=claimed.delivery.sequence,
                lost_limit=self._settings.lost_attempts,
                other_stands=other_stands,
                owner_alive=owner_alive,
            )
            match verdict:
                case Ask(about="message", sequence=sequence):
                    other_stands = await self._bus.at_sequence(self._names.work, sequence) is not None
                case Ask(about="executor", executor=executor):
                    owner_alive = await self._alive(claimed.run.function, executor)
                case _:
                    return verdict

    async def _alive(self, function: str, executor: str) -> bool:
        app, _, _ = function.partition(".")
        try:
            return (
                await self._bus.last(self._names.executors, self._names.executor_key(app, executor))
                is not None
            )
        except TryAgain:
            return True  # who cannot be read counts as alive

    # Hold.

    async def _hold(self, run: Run, delivery: Delivery) -> None:
        """Wait until `fire_at`; but no longer than the server's clock allows, for ours may be wrong."""
        most = (max(run.fire_at - delivery.stored_at, 0) + _CLOCK_SLACK_MS) / 1000
        await self._room.wait_until(run.fire_at, most=most)

    # Execute.

    async def _execute(self, definition: FunctionDefinition, claimed: Claimed) -> Outcome:
        run = claimed.run
        context = Context(run, attempt=claimed.attempt, memory=claimed)
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
        try:
            return await invoke(definition, context, data_of(run), self._limiter)
        finally:
            self._metrics.of(run.function).duration.observe((self._clock.now() - claimed.started) / 1000)

    # Record, and what follows.

    async def _record(self, definition: FunctionDefinition, claimed: Claimed, outcome: Outcome) -> None:
        match outcome:
            case Returned(result=result):
                problem = self._unstorable(result)
                if problem is None:
                    await self._complete(definition, claimed, result)
                    return
                error: BaseException = NonRetriableError(
                    f"{definition.id} returned what cannot be stored: {problem}"
                )
            case Raised(error=error):
                pass
        await self._retry_or_fail(definition, claimed, error)

    def _unstorable(self, result: Any) -> str | None:
        if result is None:
            return None
        try:
            size = len(pack(result))
        except EncodeError as error:
            return str(error)
        limit = self._bus.max_body
        return f"its result has {size} bytes; at most {limit} are stored" if size > limit else None

    async def _complete(self, definition: FunctionDefinition, claimed: Claimed, result: Any) -> None:
        entry = claimed.entry("completed", result=result, started=claimed.started)
        try:
            await claimed.journal.finish(entry, keep=self._keep(definition, failed=False), keep_steps=False)
        except PayloadTooLarge as error:
            too_large = NonRetriableError(f"{definition.id} returned too much to be stored: {error}")
            await self._retry_or_fail(definition, claimed, too_large)
            return
        self._ended(claimed, entry)

    async def _retry_or_fail(
        self, definition: FunctionDefinition, claimed: Claimed, error: BaseException
    ) -> None:
        failure = describe(error)
        decision = retry.decide(
            definition.retry,
            attempt=claimed.attempt,
            error=error,
            now=self._clock.now(),
            spread=self._random.random(),
        )
        match decision:
            case retry.RetryAt(at_ms=at):
                entry = claimed.entry("retrying", started=claimed.started, error=failure, next_at=at)
                await claimed.journal.append(entry)
                self._ended(claimed, entry, error=f"{failure.type}: {failure.message}", again_at=at)
                await self._follow_up(claimed)
            case retry.GiveUp(text=text):
                await self._fail(definition, claimed, failure, text)

    async def _fail(
        self,
        definition: FunctionDefinition,
        claimed: Claimed,
        failure: Failure,
        reason: str,
        *,
        lost: int = 0,
    ) -> None:
        entry = claimed.entry("failed", started=claimed.started, error=failure, lost=lost)
        await claimed.journal.finish(entry, keep=self._keep(definition, failed=True), keep_steps=True)
        self._ended(claimed, entry, error=f"{failure.type}: {failure.message}", reason=reason)
        await self._follow_up(claimed)

    async def _follow_up(self, claimed: Claimed) -> None:
        """What the journal's last entry leads to: the same however often it is repeated."""
        last = claimed.journal.history.last
        assert last is not None
        run = claimed.run
        match last.entry:
            case "retrying":
                at = last.next_at if last.next_at is not None else last.at
                message = dispatch.next_turn(
                    self._names, run, turn=last.turn + 1, fire_at=at, lead=self._settings.lead_ms
                )
                await self._bus.store(message)
            case "failed":
                failure = last.error or Failure(type="unknown", message="")
                reason = f"{failure.type}: {failure.message}"
                await self._bus.store(
                    dispatch.failed_run(self._names, run, claimed.delivery, reason, last.at)
                )
                if not _is_systems(run):
                    await self._bus.store(dispatch.event(self._names, _failed_event(run, last, failure)))

    def _keep(self, definition: FunctionDefinition, *, failed: bool) -> int:
        if definition.keep is not None:
            return round(definition.keep.total_seconds())
        return self._settings.keep_failed if failed else self._settings.keep_completed

    def _ended(self, claimed: Claimed, entry: JournalEntry, **more: Any) -> None:
        run, outcome = claimed.run, entry.entry
        self._metrics.of(run.function).ended[outcome].inc()
        level = {"completed": log.debug, "retrying": log.warning, "failed": log.error}[outcome]
        took = entry.at - claimed.started if claimed.started is not None else None
        if entry.error is not None:
            more["exception"] = entry.error.traceback
        level(outcome, function=run.function, run=run.run, attempt=entry.attempt, took_ms=took, **more)


def _claim_entry(claimed: Claimed, attempt: int, lost: int) -> JournalEntry:
    first = claimed.journal.history.about is None
    return JournalEntry(
        entry="claimed",
        turn=claimed.run.turn,
        at=claimed.clock.now(),
        executor=claimed.identity.id,
        nonce=claimed.identity.nonce(),
        message=claimed.delivery.sequence,
        attempt=attempt,
        lost=lost,
        about=about(claimed.run) if first else None,
    )


def _is_systems(run: Run) -> bool:
    """A run started by one of our own events emits none: no loops."""
    return run.event is not None and run.event.name.startswith(dispatch.SYSTEM_EVENTS)


def _failed_event(run: Run, last: JournalEntry, failure: Failure) -> messages.Event:
    """`jetcron.function.failed`, the same for the same run."""
    return messages.Event(
        id=ulid(ulid_time(run.run) or 0, digest("failed", run.run)),
        name=dispatch.FUNCTION_FAILED,
        ts=last.at,
        data={
            "function": run.function,
            "run": run.run,
            "attempts": last.attempt + 1,
            "error": {"type": failure.type, "message": failure.message},
            "trigger": run.trigger,
            "scheduled_at": run.scheduled_at,
            "event": run.event.name if run.event else None,
            "event_id": run.event.id if run.event else None,
        },
    )
