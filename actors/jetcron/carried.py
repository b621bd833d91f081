"""The copy of its schedule's entry that a tick carries, so that turning it need not read the registry.

Entries of a million schedules lie scattered over what the server has on disk, and those that are due at one instant
anywhere among them; what a tick carries comes with it. Owns when a copy counts: a replaced revision has an entry under
`past`, written in the same step by cron-sync, who alone writes there, and kept for as long as a copy of it may be out.
Where there is none the copy is what the registry holds, and is carried on as of now. Two things would make that wrong:
that `past` forgot, or that the registry was restored from a backup and no longer knows that revision. Against the first
an old copy does not count. The second is noted by whoever sees it, and voids all that was read before; and one turn in
`ASKED` reads the registry all the same, so that what nobody noted ends by itself.
"""

from dataclasses import dataclass
from zlib import crc32

import structlog

from jetcron.bus import ROLLUP, Bus, StoredMessage, fenced
from jetcron.cron import CronError
from jetcron.cycle import next_occurrence
from jetcron.errors import WrongSequence
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.messages import MAX_TIME, MIN_TIME, Restored, Schedule, Tick, replace
from jetcron_protocol.topology import DAY

MAX_COPY = 8 * 1024
"""A larger entry is not carried, but read from the registry, in bytes."""
CARRIED_FOR = 100 * DAY
"""A tick that is due later than so many seconds after its entry was read carries none."""
GOOD_FOR = 29 * DAY
"""For so long after its tick's time, or after it was read, a copy counts, in seconds."""
PAST_KEPT = 30 * DAY
"""For so long a replaced revision is kept after the time of the last tick that may carry it, in seconds."""
ASKED = 1024
"""One tick in so many is turned by what the registry says, whatever it carries."""
_CLOCKS = 10_000
"""Milliseconds by which no two actors' clocks differ: one that is further off than a lead takes nothing."""
_KNOWN_FOR = DAY * 1000
"""Milliseconds for which a tick that nobody turned shows the restore that is noted, and not another one."""

log = structlog.get_logger("jetcron.carried")


@dataclass(frozen=True, slots=True)
class Copy:
    """A registry entry as it was stored, and when it was read or written, epoch ms."""

    entry: bytes
    read_at: int

    def on(self, tick: Tick) -> Tick:
        """The tick with this copy of its revision's entry; without, if it is too large, or the tick too far off."""
        if len(self.entry) > MAX_COPY or tick.at - self.read_at > CARRIED_FOR * 1000:
            return tick
        return replace(tick, entry=self.entry, read_at=self.read_at)


def copy_of(tick: Tick, now: int) -> Copy | None:
    """What a tick carries, if it counts at `now` (epoch ms) unless it turns out to be void."""
    if tick.entry is None or tick.read_at is None:
        return None
    if not tick.read_at <= now <= max(tick.read_at, tick.at) + GOOD_FOR * 1000:
        return None
    if tick.at - tick.read_at > CARRIED_FOR * 1000:
        return None
    if crc32(f"{tick.revision}.{tick.at}".encode()) % ASKED == 0:
        return None
    return Copy(tick.entry, tick.read_at)


def keep(schedule: Schedule, end: int, now: int) -> int:
    """For how long, in seconds, it is to be known that a revision was replaced: while a copy of it may count.

    The last tick it may have, from whoever was frozen before he could hold it, is of the first occurrence after its
    end: whatever leads to a later one reads that it was replaced.
    """
    if schedule.state != "active":
        return PAST_KEPT
    try:
        last = next_occurrence(schedule, end)
    except CronError:  # its zone is not known here, and was where it was created
        return PAST_KEPT + CARRIED_FOR
    return PAST_KEPT + (0 if last is None else min(max(last - now, 0) // 1000, CARRIED_FOR))


def schedule_in(copy: Copy, tick: Tick) -> Schedule | None:
    """The schedule in a copy; None if it cannot be read here, or is another's: the registry will say what is right."""
    try:
        schedule = decode(Schedule, copy.entry)
    except DecodeError:
        return None
    return schedule if schedule.id == tick.schedule else None


def restored(stored: StoredMessage | None) -> Restored:
    """What is noted of the registry's being restored: copies read until `at` are void, all if it cannot be read."""
    if stored is None:
        return Restored(at=MIN_TIME, revision=0)
    try:
        return decode(Restored, stored.payload)
    except DecodeError:
        return Restored(at=MAX_TIME, revision=0)


async def note_restored(bus: Bus, revision: int, now: int, *, read_at: int | None = None) -> None:
    """A tick of `revision` shows that the registry was restored: unless it is known, void what was read before `now`.

    What the tick carries was read at `read_at`: later than what is noted, it shows that it was restored once more.
    """
    known = restored(await bus.entry(bus.names.restored_key))
    told = now - known.at < _KNOWN_FOR if read_at is None else read_at <= known.at
    if known.revision >= revision and told:
        return
    log.error("the registry was restored from a backup", revision=revision)
    await void_copies(bus, revision, now)


async def void_copies(bus: Bus, revision: int, now: int) -> None:
    """From now on no copy counts that was read before `now`, epoch ms, by whosever clock. What is void stays so."""
    while True:
        stored = await bus.last(bus.names.registry, bus.names.restored_key)
        known = restored(stored if stored is not None and not stored.deleted else None)
        at = now + _CLOCKS
        entry = Restored(at=at if known.at == MAX_TIME else max(known.at, at), revision=revision)
        fence = fenced(0 if stored is None else stored.sequence)
        try:
            await bus.publish(bus.names.restored_key, encode(entry), fence)
        except WrongSequence:
            continue
        return


async def witnessed(bus: Bus, group: int) -> int:
    """The sequence the registry had given to the last note of a sweep of this group, by what is told elsewhere.

    To be read before that note: one that is older shows that the registry was restored.
    """
    stored = await bus.last(bus.names.work, bus.names.health_noted(group))
    return int(stored.payload) if stored is not None and stored.payload.isdigit() else 0


async def witness(bus: Bus, group: int, sequence: int) -> None:
    """Tell it where a restored registry does not forget it: beside the ticks."""
    await bus.publish(bus.names.health_noted(group), str(sequence).encode(), {ROLLUP: "sub"})


async def note_lost(bus: Bus, sequence: int, now: int) -> None:
    """The registry does not know any more what it had under `sequence`: void what was read before `now`."""
    log.error("the registry was restored from a backup, or a sweep's note was removed", sequence=sequence)
    known = restored(await bus.entry(bus.names.restored_key))
    await void_copies(bus, max(known.revision, sequence), now)
