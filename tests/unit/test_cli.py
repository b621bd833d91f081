"""Verbs that need no server, and what is said of mistakes."""

import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

import jetcron
from jetcron import App, Context, logs
from jetcron.cli.sending import OptionalWait
from jetcron.dev.banner import app_lines
from jetcron.dev.live import Live, Paint
from jetcron.errors import ConfigurationError
from jetcron.loading import AppNotFound, ImportFailed, Loaded, load
from jetcron.settings import Settings
from tests.support.command_line import call, untouched_logging

NOBODY = "nats://127.0.0.1:1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, no settings, and no module of a test left imported."""
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    importlib.invalidate_caches()


Write = Callable[[str, str], Path]


@pytest.fixture
def write(folder: Path) -> Write:
    def write(name: str, text: str) -> Path:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


# Usage.


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert result.output == f"jetcron {jetcron.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["next"],
        ["next", "@daily", "--dst", "never"],
        ["next", "@daily", "--count", "0"],
        ["next", "@daily", "--after", "yesterday"],
        ["send"],
        ["run", "a.f", "--wait=soon"],
        ["run", "a.f", "--at", "noon"],
        ["executor", "m:app", "--slots", "0"],
        ["cron-tick", "--http", "99999"],
        ["dev", "--nats-port", "-1"],
        ["functions"],
        ["functions", "pause"],
        ["runs", "list", "--limit", "0"],
        ["runs", "list", "--status", "queued"],
        ["runs", "show"],
        ["runs", "show", "R", "--limit", "0"],
        ["runs", "cancel"],
        ["runs", "retry"],
        ["dead", "show", "x"],
        ["dead", "list", "--kind", "faild"],
        ["dead", "list", "--since", "yesterday"],
        ["dead", "list", "--until", "0.5s"],
        ["dead", "list", "--since", "1h", "--until", "2h"],
        ["dead", "replay"],
        ["dead", "replay", "0"],
        ["dead", "replay", "3", "--function", "a.f"],
        ["dead", "replay", "--yes"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("verb", [["dashboard"]], ids=str)
def test_verbs_of_later_versions_are_absent(verb: list[str]) -> None:
    assert "No such command" in call(*verb).output


# next.


def test_next_shows_the_zone_and_utc() -> None:
    result = call("next", "0 9 * * MON", "-z", "Europe/Madrid", "--after", "2026-03-25", "-n", "2")
    assert result.exit_code == 0
    assert [line.split("  ") for line in result.output.splitlines()][1:] == [
        ["Mon 2026-03-30 09:00:00 CEST", "2026-03-30T07:00:00Z"],
        ["Mon 2026-04-06 09:00:00 CEST", "2026-04-06T07:00:00Z"],
    ]


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        ("default", ["2026-03-29T01:00:00+00:00", "2026-03-30T00:30:00+00:00"]),
        ("skip", ["2026-03-30T00:30:00+00:00", "2026-03-31T00:30:00+00:00"]),
    ],
)
def test_next_as_json(dst: str, expected: list[str]) -> None:
    result = call(
        "next",
        "CRON_TZ=Europe/Madrid 30 2 * * *",
        "--after",
        "2026-03-28T12:00",
        "-n",
        "2",
        "--dst",
        dst,
        "--json",
    )
    times = json.loads(result.output)
    assert [one["utc"] for one in times] == expected
    assert all(one["local"].endswith("+02:00") for one in times)


@pytest.mark.parametrize(
    ("expression", "zone", "said"),
    [
        ("61 * * * *", "UTC", "minute"),
        ("0 0 31 2 *", "UTC", "never"),
        ("@daily", "Europe/Nowhere", "Europe/Nowhere"),
        ("", "UTC", "cron expression"),
    ],
)
def test_next_refuses_in_one_line(expression: str, zone: str, said: str) -> None:
    result = call("next", expression, "-z", zone)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


# What a person can act on: a line, exit code 1, no traceback.


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "list"],
        ["functions", "list", "--json"],
        ["dead", "list"],
        ["init"],
        ["doctor"],
        ["cron-tick"],
    ],
    ids=" ".join,
)
def test_no_server(arguments: list[str]) -> None:
    result = call(*arguments, env={"NATS_URL": NOBODY})
    assert result.exit_code == 1
    assert f"no NATS server answers at {NOBODY}" in result.output
    assert "NATS_URL" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("text", ["{bad", "nope", "'x'"])
