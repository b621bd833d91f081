"""Results read back: what a step returned, packed and unpacked, is what it was, of the type its function promises."""

import asyncio
import functools
import json
import re
import typing
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntFlag
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import pydantic
import pytest
from pydantic import BeforeValidator

from jetcron.errors import NonRetriableError
from jetcron.values.results import result_reader
from jetcron_protocol.codec import EncodeError, pack, unpack
from tests.support.round_trip import (
    BERLIN,
    DAY,
    LATER,
    LONG_AGO,
    MODEL,
    ONE,
    POINT,
    WHEN,
    Bits,
    Colour,
    Computed,
    Model,
    Named,
    Nested,
    Node,
    Number,
    Odd,
    Partial,
    Point,
    Recursive,
    Slotted,
    Word,
    again,
    reader_of,
    returns,
    same,
)

T = TypeVar("T")
K = TypeVar("K")

# Values of one piece.


class Mixed(str, Enum):  # noqa: UP042 - as they were written
    A = "a"


class IntBits(IntFlag):
    X = 1
    Y = 2


class Guessing(Enum):
    GUESSED = "a"

    @classmethod
    def _missing_(cls, value: object) -> "Guessing":
        if value == "fails":
            raise KeyError(value)
        return cls.GUESSED


@returns(
    (int, 0, -(2**63), 2**64 - 1, True),
    (float, 1.0, 0.1, -0.0, float("nan"), float("inf"), 1e308, 1),
    (bool, True, False),
    (str, "", "text", "2030-01-31", "1"),
    (bytes, b"", b"\x00\xff"),
    (bytearray, bytearray(b"\xff")),
    (None, None),
    (datetime, WHEN, datetime(2030, 1, 31), datetime.min, datetime.max, datetime(2030, 1, 1, tzinfo=BERLIN)),
    (datetime, LONG_AGO, datetime(2030, 1, 1, tzinfo=timezone(timedelta(seconds=37, microseconds=5)))),
    (date, DAY, date.min, date.max, datetime(2030, 1, 1, 2)),
    (time, time(1, 2, 3, 4), time(0), time(1, tzinfo=UTC), time(23, 59, 59, 999999, tzinfo=BERLIN)),
    (timedelta, timedelta(0), timedelta(1, 2, 3), timedelta(-1), timedelta(microseconds=-1)),
    (timedelta, timedelta.max, timedelta.min, timedelta(days=90_000, microseconds=1)),
    (Decimal, *map(Decimal, ("0", "-0", "1.10", "1E+5", "0E-10", "NaN", "sNaN", "-Infinity", "1e999999"))),
    (UUID, UUID(int=0), UUID(int=2**128 - 1)),
)
def test_standard_types(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


@returns(
    *((kind, *kind) for kind in (Colour, Number, Word, Mixed, Odd, Guessing)),
    (Bits, *Bits, Bits.X | Bits.Z, Bits(0)),
    (IntBits, *IntBits, IntBits.X | IntBits.Y, IntBits(0), IntBits(8)),
    (Literal["a", 1, True, None, b"x"], "a", 1, True, None, b"x"),
    (Literal[Colour.RED, "x", 2], Colour.RED, "x", 2),
    (Literal[Number.ONE, "1"], Number.ONE, "1"),
    (Literal[Odd.PAIR, Odd.ZERO], Odd.PAIR, Odd.ZERO),
    (list[Odd], list(Odd)),
    (dict[Colour, Odd], {Colour.RED: Odd.PAIR, Colour.BLUE: Odd.MAP}),
    (tuple[Bits, ...], (Bits.X | Bits.Y, Bits(0))),
)
def test_enums_and_literals(kind: Any, value: object) -> None:
    found = again(kind, value)
    assert same(found, value)
    if isinstance(value, Enum) and not isinstance(value, Flag):
        assert found is value


def test_an_enum_makes_what_it_can_of_values_it_does_not_have() -> None:
    assert reader_of(Guessing).read("z") is Guessing.GUESSED
    for kind, data in ((Guessing, "fails"), (Colour, "green"), (Colour, ["red"]), (Odd, {"a": 2})):
        with pytest.raises(
            NonRetriableError, match=f"does not fit {kind.__name__}: Input should be a stored"
        ):
            reader_of(kind).read(data)


# Containers.


@returns(
    (list, [1, "a"]),
    (dict, {1: 2}),
    (tuple, (1, 2)),
    (tuple[()], ()),
    (list[datetime], [WHEN], []),
    (typing.List[typing.Tuple[int, Decimal]], [(1, Decimal(1))]),  # noqa: UP006
    (tuple[int, str], (1, "a")),
    (tuple[timedelta, ...], (timedelta(1), timedelta(2)), ()),
    (tuple[bytes, tuple[UUID, None]], (b"\xff", (ONE, None))),
    (dict[str, list[time]], {"a": [time(1)], "": []}),
    (dict[date, Decimal], {DAY: Decimal("1.10"), LATER: Decimal(0)}),
    (dict[UUID, bool], {ONE: True}),
    (dict[tuple[int, date], str], {(1, DAY): "a"}),
    (dict[timedelta, int], {timedelta(1): 1}),
    (dict[bytes, float], {b"\xff": 1.5}),
    (defaultdict[str, list[date]], defaultdict(list, a=[DAY])),
    (OrderedDict[str, date], OrderedDict(b=DAY, a=DAY)),
    (Counter[str], Counter(a=2)),
    (Mapping[str, date], {"a": DAY}),
    (Sequence[date], [DAY]),
    (Iterable[Mapping[date, tuple[Colour, ...]]], [{DAY: (Colour.RED,)}]),
    (Any, {"a": [1]}),
    (object, [None]),
    (dict[str, Any], {"a": {"b": [1.5, b"x"]}}),
)
def test_containers(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


# What functions may be.


def plain_function() -> date: ...  # type: ignore[empty-body]


async def async_function() -> date: ...  # type: ignore[empty-body]


def awaitable() -> Awaitable[date]: ...  # type: ignore[empty-body]


def coroutine() -> Coroutine[Any, Any, date]: ...  # type: ignore[empty-body]


def future() -> "asyncio.Future[date]": ...  # type: ignore[empty-body]


def as_text(other: "Missing") -> "date": ...  # type: ignore[name-defined, empty-body] # noqa: F821


def half_text() -> Awaitable["date"]: ...  # type: ignore[empty-body]


def decorated_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@decorated_by_name
def decorated() -> date: ...  # type: ignore[empty-body]


class Service:
    def method(self) -> date: ...  # type: ignore[empty-body]

    @classmethod
    def of_class(cls) -> date: ...  # type: ignore[empty-body]

    @staticmethod
    def static() -> date: ...  # type: ignore[empty-body]

    async def __call__(self) -> date: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    "function",
    [
        plain_function,
        async_function,
        awaitable,
        coroutine,
        future,
        as_text,
        half_text,
        decorated,
        functools.partial(plain_function),
        functools.partial(functools.partial(async_function), 1),
        functools.partial(decorated),
        Service().method,
        Service.method,
        Service.of_class,
        Service.static,
        Service(),
        functools.partial(Service(), 1),
        functools.cache(plain_function),
    ],
    # Addresses differ from worker to worker.
    ids=lambda function: re.sub(r" at 0x[0-9a-f]+", "", repr(function)),
)
def test_whatever_the_function_is_its_promise_is_found(function: Callable[..., object]) -> None:
    reader = result_reader(function)
    assert reader.untyped is None
    assert reader.read("2030-01-31") == DAY
    assert reader.read("2030-01-31").__class__ is date


@pytest.mark.parametrize(
    ("made_by", "value"),
    [
        (Point, POINT),
        (Model, MODEL),
        (functools.partial(Model, x=1), MODEL),
        (Decimal, Decimal("1.0")),
        (Colour, Colour.RED),
        (dict, {"a": 1}),
    ],
)
def test_a_class_returns_its_objects(made_by: Any, value: object) -> None:
    assert same(result_reader(made_by).read(unpack(pack(value))), value)


def test_variables_of_enclosing_functions_are_looked_up() -> None:
    @dataclass
    class Local:
        day: date

    def uses() -> "list[Local]":
        return [Local(DAY)]

    def does_not() -> "list[Local]": ...  # type: ignore[empty-body]

    assert result_reader(uses).read([{"day": "2030-01-31"}]) == uses()
    assert result_reader(does_not).read([{"day": "2030-01-31"}]) == [{"day": "2030-01-31"}]
    assert result_reader(does_not).untyped == (
        "the annotation list[Local] cannot be resolved (name 'Local' is not defined)"
    )


def test_without_a_promise_data_comes_as_it_is_stored() -> None:
    def unannotated():  # type: ignore[no-untyped-def]
        ...

    def promising_anything() -> Any: ...

    def promising_nothing() -> None: ...

    def promising_a_variable(value: T) -> T: ...  # type: ignore[empty-body]

    def with_other_annotations(value: int):  # type: ignore[no-untyped-def]
        ...

    data = {"day": "2030-01-31", "pair": [1, 2]}
    for function in (
        unannotated,
        promising_anything,
        promising_nothing,
        promising_a_variable,
        with_other_annotations,
        lambda: 1,
        print,
        uuid.uuid4,
        json.dumps,
        functools.partial(unannotated),
    ):
        reader = result_reader(function)
        assert reader.read(data) is data
        assert reader.untyped is None


def test_a_promise_that_cannot_be_followed_leaves_data_as_it_is_stored_and_says_why() -> None:
    class Unknown:
        pass

    def unresolvable() -> "Missing":  # type: ignore[name-defined] # noqa: F821
        ...

    def broken() -> "list[": ...  # type: ignore[syntax] # noqa: F722

    def raising() -> "1 / 0": ...  # type: ignore[valid-type]

    for function, text in (
        (unresolvable, "the annotation Missing cannot be resolved (name 'Missing' is not defined)"),
        (broken, "the annotation list[ cannot be resolved"),
        (raising, "the annotation 1 / 0 cannot be resolved (division by zero)"),
    ):
        reader = result_reader(function)
        assert reader.read({"a": 1}) == {"a": 1}
        assert text in str(reader.untyped)
    for kind in (Unknown, list[Unknown], Unknown | int, dict[str, Unknown]):
        reader = reader_of(kind)
        assert reader.read("x") == "x"
        assert str(reader.untyped).startswith("the type ")
        assert "Unknown" in str(reader.untyped)


def test_a_reader_is_made_once_for_a_function_and_anew_for_another_promise() -> None:
    def function() -> date: ...  # type: ignore[empty-body]

    first = result_reader(function)
    assert result_reader(function) is first
    assert repr(first).endswith("function, date)")
    assert repr(result_reader(print)) == "ResultReader(no annotation, as stored)"
    function.__annotations__["return"] = Decimal
    assert result_reader(function).read("1.0") == Decimal("1.0")


def test_what_is_said_of_a_type_may_be_unhashable() -> None:
    kind = Annotated[list[Annotated[date, {"a": []}]], ["said"]]
    assert again(kind, [DAY]) == [DAY]


# What does not fit.


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        (int, "x", "Input should be a valid integer"),
        (str, 1, "Input should be a stored str"),
        (bytes, "text", "Input should be a stored bytes"),
        (date, "31.1.2030", "Input should be a valid date"),
        (timedelta, float("nan"), "Input should be a valid timedelta"),
        (pydantic.HttpUrl | int, "https://jetcron.dev/", "HttpUrl: Input should be a stored HttpUrl; int: "),
        (list[date], ["2030-01-31", "x"], "1: Input should be a valid date"),
        (tuple[int, int], [1], "1: Field required"),
        (dict[str, date], {"a": "x"}, "a: Input should be a valid date"),
        (Point, {"x": "many"}, "x: Input should be a valid integer.*; when: Field required"),
        (Point, [1], "Input should be a valid dictionary"),
        (Slotted, {"id": str(ONE), "point": {"x": 1}}, "point.when: Field required"),
        (Named, [1], "when: Field required"),
        (Nested, {"x": 1, "when": "x"}, "when: Input should be a valid datetime"),
        (Partial, {"day": "2030-01-31"}, "need: Field required"),
        (Model, {"x": "many"}, "x: Input should be a valid integer.*; when: Field required"),
        (list[Model], [{"x": 1, "when": "never"}], "0.when: Input should be a valid datetime"),
        (Recursive, {"day": "2030-01-31", "children": [{}]}, "children.0.day: Field required"),
        (Node, {"day": "2030-01-31", "children": [{}]}, "children.0.day: Field required"),
        (Computed, {"w": 1, "area": 2, "more": 3}, "more: Extra inputs are not permitted"),
        (Literal[Colour.RED], "blue", "Input should be a stored literal"),
        (int | date, "x", "date: Input should be a valid date.*; int: Input should be a valid integer"),
        (int | str, 1.5, "int: .*; str: Input should be a stored str"),
        (Model | Point, {"x": 1}, "Model.when: Field required; Point.when: Field required"),
        (dict[str, Model | None], {"a": {"x": 1}}, "a.when: Field required"),
    ],
)
def test_what_no_longer_fits_names_the_fields(kind: Any, data: object, problem: str) -> None:
    with pytest.raises(NonRetriableError, match=problem) as raised:
        reader_of(kind).read(data)
    text = str(raised.value)
    assert text.startswith("reader_of.<locals>.promise: its stored result does not fit ")
    assert text.endswith("new ids, and a function must return what it promises")
    assert "\n" not in text


def test_private_values_are_not_told() -> None:
    with pytest.raises(NonRetriableError) as raised:
        reader_of(list[Model | Computed]).read([{"x": "hunter2", "when": "hunter2", "n": "hunter2"}])
    assert "hunter2" not in str(raised.value)


def test_only_the_first_problems_are_told() -> None:
    with pytest.raises(NonRetriableError, match=r"9: .*\(and 90 more\)"):
        reader_of(list[int]).read(["x"] * 100)


def test_a_validator_that_breaks_is_told() -> None:
    def divide(value: Any) -> Any:
        return 1 / 0

    with pytest.raises(NonRetriableError, match="reading it raises ZeroDivisionError"):
        reader_of(Annotated[list[int], BeforeValidator(divide)]).read([1])


@pytest.mark.parametrize("value", [{1}, frozenset(), 1j, object(), pydantic.SecretStr("x"), 2**64])
def test_what_could_not_be_read_back_is_not_stored(value: object) -> None:
    with pytest.raises(EncodeError):
        pack(value)
