"""Runs as users see them: one run's handle, the listing, the ledger of what did not run; cancelling, starting again.

Owns nothing: everything is read from the journal, as its leader has it. What is ordered here is in the journal
when the call returns; dying in between, the same call again does the rest.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from jetcron.bus import Bus
from jetcron.control import RunControl, letter_gone, not_failed
from jetcron.errors import (
    ConfigurationError,
    RunFailed,
    RunNotFound,
    TryAgain,
)
from jetcron.history import FINISHED, History, Status, about, status_of
from jetcron.journal import follow, read_history
from jetcron.many import each
from jetcron.replay import DeadLetters
from jetcron_protocol.codec import DecodeError, decode, unpack
from jetcron_protocol.messages import Failure, Gap, JournalEntry, Run

_LISTEN_SECONDS = 5.0
_SOON = 0.02
_PAGE = 1_000
_ID = re.compile(r"(?!gap-)[A-Za-z0-9_-]{1,64}")
"""What stands for a run in a subject; the ledger's gaps stand beside."""


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
    """A run that was started, by its id. `known`: its journal stood before, and it does not run anew (`backfill`)."""

    def __init__(self, bus: Bus, function: str, id: str, *, known: bool = False) -> None:
        self._bus = bus
        self.function = function
        self.id = id
        self.known = known

    def __repr__(self) -> str:
        return f"RunHandle({self.function!r}, {self.id!r})"

    async def view(self) -> RunView:
        """What its journal says now; a run nobody has claimed yet is queued."""
        history = await read_history(self._bus, self._bus.names.journal_of(self.function, self.id))
        return view(self.function, self.id, history)

    async def status(self) -> Status:
        """``queued``, ``running``, ``waiting``, ``retrying``, ``completed``, ``failed`` or ``cancelled``."""
        return status_of(await self._last())

    async def history(self) -> History:
        """Its attempts and steps."""
        return (await self.view()).history

    async def cancel(self, reason: str = "") -> Status:
        """End it, as `Runs.cancel` does."""
        return await RunControl(self._bus).cancel(self.function, self.id, reason)

    async def result(self, timeout: float | None = None) -> Any:
        """What it returned.

        Raises `RunFailed` when it failed or was cancelled, `TimeoutError` after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            final = await self._final()
        return await _result(self._bus, final)

    async def _final(self) -> RunView:
        """Listen first, then read: an end between the two is not missed. The server may go away meanwhile."""
        subject = self._bus.names.journal_of(self.function, self.id)
        while True:
            try:
                async with self._bus.listen(subject) as heard:
                    wait = _LISTEN_SECONDS
                    # Only the end is read whole: a run may have a thousand entries before it.
                    while status_of(await self._last()) not in FINISHED:
                        try:
                            async with asyncio.timeout(wait):
                                while not _is_end((await heard.get())[1]):
                                    pass
                            wait = (
                                _SOON  # heard before it is stored, or refused: what is read next says which
                            )
                        except TimeoutError:
                            # Published while we were disconnected, it is only in the journal: read again.
                            wait = min(2 * wait, _LISTEN_SECONDS)
                    return await self.view()
            except TryAgain:
                await self._bus.clock.sleep(0.5)

    async def _last(self) -> JournalEntry | None:
        names = self._bus.names
        stored = await self._bus.last(names.journal, names.journal_of(self.function, self.id))
        return None if stored is None else decode(JournalEntry, stored.payload)


def _is_end(payload: bytes) -> bool:
    """Whether an entry may be a run's last."""
    try:
        return decode(JournalEntry, payload).entry in FINISHED
    except DecodeError:
        return True  # written by a newer program


def view(function: str, run: str, history: History) -> RunView:
    """A folded journal as users see it."""
    last, status = history.last, status_of(history.last)
    if last is None:
        return RunView(run, function, status, history)
    return RunView(run, function, status, history, last.result if status == "completed" else None, last.error)


async def _result(bus: Bus, ended: RunView) -> Any:
    """What a run that has ended returned, wherever it is kept; raises `RunFailed`."""
    if ended.status == "completed":
        assert ended.history.last is not None
        kept = ended.history.last.object
        return ended.result if kept is None else unpack(await bus.get_object(kept))
    error = ended.error or Failure(type=ended.status, message="")
    raise RunFailed(ended.id, error.type, error.message, error.traceback)


@dataclass(frozen=True, slots=True)
class GapView:
    """Occurrences that did not run, as the ledger tells it."""

    function: str
    gap: Gap


