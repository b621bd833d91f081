"""`jetcron schedules` against a real server: what the verbs do, print, and refuse."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Client, ledger
from jetcron.clock import from_ms
from jetcron.registration import order
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Function, Gap, Run, SyncCommand
from tests.support.command_line import acall, running
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, PATIENCE, Stack


@pytest_asyncio.fixture
async def stack(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Stack]:
    """A namespace that verbs find by the environment, with cron-sync and a function."""
    for variable in [name for name in os.environ if name.startswith(("JETCRON_", "NATS_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    async with Stack(shared_nats, namespace) as stack:
        await stack.start("cron-sync")
        command = SyncCommand(
            id="1", command="register", app="reports", functions=[Function(id="reports.send")], hash="1"
        )
        await order(stack.bus, command, wait=PATIENCE)
        yield stack


async def ok(*arguments: str, **more: Any) -> Any:
    """What a verb prints on stdout, as JSON where it is that."""
    result = await acall("schedules", *arguments, **more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


async def refused(code: int, *arguments: str, **more: Any) -> str:
    result = await acall("schedules", *arguments, **more)
    assert result.exit_code == code, result.output
    return str(result.output)


async def test_create_show_update_and_the_states(stack: Stack) -> None:
    (made,) = await ok(
        "create", "team-7", "reports.send", "--cron", "0 9 * * MON", "--timezone", "Asia/Tokyo",
        "--payload", '{"team": 7}', "--tag", "weekly", "--tag", "paid", "--jitter", "5m", "--json",
    )  # fmt: skip
    shown = await ok("show", "team-7", "--json")
    assert shown["revision"] == made["revision"]
    assert (shown["payload"], shown["tags"], shown["jitter"]) == ({"team": 7}, ["paid", "weekly"], 300)
    assert shown["by"].endswith(os.uname().nodename)
    (tick,) = shown["ticks"]
    assert (tick["state"], tick["at"], tick["revision"]) == ("held", made["next"], made["revision"])
    assert len(shown["upcoming"]) == 10
    assert shown["upcoming"][0]["local"].endswith("T09:00:00+09:00")
    assert shown["upcoming"][0]["utc"] == made["next"]
    text = await ok("show", "team-7")
    assert re.search(r"NEXT, Asia/Tokyo +UTC", text)
    assert "09:00:00 JST" in text
    (changed,) = await ok(
        "update", "team-7", "--every", "1h", "--clear", "jitter", "--clear", "tags", "--json"
    )
    shown = await ok("show", "team-7", "--json")
    assert (shown["every"], "cron" in shown, "jitter" in shown, shown["tags"]) == (3_600, False, False, [])
    said = await refused(1, "update", "team-7", "--max-runs", "3", "--if-revision", str(made["revision"]))
    assert f"if_revision={made['revision']}, and its revision is {changed['revision']}" in said
    for verb, state in (("pause", "paused"), ("unpause", "active"), ("archive", "archived")):
        await ok(verb, "team-7")
        assert (await ok("show", "team-7", "--json"))["state"] == state
    await ok("delete", "team-7")
    assert "there is no schedule 'team-7'" in await refused(1, "show", "team-7")
    assert "there is no schedule 'team-7'" in await refused(1, "pause", "team-7")


async def test_what_an_order_came_to_is_said_as_it_is(stack: Stack) -> None:
    async def said(*arguments: str) -> str:
        result = await acall("schedules", *arguments)
        assert result.exit_code == 0, result.output
        return str(result.stderr.splitlines()[-1])

    create = ("create", "x", "reports.send", "--every", "1h")
    assert re.match(r"x created \(revision \d+, next ", await said(*create))
    assert re.match(r"x stands unchanged \(revision \d+, next ", await said(*create))
    assert (await ok(*create, "--json"))[0]["changed"] is False
    assert re.match(r"x updated \(revision \d+, next ", await said("update", "x", "--every", "2h"))
    assert re.match(r"x stands unchanged \(revision \d+, next ", await said("update", "x", "--every", "2h"))
    assert (await ok("pause", "x", "--json"))[0]["changed"] is True
    assert re.match(r"x stands unchanged \(revision \d+\)", await said("pause", "x"))
    for verb, what in ((create, "created"), (("unpause", "x"), "unpaused"), (("delete", "x"), "deleted")):
        assert await said(*verb, "--no-wait") == f"x is ordered to be {what} (nobody was waited for)"
    assert (await ok("delete", "x", "--no-wait", "--json"))[0]["changed"] is None


async def test_every_fault_is_told(stack: Stack) -> None:
    said = await refused(
        1, "create", "x", "reports.absent", "--cron", "61 * * * *", "--catch-up-most", "5", "--end", "soon"
    )
    for text in ("reports.absent", "61", "catch_up_most=5", "end='soon'"):
        assert text in said
    wrong = [
        "--cron", "61 * * * *", "--timezone", "Mars", "--dst", "up", "--jitter", "2d", "--catch-up", "some",
        "--catch-up-most", "many", "--overlap", "never", "--max-runs", "abc", "--tag", "", "--payload", "{",
    ]  # fmt: skip
    named = [
        "cron='61 * * * *'", "timezone='Mars'", "dst='up'", "jitter='2d'", "catch_up='some'",
        "catch_up_most='many'", "overlap='never'", "max_runs='abc'", "tags: ''", "payload: this is not JSON",
    ]  # fmt: skip
    await ok("create", "stands", "reports.send", "--every", "1h")
    for verb in (("create", "x", "reports.send"), ("update", "stands")):
        said = await refused(1, *verb, *wrong)
        assert [name for name in named if name not in said] == []
        assert len(said.splitlines()) == len(named)
        assert "Value error" not in said
    assert "max_runs=0" in await refused(1, "create", "x", "reports.send", "--every", "5m", "--max-runs", "0")
    assert "max_runs=-1" in await refused(1, "update", "stands", "--max-runs", "-1")
    assert "its id is empty" in await refused(1, "create", "", "reports.send", "--every", "5m")
    assert await stack.dead() == []
    assert "nothing is to change" in await refused(2, "update", "x")
    assert "given too" in await refused(2, "update", "x", "--end", "2031-01-01T00:00:00Z", "--clear", "end")
    assert "not JSON" in await refused(1, "create", "x", "reports.send", "--every", "5m", "--payload", "{")


async def test_trigger_and_backfill(stack: Stack) -> None:
    await ok("create", "h", "reports.send", "--every", "1h", "--payload", "5", "--no-wait")
    await stack.settled(stack.names.work, stack.names.cron_sync)
    run = (await ok("trigger", "h")).strip()
    told = await ok("trigger", "h", "--json")
    assert told == {"run": told["run"], "function": "reports.send", "schedule": "h"}
    now = from_ms(stack.clock.now())
    hours = now.replace(minute=0, second=0, microsecond=0)
    since = from_ms(int(hours.timestamp() * 1000) - 3 * 3_600_000).isoformat()
    runs = await ok("backfill", "h", since, now.isoformat(), "--json")
    assert len(runs) == 4
    stored = [
        decode(Run, message.payload)
        for message in await stack.stored(stack.names.work, f"{stack.names.namespace}.run.>")
    ]
    assert [one.run for one in stored] == [run, told["run"], *runs]
    assert {(one.payload, one.schedule) for one in stored} == {(5, "h")}
    assert [one.trigger for one in stored] == [*["manual"] * 2, *["cron"] * 4]
    assert "up to now" in await refused(1, "backfill", "h", since, "2999-01-01T00:00:00Z")
    await ok("create", "s", "reports.send", "--every", "1s")
    said = await refused(1, "backfill", "s", "2020-01-01T00:00:00Z", "2020-01-02T12:00:00Z")
    assert "129,601 occurrences" in said
    assert "allowed are 100,000 at one time; do it in parts" in said


async def test_pages_of_a_listing(stack: Stack) -> None:
    async with Client(stack.settings) as client:
        await client.schedules.create_many(
            [
                {
                    "id": f"s.{n}",
                    "function": "reports.send",
                    "at": from_ms(stack.clock.now() + 60_000 * (n + 1)),
                }
                for n in range(5)
            ]
        )
        await client.schedules.pause("s.1")
    first = await acall("schedules", "list", "-n", "2")
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["SCHEDULE", "s.0", "s.2"]
    place = re.search(r"--after '(\S+)'", first.stderr)
    assert place is not None
    rest = await ok("list", "--after", place[1], "--json")
    assert [(one["id"], one["state"]) for one in rest["schedules"]] == [
        ("s.3", "active"),
        ("s.4", "active"),
        ("s.1", "paused"),
    ]
    assert rest["after"] is None
    soon = await ok("list", "--within", "90s", "--json")
    assert [one["id"] for one in soon["schedules"]] == ["s.0"]
    assert "--within" in await refused(2, "list", "--within", "soon")


FILE = """
schedules:
  - id: team-1
    function: reports.send
    cron: "0 9 * * MON"
    timezone: Europe/Prague
    payload: {team: 1, since: 2030-01-01}
  - id: team-2
    function: reports.send
    every: 90s
    start: 2030-01-01T00:00:00Z
    tags: [a, b]
