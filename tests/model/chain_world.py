"""A world for the tick chain: users who keep changing schedules, and everything going wrong for a while.

Owns the scenario that a seed stands for. Faults end long before the world does, so that what is left then is
what the actors themselves mended.
"""

from dataclasses import dataclass, field

from tests.model.chain import LEAD, SWEEP, Command, CronSync, CronTick, HealthChecker, Ledger, Shared, passing
from tests.model.clockwork import START, Host, Network, Odds, World
from tests.model.rules import CHAIN, Rules
from tests.model.server import Consumer, Out, Registry, Work

MINUTE = 60_000
PEACE = 4 * MINUTE
CRONS = {
    "*/20 * * * * *": (20_000, 0),
    "* * * * *": (60_000, 0),
    "30 */2 * * * *": (120_000, 30_000),
    "*/5 * * * *": (300_000, 0),
}
"""The cron expressions used here, each as the period and offset it comes to."""
PERIODS = (7_000, 12_000, 30_000, 45_000, 60_000, 61_000, 180_000, 300_000)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What may happen.

    `sabotage`: a tick is deleted; `restore`: the registry is put back; `away`: who is, at an outage.
    `sync_odds`: those of cron-sync, where it fares otherwise than the rest.
    """

    minutes: int = 8
    commands: int = 10
    outages: int = 3
    outage: int = 4 * MINUTE
    away: tuple[str, ...] = ("server", "disk", "due", "due", "sync", "all")
    sabotage: bool = False
    restore: bool = False
    odds: Odds = field(default_factory=Odds)
    sync_odds: Odds | None = None


class ChainWorld:
    """Everything of one seed."""

    def __init__(self, seed: int, scenario: Scenario, *off: str) -> None:
        self.world = world = World(seed)
        self.scenario = scenario
        self.rules = Rules(CHAIN, *off)
        self.ledger = Ledger()
        self.work = Work(world)
        self.registry = Registry(world, passing=passing)
        net = Network(world, scenario.odds, self._is_down)
        syncs = Network(world, scenario.sync_odds or scenario.odds, self._is_down)
        self.shared = shared = Shared(world, self.rules, self.work, self.registry, self.ledger)
        one = "commands come one at a time" in self.rules
        self.work.consumers["sync"] = Consumer(self.work, most_pending=1 if one else 0)
        self.work.consumers["due"] = Consumer(self.work)
        self.work.consumers["health"] = Consumer(self.work)
        self.work.sinks["ready"] = self.ledger.take_run
        self.work.on_store = self.ledger.take_message
        self.sabotaged = False
        self._unsent = 0
        self.restored_at: int | None = None
        self.names = [f"s{n}" for n in range(world.between(1, 3))]
        self.ends: int = START + scenario.minutes * MINUTE
        skew = 100 if "cron-sync goes by the server's clock" in self.rules else LEAD
        self.actors: list[CronSync | CronTick | HealthChecker] = [
            *(CronSync(shared, syncs, f"cron-sync-{n}", world.between(-skew, skew)) for n in range(2)),
            *(CronTick(shared, net, f"cron-tick-{n}", world.between(-1_900, 1_900)) for n in range(2)),
            *(HealthChecker(shared, net, f"health-checker-{n}", world.between(-500, 500)) for n in range(2)),
        ]
        self._plan()

    def run(self) -> None:
        """The faults, then peace, then on to a moment in which nothing is being turned."""
        world = self.world
        world.run(self.ends)
        world.faults = False
        world.note("peace")
        world.run(self.ends + PEACE)
        world.run(self.ends + PEACE + MINUTE, stop=lambda: not self.work.standing("due", "sync"))

    # The plan.

    def _plan(self) -> None:
        world, scenario = self.world, self.scenario
        outages = [self._outage() for _ in range(world.between(0, scenario.outages))]
        world.after(SWEEP, self._sweep)
        last = START
        for name in self.names:
            when = START + world.between(0, 30_000)
            self._plan_command(
                when, Command(name, {**self._timing(), "origin": world.random.choice(("code", "data"))})
            )
        until = scenario.minutes * MINUTE
        if scenario.sabotage or scenario.restore:
            until //= 2
        for _ in range(world.between(2, scenario.commands)):
            name = world.random.choice(self.names)
            last = self._moment(START + 31_000, START + until, outages)
            for _ in range(world.random.choice((1, 1, 1, 2, 3))):
                self._plan_command(last, Command(name, self._change()))
                last += world.between(0, 4_000)
        if scenario.sabotage:
            world.at(START + until + world.between(30_000, until // 2), self._delete_tick)
        if scenario.restore:
            world.at(START + until + world.between(0, until // 2), self._restore)

    def _is_down(self) -> bool:
        return self.work.down

    def _plan_command(self, when: int, command: Command) -> None:
        self._unsent += 1
        self.world.at(when, self._send, command)

    def _timing(self) -> dict[str, object]:
        """How often: a period, an expression, or one instant; sometimes with an end."""
        world = self.world
        drawn = world.random.random()
        timing: dict[str, object] = {"cron": None, "every": None, "at": None, "end": None}
        timing["jitter"] = world.random.choice((0, 0, 0, 5_000))
        timing["catch_up"] = world.random.choice(("latest", "all", "skip"))
        if drawn < 0.55:
            timing["every"] = world.random.choice(PERIODS)
        elif drawn < 0.9 or self.scenario.restore:
            timing["cron"] = world.random.choice(list(CRONS))
        else:
            timing["at"] = world.now + world.between(-20_000, 120_000)
        if world.random.random() < 0.1:
            timing["end"] = world.now + world.between(0, 8 * MINUTE)
        return timing

    def _change(self) -> dict[str, object]:
        drawn = self.world.random.random()
        if drawn < 0.4:
            return self._timing()
        if drawn < 0.6:
            return {"state": "paused"}
        if drawn < 0.95:
            return {"state": "active"}
        return {"state": "deleted"}

    def _moment(self, low: int, high: int, outages: list[int]) -> int:
        """Any time; or right around one at which something fires, or at which an outage ends."""
        world = self.world
        when = world.between(low, high)
        drawn = world.random.random()
        if drawn < 0.3:
            period = world.random.choice((7_000, 12_000, 20_000, 30_000, 60_000))
            return when // period * period + world.random.choice((-LEAD, 0)) + world.between(-700, 700)
        if drawn < 0.5 and outages:
            return world.random.choice(outages) + world.between(-2_000, 3_000)
        return when

    def _outage(self) -> int:
        """Somebody is away for a while; returns when it ends."""
        world, scenario = self.world, self.scenario
        start = world.between(START + 20_000, self.ends - MINUTE)
        end = min(self.ends, start + world.between(4_000, scenario.outage))
        who = world.random.choice(scenario.away)
        if who == "server":
            world.at(start, self._stop_server)
            world.at(end, self._start_server)
        elif who == "disk":
            world.at(start, self._set_full, True)
            world.at(min(end, start + MINUTE), self._set_full, False)
        else:
            for actor in self.actors:
                if who in ("all", actor.kind):
                    world.at(start, self._crash, actor.host, end - start)
        return end

    def _crash(self, host: Host, down: int) -> None:
        if host.up:
            host.crash(down)

    def _stop_server(self) -> None:
        if not self.work.down:
            self.work.stop()

    def _start_server(self) -> None:
        if self.work.down:
            self.work.start()

    def _set_full(self, full: bool) -> None:
        self.world.note("disk", "full" if full else "has room")
        self.work.full = full

    def _send(self, command: Command) -> None:
        if self.work.down or self.work.full:
            self.world.after(500, self._send, command)
        else:
            self._unsent -= 1
            self.world.note("user", command)
            self.work.publish(Out(("sync",), command))

    def _sweep(self) -> None:
        if not self.work.down and not self.work.full:
            for stored in self.work.standing("health"):
                self.work.remove(stored.sequence)
            self.work.publish(Out(("health",), None))
        self.world.after(SWEEP, self._sweep)

    def _changing(self) -> bool:
        """Whether a user's command is still to come or being applied."""
        return self._unsent > 0 or bool(self.work.standing("sync"))

    def _delete_tick(self) -> None:
        """An operator's mistake: the only tick of a schedule is gone."""
        standing = self.work.standing("held", "due")
        names = [stored.out.body.schedule for stored in standing]
        ticks = [s for s in standing if names.count(s.out.body.schedule) == 1]
        ticks = [s for s in ticks if self._revision(s.out.body.schedule) == s.out.body.revision]
        if not ticks or self._changing():
            if self.world.faults:
                self.world.after(1_000, self._delete_tick)
            return
        stored = self.world.random.choice(ticks)
        self.world.note("sabotage", *stored.out.subject)
        self.sabotaged = True
        self.work.purge(stored.out.subject)
        self.work.remove(stored.sequence)

    def _revision(self, schedule: str) -> int:
        record = self.registry.leader(("schedule", schedule))
        return record.sequence if record else 0

    def _restore(self) -> None:
        """The registry is put back to before its last change, once that has settled."""
        changes = [r for r in self.registry.log if isinstance(r.key, tuple) and r.key[0] == "schedule"]
        ticks = [stored.out.body for stored in self.work.standing("held", "due")]
        unsettled = any(self._revision(tick.schedule) != tick.revision for tick in ticks)
        if self._changing() or unsettled or self.work.down:
            if self.world.faults:
                self.world.after(1_000, self._restore)
            return
        last = changes[-1]
        before = [record for record in changes[:-1] if record.key == last.key]
        stands = any(tick.revision == last.sequence for tick in ticks)
        if before and before[-1].value.state == "active" and stands:
            self.world.note("registry restored to before", last.sequence)
            self.registry.restore(last.sequence - 2)  # its past is written with it
            self.restored_at = self.world.now
