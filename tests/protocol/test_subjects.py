"""Names: every string a user may choose becomes one token, reversibly, and no two alike."""

import inspect
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from jetcron_protocol.ids import child_run_id, shard
from jetcron_protocol.subjects import (
    MAX_DURABLE,
    MAX_EVENT_NAME,
    MAX_ID,
    InvalidName,
    Names,
    check_app,
    check_event_name,
    check_id,
    escape,
    function_id,
    split_function,
    unescape,
)

TOKEN = re.compile(r"[A-Za-z0-9_=-]+")
MAX_SUBJECT = 4096 - 256
"""The server's control line, less room for the verb, the reply subject and the sizes."""

anything = st.text(st.characters(codec=None), min_size=1)  # surrogates too
awkward = st.text(st.sampled_from(".*> =\t\n\x00aA0_-é𝄞\ud800"), min_size=1)
texts = anything | awkward
apps = st.text(st.characters(codec=None, exclude_characters="."), min_size=1, max_size=10)
functions = st.builds(function_id, apps, st.text(st.characters(codec=None), min_size=1, max_size=10))
ids = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=MAX_ID)
times = st.integers(-62_135_596_800_000, 253_402_300_799_999)
counts = st.integers(0, 10**15)
names = Names("t")
LONG = "x" * (MAX_EVENT_NAME + 1)


@given(texts)
@example("=41")
@example("==")
@example(".")
def test_any_string_becomes_one_token_and_comes_back(text: str) -> None:
    token = escape(text)
    assert TOKEN.fullmatch(token)
    assert "==" not in token
    assert unescape(token) == text


@given(texts, texts)
@example("é", "e\u0301")
@example("a.b", "a=2Eb")
@example("\U0001d11e", "\ud834\udd1e")
def test_two_strings_never_share_a_token(one: str, other: str) -> None:
    assume(one != other)
    assert escape(one) != escape(other)


@given(texts | st.text(st.sampled_from("=0123456789ABCDEFabc"), max_size=12) | st.just(""))
@example("=ED=A0")
@example("=FF")
@example("a\n")
def test_only_what_escape_gave_is_unescaped(token: str) -> None:
    try:
        text = unescape(token)
    except InvalidName:
        return
    assert escape(text) == token


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InvalidName, match="empty"):
        escape("")


@given(functions, functions)
@example("a.b.c", "a.b-c")
@example("a.=b", "a=.b")
def test_durables_are_distinct_short_and_without_dots(one: str, other: str) -> None:
    assume(one != other)
    durables = [names.run_consumer(function) for function in (one, other)]
    assert durables[0] != durables[1]
    for durable in durables:
        assert TOKEN.fullmatch(durable)
        assert len(durable) <= MAX_DURABLE


@pytest.mark.parametrize("function", ["a." + "x" * 248, "x" * 250 + ".b", "a." + "é" * 50])
def test_a_durable_over_255_characters_is_refused(function: str) -> None:
    with pytest.raises(InvalidName, match="too long"):
        names.run_consumer(function)


def test_a_durable_of_255_characters_is_taken() -> None:
    assert len(names.run_consumer("a." + "x" * 247)) == 255


@given(functions)
def test_a_function_id_splits_into_what_it_was_made_of(function: str) -> None:
    app, name = split_function(function)
    assert function_id(app, name) == function
    assert "." not in app


@pytest.mark.parametrize("function", ["", ".", "a", "a.", ".b"])
def test_what_is_no_function_id_is_refused(function: str) -> None:
    with pytest.raises(InvalidName, match=r"APP\.FUNCTION"):
        split_function(function)


@given(texts, counts, times)
def test_a_tick_says_what_it_was_named_by(schedule: str, revision: int, at: int) -> None:
    for state, subject in [
        ("held", names.tick_held(schedule, revision, at)),
        ("due", names.tick_due(schedule, revision, at)),
    ]:
        tick = names.parse_tick(subject)
        assert (tick.state, tick.shard, tick.schedule) == (state, shard(schedule), schedule)
        assert (tick.revision, tick.at) == (revision, at)
        assert _matches(names.ticks_of(schedule), subject)
        assert _matches(names.ticks_of(schedule, revision, state=state), subject)
        assert _matches(names.ticks_of_shard(shard(schedule)), subject)


