"""Bytes to message and back: what was encoded is decoded, anything else is a `DecodeError` and no other."""

import dataclasses
import datetime as dt
import decimal
import enum
import json
import types
import typing
import uuid
from typing import Any, Literal, Union, get_args, get_origin

import msgpack
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jetcron_protocol import codec, messages
from jetcron_protocol.codec import (
    AT_HEADER,
    EVENT_HEADER,
    DecodeError,
    EncodeError,
    decode,
    decode_event,
    encode,
    pack,
    unpack,
)
from jetcron_protocol.messages import MAX_TIME, MIN_TIME, VERSION, Event, Run, Schedule, Tick
from jetcron_protocol.subjects import Names

KINDS = [
    kind
    for kind in vars(messages).values()
    if isinstance(kind, type) and kind.__module__ == messages.__name__ and dataclasses.is_dataclass(kind)
]

# What users' data may hold, as it comes back.
texts = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=20)
)
keys = texts | st.integers(-(2**63), 2**64 - 1) | st.tuples(texts, st.integers(0, 9))
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)

ALIASES: dict[Any, st.SearchStrategy[Any]] = {
    messages.Time: st.integers(MIN_TIME, MAX_TIME),
    messages.Duration: st.integers(0, MAX_TIME),
    messages.Count: st.integers(0, 2**63 - 1),
    messages.Name: st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    messages.FunctionId: st.from_regex(
        r"[^.]{1,10}\.(?s:.{1,10})", fullmatch=True, alphabet=st.characters(codec="utf-8")
    ),
    messages.Token: st.from_regex(r"[A-Za-z0-9_-]{1,26}", fullmatch=True),
    messages.Subject: st.just("_INBOX.a.b"),
    messages.CatchUpMost: st.integers(1, messages.MAX_CATCH_UP),
    typing.get_type_hints(Schedule, include_extras=True)["every"]: st.none() | st.integers(1, MAX_TIME),
    Any: data,
    str: texts,
    bytes: st.binary(max_size=50),
    bool: st.booleans(),
}


