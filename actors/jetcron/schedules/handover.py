"""Hand-over from another scheduler: who executes an occurrence, so that neither nor both never happens.

Owns the rule both sides go by. The revision in force at an occurrence's time says who executes it, and the journal of
its run is where it is taken, once. Jetcron leaves what is the other's, and says so in the ledger; the other asks here
when it fires. If its process dies after it took an occurrence, nobody else takes it: with the same `token` it does,
again.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from secrets import token_hex

from jetcron import dispatch, intents
from jetcron.bus import Bus, fenced
from jetcron.clock import from_ms
from jetcron.cycle import make_run, occurrences
from jetcron.errors import ConfigurationError, NotFound, WrongSequence
from jetcron.given import moment
from jetcron.history import about
from jetcron.journal import RunJournal
from jetcron.ledger import kept
from jetcron.options import DAY, MILLISECOND, ZERO, Duration, check_duration
from jetcron.runs import RunHandle
from jetcron.schedules.orders import InForce, Part, Progress, submit
from jetcron.schedules.views import Filter, entry
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import hand_over_rank
from jetcron_protocol.messages import Failure, JournalEntry, Past, Run, Schedule

TAKEN = "HandedOver"
"""The type of the error in the journal of an occurrence that the other scheduler took."""
_WAIT = 120.0
_STORE_SECONDS = 30.0
_UNDECIDED_SECONDS = 0.05
"""How often it is looked whether a revision has been replaced that is about to be; no longer than an intent counts."""
_FOREVER = 1 << 62
_MOST = 1_000


@dataclass(frozen=True, slots=True)
class Fired:
    """An occurrence the other scheduler fired at: `here`, if it is to execute it; else Jetcron does, as `run`.

    Taken twice, it is `here` once: the second time the first one's.
    """

    at: datetime
    here: bool
    run: RunHandle


@dataclass(frozen=True, slots=True)
class _Reign:
    """A definition, in force in (`start`, `end`]; `known` if Jetcron had it then."""

    schedule: Schedule
    start: int
    end: int
    known: bool = True

    @property
    def executes_other(self) -> bool:
        """Whether Jetcron makes no runs: it was told so, was paused, or did not know it yet."""
        return not self.known or self.schedule.state != "active" or self.schedule.executes == "other"


@dataclass(slots=True)
class Shift:
    """What a hand-over comes to: what Jetcron is to execute, and the other; how many are `left` as they are.

    `native` of these never had another scheduler: there is none to give them to.
    """

    to_jetcron: list[Part] = field(default_factory=list)
    to_other: list[Part] = field(default_factory=list)
    left: int = 0
    native: int = 0

    @property
    def size(self) -> int:
        """How many change hands."""
        return len(self.to_jetcron) + len(self.to_other)


class HandOver:
    """What `client.schedules` has for a hand-over."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def fired(
        self, id: str, at: datetime | str | None = None, *, within: Duration = 1, token: str | None = None
    ) -> Fired:
        """Called by the scheduler it is taken over from when it fires: whether it is to execute that occurrence.

        It is the one nearest to `at` (now), at most `within` from it. Where the schedule, as it was in force then, says
        ``executes="other"``, the caller takes it, once: with the same `token`, which a retry has, again. Else Jetcron
        executes it, and its run is stored if it was not. Raises `NotFound` when there is no such schedule, or no
        occurrence; `Unconfirmed` when nobody can tell whether it was taken: ask again with the same token.
        """
        about = self._bus.clock.now() if at is None else moment("at", at)
        span = check_duration("schedules.fired", "within", within, ZERO, DAY)
        return await _settle(self._bus, id, about, within=span // MILLISECOND, token=token)

    async def hand_over(
        self,
        *ids: str,
        percent: float = 100,
        app: str | None = None,
        function: str | None = None,
        tag: str | None = None,
        by: str | None = None,
        wait: float | None = _WAIT,
        progress: Progress | None = None,
    ) -> Sequence[InForce]:
        """Have Jetcron execute `percent` of these schedules, and the scheduler they are taken over from the rest.

        Those named, or those created as data that pass the filters; of them, those that have or had
        ``executes="other"``. Any other stays Jetcron's, whatever the percentage: there is nobody to give it to. Which
        they are follows from their ids: the same at the same percentage, and a higher one only adds. Those that change
        are in force as any update is. Raises `NotFound` when there is no such schedule.
        """
        found = await self.plan_hand_over(*ids, percent=percent, app=app, function=function, tag=tag)
        return await self.apply_hand_over(found, by=by, wait=wait, progress=progress)

    async def plan_hand_over(
        self,
        *ids: str,
        percent: float = 100,
        app: str | None = None,
        function: str | None = None,
        tag: str | None = None,
    ) -> Shift:
        """What `hand_over` would change; nothing is done yet."""
        if not 0 <= percent <= 100:
            raise ConfigurationError(f"schedules.hand_over: percent={percent!r}; allowed are 0 to 100")
        filters = {"app": app, "function": function, "tag": tag}
        given = [f"{name}={value!r}" for name, value in filters.items() if value is not None]
        if not ids and not given:
            raise ConfigurationError(
                "schedules.hand_over: nothing is named; allowed are ids, app, function and tag"
            )
        chosen = [one async for one in _chosen(self._bus, ids, Filter(app, function, None, tag))]
        if not chosen:
            among = "none of these schedules" if ids else "no schedule created as data"
            matching = f" matches {' and '.join(given)}" if given else " is active, paused or ended"
            raise NotFound(f"{among}{matching}; 'jetcron schedules list' shows them")
        return shift(chosen, percent)

    async def apply_hand_over(
        self,
        planned: Shift,
        *,
        by: str | None = None,
        wait: float | None = _WAIT,
        progress: Progress | None = None,
    ) -> Sequence[InForce]:
        """Carry it out. What somebody changed since it was planned is refused."""
        parts = [*planned.to_jetcron, *planned.to_other]
        return await submit(self._bus, "update", parts, by=by, wait=wait, progress=progress)


async def _settle(bus: Bus, id: str, at: int, *, within: int, token: str | None) -> Fired:
    if at > bus.clock.now() + bus.settings.lead_ms:
        # What governs it may still change, and the answer with it.
        raise ConfigurationError(
            f"fired: at={from_ms(at).isoformat()} is to come; allowed are times up to now"
        )
    reign, due = await _nearest(bus, id, at, within)
    run = make_run(reign.schedule, due)
    handle = RunHandle(bus, run.function, run.run)
    if not reign.executes_other:
        await _publish(bus, run)
        return Fired(from_ms(due), False, handle)
    return Fired(from_ms(due), await _take(bus, run, token), handle)


async def _nearest(bus: Bus, id: str, at: int, within: int) -> tuple[_Reign, int]:
    found: list[tuple[int, int, _Reign]] = []
    until = min(at + within, bus.clock.now() + bus.settings.lead_ms)
    for reign in await _reigns(bus, id, until):
        window = occurrences(reign.schedule, max(reign.start, at - within - 1), min(reign.end, until), _MOST)
        found += [(abs(due - at), due, reign) for due in window.newest]
    if not found:
        raise NotFound(
            f"schedule {id!r} has no occurrence within {within / 1_000:g} s of {from_ms(at).isoformat()}; "
            "'jetcron schedules show' lists its times"
        )
    _, due, reign = min(found, key=lambda one: one[:2])
    return reign, due


async def _reigns(bus: Bus, id: str, until: int) -> list[_Reign]:
    """What was in force when, up to `until`, which is no later than a lead from the moment of the call.

    The entry is read first, then the intents, then what was replaced. If nothing says afterwards that it is replaced or
    is about to be, it governs up to then; else for as long as that says, and if this is not long enough, its successor
    is waited for.
    """
    overtaken = None
    while True:
        stored, current = await entry(bus, id)
        replacing = await intents.standing(bus)
        keys = await bus.subjects(bus.names.registry, bus.names.pasts_of(id))
        found = {int(key.rsplit(".", 1)[1]): one for key, one in (await bus.entries(keys)).items()}
        own = found.get(stored.sequence)
        end = None if own is None else decode(Past, own.payload).end
        since = replacing.get((id, stored.sequence))
        if end is not None and stored.sequence != overtaken:
            governs = end
        elif since is not None:
            governs = since + bus.settings.lead_ms  # what was released before the intent is its own
        else:
            governs = until  # where an end is said, the leader, asked again, has no successor: it is wrong
        if governs >= until:
            # Of two that end together the later one never was in force.
            before = [number for number in sorted(found) if number < stored.sequence]
            return list(_in_turn(current, [decode(Past, found[number].payload) for number in before]))
        overtaken = None if end is None else stored.sequence
        await bus.clock.sleep(_UNDECIDED_SECONDS)


def _in_turn(current: Schedule, pasts: Sequence[Past]) -> Iterator[_Reign]:
    first = pasts[0].schedule if pasts else current
    start = min(first.armed_from, current.armed_from)
    yield _Reign(first, -_FOREVER, start, known=False)
    for past in pasts:
        if past.end <= current.armed_from:
            yield _Reign(past.schedule, start, past.end)
            start = max(start, past.end)
    yield _Reign(current, max(start, current.armed_from), _FOREVER)


async def _publish(bus: Bus, run: Run) -> None:
    """Store the run, as cron-tick does: whoever is first, it is one."""
    message = dispatch.new_run(bus.names, run, now=bus.clock.now(), lead=bus.settings.lead_ms)
    if message.is_held:
        message = message.with_headers(fenced(0))
    try:
        await bus.store(message, patience=_STORE_SECONDS)
    except WrongSequence:
        pass  # it is held already


async def _take(bus: Bus, run: Run, token: str | None) -> bool:
    """End the run before it began: whoever does so executes it. Whether that is us."""
    journal = RunJournal(bus, run.function, run.run, patience=_STORE_SECONDS)
    taken = JournalEntry(
        entry="cancelled",
        turn=0,
        at=bus.clock.now(),
        executor=token or "other",
        nonce=token_hex(8),
        about=about(run),
        error=Failure(type=TAKEN, message="the other scheduler executes it"),
    )
    try:
        await journal.finish(taken, keep=await kept(bus, run.function), keep_steps=False)
        return True
    except WrongSequence:
        last = (await journal.read()).last
        if token is None or last is None or last.error is None:
            return False
        return last.error.type == TAKEN and last.executor == token


async def _chosen(bus: Bus, ids: Sequence[str], filter: Filter) -> AsyncIterator[tuple[str, int, Schedule]]:
    """Schedules created as data, with their revisions: those named, or those that pass. Raises `NotFound`."""
    for id in dict.fromkeys(ids):
        stored, schedule = await entry(bus, id)
        if filter.passes(schedule):
            yield id, stored.sequence, schedule
    if ids:
        return
    async for page in bus.pages(bus.names.registry, bus.names.schedules, size=1_000):
        for stored in page:
            schedule = decode(Schedule, stored.payload)
            if schedule.origin == "data" and filter.passes(schedule):
                yield schedule.id, stored.sequence, schedule


def shift(schedules: Sequence[tuple[str, int, Schedule]], percent: float) -> Shift:
    """The updates that make Jetcron execute `percent` of these (id, revision, definition), and the other the rest.

    The same ids at the same percentage, always; a higher one only adds. Left alone is what never was the other's, and
    what has ended: neither executes it.
    """
    found = Shift()
    for id, revision, schedule in schedules:
        native = schedule.executes != "other" and not schedule.from_other
        executes = "jetcron" if hand_over_rank(id) < percent * 100 else "other"
        if native or schedule.state == "ended" or schedule.executes == executes:
            found.native += native
            found.left += 1
        else:
            part = Part(id, {"id": id, "executes": executes}, revision)
            (found.to_jetcron if executes == "jetcron" else found.to_other).append(part)
    return found
