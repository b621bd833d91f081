"""Lines of a crontab become schedules that fire when cron would have: by an oracle that walks through minutes."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetcron.clock import to_ms
from jetcron.cron import parse
from jetcron.migrate import Entry, Naming, settled
from jetcron.migrate import crontab as crontab_
from tests.support.cron_oracle import Minutes, fires

START = datetime(2031, 1, 15, 12, 0, 30, tzinfo=UTC)
NOW = to_ms(START)
ZONES = ["UTC", "Europe/Prague", "America/New_York"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


@lru_cache
def a_year(zone: str) -> Minutes:
    first = START.replace(minute=1, second=0)
    return Minutes(ZoneInfo(zone), first, first + timedelta(days=366))


def made(text: str, *, zone: str = "UTC", system: bool = False, naming: Naming | None = None) -> list[Entry]:
    found = crontab_.read(text.split("\n"), naming or Naming(), timezone=zone, system=system)
    return settled(found, now=NOW)


def only(line: str, **more: Any) -> Entry:
    (entry,) = made(line, **more)
    return entry


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    item = st.one_of(
        number.map(str),
        st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}"),
        st.tuples(number, number, st.integers(1, 7)).map(lambda x: f"{min(x[:2])}-{max(x[:2])}/{x[2]}"),
        st.integers(1, 7).map(lambda step: f"*/{step}"),
    )
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


@settings(max_examples=10, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    fields=st.tuples(
        field(0, 59),
        field(0, 23),
        field(1, 31),
        st.one_of(st.just("*"), field(1, 12), st.sampled_from(["jan", "Feb,aug", "mar-oct"])),
        st.one_of(st.just("*"), field(0, 7), st.sampled_from(["MON-FRI", "sun", "sat,sun", "5-7", "1-7/2"])),
    ),
)
def test_lines_fire_when_cron_says(zone: str, fields: tuple[str, ...]) -> None:
    entry = only(f"{' '.join(fields)} run-it", zone=zone)
    theirs = [to_ms(at) for at in fires(" ".join(fields), a_year(zone))]
    if entry.schedule is None:
        assert "never fires" in str(entry.refused)
        assert theirs == []
        return
    until = to_ms(START + timedelta(days=366)) // 60_000 * 60_000
    expression = parse(entry.schedule["cron"], timezone=zone)
    assert list(expression.window(NOW, until, 1_000_000).newest) == theirs
    assert entry.schedule["catch_up"] == "skip"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("@reboot x", "@reboot is no time"),
        ("@every_minute x", "@every_minute is not one of @hourly"),
        ("* * * * x", "day of week 'x'"),
        ("* * * x", "fewer than five fields"),
        ("* * * * *", "it has no command"),
        ("@daily", "it has no command"),
        ("5/10 * * * * x", "write 5-59/10"),
        ("0 22-2 * * * x", "its range falls"),
        ("0 0 * * sat-sun x", "its range falls"),
        ("0~59 * * * * x", "a random number, another one at each start"),
        ("60 * * * * x", "allowed are 0-59"),
        ("* * * * monday x", "cron has no such item"),
        ("* * * * mxn x", "allowed are 0-7 or SUN-SAT"),
        ("* * L * * x", "cron has no such item"),
        ("* * ? * * x", "cron has no such item"),
        ("H * * * * x", "cron has no such item"),
        ("* * 15W * * x", "cron has no such item"),
        ("* * * * 5#2 x", "cron has no such item"),
        ("*/90 * * * * x", "its step is longer than the field"),
        ("0 0 31 2 * x", "never fires"),
        ("*-5 * * * * x", "cron has no such item"),
        ("1,,2 * * * * x", "cron has no such item"),
        ("RANDOM_DELAY=soon", "allowed are minutes"),
        ("CRON_TZ=Prague", "did you mean 'Europe/Prague'"),
        ("0 1 * * * caf\udce9", "not UTF-8"),
    ],
)
def test_lines_that_cannot_be_carried_over_are_refused(line: str, why: str) -> None:
    entry = only(f"# first\n\n{line}")
    assert entry.schedule is None
    assert entry.place == "line 3"
    assert why in str(entry.refused)


def test_every_field_that_is_wrong_is_named() -> None:
    refused = str(only("60 5/10 L * mxn x").refused)
    assert [part.split(" '")[0] for part in refused.split("; ") if " '" in part] == [
        "minute",
        "hour",
        "day of month",
        "day of week",
    ]


@pytest.mark.parametrize("between", [" ", "\t", "\t\t", " \t "])
def test_blanks_and_tabs_end_the_user_alike(between: str) -> None:
    line = between.join(["17 *\t* * *", "root", "cd / && run-parts --report /etc/cron.hourly\tx"])
    schedule = only(line, system=True).schedule
    assert schedule is not None
    assert schedule["cron"] == "17 * * * *"
    assert schedule["payload"] == {
        "command": "cd / && run-parts --report /etc/cron.hourly\tx",
        "user": "root",
    }


def test_a_crontab_with_settings() -> None:
    text = """
