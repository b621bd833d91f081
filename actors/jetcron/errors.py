"""One tree of errors, and the signals that are none.

Every error says whether the same call may succeed later, as it stands (`retriable`). What a user's
function may raise on purpose comes first, then what reading a result may raise, then the bus. Signals
derive from `BaseException`: a user's ``except Exception`` must not swallow them. No I/O, no state.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

from jetcron_protocol.ids import RUN_ID_LENGTH
from jetcron_protocol.subjects import MAX_ID


class JetcronError(Exception):
    """Any error of Jetcron. `retriable`: the same call may succeed later without being changed."""

    retriable: ClassVar[bool] = False


class ConfigurationError(JetcronError, ValueError):
    """An option or setting that cannot be; names it, its value, and what is allowed."""


class ScheduleRefused(ConfigurationError):
    """Schedules that cannot be, or an order about them that cannot be carried out: no command of it was, in which
    one of these is; a long list goes in several.

    `faults` has all that is wrong with each schedule, by its id. `stale` has the revision of those that were to be
    changed at another one: somebody changed them meanwhile.
    """

    def __init__(
        self, faults: Mapping[str, Sequence[str]], stale: Mapping[str, int] | None = None, *, shown: int = 100
    ) -> None:
        self.faults = {id: tuple(texts) for id, texts in faults.items()}
        self.stale = dict(stale or {})
        lines = fault_lines(self.faults)
        more = [f"and {len(lines) - shown} more"] if len(lines) > shown else []
        super().__init__("\n".join([*lines[:shown], *more]))


def fault_lines(faults: Mapping[str, Sequence[str]]) -> list[str]:
    """The faults of schedules, by their ids, a line each. What is too long to be an id is cut short."""
    named = {id: repr(id) if len(id) <= MAX_ID else f"{id[:40]!r}…" for id in faults}
    return [f"schedule {named[id]}: {text}" for id, texts in faults.items() for text in texts]


class NonRetriableError(JetcronError):
    """Raise it in a function to fail the run at once: no more attempts will be made."""


class PayloadInvalid(NonRetriableError):
    """The data does not fit the type of the function's second parameter.

    `problems` has a line for each field: where it is and what is wrong. Values are left out, for they may
    be private.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class RetryAfterError(JetcronError):
    """Raise it in a function to have the run tried again after `delay`: seconds, a timedelta, or an instant.

    It counts as an attempt like any failure. A delay below zero, or an instant in the past, means now.
    `delay` is kept as a timedelta or an aware datetime; a naive datetime or what is no time at all raises
    `ConfigurationError` here.
    """

    retriable: ClassVar[bool] = True

    def __init__(self, delay: float | timedelta | datetime, message: str = "") -> None:
        self.delay: timedelta | datetime = _delay(delay)
        super().__init__(message or f"to be tried again {_when(self.delay)}")


class StepError(JetcronError):
    """A step failed for good. Catch it to go on without the step; let it pass and the run fails.

    `type` and `message` are those of the original error, `traceback` is its text.
    """

    def __init__(self, step: str, type: str, message: str, traceback: str = "") -> None:
        super().__init__(
            f"step {step!r} failed: {type}: {message}" if message else f"step {step!r} failed: {type}"
        )
        self.step = step
        self.type = type
        self.message = message
        self.traceback = traceback


class DeadlineExceeded(NonRetriableError):
    """The run did not end within its function's `deadline`."""


class LimitExceeded(NonRetriableError):
    """A run has too many steps, or too much to remember; names the run, the step and the setting."""


class RunFailed(JetcronError):
    """The run whose result was awaited failed for good, elsewhere.

    `type` and `message` are those of the remote error, `traceback` is its text (empty if none was kept).
    Retriable, for a function that started the run may start another.
    """

    retriable: ClassVar[bool] = True

    def __init__(self, run: str, type: str, message: str, traceback: str = "") -> None:
        super().__init__(f"run {run} failed: {type}: {message}" if message else f"run {run} failed: {type}")
        self.run = run
        self.type = type
        self.message = message
        self.traceback = traceback


class RunNotFound(JetcronError):
    """Neither a journal nor a queue has this run: it never was, or it ended and was forgotten."""

    def __init__(self, run: str) -> None:
        super().__init__(
            f"there is no run {run}; finished runs are forgotten after their `keep`"
            if len(run) == RUN_ID_LENGTH
            else f"there is no run {run!r}; an id has {RUN_ID_LENGTH} letters and digits, see 'jetcron runs list'"
        )
        self.run = run


# The bus.


class BusError(JetcronError):
    """NATS did not do what was asked."""


class ServerUnreachable(BusError):
    """No server answers at these addresses, or the connection is lost."""

    retriable: ClassVar[bool] = True


