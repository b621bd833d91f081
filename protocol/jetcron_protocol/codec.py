"""Bytes to message and back: msgpack on the wire, JSON accepted for events from outside.

Decoding raises `DecodeError` and nothing else; whoever catches it keeps the raw bytes. Encoding raises
`EncodeError`, naming the type that cannot travel. What can be encoded can be decoded.

Reading is lenient where other languages differ (a whole float or a string of digits is an int) and strict
in what it promises: every decoded name is fit for a subject, every time for a datetime, every int for
64 bits.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from itertools import chain
from typing import Any, TypeVar, cast
from uuid import UUID

import msgpack
from pydantic import BaseModel, TypeAdapter, ValidationError

from jetcron_protocol.messages import MAX_TIME, VERSION, Event
from jetcron_protocol.subjects import InvalidName, check_event_name, check_id

M = TypeVar("M")

MAX_BYTES = 64 * 1024 * 1024
"""Nothing longer is encoded or decoded."""
MAX_DEPTH = 200
"""Event data nested deeper is refused: it could be read, but not be packed again inside a run."""


class DecodeError(ValueError):
    """These bytes are not the message they should be; the text says why."""


class VersionError(DecodeError):
    """A newer program wrote these bytes."""


class EncodeError(TypeError):
    """This value cannot travel; the text names the type."""


def plain(value: object) -> Any:
    """What msgpack cannot carry itself, as something it can; `EncodeError` for the rest.

    pydantic models and dataclasses become maps; dates, times, `Decimal` and `UUID` their usual strings;
    a `timedelta` its seconds; an enum its value; tuples lists (as keys of a map they stay tuples). Sets
    have no order and are refused.
    """
    made = _plainer(value)
    # msgpack asks once for a value: what an enum or a root model holds may need this, too.
    return made if made is None or isinstance(made, _CARRIED) else plain(made)


_CARRIED = (bool, int, float, str, bytes, bytearray, memoryview, list, tuple, dict)


def _plainer(value: object) -> Any:
    match value:
        case int():  # msgpack asks here for what it cannot carry itself
            raise EncodeError("an int beyond 64 bits cannot be stored; send it as a string")
        case BaseModel():
            return value.model_dump()
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
        case Enum():
            return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    kind = type(value)
    raise EncodeError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored; use None, bool, int, "
        "float, str, bytes, list, dict, a dataclass, a pydantic model, datetime, Decimal, UUID or an enum"
    )


def pack(value: object) -> bytes:
    """`value` as msgpack; raises `EncodeError`."""
    return _pack(value, plain)


def _pack(value: object, default: Callable[[object], Any]) -> bytes:
    try:
        packed: bytes = msgpack.packb(value, default=default)
    except EncodeError:
        raise
    except Exception as error:  # noqa: BLE001 - `default` reads users' objects, whose properties may raise
        raise EncodeError(f"this value cannot be stored: {str(error) or type(error).__name__}") from None
    if len(packed) > MAX_BYTES:
        raise EncodeError(f"this value takes {len(packed)} bytes; at most {MAX_BYTES} can be stored")
    return packed


def unpack(raw: bytes) -> Any:
    """The value in msgpack bytes; raises `DecodeError`."""
    try:
        return msgpack.unpackb(raw, strict_map_key=False)
    except TypeError:  # unhashable: a tuple was the key of a map
        return _unpack_keyed(raw)
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen kinds for hostile bytes
        raise DecodeError(f"not msgpack: {str(error) or type(error).__name__}") from None


def _unpack_keyed(raw: bytes) -> Any:
    """As `unpack`, several times slower: lists and maps that are keys of maps become tuples."""
    try:
        return msgpack.unpackb(
            raw,
            strict_map_key=False,
            object_pairs_hook=lambda pairs: {_hashable(key): value for key, value in pairs},
        )
    except Exception as error:  # noqa: BLE001 - as above
        raise DecodeError(f"not msgpack: {str(error) or type(error).__name__}") from None


def _hashable(key: Any) -> Any:
    match key:
        case list():
            return tuple(_hashable(item) for item in key)
        case dict():
            return tuple((name, _hashable(value)) for name, value in key.items())
    return key


_names: dict[type, tuple[str, ...]] = {}
_adapters: dict[type, TypeAdapter[Any]] = {}


def _fields(message: Any) -> dict[str, Any]:
    kind = type(message)
    names = _names.get(kind)
    if names is None:
        names = _names[kind] = tuple(f.name for f in dataclasses.fields(kind))
    return {name: value for name in names if (value := getattr(message, name)) is not None}


def _nested(value: object) -> Any:
    """Protocol messages inside messages travel without None fields; all else as `plain` says."""
    if type(value).__module__ == "jetcron_protocol.messages":
        return _fields(value)
    return plain(value)


def encode(message: Any) -> bytes:
    """A message as msgpack, with its version; raises `EncodeError`."""
    return _pack({"v": VERSION, **_fields(message)}, _nested)


def encode_past(entry: bytes, end: int) -> bytes:
    """As `encode` of a `Past`, whose schedule travels as it was stored: `entry` is the schedule's own encoding."""
    return b"\x83" + _PAST + pack(end) + _SCHEDULE + entry  # a map of three


_PAST = pack("v") + pack(VERSION) + pack("end")
_SCHEDULE = pack("schedule")