def test_bad_json(text: str) -> None:
    for verb in (["send", "order.created", text], ["run", "a.f", text]):
        result = call(*verb, env={"NATS_URL": NOBODY})
        assert result.exit_code == 1
        assert "this is not JSON" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert "this is not JSON" in call("send", "order.created", "-", input=text).stderr


def test_bad_event_name() -> None:
    result = call("send", "order..created", env={"NATS_URL": NOBODY})
    assert result.exit_code == 1
    assert "order..created" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NATS_URL", "localhost", "nats://HOST:PORT"),
        ("JETCRON_SLOTS", "none", "whole numbers from 1"),
        ("JETCRON_SLOT", "3", "did you mean 'JETCRON_SLOTS'"),
        ("NATS_CREDS", "/nowhere/x.creds", "no such file"),
    ],
)
def test_bad_settings(variable: str, value: str, said: str) -> None:
    result = call("settings", env={variable: value})
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_credentials_file_that_is_none(write: Write) -> None:
    file = write("x.seed", "not a seed")
    result = call("runs", "list", env={"NATS_CA": str(file), "NATS_URL": NOBODY})
    assert result.exit_code == 1
    assert "holds no certificates" in result.stderr


def test_settings() -> None:
    env = {"NATS_URL": "nats://me:secret@example.org", "JETCRON_SLOTS": "7"}
    rows = {row["variable"]: row for row in json.loads(call("settings", "--json", env=env).stdout)}
    assert rows["JETCRON_SLOTS"]["value"] == "7"
    assert rows["JETCRON_SLOTS"]["source"] == "environment"
    assert rows["JETCRON_LEAD"]["source"] == "default"
    shown = call("settings", env=env).stdout
    assert "secret" not in shown
    assert "runs executed at one time" in shown


def test_a_dev_server_that_is_gone_is_not_used(folder: Path) -> None:
    (folder / ".jetcron").mkdir()
    (folder / ".jetcron" / "url").write_text(f"{NOBODY}\n")
    assert "nats://127.0.0.1:4222" in call("settings").stdout


# MODULE:APP.

APP = "from jetcron import App\n{name} = App('{name}')\n"


def test_load_by_dotted_name_by_path_and_the_only_one(write: Write, folder: Path) -> None:
    write("jobs_a.py", APP.format(name="first"))
    write("package_b/__init__.py", "")
    write("package_b/inner.py", "from package_b import other\n" + APP.format(name="second"))
    write("package_b/other.py", "")
    write("src/jobs_c.py", APP.format(name="third"))
    assert load("jobs_a:first").app.name == "first"
    assert load("jobs_a").app.name == "first"
    assert load("package_b.inner:second").app.name == "second"
    assert load("package_b/inner.py:second").app is load("package_b.inner").app
    found = load("src/jobs_c.py")
    assert found.app.name == "third"
    assert found.folder == (folder / "src").resolve()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("jobz_d:app", ["no module 'jobz_d'", "did you mean 'jobs_d'"]),
        ("elsewhere.deep:app", ["no module 'elsewhere'"]),
        ("nowhere/x.py:app", ["there is no file"]),
        ("jobs_d:nothing", ["has no 'nothing'", "jobs_d:one", "jobs_d:two"]),
        ("jobs_d:three", ["is a int, no App", "jobs_d:one"]),
        ("jobs_d", ["has 2 Apps", "jobs_d:one, jobs_d:two"]),
        ("empty_d", ["there is no App in empty_d"]),
        (":app", ["names no module"]),
    ],
)
def test_what_cannot_be_loaded_is_named(write: Write, folder: Path, target: str, said: list[str]) -> None:
    write("jobs_d.py", APP.format(name="one") + APP.format(name="two") + "three = 3\n")
    write("empty_d.py", "")
    with pytest.raises(AppNotFound) as caught:
        load(target)
    for words in said:
        assert words in str(caught.value)
    result = call("sync", target, env={"NATS_URL": NOBODY})
    assert result.exit_code == 1
    assert said[0] in result.stderr
    assert "Traceback" not in result.stderr


