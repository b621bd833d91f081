"""What cron expressions mean, what is refused and how, and what must hold of every one of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.cron import CronError, CronExpression, Window, fire_times, parse, parse_duration
from tests.support.cron_oracle import day_matches

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY = datetime(2024, 7, 1, tzinfo=UTC)
HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return (datetime.fromisoformat(text).astimezone(UTC) - EPOCH) // timedelta(milliseconds=1)


def times(expression: str, count: int = 3, after: datetime = MONDAY, **options: Any) -> list[str]:
    found = fire_times(expression, after=after, count=count, **options)
    return [f"{time:%m-%d %H:%M:%S}".removesuffix(":00") for time in found]


def days(expression: str, count: int, after: str) -> list[str]:
    found = fire_times(expression, after=datetime.fromisoformat(f"{after}T12:00Z"), count=count)
    return [f"{time:%Y-%m-%d}" for time in found]


# Syntax


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/20 * * * *", ["07-01 00:20", "07-01 00:40", "07-01 01:00"]),
        ("15 10 * * * *", ["07-01 00:10:15", "07-01 01:10:15", "07-01 02:10:15"]),  # seconds first
        ("0 9,12 * * MON,fri", ["07-01 09:00", "07-01 12:00", "07-05 09:00"]),
        ("0 0 1 jan-MAR/2 *", ["01-01 00:00", "03-01 00:00", "01-01 00:00"]),
        ("50/5 12 * * ?", ["07-01 12:50", "07-01 12:55", "07-02 12:50"]),
        ("0 22-2/2 * * *", ["07-01 02:00", "07-01 22:00", "07-02 00:00"]),
        ("50-10/7 0 * * *", ["07-01 00:04", "07-01 00:50", "07-01 00:57"]),
        ("0 0 * * FRI-MON", ["07-05 00:00", "07-06 00:00", "07-07 00:00"]),
        ("0 0 * * 5-7", ["07-05 00:00", "07-06 00:00", "07-07 00:00"]),
        ("0 0 * * 7-1", ["07-07 00:00", "07-08 00:00", "07-14 00:00"]),
        ("0 0 * * 3-3", ["07-03 00:00", "07-10 00:00", "07-17 00:00"]),  # not the whole week
        ("0 0 30-2 * *", ["07-02 00:00", "07-30 00:00", "07-31 00:00"]),
        ("0 0 L * *", ["07-31 00:00", "08-31 00:00", "09-30 00:00"]),
        ("0 0 L,1 * *", ["07-31 00:00", "08-01 00:00", "08-31 00:00"]),
        ("0 0 LW 6-9 *", ["07-31 00:00", "08-30 00:00", "09-30 00:00"]),
        ("0 0 * * L5", ["07-26 00:00", "08-30 00:00", "09-27 00:00"]),
        ("0 0 * * 5#2", ["07-12 00:00", "08-09 00:00", "09-13 00:00"]),
        ("0 0 * * MON#1,5", ["07-05 00:00", "07-12 00:00", "07-19 00:00"]),
        ("0 0 1W * *", ["08-01 00:00", "09-02 00:00", "10-01 00:00"]),  # 1 September is a Sunday
        ("0 0 15W * *", ["07-15 00:00", "08-15 00:00", "09-16 00:00"]),
        ("0 0 31W * *", ["07-31 00:00", "08-30 00:00", "10-31 00:00"]),
        ("@hourly", ["07-01 01:00", "07-01 02:00", "07-01 03:00"]),
        ("@Daily", ["07-02 00:00", "07-03 00:00", "07-04 00:00"]),
        ("@midnight", ["07-02 00:00", "07-03 00:00", "07-04 00:00"]),
        ("@weekly", ["07-07 00:00", "07-14 00:00", "07-21 00:00"]),
        ("@monthly", ["08-01 00:00", "09-01 00:00", "10-01 00:00"]),
        ("@yearly", ["01-01 00:00"] * 3),
        ("@annually", ["01-01 00:00"] * 3),
        ("@every 90s", ["07-01 00:01:30", "07-01 00:03", "07-01 00:04:30"]),
        ("@EVERY 5M", ["07-01 00:05", "07-01 00:10", "07-01 00:15"]),
        (" 1h30m ", ["07-01 01:30", "07-01 03:00", "07-01 04:30"]),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", ["07-02 00:00", "07-03 00:00", "07-04 00:00"]),
        ("TZ=Asia/Tokyo  @daily", ["07-01 15:00", "07-02 15:00", "07-03 15:00"]),
    ],
)
def test_what_expressions_mean(expression: str, expected: list[str]) -> None:
    assert times(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 13 * 5", ["07-05", "07-12", "07-13"]),  # both restricted: either
        ("0 0 */2 * 1", ["07-15", "07-29", "08-05"]),  # one begins with a star: both
        ("0 0 1-31 * 1", ["07-02", "07-03", "07-04"]),  # restricted, though to all
        ("0 0 15W * 1", ["07-08", "07-15", "07-22"]),
        ("0 0 13 * 5#2", ["07-12", "07-13", "08-09"]),
        ("0 0 13 * L5", ["07-13", "07-26", "08-13"]),
        ("0 0 ? * 1", ["07-08", "07-15", "07-22"]),
        ("0 0 13 * ?", ["07-13", "08-13", "09-13"]),
        ("0 0 13 * */5", ["09-13", "10-13", "12-13"]),  # 0 and 5
    ],
)
def test_two_day_fields(expression: str, expected: list[str]) -> None:
    assert [time[:5] for time in times(expression)] == expected


def test_the_zone_in_the_expression_wins_over_the_option() -> None:
    parsed = parse("TZ=Asia/Tokyo 0 9 * * *", timezone="America/New_York")
    assert parsed.timezone == "Asia/Tokyo"
    assert parsed == parse("0 9 * * *", timezone="Asia/Tokyo")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 29 2 *", ["2028-02-29", "2032-02-29"]),
        ("0 0 29W 2 *", ["2028-02-29", "2032-02-27"]),
        ("0 0 */28 2 MON#5", ["2044-02-29", "2072-02-29", "2112-02-29"]),
        ("0 0 */28 2 7", ["2026-02-01", "2032-02-01", "2032-02-29"]),
    ],
)
def test_rare_days(expression: str, expected: list[str]) -> None:
    assert days(expression, len(expected), "2024-03-01") == expected


@pytest.mark.parametrize(
    ("weekdays", "expected"),
    [
        ("1-7/2", "0135"),
        ("7/2", "0246"),
        ("0-7", "0123456"),
        ("7-7", "0"),
        ("*/7", "0"),
        ("6-7", "06"),
        ("5-2/2", "025"),
    ],
)
def test_sunday_is_0_and_7(weekdays: str, expected: str) -> None:
    week = fire_times(f"0 0 * * {weekdays}", after=MONDAY, count=len(expected))
    assert week[-1] <= MONDAY + timedelta(days=7)
    assert "".join(sorted(str(day.isoweekday() % 7) for day in week)) == expected


# Refusals


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("61 * * * *", "the 1st field (minute) is '61'; allowed are 0-59"),
        ("0 61 * * * *", "the 2nd field (minute) is '61'; allowed are 0-59"),
        ("0 9,24 * * *", "the 2nd field (hour) is '9,24', where '24' is wrong; allowed are 0-23"),
        ("0 0 0 * *", "the 3rd field (day of month) is '0'; allowed are 1-31, L, 15W, LW"),
        ("0 0 * 13 *", "the 4th field (month) is '13'; allowed are 1-12 or JAN-DEC"),
        ("0 0 * * MOON", "the 5th field (day of week) is 'MOON'; allowed are 0-7 or SUN-SAT, L5, 5#2"),
        ("0 0 * * 5L", "the last of a month is written L5"),
        ("0 0 * * L", "L needs a day here, as in L5"),
        ("0 0 * * 5#6", "after #, allowed are 1-5"),
        ("0 0 15W,20 * *", "where '15W' is wrong; W stands alone in its field"),
        ("0 0 32W * *", "allowed are 1W-31W and LW"),
        ("0 0 1,? * *", "? stands alone in its field"),
        ("? * * * *", "the 1st field (minute) is '?'; allowed are 0-59"),
        ("*/90 * * * *", "its step may be 1-60; for a longer period write '@every 90m'"),
        ("*/0 * * * *", "its step may be 1-60"),
        ("R * * * *", "R (random) is refused"),
        ("R(0-9) * * * *", "R (random) is refused"),
        ("H(9-5) * * * *", "an H range rises, within 0-59"),
        ("H(0-60) * * * *", "an H range rises, within 0-59"),
        ("H/61 * * * *", "its step may be 1-60"),
        ("H-5 * * * *", "with H, allowed are H, H/15, H(0-29) and H(0-29)/10"),
        ("1,,2 * * * *", "where '' is wrong"),
        ("*-5 * * * *", "the 1st field (minute) is '*-5'"),
        ("-5 * * * *", "the 1st field (minute) is '-5'"),
        ("٣ * * * *", "the 1st field (minute)"),
        ("* * * *", "it has 4 fields; allowed are 5"),
        ("* * * * * * *", "it has 7 fields"),
        ("", "it has 0 fields"),
        ("noon", "it has 1 field;"),
        ("@dayly", "did you mean '@daily'?"),
        ("@reboot", "is not one of @hourly"),
        ("@every", "the duration '' cannot be read"),
        ("@every 0.5s", "the least is 1s, and whole seconds only"),
        ("1500ms", "whole seconds only"),
        ("@every 0s", "the least is 1s"),
        ("9000000d", "never fires"),
        ("9" * 2_000, "has 2000 characters; allowed are 1000"),
        ("0 0 31 2 *", "never fires"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("0 0 31W 2 *", "never fires"),
        ("0 0 */29 2 1#5", "never fires"),
        ("TZ=Europe/Berln 0 0 * * *", "did you mean 'Europe/Berlin'?"),
    ],
)
def test_refusals_name_the_field_the_value_and_what_is_allowed(expression: str, message: str) -> None:
    with pytest.raises(CronError, match=re.escape(message)) as error:
        parse(expression)
    assert expression[:40] in str(error.value)


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("61 99 * * FOO", ["1st field (minute)", "2nd field (hour)", "5th field (day of week)"]),
        ("H(9-5) 25 H/90 * *", ["1st field (minute)", "2nd field (hour)", "3rd field (day of month)"]),
        ("60 0 0 32W 13 L", ["1st field (second)", "4th field (day of month)", "5th field (month)", "6th"]),
        ("TZ=Mars 61 * * * *", ["'Mars'", "1st field (minute)"]),
        ("TZ=Mars 0 0 31 2 *", ["'Mars'", "never fires"]),
    ],
)
def test_every_field_at_fault_is_named_in_its_order(expression: str, named: list[str]) -> None:
    with pytest.raises(CronError) as caught:
        parse(expression)
    assert len(caught.value.reasons) == len(named)
    for reason, name in zip(caught.value.reasons, named, strict=True):
        assert name in reason
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Mars", "berlin", "", "../UTC", "America", "localtime", "right/UTC", "a\0b", "é"]
)
def test_zones_refused(name: str) -> None:
    with pytest.raises(CronError, match="is not one of the IANA names"):
        parse("* * * * *", timezone=name)


def test_other_refusals() -> None:
    with pytest.raises(CronError, match="allowed are 'default', 'skip' and 'both'"):
        parse("* * * * *", dst="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without a time zone"):
        fire_times("* * * * *", after=datetime(2024, 1, 1))
    with pytest.raises(ValueError, match="count is -1"):
        fire_times("* * * * *", after=MONDAY, count=-1)
    for expression in ("* * * * *", "5m"):
        with pytest.raises(ValueError, match="newest is -1"):
            parse(expression).window(0, 1, -1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5h", timedelta(minutes=90)),
        ("30m1h", timedelta(minutes=90)),
        ("2D", timedelta(days=2)),
        ("1w", timedelta(days=7)),
        ("3000ms", timedelta(seconds=3)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "m", "5 m", "-5m", "1h1h", "0s", "1.0001s", "9" * 30 + "w", "9" * 5_000 + "s"]
)
def test_durations_refused(text: str) -> None:
    with pytest.raises(CronError, match="the duration"):
        parse_duration(text)


# Daylight saving; every zone is in test_cron_zones.py

SPRING, AUTUMN = datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 11, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "dst", "expected"),
    [
        ("30 2 * * *", "default", ["03-10 07:00", "03-11 06:30"]),
        ("30 2 * * *", "skip", ["03-11 06:30", "03-12 06:30"]),
        ("30 2 * * *", "both", ["03-10 07:00", "03-11 06:30"]),
        (
            "0,15,30 2,3 * * *",
            "default",
            ["03-10 07:00", "03-10 07:15"],
        ),  # three times skipped and 03:00: once
        ("*/30 2 * * *", "default", ["03-11 06:00", "03-11 06:30"]),
        ("59 59 2 * * *", "default", ["03-10 07:00", "03-11 06:59:59"]),
        ("* 30 2 * * *", "default", ["03-11 06:30", "03-11 06:30:01"]),
    ],
)
def test_skipped_times(expression: str, dst: str, expected: list[str]) -> None:
    assert times(expression, 2, SPRING, timezone="America/New_York", dst=dst) == expected


@pytest.mark.parametrize(
    ("expression", "dst", "expected"),
    [
        ("30 1 * * *", "default", ["11-03 05:30", "11-04 06:30"]),
        ("30 1 * * *", "skip", ["11-03 05:30", "11-04 06:30"]),
        ("30 1 * * *", "both", ["11-03 05:30", "11-03 06:30"]),
        ("30 1-2 * * *", "default", ["11-03 05:30", "11-03 07:30"]),
        ("30 */1 3 11 *", "default", ["11-03 04:30", "11-03 05:30", "11-03 06:30", "11-03 07:30"]),
        ("H H(1-1) * * *", "default", None),
    ],
)
def test_repeated_times(expression: str, dst: str, expected: list[str] | None) -> None:
    found = times(expression, len(expected or "ab"), AUTUMN, timezone="America/New_York", dst=dst)
    if expected is None:  # H is fixed: once a day
        assert [time[:8] for time in found] == ["11-03 05", "11-04 06"]
    else:
        assert found == expected


def test_a_whole_day_skipped() -> None:
    after = datetime(2011, 12, 29, 12, tzinfo=UTC)
    zone = {"timezone": "Pacific/Apia", "after": after}
    # 30 December did not happen; 31 December began at 10:00 UTC.
    assert times("0 9,12,15 30 12 *", 1, **zone) == ["12-30 10:00"]
    assert fire_times("0 9,12 30 12 *", count=2, **zone)[1].year == 2012
    assert fire_times("0 9 30 12 *", dst="skip", **zone)[0].year == 2012
    assert fire_times("0 */9 30 12 *", **zone)[0].year == 2012
    assert times("0 0 * * *", 2, **zone) == ["12-30 10:00", "12-31 10:00"]
    assert times("0 12 * * *", 3, **zone) == ["12-29 22:00", "12-30 10:00", "12-30 22:00"]


# H


def test_h_is_spread_by_the_seed_and_never_changes() -> None:
    # Written down: another value would move every schedule in the world.
    assert [parse("H H H * H", seed=seed).expression for seed in ("", "reports.daily", "é")] == [
        "19 4 22 * 5",
        "55 9 6 * 2",
        "11 23 21 * 3",
    ]
    assert parse("H H * * *", seed="a").expression == parse("0 h H * * *", seed="a").expression[2:]
    minutes = {parse("H * * * *", seed=str(n)).expression for n in range(2_000)}
    assert len(minutes) == 60


@given(st.text(max_size=20))
def test_h_stays_in_its_range(seed: str) -> None:
    fields = [int(field) for field in parse("H H H H H H", seed=seed).expression.split()]
    for value, (low, high) in zip(fields, [(0, 59), (0, 59), (0, 23), (1, 28), (1, 12), (0, 6)], strict=True):
        assert low <= value <= high
    minute, hour = parse("H(10-29)/5 H(9-17) * * *", seed=seed).expression.split()[:2]
    start, end, step = map(int, re.split("[-/]", minute))
    assert 10 <= start < 15
    assert (end, step) == (29, 5)
    assert 9 <= int(hour) <= 17
    assert len(fire_times("H/15 * * * *", after=MONDAY, count=5, seed=seed)) == 5


# Instants


def test_strictly_after_and_whole_seconds() -> None:
    nine = ms("2024-07-01T09:00Z")
    parsed = parse("0 9 * * *")
    assert parsed.next_after(nine - 1) == nine
    assert parsed.next_after(nine) == nine + 24 * HOUR_MS
    assert parsed.next_after(nine + 1) == nine + 24 * HOUR_MS
    at = datetime(2024, 7, 1, 9, tzinfo=UTC)
    assert fire_times("0 9 * * *", after=at - timedelta(microseconds=1)) == [at]
    assert fire_times("0 9 * * *", after=at + timedelta(microseconds=1)) == [at + timedelta(days=1)]
    east = timezone(timedelta(hours=5, minutes=30))
    assert fire_times("0 9 * * *", after=at.astimezone(east)) == [at + timedelta(days=1)]
    assert fire_times("0 9 * * *", after=at, count=0) == []


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati", "Etc/GMT+12"])
@pytest.mark.parametrize("expression", ["* * * * *", "0 0 1 1 *", "0 0 29 2 *", "30 2 * * *", "@every 5m"])
def test_the_ends_of_time(zone: str, expression: str) -> None:
    parsed = parse(expression, timezone=zone)
    ends = (-(10**18), ms("0001-01-01T00:00Z"), ms("9999-12-31T23:59:59Z"), 10**18)
    first = parsed.next_after(ends[0])
    assert first is not None
    assert EPOCH + timedelta(milliseconds=first) < datetime(5, 1, 1, tzinfo=UTC)
    assert parsed.next_after(ends[2]) is None
    assert parsed.next_after(ends[3]) is None
    late = fire_times(expression, timezone=zone, after=datetime(9995, 12, 31, tzinfo=UTC), count=3)
    assert late[0].year >= 9995
    assert fire_times(expression, timezone=zone, after=datetime.max.replace(tzinfo=UTC)) == []
    assert fire_times(expression, timezone=zone, after=datetime.min.replace(tzinfo=UTC)) != []
    window = parsed.window(ms("9996-01-01T00:00Z"), 10**18, 1)
    assert window.newest == (found := parsed.window(window.newest[0] - 1, 10**18, 5)).newest
    assert found.count == 1


def test_windows_of_years_are_counted_not_walked() -> None:
    parsed = parse("* * * * * *", timezone="Europe/Berlin")
    start, end = ms("2020-01-01T00:00+01:00"), ms("2040-01-01T00:00+01:00")
    window = parsed.window(start, end, 2)
    assert window == Window((end - start) // 1_000, (end - 1_000, end))
    assert parse("* * * * * *").window(start, end, 0) == Window((end - start) // 1_000, ())
    assert parse("@every 1s").window(start, end, 1) == Window((end - start) // 1_000, (end,))
    assert parse("* * * * *").window(end, start, 5) == Window(0, ())
    assert parse("5m").window(end, start, 5) == Window(0, ())


def test_expressions_are_values() -> None:
    parsed = parse("0 9 * * mon", timezone="Asia/Tokyo")
    assert parsed is parse("0 9 * * mon", timezone="Asia/Tokyo", seed="without H the seed is nothing")
    assert parsed == parse("0  9 * * MON", timezone="Asia/Tokyo")
    assert len({parsed, parse("0  9 * * MON", timezone="Asia/Tokyo"), parse("0 9 * * MON")}) == 2
    assert parse("0 9 * * *") != parse("0 9 * * *", dst="both")
    with pytest.raises(AttributeError):
        parsed.timezone = "UTC"  # type: ignore[misc]


# What holds of every expression


def _field(low: int, high: int, *special: str) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    step = st.integers(1, high - low + 1)
    item = st.one_of(
        number.map(str),
        st.builds("{}-{}".format, number, number),
        st.builds("{}-{}/{}".format, number, number, step),
        st.builds("*/{}".format, step),
    )
    return st.one_of(
        st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join), st.sampled_from(["*", *special])
    )


EXPRESSIONS = st.builds(
    "{}{} {} {} {} {}".format,
    st.one_of(st.just(""), _field(0, 59).map(lambda text: text + " ")),
    _field(0, 59),
    _field(0, 23),
    _field(1, 31, "L", "15W", "31W", "LW", "1,L", "?"),
    _field(1, 12, "FEB-MAY"),
    _field(0, 6, "L5", "5#2", "MON#1,3", "FRI-MON", "5-7", "7", "?"),
)
ZONES = st.sampled_from(
    ["UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata", "Africa/Cairo"]
)
DST = st.sampled_from(["default", "skip", "both"])
INSTANTS = st.integers(ms("1995-01-01T00:00Z"), ms("2060-01-01T00:00Z"))


def parsed_or_none(expression: str, zone: str, dst: Any) -> CronExpression | None:
    try:
        return parse(expression, timezone=zone, dst=dst)
    except CronError as error:
        if "never fires" not in str(error):
            raise
        return None


@given(EXPRESSIONS, ZONES, DST, INSTANTS)
def test_times_rise_and_windows_agree(expression: str, zone: str, dst: str, after_ms: int) -> None:
    parsed = parsed_or_none(expression, zone, dst)
    if parsed is None:
        return
    found: list[int] = []
    at: int | None = after_ms
    while len(found) < 30 and at is not None and (at := parsed.next_after(at)) is not None:
        found.append(at)
    assert all(a < b for a, b in pairwise([after_ms, *found]))
    assert all(time % 1_000 == 0 for time in found)
    assert parsed.window(after_ms, found[-1], 100) == Window(len(found), tuple(found))
    assert parsed.window(after_ms, found[-1], 7) == Window(len(found), tuple(found[-7:]))
    assert parsed.window(after_ms, found[-1] - 1, 0).count == len(found) - 1
    # Asking from anywhere before the first gives the first.
    assert (
        parsed.next_after((after_ms + found[0]) // 2 if after_ms < found[0] - 1_000 else after_ms) == found[0]
    )


@given(
    EXPRESSIONS,
    ZONES,
    DST,
    INSTANTS,
    st.integers(0, 3 * 366 * 24 * HOUR_MS),
    st.integers(0, 3 * 366 * 24 * HOUR_MS),
)
def test_windows_add_up(expression: str, zone: str, dst: str, start: int, first: int, second: int) -> None:
    parsed = parsed_or_none(expression, zone, dst)
    if parsed is None:
        return
    middle, end = start + first, start + first + second
    left, right = parsed.window(start, middle, 3), parsed.window(middle, end, 3)
    whole = parsed.window(start, end, 3)
    assert whole.count == left.count + right.count
    assert whole.newest == (left.newest + right.newest)[-3:]
    assert len(whole.newest) == min(3, whole.count)


@given(
    st.builds(
        "0 0 {} {} {}".format,
        _field(1, 31, "L", "15W", "31W", "LW", "1,L", "?"),
        _field(1, 12),
        _field(0, 6, "L5", "5#2", "MON#1,3", "5-7", "7", "?"),
    ),
    st.dates(datetime(1996, 1, 1).date(), datetime(2104, 1, 1).date()),
)
def test_days_agree_with_the_calendar(expression: str, day: Any) -> None:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    expected = [
        start + timedelta(days=n)
        for n in range(120)
        if day_matches(expression, (start + timedelta(days=n)).date())
    ]
    parsed = parsed_or_none(expression, "UTC", "default")
    if parsed is None:
        assert expected == []
        return
    start_ms = (start - EPOCH) // timedelta(milliseconds=1)
    window = parsed.window(start_ms - 1, start_ms + 119 * 24 * HOUR_MS, 200)
    assert [EPOCH + timedelta(milliseconds=time) for time in window.newest] == expected
    assert window.count == len(expected)


@given(st.text(alphabet="0123456789*/-,?LWHR#()@ JANMOFTZ=", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse(text)
    except CronError as error:
        said = str(error)
        assert repr(text) in said
    else:
        assert parsed.next_after(0) is not None
