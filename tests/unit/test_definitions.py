"""What a schedule created as data may be: every field at fault is named, all at once, and nothing else."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.clock import to_ms
from jetcron.cycle import next_occurrence
from jetcron.definitions import FIELDS, MAX_PAYLOAD, MAX_TAGS, check, definition
from jetcron.given import checked, wire, written
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
    assert len(found.faults) == 12
    # An expression is read in its zone, under its rule: with these right, it is named too.
    found = check({"id": "", "function": "send", "cron": "61 * * * *"}, now=NOW)
    assert len(found.faults) == 3


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
