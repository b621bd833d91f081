"""What a schedule created as data may be: every field at fault is named, all at once, and nothing else."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.clock import to_ms
from jetcron.cycle import next_occurrence
from jetcron.definitions import FIELDS, MAX_PAYLOAD, MAX_TAGS, definition
from jetcron.fields import check
from jetcron.given import changed, checked, wire, written
from jetcron.options import CatchUp
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import Schedule

NOW = to_ms(datetime(2030, 1, 31, 12, tzinfo=UTC))
SOUND: dict[str, Any] = {"id": "team-7", "function": "reports.send", "cron": "0 9 * * MON"}


def faults(**values: Any) -> list[str]:
    """What is wrong with a sound schedule that has these values instead; None takes one away."""
    merged = {key: value for key, value in (SOUND | values).items() if value is not None}
    _, found = checked(merged, now=NOW)
    assert (found.schedule is None) == bool(found.faults)
    return found.faults


def sound(**values: Any) -> Schedule:
    merged = {key: value for key, value in (SOUND | values).items() if value is not None}
    raw, found = checked(merged, now=NOW)
    assert found.faults == []
    assert found.schedule is not None
    # cron-sync comes to the same from what travels.
    assert check(raw, now=NOW).schedule == found.schedule
    return found.schedule


@dataclass
class Wanted:
    team: int


def test_a_sound_definition_becomes_a_schedule() -> None:
    made = sound(
        timezone="Europe/Prague",
        payload=Wanted(7),
        dst="skip",
        jitter=timedelta(minutes=1),
        catch_up="all",
        start=datetime(2030, 2, 1, tzinfo=UTC),
        end="2031-02-01T00:00:00+01:00",
        max_runs=3,
        tags=("b", "a", "b"),
    )
    assert made == Schedule(
        id="team-7",
        function="reports.send",
        origin="data",
        cron="0 9 * * MON",
        timezone="Europe/Prague",
        payload={"team": 7},
        dst="skip",
        jitter=60_000,
        catch_up="all",
        start=to_ms(datetime(2030, 2, 1, tzinfo=UTC)),
        end=to_ms(datetime(2031, 1, 31, 23, tzinfo=UTC)),
        end_given=to_ms(datetime(2031, 1, 31, 23, tzinfo=UTC)),
        max_runs=3,
        tags=["a", "b"],
    )


@pytest.mark.parametrize(
    ("every", "ms"), [(90, 90_000), (1.5, 1_500), ("1h30m", 5_400_000), (timedelta(days=1), 86_400_000)]
)
def test_a_period_is_seconds_a_timedelta_or_a_text(every: Any, ms: int) -> None:
    assert sound(cron=None, every=every).every == ms


def test_a_time_in_the_past_is_allowed_for_what_is_once() -> None:
    assert sound(cron=None, at="2020-01-01T00:00:00Z").at == to_ms(datetime(2020, 1, 1, tzinfo=UTC))


def test_the_zone_of_an_expression_is_the_schedules() -> None:
    assert sound(cron="TZ=Asia/Tokyo 0 9 * * *").timezone == "Asia/Tokyo"
    (fault,) = faults(cron="TZ=Asia/Tokyo 0 9 * * *", timezone="Europe/Prague")
    assert "Asia/Tokyo" in fault
    assert "Europe/Prague" in fault


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an id over 200 characters": ({"id": "x" * 201}, ["201 characters", "200"]),
    "no id": ({"id": None}, ["id"]),
    "an id that does not print": ({"id": "a\nb"}, ["do not print"]),
    "the id of a cron trigger in code": ({"id": "reports.send"}, ["in code"]),
    "the id of a second cron trigger in code": ({"id": "reports.send:2"}, ["in code"]),
    "no function": ({"function": None}, ["APP.FUNCTION"]),
    "a function without an app": ({"function": "send"}, ["'send'", "APP.FUNCTION"]),
    "a function that is no text": ({"function": 7}, ["function=7"]),
    "no time at all": ({"cron": None}, ["exactly one of cron, every and at"]),
    "two kinds of time": ({"every": 60}, ["cron and every", "exactly one"]),
    "an expression nobody can read": ({"cron": "61 * * * *"}, ["61"]),
    "an expression that is no text": ({"cron": 5}, ["string"]),
    "an expression that never fires": ({"cron": "0 0 31 2 *"}, ["never fires"]),
    "a period under a second": ({"cron": None, "every": 0.5}, ["every=0.5", "1 s"]),
    "a period that is no number": ({"cron": None, "every": "often"}, ["every='often'"]),
    "a period of a fraction of a millisecond": ({"cron": None, "every": 1.00005}, ["whole milliseconds"]),
    "a time without a zone": ({"cron": None, "at": "2030-01-01T09:00"}, ["at='2030-01-01T09:00'", "zone"]),
    "a day for a time": ({"cron": None, "at": date(2030, 1, 1)}, ["at='2030-01-01'", "zone"]),
    "no time": ({"cron": None, "at": "noon"}, ["at='noon'"]),
    "an unknown zone": ({"timezone": "Europe/Pragu"}, ["Europe/Pragu", "Europe/Prague"]),
    "an unknown rule for changed clocks": ({"dst": "never"}, ["dst='never'"]),
    "a rule for changed clocks with a period": (
        {"cron": None, "every": 60, "dst": "skip"},
        ["dst='skip'", "no effect"],
    ),
    "too much jitter": ({"jitter": 90_000}, ["jitter=90000", "1 day"]),
    "unknown executor": ({"executes": "celery"}, ["executes='celery'", "jetcron", "other"]),
    "unknown catch-up": ({"catch_up": "some"}, ["catch_up='some'", "latest"]),
    "unknown overlap": ({"overlap": "perhaps"}, ["overlap='perhaps'", "cancel_running"]),
    "an end before the start": (
        {"start": "2031-01-01T00:00:00Z", "end": "2030-06-01T00:00:00Z"},
        ["end=2030-06-01T00:00:00Z", "before start=2031-01-01T00:00:00Z"],
    ),
    "nothing between start and end": (
        {"start": "2031-01-07T00:00:00Z", "end": "2031-01-07T08:00:00Z"},
        ["never fires", "start=2031-01-07T00:00:00Z"],
    ),
    "an end that has passed": ({"end": "2030-01-30T00:00:00Z"}, ["never fires", "end=2030-01-30T00:00:00Z"]),
    "no runs": ({"max_runs": 0}, ["max_runs=0"]),
    "an end for what is once": (
        {"cron": None, "at": "2031-01-01T00:00:00Z", "end": "2032-01-01T00:00:00Z"},
        ["end=", "once"],
    ),
    "tags that are one text": ({"tags": "daily"}, ["tags='daily'", "list"]),
    "an empty tag": ({"tags": [""]}, ["tags: ''"]),
    "too many tags": ({"tags": [str(n) for n in range(MAX_TAGS + 1)]}, [f"at most {MAX_TAGS}"]),
    "a payload nobody can store": ({"payload": object()}, ["payload", "object"]),
    "a payload that is too large": ({"payload": "x" * MAX_PAYLOAD}, ["payload has", str(MAX_PAYLOAD)]),
    "a field nobody knows": ({"tymezone": "UTC"}, ["'tymezone' is no field", "timezone"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fault_names_the_field_its_value_and_what_is_allowed(case: str) -> None:
    values, said = CASES[case]
    (fault,) = faults(**values)
    for text in said:
        assert text in fault


def test_every_field_at_fault_is_named_at_once() -> None:
    wrong = {
        "id": "",
        "function": "send",
        "cron": "61 * * * *",
        "timezone": "UTC",
        "dst": "never",
        "jitter": -1,
        "catch_up": 5,
        "overlap": "perhaps",
        "payload": {1, 2},
        "start": "then",
        "end": "later",
        "max_runs": True,
        "tags": 7,
        "colour": "red",
    }
    _, found = checked(wrong, now=NOW)
    for name in wrong.keys() - {"id", "timezone", "cron"}:
        assert sum(fault.startswith((name, repr(name))) for fault in found.faults) == 1, (name, found.faults)
    assert len(found.faults) == 13
    assert sum(fault.startswith("cron='61 * * * *': the 1st field") for fault in found.faults) == 1


TOGETHER: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an expression beside its zone": (
        {"cron": "61 * * * *", "timezone": "Nope/X"},
        ["timezone='Nope/X'", "cron='61 * * * *': the 1st field (minute) is '61'"],
    ),
    "an expression beside its rule": (
        {"cron": "61 * * * *", "dst": "up"},
        ["dst='up'", "cron='61 * * * *': the 1st field (minute) is '61'"],
    ),
    "a zone of the expression's own beside the given one": (
        {"cron": "TZ=Mars 61 * * * *", "timezone": "Nope/X"},
        ["timezone='Nope/X'", "cron='TZ=Mars 61 * * * *': the time zone 'Mars'"],
    ),
    "kinds of time, each of which is wrong": (
        {"cron": "61 * * * *", "every": 0.5, "at": "noon"},
        ["every=0.5", "at='noon'", "cron='61 * * * *'", "cron and every and at are given"],
    ),
    "an expression beside a sound period": (
        {"cron": "61 * * * *", "every": "5m"},
        ["cron='61 * * * *'", "cron and every are given"],
    ),
    "a rule for changed clocks beside two periods": (
        {"cron": None, "every": "5m", "at": "2031-01-01T00:00:00Z", "dst": "skip"},
        ["dst='skip' without cron=", "every and at are given"],
    ),
    "what never fires beside another field": (
        {"end": "2030-01-30T00:00:00Z", "overlap": "never"},
        ["overlap='never'", "cron='0 9 * * MON': it never fires within end=2030-01-30T00:00:00Z"],
    ),
    "all fields of an expression": (
        {"cron": "61 99 * * FOO"},
        [
            "cron='61 99 * * FOO': the 1st field (minute) is '61'; allowed are 0-59; and the 2nd field (hour) is '99'"
        ],
    ),
    "all tags": (
        {"tags": ["", 5, "x" * 300, "fine"]},
        [f"tags: '', 5, '{'x' * 40}'… (300 characters); allowed"],
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_what_hangs_together_is_looked_at_all_the_same(case: str) -> None:
    values, said = TOGETHER[case]
    found = faults(**values)
    assert [fault[: len(text)] for fault, text in zip(found, said, strict=True)] == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"jitter": timedelta(days=2)}, "jitter=2 days; allowed"),
        ({"jitter": "2d"}, "jitter='2d'; allowed"),
        ({"catch_up_within": timedelta(days=9_999)}, "catch_up_within=9999 days; allowed"),
        (
            {"cron": None, "at": "2031-01-01T00:00:00Z", "start": "2030-01-01T00:00:00Z"},
            "start=2030-01-01T00:00:00Z beside at=",
        ),
        ({"catch_up": "skip", "catch_up_within": "90s"}, "catch_up_within=90 s beside catch_up='skip'"),
        ({"overlap": "x" * 5_000}, f"overlap='{'x' * 40}'… (5000 characters); allowed"),
        ({"max_runs": list(range(999))}, "max_runs=[0, 1, 2,"),
        ({"cron": "9" * 2_000}, f"cron='{'9' * 40}'… (2000 characters): it has 2000 characters"),
        ({"cron": 5}, "cron=5: a cron expression must be a string"),
        ({"cron": "0 0 31 2 *"}, "cron='0 0 31 2 *': it never fires"),
        (
            {"cron": None, "every": 7200, "end": "2030-01-30T00:00:00Z"},
            "every=2 hours: it never fires within end=2030-01-30T00:00:00Z, counted from 2030-01-31T12:00:00Z",
        ),
    ],
)
def test_a_fault_begins_with_the_field_and_its_value_as_people_write_it(
    values: dict[str, Any], said: str
) -> None:
    (fault,) = faults(**values)
    assert fault.startswith(said)
    assert len(fault) < 400


# Updates: what can be judged without the schedule that they change.


def update_faults(**values: Any) -> list[str]:
    return changed("team-7", values)[1]


def test_every_given_field_of_an_update_is_looked_at() -> None:
    wrong: dict[str, Any] = {
        "function": None,
        "cron": "61 * * * *",
        "timezone": "Mars",
        "dst": "up",
        "jitter": -1,
        "catch_up": "x",
        "catch_up_within": 0,
        "catch_up_most": 0,
        "overlap": "never",
        "executes": "celery",
        "start": "then",
        "end": "later",
        "max_runs": 0,
        "tags": [""],
        "payload": {1},
    }
    found = update_faults(**wrong)
    for name in wrong:
        assert sum(fault.startswith((f"{name}=", f"{name}:")) for fault in found) == 1, (name, found)
    assert len(found) == len(wrong)
    # Word for word what `create` says of them.
    assert set(found) - {"function=''"} <= {
        *faults(**wrong),
        *(f for f in found if f.startswith("function=")),
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"timezone": "Asia/Tokyo"},
        {"dst": "skip"},
        {"end": "2001-01-01T00:00:00Z"},
        {"catch_up_most": 5},
        {"catch_up_within": "2h"},
        {"cron": "TZ=Asia/Tokyo 0 9 * * *"},
        {"cron": None, "every": 60},
        {"at": "2031-01-01T00:00:00Z"},
        {"max_runs": None, "start": None, "end": None, "jitter": None, "payload": None, "tags": ()},
        {"catch_up": CatchUp("latest")},
    ],
)
def test_what_the_schedule_may_make_right_is_not_held_against_an_update(values: dict[str, Any]) -> None:
    assert update_faults(**values) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cron": "0 9 * * *", "every": 60}, "cron and every are given"),
        ({"every": 60, "dst": "skip"}, "dst='skip' without cron="),
        ({"at": "2031-01-01T00:00:00Z", "max_runs": 3}, "max_runs=3 beside at="),
        (
            {"start": "2031-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"},
            "end=2030-01-01T00:00:00Z is before",
        ),
        ({"catch_up": "skip", "catch_up_most": 5}, "catch_up_most=5 beside catch_up='skip'"),
        ({"cron": "TZ=Asia/Tokyo 0 9 * * *", "timezone": "Europe/Prague"}, "timezone='Europe/Prague', and"),
        ({"function": "send"}, "function='send'"),
        ({"tymezone": "UTC"}, "'tymezone' is no field"),
    ],
)
def test_what_an_update_gives_together_is_looked_at_together(values: dict[str, Any], said: str) -> None:
    (fault,) = update_faults(**values)
    assert fault.startswith(said)


@pytest.mark.parametrize("raw", [None, 5, [], "x", {}, {"id": 5}, {"id": "a", "every": "5"}, {"at": []}])
def test_what_others_send_is_refused_and_never_breaks(raw: Any) -> None:
    assert check(raw, now=NOW).faults


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["id", *FIELDS]) | st.text(max_size=3), values))
def test_whatever_is_given_is_a_schedule_that_can_travel_or_has_faults(raw: dict[str, Any]) -> None:
    for found in (check(raw, now=NOW), checked(raw, now=NOW)[1]):
        assert (found.schedule is None) == bool(found.faults)
        if found.schedule is not None:
            assert decode(Schedule, encode(found.schedule)) == found.schedule


times = st.datetimes(datetime(2031, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))
definitions = st.fixed_dictionaries(
    {
        "id": st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=20),
        "function": st.just("a.b"),
    },
    optional={
        "timezone": st.sampled_from(["UTC", "Europe/Prague", "Asia/Tokyo"]),
        "payload": st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 5), min_size=1),
        "jitter": st.integers(0, 86_400),
        "catch_up": st.sampled_from(["latest", "all", "skip"]),
        "executes": st.sampled_from(["jetcron", "other"]),
        "tags": st.lists(st.sampled_from("abc")),
    },
).flatmap(
    lambda base: st.one_of(
        st.builds(lambda every: base | {"every": every}, st.integers(1, 1_000)),
        st.builds(
            lambda n, end: base | {"cron": f"{n} * * * *", "end": end, "max_runs": n + 1},
            st.integers(0, 59),
            times,
        ),
        st.builds(lambda at: base | {"at": at}, times),
    )
)


@given(definitions)
def test_a_schedule_survives_being_written_to_a_file(values: dict[str, Any]) -> None:
    _, first = checked(values, now=NOW)
    assert first.schedule is not None, first.faults
    again, faults_, _ = wire(written(first.schedule))
    assert faults_ == []
    assert check(again, now=NOW).schedule == first.schedule
    assert definition(first.schedule).keys() <= set(FIELDS)
    assert first.schedule.at is not None or next_occurrence(first.schedule, NOW) is not None


def test_bounds_on_what_is_caught_up() -> None:
    bounded = sound(catch_up=CatchUp("all", within=timedelta(hours=2), most=50))
    assert (bounded.catch_up, bounded.catch_up_within, bounded.catch_up_most) == ("all", 7_200_000, 50)
    assert sound(catch_up="all", catch_up_within="2h", catch_up_most=50) == bounded
    assert checked(written(bounded), now=NOW)[1].schedule == bounded
    raw, *_ = wire({"catch_up": CatchUp("latest")})
    assert raw == {"catch_up": "latest", "catch_up_within": None, "catch_up_most": None}, (
        "an update takes them away"
    )
    useless = faults(catch_up="skip", catch_up_within=60, catch_up_most=5)
    assert [fault.split("=")[0] for fault in useless] == ["catch_up_within", "catch_up_most"]
    assert len(faults(catch_up="all", catch_up_within=0, catch_up_most=1_001)) == 2
