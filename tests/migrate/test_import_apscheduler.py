"""APScheduler's jobs become schedules that fire when APScheduler would have: asked of its triggers themselves."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jetcron.clock import to_ms
from jetcron.cron import parse
from jetcron.cycle import occurrences
from jetcron.given import checked
from jetcron.migrate import Entry, Naming, settled
from jetcron.migrate import apscheduler as apscheduler_
from jetcron.migrate.clocks import differences
from tests.support.cron_oracle import changes

START = datetime(2031, 1, 15, 12, 0, 30, tzinfo=UTC)
NOW = to_ms(START)
YEAR = timedelta(days=366)
MILLISECOND = timedelta(milliseconds=1)
MOST = 600
ZONES = ["UTC", "Asia/Kolkata", "Europe/Prague", "America/New_York", "Australia/Lord_Howe"]

CHANGES = {name: [to_ms(at) for at in changes(ZoneInfo(name), 2031, 2032)] for name in ZONES}


def send(team: str, copies: int = 1) -> None: ...


class Elsewhere(CronTrigger):
    """A trigger of the user's own."""


def made(trigger: Any, *, realign: bool = False, naming: Naming | None = None, **job: Any) -> Entry:
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(job.pop("func", send), trigger, id="nightly", **{"args": ["sales"], **job})
    found = apscheduler_.read(scheduler, naming or Naming(), now=NOW, realign=realign)
    (entry,) = settled(found, now=NOW)
    return entry


def by_apscheduler(trigger: Any) -> list[int]:
    """The times its trigger gives one after another, in epoch ms, for a year or until there are `MOST`."""
    found: list[int] = []
    at = trigger.get_next_fire_time(None, START)
    while at is not None and at <= START + YEAR and len(found) < MOST:
        found.append(to_ms(at))
        at = trigger.get_next_fire_time(at, at)
    return found


def by_us(entry: Entry, until: int) -> list[int]:
    assert entry.schedule is not None
    _, found = checked(entry.schedule, now=NOW)
    assert found.schedule is not None, found.faults
    return list(occurrences(found.schedule, NOW - 1, until, 1_000_000).newest)


