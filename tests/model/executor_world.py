"""A world for the executors: runs of every kind, messages that come twice, processes that die in them.

Owns the scenario that a seed stands for, and the properties: some are watched at every append and every
acknowledgement, the rest once all messages are gone.
"""

from dataclasses import dataclass, field

from jetcron.history import FINISHED, fold
from jetcron_protocol.messages import JournalEntry, Run
from tests.model.clockwork import START, Host, Network, Odds, World
from tests.model.executors import LEAD, LOST_LIMIT, RETRY, TTL, Executor, Plan, Shared
from tests.model.rules import EXECUTOR, Rules
from tests.model.server import Consumer, Journal, Keys, Out, Work

MINUTE = 60_000
DAY = 86_400_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """What may happen.

    `away`: who is, at an outage. `keep`: how long a finished journal is kept, in ms. `sabotage`: messages
    through which runs were claimed are deleted, where another of the same turn stands.
    """

    minutes: int = 6
    runs: int = 10
    outages: int = 3
    away: tuple[str, ...] = ("server", "server", "executor", "all")
    keep: int = DAY
    sabotage: bool = False
    stale: float = 0.3
    odds: Odds = field(default_factory=lambda: Odds(crash=0.01, freeze=0.008))


@dataclass(slots=True)
class Fate:
    """What was recorded of a run since its journal was last empty."""

    lives: int = 0
    ended: set[int] = field(default_factory=set)
    failures: int = 0
    given_up: bool = False
    last: JournalEntry | None = None


