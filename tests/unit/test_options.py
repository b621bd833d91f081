"""Options: what is kept, and how each refusal reads."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from jetcron import CatchUp, ConfigurationError, Cron, Retry
from jetcron.options import check_duration, readable, suggestion

DURATIONS = "allowed are seconds or a timedelta, from 0 s to 366 days"
ZONES = "is not one of the IANA names, such as 'America/New_York'"


def test_a_cron_keeps_what_was_written() -> None:
    cron = Cron("0 9 * * MON-FRI", timezone="Asia/Tokyo", dst="skip")
    assert (cron.expression, cron.timezone, cron.dst) == ("0 9 * * MON-FRI", "Asia/Tokyo", "skip")
    assert (Cron("@daily").timezone, Cron("@daily").dst) == (None, None)


@pytest.mark.parametrize(
    "expression", ["H * * * *", "30 0 9 * * *", "@every 90s", "CRON_TZ=Asia/Tokyo 0 9 * * *"]
)
def test_a_cron_may_be_any_expression(expression: str) -> None:
    assert Cron(expression).expression == expression


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (["61 * * * *"], {}, "Cron('61 * * * *'): the 1st field (minute) is '61'; allowed are 0-59"),
        (
            [5],
            {},
            "Cron(5): a cron expression must be a string, not int; such as '0 9 * * MON-FRI'",
        ),
        (
            ["@daily"],
            {"timezone": "Europe/Pragu"},
            "Cron('@daily'): timezone='Europe/Pragu': the time zone 'Europe/Pragu' "
            f"{ZONES}; did you mean 'Europe/Prague'?",
        ),
        (
            ["@daily"],
            {"timezone": 7},
            "Cron('@daily'): timezone=7; allowed are IANA names, such as 'UTC' or 'Europe/Prague'",
        ),
        (
            ["TZ=Asia/Tokyo @daily"],
            {"timezone": "UTC"},
            "Cron('TZ=Asia/Tokyo @daily'): timezone='UTC', and the expression names 'Asia/Tokyo'; "
            "allowed is one of them",
        ),
        (
            ["@daily"],
            {"timezone": "../x"},
            f"Cron('@daily'): timezone='../x': the time zone '../x' {ZONES}",
        ),
        (
            ["@daily"],
            {"dst": "skipped"},
            "Cron('@daily'): dst='skipped'; allowed are 'default', 'skip', 'both'; did you mean 'skip'?",
        ),
    ],
)
def test_a_cron_that_cannot_be(arguments: list[Any], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Cron(*arguments, **options)
    assert str(caught.value) == text


@pytest.mark.parametrize("expression", ["R * * * *", "0 0 31 2 *", "* * * *", "", "0 0 * * * * *"])
def test_a_cron_is_parsed_where_it_is_written(expression: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Cron(expression)
    assert str(caught.value).startswith(f"Cron({expression!r}): ")
    assert str(caught.value).count(repr(expression)) == 1


def test_retry_by_default() -> None:
    retry = Retry()
    assert retry.attempts == 5
    assert retry.waits == tuple(timedelta(seconds=seconds) for seconds in (15, 30, 60, 120, 300, 600))
    assert retry.jitter == 0.3


def test_waits_are_seconds_or_timedeltas() -> None:
    retry = Retry(attempts=9, waits=[0, 1.5, timedelta(minutes=1)])
    assert retry.waits == (timedelta(0), timedelta(seconds=1.5), timedelta(minutes=1))
    assert [retry.wait(attempt).total_seconds() for attempt in (0, 1, 2, 3, 99)] == [0, 1.5, 60, 60, 60]
    assert retry == Retry(attempts=9, waits=(timedelta(0), 1.5, 60))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attempts": 0}, "Retry: attempts=0; allowed are whole numbers from 1 to 1000"),
        ({"attempts": 1_001}, "Retry: attempts=1001; allowed are whole numbers from 1 to 1000"),
        ({"attempts": 2.5}, "Retry: attempts=2.5; allowed are whole numbers from 1 to 1000"),
        ({"attempts": True}, "Retry: attempts=True; allowed are whole numbers from 1 to 1000"),
        ({"waits": ()}, "Retry: waits=(); allowed is a list of at least one duration, such as (15, 60)"),
        ({"waits": 15}, "Retry: waits=15; allowed is a list of at least one duration, such as (15, 60)"),
        ({"waits": "15"}, "Retry: waits='15'; allowed is a list of at least one duration, such as (15, 60)"),
        ({"waits": (15, "1m")}, f"Retry: waits[1]='1m'; {DURATIONS}"),
        ({"waits": (-1,)}, f"Retry: waits[0]=-1; {DURATIONS}"),
        ({"waits": (float("nan"),)}, f"Retry: waits[0]=nan; {DURATIONS}"),
        ({"waits": (1e300,)}, f"Retry: waits[0]=1e+300; {DURATIONS}"),
        ({"waits": (True,)}, f"Retry: waits[0]=True; {DURATIONS}"),
        ({"jitter": 30}, "Retry: jitter=30; allowed are 0 to 1 (0.3 is 30 %)"),
        ({"jitter": -0.1}, "Retry: jitter=-0.1; allowed are 0 to 1 (0.3 is 30 %)"),
        ({"jitter": None}, "Retry: jitter=None; allowed are 0 to 1 (0.3 is 30 %)"),
    ],
)
def test_a_retry_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(**options)
    assert str(caught.value) == text


@pytest.mark.parametrize("option", [Cron("@daily"), Retry()])
def test_options_are_frozen(option: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(option, dataclasses.fields(option)[0].name, "other")


@pytest.mark.parametrize("least", [0, 5])
def test_bounds_are_allowed_themselves(least: int) -> None:
    span = timedelta(seconds=least)
    assert check_duration("here", "wait", least, span, span) == span


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0 s"),
        (timedelta(milliseconds=1), "0.001 s"),
        (timedelta(seconds=90), "90 s"),
        (timedelta(hours=1), "1 hour"),
        (timedelta(hours=36), "36 hours"),
        (timedelta(days=366), "366 days"),
    ],
)
def test_readable(span: timedelta, text: str) -> None:
    assert readable(span) == text


def test_a_suggestion_is_made_only_when_one_is_near() -> None:
    assert suggestion("retrys", ("retry", "timeout")) == "; did you mean 'retry'?"
    assert suggestion("UTC+1", ("Etc/GMT-1",)) == ""
    assert suggestion(7, ("retry",)) == ""


def test_a_catch_up_keeps_its_window_as_a_timedelta() -> None:
    catch_up = CatchUp("all", within=90, most=5)
    assert (catch_up.policy, catch_up.window, catch_up.most) == ("all", timedelta(seconds=90), 5)
    assert CatchUp("latest", within=timedelta(hours=1)).window == timedelta(hours=1)
    assert (CatchUp("skip").window, CatchUp("skip").most) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (
            ["newest"],
            {},
            "CatchUp('newest'): policy='newest'; allowed are 'latest', 'all', 'skip'",
        ),
        (
            ["all"],
            {"within": 0},
            "CatchUp('all'): within=0; allowed are seconds or a timedelta, from 0.001 s to 3660 days",
        ),
        (["all"], {"most": 0}, "CatchUp('all'): most=0; allowed are whole numbers from 1 to 1000"),
        (["all"], {"most": 1001}, "CatchUp('all'): most=1001; allowed are whole numbers from 1 to 1000"),
        (["latest"], {"most": 5}, "CatchUp('latest'): most=5 is for 'all' alone; leave it out"),
        (
            ["skip"],
            {"within": 60},
            "CatchUp('skip'): within=60 has no effect, for nothing runs; leave it out",
        ),
    ],
)
def test_a_catch_up_that_cannot_be(arguments: list[Any], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        CatchUp(*arguments, **options)
    assert str(raised.value) == text
