"""Orders about schedules created as data: create, update, pause, unpause, archive, delete; hundreds in a command.

Owns the rule that such a command is applied whole or refused whole, with every fault of every schedule in it. If the
process dies in one, it comes again: what it wrote bears its sequence and is not judged a second time.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from jetcron.bus import MAX_BATCH, Delivery
from jetcron.definitions import MAX_BY, unfit
from jetcron.errors import WrongSequence, fault_lines
from jetcron.fields import check
from jetcron.registry import Applied, Held, Registry
from jetcron.revisions import Move, beside, created, moved, updated
from jetcron_protocol.messages import Function, Schedule, SyncCommand, replace
from jetcron_protocol.subjects import InvalidName, check_id, split_function


class Refused(Exception):
    """A command that cannot be applied; the reasons reach the caller and the dead stream.

    `faults` are those of one schedule, by its id; `stale` has the revisions of schedules that had moved on.
    """

    def __init__(
        self,
        *reasons: str,
        faults: dict[str, list[str]] | None = None,
        stale: dict[str, int] | None = None,
    ) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)
        self.faults = faults or {}
        self.stale = stale or {}


@dataclass(slots=True)
class Judged:
    """What a command comes to: the schedules to write, or what is wrong with each."""

    wanted: list[Schedule] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    stale: dict[str, int] = field(default_factory=dict)

    def fault(self, id: str, *texts: str) -> None:
        if texts:
            self.faults.setdefault(id, []).extend(texts)

    def raise_faults(self) -> None:
        """`Refused`, if there is a fault."""
        if self.faults:
            raise Refused(*fault_lines(self.faults), faults=self.faults, stale=self.stale)


class Orders:
    """Carries these commands out in the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def apply(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        """Apply one command; raises `Refused`."""
        if command.by is not None and not (0 < len(command.by) <= MAX_BY and command.by.isprintable()):
            raise Refused(f"by={command.by[:80]!r}; allowed are 1 to {MAX_BY} printable characters")
        order = command.command.removeprefix("schedules.")
        match order:
            case "create":
                await self._create(command, delivery, applied)
            case "update":
                await self._update(command, delivery, applied)
            case _:
                await self._move(command, cast(Move, order), delivery, applied)

    async def _create(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        judged = Judged()
        for number, raw in enumerate(command.schedules, 1):
            found = check(raw, now=delivery.stored_at)
            judged.fault(found.name or f"#{number}", *found.faults)
            if found.schedule is not None:
                judged.wanted.append(replace(found.schedule, by=command.by))
        _once(judged, _ids(command.schedules))
        functions = await self._functions(judged, _uses(command.schedules))
        judged.raise_faults()
        judged.wanted = self._beside(judged.wanted, functions, applied)
        if len(judged.wanted) <= MAX_BATCH and not command.if_revisions:
            # As a rule they are new. If one is not, none is written, and we look.
            try:
                absent: dict[str, Held[Schedule]] = {one.id: Held() for one in judged.wanted}
                await self._registry.put_schedules(judged.wanted, delivery, applied, held=absent)
                return
            except WrongSequence:
                pass
        held = await self._registry.schedules([one.id for one in judged.wanted])
        for schedule in judged.wanted:
            found_ = held[schedule.id]
            if _open(found_, delivery.sequence):
                self._fence(judged, command, schedule.id, found_)
                fault = created(schedule, found_.value)
                judged.fault(schedule.id, *([fault] if fault else []))
        judged.raise_faults()
        # What stands paused, say, stays so: to create the same once more changes nothing.
        standing = {
            id: one.value
            for id, one in held.items()
            if one.value is not None and one.value.state != "deleted"
        }
        wanted = [standing.get(one.id, one) for one in judged.wanted]
        await self._registry.put_schedules(wanted, delivery, applied, held=held)

    async def _update(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        judged = Judged()
        changes = _ids(command.schedules)
        for number, raw in enumerate(command.schedules, 1):
            if not isinstance(raw, Mapping):
                judged.fault(f"#{number}", f"an update is a map, not {type(raw).__name__}")
        _once(judged, changes)
        held = await self._known(judged, changes)
        open_: list[Schedule] = []
        uses: list[_Use] = []
        for raw in command.schedules:
            id = raw.get("id") if isinstance(raw, Mapping) else None
            if not isinstance(id, str) or id not in held:
                continue
            if not _open(held[id], delivery.sequence):
                judged.wanted.append(_standing(held[id]))
                continue
            self._fence(judged, command, id, held[id])
            found = updated(id, raw, held[id].value, now=delivery.stored_at)
            judged.fault(id, *found.faults)
            if found.schedule is not None:
                open_.append(replace(found.schedule, by=command.by))
                if raw.get("function") is not None or found.schedule.state == "active":
                    uses.append(_Use(id, found.schedule.function, found.schedule.overlap))
            elif held[id].value is not None:
                uses += _uses([raw])
        functions = await self._functions(judged, uses)
        judged.raise_faults()
        judged.wanted += self._beside(open_, functions, applied)
        await self._registry.put_schedules(judged.wanted, delivery, applied, held=held)

    async def _move(self, command: SyncCommand, move: Move, delivery: Delivery, applied: Applied) -> None:
        judged = Judged()
        held = await self._known(judged, list(dict.fromkeys(command.items)))
        functions: dict[str, Function] = {}
        if move == "unpause":
            standing = [one.value for one in held.values() if _open(one, delivery.sequence) and one.value]
            functions = await self._functions(judged, [_Use(one.id, one.function) for one in standing])
        open_: list[Schedule] = []
        for id, found in held.items():
            if not _open(found, delivery.sequence):
                judged.wanted.append(_standing(found))
                continue
            self._fence(judged, command, id, found)
            made = moved(id, move, found.value)
            if isinstance(made, str):
                judged.fault(id, made)
            else:
                open_.append(replace(made, by=command.by))
        judged.raise_faults()
        judged.wanted += self._beside(open_, functions, applied)
        await self._registry.put_schedules(judged.wanted, delivery, applied, held=held)

    async def _known(self, judged: Judged, ids: Iterable[str]) -> dict[str, Held[Schedule]]:
        """What the registry holds of those that can be ids at all."""
        sound = []
        for id in ids:
            try:
                sound.append(check_id("its id", id))
            except InvalidName as error:
                judged.fault(id, str(error))
        return await self._registry.schedules(sound)

    async def _functions(self, judged: Judged, uses: Iterable["_Use"]) -> dict[str, Function]:
        """The functions they run; a fault for each use of one that is not registered, or cannot be used so."""
        users: dict[str, list[_Use]] = {}
        for use in uses:
            users.setdefault(use.function, []).append(use)
        found: dict[str, Function] = {}
        for id, held in (await self._registry.functions(users)).items():
            if held.value is not None:
                found[id] = held.value
            for use in users[id]:
                judged.fault(use.schedule, *unfit(id, held.value, use.overlap))
        return found

    def _beside(
        self, schedules: Sequence[Schedule], functions: Mapping[str, Function], applied: Applied
    ) -> list[Schedule]:
        """These schedules, paused where their function is, and a word of it."""
        written: list[Schedule] = []
        waiting: Counter[str] = Counter()
        for schedule in schedules:
            function = functions.get(schedule.function)
            made = schedule if function is None else beside(schedule, function.state)
            written.append(made)
            waiting[schedule.function] += made is not schedule
        applied.warnings += [
            f"{function} is paused: {count} of its schedules ordered here are paused with it, and go on when it does"
            for function, count in waiting.items()
            if count
        ]
        return written

    def _fence(self, judged: Judged, command: SyncCommand, id: str, held: Held[Schedule]) -> None:
        wanted = command.if_revisions.get(id)
        exists = held.value is not None and held.value.state != "deleted"
        if wanted is not None and exists and held.sequence != wanted:
            judged.stale[id] = held.sequence
            judged.fault(id, f"if_revision={wanted}, and its revision is {held.sequence}; read it again")


@dataclass(frozen=True, slots=True)
class _Use:
    """A schedule, as far as it has an id, and the function that it is to run."""

    schedule: str
    function: str
    overlap: object = None


def _uses(schedules: Sequence[Any]) -> list[_Use]:
    uses = []
    for number, raw in enumerate(schedules, 1):
        if isinstance(raw, Mapping) and _is_function(raw.get("function")):
            id = raw.get("id")
            name = id if isinstance(id, str) and id else f"#{number}"
            uses.append(_Use(name, raw["function"], raw.get("overlap")))
    return uses


def _is_function(function: object) -> bool:
    if not isinstance(function, str):
        return False
    try:
        split_function(function)
    except InvalidName:
        return False
    return True


def _ids(schedules: Sequence[Any]) -> list[str]:
    named = [raw.get("id") for raw in schedules if isinstance(raw, Mapping)]
    return [id for id in named if isinstance(id, str)]


def _once(judged: Judged, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            judged.fault(id, "it is in the command twice; allowed is once")
        seen.add(id)


def _open(held: Held[Schedule], sequence: int) -> bool:
    """Whether it is still to be judged: not what this command, or a newer one, wrote."""
    return held.value is None or held.value.command < sequence


def _standing(held: Held[Schedule]) -> Schedule:
    assert held.value is not None
    return held.value
