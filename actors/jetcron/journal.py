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
from jetcron_protocol.messages import About, Attempt, Failure, JournalEntry, OpenStep, Run, StepResult

FINISHED = ("completed", "failed", "cancelled")


@dataclass(slots=True)
class History:
    """A folded journal, which grows with it. `sequence` is that of its last entry, 0 when there is none.

    `attempt` counts what the retry policy counts, from 0; `lost` the attempts lost in a row with nothing recorded
    since; `claim` is the last claim, when the run is claimed now. `steps` are those that are done, in the order
    they were recorded, `waits` those that have begun and wait. `size` is what the entries take, in bytes.
    """

    sequence: int = 0
    last: JournalEntry | None = None
    claim: JournalEntry | None = None
    about: About | None = None
    attempt: int = 0
    lost: int = 0
    size: int = 0
    attempts: tuple[Attempt, ...] = ()
    steps: dict[str, StepResult] = field(default_factory=dict)
    waits: dict[str, OpenStep] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.last is not None and self.last.entry in FINISHED


def fold(entries: Iterable[tuple[int, JournalEntry]]) -> History:
    """The history that these entries, oldest first, each with its sequence, add up to."""
    history = History()
    for sequence, entry in entries:
        step(history, sequence, entry)
    return history


def step(history: History, sequence: int, entry: JournalEntry) -> History:
    """`history` with one more entry; it is changed, and returned."""
    history.sequence = sequence
    history.last = entry
    history.about = entry.about or history.about
    match entry.entry:
        case "claimed":
            history.claim = entry
            history.attempt = entry.attempt
            history.lost = entry.lost
            begun = Attempt(turn=entry.turn, number=entry.attempt, executor=entry.executor, claimed=entry.at)
            history.attempts = (*_close_last(history.attempts, "lost", entry.at), begun)
        case "opened":
            opened = _opened(entry)
            history.lost = 0
            history.waits[opened.id] = opened
        case "step":
            done = _done(entry)
            history.lost = 0
            history.waits.pop(done.id, None)
            history.steps[done.id] = done
        case "waiting":
            history.claim = None
            history.lost = 0
            history.attempts = _close_last(history.attempts, "waiting", entry.at, entry.started)
        case "retrying":
            history.claim = None
            history.lost = 0
            if entry.attempts is None:
                history.attempt += 1
                history.attempts = _close_last(
                    history.attempts, "retrying", entry.at, entry.started, entry.error
                )
            else:
                history.attempt = entry.attempt
                _take_folded(history, entry)
        case "completed" | "failed" | "cancelled":
            history.claim = None
            history.attempt = entry.attempt
            history.lost = 0
            _take_folded(history, entry)
    return history


def _take_folded(history: History, entry: JournalEntry) -> None:
    """What an entry that stands for all before it says of them."""
    if entry.attempts is not None:
        history.attempts = tuple(entry.attempts)
    if entry.steps is not None:
        history.steps = {done.id: done for done in entry.steps}
        history.waits = {opened.id: opened for opened in entry.waits or ()}


def _done(entry: JournalEntry) -> StepResult:
    return StepResult(
        id=entry.step or "",
        op=entry.op or "",
        at=entry.at,
        started=entry.started,
        result=entry.result,
        object=entry.object,
        error=entry.error,
        target=entry.target,
        child=entry.child,
        tries=entry.tries,
    )


