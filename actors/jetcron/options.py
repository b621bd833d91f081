"""What a function can be given: triggers, retries, durations. Frozen, validated where it is written.

Owns what is allowed and how its refusal reads: the place, the option, its value, what is allowed. Users
write seconds or a `timedelta`; a `timedelta` is stored. Pure: no I/O, no clock.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from types import MappingProxyType
from typing import get_args

from jetcron.cron import CronError, parse
from jetcron.cron.zones import check_zone
from jetcron.errors import ConfigurationError
from jetcron_protocol.messages import MAX_CATCH_UP, CatchUpPolicy, Dst, Overlap
from jetcron_protocol.subjects import InvalidName, check_event_name

Duration = float | timedelta
"""Seconds, or a `timedelta`."""

ZERO = timedelta(0)
MILLISECOND = timedelta(milliseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEAR = timedelta(days=366)
MAX_ATTEMPTS = 1_000
"""Each attempt is a line in its run's history, which is one message in the end."""
MAX_CONCURRENCY = 1_000_000
CATCH_UPS: tuple[str, ...] = get_args(CatchUpPolicy)
OVERLAPS: tuple[str, ...] = get_args(Overlap)
DSTS: tuple[str, ...] = get_args(Dst)
_LONGEST = 100
_BEGINNING = 40
"""Characters of a value in a message, and of one that is longer."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron trigger. `timezone` and `dst`, where None, are the function's.

    A prefix ``TZ=Zone`` of the expression wins over the function's zone, and excludes `timezone` here.
    """

    expression: str
    timezone: str | None = field(default=None, kw_only=True)
    dst: Dst | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        where = f"Cron({self.expression!r})"
        if self.timezone is not None:
            check_timezone(where, self.timezone)
        if self.dst is not None:
            check_choice(where, "dst", self.dst, DSTS)
        zone = check_cron(where, self.expression, timezone=self.timezone or "UTC", dst=self.dst or "default")
        if self.timezone not in (None, zone):
            raise ConfigurationError(
                f"{where}: timezone={self.timezone!r}, and the expression names {zone!r}; "
                "allowed is one of them"
            )


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a run is attempted, the first attempt included, and how long it waits between attempts.

    `waits` are seconds or timedeltas, one a retry; the last repeats. Each is lengthened by a random part
    of up to `jitter` (0.3: up to 30 %), so that what failed together does not come back together.
    """

    attempts: int = 5
    waits: Sequence[Duration] = (15, 30, 60, 120, 300, 600)
    jitter: float = 0.3

    def __post_init__(self) -> None:
        check_int("Retry", "attempts", self.attempts, 1, MAX_ATTEMPTS)
        if isinstance(self.waits, str) or not isinstance(self.waits, Sequence) or not self.waits:
            raise ConfigurationError(
                f"Retry: waits={self.waits!r}; allowed is a list of at least one duration, such as (15, 60)"
            )
        waits = tuple(
            check_duration("Retry", f"waits[{index}]", wait, ZERO, YEAR)
            for index, wait in enumerate(self.waits)
        )
        object.__setattr__(self, "waits", waits)
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"Retry: jitter={self.jitter!r}; allowed are 0 to 1 (0.3 is 30 %)")

    def wait(self, attempt: int) -> timedelta:
        """The wait after attempt number `attempt` (0 first), jitter left out."""
        chosen = self.waits[min(attempt, len(self.waits) - 1)]
        return chosen if isinstance(chosen, timedelta) else timedelta(seconds=chosen)


@dataclass(frozen=True, slots=True)
class CatchUp:
    """What becomes of occurrences that were missed: ``latest`` runs the newest, ``all`` each, ``skip`` none.

    None older than `within`, in seconds or as a timedelta, when it is turned to; of ``all``, the `most` newest.
    Those that do not run are in the ledger.
    """

    policy: CatchUpPolicy
    within: Duration | None = field(default=None, kw_only=True)
    most: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        where = f"CatchUp({self.policy!r})"
        check_choice(where, "policy", self.policy, CATCH_UPS)
        if self.within is not None:
            if self.policy == "skip":
                raise ConfigurationError(
                    f"{where}: within={self.within!r} has no effect, for nothing runs; leave it out"
                )
            object.__setattr__(
                self, "within", check_duration(where, "within", self.within, MILLISECOND, 10 * YEAR)
            )
        if self.most is not None:
            if self.policy != "all":
                raise ConfigurationError(f"{where}: most={self.most!r} is for 'all' alone; leave it out")
            check_int(where, "most", self.most, 1, MAX_CATCH_UP)

    @property
    def window(self) -> timedelta | None:
        """`within`, as a timedelta."""
        return timedelta(seconds=self.within) if isinstance(self.within, int | float) else self.within


@dataclass(frozen=True, slots=True)
class CancelOn:
    """An event that cancels the runs of a function: all of them, or those that `match`.

    `match` has dotted paths in the data of the cancelling event, each with the path in the run's own data (that of
    its event, or its payload) at which an equal value must stand: ``{"order_id": "order_id"}``.
    """

    event: str
    match: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        where = f"CancelOn({self.event!r})"
        try:
            check_event_name(self.event)
        except InvalidName as error:
            raise ConfigurationError(f"{where}: {error}") from None
        if self.match is None:
            return
        if not isinstance(self.match, Mapping) or not self.match:
            raise ConfigurationError(
                f"{where}: match={self.match!r}; allowed is a map of a path in the event's data "
                "to one in the run's, such as {'order_id': 'order_id'}"
            )
        for path, own in self.match.items():
            check_path(where, "match", path)
            check_path(where, "match", own)
        object.__setattr__(self, "match", MappingProxyType(dict(self.match)))


def check_path(where: str, option: str, path: object) -> str:
    """`path` if it can be a dotted path of an event's data."""
    if not isinstance(path, str) or not path or not all(path.split(".")):
        raise ConfigurationError(
            f"{where}: {option} has the path {path!r}; allowed are names joined by dots, such as 'order.id'"
        )
    return path


