"""Schedules as they are given, looked at before anything is sent: each field, and that their functions exist.

Owns nothing but the order of looking: all is read before the first fault is told, so that every one is. cron-sync
looks again at what it is sent, for others send it too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jetcron.bus import Bus
from jetcron.definitions import unfit
from jetcron.errors import ScheduleRefused
from jetcron.given import checked
from jetcron.schedules.orders import Part
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Function
from jetcron_protocol.subjects import InvalidName, split_function

_YIELD_EVERY = 500


async def checked_parts(
    bus: Bus, schedules: Iterable[Mapping[str, Any]], *, numbered: bool = True
) -> list[Part]:
    """Each as it travels; raises `ScheduleRefused` with every fault there is.

    What has no id goes by its number in the faults, unless it is not `numbered`: where there is one alone.
    """
    now = bus.clock.now()
    parts: list[Part] = []
    faults: dict[str, list[str]] = {}
    seen: set[str] = set()
    users: dict[str, list[tuple[str, object]]] = {}
    for number, values in enumerate(schedules, 1):
        if number % _YIELD_EVERY == 0:
            await bus.clock.sleep(0)
        if not isinstance(values, Mapping):
            faults[f"#{number}"] = [f"a schedule is a map, not {type(values).__name__}"]
            continue
        raw, found = checked(values, now=now)
        name = found.name or (f"#{number}" if numbered else "")
        if found.faults:
            faults.setdefault(name, []).extend(found.faults)
        if name in seen:
            faults.setdefault(name, []).append("it is given twice; allowed is once")
        seen.add(name)
        if isinstance(raw.get("function"), str):
            users.setdefault(raw["function"], []).append((name, raw.get("overlap")))
        given = {key: value for key, value in raw.items() if value is not None}
        parts.append(Part(name, given, checked=found.schedule))
    await check_functions(bus, users, faults)
    if faults:
        raise ScheduleRefused(faults)
    return parts


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