def test_where_it_looked_is_said(folder: Path) -> None:
    with pytest.raises(AppNotFound, match="looked in"):
        load("nothing_here:app")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError"),
        ("import not_installed_anywhere\n", "ModuleNotFoundError"),
        ("def f(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("from jetcron import App\napp = App('x')\n@app.function(cron='nope')\ndef f(ctx): ...\n", "x.f"),
    ],
    ids=["raises", "import", "syntax", "exit", "option"],
)
def test_an_exception_in_the_users_module_shows_their_frames_alone(
    write: Write, text: str, said: str
) -> None:
    write("broken_e.py", text)
    with pytest.raises(ImportFailed) as caught:
        load("broken_e:app")
    trace = caught.value.traceback
    assert "broken_e.py" in trace
    for machinery in ("importlib", "loading.py", "/jetcron/"):
        assert machinery not in trace
    sys.modules.pop("broken_e", None)
    result = call("sync", "broken_e:app", env={"NATS_URL": NOBODY})
    assert result.exit_code == 1
    assert said in result.stderr
    assert "broken_e cannot be imported" in result.stderr.splitlines()[-1]


def test_an_executor_checks_annotations(write: Write) -> None:
    write(
        "late_f.py",
        "from __future__ import annotations\nfrom jetcron import App\napp = App('x')\n"
        "@app.function()\ndef f(ctx, data: Missing): ...\n",
    )
    result = call("sync", "late_f:app", env={"NATS_URL": NOBODY})
    assert result.exit_code == 1
    assert "Missing" in result.stderr
    assert "Traceback" not in result.stderr


# run --wait


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ([], None),
        (["--wait"], float("inf")),
        (["--wait", "5"], 5.0),
        (["--wait=2.5"], 2.5),
        (["--wait", "--id", "x"], float("inf")),
    ],
    ids=str,
)
def test_wait_takes_seconds_or_none(given: list[str], value: float | None) -> None:
    from typer.main import get_command

    from jetcron.cli import app

    command = get_command(app).commands["run"]  # type: ignore[attr-defined]
    assert isinstance(command, OptionalWait)
    context = command.make_context("run", ["a.f", *given])
    assert context.params["wait"] == value
    assert context.params["data"] is None


# Logs.


def test_json_logs_go_to_stderr_with_the_standard_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    with untouched_logging():
        logs.configure(Settings.load(log_format="json", log_level="info"))
        structlog.get_logger("jetcron.test").info("one", number=1)
        structlog.get_logger("jetcron.test").debug("unseen")
        logging.getLogger("someone").warning("two %s", 2)
        logging.getLogger("someone").debug("unseen")
        try:
            raise ValueError("three")
        except ValueError:
            structlog.get_logger("jetcron.test").exception("caught")
    out, err = capsys.readouterr()
    assert not out
    one, two, three = (json.loads(line) for line in err.splitlines())
    assert one | {"timestamp": ""} == {
        "event": "one",
        "number": 1,
        "logger": "jetcron.test",
        "level": "info",
        "timestamp": "",
    }
    assert two["event"] == "two 2"
    assert two["logger"] == "someone"
    assert "ValueError: three" in three["exception"]


def test_console_logs_have_short_times(capsys: pytest.CaptureFixture[str]) -> None:
    with untouched_logging():
        logs.configure(Settings.load(log_format="console"))
        structlog.get_logger("jetcron.test").info("hello", number=1)
    _, err = capsys.readouterr()
    assert re.match(r"\d\d:\d\d:\d\d\.\d\d\d .*hello.*number=1", err)


def test_a_closed_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def isatty(self) -> bool:
            return False

        def write(self, _: str) -> int:
            raise BrokenPipeError

    with untouched_logging():
        monkeypatch.setattr(sys, "stderr", Closed())
        logs.configure(Settings.load(log_format="json"))
        structlog.get_logger("jetcron.test").info("lost")


# The live log of `jetcron dev`.

STAMP = "2026-01-31T12:00:00.003456+00:00"
RUN = {"function": "reports.dispatch", "run": "01K", "attempt": 0}


