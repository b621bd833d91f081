"""What must hold of a tick chain once it was left in peace, reckoned from the history of commands alone.

Owns an independent account of every occurrence: plain multiples of periods, no product code.
"""

from jetcron_protocol.messages import Intent, Schedule
from tests.model.chain import LATE_AFTER, LEAD, Made
from tests.model.chain_world import CRONS, ChainWorld
from tests.model.server import Record

MARGIN = 12_000
"""How long before the end an occurrence must lie to be accounted for: the lead, jitter, a release."""
SKEW = 4_000
"""How far two clocks may be apart."""


def occurrences(schedule: Schedule, after: int, until: int) -> list[int]:
    """All in (`after`, `until`]; an instant in the past is due at once."""
    if schedule.end is not None:
        until = min(until, schedule.end)
    if schedule.at is not None:
        return [schedule.at] if schedule.at <= until else []
    period, offset = CRONS[schedule.cron] if schedule.cron else (schedule.every or 0, 0)
    first = (after - offset) // period * period + offset + period
    return list(range(first, until + 1, period))


def check(chain: ChainWorld) -> None:
    """Raises `Violation` naming the seed."""
    for name in chain.names:
        if chain.registry.leader(("schedule", name)) is None:
            chain.world.fail(f"{name} was never written")
        _Account(chain, name).check()
    if chain.ledger.broken and not chain.sabotaged:
        chain.world.fail(f"broke by itself: {chain.ledger.broken}")


class _Account:
    """One schedule: what was in force when, and what came of it."""

    def __init__(self, chain: ChainWorld, name: str) -> None:
        self._chain = chain
        self._name = name
        self._world = chain.world
        self._until = chain.world.now - MARGIN
        self._revisions = [r for r in chain.registry.log if r.key == ("schedule", name)]
        self._restored = chain.restored_at is not None and (
            chain.registry.leader(("schedule", name)) is not self._revisions[-1]
        )
        self._gaps = chain.ledger.gaps.get(name, [])

    def check(self) -> None:
        expected: set[int] = set()
        for index, record in enumerate(self._revisions):
            after, until = self._reign(index)
            due = occurrences(record.value, after, until) if record.value.state == "active" else []
            expected.update(due)
            for at in due:
                if at <= self._until and not self._exempt(at):
                    self._accounted(at, record)
            self._check_gaps(record, after, until)
            self._check_policy(record, due)
        for (schedule, at), runs in self._chain.ledger.ran.items():
            if schedule == self._name and at not in expected:
                self._world.fail(
                    f"{schedule} ran for {at}, which the revision in force does not name: {runs}"
                )
        self._check_chain()
        self._check_commands()

    def _reign(self, index: int) -> tuple[int, int]:
        """From when until when a revision is in force."""
        after = self._revisions[index].value.armed_from
        if index + 1 < len(self._revisions):
            until = self._revisions[index + 1].value.armed_from
            if self._restored and index + 2 == len(self._revisions):
                until = self._world.now + 86_400_000
            return after, until
        return after, self._world.now + 86_400_000 if not self._restored else self._last_old_tick()

    def _last_old_tick(self) -> int:
        return self._chain.ledger.ticks.get((self._name, self._revisions[-1].sequence), 0)

    def _exempt(self, at: int) -> bool:
        """Between a restore and the last tick of what was forgotten, nobody knows what is right."""
        restored = self._chain.restored_at
        if not self._restored or restored is None:
            return False
        return self._revisions[-1].value.armed_from < at <= self._last_old_tick()

    def _accounted(self, at: int, record: Record) -> None:
        runs = self._chain.ledger.ran.get((self._name, at), {})
        if len(runs) > 1:
            self._world.fail(f"{self._name} ran {len(runs)} times for {at}")
        for made in runs.values():
            if made.revision != record.sequence and record.value.at is None and not self._restored:
                self._world.fail(
                    f"{self._name} ran for {at} as revision {made.revision} has it, not {record.sequence}"
                )
        if not runs and not any(note.gap.start <= at <= note.gap.to for note in self._gaps):
            self._world.fail(f"{self._name} neither ran for {at} nor says why (revision {record.sequence})")

    def _check_commands(self) -> None:
        """Written in their order, each in force after what stood before and no sooner than ticks settle."""
        for before, after in zip(self._revisions, self._revisions[1:], strict=False):
            if after.value.command <= before.value.command:
                self._world.fail(f"{self._name}: command {after.value.command} after {before.value.command}")
            if after.value.armed_from < before.value.armed_from:
                self._world.fail(
                    f"{self._name}: revision {after.sequence} is in force before its predecessor"
                )
            if before.value.state == "active":
                self._check_settled(before, after)

    def _check_settled(self, before: Record, after: Record) -> None:
        """What was turned before the intent to replace it had been released by then."""
        log = self._chain.registry.log
        intents = [
            record
            for record in log[: log.index(after)]
            if isinstance(record.value, Intent) and record.value.revisions.get(self._name) == before.sequence
        ]
        early = max((one.stored_at for one in intents), default=0) + LEAD - after.value.armed_from
        if early > 0:
            self._world.fail(f"{self._name}: revision {after.sequence} is in force {early} ms too early")

    def _check_gaps(self, record: Record, after: int, until: int) -> None:
        for note in self._gaps:
            if note.revision != record.sequence:
                continue
            gap = note.gap
            once = record.value.at is not None
            if not once and not after < gap.start <= gap.to <= until:
                self._world.fail(f"{gap} reaches beyond its revision, in force in ({after}, {until}]")
            named = occurrences(record.value, gap.start - 1, gap.to)
            if len(named) != gap.count:
                self._world.fail(f"{gap} counts {gap.count} of {len(named)} occurrences")
            if note.false and not self._chain.sabotaged:
                self._world.fail(f"{gap} says nothing ran where all had run")

    def _check_policy(self, record: Record, due: list[int]) -> None:
        """Late runs are what the catch-up policy wants: none, the newest, or all."""
        policy = record.value.catch_up
        made = {at: run for at in due if (run := self._made(at, record)) is not None}
        if policy == "all" or self._restored:
            return
        for at, run in made.items():
            if run.decided - at <= LATE_AFTER + SKEW:
                continue
            newer = [other for other in due if at < other <= run.decided]
            if policy == "skip" or newer:
                self._world.fail(f"{self._name} caught up {at} at {run.decided} although {policy}")

    def _made(self, at: int, record: Record) -> Made | None:
        runs = self._chain.ledger.ran.get((self._name, at), {})
        return next((made for made in runs.values() if made.revision == record.sequence), None)

    def _check_chain(self) -> None:
        """An active schedule has one chain, a replaced revision none that still has something to say."""
        current = self._chain.registry.leader(("schedule", self._name))
        assert current is not None
        work = self._chain.work
        ticks = {
            (stored.out.body.revision, stored.out.body.at)
            for stored in work.standing("held", "due")
            if stored.out.body.schedule == self._name
        }
        alive = [at for revision, at in ticks if revision == current.sequence]
        now = self._world.now
        schedule = current.value
        to_come = occurrences(schedule, max(now + 2 * LEAD, schedule.armed_from), now + 86_400_000)
        if schedule.state == "active" and schedule.at is None and to_come and len(alive) != 1:
            self._world.fail(f"{self._name} has {len(alive)} chains: {alive}")
        for index, record in enumerate(self._revisions):
            _, end = self._reign(index)
            left = [
                at for revision, at in ticks if revision == record.sequence != current.sequence and at <= end
            ]
            if left and not self._restored:
                self._world.fail(f"{self._name} left ticks of revision {record.sequence} to itself: {left}")