"""


async def test_apply_shows_what_changes_and_then_there_is_nothing_left(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text(FILE)
    text = await ok("apply", str(file), "--dry-run")
    created = [line for line in text.splitlines() if line.startswith("+")]
    assert created == [
        "+ team-1  function=reports.send  cron=0 9 * * MON  timezone=Europe/Prague  "
        'payload={"team": 1, "since": "2030-01-01"}',
        "+ team-2  function=reports.send  every=90 s  start=2030-01-01T00:00:00.000Z  tags=a, b",
    ]
    assert "2 to create, 0 to update, 0 to delete, 0 unchanged" in text
    assert (await ok("list", "--json"))["schedules"] == []
    assert "--yes applies it" in await refused(1, "apply", str(file))
    await ok("apply", str(file), "--yes")
    assert (await ok("show", "team-1", "--json"))["payload"] == {"team": 1, "since": "2030-01-01"}
    assert "0 to create, 0 to update, 0 to delete, 2 unchanged" in await ok("apply", str(file))

    lines = tmp_path / "schedules.jsonl"
    changed = {"id": "team-2", "function": "reports.send", "every": 60, "start": "2030-01-01T00:00:00Z"}
    lines.write_text(f"{json.dumps(changed)}\n\n")
    plan = await ok("apply", str(lines), "--prune", "--dry-run", "--json")
    assert plan == {
        "create": [],
        "update": [{"id": "team-2", "fields": {"every": [90.0, 60.0], "tags": [["a", "b"], []]}}],
        "delete": ["team-1"],
        "unchanged": 0,
    }
    text = await ok("apply", str(lines), "--prune", "--yes")
    assert "every: 90 s → 60 s" in text
    assert "tags: a, b → none" in text
    assert "- team-1" in text
    assert [one["id"] for one in (await ok("list", "--json"))["schedules"]] == ["team-2"]
    text = await ok("apply", "-", "--yes", input=json.dumps(changed | {"id": "team-3"}))
    assert "+ team-3" in text


async def test_apply_shows_what_is_left_out_as_what_it_means(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("- {id: a, function: reports.send, cron: '0 9 * * *'}\n")
    result = await acall("schedules", "apply", str(file), "--yes")
    assert "1 schedule is applied, 0 stood already" in result.stderr
    file.write_text(
        "- {id: a, function: reports.send, cron: '0 9 * * *', timezone: Europe/Prague, catch_up: all, "
        "catch_up_within: 1h, catch_up_most: 5, jitter: 90s, overlap: skip, dst: both, executes: other, "
        "end: 2131-01-01T00:00:00Z, max_runs: 7}\n"
        "- {id: b, function: reports.send, at: 2131-01-01T00:00:00Z, payload: [1]}\n"
    )
    text = await ok("apply", str(file), "--dry-run")
    assert [line.strip() for line in text.splitlines()] == [
        "+ b  function=reports.send  at=2131-01-01T00:00:00.000Z  payload=[1]",
        "~ a",
        "timezone: UTC → Europe/Prague",
        "dst: default → both",
        "jitter: none → 90 s",
        "catch_up: latest → all",
        "catch_up_within: none → 1 hour",
        "catch_up_most: none → 5",
        "overlap: allow → skip",
        "end: none → 2131-01-01T00:00:00.000Z",
        "max_runs: none → 7",
        "executes: jetcron → other",
        "1 to create, 1 to update, 0 to delete, 0 unchanged",
    ]
    plan = await ok("apply", str(file), "--dry-run", "--json")
    assert plan["create"] == [
        {"id": "b", "function": "reports.send", "at": "2131-01-01T00:00:00.000Z", "payload": [1]}
    ]
    fields = plan["update"][0]["fields"]
    assert fields["timezone"] == ["UTC", "Europe/Prague"]
    assert (fields["jitter"], fields["catch_up_within"]) == ([None, 90.0], [None, 3_600.0])
    assert fields["end"] == [None, "2131-01-01T00:00:00.000Z"]


async def test_an_empty_file_prunes_nothing_and_says_so(stack: Stack, tmp_path: Path) -> None:
    await ok("create", "a", "reports.send", "--every", "1h")
    (tmp_path / "s.yaml").write_text("schedules: []\n")
    result = await acall("schedules", "apply", "s.yaml", "--prune", "--yes")
    assert result.exit_code == 0
    assert "names no function whose schedules --prune could delete: nothing is pruned" in result.stderr
    assert [one["id"] for one in (await ok("list", "--json"))["schedules"]] == ["a"]


async def test_apply_says_that_cron_sync_is_quiet_and_where_it_was_interrupted(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "s.jsonl").write_text(
        "".join(
            json.dumps({"id": f"s-{n}", "function": "reports.send", "every": 3_600}) + "\n"
            for n in range(1_300)
        )
    )
    for actor in stack.running:
        await actor.stop()
    arguments = ["schedules", "apply", "s.jsonl", "--yes"]
    environment = {"NATS_URL": stack.settings.nats_url, "JETCRON_NAMESPACE": stack.settings.namespace}
    async with running(*arguments, cwd=tmp_path, **environment) as command:
        place = await command.sees(r"not answered within 5 s; is 'jetcron cron-sync' running\?")
        command.signal(signal.SIGINT)
        assert await command.ends() == 130
    assert sum("not answered" in line for line in command.lines) == 1
    assert "interrupted: 0 of 1,300 schedules are applied" in command.lines[place]
    assert "the same again goes on" in command.lines[place]


async def test_a_file_that_cannot_be_applied_names_everything_wrong_in_it(
    stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        """
