"""Celery's beat_schedule becomes schedules that fire when Celery would have: asked of Celery itself."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar
from hypothesis import given, settings
from hypothesis import strategies as st

from jetcron.clock import to_ms
from jetcron.cron import parse
from jetcron.migrate import Entry, Naming, settled
from jetcron.migrate import celery as celery_
from jetcron.migrate.clocks import differences

START = datetime(2031, 1, 15, 12, 0, 30, tzinfo=UTC)
NOW = to_ms(START)
YEAR = timedelta(days=366)
MOST = 1_500
ZONES = ["UTC", "Asia/Kolkata", "Europe/Prague", "America/New_York", "Australia/Lord_Howe"]


SUNSET = solar.__new__(solar)  # made so, it does not ask for its astronomy, which is no dependency
SUNSET.event, SUNSET.lat, SUNSET.lon = "sunset", 50, 14


def celery_app(timezone: str | None = None, **beat: Any) -> Celery:
    app = Celery("proj", set_as_current=False)
    app.conf.timezone = timezone

    @app.task(name="proj.tasks.send", shared=False)
    def send(team: str, copies: int = 1, **more: Any) -> None: ...

    app.conf.beat_schedule = beat
    app.finalize()
    return app


def made(app: Celery, naming: Naming | None = None) -> list[Entry]:
    return settled(celery_.read(app, naming or Naming(), now=NOW), now=NOW)


def only(app: Celery, naming: Naming | None = None) -> Entry:
    (entry,) = made(app, naming)
    return entry


def by_celery(app: Celery, when: crontab) -> list[int]:
    """The times Celery finds due one after another, in epoch ms, for a year or until there are `MOST`."""
    at, found = START, []
    again = crontab(*when.__reduce__()[1], app=app, nowfun=lambda: at)
    while len(found) < MOST:
        at += again.remaining_estimate(at.astimezone(app.timezone))
        if at > START + YEAR:
            break
        found.append(to_ms(at))
    return found


def by_us(schedule: dict[str, Any], until: int) -> list[int]:
    expression = parse(schedule["cron"], timezone=schedule["timezone"], dst=schedule.get("dst", "default"))
    return list(expression.window(NOW, until, 1_000_000).newest)


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    item = st.one_of(
        number.map(str),
        st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}"),
        st.tuples(number, number, st.integers(1, 9)).map(lambda x: f"{min(x[:2])}-{max(x[:2])}/{x[2]}"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


@settings(max_examples=150, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    minute=field(0, 59),
    hour=field(0, 23),
    week=st.one_of(field(0, 6), st.sampled_from(["mon-fri", "sun", "sat,sun", "fri-mon"])),
    day=field(1, 31),
    month=st.one_of(st.just("*"), field(1, 12)),
)
def test_crontabs_fire_when_celery_says_but_where_told(
    zone: str, minute: str, hour: str, week: str, day: str, month: str
) -> None:
    try:
        when = crontab(minute, hour, day_of_week=week, day_of_month=day, month_of_year=month)
    except ValueError:
        return  # Celery has no such crontab
    app = celery_app(zone, x={"task": "proj.tasks.send", "schedule": when, "args": ("a",)})
    entry = only(app)
    if entry.schedule is None:
        restricted = len(when.day_of_month) < 31 and len(when.day_of_week) < 7
        assert (restricted and "both match" in str(entry.refused)) or "never fires" in str(entry.refused)
        return
    theirs = by_celery(app, when)
    ours = by_us(
        entry.schedule, theirs[-1] if len(theirs) == MOST else NOW + YEAR // timedelta(milliseconds=1)
    )
    told = differences(entry.schedule["cron"], zone, "default", again=False, now=NOW)
    assert any("clocks" in remark for remark in entry.remarks) is bool(told)

    def elsewhere(times: list[int]) -> list[int]:
        return [at for at in times if not any(one.start <= at <= one.end for one in told)]

    assert elsewhere(ours) == elsewhere(theirs)
    if zone in ("UTC", "Asia/Kolkata"):
        assert not told


@pytest.mark.parametrize(
    ("when", "expression"),
    [
        (crontab(), "* * * * *"),
        (crontab(minute="*/15", hour="8-17", day_of_week="mon-fri"), "*/15 8-17 * * MON-FRI"),
        (crontab(0, 9, day_of_month="1-7", day_of_week="mon"), "0 9 * * MON#1"),
        (crontab(0, 9, day_of_month="1-7,15-21", day_of_week="1"), "0 9 * * MON#1,MON#3"),
        (crontab(0, 9, day_of_month="*/2", day_of_week="mon-fri"), "0 9 */2 * MON-FRI"),
        (crontab(0, 9, day_of_month="1,5", day_of_week="mon"), "0 9 */31,5 * MON"),
        (crontab(0, 9, day_of_month="13,14", day_of_week="sun,mon"), "0 9 13,14 * */7,MON"),
        (crontab(0, 9, day_of_month="13", day_of_week="fri"), None),
        (crontab(0, 0, month_of_year="*/3", day_of_month="31"), "0 0 31 */3 *"),
    ],
)
def test_both_day_fields_must_match_or_the_entry_is_refused(when: crontab, expression: str | None) -> None:
    entry = only(celery_app(x={"task": "proj.tasks.send", "schedule": when, "args": ("a",)}))
    if expression is None:
        assert entry.schedule is None
        assert "day of month 13 and day of week FRI both match" in str(entry.refused)
    else:
        assert entry.schedule is not None, entry.refused
        assert (entry.schedule["cron"], entry.schedule["timezone"]) == (expression, "UTC")


@pytest.mark.parametrize(
    ("when", "every"),
    [(30, 30.0), (1.5, 1.5), (timedelta(minutes=5), 300.0), (schedule(timedelta(hours=2)), 7200.0)],
)
def test_periods_are_taken_and_their_beginning_is_told(when: Any, every: float) -> None:
    entry = only(celery_app(x={"task": "proj.tasks.send", "schedule": when, "args": ("a",)}))
    assert entry.schedule is not None
    assert entry.schedule["every"] == every
    assert any("multiples of it since 1970" in remark for remark in entry.remarks)


@pytest.mark.parametrize(
    ("every", "expression"),
    [
        (timedelta(days=1), "0 0 * * *"),
        (timedelta(hours=1), "0 * * * *"),
        (timedelta(minutes=1), "* * * * *"),
    ],
)
def test_relative_periods_begin_with_the_day_the_hour_the_minute(every: timedelta, expression: str) -> None:
    app = celery_app("Europe/Prague", x={"task": "t", "schedule": every, "relative": True})
    entry = only(app)
    assert entry.schedule is not None
    assert (entry.schedule["cron"], entry.schedule["timezone"]) == (expression, "Europe/Prague")
    at, theirs = START, []
    asked = schedule(every, relative=True, app=app, nowfun=lambda: at)
    for _ in range(20):
        at += asked.remaining_estimate(at.astimezone(app.timezone))
        theirs.append(to_ms(at))
    assert by_us(entry.schedule, theirs[-1]) == theirs


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"schedule": SUNSET}, "follows the sun"),
        ({"schedule": 0.2}, "a second and longer"),
        ({"schedule": timedelta(microseconds=1_500_500)}, "whole milliseconds"),
        ({"schedule": timedelta(days=2), "relative": True}, "relative=True"),
        ({"schedule": crontab(nowfun=lambda: START)}, "a clock of its own"),
        ({"schedule": object()}, "its schedule is a object"),
        ({"schedule": 60, "enabled": False}, "not enabled"),
        ({"schedule": 60, "options": {"countdown": 5}}, "countdown=5"),
        ({"schedule": 60, "options": {"expires": START}}, "expires="),
        ({"schedule": 60, "options": {"link": ["x"]}}, "tasks that follow"),
        ({"schedule": 60, "args": (1, 2, 3, 4)}, "do not fit its function"),
        ({"schedule": 60, "args": ({1, 2},)}, "cannot be stored"),
        ({"schedule": 60, "args": (b"x",)}, "payload.team is bytes"),
        ({"schedule": 60, "kwargs": {"team": {1: 2}}}, "has the key 1"),
        ({"schedule": 60, "task": "celery.backend_cleanup"}, "goes with Celery"),
        ({"schedule": 60, "task": None}, "no map with a 'task'"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(values: dict[str, Any], why: str) -> None:
    entry = only(celery_app(x={"task": "proj.tasks.send", **values}))
    assert entry.schedule is None
    assert why in str(entry.refused)


def test_an_entry_with_arguments_and_options() -> None:
    entry = only(
        celery_app(
            nightly={
                "task": "proj.tasks.send",
                "schedule": crontab(30, 4),
                "args": ("sales",),
                "kwargs": {"copies": 2, "also": ["a", "b"]},
                "options": {"queue": "slow", "expires": 60, "retry": True},
            }
        )
    )
    assert entry.schedule == {
        "id": "nightly",
        "function": "proj.send",
        "cron": "30 4 * * *",
        "timezone": "UTC",
        "payload": {"team": "sales", "copies": 2, "also": ["a", "b"]},
    }
    assert entry.remarks == [
        "queue='slow' has no counterpart: a function's app says who executes it",
        "expires=60: give its function start_timeout=60",
    ]


def test_a_task_nobody_registered_keeps_its_arguments_without_names() -> None:
    entry = only(celery_app(x={"task": "lonely", "schedule": 60, "args": (1,), "kwargs": {"a": 2}}))
    assert entry.schedule is not None
    assert entry.schedule["function"] == "celery.lonely"
    assert entry.schedule["payload"] == {"args": [1], "a": 2}


def test_functions_are_named_by_map_and_app_and_two_tasks_are_not_made_one() -> None:
    beat = {
        name: {"task": name, "schedule": 60} for name in ("a.tasks.send", "a.other.send", "b.tasks.count")
    }
    first, second, third = made(celery_app(**beat))
    assert (first.schedule or {})["function"] == "a.send"
    assert "as that of 'a.tasks.send'" in str(second.refused)
    assert (third.schedule or {})["function"] == "b.count"
    naming = Naming.of("jobs", ["a.other.*=reports.send", "b.tasks.count=reports.count"])
    named = [(entry.schedule or {})["function"] for entry in made(celery_app(**beat), naming)]
    assert named == ["jobs.send", "reports.send", "reports.count"]


def test_the_zone_is_the_apps() -> None:
    beat = {"x": {"task": "t", "schedule": crontab(0, 9)}}
    assert (only(celery_app("America/New_York", **beat)).schedule or {})["timezone"] == "America/New_York"
    local = celery_app(x={"task": "t", "schedule": crontab(0, 9)})
    local.conf.enable_utc = False
    assert (only(local).schedule or {})["timezone"] == local.timezone.key


def test_what_beat_keeps_elsewhere_is_told() -> None:
    app = celery_app()
    assert celery_.notes(app) == []
    app.conf.beat_scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    app.conf.beat_cron_starting_deadline = 60
    assert [note.split(":")[0] for note in celery_.notes(app)] == [
        "beat_scheduler is django_celery_beat.schedulers",
        "beat_cron_starting_deadline=60",
    ]
