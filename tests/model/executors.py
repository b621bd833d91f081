"""Executors as the protocol has them, around the product's own table, journal and retry decisions.

Owns the edges: who claims, records, follows up and acknowledges, in which order, and under which id. The
user's code is a plan: how long each execution takes, how each attempt ends, how often the process dies in it.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any

from jetcron import retry
from jetcron.errors import NonRetriableError
from jetcron.executor.decide import Acknowledge, Ask, Claim, FollowUp, GiveUp, HandBack, Verdict, decide
from jetcron.history import History, finish, fold, step
from jetcron.options import Retry
from jetcron_protocol.messages import JournalEntry, Run
from tests.model.clockwork import Host, Network, Steps, Task, TryAgain, World, WrongSequence
from tests.model.rules import Rules
from tests.model.server import Delivery, Journal, Keys, Out, Work

LEAD = 2_000
TTL = 30_000
BEAT = 10_000
PROGRESS = 10_000
PATIENCE = 10_000
HAND_BACK = 5_000
SLOTS = 4
LOST_LIMIT = 3
RETRY = Retry(attempts=3, waits=(timedelta(0), timedelta(seconds=5)), jitter=0.3)


class LeaseLost(Exception):
    """Others may hold us for dead."""


class Unconfirmed(Exception):
    """Nobody can tell whether an append stands."""


@dataclass(slots=True)
class Plan:
    """What the user's code does. `kills`: how many executions kill their process; `ends`: each attempt's end."""

    run: str
    takes: int
    steps: int
    kills: int
    ends: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Identity:
    """A name to claim under. `renewed`: when its key was last known to be stored."""

    id: str
    renewed: int
    tasks: list[Task] = field(default_factory=list)
    lapsed: bool = False


@dataclass(slots=True)
class Shared:
    """What every executor works with. `effects`: what followed a run's end, by kind and run."""

    world: World
    rules: Rules
    work: Work
    journal: Journal
    keys: Keys
    net: Network
    plans: dict[str, Plan]
    effects: set[tuple[str, str]]
    keep: int
    numbers: "count[int]" = field(default_factory=count)


@dataclass(slots=True)
class Hand:
    """A run in hand: its message, its journal as last seen, and under whose name."""

    run: Run
    delivery: Delivery
    identity: Identity
    history: History = field(default_factory=History)


