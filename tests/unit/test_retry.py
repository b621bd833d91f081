"""An attempt failed: what follows. Written down by hand, then as properties."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.clock import to_ms
from jetcron.errors import (
    AuthorizationFailed,
    ConfigurationError,
    NonRetriableError,
    PayloadInvalid,
    PayloadTooLarge,
    RetryAfterError,
    RunFailed,
    StepError,
    TryAgain,
    Unconfirmed,
)
from jetcron.options import Retry
from jetcron.retry import GiveUp, RetryAt, decide

NOW = 1_900_000_000_000
DEFAULT = Retry()


def after(
    error: BaseException, *, attempt: int = 0, retry: Retry = DEFAULT, spread: float = 0
) -> RetryAt | GiveUp:
    return decide(retry, attempt=attempt, error=error, now=NOW, spread=spread)


@pytest.mark.parametrize(("attempt", "seconds"), list(enumerate([15, 30, 60, 120, 300, 600, 600, 600])))
def test_the_default_waits_and_their_last_repeats(attempt: int, seconds: int) -> None:
    assert after(KeyError(), attempt=attempt, retry=Retry(attempts=100)) == RetryAt(NOW + seconds * 1_000)


def test_jitter_lengthens_a_wait_by_its_part() -> None:
    retry = Retry(waits=(100,), jitter=0.3)
    assert after(KeyError(), retry=retry, spread=0.5) == RetryAt(NOW + 115_000)
    assert after(KeyError(), retry=Retry(waits=(100,), jitter=0), spread=0.999) == RetryAt(NOW + 100_000)


def test_the_last_attempt_is_the_last() -> None:
    assert isinstance(after(KeyError(), attempt=3), RetryAt)
    assert after(KeyError(), attempt=4) == GiveUp("exhausted", "5 attempts failed")
    assert after(KeyError(), attempt=7) == GiveUp("exhausted", "5 attempts failed")
    assert after(KeyError(), retry=Retry(attempts=1)) == GiveUp("exhausted", "the only attempt failed")


@pytest.mark.parametrize(
    "error",
    [
        NonRetriableError("no"),
        PayloadInvalid("no"),
        StepError("a", "ValueError", "no"),
        ConfigurationError("no"),
        PayloadTooLarge(2, 1),
    ],
)
def test_what_repetition_cannot_mend_is_given_up(error: Exception) -> None:
    assert after(error) == GiveUp("not_retriable", f"{type(error).__name__} is not retried")


def test_a_users_own_kind_of_non_retriable_error_is_given_up() -> None:
    class NoSuchCustomer(NonRetriableError):
        pass

    assert after(NoSuchCustomer()) == GiveUp("not_retriable", "NoSuchCustomer is not retried")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        TimeoutError(),
        asyncio.CancelledError(),
        SystemExit(1),
        RunFailed("01H", "KeyError", "x"),
        TryAgain(503, 0, "no"),
        Unconfirmed("no"),
        AuthorizationFailed("no"),
    ],
)
def test_everything_else_is_retried(error: BaseException) -> None:
    assert after(error) == RetryAt(NOW + 15_000)


@pytest.mark.parametrize(
    ("delay", "at"),
    [
        (7, NOW + 7_000),
        (timedelta(hours=1), NOW + 3_600_000),
        (datetime(2031, 1, 1, tzinfo=UTC), to_ms(datetime(2031, 1, 1, tzinfo=UTC))),
        (datetime(2001, 1, 1, tzinfo=UTC), NOW),
        (-1, NOW),
    ],
)
def test_an_error_may_name_its_own_time(delay: float | timedelta | datetime, at: int) -> None:
    assert after(RetryAfterError(delay), spread=0.9) == RetryAt(at)


def test_a_named_time_still_counts_as_an_attempt() -> None:
    assert after(RetryAfterError(1), attempt=4) == GiveUp("exhausted", "5 attempts failed")


def test_a_group_is_decided_by_what_is_in_it() -> None:
    mixed = ExceptionGroup(
        "tasks", [KeyError(), ExceptionGroup("more", [NonRetriableError(), RetryAfterError(1)])]
    )
    assert after(mixed) == GiveUp("not_retriable", "NonRetriableError is not retried")
    named = ExceptionGroup("tasks", [RetryAfterError(1), RetryAfterError(9), KeyError()])
    assert after(named) == RetryAt(NOW + 9_000)
    assert after(ExceptionGroup("tasks", [KeyError()])) == RetryAt(NOW + 15_000)


@given(
    attempts=st.integers(1, 50),
    attempt=st.integers(0, 60),
    waits=st.lists(st.floats(0, 10_000), min_size=1, max_size=5),
    jitter=st.floats(0, 1),
    spread=st.floats(0, 1, exclude_max=True),
    delay=st.none() | st.floats(-1e6, 1e6),
)
def test_never_before_now_and_never_too_often(
    attempts: int, attempt: int, waits: list[float], jitter: float, spread: float, delay: float | None
) -> None:
    retry = Retry(attempts=attempts, waits=waits, jitter=jitter)
    error = KeyError() if delay is None else RetryAfterError(delay)
    match after(error, attempt=attempt, retry=retry, spread=spread):
        case RetryAt(at):
            assert attempt + 1 < attempts
            assert at >= NOW
            if delay is None:
                assert at - NOW <= max(waits) * 2_000 + 1
        case GiveUp(reason):
            assert reason == "exhausted"
            assert attempt + 1 >= attempts
