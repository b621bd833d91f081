"""cron-sync, cron-tick and health-checker as the protocol has them, around the product's own decisions.

Owns the edges: what is read, written, repeated and acknowledged, in which order. What is decided comes from
`jetcron.cycle`. An actor may crash or freeze at every request; whatever it then leaves is for others to mend.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from jetcron.cycle import (
    Decision,
    Entry,
    Rearm,
    Turn,
    Undecided,
    decide_turn,
    first_tick,
    is_late,
    repair,
    successor_armed_from,
)
from jetcron_protocol.messages import Gap, Intent, Past, Run, Schedule, Tick
from tests.model.clockwork import Host, KnownId, Network, Steps, TryAgain, World, WrongSequence
from tests.model.rules import Rules
from tests.model.server import Delivery, Out, Record, Registry, Stored, Work, without_id

LEAD = 2_000
SETTLE = 500
LATE_AFTER = 60_000
FAR_OFF = 60_000
SWEEP = 60_000
GRACE = 10_000
KEEP = 86_400_000
INTENT_KEPT = 5_000
OVER_KEPT = 1_000
HAND_BACK = 1_000
FRESH = 1 << 60
"""Where run ids start that are drawn, not derived."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a user wants of a schedule: `changes` to its entry. `ended`: revision that fired for the last time."""

    schedule: str
    changes: dict[str, Any]
    ended: int | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A run, and for the checks: of which revision it was made, and when that was decided."""

    run: Run
    revision: int
    decided: int


@dataclass(frozen=True, slots=True)
class GapNote:
    """A gap entry, and for the checks: of which revision, and whether all it names had run when it was decided."""

    gap: Gap
    revision: int
    false: bool


@dataclass(slots=True)
class Ledger:
    """What came of it all, for the checks.

    `ran`: by schedule and scheduled time, the runs by id. `ticks`: the latest of each revision. `broken`: chains
    the health-checker found without a tick.
    """

    ran: dict[tuple[str, int], dict[str, Made]] = field(default_factory=dict)
    gaps: dict[str, list[GapNote]] = field(default_factory=dict)
    ticks: dict[tuple[str, int], int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def take_run(self, out: Out) -> None:
        made: Made = out.body
        run = made.run
        assert run.schedule is not None
        assert run.scheduled_at is not None
        self.ran.setdefault((run.schedule, run.scheduled_at), {}).setdefault(run.run, made)

    def take_gap(self, note: GapNote) -> None:
        self.gaps.setdefault(note.gap.schedule, []).append(note)

    def take_message(self, out: Out) -> None:
        """Note the latest tick of each revision."""
        if out.subject[0] == "held":
            tick: Tick = out.body
            key = (tick.schedule, tick.revision)
            self.ticks[key] = max(self.ticks.get(key, tick.at), tick.at)


@dataclass(slots=True)
class Shared:
    """What every actor of a chain's world works with."""

    world: World
    rules: Rules
    work: Work
    registry: Registry
    ledger: Ledger

    def held(self, tick: Tick) -> Out:
        named = (tick.revision, tick.at) if "a held subject names the occurrence" in self.rules else ()
        subject = ("held", tick.schedule, *named)
        due = ("due", tick.schedule, tick.revision, tick.at)
        return Out(subject, tick, at=tick.at - LEAD, target=due)

    def ready(self, made: Made, now: int) -> Out:
        run = made.run
        if run.fire_at - now > LEAD:
            return Out(("later", run.run, 0), made, run.run, run.fire_at - LEAD, ("ready",))
        return Out(("ready",), made, run.run)

    def entry(self, record: Record | None) -> Entry | None:
        return None if record is None else Entry(record.value, record.sequence)

    def chain_stands(self, schedule: str, revision: int) -> bool:
        """The truth: whether the revision in force has a tick, or a command that will give it one."""
        for stored in self.work.standing("held", "due", "sync"):
            body = stored.out.body
            if body.schedule == schedule and (isinstance(body, Command) or body.revision == revision):
                return True
        return False


