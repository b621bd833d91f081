"""Where a run becomes an executor's: its claim, and for an occurrence the place in its schedule's lane.

Owns the order by which two of a lane never go on at once: read the lane, then all else, decide (`jetcron.overlap`), and
store what was decided in one atomic batch with the lane, which stands only if nobody changed that meanwhile. So a
death here leaves the run as it was, or settled. Whoever changed the lane first is right; the other looks again.
"""

import asyncio
from functools import partial
from weakref import WeakValueDictionary

import structlog

from jetcron import dispatch, ledger
from jetcron.bus import Bus
from jetcron.clock import Clock, from_ms
from jetcron.endings import Endings
from jetcron.errors import TryAgain, Unconfirmed, WrongSequence
from jetcron.executor.arrivals import Arrival, Arrivals
from jetcron.executor.claimed import Claimed
from jetcron.executor.decide import Acknowledge, FollowUp, HandBack
from jetcron.lanes import LANE_STEP, Lanes, Standing, lane_for
from jetcron.metrics import Metrics
from jetcron.options import MILLISECOND
from jetcron.overlap import CancelHolder, Enter, LeaveOut, Place, Wait, decide
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.codec import DecodeError
from jetcron_protocol.messages import Failure, JournalEntry, Run, replace

log = structlog.get_logger("jetcron.executor")

UNWIND_MS = 5_000
"""How long the code of a cancelled run is waited for before another one goes in."""
_UNWIND_PAUSE = 0.02
_FAILURE = "Overlap"
SOONEST_LOOK_MS = 60_000
LATEST_LOOK_MS = 6 * 3_600_000
"""A run that waits for its turn looks by itself now and then, should nobody have woken it."""


