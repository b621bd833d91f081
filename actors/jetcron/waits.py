"""What runs wait for: where it is stored, who finds it, how a run is woken.

Owns the meeting of a waiting run and what it waits for, which never see each other. A wait is a message whose
subject carries what it matches; what meets it is stored on the same subject, once, and then the run's held turn is
released. If whoever does this dies in between, the event is delivered again, and finds the wait met: the rest is
repeated. If the run is not waiting yet, its executor reads its waits once it has journaled that it is.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar

import structlog

from jetcron import dispatch
from jetcron.bus import ROLLUP, TTL, Bus, StoredMessage, fenced
from jetcron.clock import Clock
from jetcron.errors import TryAgain, WrongSequence
from jetcron.many import each
from jetcron.options import HOUR, MILLISECOND
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, VersionError, decode, encode, pack
from jetcron_protocol.matching import Match, is_absent, match_of, value_at, values_token
from jetcron_protocol.messages import (
    CancelTrigger,
    Event,
    JournalEntry,
    Met,
    PathSet,
    Run,
    Wait,
    WaitPaths,
    data_of,
    replace,
)

M = TypeVar("M")
log = structlog.get_logger("jetcron.waits")

_REMEMBERED = 10_000
_HOUR_MS = HOUR // MILLISECOND
_YEAR_SECONDS = 366 * 86_400


class Waits:
    """Stores waits, finds them, meets them. Remembers only which paths are listed, and a bounded number of those."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._listed: OrderedDict[tuple[str, str], int] = OrderedDict()

    # Of a waiting run.

    async def open(self, name: str, match: Match, wait: Wait, *, until: int) -> str:
        """Store a wait for an event of this name; returns the subject it is met on.

        From the moment this returns, no event is missed. Stored a second time, the first one stands, met or not.
        """
        ends = until + 1000 * self._settings.keep_failed
        await self._list(name, match, ends)
        subject = self._names.wait_for(name, match.token, match.values, wait.run, wait.step)
        headers = fenced(0) | {TTL: f"{max((ends - self._clock.now()) // 1000, 1)}s"}
        try:
            await self._bus.publish(subject, encode(wait), headers)
        except WrongSequence:
            pass
        return subject

    async def open_cancels(self, triggers: Sequence[CancelTrigger], run: Run) -> list[str]:
        """Store waits for the events that cancel a run; the subjects, the same however often."""
        until = run.fire_at + 1000 * _YEAR_SECONDS
        seen = [run.event.id] if run.event is not None else []
        subjects = []
        for step, name, match in _cancels(triggers, run):
            wait = Wait(function=run.function, run=run.run, step=step, purpose="cancel", seen=seen)
            subjects.append(await self.open(name, match, wait, until=until))
        return subjects

    async def open_cancels_of_new(self, triggers: Sequence[CancelTrigger], run: Run) -> None:
        """`open_cancels` before a run is stored, unless it was before, and has begun: then it has them, or had."""
        if not triggers:
            return
        journal = self._names.journal_of(run.function, run.run)
        if await self._bus.last(self._names.journal, journal) is None:
            await self.open_cancels(triggers, run)

    def cancels(self, triggers: Sequence[CancelTrigger], run: Run) -> list[str]:
        """The subjects on which `open_cancels` stores, or has stored."""
        return [
            self._names.wait_for(name, match.token, match.values, run.run, step)
            for step, name, match in _cancels(triggers, run)
        ]

    async def look(self, subject: str) -> Met | None:
        """What has met the wait on this subject, if anything has; the leader's answer."""
        stored = await self._bus.last(self._names.journal, subject)
        return None if stored is None else _read(Wait, stored).met

    async def close(self, subject: str) -> None:
        """Nothing is waited for there any more."""
        await self._bus.purge(self._names.journal, subject)

    async def _list(self, name: str, match: Match, ends: int) -> None:
        """See to it that whoever routes events of this name compares these paths, as long as the wait lives."""
        key = name, match.token
        if self._listed.get(key, 0) >= ends:
            self._listed.move_to_end(key)
            return
        subject = self._names.wait_paths(name)
        while True:
            now = self._clock.now()
            stored = await self._bus.last(self._names.journal, subject)
            listed = _read(WaitPaths, stored) if stored is not None else WaitPaths(name=name)
            sets = {token: one for token, one in listed.sets.items() if one.until > now}
            if match.token in sets and sets[match.token].until >= ends:
                break
            # Further than needed, so that the next waits find it listed long enough.
            until = ends + max(ends - now, _HOUR_MS)
            sets[match.token] = PathSet(paths=list(match.paths), until=until)
            keep = max(one.until for one in sets.values()) - now
            headers = fenced(stored.sequence if stored else 0) | {ROLLUP: "sub", TTL: f"{keep // 1000 + 1}s"}
            try:
                await self._bus.publish(subject, encode(replace(listed, sets=sets)), headers)
                break
            except WrongSequence:
                continue
        self._listed[key] = sets[match.token].until
        if len(self._listed) > _REMEMBERED:
            self._listed.popitem(last=False)

    # Of whoever brings what is waited for.

    async def waited_for(self, names: Collection[str]) -> set[str]:
        """Those event names for which a run waits, or has lately: the leader's answer."""
        found: set[str] = set()

        async def look(name: str) -> None:
            if await self._bus.last(self._names.journal, self._names.wait_paths(name)) is not None:
                found.add(name)

        await each(look, names)
        return found

    async def found_by(self, event: Event) -> list[tuple[StoredMessage, Wait]]:
        """The waits an event meets: a few exact reads, however many others wait. Those met already are among them."""
        stored = await self._bus.last(self._names.journal, self._names.wait_paths(event.name))
        if stored is None:
            return []
        subjects: list[str] = []
        for token, one in _read(WaitPaths, stored).sets.items():
            values = values_token(event.data, one.paths)
            if values is not None:
                filter = self._names.waits_for(event.name, token, values)
                subjects += await self._bus.subjects(self._names.journal, filter)
        found = await self._bus.multi_last_all(self._names.journal, subjects)
        return [
            (found[subject], wait)
            for subject in subjects
            if subject in found and (wait := _readable(found[subject])) is not None
        ]

    async def meet(self, stored: StoredMessage, wait: Wait, met: Met) -> bool:
        """Store what has come for a wait, unless something came before; whether it stands. Then `wake`."""
        ttl = stored.headers.get(TTL)
        headers = fenced(stored.sequence) | ({TTL: ttl} if ttl else {})
        body = encode(replace(wait, met=met))
        if len(body) > self._bus.max_body:
            met = await self._aside(wait, met, ttl)
            body = encode(replace(wait, met=met))
        try:
            await self._bus.publish(stored.subject, body, headers)
        except WrongSequence:
            # Ours, if an earlier try was not answered.
            last = await self.look(stored.subject)
            return last is not None and last.event == met.event
        return True

    async def _aside(self, wait: Wait, met: Met, ttl: str | None) -> Met:
        """`met` with the data of its event as an object: with the rest of the wait it is too large for a message."""
        assert met.event is not None
        life = int(ttl.removesuffix("s")) if ttl else None
        name = f"{wait.step}#event {met.event.id}"
        kept = await self._bus.put_object(wait.run, name, pack(met.event.data), ttl=life)
        return replace(met, event=replace(met.event, data=None), object=kept)

    async def child_ended(self, run: str, function: str, parent: str, step: str, met: Met) -> None:
        """Leave the outcome of a run for the one that invoked it, and wake that."""
        last = await self._last_entry(function, parent)
        if last is None or last.entry in ("completed", "failed", "cancelled"):
            return
        wait = Wait(function=function, run=parent, step=step, met=met)
        subject = self._names.wait_for_child(parent, run)
        try:
            await self._bus.publish(subject, encode(wait), fenced(0) | {TTL: f"{_YEAR_SECONDS}s"})
        except WrongSequence:
            pass  # left before: the same
        await self.wake(wait)

    async def wake(self, wait: Wait, *, last: JournalEntry | None = None) -> None:
        """Release the held turn of a run that waits for this; nothing happens when it does not, or not yet.

        `last`: its last entry, by who has just read that.
        """
        if last is None:
            last = await self._last_entry(wait.function, wait.run)
        if last is None or last.entry != "waiting" or wait.step not in (last.on or ()):
            return
        turn = last.turn + 1
        held = await self._bus.last(self._names.work, self._names.run_later(wait.function, wait.run, turn))
        if held is None:
            return  # not held yet, and then its executor reads its waits; or released already
        run = _read(Run, held)
        await self._bus.store(dispatch.woken(self._names, run, turn=turn, now=self._clock.now()))

    async def _last_entry(self, function: str, run: str) -> JournalEntry | None:
        stored = await self._bus.last(self._names.journal, self._names.journal_of(function, run))
        return None if stored is None else _read(JournalEntry, stored)


def _cancels(triggers: Sequence[CancelTrigger], run: Run) -> Iterator[tuple[str, str, Match]]:
    """Under which step a run waits for which event to cancel it, and what must match."""
    data = data_of(run)
    for number, trigger in enumerate(triggers):
        values = {path: value_at(data, own) for path, own in trigger.match.items()}
        if not any(
            is_absent(value) for value in values.values()
        ):  # no event can match what the run does not have
            yield f"#cancel {number}", trigger.event, match_of(values)


def _readable(stored: StoredMessage) -> Wait | None:
    """A stored wait; None for what nobody can read: it must not stop the event for the others."""
    try:
        return decode(Wait, stored.payload)
    except VersionError as error:
        raise TryAgain(0, 0, str(error)) from None
    except DecodeError as error:
        log.error("a wait cannot be read, nothing will meet it", subject=stored.subject, reason=str(error))
        return None


def _read(kind: type[M], stored: StoredMessage) -> M:
    """Raises `TryAgain` for what a newer program wrote: that must deal with it."""
    try:
        return decode(kind, stored.payload)
    except DecodeError as error:
        log.error("what was stored cannot be read", subject=stored.subject, reason=str(error))
        raise TryAgain(0, 0, str(error)) from None
