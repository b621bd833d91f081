"""Results read back: the classes of pydantic, in all they can do."""

from dataclasses import field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar, Union
from uuid import UUID

import pydantic_core
import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    StringConstraints,
    Tag,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from jetcron.errors import NonRetriableError
from tests.support.round_trip import (
    DAY,
    FROZEN,
    LATER,
    LONG_AGO,
    MODEL,
    MONEY,
    ONE,
    POINT,
    WHEN,
    Colour,
    Computed,
    Extended,
    Frozen,
    FrozenModel,
    Model,
    Named,
    Odd,
    Point,
    Recursive,
    Said,
    SaidOtherwise,
    ValidatedFrozen,
    again,
    changed,
    reader_of,
    returns,
    same,
)

T = TypeVar("T")
K = TypeVar("K")

# Models.


class Everything(BaseModel):
    a: datetime
    b: date
    c: time
    d: timedelta
    e: Decimal
    f: UUID
    g: bytes
    h: Odd
    i: tuple[int, str]
    j: date | None
    k: float
    m: None
    n: Any
    o: Named
    p: Extended
    q: Point
    r: Frozen
    s: dict[Colour, Model | None]
    t: list[FrozenModel]


class First(BaseModel):
    second: Optional["Second"] = None
    text: str | date = "x"


class Second(BaseModel):
    first: First | None = None
    all: list[First] = []
    colour: Literal[Colour.RED] = Colour.RED


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    day: date
    colour: Colour
    pair: tuple[int, int]
    raw: bytes
    span: timedelta
    amount: Decimal
    kind: Literal[Colour.RED]
    text: str | date | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def next(self) -> date:
        return self.day + timedelta(1)


