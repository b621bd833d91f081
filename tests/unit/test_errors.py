"""The tree of errors: what is retriable, what a message says, what `except Exception` lets pass."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from jetcron import errors
from jetcron.errors import (
    ApiError,
    ConfigurationError,
    JetcronError,
    LeaseLost,
    NonRetriableError,
    PayloadInvalid,
    PayloadTooLarge,
    RetryAfterError,
    RunFailed,
    RunNotFound,
    ServerTooOld,
    Signal,
    StepError,
    TopologyMissing,
    TryAgain,
    signal_in,
)

EVERY = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__
]


def test_everything_is_an_error_of_ours_or_a_signal() -> None:
    assert len(EVERY) > 20
    for kind in EVERY:
        assert issubclass(kind, JetcronError) != issubclass(kind, Signal), kind


def test_signals_pass_except_exception() -> None:
    def as_users_write_it() -> None:
        try:
            raise LeaseLost
        except Exception:
            pass

    with pytest.raises(LeaseLost):
        as_users_write_it()


async def test_a_signal_is_found_in_what_a_task_group_raises() -> None:
    async def lose() -> None:
        raise LeaseLost("taken over")

    async def as_users_write_it() -> None:
        async with asyncio.TaskGroup() as tasks, asyncio.TaskGroup() as inner:
            inner.create_task(lose())
            tasks.create_task(asyncio.sleep(0))

    with pytest.raises(BaseExceptionGroup) as caught:
        await as_users_write_it()
    found = signal_in(caught.value)
    assert isinstance(found, LeaseLost)
    assert signal_in(found) is found
    assert signal_in(ExceptionGroup("tasks", [KeyError()])) is None
    assert signal_in(KeyError()) is None


def test_which_errors_are_retriable() -> None:
    retriable = {kind.__name__ for kind in EVERY if issubclass(kind, JetcronError) and kind.retriable}
    assert retriable == {
        "RetryAfterError",
        "RunFailed",
        "SendFailed",
        "ServerUnreachable",
        "TryAgain",
        "Unconfirmed",
    }


def test_a_configuration_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="wrong"):
        raise ConfigurationError("wrong")


@pytest.mark.parametrize(
    ("delay", "kept"),
    [
        (90, timedelta(seconds=90)),
        (0.25, timedelta(milliseconds=250)),
        (0, timedelta(0)),
        (-5, timedelta(0)),
        (timedelta(minutes=2), timedelta(minutes=2)),
        (timedelta(minutes=-2), timedelta(0)),
        (datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)),
    ],
)
def test_retry_after_keeps_a_timedelta_or_an_instant(
    delay: float | timedelta | datetime, kept: timedelta | datetime
) -> None:
    assert RetryAfterError(delay).delay == kept


@pytest.mark.parametrize(
    "delay", [True, "5m", None, float("nan"), float("inf"), 1e30, 4_000_000_000, timedelta.max]
)
def test_retry_after_refuses_what_is_no_time(delay: float) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetryAfterError(delay)
    assert str(caught.value) == (
        f"RetryAfterError: delay={delay!r}; allowed are seconds, a timedelta, or an aware datetime, "
        "at most 100 years away"
    )


def test_retry_after_refuses_a_naive_datetime() -> None:
    with pytest.raises(ConfigurationError, match=r"delay=datetime\.datetime\(2030, 1, 1, 0, 0\) has no zone"):
        RetryAfterError(datetime(2030, 1, 1))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RetryAfterError(90), "to be tried again in 90 s"),
        (RetryAfterError(90, "the API is busy"), "the API is busy"),
        (RetryAfterError(datetime(2030, 1, 1, tzinfo=UTC)), "to be tried again at 2030-01-01T00:00:00+00:00"),
        (NonRetriableError("no such customer"), "no such customer"),
        (StepError("charge", "CardError", "card refused"), "step 'charge' failed: CardError: card refused"),
        (RunFailed("01H", "KeyError", "'x'", "Traceback …"), "run 01H failed: KeyError: 'x'"),
        (RunFailed("01H", "KeyError", ""), "run 01H failed: KeyError"),
        (
            RunNotFound("01M80JVRDMGNAY21PG4JVE9DHC"),
            "there is no run 01M80JVRDMGNAY21PG4JVE9DHC; finished runs are forgotten after their `keep`",
        ),
        (PayloadTooLarge(2_000, 1_000), "the message has 2000 bytes; at most 1000 are accepted"),
        (ServerTooOld("2.10.0", "2.14.3"), "nats-server 2.10.0 is too old; Jetcron needs 2.14.3 or later"),
        (
            TopologyMissing("JETCRON_WORK", "JETCRON_DEAD"),
            "missing on the server: JETCRON_WORK, JETCRON_DEAD; run `jetcron init` once to create it",
        ),
        (ApiError(400, 10071, "wrong last sequence"), "wrong last sequence (code 400, err_code 10071)"),
        (TryAgain(503, 0, "nobody answers"), "nobody answers (code 503)"),
        (TryAgain(0, 0, "no answer"), "no answer"),
    ],
)
def test_what_a_message_says(error: JetcronError, text: str) -> None:
    assert str(error) == text


def test_what_an_error_carries() -> None:
    failed = RunFailed("01H", "KeyError", "'x'", "Traceback …")
    assert (failed.run, failed.type, failed.message, failed.traceback) == (
        "01H",
        "KeyError",
        "'x'",
        "Traceback …",
    )
    refused = ApiError(400, 10071, "wrong last sequence")
    assert (refused.code, refused.err_code, refused.description) == (400, 10071, "wrong last sequence")
    invalid = PayloadInvalid("does not fit", ("x: Field required",))
    assert invalid.problems == ("x: Field required",)
    assert isinstance(invalid, NonRetriableError)
