"""Runs as users see them: one run's handle, the listing, the ledger of what did not run; cancelling, starting again.

Owns nothing: everything is read from the journal, as its leader has it. What is ordered here is in the journal
when the call returns; dying in between, the same call again does the rest.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from jetcron.bus import Bus
from jetcron.control import RunControl
from jetcron.errors import (
    RunFailed,
    RunNotFound,
    TryAgain,
)
from jetcron.history import History, Status, status_of
from jetcron.journal import read_history
from jetcron_protocol.codec import DecodeError, decode, unpack
from jetcron_protocol.messages import Failure, Gap, JournalEntry, Run

_LISTEN_SECONDS = 5.0


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
        history = await read_history(self._bus, self._bus.names.journal_of(self.function, self.id))
        return view(self.function, self.id, history)

    async def status(self) -> Status:
        """``queued``, ``running``, ``waiting``, ``retrying``, ``completed``, ``failed`` or ``cancelled``."""
        return (await self.view()).status

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
        if final.status == "completed":
            assert final.history.last is not None
            kept = final.history.last.object
            return final.result if kept is None else unpack(await self._bus.get_object(kept))
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
    last, status = history.last, status_of(history)
    if last is None:
        return RunView(run, function, status, history)
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
        self._control = RunControl(bus)

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

    async def cancel(self, run: str, reason: str = "") -> Status:
        """End a run; returns how it ended: ``cancelled``, or as it had before.

        A waiting or queued one ends at once; one that executes, at its next ``await``, within seconds. Functions it
        invoked go on. Raises `RunNotFound` for one that no journal, no queue and no held message has.
        """
        return await self._control.cancel(await self._function_of(run), run, reason)

    async def retry(self, run: str) -> None:
        """Start a failed run again from its last good step: what it did stands, what it failed at is tried again.

        It has all its attempts once more. Raises `RunNotFound`, `ConfigurationError` for a run that did not fail
        or whose message is gone with its dead letter.
        """
        await self._control.retry(await self._function_of(run), run)

    async def _function_of(self, run: str) -> str:
        """The function of a run; queued ones, which only their messages know, are looked for among all."""
        names = self._bus.names
        if not run or not run.isalnum():
            raise RunNotFound(run)
        for subject in await self._bus.subjects(names.journal, names.journal_of_run(run)):
            return names.parse_journal(subject)[0]
        for subject in await self._bus.subjects(names.work, names.run_later_of(run)):
            return names.parse_run_later(subject).function
        async for page in self._bus.pages(names.work, names.run_ready_all):
            for message in page:
                with contextlib.suppress(DecodeError):
                    queued = decode(Run, message.payload)
                    if queued.run == run:
                        return queued.function
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
        return view(function, run, await read_history(self._bus, subject))