@returns(
    (Model, MODEL, Model(x=2, when=LONG_AGO)),
    (FrozenModel, MONEY, FrozenModel(amount=Decimal(0))),
    (
        Everything,
        Everything(
            a=WHEN,
            b=DAY,
            c=time(1),
            d=timedelta(1, 2, 3),
            e=Decimal("1.10"),
            f=ONE,
            g=b"\xff",
            h=Odd.PAIR,
            i=(1, "a"),
            j=None,
            k=1.0,
            m=None,
            n=[1, {"a": 2}],
            o=Named(1, WHEN, Colour.RED),
            p={"day": DAY},
            q=POINT,
            r=FROZEN,
            s={Colour.RED: MODEL, Colour.BLUE: None},
            t=[MONEY],
        ),
    ),
    (Recursive, Recursive(day=DAY, children=[Recursive(day=LATER)], parent=Recursive(day=LATER))),
    (First, First(second=Second(first=First(second=Second(), text=DAY), all=[First()]))),
    (
        Strict,
        Strict(
            day=DAY,
            colour=Colour.RED,
            pair=(1, 2),
            raw=b"\xff",
            span=timedelta(1),
            amount=Decimal("1.0"),
            kind=Colour.RED,
            text=LATER,
        ),
    ),
    (list[Model], [MODEL]),
    (dict[FrozenModel, int], {MONEY: 1}),
    (tuple[Model, dict[str, FrozenModel]], (MODEL, {"a": MONEY})),
)
def test_models(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


class Aliased(BaseModel):
    x: int = Field(alias="X")
    y: date = Field(validation_alias=AliasChoices("Y", "why"), serialization_alias="YY")


class AliasesStored(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True, extra="forbid")

    x: int = Field(alias="X")
    y: date = Field(validation_alias="Y", serialization_alias="YY")

    @computed_field(alias="ZZ")  # type: ignore[prop-decorator]
    @property
    def z(self) -> int:
        return 1


class Swapped(BaseModel):
    a: int = Field(alias="b")
    b: str = Field(alias="a")


class SwappedStored(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)

    a: Literal[Colour.RED] = Field(alias="b")
    b: str | date = Field(alias="a")


class ComputedOpen(BaseModel):
    model_config = ConfigDict(extra="allow")

    w: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.w * 2


class ComputedInside(BaseModel):
    model_config = ConfigDict(extra="forbid")

    one: Computed
    many: list[Computed]
    map: dict[str, Computed]
    other: Computed | Model | None = None


ALIASED = Aliased(X=1, Y=DAY)


@returns(
    (Aliased, ALIASED),
    (AliasesStored, AliasesStored(X=1, Y=DAY)),
    (Swapped, Swapped(b=1, a="x")),
    (SwappedStored, SwappedStored(b=Colour.RED, a=DAY)),
    (dict[str, list[Aliased | AliasesStored]], {"a": [ALIASED, AliasesStored(X=1, Y=DAY)]}),
    (Computed, Computed(w=1)),
    (ComputedOpen, ComputedOpen(w=1), ComputedOpen(w=1, more=[1])),
    (
        ComputedInside,
        ComputedInside(one=Computed(w=1), many=[Computed(w=2)], map={"a": Computed(w=3)}),
        ComputedInside(one=Computed(w=1), many=[], map={}, other=Computed(w=4)),
        ComputedInside(one=Computed(w=1), many=[], map={}, other=MODEL),
    ),
    (Computed | Model, Computed(w=1), MODEL),
)
def test_aliases_and_computed_fields(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    born: date


class RedPet(BaseModel):
    kind: Literal[Colour.RED]
    n: int = 1


class BluePet(BaseModel):
    kind: Literal[Colour.BLUE]
    n: int = 2


def tag_of(value: Any) -> Any:
    return value["kind"] if isinstance(value, dict) else value.kind


ByName = Annotated[Cat | Dog, Field(discriminator="kind")]
ByEnum = Annotated[RedPet | BluePet, Discriminator("kind")]
ByTag = Union[Annotated[Said, Tag("said")], Annotated[SaidOtherwise, Tag("otherwise")]]  # noqa: UP007
CAT, DOG = Cat(lives=9), Dog(born=DAY)
RED, BLUE = RedPet(kind=Colour.RED), BluePet(kind=Colour.BLUE)
SAID, OTHERWISE = Said(kind="said"), SaidOtherwise(kind="otherwise")


class Pets(BaseModel):
    one: ByName
    many: list[ByEnum]
    tagged: ByTag = Field(discriminator=Discriminator(tag_of))


@returns(
    (ByName, CAT, DOG),
    (ByEnum, RED, BLUE),
    (Annotated[ByTag, Discriminator(tag_of)], SAID, OTHERWISE),
    (list[Annotated[ByTag, Field(discriminator=Discriminator(tag_of))]], [SAID, OTHERWISE]),
    (Cat | Dog | None, CAT, DOG, None),
    (RedPet | BluePet, RED, BLUE),
    (Pets, Pets(one=CAT, many=[RED, BLUE], tagged=SAID), Pets(one=DOG, many=[], tagged=OTHERWISE)),
)
def test_discriminated_unions(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


class Written(BaseModel):
    """Stored in a form of its own, which its validators take back."""

    day: date
    text: str | date = "x"

    @field_serializer("day")
    def written(self, value: date) -> str:
        return value.strftime("%d.%m.%Y")

    @field_validator("day", mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return datetime.strptime(value, "%d.%m.%Y").date() if isinstance(value, str) else value


class WrittenWhole(BaseModel):
    day: date

    @model_serializer
    def written(self) -> str:
        return f"on {self.day}"

    @model_validator(mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return {"day": value.removeprefix("on ")} if isinstance(value, str) else value


class Root(RootModel[list[date]]):
    pass


class RootUnion(RootModel[date | str | list[date]]):
    pass


class RootTree(RootModel[dict[str, "RootTree"]]):
    pass


class GenericModel(BaseModel, Generic[T]):
    value: T
    values: list[T] = []
    either: T | int | None = None


class OfDates(GenericModel[date]):
    more: int = 1


Bound = TypeVar("Bound", bound=BaseModel)


class GenericBound(BaseModel, Generic[Bound]):
    value: Bound


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    a: int


class EnumValues(BaseModel):
    model_config = ConfigDict(use_enum_values=True)

    colour: Colour


class OwnModelInit(BaseModel):
    a: int
    text: str | date

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)


class Revalidating(BaseModel):
    model_config = ConfigDict(revalidate_instances="always")

    model: Model
    either: Cat | Dog


@pydantic_dataclass
class Validated:
    a: int
    day: date
    models: list[Model] = Field(default_factory=list)


@pydantic_dataclass(config=ConfigDict(extra="forbid"))
class ValidatedLate:
    a: int = Field(alias="A")
    day: date = field(init=False, default=DAY)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.a * 2


@pydantic_dataclass
class ValidatedGeneric(Generic[T]):
    value: T


@returns(
    (Written, Written(day=DAY, text=LATER), Written(day=DAY)),
    (WrittenWhole, WrittenWhole(day=DAY)),
    (Written | str, Written(day=DAY), "x"),
    (list[Written | Model], [Written(day=DAY), MODEL]),
    (Root, Root([DAY]), Root([])),
    (RootUnion, RootUnion(DAY), RootUnion("x"), RootUnion([DAY])),
    (RootUnion | Model, RootUnion("x"), MODEL),
    (RootTree, RootTree({"a": RootTree({})})),
    (GenericModel[date], GenericModel[date](value=DAY, values=[DAY], either=LATER)),
    (GenericModel[date], GenericModel[date](value=DAY, either=3)),
    (
        GenericModel[GenericModel[Model]],
        GenericModel[GenericModel[Model]](value=GenericModel[Model](value=MODEL)),
    ),
    (GenericModel, GenericModel(value=1)),
    (OfDates, OfDates(value=DAY, values=[DAY])),
    (GenericBound[Model], GenericBound[Model](value=MODEL)),
    (Open, Open(a=1, more=[1])),
    (EnumValues, EnumValues(colour=Colour.RED)),
    (OwnModelInit, OwnModelInit(a=1, text=DAY)),
    (Revalidating, Revalidating(model=MODEL, either=DOG)),
    (Validated, Validated(1, DAY), Validated(1, DAY, [MODEL])),
    (ValidatedFrozen, ValidatedFrozen("x"), ValidatedFrozen(DAY)),
    (dict[ValidatedFrozen, int], {ValidatedFrozen(DAY): 1}),
    (ValidatedLate, ValidatedLate(A=1), changed(ValidatedLate(A=1), day=LATER)),
    (ValidatedGeneric[date], ValidatedGeneric[date](DAY)),
)
def test_pydantic_s_own_ways(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


def test_what_type_variables_stand_for_comes_as_it_is_stored() -> None:
    found = again(GenericBound, GenericBound(value=MODEL))
    assert isinstance(found, GenericBound)
    assert found.value == {"x": 1, "when": WHEN.isoformat()}
    assert again(list[T], [DAY]) == ["2030-01-31"]  # type: ignore[valid-type]
    assert again(dict[T, K], {"a": POINT}) == {"a": {"x": 1, "when": WHEN.isoformat()}}  # type: ignore[valid-type]


class Metres(float):
    """With a schema of its own."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return pydantic_core.core_schema.no_info_after_validator_function(cls, handler(float))


class OwnSchema(BaseModel):
    day: Literal[Colour.RED]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        def opened(value: Any) -> Any:
            return {"day": Colour(value["day"])} if isinstance(value, dict) else value

        return pydantic_core.core_schema.no_info_before_validator_function(opened, handler(source))


@returns(
    (Metres, Metres(1.5)),
    (list[Metres | str], [Metres(1.5), "x"]),
    (OwnSchema, OwnSchema(day=Colour.RED)),
    (OwnSchema | int, OwnSchema(day=Colour.RED), 1),
)
def test_classes_with_schemas_of_their_own_are_read_by_them(kind: Any, value: object) -> None:
    assert same(again(kind, value), value)


def test_a_model_s_validators_run_again() -> None:
    class Checked(BaseModel):
        n: int = Field(gt=0)
        text: Annotated[str, StringConstraints(to_lower=True)] = "x"

        @model_validator(mode="after")
        def check(self) -> "Checked":
            if self.text == "bad":
                raise ValueError("it is bad")
            return self

    assert again(Checked, Checked(n=1, text="A")) == Checked(n=1, text="a")
    with pytest.raises(NonRetriableError, match="n: Input should be greater than 0"):
        reader_of(Checked).read({"n": 0, "text": "x"})
    with pytest.raises(NonRetriableError, match="it is bad"):
        reader_of(Checked).read({"n": 1, "text": "bad"})


def test_what_of_a_model_is_not_stored() -> None:
    class Secretive(BaseModel):
        shown: int
        hidden: int = Field(default=2, exclude=True)
        _private: int = 3

    value = Secretive(shown=1, hidden=5)
    value._private = 6
    found = again(Secretive, value)
    assert (found.shown, found.hidden, found._private) == (1, 2, 3)


def test_a_model_of_no_known_kind_is_told_by_its_field() -> None:
    with pytest.raises(NonRetriableError, match=r"one: Input tag 'cow'.*; many: Field required"):
        reader_of(Pets).read({"one": {"kind": "cow"}})
