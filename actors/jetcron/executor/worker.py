"""One run from delivery to acknowledgement: claim, hold, execute, record, acknowledge.

Owns the order of these. Whatever is stored can be repeated, so a process that dies in any gap leaves a run
that another executor finds in its journal and takes over. Who lost a run writes nothing: whoever has it now
repairs the rest.
"""

import asyncio
from collections.abc import Callable

import anyio
import structlog

from jetcron.app import FunctionDefinition
from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock, from_ms
from jetcron.dead_letters import bury
from jetcron.errors import LeaseLost, RunCancelled, TryAgain, WrongSequence
from jetcron.executor.attempt import Attempts, deadline_exceeded
from jetcron.executor.claimed import Claimed
from jetcron.executor.decide import Acknowledge, Ask, Claim, FollowUp, GiveUp, HandBack, Verdict, decide
from jetcron.executor.entrance import Entrance
from jetcron.executor.invoke import describe
from jetcron.executor.lease import Identity, Lease
from jetcron.executor.leaving import Leaving
from jetcron.executor.record import Recorder
from jetcron.executor.room import Room
from jetcron.executor.steps import Tools
from jetcron.journal import RunJournal
from jetcron.lanes import lane_for
from jetcron.metrics import Metrics
from jetcron.options import MILLISECOND
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Failure, JournalEntry, Run

log = structlog.get_logger("jetcron.executor")

