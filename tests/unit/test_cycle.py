"""The cycle's decisions: which occurrences run, which become a gap, which tick comes next."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.clock import from_ms, to_ms
from jetcron.cron import fire_times
from jetcron.cycle import (
    MAX_CATCH_UP,
    Entry,
    Nothing,
    Rearm,
    Repair,
    Turn,
    Undecided,
    awaited,
    decide_turn,
    first_tick,
    make_run,
    next_occurrence,
    occurrences,
    repair,
    successor_armed_from,
)
from jetcron_protocol.ids import code_run_id, schedule_run_id
from jetcron_protocol.messages import Gap, Past, Schedule, Tick

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
NINE = to_ms(datetime(2030, 1, 1, 9, tzinfo=UTC))
DAILY = Schedule(id="app.f", function="app.f", cron="0 9 * * *")
HOURLY = Schedule(id="app.f", function="app.f", every=HOUR)
ONCE = Schedule(id="app.f", function="app.f", at=NINE)


def turned(
    schedule: Schedule,
    at: int = NINE,
    *,
    now: int | None = None,
    revision: int = 5,
    tick_revision: int = 5,
    past: Past | None = None,
    later_stands: bool = False,
    replacing: bool = False,
    archived: bool = False,
) -> Any:
    return decide_turn(
        Tick(schedule="app.f", revision=tick_revision, at=at),
        Entry(schedule, revision),
        past,
        now=at if now is None else now,
        late_after=MINUTE,
        later_stands=later_stands,
        replacing=replacing,
        archived=archived,
    )


def times(turn: Turn) -> list[int | None]:
    return [run.scheduled_at for run in turn.runs]


# Occurrences.


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        (DAILY, NINE - 1, NINE),
        (DAILY, NINE, NINE + DAY),
        (HOURLY, NINE - 1, NINE),
        (HOURLY, NINE, NINE + HOUR),
        (HOURLY, -1, 0),
        (ONCE, NINE - 1, NINE),
        (ONCE, NINE, None),
        (replace(HOURLY, end=NINE), NINE - 1, NINE),
        (replace(HOURLY, end=NINE), NINE, None),
        (replace(HOURLY, end=NINE - 1), NINE - 1, None),
        (replace(HOURLY, start=NINE), 0, NINE),
        (replace(HOURLY, start=NINE + 1), 0, NINE + HOUR),
        (replace(ONCE, start=NINE + 1), 0, None),
        (replace(DAILY, timezone="America/New_York"), NINE, NINE + 5 * HOUR),
    ],
)
def test_the_next_occurrence(schedule: Schedule, after: int, expected: int | None) -> None:
    assert next_occurrence(schedule, after) == expected


@given(
    st.sampled_from([HOURLY, replace(HOURLY, every=7 * MINUTE), DAILY, ONCE]),
    st.integers(-3 * DAY, 3 * DAY),
    st.integers(-HOUR, 3 * DAY),
    st.integers(0, 5),
    st.none() | st.integers(-DAY, DAY),
    st.none() | st.integers(-DAY, DAY),
)
def test_a_window_is_what_walking_finds(
    schedule: Schedule, after: int, width: int, newest: int, start: int | None, end: int | None
) -> None:
    after += NINE
    schedule = replace(
        schedule,
        start=None if start is None else NINE + start,
        end=None if end is None else NINE + end,
    )
    walked = []
    at = next_occurrence(schedule, after)
    while at is not None and at <= after + width:
        walked.append(at)
        at = next_occurrence(schedule, at)
    window = occurrences(schedule, after, after + width, newest)
    assert window.count == len(walked)
    assert list(window.newest) == (walked[-newest:] if newest else [])


# A run.


def test_a_run_is_the_same_whoever_makes_it() -> None:
    run = make_run(DAILY, NINE)
    assert run.run == code_run_id("app.f", NINE)
    assert run == make_run(replace(DAILY, cron="0 9 1 1 *", armed_from=7, command=3), NINE)
    data = replace(DAILY, id="tenant", origin="data", payload=[1])
    assert make_run(data, NINE).run == schedule_run_id("app.f", "tenant", NINE)
    assert make_run(data, NINE).payload == [1]


@given(st.integers(0, DAY), st.integers(NINE, NINE + DAY))
def test_jitter_delays_by_less_than_its_width_and_always_by_as_much(width: int, at: int) -> None:
    run = make_run(replace(DAILY, jitter=width), at)
    assert run.scheduled_at == at
    assert at <= run.fire_at < at + max(width, 1)
    assert make_run(replace(DAILY, jitter=width), at) == run


# Turning a tick.


def test_in_force_and_in_time() -> None:
    turn = turned(DAILY)
    assert times(turn) == [NINE]
    assert turn.next == Tick(schedule="app.f", revision=5, at=NINE + DAY)
    assert (turn.gap, turn.ended) == (None, False)


@pytest.mark.parametrize("early", [0, 2_000, 60_000])
def test_a_minute_late_is_not_late_and_neither_is_early(early: int) -> None:
    assert times(turned(HOURLY, now=NINE - early)) == [NINE]
    assert times(turned(HOURLY, now=NINE + MINUTE, later_stands=True)) == [NINE]
    assert isinstance(turned(HOURLY, now=NINE + MINUTE + 1, later_stands=True), Nothing)


def test_the_last_occurrence_ends_the_chain() -> None:
    for schedule in (ONCE, replace(HOURLY, end=NINE + HOUR - 1)):
        turn = turned(schedule)
        assert (times(turn), turn.next, turn.ended) == ([NINE], None, True)


def test_without_an_entry_there_is_nothing_to_do() -> None:
    tick = Tick(schedule="app.f", revision=5, at=NINE)
    found = decide_turn(tick, None, None, now=NINE, late_after=MINUTE, later_stands=False)
    assert isinstance(found, Nothing)


@pytest.mark.parametrize("state", ["paused", "archived", "deleted", "ended"])
def test_not_active(state: Any) -> None:
    schedule = replace(HOURLY, state=state)
    assert isinstance(turned(schedule), Nothing)
    assert isinstance(turned(schedule, tick_revision=9), Nothing)
    past = Past(schedule=schedule, end=NINE + DAY)
    assert isinstance(turned(HOURLY, revision=9, past=past), Nothing)


def test_a_superseded_revision_governs_up_to_its_end() -> None:
    past = Past(schedule=HOURLY, end=NINE + HOUR)
    turn = turned(DAILY, revision=9, past=past)
    assert (times(turn), turn.next) == ([NINE], Tick(schedule="app.f", revision=5, at=NINE + HOUR))
    turn = turned(DAILY, NINE + HOUR, revision=9, past=past)
    assert (times(turn), turn.next, turn.ended) == ([NINE + HOUR], None, False)
    assert isinstance(turned(DAILY, NINE + HOUR + 1, revision=9, past=past), Nothing)
    assert isinstance(turned(DAILY, revision=9, past=None), Nothing)


@pytest.mark.parametrize("revision", [5, 9])
def test_a_revision_that_is_about_to_be_replaced_says_nothing_yet(revision: int) -> None:
    assert turned(HOURLY, revision=revision, replacing=True) == Undecided()
    assert turned(HOURLY, revision=revision, replacing=True, now=NINE + DAY) == Undecided()


def test_an_intent_that_came_too_late_keeps_nobody() -> None:
    """Of a copy that was frozen: another one has replaced the revision. An end of one in force says nothing."""
    past = Past(schedule=HOURLY, end=NINE)
    assert times(turned(DAILY, revision=9, past=past, replacing=True)) == [NINE]
    assert turned(HOURLY, past=past, replacing=True) == Undecided()
    assert isinstance(turned(HOURLY, revision=4, replacing=True), Rearm), "nor does one of a lost revision"


def test_a_superseded_revision_of_a_paused_schedule_still_settles_what_it_governed() -> None:
    past = Past(schedule=HOURLY, end=NINE)
    assert times(turned(replace(HOURLY, state="paused"), revision=9, past=past)) == [NINE]


def test_a_superseded_revision_late_stops_at_its_end() -> None:
    past = Past(schedule=replace(HOURLY, catch_up="all"), end=NINE + 2 * HOUR)
    turn = turned(DAILY, revision=9, past=past, now=NINE + 9 * HOUR)
    assert times(turn) == [NINE, NINE + HOUR, NINE + 2 * HOUR]
    assert (turn.next, turn.gap) == (None, None)
    past = replace(past, schedule=replace(HOURLY, catch_up="skip"))
    turn = turned(DAILY, revision=9, past=past, now=NINE + 9 * HOUR)
    assert (times(turn), turn.next) == ([], None)
    assert turn.gap == Gap(schedule="app.f", start=NINE, to=NINE + 2 * HOUR, count=3, reason="catch_up")


def test_a_restored_registry_starts_anew_from_just_before_the_tick() -> None:
    assert turned(HOURLY, revision=3) == Rearm(Tick(schedule="app.f", revision=3, at=NINE))
    later = replace(HOURLY, armed_from=NINE + 5)
    assert turned(later, revision=3) == Rearm(Tick(schedule="app.f", revision=3, at=NINE + HOUR))
    assert isinstance(turned(ONCE, NINE + 1, revision=3), Nothing)


# Late.


@pytest.mark.parametrize(
    ("catch_up", "ran", "gap"),
    [
        (
            "latest",
            [NINE + 3 * HOUR],
            Gap(schedule="app.f", start=NINE, to=NINE + 3 * HOUR - 1, count=3, reason="catch_up"),
        ),
        ("all", [NINE + n * HOUR for n in range(4)], None),
        (
            "skip",
            [],
            Gap(schedule="app.f", start=NINE, to=NINE + 3 * HOUR + 7, count=4, reason="catch_up"),
        ),
    ],
)
def test_what_was_missed_is_one_group(catch_up: Any, ran: list[int], gap: Gap | None) -> None:
    turn = turned(replace(HOURLY, catch_up=catch_up), now=NINE + 3 * HOUR + 7)
    assert times(turn) == ran
    assert turn.gap == gap
    assert turn.next == Tick(schedule="app.f", revision=5, at=NINE + 4 * HOUR)


def test_one_missed_occurrence_is_caught_up_without_a_gap() -> None:
    turn = turned(HOURLY, now=NINE + 2 * MINUTE)
    assert (times(turn), turn.gap) == ([NINE], None)
    turn = turned(ONCE, now=NINE + 1000 * DAY)
    assert (times(turn), turn.gap, turn.next, turn.ended) == ([NINE], None, None, True)


def test_the_newest_thousand_are_caught_up() -> None:
    schedule = replace(HOURLY, every=MINUTE, catch_up="all")
    now = NINE + 5_000 * MINUTE
    turn = turned(schedule, now=now)
    assert len(turn.runs) == MAX_CATCH_UP
    assert (times(turn)[0], times(turn)[-1]) == (now - 999 * MINUTE, now)
    assert turn.gap is not None
    assert (turn.gap.reason, turn.gap.count, turn.gap.to) == ("too_many", 4_001, now - 999 * MINUTE - 1)


@given(
    st.sampled_from(["latest", "all", "skip"]),
    st.integers(0, 3 * DAY),
    st.none() | st.integers(0, 2 * DAY),
    st.none() | st.integers(0, 2 * DAY),
)
def test_every_occurrence_runs_or_is_counted_in_the_gap_or_comes_next(
    catch_up: Any, late: int, end: int | None, replaced: int | None
) -> None:
    """None twice, none in none of the three: the third invariant."""
    schedule = replace(HOURLY, every=7 * MINUTE, catch_up=catch_up, end=None if end is None else NINE + end)
    first = next_occurrence(schedule, NINE - 1)
    if first is None:
        return
    past = None if replaced is None else Past(schedule=schedule, end=first + replaced)
    turn = turned(schedule, first, now=first + late, revision=5 if past is None else 9, past=past)
    assert isinstance(turn, Turn)
    last = turn.next.at - 1 if turn.next is not None else first + 4 * DAY
    last = last if past is None else min(last, past.end)
    expected = occurrences(schedule, first - 1, last, 0).count
    assert len(turn.runs) + (turn.gap.count if turn.gap else 0) == expected
    assert len({run.run for run in turn.runs}) == len(turn.runs)
    if turn.gap is not None:
        assert not [run for run in turn.runs if turn.gap.start <= (run.scheduled_at or 0) <= turn.gap.to]


ZONES = ["UTC", "Europe/Prague", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]
EXPRESSIONS = ["30 2 * * *", "*/20 * * * *", "15 1-3 * * *", "0 0 * * SUN", "45 */2 * * *", "0 30 1 * * *"]
AROUND = [  # changes of a clock, by an hour, by half an hour, by a day
    datetime(2031, 3, 30, 1, tzinfo=UTC),
    datetime(2031, 10, 26, 1, tzinfo=UTC),
    datetime(2031, 3, 9, 7, tzinfo=UTC),
    datetime(2031, 11, 2, 6, tzinfo=UTC),
    datetime(2031, 4, 5, 15, tzinfo=UTC),
    datetime(2011, 12, 30, 10, tzinfo=UTC),
]


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
    st.sampled_from(["default", "skip", "both"]),
    st.sampled_from(["latest", "all", "skip"]),
    st.sampled_from(AROUND),
    st.integers(-2 * DAY, HOUR),
    st.integers(MINUTE + 1, 3 * DAY),
    st.none() | st.integers(1, 3 * DAY),
    st.none() | st.integers(1, 12),
    st.none() | st.integers(0, 2 * DAY),
)
def test_catch_up_is_what_counting_by_hand_finds_across_changes_of_the_clock(
    expression: str,
    zone: str,
    dst: Any,
    policy: Any,
    change: datetime,
    before: int,
    down: int,
    within: int | None,
    most: int | None,
    end: int | None,
) -> None:
    """Down from some time on for `down` ms: which run, which are in the ledger and why, which comes next."""
    start = to_ms(change) + before
    (first, *_) = _by_hand(expression, zone, dst, start, 1)
    now = first + down
    all_ = _by_hand(expression, zone, dst, start, 400)
    assert all_[-1] > now + DAY, "enough of them"
    schedule = Schedule(
        id="app.f",
        function="app.f",
        cron=expression,
        timezone=zone,
        dst=dst,
        catch_up=policy,
        catch_up_within=within,
        catch_up_most=most,
        end=None if end is None else first + end,
    )
    due = [at for at in all_ if at <= now and (schedule.end is None or at <= schedule.end)]
    young = [at for at in due if within is None or at >= now - within]
    run = {"latest": young[-1:], "all": young[-(most or MAX_CATCH_UP) :], "skip": []}[policy]
    left = [at for at in due if at not in run]

    turn = turned(schedule, first, now=now)

    assert times(turn) == run
    if not left:
        assert turn.gap is None
    else:
        assert turn.gap is not None
        assert (turn.gap.start, turn.gap.count) == (first, len(left))
        assert left[-1] <= turn.gap.to
        assert not [at for at in run if at <= turn.gap.to]
        if policy == "skip":
            why = "catch_up"
        elif left[-1] not in young:
            why = "too_old"
        else:
            why = "too_many" if policy == "all" else "catch_up"
        assert turn.gap.reason == why
    later = [at for at in all_ if at > now and (schedule.end is None or at <= schedule.end)]
    assert (turn.next.at if turn.next else None) == (later[0] if later else None)


def _by_hand(expression: str, zone: str, dst: Any, after: int, count: int) -> list[int]:
    found = fire_times(expression, timezone=zone, after=from_ms(after), count=count, dst=dst, seed="app.f")
    return [to_ms(at) for at in found]


# Arming.


def test_a_new_schedule_counts_from_its_command() -> None:
    assert successor_armed_from(None, stored_at=5, now=9, settle=2) == 5


@pytest.mark.parametrize(
    ("stored_at", "now", "previous", "expected"),
    [(5, 9, 0, 11), (9, 5, 0, 11), (5, 9, 50, 50)],
)
def test_a_successor_counts_once_ticks_that_are_out_are_settled(
    stored_at: int, now: int, previous: int, expected: int
) -> None:
    before = replace(HOURLY, armed_from=previous)
    assert successor_armed_from(before, stored_at=stored_at, now=now, settle=2) == expected


def test_the_first_tick() -> None:
    assert first_tick(Entry(replace(HOURLY, armed_from=NINE), 5)) == Tick(
        schedule="app.f", revision=5, at=NINE + HOUR
    )
    assert first_tick(Entry(replace(ONCE, armed_from=NINE + DAY), 5)) == Tick(
        schedule="app.f", revision=5, at=NINE
    ), "an `at` in the past is due at once"
    assert first_tick(Entry(replace(HOURLY, state="paused"), 5)) is None
    assert first_tick(Entry(replace(HOURLY, armed_from=NINE, end=NINE), 5)) is None


# Repair.


def test_a_broken_chain_goes_on_where_it_was_last_whole() -> None:
    found = repair(Entry(HOURLY, 5), healthy_at=NINE, horizon=0)
    assert found is not None
    assert (found.tick, found.gap) == (Tick(schedule="app.f", revision=5, at=NINE + HOUR), None)
    found = repair(Entry(replace(HOURLY, armed_from=NINE + DAY), 5), healthy_at=NINE, horizon=0)
    assert found is not None
    assert found.tick.at == NINE + DAY + HOUR


def test_what_nobody_can_know_any_more_is_a_gap() -> None:
    found = repair(Entry(HOURLY, 5), healthy_at=NINE, horizon=NINE + 3 * HOUR)
    assert found is not None
    assert found.tick.at == NINE + 4 * HOUR
    assert found.gap == Gap(
        schedule="app.f", start=NINE + HOUR, to=NINE + 3 * HOUR, count=3, reason="unknown_history"
    )
    found = repair(Entry(DAILY, 5), healthy_at=NINE, horizon=NINE + HOUR)
    assert found is not None
    assert (found.tick.at, found.gap) == (NINE + DAY, None)


@pytest.mark.parametrize("state", ["paused", "archived", "deleted", "ended"])
def test_what_is_not_active_is_not_repaired(state: Any) -> None:
    assert repair(Entry(replace(HOURLY, state=state), 5), healthy_at=0, horizon=0) is None


def test_what_has_nothing_left_is_not_repaired() -> None:
    assert repair(Entry(replace(HOURLY, end=NINE), 5), healthy_at=NINE, horizon=0) is None


@pytest.mark.parametrize("armed_from", [NINE - HOUR, NINE + HOUR])
@pytest.mark.parametrize("healthy_at", [0, NINE, NINE + DAY])
def test_what_is_once_is_awaited_until_it_is_over(armed_from: int, healthy_at: int) -> None:
    """Also where it was past when it was set: as it is first armed, so it is armed again, and missed by doctors."""
    once = replace(ONCE, armed_from=armed_from)
    tick = first_tick(Entry(once, 5))
    assert tick == Tick(schedule="app.f", revision=5, at=NINE)
    assert repair(Entry(once, 5), healthy_at=healthy_at, horizon=armed_from - 1) == Repair(tick)
    assert awaited(once, NINE + DAY) == NINE
    unknown = Gap(schedule="app.f", start=NINE, to=NINE, count=1, reason="unknown_history")
    assert repair(Entry(once, 5), healthy_at=healthy_at, horizon=NINE + 2 * HOUR) == Repair(None, unknown)


# What is left to the other scheduler.

OTHER = replace(HOURLY, executes="other")


def test_what_the_other_executes_makes_no_run_is_told_and_goes_on() -> None:
    turn = turned(OTHER)
    assert turn.runs == ()
    assert turn.gap == Gap(schedule="app.f", start=NINE, to=NINE, count=1, reason="handed_over")
    assert turn.next == Tick(schedule="app.f", revision=5, at=NINE + HOUR)
    once = turned(replace(ONCE, executes="other"))
    assert (once.runs, once.next, once.ended) == ((), None, True)


def test_late_all_up_to_now_is_left_to_the_other() -> None:
    turn = turned(replace(OTHER, catch_up="all"), now=NINE + 3 * HOUR + 1)
    assert turn.runs == ()
    assert turn.gap == Gap(
        schedule="app.f", start=NINE, to=NINE + 3 * HOUR + 1, count=4, reason="handed_over"
    )
    assert turn.next == Tick(schedule="app.f", revision=5, at=NINE + 4 * HOUR)
    assert turned(OTHER, now=NINE + DAY, later_stands=True) == Nothing("its chain has gone on")


def test_the_revision_in_force_says_who_executes() -> None:
    handed = Past(schedule=OTHER, end=NINE + HOUR)
    old = turned(HOURLY, NINE + HOUR, now=NINE + HOUR, revision=6, past=handed)
    assert (old.runs, old.gap.reason, old.next) == ((), "handed_over", None)
    (run,) = turned(HOURLY, NINE + 2 * HOUR, revision=6, tick_revision=6).runs
    assert run.scheduled_at == NINE + 2 * HOUR
    late = turned(HOURLY, NINE, now=NINE + 5 * HOUR, revision=6, past=handed)
    assert (late.gap.count, late.gap.to, late.next) == (2, NINE + HOUR, None)


# What was due before its function was archived, and is turned after.


def test_what_nobody_would_take_makes_no_run_is_told_and_goes_on_to_its_end() -> None:
    end = NINE + 3 * HOUR
    past = Past(schedule=replace(HOURLY, catch_up="all"), end=end)
    current = {"schedule": replace(HOURLY, state="archived"), "revision": 6, "past": past, "archived": True}
    turn = turned(**current)
    assert turn.runs == ()
    assert turn.gap == Gap(schedule="app.f", start=NINE, to=NINE, count=1, reason="archived")
    assert turn.next == Tick(schedule="app.f", revision=5, at=NINE + HOUR)
    late = turned(**current, now=NINE + DAY)
    assert late.gap == Gap(schedule="app.f", start=NINE, to=end, count=4, reason="archived")
    assert (late.runs, late.next, late.ended) == ((), None, False)
    other = replace(past, schedule=OTHER)
    assert turned(**current | {"past": other}).gap.reason == "handed_over", "that one ran it"
