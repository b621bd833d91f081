"""The life of a schedule whose ticks are lost now and then, and of those who find that and mend it.

Owns the damage, and the sweeps and the look before a replacement, as health-checker and cron-sync do them by the
product's pure rules; the reckoning is that of every life. Lost are ticks of the revision in force: one of a replaced
revision leaves no trace by which anybody would miss it.
"""

from dataclasses import dataclass, field

from jetcron import cycle
from tests.support.schedule_life import LIFE, MINUTE, Life

SWEEP = 5 * MINUTE
GRACE = 5_000
REMEMBERED = 2 * LIFE


@dataclass(slots=True)
class BrokenLife(Life):
    """One life, with damage."""

    healthy_at: int = 0
    """When a sweep last found it whole."""
    _down: list[tuple[int, int]] = field(default_factory=list)

    def play(self) -> "BrokenLife":
        self.again = True
        # Whatever time the life is about, sweeps begin before it.
        self._at(0, "begin", None)
        Life.play(self)
        return self

    def _happens(self, kind: str, what: object, now: int) -> None:
        match kind:
            case "begin":
                self._down = self._downtimes()
                orders = [time for time, _, kind, _ in self._events if kind == "order"]
                for _ in range(self.random.randint(1, 6)):
                    self._at(self._moment(), "damage", None)
                    # What an order has just armed, or what is about to be replaced.
                    after = self.random.choice(
                        (self.random.randrange(300), -self.random.randrange(3 * SWEEP))
                    )
                    self._at(max(self.random.choice(orders) + after, 0), "damage", None)
                self._at(self.base + self.random.randrange(SWEEP), "sweep", None)
            case "damage":
                lost = {one for one in self.held if one[0] == len(self.written)}
                self.seen["lost"] += len(lost)
                self.held -= lost
            case "sweep":
                self._at(now + SWEEP, "sweep", None)
                if not any(start <= now < end for start, end in self._down):
                    self._sweep(now)
            case "mend":
                healthy_at = what
                assert isinstance(healthy_at, int)
                if (at := self._mend("mended by a sweep", now)) is not None:
                    healthy_at = min(healthy_at, at - 1)
                self.healthy_at = max(self.healthy_at, healthy_at)

    def _sweep(self, now: int) -> None:
        """A first look: what it can vouch for; it is looked at again a grace later."""
        orders = [what[2] - 1 for _, _, kind, what in self._events if kind == "order" and len(what) == 3]
        ticks = [at - 1 for _, at in self.held]
        healthy_at = min([now - GRACE, *orders, *ticks])
        if self._broken():
            self._at(now + GRACE, "mend", healthy_at)
        else:
            self.healthy_at = max(self.healthy_at, healthy_at)

    def _broken(self) -> bool:
        if not self.written or self.written[-1].schedule.state != "active":
            return False
        return all(revision != len(self.written) for revision, _ in self.held)

    def _before_it_is_replaced(self, now: int) -> None:
        self._mend("mended before it was replaced", now)

    def _mend(self, how: str, now: int) -> int | None:
        if not self._broken():
            return None
        entry = cycle.Entry(self.written[-1].schedule, len(self.written))
        found = cycle.repair(entry, healthy_at=self.healthy_at, horizon=now - REMEMBERED)
        if found is None or found.tick is None:
            return None
        self.seen[how] += 1
        if entry.schedule.at is not None and entry.schedule.at <= entry.schedule.armed_from:
            self.seen["mended, past when it was set"] += 1
        self._hold(found.tick, now)
        return found.tick.at
