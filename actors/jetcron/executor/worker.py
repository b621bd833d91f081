"""One run from delivery to acknowledgement: claim, hold, execute, record, acknowledge.

Owns the order of these. Whatever is stored can be repeated, so a process that dies in any gap leaves a run
that another executor finds in its journal and takes over. Who lost a run writes nothing: whoever has it now
repairs the rest.
"""

import anyio
import structlog

from jetcron.app import FunctionDefinition
from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.context import Context, data_of
from jetcron.dead_letters import bury
from jetcron.errors import LeaseLost, TryAgain, WrongSequence
from jetcron.executor.claimed import Claimed
from jetcron.executor.decide import Acknowledge, Ask, Claim, FollowUp, GiveUp, HandBack, Verdict, decide
from jetcron.executor.invoke import Outcome, invoke
from jetcron.executor.lease import Identity, Lease
from jetcron.executor.record import Recorder
from jetcron.executor.room import Room
from jetcron.journal import RunJournal
from jetcron.metrics import Metrics
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Failure, Run

log = structlog.get_logger("jetcron.executor")

HAND_BACK_SECONDS = 5.0
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
        self._recorder = Recorder(bus, clock, settings, metrics)

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
        claimed = await self._claim(definition, run, delivery, identity)
        if claimed is None:
            return
        try:
            await self._attempt(definition, claimed)
        finally:
            identity.runs.discard(run.run)
        await delivery.ack()

    async def _attempt(self, definition: FunctionDefinition, claimed: Claimed) -> None:
        """Hold, execute, record, and do what follows."""
        await self._hold(claimed.run, claimed.delivery)
        await self._room.enter()
        try:
            claimed.check()
            outcome = await self._execute(definition, claimed)
        except LeaseLost:
            await claimed.settle()  # lost for good, or an append whose outcome nobody knows
            raise
        finally:
            self._room.leave()
        if claimed.recording:
            await claimed.settle()
        claimed.ended = True
        await self._room.let_others_start()
        claimed.check()
        await self._recorder.record(definition, claimed, outcome)

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
                        await journal.append(claimed.claim_entry(attempt, lost))
                        identity.runs.add(run.run)
                        return claimed
                    case GiveUp(lost=lost):
                        failure = Failure(
                            type="ProcessDied", message=f"the process executing it died {lost} times in a row"
                        )
                        await self._recorder.fail(
                            definition, claimed, failure, f"lost {lost} times in a row", lost=lost
                        )
                        await delivery.ack()
                        return None
                    case FollowUp():
                        await self._recorder.follow_up(claimed)
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
                    owner_alive = await self._alive(claimed.run, executor)
                case _:
                    return verdict

    async def _alive(self, run: Run, executor: str) -> bool:
        """Whether who claimed the run may still be at it; of ourselves we know."""
        mine = self._lease.holds(executor, run.run)
        if mine is not None:
            return mine
        app, _, _ = run.function.partition(".")
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