class Runs:
    """Read runs: those whose journal stands."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._control = RunControl(bus)

    async def list(
        self,
        *,
        function: str | None = None,
        status: str | Collection[str] | None = None,
        limit: int = 50,
    ) -> list[RunView]:
        """The newest runs first, by their ids' time, of one function or of all; reads `limit` journals.

        With `status`, one or several, it looks for so many that stand so. Queued runs have no journal. Raises
        `ConfigurationError` for a status there is not.
        """
        names = self._bus.names
        filter = names.journal_of(function) if function else names.journal_all
        subjects = await self._bus.subjects(names.journal, filter)
        own = [subject for subject in subjects if not subject.rsplit(".", 1)[1].startswith("gap-")]
        runs: Sequence[str] = sorted(own, key=lambda subject: subject.rsplit(".", 1)[1], reverse=True)
        if status is not None:
            runs = await self._standing(runs, statuses_of(status), limit)
        found: dict[str, RunView] = {}

        async def read(subject: str) -> None:
            found[subject] = await self._read(subject)

        await each(read, runs[:limit])
        # What was forgotten meanwhile has no entry.
        return [one for one in (found[subject] for subject in runs[:limit]) if one.history.last is not None]

    async def get(self, run: str) -> RunView:
        """One run by its id; raises `RunNotFound`."""
        names = self._bus.names
        function, queued = await self._find(run)
        found = await self._read(names.journal_of(function, run))
        if found.history.last is None and queued is not None:
            found.history.about = about(queued)
        return found

    async def result(self, run: str) -> Any:
        """What a run that has ended returned, as `RunHandle.result`; `ConfigurationError` for one that has not."""
        found = await self.get(run)
        if found.status not in FINISHED:
            raise ConfigurationError(f"run {run} of {found.function} has not ended: it is {found.status}")
        return await _result(self._bus, found)

    async def statuses(self, runs: Mapping[str, str]) -> dict[str, Status]:
        """Where runs stand, given by id, with their functions; left out is what no journal has."""
        names = self._bus.names
        subjects = {names.journal_of(function, run): run for run, function in runs.items()}
        last = await self._last_entries(list(subjects))
        return {subjects[subject]: status_of(entry) for subject, entry in last.items()}

    async def cancel(self, run: str, reason: str = "") -> Status:
        """End a run; returns how it ended: ``cancelled``, or as it had before.

        A waiting or queued one ends at once; one that executes, at its next ``await``, within seconds. Functions it
        invoked go on. Raises `RunNotFound` for one that no journal, no queue and no held message has.
        """
        function, queued = await self._find(run)
        return await self._control.cancel(function, run, reason, queued=queued)

    async def retry(self, run: str, *, from_start: bool = False) -> str:
        """Start a failed run again from its last good step: what it did stands, what it failed at is tried again.

        It has all its attempts once more. `from_start`: anew instead, as another run with the same data. Returns the
        id of the run that runs now. Raises `RunNotFound`, `ConfigurationError` for a run that did not fail
        or whose message is gone with its dead letter.
        """
        if from_start:
            return await self._replay(run)
        await self._control.retry((await self._find(run))[0], run)
        return run

    async def _replay(self, run: str) -> str:
        """Its dead letter outlives its journal."""
        letters = DeadLetters(self._bus)
        letter = await letters.of_run(run) if _ID.fullmatch(run) else None
        try:
            found = await self.get(run)
        except RunNotFound:
            if letter is None:
                raise
        else:
            if found.status != "failed":
                raise not_failed(found.function, run, found.status)
            if letter is None:
                raise letter_gone(found.function, run)
        return await letters.replay(letter.sequence)

    async def _find(self, run: str) -> tuple[str, Run | None]:
        """The function of a run, and its message if it is queued: then only that knows it, and all are looked at."""
        names = self._bus.names
        if not _ID.fullmatch(run):
            raise RunNotFound(run)
        for subject in await self._bus.subjects(names.journal, names.journal_of_run(run)):
            return names.parse_journal(subject)[0], None
        for subject in await self._bus.subjects(names.work, names.run_later_of(run)):
            held = await self._bus.last(names.work, subject)
            return names.parse_run_later(subject).function, None if held is None else decode(
                Run, held.payload
            )
        async for page in self._bus.pages(names.work, names.run_ready_all):
            for message in page:
                with contextlib.suppress(DecodeError):
                    queued = decode(Run, message.payload)
                    if queued.run == run:
                        return queued.function, queued
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

    def tail(
        self, *, listening: Callable[[], object] | None = None
    ) -> "AsyncIterator[tuple[str, str, JournalEntry]]":
        """Journal entries as they are written: function, run, entry. Until cancelled.

        `listening` is called once nothing more is missed.
        """
        return follow(self._bus, listening=listening)

    async def _read(self, subject: str) -> RunView:
        function, run = self._bus.names.parse_journal(subject)
        return view(function, run, await read_history(self._bus, subject))

    async def _standing(
        self, subjects: Sequence[str], statuses: Collection[str], limit: int
    ) -> Sequence[str]:
        """The first `limit` of these journals whose runs stand so: only their last entries are read."""
        found: list[str] = []
        for start in range(0, len(subjects), _PAGE):
            if len(found) >= limit:
                break
            page = subjects[start : start + _PAGE]
            last = await self._last_entries(page)
            found += [one for one in page if one in last and status_of(last[one]) in statuses]
        return found

    async def _last_entries(self, subjects: Sequence[str]) -> dict[str, JournalEntry]:
        stored = await self._bus.multi_last_all(self._bus.names.journal, subjects)
        return {subject: decode(JournalEntry, message.payload) for subject, message in stored.items()}


def statuses_of(given: str | Collection[str]) -> set[str]:
    """One status or several, as they are given; raises `ConfigurationError` for one there is not."""
    statuses = {given} if isinstance(given, str) else set(given)
    for one in statuses.difference(get_args(Status)):
        raise ConfigurationError(f"status={one!r}; allowed are {', '.join(map(repr, get_args(Status)))}")
    return statuses