class ExecutorWorld:
    """Everything of one seed."""

    def __init__(self, seed: int, scenario: Scenario, *off: str) -> None:
        self.world = world = World(seed)
        self.scenario = scenario
        self.work = Work(world)
        self.keys = Keys(world, TTL)
        self.journal = _Watched(world, self._appended, stale=scenario.stale)
        self.effects: set[tuple[str, str]] = set()
        self.plans: dict[str, Plan] = {}
        self.fates: dict[str, Fate] = {}
        net = Network(world, scenario.odds, self._is_down)
        rules = Rules(EXECUTOR, *off)
        self.work.consumers["ready"] = Consumer(self.work, most_pending=world.random.choice((0, 0, 5)))
        self.work.on_remove = self._removed
        self.ends = START + scenario.minutes * MINUTE
        shared = Shared(
            world, rules, self.work, self.journal, self.keys, net, self.plans, self.effects, scenario.keep
        )
        self.executors = [Executor(shared, f"executor-{n}") for n in range(3)]
        for number in range(world.between(3, scenario.runs)):
            self._plan_run(f"run-{number}")
        for _ in range(world.between(0, scenario.outages)):
            self._plan_outage()
        if scenario.sabotage:
            world.after(1_000, self._delete_claimed)

    def run(self) -> None:
        """The faults, then peace until every message is gone, or long enough for it."""
        self.world.run(self.ends)
        self.world.faults = False
        self.world.note("peace")
        if self.work.messages:
            self.world.run(self.ends + 30 * MINUTE, stop=lambda: not self.work.messages)

    def check(self) -> None:
        """What must hold once all is over. Raises `Violation` naming the seed."""
        for run, plan in self.plans.items():
            fate = self.fates.get(run)
            if fate is not None and fate.lives > 1:
                continue  # it was forgotten and began anew: nothing is promised beyond `keep`
            if fate is None or fate.last is None or fate.last.entry not in FINISHED:
                self.world.fail(f"{run} never ended: {fate}")
                return
            if self._left(run):
                self.world.fail(f"{run} ended, its messages are not settled")
            if not self._followed(run, fate.last):
                self.world.fail(f"{run} {fate.last.entry}, and nothing followed")
            self._check_end(plan, fate, fate.last)

    def _check_end(self, plan: Plan, fate: Fate, last: JournalEntry) -> None:
        """It ended as its code did, after as many failures; or because its processes died in a row."""
        run = plan.run
        if fate.failures != last.attempt:
            self.world.fail(f"{run} counts {last.attempt} failures, and had {fate.failures}")
        if fate.given_up:
            return
        expected = plan.ends[min(last.attempt, len(plan.ends) - 1)]
        if (last.entry == "completed") != (expected == "completes"):
            self.world.fail(f"{run} {last.entry}, although its code {expected}")
        if expected == "fails" and last.attempt + 1 != RETRY.attempts:
            self.world.fail(f"{run} gave up after attempt {last.attempt}")

    # The plan.

    def _plan_run(self, run: str) -> None:
        world = self.world
        when = world.between(START + 1_000, START + self.scenario.minutes * MINUTE // 2)
        ends = world.random.choice(
            (
                ("completes",),
                ("completes",),
                ("fails", "completes"),
                ("fails", "fails", "completes"),
                ("fails",),
                ("fails for good",),
            )
        )
        kills = world.random.choice((0, 0, 0, 0, 1, 2, 99))
        takes = world.random.choice((20, 200, 3_000, 20_000, 70_000))
        self.plans[run] = Plan(run, takes, world.random.choice((0, 0, 1, 3)) if not kills else 0, kills, ends)
        message = Run(run=run, function="app.f", trigger="manual", fire_at=when + world.between(0, 5_000))
        copies = world.random.choice((1, 1, 1, 2))
        for _ in range(copies):
            world.at(when + world.between(0, 3_000), self._publish, message)

    def _publish(self, run: Run) -> None:
        if self.work.down:
            self.world.after(500, self._publish, run)
        elif run.fire_at - self.world.now > LEAD:
            self.work.publish(Out(("later", run.run, 0), run, at=run.fire_at - LEAD, target=("ready",)))
        else:
            self.work.publish(Out(("ready",), run))

    def _plan_outage(self) -> None:
        world = self.world
        start = world.between(START + 3_000, self.ends - MINUTE)
        match world.random.choice(self.scenario.away):
            case "server":
                world.at(start, self._stop_server)
                world.at(start + world.between(2_000, 50_000), self._start_server)
            case "executor":
                world.at(
                    start, self._crash, world.random.choice(self.executors).host, world.between(100, 60_000)
                )
            case "all":
                for executor in self.executors:
                    world.at(start, self._crash, executor.host, world.between(1_000, 90_000))

    def _stop_server(self) -> None:
        if not self.work.down:
            self.work.stop()

    def _start_server(self) -> None:
        if self.work.down:
            self.work.start()

    def _delete_claimed(self) -> None:
        """An operator's mistake: of two messages of a turn, the one it was claimed through is gone."""
        for run in self.plans:
            claim = fold(self.journal.leader(run)).claim
            if claim is None:
                continue
            same = [s for s in self.work.standing("ready") if s.out.body.run == run]
            turn = [s.sequence for s in same if s.out.body.turn == claim.turn]
            delivered = self.work.consumers["ready"].delivered
            quiet = all(self.world.now - delivered.get(sequence, 0) > MINUTE // 60 for sequence in turn)
            if len(turn) > 1 and claim.message in turn and quiet:  # nobody is just deciding about them
                self.world.note("sabotage", run, claim.message)
                del self.work.messages[claim.message]
        if self.world.faults:
            self.world.after(1_000, self._delete_claimed)

    def _crash(self, host: Host, down: int) -> None:
        if host.up:
            host.crash(down)

    def _is_down(self) -> bool:
        return self.work.down

    # What is watched.

    def _appended(self, run: str, before: tuple[tuple[int, JournalEntry], ...], entry: JournalEntry) -> None:
        """Every append: turns in order, outcomes by whoever holds the claim and once, no takeover of the living."""
        fail = self.world.fail
        fate = self.fates.setdefault(run, Fate())
        history = fold(before)
        if history.last is None:
            if entry.entry != "claimed" or entry.turn != 0:
                fail(f"{run} begins with {entry.entry} at turn {entry.turn}")
            self.fates[run] = fate = Fate(lives=fate.lives + 1)
        elif history.last.entry in FINISHED:
            fail(f"{run} had {history.last.entry}, then {entry.entry}")
        claim = history.claim
        if claim is not None and claim.executor != entry.executor:
            if self.keys.alive(claim.executor):
                fail(f"{run}: {entry.entry} by {entry.executor}, while {claim.executor} has it and lives")
            if entry.entry not in ("claimed", "failed"):
                fail(f"{run}: {entry.entry} by {entry.executor}, claimed by {claim.executor}")
            fate.given_up = entry.entry == "failed"
            if fate.given_up and claim.lost + 1 != LOST_LIMIT:
                fail(f"{run}: given up after {claim.lost + 1} lost attempts")
        if entry.entry not in ("claimed", "step"):
            if entry.turn in fate.ended:
                fail(f"{run}: turn {entry.turn} ended twice")
            fate.ended.add(entry.turn)
        fate.failures += entry.entry == "retrying"
        fate.last = entry

    def _removed(self, out: Out) -> None:
        """Every acknowledgement: what it caused stands, or another message of the run does."""
        run: Run = out.body
        fate = self.fates.get(run.run)
        if self._left(run.run) or (fate is not None and fate.lives > 1):
            return
        if fate is None or fate.last is None or fate.last.entry not in FINISHED:
            self.world.fail(f"{run.run} is not finished, and its last message was acknowledged: {fate}")
        elif not self._followed(run.run, fate.last):
            self.world.fail(f"{run.run} was acknowledged, and nothing followed")

    def _left(self, run: str) -> bool:
        return any(stored.out.body.run == run for stored in self.work.messages.values())

    def _followed(self, run: str, last: JournalEntry) -> bool:
        if not self.journal.leader(run):
            return True  # what follows an entry is repeated while the entry is kept
        if last.entry == "completed":
            return ("parent woken", run) in self.effects
        return ("dead letter", run) in self.effects and ("event", run) in self.effects


class _Watched(Journal):
    """A journal that shows every append, with what stood before it."""

    def __init__(self, world: World, watch, *, stale: float) -> None:  # type: ignore[no-untyped-def]
        super().__init__(world, stale=stale)
        self._watch = watch

    def append(self, subject: str, entry: JournalEntry, expected: int | None, keep: int | None = None) -> int:
        before = self.leader(subject)
        sequence = super().append(subject, entry, expected, keep)
        self._watch(subject, before, entry)
        return sequence