# The checks. Each names the place it is written at (`where`), the option, the value, and what is allowed.


def check_int(where: str, option: str, value: object, least: int, most: int) -> int:
    """`value` if it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(
            f"{where}: {option}={told(value)}; allowed are whole numbers from {least} to {most}"
        )
    return value


def check_duration(
    where: str, option: str, value: object, least: timedelta, most: timedelta, *, written: str | None = None
) -> timedelta:
    """`value`, in seconds or as a timedelta, as a timedelta from `least` to `most`. `written`: the text it was."""
    span: timedelta | None = None
    if isinstance(value, timedelta):
        span = value
    elif _is_number(value):
        try:
            span = timedelta(seconds=value)  # type: ignore[arg-type]  # narrowed by _is_number
        except OverflowError:
            span = None
    if span is None or not least <= span <= most:
        raise ConfigurationError(
            f"{where}: {option}={told(written or value)}; allowed are seconds or a timedelta, "
            f"from {readable(least)} to {readable(most)}"
        )
    return span


def check_choice(where: str, option: str, value: object, allowed: tuple[str, ...]) -> str:
    """`value` if it is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ConfigurationError(
            f"{where}: {option}={told(value)}; allowed {'is' if len(allowed) == 1 else 'are'} "
            f"{', '.join(repr(choice) for choice in allowed)}"
            f"{suggestion(value, allowed)}"
        )
    return value


def check_timezone(where: str, name: object) -> None:
    """Refuses what is no IANA time zone."""
    if not isinstance(name, str):
        raise ConfigurationError(
            f"{where}: timezone={told(name)}; allowed are IANA names, such as 'UTC' or 'Europe/Prague'"
        )
    try:
        check_zone(name)
    except CronError as error:
        raise ConfigurationError(f"{where}: timezone={told(name)}: {error}") from None


def check_cron(where: str, expression: object, *, timezone: str, dst: Dst, seed: str = "") -> str:
    """The zone in which `expression` counts, if it can be parsed: its own prefix, or else `timezone`.

    `H` in it is spread by `seed`.
    """
    if not isinstance(expression, str):
        raise ConfigurationError(
            f"{where}: a cron expression must be a string, not {type(expression).__name__}; "
            "such as '0 9 * * MON-FRI'"
        )
    try:
        return parse(expression, timezone=timezone, dst=dst, seed=seed).timezone
    except CronError as error:
        raise ConfigurationError(f"{where}: {error.reason}") from None


def suggestion(value: object, allowed: Iterable[str], *, cutoff: float = 0.6) -> str:
    """``; did you mean 'x'?``, or nothing when no allowed string is near."""
    if not isinstance(value, str):
        return ""
    by_lower = {choice.lower(): choice for choice in allowed}
    near = get_close_matches(value.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def readable(span: timedelta) -> str:
    """A duration in its largest whole unit: ``0.001 s``, ``1 hour``, ``366 days``."""
    for unit, name in ((DAY, "day"), (HOUR, "hour")):
        if span and span % unit == ZERO:
            count = span // unit
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{span.total_seconds():.12g} s"


def told(value: object) -> str:
    """A value in a message: a duration in words, what is long cut short."""
    match value:
        case timedelta():
            return readable(value)
        case str() if len(value) > _LONGEST:
            return f"{value[:_BEGINNING]!r}… ({len(value)} characters)"
    text = repr(value)
    return text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]}…"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
