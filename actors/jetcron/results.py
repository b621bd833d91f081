"""The result of a durable step, as the type its function promises.

Owns the way back: a result is stored as plain data (`codec.plain`), and when the run is replayed it is read as
the function's return annotation, so that the code after the step meets what it met the first time. Standard
types, enums, dataclasses, named tuples and TypedDicts come back as they were, even where pydantic would coerce;
pydantic's own classes, and `Annotated` scalars, are read by pydantic, their fields by name. Pure: no I/O.

Without an annotation, or with one that cannot be followed (`ResultReader.untyped` says why), the data comes as
it is stored: functions of the standard library, such as `uuid.uuid4`, say nothing of their result.

What stored data cannot tell:

- In a union, which member wrote it. Text in the very form of a datetime, date, time, Decimal, UUID or enum value
  is that, before it is a str; a float is a float, before it is a timedelta; a list is a list, before it is a
  tuple; a map is the model or dataclass that most of its keys fit, or else the one named first, and of a model
  and a `dict` the one named first. Inside a pydantic model text stays text, as pydantic has it.
- A zone's name and `fold`: a datetime comes back with its offset. Microseconds of a timedelta beyond 270 years.
- A subclass: what is annotated with its base comes back as the base; what is annotated `Sequence`, as a list.
- Of a pydantic model: private attributes, excluded fields, and what a serializer of its own made of a field,
  unless its validators take it back (`Json` fields do not). With ``extra="allow"``, computed fields come back
  among the extras.
- A dataclass is made by its ``__init__`` and then given its stored fields; if that asks for an `InitVar`, which
  is not stored, it is made without it, and ``__post_init__`` is not run.

`codec.pack` refuses sets, `SecretStr` and what else it does not know, before anything is stored.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jetcron.annotations import evaluated, function_under, portable, problems_in, shown, spelled, unwrapped
from jetcron.errors import NonRetriableError
from jetcron.stored import awaited, stored

_KEPT = "__jetcron_result__"
_NO_SCHEMAS = ("metadata", "default", "expected", "members")
"""What in a core schema is the users' own."""


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
        shape = _made(kind, exact=False)
    if isinstance(shape, str):
        return ResultReader(where, untyped=f"the type {spelled(kind)} cannot be validated ({shape})")
    return ResultReader(where, shape)


@lru_cache(maxsize=256)
def _shape(kind: Any, spelling: str, *, exact: bool = False) -> "_Shape | str":
    """Closures made anew share one. `spelling`: unions that differ in order are equal, and are not the same."""
    return _made(kind, exact)


def _made(kind: Any, exact: bool) -> "_Shape | str":
    """The shape of `kind`, or why there is none."""
    try:
        return _Shape(kind, exact)
    except Exception as error:  # noqa: BLE001 - types may bring code of their own that makes their schema
        return _line(error)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Shape:
    """A type that stored data can be read as."""

    def __init__(self, kind: Any, exact: bool) -> None:
        self.name = spelled(kind)
        parameters = getattr(kind, "__parameters__", ())
        if parameters and not inspect.isclass(kind):
            kind = kind[(Any,) * len(parameters)]  # type variables: what they stand for comes as it is stored
        try:
            adapter = TypeAdapter(stored(kind, exact=exact, again=_read_again))
        except Exception:  # noqa: BLE001 - then as pydantic has it; if it has it not, that is raised
            adapter = TypeAdapter(portable(kind))
        if not adapter.pydantic_complete:
            adapter.rebuild(force=True)
        self._validator = adapter.validator
        self._by_alias = False
        self._computed: set[str] = set()
        for node in _nodes(adapter.core_schema):
            # Stored are the names of fields, but of models that ask for aliases always.
            self._by_alias |= node.get("serialize_by_alias") is True
            if node.get("type") == "computed-field":
                self._computed |= {node["property_name"], node.get("alias", node["property_name"])}

    def read(self, data: object) -> object:
        """Raises pydantic's `ValidationError`, and whatever a user's validator raises."""
        try:
            return self._validate(data)
        except ValidationError as error:
            extra = self._computed_extras(error)
            if not extra:
                raise
        return self._validate(_without(data, extra))

    def _validate(self, data: object) -> object:
        # Strict models are read leniently too: times and the like are text in what is stored.
        return self._validator.validate_python(data, strict=False, by_name=True, by_alias=self._by_alias)

    def _computed_extras(self, error: ValidationError) -> list[tuple[int | str, ...]]:
        """Where models refuse, as extra, computed fields of theirs: these are stored for other readers."""
        if not self._computed:
            return []
        return [
            problem["loc"]
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
            if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument")
            and problem["loc"][-1] in self._computed
        ]


def _read_again(kind: Any, exact: bool, data: object) -> object:
    """`data` as a type that contains itself."""
    shape = _shape(kind, repr(kind), exact=exact)
    if isinstance(shape, str):
        raise TypeError(shape)
    return shape.read(data)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every map in a core schema."""
    rest = [schema]
    while rest:
        match rest.pop():
            case dict() as node:
                yield node
                rest.extend(inner for key, inner in node.items() if key not in _NO_SCHEMAS)
            case list() | tuple() as nodes:
                rest.extend(nodes)


def _without(data: object, extra: list[tuple[int | str, ...]]) -> object:
    """A copy of `data` without the keys at these places."""
    data = copy.deepcopy(data)
    for *path, name in extra:
        inner: Any = data
        for part in path:
            # Members of unions, and validators, have labels in the path that are no keys: passed over.
            with contextlib.suppress(LookupError, TypeError):
                inner = inner[part]
        if isinstance(inner, dict):
            inner.pop(name, None)
    return data
