"""docs/schedules.md: its program runs, its file applies, its figures and tables are those of the code."""

import asyncio
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from jetcron import App, Client
from jetcron.cli.schedule_reading import read
from jetcron.definitions import FIELDS, MAX_PAYLOAD, MAX_TAGS
from jetcron_protocol.messages import ScheduleState
from jetcron_protocol.subjects import MAX_ID
from tests.examples.documents import ROOT, blocks
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack

DOCUMENT = ROOT / "docs" / "schedules.md"


def app() -> App:
    scope: dict[str, Any] = {"__name__": "teams"}
    exec(compile(blocks(DOCUMENT, "python")[0].text, "teams", "exec"), scope)
    made = scope["app"]
    assert isinstance(made, App)
    return made


async def test_the_programs_and_the_file_do_what_is_said(
    shared_nats: NatsServer, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NATS_URL", shared_nats.url)
    monkeypatch.setenv("JETCRON_NAMESPACE", namespace)
    for name, value in FAST.items():
        monkeypatch.setenv(f"JETCRON_{name.upper()}", str(value))
    _, program, many = blocks(DOCUMENT, "python")
    async with Stack(shared_nats, namespace) as stack:
        await stack.start("cron-sync")
        await stack.register(app())
        await stack.execute(app())
        await asyncio.to_thread(exec, compile(program.text, "program", "exec"), {"__name__": "program"})
        (ran,) = await stack.journal.wait("completed")
        assert ran.entry.result == "a report for team 7"
        scope: dict[str, Any] = {}
        exec(compile(many.text, "many", "exec"), scope)
        async with Client(stack.settings) as client:
            states = {one.id: one.state for one in (await client.schedules.list()).schedules}
            assert states == {"team-7": "active", "reminder-9": "active", "pulse": "paused"}
            await scope["one_each"](client, [21, 22])
            (block,) = blocks(DOCUMENT, "yaml")
            file = tmp_path / "schedules.yaml"
            file.write_text(block.text)
            plan = await client.schedules.plan(read(str(file)), prune=True)
            assert ([one.id for one in plan.create], [one.part.id for one in plan.update]) == (
                ["team-8"],
                ["team-7"],
            )
            assert sorted(one.id for one in plan.delete) == ["pulse", "reminder-9", "team-21", "team-22"]
            await client.schedules.apply(plan)
            assert len((await client.schedules.list()).schedules) == 2


def test_every_field_and_state_is_in_the_tables() -> None:
    text = DOCUMENT.read_text()
    firsts = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    said = {name for cell in firsts for name in re.findall(r"`(\w+)`", cell)}
    assert said == {"id", *FIELDS, *get_args(ScheduleState)}


def test_limits_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert f"1 to {MAX_ID} printable characters" in text
    assert f"at most {MAX_PAYLOAD // 1024} KiB" in text
    assert f"at most {MAX_TAGS}, for listings" in text
