"""Schedules as they are given, looked at before anything is sent: each field, and that their functions exist.

Owns nothing but the order of looking: all is read before the first fault is told, so that every one is. cron-sync
looks again at what it is sent, for others send it too.
"""

from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from typing import Any

from jetcron.bus import Bus
from jetcron.definitions import unfit
from jetcron.errors import ScheduleRefused
from jetcron.given import checked
from jetcron.schedules.orders import Part
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Function
from jetcron_protocol.subjects import InvalidName, split_function

_PORTION = 1_000
"""Schedules that are looked at before the first of them goes on: as many as one request may name."""
_YIELD_EVERY = 250


async def checked_parts(
    bus: Bus, schedules: Iterable[Mapping[str, Any]], *, numbered: bool = True
) -> list[Part]:
    """Each as it travels; raises `ScheduleRefused` with every fault there is. See `Checks`."""
    checks = Checks(bus, numbered=numbered)
    parts = [part async for portion in checks.portions(schedules) for part in portion]
    await checks.finish()
    return parts


class Checks:
    """One look over schedules as they are given; `faults` grows with what is wrong with each, by its id.

    `ids` are theirs, and `functions` those they run, as far as it was looked. What has no id goes by its number in the
    faults, unless it is not `numbered`: where there is one alone.
    """

    def __init__(self, bus: Bus, *, numbered: bool = True) -> None:
        self._bus = bus
        self._numbered = numbered
        self._users: dict[str, list[tuple[str, object]]] = {}
        self.ids: set[str] = set()
        self.faults: dict[str, list[str]] = {}

    async def portions(self, schedules: Iterable[Mapping[str, Any]]) -> AsyncIterator[list[Part]]:
        """As they travel, so many at a time, those that have a fault of their own left out."""
        now = self._bus.clock.now()
        parts: list[Part] = []
        for number, values in enumerate(schedules, 1):
            part = self._part(number, values, now)
            if part is not None:
                parts.append(part)
            if number % _YIELD_EVERY == 0:
                await self._bus.clock.sleep(0)
            if number % _PORTION == 0:
                yield parts
                parts = []
        if parts:
            yield parts

    async def finish(self) -> None:
        """Look at the functions they run; raises `ScheduleRefused` with every fault there is."""
        await check_functions(self._bus, self._users, self.faults)
        if self.faults:
            raise ScheduleRefused(self.faults)

    @property
    def functions(self) -> Container[str]:
        return self._users.keys()

    def fault(self, name: str, *texts: str) -> None:
        """Add what is wrong with one of them."""
        self.faults.setdefault(name, []).extend(texts)

    def _part(self, number: int, values: object, now: int) -> Part | None:
        if not isinstance(values, Mapping):
            self.fault(f"#{number}", f"a schedule is a map, not {type(values).__name__}")
            return None
        raw, found = checked(values, now=now)
        name = found.name or (f"#{number}" if self._numbered else "")
        if found.faults:
            self.fault(name, *found.faults)
        if name in self.ids:
            self.fault(name, "it is given twice; allowed is once")
            return None
        self.ids.add(name)
        if isinstance(raw.get("function"), str):
            self._users.setdefault(raw["function"], []).append((name, raw.get("overlap")))
        if found.schedule is None:
            return None
        return Part(
            name, {key: value for key, value in raw.items() if value is not None}, checked=found.schedule
        )


async def check_functions(
    bus: Bus, users: Mapping[str, Sequence[tuple[str, object]]], faults: dict[str, list[str]]
) -> None:
    """Add to `faults` what is wrong with the functions these schedules run, each with its `overlap`."""
    keys: dict[str, str] = {}
    for function in users:
        try:
            split_function(function)
        except InvalidName:
            continue  # what is no function's id at all is told elsewhere
        keys[bus.names.function_key(function)] = function
    entries = await bus.entries(list(keys))
    for key, function in keys.items():
        stored = entries.get(key)
        found = decode(Function, stored.payload) if stored is not None else None
        for name, overlap in users[function]:
            if texts := unfit(function, found, overlap):
                faults.setdefault(name, []).extend(texts)
