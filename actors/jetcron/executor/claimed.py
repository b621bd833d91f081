"""A run in an executor's hands: what it knows of it, and the memory its steps have in the journal.

Owns the attempt's view of its own journal. Who lost the run, or whose code has ended, records nothing more here.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.errors import LeaseLost, NonRetriableError, Unconfirmed, WrongSequence
from jetcron.events import store_events
from jetcron.executor.lease import Identity, Lease
from jetcron.journal import RunJournal, about
from jetcron_protocol import messages
from jetcron_protocol.messages import JournalEntry, Run, StepResult


@dataclass(slots=True)
class Claimed:
    """A run that is ours to execute, under `identity`. Also the attempt's memory of its steps."""

    run: Run
    delivery: Delivery
    journal: RunJournal
    identity: Identity
    lease: Lease
    bus: Bus
    clock: Clock
    started: int | None = None
    lost: bool = False
    ended: bool = False
    recording: set["asyncio.Task[None]"] = field(default_factory=set)

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

    def claim_entry(self, attempt: int, lost: int) -> JournalEntry:
        """The entry that makes the run ours; the first of a run says where it came from."""
        return JournalEntry(
            entry="claimed",
            turn=self.run.turn,
            at=self.clock.now(),
            executor=self.identity.id,
            nonce=self.identity.nonce(),
            message=self.delivery.sequence,
            attempt=attempt,
            lost=lost,
            about=about(self.run) if self.journal.history.about is None else None,
        )

    def check(self) -> None:
        """Raise `LeaseLost` when others may hold us for dead: what we would write may be refused, or worse."""
        if self.lost or self.lease.expired(self.identity):
            raise LeaseLost

    def _check_running(self, step: str) -> None:
        """A task the user's code left behind must not write after the run's last entry."""
        if self.ended:
            raise NonRetriableError(f"step {step!r}: its run has ended; await every step before you return")

    # What `context.Memory` asks for.

    def now(self) -> int:
        return self.clock.now()

    def done(self, step: str) -> StepResult | None:
        self._check_running(step)
        return self.journal.history.steps.get(step)

    async def send(self, events: Sequence[messages.Event]) -> None:
        self.check()
        await store_events(self.bus, events)

    async def record(self, step: str, op: str, result: Any) -> None:
        self.check()
        self._check_running(step)
        # A time-out in the user's code may cancel us here. The append goes on: cut off, its outcome would be
        # unknown, and with it the sequence the next one must expect.
        append = asyncio.create_task(self.journal.append(self.entry("step", step=step, op=op, result=result)))
        self.recording.add(append)
        try:
            await asyncio.shield(append)
        except (WrongSequence, Unconfirmed):
            raise LeaseLost from None

    async def settle(self) -> None:
        """The user's code has ended: wait for what it left being recorded, and let it record nothing more.

        Raises `WrongSequence` or `Unconfirmed` if an append did, whatever the user's code made of it.
        """
        self.ended = True
        for append in self.recording:
            await append
