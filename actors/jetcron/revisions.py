"""What an order makes of a schedule created as data: its next revision, or why there can be none.

Owns the states such a schedule goes through, and how `max_runs` becomes an `end`. Pure: it is given what the
registry holds, and the time; cron-sync carries the decision out.
"""

from collections.abc import Mapping
from typing import Any, Literal

from jetcron.cycle import next_occurrence, occurrences
from jetcron.definitions import FIELDS, WHEN, Checked, authored, definition, given_end
from jetcron.fields import check
from jetcron_protocol.messages import FunctionState, Schedule, replace

Move = Literal["pause", "unpause", "archive", "delete"]

FUNCTION = "its function"
"""Who changed a schedule that followed its function's state."""
END = "its end"
"""Who changed a schedule that fired for the last time."""
_HERE = {"cron", "timezone"}
"""What was right where it was written and may not be here: zones are the host's, expressions are read in one."""
_AFRESH = "allowed is an update that gives it times to come"
_NEAR = 64
"""So many occurrences are walked one by one; further ones are searched for by counting."""
_FIRST_REACH = 3_600_000
_HORIZON = 100 * 366 * 86_400_000
"""Nobody lives to miss an end that is further away, and to look for it would keep cron-sync from others' orders."""


def _absent(id: str) -> str:
    return f"there is no schedule {id!r}; 'jetcron schedules list' shows them"


def _in_code(id: str) -> str:
    return f"{id!r} is declared in code; allowed is a change there, or an order about its function"


def created(wanted: Schedule, previous: Schedule | None) -> str | None:
    """Why this schedule cannot be created beside what stands under its id. The same once more is no fault."""
    if previous is None or previous.state == "deleted":
        return None
    if previous.origin == "code":
        return _in_code(wanted.id)
    if previous.state == "archived":
        return f"{wanted.id!r} is archived; allowed is to unpause it, or to delete it first"
    if authored(previous) == authored(wanted):
        return None
    return f"there is a schedule {wanted.id!r} already; allowed is another id, or an update of that one"


def updated(id: str, changes: Mapping[str, Any], previous: Schedule | None, *, now: int) -> Checked:
    """The schedule with these changes. A new kind of time takes the place of the old one."""
    if previous is None or previous.state == "deleted":
        return Checked(id, faults=[_absent(id)])
    if previous.origin == "code":
        return Checked(id, faults=[_in_code(id)])
    merged = definition(previous)
    if any(changes.get(name) is not None for name in WHEN):
        for name in WHEN:
            merged.pop(name, None)
    unchanged = {"id", *(merged.keys() - changes.keys() - _HERE)}
    merged |= {name: value for name, value in changes.items() if name in FIELDS}
    found = check({"id": id, **merged}, now=now, sound=unchanged)
    # What has ended begins again, for it fires again.
    if found.schedule is not None and previous.state == "ended":
        armed = max(now, previous.armed_from)
        if settled(replace(found.schedule, armed_from=armed), previous).state != "active":
            found.faults.append(f"no occurrence is left; {_AFRESH}")
            found.schedule = None
    elif found.schedule is not None and previous.state != "active":
        found.schedule = replace(found.schedule, state=previous.state, with_function=previous.with_function)
    return found


def moved(id: str, move: Move, previous: Schedule | None) -> Schedule | str:
    """The schedule in its new state; a text: why it cannot be."""
    if previous is None or previous.state == "deleted":
        return _absent(id)
    if previous.origin == "code":
        return _in_code(id)
    match move:
        case "delete":
            return replace(previous, state="deleted", with_function=False)
        case "archive":
            return replace(previous, state="archived", with_function=False)
        case "unpause" if previous.state in ("active", "paused", "archived"):
            return replace(previous, state="active", with_function=False)
        case "pause" if previous.state in ("active", "paused"):
            return replace(previous, state="paused", with_function=False)
    allowed = _AFRESH.removeprefix("allowed is ") if previous.state == "ended" else "an unpause"
    return f"{id!r} is {previous.state} and cannot be {move}{'' if move.endswith('e') else 'e'}d; allowed is {allowed}"


