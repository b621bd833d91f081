"""Which events start which functions: NATS wildcards, each function once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.event_router import Triggers
from jetcron_protocol.messages import Function
from jetcron_protocol.subjects import pattern_matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "a.b", False),
        ("a.b", "a", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("*.*", "a.b", True),
        (">", "a", True),
        (">", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "b.a", False),
        ("*.b.>", "a.b.c", True),
        ("*.b.>", "a.b", False),
    ],
)
def test_wildcards(pattern: str, name: str, expected: bool) -> None:
    assert pattern_matches(pattern, name) is expected


token = st.sampled_from(["a", "b", "c"])


@given(st.lists(token, min_size=1, max_size=4), st.data())
def test_a_pattern_made_of_a_name_matches_it(name: list[str], data: st.DataObject) -> None:
    pattern = ".".join(data.draw(st.sampled_from([part, "*"])) for part in name)
    full = ".".join(name)
    assert pattern_matches(pattern, full)
    assert not pattern_matches(pattern, f"{full}.a")
    assert not pattern_matches(f"{pattern}.*", full)
    assert not pattern_matches(f"{pattern}.>", full)
    cut = data.draw(st.integers(0, len(name) - 1))
    assert pattern_matches(".".join([*pattern.split(".")[:cut], ">"]), full)


def triggers(*functions: Function) -> Triggers:
    found = Triggers()
    for function in functions:
        found.add(function)
    return found


def test_each_function_once_however_many_of_its_triggers_match() -> None:
    found = triggers(Function(id="a.f", on=["x.y", "x.*", ">"]), Function(id="a.g", on=["*.y"]))
    assert found.match("x.y") == ("a.f", "a.g")
    assert found.match("x.y") == ("a.f", "a.g"), "and again, from memory"
    assert found.match("z") == ("a.f",)


def test_archived_functions_are_not_started_and_paused_ones_are() -> None:
    found = triggers(
        Function(id="a.gone", on=["x"], state="archived"), Function(id="a.f", on=["x"], state="paused")
    )
    assert found.match("x") == ("a.f",)


def test_memory_is_bounded() -> None:
    found = triggers(Function(id="a.f", on=["x.*"]))
    for n in range(25_000):
        assert found.match(f"x.{n}") == ("a.f",)
    assert len(found._matched) <= 10_000
