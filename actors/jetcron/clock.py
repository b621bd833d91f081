"""Time: read and awaited here, and nowhere else.

Owns the two clocks a process has: the wall clock, which names instants and may jump, and the monotonic
one, which measures and never does. Holds no state, so nothing is lost when the process dies. Tests bring
a clock of their own.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Clock(Protocol):
    """What actors take, so that a test can decide what time it is."""

    def now(self) -> int:
        """The wall clock, in epoch milliseconds. It may jump, in either direction."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back. For measuring only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait so long on the monotonic clock; a time of zero or less only yields to the loop."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def to_ms(moment: datetime) -> int:
    """Epoch milliseconds of an aware datetime, rounded down; `ValueError` for a naive one."""
    if moment.utcoffset() is None:
        raise ValueError(f"{moment.isoformat()} has no zone; give an aware datetime, such as one in UTC")
    return (moment - _EPOCH) // _MILLISECOND


def from_ms(ms: int) -> datetime:
    """The aware datetime, in UTC, of epoch milliseconds; `ValueError` outside the years 1 to 9999."""
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:
        raise ValueError(f"{ms} ms since 1970 is outside the years 1 to 9999") from None