def agree(entry: Entry, trigger: Any) -> None:
    theirs = by_apscheduler(trigger)
    assert entry.schedule is not None
    ours = by_us(entry, theirs[-1] if len(theirs) == MOST else NOW + YEAR // MILLISECOND)
    told = []
    if "cron" in entry.schedule:
        zone, dst = entry.schedule["timezone"], entry.schedule.get("dst", "default")
        told = differences(entry.schedule["cron"], zone, dst, again=True, now=NOW)
        assert any("clocks" in remark for remark in entry.remarks) is bool(told)

    def elsewhere(times: list[int]) -> list[int]:
        return [at for at in times if not any(one.start <= at <= one.end for one in told)]

    ours, theirs = elsewhere(ours), elsewhere(theirs)
    if not CHANGES[str(trigger.timezone)]:
        assert ours == theirs
    # Its search adds hours that passed to local times: what it looks for beyond a change of clocks, it may overlook.
    assert set(theirs) <= set(ours)
    for missed in set(ours) - set(theirs):
        before = max((at for at in theirs if at < missed), default=NOW)
        after = min((at for at in theirs if at > missed), default=ours[-1])
        assert any(before < change <= after for change in CHANGES[str(trigger.timezone)])


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    item = st.one_of(
        number.map(str),
        st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}"),
        st.tuples(number, number, st.integers(1, 9)).map(lambda x: f"{min(x[:2])}-{max(x[:2])}/{x[2]}"),
        st.tuples(number, st.integers(1, 9)).map(lambda x: f"{x[0]}/{x[1]}"),
        st.integers(1, high - low).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


PLACES = st.tuples(
    st.sampled_from(["1st", "2nd", "3rd", "4th", "5th", "last"]), st.sampled_from(["mon", "wed", "sun"])
).map(" ".join)
DAYS = st.one_of(
    field(1, 31),
    st.lists(st.one_of(PLACES, st.just("last"), st.integers(1, 31).map(str)), min_size=1, max_size=3).map(
        ",".join
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    given=st.fixed_dictionaries(
        {},
        optional={
            "month": st.one_of(field(1, 12), st.sampled_from(["jan-mar", "feb,aug"])),
            "day": DAYS,
            "day_of_week": st.one_of(field(0, 6), st.sampled_from(["mon-fri", "sun", "sat,sun", "tue"])),
            "hour": field(0, 23),
            "minute": field(0, 59),
            "second": st.one_of(st.just("0"), field(0, 59)),
            "year": st.sampled_from(["2031", "2031-2032", "2032"]),
            "start_date": st.datetimes(datetime(2031, 1, 1), datetime(2031, 4, 1)),
            "end_date": st.datetimes(datetime(2031, 9, 1), datetime(2032, 4, 1)),
        },
    ),
)
def test_cron_triggers_fire_when_apscheduler_says_but_where_told(zone: str, given: dict[str, Any]) -> None:
    try:
        trigger = CronTrigger(timezone=zone, **given)
    except ValueError:
        assume(False)
    entry = made(trigger)
    if entry.schedule is None:
        said = str(entry.refused)
        assert "both match" in said or by_apscheduler(trigger) == []
        return
    agree(entry, trigger)


@settings(max_examples=100, deadline=None)
@given(
    period=st.one_of(
        st.integers(1, 90).map(lambda n: timedelta(seconds=n)),
        st.integers(1, 90).map(lambda n: timedelta(minutes=n)),
        st.integers(1, 30).map(lambda n: timedelta(hours=n)),
        st.integers(1, 14).map(lambda n: timedelta(days=n)),
    ),
    start=st.one_of(
        st.datetimes(datetime(2030, 1, 1), datetime(2031, 6, 1)).map(lambda at: at.replace(microsecond=0)),
        st.datetimes(datetime(2030, 1, 1), datetime(2031, 6, 1)).map(
            lambda at: at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
        ),
        st.datetimes(datetime(2030, 1, 1), datetime(2031, 6, 1)).map(
            lambda at: at.replace(hour=0, minute=0, second=0, microsecond=0)
        ),
    ),
    zone=st.sampled_from(ZONES),
)
def test_intervals_are_counted_from_their_start_or_refused(
    period: timedelta, start: datetime, zone: str
) -> None:
    trigger = IntervalTrigger(seconds=int(period.total_seconds()), start_date=start, timezone=zone)
    entry = made(trigger)
    if entry.schedule is None:
        off = to_ms(trigger.start_date) % (period // MILLISECOND) / 1_000
        assert off
        assert f"{off:g} s earlier, and no expression says it" in str(entry.refused)
        moved = made(trigger, realign=True)
        assert moved.schedule is not None
        assert any(f"{off:g} s earlier than its own" in remark for remark in moved.remarks)
        shifted = [at - round(off * 1_000) for at in by_apscheduler(trigger)]
        since = max(NOW, to_ms(trigger.start_date))
        assert by_us(moved, shifted[-1]) == [at for at in shifted if at >= since]
        return
    agree(entry, trigger)


def test_an_interval_without_a_start_begins_anywhere() -> None:
    trigger = IntervalTrigger(minutes=5, timezone="UTC", start_date=START + timedelta(microseconds=7))
    entry = made(trigger)
    assert entry.schedule is not None
    assert (entry.schedule["every"], "start" in entry.schedule) == (300.0, True)
    assert any("counted from when your program started" in remark for remark in entry.remarks)


def test_a_date_trigger_is_an_at_and_one_that_has_passed_is_refused() -> None:
    entry = made(DateTrigger("2031-02-01 09:00:00", timezone="Europe/Prague"))
    assert entry.schedule == {
        "id": "nightly",
        "function": f"{send.__module__.split('.')[0]}.send",
        "at": "2031-02-01T08:00:00Z",
        "payload": {"team": "sales"},
    }
    assert "has passed" in str(made(DateTrigger("2031-01-01 09:00:00", timezone="UTC")).refused)


@pytest.mark.parametrize(
    ("given", "cron"),
    [
        ({"hour": 9}, "0 9 * * *"),
        ({"day_of_week": "0-4", "hour": 9, "minute": 30}, "30 9 * * MON-FRI"),
        ({"day_of_week": 6, "hour": 9}, "0 9 * * SUN"),
        ({"day": "last", "hour": 9}, "0 9 L * *"),
        ({"day": "1st mon", "hour": 9}, "0 9 * * MON#1"),
        ({"day": "last fri,15", "hour": 9}, "0 9 15 * L5"),
        ({"day": "1-7", "day_of_week": "tue", "hour": 9}, "0 9 * * TUE#1"),
        ({"day": "1st mon,2nd tue", "day_of_week": "tue", "hour": 9}, "0 9 * * TUE#2"),
        ({"second": "*/10"}, "*/10 * * * * *"),
        ({"month": "jan-mar"}, "0 0 1 1-3 *"),
    ],
)
def test_the_fields_of_a_cron_trigger(given: dict[str, Any], cron: str) -> None:
    entry = made(CronTrigger(timezone="UTC", **given))
    assert entry.schedule is not None, entry.refused
    assert entry.schedule["cron"] == cron
    assert parse(cron)


@pytest.mark.parametrize(
    ("trigger", "why"),
    [
        (CronTrigger(week="1-10", timezone="UTC"), "weeks of the year"),
        (CronTrigger(year="*/2", timezone="UTC"), "allowed are all years"),
        (CronTrigger(year="2020", timezone="UTC"), "never fires"),
        (CronTrigger(day="13", day_of_week="fri", timezone="UTC"), "both match"),
        (CronTrigger(day="last", day_of_week="fri", timezone="UTC"), "must both match"),
        (CronTrigger(day="1st mon", day_of_week="fri", timezone="UTC"), "never meet"),
        (CronTrigger(hour=1, timezone="UTC", end_date="2020-01-01"), "never fires"),
        (IntervalTrigger(seconds=0.5, timezone="UTC"), "a second and longer"),
        (
            IntervalTrigger(minutes=7, start_date="2031-01-01 00:00:01", timezone="UTC"),
            "no expression says it",
        ),
        (CalendarIntervalTrigger(days=1, timezone="UTC"), "a CalendarIntervalTrigger"),
        (OrTrigger([CronTrigger(hour=1, timezone="UTC")]), "a OrTrigger"),
        (AndTrigger([CronTrigger(hour=1, timezone="UTC")]), "a AndTrigger"),
        (Elsewhere(hour=1, timezone="UTC"), "a Elsewhere"),
    ],
)
def test_triggers_that_cannot_be_carried_over_are_refused(trigger: Any, why: str) -> None:
    entry = made(trigger)
    assert entry.schedule is None
    assert why in str(entry.refused)


def test_jobs_that_cannot_be_carried_over_are_refused() -> None:
    daily = CronTrigger(hour=1, timezone="UTC")
    assert "it is paused" in str(made(daily, next_run_time=None).refused)
    assert "a lambda, a closure" in str(made(daily, func=lambda team: None).refused)
    assert "a lambda, a closure" in str(made(daily, func=partial(send, copies=2)).refused)
    mapped = made(daily, func=lambda team: None, naming=Naming.of(None, ["nightly=reports.send"]))
    assert (mapped.schedule or {})["function"] == "reports.send"


@pytest.mark.parametrize(
    ("job", "catch_up", "remarks"),
    [
        ({"misfire_grace_time": None}, "latest", []),
        ({"misfire_grace_time": None, "coalesce": False}, "all", ["coalesce=False: at most 1,000"]),
        ({}, "skip", ["misfire_grace_time=1: here, what is up to 60 s late"]),
        ({"misfire_grace_time": 3600}, "latest", ["misfire_grace_time=3600: here, what was missed"]),
        ({"misfire_grace_time": None, "max_instances": 3}, "latest", ["max_instances=3: give its function"]),
    ],
)
def test_what_was_missed_and_what_overlaps(job: dict[str, Any], catch_up: str, remarks: list[str]) -> None:
    entry = made(CronTrigger(hour=1, timezone="UTC"), **job)
    assert entry.schedule is not None
    assert entry.schedule["catch_up"] == catch_up
    for remark in remarks:
        assert any(one.startswith(remark) for one in entry.remarks), entry.remarks
    assert ("overlap" in entry.schedule) is ("max_instances" not in job)


def test_jitter_is_kept_within_its_width() -> None:
    entry = made(CronTrigger(hour=1, timezone="UTC", jitter=120))
    assert (entry.schedule or {})["jitter"] == 120


def test_defaults_of_the_scheduler_are_those_of_its_jobs() -> None:
    scheduler = BackgroundScheduler(
        timezone="UTC", job_defaults={"misfire_grace_time": None, "max_instances": 2}
    )
    scheduler.add_job(send, "cron", hour=3, id="a", args=["x"])
    (entry,) = settled(apscheduler_.read(scheduler, Naming(), now=NOW), now=NOW)
    assert entry.schedule is not None
    assert entry.schedule["catch_up"] == "latest"
    assert any(one.startswith("max_instances=2") for one in entry.remarks)
    assert apscheduler_.notes(scheduler, now=NOW) == []


def test_what_is_to_be_known_of_all_jobs_is_told() -> None:
    class Stored(MemoryJobStore):
        """As if it were in a database."""

    scheduler = BackgroundScheduler(timezone="Europe/Prague", jobstores={"default": Stored()})
    scheduler.add_job(send, "cron", hour=3, id="a", args=["x"])
    stored, overlooked = apscheduler_.notes(scheduler, now=NOW)
    assert "default (Stored) are not read: call start(paused=True)" in stored
    assert overlooked.startswith("where clocks change, APScheduler may overlook")
