"""What it takes for schedules to stand as a file says: the difference between two sets of definitions.

Owns the comparison. It reads and decides; what is planned is ordered by `Schedules.apply`, fenced by the revisions that
were read here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jetcron.bus import Bus, StoredMessage
from jetcron.definitions import DEFAULTS, FIELDS, authored
from jetcron.errors import ScheduleRefused
from jetcron.schedules.orders import Part
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Schedule


@dataclass(frozen=True, slots=True)
class Change:
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


async def make_plan(bus: Bus, parts: Sequence[Part], *, prune: bool) -> Plan:
    """Compare definitions with what the registry holds; raises `ScheduleRefused` for what can neither be nor change."""
    plan = Plan()
    faults: dict[str, list[str]] = {}
    entries = await bus.entries([bus.names.schedule_key(part.id) for part in parts])
    for part in parts:
        stored = entries.get(bus.names.schedule_key(part.id))
        standing = decode(Schedule, stored.payload) if stored is not None else None
        if stored is None or standing is None or standing.state == "deleted":
            plan.create.append(part)
            continue
        if standing.origin == "code":
            faults[part.id] = ["its id is that of a cron trigger in code; allowed is another id"]
            continue
        if standing.state == "archived":
            faults[part.id] = ["it is archived; allowed is to unpause it, or to delete it first"]
            continue
        _compare(plan, part, standing, stored)
    if faults:
        raise ScheduleRefused(faults)
    if prune:
        await _prune(bus, plan, parts)
    return plan


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


async def _prune(bus: Bus, plan: Plan, parts: Sequence[Part]) -> None:
    """Those of the same functions that are not among `parts`."""
    ids = {part.id for part in parts}
    functions = {_function(part.raw) for part in parts}
    async for page in bus.pages(bus.names.registry, bus.names.schedules, size=1_000):
        for stored in page:
            schedule = decode(Schedule, stored.payload)
            if (
                schedule.origin == "data"
                and schedule.state != "deleted"
                and schedule.function in functions
                and schedule.id not in ids
            ):
                plan.delete.append(Part(schedule.id, if_revision=stored.sequence))


def _function(raw: Mapping[str, Any] | None) -> Any:
    return raw.get("function") if raw is not None else None
