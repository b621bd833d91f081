"""Files of schedules as `jetcron schedules apply` reads them: what is no such file is told by its place."""

import json
from pathlib import Path

import pytest

from jetcron.cli.schedule_reading import read
from jetcron.errors import ConfigurationError


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, end: str) -> None:
    schedules = [{"id": "a", "payload": "one\u2028two\u2029three\x85four"}, {"id": "b"}]
    text = end.join([*(json.dumps(one, ensure_ascii=False) for one in schedules), "", ""])
    assert read(written(tmp_path, "s.jsonl", text)) == schedules


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as told:
        read(written(tmp_path, "s.jsonl", '{"id": "a"}\n{\nnone\n\n{"every": 1, "every": 2}\n'))
    first, *rest = str(told.value).split("\n")
    assert first.endswith("s.jsonl is no file of JSON Lines:")
    assert [line.split(":")[0] for line in rest] == ["  line 2", "  line 3", "  line 5"]
    assert "the key 'every' is given twice" in rest[-1]
    with pytest.raises(ConfigurationError, match=r"line 20: .*\n  and 5 lines more$"):
        read(written(tmp_path, "s.jsonl", "{\n" * 25))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"it is empty; allowed is a list of schedules, or one under 'schedules:'"),
        ("# nothing\n", "it is empty"),
        ("schedules:\n", r"there is nothing under 'schedules:'; allowed is a list of schedules"),
        ("schedules: {id: a}\n", "under 'schedules:' is a map; allowed is a list of schedules"),
        ("schedule:\n- id: a\n", r"it is a map with the key 'schedule'; did you mean 'schedules:'\?"),
        ("id: a\nevery: 5\n", "it is a map with the keys 'id' and 'every'; allowed is a list of schedules"),
        ("schedules: []\nversion: 1\n", "a map with the keys 'schedules' and 'version'"),
        ("just text\n", "it is a text; allowed is a list of schedules"),
        ("- id: a\n  every: 5\n  every: 6\n", r"line 3: the key 'every' is given twice, first on line 2"),
        ("- id: a\n  payload:\n    x: 1\n    x: 2\n", "line 4: the key 'x' is given twice, first on line 3"),
    ],
)
def test_yaml_that_holds_no_schedules_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read(written(tmp_path, "s.yaml", text))


def test_every_key_that_is_given_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)line 2: the key 'id'.*line 4: the key 'every'"):
        read(written(tmp_path, "s.yaml", "- id: a\n  id: b\n- every: 1\n  every: 2\n"))


def test_what_is_merged_may_be_overridden(tmp_path: Path) -> None:
    text = "- &a {id: a, every: 5}\n- &b {<<: *a, id: b}\n- {<<: *b, id: c, every: 6}\n"
    assert read(written(tmp_path, "s.yaml", text)) == [
        {"id": "a", "every": 5},
        {"id": "b", "every": 5},
        {"id": "c", "every": 6},
    ]
