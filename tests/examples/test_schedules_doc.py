"""docs/schedules.md: its program runs, its file applies, its figures and tables are those of the code."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from jetcron import App, Client
from jetcron.cli.schedule_reading import read
from jetcron.definitions import FIELDS, MAX_PAYLOAD, MAX_TAGS
from jetcron_protocol.messages import ScheduleState
from jetcron_protocol.subjects import MAX_ID
from tests.examples.documents import ROOT, blocks
from tests.examples.typing_along import dev, shell
from tests.support.nats_server import NatsServer
from tests.support.stack import FAST, Stack, until

DOCUMENT = ROOT / "docs" / "schedules.md"
CALLING = """
import asyncio

async def main():
    async with Client() as client:
        await one_each(client, [1, 2])

asyncio.run(main())
"""


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


async def test_the_page_works_word_for_word_from_an_empty_folder_on(tmp_path: Path) -> None:
    """Every block is done in its order: what it says, is typed; a program is run, a file is written."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    page = blocks(DOCUMENT)
    module, start, program, run, many, file, apply, verbs = page
    assert [block.language for block in page] == [
        *("python", "bash", "python", "bash", "python", "yaml", "bash", "bash")
    ], "a block more is one to do here"
    (tmp_path / "teams.py").write_text(module.text)
    (command,) = start.commands
    async with dev(tmp_path, command):
        (tmp_path / "first.py").write_text(program.text)
        printed = (await shell(tmp_path, *run.commands)).splitlines()
        assert re.match(r"\d+ 20\d\d-", printed[0])
        assert printed[1].startswith("team-7 active 20")
        assert len(printed) == 3
        (tmp_path / "many.py").write_text(f"{many.text}\n{CALLING}")
        assert await shell(tmp_path, "python many.py") == "2 more\n"
        (tmp_path / "schedules.yaml").write_text(file.text)
        said = await shell(tmp_path, *apply.commands)
        assert "+ team-8" in said
        assert {line for line in said.splitlines() if line.startswith("- ")} == {
            *("- pulse", "- reminder-9", "- team-1", "- team-2")
        }
        said = await shell(tmp_path, *verbs.commands[:-1])
        assert '"id": "team-9"' in said, "it is due within a week"
        assert re.search(r"^cron +0 9 \* \* MON$", said, re.M)

        async def four_mondays() -> bool:
            """Those of January 2025; a run is listed once an executor has taken it."""
            (list_,) = [verb for verb in verbs.commands if verb.startswith("jetcron runs list")]
            return len(re.findall(r"teams\.report +completed +cron ", await shell(tmp_path, list_))) == 4

        await until(four_mondays)
        await shell(tmp_path, verbs.commands[-1])
        left = await shell(tmp_path, "jetcron schedules list")
        assert [line.split()[0] for line in left.splitlines()] == ["SCHEDULE", "team-7", "team-8"]


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
