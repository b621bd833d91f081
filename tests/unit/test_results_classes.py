"""Results read back: dataclasses, named tuples, TypedDicts; generic ones, recursive ones, and names for types."""

import dataclasses
from collections import namedtuple
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID

import pytest
import typing_extensions
from pydantic import BaseModel, Field, StringConstraints
from typing_extensions import TypeAliasType

from jetcron.errors import NonRetriableError
from tests.support.round_trip import (
    DAY,
    FROZEN,
    LATER,
    LONG_AGO,
    MODEL,
    ONE,
    POINT,
    WHEN,
    Colour,
    Derived,
    Extended,
    Frozen,
    Model,
    Named,
    Nested,
    Node,
    Odd,
    Partial,
    Point,
    Slotted,
    Total,
    again,
    changed,
    reader_of,
    returns,
    same,
)

T = TypeVar("T")
K = TypeVar("K")

# Dataclasses, named tuples, TypedDicts.


@dataclass(frozen=True, slots=True, kw_only=True)
class Strictest:
    day: date = DAY
    all: list[Frozen] = field(default_factory=list)
    constant: ClassVar[date] = LATER


@dataclass
class Asking:
    """Its `__init__` asks for what is not stored."""

    a: int
    more: InitVar[int]
    b: int = field(init=False)
    c: list[int] = field(default_factory=list)

    def __post_init__(self, more: int) -> None:
        self.b = self.a + more


@dataclass
class Hinted:
    a: int
    more: InitVar[int] = 5
    b: int = field(init=False)

    def __post_init__(self, more: int) -> None:
        self.b = self.a + more


