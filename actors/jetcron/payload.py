"""The data of an event, as the type a function asks for.

Owns how the second parameter of a user's function is read: its annotation, its default, its validation.
Names that do not exist yet when the function is decorated are looked up again later. Pure: no I/O.
"""

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import typing_extensions
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from jetcron.errors import ConfigurationError, PayloadInvalid

_MAX_PROBLEMS = 10
_MISSING = object()


class PayloadReader:
    """Reads data for the second parameter of `handler`.

    A pydantic model, dataclass, TypedDict or any type pydantic can adapt is validated; `Any`, or no
    annotation, takes the data as it came. Where there is no data (None: a cron run has none), a default
    of the parameter is used if it has one, else None must fit the type.
    """

    def __init__(
        self,
        where: str,
        handler: Callable[..., object],
        parameter: inspect.Parameter,
        *,
        scope: Mapping[str, Any] | None = None,
        cron: bool = False,
    ) -> None:
        self._where = where
        self._parameter = parameter.name
        self._annotation = parameter.annotation
        self._default = _MISSING if parameter.default is parameter.empty else parameter.default
        self._globals: dict[str, Any] = getattr(function_under(handler), "__globals__", {})
        self._cron = cron
        self._adapter: TypeAdapter[Any] | None = None
        self._raw = self._annotation in (parameter.empty, Any, object, "Any", "typing.Any", "object")
        if not self._raw:
            self._resolve(scope, strict=False)

    def __repr__(self) -> str:
        return f"PayloadReader({self._where}, {self._parameter}: {self._annotation!r})"

    def resolve(self) -> None:
        """Look up what could not be at decoration. `ConfigurationError` if it still cannot."""
        if not self._raw and self._adapter is None:
            self._resolve(None, strict=True)

    def read(self, data: object) -> object:
        """`data` as the parameter's type; `PayloadInvalid`, naming what is at fault, if it does not fit."""
        if data is None and self._default is not _MISSING:
            return self._default
        if self._raw:
            return data
        self.resolve()
        assert self._adapter is not None
        try:
            return self._adapter.validate_python(data)
        except ValidationError as error:
            raise self._invalid(error, data) from None

    def _resolve(self, scope: Mapping[str, Any] | None, *, strict: bool) -> None:
        try:
            kind = self._evaluate(scope)
            adapter = TypeAdapter(_portable(kind))
        except (NameError, PydanticUndefinedAnnotation) as error:
            if strict:
                raise ConfigurationError(
                    f"{self._where}: the annotation {_spelled(self._annotation)} of {self._parameter!r} "
                    f"cannot be resolved ({error}); define or import the type in the function's module, "
                    "outside `if TYPE_CHECKING`"
                ) from None
            return
        except (PydanticSchemaGenerationError, PydanticUserError, SyntaxError, TypeError) as error:
            raise ConfigurationError(
                f"{self._where}: the annotation {_spelled(self._annotation)} of {self._parameter!r} "
                "cannot be validated; allowed are a pydantic model, a dataclass, a TypedDict, dict, Any "
                f"and what pydantic knows ({str(error).splitlines()[0]})"
            ) from None
        if not getattr(adapter, "pydantic_complete", True):
            if strict:
                raise ConfigurationError(
                    f"{self._where}: the type {_spelled(kind)} of {self._parameter!r} "
                    "names types that do not exist"
                )
            return
        if self._cron and self._default is _MISSING and not _takes_none(adapter):
            raise ConfigurationError(
                f"{self._where}: a run started by cron has no data, but {self._parameter!r} is annotated "
                f"with {_spelled(kind)}; allowed are a default (= None) "
                f"or a type that takes None ({_spelled(kind)} | None)"
            )
        self._adapter = adapter

    def _evaluate(self, scope: Mapping[str, Any] | None) -> Any:
        """The annotation with its strings evaluated; of this parameter alone, as others may have none."""

        def probe() -> None: ...

        probe.__annotations__ = {"data": self._annotation}
        hints = typing.get_type_hints(
            probe, globalns=self._globals, localns=dict(scope or {}), include_extras=True
        )
        return hints["data"]

    def _invalid(self, error: ValidationError, data: object) -> PayloadInvalid:
        if data is None:
            return PayloadInvalid(
                f"{self._where}: there is no data, "
                f"and {self._parameter!r} needs {_spelled(self._annotation)}",
                ("there is no data",),
            )
        found = error.errors(include_url=False, include_context=False, include_input=False)
        problems = tuple(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            if problem["loc"]
            else problem["msg"]
            for problem in found
        )
        shown = "; ".join(problems[:_MAX_PROBLEMS])
        more = f" (and {len(problems) - _MAX_PROBLEMS} more)" if len(problems) > _MAX_PROBLEMS else ""
        return PayloadInvalid(
            f"{self._where}: the data does not fit {_spelled(self._annotation)}: {shown}{more}", problems
        )


def _takes_none(adapter: TypeAdapter[Any]) -> bool:
    try:
        adapter.validate_python(None)
    except Exception:  # noqa: BLE001 - a user's own validator may raise anything for None
        return False
    return True


def _spelled(annotation: object) -> str:
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__name__
    return str(annotation)


def function_under(handler: Any) -> Any:
    """The function under partials, decorators that name what they wrap, or a callable object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = inspect.unwrap(handler)
    if inspect.isfunction(handler) or inspect.ismethod(handler):
        return handler
    return getattr(type(handler), "__call__", handler)  # noqa: B004 - the function itself is wanted


def _portable(kind: Any, inside: tuple[Any, ...] = ()) -> Any:
    """`kind` with each `typing.TypedDict` in it as the one of typing_extensions.

    Before Python 3.12 pydantic refuses the standard library's, which forgets what was inherited.
    """
    if sys.version_info >= (3, 12):
        return kind
    if typing.is_typeddict(kind):
        return _portable_typed_dict(kind, inside)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_portable(argument, inside) for argument in arguments)]  # noqa: UP007
    if isinstance(kind, types.GenericAlias) and isinstance(origin, type):
        return types.GenericAlias(origin, tuple(_portable(argument, inside) for argument in arguments))
    return kind


def _portable_typed_dict(kind: Any, inside: tuple[Any, ...]) -> Any:
    if kind in inside:
        raise TypeError(f"{kind.__name__} contains itself; declare it with typing_extensions.TypedDict")
    fields: dict[str, Any] = {}
    for key, hint in typing.get_type_hints(kind, include_extras=True).items():
        required = key in kind.__required_keys__
        # Of annotations that are strings, only the evaluated hint knows whether the key is required.
        if typing.get_origin(hint) in (typing.Required, typing.NotRequired):
            required = typing.get_origin(hint) is typing.Required
            (hint,) = typing.get_args(hint)
        hint = _portable(hint, (*inside, kind))
        fields[key] = typing_extensions.Required[hint] if required else typing_extensions.NotRequired[hint]
    return typing_extensions.TypedDict(kind.__name__, fields)  # type: ignore[operator]