class Entrance:
    """Claims runs: those of no lane at once, the others when it is their turn."""

    def __init__(
        self, bus: Bus, clock: Clock, settings: Settings, metrics: Metrics, waits: Waits, *, patience: float
    ) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._metrics = metrics
        self._patience = patience
        self._waits = waits
        self._lanes = Lanes(bus, waits)
        self._arrivals = Arrivals(bus)
        self._endings = Endings(bus, clock, settings, waits, by="executor")
        # Only so that those of one lane here do not refuse each other: between processes the lane's sequence counts.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def enter(self, claimed: Claimed, entry: JournalEntry) -> Acknowledge | FollowUp | HandBack | None:
        """Append `entry`, the claim; or say what becomes of the run's message instead.

        Raises as `RunJournal.append`, also `WrongSequence` when the lane changed: read the run's journal again.
        """
        run = claimed.run
        lane = lane_for(run.function, run.run, run)
        if lane is None:
            await claimed.journal.append(entry)
            return None
        lock = self._locks.setdefault((run.function, lane), asyncio.Lock())
        async with lock:
            instead = await self._enter(claimed, entry, lane)
        if not isinstance(instead, HandBack):
            self._arrivals.forget(run.function, lane, claimed.delivery.sequence)
        return instead

    async def _enter(
        self, claimed: Claimed, entry: JournalEntry, lane: str
    ) -> Acknowledge | FollowUp | HandBack | None:
        run, history = claimed.run, claimed.journal.history
        due = history.about.fire_at if history.about is not None else run.fire_at
        while True:
            standing = await self._lanes.read(run.function, lane)
            if history.last is None:
                # Read after the lane: what became of it since changes the lane, and then nothing of this is stored.
                begun, left_out = await self._lanes.settled(run.function, run.run)
                if begun:
                    raise WrongSequence(400, 10071, "somebody had it before, its journal says")
                if left_out:
                    await self._forget_waits(claimed)
                    return Acknowledge("it was left out: the ledger says so")
            queue = standing.queue
            if standing.ended_at is not None:
                queue = await self._lanes.waiting(standing, going=run.run)
            asked = partial(
                decide,
                run.overlap or "allow",
                run.run,
                due=due,
                begun=history.last is not None,
                lane=standing.stored,
                ended_at=standing.ended_at,
                queue=queue,
            )
            decision = asked()
            claimed.behind = None
            match decision:
                case Enter():
                    claimed.behind = await self._earlier_to_come(claimed, standing, lane, Place(due, run.run))
                    if claimed.behind is not None:
                        if standing.stored is None:
                            return HandBack("an earlier occurrence has not been dealt with", soon=True)
                        decision = asked(blocked=True)
                case Wait(queue=[first, *_]) if standing.ended_at is not None:
                    # The lane is free, and the first in the queue is on its way; or it waits for somebody too.
                    claimed.behind = await self._earlier_to_come(claimed, standing, lane, first)
            match decision:
                case Enter(queue=left):
                    await self._made_way(run, standing)
                    claimed.check()
                    change = self._lanes.change(
                        standing, run=run.run, message=claimed.delivery.sequence, queue=left
                    )
                    # From now on, not from when it came.
                    await claimed.journal.append(replace(entry, at=self._clock.now()), beside=change)
                    return None
                case Wait():
                    await self._wait(claimed, entry, standing, decision, due)
                    return FollowUp()
                case LeaveOut(reason=reason):
                    await self._leave_out(claimed, standing, reason)
                    await self._forget_waits(claimed)
                    if standing.queue:
                        # The first of them may have waited for this one to come, before the policy changed.
                        await self._lanes.pass_on(run.function, lane)
                    return Acknowledge(reason)
                case CancelHolder():
                    await self._cancel(run, standing)

    async def _earlier_to_come(
        self, claimed: Claimed, standing: Standing, lane: str, place: Place
    ) -> Arrival | None:
        """One that was due before whoever has this place, and that nobody has entered yet: they are dead, perhaps."""
        run, stored = claimed.run, standing.stored
        if run.overlap != "queue" or (stored is not None and stored.run == run.run):
            return None
        # These have a journal: they went in, or began to wait.
        known = {waiting.run for waiting in standing.queue} | ({stored.run} if stored is not None else set())
        before = claimed.delivery.sequence
        than = place.due, place.run
        for other in await self._arrivals.earlier(run.function, lane, than=than, before=before):
            if other.run not in known and await self._lanes.is_to_come(
                run.function, other.run, other.sequence
            ):
                return other
            self._arrivals.forget(run.function, lane, other.sequence)
        return None

    async def _made_way(self, run: Run, standing: Standing) -> None:
        """Wait until the code of a run that was cancelled a moment ago has ended: then its message is acknowledged."""
        last, stored = standing.last, standing.stored
        if last is None or stored is None or last.entry != "cancelled" or stored.run == run.run:
            return
        if last.error is not None and last.error.type == _FAILURE:
            # One of us cancelled it, and may have died before it did what follows.
            await self._cancel(run, standing)
        while self._clock.now() < last.at + UNWIND_MS:
            if await self._bus.at_sequence(self._names.work, stored.message) is None:
                return
            await self._clock.sleep(_UNWIND_PAUSE)
        log.warning("a cancelled run has not stopped, another one goes in", run=stored.run)

    async def _wait(
        self, claimed: Claimed, entry: JournalEntry, standing: Standing, decision: Wait, due: int
    ) -> None:
        """Journal that it waits for its turn, and in the same step stand in the queue."""
        now = self._clock.now()
        times = [now + min(max(now - due, SOONEST_LOOK_MS), LATEST_LOOK_MS)]
        definition = claimed.definition
        if claimed.deadline is not None:
            times.append(claimed.deadline)
        if definition.start_timeout is not None and not claimed.journal.history.attempts:
            times.append(due + definition.start_timeout // MILLISECOND + 1)
        waiting = claimed.entry("waiting", next_at=min(times), on=[LANE_STEP], about=entry.about)
        claimed.check()
        change = None
        if not decision.known and standing.stored is not None:
            holder = standing.stored
            change = self._lanes.change(
                standing, run=holder.run, message=holder.message, queue=decision.queue
            )
        await claimed.journal.append(waiting, beside=change)
        log.debug("waits for its turn", function=claimed.run.function, run=claimed.run.run)

    async def _leave_out(self, claimed: Claimed, standing: Standing, reason: str) -> None:
        """Tell the ledger, which is the fence: redelivered, the run finds itself there."""
        run, holder = claimed.run, standing.stored
        assert holder is not None, "only another run leaves one no room"
        keep = await ledger.kept(self._bus, run.function)
        claimed.check()
        # The lane stays as it is, but nobody who read it before may let this run in.
        same = self._lanes.change(standing, run=holder.run, message=holder.message, queue=standing.queue)
        told = [same, dispatch.left_out(self._names, run, keep)]
        try:
            await self._bus.append_all(told, patience=self._patience)
        except Unconfirmed as error:
            raise TryAgain(
                0, 0, str(error)
            ) from None  # told or not, it is not ours: whoever gets it again sees
        self._metrics.missed.inc()
        log.warning("an occurrence was left out", function=run.function, run=run.run, reason=reason)

    async def _forget_waits(self, claimed: Claimed) -> None:
        """It had begun to wait for what cancels it."""
        for subject in self._waits.cancels(claimed.definition.wire().cancel_on, claimed.run):
            await self._waits.close(subject)

    async def _cancel(self, run: Run, standing: Standing) -> None:
        holder = standing.stored
        assert holder is not None, "only another run can be in its way"
        assert run.scheduled_at is not None, "only an occurrence has a lane"
        message = f"the occurrence of {from_ms(run.scheduled_at).isoformat()} took its place"
        try:
            await self._endings.cancel(run.function, holder.run, Failure(type=_FAILURE, message=message))
        except DecodeError as error:
            raise TryAgain(0, 0, f"the journal of run {holder.run} cannot be read: {error}") from None