def _values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type; an annotation this does not know fails the test."""
    if annotation in ALIASES:
        return ALIASES[annotation]
    if annotation is type(None):
        return st.none()
    if dataclasses.is_dataclass(annotation):
        return _messages(annotation)
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of(*(_values(argument) for argument in arguments))
    if origin is list:
        return st.lists(_values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(_values(arguments[0]), _values(arguments[1]), max_size=3)
    raise TypeError(f"no strategy for {annotation}")


def _messages(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.deferred(
        lambda: st.builds(
            kind, **{field.name: _values(hints[field.name]) for field in dataclasses.fields(kind)}
        )
    )


every_message = st.one_of([_messages(kind) for kind in KINDS])


def test_every_message_is_tested() -> None:
    assert set(get_args(messages.Message)) <= set(KINDS)
    assert len({kind.kind for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_a_message_survives_its_encoding(kind: type, source: st.DataObject) -> None:
    message = source.draw(_messages(kind))
    raw = encode(message)
    assert decode(kind, raw) == message
    assert encode(decode(kind, raw)) == raw


@given(_messages(Schedule), st.integers(MIN_TIME, MAX_TIME))
def test_a_schedule_goes_to_the_past_as_it_was_stored(schedule: Schedule, end: int) -> None:
    entry = msgpack.packb(unpack(encode(schedule)) | {"newer": 1})
    raw = codec.encode_past(entry, end)
    assert decode(messages.Past, raw) == messages.Past(schedule=schedule, end=end)
    assert unpack(raw)["schedule"]["newer"] == 1, "and with what only a newer program knows"


@given(every_message, st.data())
def test_a_message_with_other_values_is_as_its_class_makes_it(message: Any, source: st.DataObject) -> None:
    kind = type(message)
    names = [field.name for field in dataclasses.fields(kind)]
    other = source.draw(_messages(kind))
    changes = {name: getattr(other, name) for name in source.draw(st.sets(st.sampled_from(names)))}
    before = dataclasses.replace(message)
    made = messages.replace(message, **changes)
    assert made == dataclasses.replace(message, **changes)
    assert type(made) is kind
    assert message == before


@given(every_message)
def test_a_message_has_no_field_but_its_own(message: Any) -> None:
    with pytest.raises(TypeError, match=f"{type(message).__name__} has no field 'nothing'"):
        messages.replace(message, nothing=1)


@given(every_message)
def test_a_field_that_is_none_is_not_sent_and_the_version_is(message: Any) -> None:
    body = unpack(encode(message))
    assert body.pop("v") == VERSION
    assert set(body) == {
        field.name for field in dataclasses.fields(message) if getattr(message, field.name) is not None
    }


@given(every_message, st.dictionaries(texts.map("x-".__add__), data, max_size=3))
def test_keys_nobody_knows_are_ignored(message: Any, more: dict[str, Any]) -> None:
    raw = msgpack.packb(unpack(encode(message)) | more)
    assert decode(type(message), raw) == message


@given(every_message)
def test_every_truncation_is_a_decode_error(message: Any) -> None:
    raw = encode(message)
    for end in range(len(raw)):
        with pytest.raises(DecodeError):
            decode(type(message), raw[:end])


@given(every_message, st.data())
def test_a_flipped_bit_is_a_decode_error_or_another_message(message: Any, source: st.DataObject) -> None:
    raw = bytearray(encode(message))
    for _ in range(10):
        at = source.draw(st.integers(0, len(raw) * 8 - 1))
        raw[at // 8] ^= 1 << at % 8
        _decodes_or_refuses(type(message), bytes(raw))


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_random_bytes_are_a_decode_error(kind: type, raw: bytes) -> None:
    _decodes_or_refuses(kind, raw)


anything = st.recursive(
    scalars | st.floats() | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@given(st.data(), st.sampled_from(KINDS))
def test_fields_of_wrong_types_are_a_decode_error(source: st.DataObject, kind: Any) -> None:
    body = unpack(encode(source.draw(_messages(kind))))
    name = source.draw(st.sampled_from([field.name for field in dataclasses.fields(kind)]))
    body[name] = source.draw(anything)
    _decodes_or_refuses(kind, msgpack.packb(body))


def _decodes_or_refuses(kind: type, raw: bytes) -> None:
    try:
        message = decode(kind, raw)
    except DecodeError as error:
        reason = str(error)
    else:
        assert isinstance(message, kind)
        encode(message)
        _can_be_acted_upon(message)
        return
    assert 0 < len(reason) < 2000


def _can_be_acted_upon(message: Any) -> None:
    """No name in a decoded message is refused by a subject, no time by a datetime."""
    names = Names("t")
    match message:
        case Tick():
            names.parse_tick(names.tick_held(message.schedule, message.revision, message.at))
        case Run():
            names.parse_run_later(names.run_later(message.function, message.run, message.turn))
            names.journal_of(message.function, message.run)
    for field in dataclasses.fields(message):
        if field.name.endswith("at") and isinstance(value := getattr(message, field.name), int):
            dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "a map was expected"),
        (None, "a map was expected"),
        ({}, "no version"),
        ({"v": 0}, "no version"),
        ({"v": True}, "no version"),
        ({"v": "1"}, "no version"),
        ({"v": 1.0}, "no version"),
        ({"v": VERSION + 1}, "newer"),
        ({"v": 2**64 - 1}, "newer"),
        ({"v": 1}, "schedule: Field required"),
        ({"v": 1, "schedule": "", "revision": 1, "at": 1}, "schedule: "),
        ({"v": 1, "schedule": "a", "revision": -1, "at": 1}, "revision: "),
        ({"v": 1, "schedule": "a", "revision": 2**63, "at": 1}, "revision: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": 2**63}, "at: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": "9" * 4000}, "at: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": "9" * 5000}, "at: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": float("inf")}, "at: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": float("nan")}, "at: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": 1e300}, "at: "),
        ({"v": 1, "schedule": "a", "revision": 1, "at": 1.5}, "at: "),
        ({"v": 1, "schedule": ["a"], "revision": 1, "at": None}, "and|schedule: "),
        ({"v": 1, "schedule": "x" * 10_000, "revision": 1, "at": 1}, "schedule: "),
    ],
)
def test_a_refusal_says_what_is_wrong(body: object, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(Tick, msgpack.packb(body))
    assert str(caught.value).startswith("Tick: ")


@pytest.mark.parametrize("run", ["", "a.b", "*", ">", "a b", "a\n", "é", "x" * 65])
def test_a_run_that_would_be_several_tokens_is_refused(run: str) -> None:
    body = {"v": 1, "run": run, "function": "a.b", "trigger": "cron", "fire_at": 0}
    with pytest.raises(DecodeError, match="run: "):
        decode(Run, msgpack.packb(body))


@pytest.mark.parametrize("function", ["", "a", ".", "a.", ".b"])
def test_a_function_without_two_halves_is_refused(function: str) -> None:
    body = {"v": 1, "run": "R", "function": function, "trigger": "cron", "fire_at": 0}
    with pytest.raises(DecodeError, match="function: "):
        decode(Run, msgpack.packb(body))


def test_an_interval_of_zero_is_refused() -> None:
    with pytest.raises(DecodeError, match="every: "):
        decode(Schedule, msgpack.packb({"v": 1, "id": "a", "function": "a.b", "every": 0}))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x91" * 10_000 + b"\x01",
        b"\x81\xa1a" * 10_000 + b"\x01",
        b"\x81" * 5_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\x01",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\x00\x00\x00\x02\xff\xfe",
        b"\xc1",
        b"\x81\xc0\x80\x01",
        b"\x81\x80\x01",
        b"\x82\xa1v\x01\x90\x02",
        b"\x82\xa1v\x01\x81\xa1a\x90\x02",
        b"\x82\xa1v\x01" + b"\x91" * 1000 + b"\x01\x02",
        b"\xd6\xff\xff\xff\xff\xff",
        b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"{" * 5_000,
        b"",
    ],
    ids=range(17),
)
def test_hostile_bytes_are_a_decode_error(raw: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(DecodeError):
            decode(kind, raw)
    try:
        _event(raw)
    except DecodeError:
        pass


def test_what_is_too_large_is_refused_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event(id="1", name="a", data="x" * 1000, ts=0)
    raw = encode(event)
    monkeypatch.setattr(codec, "MAX_BYTES", len(raw) - 1)
    with pytest.raises(EncodeError, match="at most"):
        encode(event)
    with pytest.raises(DecodeError, match="more than"):
        decode(Event, raw)
    with pytest.raises(DecodeError, match="more than"):
        _event(b" " * len(raw))
    monkeypatch.setattr(codec, "MAX_BYTES", len(raw))
    assert decode(Event, encode(event)) == event


# Users' own values.


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: Any = None


class Model(pydantic.BaseModel):
    when: dt.datetime
    points: list[Point] = []


@pytest.mark.parametrize(
    ("value", "back"),
    [
        (Colour.RED, "red"),
        (Size.LARGE, 3),
        (Point(1, Point(2)), {"x": 1, "y": {"x": 2, "y": None}}),
        (dt.datetime(2030, 1, 31, 9, tzinfo=dt.UTC), "2030-01-31T09:00:00+00:00"),
        (dt.date(2030, 1, 31), "2030-01-31"),
        (dt.time(9, 30), "09:30:00"),
        (dt.timedelta(minutes=1), 60.0),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, (2,)), [1, [2]]),
        ({(1, 2): 3, "a": {("b",): []}}, {(1, 2): 3, "a": {("b",): []}}),
        ({Point(1): 2}, {(("x", 1), ("y", None)): 2}),
        ({dt.date(2030, 1, 31): 1}, {"2030-01-31": 1}),
        (bytearray(b"x"), b"x"),
        (
            Model(when=dt.datetime(2030, 1, 1), points=[Point(1)]),
            {"when": "2030-01-01T00:00:00", "points": [{"x": 1, "y": None}]},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_user_may_store(value: object, back: object) -> None:
    assert unpack(pack(value)) == back
    assert unpack(pack(unpack(pack(value)))) == back
    assert decode(Event, encode(Event(id="1", name="a", data=value, ts=0))).data == back


@given(data)
def test_what_is_packed_is_unpacked(value: Any) -> None:
    assert unpack(pack(value)) == value


class Broken:
    pass


@dataclasses.dataclass
class Trap:
    x: int = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            raise KeyError("x")
        return super().__getattribute__(name)


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Broken(), "Broken cannot be stored"),
        (Broken, "type cannot be stored"),
        ({1, 2}, "builtins.set cannot be stored"),
        (1j, "complex"),
        (object, "cannot be stored"),
        (2**64, "beyond 64 bits"),
        (-(2**63) - 1, "beyond 64 bits"),
        ("\ud800", "cannot be stored"),
        (_endless(), "cannot be stored"),
        (Trap(), "cannot be stored"),
    ],
)
def test_what_a_user_may_not_store(value: object, reason: str) -> None:
    for inner in (value, [value], {"a": value}):
        with pytest.raises(EncodeError, match=reason):
            pack(inner)
        with pytest.raises(EncodeError, match=reason):
            encode(Event(id="1", name="a", data=inner, ts=0))


# Events, ours and anyone's.

NAME = "order.created"
STORED = 1_700_000_000_000


def _event(raw: bytes, headers: dict[str, str] | None = None, *, name: str = NAME) -> Event:
    return decode_event(name, raw, headers or {}, sequence=7, stored_at=STORED)


@given(_messages(Event))
def test_an_event_of_ours_is_read_as_it_is(event: Event) -> None:
    event = dataclasses.replace(event, name=NAME, id="o-1")
    assert _event(encode(event), {EVENT_HEADER: "1", "Nats-Msg-Id": "other"}) == event


def test_an_event_under_another_name_is_refused() -> None:
    raw = encode(Event(id="1", name="order.deleted" * 1000, ts=0))
    with pytest.raises(DecodeError, match="names itself") as caught:
        _event(raw, {EVENT_HEADER: "1"})
    assert len(str(caught.value)) < 300


@given(st.dictionaries(texts, st.recursive(scalars, st.lists, max_leaves=3), max_size=4))
def test_a_bare_map_of_msgpack_is_data(body: dict[str, Any]) -> None:
    expected = Event(id="7", name=NAME, data=body, ts=STORED)
    assert _event(msgpack.packb(body)) == expected
    assert _event(msgpack.packb(body), {EVENT_HEADER: "0"}) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(texts, json_values, max_size=4),
    st.sampled_from([None, 2]),
    st.sampled_from(["", "\n\t "]),
)
def test_a_bare_map_of_json_is_data(body: dict[str, Any], indent: int | None, before: str) -> None:
    assert _event((before + json.dumps(body, indent=indent)).encode()).data == body
    assert _event(json.dumps(body, ensure_ascii=False).encode()).data == body


def test_no_body_is_no_data() -> None:
    assert _event(b"").data == {}


@pytest.mark.parametrize(
    "raw",
    [
        b"[1]", b"1", b'"a"', b"null", b"{", b"{]", b"{'a': 1}", b'{"a": 1} x',
        b'{"a": "\\ud800"}', b'{"a": "\xff"}', b'{"a": ' + b"9" * 30 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}", b"\x90", b"\x01", b"\xc0",
        b"\x80\x80", b"  ", b'{"a":' * 100_000, b'{"a":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_map_is_refused(raw: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^Event|^not msgpack"):
        _event(raw)


@pytest.mark.parametrize("depth", [1, 199, 200, 201, 500, 900, 1022])
def test_data_nested_so_deep_that_a_run_could_not_carry_it_is_refused(depth: int) -> None:
    inner: Any = 1
    for _ in range(depth - 1):
        inner = [inner]
    body = {"a": inner}
    ours = msgpack.packb({"v": 1, "id": "1", "name": NAME, "data": body, "ts": 0})
    sent = [
        (json.dumps({"a": 0}).replace("0", "[" * (depth - 1) + "1" + "]" * (depth - 1)).encode(), {}),
        (msgpack.packb(body), {}),
        (ours, {EVENT_HEADER: "1"}),
    ]
    for raw, headers in sent:
        if depth <= 200:
            event = _event(raw, headers)
            run = Run(run="R", function="a.b", trigger="event", fire_at=0, events=[event])
            assert decode(Run, encode(run)) == run
        else:
            with pytest.raises(DecodeError):
                _event(raw, headers)


def test_wide_data_is_not_deep() -> None:
    body = {str(number): {"é": [number, []]} for number in range(2000)}
    assert _event(msgpack.packb(body)).data == body
    assert _event(json.dumps(body).encode()).data == body


@pytest.mark.parametrize(
    ("headers", "id"),
    [
        ({}, "7"),
        ({"Nats-Msg-Id": ""}, "7"),
        ({"Nats-Msg-Id": f"{NAME}:"}, "7"),
        ({"Nats-Msg-Id": "o-1"}, "o-1"),
        ({"Nats-Msg-Id": f"{NAME}:o-1"}, "o-1"),
        ({"Nats-Msg-Id": f"{NAME}:{NAME}:o-1"}, f"{NAME}:o-1"),
        ({"Nats-Msg-Id": "other:o-1"}, "other:o-1"),
        ({"Nats-Msg-Id": "8"}, "8"),
    ],
)
def test_a_bare_events_id(headers: dict[str, str], id: str) -> None:
    assert _event(b"{}", headers).id == id


@pytest.mark.parametrize("id", ["x" * 201, "a\nNats-Rollup: all", "a\r", "\x00", "\ud800", "a\u2028b"])
def test_an_id_that_could_be_no_token_or_header_is_refused(id: str) -> None:
    with pytest.raises(DecodeError, match="id"):
        _event(b"{}", {"Nats-Msg-Id": id})
    ours = {"v": 1, "id": id, "name": NAME, "ts": 0}
    with pytest.raises(DecodeError):
        _event(msgpack.packb(ours, unicode_errors="surrogatepass"), {EVENT_HEADER: "1"})


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(DecodeError, match="id: "):
        _event(msgpack.packb({"v": 1, "id": "", "name": NAME, "ts": 0}), {EVENT_HEADER: "1"})


@given(st.datetimes(min_value=dt.datetime(1970, 1, 2), timezones=st.timezones()))
def test_a_bare_events_time_is_exact(moment: dt.datetime) -> None:
    written = moment.isoformat(timespec="milliseconds")
    if len(written.rpartition("T")[2]) > 18:
        return  # offsets of seconds, which RFC 3339 does not have
    expected = (dt.datetime.fromisoformat(written) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(
        milliseconds=1
    )
    assert _event(b"{}", {AT_HEADER: written}).at == min(expected, MAX_TIME)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2030-01-31T09:00:00Z", 1_896_080_400_000),
        ("2030-01-31T11:00:00+02:00", 1_896_080_400_000),
        ("2030-01-31 09:00:00.021Z", 1_896_080_400_021),
        ("2030-01-31T09:00:00.021999999Z", 1_896_080_400_021),
        ("2004-03-23T00:00:27.021Z", 1_080_000_027_021),
        ("1960-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("9999-12-31T23:59:59.999Z", MAX_TIME),
        ("9999-12-31T23:59:59.999-23:59", MAX_TIME),
    ],
)
def test_how_a_bare_events_time_is_read(text: str, at: int) -> None:
    assert _event(b"{}", {AT_HEADER: text}).at == at


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "1700000000",
        "2030-01-31",
        "2030-01-31T09:00:00",
        "2030-02-30T09:00:00Z",
        "2030-01-31T25:00:00Z",
        "2030-01-31T09:00:60Z",
        "2030-01-31T09:00:00+25:00",
        "\ud800",
        "٢٠٣٠-01-31T09:00:00Z",
        "x" * 5000,
    ],
)
def test_a_malformed_time_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match=AT_HEADER) as caught:
        _event(b"{}", {AT_HEADER: text})
    assert len(str(caught.value)) < 300


@given(
    st.text(st.characters(codec=None), max_size=10) | st.just(NAME),
    st.binary(max_size=50) | st.binary(max_size=20).map(b"{".__add__) | st.just(b"{}"),
    st.dictionaries(
        st.sampled_from([EVENT_HEADER, AT_HEADER, "Nats-Msg-Id"]),
        st.text(st.characters(codec=None), max_size=30) | st.just("1"),
    ),
)
@example(NAME, b"\x81\xa1v\x01", {EVENT_HEADER: "1"})
def test_whatever_is_published_is_an_event_or_a_decode_error(
    name: str, raw: bytes, headers: dict[str, str]
) -> None:
    try:
        event = _event(raw, headers, name=name)
    except DecodeError:
        return
    assert event.name == name
    assert decode(Event, encode(event)) == event or event != event  # a NaN in its data
    names = Names("t")
    assert names.parse_event(names.event(event.name)) == name
    assert names.later_held(event.name, event.id).isascii()