@dataclass
class Late:
    a: int
    day: date = field(init=False)
    n: int = field(init=False, default=3)
    log: list[str] = field(init=False, default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.day = date(2030, 1, self.a)


@dataclass
class Counting:
    """Made once more, it would count once more."""

    a: int

    def __post_init__(self) -> None:
        self.a += 1


@dataclass
class OwnInit:
    a: int
    b: date

    def __init__(self, both: tuple[int, date]) -> None:
        self.a, self.b = both


@dataclass
class OwnKeywords:
    a: int

    def __init__(self, **values: int) -> None:
        self.a = values["a"]


@dataclass(init=False)
class NoInit:
    a: date


@dataclass
class Left:
    right: Optional["Right"]
    day: date


@dataclass
class Right:
    left: Left | None
    amount: Decimal


@returns(
    (Point, POINT, Point(2, LONG_AGO)),
    (Frozen, FROZEN, Frozen(Decimal(0))),
    (Slotted, Slotted(ONE, POINT), Slotted(ONE, POINT, FROZEN)),
    (Strictest, Strictest(), Strictest(day=LATER, all=[FROZEN])),
    (Derived, Derived(1, WHEN), Derived(1, WHEN, Colour.RED, at=time(3))),
    (Asking, Asking(1, 2), changed(Asking(1, 2), b=7, c=[1])),
    (Hinted, Hinted(1, 9)),
    (Late, Late(3), changed(Late(1), day=LATER, n=7, log=["x"])),
    (Counting, Counting(1)),
    (OwnInit, OwnInit((1, DAY))),
    (OwnKeywords, OwnKeywords(a=1)),
    (NoInit, changed(NoInit(), a=DAY)),
    (Node, Node(DAY, [Node(LATER, [Node(DAY)])], Node(LATER))),
    (Left, Left(Right(Left(None, DAY), Decimal(1)), LATER)),
    (list[Point], [POINT]),
    (dict[str, tuple[Point, Frozen]], {"a": (POINT, FROZEN)}),
    (dict[Frozen, int], {FROZEN: 1}),
    (dict[tuple[Frozen, int], Point], {(FROZEN, 1): POINT}),
    (dataclasses.make_dataclass("Made", [("day", date), ("n", int, 3)]), None),
)
def test_dataclasses(kind: Any, value: object) -> None:
    value = kind(DAY) if value is None else value
    assert same(again(kind, value), value)


def test_a_dataclass_s_own_check_is_made_again() -> None:
    @dataclass
    class Positive:
        n: int

        def __post_init__(self) -> None:
            if self.n < 0:
                raise ValueError("n is below 0")

    assert again(Positive, Positive(1)) == Positive(1)
    with pytest.raises(NonRetriableError, match="n is below 0"):
        reader_of(Positive).read({"n": -1})


def test_a_field_that_came_later_has_its_default() -> None:
    assert reader_of(Strictest).read({"all": []}) == Strictest()
    assert reader_of(Asking).read({"a": 1, "b": 3}) == changed(Asking(1, 2), c=[])
    assert reader_of(Point).read({"x": 1, "when": WHEN.isoformat(), "gone": 1}) == POINT


class Tree(NamedTuple):
    day: date
    branches: list["Tree"]


Bare = namedtuple("Bare", "a b", defaults=[1])


class Subclassed(Named):
    pass


class Ring(TypedDict):
    day: date
    rings: list["Ring"]


Functional = TypedDict("Functional", {"a-b": date, "class": bytes})


@returns(
    (Named, Named(1, WHEN), Named(1, WHEN, Colour.RED)),
    (Tree, Tree(DAY, [Tree(LATER, [])])),
    (Bare, Bare(1), Bare(1, "a")),
    (Subclassed, Subclassed(1, WHEN)),
    (dict[Named, list[Named]], {Named(1, WHEN): [Named(2, WHEN)]}),
    (Total, {"x": 1, "when": WHEN}, {"when": WHEN, "x": 1}, {"x": 1, "when": WHEN, "more": [1]}),
    (Partial, {"need": Decimal("1.0")}, {"need": Decimal(1), "day": DAY}),
    (Nested, {"x": 1, "when": WHEN}, {"x": 1, "when": WHEN, "maybe": None}),
    (Nested, {"x": 1, "when": WHEN, "inner": {"x": 2, "when": WHEN}, "many": [{"need": Decimal(1)}]}),
    (Nested, {"x": 1, "when": WHEN, "maybe": {"need": Decimal(1), "day": DAY}}),
    (Ring, {"day": DAY, "rings": [{"day": LATER, "rings": []}]}),
    (Extended, {"day": DAY}, {"id": ONE, "day": DAY}),
    (Functional, {"a-b": DAY, "class": b"\xff"}),
    (list[Total], [{"x": 1, "when": WHEN}]),
)
def test_named_tuples_and_typed_dicts(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


# Names for types, generics, recursion.

UserId = NewType("UserId", int)
Moment = NewType("Moment", datetime)
Inner = NewType("Inner", Moment)
Json = TypeAliasType("Json", "bool | int | float | str | list[Json] | dict[str, Json] | None")
Dates = TypeAliasType("Dates", Union[date, list["Dates"]])  # noqa: UP007
Either = TypeAliasType("Either", T | list[T], type_params=(T,))  # type: ignore[misc]
Kind = TypeAliasType("Kind", Odd)


@dataclass
class Box(Generic[T]):
    value: T
    values: list[T] = field(default_factory=list)


@dataclass
class DateBox(Box[date]):
    more: int = 0


@dataclass
class Pair(Generic[T, K]):
    map: dict[str, T]
    box: Box[K]
    maybe: T | None = None


@dataclass
class HalfPair(Pair[date, T]):
    all: list[T] = field(default_factory=list)
    next: Optional["HalfPair[T]"] = None


@dataclass
class TimePair(HalfPair[time]):
    pass


class GenericTuple(NamedTuple, Generic[T]):
    value: T
    values: list[T] = []  # noqa: RUF012 - a default


class GenericDict(TypedDict, Generic[T]):
    value: T


class GenericDictMore(GenericDict[date], total=False):
    colour: Colour


class ExtendedGeneric(typing_extensions.TypedDict, Generic[T]):
    value: T


class ExtendedDates(ExtendedGeneric[date]):
    more: Decimal


@returns(
    (UserId, 1),
    (Inner, WHEN),
    (dict[UserId, list[Moment]], {UserId(1): [WHEN]}),
    (NewType("NewPoint", Point), POINT),
    (Annotated[int, "said"], 1),
    (Annotated[date, Field(gt=DAY)], LATER),
    (Annotated[datetime, "said"], LONG_AGO),
    (Annotated[bytes, "said"], b"\xff"),
    (Annotated[Point, "said"], POINT),
    (Annotated[Colour | None, Field(description="said")], Colour.RED, None),
    (Annotated[str, StringConstraints(to_upper=True)], "as it was"),
    (list[Annotated[Decimal, Field(max_digits=5, decimal_places=2)]], [Decimal("1.10")]),
    (Annotated[list[Annotated[Odd, "said"]], Field(min_length=1)], [Odd.PAIR]),
    (Annotated[date, "said"] | Annotated[str, "said"], DAY, "2030", "x"),
    (Json, None, True, 1.5, "x", [1, [None, {"a": [1.5]}]], {"a": {"b": []}}),
    (Dates, DAY, [DAY, [LATER, []]]),
    (Either[date], DAY, [DAY]),
    (dict[str, Either[Model]], {"a": MODEL, "b": [MODEL]}),
    (Kind | Point, Odd.PAIR, POINT),
    (str | Dates, "x", DAY, [DAY]),
    (Box[date], Box(DAY, [DAY])),
    (Box[Odd | str], Box(Odd.PAIR, ["x"])),
    (Box, Box(1, ["a"])),
    (DateBox, DateBox(DAY, [DAY])),
    (Pair[date, Decimal], Pair({"a": DAY}, Box(Decimal(1), [Decimal(2)]), LATER)),
    (HalfPair[UUID], HalfPair({"a": DAY}, Box(ONE), None, [ONE], HalfPair({}, Box(ONE)))),
    (TimePair, TimePair({"a": DAY}, Box(time(1)), None, [time(2)], HalfPair({}, Box(time(3))))),
    (dict[str, Box[Model] | Box[date]], {"a": Box(MODEL), "b": Box(DAY)}),
    (GenericTuple[date], GenericTuple(DAY, [DAY])),
    (GenericTuple[Colour] | list[int], GenericTuple(Colour.RED), [1]),
    (GenericDict[date], {"value": DAY}),
    (GenericDictMore, {"value": DAY}, {"value": DAY, "colour": Colour.RED}),
    (ExtendedGeneric[Odd], {"value": Odd.PAIR}),
    (ExtendedDates, {"value": DAY, "more": Decimal(1)}),
)
def test_names_generics_and_recursion(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


def test_classes_made_inside_functions() -> None:
    @dataclass
    class Local:
        day: date
        children: list["Local"] = field(default_factory=list)

    class LocalModel(BaseModel):
        text: str | date
        children: list["LocalModel"] = []

    class LocalTree(NamedTuple):
        day: date
        local: Local

    for value in (
        Local(DAY, [Local(LATER)]),
        LocalModel(text=DAY, children=[LocalModel(text="x")]),
        LocalTree(DAY, Local(DAY)),
    ):
        assert same(again(type(value), value), value)
