"""A run as a timeline: what happened and what is waited for, one row each, in order of time.

Owns which rows a run has, in which order and words. Reads nothing, and knows neither terminal nor colours. Pure:
`RunView` -> rows.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jetcron.cli.output import ahead, size, span
from jetcron.cli.run_facts import WITHIN, began, cancelled_by, claimed, line_of, tries
from jetcron.endings import handling_run
from jetcron.history import FINISHED
from jetcron.runs import RunView
from jetcron_protocol.messages import OpenStep, StepResult
from jetcron_protocol.subjects import HANDLER

Mark = Literal["begun", "done", "open", "again", "failed", "cancelled", "left out"]
_UNRECORDED: dict[str, tuple[Mark, str]] = {
    "running": ("open", "running"),
    **dict.fromkeys(FINISHED, ("cancelled", "not finished")),
}
"""What is said of a step that is known only by those within it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that happened. `at`: when it began, epoch ms; `depth` 0 is the run's own, 1 a step, 2 a step within.

    `notes` are phrases, `error` is a line; `notable` rows are left out last. `result` is any JSON.
    """

    at: int
    mark: Mark
    name: str
    what: str = ""
    depth: int = 0
    took: int | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    result: Any = None
    notable: bool = False


def timeline(run: RunView, *, now: int, children: Mapping[str, str] | None = None) -> list[Row]:
    """All its rows. `children`: how its child runs stand, by id; those forgotten are not in it."""
    known = children or {}
    steps = _trees([*_steps(run, known), *_waits(run, now, known)], run.status)
    # Of one moment, an attempt comes before its steps, and of those what was recorded first.
    parts = sorted([*([row] for row in _attempts(run)), *steps], key=lambda part: (part[0].at, part[0].depth))
    return [*(row for part in parts for row in part), *_end(run, known)]


# The run's own.


def _attempts(run: RunView) -> Iterator[Row]:
    attempts = run.history.attempts
    count = tries(attempts)
    for number, one in enumerate(attempts):
        at = began(run) if number == 0 else one.started
        at = at if at is not None else claimed(run, one)
        name = f"attempt {one.number + 1}"
        match attempts[number - 1].outcome if number else None:
            case "waiting":
                name = f"{name}, resumed" if count > 1 else "resumed"
            case "lost":
                name += ", taken over"
            case "failed":
                yield Row(at, "again", "begun again", notes=("by jetcron runs retry",), notable=True)
        notes = [f"on {one.executor}"]
        if one.outcome == "lost" and one.ended is not None:
            notes.append(f"its process died, found out after {span(one.ended - one.claimed)}")
        # The last error is told whole below.
        is_told = number == len(attempts) - 1 and one.error == run.error
        yield Row(
            at,
            "begun",
            name,
            one.outcome or "running",
            took=max(one.ended - at, 0) if one.ended is not None and one.outcome != "lost" else None,
            notes=tuple(notes),
            error=line_of(one.error) if one.error is not None and not is_told else "",
            notable=one.outcome not in ("completed", "waiting"),
        )


def _end(run: RunView, children: Mapping[str, str]) -> Iterator[Row]:
    last, start = run.history.last, began(run)
    if last is None or start is None:
        return
    if last.entry == "retrying" and last.turn == run.history.reopened:
        yield Row(last.at, "again", "begun again", notes=("by jetcron runs retry",), notable=True)
    if last.entry not in FINISHED:
        return
    marks: dict[str, Mark] = {"completed": "done", "failed": "failed", "cancelled": "cancelled"}
    notes: list[str] = []
    count = tries(run.history.attempts)
    if count > 1:
        notes.append(f"{count} attempts")
    if last.entry == "cancelled":
        notes.append(cancelled_by(last))
    took = last.at - start if run.history.attempts else None
    yield Row(
        last.at,
        marks[last.entry],
        last.entry,
        took=took,
        notes=tuple(notes),
        notable=True,
    )
    if last.entry == "failed" and (handler := handling_run(run.id, last.turn)) in children:
        child = f"{run.function}{HANDLER} {handler}"
        yield Row(last.at, "begun", "on_failure", children[handler], notes=(child,), notable=True)


# Steps.


def _steps(run: RunView, children: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    for done in run.history.steps.values():
        notes = list(_done_notes(done, children))
        if done.tries:
            total = done.tries + (done.error is not None)
            notes.append(f"failed {_times(total)}{'' if done.error is not None else ' before'}")
        if done.object is not None:
            notes.append(f"returned {size(done.object.size)}")
        failure = done.error or done.before
        start = done.first if done.first is not None else done.started
        yield (
            done.id,
            Row(
                start if start is not None else done.at,
                "done" if done.error is None else "failed",
                "",
                done.op,
                took=done.at - start if start is not None else None,
                notes=tuple(notes),
                error=line_of(failure) if failure is not None else "",
                result=done.result if done.op in ("run", "invoke") else None,
                notable=failure is not None,
            ),
        )


def _done_notes(done: StepResult, children: Mapping[str, str]) -> Iterator[str]:
    match done:
        case StepResult(op="wait", target=str() as event):
            match done:
                case StepResult(result={"id": str() as id}):
                    yield f"{event} {id}"
                case StepResult(result=None, object=None):
                    yield f"no {event} came"
                case _:
                    yield event
        case StepResult(op="invoke", target=str() as function, child=str() as child):
            yield f"{function} {child}"
            stands = children.get(child)
            if stands is not None and (done.error is not None or stands != "completed"):
                yield stands
        case StepResult(op="send", result=int() as count):
            yield f"{count:,} event{'' if count == 1 else 's'}"


def _waits(run: RunView, now: int, children: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    over = run.status in FINISHED
    for step in run.history.waits.values():
        start = step.first if step.first is not None else step.started
        yield (
            step.id,
            Row(
                start if start is not None else step.at,
                "open" if not over else "cancelled",
                "",
                step.op,
                notes=tuple(_open_notes(step, run.status, now, children)),
                error=line_of(step.error) if step.error is not None else "",
                notable=True,
            ),
        )


def _open_notes(step: OpenStep, status: str, now: int, children: Mapping[str, str]) -> Iterator[str]:
    until = ahead(step.until, now)
    over = status in FINISHED
    match step.op:
        case "run":
            yield f"failed {_times(step.tries)}"
            if not over:
                is_due = step.until <= now and status == "running"
                yield "being tried again" if is_due else f"tried again at {until}"
        case "invoke":
            yield f"{step.target} {step.child}" if step.child is not None else f"{step.target}"
            if step.child is not None:
                yield children.get(step.child, "queued")
            if not over:
                yield f"at the latest {until}"
        case "wait" if not over:
            yield f"waiting for {step.target} until {until}"
        case "wait":
            yield f"waited for {step.target}"
        case _ if not over:
            yield f"until {until}"
    if over:
        yield "ended with the run"


def _trees(steps: Iterable[tuple[str, Row]], status: str) -> Iterator[list[Row]]:
    """Steps with those within them, each tree in order of time; an outer one that is not recorded yet is made up."""
    rows = dict(steps)
    within: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for step in list(rows):
        inner = step
        while WITHIN in inner:
            outer, _, _ = inner.rpartition(WITHIN)
            within[outer][inner] = None
            if outer not in rows:
                mark, note = _UNRECORDED.get(status, ("open", "not done yet"))
                rows[outer] = Row(rows[inner].at, mark, "", "run", notes=(note,), notable=True)
            inner = outer

    def tree(id: str, depth: int) -> list[Row]:
        inner = sorted((tree(one, depth + 1) for one in within[id]), key=lambda part: part[0].at)
        at = min([rows[id].at, *(part[0].at for part in inner)])
        own = replace(rows[id], at=at, name=id.rpartition(WITHIN)[2], depth=depth)
        return [own, *(row for part in inner for row in part)]

    return (tree(id, 1) for id in rows if WITHIN not in id)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
