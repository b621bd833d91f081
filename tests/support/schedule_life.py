"""The life of one schedule, drawn at random and played by the product's own pure rules, against a reckoning beside it.

Owns the play: orders, downtimes, releases, turns, in simulated time. Owns the reckoning too, which shares nothing with
`jetcron.cycle`, `jetcron.cron` or `jetcron.revisions`: what was ordered, when it came into force, when it was due.
"""

import heapq
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from jetcron import cycle, revisions
from jetcron.clock import from_ms, to_ms
from jetcron.fields import check
from jetcron.registry import FAR_OFF_MS
from jetcron_protocol.messages import FunctionState, Gap, Past, Run, Schedule, Tick
from tests.support.cron_oracle import Minutes, fires

LEAD = 2_000
SETTLES = 2_500
LATE_AFTER = 60_000
MINUTE = 60_000
HOUR = 3_600_000
LIFE = 30 * HOUR
WHEN = ("cron", "every", "at")
CHANGES = {
    "UTC": datetime(2030, 5, 1, 12, tzinfo=UTC),
    "Europe/Prague": datetime(2030, 3, 31, 1, tzinfo=UTC),
    "America/New_York": datetime(2030, 11, 3, 6, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2030, 10, 5, 15, 30, tzinfo=UTC),
}
"""An instant in each zone at which its clocks change, in the middle of the life."""
CRONS = (
    "*/15 * * * *",
    "7 * * * *",
    "30 1,2,3 * * *",
    "*/20 1-4 * * *",
    "0 */2 * * *",
    "15,45 2 * * SUN",
    "0 9 * * *",
    "5 0-23/3 * * *",
)


@cache
def _fires(expression: str, zone: str, dst: str) -> list[int]:
    middle = CHANGES[zone]
    minutes = _minutes(zone, middle)
    return [to_ms(at) for at in fires(expression, minutes, dst)]


@cache
def _minutes(zone: str, middle: datetime) -> Minutes:
    return Minutes(ZoneInfo(zone), middle - timedelta(hours=30), middle + timedelta(hours=30))


