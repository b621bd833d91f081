"""Values of one piece, read from what `codec.plain` made of them: text that is a time, a value that is an enum's.

Owns the inverse of each rule of `plain` for them. Pure: no I/O.
"""

import contextlib
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

from pydantic import PlainValidator, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from jetcron_protocol.codec import EncodeError, pack, plain

_NO = object()
"""The data is not the stored form of this type."""


def _refusal(name: str) -> PydanticCustomError:
    return PydanticCustomError("stored_result", "Input should be a stored {name}", {"name": name})


def one_of(values: Any, name: str = "literal", otherwise: Callable[[object], object] | None = None) -> Any:
    """One of `values`, by its stored form, or else what `otherwise` makes of it."""
    by_form: dict[bytes, object] = {}
    for value in sorted(
        values, key=lambda value: isinstance(value, Enum)
    ):  # of two with one form, the enum's
        with contextlib.suppress(EncodeError):
            by_form[pack(value)] = value

    def find(data: object) -> object:
        with contextlib.suppress(Exception):  # whatever an enum's own code raises: it is none of the values
            found = by_form.get(pack(data), _NO)
            if found is not _NO:
                return found
            if otherwise is not None:
                return otherwise(data)
        raise _refusal(name)

    return Annotated[Any, PlainValidator(find)]


def leaf(kind: type, *said: Any) -> Any:
    """`said` counts where pydantic reads it: what `plain` made of a value is that value, whatever is said of it."""
    undo = UNDO[kind]

    def only(data: object) -> object:
        found = undo(data)
        if found is _NO:
            raise _refusal(kind.__name__)
        return found

    def leniently(data: object, handler: ValidatorFunctionWrapHandler) -> object:
        found = undo(data)
        return handler(data) if found is _NO else found

    if kind in (str, bytes, bytearray):
        return Annotated[Any, PlainValidator(only)]
    return Annotated[(kind, *said, WrapValidator(leniently))]


def _native(*kinds: type) -> Callable[[object], object]:
    return lambda data: data if isinstance(data, kinds) else _NO


def _text(make: Callable[[str], object]) -> Callable[[object], object]:
    def undo(data: object) -> object:
        if isinstance(data, str):
            with contextlib.suppress(ValueError, ArithmeticError):
                value = make(data)
                if plain(value) == data:
                    return value
        return _NO

    return undo


def _date(text: str) -> date:
    """A datetime is a date, too."""
    return date.fromisoformat(text) if len(text) == len("2030-01-31") else datetime.fromisoformat(text)


def _span(data: object) -> object:
    if isinstance(data, float):
        if data == timedelta.max.total_seconds():
            return timedelta.max  # which its seconds, rounded, exceed
        with contextlib.suppress(ValueError, ArithmeticError):
            value = timedelta(seconds=data)
            if plain(value) == data:
                return value
    return _NO


TEXTS: dict[type, Callable[[object], object]] = {
    datetime: _text(datetime.fromisoformat),
    date: _text(_date),
    time: _text(time.fromisoformat),
    Decimal: _text(Decimal),
    UUID: _text(UUID),
}
UNDO: dict[type, Callable[[object], object]] = {
    **TEXTS,
    timedelta: _span,
    bool: _native(bool),
    int: _native(int),
    float: _native(float, int),
    str: _native(str),
    bytes: _native(bytes),
    bytearray: lambda data: bytearray(data) if isinstance(data, bytes) else _NO,
}
