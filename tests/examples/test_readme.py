"""Everything in README.md is done as it says: written, started, typed and compared."""

import re
import sys
from pathlib import Path

import pytest

from tests.examples.documents import README, ROOT, Block, blocks
from tests.examples.typing_along import dev, shell

BLOCKS = blocks(README)


def those(language: str, beginning: str = "") -> list[Block]:
    return [block for block in BLOCKS if block.language == language and block.text.startswith(beginning)]


def only(language: str, beginning: str = "") -> Block:
    (block,) = those(language, beginning)
    return block


MAKE = only("bash", "make demo")
INSTALL = only("bash", "make install")
MODULE = only("python", "# reports.py\n")
DEV = only("bash", "jetcron dev")
TYPED = only("bash", "jetcron send")
NEXT = only("console", "$ jetcron next")
PROGRAM = only("python", "import asyncio")
PRINTED = only("text", "a report for board")
PICTURE = only("", "  ")


def test_every_block_is_tried_here() -> None:
    assert {str(block) for block in BLOCKS} == {
        str(block) for block in (MAKE, INSTALL, MODULE, DEV, TYPED, NEXT, PROGRAM, PRINTED, PICTURE)
    }


def test_the_two_commands_are_targets_that_ci_runs() -> None:
    assert [command.split()[0] for command in MAKE.commands] == ["make", "make"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    ci = (ROOT / ".ci" / "run").read_text()
    named = re.findall(r"\bmake (?:\w+=\S+ )*([a-z]+)", "\n".join(block.text for block in BLOCKS))
    assert set(named) == {"demo", "test", "install"}
    for target in named:
        assert target in targets
        assert re.search(rf"^ *step \w+ \d+ make {target}\b", ci, re.M), target


def test_the_demo_takes_the_variable_that_is_named() -> None:
    (seconds,) = re.findall(r"`make demo DEMO_SECONDS=(\d+)`", README.read_text())
    assert f"make demo DEMO_SECONDS={seconds}" in (ROOT / ".ci" / "run").read_text()
    assert "--seconds $(DEMO_SECONDS)" in (ROOT / "Makefile").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader would be: the environment that `make install` makes, and the module that was written."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "reports.py").write_text(MODULE.text)
    return tmp_path


async def test_a_first_function(folder: Path) -> None:
    assert [command for command in INSTALL.commands if not command.startswith("make ")] == [
        "source .venv/bin/activate"
    ]
    (command,) = DEV.commands
    async with dev(folder, command) as printed:
        typed = await shell(folder, *TYPED.commands)
        assert '"asked for 2 reports"\n' in typed
        assert re.search(r"reports\.ask +completed +manual", typed)
        assert re.search(r"reports\.ask +active +0 9 \* \* MON-FRI Europe/Prague", typed)
        assert "nothing is wrong" in typed

        (folder / "program.py").write_text(PROGRAM.text)
        assert await shell(folder, "python program.py") == PRINTED.text

        (export,) = re.findall(r"export NATS_URL=\S+", printed)
        elsewhere = [export, "mkdir elsewhere", "cd elsewhere", "python ../program.py"]
        assert await shell(folder, *elsewhere) == PRINTED.text


async def test_next_prints_what_is_shown(folder: Path) -> None:
    command, *shown = NEXT.text.splitlines()
    printed = await shell(folder, command.removeprefix("$ "))
    assert [line.rstrip() for line in printed.splitlines()] == shown


def test_what_is_not_there_yet_is_not_there() -> None:
    """The sentence that says so must go when it is no longer true."""
    import jetcron

    assert "Not there yet: a dashboard." in README.read_text()
    assert not (Path(jetcron.__file__).parent / "dashboard").exists()