HAND_BACK_SECONDS = 5.0
SOON_SECONDS = 0.5
_CLOCK_SLACK_MS = 1000


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
        *,
        told: Callable[[], bool],
        stopping: Callable[[], bool],
    ) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._lease = lease
        self._room = room
        self._waits = Waits(bus, clock, settings)
        self._attempts = Attempts(clock, metrics, Tools(bus, clock, settings, limiter, self._waits))
        self._in_hand: dict[str, Claimed] = {}
        """The runs that are ours, until their code has ended."""
        # Repeating an append past our own lease is of no use: by then the run may be another's.
        self._patience = settings.executor_ttl
        self._recorder = Recorder(bus, clock, settings, metrics, self._waits, told=told)
        self._leaving = Leaving(self._recorder, stopping=stopping)
        self._entrance = Entrance(bus, clock, settings, metrics, self._waits, patience=self._patience)

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
            await bury(self._bus, self._metrics, delivery, "run", str(error))
            await delivery.ack()
            return
        journal = RunJournal(self._bus, run.function, run.run, patience=self._patience)
        claimed = Claimed(definition, run, delivery, journal, identity, self._lease, self._clock)
        try:
            if not await self._claim(claimed):
                return
            await self._attempt(claimed)
        except RunCancelled:
            await self._read(claimed)
            await self._recorder.follow_up(claimed)
        except (LeaseLost, WrongSequence):
            if not await self._cancelled(claimed):
                raise
            await self._recorder.follow_up(claimed)
        finally:
            claimed.let_go()
        await delivery.ack()

    async def _cancelled(self, claimed: Claimed) -> bool:
        """Whether we lost a run because it was cancelled. Who cancelled it does what follows; if they died, we do."""
        if self._lease.expired(claimed.identity):
            return False
        try:
            await self._read(claimed)
        except TryAgain:
            return False
        last = claimed.journal.history.last
        return last is not None and last.entry == "cancelled"

    def cancel(self, run: str) -> None:
        """Stop the code of a run that somebody ended, if it is ours; what has not begun yet does not begin."""
        claimed = self._in_hand.get(run)
        if claimed is not None:
            log.info("cancelled", function=claimed.run.function, run=run)
            claimed.interrupt(RunCancelled())

    async def look_for_cancelled(self) -> None:
        """Stop the code of runs whose journal has ended, for a word of it may have been missed."""
        subjects = {
            self._names.journal_of(claimed.run.function, run): run
            for run, claimed in self._in_hand.items()
            if claimed.executing is not None
        }
        for subject, stored in (await self._bus.multi_last_all(self._names.journal, list(subjects))).items():
            claimed = self._in_hand.get(subjects[subject])
            if claimed is None or stored.sequence <= claimed.journal.history.sequence:
                continue
            try:
                if decode(JournalEntry, stored.payload).entry == "cancelled":
                    self.cancel(claimed.run.run)
            except DecodeError:
                continue  # our next append is refused, and then it is read

    async def _attempt(self, claimed: Claimed) -> None:
        """Hold, execute, record, and do what follows."""
        run = claimed.run
        self._in_hand[run.run] = claimed
        try:
            await self._room.wait_until(run.fire_at, most=self._longest_hold(run, claimed.delivery))
            await self._room.enter()
            try:
                claimed.check()
                outcome = await self._attempts.execute(claimed)
            except (LeaseLost, RunCancelled):
                await claimed.settle()  # lost for good, or an append whose outcome nobody knows
                raise
            finally:
                self._room.leave()
        except asyncio.CancelledError:
            await self._leaving.leave(claimed)
            raise
        finally:
            # Not ours any more if we lost it, and took it again under a new id while this was being unwound.
            if self._in_hand.get(run.run) is claimed:
                del self._in_hand[run.run]
        if claimed.recording:
            await claimed.settle()
        claimed.ended = True
        await self._room.let_others_start()
        claimed.check()
        await self._recorder.record(claimed, outcome)

    # Claim.

    async def _claim(self, claimed: Claimed) -> bool:
        """Make the run ours, or settle its message; whether there is something to execute."""
        run, delivery = claimed.run, claimed.delivery
        if run.turn == 0 and lane_for(run.function, run.run, run) is not None:
            # What goes on at its time decides, not what does when it comes: that is earlier.
            await self._room.until(run.fire_at, most=self._longest_hold(run, delivery))
        if run.turn > 0 or delivery.delivered > 1:
            await self._read(claimed)
        while True:
            try:
                verdict: Verdict | None = await self._verdict(claimed)
                if isinstance(verdict, Claim):
                    claimed.check()  # a claim of the dead would only be lost again
                    if await self._too_late(claimed):
                        await delivery.ack()
                        return False
                    cancels = await self._open_cancels(claimed)
                    claim = claimed.claim_entry(verdict.attempt, verdict.lost, cancels)
                    claimed.hold(claim)
                    verdict = await self._entrance.enter(claimed, claim)
                    if verdict is None:
                        return True
                match verdict:
                    case GiveUp(lost=lost):
                        failure = Failure(
                            type="ProcessDied", message=f"the process executing it died {lost} times in a row"
                        )
                        await self._recorder.fail(claimed, failure, f"lost {lost} times in a row", lost=lost)
                        await delivery.ack()
                        return False
                    case FollowUp():
                        await self._recorder.follow_up(claimed)
                        await self._recorder.drop_held(claimed)
                        await delivery.ack()
                        return False
                    case Acknowledge(reason=reason):
                        log.debug("settled", run=run.run, turn=run.turn, reason=reason)
                        await delivery.ack()
                        return False
                    case HandBack(reason=reason, soon=soon):
                        log.debug("handed back", run=run.run, turn=run.turn, reason=reason)
                        await delivery.hand_back(SOON_SECONDS if soon else HAND_BACK_SECONDS)
                        return False
            except WrongSequence:
                claimed.let_go()
                await self._read(claimed)

    async def _too_late(self, claimed: Claimed) -> bool:
        """End a run that waited too long to begin, or whose deadline has passed."""
        run, history, now = claimed.run, claimed.journal.history, self._clock.now()
        definition = claimed.definition
        due = history.about.fire_at if history.about is not None else run.fire_at
        if definition.start_timeout is not None and not history.attempts:
            latest = due + definition.start_timeout // MILLISECOND
            if now > latest:
                text = f"it was due at {from_ms(due).isoformat()} and had not begun by {from_ms(latest).isoformat()}"
                await self._recorder.cancel(claimed, Failure(type="StartTimeout", message=text))
                return True
        if definition.deadline is not None:
            # Who begins a run again that had failed gives it its whole time once more.
            claimed.deadline = (history.reopened_at or due) + definition.deadline // MILLISECOND
            if now >= claimed.deadline:
                error = describe(deadline_exceeded(definition))
                await self._recorder.fail(claimed, error, "its deadline passed")
                return True
        return False

    async def _open_cancels(self, claimed: Claimed) -> list[str]:
        """Before a run begins, or begins again after it had failed: store the waits for what cancels it.

        Whoever made the run may have done so before.
        """
        history = claimed.journal.history
        again = history.last is not None and history.last.turn == history.reopened > 0
        if not claimed.definition.cancel_on or (history.about is not None and not again):
            return []
        return await self._waits.open_cancels(claimed.definition.wire().cancel_on, claimed.run)

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
                    owner_alive = await self._alive(claimed, executor)
                case _:
                    return verdict

    async def _alive(self, claimed: Claimed, executor: str) -> bool:
        """Whether who claimed the run may still be at it; of ourselves we know."""
        claim = claimed.journal.history.claim
        assert claim is not None, "only who claimed it is asked about"
        mine = self._lease.holds(executor, claim.nonce)
        if mine is not None:
            return mine
        app, _, _ = claimed.run.function.partition(".")
        try:
            return (
                await self._bus.last(self._names.executors, self._names.executor_key(app, executor))
                is not None
            )
        except TryAgain:
            return True  # who cannot be read counts as alive

    @staticmethod
    def _longest_hold(run: Run, delivery: Delivery) -> float:
        """Seconds that a run is held for its time: no longer than the server's clock allows, for ours may be wrong."""
        return (max(run.fire_at - delivery.stored_at, 0) + _CLOCK_SLACK_MS) / 1000
