"""The tick chain under random faults: every occurrence of every schedule is accounted for, whatever breaks."""

import pytest

from tests.model.chain_check import check
from tests.model.chain_world import ChainWorld, Scenario
from tests.model.clockwork import Odds, Violation
from tests.model.rules import CHAIN

CHUNK = 50
HARSH = Odds(crash=0.03, freeze=0.02, lost=0.03, answer_lost=0.05, ack_lost=0.08, ack_late=0.04)
FRAGILE = Odds(crash=0.3, freeze=0, lost=0, answer_lost=0, ack_lost=0, ack_late=0, longest_down=90_000)
STALLING = Odds(freeze=0.3, longest_freeze=60_000)
STAMMERING = Odds(freeze=0.3, longest_freeze=5_000)
HESITANT = Odds(freeze=0.5, longest_freeze=2_000)

MILD = Scenario()
ROUGH = Scenario(odds=HARSH)
SABOTAGE = Scenario(odds=HARSH, sabotage=True)
RESTORE = Scenario(restore=True)
SYNC_DIES = Scenario(sync_odds=FRAGILE, commands=16, outages=1)
SYNC_STALLS = Scenario(sync_odds=STALLING, commands=16, outages=2)
SYNC_STAMMERS = Scenario(sync_odds=STAMMERING, commands=16, outages=1)
ALL_HESITATE = Scenario(odds=HESITANT, commands=60, outages=0)

BREAKS_IN = {
    "a restored registry is armed anew": RESTORE,
    "a broken chain goes on from when it was whole": SABOTAGE,
    "whole means up to its earliest tick": SABOTAGE,
    "whole means up to its oldest command": SYNC_DIES,
    "an intent goes before a successor": SYNC_STALLS,
    "the time is taken after the intent": SYNC_STALLS,
    "who meets an intent asks again": SYNC_STAMMERS,
    "a successor is written as its intent ends": SYNC_STALLS,
    "an intent is looked for before the past": ALL_HESITATE,
}
"""In which scenario a rule's absence shows, where that is not the rough one."""
SEEDS = 240
"""How many seeds a rule's absence is given to show in; the rarest take about 70."""


def play(seed: int, scenario: Scenario, *off: str) -> None:
    """One seed: the whole story, then the checks."""
    chain = ChainWorld(seed, scenario, *off)
    chain.run()
    check(chain)


@pytest.mark.parametrize("chunk", range(20))
@pytest.mark.parametrize("scenario", [MILD], ids=["mild"])
def test_every_occurrence_is_accounted_for(scenario: Scenario, chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed, scenario)


@pytest.mark.parametrize("chunk", range(2))
@pytest.mark.parametrize(
    "scenario",
    [ROUGH, SABOTAGE, RESTORE, SYNC_DIES, SYNC_STALLS, SYNC_STAMMERS, ALL_HESITATE],
    ids=["rough", "sabotage", "restored", "sync dies", "sync stalls", "sync stammers", "all hesitate"],
)
def test_every_occurrence_is_accounted_for_when_it_is_worse(scenario: Scenario, chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        play(seed, scenario)


def _breaks(rule: str) -> bool:
    for seed in range(SEEDS):
        try:
            play(seed, BREAKS_IN.get(rule, ROUGH), rule)
        except Violation:
            return True
    return False


@pytest.mark.parametrize("rule", CHAIN)
def test_each_rule_is_needed(rule: str) -> None:
    assert _breaks(rule), f"{rule}, {CHAIN[rule]}: nothing breaks in {SEEDS} seeds"
