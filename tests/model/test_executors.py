"""The executors' table under random faults: each turn is recorded once, and no run is lost."""

import pytest

from tests.model.clockwork import Odds, Violation
from tests.model.executor_world import ExecutorWorld, Scenario
from tests.model.rules import EXECUTOR

CHUNK = 50
HARSH = Odds(crash=0.03, freeze=0.03, lost=0.02, answer_lost=0.03, ack_lost=0.06, ack_late=0.05)
DEAF = Odds(crash=0, freeze=0, lost=0, answer_lost=0.5, ack_lost=0, ack_late=0)
CRASHES = Odds(crash=0.03, freeze=0, lost=0.02, answer_lost=0.02, ack_lost=0.05, ack_late=0)

MILD = Scenario()
ROUGH = Scenario(odds=HARSH)
FORGETS = Scenario(odds=HARSH, keep=15_000, away=("all", "server"))
ANSWERS_LOST = Scenario(odds=DEAF, outages=0)
SABOTAGE = Scenario(odds=CRASHES, minutes=4, sabotage=True)

BREAKS_IN = {
    "a message that is gone is taken over": SABOTAGE,
    "an absent later turn was forgotten": FORGETS,
    "an own append is known by its nonce": ANSWERS_LOST,
    "who gave up an append takes a new id": ANSWERS_LOST,
}
"""In which scenario a rule's absence shows, where that is not the rough one."""
SEEDS = 200
"""How many seeds a rule's absence is given to show in; the rarest takes about 25."""


def play(seed: int, scenario: Scenario, *off: str) -> None:
    """One seed: the whole story, watched, then the checks."""
    world = ExecutorWorld(seed, scenario, *off)
    world.run()
    world.check()


@pytest.mark.parametrize("chunk", range(10))
@pytest.mark.parametrize("scenario", [MILD, ROUGH], ids=["mild", "rough"])
def test_each_run_ends_as_its_code_did(scenario: Scenario, chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed, scenario)


@pytest.mark.parametrize("chunk", range(2))
@pytest.mark.parametrize(
    "scenario", [FORGETS, ANSWERS_LOST, SABOTAGE], ids=["forgets", "answers lost", "sabotage"]
)
def test_each_run_ends_as_its_code_did_in_odd_worlds(scenario: Scenario, chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed, scenario)


def _breaks(rule: str) -> bool:
    for seed in range(SEEDS):
        try:
            play(seed, BREAKS_IN.get(rule, ROUGH), rule)
        except Violation:
            return True
    return False


@pytest.mark.parametrize("rule", EXECUTOR)
def test_each_rule_is_needed(rule: str) -> None:
    assert _breaks(rule), f"{rule}, {EXECUTOR[rule]}: nothing breaks in {SEEDS} seeds"
