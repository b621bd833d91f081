"""Client: send events, start runs, read what became of them, manage functions and dead letters.

Owns no state but its connection. What it stores is stored when the call returns; what it orders of cron-sync
is applied when the call returns, or the call says that nobody has applied it yet.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from secrets import token_bytes
from typing import Any, Literal, Self

from jetcron import dispatch
from jetcron.bus import Bus, Outgoing, StoredMessage, fenced
from jetcron.clock import Clock, to_ms
from jetcron.errors import (
    ConfigurationError,
    NotFound,
    PayloadTooLarge,
    RunFailed,
    RunNotFound,
    TryAgain,
    WrongSequence,
)
from jetcron.events import Event, check_sendable, store_events, to_wire
from jetcron.journal import History, fold, read_entries
from jetcron.registration import order
from jetcron.settings import Settings
from jetcron_protocol.codec import AT_HEADER, EVENT_HEADER, DecodeError, decode, decode_event
from jetcron_protocol.ids import digest, manual_run_id, ulid
from jetcron_protocol.messages import (
    DeadLetter,
    Failure,
    Function,
    Gap,
    JournalEntry,
    Run,
    SyncCommand,
)
from jetcron_protocol.subjects import InvalidName, split_function

Status = Literal["queued", "running", "retrying", "completed", "failed", "cancelled"]

_LISTEN_SECONDS = 5.0
_STORE_SECONDS = 30.0
_REPLAYED_HEADERS = (EVENT_HEADER, AT_HEADER)


class Client:
    """A connection to Jetcron. Use as an async context manager: ``async with Client() as client``.

    Raises `ServerUnreachable`, `AuthorizationFailed`, `JetStreamDisabled` or `ServerTooOld` when it cannot connect.
    """

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None) -> None:
        self._bus = Bus(settings or Settings.load(), clock=clock, name="jetcron client")
        self.functions = Functions(self._bus)
        self.runs = Runs(self._bus)
        self.dead = DeadLetters(self._bus)

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._bus.__aexit__(*exception)

    async def send(self, events: Event | Sequence[Event]) -> list[str]:
        """Send one event or a list; returns their ids once they are stored.

        Up to 1,000 stand or fall whole; a longer list goes in batches of 1,000, each whole. An event with an id
        that was sent before starts nothing again while its runs are remembered. Raises `PayloadTooLarge` or
        `EncodeError` before anything is stored, `SendFailed` with how many were.
        """
        listed = [events] if isinstance(events, Event) else list(events)
        for event in listed:
            if not isinstance(event, Event):
                raise ConfigurationError(f"{event!r} is not an Event; write Event('order.created', data)")
            check_sendable(event)
        now = self._bus.clock.now()
        wire = [to_wire(event, now=now) for event in listed]
        await store_events(self._bus, wire)
        return [event.id for event in wire]

    async def run(
        self, function: str, data: Any = None, *, id: str | None = None, at: datetime | None = None
    ) -> "RunHandle":
        """Start a function by name (``app.function``); returns a handle once the run is stored.

        `data` is what its second parameter receives. A second call with the same `id` starts nothing again
        while the first run is remembered. `at`, an aware datetime, holds it until then. Raises `NotFound` when no such
        function is registered.
        """
        try:
            split_function(function)
        except InvalidName as error:
            raise ConfigurationError(str(error)) from None
        definition = await self.functions.get(function)
        if definition.state == "archived":
            raise NotFound(f"{function} is archived; registering its app again brings it back")
        now = self._bus.clock.now()
        run = Run(
            run=manual_run_id(function, id if id is not None else ulid(now, token_bytes(10))),
            function=function,
            trigger="manual",
            fire_at=to_ms(at) if at is not None else now,
            payload=data,
        )
        message = dispatch.new_run(self._bus.names, run, now=now, lead=self._bus.settings.lead_ms)
        if len(message.payload) > self._bus.max_body:
            raise PayloadTooLarge(len(message.payload), self._bus.max_body)
        if message.is_held:
            # A second call must not move the first: what is held stands as it is.
            message = message.with_headers(fenced(0))
        try:
            await self._bus.store(message, patience=_STORE_SECONDS)
        except WrongSequence:
            pass
        return RunHandle(self._bus, function, run.run)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as its journal tells it. `history` has attempts and steps; `result` or `error` once it ended."""

    id: str
    function: str
    status: Status
    history: History
    result: Any = None
    error: Failure | None = None


