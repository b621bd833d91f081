"""Schedules and their ticks, a group of shards at a time: which chains are broken, which ticks lead nowhere.

Owns how a sweep tells one fault from another. Names narrow the search: of a million schedules it reads the entries of
those alone that look broken by their names, one shard at a time in memory. What looks broken is looked at again a
grace later. If the process dies here, the sweep comes again: every repair can be repeated.

- ``broken``: an active schedule without a tick
- ``stale``: an active one whose ticks are all of revisions that were replaced: none of them leads to its next run
- ``leftover``: such a tick beside a whole chain, far off and after its revision's end: it would hide a break
- ``orphan``: ticks of a schedule nobody knows
- ``overdue``: a held tick whose time has passed; see `overdue`
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.cycle import Entry
from jetcron.health_checker.breaks import BreakCounts
from jetcron.health_checker.findings import Findings
from jetcron.health_checker.overdue import Overdue
from jetcron.mending import Broken, carry_out, planned
from jetcron.registry import FAR_OFF_MS
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import shards_of
from jetcron_protocol.messages import Past, Schedule, Sweep
from jetcron_protocol.subjects import InvalidName, TickName, unescape

log = structlog.get_logger("jetcron.health-checker")

MOST_READ = 5_000
"""Entries of schedules without a tick read in one sweep, most of them paused or over; the next one goes on."""
PART = 500
"""Cycles restarted in one step."""

Standing = tuple[bool, int, int]
"""A tick by its name: whether it is held, its revision, its time."""


@dataclass(slots=True)
class Shard:
    """The names of one shard. Schedules are tokens, escaped as they stand in subjects."""

    name: str
    ticks: dict[str, list[Standing]] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    """``<schedule>.<revision>`` of what was replaced within the last 30 days."""

    def superseded(self, token: str) -> list[Standing]:
        """The ticks of a schedule that are of replaced revisions."""
        return [tick for tick in self.ticks[token] if f"{token}.{tick[1]}" in self.replaced]

    def newest(self) -> int:
        """The greatest revision among the ticks."""
        return max((revision for ticks in self.ticks.values() for _, revision, _ in ticks), default=0)

    def absent(self) -> set[str]:
        return self.registered - self.ticks.keys()

    def orphans(self) -> set[str]:
        return self.ticks.keys() - self.registered

    def stale(self, far: int) -> set[str]:
        """Those with nothing but ticks of replaced revisions, or with one that lies after `far`."""
        if not self.replaced:
            return set()
        found = set()
        for token in self.ticks.keys() & self.registered:
            superseded = self.superseded(token)
            if superseded and (
                len(superseded) == len(self.ticks[token]) or any(at > far for _, _, at in superseded)
            ):
                found.add(token)
        return found


@dataclass(slots=True)
class Suspects:
    """What looked broken in one shard."""

    absent: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)
    orphans: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.absent or self.stale or self.orphans)


class Chains:
    """Compares names, twice, a grace apart; what is broken both times is mended."""

    def __init__(
        self, bus: Bus, clock: Clock, settings: Settings, breaks: BreakCounts, overdue: Overdue
    ) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._breaks = breaks
        self._overdue = overdue

    async def sweep(self, group: int, note: Sweep, findings: Findings) -> None:
        """Look at every schedule of a group, and mend what is broken."""
        suspects: dict[str, Suspects] = {}
        absent: list[str] = []
        for name in shards_of(group):
            shard = await self._look(name)
            findings.schedules += len(shard.registered)
            findings.newest = max(findings.newest, shard.newest())
            await self._time(shard, findings)
            absent += [f"{name}.{token}" for token in sorted(shard.absent())]
            found = Suspects(stale=shard.stale(self._far()), orphans=shard.orphans())
            if found:
                suspects[name] = found
        for named in await self._active(self._part(absent, note, findings), findings):
            name, token = named.split(".")
            suspects.setdefault(name, Suspects()).absent.add(token)
        if not suspects:
            return
        await self._clock.sleep(self._settings.repair_grace)
        for name, found in suspects.items():
            await self._mend(await self._look(name), found, note, findings)

    async def _look(self, name: str) -> Shard:
        """The ticks of a shard, held and due, and its registered schedules.

        Ticks are read first: a schedule created in between has an entry and, a moment later, a tick.
        """
        shard = Shard(name)
        split = self._names.split_tick
        for subject in await self._bus.subjects(self._names.work, self._names.ticks_of_shard(name)):
            try:
                held, token, revision, at = split(subject)
            except InvalidName as error:
                log.error("a tick has a subject nobody can read", reason=str(error))
            else:
                shard.ticks.setdefault(token, []).append((held, revision, at))
        keys = await self._bus.subjects(self._names.registry, self._names.schedules_of_shard(name))
        shard.registered = {key.rpartition(".")[2] for key in keys}
        keys = await self._bus.subjects(self._names.registry, self._names.pasts_of_shard(name))
        shard.replaced = {key.partition(".past.")[2].partition(".")[2] for key in keys}
        return shard

    def _far(self) -> int:
        return self._clock.now() + FAR_OFF_MS

    async def _time(self, shard: Shard, findings: Findings) -> None:
        """What the times of ticks say: how far back all is settled, and which are overdue."""
        latest = self._overdue.latest()
        overdue: list[TickName] = []
        for token, ticks in shard.ticks.items():
            for held, revision, at in ticks:
                # What stands overdue is not settled: were it lost, its chain must go on from before it.
                if at <= findings.healthy_at:
                    findings.unsettled(at)
                if held and at < latest:
                    overdue += [
                        TickName("held", shard.name, id, revision, at) for id in self._ids([token]).values()
                    ]
        await self._overdue.ticks(overdue, findings)

    def _part(self, absent: Sequence[str], note: Sweep, findings: Findings) -> Sequence[str]:
        """Those looked at in this sweep. A group is whole once all of them were, in one sweep or several."""
        if len(absent) <= MOST_READ:
            return absent
        first = bisect_right(absent, note.absent)
        part = absent[first : first + MOST_READ]
        if note.absent:
            findings.rotation_at = min(note.rotation_at, findings.healthy_at)
        else:
            findings.rotation_at = findings.healthy_at
        if first + MOST_READ < len(absent):
            findings.absent = part[-1]
        else:
            findings.healthy_at = findings.rotation_at
        return part

    async def _active(self, named: Iterable[str], findings: Findings) -> list[str]:
        """Those among them that should have a tick; the paused, archived, ended and deleted need none."""
        active = []
        keys: dict[str, str] = {}
        for one in named:
            for id in self._ids([one.partition(".")[2]]).values():
                keys[self._names.schedule_key(id)] = one
        for key, stored in (await self._bus.entries(list(keys))).items():
            try:
                if decode(Schedule, stored.payload).state == "active":
                    active.append(keys[key])
            except DecodeError as error:
                findings.whole = False
                log.error("a registry entry cannot be read", key=key, reason=str(error))
        return active

    def _ids(self, tokens: Iterable[str]) -> dict[str, str]:
        """The schedules of these tokens; what is none is passed over, and said."""
        ids = {}
        for token in tokens:
            try:
                ids[token] = unescape(token)
            except InvalidName as error:
                log.error("a key or subject holds what is no schedule's name", reason=str(error))
        return ids

    # What is still so a grace later.

    async def _mend(self, shard: Shard, suspects: Suspects, note: Sweep, findings: Findings) -> None:
        await self._restart("broken", suspects.absent & shard.absent(), note, findings)
        stale = suspects.stale & shard.stale(self._far())
        if stale:
            without = await self._without_own(shard, stale)
            await self._restart("stale", without, note, findings)
            await self._clear(shard, without, Findings())  # their repair, and counted
            await self._clear(shard, stale - without, findings)
        for id in self._ids(sorted(suspects.orphans & shard.orphans())).values():
            # The leader has the last word.
            if await self._bus.entry(self._names.schedule_key(id)) is None:
                if not await self._bus.purge(self._names.work, self._names.ticks_of(id)):
                    continue  # another copy did it
                findings.count("orphan")
                log.warning("ticks of an unknown schedule were removed", schedule=id)

    async def _without_own(self, shard: Shard, stale: set[str]) -> set[str]:
        """Those with no tick of their entry's revision, or of a later one: that is the registry's being restored."""
        ids = self._ids(stale)
        keys = {self._names.schedule_key(id): token for token, id in ids.items()}
        found = await self._bus.entries(list(keys))
        return {
            token
            for key, token in keys.items()
            if key in found and all(revision < found[key].sequence for _, revision, _ in shard.ticks[token])
        }

    async def _restart(self, cause: str, tokens: set[str], note: Sweep, findings: Findings) -> None:
        """Re-arm active schedules that have had no tick of theirs for the grace period."""
        ids = sorted(self._ids(tokens).values())
        for start in range(0, len(ids), PART):
            broken = await self._broken(ids[start : start + PART], note, findings)
            mended, whole = await planned(self._bus, self._clock, broken)
            findings.whole &= whole
            await self._breaks.count(cause, [one.schedule for one in mended], findings)
            await carry_out(self._bus, mended)
            for one in mended:
                if one.repair.tick is not None:
                    findings.unsettled(one.repair.tick.at)
                log.error("a broken cycle was restarted", schedule=one.schedule, cause=cause)

    async def _broken(self, ids: Sequence[str], note: Sweep, findings: Findings) -> list[Broken]:
        found = []
        entries = await self._bus.entries([self._names.schedule_key(id) for id in ids])
        for key, stored in entries.items():
            try:
                entry = Entry(decode(Schedule, stored.payload), stored.sequence)
            except DecodeError as error:
                findings.whole = False
                log.error("a broken cycle cannot be restarted here", key=key, reason=str(error))
                continue
            found.append(Broken(entry, note.healthy_at))
        return found

    async def _clear(self, shard: Shard, stale: set[str], findings: Findings) -> None:
        """Purge ticks of replaced revisions that are far off and that a newer revision governs: they lead nowhere."""
        ids = self._ids(sorted(stale))
        far = self._far()
        ticks = {
            self._names.past_key(id, revision): (id, revision, at)
            for token, id in ids.items()
            for held, revision, at in shard.superseded(token)
            if held and at > far
        }
        current = [self._names.schedule_key(id) for id in {id for id, _, _ in ticks.values()}]
        entries = await self._bus.entries([*ticks, *current])
        for key, (id, revision, at) in ticks.items():
            stored, entry = entries.get(key), entries.get(self._names.schedule_key(id))
            if stored is None:
                continue
            if entry is not None and entry.sequence <= revision:
                continue  # it is in force
            try:
                end = decode(Past, stored.payload).end
            except DecodeError as error:
                log.error("a replaced revision cannot be read", key=key, reason=str(error))
                continue
            subject = self._names.tick_held(id, revision, at)
            if at > end and await self._bus.purge(self._names.work, subject):
                findings.count("leftover")
                log.warning("a tick of a replaced revision was removed", schedule=id, revision=revision)
