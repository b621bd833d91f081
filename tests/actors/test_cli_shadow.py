"""`jetcron shadow` beside an old scheduler that reports its firings, by NATS, by HTTP, by the command line."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import pytest_asyncio
import yaml

from jetcron import App, Client, Context
from jetcron.bus import Outgoing
from tests.support.command_line import acall, running
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack

SECOND = timedelta(seconds=1)


@pytest_asyncio.fixture
async def stack(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Stack]:
    """A namespace that verbs find by the environment, and an empty folder to work in."""
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    async with Stack(shared_nats, namespace) as stack:
        yield stack


def environment(stack: Stack) -> dict[str, str]:
    return {"NATS_URL": stack.settings.nats_url, "JETCRON_NAMESPACE": stack.settings.namespace}


async def fired(stack: Stack, **report: Any) -> None:
    """Report as any NATS client would: a bare map of JSON."""
    await stack.bus.store(Outgoing(stack.names.event("shadow.fired"), json.dumps(report).encode()))


def write(*schedules: dict[str, Any]) -> None:
    Path("s.yaml").write_text(yaml.safe_dump(list(schedules)))


async def test_a_file_with_faults_is_refused(stack: Stack) -> None:
    write({"id": "a", "function": "app.f", "cron": "0 0 31 2 *"}, {"id": "b", "function": "app.f"})
    result = await acall("shadow", "s.yaml", "--for", "1h")
    assert result.exit_code == 1
    assert "never fires" in result.stderr
    assert "exactly one of cron, every and at" in result.stderr


def iso(at: datetime) -> str:
    return at.isoformat()


async def test_what_was_reported_is_compared_afterwards(stack: Stack) -> None:
    write({"id": "a", "function": "app.f", "every": 10}, {"id": "b", "function": "app.g", "every": 10})
    now = int(datetime.now(UTC).timestamp())
    start = datetime.fromtimestamp(now // 10 * 10 - 40, UTC)
    for n in range(4):
        await fired(stack, schedule="a", at=iso(start + n * 10 * SECOND + SECOND / 10))
    for n in (0, 1, 3):
        await fired(stack, function="app.g", at=(start + n * 10 * SECOND).timestamp())
    await fired(stack, schedule="c", at=iso(start + SECOND))
    between = ["--since", iso(start), "--until", iso(start + 40 * SECOND), "--tolerance", "1s"]
    result = await acall("shadow", "s.yaml", *between, "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert (found["occurrences"], found["in_time"], found["unread"]) == (8, 7, [])
    assert [(one["kind"], one["schedule"]) for one in found["differences"]] == [
        ("extra", "c"),
        ("missing", "b"),
    ]
    one = await acall("shadow", "s.yaml", *between, "--function", "app.f")
    assert one.exit_code == 1
    assert "4 occurrences, 4 reported in time; 0 missing, 0 late, 4 extra" in one.stderr


async def test_a_time_is_watched_and_nothing_differs(stack: Stack, tmp_path: Path) -> None:
    write({"id": "a", "function": "app.f", "every": 2}, {"id": "b", "function": "app.f", "every": 2})
    arguments = ["shadow", "s.yaml", "--for", "4s", "--tolerance", "900ms", "--http", "0"]
    async with running(*arguments, cwd=tmp_path, **environment(stack)) as command:
        await command.sees(r"comparing 2 schedules for 4 s; report each firing: curl -d schedule=ID http")
        where = re.search(r"http://[0-9.:]+/", command.text)
        assert where is not None
        # The old scheduler of this test knows what is to come.
        now = int(datetime.now(UTC).timestamp())
        for at in range(now // 2 * 2 - 6, now + 12, 2):
            assert await post(where[0], f"schedule=a&at={at}") == 204
            await fired(stack, function="app.f", at=at)
        for wrong in ("", "x", "at=7", "[]", '{"schedule": 7}', "schedule=a&at=noon"):
            assert await post(where[0], wrong) == 400
        assert await post(where[0], None) == 405
        assert await command.ends() == 0, command.text
    assert "4 occurrences, 4 reported in time; 0 missing, 0 late, 0 extra" in command.text


async def post(url: str, body: str | None) -> int:
    """The status of a POST, or of a GET if there is no body."""

    def send() -> int:
        try:
            with urlopen(Request(url, None if body is None else body.encode()), timeout=10) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code

    return await asyncio.to_thread(send)


async def test_interrupted_it_compares_what_there_is(stack: Stack, tmp_path: Path) -> None:
    write({"id": "a", "function": "app.f", "every": 1})
    arguments = ["shadow", "s.yaml", "--for", "1h", "--tolerance", "400ms"]
    async with running(*arguments, cwd=tmp_path, **environment(stack)) as command:
        await command.sees("comparing 1 schedule for")
        await asyncio.sleep(3)  # the occurrences of some seconds are to be missing
        command.signal(signal.SIGINT)
        assert await command.ends() == 1
    assert "not one report came" in command.text
    assert re.search(
        r"[1-9]\d* occurrences, 0 reported in time; [1-9]\d* missing, 0 late, 0 extra", command.text
    )


async def test_schedules_of_the_registry_are_compared_paused_too(stack: Stack) -> None:
    app = App("app")

    @app.function()
    async def f(ctx: Context) -> None: ...

    await stack.start("cron-sync")
    await stack.register(app)
    async with Client(stack.settings) as client:
        await client.schedules.create("a", "app.f", every=1, tags=["old"])
        await client.schedules.pause("a")
        await client.schedules.create("b", "app.f", cron="0 0 1 1 *")
    end = datetime.now(UTC).replace(microsecond=0)
    since = ["--since", iso(end - 3 * SECOND), "--until", iso(end), "--tolerance", "400ms"]
    result = await acall("shadow", *since, "--tag", "old")
    assert result.exit_code == 1
    assert "3 occurrences, 0 reported in time; 3 missing" in result.stderr
    assert result.stdout.count("missing") == 3
    nothing = await acall("shadow", *since, "--tag", "older")
    assert nothing.exit_code == 1
    assert "there are no such schedules in the registry" in nothing.stderr


async def test_reports_that_cannot_be_read_are_told_and_fail(stack: Stack) -> None:
    write({"id": "a", "function": "app.f", "cron": "0 0 1 1 *"})
    await fired(stack, task="a")
    result = await acall(
        "shadow", "s.yaml", "--since", iso(datetime.now(UTC) - 5 * SECOND), "--tolerance", "1s"
    )
    assert result.exit_code == 1
    assert "a report that cannot be read: message 1: {'task': 'a'}" in result.stderr
    assert "0 occurrences, 0 reported in time" in result.stderr
    assert "not one report came" not in result.stderr


@pytest.mark.parametrize("junk", ["schedule=a", '"a"', "[1]", "{", "\xff"])
async def test_junk_is_told_with_what_is_allowed(stack: Stack, junk: str) -> None:
    write({"id": "a", "function": "app.f", "cron": "0 0 1 1 *"})
    await stack.bus.store(Outgoing(stack.names.event("shadow.fired"), junk.encode("latin-1")))
    result = await acall("shadow", "s.yaml", "--since", iso(datetime.now(UTC) - 5 * SECOND))
    assert result.exit_code == 1
    assert "a report that cannot be read: message 1: " in result.stderr
    assert "allowed is a map with 'schedule' or 'function'" in result.stderr
    assert "unpack" not in result.stderr


async def test_where_nothing_was_reported_it_says_how_to(stack: Stack) -> None:
    write({"id": "a", "function": "app.f", "every": 60})
    result = await acall("shadow", "s.yaml", "--since", "3m", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["reports"] == 0
    assert "not one report came" in result.stderr
    assert """jetcron send shadow.fired '{"schedule": "a"}'""" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "give --for DURATION, or --since ISO"),
        (["--for", "1h", "--since", "2031-01-01"], 2, "give --for DURATION, or --since ISO"),
        (["--for", "1h", "--until", "2031-01-01"], 2, "--until goes with --since"),
        (["--for", "soon"], 2, "--for: the duration 'soon'"),
        (["--for", "1h", "--tolerance", "x"], 2, "--tolerance: the duration 'x'"),
        (["--for", "1h", "--http", "here"], 2, "allowed is [HOST:]PORT"),
        (["--for", "1h", "--event", "a b"], 1, "a b"),
        (["--for", "1h", "nowhere.yaml"], 1, "nowhere.yaml: cannot be read"),
        (["--since", "2020-01-01"], 1, "reports are kept 7 days"),
        (["--since", "2931-01-01"], 1, "no time has passed"),
        (["--since", "1m", "--until", "2931-01-01"], 2, "--until: 2931-01-01 is to come; allowed are times"),
        (["--for", "1h", "--tolerance", "30s"], 1, "schedule 'a' fires 60 s apart; allowed is under half"),
        (
            ["--since", "1h", "--tolerance", "30s"],
            1,
            "the tolerance is 30 s, and schedule 'a' fires 60 s apart",
        ),
    ],
)
async def test_mistakes_are_told(stack: Stack, arguments: list[str], code: int, said: str) -> None:
    write({"id": "a", "function": "app.f", "every": 60})
    if not any(argument.endswith(".yaml") for argument in arguments):
        arguments = ["s.yaml", *arguments]
    result = await acall("shadow", *arguments)
    assert result.exit_code == code
    assert said in re.sub(r"\s*│\s*\n\s*│\s*", " ", result.stderr)
