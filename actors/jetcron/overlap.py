"""What becomes of an occurrence while another one of its schedule goes on: `overlap`, decided purely.

Owns the rules of a lane, in which the runs of one schedule go one at a time. The run that went in last has the lane
from then until it has ended: while it executes, waits (for a week, if it likes), is to be retried, or lies with an
executor that died. Never reads a journal or a clock: callers bring what stands there, and carry the decision out.

Runs that no schedule's time made are not here: those started by name, by events or by other runs neither wait for a
lane nor keep one. Nor are occurrences that somebody orders again: a backfill, a dead letter's replay. They are wanted
though others go on, and though they were left out before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jetcron_protocol.messages import Lane, Overlap

MAX_QUEUE = 1000
"""Most runs that wait for one lane; what comes then is left out. One catch-up fits."""


class Place(NamedTuple):
    """A run that waits, or could, and when it was due (epoch ms), by which it sorts: with jitter that is later."""

    due: int
    run: str


@dataclass(frozen=True, slots=True)
class Enter:
    """The lane is free, or its own: it goes in, and `queue` stays waiting."""

    queue: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """It waits in `queue` until its turn comes. `known`: it stands there already."""

    queue: tuple[Place, ...]
    known: bool = False


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """It does not run, and the ledger says so."""

    reason: str


@dataclass(frozen=True, slots=True)
class CancelHolder:
    """The run that has the lane ends first; then decide again."""


Decision = Enter | Wait | LeaveOut | CancelHolder


def decide(
    policy: Overlap,
    run: str,
    *,
    due: int,
    begun: bool,
    lane: Lane | None,
    ended_at: int | None,
    queue: Sequence[Place],
    blocked: bool = False,
) -> Decision:
    """What becomes of `run`, due at `due` (epoch ms), whose time has come.

    `lane` as it stands; `ended_at` is when the run that has it ended, None while that goes on, 0 if it is forgotten;
    `queue` are those that wait, without the first ones that have ended. Ids of runs sort by the times of their
    occurrences, which say what is newer; those that wait go by when they were due. `begun`: it has a journal, for
    it waits already, or was executed and a user began it again after it failed. It is no occurrence any more that
    could be left out, so it waits whatever the policy. `blocked`: one that was due before it has neither begun nor
    come to wait, so it waits though the lane is free.
    """
    others = tuple(place for place in queue if place.run != run)
    if lane is None or lane.run == run:
        return Enter(others)
    if begun or policy == "queue":
        # Where it stands already, that counts: who is woken is the first as they stand.
        own = next((place for place in queue if place.run == run), Place(due, run))
        first = not blocked and (not others or own < others[0])
        if ended_at is not None and first:
            return Enter(others)
        if own in queue:
            return Wait(tuple(queue), known=True)
        if len(queue) >= MAX_QUEUE and not begun:
            return LeaveOut(f"{MAX_QUEUE} occurrences wait already")
        return Wait(tuple(sorted([*queue, own])))
    newer = run > lane.run
    if policy == "cancel_running":
        if not newer:
            return LeaveOut("a newer occurrence went in before it")
        return CancelHolder() if ended_at is None else Enter(others)
    # skip. Also when the other one has ended by now, but not before this one's time: it comes late because there was
    # no room for it (`concurrency=1`, say), and when it comes must not decide.
    if ended_at is None or (newer and ended_at > due):
        return LeaveOut("another occurrence went on at its time")
    return Enter(others)
