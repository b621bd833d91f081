"""Bytes to message and back: msgpack on the wire, JSON accepted for events from outside.

Decoding raises `DecodeError` and nothing else; whoever catches it keeps the raw bytes. Encoding raises
`EncodeError`, naming the type that cannot travel.
"""

import dataclasses
import datetime as dt
import json
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

import msgpack
from pydantic import BaseModel, TypeAdapter, ValidationError

from jetcron_protocol.messages import VERSION, Event
from jetcron_protocol.subjects import InvalidName, check_event_name

M = TypeVar("M")

MAX_BYTES = 64 * 1024 * 1024
"""Nothing longer is decoded."""


class DecodeError(ValueError):
    """These bytes are not the message they should be; the text says why."""


class EncodeError(TypeError):
    """This value cannot travel; the text names the type."""


def plain(value: object) -> Any:
    """What msgpack cannot carry itself, as something it can; `EncodeError` for the rest.

    pydantic models and dataclasses become maps; dates, times, `Decimal` and `UUID` their usual strings;
    a `timedelta` its seconds; an enum its value; tuples lists. Sets have no order and are refused.
    """
    match value:
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
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored; use None, bool, int, float, "
        "str, bytes, list, dict, a dataclass, a pydantic model, datetime, Decimal, UUID or an enum"
    )


def pack(value: object) -> bytes:
    """`value` as msgpack; raises `EncodeError`."""
    try:
        packed: bytes = msgpack.packb(value, default=plain)
    except EncodeError:
        raise
    except OverflowError:
        raise EncodeError("an int beyond 64 bits cannot be stored; send it as a string") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise EncodeError(f"this value cannot be stored: {error}") from None
    return packed


def unpack(raw: bytes) -> Any:
    """The value in msgpack bytes; raises `DecodeError`."""
    try:
        return msgpack.unpackb(raw, strict_map_key=False)
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen kinds for hostile bytes
        raise DecodeError(f"not msgpack: {str(error) or type(error).__name__}") from None


@lru_cache(maxsize=64)
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


def _fields(message: Any) -> dict[str, Any]:
    return {name: value for name in _names(type(message)) if (value := getattr(message, name)) is not None}


def _nested(value: object) -> Any:
    """Protocol messages inside messages travel without None fields; all else as `plain` says."""
    if type(value).__module__ == "jetcron_protocol.messages":
        return _fields(value)
    return plain(value)


def encode(message: Any) -> bytes:
    """A message as msgpack, with its version; raises `EncodeError`."""
    body = {"v": VERSION, **_fields(message)}
    try:
        packed: bytes = msgpack.packb(body, default=_nested)
    except EncodeError:
        raise
    except OverflowError:
        raise EncodeError("an int beyond 64 bits cannot be stored; send it as a string") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise EncodeError(f"this value cannot be stored: {error}") from None
    return packed


@lru_cache(maxsize=64)
def _adapter(kind: type[M]) -> TypeAdapter[M]:
    return TypeAdapter(kind)


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
        raise DecodeError(
            f"{name}: version {version} is newer than {VERSION}, the newest this program reads; update it"
        )
    try:
        return _adapter(kind).validate_python(body)
    except ValidationError as error:
        raise DecodeError(f"{name}: {_first(error)}") from None
    except Exception as error:  # noqa: BLE001 - whatever hostile content provokes is one kind of error
        raise DecodeError(f"{name}: {error}") from None


def _first(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    shown = "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'body'}: {problem['msg']}"
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

    A bare event takes its id from ``Nats-Msg-Id`` (a leading ``<name>:`` taken off) or else from `sequence`;
    its time is `stored_at` (epoch ms). An id given by `sequence` is a ULID form of neither: its run has the
    stored time, which makes such runs sort.
    """
    try:
        check_event_name(name)
    except InvalidName as error:
        raise DecodeError(f"Event: {error}") from None
    if headers.get(EVENT_HEADER) is not None:
        event = decode(Event, raw)
        if event.name != name:
            raise DecodeError(f"Event: it names itself {event.name!r} but came on the subject of {name!r}")
        return event
    data = _bare(raw)
    given = headers.get(_MSG_ID, "").removeprefix(f"{name}:")
    at = _at(headers.get(AT_HEADER))
    return Event(id=given or str(sequence), name=name, data=data, ts=stored_at, at=at)


def _bare(raw: bytes) -> dict[str, Any]:
    """A map from JSON or msgpack. A JSON map begins with ``{``, which is a number in msgpack: no ambiguity."""
    if len(raw) > MAX_BYTES:
        raise DecodeError(f"Event: {len(raw)} bytes, more than the {MAX_BYTES} that are read")
    if not raw:
        return {}
    if raw.lstrip()[:1] == b"{":
        try:
            data = json.loads(raw)
            msgpack.packb(data)  # what JSON can say and msgpack cannot carry (huge ints) is refused here
        except (ValueError, RecursionError, OverflowError) as error:
            raise DecodeError(f"Event: not JSON: {error}") from None
    else:
        data = unpack(raw)
    if not isinstance(data, dict):
        raise DecodeError(f"Event: a JSON or msgpack map was expected, not {type(data).__name__}")
    return data


def _at(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise DecodeError(
            f"Event: {AT_HEADER} is {text!r}; write RFC 3339, such as 2030-01-31T09:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise DecodeError(f"Event: {AT_HEADER} {text!r} has no zone; end it with Z or +02:00")
    return int(moment.timestamp() * 1000)