def followed(schedule: Schedule, function: FunctionState) -> Schedule | None:
    """The schedule in the state its function got; None: it stays as it is.

    Back comes what went with its function, and only that: what somebody paused stays paused.
    """
    went = schedule.with_function
    match function:
        case "active" if went and schedule.state in ("paused", "archived"):
            return replace(schedule, state="active", with_function=False, by=FUNCTION)
        case "paused" if schedule.state == "active" or (went and schedule.state == "archived"):
            return replace(schedule, state="paused", with_function=True, by=FUNCTION)
        case "archived" if schedule.state == "active" or (went and schedule.state == "paused"):
            return replace(schedule, state="archived", with_function=True, by=FUNCTION)
    return None


def beside(schedule: Schedule, function: FunctionState) -> Schedule:
    """The schedule as its function's state allows: with a paused one it is paused, and goes on with it."""
    if schedule.state == "active" and function == "paused":
        return replace(schedule, state="paused", with_function=True)
    return schedule


def same(one: Schedule, other: Schedule) -> bool:
    """Whether two revisions are of one definition and state: to write the second would change nothing."""
    return (
        one.state == other.state
        and one.with_function == other.with_function
        and one.origin == other.origin
        and authored(one) == authored(other)
    )


def settled(schedule: Schedule, previous: Schedule | None) -> Schedule:
    """A revision that is to be written, its `armed_from` known: `max_runs` becomes its `end`.

    Occurrences count from the revision that first had `max_runs`, those of its active revisions alone. What has
    none left, or none to come, is not active: it has ended, and what is once is gone. That another scheduler
    executed it is remembered.
    """
    given = given_end(schedule)
    if (schedule.end, schedule.end_given, schedule.counted) != (given, None, 0):
        schedule = replace(schedule, end=given, end_given=None, counted=0)
    if previous is not None and previous.state == "deleted":
        previous = None
    from_other = previous is not None and (previous.from_other or previous.executes == "other")
    if schedule.from_other != from_other:
        schedule = replace(schedule, from_other=from_other)
    if schedule.max_runs is not None:
        schedule = _limited(schedule, given, previous)
    if schedule.state != "active":
        return schedule
    if schedule.at is not None:
        # Due at once if it lies in the past, but only where it is new: else the revisions before governed it.
        passed = previous is not None and previous.at == schedule.at <= schedule.armed_from
        return replace(schedule, state="deleted") if passed else schedule
    if next_occurrence(schedule, schedule.armed_from) is None:
        return replace(schedule, state="ended")
    return schedule


def _limited(schedule: Schedule, given: int | None, previous: Schedule | None) -> Schedule:
    assert schedule.max_runs is not None
    counted = 0
    if previous is not None and previous.max_runs is not None:
        counted = previous.counted
        if previous.state == "active":
            counted += occurrences(previous, previous.armed_from, schedule.armed_from, 0).count
    left = schedule.max_runs - counted
    last = nth(schedule, schedule.armed_from, left) if left > 0 else schedule.armed_from
    ends = [end for end in (last, given) if end is not None]
    return replace(schedule, end=min(ends, default=None), end_given=given, counted=counted)


def nth(schedule: Schedule, after: int, count: int) -> int | None:
    """The time of the `count`-th occurrence later than `after`; None if there are fewer, or it is a century away."""
    if count <= _NEAR:
        at: int | None = after
        for _ in range(count):
            at = next_occurrence(schedule, at) if at is not None else None
        return at
    if schedule.every is not None:
        first = next_occurrence(schedule, after)
        last = None if first is None else first + (count - 1) * schedule.every
        return None if last is None or (schedule.end is not None and last > schedule.end) else last
    return _searched(schedule, after, count)


def _searched(schedule: Schedule, low: int, count: int) -> int | None:
    """As `nth`: stretches are counted, longer and longer ones, then halves of the one that has it."""
    reach = _FIRST_REACH
    horizon = low + _HORIZON
    while (inside := occurrences(schedule, low, low + reach, 0).count) < count:
        low, count, reach = low + reach, count - inside, reach * 2
        if low > horizon:
            return None
    while reach > 1:
        reach = (reach + 1) // 2
        inside = occurrences(schedule, low, low + reach, 0).count
        if inside < count:
            low, count = low + reach, count - inside
    return low + reach
