"""docs/migrating.md: its programs run, its tables say what the code does."""

import asyncio
import contextlib
import importlib
import json
import os
import pwd
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import pytest_asyncio
from apscheduler.events import EVENT_JOB_SUBMITTED, JobSubmissionEvent
from celery import Celery
from celery.beat import PersistentScheduler
from celery.schedules import crontab

from jetcron import App, Client, Context
from jetcron.cli.schedule_handover import ELSEWHERE
from jetcron.cli.schedule_reading import read
from jetcron.shadow import EVENT, read_report
from tests.examples.documents import ROOT, blocks
from tests.support.command_line import acall
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack, until

DOCUMENT = ROOT / "docs" / "migrating.md"
OPS, REPORTING, LISTENER, ASKING, HANDING_OVER = blocks(DOCUMENT, "python")
CRONTAB = "GREETING=hello\n0 3 * * *  echo $GREETING $(cat)%world\n"

PROJ = """
from celery import Celery

app = Celery("proj", broker="memory://")
app.conf.beat_schedule = {"often": {"task": "proj.send", "schedule": 0.1}}
"""


@pytest_asyncio.fixture
async def stack(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Stack]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    async with Stack(shared_nats, namespace) as stack:
        yield stack


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a block of the document as a module."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def load(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load
    for name in ("ops", "beat"):
        sys.modules.pop(name, None)


