"""Types whose validation undoes `codec.plain`: what was stored becomes what it was.

Owns the walk through a type, and the choice among the members of a union. Values of one piece are read in `scalars`,
classes with fields in `records`; what pydantic's own rules do as well (containers) is left to them. Pure: no I/O.
"""

import collections.abc
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from datetime import timedelta
from enum import Enum
from functools import partial
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    Discriminator,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import TypeAliasType, is_typeddict

from jetcron.values.annotations import UNIONS, filled, is_class, rebuilt_container, spelled
from jetcron.values.records import maker_of
from jetcron.values.scalars import TEXTS, UNDO, leaf, one_of
from jetcron_protocol.codec import EncodeError, pack, unpack

Again = Callable[[Any, object], object]
"""Reads data as a type that was met inside itself."""
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


def stored(kind: Any, *, again: Again) -> Any:
    """The type that validates what `plain` made of a `kind` into a `kind`.

    What pydantic can turn into a `kind` is taken too: a number for which there is text, say.
    """
    return _Undoing(again)(kind)


def _bare(kind: Any) -> Any:
    """Without `Awaitable` and `NewType`; of an alias, what it stands for."""
    while True:
        kind = awaited(kind)
        if isinstance(kind, typing.NewType):
            kind = kind.__supertype__
            continue
        alias = typing.get_origin(kind) or kind
        if not isinstance(alias, TypeAliasType):
            return kind
        kind = filled(alias.__value__, alias.__type_params__, typing.get_args(kind))


class _Undoing:
    """One walk through a type; `inside`: the classes, and aliases, it is in."""

    def __init__(self, again: Again, inside: tuple[Any, ...] = ()) -> None:
        self._again = again
        self._inside = inside

    def __call__(self, kind: Any) -> Any:
        if isinstance(typing.get_origin(kind) or kind, TypeAliasType):
            return self._deeper(kind, lambda inner: inner(_bare(kind)))
        kind = _bare(kind)
        if isinstance(kind, TypeVar):
            return Any
        if isinstance(kind, str | typing.ForwardRef):
            return self._named(kind if isinstance(kind, str) else kind.__forward_arg__)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            return self._annotated(*arguments)
        if origin in UNIONS:
            return self._union(arguments)
        if origin is Literal:
            return one_of(arguments) if any(isinstance(value, Enum) for value in arguments) else kind
        if (origin or kind) in _ABSTRACT:
            return GenericAlias(list, (self(arguments[0]),)) if arguments else list
        if is_class(kind) and kind in UNDO:
            return leaf(kind)
        if is_class(kind) and issubclass(kind, Enum):
            # Flags are made by combining, and some enums by `_missing_`.
            return one_of(kind, kind.__name__, kind)
        make = maker_of(kind)
        if make is not None:
            return self._deeper(kind, make)
        return rebuilt_container(kind, self)

    def _deeper(self, kind: Any, make: Callable[["_Undoing"], Any]) -> Any:
        """What is made of `kind`; inside itself, that is read when it is met."""
        if kind in self._inside:
            return Annotated[Any, PlainValidator(partial(self._again, kind))]
        return make(_Undoing(self._again, (*self._inside, kind)))

    def _named(self, name: str) -> Any:
        """What a recursive alias calls itself, written as text."""
        for outer in self._inside:
            if getattr(typing.get_origin(outer) or outer, "__name__", None) == name:
                return self(outer)
        raise TypeError(f"{name!r} is not known")

    def _annotated(self, inner: Any, *said: Any) -> Any:
        if is_class(inner) and inner in UNDO:
            return leaf(inner, *said)
        if any(map(_is_by_tag, said)):
            tagged = tuple(map(self, typing.get_args(inner)))
            return Annotated[(typing.Union[tagged], *said)]  # noqa: UP007 - of members that are known only now
        return Annotated[(self(inner), *map(_undiscriminating, said))]

    def _union(self, members: tuple[Any, ...]) -> Any:
        some = sorted((member for member in members if member is not NoneType), key=_breadth)
        if len(some) == 1:
            read = self(some[0])
        else:
            choices = [(spelled(member), TypeAdapter(self(member))) for member in some]
            read = Annotated[Any, PlainValidator(partial(_chosen, choices))]
        return typing.Optional[read] if len(some) < len(members) else read  # noqa: UP045 - as above


# Unions.


def _chosen(choices: Sequence[tuple[str, TypeAdapter[Any]]], data: object) -> object:
    """`data` as the first member that, stored again, is `data`; of classes that have changed, the first that fits."""
    fitting: list[object] = []
    problems: list[InitErrorDetails] = []

    def refuse(member: str, text: str, *place: int | str) -> None:
        problem = PydanticCustomError("stored_result", "{text}", {"text": text})
        problems.append(InitErrorDetails(type=problem, loc=(member, *place), input=None))

    for name, adapter in choices:
        try:
            value = adapter.validator.validate_python(data, strict=False, by_name=True, by_alias=False)
        except ValidationError as error:
            for one in error.errors(include_url=False, include_context=False, include_input=False):
                refuse(name, one["msg"], *one["loc"])
        except Exception as error:  # noqa: BLE001 - a user's own validator may raise anything for another's data
            refuse(name, f"reading it raises {type(error).__name__}")
        else:
            if _is_stored_as(value, data):
                return value
            fitting.append(value)
            refuse(name, f"Input should be a stored {name}")
    if fitting and isinstance(data, dict | list | tuple):
        return fitting[0]
    raise ValidationError.from_exception_data("union", problems)


def _is_stored_as(value: object, data: object) -> bool:
    try:
        return value is data or _alike(unpack(pack(value)), data)
    except EncodeError:
        return False


def _alike(one: Any, other: Any) -> bool:
    """Equal, with equal types; maps in any order."""
    if isinstance(other, tuple):  # the key of a map
        other = dict(other) if isinstance(one, dict) else list(other)
    if type(one) is not type(other):
        return False
    match one:
        case dict():
            keys = {key: type(key) for key in one} == {key: type(key) for key in other}
            return keys and all(_alike(one[key], other[key]) for key in one)
        case list():
            return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other) or (one != one and other != other)  # not a number, both


def _breadth(kind: Any) -> tuple[int, int]:
    """The order in which members of a union are tried: those first whose form is narrower."""
    kind = _bare(kind)
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Annotated:
        return _breadth(arguments[0])
    if origin in UNIONS:
        return min(map(_breadth, arguments))
    if not is_class(origin):
        return 9 if origin is Any or isinstance(origin, TypeVar) else 2, 0
    if issubclass(origin, Enum):
        return 0, 0
    if origin in TEXTS:
        return 1, 0
    if is_typeddict(origin):
        return 3, -len(origin.__annotations__)
    if origin is tuple or origin is timedelta:
        return 3, 0
    if issubclass(origin, Mapping):
        return 4, 0
    return 9 if origin is object else 2, 0


def _is_by_tag(said: Any) -> bool:
    """Whether a function of the user's chooses among the members of a union."""
    found = said.discriminator if isinstance(said, FieldInfo) else said
    return isinstance(found, Discriminator) and callable(found.discriminator)


def _undiscriminating(said: Any) -> Any:
    """What is said of a union, without the field that tells its members apart: `_chosen` does it."""
    if isinstance(said, Discriminator):
        return None
    if isinstance(said, FieldInfo) and said.discriminator is not None:
        said = copy(said)
        said.discriminator = None
    return said