@pytest.mark.parametrize(
    ("logger", "event", "line"),
    [
        (
            "executor",
            RUN | {"event": "started", "late_ms": 1, "trigger": "cron", "level": "debug"},
            "▶  reports.dispatch  started  (cron, 1 ms late)",
        ),
        (
            "executor",
            RUN | {"event": "started", "late_ms": 1, "trigger": "event", "attempt": 1, "level": "debug"},
            "▶  reports.dispatch  started  (attempt 2, event, 1 ms late)",
        ),
        (
            "executor",
            RUN | {"event": "completed", "took_ms": 12, "level": "debug"},
            "✓  reports.dispatch  completed in 12 ms",
        ),
        (
            "executor",
            RUN
            | {
                "event": "retrying",
                "took_ms": 1,
                "error": "HTTPError: 500\nx",
                "again_at": 15_000,
                "level": "warning",
            },
            "↻  reports.dispatch  retrying in 15 s: HTTPError: 500",
        ),
        (
            "executor",
            RUN | {"event": "failed", "took_ms": 1, "error": "HTTPError: 500", "level": "error"},
            "✗  reports.dispatch  failed for good: HTTPError: 500  jetcron runs show 01K",
        ),
        (
            "executor",
            RUN | {"event": "waiting", "on": ["a nap", "paid"], "again_at": 7_200_000, "level": "debug"},
            "⏸  reports.dispatch  waits, 2 h at most: a nap, paid",
        ),
        (
            "executor",
            RUN | {"event": "cancelled", "error": "StartTimeout: late", "level": "warning"},
            "⊘  reports.dispatch  cancelled: StartTimeout: late",
        ),
        (
            "executor",
            RUN | {"event": "cancelled", "level": "info"},
            "⊘  reports.dispatch  stopped, for it was cancelled",
        ),
        (
            "event-router",
            {"event": "cancelled", "name": "order.cancelled", "function": "a.f", "level": "debug"},
            "⊘  a.f  cancelled by order.cancelled",
        ),
        (
            "event-router",
            {"event": "met", "name": "order.paid", "function": "a.f", "level": "debug"},
            "✉  order.paid  → a.f, which waits for it",
        ),
        (
            "event-router",
            {"event": "routed", "name": "order.paid", "functions": (), "level": "debug"},
            "✉  order.paid  starts no function",
        ),
        (
            "event-router",
            {
                "event": "routed",
                "name": "order.created",
                "id": "1",
                "functions": ("a.f", "a.g"),
                "level": "debug",
            },
            "✉  order.created  → a.f, a.g",
        ),
        ("function", RUN | {"event": "hello", "n": 3, "level": "info"}, "·  reports.dispatch  hello  n=3"),
        (
            "bus",
            {"event": "disconnected", "url": "x y", "level": "warning"},
            '!  bus  disconnected  url="x y"',
        ),
        ("bus", {"event": "nats error", "level": "debug"}, None),
        ("process", {"event": "started", "level": "info"}, None),
        (
            "event-router",
            {"event": "routed", "name": "jetcron.function.failed", "functions": (), "level": "debug"},
            None,
        ),
    ],
)
def test_live_lines(logger: str, event: dict[str, object], line: str | None) -> None:
    live = Live(Paint(False), "info", lambda: 0)
    given = {"logger": f"jetcron.{logger}", "timestamp": STAMP} | event
    if line is None:
        with pytest.raises(structlog.DropEvent):
            live(None, "", given)
        return
    time, _, rest = live(None, "", given).partition("  ")
    assert time.endswith(":00.003")
    assert rest == line


def test_a_handler_of_failures_is_shown_with_what_starts_it() -> None:
    app = App("shop")

    async def tell(ctx: Context) -> None: ...

    @app.function(on="order.placed", on_failure=tell)
    async def fulfil(ctx: Context) -> None: ...

    lines = list(app_lines(Loaded(app, "shop:app", Path()), 0, Paint(False)))
    assert [line.split("  ")[-1].strip() for line in lines[1:3]] == [
        "on order.placed",
        "when shop.fulfil has failed",
    ]


def test_a_failure_shows_its_traceback() -> None:
    live = Live(Paint(False), "info", lambda: 0)
    event = RUN | {
        "logger": "jetcron.executor",
        "event": "failed",
        "error": "ValueError: x",
        "level": "error",
        "timestamp": STAMP,
        "exception": "Traceback (most recent call last):\n  File x\nValueError: x\n",
    }
    lines = live(None, "", event).splitlines()
    assert len(lines) == 4
    assert lines[1].strip() == "Traceback (most recent call last):"


def test_errors_are_one_tree() -> None:
    assert issubclass(AppNotFound, ConfigurationError)
    assert issubclass(ImportFailed, ConfigurationError)