class AuthorizationFailed(BusError):
    """The server refused the credentials, or a permission is missing."""


class JetStreamDisabled(BusError):
    """The server, or this account, has no JetStream."""


class ServerTooOld(BusError):
    """The server's version is older than what Jetcron is correct on."""

    def __init__(self, version: str, minimum: str) -> None:
        super().__init__(f"nats-server {version} is too old; Jetcron needs {minimum} or later")
        self.version = version
        self.minimum = minimum


class TopologyMissing(BusError):
    """A stream, bucket or consumer does not exist."""

    def __init__(self, *missing: str) -> None:
        super().__init__(f"missing on the server: {', '.join(missing)}; run `jetcron init` once to create it")
        self.missing = missing


class TopologyMismatch(BusError):
    """A stream, bucket or consumer is not as Jetcron needs it."""


class PayloadTooLarge(BusError):
    """A message of `size` bytes where at most `limit` are taken."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the message has {size} bytes; at most {limit} are accepted")
        self.size = size
        self.limit = limit


class SendFailed(BusError):
    """A list of events was not stored whole: the first `stored` of `total` are. Sending all again is safe
    where they have ids of their own: what is stored already starts nothing twice.
    """

    retriable: ClassVar[bool] = True

    def __init__(self, stored: int, total: int, reason: str) -> None:
        super().__init__(f"{stored} of {total} events were stored, then the server did not confirm: {reason}")
        self.stored = stored
        self.total = total


class NotFound(BusError):
    """Nothing is stored on this subject or under this sequence."""


class Unconfirmed(BusError):
    """Gave up on an append whose outcome is unknown: it may stand or not.

    Retriable only under the same message id or nonce, by which a repetition is recognised.
    """

    retriable: ClassVar[bool] = True


class ApiError(BusError):
    """The JetStream API refused. `code` is like HTTP's, `err_code` is the server's number for the cause.

    Either is 0 where there is none, as when nothing was answered. Source: nats-server's errors.json.
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        numbers = [f"{name} {number}" for name, number in (("code", code), ("err_code", err_code)) if number]
        super().__init__(f"{description} ({', '.join(numbers)})" if numbers else description)
        self.code = code
        self.err_code = err_code
        self.description = description


class WrongSequence(ApiError):
    """The last sequence of the subject is not the expected one (10071): someone else wrote first."""


class KnownId(ApiError):
    """A message id is known; of a batch, one refuses all (10201)."""


class BatchTooLarge(ApiError):
    """An atomic batch had more messages than the server takes (10199)."""


class TryAgain(ApiError):
    """Not now: in process, too many batches open, no storage, no leader, or no answer in time.

    It says nothing about whether the message was stored; nothing is ever acknowledged on it.
    """

    retriable: ClassVar[bool] = True


# Signals.


class Signal(BaseException):
    """Control flow, not an error: user code must let it pass."""


class LeaseLost(Signal):
    """Another executor owns the run now: record nothing more, and acknowledge nothing."""


class RunReleased(Signal):
    """The run waits and has left this executor: its code unwinds, and begins again when the wait is over."""


class RunCancelled(Signal):
    """Somebody cancelled the run: its code unwinds, and nothing more of it is recorded."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """What is in a group, as a task group raises it, groups in it opened; or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from leaves(one)
    else:
        yield error


def signal_in(error: BaseException) -> Signal | None:
    """The first signal in `error`: a user's task group wraps what passes through it."""
    return next((one for one in leaves(error) if isinstance(one, Signal)), None)


_LONGEST = timedelta(days=36_525)


def _delay(delay: float | timedelta | datetime) -> timedelta | datetime:
    allowed = "allowed are seconds, a timedelta, or an aware datetime, at most 100 years away"
    if isinstance(delay, datetime):
        if delay.utcoffset() is None:
            raise ConfigurationError(
                f"RetryAfterError: delay={delay!r} has no zone; give an aware datetime, such as one in UTC"
            )
        return delay
    if isinstance(delay, timedelta):
        span = delay
    elif isinstance(delay, bool) or not isinstance(delay, int | float) or not math.isfinite(delay):
        raise ConfigurationError(f"RetryAfterError: delay={delay!r}; {allowed}")
    else:
        try:
            span = timedelta(seconds=delay)
        except OverflowError:
            raise ConfigurationError(f"RetryAfterError: delay={delay!r}; {allowed}") from None
    if span > _LONGEST:
        raise ConfigurationError(f"RetryAfterError: delay={delay!r}; {allowed}")
    return max(span, timedelta(0))


def _when(delay: timedelta | datetime) -> str:
    if isinstance(delay, datetime):
        return f"at {delay.isoformat()}"
    return f"in {delay.total_seconds():g} s"
