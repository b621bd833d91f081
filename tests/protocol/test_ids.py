"""Identifiers: the same for the same occurrence, different for any other, in order of time."""

import subprocess
import sys

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from jetcron_protocol import ids

FORM = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
texts = st.text(st.characters(codec=None))
times = st.integers(0, 253_402_300_799_999)

#: Each rule for a run id with its arguments.
runs = st.one_of(
    st.tuples(st.just(ids.code_run_id), texts, times),
    st.tuples(st.just(ids.schedule_run_id), texts, texts, times),
    st.tuples(st.just(ids.event_run_id), texts, texts, texts),
    st.tuples(st.just(ids.child_run_id), texts, texts),
    st.tuples(st.just(ids.manual_run_id), texts, texts),
    st.tuples(st.just(ids.step_event_id), texts, texts, st.integers(0, 1000)),
)


def _call(run: tuple) -> str:  # type: ignore[type-arg]
    rule, *arguments = run
    return rule(*arguments)


@given(runs)
def test_an_id_is_deterministic_and_has_ulid_form(run: tuple) -> None:  # type: ignore[type-arg]
    id = _call(run)
    assert id == _call(run)
    assert len(id) == ids.RUN_ID_LENGTH
    assert set(id) <= set(FORM)
    assert id[0] <= "7"
    assert ids.ulid_time(id) is not None


@given(runs, runs)
@example((ids.code_run_id, "f", 0), (ids.child_run_id, "f", ""))
@example((ids.schedule_run_id, "ab", "c", 0), (ids.schedule_run_id, "a", "bc", 0))
@example((ids.event_run_id, "f", "a.b", "c"), (ids.event_run_id, "f", "a", "b.c"))
@example((ids.step_event_id, "r", "s", 1), (ids.step_event_id, "r", "s", 11))
@example((ids.child_run_id, "a", "b"), (ids.manual_run_id, "a", "b"))
def test_different_runs_have_different_ids(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    assume(one != other)
    assert _call(one) != _call(other)


@given(texts, texts, times, times)
def test_ids_sort_by_time(function: str, schedule: str, one: int, other: int) -> None:
    assume(one < other)
    assert ids.code_run_id(function, one) < ids.code_run_id(schedule, other)
    assert ids.schedule_run_id(function, schedule, one) < ids.code_run_id(function, other)
    assert ids.ulid_time(ids.code_run_id(function, one)) == one


@given(times, st.binary(min_size=10, max_size=10), texts, texts)
def test_a_childs_an_events_and_a_manual_run_take_the_time_of_their_id(
    time: int, entropy: bytes, function: str, other: str
) -> None:
    id = ids.ulid(time, entropy)
    for made in (
        ids.child_run_id(id, other),
        ids.event_run_id(function, other, id),
        ids.manual_run_id(function, id),
        ids.step_event_id(id, other, 3),
    ):
        assert ids.ulid_time(made) == time


def test_an_event_named_by_its_sequence_has_its_stored_time() -> None:
    assert ids.ulid_time(ids.event_run_id("a.b", "e", "7")) == 0
    stored = ids.event_run_id("a.b", "e", "7", stored_at=1_700_000_000_000)
    assert ids.ulid_time(stored) == 1_700_000_000_000
    assert stored[10:] == ids.event_run_id("a.b", "e", "7")[10:]


@pytest.mark.parametrize(
    ("time", "expected"), [(-1, 0), (0, 0), (2**48 - 1, 2**48 - 1), (2**48, 2**48 - 1), (2**70, 2**48 - 1)]
)
def test_a_time_outside_48_bits_is_clamped(time: int, expected: int) -> None:
    assert ids.ulid_time(ids.ulid(time, bytes(10))) == expected


def test_a_ulid_of_the_specification() -> None:
    assert ids.ulid(1_469_918_176_385, bytes.fromhex("d6764c61efb99302bd5b")) == "01ARYZ6S41TSV4RRFFQ69G5FAV"
    assert ids.ulid_time("01ARYZ6S41TSV4RRFFQ69G5FAV") == 1_469_918_176_385


@pytest.mark.parametrize("size", [0, 9, 11])
def test_entropy_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="10 bytes"):
        ids.ulid(0, bytes(size))


@given(st.one_of(texts, st.text(FORM + "ILOUilo89", min_size=26, max_size=26)))
@example("8" + "0" * 25)
@example("٣" * 26)
def test_what_is_no_ulid_has_no_time(text: str) -> None:
    time = ids.ulid_time(text)
    if time is not None:
        assert len(text) == 26
        assert set(text) <= set(FORM)
        assert 0 <= time < 2**48


@given(texts)
def test_a_shard_is_two_hex_digits_and_stable(schedule: str) -> None:
    shard = ids.shard(schedule)
    assert shard == ids.shard(schedule)
    assert 0 <= int(shard, 16) < ids.SHARDS
    assert shard in ids.shards_of(ids.group_of(shard))


def test_groups_divide_the_shards() -> None:
    shards = [shard for group in range(ids.GROUPS) for shard in ids.shards_of(group)]
    assert sorted(shards) == [f"{number:02x}" for number in range(ids.SHARDS)]


def test_shards_are_even() -> None:
    held = [0] * ids.SHARDS
    for number in range(100_000):
        held[int(ids.shard(f"tenant-{number}"), 16)] += 1
    assert min(held) > 280
    assert max(held) < 510


@given(texts, times, st.integers(-10, 10**10))
def test_jitter_is_the_same_for_the_same_occurrence_and_in_range(schedule: str, at: int, width: int) -> None:
    jitter = ids.spread(schedule, at, width)
    assert jitter == ids.spread(schedule, at, width)
    assert 0 <= jitter < max(width, 1)


@given(texts, times, texts, times)
def test_gap_tokens_are_distinct_tokens(one: str, start: int, other: str, later: int) -> None:
    assume((one, start) != (other, later))
    token = ids.gap_token(one, start)
    assert token != ids.gap_token(other, later)
    assert token.startswith("gap-")
    assert token.removeprefix("gap-").isalnum()


def test_ids_are_those_of_every_release() -> None:
    """They name what is stored: another value would run again what has run."""
    assert ids.code_run_id("reports.dispatch", 1_700_000_000_000) == CODE
    assert ids.schedule_run_id("reports.dispatch", "tenant-1", 1_700_000_000_000) == SCHEDULE
    assert ids.event_run_id("reports.dispatch", "order.created", "o-1") == EVENT
    assert ids.child_run_id(CODE, "load") == CHILD
    assert ids.shard("tenant-1") == SHARD


def test_ids_do_not_depend_on_the_process() -> None:
    program = "from jetcron_protocol.ids import *; print(code_run_id('reports.dispatch', 1700000000000))"
    for seed in ("0", "1"):
        out = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        assert out.stdout.decode().strip() == CODE


CODE = "01HF7YAT001T9XNKKR450XZ1Y0"
SCHEDULE = "01HF7YAT003HBKB24WA1EA91QG"
EVENT = "0000000000E3Y9DY7DCPDPHRP2"
CHILD = "01HF7YAT000WSDPH4AF4ZHHV1A"
SHARD = "2a"


def test_a_percentage_of_schedules_is_that_many_and_the_same_always() -> None:
    ranks = [ids.hand_over_rank(f"team-{n}") for n in range(10_000)]
    assert ranks == [ids.hand_over_rank(f"team-{n}") for n in range(10_000)]
    assert min(ranks) >= 0
    assert max(ranks) < 10_000
    assert 2_300 < sum(rank < 2_500 for rank in ranks) < 2_700