def decode(kind: type[M], raw: bytes) -> M:
    """The message of type `kind` in `raw`; raises `DecodeError`."""
    name = kind.__name__
    if len(raw) > MAX_BYTES:
        raise DecodeError(f"{name}: {len(raw)} bytes, more than the {MAX_BYTES} that are read")
    body = unpack(raw)
    if not isinstance(body, dict):
        raise DecodeError(f"{name}: a map was expected, not {type(body).__name__}")
    version = body.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DecodeError(f"{name}: no version; 'v' must be a whole number from 1")
    if version > VERSION:
        raise VersionError(
            f"{name}: version {version} is newer than {VERSION}, the newest this program reads; update it"
        )
    adapter = _adapters.get(kind)
    if adapter is None:
        adapter = _adapters[kind] = TypeAdapter(kind)
    try:
        return cast(M, adapter.validator.validate_python(body))
    except ValidationError as error:
        raise DecodeError(f"{name}: {_first(error)}") from None
    except Exception as error:  # noqa: BLE001 - whatever hostile content provokes is one kind of error
        raise DecodeError(f"{name}: {error}") from None


def _first(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    shown = "; ".join(
        f"{'.'.join(str(part)[:80] for part in problem['loc']) or 'body'}: {problem['msg']}"
        for problem in problems[:3]
    )
    return shown + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


EVENT_HEADER = "Jetcron-Event"
"""With the value ``1``: the body is an `Event`; without it: a bare map of data."""
AT_HEADER = "Jetcron-At"
"""A bare event's time, RFC 3339."""
_MSG_ID = "Nats-Msg-Id"


def decode_event(name: str, raw: bytes, headers: dict[str, str], *, sequence: int, stored_at: int) -> Event:
    """The event published on the subject of `name`, by us or by anyone; raises `DecodeError`.

    A bare event takes its id from ``Nats-Msg-Id`` (a leading ``<name>:`` taken off) or else from `sequence`,
    which a redelivery finds again; its time is `stored_at` (epoch ms). Its runs have the stored time when the
    id is the sequence: see `ids.event_run_id`.
    """
    try:
        check_event_name(name)
    except InvalidName as error:
        raise DecodeError(f"Event: {error}") from None
    if headers.get(EVENT_HEADER) == "1":
        event = decode(Event, raw)
        if event.name != name:
            raise DecodeError(
                f"Event: it names itself {event.name[:80]!r} but came on the subject of {name!r}"
            )
        _check_depth(event.data, raw)
    else:
        data = _bare(raw)
        given = headers.get(_MSG_ID, "").removeprefix(f"{name}:")
        at = _at(headers.get(AT_HEADER))
        event = Event(id=given or str(sequence), name=name, data=data, ts=stored_at, at=at)
    try:
        check_id("the event id", event.id)  # it becomes a token and a header: no control character may pass
    except InvalidName as error:
        raise DecodeError(f"Event: {error}") from None
    return event


def _bare(raw: bytes) -> dict[str, Any]:
    """A map from JSON or msgpack. A JSON map begins with ``{``, in msgpack a number: no ambiguity."""
    if len(raw) > MAX_BYTES:
        raise DecodeError(f"Event: {len(raw)} bytes, more than the {MAX_BYTES} that are read")
    if not raw:
        return {}
    if raw.lstrip()[:1] == b"{":
        try:
            data = json.loads(raw)
            msgpack.packb(data)  # what JSON can say and msgpack cannot carry (huge ints) is refused here
        except Exception as error:  # noqa: BLE001 - one kind of error, whatever hostile bytes provoke
            raise DecodeError(f"Event: not JSON: {error}") from None
    else:
        try:
            data = unpack(raw)
        except DecodeError:  # text meant as JSON, most often
            raise DecodeError(f"Event: a JSON or msgpack map was expected, not {raw[:40]!r}") from None
    if not isinstance(data, dict):
        raise DecodeError(f"Event: a JSON or msgpack map was expected, not {type(data).__name__}")
    _check_depth(data, raw)
    return data


_OPENERS = bytes([*b"[{", *range(0x80, 0xA0), *range(0xDC, 0xE0)])
"""Every byte that can open a list or a map, in JSON or msgpack."""
_NESTS = (dict, list, tuple)


def _check_depth(data: object, raw: bytes) -> None:
    if len(raw) - len(raw.translate(None, _OPENERS)) <= MAX_DEPTH:
        return  # too few openers to nest so deep, as nearly always
    level = [data] if isinstance(data, _NESTS) else []
    for _ in range(MAX_DEPTH):
        inner = (chain(item, item.values()) if isinstance(item, dict) else item for item in level)
        level = [child for children in inner for child in children if isinstance(child, _NESTS)]
        if not level:
            return
    raise DecodeError(f"Event: its data is nested more than {MAX_DEPTH} deep")


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MILLISECOND = dt.timedelta(milliseconds=1)


def _at(text: str | None) -> int | None:
    """Epoch milliseconds of an RFC 3339 time; what lies before 1970 is past either way, and becomes 0."""
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise DecodeError(
            f"Event: {AT_HEADER} is {text[:80]!r}; write RFC 3339, such as 2030-01-31T09:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise DecodeError(f"Event: {AT_HEADER} {text[:80]!r} has no zone; end it with Z or +02:00")
    return min(max((moment - _EPOCH) // _MILLISECOND, 0), MAX_TIME)
