"""PROTOCOL's table of who may execute a run, row by row."""

import pytest

from jetcron.executor.decide import (
    Acknowledge,
    Ask,
    Claim,
    FollowUp,
    GiveUp,
    HandBack,
    Verdict,
    decide,
)
from jetcron.history import History, fold
from jetcron_protocol.messages import JournalEntry


def entry(kind: str, turn: int = 0, **more: object) -> JournalEntry:
    return JournalEntry(entry=kind, turn=turn, at=1, executor="one", **more)  # type: ignore[arg-type]


def history(*entries: JournalEntry) -> History:
    return fold(enumerate(entries, 1))


NOTHING = history()
CLAIMED = history(entry("claimed", message=10))
CLAIMED_TURN_1 = history(
    entry("claimed", message=5), entry("retrying"), entry("claimed", 1, message=10, attempt=1)
)
RETRYING = history(entry("claimed", message=10), entry("retrying", next_at=9))
LOST_ONCE = history(entry("claimed", message=10), entry("claimed", message=10, lost=1))
LOST_TWICE = history(entry("claimed", message=10), entry("claimed", message=10, lost=2))
LOST_THEN_STEP = history(entry("claimed", message=10, lost=2), entry("step", step="a", op="send"))
ENDS = [history(entry("claimed", message=10), entry(end)) for end in ("completed", "failed", "cancelled")]


def verdict(history: History, turn: int = 0, message: int = 10, **facts: bool) -> Verdict:
    return decide(history, turn=turn, message=message, lost_limit=3, **facts)


def test_nothing_at_turn_0_is_claimed() -> None:
    assert verdict(NOTHING) == Claim(attempt=0)


@pytest.mark.parametrize("turn", [1, 7])
def test_nothing_above_turn_0_was_forgotten(turn: int) -> None:
    assert isinstance(verdict(NOTHING, turn), Acknowledge)


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("end", range(3))
def test_what_follows_an_end_is_repeated(end: int, turn: int) -> None:
    assert verdict(ENDS[end], turn) == FollowUp()
    assert verdict(ENDS[end], turn, message=99) == FollowUp()


def test_what_follows_a_later_turn_is_repeated() -> None:
    assert verdict(CLAIMED_TURN_1, 0) == FollowUp()
    assert verdict(RETRYING, 0) == FollowUp()


def test_a_turn_waited_for_is_claimed_as_the_next_attempt() -> None:
    assert verdict(RETRYING, 1, message=11) == Claim(attempt=1)


def test_a_wake_up_that_overtook_its_record_is_handed_back() -> None:
    assert isinstance(verdict(CLAIMED, 1), HandBack)
    assert isinstance(verdict(RETRYING, 2), HandBack)
    assert isinstance(verdict(CLAIMED_TURN_1, 2), HandBack)


def test_another_message_of_the_turn_is_looked_up() -> None:
    assert verdict(CLAIMED, message=11) == Ask("message", sequence=10)
    assert isinstance(verdict(CLAIMED, message=11, other_stands=True), Acknowledge)
    assert verdict(CLAIMED, message=11, other_stands=False) == Ask("executor", executor="one")


@pytest.mark.parametrize("message", [10, 11])
def test_a_run_whose_executor_lives_is_handed_back_and_never_acknowledged(message: int) -> None:
    assert isinstance(verdict(CLAIMED, message=message, other_stands=False, owner_alive=True), HandBack)


@pytest.mark.parametrize("message", [10, 11])
def test_a_run_whose_executor_is_gone_is_taken_over(message: int) -> None:
    found = verdict(CLAIMED, message=message, other_stands=False, owner_alive=False)
    assert found == Claim(attempt=0, lost=1)


def test_the_owner_is_asked_for_before_anything_is_decided() -> None:
    assert verdict(CLAIMED) == Ask("executor", executor="one")


def test_a_loss_costs_no_attempt() -> None:
    assert verdict(CLAIMED_TURN_1, 1, owner_alive=False) == Claim(attempt=1, lost=1)


def test_three_losses_in_a_row_are_the_end() -> None:
    assert verdict(LOST_ONCE, owner_alive=False) == Claim(attempt=0, lost=2)
    assert verdict(LOST_TWICE, owner_alive=False) == GiveUp(lost=3)


def test_a_step_recorded_between_losses_counts_from_the_start() -> None:
    assert verdict(LOST_THEN_STEP, owner_alive=False) == Claim(attempt=0, lost=1)
