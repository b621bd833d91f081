"""Runs that wait, and those who wake them: executors and routers, around the product's own table and journal.

Owns the order of writes on both sides of a wait: it is stored, journaled, left, met, woken, over. What a run does is
a plan: stages of steps side by side, each of which waits for an event, a time or a child.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from jetcron.history import FINISHED
from jetcron_protocol.messages import JournalEntry, OpenStep, Run
from tests.model.clockwork import Host, Network, Steps, TryAgain, World, WrongSequence
from tests.model.executors import LEAD, Executor, Hand, Shared
from tests.model.rules import Rules
from tests.model.server import Delivery, Journal, Out, Work

SHORT = 5_000
FOR_EVER = 864_000_000
ROUTED = 20
HAND_BACK = 1_000


@dataclass(frozen=True, slots=True)
class Waited:
    """A step that waits for `span` ms: for an event that comes for `sure` or perhaps, for a time, for a child."""

    step: str
    kind: Literal["event", "sleep", "child"]
    span: int
    sure: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """What a run does: its stages, and what starts each."""

    stages: tuple[tuple[Waited, ...], ...]
    parent: str | None = None
    parent_step: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands on the subject of a wait: `met` is what came, if anything has."""

    run: str
    step: str
    met: str | None = None


@dataclass(slots=True)
class Places:
    """Where waits stand, and what each run does. `hand_over` publishes a run and removes what was held for it."""

    waits: Journal
    scripts: dict[str, Script]
    hand_over: Callable[[Out, tuple[Any, ...]], None]


def subject_of(run: str, step: str) -> str:
    """Where a step of a run is met."""
    return f"{run}/{step}"


class Waker:
    """The common part of whoever brings what a run waits for."""

    def __init__(
        self, world: World, rules: Rules, work: Work, journal: Journal, net: Network, places: Places
    ) -> None:
        self._world = world
        self._rules = rules
        self._work = work
        self._journal = journal
        self._net = net
        self._places = places

    def meet(self, host: Host, subject: str, found: tuple[int, Standing], what: str) -> Steps:
        """Store what has come, unless something came before; whether it stands."""
        sequence, wait = found
        met = replace(wait, met=what)
        waits = self._places.waits
        try:
            yield from self._net.call(host, waits.append, subject, met, sequence, FOR_EVER)
        except WrongSequence:
            last = yield from self._net.call(host, waits.leader, subject)
            return bool(last) and last[-1][1].met == what
        return True

    def wake(self, host: Host, run: str, step: str) -> Steps:
        """Release the held turn of a run that waits for this."""
        read = self._journal.leader
        if "whether a run waits is the leader's to tell" not in self._rules:
            read = self._journal.replica
        entries = yield from self._net.call(host, read, run)
        last: JournalEntry | None = entries[-1][1] if entries else None
        if last is None or last.entry != "waiting" or step not in (last.on or ()):
            return
        subject = ("later", run, last.turn + 1)
        held = yield from self._net.call(host, self._work.held.get, subject)
        if held is not None:
            yield from self.release(host, held.out.body, last.turn + 1)

    def release(self, host: Host, run: Run, turn: int) -> Steps:
        """The next turn of a run, now."""
        woken = Out(("ready",), replace(run, turn=turn, fire_at=self._world.now))
        yield from self._net.insist(host, self._places.hand_over, woken, ("later", run.run, turn))