class RunHandle:
    """A run that was started, by its id."""

    def __init__(self, bus: Bus, function: str, id: str) -> None:
        self._bus = bus
        self.function = function
        self.id = id

    def __repr__(self) -> str:
        return f"RunHandle({self.function!r}, {self.id!r})"

    async def view(self) -> RunView:
        """What its journal says now; a run nobody has claimed yet is queued."""
        messages = await self._bus.history(
            self._bus.names.journal, self._bus.names.journal_of(self.function, self.id)
        )
        return view(self.function, self.id, fold(read_entries(messages)))

    async def status(self) -> Status:
        """``queued``, ``running``, ``retrying``, ``completed``, ``failed`` or ``cancelled``."""
        return (await self.view()).status

    async def history(self) -> History:
        """Its attempts and steps."""
        return (await self.view()).history

    async def result(self, timeout: float | None = None) -> Any:
        """What it returned.

        Raises `RunFailed` when it failed or was cancelled, `TimeoutError` after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            final = await self._final()
        if final.status == "completed":
            return final.result
        error = final.error or Failure(type=final.status, message="")
        raise RunFailed(self.id, error.type, error.message, error.traceback)

    async def _final(self) -> RunView:
        """Listen first, then read: an end between the two is not missed. The server may go away meanwhile."""
        subject = self._bus.names.journal_of(self.function, self.id)
        while True:
            try:
                async with self._bus.listen(subject) as heard:
                    while True:
                        found = await self.view()
                        if found.status in ("completed", "failed", "cancelled"):
                            return found
                        try:
                            async with asyncio.timeout(_LISTEN_SECONDS):
                                await heard.get()
                        except TimeoutError:
                            pass  # published while we were disconnected, it is only in the journal: read again
            except TryAgain:
                await self._bus.clock.sleep(0.5)


def view(function: str, run: str, history: History) -> RunView:
    """A folded journal as users see it."""
    last = history.last
    if last is None:
        return RunView(run, function, "queued", history)
    status: Status = "running" if last.entry in ("claimed", "step") else last.entry  # type: ignore[assignment]
    return RunView(run, function, status, history, last.result if status == "completed" else None, last.error)


@dataclass(frozen=True, slots=True)
class GapView:
    """Occurrences that did not run, as the ledger tells it."""

    function: str
    gap: Gap


class Runs:
    """Read runs: those whose journal stands."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self, *, function: str | None = None, limit: int = 50) -> list[RunView]:
        """The newest runs first, by their ids' time, of one function or of all; reads `limit` journals."""
        names = self._bus.names
        filter = names.journal_of(function) if function else names.journal_all
        subjects = await self._bus.subjects(names.journal, filter)
        runs = [subject for subject in subjects if not subject.rsplit(".", 1)[1].startswith("gap-")]
        newest = sorted(runs, key=lambda subject: subject.rsplit(".", 1)[1], reverse=True)[:limit]
        return list(await asyncio.gather(*(self._read(subject) for subject in newest)))

    async def get(self, run: str) -> RunView:
        """One run by its id; raises `RunNotFound`."""
        names = self._bus.names
        if not run or not run.isalnum():
            raise RunNotFound(run)
        for subject in await self._bus.subjects(names.journal, names.journal_of_run(run)):
            return await self._read(subject)
        raise RunNotFound(run)

    async def gaps(self, *, function: str | None = None) -> Sequence[GapView]:
        """The ledger: occurrences that did not run, and why."""
        names = self._bus.names
        filter = names.journal_of(function) if function else names.journal_all
        subjects = await self._bus.subjects(names.journal, filter)
        found = []
        for subject in subjects:
            owner, token = names.parse_journal(subject)
            if token.startswith("gap-"):
                stored = await self._bus.last(names.journal, subject)
                if stored is not None:
                    found.append(GapView(owner, decode(Gap, stored.payload)))
        return sorted(found, key=lambda view: view.gap.start)

    async def tail(self) -> "AsyncIterator[tuple[str, str, JournalEntry]]":
        """Journal entries as they are written: function, run, entry. Until cancelled."""
        names = self._bus.names
        async with self._bus.listen(names.journal_all) as heard:
            while True:
                subject, payload = await heard.get()
                function, run = names.parse_journal(subject)
                try:
                    if not run.startswith("gap-"):
                        yield function, run, decode(JournalEntry, payload)
                except DecodeError:
                    continue  # written by a newer program; the listing shows it too

    async def _read(self, subject: str) -> RunView:
        function, run = self._bus.names.parse_journal(subject)
        messages = await self._bus.history(self._bus.names.journal, subject)
        return view(function, run, fold(read_entries(messages)))


