"""The result of a durable step, as the type its function promises.

Owns the way back: a result is stored as plain data (`codec.plain`), and when the run is replayed it is read as
the function's return annotation, so that the code after the step meets what it met the first time. Standard
types, enums, dataclasses, named tuples and TypedDicts come back as they were, even where pydantic would coerce; the
fields of pydantic's own classes too, and then pydantic validates them, by their names. Pure: no I/O.

Without an annotation, or with one that cannot be followed (`ResultReader.untyped` says why), the data comes as
it is stored: functions of the standard library, such as `uuid.uuid4`, say nothing of their result.

Of a union, data is the member that, stored again, would be that very data. What stored data cannot tell:

- Which of several such members wrote it. Text in the very form of a datetime, date, time, Decimal, UUID or enum
  value is that, before it is a str; a float is a float, before it is a timedelta; a list is a list, before it is a
  tuple; a map is a model or dataclass, before it is a TypedDict, before it is a `dict`; else it is the one named
  first. Of classes that have changed since, a map is the first that it fits.
- A zone's name and `fold`: a datetime comes back with its offset. Microseconds of a timedelta beyond 270 years.
- A subclass: what is annotated with its base comes back as the base; what is annotated `Sequence`, as a list.
- Of a pydantic model: private attributes, excluded fields, which fields were set and which had their default, and
  what a serializer of its own made of a field, unless its validators take it back (`Json` fields do not). Its
  validators run again. Of a dataclass in a model, the fields that its ``__init__`` does not take.
- A dataclass is made by its ``__init__`` and then given its stored fields; if that asks for what is not stored, such
  as an `InitVar`, it is made without it, and ``__post_init__`` is not run.

`codec.pack` refuses sets, `SecretStr` and what else it does not know, before anything is stored.
"""

import contextlib
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jetcron.errors import NonRetriableError
from jetcron.values.annotations import (
    evaluated,
    function_under,
    portable,
    problems_in,
    shown,
    spelled,
    unwrapped,
)
from jetcron.values.stored import awaited, stored

_KEPT = "__jetcron_result__"


class ResultReader:
    """Reads the stored results of one function. `untyped`: why its annotation cannot be followed, if it cannot."""

    def __init__(self, where: str, shape: "_Shape | None" = None, untyped: str | None = None) -> None:
        self._where = where
        self._shape = shape
        self.untyped = untyped

    def __repr__(self) -> str:
        return f"ResultReader({self._where}, {self._shape.name if self._shape else 'as stored'})"

    def read(self, data: object) -> object:
        """`data`, as `codec.unpack` gives it, as the type; `NonRetriableError`, naming the fields, if it is not."""
        if self._shape is None:
            return data
        try:
            return self._shape.read(data)
        except ValidationError as error:
            problem = shown(problems_in(error))
        except Exception as error:  # noqa: BLE001 - a user's own validator may raise anything
            problem = f"reading it raises {type(error).__name__}"
        raise NonRetriableError(
            f"{self._where}: its stored result does not fit {self._shape.name}: {problem}; code that changed "
            "between attempts must give changed steps new ids, and a function must return what it promises"
        )


_AS_STORED = ResultReader("no annotation")


def result_reader(fn: Callable[..., object]) -> ResultReader:
    """The reader of what `fn` returns: a function, method, class, partial or callable object.

    A function annotated with ``Awaitable[X]`` returns X. Names are looked up in the function's module and among
    the variables of enclosing functions that it uses. No annotation makes this raise.
    """
    bare = unwrapped(fn)
    if inspect.isclass(bare):
        return _reader(bare.__qualname__, bare)
    under = function_under(bare)
    under = getattr(under, "__func__", under)
    try:
        annotation = under.__annotations__["return"]
    except (AttributeError, KeyError, NameError):
        return _AS_STORED
    # Kept by the function itself, so that both go together: its type may refer back to it (a local class whose
    # methods use it), and a table of ours, weak or not, would then keep both for ever.
    kept: tuple[object, ResultReader] | None = getattr(under, _KEPT, None)
    if kept is not None and kept[0] is annotation:
        return kept[1]
    where = getattr(under, "__qualname__", repr(under))
    try:
        kind = evaluated(annotation, getattr(under, "__globals__", {}), _enclosing(under))
    except Exception as error:  # noqa: BLE001 - an annotation is code, and may raise anything
        problem = f"the annotation {spelled(annotation)} cannot be resolved ({_line(error)})"
        reader = ResultReader(where, untyped=problem)
    else:
        reader = _reader(where, kind)
    with contextlib.suppress(AttributeError, TypeError):
        setattr(under, _KEPT, (annotation, reader))
    return reader


def _enclosing(function: Any) -> dict[str, Any]:
    """The variables of enclosing functions that `function` uses."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):  # not assigned yet
            found[name] = cell.cell_contents
    return found


def _reader(where: str, kind: Any) -> ResultReader:
    kind = awaited(kind)
    if kind is Any or kind is object or kind is type(None) or isinstance(kind, TypeVar):
        return ResultReader(where)
    try:
        shape = _shape(kind, repr(kind))
    except TypeError:  # unhashable: what an `Annotated` says may be
        shape = _made(kind)
    if isinstance(shape, str):
        return ResultReader(where, untyped=f"the type {spelled(kind)} cannot be validated ({shape})")
    return ResultReader(where, shape)


@lru_cache(maxsize=256)
def _shape(kind: Any, spelling: str) -> "_Shape | str":
    """Closures made anew share one. `spelling`: unions that differ in order are equal, and are not the same."""
    return _made(kind)


def _made(kind: Any) -> "_Shape | str":
    """The shape of `kind`, or why there is none."""
    try:
        return _Shape(kind)
    except Exception as error:  # noqa: BLE001 - types may bring code of their own that makes their schema
        return _line(error)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Shape:
    """A type that stored data can be read as."""

    def __init__(self, kind: Any) -> None:
        self.name = spelled(kind)
        parameters = getattr(kind, "__parameters__", ())
        if parameters and not inspect.isclass(kind):
            kind = kind[(Any,) * len(parameters)]  # type variables: what they stand for comes as it is stored
        self._by_alias = False  # stored are the names of fields
        try:
            adapter = TypeAdapter(stored(kind, again=_read_again))
        except Exception:  # noqa: BLE001 - then as pydantic has it; if it has it not, that is raised
            adapter = TypeAdapter(portable(kind))
            self._by_alias = True  # or their aliases, of classes that ask for it
        if not adapter.pydantic_complete:
            adapter.rebuild(force=True)
        self._validator = adapter.validator

    def read(self, data: object) -> object:
        """Raises pydantic's `ValidationError`, and whatever a user's validator raises."""
        return self._validator.validate_python(data, strict=False, by_name=True, by_alias=self._by_alias)


def _read_again(kind: Any, data: object) -> object:
    """`data` as a type that contains itself."""
    shape = _shape(kind, repr(kind))
    if isinstance(shape, str):
        raise TypeError(shape)
    return shape.read(data)
