"""`jetcron doctor --deep`: every held tick beside the definition it is of.

Only reads, every entry and every tick, a few shards at a time: the time it takes grows with the schedules, its memory
does not. What looks wrong is read again a moment later, for a tick may be turning while it is looked at.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jetcron.bus import SCHEDULE, SCHEDULE_TARGET, Bus, StoredMessage, rfc3339_ms
from jetcron.cli.cycles import Finding, orders_stand
from jetcron.clock import Clock
from jetcron.cron import CronError
from jetcron.cycle import awaited, next_occurrence
from jetcron.many import each
from jetcron.registry import FAR_OFF_MS
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import SHARDS
from jetcron_protocol.messages import Past, Schedule, Tick
from jetcron_protocol.subjects import InvalidName, Names, TickName

_AT_ONCE = 4
"""Shards in memory at one time."""
_SETTLES = 2.0
_TURNING_MS = 10_000
"""A tick so near may just be turning."""
_LONGEST_LEAD_MS = 60_000
_BEYOND = 9_223_372_036_000
"""The server holds nothing longer (the year 2262), epoch ms."""
_NAMED = 3
_REARM = "pausing and unpausing arms a schedule anew; see jetcron schedules show"


@dataclass(slots=True)
class Read:
    """What stands of some schedules: entries and ticks by schedule, replaced revisions by schedule and revision."""

    entries: dict[str, StoredMessage] = field(default_factory=dict)
    ticks: dict[str, list[tuple[TickName, StoredMessage]]] = field(default_factory=dict)
    pasts: dict[tuple[str, int], StoredMessage] = field(default_factory=dict)


class DeepCheck:
    """Compares all ticks with all definitions."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._faults: Counter[str] = Counter()
        self._named: dict[str, list[str]] = {}
        self._seen = Counter[str]()
        self._orders_stand = False
        """At the second look: an order may end what has fired for the only time and has no tick any more."""

    async def look(self) -> list[Finding]:
        """A finding for each kind of fault, or that there is none."""
        shards = [f"{number:02x}" for number in range(SHARDS)]
        for start in range(0, SHARDS, _AT_ONCE):
            suspects = [
                one
                for found in await asyncio.gather(*map(self._shard, shards[start : start + _AT_ONCE]))
                for one in found
            ]
            if suspects:
                await self._clock.sleep(_SETTLES)
                self._orders_stand = await orders_stand(self._bus)
                for id, text in self._judge(await self._of(suspects)):
                    self._faults[text] += 1
                    self._named.setdefault(text, []).extend([id][: _NAMED - len(self._named.get(text, []))])
                self._orders_stand = False
        seen = f"{self._seen['ticks']} ticks of {self._seen['schedules']} schedules"
        if not self._faults:
            return [Finding("ok", "schedules", f"{seen}: each is as its definition says")]
        return [
            Finding(
                "wrong",
                "schedules",
                f"{count} of {self._seen['schedules']} {text}: {self._examples(text, count)}",
                _REARM,
            )
            for text, count in self._faults.most_common()
        ]

    def _examples(self, text: str, count: int) -> str:
        named = self._named[text]
        return ", ".join(named) + (f" and {count - len(named)} more" if count > len(named) else "")

    async def _shard(self, shard: str) -> list[str]:
        """The schedules of a shard at which something looks wrong."""
        subjects = await self._bus.subjects(self._names.work, self._names.ticks_of_shard(shard))
        keys = await self._bus.subjects(self._names.registry, self._names.schedules_of_shard(shard))
        read = await self._read(subjects, keys)
        self._seen["schedules"] += len(keys)
        self._seen["ticks"] += len(subjects)
        return sorted({id for id, _ in self._judge(read)})

    async def _of(self, schedules: Sequence[str]) -> Read:
        subjects: list[str] = []

        async def names(id: str) -> None:
            subjects.extend(await self._bus.subjects(self._names.work, self._names.ticks_of(id)))

        await each(names, schedules)
        return await self._read(subjects, [self._names.schedule_key(id) for id in schedules])

    async def _read(self, subjects: Iterable[str], keys: Iterable[str]) -> Read:
        read = Read()
        stored = await self._bus.multi_last_all(self._names.work, list(subjects))
        for subject, message in stored.items():
            try:
                tick = self._names.parse_tick(subject)
            except InvalidName:
                continue  # nobody's: the health-checker's log names it
            read.ticks.setdefault(tick.schedule, []).append((tick, message))
        for key, message in (await self._bus.entries(list(keys))).items():
            try:
                read.entries[self._names.parse_schedule_key(key)] = message
            except InvalidName:
                continue  # as above
        replaced = {
            self._names.past_key(tick.schedule, tick.revision): (tick.schedule, tick.revision)
            for id, ticks in read.ticks.items()
            for tick, _ in ticks
            if id in read.entries and tick.revision < read.entries[id].sequence
        }
        for key, message in (await self._bus.entries(list(replaced))).items():
            read.pasts[replaced[key]] = message
        return read

    def _judge(self, read: Read) -> list[tuple[str, str]]:
        """What is wrong, as schedule and text."""
        now = self._clock.now()
        found: list[tuple[str, str]] = []
        for id in sorted(read.ticks.keys() | read.entries.keys()):
            try:
                texts = self._faults_of(id, read, now)
            except (DecodeError, CronError):
                texts = ["cannot be read by this program"]
            found += [(id, text) for text in dict.fromkeys(texts)]
        return found

    def _faults_of(self, id: str, read: Read, now: int) -> list[str]:
        ticks = read.ticks.get(id, [])
        stored = read.entries.get(id)
        if stored is None:
            return ["have ticks and no definition"]
        current = decode(Schedule, stored.payload)
        texts = []
        for tick, message in ticks:
            past = read.pasts.get((id, tick.revision))
            text = (
                wrong_message(self._names, tick, message)
                or (tick.revision < stored.sequence and wrong_past(tick, past, now))
                or (tick.revision == stored.sequence and wrong_time(tick, current))
            )
            if text:
                texts.append(text)
        if current.state == "active":
            own = [tick.at for tick, _ in ticks if tick.revision >= stored.sequence]
            text = self._wrong_next(current, own, now)
            if text:
                texts.append(text)
        return texts

    def _wrong_next(self, schedule: Schedule, own: list[int], now: int) -> str | None:
        if not own:
            due = awaited(schedule, now)
            if due is None or (due <= now and self._orders_stand):
                return None
            return "are active and have no tick of their revision"
        sure = now + self._settings.lead_ms + _TURNING_MS
        due = next_occurrence(schedule, max(sure, schedule.armed_from))
        return "are held for a time after their next one" if due is not None and min(own) > due else None


