"""The runs of a schedule, whatever started them: its time, `trigger`, `backfill`.

Owns nothing. A journal says of which schedule its run is, its name does not: the runs of the schedule's functions are
looked at, the newest first, until enough are found, and no more than `LOOKED_AT`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jetcron.bus import Bus, StoredMessage
from jetcron.history import fold, status_of
from jetcron.journal import read_history
from jetcron.many import each
from jetcron.runs import RunView, view
from jetcron.schedules.views import last_entry
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import JournalEntry, Past

LOOKED_AT = 100_000
"""Journals looked at for one answer: their last entries, and the whole of those whose run has not ended."""
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class RunsOf:
    """Runs of a schedule, the newest first. `looked_at` journals were read of `journals` that its functions have."""

    runs: list[RunView]
    looked_at: int
    journals: int


async def runs_of(
    bus: Bus, id: str, *, function: str | None = None, statuses: Collection[str] | None = None, limit: int
) -> RunsOf:
    """Runs of this schedule, of one function or of all it had, those that stand so; raises `NotFound`."""
    functions = await _functions(bus, id) if function is None else {function}
    names = [
        name for one in functions for name in await bus.subjects(bus.names.journal, bus.names.journal_of(one))
    ]
    runs = [name for name in names if not _last(name).startswith("gap-")]
    runs.sort(key=_last, reverse=True)
    found: dict[str, RunView] = {}
    looked_at = 0
    while looked_at < min(len(runs), LOOKED_AT) and len(found) < limit:
        page = runs[looked_at : min(looked_at + _PAGE, LOOKED_AT)]
        found |= await _of(bus, id, page, statuses)
        looked_at += len(page)
    return RunsOf(list(found.values())[:limit], looked_at, len(runs))


async def _functions(bus: Bus, id: str) -> set[str]:
    """The functions it runs, and ran."""
    _, schedule = await last_entry(bus, id)
    keys = await bus.subjects(bus.names.registry, bus.names.pasts_of(id))
    pasts = (await bus.entries(keys)).values()
    return {schedule.function, *(decode(Past, stored.payload).schedule.function for stored in pasts)}


async def _of(bus: Bus, id: str, page: Sequence[str], statuses: Collection[str] | None) -> dict[str, RunView]:
    """Those of these journals that are of this schedule and stand so, in their order."""
    stored = await bus.multi_last_all(bus.names.journal, page)
    found: dict[str, RunView] = {}

    async def look(name: str) -> None:
        run = await _read(bus, name, stored[name], statuses)
        if run is not None and run.history.about is not None and run.history.about.schedule == id:
            found[name] = run

    await each(look, [name for name in page if name in stored])
    return {name: found[name] for name in page if name in found}


async def _read(
    bus: Bus, name: str, stored: StoredMessage, statuses: Collection[str] | None
) -> RunView | None:
    """The run of a journal, if it stands so. As a rule the last entry of one that has ended holds all before it."""
    last = decode(JournalEntry, stored.payload)
    if statuses is not None and status_of(last) not in statuses:
        return None
    history = fold([(stored.sequence, last)])
    if not history.finished or last.folded is not None:
        history = await read_history(bus, name)
        if history.last is None:
            return None  # forgotten meanwhile
    return view(*bus.names.parse_journal(name), history)


def _last(name: str) -> str:
    return name.rsplit(".", 1)[1]
