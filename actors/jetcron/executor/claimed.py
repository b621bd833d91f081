"""A run in an executor's hands: what it knows of it, whether its code may go on, and how it writes to its journal.

Owns the attempt's view of its own journal. Who lost the run, or whose code has ended, records nothing more here. If the
process dies, what was appended stands, and whoever takes the run over reads it there.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import structlog

from jetcron.app import FunctionDefinition
from jetcron.bus import Delivery
from jetcron.clock import Clock
from jetcron.errors import (
    LeaseLost,
    NonRetriableError,
    PayloadTooLarge,
    Signal,
    TryAgain,
    Unconfirmed,
    WrongSequence,
)
from jetcron.executor import nesting
from jetcron.executor.arrivals import Arrival
from jetcron.executor.branches import OUTSIDE
from jetcron.executor.lease import Identity, Lease
from jetcron.history import about
from jetcron.journal import RunJournal
from jetcron_protocol.messages import JournalEntry, OpenStep, Run

T = TypeVar("T")
log = structlog.get_logger("jetcron.executor")

_AGAIN = 0.2
"""Seconds after which the server is asked again that did not answer."""


@dataclass(slots=True)
class Claimed:
    """A run that is ours to execute, under `identity`."""

    definition: FunctionDefinition
    run: Run
    delivery: Delivery
    journal: RunJournal
    identity: Identity
    lease: Lease
    clock: Clock
    deadline: int | None = None
    """When it must have ended, epoch ms."""
    claim: str = ""
    """The nonce of our claim, once that is about to be appended."""
    started: int | None = None
    ended: bool = False
    recording: set["asyncio.Task[int]"] = field(default_factory=set)
    tidying: set["asyncio.Task[None]"] = field(default_factory=set)
    executing: "asyncio.Task[Any] | None" = None
    interrupted: Signal | None = None
    """Why we cancelled its code, if we did."""
    broken: NonRetriableError | None = None
    """Why the run must fail, whatever its code makes of the error."""
    opening: dict[str, str] = field(default_factory=dict)
    """Where steps wait whose waits may be stored already, and are not journaled."""
    waits_on: list[OpenStep] = field(default_factory=list)
    """The steps all its branches wait on, once it is released."""
    behind: Arrival | None = None
    """Whom it, or the first in its lane's queue, waits for before it goes in, if that one has not come yet."""

    @property
    def attempt(self) -> int:
        return self.journal.history.attempt

    def entry(self, kind: Any, **fields: Any) -> JournalEntry:
        """A journal entry of this attempt, now."""
        return JournalEntry(
            entry=kind,
            turn=self.run.turn,
            at=self.clock.now(),
            executor=self.identity.id,
            nonce=self.identity.nonce(),
            attempt=self.attempt,
            **fields,
        )

    def claim_entry(self, attempt: int, lost: int, cancels: Sequence[str]) -> JournalEntry:
        """The entry that makes the run ours; the first of a run says where it came from, and what cancels it."""
        return JournalEntry(
            entry="claimed",
            turn=self.run.turn,
            at=self.clock.now(),
            executor=self.identity.id,
            nonce=self.identity.nonce(),
            message=self.delivery.sequence,
            attempt=attempt,
            lost=lost,
            about=about(self.run, cancels) if self.journal.history.about is None else None,
        )

    def hold(self, claim: JournalEntry) -> None:
        """Have it known that we are at it, before the claim is sent: it may stand long before we are told so.

        By the claim, not by the run: whoever else of us has this run, at another turn or delivered once more, neither
        ends that nor is meant by it.
        """
        self.let_go()
        self.claim = claim.nonce
        self.identity.claims.add(claim.nonce)

    def let_go(self) -> None:
        """We are at it no more: if our claim stands, it is taken over."""
        self.identity.claims.discard(self.claim)

    def check(self) -> None:
        """Raise `LeaseLost` when others may hold us for dead: what we would write may be refused, or worse."""
        if self.lease.expired(self.identity):
            raise LeaseLost

    def check_running(self, step: str) -> None:
        """Raise unless the code may go on: neither the run nor a step that this one is part of has ended.

        A task that the code left behind must not write after the last entry.
        """
        if self.interrupted is not None:
            raise self.interrupted
        if self.ended:
            raise NonRetriableError(f"step {step!r}: its run has ended; await every step before you return")
        nesting.check(step)

    def fail(self, error: NonRetriableError) -> NoReturn:
        """Raise what fails the run, even if its code catches it."""
        self.broken = error
        raise error

    def interrupt(self, signal: Signal) -> None:
        """Unwind the run's code; whatever it does with its cancellation, none of its steps does anything more."""
        if self.interrupted is None and not self.ended:
            self.interrupted = signal
            if self.executing is not None:
                self.executing.cancel()

    async def surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """Do what may be repeated until the server answers; `LeaseLost` when the run may be another's by then."""
        while True:
            self.check()
            if self.ended:
                raise NonRetriableError("the run has ended; await every step before you return")
            try:
                return await call()
            except TryAgain as error:
                log.debug("trying again", run=self.run.run, reason=str(error))
                await self.clock.sleep(_AGAIN)

    async def append(
        self,
        entry: JournalEntry,
        *,
        most: int,
        then: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> int:
        """Append while the code runs; how many steps are done by then. Once it stands, `then` begins.

        Raises `LeaseLost` when it cannot be known to stand, `PayloadTooLarge` as `RunJournal.append`.
        """
        self.check_running(entry.step or "")
        self.check()
        # A time-out in the user's code may cancel us here. The append goes on: cut off, its outcome would be
        # unknown, and with it the sequence the next one must expect.
        append = asyncio.create_task(self.journal.append(entry, most=most), context=OUTSIDE.copy())
        self.recording.add(append)
        if then is not None:
            append.add_done_callback(lambda done: self._go_on(done, then))
        try:
            return await asyncio.shield(append)
        except (WrongSequence, Unconfirmed):
            raise LeaseLost from None
        except PayloadTooLarge:
            self.recording.discard(append)
            raise

    def _go_on(self, append: "asyncio.Task[int]", then: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Of no concern to the code, which may be cancelled meanwhile."""
        if not append.cancelled() and append.exception() is None:
            tidying = asyncio.get_running_loop().create_task(then(), context=OUTSIDE.copy())
            self.tidying.add(tidying)

    async def settle(self) -> None:
        """The user's code has ended: wait for what it left being recorded, and let it record nothing more.

        Raises `WrongSequence` or `Unconfirmed` if an append did, whatever the user's code made of it.
        """
        self.ended = True
        for append in self.recording:
            with contextlib.suppress(PayloadTooLarge):  # nothing was appended
                await append
        for tidying in self.tidying:
            await tidying