- {id: a, function: reports.send, every: 0.2, colour: red}
- {id: b, function: reports.absent, at: 2030-01-01T09:00:00}
- {id: a, function: reports.send, every: 5}
- just text
"""
    )
    said = await refused(1, "apply", str(file), "--yes")
    for text in ("every=0.2", "'colour'", "reports.absent", "at='2030-01-01T09:00:00'", "twice", "'#4'"):
        assert text in said, text
    for name, content, told in (
        ("no.yaml", "a: [", "not YAML"),
        ("no.jsonl", '{"id": "a"}\n{', "line 2"),
    ):
        (tmp_path / name).write_text(content)
        assert told in await refused(1, "apply", str(tmp_path / name))
    assert "cannot be read" in await refused(1, "apply", str(tmp_path / "absent.yaml"))


async def test_load_shows_the_herd(stack: Stack) -> None:
    async with Client(stack.settings) as client:
        await client.schedules.create_many(
            [{"id": f"nine-{n}", "function": "reports.send", "cron": "0 9 * * *"} for n in range(12)]
            + [{"id": "hourly", "function": "reports.send", "every": 3_600}]
            + [{"id": "off", "function": "reports.send", "every": 60}]
        )
        await client.schedules.pause("off")
    found = await ok("load", "--json")
    assert (found["schedules"], found["total"]) == (13, 36)
    counts = {one["minute"][11:16]: one["fires"] for one in found["minutes"]}
    assert counts["09:00"] == 13
    assert counts["10:00"] == 1
    text = await ok("load", "--timezone", "Asia/Tokyo")
    assert "13 active schedules, 36 times" in text
    assert re.search(r"18:00 JST\s+13 at most in one minute", text)
    assert re.search(r"18:00 JST\s*█", text)
    assert "Mars" in await refused(2, "load", "--timezone", "Mars")


async def test_durations_are_shown_with_their_units(stack: Stack) -> None:
    await ok(
        "create", "a", "reports.send", "--every", "10m", "--jitter", "5s", "--catch-up", "all",
        "--catch-up-within", "1h30m",
    )  # fmt: skip
    text = await ok("show", "a")
    for name, value in (("every", "10 min"), ("jitter", "5 s"), ("catch_up_within", "1 h 30 min")):
        assert re.search(rf"^{name} +{value}$", text, re.M), text
    plain = await ok("show", "a", "--json")
    assert (plain["every"], plain["jitter"], plain["catch_up_within"]) == (600, 5, 5_400), "seconds, as given"


async def test_a_listing_of_what_there_is_not_says_so(stack: Stack) -> None:
    async def said(*arguments: str) -> str:
        result = await acall(*arguments)
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        return str(result.stderr)

    assert "there are no schedules; jetcron schedules create makes one" in await said("schedules", "list")
    assert "no schedules are so" in await said("schedules", "list", "--app", "reports", "--tag", "weekly")
    assert "there is no app 'nosuch'" in await said("schedules", "list", "--app", "nosuch")
    for verb in (("schedules", "list"), ("runs", "gaps"), ("runs", "list")):
        text = await said(*verb, "--function", "reports.nosuch")
        assert "there is no function 'reports.nosuch'; jetcron functions list shows them" in text
    assert "every occurrence ran" in await said("runs", "gaps", "--function", "reports.send")
    assert "no run is remembered" in await said("runs", "list", "--function", "reports.send")


async def test_gaps_for_programs_are_as_the_rest(stack: Stack) -> None:
    gap = Gap(schedule="a", start=0, to=60_000, count=2, reason="catch_up")
    await ledger.record(stack.bus, gap, "reports.send")
    result = await acall("runs", "gaps", "--json")
    assert json.loads(result.stdout) == [
        {
            "function": "reports.send",
            "schedule": "a",
            "start": "1970-01-01T00:00:00.000Z",
            "to": "1970-01-01T00:01:00.000Z",
            "count": 2,
            "reason": "catch_up",
            "why": "missed, and catch_up left it out",
        }
    ]
