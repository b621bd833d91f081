"""A run's history: fold it, append to it, fenced.

Owns what a run's journal means. An append stands only if nobody wrote since we last read: an executor that
was frozen and comes back can record nothing. If the process dies between two appends, whoever gets the run
again folds what is there and goes on.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from jetcron.bus import ROLLUP, TTL, Bus, StoredMessage, fenced
from jetcron.errors import PayloadTooLarge
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import About, Attempt, Failure, JournalEntry, Run, StepResult

FINISHED = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class History:
    """A folded journal. `sequence` is that of its last entry, 0 when there is none.

    `attempt` counts what the retry policy counts, from 0; `lost` the attempts lost in a row with no step
    recorded since; `claim` is the last claim, when the run is claimed now.
    """

    sequence: int = 0
    last: JournalEntry | None = None
    claim: JournalEntry | None = None
    about: About | None = None
    attempt: int = 0
    lost: int = 0
    attempts: tuple[Attempt, ...] = ()
    steps: dict[str, StepResult] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.last is not None and self.last.entry in FINISHED


def fold(entries: Iterable[tuple[int, JournalEntry]]) -> History:
    """The history that these entries, oldest first, each with its sequence, add up to."""
    history = History()
    for sequence, entry in entries:
        history = step(history, sequence, entry)
    return history


def step(history: History, sequence: int, entry: JournalEntry) -> History:
    """`history` with one more entry."""
    match entry.entry:
        case "claimed":
            attempts = _close_last(history.attempts, "lost", entry.at)
            attempts += (
                Attempt(turn=entry.turn, number=entry.attempt, executor=entry.executor, claimed=entry.at),
            )
            return History(
                sequence=sequence,
                last=entry,
                claim=entry,
                about=entry.about or history.about,
                attempt=entry.attempt,
                lost=entry.lost,
                attempts=attempts,
                steps=history.steps,
            )
        case "step":
            done = StepResult(id=entry.step or "", op=entry.op or "", at=entry.at, result=entry.result)
            return replace(
                history, sequence=sequence, last=entry, lost=0, steps={**history.steps, done.id: done}
            )
        case "retrying":
            return replace(
                history,
                sequence=sequence,
                last=entry,
                claim=None,
                attempt=history.attempt + 1,
                lost=0,
                attempts=_close_last(history.attempts, "retrying", entry.at, entry.started, entry.error),
            )
        case "completed" | "failed" | "cancelled":
            return History(
                sequence=sequence,
                last=entry,
                about=entry.about or history.about,
                attempt=entry.attempt,
                attempts=tuple(entry.attempts) if entry.attempts is not None else history.attempts,
                steps={done.id: done for done in entry.steps} if entry.steps is not None else history.steps,
            )


def _close_last(
    attempts: tuple[Attempt, ...],
    outcome: str,
    ended: int,
    started: int | None = None,
    error: Failure | None = None,
) -> tuple[Attempt, ...]:
    if not attempts or attempts[-1].outcome is not None:
        return attempts
    last = attempts[-1]
    closed = Attempt(
        turn=last.turn,
        number=last.number,
        executor=last.executor,
        claimed=last.claimed,
        started=started,
        ended=ended,
        outcome=outcome,  # type: ignore[arg-type]
        error=error,
    )
    return (*attempts[:-1], closed)


def finish(history: History, entry: JournalEntry, *, keep_steps: bool) -> JournalEntry:
    """The last entry of a run, holding all that was before it: one message remains of a finished run."""
    return JournalEntry(
        entry=entry.entry,
        turn=entry.turn,
        at=entry.at,
        executor=entry.executor,
        nonce=entry.nonce,
        attempt=history.attempt,
        about=history.about,
        result=entry.result,
        started=entry.started,
        error=entry.error,
        # Given up after lost attempts: nobody knows how the last one ended.
        attempts=list(
            _close_last(
                history.attempts, "lost" if entry.lost else entry.entry, entry.at, entry.started, entry.error
            )
        ),
        steps=[done if keep_steps else replace(done, result=None) for done in history.steps.values()],
    )


def about(run: Run) -> About:
    """Where a run came from, for its journal."""
    event = run.event
    return About(
        trigger=run.trigger,
        fire_at=run.fire_at,
        schedule=run.schedule,
        scheduled_at=run.scheduled_at,
        event=event.name if event else None,
        event_id=event.id if event else None,
        parent=run.parent,
    )


def read_entries(messages: Sequence[StoredMessage]) -> list[tuple[int, JournalEntry]]:
    """Stored messages as journal entries; raises `DecodeError`."""
    return [(message.sequence, decode(JournalEntry, message.payload)) for message in messages]


class RunJournal:
    """The journal of one run, as its executor holds it: knows the last sequence, appends one entry at a time."""

    def __init__(self, bus: Bus, function: str, run: str, *, patience: float) -> None:
        self._bus = bus
        self._subject = bus.names.journal_of(function, run)
        self._patience = patience
        self._turn = asyncio.Lock()
        self.history = History()

    async def read(self) -> History:
        """Fold what is stored, absence believed of the leader only. Raises `DecodeError`."""
        messages = await self._bus.history(self._bus.names.journal, self._subject)
        self.history = fold(read_entries(messages))
        return self.history

    async def append(self, entry: JournalEntry) -> None:
        """Append; raises `WrongSequence` when somebody else wrote, `Unconfirmed` when nobody can tell."""
        async with self._turn:
            headers = fenced(self.history.sequence)
            sequence = await self._bus.append(self._subject, encode(entry), headers, patience=self._patience)
            self.history = step(self.history, sequence, entry)

    async def finish(self, entry: JournalEntry, *, keep: int, keep_steps: bool) -> JournalEntry:
        """Append the last entry in place of all others, kept `keep` seconds; raises as `append`.

        What makes it too large for the server is left out, the history's details first. Raises `PayloadTooLarge`
        when the outcome alone is too large.
        """
        async with self._turn:
            last, body = self._fitting(finish(self.history, entry, keep_steps=keep_steps))
            headers = fenced(self.history.sequence) | {ROLLUP: "sub", TTL: f"{keep}s"}
            sequence = await self._bus.append(self._subject, body, headers, patience=self._patience)
            self.history = step(self.history, sequence, last)
            return last

    def _fitting(self, last: JournalEntry) -> tuple[JournalEntry, bytes]:
        limit = self._bus.max_body
        body = encode(last)
        for shorten in _SHORTER:
            if len(body) <= limit:
                break
            last = shorten(last)
            body = encode(last)
        if len(body) > limit:
            raise PayloadTooLarge(len(body), limit)
        return last, body


_RECENT = 20


def _without_tracebacks(last: JournalEntry) -> JournalEntry:
    return replace(last, attempts=[replace(a, error=_short(a.error)) for a in last.attempts or []])


def _short(error: Failure | None) -> Failure | None:
    return None if error is None else Failure(type=error.type, message=error.message[:200])


def _recent_attempts(last: JournalEntry) -> JournalEntry:
    return replace(last, attempts=(last.attempts or [])[-_RECENT:])


def _without_step_results(last: JournalEntry) -> JournalEntry:
    return replace(last, steps=[replace(done, result=None) for done in last.steps or []])


def _without_steps(last: JournalEntry) -> JournalEntry:
    return replace(last, steps=[])


_SHORTER = (_without_tracebacks, _recent_attempts, _without_step_results, _without_steps)
"""How a last entry is made smaller, in this order."""
