"""What the docstrings of examples say to type can be typed; what comes of it is in the tests of each."""

import json
import re
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import typer.main

from jetcron import App
from jetcron.cli import app as cli
from jetcron_protocol.subjects import pattern_matches
from tests.examples.documents import README, ROOT, links
from tests.examples.play import typed

NAMES = sorted(file.stem for file in (ROOT / "examples").glob("*.py"))
EXAMPLES = [module for name in NAMES if hasattr(module := import_module(f"examples.{name}"), "app")]


def named(value: object) -> str:
    return value.__name__ if isinstance(value, ModuleType) else str(value)


def test_every_example_is_listed_in_the_readme() -> None:
    listed = [link for link in links(README) if re.fullmatch(r"examples/\w+\.py", link)]
    assert {f"examples/{module.__name__.partition('.')[2]}.py" for module in EXAMPLES} == set(listed)
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("module", EXAMPLES, ids=named)
def test_commands_are_verbs_with_arguments_that_fit(module: ModuleType) -> None:
    commands = typed(module)
    assert [words[2] for words in commands if words[1] == "dev"] == [f"{module.__name__}:app"]
    for _, verb, *words in commands:
        command: Any = typer.main.get_command(cli)
        while hasattr(command, "commands"):
            command = command.commands[verb]
            if hasattr(command, "commands"):
                verb = words.pop(0)
        command.make_context(verb, words)


@pytest.mark.parametrize("module", EXAMPLES, ids=named)
def test_variables_are_read(module: ModuleType) -> None:
    source = (ROOT / f"{module.__name__.replace('.', '/')}.py").read_text()
    for variable in re.findall(r"^    ([A-Z_]+)=\S+ jetcron dev", module.__doc__ or "", re.M):
        assert f'os.environ.get("{variable}"' in source


@pytest.mark.parametrize("module", EXAMPLES, ids=named)
def test_events_start_functions_that_take_their_data(module: ModuleType) -> None:
    """Or are waited for, with data that is matched."""
    source = (ROOT / f"{module.__name__.replace('.', '/')}.py").read_text()
    app: App = module.app
    for words in typed(module):
        if words[1] != "send":
            continue
        name, data = words[2], json.loads(words[3])
        started = [
            function
            for function in app.functions.values()
            if any(pattern_matches(pattern, name) for pattern in function.on)
        ]
        for function in started:
            assert function.payload is not None
            function.payload.read(data)
        assert started or f'"{name}"' in source.partition('"""')[2].partition('"""')[2]
