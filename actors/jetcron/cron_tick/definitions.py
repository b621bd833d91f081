"""What governs the ticks of a batch: definitions in force, replaced ones, and whether their functions are archived.

Only reads, as the leader has it: a few requests for a batch, however many schedules there are. What cannot be read is
kept with its reason, for another copy may know better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jetcron.bus import Bus, StoredMessage
from jetcron.cycle import Entry
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Function, Past, Schedule, Tick
from jetcron_protocol.subjects import split_function


@dataclass(frozen=True, slots=True)
class Definitions:
    """What the registry says of a batch's schedules; of replaced ones, also whether their function is archived."""

    current: dict[str, Entry] = field(default_factory=dict)
    past: dict[tuple[str, int], Past] = field(default_factory=dict)
    archived: set[tuple[str, int]] = field(default_factory=set)
    unreadable: dict[str | tuple[str, int], DecodeError] = field(default_factory=dict)

    def add(self, schedule: str, stored: StoredMessage | None) -> None:
        """Take in a schedule's entry; one that cannot be read is noted."""
        if stored is None or schedule in self.current:
            return
        try:
            self.current[schedule] = Entry(decode(Schedule, stored.payload), stored.sequence)
        except DecodeError as error:
            self.unreadable[schedule] = error

    def add_past(self, tick: Tick, stored: StoredMessage) -> None:
        """Take in the revision this tick is of, which was replaced."""
        try:
            self.past[tick.schedule, tick.revision] = decode(Past, stored.payload)
        except DecodeError as error:
            self.unreadable[tick.schedule, tick.revision] = error

    def add_function(self, schedule: str, revision: int, stored: StoredMessage) -> None:
        """Take in the function a replaced revision runs."""
        try:
            if decode(Function, stored.payload).state == "archived":
                self.archived.add((schedule, revision))
        except DecodeError as error:
            self.unreadable[schedule, revision] = error

    def function(self, tick: Tick) -> str:
        """The function a tick's own revision runs."""
        past = self.past.get((tick.schedule, tick.revision))
        return (self.current[tick.schedule] if past is None else past).schedule.function

    def app(self, tick: Tick) -> str:
        """The app of that function."""
        return split_function(self.function(tick))[0]


async def read(bus: Bus, ticks: Sequence[Tick]) -> Definitions:
    """The registry's entries of these ticks, and the replaced revisions among them, as the leader has them."""
    known = Definitions()
    keys = {bus.names.schedule_key(tick.schedule): tick.schedule for tick in ticks}
    found = await bus.entries(list(keys))
    for tick in ticks:
        key = bus.names.schedule_key(tick.schedule)
        stored = found.get(key)
        if stored is not None and stored.sequence < tick.revision:
            stored = await bus.entry(key)  # older than the tick: the leader has the last word
        known.add(tick.schedule, stored)
    replaced = {
        bus.names.past_key(tick.schedule, tick.revision): tick
        for tick in ticks
        if tick.schedule in known.current and known.current[tick.schedule].revision > tick.revision
    }
    for key, stored in (await bus.entries(list(replaced))).items():
        known.add_past(replaced[key], stored)
    await _functions(bus, known)
    return known


async def _functions(bus: Bus, known: Definitions) -> None:
    """Whether functions were archived since: what is overdue would make runs for which there is no consumer.

    Asked only where a revision was replaced, as archiving its function does to every schedule that is active. The
    runs of whoever reads this before, and stores after it, are cancelled with the others, or by a sweep.
    """
    users: dict[str, list[tuple[str, int]]] = {}
    for one, past in known.past.items():
        users.setdefault(bus.names.function_key(past.schedule.function), []).append(one)
    for key, stored in (await bus.entries(list(users))).items():
        for schedule, revision in users[key]:
            known.add_function(schedule, revision, stored)
