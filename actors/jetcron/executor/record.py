"""How an attempt ended, and what follows from it: retries, dead letters, events.

Owns the order: the journal first, then what its last entry leads to, the same however often it is repeated. If
the process dies in between, whoever gets the message again finds the entry and repeats what follows.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import structlog

from jetcron import dispatch, retry
from jetcron.bus import LONGEST, Bus, Outgoing
from jetcron.clock import Clock
from jetcron.endings import Endings, handling_run
from jetcron.errors import NonRetriableError, PayloadTooLarge
from jetcron.executor.claimed import Claimed
from jetcron.executor.invoke import Outcome, Raised, Returned, Waiting, describe
from jetcron.history import about
from jetcron.journal import most_inline
from jetcron.lanes import Lanes, lane_for, waits_for_turn
from jetcron.metrics import Metrics
from jetcron.settings import Settings, variable_of
from jetcron.waits import Waits
from jetcron_protocol.codec import EncodeError, pack
from jetcron_protocol.messages import About, Failure, JournalEntry, Run, data_of

log = structlog.get_logger("jetcron.executor")

_LETTER = 32 * 1024
"""Bytes that a dead letter takes besides the run's message."""
_LEVELS = {
    "completed": logging.DEBUG,
    "waiting": logging.DEBUG,
    "retrying": logging.WARNING,
    "failed": logging.ERROR,
    "cancelled": logging.WARNING,
}


