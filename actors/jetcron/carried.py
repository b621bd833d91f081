"""The copy of its schedule's entry that a tick carries, so that turning it need not read the registry.

Entries of a million schedules lie scattered over what the server has on disk, and those that are due at one instant
anywhere among them; what a tick carries comes with it. Owns when a copy counts: a replaced revision has an entry under
`past`, written in the same step by cron-sync, who alone writes there. Where there is none the copy is what the registry
holds, but for two cases, which void it: its revision was replaced so long ago that `past` forgot, or the registry was
restored from a backup and no longer knows that revision.
"""

from dataclasses import dataclass

import structlog

from jetcron.bus import TTL, Bus, StoredMessage
from jetcron_protocol.codec import DecodeError, decode, encode
from jetcron_protocol.messages import MAX_TIME, MIN_TIME, Restored, Schedule, Tick, replace
from jetcron_protocol.topology import DAY

MAX_COPY = 1024
"""A larger entry is not carried, but read from the registry, in bytes."""
GOOD_FOR_DAYS = 29
"""For so long after it was read a copy counts: of a weekly schedule it serves four ticks.

Less than replaced revisions are remembered (`PAST_KEPT`), for by them it is known that one was not replaced.
"""

log = structlog.get_logger("jetcron.carried")


@dataclass(frozen=True, slots=True)
class Copy:
    """A registry entry as it was stored, and when it was read or written, epoch ms."""

    entry: bytes
    read_at: int

    def on(self, tick: Tick) -> Tick:
        """The tick with this copy of its revision's entry; without, if it is too large."""
        if len(self.entry) > MAX_COPY:
            return tick
        return replace(tick, entry=self.entry, read_at=self.read_at)


def copy_of(tick: Tick, now: int) -> Copy | None:
    """What a tick carries, if it is young enough to count."""
    if (
        tick.entry is None
        or tick.read_at is None
        or not 0 <= now - tick.read_at <= GOOD_FOR_DAYS * DAY * 1000
    ):
        return None
    return Copy(tick.entry, tick.read_at)


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
    if known.revision >= revision and (read_at is None or read_at <= known.at):
        return
    log.error("the registry was restored from a backup", revision=revision)
    await void_copies(bus, revision, now)


async def void_copies(bus: Bus, revision: int, now: int) -> None:
    """From now on no copy counts that was read before `now`, epoch ms."""
    entry = Restored(at=now, revision=revision)
    await bus.publish(bus.names.restored_key, encode(entry), {TTL: f"{(GOOD_FOR_DAYS + 1) * DAY}s"})