class Router:
    """Takes events, meets waits with them."""

    def __init__(self, shared: Shared, places: Places, name: str) -> None:
        self.s = shared
        self._places = places
        self._waker = Waker(shared.world, shared.rules, shared.work, shared.journal, shared.net, places)
        self._consumer = shared.work.consumers["event"]
        self.host = Host(shared.world, name, self._main)
        self.host.start()

    def _main(self, host: Host) -> None:
        host.spawn(self._pull())

    def _pull(self) -> Steps:
        while True:
            yield self._consumer
            for delivery in self._consumer.fetch(ROUTED):
                self.host.spawn(self._one(delivery))
            yield 1

    def _one(self, delivery: Delivery) -> Steps:
        try:
            yield from self._handle(*delivery.body)
        except TryAgain:
            self.s.net.tell(self._consumer.hand_back, delivery.sequence, HAND_BACK)
        else:
            self.s.net.tell(self._consumer.ack, delivery.sequence)

    def _handle(self, run: str, step: str, event: str) -> Steps:
        rules, subject = self.s.rules, subject_of(run, step)
        waits = self._places.waits
        read = waits.leader if "whether a wait stands is the leader's to tell" in rules else waits.replica
        found = yield from self.s.net.call(self.host, read, subject)
        if not found:
            return
        wait: Standing = found[-1][1]
        if wait.met is not None:
            if wait.met == event and "an event heard again wakes again" in rules:
                yield from self._waker.wake(self.host, run, step)
            return
        if "what comes is stored, then the run is woken" not in rules:
            yield from self._waker.wake(self.host, run, step)
            yield from self._waker.meet(self.host, subject, found[-1], event)
        elif (yield from self._waker.meet(self.host, subject, found[-1], event)):
            yield from self._waker.wake(self.host, run, step)


@dataclass(frozen=True, slots=True)
class Released:
    """Every step of a stage waits, and for long."""

    on: tuple[OpenStep, ...]


