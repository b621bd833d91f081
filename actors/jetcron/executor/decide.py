"""Who may execute a run: PROTOCOL's table, decided purely from the folded journal.

Never reads anything: where a fact is needed that the journal does not hold, the answer is to ask for it, and
the caller comes back with it.
"""

from dataclasses import dataclass
from typing import Literal

from jetcron.history import FINISHED, History


@dataclass(frozen=True, slots=True)
class Claim:
    """It is ours to claim, as attempt number `attempt`; `lost` attempts in a row came before it."""

    attempt: int
    lost: int = 0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Its processes died `lost` times in a row: it ends as failed."""

    lost: int


@dataclass(frozen=True, slots=True)
class FollowUp:
    """The journal is past this turn: repeat what follows its last entry, then acknowledge."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Nothing is left to do for this message."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandBack:
    """Not now: deliver it again later, `soon` if what it waits for is a matter of moments. Never acknowledge."""

    reason: str
    soon: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """A fact is missing: whether the message at `sequence` stands, or whether `executor` is alive."""

    about: Literal["message", "executor"]
    sequence: int = 0
    executor: str = ""


Verdict = Claim | GiveUp | FollowUp | Acknowledge | HandBack | Ask


def decide(
    history: History,
    *,
    turn: int,
    message: int,
    lost_limit: int,
    other_stands: bool | None = None,
    owner_alive: bool | None = None,
) -> Verdict:
    """What to do with a run delivered as `turn` in the message stored under sequence `message`.

    `other_stands` and `owner_alive` answer an `Ask`; an executor that cannot be read counts as alive.
    """
    last = history.last
    if last is None:
        return Claim(attempt=0) if turn == 0 else Acknowledge("it finished and was forgotten")
    if last.entry in FINISHED or turn < last.turn:
        return FollowUp()
    if last.entry in ("retrying", "waiting"):
        if turn == last.turn:
            return FollowUp()
        if turn == last.turn + 1:
            return Claim(attempt=history.attempt)
    if turn > last.turn:
        return HandBack("its wake-up overtook the record of the turn before")
    claim = history.claim
    assert claim is not None, "a journal that is neither finished nor waiting ends in a claim and its steps"
    if claim.message != message:
        if other_stands is None:
            return Ask("message", sequence=claim.message or 0)
        if other_stands:
            return Acknowledge("a duplicate of a message that still stands")
    if owner_alive is None:
        return Ask("executor", executor=claim.executor)
    if owner_alive:
        return HandBack("its executor is alive")
    lost = history.lost + 1
    return GiveUp(lost) if lost >= lost_limit else Claim(attempt=history.attempt, lost=lost)
