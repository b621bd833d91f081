"""Types whose validation undoes `codec.plain`: what was stored becomes what it was.

Owns the inverse of each rule of `plain`: text that is a time, a map that is a dataclass, a value that is an
enum's. What pydantic's own rules do as well (its models, containers) is left to them. Pure: no I/O.
"""

import collections.abc
import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from jetcron.annotations import UNIONS, is_class, rebuilt_container, rebuilt_typed_dict, typed_dict
from jetcron_protocol.codec import EncodeError, pack, plain

Again = Callable[[Any, bool, object], object]
"""Reads data as a type that was met inside itself; the flag is `exact`."""

_NO = object()
"""The data is not the stored form of this type."""
_ABSTRACT = (
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Container,
    collections.abc.Reversible,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
)


def awaited(kind: Any) -> Any:
    """X of ``Awaitable[X]``, ``Coroutine[Any, Any, X]``, ``Future[X]``; any other type as it is."""
    origin = typing.get_origin(kind)
    if inspect.isclass(origin) and issubclass(origin, Awaitable):
        return typing.get_args(kind)[-1]
    return kind


def stored(kind: Any, *, exact: bool, again: Again) -> Any:
    """The type that validates what `plain` made of a `kind` into a `kind`.

    `exact`, as the members of unions are read: it takes nothing else. Otherwise what pydantic can turn into a
    `kind` is taken too: a number for which there is text, say.
    """
    return _Undoing(again)(kind, exact)


class _Undoing:
    """One walk through a type; `inside`: the classes it is in."""

    def __init__(self, again: Again, inside: tuple[Any, ...] = ()) -> None:
        self._again = again
        self._inside = inside

    def __call__(self, kind: Any, exact: bool) -> Any:
        kind = awaited(kind)
        while isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        if isinstance(kind, TypeVar):
            return Any
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            inner, *said = arguments
            # What is said of a scalar is meant for pydantic's own reading of it.
            inner = inner if is_class(inner) and inner in _UNDO else self(inner, exact)
            return Annotated[(inner, *said)]
        if origin in UNIONS:
            return self._union(arguments, exact)
        if origin is Literal:
            return _one_of(arguments) if any(isinstance(value, Enum) for value in arguments) else kind
        if (origin or kind) in _ABSTRACT:
            return GenericAlias(list, (self(arguments[0], exact),)) if arguments else list
        if is_class(kind):
            return self._class(kind, exact)
        return rebuilt_container(kind, lambda argument: self(argument, exact))

    def _union(self, members: tuple[Any, ...], exact: bool) -> Any:
        """The narrower forms first, as pydantic takes the first that fits exactly."""
        some = [member for member in members if member is not NoneType]
        read = [self(member, exact or len(some) > 1) for member in sorted(some, key=_breadth)]
        return typing.Union[(*read, *[NoneType] * (len(some) < len(members)))]

    def _class(self, kind: Any, exact: bool) -> Any:
        if kind in _UNDO:
            return _leaf(kind, exact)
        if issubclass(kind, Enum):
            # Flags are made by combining, and some enums by `_missing_`, which may take anything.
            return _one_of(kind, kind.__name__, kind if not exact or issubclass(kind, Flag) else None)
        if issubclass(kind, BaseModel):
            return _model(kind)
        if hasattr(kind, "__get_pydantic_core_schema__") or hasattr(kind, "__pydantic_validator__"):
            return kind
        if typing.is_typeddict(kind):
            # A map at run time: what its type does not name is in it all the same.
            return self._record(
                kind, exact, lambda inner: rebuilt_typed_dict(kind, inner, ConfigDict(extra="allow"))
            )
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return self._record(kind, exact, partial(_named_tuple, kind))
        if dataclasses.is_dataclass(kind):
            return self._record(kind, exact, partial(_dataclass, kind))
        return kind

    def _record(self, kind: Any, exact: bool, make: Callable[[Callable[[Any], Any]], Any]) -> Any:
        if kind in self._inside:
            return Annotated[Any, PlainValidator(partial(self._again, kind, exact))]
        inner = _Undoing(self._again, (*self._inside, kind))
        return make(lambda hint: inner(hint, exact))


def _breadth(kind: Any) -> int:
    if not is_class(kind):
        return 2
    return 0 if issubclass(kind, Enum) else 1 if kind in _TEXTS else 3 if kind is timedelta else 2


