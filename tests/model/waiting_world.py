"""A world of runs that wait: events at the worst moments, children, processes that die between any two requests.

Owns the scenario that a seed stands for, who sends what is waited for, and the properties: some are watched at every
entry of a journal, the rest once all is over.
"""

from dataclasses import dataclass, field
from typing import Any

from jetcron.history import FINISHED
from jetcron_protocol.messages import JournalEntry, Run
from tests.model.clockwork import START, Host, Network, Odds, World
from tests.model.executors import TTL, Shared
from tests.model.rules import WAITING, Rules
from tests.model.server import Consumer, Journal, Keys, Out, Work
from tests.model.waiters import FOR_EVER, Places, Router, Script, Standing, Waited, Waiter, subject_of

MINUTE = 60_000
LONG = 3 * 60 * MINUTE
"""The span of waits for what surely comes: longer than the world lasts, so that a run that misses it hangs."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What may happen. `left`: whether held turns may be left behind, by processes that die beside them."""

    minutes: int = 4
    runs: int = 6
    outages: int = 2
    stale: float = 0.3
    left: bool = True
    odds: Odds = field(default_factory=lambda: Odds(crash=0.01, freeze=0.006))


class WaitingWorld:
    """Everything of one seed."""

    def __init__(self, seed: int, scenario: Scenario, *off: str) -> None:
        self.world = world = World(seed)
        self.scenario = scenario
        self.work = Work(world)
        self.journal = _Watched(world, self._appended, stale=scenario.stale)
        self.waits = _Watched(world, self._stored, stale=scenario.stale)
        self.scripts: dict[str, Script] = {}
        self.waited: dict[str, Waited] = {}
        """By the subject of each wait, what it is."""
        self.opened: dict[str, int] = {}
        self.met_at: dict[str, int] = {}
        self.sent: dict[str, list[str]] = {}
        self.results: dict[tuple[str, str], Any] = {}
        self.claims: dict[str, JournalEntry] = {}
        self.ended: set[str] = set()
        self.ends = START + scenario.minutes * MINUTE
        net = Network(world, scenario.odds, lambda: self.work.down)
        for kind in ("ready", "event"):
            self.work.consumers[kind] = Consumer(self.work)
        # They die more often than a run may be lost; that it may not is the other world's to show.
        rules = Rules(WAITING, "lost attempts are limited", *off)
        shared = Shared(world, rules, self.work, self.journal, Keys(world, TTL), net, {}, set(), FOR_EVER)
        places = Places(self.waits, self.scripts, self._hand_over)
        self.hosts: list[Host] = [Waiter(shared, places, f"executor-{n}").host for n in range(2)]
        self.hosts += [Router(shared, places, f"router-{n}").host for n in range(2)]
        for number in range(world.between(2, scenario.runs)):
            run = f"run-{number}"
            self._write(run, depth=1)
            world.at(world.between(START + 1_000, START + scenario.minutes * MINUTE // 2), self._begin, run)
        for _ in range(world.between(0, scenario.outages)):
            self._plan_outage()

    def run(self) -> None:
        """The faults, then peace until every run has ended, or long enough for it."""
        self.world.run(self.ends)
        self.world.faults = False
        self.world.note("peace")
        if not self._over():
            self.world.run(self.ends + 30 * MINUTE, stop=self._over)
        self.world.run(self.world.now + MINUTE)

    def check(self) -> None:
        """What must hold once all is over. Raises `Violation` naming the seed."""
        for run, script in self.scripts.items():
            if run not in self.ended:
                if script.parent is None or self._invoked(script):
                    self.world.fail(f"{run} hangs: {[entry for _, entry in self.journal.leader(run)][-4:]}")
                continue
            for one in (one for stage in script.stages for one in stage):
                if (run, one.step) not in self.results:
                    self.world.fail(f"{run} ended without {one.step}")
        if not self.scenario.left:
            for subject in self.work.held:
                self.world.fail(f"{subject} is left behind")

    def _over(self) -> bool:
        return not self.work.standing("ready", "event") and all(
            run in self.ended for run, script in self.scripts.items() if script.parent is None
        )

    def _invoked(self, script: Script) -> bool:
        assert script.parent is not None
        assert script.parent_step is not None
        return subject_of(script.parent, script.parent_step) in self.opened

    # The plan.

    def _write(self, run: str, *, depth: int, parent: str | None = None, step: str | None = None) -> None:
        world = self.world
        stages = []
        for number in range(world.between(1, 3)):
            stage = [self._step(f"{number}{letter}", depth) for letter in "abc"[: world.between(1, 3)]]
            stages.append(tuple(stage))
        self.scripts[run] = Script(tuple(stages), parent, step)
        for one in (one for stage in stages for one in stage):
            self.waited[subject_of(run, one.step)] = one
            if one.kind == "child":
                self._write(f"{run}.{one.step}", depth=depth - 1, parent=run, step=one.step)

    def _step(self, step: str, depth: int) -> Waited:
        world = self.world
        kind = world.random.choice(("sure", "sure", "sure", "perhaps", "sleep", "child" if depth else "sure"))
        match kind:
            case "sure":
                return Waited(step, "event", LONG, sure=True)
            case "perhaps":
                return Waited(step, "event", world.between(500, 40_000))
            case "sleep":
                return Waited(step, "sleep", world.between(100, 30_000))
        return Waited(step, "child", LONG, sure=True)

    def _begin(self, run: str) -> None:
        if self.work.down:
            self.world.after(500, self._begin, run)
            return
        message = Run(run=run, function="app.f", trigger="manual", fire_at=self.world.now)
        self.work.publish(Out(("ready",), message, id=run))

    def _plan_outage(self) -> None:
        world = self.world
        start = world.between(START + 3_000, self.ends - MINUTE)
        match world.random.choice(("server", "host", "all")):
            case "server":
                world.at(start, self._stop_server)
                world.at(start + world.between(2_000, 40_000), self._start_server)
            case "host":
                world.at(start, self._crash, world.random.choice(self.hosts), world.between(100, 60_000))
            case _:
                for host in self.hosts:
                    world.at(start, self._crash, host, world.between(1_000, 60_000))

    def _stop_server(self) -> None:
        if not self.work.down:
            self.work.stop()

    def _start_server(self) -> None:
        if self.work.down:
            self.work.start()

    def _crash(self, host: Host, down: int) -> None:
        if host.up:
            host.crash(down)

    def _hand_over(self, woken: Out, held: tuple[Any, ...]) -> None:
        """One publish: the server stores it and purges what it takes the place of."""
        self.work.publish(woken)
        self.work.purge(held)

    # Whoever sends what is waited for.

    def _send(self, run: str, step: str, event: str) -> None:
        """Some time after the wait was journaled; twice, perhaps, and beside another."""
        if self.work.down:
            self.world.after(500, self._send, run, step, event)
            return
        self.sent.setdefault(subject_of(run, step), []).append(event)
        self.work.publish(Out(("event",), (run, step, event)))
        if self.world.chance(0.2):
            self.world.after(self.world.between(0, 3_000), self._send, run, step, event)

    def _awaited(self, run: str, one: Waited, until: int) -> None:
        world = self.world
        random = world.random.random()
        if one.sure:
            delay = 0 if random < 0.3 else world.between(0, 200 if random < 0.6 else 30_000)
        else:
            delay = max(0, until - world.now + world.between(-600, 600)) if random < 0.7 else LONG
        for number in range(world.random.choice((1, 1, 2))):
            world.after(delay + number * world.between(0, 50), self._send, run, one.step, f"event-{number}")

    # What is watched.

    def _appended(self, run: str, entry: JournalEntry) -> None:
        """Every entry: by who holds the run, each step once, what came before its time is not left out."""
        fail = self.world.fail
        if run in self.ended:
            fail(f"{run} had ended, then {entry}")
        if entry.entry == "claimed":
            self.claims[run] = entry
        elif entry.executor != self.claims[run].executor:
            fail(f"{run}: {entry.entry} by {entry.executor}, claimed by {self.claims[run].executor}")
        match entry.entry:
            case "opened":
                self._opened(run, entry)
            case "step":
                self._done(run, entry)
            case done if done in FINISHED:
                if done != "completed":
                    fail(f"{run} {done}")
                self.ended.add(run)

    def _stored(self, subject: str, wait: Standing) -> None:
        if wait.met is not None:
            self.met_at.setdefault(subject, self.world.now)

    def _opened(self, run: str, entry: JournalEntry) -> None:
        assert entry.step is not None
        subject = subject_of(run, entry.step)
        if subject in self.opened:
            self.world.fail(f"{subject} was opened twice")
        self.opened[subject] = entry.until or 0
        one = self.waited[subject]
        if one.kind == "event":
            self._awaited(run, one, entry.until or 0)

    def _done(self, run: str, entry: JournalEntry) -> None:
        fail = self.world.fail
        assert entry.step is not None
        subject = subject_of(run, entry.step)
        if (run, entry.step) in self.results:
            fail(f"{subject} was recorded twice")
        self.results[run, entry.step] = entry.result
        one, until = self.waited[subject], self.opened[subject]
        if entry.result is None:
            if self.world.now < until:
                fail(f"{subject} was over {until - self.world.now} ms before its time")
            if self.met_at.get(subject, until) < until:
                fail(f"{subject} was met before its time, and is over without")
        elif one.kind == "child":
            if f"{run}.{entry.step}" not in self.ended:
                fail(f"{subject}: its child has not ended")
        elif entry.result not in self.sent.get(subject, ()):
            fail(f"{subject} met {entry.result}, which nobody sent")


class _Watched(Journal):
    """A journal that shows every entry."""

    def __init__(self, world: World, watch, *, stale: float) -> None:  # type: ignore[no-untyped-def]
        super().__init__(world, stale=stale)
        self._watch = watch

    def append(self, subject: str, entry: JournalEntry, expected: int | None, keep: int | None = None) -> int:
        sequence = super().append(subject, entry, expected, keep)
        self._watch(subject, entry)
        return sequence