def wrong_message(names: Names, tick: TickName, message: StoredMessage) -> str | None:
    """What is wrong with a tick's body and headers, beside its name."""
    body = decode(Tick, message.payload)
    if (body.schedule, body.revision, body.at) != (tick.schedule, tick.revision, tick.at):
        return "have a tick that says something else than its subject"
    if tick.state == "due":
        return None
    headers: Mapping[str, str] = message.headers
    if headers.get(SCHEDULE_TARGET) != names.tick_due(tick.schedule, tick.revision, tick.at):
        return "have a held tick that goes somewhere else"
    try:
        release = rfc3339_ms(headers.get(SCHEDULE, "").removeprefix("@at "))
    except ValueError:
        return "have a held tick that says no time"
    # How early it is released is a setting, which may have been another when it was stored.
    if release > max(tick.at, 0) or (release < tick.at - _LONGEST_LEAD_MS and tick.at < _BEYOND):
        return "have a tick that is held until another time than its own"
    return None


def wrong_past(tick: TickName, past: StoredMessage | None, now: int) -> str | None:
    """What is wrong with a tick of a revision that was replaced."""
    if past is not None:
        replaced = decode(Past, past.payload)
        if tick.at <= replaced.end:
            return wrong_time(tick, replaced.schedule)
    # A near one settles itself when it is released.
    return "have a tick of a replaced revision" if tick.at - now > FAR_OFF_MS else None


def wrong_time(tick: TickName, schedule: Schedule) -> str | None:
    """Whether a tick's time is none of the definition it is of."""
    if schedule.state != "active":
        return f"have a tick and are {schedule.state}"
    if next_occurrence(schedule, tick.at - 1) != tick.at:
        return "have a tick at a time their definition does not name"
    return None