class Actor:
    """One process that takes messages of one kind, batch by batch."""

    kind = ""
    most = 1

    def __init__(self, shared: Shared, net: Network, name: str, skew: int) -> None:
        self.s = shared
        self.net = net
        self.rules = shared.rules
        self.host = Host(shared.world, name, self._main, skew)
        self.host.start()

    def _main(self, host: Host) -> None:
        host.spawn(self._loop())

    def _loop(self) -> Steps:
        consumer = self.s.work.consumers[self.kind]
        while True:
            yield consumer
            deliveries = consumer.fetch(self.most)
            if not deliveries:
                continue
            try:
                yield from self.handle(deliveries)
            except TryAgain:
                for delivery in deliveries:
                    self.hand_back(delivery)
                yield 200

    def handle(self, deliveries: list[Delivery]) -> Steps:
        raise NotImplementedError

    def call(self, act: Any, *args: Any) -> Steps:
        return self.net.call(self.host, act, *args)

    def ack(self, delivery: Delivery) -> None:
        self.net.tell(self.s.work.consumers[self.kind].ack, delivery.sequence)

    def hand_back(self, delivery: Delivery) -> None:
        self.net.tell(self.s.work.consumers[self.kind].hand_back, delivery.sequence, HAND_BACK)


class CronSync(Actor):
    """Writes entries by compare-and-set, then arms them."""

    kind = "sync"

    def handle(self, deliveries: list[Delivery]) -> Steps:
        for delivery in deliveries:
            yield from self._apply(delivery)
            self.ack(delivery)

    def _apply(self, delivery: Delivery) -> Steps:
        s = self.s
        command: Command = delivery.body
        key = ("schedule", command.schedule)
        while True:
            previous = s.entry((yield from self.call(s.registry.leader, key)))
            if previous is not None and previous.schedule.command == delivery.sequence:
                if "what follows an entry is repeated" in self.rules:
                    yield from self._arm(previous, None)
                return
            if (
                previous is not None
                and previous.schedule.command > delivery.sequence
                and "an older command yields" in self.rules
            ):
                return
            if command.ended is not None and (
                previous is None or previous.revision != command.ended or previous.schedule.state != "active"
            ):
                return
            if previous is None and "origin" not in command.changes:
                return  # refused: there is no such schedule
            try:
                entry = yield from self._write(key, command, delivery, previous)
            except WrongSequence:
                continue
            yield from self._arm(entry, previous)
            return

    def _write(self, key: Any, command: Command, delivery: Delivery, previous: Entry | None) -> Steps:
        s = self.s
        settles = "a successor settles first" in self.rules
        now = self.host.now()
        intent: int | None = None
        if previous is not None and previous.schedule.state == "active" and command.ended is None:
            intent = yield from self._announce(delivery, previous)
        if "the time is taken after the intent" in self.rules:
            now = self.host.now()
        armed_from = successor_armed_from(
            previous.schedule if previous else None,
            stored_at=delivery.stored_at,
            now=now,
            settle=LEAD + SETTLE if settles else 0,
        )
        changes = {**command.changes, "armed_from": armed_from, "command": delivery.sequence}
        puts: list[Any] = []
        fence = "definitions are compared and set" in self.rules
        if previous is None:
            schedule = Schedule(id=command.schedule, function=f"app.{command.schedule}", **changes)
            puts.append((key, schedule, 0 if fence else None))
        else:
            schedule = replace(previous.schedule, **changes)
            puts.append((key, schedule, previous.revision if fence else None))
            past = Past(schedule=previous.schedule, end=armed_from)
            puts.append((_past_key(previous), past, None))
        if intent is not None:
            whose = intent if "a successor is written as its intent ends" in self.rules else None
            puts.append((_INTENT, Intent(), whose))
        revision = yield from self.call(s.registry.write, puts)
        s.world.note(
            self.host.name, "wrote", command.schedule, "revision", revision, schedule.state, armed_from
        )
        return Entry(schedule, revision)

    def _announce(self, delivery: Delivery, previous: Entry) -> Steps:
        """The sequence of the intent that ends as the successor is written; None: there is none."""
        if "an intent goes before a successor" not in self.rules:
            return None
        s = self.s
        key = _INTENT
        intent = Intent(revisions={previous.schedule.id: previous.revision})
        try:
            sequence: int = yield from self.call(s.registry.write, [(key, intent, 0)])
            return sequence
        except WrongSequence:
            pass
        standing = yield from self.call(s.registry.leader, key)
        entry = s.entry((yield from self.call(s.registry.leader, ("schedule", previous.schedule.id))))
        if entry is None or entry.revision != previous.revision:
            raise WrongSequence
        expected = 0 if standing is None else standing.sequence
        sequence = yield from self.call(s.registry.write, [(key, intent, expected)])
        return sequence

    def _arm(self, entry: Entry, previous: Entry | None) -> Steps:
        s = self.s
        tick = first_tick(entry)
        if tick is not None:
            yield from self.call(s.work.publish, s.held(tick))
        if previous is None:
            return
        far_off = FAR_OFF if "only far-off ticks are purged" in self.rules else -FAR_OFF
        for stored in (yield from self.call(s.work.standing, "held")):
            old: Tick = stored.out.body
            outdated = old.schedule == entry.schedule.id and old.revision < entry.revision
            if outdated and old.at - self.host.now() > far_off:
                yield from self.call(s.work.purge, stored.out.subject)