# m h dom mon dow command
SHELL=/bin/bash
"PATH" = '/usr/bin:/bin'
MAILTO=ops@example.org
30 2 * * 1-5   cd /srv/app && python3.11 -m app.report --daily
CRON_TZ=Europe/Prague
MAILTO=
RANDOM_DELAY=10
-@daily nice
@daily flags=1 /opt/tools/purge_old.py
"""
    report, minus, purge = made(text, zone="America/New_York")
    assert report.schedule == {
        "id": "report",
        "function": "cron.report",
        "cron": "30 2 * * 1-5",
        "timezone": "America/New_York",
        "catch_up": "skip",
        "payload": {
            "command": "cd /srv/app && python3.11 -m app.report --daily",
            "env": {"SHELL": "/bin/bash", "PATH": "/usr/bin:/bin"},
        },
    }
    assert report.remarks == ["output was mailed to ops@example.org: Jetcron mails nothing"]
    assert minus.schedule is None
    assert purge.schedule is not None
    assert (purge.schedule["id"], purge.schedule["cron"]) == ("purge-old", "@daily")
    assert (purge.schedule["timezone"], purge.schedule["jitter"]) == ("Europe/Prague", 600)
    assert [remark.split(" ")[0] for remark in purge.remarks] == ["CRON_TZ", "RANDOM_DELAY:"]


def test_what_follows_a_percent_sign_is_standard_input() -> None:
    entry = only(r"0 9 * * * mail -s 100\% boss%Dear boss,%all is at 100\%.%")
    assert entry.schedule is not None
    assert entry.schedule["payload"] == {
        "command": "mail -s 100% boss",
        "stdin": "Dear boss,\nall is at 100%.\n",
    }


def test_the_systems_crontab_names_users() -> None:
    entry = only("17 *\t* * *\troot    cd / && run-parts --report /etc/cron.hourly", system=True)
    assert entry.schedule is not None
    assert entry.schedule["payload"] == {
        "command": "cd / && run-parts --report /etc/cron.hourly",
        "user": "root",
    }
    assert entry.schedule["cron"] == "17 * * * *"
    assert entry.remarks == ["ran as root"]
    assert "no command after the user" in str(only("17 * * * * root", system=True).refused)


@pytest.mark.parametrize(
    ("command", "id"),
    [
        ("/usr/local/bin/backup.sh --full >/dev/null 2>&1", "backup"),
        ("cd /srv/app && ./manage.py clearsessions", "manage"),
        ("test -x /usr/sbin/anacron || run-parts /etc/cron.daily", "run-parts"),
        ("[ -f /x ] && /usr/lib/php/sessionclean", "sessionclean"),
        ("PYTHONPATH=. nice -n 10 python3 -u /srv/jobs/send_mail.py", "send-mail"),
        ("/srv/venv/bin/python -m jobs.cleanup", "cleanup"),
        ("(sleep 5; true)", "sleep"),
        (":", "command"),
    ],
)
def test_a_schedule_is_named_after_its_program(command: str, id: str) -> None:
    assert (only(f"0 1 * * * {command}").schedule or {})["id"] == id


def test_lines_of_one_program_are_schedules_of_one_function() -> None:
    entries = made("0 1 * * * backup.sh a\n0 2 * * * backup.sh b\n0 3 * * * other")
    assert [(entry.schedule or {})["id"] for entry in entries] == ["backup", "backup-2", "other"]
    assert [(entry.schedule or {})["function"] for entry in entries] == ["cron.backup"] * 2 + ["cron.other"]
    naming = Naming.of("ops", ["backup*=safe.keep"])
    named = made("0 1 * * * backup.sh a\n0 2 * * * backup.sh b\n0 3 * * * other", naming=naming)
    assert [(entry.schedule or {})["function"] for entry in named] == ["safe.keep", "safe.keep", "ops.other"]
    every = made("0 1 * * * a\n0 2 * * * b", naming=Naming.of(None, ["*=ops.shell"]))
    assert [(entry.schedule or {})["function"] for entry in every] == ["ops.shell"] * 2
