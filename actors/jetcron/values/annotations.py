"""What the annotations of users' functions say, in a form pydantic can read data with.

Owns how a function is found under what wraps it, how one annotation is evaluated, and how the fields that do
not fit are told. What is read, and what happens if it does not fit, is up to payload and results. Pure: no I/O.
"""

import collections.abc
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import typing_extensions
from pydantic import ConfigDict, ValidationError

UNIONS = (typing.Union, types.UnionType)
_MAX_PROBLEMS = 10
_CONTAINERS = ("builtins", "collections", "collections.abc")


def unwrapped(handler: Any) -> Any:
    """What is under partials and decorators that name what they wrap."""
    while isinstance(handler := inspect.unwrap(handler), functools.partial):
        handler = handler.func
    return handler


def function_under(handler: Any) -> Any:
    """The function under partials, decorators that name what they wrap, or a callable object."""
    handler = unwrapped(handler)
    if inspect.isfunction(handler) or inspect.ismethod(handler):
        return handler
    return getattr(type(handler), "__call__", handler)  # noqa: B004 - the function itself is wanted


def evaluated(annotation: object, globalns: dict[str, Any], localns: Mapping[str, Any]) -> Any:
    """`annotation` with its strings evaluated; of this one alone, as a function's others may have none."""

    def probe() -> None: ...

    probe.__annotations__ = {"it": annotation}
    return typing.get_type_hints(probe, globalns=globalns, localns=localns, include_extras=True)["it"]


def spelled(annotation: object) -> str:
    """An annotation as the user wrote it, about."""
    if isinstance(annotation, str):
        return annotation
    name: str = annotation.__name__ if is_class(annotation) else str(annotation)  # type: ignore[attr-defined]
    return name


def portable(kind: Any) -> Any:
    """`kind` with each `typing.TypedDict` in it as the one of typing_extensions.

    Before Python 3.12 pydantic refuses the standard library's, which forgets what was inherited.
    """
    return kind if sys.version_info >= (3, 12) else _portable(kind, ())


def _portable(kind: Any, inside: tuple[Any, ...]) -> Any:
    if typing.is_typeddict(kind):
        if kind in inside:
            raise TypeError(f"{kind.__name__} contains itself; declare it with typing_extensions.TypedDict")
        return rebuilt_typed_dict(kind, lambda hint: _portable(hint, (*inside, kind)))
    if typing.get_origin(kind) in UNIONS:
        return typing.Union[tuple(_portable(member, inside) for member in typing.get_args(kind))]  # noqa: UP007
    return rebuilt_container(kind, lambda argument: _portable(argument, inside))


def rebuilt_container(kind: Any, change: Callable[[Any], Any]) -> Any:
    """`kind`, if it is a standard container of something, with `change` made to what it contains."""
    origin = typing.get_origin(kind)
    if not isinstance(origin, type) or origin in (type, collections.abc.Callable):
        return kind
    if not isinstance(kind, types.GenericAlias) and origin.__module__ not in _CONTAINERS:
        return kind
    return types.GenericAlias(origin, tuple(change(argument) for argument in typing.get_args(kind)))


def rebuilt_typed_dict(kind: Any, change: Callable[[Any], Any], config: ConfigDict | None = None) -> Any:
    """The TypedDict `kind` as one of typing_extensions, with `change` made to the types of its keys."""
    fields: dict[str, Any] = {}
    origin = typing.get_origin(kind) or kind
    required = set(origin.__required_keys__)
    for key, hint in hints_of(kind).items():
        # Of annotations that are strings, only the evaluated hint knows whether the key is required.
        if typing.get_origin(hint) in (typing.Required, typing.NotRequired):
            (required.add if typing.get_origin(hint) is typing.Required else required.discard)(key)
            (hint,) = typing.get_args(hint)
        fields[key] = change(hint)
    return typed_dict(origin.__name__, fields, required, getattr(origin, "__pydantic_config__", config))


def typed_dict(
    name: str, fields: Mapping[str, Any], required: Container[str], config: ConfigDict | None = None
) -> Any:
    """A TypedDict of typing_extensions, which pydantic takes on every Python."""
    make: Any = typing_extensions.TypedDict
    made = make(
        name,
        {
            key: typing_extensions.Required[hint] if key in required else typing_extensions.NotRequired[hint]
            for key, hint in fields.items()
        },
    )
    if config is not None:
        made.__pydantic_config__ = config
    return made


def is_class(kind: object) -> bool:
    """A class, not an alias such as ``list[int]``, which `isinstance` takes for one."""
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias)


def hints_of(kind: Any) -> dict[str, Any]:
    """The annotations of a class, inherited ones too, evaluated; type variables are what they stand for in `kind`."""
    origin = typing.get_origin(kind) or kind
    try:
        hints = typing.get_type_hints(origin, include_extras=True)
    except NameError:  # a class inside a function, that names itself
        hints = typing.get_type_hints(origin, localns={origin.__name__: origin}, include_extras=True)
    return hints | _meant(kind, hints)


def _meant(kind: Any, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `hints` that `kind` and its generic bases declare, by what their type variables stand for."""
    origin = typing.get_origin(kind) or kind
    if not isinstance(origin, type):
        return {}
    found: dict[str, Any] = {}
    for base in reversed(vars(origin).get("__orig_bases__", origin.__bases__)):
        found |= _meant(base, hints)
    own = {name: hints[name] for name in vars(origin).get("__annotations__", ()) if name in hints}
    # A TypedDict declares what it inherits, too.
    found = own | found if typing_extensions.is_typeddict(origin) else found | own
    variables = getattr(origin, "__parameters__", ())
    return {name: filled(hint, variables, typing.get_args(kind)) for name, hint in found.items()}


def filled(hint: Any, variables: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """`hint` with arguments for these type variables; there may be none."""
    meant = dict(zip(variables, arguments, strict=False))
    if not meant or is_class(hint):
        return hint
    if isinstance(hint, typing.TypeVar):
        return meant.get(hint, hint)
    free = getattr(hint, "__parameters__", ())
    return hint[tuple(meant.get(variable, variable) for variable in free)] if free else hint


def problems_in(error: ValidationError) -> tuple[str, ...]:
    """A line for each field: where it is and what is wrong. Values are left out, for they may be private."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [
        ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        for problem in found
    ]
    return tuple(
        f"{place}: {problem['msg']}" if place else problem["msg"]
        for place, problem in zip(places, found, strict=True)
    )


def shown(problems: tuple[str, ...]) -> str:
    """The first problems, in one line."""
    more = f" (and {len(problems) - _MAX_PROBLEMS} more)" if len(problems) > _MAX_PROBLEMS else ""
    return "; ".join(problems[:_MAX_PROBLEMS]) + more