class CronTick(Actor):
    """Turns ticks into runs and next ticks."""

    kind = "due"
    most = 5

    def handle(self, deliveries: list[Delivery]) -> Steps:
        s = self.s
        if "ticks are acknowledged once stored" not in self.rules:
            for delivery in deliveries:
                self.ack(delivery)
        now = self.host.now()
        current, past, replacing = yield from self._definitions([delivery.body for delivery in deliveries])
        if "time is read before the definitions" not in self.rules:
            now = self.host.now()
        late_after = LATE_AFTER if "late ticks are one group" in self.rules else FRESH
        groups: list[list[Out]] = []
        notes: list[GapNote | None] = []
        turned: list[Delivery] = []
        for delivery in deliveries:
            tick: Tick = delivery.body
            later = False
            had_run: frozenset[tuple[str, int]] = frozenset()
            if is_late(tick, now, late_after):
                had_run = frozenset(s.ledger.ran)
                if "a late tick looks ahead" in self.rules:
                    later = yield from self._later_stands(tick)
            decision = decide_turn(
                tick,
                current.get(tick.schedule),
                past.get((tick.schedule, tick.revision)),
                now=now,
                late_after=late_after,
                later_stands=later,
                replacing=(tick.schedule, tick.revision) in replacing,
            )
            if isinstance(decision, Undecided):
                self.hand_back(delivery)
                continue
            s.world.note(self.host.name, "turns", tick.schedule, tick.revision, tick.at, _told(decision))
            turned.append(delivery)
            groups.append(self._messages(tick, decision, now))
            notes.append(self._note(tick, decision, had_run))
        first = "the gap comes before the batch" in self.rules
        if first:
            yield from self._append(notes)
        standing = yield from self._store(groups)
        for index, delivery in enumerate(turned):
            if index in standing:
                self.ack(delivery)
            else:
                self.hand_back(delivery)
        if not first:
            yield from self._append([notes[index] for index in standing])

    def _definitions(self, ticks: list[Tick]) -> Steps:
        s = self.s
        early: dict[Any, Record] = {}
        if "the past is looked for after the entry" not in self.rules:
            early = yield from self._read([("past", tick.schedule, tick.revision) for tick in ticks])
        keys = {("schedule", tick.schedule) for tick in ticks}
        found = yield from self._read(sorted(keys))
        current = {key[1]: Entry(record.value, record.sequence) for key, record in found.items()}
        for tick in ticks:
            entry = current.get(tick.schedule)
            if entry is not None and entry.revision < tick.revision:
                fresh = s.entry((yield from self.call(s.registry.leader, ("schedule", tick.schedule))))
                if fresh is not None:
                    current[tick.schedule] = fresh
        past: dict[tuple[str, int], Past] = {}
        intents_first = "an intent is looked for before the past" in self.rules
        replacing = (yield from self._replacing()) if intents_first else set()
        if "a superseded tick is settled from past" in self.rules:
            replaced = [
                ("past", tick.schedule, tick.revision)
                for tick in ticks
                if tick.schedule in current and current[tick.schedule].revision >= tick.revision
            ]
            if replaced:
                found = early or (yield from self._read(replaced))
                past = {key[1:]: record.value for key, record in found.items()}
        if not intents_first:
            replacing = yield from self._replacing()
        for id, revision in past:
            if current[id].revision == revision:  # it was replaced since it was read
                fresh = s.entry((yield from self.call(s.registry.leader, ("schedule", id))))
                if fresh is not None:
                    current[id] = fresh
        if "who meets an intent asks again" not in self.rules:
            replacing = set()
        if "a restored registry is armed anew" not in self.rules:
            for tick in ticks:
                entry = current.get(tick.schedule)
                if entry is not None and entry.revision < tick.revision:
                    del current[tick.schedule]
        return current, past, replacing

    def _replacing(self) -> Steps:
        """The revisions that intents name, as the leader has them: it says which stand, then each is read by itself."""
        s = self.s
        named: set[tuple[str, int]] = set()
        for key in (yield from self.call(s.registry.keys, "intent")):
            record = yield from self.call(s.registry.leader, key)
            if record is not None:
                named.update(record.value.revisions.items())
        return named

    def _read(self, keys: list[Any]) -> Steps:
        """One direct get of many keys; of what is absent, the leader's word."""
        s = self.s
        found = yield from self.call(s.registry.direct, keys)
        if "absence is the leader's to tell" in self.rules:
            for key in keys:
                if key not in found:
                    record = yield from self.call(s.registry.leader, key)
                    if record is not None:
                        found[key] = record
        return found

    def _later_stands(self, tick: Tick) -> Steps:
        standing: list[Stored] = yield from self.call(self.s.work.standing, "held", "due")
        return any(
            stored.out.body.schedule == tick.schedule
            and stored.out.body.revision == tick.revision
            and stored.out.body.at > tick.at
            for stored in standing
        )

    def _messages(self, tick: Tick, decision: Decision, now: int) -> list[Out]:
        s = self.s
        match decision:
            case Rearm(tick=first):
                return [s.held(first)]
            case Turn(runs=runs, next=following, ended=ended):
                if "run ids are deterministic" not in self.rules:
                    runs = tuple(replace(run, run=f"{s.world.between(FRESH, FRESH * 2)}") for run in runs)
                outs = [s.ready(Made(run, tick.revision, now), now) for run in runs]
                if following is not None:
                    outs.append(s.held(following))
                if ended:
                    outs.append(
                        Out(("sync",), Command(tick.schedule, {"state": "ended"}, ended=tick.revision))
                    )
                return outs
        return []

    def _note(self, tick: Tick, decision: Decision, had_run: frozenset[tuple[str, int]]) -> GapNote | None:
        if not isinstance(decision, Turn) or decision.gap is None:
            return None
        gap = decision.gap
        current = self.s.registry.leader(("schedule", tick.schedule))
        going_on = (
            current is not None
            and current.sequence == tick.revision
            and decision.next is not None
            and not any(stored.out.body.ended == tick.revision for stored in self.s.work.standing("sync"))
        )
        known = [at for schedule, at in had_run if schedule == gap.schedule and gap.start <= at <= gap.to]
        return GapNote(gap, tick.revision, false=going_on and len(known) >= gap.count)

    def _append(self, notes: list[GapNote | None]) -> Steps:
        for note in notes:
            if note is not None:
                yield from self.net.insist(self.host, self.s.ledger.take_gap, note)

    def _store(self, groups: list[list[Out]]) -> Steps:
        """One atomic batch; where an id is known, turn by turn. The indices of what stands."""
        everything = list(range(len(groups)))
        merged = _merge([out for group in groups for out in group])
        if not merged:
            return everything
        try:
            yield from self._batch(merged)
            return everything
        except TryAgain:
            return everything if "try again is not success" not in self.rules else []
        except KnownId:
            if "a known id repeats turn by turn" not in self.rules:
                return everything
        standing = []
        for index, group in enumerate(groups):
            try:
                if group:
                    yield from self._store_group(_merge(group))
                standing.append(index)
            except TryAgain:
                pass
        return standing

    def _store_group(self, group: list[Out]) -> Steps:
        try:
            yield from self._batch(group)
        except KnownId:
            for out in group:
                if out.id is not None:
                    yield from self.call(self.s.work.publish, out)
            yield from self._batch([out for out in group if out.id is None])

    def _batch(self, outs: list[Out]) -> Steps:
        if "run and next tick are one batch" in self.rules:
            yield from self.call(self.s.work.batch, outs)
        else:
            yield from self.call(self.s.work.batch, [out for out in outs if out.id is None])
            yield from self.call(self.s.work.batch, [out for out in outs if out.id is not None])