@dataclass(frozen=True, slots=True)
class Reign:
    """A revision, by what was ordered.

    `wanted` is the state it must have, `new` whether its `at` is not that of the one before.
    """

    definition: dict[str, Any]
    wanted: str
    after: int
    until: int
    new: bool
    left: int | None

    def due(self, until: int) -> list[int]:
        """When it is due, up to `until`."""
        if self.wanted != "active":
            return []
        one = self.definition
        after, until = self.after, min(until, self.until, one.get("end", until))
        if "at" in one:
            passed = one["at"] <= after
            return [one["at"]] if one["at"] <= until and (self.new or not passed) else []
        after = max(after, one.get("start", after) - 1)
        if "every" in one:
            period = one["every"]
            found = list(range(after // period * period + period, until + 1, period))
        else:
            times = _fires(one["cron"], one.get("timezone", "UTC"), one.get("dst", "default"))
            found = [at for at in times[bisect_right(times, after) :] if at <= until]
        return found if self.left is None else found[: self.left]


@dataclass(slots=True)
class Written:
    """A revision as it was written, and what had been ordered: of itself, and of its function."""

    schedule: Schedule
    definition: dict[str, Any]
    ordered: str
    function: FunctionState

    @property
    def wanted(self) -> str:
        """What it must be: what was ordered of it, if its function lets it."""
        return self.function if self.ordered == "active" else self.ordered


@dataclass(slots=True)
class Life:
    """One life. `repeats`: ticks may be delivered again, at once or hours later."""

    random: Random
    repeats: bool = False
    again: bool = False
    """Whether what was turned may be turned once more: then it may run, and be told of too."""
    zone: str = ""
    base: int = 0
    function: FunctionState = "active"
    written: list[Written] = field(default_factory=list)
    pasts: dict[int, Past] = field(default_factory=dict)
    held: set[tuple[int, int]] = field(default_factory=set)
    runs: dict[str, Run] = field(default_factory=dict)
    ran: dict[int, set[str]] = field(default_factory=dict)
    gaps: dict[int, Gap] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    _events: list[tuple[int, int, str, Any]] = field(default_factory=list)
    _count: int = 0
    _command: int = 0

    # The play.

    def play(self) -> "Life":
        """From the first order to the end, when everything has been up for long."""
        self.zone = self.random.choice(list(CHANGES))
        self.base = to_ms(CHANGES[self.zone]) - LIFE // 2
        sync_down, tick_down = self._downtimes(), self._downtimes()
        times = sorted(self._moment() for _ in range(self.random.randint(0, 9)))
        self._at(self.base + self.random.randrange(HOUR), "order", ("create", self._definition()))
        for time in times:
            self._at(time, "order", self._order())
        while self._events and self._events[0][0] <= self.base + LIFE + HOUR:
            now, _, kind, what = heapq.heappop(self._events)
            if kind not in ("tick", "order"):
                self._happens(kind, what, now)
                continue
            down = next(
                (end for start, end in (tick_down if kind == "tick" else sync_down) if start <= now < end),
                now,
            )
            if down > now:
                self._at(down, kind, what if kind == "tick" else (*what, now) if len(what) == 2 else what)
            elif kind == "tick":
                self._turn(what, now)
            else:
                self._command += 1
                self._apply(what[0], what[1], what[2] if len(what) == 3 else now, now)
        return self

    def _happens(self, kind: str, what: Any, now: int) -> None:
        """What else happens in a life."""
        raise AssertionError(f"{kind} {what} at {now}")

    def _before_it_is_replaced(self, now: int) -> None:
        """What cron-sync does about the revision in force before it writes another."""

    def _at(self, time: int, kind: str, what: Any) -> None:
        self._count += 1  # orders are taken as they were stored
        heapq.heappush(self._events, (time, self._count, kind, what))

    def _downtimes(self) -> list[tuple[int, int]]:
        found = []
        for _ in range(self.random.randint(0, 3)):
            start = self.base + self.random.randrange(LIFE - 4 * HOUR)
            found.append((start, start + self.random.choice((20_000, 5 * MINUTE, HOUR, 4 * HOUR))))
        merged: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def _moment(self) -> int:
        """Any; or one at which a change comes into force about when something may be due."""
        time = self.base + HOUR + self.random.randrange(LIFE - 2 * HOUR)
        if self.random.random() < 0.5:
            time = time // (5 * MINUTE) * 5 * MINUTE - SETTLES + self.random.choice((-1, 0, 1, 700, SETTLES))
        return time

    def _when(self) -> dict[str, Any]:
        match self.random.randrange(5):
            case 0:
                return {"every": self.random.choice((HOUR, 20 * MINUTE, 613_000, 47 * MINUTE))}
            case 1:
                return {"at": self._moment()}
        dst = self.random.choice(("default", "default", "skip", "both"))
        return {"cron": self.random.choice(CRONS), "timezone": self.zone, "dst": dst}

    def _policy(self) -> dict[str, Any]:
        return self.random.choice(
            (
                {"catch_up": "latest"},
                {"catch_up": "all"},
                {"catch_up": "skip"},
                {"catch_up": "all", "catch_up_most": 2},
                {"catch_up": "all", "catch_up_within": 90 * MINUTE},
                {"catch_up": "latest", "catch_up_within": 10 * MINUTE},
                {"executes": "other"},
            )
        )

    def _bounds(self) -> dict[str, Any]:
        return self.random.choice(
            (
                {},
                {"max_runs": self.random.randint(1, 12)},
                {"end": self._moment()},
                {"start": self._moment()},
                {"max_runs": self.random.randint(1, 40), "end": self._moment()},
            )
        )

    def _definition(self) -> dict[str, Any]:
        found = (
            self._when() | self._policy() | {"payload": self._count, "jitter": self.random.choice((0, 5_000))}
        )
        return found if "at" in found else found | self._bounds()

    def _order(self) -> tuple[str, dict[str, Any]]:
        match self.random.randrange(12):
            case 0 | 1 | 2:
                return "update", {"payload": self.random.randrange(1_000_000)}
            case 3:
                absent = dict.fromkeys(("start", "end", "max_runs", "timezone", "dst"))
                return "update", absent | self._when()
            case 4:
                absent = dict.fromkeys(("catch_up", "catch_up_most", "catch_up_within", "executes"))
                return "update", absent | self._policy()
            case 5:
                return "update", dict.fromkeys(("start", "end", "max_runs")) | self._bounds()
            case 6:
                return "pause", {}
            case 7 | 8:
                return "unpause", {}
            case 9 | 10:
                return "function", {"state": self.random.choice(("active", "active", "paused", "archived"))}
        return self.random.choice((("delete", {}), ("archive", {}), ("create", self._definition())))

    def _apply(self, what: str, changes: dict[str, Any], stored_at: int, now: int) -> None:
        """As cron-sync does."""
        before = self.written[-1] if self.written else None
        previous = before.schedule if before else None
        gone = previous is None or previous.state == "deleted"
        merged = dict(before.definition) if before and not gone else {}
        ordered = before.ordered if before and not gone else "active"
        made: Schedule | str | None
        raw = {"id": "s", "function": "app.f"}
        match what:
            case "create":
                found = check(raw | changes, now=stored_at)
                made = found.schedule
                if made is None or revisions.created(found.schedule, previous) is not None or not gone:  # type: ignore[arg-type]
                    return
                merged, ordered = _merge({}, changes), "active"
            case "update":
                found = revisions.updated("s", changes, previous, now=stored_at)
                made = found.schedule
                merged = _merge(merged, changes)
            case "ended":
                if previous is None or changes["revision"] != len(self.written) or previous.state != "active":
                    return
                made = replace(previous, state="deleted" if previous.at is not None else "ended")
            case "function":
                self.function = changes["state"]
                made = revisions.followed(previous, self.function) if previous else None
            case _:
                made = revisions.moved("s", what, previous)  # type: ignore[arg-type]
                ordered = {
                    "pause": "paused",
                    "unpause": "active",
                    "archive": "archived",
                    "delete": "deleted",
                }[what]
        if isinstance(made, Schedule) and what != "function":
            if made.state == "active" and self.function == "archived":
                return  # it has no function
            made = revisions.beside(made, self.function)
        if not isinstance(made, Schedule) or (previous is not None and revisions.same(made, previous)):
            self.seen["refused"] += 1
            if before is not None and isinstance(made, Schedule):
                before.ordered = ordered  # nothing is to be written for it, says the product
            if before is not None and what == "function":
                before = replace(before, function=self.function)
                self._check_state(before)
            return
        if what != "ended":
            self._before_it_is_replaced(now)
        armed_from = cycle.successor_armed_from(previous, stored_at=stored_at, now=now, settle=SETTLES)
        made = revisions.settled(replace(made, armed_from=armed_from, command=self._command), previous)
        if previous is not None:
            self.pasts[len(self.written)] = Past(schedule=previous, end=armed_from)
        self.written.append(Written(made, merged, ordered, self.function))
        self._check_state(self.written[-1])
        self.seen[what if what != "function" else f"function {self.function}"] += 1
        revision = len(self.written)
        first = cycle.first_tick(cycle.Entry(made, revision))
        if first is not None:
            self._hold(first, now)
        self.held -= {one for one in self.held if one[0] < revision and one[1] - now > FAR_OFF_MS}

    def _hold(self, tick: Tick, now: int) -> None:
        if (tick.revision, tick.at) in self.held:
            return  # it stands on its own subject
        self.held.add((tick.revision, tick.at))
        self._at(max(tick.at - LEAD, now) + self.random.randrange(250), "tick", tick)

    def _turn(self, tick: Tick, now: int) -> None:
        """As cron-tick does."""
        if (tick.revision, tick.at) not in self.held:
            if not self.repeats:
                return
            self.seen["repeated"] += 1
        current = cycle.Entry(self.written[-1].schedule, len(self.written))
        later = any(revision == tick.revision and at > tick.at for revision, at in self.held)
        past = self.pasts.get(tick.revision)
        archived = past is not None and self.function == "archived"
        found = cycle.decide_turn(
            tick, current, past, now=now, late_after=LATE_AFTER, later_stands=later, archived=archived
        )
        self.held.discard((tick.revision, tick.at))
        if self.repeats and self.random.random() < 0.2:
            self._at(now + self.random.choice((1_000, 30_000, 2 * HOUR)), "tick", tick)
        if not isinstance(found, cycle.Turn):
            return
        for run in found.runs:
            assert run.scheduled_at is not None
            self.runs.setdefault(run.run, run)
            self.ran.setdefault(run.scheduled_at, set()).add(run.run)
        if found.gap is not None:
            told = self.gaps.get(found.gap.start)
            if told is None or (told.to, told.count) < (found.gap.to, found.gap.count):
                self.gaps[found.gap.start] = found.gap
            self.seen[found.gap.reason] += 1
        self._check_policy(tick, found, now, archived)
        if found.next is not None:
            self._hold(found.next, now)
        if found.ended:
            self._at(now, "order", ("ended", {"revision": tick.revision}))

    # The reckoning.

    def reigns(self) -> list[Reign]:
        """What was ordered, and when it governed."""
        found: list[Reign] = []
        used = 0
        for index, one in enumerate(self.written):
            before = self.written[index - 1] if index else None
            if before is not None and before.wanted == "deleted":
                before = None
            limit = one.definition.get("max_runs")
            if limit is None or before is None or "max_runs" not in before.definition:
                used = 0
            last = index + 1 == len(self.written)
            until = self.base + 2 * LIFE if last else self.written[index + 1].schedule.armed_from
            new = before is None or before.definition.get("at") != one.definition.get("at")
            left = None if limit is None else max(limit - used, 0)
            reign = Reign(one.definition, one.wanted, one.schedule.armed_from, until, new, left)
            found.append(reign)
            if limit is not None:
                used += len(reign.due(until))
        return found

    def check(self) -> list[str]:
        """Everything that is not as it should be."""
        end = self.base + LIFE
        wrong = self.faults
        due: dict[int, Reign] = {}
        twice: set[int] = set()
        """Due once more by a one-off that was set in the past: the same occurrence, and either revision's."""
        for reign in self.reigns():
            found = dict.fromkeys(reign.due(end + HOUR), reign)
            twice |= due.keys() & found.keys()
            due |= found

        def tells(gap: Gap, at: int) -> bool:
            return gap.start <= at <= gap.to if at in twice else _tells(gap, at, due[at])

        self.seen["occurrences"] += sum(at <= end for at in due)
        for at, reign in due.items():
            runs = self.ran.get(at, set())
            told = [gap for gap in self.gaps.values() if tells(gap, at)]
            if at <= end and not runs and not told:
                wrong.append(f"{from_ms(at)} is lost")
            if len(runs) > 1:
                wrong.append(f"{from_ms(at)} has the runs {runs}")
            if at in twice:
                continue
            if runs and told and not self.again:
                wrong.append(f"{from_ms(at)} ran, and is told not to have: {told}")
            if len(told) > 1 and not self.again:
                wrong.append(f"{from_ms(at)} is told of twice: {told}")
            for run in runs:
                wrong += self._check_run(self.runs[run], reign)
        wrong += [f"{from_ms(at)} ran, when nothing was due" for at in self.ran if at not in due]
        for gap in self.gaps.values():
            inside = sum(tells(gap, at) for at in due)
            if inside != gap.count:
                wrong.append(f"{gap} counts {gap.count} of {inside}")
        return wrong

    def _check_state(self, one: Written) -> None:
        over = ("ended", "deleted") if one.ordered == "active" else ()
        if one.schedule.state not in (one.wanted, *over):
            self.faults.append(
                f"{one.schedule} is not {one.wanted}, as ordered: {one.ordered}, {one.function}"
            )

    def _check_run(self, run: Run, reign: Reign) -> list[str]:
        assert run.scheduled_at is not None
        wanted = reign.definition
        late = run.fire_at - run.scheduled_at
        if run.payload != wanted.get("payload"):
            return [f"{run} has not the payload {wanted.get('payload')} of the revision in force"]
        if not 0 <= late <= wanted.get("jitter", 0):
            return [f"{run} fires {late} ms after its time"]
        if wanted.get("executes") == "other":
            return [f"{run} was to be executed by another scheduler"]
        return []

    def _check_policy(self, tick: Tick, turn: cycle.Turn, now: int, archived: bool) -> None:
        """What runs of a late group is what its policy wants: as many of the newest, and none that is too old.

        Nothing runs of a function that is archived.
        """
        if archived and turn.runs:
            self.faults.append(f"{turn.runs} would stand for ever, for their function is archived")
        if archived or now - tick.at <= LATE_AFTER:
            return
        reign = self.reigns()[tick.revision - 1]
        group = [at for at in reign.due(now) if at >= tick.at]
        one = reign.definition
        most = {"latest": 1, "skip": 0, "all": one.get("catch_up_most", 1_000)}[one.get("catch_up", "latest")]
        if one.get("executes") == "other":
            most = 0
        young = [at for at in group if at >= now - one.get("catch_up_within", now)]
        wanted = young[-most:] if most else []
        made = [run.scheduled_at for run in turn.runs]
        if made != wanted:
            self.faults.append(f"of {len(group)} missed up to {from_ms(now)} run {made}, not {wanted}: {one}")


def _tells(gap: Gap, at: int, reign: Reign) -> bool:
    """Whether a gap is of this occurrence; of a one-off set in the past, only one of its own is."""
    belated = reign.definition.get("at") == at <= reign.after
    return gap.start == at if belated else gap.start <= at <= gap.to


def _merge(definition: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(definition)
    if any(changes.get(name) is not None for name in WHEN):
        merged = {name: value for name, value in merged.items() if name not in WHEN}
    merged |= changes
    return {name: value for name, value in merged.items() if value is not None}
