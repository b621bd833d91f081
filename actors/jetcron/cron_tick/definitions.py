"""What governs the ticks of a batch: definitions in force, replaced ones, and whether their functions are archived.

Only reads, as the leader has it: a few requests for a batch, however many schedules there are. Most ticks carry a copy
of their entry: of them it is asked whether they were replaced, and nothing else. What cannot be read is kept with its
reason, for another copy may know better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jetcron import intents
from jetcron.bus import Bus, StoredMessage
from jetcron.carried import Copy, copy_of, restored, schedule_in
from jetcron.cycle import Entry
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Function, Past, Schedule, Tick
from jetcron_protocol.subjects import split_function


@dataclass(frozen=True, slots=True)
class Definitions:
    """What the registry says of a batch's schedules; of replaced ones, also whether their function is archived.

    `past` has revisions that were replaced, `replacing` those that are about to be.
    """

    current: dict[str, Entry] = field(default_factory=dict)
    past: dict[tuple[str, int], Past] = field(default_factory=dict)
    replacing: set[tuple[str, int]] = field(default_factory=set)
    archived: set[tuple[str, int]] = field(default_factory=set)
    unreadable: dict[str | tuple[str, int], DecodeError] = field(default_factory=dict)
    copies: dict[str, Copy] = field(default_factory=dict)
    """Of the entries in `current`, for the ticks that follow."""

    def add(self, schedule: str, stored: StoredMessage | None, read_at: int) -> None:
        """Take in a schedule's entry; one that cannot be read is noted."""
        if stored is None or schedule in self.current:
            return
        try:
            self.current[schedule] = Entry(decode(Schedule, stored.payload), stored.sequence)
            self.unreadable.pop(schedule, None)
        except DecodeError as error:
            self.unreadable[schedule] = error
        else:
            self.copies[schedule] = Copy(stored.payload, read_at)

    def add_past(self, tick: Tick, stored: StoredMessage) -> None:
        """Take in that the revision this tick is of was replaced."""
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

    def laden(self, tick: Tick) -> Tick:
        """A tick that follows, with a copy of its entry if it is of the revision in force."""
        copy = self.copies.get(tick.schedule)
        return (
            tick if copy is None or self.current[tick.schedule].revision != tick.revision else copy.on(tick)
        )

    def function(self, tick: Tick) -> str:
        """The function a tick's own revision runs."""
        past = self.past.get((tick.schedule, tick.revision))
        return (self.current[tick.schedule] if past is None else past).schedule.function

    def app(self, tick: Tick) -> str:
        """The app of that function."""
        return split_function(self.function(tick))[0]


async def read(bus: Bus, ticks: Sequence[Tick], *, now: int) -> Definitions:
    """What the registry says of these ticks as of `now` (epoch ms) or later, as its leader has it."""
    known = Definitions()
    await _carried(bus, known, ticks, now)
    asked = {(id, entry.revision) for id, entry in known.current.items()}
    missing = [tick for tick in ticks if tick.schedule not in known.current]
    while True:
        await _looked_up(bus, known, missing, now)
        asked_for = [
            tick
            for tick in ticks
            if tick.schedule in known.current
            and known.current[tick.schedule].revision >= tick.revision
            and (tick.schedule, tick.revision) not in asked
        ]
        if not asked_for:
            break
        asked |= {(tick.schedule, tick.revision) for tick in asked_for}
        overtaken = await _replaced(bus, known, asked_for)
        missing = [tick for tick in ticks if tick.schedule in overtaken]
    await _functions(bus, known)
    return known


async def _replaced(bus: Bus, known: Definitions, ticks: Sequence[Tick]) -> set[str]:
    """Read what is said of the revisions of these ticks, after their entries: as a rule nothing of those in force.

    Before that, or with it, which of them are about to be replaced: one batch takes that word away and says the other.
    Returns the schedules whose entries were replaced after they had been read: of their successors nothing is known.
    """
    overtaken = set()
    keys = {bus.names.past_key(tick.schedule, tick.revision): tick for tick in ticks}
    pasts, replacing = await _pasts(bus, list(keys), ticks)
    known.replacing.update(replacing)
    for key, stored in pasts.items():
        tick = keys[key]
        known.add_past(tick, stored)
        past = known.past.get((tick.schedule, tick.revision))
        current = known.current.get(tick.schedule)
        if past is not None and current and current.revision == tick.revision:
            del known.current[tick.schedule]
            overtaken.add(tick.schedule)
    return overtaken


async def _pasts(
    bus: Bus, keys: Sequence[str], ticks: Sequence[Tick]
) -> tuple[dict[str, StoredMessage], set[tuple[str, int]]]:
    names = bus.names
    asked = [names.intents, *keys]
    found = await bus.rare(names.registry, asked, witness=names.schedule_key(ticks[0].schedule))
    if found is None:
        replacing = set(await intents.standing(bus))  # the intents first
        return await bus.entries(keys), replacing
    stand, _ = found
    pasts = {key: stand[key] for key in keys if key in stand and not stand[key].deleted}
    return pasts, _replacing(bus, stand)


def _replacing(bus: Bus, stand: Mapping[str, StoredMessage]) -> set[tuple[str, int]]:
    return set(intents.named(stored for key, stored in stand.items() if bus.names.is_intent(key)))


async def _carried(bus: Bus, known: Definitions, ticks: Sequence[Tick], now: int) -> None:
    """Believe the copies of revisions that were not replaced, nor are about to be."""
    copies = {tick: copy for tick in ticks if (copy := copy_of(tick, now)) is not None}
    if not copies:
        return
    names = bus.names
    pasts = {tick: names.past_key(tick.schedule, tick.revision) for tick in copies}
    found = await bus.rare(
        names.registry,
        [names.intents, *dict.fromkeys(pasts.values()), names.restored_key],
        witness=names.schedule_key(ticks[0].schedule),
    )
    if found is None:
        return
    stand, last_sequence = found
    void = restored(stand.get(names.restored_key)).at
    replacing = _replacing(bus, stand)
    doubtful = set()
    for tick, copy in copies.items():
        if (tick.schedule, tick.revision) in replacing:
            continue
        if pasts[tick] in stand or tick.revision > last_sequence or copy.read_at <= void:
            continue
        schedule = schedule_in(copy, tick)
        if schedule is not None:
            entry = known.current.setdefault(tick.schedule, Entry(schedule, tick.revision))
            known.copies[tick.schedule] = Copy(copy.entry, now)
            if entry.revision != tick.revision:
                doubtful.add(tick.schedule)
    for id in doubtful:
        del known.current[id], known.copies[id]


async def _looked_up(bus: Bus, known: Definitions, ticks: Sequence[Tick], now: int) -> None:
    """Read the entries of these ticks."""
    keys = {bus.names.schedule_key(tick.schedule): tick.schedule for tick in ticks}
    found = await bus.entries(list(keys))
    for tick in ticks:
        key = bus.names.schedule_key(tick.schedule)
        stored = found.get(key)
        if stored is not None and stored.sequence < tick.revision:
            stored = await bus.entry(key)  # older than the tick: the leader has the last word
        known.add(tick.schedule, stored, now)


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