class Recorder:
    """Records the ends of attempts."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        settings: Settings,
        metrics: Metrics,
        waits: Waits,
        *,
        told: Callable[[], bool],
    ) -> None:
        self._told = told
        self._waits = waits
        self._endings = Endings(bus, clock, settings, waits, by="executor")
        self._lanes = Lanes(bus, waits)
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._random = random.Random()

    async def record(self, claimed: Claimed, outcome: Outcome) -> None:
        """Journal how an attempt ended, and do what follows. Raises as `RunJournal.append`."""
        match outcome:
            case Waiting():
                await self._wait(claimed)
                return
            case Returned(result=result):
                try:
                    await self._complete(claimed, result)
                    return
                except (EncodeError, PayloadTooLarge) as problem:
                    error: BaseException = NonRetriableError(
                        f"{claimed.definition.id} returned what cannot be stored: {problem}"
                    )
            case Raised(error=error):
                pass
        await self._retry_or_fail(claimed, error)

    async def _wait(self, claimed: Claimed) -> None:
        """Every branch waits: the next turn comes at the earliest of their times, or of the deadline.

        If nothing is waited for, it comes at once, but not before the run is due.
        """
        times = [opened.until for opened in claimed.waits_on] or [max(self._clock.now(), claimed.run.fire_at)]
        if claimed.deadline is not None:
            times.append(claimed.deadline)
        entry = claimed.entry(
            "waiting",
            started=claimed.started,
            next_at=min(times),
            on=[opened.id for opened in claimed.waits_on],
        )
        await claimed.journal.append(entry)
        self._ended(claimed, entry, on=entry.on, again_at=entry.next_at)
        await self.follow_up(claimed)

    async def _complete(self, claimed: Claimed, result: Any) -> None:
        """Raises `EncodeError` or `PayloadTooLarge`, and records nothing, for a result that cannot be stored."""
        keep = self._keep(claimed, failed=False)
        kept: dict[str, Any] = {"result": result}
        if result is not None:
            body = pack(result)
            if len(body) > self._settings.max_result:
                raise EncodeError(
                    f"run {claimed.run.run}: it takes {len(body)} bytes; allowed are {self._settings.max_result} "
                    f"({variable_of('max_result')})"
                )
            if len(body) > most_inline(self._bus, self._settings):
                # Apart from what the run's steps left, which goes now; and under a name of our own: if we are
                # frozen, and another has the run, we must not replace what it journals.
                owner, name = f"{claimed.run.run}-result", claimed.identity.id
                # A run that invoked this one reads it when it can, and that may be long after.
                ttl = keep if claimed.run.parent_step is None else max(keep, LONGEST)
                kept = {"object": await self._bus.put_object(owner, name, body, ttl=ttl)}
        entry = claimed.entry("completed", started=claimed.started, **kept)
        await claimed.journal.finish(entry, keep=keep, keep_steps=False)
        self._ended(claimed, entry)
        await self.follow_up(claimed)

    async def _retry_or_fail(self, claimed: Claimed, error: BaseException) -> None:
        failure = describe(error)
        decision = retry.decide(
            claimed.definition.retry,
            attempt=claimed.attempt,
            error=error,
            now=self._clock.now(),
            spread=self._random.random(),
        )
        match decision:
            case retry.RetryAt(at_ms=at) if claimed.deadline is not None and at >= claimed.deadline:
                await self.fail(claimed, failure, "the next attempt would be after its deadline")
            case retry.RetryAt(at_ms=at):
                entry = claimed.entry("retrying", started=claimed.started, error=failure, next_at=at)
                await claimed.journal.append(entry)
                self._ended(claimed, entry, error=f"{failure.type}: {failure.message}", again_at=at)
                await self.follow_up(claimed)
            case retry.GiveUp(text=text):
                await self.fail(claimed, failure, text)

    async def fail(
        self,
        claimed: Claimed,
        failure: Failure,
        reason: str,
        *,
        lost: int = 0,
    ) -> None:
        """End the run as failed; `lost`: its processes died so many times in a row."""
        origin = about(claimed.run)  # which its journal knows, if it has begun
        entry = claimed.entry("failed", started=claimed.started, error=failure, lost=lost, about=origin)
        await claimed.journal.finish(entry, keep=self._keep(claimed, failed=True), keep_steps=True)
        self._ended(claimed, entry, error=f"{failure.type}: {failure.message}", reason=reason)
        await self.follow_up(claimed)

    async def cancel(self, claimed: Claimed, failure: Failure) -> None:
        """End a run of ours as cancelled."""
        entry = claimed.entry("cancelled", error=failure, about=about(claimed.run))
        await claimed.journal.finish(entry, keep=self._keep(claimed, failed=True), keep_steps=True)
        self._ended(claimed, entry, error=f"{failure.type}: {failure.message}")
        await self.follow_up(claimed)

    async def follow_up(self, claimed: Claimed) -> None:
        """What the journal's last entry leads to: the same however often it is repeated."""
        last = claimed.journal.history.last
        assert last is not None
        run = claimed.run
        match last.entry:
            case "retrying":
                await self._hold(run, last)
            case "waiting":
                await self._hold(run, last)
                met, gone = await asyncio.gather(self._any_met(claimed), self._is_gone(claimed))
                if met:
                    now = self._clock.now()
                    await self._bus.store(dispatch.woken(self._names, run, turn=last.turn + 1, now=now))
                elif gone:
                    # Held a second time, when it had been woken: it would stand there for as long as it was to wait.
                    later = self._names.run_later(run.function, run.run, last.turn + 1)
                    await self._bus.purge(self._names.work, later)
                lane = lane_for(run.function, run.run, run)
                if lane is not None and waits_for_turn(last) and not await self._is_behind(claimed):
                    # Its turn may have come while it was leaving: who ended then saw it not held yet.
                    await self._lanes.pass_on(run.function, lane)
            case "completed" | "failed" | "cancelled":
                about_ = last.about or about(run)
                await self._endings.follow(
                    run.function,
                    run.run,
                    last,
                    about_,
                    keep=self._keep(claimed, failed=True),
                    tell=self._told(),
                    loose=[*claimed.opening.values(), *self._cancels(claimed, about_)],
                )
                if last.entry == "failed":
                    # At last: with its dead letter it can be begun again, beside nothing of this end.
                    await self._bury(claimed, last)

    async def _is_behind(self, claimed: Claimed) -> bool:
        """Whether one that was due before is still to come: what follows its end wakes who waits, we must not."""
        behind = claimed.behind
        return behind is not None and await self._lanes.is_to_come(
            claimed.run.function, behind.run, behind.sequence
        )

    def _cancels(self, claimed: Claimed, about_: About) -> list[str]:
        """Where what cancels it is waited for, if its journal cannot tell: whoever made it stored that."""
        triggers = claimed.definition.wire().cancel_on
        return self._waits.cancels(triggers, claimed.run) if triggers and not about_.cancels else []

    async def _hold(self, run: Run, last: JournalEntry) -> None:
        at = last.next_at if last.next_at is not None else last.at
        await self._bus.store(
            dispatch.next_turn(self._names, run, turn=last.turn + 1, fire_at=at, lead=self._settings.lead_ms)
        )

    async def _any_met(self, claimed: Claimed) -> bool:
        """Whether what the run waits for came while it was leaving: who brought it saw nobody waiting yet."""
        history = claimed.journal.history
        assert history.last is not None
        waits = (history.waits.get(step) for step in history.last.on or ())
        subjects = [opened.wait for opened in waits if opened is not None and opened.wait is not None]
        found = await asyncio.gather(*(self._waits.look(subject) for subject in subjects))
        return any(met is not None for met in found)

    async def drop_held(self, claimed: Claimed) -> None:
        """Remove turns that are past: whoever had this message before may have held one once more, and died."""
        run, last = claimed.run, claimed.journal.history.last
        assert last is not None
        for subject in await self._bus.subjects(
            self._names.work, self._names.runs_later_of(run.function, run.run)
        ):
            if last.entry == "cancelled" or self._names.parse_run_later(subject).turn <= last.turn:
                await self._bus.purge(self._names.work, subject)

    async def _is_gone(self, claimed: Claimed) -> bool:
        """Whether the run has left what we found it at."""
        run = claimed.run
        last = await self._bus.last(self._names.journal, self._names.journal_of(run.function, run.run))
        return last is None or last.sequence != claimed.journal.history.sequence

    async def _bury(self, claimed: Claimed, last: JournalEntry) -> None:
        """A dead letter, and a run of the function that handles failures."""
        run = claimed.run
        failure = last.error or Failure(type="unknown", message="")
        reason = f"{failure.type}: {failure.message}"
        await self._bus.store(
            dispatch.failed_run(
                self._names, run, claimed.delivery, reason, last.at, most=self._bus.max_body - _LETTER
            )
        )
        if claimed.definition.on_failure is None:
            return
        message = self._handling(claimed.definition.on_failure, run, last, failure, data_of(run))
        if len(message.payload) > self._bus.max_body:
            log.warning("data is too large for its failure handler", function=run.function, run=run.run)
            message = self._handling(claimed.definition.on_failure, run, last, failure, None)
        await self._bus.store(message)

    def _handling(
        self, handler: str, run: Run, last: JournalEntry, failure: Failure, data: object
    ) -> Outgoing:
        """The run that handles the failure of `run`."""
        handling = Run(
            run=handling_run(run.run, last.turn),
            function=handler,
            trigger="invoke",
            fire_at=last.at,
            parent=run.run,
            parent_function=run.function,
            payload={
                "function": run.function,
                "run": run.run,
                "error": {"type": failure.type, "message": failure.message},
                "attempts": last.attempt + 1,
                "data": data,
            },
        )
        return dispatch.new_run(self._names, handling, now=self._clock.now(), lead=self._settings.lead_ms)

    def _keep(self, claimed: Claimed, *, failed: bool) -> int:
        if claimed.definition.keep is not None:
            return round(claimed.definition.keep.total_seconds())
        return self._settings.keep_failed if failed else self._settings.keep_completed

    def _ended(self, claimed: Claimed, entry: JournalEntry, **more: Any) -> None:
        run, outcome = claimed.run, entry.entry
        self._metrics.of(run.function).ended[outcome].inc()
        level = _LEVELS[outcome]
        took = entry.at - claimed.started if claimed.started is not None else None
        if entry.error is not None:
            more["exception"] = entry.error.traceback
        log.log(
            level, outcome, function=run.function, run=run.run, attempt=entry.attempt, took_ms=took, **more
        )
