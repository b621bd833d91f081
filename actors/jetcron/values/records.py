"""Classes with fields, read from what `codec.plain` made of them: each field as its type, then the object of them.

Owns how a named tuple, dataclass, TypedDict or class of pydantic's is made again of its fields. What a field's type
is read as is up to `stored`. Pure: no I/O.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from types import NoneType
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    RootModel,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from jetcron.values.annotations import UNIONS, hints_of, is_class, rebuilt_typed_dict, typed_dict

Change = Callable[[Any], Any]
"""From the type of a field to the type that reads it."""
Maker = Callable[[Change], Any]

_ABSENT = object()
_PLAIN = (bool, int, float, str, bytes, NoneType, Any)


def maker_of(kind: Any) -> Maker | None:
    """What makes the type that reads a `kind`; None if it is no class with fields, or one with a schema of its own."""
    origin = typing.get_origin(kind) or kind
    if not is_class(origin):
        return None
    if issubclass(origin, BaseModel):
        ours = origin.__get_pydantic_core_schema__.__func__ is BaseModel.__get_pydantic_core_schema__.__func__  # type: ignore[attr-defined]
        return (
            partial(_root if issubclass(origin, RootModel) else _validated, _unbound(kind)) if ours else None
        )
    if hasattr(origin, "__pydantic_validator__"):
        return partial(_validated, kind) if origin is kind else None
    if hasattr(origin, "__get_pydantic_core_schema__"):
        return None
    if is_typeddict(origin):
        return partial(_typed_dict, kind)
    if issubclass(origin, tuple) and hasattr(origin, "_fields"):
        return partial(_named_tuple, kind)
    if dataclasses.is_dataclass(origin):
        return partial(_dataclass, kind)
    return None


def _mapped(data: object) -> object:
    """A map that was the key of a map is a tuple of pairs."""
    return dict(data) if isinstance(data, tuple) else data


# Those of the standard library.


def _typed_dict(kind: Any, change: Change) -> Any:
    # A map at run time: what its type does not name is in it all the same.
    made = rebuilt_typed_dict(kind, change, ConfigDict(extra="allow"))

    def in_order(data: Any, handler: ValidatorFunctionWrapHandler) -> object:
        values = handler(data)
        return {key: values[key] for key in data if key in values}

    return Annotated[made, WrapValidator(in_order)]


def _named_tuple(kind: Any, change: Change) -> Any:
    cls, hints = typing.get_origin(kind) or kind, hints_of(kind)
    fields = {name: change(hints.get(name, Any)) for name in cls._fields}

    def opened(data: object) -> object:
        if isinstance(data, list | tuple) and len(data) <= len(fields):
            return dict(zip(fields, data, strict=False))
        return data

    made = typed_dict(cls.__name__, fields, fields.keys() - cls._field_defaults.keys())
    return Annotated[made, BeforeValidator(opened), AfterValidator(lambda values: cls(**values))]


def _dataclass(kind: Any, change: Change) -> Any:
    cls, hints = typing.get_origin(kind) or kind, hints_of(kind)
    fields = dataclasses.fields(cls)
    required = {
        field.name
        for field in fields
        if field.init and field.default is field.default_factory is dataclasses.MISSING
    }
    made = typed_dict(cls.__name__, {field.name: change(hints[field.name]) for field in fields}, required)
    return Annotated[made, BeforeValidator(_mapped), AfterValidator(partial(_restored, cls, _taken(cls)))]


def _taken(cls: Any) -> set[str] | None:
    """The fields that `__init__` takes; None if it asks for more than is stored, or for nobody knows what."""
    fields = dataclasses.fields(cls)
    names = {field.name for field in fields}
    parameters = inspect.signature(cls).parameters.values()
    taken = {one.name for one in parameters if one.name in names}
    for one in parameters:
        if one.kind is one.VAR_KEYWORD and not {field.name for field in fields if field.init} <= taken:
            return None
        unknown = one.default is one.empty and one.name not in names and one.kind is not one.VAR_KEYWORD
        if unknown or one.kind is one.POSITIONAL_ONLY:
            return None
    return taken


def _restored(cls: Any, taken: set[str] | None, values: Mapping[str, Any]) -> object:
    if taken is None:
        made = object.__new__(cls)
        values = _defaults(cls) | dict(values)
    else:
        made = cls(**{name: value for name, value in values.items() if name in taken})
    for name, value in values.items():
        if getattr(made, name, _ABSENT) is not value:
            object.__setattr__(made, name, value)  # of frozen ones too
    return made


def _defaults(cls: Any) -> dict[str, Any]:
    return {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(cls)
        if not field.default is field.default_factory is dataclasses.MISSING
    }


# Those of pydantic. Their fields are made what they were before pydantic sees them, so that it has nothing to guess:
# it validates what it was given the first time. What we cannot read, it gets as it is stored.


def _validated(cls: Any, change: Change) -> Any:
    if _is_plain(cls):
        return Annotated[cls, BeforeValidator(_mapped)]
    # Stored are the names of fields, but of classes that ask for aliases always.
    by_alias = bool(getattr(cls, "model_config", {}).get("serialize_by_alias"))
    fields = cls.__pydantic_fields__
    names = {field.serialization_alias or name: name for name, field in fields.items()} if by_alias else {}
    derived = {
        computed.info.alias or name if by_alias else name
        for name, computed in cls.__pydantic_decorators__.computed_fields.items()
    }
    late = {name for name, field in fields.items() if field.init is False}
    hints = {
        name: Annotated[change(_of_field(field)), WrapValidator(_or_as_it_is)]
        for name, field in fields.items()
        if not _is_plain(field.annotation)
    }
    read = _reading(cls)

    def made(data: Any, handler: ValidatorFunctionWrapHandler) -> object:
        data = _mapped(data)
        if not isinstance(data, dict):
            return read(data)  # a serializer of its own made it
        values = handler({names.get(key, key): value for key, value in data.items() if key not in derived})
        set_late = {name: values.pop(name) for name in late & values.keys()}
        found = read(values)
        for name, value in set_late.items():
            object.__setattr__(found, name, value)
        return found

    return Annotated[typed_dict(cls.__name__, hints, (), ConfigDict(extra="allow")), WrapValidator(made)]


def _is_plain(kind: Any, inside: tuple[Any, ...] = ()) -> bool:
    """Whether pydantic makes of it what it was, without our help: then this is several times as fast."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in UNIONS:
        arguments = tuple(one for one in arguments if one is not NoneType)
        return len(arguments) == 1 and _is_plain(arguments[0], inside)
    if origin is list or origin is dict:
        return all(_is_plain(one, inside) for one in arguments)
    if not is_class(kind) or not issubclass(kind, BaseModel):
        return kind in _PLAIN
    if maker_of(kind) is None or issubclass(kind, RootModel) or kind in inside:
        return False
    if kind.__pydantic_decorators__.computed_fields or kind.model_config.get("serialize_by_alias"):
        return False
    return all(_is_plain(field.annotation, (*inside, kind)) for field in kind.__pydantic_fields__.values())


def _of_field(field: FieldInfo) -> Any:
    """The type of a field; what else is said of it is up to pydantic."""
    if isinstance(field.discriminator, Discriminator):
        return Annotated[field.annotation, field.discriminator]
    return field.annotation


def _root(cls: Any, change: Change) -> Any:
    inner = change(_of_field(cls.__pydantic_fields__["root"]))
    return Annotated[inner, WrapValidator(_or_as_it_is), AfterValidator(_reading(cls))]


def _reading(cls: Any) -> Callable[[object], object]:
    """Validates leniently, strict classes too: a field may be stored in another form than we know."""
    return partial(cls.__pydantic_validator__.validate_python, strict=False, by_name=True, by_alias=False)


def _or_as_it_is(data: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(data)
    except Exception:  # noqa: BLE001 - whatever a user's own validator raises: pydantic has the last word
        return data


def _unbound(kind: Any) -> Any:
    parameters = kind.__pydantic_generic_metadata__["parameters"]
    if any(getattr(one, "__bound__", None) or getattr(one, "__constraints__", ()) for one in parameters):
        return kind[(Any,) * len(parameters)]  # read as the bound, fields would be lost
    return kind
