"""What a run's journal means: its entries, oldest first, folded into attempts, steps and waits.

Owns the rules by which a run's history grows, ends and begins again. Pure: reads and writes nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jetcron_protocol.messages import (
    About,
    Attempt,
    Failure,
    JournalEntry,
    ObjectRef,
    OpenStep,
    Run,
    StepResult,
    replace,
)

FINISHED = ("completed", "failed", "cancelled")
Status = Literal["queued", "running", "waiting", "retrying", "completed", "failed", "cancelled"]


@dataclass(slots=True)
class History:
    """A folded journal, which grows with it. `sequence` is that of its last entry, 0 when there is none.

    `attempt` counts what the retry policy counts, from 0; `lost` the attempts lost in a row with nothing recorded
    since; `claim` is the last claim, when the run is claimed now. `steps` are those that are done, in the order
    they were recorded, `waits` those that have begun and wait. `size` is what the entries take, in bytes.
    `reopened` is the turn at which the run had failed and was begun again, `reopened_at` when; 0 if it never was.
    """

    sequence: int = 0
    last: JournalEntry | None = None
    claim: JournalEntry | None = None
    about: About | None = None
    attempt: int = 0
    lost: int = 0
    size: int = 0
    reopened: int = 0
    reopened_at: int = 0
    attempts: tuple[Attempt, ...] = ()
    steps: dict[str, StepResult] = field(default_factory=dict)
    waits: dict[str, OpenStep] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.last is not None and self.last.entry in FINISHED


def status_of(last: JournalEntry | None) -> Status:
    """Where a run stands whose journal ends in `last`; one that nobody has claimed yet is queued."""
    if last is None:
        return "queued"
    match last.entry:
        case "claimed" | "opened" | "step":
            return "running"
        case "waiting" | "retrying" | "completed" | "failed" | "cancelled" as status:
            return status


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
            opened = _opened(entry, history.waits.get(entry.step or ""))
            history.lost = 0
            history.waits[opened.id] = opened
        case "step":
            done = _done(entry, history.waits.pop(entry.step or "", None))
            history.lost = 0
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
                history.reopened = entry.turn
                history.reopened_at = entry.at
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


def _done(entry: JournalEntry, opened: OpenStep | None) -> StepResult:
    before = opened.error if opened is not None else None
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
        first=opened.first if opened is not None else None,
        before=replace(before, traceback="") if before is not None else None,
        wait=opened.wait if opened is not None else None,
    )


def _opened(entry: JournalEntry, earlier: OpenStep | None) -> OpenStep:
    """A step that waits; `earlier`: how it waited before, for its second try."""
    first = earlier.first if earlier is not None else entry.started
    return OpenStep(
        id=entry.step or "",
        op=entry.op or "",
        at=entry.at,
        until=entry.until if entry.until is not None else entry.at,
        started=entry.started,
        tries=entry.tries,
        first=first if entry.op == "run" else None,
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
        attempt=0,
        about=history.about,
        attempts=list(history.attempts),
        steps=[done for done in history.steps.values() if done.error is None],
        waits=[],
    )


def _without_result(done: StepResult) -> StepResult:
    """What a step did, without its data: of a wait that was met, which event met it; how many events were sent."""
    match done:
        case StepResult(op="send", result=int() as count):
            kept: Any = count
        case StepResult(op="wait", result={"id": id}):
            kept = {"id": id}
        case StepResult(op="wait", object=ObjectRef()):
            kept = {"id": None}
        case _:
            kept = None
    return replace(done, result=kept)  # by its name, an object is found that nobody needs any more


def about(run: Run, cancels: Sequence[str] = ()) -> About:
    """Where a run came from, for its journal, and where what cancels it is waited for."""
    event = run.event
    return About(
        trigger=run.trigger,
        fire_at=run.fire_at,
        schedule=run.schedule,
        scheduled_at=run.scheduled_at,
        overlap=run.overlap,
        event=event.name if event else None,
        event_id=event.id if event else None,
        parent=run.parent,
        parent_function=run.parent_function,
        parent_step=run.parent_step,
        quiet=run.quiet,
        cancels=list(cancels),
    )
