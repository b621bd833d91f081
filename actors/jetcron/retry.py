"""An attempt failed: is there another, and when? Pure: the caller brings the time and the randomness.

Owns the rule alone. Counting attempts, holding the next one and writing dead letters are the executor's.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from jetcron.clock import to_ms
from jetcron.errors import BusError, JetcronError, PayloadTooLarge, RetryAfterError, leaves
from jetcron.options import MILLISECOND, Retry


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try again at this time, in epoch milliseconds; never before now."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The run has failed for good. `text` says why, for the dead letter."""

    reason: Literal["not_retriable", "exhausted"]
    text: str


def decide(retry: Retry, *, attempt: int, error: BaseException, now: int, spread: float) -> RetryAt | GiveUp:
    """What follows attempt number `attempt` (0 first) that ended with `error` at `now` (epoch ms).

    `spread`, in [0, 1), is the caller's random number: how much of the jitter is added. A
    `RetryAfterError` names its own time, without jitter, and counts as an attempt. `NonRetriableError`
    ends the run, as does any error of ours that repetition cannot mend; a time-out of the function is
    retried as any other error, and so is trouble with the bus. Signals are not errors: the caller deals
    with them before it comes here. Of a group of errors, one that is not retried ends the run, and the
    latest time that is named counts.
    """
    errors = list(leaves(error))
    for one in errors:
        if not _may_mend(one):
            return GiveUp("not_retriable", f"{type(one).__name__} is not retried")
    if attempt + 1 >= retry.attempts:
        total = f"{retry.attempts} attempts" if retry.attempts > 1 else "the only attempt"
        return GiveUp("exhausted", f"{total} failed")
    named = [_named(one.delay, now) for one in errors if isinstance(one, RetryAfterError)]
    if named:
        return RetryAt(max(now, *named))
    wait = retry.wait(attempt) * (1 + retry.jitter * spread)
    return RetryAt(now + wait // MILLISECOND)


def _named(delay: timedelta | datetime, now: int) -> int:
    return to_ms(delay) if isinstance(delay, datetime) else now + delay // MILLISECOND


def _may_mend(error: BaseException) -> bool:
    match error:
        case PayloadTooLarge():
            return False
        case BusError():
            return True  # not the function's fault: a server comes back, an operator mends a permission
        case JetcronError():
            return error.retriable
        case _:
            return True
