"""`jetcron import`: what it prints, refuses and writes, and that `jetcron schedules apply` reads what it wrote."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import apscheduler.schedulers.background  # noqa: F401 - imported before the fixture looks what is
import celery.schedules  # noqa: F401
import pytest

from jetcron.cli.schedule_reading import read
from tests.support.command_line import call

CRONTAB = """SHELL=/bin/sh
*/5 * * * * backup.sh
@reboot start.sh
"""
CELERY = """
from datetime import timedelta
from celery import Celery
from celery.schedules import crontab

app = Celery("proj", broker="memory://", set_as_current=False)
app.conf.timezone = "Europe/Prague"

@app.task(name="proj.tasks.send", shared=False)
def send(team): ...

@app.on_after_finalize.connect
def more(sender, **_):
    sender.add_periodic_task(30.0, send.s("ops"), name="often")

app.conf.beat_schedule = {
    "morning": {"task": "proj.tasks.send", "schedule": crontab(0, 9), "args": ("sales",)},
    "friday 13": {"task": "proj.tasks.send", "schedule": crontab(0, 9, 5, 13), "args": ("sales",)},
}
"""
APSCHEDULER = """
from apscheduler.schedulers.background import BackgroundScheduler

scheduler = BackgroundScheduler(timezone="UTC")

def send(team): ...

scheduler.add_job(send, "cron", day_of_week=0, hour=9, id="monday", args=["sales"])
scheduler.add_job(send, "interval", minutes=7, start_date="2030-01-01 00:00:01", id="odd", args=["ops"])
"""

APSCHEDULER_4 = """
class Scheduler:
    def add_schedule(self, func, trigger): ...
    def get_schedules(self): return ["a"]
    def add_job(self, func): ...
    def get_jobs(self): return []

