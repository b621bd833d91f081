"""What follows the end of a run, whoever ended it: its parent is woken, and who waits for its turn; others are told.

Owns the part that needs no more than the last entry of the journal, from which it is repeated until the run's
message is acknowledged: the same however often. If the process dies in between, whoever gets the message again
does the rest.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from jetcron import dispatch
from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.errors import TryAgain, Unconfirmed, WrongSequence
from jetcron.history import History
from jetcron.journal import RunJournal
from jetcron.lanes import Lanes, lane_for
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol import messages
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import child_run_id, digest, ulid, ulid_time
from jetcron_protocol.messages import About, Cancelled, Failure, Function, JournalEntry, Met
from jetcron_protocol.subjects import HANDLER, split_function

log = structlog.get_logger("jetcron.endings")


class Endings:
    """Does what follows a last entry, and ends runs for others than their executor."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, waits: Waits, *, by: str) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._waits = waits
        self._lanes = Lanes(bus, waits)
        self._by = by

    async def follow(
        self,
        function: str,
        run: str,
        last: JournalEntry,
        about: About,
        *,
        keep: int,
        tell: bool = True,
        loose: Sequence[str] = (),
    ) -> None:
        """What the last entry of a run leads to; what is left of it lives `keep` seconds.

        `tell`: by an event too, though it did not fail. `loose`: subjects of waits that its journal may not know.
        """
        if about.parent is not None and about.parent_function is not None and about.parent_step is not None:
            met = Met(
                at=last.at,
                outcome=last.entry,  # type: ignore[arg-type]  # it is one of the three ends
                result=last.result,
                object=last.object,
                error=last.error,
            )
            await self._waits.child_ended(run, about.parent_function, about.parent, about.parent_step, met)
        lane = lane_for(function, run, about)
        if lane is not None:
            await self._lanes.pass_on(function, lane, ended=run)
        await self._forget_waits(run, last, about, loose)
        await self._forget_objects(run, last, keep)
        if is_told(function, about):
            if last.entry == "failed":
                await self._tell(dispatch.FUNCTION_FAILED, function, run, last, about)
            if tell:
                await self._tell(dispatch.FUNCTION_FINISHED, function, run, last, about)

    async def _forget_waits(self, run: str, last: JournalEntry, about: About, loose: Sequence[str]) -> None:
        """By exact names: the server walks all that wait for a name with a wildcard where the run's would be."""
        known = [opened.wait for opened in last.waits or () if opened.wait]
        if any(attempt.outcome == "lost" for attempt in last.attempts or ()):
            # A process that died may have recorded a step and not removed what it had waited on.
            known += [done.wait for done in last.steps or () if done.wait]
        for subject in dict.fromkeys([*about.cancels, *known, *loose]):
            await self._waits.close(subject)
        if any(done.op == "invoke" for done in last.steps or ()):
            # What a child left that ended after its step had given up on it.
            await self._waits.close(self._names.waits_for_children(run))

    async def _forget_objects(self, run: str, last: JournalEntry, keep: int) -> None:
        """What its steps returned is of no more use, unless it failed: then it may be begun again."""
        kept = [done.object for done in last.steps or () if done.object is not None]
        for object in kept:
            if last.entry == "failed":
                await self._bus.expire_object(object, ttl=keep)
            else:
                await self._bus.drop_object(object)
        if kept and last.entry != "failed":
            await self._bus.drop_objects(run)  # what executors left that died while they put it

    async def _tell(self, name: str, function: str, run: str, last: JournalEntry, about: About) -> None:
        await self._bus.store(dispatch.event(self._names, _event(name, function, run, last, about)))

    async def cancel(
        self,
        function: str,
        run: str,
        failure: Failure,
        *,
        about: About | None = None,
        unless: Callable[[History], Awaitable[bool]] | None = None,
    ) -> History | None:
        """End a run as cancelled; its history, with another last entry if it had ended before.

        `about` tells of a run that has not begun what its journal does not know: without it, whoever gets its message
        does what follows. None if it goes on because of `unless`. Raises `TryAgain`, `DecodeError` when its journal
        cannot be read.
        """
        keep = await self._keep(function)
        while True:
            journal = RunJournal(self._bus, function, run, patience=10)
            history = await journal.read()
            if history.finished:
                break
            if unless is not None and await unless(history):
                return None
            entry = JournalEntry(
                entry="cancelled",
                turn=history.last.turn if history.last is not None else 0,
                at=self._clock.now(),
                executor=self._by,
                error=failure,
                about=about,
            )
            try:
                await journal.finish(entry, keep=keep, keep_steps=True)
            except WrongSequence:
                continue  # somebody wrote meanwhile: read again what
            except Unconfirmed as error:
                raise TryAgain(0, 0, str(error)) from None
        last = history.last
        assert last is not None
        if last.entry == "cancelled":
            app, _ = split_function(function)
            # Its executor may not hear it; then its next entry is refused, and it looks now and then.
            await self._bus.post(self._names.cancelled(app), encode(Cancelled(run=run)))
            if last.about is not None:
                await self.follow(function, run, last, last.about, keep=keep)
            # At last: should we die before this, what is held is released, and whoever gets it does what follows.
            await self._bus.purge(self._names.work, self._names.runs_later_of(function, run))
        return history

    async def _keep(self, function: str) -> int:
        """How long a run of this function is kept that did not complete, in seconds."""
        stored = await self._bus.entry(self._names.function_key(function))
        keep = decode(Function, stored.payload).keep if stored is not None else None
        return self._settings.keep_failed if keep is None else keep // 1000


def handling_run(run: str, turn: int) -> str:
    """The run of the handler of a run's failure at this turn: begun again, it may fail again."""
    return child_run_id(run, f"{HANDLER} {turn}")


def is_told(function: str, about: About) -> bool:
    """Whether events tell of a run's end: handlers of failures emit none, nor what descends from such an event."""
    ours = about.event is not None and about.event.startswith(dispatch.SYSTEM_EVENTS)
    return not ours and not about.quiet and not function.endswith(HANDLER)


def _event(name: str, function: str, run: str, last: JournalEntry, about: About) -> messages.Event:
    """One of our own events: the same for the same end of the same run."""
    data: dict[str, Any] = {
        "function": function,
        "run": run,
        "outcome": last.entry,
        "attempts": last.attempt + 1,
        "trigger": about.trigger,
        "scheduled_at": about.scheduled_at,
        "event": about.event,
        "event_id": about.event_id,
    }
    if last.error is not None:
        data["error"] = {"type": last.error.type, "message": last.error.message}
    return messages.Event(
        id=ulid(ulid_time(run) or 0, digest(name, run, last.turn)), name=name, ts=last.at, data=data
    )
