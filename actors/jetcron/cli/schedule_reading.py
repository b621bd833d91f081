"""Files of schedules, YAML or JSON Lines, as `apply` and `shadow` read them.

Owns how such a file is laid out, and that what is wrong with it is told by its place. What is in a schedule is looked
at elsewhere.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from jetcron.errors import ConfigurationError
from jetcron.options import suggestion

LINES = (".jsonl", ".ndjson")
"""How the name of a file of JSON Lines ends; any other is YAML."""
_TOLD = 20
"""Places that are named; the others are counted."""
_KEY = "schedules"
_ALLOWED = f"allowed is a list of schedules, or one under '{_KEY}:'"
_KINDS = {dict: "a map", str: "a text", bool: "true or false", int: "a number", float: "a number"}


def read(file: str) -> list[Any]:
    """The schedules in a file, or in stdin (``-``): a list, one under the key ``schedules``, or one a line.

    Raises `ConfigurationError`.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from None
    if file.endswith(LINES) or (file == "-" and text.lstrip().startswith("{")):
        return _lines(file, text)
    return _listed(file, _yaml(file, text))


def _lines(file: str, text: str) -> list[Any]:
    """One a line. Only a line feed ends one: JSON texts may have in them whatever else Unicode takes for an end."""
    decoder = json.JSONDecoder(object_pairs_hook=_map)
    found: list[Any] = []
    wrong: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(decoder.decode(line))
            except ValueError as error:
                wrong.append(f"line {number}: {error}")
    if wrong:
        raise ConfigurationError(f"{file} is no file of JSON Lines:{_places(wrong)}")
    return found


def _map(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"the key {twice!r} is given twice; allowed is once")
    return found


def _places(wrong: list[str]) -> str:
    more = len(wrong) - _TOLD
    counted = [f"and {more} line{'' if more == 1 else 's'} more"] if more > 0 else []
    return "".join(f"\n  {text}" for text in [*wrong[:_TOLD], *counted])


def _listed(file: str, found: Any) -> list[Any]:
    if isinstance(found, list):
        return found
    if found is None:
        raise ConfigurationError(f"{file}: it is empty; {_ALLOWED}")
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file}: it is {_kind(found)}; {_ALLOWED}")
    if set(found) != {_KEY}:
        keys = [repr(key) for key in found]
        named = " and ".join([", ".join(keys[:-1]), keys[-1]]) if len(keys) > 1 else "".join(keys)
        near = len(keys) == 1 and suggestion(next(iter(found)), [_KEY])
        said = f"the key{'s' if len(keys) > 1 else ''} {named}" if keys else "no keys"
        meant = f"did you mean '{_KEY}:'?" if near else _ALLOWED
        raise ConfigurationError(f"{file}: it is a map with {said}; {meant}")
    schedules = found[_KEY]
    if schedules is None:
        raise ConfigurationError(f"{file}: there is nothing under '{_KEY}:'; allowed is a list of schedules")
    if not isinstance(schedules, list):
        raise ConfigurationError(
            f"{file}: under '{_KEY}:' is {_kind(schedules)}; allowed is a list of schedules"
        )
    return schedules


def _kind(value: object) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML whose times stay text: so what is wrong with one is told as it is written."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _yaml(file: str, text: str) -> Any:
    """What YAML says; keys are looked at before maps are made of them, for the last one of two would win."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            wrong = list(_twice(node))
            if wrong:
                raise ConfigurationError(f"{file} has keys that are given twice:{_places(wrong)}")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: not YAML: {error}") from None


def _twice(root: yaml.Node | None) -> Iterator[str]:
    """The keys that one map has twice, in the order of the file. What is merged into a map is none of its keys."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from _twice_in(node)
            waiting += [value for _, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)


def _twice_in(node: yaml.MappingNode) -> Iterator[str]:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in first:
            yield f"line {line}: the key {key.value!r} is given twice, first on line {first[name]}"
        first.setdefault(name, line)
