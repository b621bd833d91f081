"""Results read back: the member of a union that wrote them."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict, TypeVar
from uuid import UUID

from pydantic import BaseModel, model_validator

from tests.support.round_trip import (
    DAY,
    FROZEN,
    LATER,
    MODEL,
    MONEY,
    ONE,
    POINT,
    WHEN,
    Colour,
    Derived,
    Frozen,
    FrozenModel,
    Model,
    Named,
    Number,
    Odd,
    Point,
    Said,
    SaidOtherwise,
    Total,
    ValidatedFrozen,
    again,
    reader_of,
    returns,
    same,
)

T = TypeVar("T")
K = TypeVar("K")

# Unions.

VALIDATED = ValidatedFrozen(DAY)


class Narrow(BaseModel):
    n: int


class Textual(BaseModel):
    n: str


class Floating(BaseModel):
    n: float


class Days(TypedDict):
    day: date


class MoreDays(TypedDict):
    day: date
    other: date


@returns(
    (int | None, 1, None),
    (datetime | None, WHEN, None),
    (str | datetime, "text", "2030", "2030-01-31 12:30", WHEN),
    (str | Decimal | UUID | date | time | Colour, "x", Decimal("1.0"), ONE, DAY, time(1), Colour.RED, "1.0 "),
    (datetime | date, DAY, WHEN, datetime(2030, 1, 1)),
    (date | datetime, DAY, WHEN, datetime(2030, 1, 1)),
    (int | str, 1, "1", True),
    (str | int, 1, "1"),
    (bool | int, True, 1, 0, False),
    (float | int, 1, 1.0),
    (Decimal | float | int, Decimal(1), 1.0, 1),
    (bytes | str | UUID, b"a", "a", ONE, ONE.bytes),
    (timedelta | int | str, timedelta(1), 1, "P1D"),
    (list[int] | dict[str, int] | None, [1], {"a": 1}, None),
    (list[date] | list[str], [DAY], ["x"], ["2030"], [DAY, LATER]),
    (tuple[int, int] | tuple[int, int, int], (1, 2), (1, 2, 3)),
    (tuple[int, str] | str, (1, "a"), "b"),
    (list[date | int | None], [None, 1, DAY]),
    (dict[str | int | date, int], {"a": 1, 2: 3, DAY: 4}),
    (dict[tuple[int, int] | str, int], {(1, 2): 1, "a": 2}),
    (dict[FrozenModel | ValidatedFrozen | str, int], {MONEY: 1, "a": 2, VALIDATED: 3}),
    (Point | Frozen, POINT, FROZEN),
    (Point | Derived, POINT, Derived(1, WHEN), Derived(1, WHEN, Colour.RED)),
    (Derived | Point, POINT, Derived(1, WHEN), Derived(1, WHEN, Colour.RED)),
    (Model | FrozenModel, MODEL, MONEY),
    (Model | dict[str, Any], MODEL, {"a": 1}, {}),
    (dict[str, Any] | Model | Frozen, MODEL, FROZEN, {"x": 1}),
    (Narrow | Textual | Floating, Narrow(n=5), Textual(n="5"), Floating(n=5.0)),
    (Floating | Textual | Narrow, Narrow(n=5), Textual(n="5"), Floating(n=5.0)),
    (list[Decimal] | list[float], [Decimal("1.0")], [float("nan"), 1.0]),
    (dict[bool, int] | dict[int, int], {1: 1, 2: 2}, {True: 1}, {1: 1}),
    (Annotated[str, "said"] | Annotated[date, "said"], DAY, "2030", "x"),
    (list[Narrow] | list[Textual], [Narrow(n=1)], [Textual(n="1"), Textual(n="2")]),
    (Days | MoreDays, {"day": DAY}, {"day": DAY, "other": DAY}),
    (Total | Model | dict[str, int], MODEL, {"x": 1}),
    (Named | list[int] | str, Named(1, WHEN), [1, 2], "x"),
    (Model | list[Model] | dict[str, Model] | str | None, MODEL, [MODEL], {"a": MODEL}, "x", None, [], {}),
    (Literal[Colour.RED] | int | str, Colour.RED, 1, "blue"),
    (Colour | Number | Odd, Colour.BLUE, Number.TWO, Odd.PAIR, Odd.ZERO),
    (int | Any, 1, ["x"]),
    (Any | date, DAY),
)
def test_unions(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


@returns(
    (str | date, "2030-01-31", DAY),
    (timedelta | float, 60.0),
    (tuple[int, ...] | list[int], [1]),
    (Narrow | Days | dict[str, int], Narrow(n=1)),
)
def test_of_members_stored_alike_the_narrower_is_taken(kind: Any, value: object) -> None:
    """Whichever wrote it: stored data does not tell."""
    taken = {str: DAY}.get(type(value), value)
    assert same(again(kind, value), taken)


def test_a_validator_that_fails_on_another_s_data_is_passed_over() -> None:
    class Fussy(BaseModel):
        n: Any

        @model_validator(mode="before")
        @classmethod
        def look(cls, value: Any) -> Any:
            return {"n": value["missing"]}

    assert again(Fussy | Model, MODEL) == MODEL


def test_of_classes_that_have_changed_the_first_that_fits_is_taken() -> None:
    class Grown(BaseModel):
        a: int
        new: int = 7

    @dataclass
    class Other:
        b: int
        new: int = 8

    reader = reader_of(Grown | Other)
    assert reader.read({"a": 1}) == Grown(a=1)
    assert reader.read({"b": 1}) == Other(1)
    assert reader_of(list[Grown | Other]).read([{"b": 1}, {"a": 1}]) == [Other(1), Grown(a=1)]
    assert reader_of(list[Grown] | Other).read([{"a": 1}]) == [Grown(a=1)]


def test_unions_that_differ_in_order_are_read_apart() -> None:
    for kind in (Narrow | dict[str, int], dict[str, int] | Narrow, Narrow | dict[str, int]):
        assert again(kind, Narrow(n=1)) == Narrow(n=1)
    one, other = again(Said | SaidOtherwise, Said(kind="x")), again(SaidOtherwise | Said, Said(kind="x"))
    assert (type(one), type(other)) == (Said, SaidOtherwise), "the one named first"
