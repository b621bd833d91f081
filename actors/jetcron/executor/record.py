"""How an attempt ended, and what follows from it: retries, dead letters, events.

Owns the order: the journal first, then what its last entry leads to, the same however often it is repeated. If
the process dies in between, whoever gets the message again finds the entry and repeats what follows.
"""

import random
from typing import Any

import structlog

from jetcron import dispatch, retry
from jetcron.app import FunctionDefinition
from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.errors import NonRetriableError, PayloadTooLarge
from jetcron.executor.claimed import Claimed
from jetcron.executor.invoke import Outcome, Raised, Returned, describe
from jetcron.metrics import Metrics
from jetcron.settings import Settings
from jetcron_protocol import messages
from jetcron_protocol.codec import EncodeError, pack
from jetcron_protocol.ids import digest, ulid, ulid_time
from jetcron_protocol.messages import Failure, JournalEntry, Run

log = structlog.get_logger("jetcron.executor")


class Recorder:
    """Records the ends of attempts."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, metrics: Metrics) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._random = random.Random()

    async def record(self, definition: FunctionDefinition, claimed: Claimed, outcome: Outcome) -> None:
        """Journal how an attempt ended, and do what follows. Raises as `RunJournal.append`."""
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
                await self.follow_up(claimed)
            case retry.GiveUp(text=text):
                await self.fail(definition, claimed, failure, text)

    async def fail(
        self,
        definition: FunctionDefinition,
        claimed: Claimed,
        failure: Failure,
        reason: str,
        *,
        lost: int = 0,
    ) -> None:
        """End the run as failed; `lost`: its processes died so many times in a row."""
        entry = claimed.entry("failed", started=claimed.started, error=failure, lost=lost)
        await claimed.journal.finish(entry, keep=self._keep(definition, failed=True), keep_steps=True)
        self._ended(claimed, entry, error=f"{failure.type}: {failure.message}", reason=reason)
        await self.follow_up(claimed)

    async def follow_up(self, claimed: Claimed) -> None:
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
