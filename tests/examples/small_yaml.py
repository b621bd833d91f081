"""As much YAML as compose.yaml uses: nothing else here needs the whole language, nor a dependency for it."""

import json
import re
from typing import Any

Lines = list[tuple[int, str]]


def read_yaml(text: str) -> Any:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    value, rest = block([(len(line) - len(line.lstrip()), line.strip()) for line in lines], {})
    assert not rest, rest
    return value


def block(lines: Lines, anchors: dict[str, Any]) -> tuple[Any, Lines]:
    depth = lines[0][0]
    mapping: dict[str, Any] = {}
    listed: list[Any] = []
    while lines and lines[0][0] == depth:
        text = lines[0][1]
        lines = lines[1:]
        if text.startswith("- "):
            listed.append(scalar(text[2:], anchors))
            continue
        key, _, written = text.partition(":")
        written = written.strip()
        anchor = re.match(r"&(\w+)\s*", written)
        written = written[anchor.end() :] if anchor else written
        if written:
            value = scalar(written, anchors)
        elif lines and lines[0][0] > depth:
            value, lines = block(lines, anchors)
        else:
            value = None
        if anchor:
            anchors[anchor[1]] = value
        if key == "<<":
            mapping = value | mapping
        else:
            mapping[key] = value
    return listed or mapping, lines


def scalar(text: str, anchors: dict[str, Any]) -> Any:
    if text.startswith("*"):
        return anchors[text[1:]]
    if text.startswith("["):
        return json.loads(text) if '"' in text else [part.strip() for part in text[1:-1].split(",")]
    return json.loads(text) if text.startswith('"') else text