class Waiter(Executor):
    """An executor of runs that wait."""

    def __init__(self, shared: Shared, places: Places, name: str) -> None:
        self._places = places
        self._waker = Waker(shared.world, shared.rules, shared.work, shared.journal, shared.net, places)
        super().__init__(shared, name)

    # The code.

    def _execute(self, hand: Hand) -> Steps:
        for stage in self._places.scripts[hand.run.run].stages:
            left = yield from self._stage(hand, stage)
            if left is not None:
                return left
        return None

    def _stage(self, hand: Hand, stage: tuple[Waited, ...]) -> Steps:
        """None when all of it is over, or that the run leaves."""
        while True:
            pending = []
            for one in stage:
                if one.step in hand.history.steps:
                    continue
                opened = hand.history.waits.get(one.step)
                if opened is None:
                    opened = yield from self._wait_for(hand, one)
                elif one.kind == "child":
                    yield from self._start_if_unknown(hand, one)
                if not (yield from self._over(hand, one, opened)):
                    pending.append(opened)
            if not pending:
                return None
            left = min(opened.until for opened in pending) - self.s.world.now
            if left > SHORT:
                return Released(tuple(pending))
            yield max(1, min(left, 500))
            self._check(hand)

    def _wait_for(self, hand: Hand, one: Waited) -> Steps:
        run, until = hand.run.run, self.s.world.now + one.span
        first = "a wait is stored, then journaled" in self.s.rules
        if one.kind == "event" and first:
            yield from self._store(hand, one.step)
        self._check(hand)
        wait = subject_of(run, one.step) if one.kind != "sleep" else None
        entry = self._entry(hand, "opened", step=one.step, op=one.kind, until=until, wait=wait)
        yield from self._append(hand, entry)
        if one.kind == "event" and not first:
            yield from self._store(hand, one.step)
        if one.kind == "child":
            yield from self._start(hand, one)
        return hand.history.waits[one.step]

    def _store(self, hand: Hand, step: str) -> Steps:
        """From here on nothing is missed; stored a second time, the first one stands."""
        run = hand.run.run
        try:
            yield from self.s.net.insist(
                self.host, self._places.waits.append, subject_of(run, step), Standing(run, step), 0, FOR_EVER
            )
        except WrongSequence:
            pass

    def _start(self, hand: Hand, one: Waited) -> Steps:
        child = Run(
            run=f"{hand.run.run}.{one.step}", function="app.f", trigger="invoke", fire_at=self.s.world.now
        )
        out = Out(("ready",), child, id=child.run)
        yield from self.s.net.insist(self.host, self.s.work.publish, out)

    def _start_if_unknown(self, hand: Hand, one: Waited) -> Steps:
        """We may have died before it was started."""
        if "a child nobody knows is started again" not in self.s.rules:
            return
        child = f"{hand.run.run}.{one.step}"
        for read, subject in (
            (self._places.waits.leader, subject_of(hand.run.run, one.step)),
            (self.s.journal.leader, child),
        ):
            if (yield from self.s.net.insist(self.host, read, subject)):
                return
        yield from self._start(hand, one)

    def _over(self, hand: Hand, one: Waited, opened: OpenStep) -> Steps:
        """Whether what it waits for has come, or its time; then that is recorded, and nothing waits there any more."""
        met = None
        late = self._late(opened)
        if one.kind != "sleep" and ("at its time a wait is looked at" in self.s.rules or not late):
            met = yield from self._look(subject_of(hand.run.run, one.step))
        if met is None and not (
            late if "the time is told before the look" in self.s.rules else self._late(opened)
        ):
            return False
        self._check(hand)
        yield from self._append(hand, self._entry(hand, "step", step=one.step, op=one.kind, result=met))
        if one.kind != "sleep":
            yield from self.s.net.insist(
                self.host, self._places.waits.purge, subject_of(hand.run.run, one.step)
            )
        return True

    def _late(self, opened: OpenStep) -> bool:
        return opened.until <= self.s.world.now

    def _look(self, subject: str) -> Steps:
        found = yield from self.s.net.insist(self.host, self._places.waits.leader, subject)
        return found[-1][1].met if found else None

    # What is recorded, and what follows.

    def _record(self, hand: Hand, error: Any) -> Steps:
        if isinstance(error, Released):
            on = [opened.id for opened in error.on]
            next_at = min(opened.until for opened in error.on)
            yield from self._append(hand, self._entry(hand, "waiting", on=on, next_at=next_at))
        else:
            yield from super()._record(hand, error)

    def _follow_up(self, hand: Hand) -> Steps:
        last = hand.history.last
        assert last is not None
        if last.entry == "waiting":
            yield from self._leave(hand, last)
        elif last.entry in FINISHED:
            yield from self._tell_parent(hand)
            yield from super()._follow_up(hand)
        if self._removes and (last.entry in FINISHED or hand.run.turn < last.turn):
            # Whoever had this message before us may have held a turn once more, and died.
            for _, run, turn in [subject for subject in self.s.work.held if subject[1] == hand.run.run]:
                if turn <= last.turn:
                    yield from self.s.net.insist(self.host, self.s.work.purge, ("later", run, turn))

    def _leave(self, hand: Hand, last: JournalEntry) -> Steps:
        run, turn = hand.run.run, last.turn + 1
        assert last.next_at is not None
        following = replace(hand.run, turn=turn, fire_at=last.next_at)
        held = Out(("later", run, turn), following, at=last.next_at - LEAD, target=("ready",))
        yield from self.s.net.insist(self.host, self.s.work.publish, held)
        if "waits are read once more" not in self.s.rules:
            return
        for step in last.on or ():
            if (yield from self._look(subject_of(run, step))) is not None:
                yield from self._waker.release(self.host, hand.run, turn)
                return
        now = yield from self.s.net.insist(self.host, self.s.journal.leader, run)
        moved = not now or now[-1][0] != hand.history.sequence
        if moved and self._removes:
            yield from self.s.net.insist(self.host, self.s.work.purge, ("later", run, turn))

    @property
    def _removes(self) -> bool:
        return "a turn held again in vain is removed" in self.s.rules

    def _tell_parent(self, hand: Hand) -> Steps:
        """Leave the outcome for who invoked the run, and wake that."""
        script = self._places.scripts[hand.run.run]
        if script.parent is None or script.parent_step is None:
            return
        entries = yield from self.s.net.call(self.host, self.s.journal.leader, script.parent)
        if not entries or entries[-1][1].entry in FINISHED:
            return
        subject = subject_of(script.parent, script.parent_step)
        outcome = Standing(script.parent, script.parent_step, "outcome")
        try:
            yield from self.s.net.call(self.host, self._places.waits.append, subject, outcome, 0, FOR_EVER)
        except WrongSequence:
            pass
        yield from self._waker.wake(self.host, script.parent, script.parent_step)