def _opened(entry: JournalEntry) -> OpenStep:
    return OpenStep(
        id=entry.step or "",
        op=entry.op or "",
        at=entry.at,
        until=entry.until if entry.until is not None else entry.at,
        started=entry.started,
        tries=entry.tries,
        error=entry.error,
        target=entry.target,
        child=entry.child,
        wait=entry.wait,
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
    # Given up after lost attempts: nobody knows how the last one ended.
    outcome = "lost" if entry.lost else entry.entry
    return replace(
        entry,
        attempt=history.attempt,
        about=history.about or entry.about,
        lost=0,
        attempts=list(_close_last(history.attempts, outcome, entry.at, entry.started, entry.error)),
        steps=[done if keep_steps else _without_result(done) for done in history.steps.values()],
        waits=list(history.waits.values()),
    )


def reopen(history: History, entry: JournalEntry) -> JournalEntry:
    """The entry with which a run that failed begins again: what it did stands, what it failed at is forgotten."""
    return replace(
        entry,
        about=history.about,
        attempts=list(history.attempts),
        steps=[done for done in history.steps.values() if done.error is None],
        waits=[],
    )


def _without_result(done: StepResult) -> StepResult:
    return replace(done, result=None, object=None)


def about(run: Run, cancels: Sequence[str] = ()) -> About:
    """Where a run came from, for its journal, and where what cancels it is waited for."""
    event = run.event
    return About(
        trigger=run.trigger,
        fire_at=run.fire_at,
        schedule=run.schedule,
        scheduled_at=run.scheduled_at,
        event=event.name if event else None,
        event_id=event.id if event else None,
        parent=run.parent,
        parent_function=run.parent_function,
        parent_step=run.parent_step,
        cancels=list(cancels),
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
        self.history.size = sum(len(message.payload) for message in messages)
        return self.history

    async def append(self, entry: JournalEntry, *, most: int | None = None) -> int:
        """Append; how many steps are done by then.

        Raises `WrongSequence` when somebody else wrote, `Unconfirmed` when nobody can tell, and `PayloadTooLarge`
        when the journal would have more than `most` bytes; then nothing is appended.
        """
        body = encode(entry)
        async with self._turn:
            size = self.history.size + len(body)
            if most is not None and size > most:
                raise PayloadTooLarge(size, most)
            headers = fenced(self.history.sequence)
            sequence = await self._bus.append(self._subject, body, headers, patience=self._patience)
            step(self.history, sequence, entry)
            self.history.size = size
            return len(self.history.steps)

    async def finish(self, entry: JournalEntry, *, keep: int, keep_steps: bool) -> JournalEntry:
        """Append the last entry in place of all others, kept `keep` seconds; raises as `append`.

        What makes it too large for the server is left out, the history's details first. Raises `PayloadTooLarge`
        when the outcome alone is too large.
        """
        async with self._turn:
            last, body = self._fitting(finish(self.history, entry, keep_steps=keep_steps))
            await self._replace(last, body, {TTL: f"{keep}s"})
            return last

    async def reopen(self, entry: JournalEntry) -> None:
        """Begin a finished run again with `entry`, in place of all others; raises as `append`."""
        async with self._turn:
            first, body = self._fitting(reopen(self.history, entry))
            await self._replace(first, body, {})

    async def _replace(self, entry: JournalEntry, body: bytes, headers: dict[str, str]) -> None:
        headers = fenced(self.history.sequence) | {ROLLUP: "sub"} | headers
        sequence = await self._bus.append(self._subject, body, headers, patience=self._patience)
        step(self.history, sequence, entry)
        self.history.size = len(body)

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
    return replace(
        last,
        attempts=[replace(attempt, error=_short(attempt.error)) for attempt in last.attempts or []],
        steps=[replace(done, error=_short(done.error)) for done in last.steps or []],
        waits=[replace(opened, error=_short(opened.error)) for opened in last.waits or []],
    )


def _short(error: Failure | None) -> Failure | None:
    return None if error is None else Failure(type=error.type, message=error.message[:200])


def _recent_attempts(last: JournalEntry) -> JournalEntry:
    return replace(last, attempts=(last.attempts or [])[-_RECENT:])


def _without_step_results(last: JournalEntry) -> JournalEntry:
    return replace(last, steps=[_without_result(done) for done in last.steps or []])


def _without_steps(last: JournalEntry) -> JournalEntry:
    return replace(last, steps=[], waits=[])


_SHORTER = (_without_tracebacks, _recent_attempts, _without_step_results, _without_steps)
"""How a last entry is made smaller, in this order."""