scheduler = Scheduler()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, no settings, and no module of a test left imported."""
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("proj", "jobs", "broken"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_a_crontab_becomes_a_file_and_what_cannot_be_is_told(folder: Path) -> None:
    (folder / "tab").write_text(CRONTAB)
    result = call(
        "import", "crontab", "tab", "--timezone", "Europe/Prague", "--app", "ops", "--out", "s.yaml"
    )
    assert result.exit_code == 1
    table = result.stdout.splitlines()
    assert table[0].split() == [
        "entry",
        "as",
        "it",
        "stands",
        "schedule",
        "function",
        "when",
        "zone",
        "remarks",
    ]
    assert [line.split("  ")[0] for line in table[1:]] == ["line 2", "line 3"]
    assert "backup" in table[1]
    assert "ops.backup" in table[1]
    assert "refused: @reboot is no time" in table[2]
    assert "s.yaml: 1 schedule; look at it, then" in result.stderr
    assert "1 of 2 entries cannot be carried over" in result.stderr
    assert (folder / "s.yaml").read_text().startswith("# not carried over: line 3: @reboot")
    assert read("s.yaml") == [
        {
            "id": "backup",
            "function": "ops.backup",
            "cron": "*/5 * * * *",
            "timezone": "Europe/Prague",
            "catch_up": "skip",
            "payload": {"command": "backup.sh", "env": {"SHELL": "/bin/sh"}},
        }
    ]


def test_a_crontab_from_stdin_in_the_machines_zone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ":America/New_York")
    result = call("import", "crontab", "-", "--out", "s.jsonl", input="0 9 * * * report\n")
    assert result.exit_code == 0, result.output
    assert "times are in America/New_York, this machine's zone" in result.stderr
    (schedule,) = read("s.jsonl")
    assert (schedule["cron"], schedule["timezone"]) == ("0 9 * * *", "America/New_York")
    again = call("import", "crontab", "-", "--out", "s.jsonl", input="0 9 * * * report\n")
    assert again.exit_code == 1
    assert "s.jsonl exists; --force overwrites it" in again.stderr
    assert call("import", "crontab", "-", "--out", "s.jsonl", "--force", input="1 1 * * * x\n").exit_code == 0
    assert read("s.jsonl")[0]["id"] == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing was read from stdin"),
        ("\n \n", "nothing was read from stdin"),
        ("# none\nSHELL=/bin/sh\n", "-: there are no entries"),
    ],
)
def test_where_there_are_no_entries_nothing_is_written(folder: Path, text: str, said: str) -> None:
    result = call("import", "crontab", "-", "--timezone", "UTC", "--out", "s.yaml", input=text)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "nothing is written" in result.stderr
    assert not (folder / "s.yaml").exists()


def test_a_scheduler_of_apscheduler_4_is_told_from_one_of_3(folder: Path) -> None:
    (folder / "jobs.py").write_text(APSCHEDULER_4)
    result = call("import", "apscheduler", "jobs", "--out", "s.yaml")
    assert result.exit_code == 1
    assert "jobs is a scheduler of APScheduler 4; allowed is one of 3.x" in result.stderr
    assert not (folder / "s.yaml").exists()


def test_celery_with_what_is_added_when_it_is_finalized(folder: Path) -> None:
    (folder / "proj.py").write_text(CELERY)
    result = call("import", "celery", "proj:app", "--json", "--map", "proj.tasks.*=reports.send")
    assert result.exit_code == 1
    morning, friday, often = json.loads(result.stdout)
    assert morning["schedule"] == {
        "id": "morning",
        "function": "reports.send",
        "cron": "0 9 * * *",
        "timezone": "Europe/Prague",
        "payload": {"team": "sales"},
    }
    assert "both match" in friday["refused"]
    assert (often["schedule"]["id"], often["schedule"]["every"]) == ("often", 30.0)
    assert often["schedule"]["payload"] == {"team": "ops"}


def test_apscheduler_and_realigned(folder: Path) -> None:
    (folder / "jobs.py").write_text(APSCHEDULER)
    result = call("import", "apscheduler", "jobs", "--json")
    assert result.exit_code == 1
    monday, odd = json.loads(result.stdout)
    assert monday["schedule"]["cron"] == "0 9 * * MON"
    assert monday["schedule"]["function"] == "jobs.send"
    assert "--realign" in odd["refused"]
    result = call("import", "apscheduler", "jobs:scheduler", "--realign", "--out", "s.yaml")
    assert result.exit_code == 0, result.output
    assert [schedule["id"] for schedule in read("s.yaml")] == ["monday", "odd"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["crontab", "nowhere"], "nowhere: No such file"),
        (["crontab", "-", "--timezone", "Prague"], "did you mean 'Europe/Prague'"),
        (["crontab", "-", "--map", "x"], "--map 'x'"),
        (["crontab", "-", "--map", "x=y"], "'y' is not a function id"),
        (["crontab", "-", "--map", "=a.b"], "allowed is OLD=APP.FUNCTION"),
        (["crontab", "-", "--app", "a.b"], "--app: the app name 'a.b' has a dot"),
        (["celery", "nowhere:app"], "there is no module 'nowhere'"),
        (["celery", ":app"], "names no module"),
        (["celery", "jobs:scheduler"], "allowed is a Celery app"),
        (["celery", "proj"], "proj: what it includes cannot be imported: ZeroDivisionError"),
        (["apscheduler", "jobs:send"], "allowed is a scheduler of APScheduler 3"),
        (["apscheduler", "jobs:nothing"], "jobs has no 'nothing'"),
        (["apscheduler", "broken"], "broken cannot be imported: ZeroDivisionError"),
    ],
)
def test_mistakes_are_told(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "jobs.py").write_text(APSCHEDULER)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "proj.py").write_text(CELERY.replace('broker="memory://"', 'include=["broken"]'))
    result = call("import", *arguments, input="0 9 * * * x\n")
    assert result.exit_code == 1
    assert said in result.stderr
