"""Simulated time: events in order, hosts whose tasks crash and freeze, a network that loses things.

Owns when something happens and what goes wrong on the way; never what an actor does or what the server holds.
A task is a generator: it yields how many milliseconds it waits, or a consumer whose messages it waits for.
Whatever happens follows from the seed.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any, Protocol

START = 1_900_000_800_000
"""Epoch ms at which every world begins: a full hour."""
TIMEOUT = 2_000
"""How long a caller waits for an answer, in ms."""

Steps = Generator[Any, None, Any]


class Violation(AssertionError):
    """A property does not hold; the text names the seed and tells what came before."""


class TryAgain(Exception):
    """Nothing is said about success."""


class Refused(Exception):
    """The server said no."""


class KnownId(Refused):
    """A message id in the batch is known (10201)."""


class WrongSequence(Refused):
    """An expectation failed (10071)."""


class World:
    """Time, chance, and what happened lately. `faults`: whether anything may go wrong now."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = START
        self.faults = True
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._trace: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=80)

    def at(self, when: int, act: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heappush(self._events, (when if when > self.now else self.now, self._count, act, args))

    def after(self, delay: int, act: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay, act, *args)

    def run(self, until: int, stop: Callable[[], bool] | None = None) -> None:
        """Let everything up to `until` happen, or until `stop` says so."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, act, args = heappop(events)
            act(*args)
            if stop is not None and stop():
                return
        self.now = until

    def between(self, low: int, high: int) -> int:
        return low + int(self.random.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        return self.faults and self.random.random() < probability

    def note(self, *parts: Any) -> None:
        self._trace.append((self.now, parts))

    def fail(self, text: str) -> None:
        trace = "\n".join(
            f"  {(when - START) / 1000:9.3f}  {' '.join(map(str, parts))}" for when, parts in self._trace
        )
        raise Violation(f"seed {self.seed}: {text}\n{trace}")


class Waitable(Protocol):
    def park(self, task: "Task") -> None: ...


class Task:
    """A generator at work on a host; dies with it."""

    __slots__ = ("_life", "_steps", "dead", "host")

    def __init__(self, host: "Host", steps: Steps) -> None:
        self.host = host
        self.dead = False
        self._steps = steps
        self._life = host.life

    def step(self) -> None:
        host = self.host
        if self.dead or self._life != host.life:
            return
        world = host.world
        if host.frozen_until > world.now:
            world.at(host.frozen_until, self.step)
            return
        try:
            wait = next(self._steps)
        except StopIteration:
            self.dead = True
            return
        if isinstance(wait, int):
            world.at(world.now + wait, self.step)
        else:
            wait.park(self)


class Host:
    """A process: what it runs dies when it crashes, and stands still while it is frozen."""

    def __init__(self, world: World, name: str, main: Callable[["Host"], None], skew: int = 0) -> None:
        self.world = world
        self.name = name
        self.skew = skew
        self.life = 0
        self.frozen_until = 0
        self.up = False
        self._main = main

    def now(self) -> int:
        """This machine's clock."""
        return self.world.now + self.skew

    def start(self) -> None:
        if not self.up:
            self.up = True
            self._main(self)

    def spawn(self, steps: Steps) -> Task:
        task = Task(self, steps)
        self.world.after(0, task.step)
        return task

    def crash(self, down: int) -> None:
        """Kill -9, and a new process after `down` ms."""
        self.world.note(self.name, "crashes for", down)
        self.life += 1
        self.up = False
        self.frozen_until = 0
        self.world.after(down, self.start)

    def freeze(self, duration: int) -> None:
        """Stand still; wake with what was known before."""
        self.world.note(self.name, "freezes for", duration)
        self.frozen_until = max(self.frozen_until, self.world.now + duration)


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely each mishap is, for one request or acknowledgement."""

    crash: float = 0.004
    freeze: float = 0.004
    lost: float = 0.008
    answer_lost: float = 0.008
    ack_lost: float = 0.03
    ack_late: float = 0.02
    longest_freeze: int = 100_000
    longest_down: int = 15_000


class Network:
    """Between the hosts and a server that may be down."""

    def __init__(self, world: World, odds: Odds, down: Callable[[], bool]) -> None:
        self._world = world
        self._odds = odds
        self._down = down
        steps = []
        total = 0.0
        for kind, probability in (
            ("crash before", odds.crash / 2),
            ("crash after", odds.crash / 2),
            ("freeze before", odds.freeze / 2),
            ("freeze after", odds.freeze / 2),
            ("lost", odds.lost),
            ("answer lost", odds.answer_lost),
        ):
            total += probability
            steps.append((total, kind))
        self._steps = steps
        self._total = total

    def _mishap(self) -> str:
        world = self._world
        if not world.faults or (drawn := world.random.random()) >= self._total:
            return ""
        return next(kind for limit, kind in self._steps if drawn < limit)

    def call(self, host: Host, act: Callable[..., Any], *args: Any) -> Steps:
        """Ask the server for `act(*args)`; raises what it refuses with, or `TryAgain` without an answer."""
        world = self._world
        yield 1 + int(world.random.random() * 8)
        mishap = self._mishap()
        if mishap == "crash before":
            host.crash(world.between(100, self._odds.longest_down))
            yield 0
        elif mishap == "freeze before":
            host.freeze(world.between(100, self._odds.longest_freeze))
            yield 0
        if mishap == "lost" or self._down():
            yield TIMEOUT
            raise TryAgain("no answer")
        refusal: Exception | None = None
        result: Any = None
        try:
            result = act(*args)
        except (Refused, TryAgain) as error:
            refusal = error
        if mishap == "crash after":
            host.crash(world.between(100, self._odds.longest_down))
            yield 0
        elif mishap == "freeze after":
            host.freeze(world.between(100, self._odds.longest_freeze))
            yield 0
        elif mishap == "answer lost":
            world.note(host.name, "hears no answer to", getattr(act, "__name__", act))
            yield TIMEOUT
            raise TryAgain("the answer was lost")
        yield 1 + int(world.random.random() * 8)
        if refusal is not None:
            raise refusal
        return result

    def insist(self, host: Host, act: Callable[..., Any], *args: Any) -> Steps:
        """`call` until it is answered: for what can be repeated."""
        while True:
            try:
                return (yield from self.call(host, act, *args))
            except TryAgain:
                yield 500

    def tell(self, act: Callable[..., None], *args: Any) -> None:
        """Send what nobody answers, such as an acknowledgement: it may be lost, or come late."""
        world, odds = self._world, self._odds
        delay = world.between(1, 8)
        if world.faults:
            drawn = world.random.random()
            if drawn < odds.ack_lost:
                return
            if drawn < odds.ack_lost + odds.ack_late:
                delay = world.between(1_000, 90_000)
        world.after(delay, self._arrive, act, args)

    def _arrive(self, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self._down():
            act(*args)