@contextlib.contextmanager
def reports() -> Iterator[tuple[str, list[Any]]]:
    """An endpoint that notes what is posted, in the place of `jetcron shadow --http`; its address."""
    heard: list[Any] = []

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        heard.append(json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
        start("204 No Content", [])
        return []

    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def beat(scheduler: type[PersistentScheduler], sent: list[str]) -> Any:
    """A beat of this class, and its entry; what it sends is noted."""
    app = Celery("proj", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {"nightly": {"task": "proj.send", "schedule": crontab(0, 3)}}
    app.send_task = lambda name, *args, **kwargs: sent.append(name)  # type: ignore[method-assign]
    made = scheduler(app, lazy=True, schedule_filename="beat-schedule")
    made.setup_schedule()
    return made, made.schedule["nightly"]


async def test_a_crontab_is_imported_applied_asked_and_handed_over(stack: Stack, module: Any) -> None:
    app = module("ops", OPS.text).app
    assert isinstance(app, App)
    arguments = ["--timezone", "UTC", "--map", "*=ops.shell", "--executes-other", "--out", "s.yaml"]
    assert (await acall("import", "crontab", "-", *arguments, input=CRONTAB)).exit_code == 0
    (schedule,) = read("s.yaml")
    assert (schedule["id"], schedule["executes"]) == ("echo", "other")
    await stack.start("cron-sync")
    await stack.register(app)
    await stack.execute(app)
    assert (await acall("schedules", "apply", "s.yaml", "--yes")).exit_code == 0

    three = datetime.now(UTC).replace(hour=3, minute=0, second=0, microsecond=0) - timedelta(days=1)
    asked = ["schedules", "fired", "echo", "--at", three.isoformat()]
    assert (await acall(*asked, "--token", "me")).exit_code == 0
    assert (await acall(*asked, "--token", "me")).exit_code == 0
    assert (await acall(*asked)).exit_code == ELSEWHERE == 3
    assert (await acall("schedules", "fired", "nothing")).exit_code == 1
    assert (await acall("schedules", "fired", "echo", "--within", "soon")).exit_code == 2
    wide = await acall("schedules", "fired", "echo", "--within", "12h")
    assert wide.exit_code == 1
    assert (
        "--within is 12 h, and schedule 'echo' fires 24 h apart; allowed is under half of that" in wide.stderr
    )
    assert "exits 0 where the command is to run, 3" in DOCUMENT.read_text()

    result = await acall("schedules", "hand-over", "echo", "--yes")
    assert "1 schedule changed hands" in result.stderr
    async with Client(stack.settings) as client:
        assert (await client.schedules.get("echo")).executes == "jetcron"
        run = await client.schedules.trigger("echo")
        assert await run.result(timeout=20) == "hello world\n"


def test_beat_reports_and_sends_all_the_same(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent: list[str] = []
    with reports() as (where, heard):
        made, entry = beat(module("beat", REPORTING.text.replace("127.0.0.1:8125", where)).Reporting, sent)
        made.apply_entry(entry)
    assert heard == [{"schedule": "nightly"}]
    assert read_report(heard[0], 7).schedule == "nightly"
    made.apply_entry(entry)  # nobody listens any more
    assert sent == ["proj.send", "proj.send"]


async def test_the_command_starts_beat_with_the_class_that_reports(tmp_path: Path) -> None:
    (command,) = re.findall(
        r"`(\S*python \S+ celery -A proj beat [^`]+|celery -A proj beat [^`]+)`", DOCUMENT.read_text()
    )
    (tmp_path / "proj.py").write_text(PROJ)
    with reports() as (where, heard):
        (tmp_path / "beat.py").write_text(REPORTING.text.replace("127.0.0.1:8125", where))
        program, *arguments = shlex.split(command)
        beat = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(program)),
            *arguments,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            await until(lambda: heard or beat.returncode is not None, what="beat reports")
        finally:
            with contextlib.suppress(ProcessLookupError):
                beat.kill()
            said, _ = await beat.communicate()
    assert heard[:1] == [{"schedule": "often"}], said.decode()


def test_a_line_of_another_user_is_executed_as_he(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = module("ops", OPS.text)
    ran: list[dict[str, Any]] = []

    def run(command: str, **more: Any) -> Any:
        ran.append({name: more[name] for name in ("user", "group", "extra_groups") if name in more})
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    other = pwd.getpwuid(os.getuid())
    for job in (
        {"command": "x"},
        {"command": "x", "user": "somebody"},
        {"command": "x", "user": other.pw_name},
    ):
        ops.shell(None, job)
    groups = os.getgrouplist(other.pw_name, other.pw_gid)
    assert ran == [{}, {}, {"user": other.pw_name, "group": other.pw_gid, "extra_groups": groups}]
    with pytest.raises(KeyError, match="no-such-user"):
        ops.shell(None, {"command": "x", "user": "no-such-user"})


def test_apscheduler_tells_the_times_it_meant() -> None:
    at = datetime(2031, 3, 1, 2, 30, tzinfo=UTC)
    scope: dict[str, Any] = {}
    with reports() as (where, heard):
        exec(compile(LISTENER.text.replace("127.0.0.1:8125", where), "listener", "exec"), scope)
        scope["report"](JobSubmissionEvent(EVENT_JOB_SUBMITTED, "nightly", "default", [at]))
    (report,) = heard
    assert read_report(report, 0).at == int(at.timestamp() * 1_000)


async def test_beat_sends_what_is_not_jetcrons(stack: Stack, module: Any) -> None:
    app = App("proj")

    @app.function()
    async def send(ctx: Context) -> None: ...

    await stack.start("cron-sync")
    await stack.register(app)
    sent: list[str] = []
    made, entry = beat(module("beat", HANDING_OVER.text).HandingOver, sent)
    scope: dict[str, Any] = {}
    exec(compile(ASKING.text, "asking", "exec"), scope)
    async with Client(stack.settings) as client:
        await client.schedules.create("nightly", "proj.send", every=1, executes="other")
        await asyncio.to_thread(made.apply_entry, entry)
        assert sent == ["proj.send"]
        await client.schedules.hand_over("nightly")

        async def handed() -> bool:
            return not await scope["to_be_executed_here"]("nightly") and bool(
                await stack.bus.subjects(stack.names.work, f"{stack.names.namespace}.run.>")
            )

        await until(handed, what="Jetcron executes it")
        await asyncio.to_thread(made.apply_entry, entry)
        assert sent == ["proj.send"]


def test_what_the_document_names_is_so() -> None:
    text = DOCUMENT.read_text()
    assert f"`{EVENT}`" in text
    assert re.search(rf"jetcron\.event\.{re.escape(EVENT)} ", text)
