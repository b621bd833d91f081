"""Who is in charge of an occurrence: the rule of the other side is that of cron-tick, for any history of changes."""

import itertools
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jetcron.cycle import Entry, Turn, decide_turn
from jetcron.revisions import moved, settled, updated
from jetcron.schedules.handover import _in_turn, _Reign, shift
from jetcron_protocol.messages import Past, Schedule, Tick

SECOND = 1_000


def schedule(armed_from: int, **more: Any) -> Schedule:
    return Schedule(id="a", function="app.f", origin="data", every=SECOND, armed_from=armed_from, **more)


changes = st.lists(
    st.tuples(
        st.integers(1, 20), st.sampled_from(["jetcron", "other"]), st.sampled_from(["active", "paused"])
    ),
    min_size=1,
    max_size=6,
)


def history(steps: list[tuple[int, str, str]]) -> list[Schedule]:
    made, at = [], 0
    for seconds, executes, state in steps:
        at += seconds * SECOND
        made.append(schedule(at, executes=executes, state=state))
    return made


def governing(reigns: list[_Reign], at: int) -> _Reign:
    (found,) = [reign for reign in reigns if reign.start < at <= reign.end]
    return found


@given(changes, st.integers(-5, 130))
def test_both_sides_agree_on_every_occurrence(steps: list[tuple[int, str, str]], second: int) -> None:
    revisions = history(steps)
    *replaced, current = revisions
    pasts = [Past(schedule=old, end=new.armed_from) for old, new in zip(replaced, revisions[1:], strict=True)]
    at = second * SECOND
    reign = governing(list(_in_turn(current, pasts)), at)
    made = 0
    for number, revision in enumerate(revisions, 1):
        if not revision.armed_from < at:
            continue  # its chain begins later
        turn = decide_turn(
            Tick(schedule="a", revision=number, at=at),
            Entry(current, len(revisions)),
            pasts[number - 1] if number < len(revisions) else None,
            now=at,
            late_after=60 * SECOND,
            later_stands=False,
        )
        made += isinstance(turn, Turn) and bool(turn.runs)
    assert made == (not reign.executes_other), "Jetcron makes the run, or the other takes it"


@given(changes)
def test_every_instant_has_one_definition(steps: list[tuple[int, str, str]]) -> None:
    revisions = history(steps)
    pasts = [Past(schedule=old, end=new.armed_from) for old, new in itertools.pairwise(revisions)]
    reigns = list(_in_turn(revisions[-1], pasts))
    for second in range(-2, 130):
        governing(reigns, second * SECOND)
    # Read in the other order, the entry is older than what replaced it: that does not govern what is past.
    early = list(_in_turn(revisions[0], pasts))
    for at in range(-2, revisions[0].armed_from + SECOND, SECOND):
        assert governing(early, at).schedule == governing(reigns, at).schedule


def test_only_what_changes_is_ordered_and_at_the_revision_that_was_read() -> None:
    schedules = [(f"job-{n}", n + 1, schedule(0, executes="other")) for n in range(100)]
    some = shift(schedules, 30)
    assert 15 < len(some.to_jetcron) < 45
    assert (some.size, some.left, some.native) == (len(some.to_jetcron), 100 - len(some.to_jetcron), 0)
    assert all(part.raw == {"id": part.id, "executes": "jetcron"} for part in some.to_jetcron)
    assert {part.if_revision for part in some.to_jetcron} == {
        int(part.id[4:]) + 1 for part in some.to_jetcron
    }
    assert shift(schedules, 0).size == 0
    assert len(shift(schedules, 100).to_jetcron) == 100
    assert {part.id for part in some.to_jetcron} < {part.id for part in shift(schedules, 60).to_jetcron}


def test_what_never_had_another_scheduler_is_not_given_away() -> None:
    own = [(f"own-{n}", n + 1, schedule(0)) for n in range(50)]
    taken = [(f"taken-{n}", n + 51, schedule(0, from_other=True)) for n in range(50)]
    found = shift(own + taken, 0)
    assert (found.to_jetcron, found.left, found.native) == ([], 50, 50)
    assert [part.raw for part in found.to_other] == [{"id": id, "executes": "other"} for id, _, _ in taken]
    for percent in (0, 1, 100):
        assert (shift(own, percent).size, shift(own, percent).native) == (0, 50)


def test_what_has_ended_stays_as_it_is() -> None:
    ended = [("a", 1, schedule(0, executes="other", state="ended"))]
    assert (shift(ended, 100).size, shift(ended, 100).left) == (0, 1)


def test_a_schedule_remembers_that_it_had_another_scheduler() -> None:
    def written(made: Schedule, previous: Schedule | None) -> Schedule:
        return settled(replace(made, armed_from=1), previous)

    def updated_(previous: Schedule, **changes: Any) -> Schedule:
        found = updated("a", changes, previous, now=1)
        assert found.schedule is not None
        return written(found.schedule, previous)

    first = written(schedule(0, executes="other"), None)
    here = updated_(first, executes="jetcron")
    assert (here.executes, here.from_other) == ("jetcron", True)
    paused = moved("a", "pause", updated_(here, payload=1))
    assert isinstance(paused, Schedule)
    again = updated_(written(paused, here), executes="other")
    assert (again.executes, again.from_other) == ("other", True)
    own = written(schedule(0), None)
    assert updated_(own, payload=1).from_other is False
    assert updated_(updated_(own, executes="other"), executes="jetcron").from_other is True
    # Its id is free once it is deleted: who takes it has no past.
    gone = moved("a", "delete", here)
    assert isinstance(gone, Schedule)
    assert written(schedule(0), written(gone, here)).from_other is False
