"""What an order makes of a schedule: its states, and `max_runs` as an end, whatever is ordered in between."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from jetcron import revisions
from jetcron.clock import to_ms
from jetcron.cycle import next_occurrence, occurrences
from jetcron.definitions import WHEN, definition
from jetcron.fields import check
from jetcron.revisions import FUNCTION, beside, created, followed, moved, nth, same, settled, updated
from jetcron_protocol.messages import Schedule

HOUR = 3_600_000
NOW = to_ms(datetime(2030, 1, 1, 0, 30, tzinfo=UTC))
HOURLY = Schedule(id="s", function="a.f", origin="data", every=HOUR, armed_from=NOW, command=1)
NINE = Schedule(id="s", function="a.f", origin="data", cron="0 9 * * *", armed_from=NOW, command=1)
ONCE = Schedule(id="s", function="a.f", origin="data", at=NOW + HOUR, armed_from=NOW, command=1)
IN_CODE = replace(NINE, origin="code")


def made(schedule: Schedule, previous: Schedule | None = None, *, at: int = NOW) -> Schedule:
    return settled(replace(schedule, armed_from=at), previous)


def change(previous: Schedule, now: int = NOW, **changes: Any) -> Schedule:
    found = updated(previous.id, changes, previous, now=now)
    assert found.schedule is not None, found.faults
    return found.schedule


def test_max_runs_is_an_end_at_the_last_occurrence() -> None:
    limited = made(replace(HOURLY, max_runs=3))
    assert (limited.state, limited.end) == ("active", (NOW // HOUR + 3) * HOUR)
    assert occurrences(limited, NOW, NOW + 100 * HOUR, 9).count == 3


def test_an_end_of_the_authors_own_that_is_earlier_stands_and_is_not_forgotten() -> None:
    given_end = NOW + 2 * HOUR
    limited = made(replace(HOURLY, max_runs=3, end=given_end, end_given=given_end))
    assert (limited.end, limited.end_given) == (given_end, given_end)
    far = NOW + 90 * HOUR
    later = made(replace(HOURLY, max_runs=3, end=far, end_given=far))
    assert later.end == (NOW // HOUR + 3) * HOUR
    assert definition(later)["end"] == far
    without = made(change(later, max_runs=None), later)
    assert (without.end, without.max_runs) == (far, None)


def test_occurrences_so_far_count_when_it_is_changed() -> None:
    first = made(replace(HOURLY, max_runs=5))
    second = made(change(first, payload={"new": 1}), first, at=NOW + 2 * HOUR)
    assert (second.counted, second.end) == (2, first.end)
    third = made(change(second, every=60_000), second, at=NOW + 3 * HOUR)
    assert third.counted == 3
    assert third.end == (third.armed_from // 60_000 + 2) * 60_000
    spent = made(change(third, payload=None), third, at=NOW + 4 * HOUR)
    assert (spent.state, spent.counted) == ("ended", 5)
    more = made(change(spent, now=NOW + 4 * HOUR, max_runs=6), spent, at=NOW + 5 * HOUR)
    assert (more.state, more.counted) == ("active", 5)


def test_what_is_paused_counts_none() -> None:
    first = made(replace(HOURLY, max_runs=3))
    paused = moved("s", "pause", first)
    assert isinstance(paused, Schedule)
    paused = made(paused, first, at=NOW + HOUR)
    on = moved("s", "unpause", paused)
    assert isinstance(on, Schedule)
    on = made(on, paused, at=NOW + 50 * HOUR)
    assert on.counted == 1
    assert occurrences(on, on.armed_from, NOW + 999 * HOUR, 9).count == 2


@given(
    st.lists(
        st.tuples(st.sampled_from(["pause", "unpause", "payload", "every"]), st.integers(0, 30 * HOUR)),
        max_size=8,
    ),
    st.integers(1, 20),
)
def test_no_more_than_max_runs_and_all_of_them_if_there_is_time(
    orders: list[tuple[str, int]], most: int
) -> None:
    """Whatever is ordered and when: what all revisions fire together is `max_runs`, as soon as it goes on for good."""
    schedule = made(replace(HOURLY, max_runs=most))
    fired = 0
    now = NOW
    for number, (order, later) in enumerate([*orders, ("unpause", 1), ("payload", 1)]):
        now += later
        if order in ("pause", "unpause"):
            found = moved("s", order, schedule)  # type: ignore[arg-type]
            if isinstance(found, str):
                continue
        elif order == "payload":
            if schedule.state == "ended":
                continue
            found = change(schedule, now=now, payload=number)
        else:
            if schedule.state == "ended":
                continue
            found = change(schedule, now=now, every=HOUR // (number + 1))
        if schedule.state == "active":
            fired += occurrences(schedule, schedule.armed_from, now, 0).count
        schedule = settled(replace(found, armed_from=now), schedule)
    if schedule.state == "active":
        fired += occurrences(schedule, schedule.armed_from, now + 10_000 * HOUR, 0).count
    assert fired == most


@given(
    st.sampled_from(["*/7 * * * *", "0 9 * * MON", "30 2 * * *", "0 0 29 2 *"]),
    st.integers(1, 400),
    st.integers(0, 9**12),
)
def test_the_nth_occurrence_is_found_by_counting_as_by_walking(cron: str, count: int, after: int) -> None:
    schedule = replace(NINE, cron=cron, timezone="Europe/Prague")
    at: int | None = after
    for _ in range(count):
        assert at is not None
        at = next_occurrence(schedule, at)
    found = nth(schedule, after, count)
    assert found == at or (found is None and at is not None and at - after > 100 * 365 * 24 * HOUR)


def test_there_is_no_nth_occurrence_past_the_end() -> None:
    assert nth(replace(HOURLY, end=NOW + 70 * HOUR), NOW, 71) is None
    assert nth(replace(NINE, end=NOW + 24 * HOUR), NOW, 65) is None
    assert nth(replace(NINE, cron="0 0 1 1 *"), NOW, 9_000) is None


def test_a_one_off_that_passed_under_its_former_revision_is_not_due_again() -> None:
    renamed = made(change(ONCE, payload=1), ONCE, at=NOW + 2 * HOUR)
    assert renamed.state == "deleted"
    before_it = made(change(ONCE, payload=1), ONCE, at=NOW + HOUR - 1)
    assert before_it.state == "active"
    moved_back = made(change(ONCE, at=NOW - HOUR), ONCE, at=NOW + 2 * HOUR)
    assert moved_back.state == "active", "a new time in the past is due at once"
    assert made(replace(ONCE, at=NOW - HOUR)).state == "active"


def test_a_one_off_that_was_paused_over_its_time_is_gone() -> None:
    paused = replace(ONCE, state="paused")
    on = moved("s", "unpause", paused)
    assert isinstance(on, Schedule)
    assert made(on, paused, at=NOW + 2 * HOUR).state == "deleted"
    assert made(on, paused, at=NOW + HOUR - 1).state == "active"


def test_what_has_no_occurrence_left_has_ended() -> None:
    assert made(replace(NINE, end=NOW + HOUR)).state == "ended"
    back = change(replace(NINE, state="ended"), end=NOW + 100 * HOUR)
    assert made(back).state == "active"


def test_a_new_kind_of_time_takes_the_place_of_the_old_one() -> None:
    found = change(NINE, every=HOUR)
    assert (found.cron, found.every) == (None, HOUR)
    found = change(replace(HOURLY, start=NOW), cron="0 9 * * *", start=None)
    assert (found.cron, found.every, found.start) == ("0 9 * * *", None, None)
    assert updated("s", {"cron": "x", "every": 5}, NINE, now=NOW).faults


SOUND: dict[str, list[Any]] = {
    "function": ["a.f", "b.g"],
    "cron": ["0 9 * * *", "TZ=Asia/Tokyo 0 9 * * *", "30 2 * * *"],
    "every": [HOUR],
    "at": [NOW + HOUR],
    "timezone": ["UTC", "Europe/Prague", "Asia/Tokyo"],
    "dst": ["default", "skip", "both"],
    "jitter": [0, 60_000],
    "catch_up": ["latest", "all", "skip"],
    "catch_up_within": [HOUR],
    "catch_up_most": [5],
    "overlap": ["allow", "queue"],
    "payload": [1, {"to": "all"}],
    "start": [NOW, NOW + 900 * HOUR],
    "end": [NOW + 20 * HOUR, NOW + 990 * HOUR],
    "max_runs": [3],
    "tags": [["x"]],
}
WRONG: dict[str, list[Any]] = {
    "function": ["send"],
    "cron": ["61 * * * *"],
    "every": [5],
    "at": ["noon"],
    "timezone": ["Mars"],
    "dst": ["up"],
    "jitter": [-1],
    "catch_up": ["x"],
    "catch_up_within": [0],
    "end": [NOW - HOUR],
    "max_runs": [0],
    "tags": [[""], 1],
}


def some(of: Mapping[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in of.items()})


@given(
    st.sampled_from(WHEN),
    some(SOUND),
    some({name: [*values, *WRONG.get(name, []), None] for name, values in SOUND.items()}),
)
@example("cron", {"cron": "TZ=Asia/Tokyo 0 9 * * *"}, {"timezone": "Europe/Prague"})
def test_what_stands_is_not_looked_at_again_and_nothing_is_missed(
    when: str, stands: dict[str, Any], changes: dict[str, Any]
) -> None:
    times = {when: stands.get(when, SOUND[when][0])}
    raw = {name: value for name, value in stands.items() if name not in WHEN} | times
    previous = check({"id": "s", "function": "a.f", **raw}, now=NOW).schedule
    assume(previous is not None)
    found = updated("s", changes, previous, now=NOW)
    with mock.patch.object(revisions, "check", lambda raw, *, now, sound: check(raw, now=now)):
        assert updated("s", changes, previous, now=NOW) == found


def test_a_zone_that_is_not_known_here_is_told_whatever_changes() -> None:
    (fault,) = updated("s", {"payload": 1}, replace(NINE, timezone="Mars/Olympus"), now=NOW).faults
    assert fault.startswith("timezone='Mars/Olympus'")


@pytest.mark.parametrize(
    ("move", "before", "after"),
    [
        ("pause", "active", "paused"),
        ("pause", "paused", "paused"),
        ("pause", "archived", None),
        ("pause", "ended", None),
        ("unpause", "paused", "active"),
        ("unpause", "active", "active"),
        ("unpause", "archived", "active"),
        ("unpause", "ended", None),
        ("archive", "active", "archived"),
        ("archive", "ended", "archived"),
        ("delete", "ended", "deleted"),
        ("delete", "archived", "deleted"),
        ("delete", "deleted", None),
        ("pause", "deleted", None),
    ],
)
def test_states(move: Any, before: Any, after: str | None) -> None:
    found = moved("s", move, replace(NINE, state=before))
    if after is None:
        assert isinstance(found, str)
        assert "'s'" in found
    else:
        assert isinstance(found, Schedule)
        assert found.state == after


@pytest.mark.parametrize("previous", [IN_CODE, None])
def test_what_is_absent_or_in_code_is_not_changed(previous: Schedule | None) -> None:
    said = "in code" if previous else "there is no schedule"
    for move in ("pause", "unpause", "archive", "delete"):
        assert said in str(moved("s", move, previous))  # type: ignore[arg-type]
    assert said in updated("s", {"every": HOUR}, previous, now=NOW).faults[0]


def test_creating_what_stands() -> None:
    assert created(NINE, None) is None
    assert created(NINE, replace(HOURLY, state="deleted")) is None
    for state in ("active", "paused", "ended"):
        assert created(NINE, replace(NINE, state=state)) is None
    assert "already" in str(created(NINE, HOURLY))
    assert "archived" in str(created(NINE, replace(NINE, state="archived")))
    assert "in code" in str(created(NINE, IN_CODE))


@pytest.mark.parametrize(
    ("function", "state", "went", "after"),
    [
        ("paused", "active", False, "paused"),
        ("paused", "paused", False, None),
        ("paused", "ended", False, None),
        ("active", "paused", False, None),
        ("active", "paused", True, "active"),
        ("active", "archived", True, "active"),
        ("active", "archived", False, None),
        ("archived", "active", False, "archived"),
        ("archived", "paused", True, "archived"),
        ("archived", "paused", False, None),
        ("archived", "deleted", False, None),
    ],
)
def test_a_schedule_follows_its_function(function: Any, state: Any, went: bool, after: str | None) -> None:
    found = followed(replace(NINE, state=state, with_function=went, by="me"), function)
    assert (found and (found.state, found.by, found.with_function)) == (
        after and (after, FUNCTION, after != "active")
    )


def test_a_schedule_s_own_pause_is_told_from_its_function_s() -> None:
    went = beside(NINE, "paused")
    assert (went.state, went.with_function) == ("paused", True)
    assert beside(NINE, "active") is NINE
    # An edit leaves it as it is, an order of its own makes the state its own.
    edited = change(went, payload={"new": 1})
    assert followed(edited, "active") == replace(edited, state="active", with_function=False, by=FUNCTION)
    for move in ("pause", "archive"):
        own = moved("s", move, went)  # type: ignore[arg-type]
        assert isinstance(own, Schedule)
        assert not same(own, went)
        assert followed(own, "active") is None
    assert beside(replace(NINE, state="paused"), "paused").with_function is False


def test_what_has_used_up_its_runs_is_not_changed_into_nothing() -> None:
    spent = made(replace(HOURLY, max_runs=1), None)
    ended = replace(spent, state="ended", counted=1)
    found = updated("s", {"payload": 1}, ended, now=NOW + 5 * HOUR)
    assert found.schedule is None
    assert "times to come" in found.faults[0]
    assert change(ended, now=NOW + 5 * HOUR, max_runs=3).state == "active"


def test_the_same_is_the_same_whoever_ordered_it() -> None:
    assert same(NINE, replace(NINE, by="me", command=9, armed_from=9))
    limited = made(replace(HOURLY, max_runs=3))
    assert same(replace(HOURLY, max_runs=3), limited)
    assert not same(NINE, replace(NINE, payload=0))
    assert not same(NINE, replace(NINE, state="paused"))