def _model(kind: type[BaseModel]) -> Any:
    parameters = kind.__pydantic_generic_metadata__["parameters"]
    if any(getattr(one, "__bound__", None) or getattr(one, "__constraints__", ()) for one in parameters):
        return kind[(Any,) * len(parameters)]  # type: ignore[index]  # read as the bound, fields would be lost
    return kind


# Classes with fields.


def _named_tuple(kind: Any, change: Callable[[Any], Any]) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {name: change(hints.get(name, Any)) for name in kind._fields}

    def opened(data: object) -> object:
        if isinstance(data, list | tuple) and len(data) <= len(fields):
            return dict(zip(fields, data, strict=False))
        return data

    made = typed_dict(kind.__name__, fields, fields.keys() - kind._field_defaults.keys())
    return Annotated[made, BeforeValidator(opened), AfterValidator(lambda values: kind(**values))]


def _dataclass(kind: Any, change: Callable[[Any], Any]) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    required = {
        field.name
        for field in fields
        if field.init and field.default is field.default_factory is dataclasses.MISSING
    }

    def opened(data: object) -> object:
        return dict(data) if isinstance(data, tuple) else data  # the key of a map: a tuple of pairs

    made = typed_dict(kind.__name__, {field.name: change(hints[field.name]) for field in fields}, required)
    return Annotated[made, BeforeValidator(opened), AfterValidator(partial(_restored, kind, _taken(kind)))]


def _taken(kind: Any) -> set[str] | None:
    """The fields that `__init__` takes; None if it asks for more than is stored."""
    names = {field.name for field in dataclasses.fields(kind)}
    taken = inspect.signature(kind).parameters.values()
    if any(
        one.kind is one.POSITIONAL_ONLY
        or (one.default is one.empty and one.name not in names and one.kind is not one.VAR_KEYWORD)
        for one in taken
    ):
        return None
    return {one.name for one in taken if one.name in names}


def _restored(kind: Any, taken: set[str] | None, values: Mapping[str, Any]) -> object:
    if taken is None:
        made = object.__new__(kind)
        values = _defaults(kind) | dict(values)
    else:
        made = kind(**{name: value for name, value in values.items() if name in taken})
    for name, value in values.items():
        if getattr(made, name, _NO) is not value:
            object.__setattr__(made, name, value)  # of frozen ones too
    return made


def _defaults(kind: Any) -> dict[str, Any]:
    return {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(kind)
        if not field.default is field.default_factory is dataclasses.MISSING
    }


# Values of one piece.


def _refusal(name: str) -> PydanticCustomError:
    return PydanticCustomError("stored_result", "Input should be a stored {name}", {"name": name})


def _one_of(values: Any, name: str = "literal", otherwise: Callable[[object], object] | None = None) -> Any:
    """One of `values`, by its stored form, or else what `otherwise` makes of it."""
    by_form: dict[bytes, object] = {}
    for value in values:
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


def _leaf(kind: type, exact: bool) -> Any:
    undo = _UNDO[kind]

    def only(data: object) -> object:
        found = undo(data)
        if found is _NO:
            raise _refusal(kind.__name__)
        return found

    def leniently(data: object, handler: ValidatorFunctionWrapHandler) -> object:
        found = undo(data)
        return handler(data) if found is _NO else found

    if exact or kind in (str, bytes, bytearray):
        return Annotated[Any, PlainValidator(only)]
    return Annotated[kind, WrapValidator(leniently)]


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
        with contextlib.suppress(ValueError, ArithmeticError):
            value = timedelta(seconds=data)
            if plain(value) == data:
                return value
    return _NO


_TEXTS: dict[type, Callable[[object], object]] = {
    datetime: _text(datetime.fromisoformat),
    date: _text(_date),
    time: _text(time.fromisoformat),
    Decimal: _text(Decimal),
    UUID: _text(UUID),
}
_UNDO: dict[type, Callable[[object], object]] = {
    **_TEXTS,
    timedelta: _span,
    bool: _native(bool),
    int: _native(int),
    float: _native(float, int),
    str: _native(str),
    bytes: _native(bytes),
    bytearray: lambda data: bytearray(data) if isinstance(data, bytes) else _NO,
}