class HealthChecker(Actor):
    """Finds schedules without a tick and messages that were not released, and mends them."""

    kind = "health"

    def handle(self, deliveries: list[Delivery]) -> Steps:
        s = self.s
        now = self.host.now()
        commands: list[Stored] = yield from self.call(s.work.standing, "sync")
        standing: list[Stored] = yield from self.call(s.work.standing, "held", "due")
        keys = yield from self.call(s.registry.keys, "schedule")
        missing = yield from self._missing(keys, standing)
        if missing:
            yield GRACE
            again: list[Stored] = yield from self.call(s.work.standing, "held", "due")
            missing = yield from self._missing([key for key, _ in missing], again)
        healthy = yield from self.call(s.registry.leader, "health")
        if not missing:
            if "whole means up to its earliest tick" in self.rules:
                now = min([now, *(stored.out.body.at - 1 for stored in standing)])
            if "whole means up to its oldest command" in self.rules:
                now = min([now, *(stored.stored_at for stored in commands)])
            yield from self.call(s.registry.write, [("health", now, None)])
        for key, entry in missing:
            yield from self._mend(key, entry, healthy.value if healthy else 0)
        yield from self._overdue()
        for delivery in deliveries:
            self.ack(delivery)

    def _missing(self, keys: list[Any], standing: list[Stored]) -> Steps:
        """Active schedules that have an occurrence to come and no tick for it."""
        present = {stored.out.body.schedule for stored in standing}
        missing = []
        for key in keys:
            if key[1] not in present:
                entry = self.s.entry((yield from self.call(self.s.registry.leader, key)))
                if entry is not None and repair(entry, healthy_at=0, horizon=0) is not None:
                    missing.append((key, entry))
        return missing

    def _mend(self, key: Any, entry: Entry, healthy_at: int) -> Steps:
        s = self.s
        now = self.host.now()
        if "a broken chain goes on from when it was whole" not in self.rules:
            healthy_at = now
        found = repair(entry, healthy_at=healthy_at, horizon=now - KEEP)
        if found is None:
            return
        current = s.entry(s.registry.leader(key))
        fires = current is not None and first_tick(current) is not None
        if current is not None and fires and not s.chain_stands(key[1], current.revision):
            s.ledger.broken.append(f"{key[1]} had no tick of revision {entry.revision} at {s.world.now}")
        s.world.note(self.host.name, "repairs", key[1], entry.revision, found)
        if found.gap is not None:
            note = GapNote(found.gap, entry.revision, false=False)
            yield from self.net.insist(self.host, s.ledger.take_gap, note)
        if found.tick is not None:
            yield from self.call(s.work.publish, s.held(found.tick))

    def _overdue(self) -> Steps:
        if "what is overdue is published again" not in self.rules:
            return
        for stored in (yield from self.call(self.s.work.standing, "held", "later")):
            if stored.out.at is not None and stored.out.at < self.host.now() - GRACE:
                yield from self.call(self.s.work.publish, without_id(stored.out))


def passing(value: Any) -> int | None:
    """For how long the registry keeps it, in ms; None: for good."""
    if not isinstance(value, Intent):
        return None
    return INTENT_KEPT if value.revisions else OVER_KEPT


def _past_key(entry: Entry) -> Any:
    return ("past", entry.schedule.id, entry.revision)


_INTENT = ("intent", 0)
"""Commands come one at a time, and each is of one schedule."""


def _merge(outs: list[Out]) -> list[Out]:
    """Equal ids once."""
    seen: set[str] = set()
    merged = []
    for out in outs:
        if out.id is None or out.id not in seen:
            merged.append(out)
            if out.id is not None:
                seen.add(out.id)
    return merged


def _told(decision: Decision) -> str:
    match decision:
        case Turn(runs=runs, next=following, gap=gap, ended=ended):
            ran = [run.scheduled_at for run in runs[-3:]]
            gone = (gap.start, gap.to, gap.count) if gap else None
            return f"runs={len(runs)}:{ran} next={following and following.at} gap={gone} ended={ended}"
        case _:
            return str(decision)
