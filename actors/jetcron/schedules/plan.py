"""What it takes for schedules to stand as a file says: the difference between two sets of definitions.

Owns the comparison. It reads and decides; what is planned is ordered by `Schedules.apply`, fenced by the revisions that
were read here.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jetcron.bus import Bus, StoredMessage
from jetcron.definitions import DEFAULTS, FIELDS, authored
from jetcron.schedules.checks import Checks
from jetcron.schedules.orders import Part
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Schedule


class Change(NamedTuple):
    """An update: what is ordered, and each field that changes, as it was and as it will be (as it travels)."""

    part: Part
    fields: dict[str, tuple[Any, Any]]


@dataclass(slots=True)
class Plan:
    """What is to be created, updated and deleted; `unchanged` are as many as stand already."""

    create: list[Part] = field(default_factory=list)
    update: list[Change] = field(default_factory=list)
    delete: list[Part] = field(default_factory=list)
    unchanged: int = 0

    @property
    def size(self) -> int:
        """How many schedules it is about to touch."""
        return len(self.create) + len(self.update) + len(self.delete)


async def make_plan(bus: Bus, schedules: Iterable[Mapping[str, Any]], *, prune: bool) -> Plan:
    """Compare definitions with what the registry holds; raises `ScheduleRefused` for what can neither be nor change.

    Portion by portion: of those that stand as they are nothing is kept, and one portion is read while the next is
    looked at.
    """
    plan = Plan()
    checks = Checks(bus)

    async def read(parts: Sequence[Part]) -> list[tuple[Part, StoredMessage | None]]:
        keys = [bus.names.schedule_key(part.id) for part in parts]
        entries = await bus.entries(keys)
        return [(part, entries.get(key)) for part, key in zip(parts, keys, strict=True)]

    reading: asyncio.Task[list[tuple[Part, StoredMessage | None]]] | None = None
    try:
        async for portion in checks.portions(schedules):
            before, reading = reading, asyncio.create_task(read(portion))
            if before is not None:
                _place(plan, await before, checks)
        if reading is not None:
            _place(plan, await reading, checks)
    finally:
        if reading is not None:
            reading.cancel()
    await checks.finish()
    if prune:
        await _prune(bus, plan, checks)
    return plan


def _place(plan: Plan, found: Iterable[tuple[Part, StoredMessage | None]], checks: Checks) -> None:
    """What is to become of each, by its entry."""
    for part, stored in found:
        if stored is None:
            plan.create.append(part)
            continue
        try:
            standing = decode(Schedule, stored.payload)
        except DecodeError as error:
            checks.fault(part.id, f"what stands under its id cannot be read here: {error}")
            continue
        if standing.state == "deleted":
            plan.create.append(part)
        elif standing.origin == "code":
            checks.fault(part.id, "its id is that of a cron trigger in code; allowed is another id")
        elif standing.state == "archived":
            checks.fault(part.id, "it is archived; allowed is to unpause it, or to delete it first")
        else:
            _compare(plan, part, standing, stored)


def _compare(plan: Plan, part: Part, standing: Schedule, stored: StoredMessage) -> None:
    assert part.checked is not None, "what has a fault is not planned"
    before, after = authored(standing), authored(part.checked)
    changed = {
        name: (_travelling(name, old), _travelling(name, new))
        for name, old, new in zip(FIELDS, before, after, strict=True)
        if old != new
    }
    if not changed:
        plan.unchanged += 1
        return
    raw = {"id": part.id, **{name: new for name, (_, new) in changed.items()}}
    plan.update.append(Change(Part(part.id, raw, stored.sequence), changed))


def _travelling(name: str, value: Any) -> Any:
    """None for what is so by default: it is left out, or taken away."""
    return None if value == DEFAULTS.get(name) else value


async def _prune(bus: Bus, plan: Plan, checks: Checks) -> None:
    """Those of the same functions that are not among what is looked at."""
    async for page in bus.pages(bus.names.registry, bus.names.schedules, size=1_000):
        for stored in page:
            schedule = decode(Schedule, stored.payload)
            if (
                schedule.origin == "data"
                and schedule.state != "deleted"
                and schedule.function in checks.functions
                and schedule.id not in checks.ids
            ):
                plan.delete.append(Part(schedule.id, if_revision=stored.sequence))
