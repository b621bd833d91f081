"""The data of an event, as the type a function asks for.

Owns how the second parameter of a user's function is read: its annotation, its default, its validation.
Names that do not exist yet when the function is decorated are looked up again later. Pure: no I/O.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from jetcron.errors import ConfigurationError, PayloadInvalid
from jetcron.values.annotations import evaluated, function_under, portable, problems_in, shown, spelled

__all__ = ["PayloadReader", "function_under"]

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
            kind = evaluated(self._annotation, self._globals, dict(scope or {}))
            adapter = TypeAdapter(portable(kind))
        except (NameError, PydanticUndefinedAnnotation) as error:
            if strict:
                raise ConfigurationError(
                    f"{self._where}: the annotation {spelled(self._annotation)} of {self._parameter!r} "
                    f"cannot be resolved ({error}); define or import the type in the function's module, "
                    "outside `if TYPE_CHECKING`"
                ) from None
            return
        except (PydanticSchemaGenerationError, PydanticUserError, SyntaxError, TypeError) as error:
            raise ConfigurationError(
                f"{self._where}: the annotation {spelled(self._annotation)} of {self._parameter!r} "
                "cannot be validated; allowed are a pydantic model, a dataclass, a TypedDict, dict, Any "
                f"and what pydantic knows ({str(error).splitlines()[0]})"
            ) from None
        if not getattr(adapter, "pydantic_complete", True):
            if strict:
                raise ConfigurationError(
                    f"{self._where}: the type {spelled(kind)} of {self._parameter!r} "
                    "names types that do not exist"
                )
            return
        if self._cron and self._default is _MISSING and not _takes_none(adapter):
            raise ConfigurationError(
                f"{self._where}: a run started by cron has no data, but {self._parameter!r} is annotated "
                f"with {spelled(kind)}; allowed are a default (= None) "
                f"or a type that takes None ({spelled(kind)} | None)"
            )
        self._adapter = adapter

    def _invalid(self, error: ValidationError, data: object) -> PayloadInvalid:
        if data is None:
            return PayloadInvalid(
                f"{self._where}: there is no data, and {self._parameter!r} needs {spelled(self._annotation)}",
                ("there is no data",),
            )
        problems = problems_in(error)
        return PayloadInvalid(
            f"{self._where}: the data does not fit {spelled(self._annotation)}: {shown(problems)}", problems
        )


def _takes_none(adapter: TypeAdapter[Any]) -> bool:
    try:
        adapter.validate_python(None)
    except Exception:  # noqa: BLE001 - a user's own validator may raise anything for None
        return False
    return True