@pytest.mark.parametrize("largest", [(1 << 63) - 1, 10**18])
def test_whatever_counts_in_a_message_can_be_read_from_a_subject(largest: int) -> None:
    assert names.parse_tick(names.tick_held("s", largest, 0)).revision == largest
    assert names.parse_run_later(names.run_later("a.f", "R", largest)).turn == largest


@given(functions, counts)
def test_a_held_run_says_what_it_was_named_by(function: str, turn: int) -> None:
    run = child_run_id("x", function)
    subject = names.run_later(function, run, turn)
    parsed = names.parse_run_later(subject)
    assert (parsed.function, parsed.run, parsed.turn) == (function, run, turn)
    assert _matches(names.runs_later_of(function, run), subject)
    assert names.parse_run_ready(names.run_ready(function)) == function
    assert _matches(names.run_ready_all, names.run_ready(function))
    assert names.parse_journal(names.journal_of(function, run)) == (function, run)


@given(texts)
def test_a_registry_key_says_its_schedule(schedule: str) -> None:
    key = names.schedule_key(schedule)
    assert names.parse_schedule_key(key) == schedule
    assert _matches(names.schedules_of_shard(shard(schedule)), key)


PARSERS = [
    names.parse_tick,
    names.parse_run_ready,
    names.parse_run_later,
    names.parse_journal,
    names.parse_event,
]
PARSERS += [names.parse_schedule_key, unescape, split_function, check_event_name, check_app]
HEADS = [
    "t.tick.held",
    "t.tick.due",
    "t.run.ready",
    "t.run.later",
    "t.journal",
    "t.event",
    "$KV.T_REGISTRY.schedule",
    "x",
]
TOKENS = st.sampled_from(
    [
        "",
        "a",
        "00",
        "zz",
        "=2E",
        "=ZZ",
        "a=2Eb",
        "7",
        "07",
        "-7",
        "--7",
        "-0",
        "²",
        "٣",
        "9" * 5000,
        "*",
        ">",
        "a b",
    ]
)


@given(
    texts
    | st.just("")
    | st.builds(
        lambda head, rest: ".".join([head, *rest]), st.sampled_from(HEADS), st.lists(TOKENS, max_size=6)
    )
)
@example("t.tick.held.00.a.²..7")
@example("t.tick.due.00.a.7.--7")
@example("t.run.later.a.b.r.²")
@example("t.run.later.a=2Eb.c.r.0")
def test_parsing_any_string_refuses_it_or_reads_its_one_name(subject: str) -> None:
    for parse in PARSERS:
        try:
            parse(subject)
        except InvalidName:
            pass
    _canonical(subject)


def _canonical(subject: str) -> None:
    """What is parsed is the name it would be given (the shard, a function of the schedule, aside)."""
    try:
        tick = names.parse_tick(subject)
    except InvalidName:
        pass
    else:
        again = f"t.tick.{tick.state}.{tick.shard}.{escape(tick.schedule)}.{tick.revision}.{tick.at}"
        assert again == subject
    try:
        run = names.parse_run_later(subject)
    except InvalidName:
        pass
    else:
        assert names.run_later(run.function, run.run, run.turn) == subject
    try:
        function = names.parse_run_ready(subject)
    except InvalidName:
        pass
    else:
        assert names.run_ready(function) == subject
    try:
        function, token = names.parse_journal(subject)
    except InvalidName:
        pass
    else:
        assert names.journal_of(function, token) == subject


@given(ids, ids)
def test_no_name_of_allowed_ids_is_too_long_for_the_server(one: str, other: str) -> None:
    check_id("an id", one)
    event = one.replace(".", "").replace("*", "").replace(">", "") or "e"
    subjects = [
        names.tick_held(one, 10**15, 10**14),
        names.schedule_key(one),
        names.past_key(one, 10**15),
        names.intent_key(10**6),
        names.later_held(event, other),
        names.later_due(event),
        names.dead_letter("event", event, other),
        names.sync(one),
        names.lane("app.f", one),
    ]
    for subject in subjects:
        assert len(subject) <= MAX_SUBJECT
        assert all(TOKEN.fullmatch(token) or token == "$KV" for token in subject.split("."))


