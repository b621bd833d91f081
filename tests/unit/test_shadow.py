"""When the old scheduler fired, beside when Jetcron would have: what differs, and that every one is accounted for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron import shadow
from jetcron.errors import ConfigurationError
from jetcron.shadow import Difference, Report, check_tolerance, compare, read_report
from jetcron_protocol.messages import Schedule

T = 1_925_000_040_000 // 60_000 * 60_000
MINUTE = 60_000
TOLERANCE = 2_000


def minutely(id: str = "a", function: str = "app.f", **more: Any) -> Schedule:
    return Schedule(id=id, function=function, origin="data", **{"every": MINUTE, **more})


def differences(
    *reports: Report, minutes: int = 3, schedules: list[Schedule] | None = None
) -> list[Difference]:
    found = compare(
        schedules or [minutely()], reports, since=T, until=T + minutes * MINUTE, tolerance=TOLERANCE
    )
    return found.differences


def at(*seconds: float, schedule: str | None = "a", function: str | None = None) -> list[Report]:
    return [Report(T + int(second * 1_000), schedule, function) for second in seconds]


def test_reports_within_the_tolerance_are_in_time() -> None:
    found = compare([minutely()], at(-2, 61.9, 120), since=T, until=T + 3 * MINUTE, tolerance=TOLERANCE)
    assert (found.occurrences, found.in_time, found.differences) == (3, 3, [])


def test_one_is_missing_one_is_extra_one_is_late() -> None:
    assert differences(*at(0, 30, 123)) == [
        Difference("extra", "a", None, reported=T + 30_000),
        Difference("missing", "a", "app.f", due=T + MINUTE),
        Difference("late", "a", "app.f", due=T + 2 * MINUTE, reported=T + 123_000),
    ]


def test_a_scheduler_that_was_stuck_is_late_for_the_last() -> None:
    assert differences(*at(0, 130)) == [
        Difference("missing", "a", "app.f", due=T + MINUTE),
        Difference("late", "a", "app.f", due=T + 2 * MINUTE, reported=T + 130_000),
    ]


def test_what_lies_outside_is_no_difference() -> None:
    assert differences(*at(-30, 0, 60, 120, 180, 200)) == []
    assert differences(*at(0, 60, 121)) == []


def test_a_report_beyond_the_time_is_of_its_own_occurrence_not_of_a_missed_one() -> None:
    tens = minutely(every=10_000)
    missed = [Difference("missing", "a", "app.f", due=T + 170_000)]
    for beyond in (180, 190, 193, 200, 3_600, 9_000):
        reports = at(*range(0, 170, 10), *range(180, beyond + 1, 10), beyond // 10 * 10 + 10)
        assert differences(*reports, schedules=[tens]) == missed
    assert differences(*at(*range(0, 170, 10), 175), schedules=[tens])[0].kind == "late"


def test_a_tolerance_that_spans_half_a_period_is_refused() -> None:
    half = (
        "the tolerance is 2 s, and schedule 'b' fires 4 s apart; allowed is under half of that, less than 2 s"
    )
    for four in (minutely("b", every=4_000), minutely("b", every=None, cron="*/4 * * * * *")):
        with pytest.raises(ConfigurationError, match=half):
            check_tolerance([minutely(), four], since=T, until=T + MINUTE, tolerance=TOLERANCE)
        check_tolerance([minutely(), four], since=T, until=T + MINUTE, tolerance=TOLERANCE - 1)
    hourly = minutely(every=None, cron="0 * * * *")
    with pytest.raises(ConfigurationError, match="fires 1 hour apart"):
        check_tolerance([hourly], since=T, until=T + 1, tolerance=30 * MINUTE)
    once = minutely(every=None, at=T)
    check_tolerance([once], since=T, until=T + MINUTE, tolerance=30 * MINUTE)


def test_a_report_may_name_its_function_alone() -> None:
    both = [minutely("a"), minutely("b"), minutely("c", "app.g")]
    reports = [*at(0, schedule="a"), *at(0, 60, 60, 120, 120, schedule=None, function="app.f")]
    reports += at(0, 60, 120, schedule="c")
    assert differences(*reports, schedules=both) == []
    assert [one.schedule for one in differences(*reports[1:], schedules=both)] in (["a"], ["b"])


def test_what_nobody_knows_is_extra() -> None:
    reports = [*at(0, 60, 120), *at(1, schedule="nobody"), *at(2, schedule=None, function="app.none")]
    assert [(one.kind, one.schedule, one.function) for one in differences(*reports)] == [
        ("extra", "nobody", None),
        ("extra", None, "app.none"),
    ]


def test_jitter_may_be_used_up_and_a_wide_one_takes_nothing_from_a_narrow_one() -> None:
    wide = minutely("w", jitter=30_000)
    assert differences(*at(0, 89, 150, schedule="w"), schedules=[wide]) == []
    narrow = minutely("n", every=None, at=T + 10_000)
    reports = at(10, 20, 80, 140, schedule=None, function="app.f")
    assert differences(*reports, schedules=[wide, narrow]) == []


def test_a_paused_schedule_is_compared() -> None:
    assert len(differences(schedules=[minutely(state="paused")])) == 3


def test_too_many_occurrences_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MOST", 5)
    assert len(differences(minutes=4, schedules=[minutely()])) == 4
    with pytest.raises(ConfigurationError, match="over 5 occurrences"):
        differences(minutes=3, schedules=[minutely(), minutely("b")])


@given(st.lists(st.one_of(st.none(), st.floats(-2, 2), st.floats(2.001, 57)), min_size=1, max_size=30))
def test_each_occurrence_is_what_became_of_it(delays: list[float | None]) -> None:
    reports = [
        report
        for number, delay in enumerate(delays)
        if delay is not None
        for report in at(number * 60 + delay)
    ]
    found = compare([minutely()], reports, since=T, until=T + len(delays) * MINUTE, tolerance=TOLERANCE)
    kinds = {(one.due, one.kind) for one in found.differences}
    assert kinds == {
        (T + number * MINUTE, "missing" if delay is None else "late")
        for number, delay in enumerate(delays)
        if delay is None or int(delay * 1_000) > TOLERANCE
    }
    assert found.in_time == len(delays) - len(kinds)


@given(
    st.lists(st.tuples(st.integers(0, 600_000), st.sampled_from(["a", "b", None])), max_size=40),
    st.sampled_from([0, 15_000]),
)
def test_nothing_is_counted_twice_or_lost(fired: list[tuple[int, str | None]], jitter: int) -> None:
    schedules = [minutely("a", jitter=jitter), minutely("b", every=90_000)]
    reports = [Report(T + ms, id, None if id else "app.f") for ms, id in fired]
    since, until = T + 60_000, T + 540_000
    found = compare(schedules, reports, since=since, until=until, tolerance=TOLERANCE)
    kinds = [one.kind for one in found.differences]
    assert found.occurrences == 8 + len([n for n in range(since, until) if n % 90_000 == 0])
    assert found.in_time + kinds.count("missing") + kinds.count("late") == found.occurrences
    used = found.in_time + kinds.count("late") + kinds.count("extra")
    inside = [report for report in reports if since <= report.at < until]
    assert len(inside) - 4 <= used <= len(reports)


@pytest.mark.parametrize(
    ("data", "report"),
    [
        ({"schedule": "a"}, Report(T, "a")),
        ({"function": "app.f"}, Report(T, None, "app.f")),
        (
            {"schedule": "a", "function": "app.f", "at": "2031-01-01T00:00:00Z"},
            Report(1_924_992_000_000, "a", "app.f"),
        ),
        ({"schedule": "a", "at": 1_924_992_000}, Report(1_924_992_000_000, "a")),
        ({"schedule": "a", "at": "1924992000.5"}, Report(1_924_992_000_500, "a")),
        ({"schedule": "a", "at": "2031-01-01T01:00:00+01:00"}, Report(1_924_992_000_000, "a")),
    ],
)
def test_a_report_is_read(data: Any, report: Report) -> None:
    assert read_report(data, T) == report


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"schedule": 7},
        {"schedule": "a", "function": 7},
        {"at": 7},
        {"schedule": "a", "at": "noon"},
        {"schedule": "a", "at": "2031-01-01T00:00:00"},
        {"schedule": "a", "at": 1e300},
        {"schedule": "a", "at": float("nan")},
        {"schedule": "a", "at": []},
    ],
)
def test_what_is_no_report_is_refused(data: Any) -> None:
    with pytest.raises(ConfigurationError, match="allowed is a map with"):
        read_report(data, T)