class Executor:
    """One process: a lease, a pull, and a task for each run in hand."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.s = shared
        self.rules = shared.rules
        self.name = name
        self._current: Identity | None = None
        self._retired: list[Identity] = []
        self._in_hand: list[tuple[Task, Delivery, Identity]] = []
        self._consumer = shared.work.consumers["ready"]
        self.host = Host(shared.world, name, self._main)
        self.host.start()

    def _main(self, host: Host) -> None:
        self._current = None
        self._retired = []
        self._in_hand = []
        host.spawn(self._lease())
        host.spawn(self._pull())
        host.spawn(self._progress())

    def _call(self, act: Any, *args: Any) -> Steps:
        return self.s.net.call(self.host, act, *args)

    # The lease.

    def _open(self) -> Steps:
        identity = Identity(f"{self.name}.{next(self.s.numbers)}", self.s.world.now)
        while True:
            at = self.s.world.now
            try:
                yield from self._call(self.s.keys.put, identity.id)
            except TryAgain:
                yield 500
                continue
            identity.renewed = at
            self._current = identity
            return

    def _lease(self) -> Steps:
        yield from self._open()
        while True:
            yield BEAT
            if self._current is None:
                yield from self._open()
            for identity in [*self._retired, self._current]:
                yield from self._renew(identity)
            self._retired = [one for one in self._retired if any(not task.dead for task in one.tasks)]

    def _renew(self, identity: Identity) -> Steps:
        if not self._expired(identity):
            at = self.s.world.now
            try:
                yield from self._call(self.s.keys.put, identity.id)
                identity.renewed = at
            except TryAgain:
                pass
        if not self._expired(identity):
            return
        for task in identity.tasks:
            task.dead = True
        if identity is not self._current:
            return
        if "a lapsed executor takes a new id" in self.rules:
            self._current = None
            yield from self._open()
        else:
            identity.lapsed = False
            identity.renewed = self.s.world.now
            identity.tasks = []

    def _expired(self, identity: Identity) -> bool:
        if not identity.lapsed:
            identity.lapsed = self.s.world.now - identity.renewed > TTL
        return identity.lapsed

    def _check(self, hand: Hand) -> None:
        if self._expired(hand.identity):
            raise LeaseLost

    # Taking.

    def _pull(self) -> Steps:
        while True:
            yield self._consumer
            identity = self._current
            self._in_hand = [one for one in self._in_hand if not one[0].dead]
            if identity is None or self._expired(identity) or len(self._in_hand) >= SLOTS:
                yield 300
                continue
            for delivery in self._consumer.fetch(SLOTS - len(self._in_hand)):
                task = self.host.spawn(self._one(delivery, identity))
                identity.tasks.append(task)
                self._in_hand.append((task, delivery, identity))
            yield 1

    def _progress(self) -> Steps:
        while True:
            yield PROGRESS
            for task, delivery, identity in self._in_hand:
                if not task.dead and not self._expired(identity):
                    self.s.net.tell(self._consumer.in_progress, delivery.sequence)

    def _one(self, delivery: Delivery, identity: Identity) -> Steps:
        hand = Hand(delivery.body, delivery, identity)
        try:
            yield from self._handle(hand)
        except TryAgain:
            self._hand_back(hand)
        except (WrongSequence, LeaseLost):
            self.s.world.note(self.name, "lost", hand.run.run, hand.run.turn)
            if "who lost the run sends nothing" not in self.rules:
                self._ack(hand)
        except Unconfirmed:
            self.s.world.note(self.name, "gave up an append of", hand.run.run)
            if identity is self._current and "who gave up an append takes a new id" in self.rules:
                self._retired.append(identity)
                self._current = None
                yield from self._open()

    def _handle(self, hand: Hand) -> Steps:
        if not (yield from self._claim(hand)):
            return
        wait = hand.run.fire_at - self.s.world.now
        if wait > 0:
            yield wait
        self._check(hand)
        error = yield from self._execute(hand)
        self._check(hand)
        recorded_first = "recorded, then acknowledged" in self.rules
        if not recorded_first:
            self._ack(hand)
        yield from self._record(hand, error)
        if "followed up, then acknowledged" not in self.rules:
            self._ack(hand)
            yield 20
        yield from self._follow_up(hand)
        if recorded_first:
            self._ack(hand)

    # Claiming.

    def _claim(self, hand: Hand) -> Steps:
        """Whether the run is ours to execute; else its message is settled."""
        if hand.run.turn > 0 or hand.delivery.count > 1:
            yield from self._read(hand)
        while True:
            verdict = yield from self._verdict(hand)
            self.s.world.note(self.name, hand.run.run, hand.run.turn, hand.delivery.sequence, verdict)
            try:
                match verdict:
                    case Claim(attempt=attempt, lost=lost):
                        if lost and "a lost attempt costs no retry" not in self.rules:
                            attempt += 1
                        claim = self._entry(hand, "claimed", message=hand.delivery.sequence, lost=lost)
                        yield from self._append(hand, replace(claim, attempt=attempt))
                        return True
                    case GiveUp():
                        yield from self._finish(hand, self._entry(hand, "failed"))
                        yield from self._follow_up(hand)
                    case FollowUp():
                        if "what follows a record is repeated" in self.rules:
                            yield from self._follow_up(hand)
                    case HandBack():
                        self._hand_back(hand)
                        return False
                self._ack(hand)
                return False
            except WrongSequence:
                yield from self._read(hand)

    def _verdict(self, hand: Hand) -> Steps:
        """The table's answer, with the facts it asks for, and with what a rule switched off makes of it."""
        other: bool | None = None
        alive: bool | None = None
        limit = LOST_LIMIT if "lost attempts are limited" in self.rules else 1_000
        absent = hand.run.turn > 0 and hand.history.last is None
        if absent and "an absent later turn was forgotten" not in self.rules:
            return Claim(attempt=0)
        while True:
            verdict = decide(
                hand.history,
                turn=hand.run.turn,
                message=hand.delivery.sequence,
                lost_limit=limit,
                other_stands=other,
                owner_alive=alive,
            )
            match verdict:
                case Ask(about="message", sequence=sequence):
                    other = yield from self._call(self.s.work.stands, sequence)
                    if "a message that is gone is taken over" not in self.rules:
                        other = True
                case Ask(executor=executor):
                    alive = yield from self._alive(hand, executor)
                case _:
                    return self._weakened(verdict)

    def _weakened(self, verdict: Verdict) -> Verdict:
        if isinstance(verdict, HandBack):
            alive = "alive" in verdict.reason
            rule = "a living executor keeps its run" if alive else "a wake-up that overtook is handed back"
            if rule not in self.rules:
                return Acknowledge(f"not {rule}")
        return verdict

    def _alive(self, hand: Hand, executor: str) -> Steps:
        if hand.delivery.count > 1 and "the delivery count proves nothing" not in self.rules:
            return False
        try:
            return (yield from self._call(self.s.keys.alive, executor))
        except TryAgain:
            return "who cannot be read is alive" in self.rules

    def _read(self, hand: Hand) -> Steps:
        """What a replica holds, which may be old; absence is believed of the leader only."""
        entries = yield from self._call(self.s.journal.replica, hand.run.run)
        if not entries and "absence is the leader's to tell" in self.rules:
            entries = yield from self._call(self.s.journal.leader, hand.run.run)
        hand.history = fold(entries)

    # Executing and recording.

    def _execute(self, hand: Hand) -> Steps:
        """The error of this attempt, or None."""
        plan = self.s.plans[hand.run.run]
        for number in range(plan.steps):
            name = f"step-{number}"
            if name not in hand.history.steps:
                yield plan.takes // (plan.steps + 1)
                self._check(hand)
                yield from self._append(hand, self._entry(hand, "step", step=name))
        yield plan.takes // (plan.steps + 1)
        if plan.kills:
            plan.kills -= 1
            self.host.crash(self.s.world.between(100, 5_000))
            yield 0
        match plan.ends[min(hand.history.attempt, len(plan.ends) - 1)]:
            case "fails":
                return ValueError("as planned")
            case "fails for good":
                return NonRetriableError("as planned")
        return None

    def _record(self, hand: Hand, error: Exception | None) -> Steps:
        if error is None:
            yield from self._finish(hand, self._entry(hand, "completed"))
            return
        now = self.s.world.now
        spread = self.s.world.random.random()
        match retry.decide(RETRY, attempt=hand.history.attempt, error=error, now=now, spread=spread):
            case retry.RetryAt(at_ms=at):
                yield from self._append(hand, self._entry(hand, "retrying", next_at=at))
            case retry.GiveUp():
                yield from self._finish(hand, self._entry(hand, "failed"))

    def _follow_up(self, hand: Hand) -> Steps:
        """What the journal's last entry leads to: the same however often it is repeated."""
        last = hand.history.last
        assert last is not None
        run = hand.run.run
        match last.entry:
            case "retrying":
                assert last.next_at is not None
                following = replace(hand.run, turn=last.turn + 1, fire_at=last.next_at)
                held = Out(
                    ("later", run, last.turn + 1), following, at=last.next_at - LEAD, target=("ready",)
                )
                yield from self.s.net.insist(self.host, self.s.work.publish, held)
            case "failed":
                yield from self.s.net.insist(self.host, self.s.effects.add, ("dead letter", run))
                yield from self.s.net.insist(self.host, self.s.effects.add, ("event", run))
            case "completed":
                yield from self.s.net.insist(self.host, self.s.effects.add, ("parent woken", run))

    def _entry(self, hand: Hand, kind: Any, **fields: Any) -> JournalEntry:
        return JournalEntry(
            entry=kind,
            turn=hand.run.turn,
            at=self.s.world.now,
            executor=hand.identity.id,
            nonce=f"{next(self.s.numbers)}",
            **{"attempt": hand.history.attempt, **fields},
        )

    def _finish(self, hand: Hand, entry: JournalEntry) -> Steps:
        yield from self._append(hand, finish(hand.history, entry, keep_steps=False), self.s.keep)

    def _append(self, hand: Hand, entry: JournalEntry, keep: int | None = None) -> Steps:
        """Fenced, repeated while there is no answer, known as our own by its nonce."""
        world, run = self.s.world, hand.run.run
        deadline = world.now + PATIENCE
        expected = hand.history.sequence if "a claim is fenced" in self.rules else None
        while True:
            try:
                sequence = yield from self._call(self.s.journal.append, run, entry, expected, keep)
                break
            except WrongSequence:
                mine = None
                if "an own append is known by its nonce" in self.rules:
                    mine = yield from self._own(run, entry, deadline)
                if mine is None:
                    raise
                sequence = mine
                break
            except TryAgain:
                if world.now >= deadline:
                    raise Unconfirmed from None
                yield 300
        hand.history = step(hand.history, sequence, entry)

    def _own(self, run: str, entry: JournalEntry, deadline: int) -> Steps:
        while True:
            try:
                entries = yield from self._call(self.s.journal.leader, run)
            except TryAgain:
                if self.s.world.now >= deadline:
                    raise Unconfirmed from None
                yield 300
                continue
            return entries[-1][0] if entries and entries[-1][1] == entry else None

    def _ack(self, hand: Hand) -> None:
        self.s.net.tell(self._consumer.ack, hand.delivery.sequence)

    def _hand_back(self, hand: Hand) -> None:
        self.s.net.tell(self._consumer.hand_back, hand.delivery.sequence, HAND_BACK)
