"""Faults at the seam between actors and storage: a bus whose writes die, are refused, are late, or go unanswered.

Owns what counts as a write: whatever changes something on the server, an acknowledgement too. A batch is one
write. Reads, pull requests and signs of progress are none. Once dead, a bus does nothing more: whatever runs
on in the process finds every call raising `Killed`, as if it did not run.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg

from jetcron.bus import Bus
from jetcron.errors import TryAgain

_READS = (
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.",
    "$JS.API.STREAM.MSG.GET.",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.CONSUMER.INFO.",
    "$JS.API.CONSUMER.MSG.NEXT.",
    "$JS.API.DIRECT.GET.",
)


class Killed(BaseException):
    """The process ended here."""


@dataclass(frozen=True, slots=True)
class Die:
    """The process ends before the write, or `after` the server confirmed it."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """The write is stored and its answer lost: the caller hears `TryAgain`."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing is written; the caller hears `error`."""

    error: Exception = field(default_factory=lambda: TryAgain(503, 10008, "refused by the test"))


@dataclass(frozen=True, slots=True)
class Wait:
    """The write waits until the test sets `go`, or, `after` it, its answer; `reached` says that it has come here."""

    reached: asyncio.Event
    go: asyncio.Event
    after: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """The write waits for a while, drawn each time it comes to that, as in a process that is not given the CPU."""

    seconds: Callable[[], float]


Fault = Die | LoseAnswer | Refuse | Wait | Stall


@dataclass(slots=True)
class _Armed:
    fault: Fault
    on: str
    left: int
    times: int


class FaultyBus(Bus):
    """A `Bus` that does what the test says to its writes. Without faults it is a `Bus`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.writes: list[str] = []
        """What was written, or tried to be, in order."""
        self.dead = False
        self._armed: list[_Armed] = []

    def arm(self, fault: Fault, *, nth: int = 0, on: str = "", times: int = 1) -> None:
        """Do this to the `nth` write from now on (0: the next) whose name contains `on`, and `times - 1` more."""
        self._armed.append(_Armed(fault, on, nth, times))

    def disarm(self) -> None:
        """No more faults; the dead stay dead."""
        self._armed.clear()

    def kill(self) -> None:
        """End the process, as far as the server can tell."""
        self.dead = True

    async def settled(self, timeout: float = 5.0) -> None:
        """As a `Bus`; the dead, who close their connection by this, wait for nothing."""
        if not self.dead:
            await super().settled(timeout)

    async def post(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self._alive()
        if reply or payload == b"+WPI":
            await super().post(subject, payload, reply=reply, headers=headers)
            return

        async def write() -> None:
            await super(FaultyBus, self).post(subject, payload, headers=headers)
            if self._armed:
                await self.settled()

        name = payload[:4].decode() if subject.startswith("$JS.ACK.") else subject
        await self._write(name, write)

    async def post_all(self, messages: Iterable[tuple[str, bytes, dict[str, str]]]) -> None:
        self._alive()
        await super().post_all(messages)

    async def request(self, subject: str, payload: bytes = b"", **more: Any) -> Msg:
        self._alive()
        if subject.startswith(_READS):
            return await super().request(subject, payload, **more)

        async def write() -> Msg:
            return await super(FaultyBus, self).request(subject, payload, **more)

        return await self._write(subject, write)

    async def _write(self, name: str, write: "Callable[[], Awaitable[Any]]") -> Any:
        self.writes.append(name)
        match self._fault(name):
            case None:
                return await write()
            case Die(after=False):
                self.dead = True
                raise Killed(name)
            case Die():
                await write()
                self.dead = True
                raise Killed(name)
            case LoseAnswer():
                await write()
                raise TryAgain(408, 0, "the answer was lost by the test")
            case Refuse(error=error):
                raise error
            case Stall(seconds=seconds):
                await asyncio.sleep(seconds())
                self._alive()
                return await write()
            case Wait(reached=reached, go=go, after=after):
                answer = await write() if after else None
                reached.set()
                await go.wait()
                self._alive()
                return answer if after else await write()

    def _fault(self, name: str) -> Fault | None:
        for armed in list(self._armed):
            if armed.on not in name:
                continue
            if armed.left > 0:
                armed.left -= 1
                continue
            armed.times -= 1
            if armed.times <= 0:
                self._armed.remove(armed)
            return armed.fault
        return None

    def _alive(self) -> None:
        if self.dead:
            raise Killed


def was_killed(error: BaseException) -> bool:
    """Whether this is `Killed`, or a group of nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(was_killed(one) for one in error.exceptions)
    return isinstance(error, Killed)
