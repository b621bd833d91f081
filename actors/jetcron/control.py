"""What users order of a run: to end, or to begin again after it failed.

Owns the order of writes: the journal first, then what follows from it. Dying in between, the same call again does
the rest.
"""

from secrets import token_hex

from jetcron import dispatch
from jetcron.bus import LONGEST, Bus
from jetcron.endings import Endings
from jetcron.errors import ConfigurationError, WrongSequence
from jetcron.history import Status, about, status_of
from jetcron.journal import RunJournal
from jetcron.waits import Waits
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import DeadLetter, Failure, Function, JournalEntry, Run
from jetcron_protocol.subjects import split_function

_PATIENCE = 30.0


class RunControl:
    """Ends runs, and begins failed ones again."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._clock = bus.clock
        self._waits = Waits(bus, bus.clock, bus.settings)
        self._endings = Endings(bus, bus.clock, bus.settings, self._waits, by="client")

    async def cancel(self, function: str, run: str, reason: str, *, queued: Run | None = None) -> Status:
        """See `Runs.cancel`. `queued`: its message, if it has no journal yet."""
        failure = Failure(type="Cancelled", message=reason)
        known = None if queued is None else about(queued, await self._cancels(queued))
        history = await self._endings.cancel(function, run, failure, about=known)
        assert history is not None
        return status_of(history.last)

    async def _cancels(self, run: Run) -> list[str]:
        """Where what cancels a run is waited for."""
        stored = await self._bus.entry(self._bus.names.function_key(run.function))
        return [] if stored is None else self._waits.cancels(decode(Function, stored.payload).cancel_on, run)

    async def retry(self, function: str, run: str) -> None:
        """See `Runs.retry`."""
        while True:
            try:
                await self._retry(function, run)
                return
            except WrongSequence:
                continue  # somebody else retried it: read again

    async def _retry(self, function: str, run: str) -> None:
        names = self._bus.names
        journal = RunJournal(self._bus, function, run, patience=_PATIENCE)
        history = await journal.read()
        last = history.last
        begun = last is not None and last.entry == "retrying" and history.reopened == last.turn
        if last is None or not (last.entry == "failed" or begun):
            raise not_failed(function, run, status_of(history.last))
        letter = await self._bus.last(names.dead, names.dead_letter("failed", *split_function(function), run))
        if letter is None:
            if begun:
                return  # begun again before, by a call that was cut off after its last write
            raise letter_gone(function, run)
        dead = decode(DeadLetter, letter.payload)
        if dead.size > len(dead.body):
            raise ConfigurationError(
                f"the dead letter of run {run} has only {len(dead.body)} bytes of the run's {dead.size}"
            )
        now = self._clock.now()
        if not begun:
            for done in history.steps.values():
                if done.object is not None and done.error is None:
                    await self._bus.expire_object(done.object, ttl=LONGEST)
            entry = JournalEntry(
                entry="retrying",
                turn=last.turn + 1,
                at=now,
                executor="client",
                next_at=now,
                nonce=token_hex(8),
            )
            await journal.reopen(entry)
        again = dispatch.next_turn(
            names,
            decode(Run, dead.body),
            turn=history.reopened + 1,
            fire_at=now,
            lead=self._bus.settings.lead_ms,
        )
        await self._bus.store(again, patience=_PATIENCE)
        await self._bus.delete(names.dead, letter.sequence)


def not_failed(function: str, run: str, status: Status) -> ConfigurationError:
    """A run that cannot be retried, for it has not failed, or not yet."""
    return ConfigurationError(f"run {run} of {function} is {status}; only one that failed can be retried")


def letter_gone(function: str, run: str) -> ConfigurationError:
    """A run that cannot be retried, for nothing has its data any more."""
    return ConfigurationError(
        f"the dead letter of run {run} is gone, and with it the run's own data; start {function} anew"
    )
