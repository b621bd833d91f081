"""Results, packed and unpacked and read back, and types to try it with."""

import dataclasses
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Any, Literal, NamedTuple, NotRequired, Optional, Required, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import typing_extensions
from pydantic import BaseModel, ConfigDict, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from jetcron.values.results import ResultReader, result_reader
from jetcron_protocol.codec import pack, unpack


def reader_of(kind: Any) -> ResultReader:
    """The reader of a function that promises a `kind`."""

    def promise() -> None: ...

    promise.__annotations__["return"] = kind
    return result_reader(promise)


def again(kind: Any, value: object) -> Any:
    """`value` as it comes back from the journal."""
    reader = reader_of(kind)
    assert reader.untyped is None
    return reader.read(unpack(pack(value)))


def same(one: Any, other: Any) -> bool:
    """Equal, with equal types, all the way down; maps in one order."""
    if type(one) is not type(other):
        return False
    match one:
        case dict():
            return same(list(one.items()), list(other.items()))
        case list() | tuple():
            return len(one) == len(other) and all(map(same, one, other))
        case BaseModel():
            extra = same(one.__pydantic_extra__, other.__pydantic_extra__)
            return extra and same(one.__dict__, other.__dict__)
        case float() | Decimal():
            return repr(one) == repr(other)  # not a number, and the sign of zero
        case datetime() | time():
            return one == other and one.utcoffset() == other.utcoffset()
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


def returns(*cases: tuple[Any, ...]) -> pytest.MarkDecorator:
    """Each case is a type and values of it."""
    flat = [(kind, value) for kind, *values in cases for value in values]
    return pytest.mark.parametrize(("kind", "value"), flat, ids=[repr(value)[:60] for _, value in flat])


def changed(value: Any, **fields: Any) -> Any:
    for name, one in fields.items():
        object.__setattr__(value, name, one)
    return value


DAY, LATER = date(2030, 1, 31), date(2031, 12, 1)
WHEN = datetime(2030, 1, 31, 12, 30, 0, 123456, tzinfo=UTC)
BERLIN = timezone(timedelta(hours=1))
LONG_AGO = datetime(1880, 1, 1, tzinfo=ZoneInfo("Europe/Prague"))
"""With an offset of minutes and seconds."""
ONE = UUID(int=1)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Number(IntEnum):
    ONE = 1
    TWO = 2


class Word(StrEnum):
    A = "a"


class Bits(Flag):
    X = 1
    Y = 2
    Z = 4


class Odd(Enum):
    """Values msgpack gives back as something else, or that are easily mistaken for each other."""

    PAIR = (1, 2)
    DAY = DAY
    MONEY = Decimal("1.50")
    MAP = {"a": 1}  # noqa: RUF012 - the value of a member
    NONE = None
    FALSE = False
    ZERO = 0
    TRUE = "True"


@dataclass
class Point:
    x: int
    when: datetime


@dataclass(frozen=True)
class Frozen:
    amount: Decimal
    pair: tuple[int, ...] = ()


@dataclass(slots=True)
class Slotted:
    id: UUID
    point: Point
    optional: Frozen | None = None


@dataclass
class Derived(Point):
    colour: Colour | None = None
    _: KW_ONLY
    at: time = time(1)


@dataclass
class Node:
    day: date
    children: list["Node"] = field(default_factory=list)
    parent: Optional["Node"] = None


class Named(NamedTuple):
    x: int
    when: datetime
    colour: Colour | None = None


class Total(TypedDict):
    x: int
    when: datetime


class Partial(TypedDict, total=False):
    day: date
    need: Required[Decimal]


class Nested(Total, total=False):
    inner: Total
    many: list[Partial]
    maybe: NotRequired[Partial | None]


class Extended(typing_extensions.TypedDict):
    day: date
    id: typing_extensions.NotRequired[UUID]


class Model(BaseModel):
    x: int
    when: datetime


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)

    amount: Decimal
    pair: tuple[int, ...] = ()


class Recursive(BaseModel):
    day: date
    children: list["Recursive"] = []
    parent: Optional["Recursive"] = None


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    w: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.w * 2


class Said(BaseModel):
    kind: str


class SaidOtherwise(BaseModel):
    kind: str


@pydantic_dataclass(frozen=True)
class ValidatedFrozen:
    text: str | date
    colour: Literal[Colour.RED] = Colour.RED


POINT = Point(1, WHEN)
FROZEN = Frozen(Decimal("1.0"), (1, 2))


MODEL = Model(x=1, when=WHEN)
MONEY = FrozenModel(amount=Decimal("1.10"), pair=(1, 2))
