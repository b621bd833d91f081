"""Runs that wait under random faults: whatever comes meets them, once, and none of them hangs."""

import pytest

from tests.model.clockwork import Odds, Violation
from tests.model.rules import EXECUTOR, WAITING
from tests.model.waiting_world import Scenario, WaitingWorld

CHUNK = 50
HARSH = Odds(crash=0.03, freeze=0.02, lost=0.02, answer_lost=0.03, ack_lost=0.06, ack_late=0.05)
FROZEN = Odds(crash=0, freeze=0.08, lost=0, answer_lost=0, ack_lost=0, ack_late=0, longest_freeze=8_000)
DEAF = Odds(crash=0, freeze=0, lost=0.02, answer_lost=0.15, ack_lost=0.05, ack_late=0)

MILD = Scenario()
ROUGH = Scenario(odds=HARSH)
FREEZES = Scenario(odds=FROZEN)
ANSWERS_LOST = Scenario(odds=DEAF, outages=0, left=False)

BREAKS_IN = {
    "a turn held again in vain is removed": ANSWERS_LOST,
    "the time is told before the look": FREEZES,
}
"""In which scenario a rule's absence shows, where that is not the rough one."""
SEEDS = 300
"""How many seeds a rule's absence is given to show in."""


def play(seed: int, scenario: Scenario, *off: str) -> None:
    """One seed: the whole story, watched, then the checks."""
    world = WaitingWorld(seed, scenario, *off)
    world.run()
    world.check()


@pytest.mark.parametrize("chunk", range(6))
@pytest.mark.parametrize("scenario", [MILD, ROUGH, FREEZES], ids=["mild", "rough", "freezes"])
def test_whatever_comes_meets_who_waits(scenario: Scenario, chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed, scenario)


@pytest.mark.parametrize("chunk", range(3))
def test_no_turn_is_left_behind(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed, ANSWERS_LOST)


def _breaks(rule: str) -> bool:
    for seed in range(SEEDS):
        try:
            play(seed, BREAKS_IN.get(rule, ROUGH), rule)
        except Violation:
            return True
    return False


@pytest.mark.parametrize("rule", [rule for rule in WAITING if rule not in EXECUTOR])
def test_each_rule_is_needed(rule: str) -> None:
    assert _breaks(rule), f"{rule}, {WAITING[rule]}: nothing breaks in {SEEDS} seeds"
