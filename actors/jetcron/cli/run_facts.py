"""What can be told of a run at a glance: when it began, what started it, how late it was, what it waits for. Pure."""

from collections.abc import Sequence

from jetcron.endings import handling_run
from jetcron.history import FINISHED
from jetcron.runs import RunView
from jetcron_protocol.messages import Attempt, Failure, JournalEntry, OpenStep, StepResult
from jetcron_protocol.subjects import HANDLER

WITHIN = "#/"
"""Between a step's id and that of a step within it."""


def began(run: RunView) -> int | None:
    """When its code first ran, as far as it is known: an attempt under way has only been claimed, before its time."""
    if not run.history.attempts:
        return run.history.last.at if run.history.last is not None else None
    first = run.history.attempts[0]
    return first.started if first.started is not None else claimed(run, first)


def child_runs(run: RunView) -> dict[str, str]:
    """The runs it started, by id, with their functions; of a failed run also the one that would handle its failure."""
    history = run.history
    steps: list[StepResult | OpenStep] = [*history.steps.values(), *history.waits.values()]
    found = {one.child: one.target for one in steps if one.child is not None and one.target is not None}
    if run.status == "failed" and history.last is not None:
        found[handling_run(run.id, history.last.turn)] = f"{run.function}{HANDLER}"
    return found


def tries(attempts: Sequence[Attempt]) -> int:
    """How often it was begun: a turn after a wait goes on with the same attempt."""
    turns = zip([None, *attempts], attempts, strict=False)
    return sum(1 for before, _ in turns if before is None or before.outcome != "waiting")


def trigger(run: RunView) -> str:
    """What started it."""
    about = run.history.about
    if about is None:
        return ""
    match about.trigger:
        case "event":
            return f"event {about.event} {about.event_id or ''}".rstrip()
        case "cron":
            return f"schedule {about.schedule or run.function}"
        case "manual":
            return "by name"
        case "invoke":
            return "invoked"


def lateness(run: RunView) -> int | None:
    """How long after it was due its code first ran, in ms."""
    about, attempts = run.history.about, run.history.attempts
    if about is None or not attempts or attempts[0].started is None or attempts[0].turn > 0:
        return None
    return max(attempts[0].started - about.fire_at, 0)


def took(run: RunView) -> int | None:
    """From the beginning of its code to its end, in ms."""
    start, last = began(run), run.history.last
    if start is None or last is None or run.status not in FINISHED or not run.history.attempts:
        return None
    return max(last.at - start, 0)


def waits_for(step: OpenStep) -> str:
    """What an open step waits for, without its time."""
    match step.op:
        case "wait" | "invoke":
            return f"for {step.target}"
        case "run":
            return f"step {step_shown(step.id)} again"
    return f"{step.op} {step_shown(step.id)}"


def step_shown(id: str) -> str:
    """A step's id for people, after the steps it is within."""
    return id.replace(WITHIN, " › ")


def cancelled_by(last: JournalEntry) -> str:
    """By whom, and why."""
    error = last.error
    reason = "" if error is None else error.message if error.type == "Cancelled" else line_of(error)
    return f"by {last.executor}: {reason}" if reason else f"by {last.executor}"


def line_of(error: Failure) -> str:
    """Its type and the first line of its message."""
    lines = error.message.splitlines()
    return f"{error.type}: {lines[0]}" if lines and lines[0] else error.type


def claimed(run: RunView, attempt: Attempt) -> int:
    """When an attempt was claimed, or due: a run is claimed before it is due, and its code does not begin before."""
    about = run.history.about
    return max(attempt.claimed, about.fire_at) if about is not None and attempt.turn == 0 else attempt.claimed