class Functions:
    """The registered functions."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self) -> list[Function]:
        """All of them, by id; archived ones too."""
        keys = await self._bus.subjects(self._bus.names.registry, self._bus.names.functions)
        entries = await self._bus.entries(keys)
        return sorted((decode(Function, e.payload) for e in entries.values()), key=lambda f: f.id)

    async def get(self, id: str) -> Function:
        """One function; raises `NotFound`."""
        stored = await self._bus.entry(self._bus.names.function_key(id))
        if stored is None:
            raise NotFound(f"there is no function {id!r}; 'jetcron functions list' shows them")
        return decode(Function, stored.payload)

    async def pause(self, *ids: str, wait: float = 5.0) -> None:
        """Stop their schedules and their runs: what is ready, retried or started by events waits.

        Each of `pause`, `unpause` and `archive` returns when cron-sync has applied it. Raises `ConfigurationError`
        when it was refused, `TryAgain` when cron-sync has not answered in `wait` seconds: the order stands.
        """
        await self._order("pause", ids, wait)

    async def unpause(self, *ids: str, wait: float = 5.0) -> None:
        """Go on: schedules from now, waiting runs at once."""
        await self._order("unpause", ids, wait)

    async def archive(self, *ids: str, wait: float = 5.0) -> None:
        """Retire them: what is ready or held is cancelled. Registering the app again brings them back."""
        await self._order("archive", ids, wait)

    async def _order(
        self, command: Literal["pause", "unpause", "archive"], ids: Sequence[str], wait: float
    ) -> None:
        by_app: dict[str, list[str]] = {}
        for id in ids:
            try:
                by_app.setdefault(split_function(id)[0], []).append(id)
            except InvalidName as error:
                raise ConfigurationError(str(error)) from None
        for app, items in by_app.items():
            id = ulid(self._bus.clock.now(), token_bytes(10))
            reply = await order(
                self._bus, SyncCommand(id=id, command=command, app=app, items=items), wait=wait
            )
            if reply.errors:
                raise ConfigurationError("; ".join(reply.errors))


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter and the sequence it is kept under."""

    sequence: int
    letter: DeadLetter


class DeadLetters:
    """What nobody could decode, and runs that failed for good."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self, *, kind: str | None = None, limit: int = 100) -> list[Dead]:
        """The newest first; `kind` is ``failed``, ``run``, ``event``, ``tick`` or ``sync``."""
        found: list[Dead] = []
        filter = f"{self._bus.names.dead_letter(kind)}.>" if kind else self._bus.names.dead_all
        async for page in self._bus.pages(self._bus.names.dead, filter):
            found = [*found, *(_dead(message) for message in page)][-limit:]
        return found[::-1]

    async def get(self, sequence: int) -> Dead:
        """One dead letter; raises `NotFound`."""
        stored = await self._bus.at_sequence(self._bus.names.dead, sequence)
        if stored is None:
            raise NotFound(f"there is no dead letter {sequence}; 'jetcron dead list' shows them")
        return _dead(stored)

    async def replay(self, sequence: int) -> str:
        """Send a dead letter again, and remove it. A failed run starts anew, as a new run; gives its id.

        What could not be decoded is published again as it was, with its headers, on its own subject; gives that
        subject. Raises `ConfigurationError` for a body that was too large to be kept whole.
        """
        dead = await self.get(sequence)
        letter = dead.letter
        if letter.size > len(letter.body):
            raise ConfigurationError(
                f"dead letter {sequence} had {letter.size} bytes and only {len(letter.body)} were kept; send it anew"
            )
        if letter.letter == "failed":
            sent = await self._run_again(sequence, letter)
        else:
            # Without its message id, by which the server would drop it as known: an event keeps its id inside.
            message = self._again(letter)
            await self._bus.publish(message.subject, message.payload, message.headers)
            sent = letter.subject
        await self._bus.delete(self._bus.names.dead, sequence)
        return sent

    def _again(self, letter: DeadLetter) -> Outgoing:
        """What could not be decoded, as it was; an event that can be by now, with the id it had."""
        headers = {name: value for name, value in letter.headers.items() if name in _REPLAYED_HEADERS}
        if letter.letter == "event":
            with contextlib.suppress(DecodeError, InvalidName):
                name = self._bus.names.parse_event(letter.subject)
                event = decode_event(
                    name, letter.body, letter.headers, sequence=letter.sequence, stored_at=letter.at
                )
                return dispatch.event(self._bus.names, event).without_id()
        return Outgoing(letter.subject, letter.body, headers or None)

    async def _run_again(self, sequence: int, letter: DeadLetter) -> str:
        old = decode(Run, letter.body)
        now = self._bus.clock.now()
        # The id comes from the dead letter: replaying it twice, after a crash in between, is one run.
        id = ulid(letter.at, digest("replay", old.run, sequence))
        run = replace(old, run=manual_run_id(old.function, id), turn=0, fire_at=now)
        message = dispatch.new_run(self._bus.names, run, now=now, lead=self._bus.settings.lead_ms)
        await self._bus.store(message)
        return run.run


def _dead(message: StoredMessage) -> Dead:
    return Dead(message.sequence, decode(DeadLetter, message.payload))
