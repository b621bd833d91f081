"""For random schedules, downtimes, updates and policies, the union of runs and ledger is the occurrences, exactly."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetcron import cycle, revisions
from jetcron_protocol.messages import Schedule, Tick
from tests.support.broken_life import REMEMBERED, BrokenLife
from tests.support.schedule_life import Life

seeds = st.integers(0, 2**64)


@settings(max_examples=400, deadline=None)
@given(seeds)
def test_each_occurrence_has_a_run_or_is_told_of_and_never_both(seed: int) -> None:
    assert Life(Random(seed)).play().check() == []


@settings(max_examples=300, deadline=None)
@given(seeds)
def test_none_is_lost_or_doubled_when_ticks_come_again(seed: int) -> None:
    assert Life(Random(seed), repeats=True, again=True).play().check() == []


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_none_is_lost_or_doubled_when_ticks_are_lost(seed: int) -> None:
    assert BrokenLife(Random(seed)).play().check() == []


def lives(count: int, kind: type[Life] = Life) -> tuple[Counter[str], list[str]]:
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    for seed in range(count):
        life = kind(Random(seed)).play()
        wrong += life.check()
        seen += life.seen
    return seen, wrong


def test_lives_are_rich() -> None:
    seen, wrong = lives(1_000)
    assert wrong == []
    for what in (
        "update",
        "pause",
        "unpause",
        "delete",
        "archive",
        "create",
        "ended",
        "function active",
        "function paused",
        "function archived",
    ):
        assert seen[what] > 20, what
    for reason in ("catch_up", "too_old", "too_many", "handed_over"):
        assert seen[reason] > 5, reason
    assert seen["occurrences"] > 10_000


def test_broken_lives_are_rich() -> None:
    seen, wrong = lives(1_000, BrokenLife)
    assert wrong == []
    assert seen["lost"] > 1_000
    assert seen["mended by a sweep"] > 1_000
    assert seen["mended before it was replaced"] > 50
    assert seen["mended, past when it was set"] > 0


def test_a_one_off_set_in_the_past_tells_of_its_own_time_alone() -> None:
    schedule = Schedule(
        id="s", function="app.f", origin="data", at=1_000, armed_from=500_000, catch_up="skip"
    )
    for wanted in (schedule, replace(schedule, executes="other")):
        turn = cycle.decide_turn(
            Tick(schedule="s", revision=1, at=1_000),
            cycle.Entry(wanted, 1),
            None,
            now=600_000,
            late_after=60_000,
            later_stands=False,
        )
        assert isinstance(turn, cycle.Turn)
        assert turn.gap is not None
        assert (turn.gap.start, turn.gap.to, turn.gap.count) == (1_000, 1_000, 1)


# The reckoning notices what is wrong.


def no_past(tick: Any, current: Any, past: Any, **more: Any) -> Any:
    """Ticks of a replaced revision are dropped."""
    return decide_turn(tick, current, None, **more)


def no_end(tick: Any, current: Any, past: Any, **more: Any) -> Any:
    """A replaced revision goes on."""
    return decide_turn(tick, current, past and replace(past, end=1 << 45), **more)


def newest(tick: Any, current: Any, past: Any, **more: Any) -> Any:
    """Whatever is due runs as the newest revision says."""
    return decide_turn(tick, current and current._replace(revision=tick.revision), None, **more)


def no_settling(previous: Any, **more: Any) -> int:
    """A change is in force at once."""
    return successor_armed_from(previous, **more | {"settle": 0})


def shy(schedule: Any, after: int, until: int, newest: int) -> Any:
    """Counts what lies at the end of a stretch to the next."""
    return occurrences(schedule, after, until - 1, newest)


def uncounted(schedule: Any, previous: Any) -> Any:
    """`max_runs` begins anew with every change."""
    return settled(schedule, previous and replace(previous, max_runs=None))


def own(one: Any, other: Any) -> bool:
    """A pause of one's own changes nothing of what is paused with its function."""
    return same(replace(one, with_function=False), replace(other, with_function=False))


def alone(schedule: Any, function: Any) -> Any:
    """What is ordered of a paused function fires."""
    return schedule


def unaware(tick: Any, current: Any, past: Any, **more: Any) -> Any:
    """Nobody asks whether the function is archived."""
    return decide_turn(tick, current, past, **more | {"archived": False})


def no_belated(entry: Any, **more: Any) -> Any:
    """What is once and was past when it was set is never repaired."""
    at = entry.schedule.at
    return None if at is not None and at <= entry.schedule.armed_from else repair(entry, **more)


def from_the_sweep(entry: Any, *, healthy_at: int, horizon: int) -> Any:
    """A chain goes on from now, wherever it broke."""
    return repair(entry, healthy_at=horizon + REMEMBERED, horizon=horizon)


def nothing(*_: Any) -> None:
    """Not done."""


def content(self: Any, how: str, now: int) -> None:
    """The sweep that mends vouches for what the tick that mends it leads to."""
    mend(self, how, now)


repair, mend = cycle.repair, BrokenLife._mend
decide_turn, occurrences = cycle.decide_turn, cycle.occurrences
same, settled, successor_armed_from = revisions.same, revisions.settled, cycle.successor_armed_from


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (cycle, "decide_turn", no_past),
        (cycle, "decide_turn", no_end),
        (cycle, "decide_turn", newest),
        (cycle, "decide_turn", unaware),
        (cycle, "successor_armed_from", no_settling),
        (cycle, "occurrences", shy),
        (revisions, "settled", uncounted),
        (revisions, "same", own),
        (revisions, "beside", alone),
    ],
)
def test_sabotage_is_noticed(module: Any, name: str, wrong: Callable[..., Any]) -> None:
    with mock.patch.object(module, name, wrong):
        assert lives(400)[1] != []


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (cycle, "repair", no_belated),
        (cycle, "repair", from_the_sweep),
        (BrokenLife, "_before_it_is_replaced", nothing),
        (BrokenLife, "_mend", content),
    ],
)
def test_sabotage_of_what_mends_is_noticed(module: Any, name: str, wrong: Callable[..., Any]) -> None:
    with mock.patch.object(module, name, wrong):
        assert lives(2_000, BrokenLife)[1] != []
