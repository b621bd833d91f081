"""Results read back: types made at random, and any values of them."""

import dataclasses
import functools
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeVar, Union
from uuid import UUID

import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, create_model

from jetcron_protocol.codec import pack, unpack
from tests.support.round_trip import Bits, Colour, Number, Odd, Word, reader_of, same

T = TypeVar("T")
K = TypeVar("K")

# Any of it: types made at random, with values of them.

Typed = tuple[Any, st.SearchStrategy[Any]]

ZONES = st.none() | st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
SCALARS: list[Typed] = [
    (int, st.integers(-(2**63), 2**64 - 1)),
    (float, st.floats()),
    (bool, st.booleans()),
    (str, st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    (bytes, st.binary(max_size=5)),
    (datetime, st.datetimes(timezones=ZONES)),
    (date, st.dates()),
    (time, st.times(timezones=ZONES)),
    (timedelta, st.timedeltas(timedelta(days=-90_000), timedelta(days=90_000))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    *((kind, st.sampled_from(kind)) for kind in (Colour, Number, Word, Odd)),
    (Bits, st.sets(st.sampled_from(Bits)).map(lambda some: functools.reduce(Bits.__or__, some, Bits(0)))),
    (Literal[Colour.BLUE, "x", 3], st.sampled_from([Colour.BLUE, "x", 3])),
]
KEYS = [one for one in SCALARS if one[0] in (int, str, bytes, date, UUID, Colour, Word)]
APART: list[Typed] = [one for one in SCALARS if one[0] in (int, float, bool, bytes, datetime, UUID)]
"""Of one form each: in a union, data says which it is."""


@st.composite
def types(draw: st.DrawFn, depth: int = 3) -> Typed:
    """A type, and what makes values of it."""
    make = draw(st.sampled_from(MAKERS[: 1 if depth == 0 else None]))
    return make(draw, lambda: draw(types(depth - 1)))


Draw = Callable[[], Typed]


def scalar(draw: st.DrawFn, inner: Draw) -> Typed:
    return draw(st.sampled_from(SCALARS))


def some_of(draw: st.DrawFn, inner: Draw) -> Typed:
    kind, values = inner()
    return list[kind], st.lists(values, max_size=3)


def some_or_none(draw: st.DrawFn, inner: Draw) -> Typed:
    kind, values = inner()
    if kind is Odd:  # has a member that is stored as None
        return kind, values
    return kind | None, st.none() | values


def pair(draw: st.DrawFn, inner: Draw) -> Typed:
    (one, ones), (other, others) = inner(), inner()
    return tuple[one, other], st.tuples(ones, others)


def row(draw: st.DrawFn, inner: Draw) -> Typed:
    kind, values = inner()
    return tuple[kind, ...], st.lists(values, max_size=3).map(tuple)


def table(draw: st.DrawFn, inner: Draw) -> Typed:
    (key, keys), (kind, values) = draw(st.sampled_from(KEYS)), inner()
    return dict[key, kind], st.dictionaries(keys, values, max_size=3)


def either(draw: st.DrawFn, inner: Draw) -> Typed:
    some = draw(st.lists(st.sampled_from(APART), min_size=2, max_size=4, unique_by=lambda one: one[0]))
    kinds = tuple(kind for kind, _ in some)
    return Union[kinds], st.one_of(*(values for _, values in some))  # noqa: UP007 - known only now


def fields_of(inner: Draw, prefix: str = "f") -> tuple[dict[str, Any], st.SearchStrategy[dict[str, Any]]]:
    drawn = {f"{prefix}{n}": inner() for n in range(2)}
    return {name: kind for name, (kind, _) in drawn.items()}, st.fixed_dictionaries(
        {name: values for name, (_, values) in drawn.items()}
    )


def a_dataclass(draw: st.DrawFn, inner: Draw) -> Typed:
    fields, values = fields_of(inner)
    frozen = draw(st.booleans())
    kind = dataclasses.make_dataclass("Made", fields.items(), frozen=frozen, kw_only=draw(st.booleans()))
    return kind, values.map(lambda some: kind(**some))


def a_named_tuple(draw: st.DrawFn, inner: Draw) -> Typed:
    fields, values = fields_of(inner)
    kind = NamedTuple("Made", fields.items())  # type: ignore[misc]
    return kind, values.map(lambda some: kind(**some))  # type: ignore[call-overload]


def a_typed_dict(draw: st.DrawFn, inner: Draw) -> Typed:
    fields, values = fields_of(inner)
    # Not that of typing: before Python 3.12, models do not take it.
    kind = typing_extensions.TypedDict("Made", fields, total=draw(st.booleans()))  # type: ignore[operator]
    if kind.__total__:
        return kind, values
    absent = st.sets(st.sampled_from(list(fields)))
    return kind, st.builds(
        lambda some, gone: {key: value for key, value in some.items() if key not in gone}, values, absent
    )


def a_model(draw: st.DrawFn, inner: Draw) -> Typed:
    fields, values = fields_of(inner)
    config = ConfigDict(
        frozen=draw(st.booleans()), extra=draw(st.sampled_from(["forbid", "ignore", "allow"]))
    )
    aliased = draw(st.booleans())
    config["serialize_by_alias"] = aliased and draw(st.booleans())
    said = {name: (kind, Field(alias=name.upper()) if aliased else ...) for name, kind in fields.items()}
    kind = create_model("Made", __config__=config, **said)  # type: ignore[call-overload]

    def made(some: dict[str, Any]) -> Any:
        return kind(**{name.upper() if aliased else name: value for name, value in some.items()})

    return kind, values.map(made)


def one_class_or_another(draw: st.DrawFn, inner: Draw) -> Typed:
    makers = [a_dataclass, a_model]
    one, ones = draw(st.sampled_from(makers))(draw, inner)
    kind = dataclasses.make_dataclass("Other", [("other", int), ("f0", str)])
    return one | kind, ones | st.builds(kind, st.integers(0, 9), st.sampled_from("ab"))


MAKERS: list[Callable[[st.DrawFn, Draw], Typed]] = [
    scalar,
    some_of,
    some_or_none,
    pair,
    row,
    table,
    either,
    a_dataclass,
    a_named_tuple,
    a_typed_dict,
    a_model,
    one_class_or_another,
]


@settings(max_examples=150)
@given(data=st.data())
def test_any_value_of_any_type_comes_back_as_it_was(data: st.DataObject) -> None:
    kind, values = data.draw(types())
    reader = reader_of(kind)
    assert reader.untyped is None
    for _ in range(2):
        value = data.draw(values)
        assert same(reader.read(unpack(pack(value))), value)