@given(st.lists(st.text(st.characters(codec=None)), max_size=3))
def test_a_dead_letter_has_a_subject_whatever_it_holds(tokens: list[str]) -> None:
    subject = names.dead_letter("event", *tokens)
    assert len(subject.split(".")) == 3 + len(tokens)
    assert all(TOKEN.fullmatch(token) for token in subject.split("."))


@given(functions)
def test_the_dead_letter_of_a_run_is_found_by_its_function_and_without_it(function: str) -> None:
    subject = names.dead_letter("failed", *split_function(function), "RUN")
    assert _matches(names.dead_letters_of(function), subject)
    assert _matches(names.dead_letter_of_run("RUN"), subject)
    assert not _matches(names.dead_letter_of_run("OTHER"), subject)
    assert not _matches(names.dead_letters_of(f"{function}x"), subject)


@given(st.tuples(texts, texts), st.tuples(texts, texts))
@example(("x" * 300, "y"), ("x" * 301, "y"))
def test_two_future_events_never_share_a_subject(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    assert names.later_held(*one) != names.later_held(*other)


@given(texts)
def test_an_id_is_taken_or_refused_with_a_reason(text: str) -> None:
    if text.isprintable() and len(text) <= MAX_ID:
        assert check_id("the id", text) == text
    else:
        with pytest.raises(InvalidName) as caught:
            check_id("the id", text)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["order.created", "a", "commande.créée", "a-b_c=d/e", "1.2.3", "x" * MAX_EVENT_NAME]
)
def test_event_names_that_are_taken(name: str) -> None:
    assert check_event_name(name) == name
    assert names.parse_event(names.event(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "a b",
        "a\tb",
        "a.*",
        "*",
        "a.>",
        ">",
        "a*",
        "a\x00",
        "\u00a0",
        "\ud800",
        LONG,
    ],
)
def test_event_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_event_name(name)
    with pytest.raises(InvalidName):
        names.parse_event(f"t.event.{name}")


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "a.*.c", "a.>", "a.b"])
def test_patterns_that_are_taken(pattern: str) -> None:
    assert check_event_name(pattern, pattern=True) == pattern


@pytest.mark.parametrize("pattern", ["a*", ">.a", "a.>.b", "a.", "a.*b", "a.b>"])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidName):
        check_event_name(pattern, pattern=True)


@pytest.mark.parametrize("wrong", [None, 7, b"x", ["a"]])
def test_names_that_are_no_strings_are_refused(wrong: object) -> None:
    for check in (check_app, check_event_name):
        with pytest.raises(InvalidName, match="must be a string"):
            check(wrong)  # type: ignore[arg-type]


def test_an_apps_name_has_no_dot() -> None:
    with pytest.raises(InvalidName, match="has a dot"):
        check_app("a.b")


@pytest.mark.parametrize("namespace", ["", "a.b", "a b", "*", "é", "Jetcron", "x" * 65, "a\n"])
def test_a_namespace_is_a_short_lower_case_token(namespace: str) -> None:
    with pytest.raises(InvalidName):
        Names(namespace)


def test_streams_of_two_namespaces_are_distinct() -> None:
    streams = [
        [n.work, n.events, n.later, n.journal, n.dead, n.registry, n.executors] for n in (names, Names("u"))
    ]
    assert len({stream for pair in streams for stream in pair}) == 14


def test_every_fixed_name_begins_with_the_namespace() -> None:
    for name, value in inspect.getmembers(Names, lambda member: isinstance(member, property)):
        full = value.fget(names)
        assert full.startswith(("t.", "T_", "KV_T_", "$KV.T_", "OBJ_T_", "$O.T_")), name


def _matches(pattern: str, subject: str) -> bool:
    """Whether a NATS filter takes a subject."""
    expected, tokens = pattern.split("."), subject.split(".")
    if expected[-1] == ">":
        expected, tokens = expected[:-1], tokens[: len(expected) - 1]
    return len(expected) == len(tokens) and all(e in ("*", t) for e, t in zip(expected, tokens, strict=True))
