"""Which event a wait is for: equality on dotted paths of the data, as tokens of a subject.

Owns the rule by which a waiting run and the router, which never meet, come to the same subject: the paths a
wait compares have a token, and the values at them a digest. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgpack import packb

from jetcron_protocol.codec import pack, unpack
from jetcron_protocol.ids import digest

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Match:
    """What a wait compares: `paths`, sorted, with the token of the paths and that of the values at them."""

    paths: tuple[str, ...]
    token: str
    values: str


def match_of(match: Mapping[str, Any]) -> Match:
    """The match for values by path; raises `EncodeError` for a value that cannot travel."""
    plain = unpack(pack(dict(match)))
    paths = tuple(sorted(plain))
    return Match(paths, paths_token(paths), _digest([plain[path] for path in paths]))


def paths_token(paths: Sequence[str]) -> str:
    """The token of sorted paths: how many there are, and their digest."""
    return f"{len(paths)}-{digest('paths', *paths, size=6).hex()}"


def values_token(data: Any, paths: Sequence[str]) -> str | None:
    """The token of an event's values at these paths; None when one is absent, so that no wait can match."""
    values = [value_at(data, path) for path in paths]
    return None if any(value is _ABSENT for value in values) else _digest(values)


def value_at(data: Any, path: str, default: Any = _ABSENT) -> Any:
    """The value at a dotted path: keys of maps, indices of lists. A key that holds dots wins over a path."""
    if isinstance(data, Mapping) and path in data:
        return data[path]
    value = data
    for part in path.split("."):
        match value:
            case Mapping() if part in value:
                value = value[part]
            case list() | tuple() if part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            case _:
                return default
    return value


def is_absent(value: Any) -> bool:
    """Whether `value_at` found nothing."""
    return value is _ABSENT


def _digest(values: list[Any]) -> str:
    return digest(packb(_canonical(values), unicode_errors="surrogatepass").hex(), size=12).hex()


def _canonical(value: Any) -> Any:
    """Equal values alike: maps in order of their keys, whole floats as ints; True is not 1, nor is "1"."""
    match value:
        case bool():
            return value
        case float() if value.is_integer() and abs(value) < 2**63:
            return int(value)
        case Mapping():
            return [
                "map",
                sorted(([_canonical(key), _canonical(item)] for key, item in value.items()), key=packb),
            ]
        case list() | tuple():
            return ["list", [_canonical(item) for item in value]]
    return value
