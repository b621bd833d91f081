"""A run as JSON: what a listing tells of it, and everything. Its keys stay."""

from collections.abc import Mapping
from typing import Any

from jetcron.cli import output
from jetcron.cli.run_facts import WITHIN, lateness, line_of, took, tries
from jetcron.history import FINISHED
from jetcron.runs import RunView
from jetcron_protocol.messages import Attempt, Failure, OpenStep, StepResult


def brief(run: RunView) -> dict[str, Any]:
    """What a listing tells of a run."""
    about, attempts, last = run.history.about, run.history.attempts, run.history.last
    started = next((one.started for one in attempts if one.started is not None), None)
    ended = last.at if last is not None and run.status in FINISHED else None
    return {
        "run": run.id,
        "function": run.function,
        "status": run.status,
        "trigger": about.trigger if about else None,
        "event": about.event if about else None,
        "schedule": about.schedule if about else None,
        "scheduled_at": output.moment(about.scheduled_at) if about else None,
        "fire_at": output.moment(about.fire_at) if about else None,
        "started": output.moment(started),
        "ended": output.moment(ended),
        "took_ms": took(run),
        "attempts": tries(attempts),
        "next_at": output.moment(last.next_at) if last is not None else None,
        "waits_on": list(last.on or []) if last is not None else [],
        "error": line_of(run.error) if run.error is not None and run.status != "completed" else None,
    }


def whole(run: RunView, children: Mapping[str, str]) -> dict[str, Any]:
    """Everything."""
    about, last = run.history.about, run.history.last
    kept = last.object if last is not None and run.status == "completed" else None
    return brief(run) | {
        "event_id": about.event_id if about else None,
        "late_ms": lateness(run),
        "parent": {"run": about.parent, "function": about.parent_function, "step": about.parent_step}
        if about is not None and about.parent is not None
        else None,
        "attempts": [_attempt(one) for one in run.history.attempts],
        "steps": [_step(one, children) for one in run.history.steps.values()],
        "waits": [_wait(one, children) for one in run.history.waits.values()],
        "cancelled_by": last.executor if last is not None and run.status == "cancelled" else None,
        "result": run.result,
        "result_object": {"name": kept.name, "size": kept.size} if kept is not None else None,
        "error": _failure(run.error if run.status in ("failed", "cancelled", "retrying") else None),
    }


def _attempt(one: Attempt) -> dict[str, Any]:
    return {
        "number": one.number + 1,
        "turn": one.turn,
        "outcome": one.outcome,
        "executor": one.executor,
        "claimed": output.moment(one.claimed),
        "started": output.moment(one.started),
        "ended": output.moment(one.ended),
        "took_ms": one.ended - one.started if one.ended is not None and one.started is not None else None,
        "error": _failure(one.error),
    }


def _named(id: str) -> dict[str, Any]:
    outer, _, name = id.rpartition(WITHIN)
    return {"id": id, "name": name, "within": outer or None}


def _child(one: StepResult | OpenStep, children: Mapping[str, str]) -> dict[str, Any] | None:
    if one.child is None:
        return None
    return {"run": one.child, "function": one.target, "status": children.get(one.child)}


def _step(one: StepResult, children: Mapping[str, str]) -> dict[str, Any]:
    return _named(one.id) | {
        "op": one.op,
        "first": output.moment(one.first),
        "started": output.moment(one.started),
        "at": output.moment(one.at),
        "took_ms": one.at - one.started if one.started is not None else None,
        "target": one.target,
        "child": _child(one, children),
        "failures": one.tries + (one.error is not None),
        "result": one.result,
        "result_object": {"name": one.object.name, "size": one.object.size} if one.object else None,
        "error": _failure(one.error),
        "error_before": _failure(one.before),
    }


def _wait(one: OpenStep, children: Mapping[str, str]) -> dict[str, Any]:
    return _named(one.id) | {
        "op": one.op,
        "first": output.moment(one.first),
        "started": output.moment(one.started),
        "at": output.moment(one.at),
        "until": output.moment(one.until),
        "target": one.target,
        "child": _child(one, children),
        "failures": one.tries,
        "error": _failure(one.error),
    }


def _failure(error: Failure | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"type": error.type, "message": error.message, "traceback": error.traceback}
