"""Protocol messages as what is published: subject, headers and body of each, in one place.

Owns which header and which message id goes with which message. Nothing is published here.
"""

from collections.abc import Sequence

from jetcron.bus import TTL, Delivery, Outgoing, fenced, hold, purging, with_id
from jetcron_protocol.codec import EVENT_HEADER, encode, encode_past
from jetcron_protocol.ids import digest, gap_token, overlap_token, ulid
from jetcron_protocol.messages import DeadLetter, Event, Gap, Intent, Run, SyncCommand, Tick, replace
from jetcron_protocol.subjects import Names, TickName

MAX_BODY = 64 * 1024
"""How much a dead letter carries of a body nobody can read, in bytes."""
MAX_HEADERS = 16 * 1024
"""How much of its headers, in bytes."""
SYSTEM_EVENTS = "jetcron."
"""Events whose names begin so are Jetcron's own; a run started by one emits none."""
SCHEDULES = "schedules"
"""In place of the app in commands about schedules created as data, which may be of many apps."""
FUNCTION_FAILED = "jetcron.function.failed"
FUNCTION_FINISHED = "jetcron.function.finished"


def held_tick(names: Names, tick: Tick, lead: int, *, instead_of: TickName | None = None) -> Outgoing:
    """A tick the server releases `lead` ms before its time; a held one that it takes the place of goes in that step."""
    headers = None
    if instead_of is not None:
        headers = purging(names.tick_held(instead_of.schedule, instead_of.revision, instead_of.at))
    return hold(
        names.tick_held(tick.schedule, tick.revision, tick.at),
        names.tick_due(tick.schedule, tick.revision, tick.at),
        tick.at - lead,
        encode(tick),
        headers,
    )


def is_quiet(run: Run) -> bool:
    """Whether a run descends from one of Jetcron's own events: events that told of its end might go on for ever."""
    return run.quiet or (run.event is not None and run.event.name.startswith(SYSTEM_EVENTS))


def new_run(names: Names, run: Run, *, now: int, lead: int) -> Outgoing:
    """A run at turn 0: ready if it is due within `lead` ms, else held until then. Carries its id."""
    if run.fire_at - now > lead:
        return hold(
            names.run_later(run.function, run.run, run.turn),
            names.run_ready(run.function),
            run.fire_at - lead,
            encode(run),
            with_id(run.run),
        )
    return Outgoing(names.run_ready(run.function), encode(run), with_id(run.run))


def next_turn(names: Names, run: Run, *, turn: int, fire_at: int, lead: int) -> Outgoing:
    """The same run, one turn later, held until `fire_at` (released `lead` ms before)."""
    following = replace(run, turn=turn, fire_at=fire_at)
    return hold(
        names.run_later(run.function, run.run, turn),
        names.run_ready(run.function),
        fire_at - lead,
        encode(following),
    )


def woken(names: Names, run: Run, *, turn: int, now: int) -> Outgoing:
    """The next turn of a waiting run, now; what was held for its time goes in the same step (server ADR-51)."""
    return Outgoing(
        names.run_ready(run.function),
        encode(replace(run, turn=turn, fire_at=now)),
        purging(names.run_later(run.function, run.run, turn)),
    )


def event_id(event: Event) -> dict[str, str]:
    """The headers of one of our own events: its kind and its message id."""
    return {EVENT_HEADER: "1", **with_id(f"{event.name}:{event.id}")}


def event(names: Names, event_: Event) -> Outgoing:
    """An event as the SDK publishes it."""
    return Outgoing(names.event(event_.name), encode(event_), event_id(event_))


def held_event(names: Names, event_: Event, lead: int, *, named: bool) -> Outgoing:
    """A future event the server releases `lead` ms before its time. `named`: its sender gave its id."""
    at = event_.at if event_.at is not None else event_.ts
    return hold(
        names.later_held(event_.name, event_.id),
        names.later_due(event_.name),
        at - lead,
        encode(event_),
        {EVENT_HEADER: "1"} if named else None,
    )


def past(names: Names, schedule: str, revision: int, entry: bytes, end: int, *, keep: int) -> Outgoing:
    """A revision that is replaced, as it is stored, with its `end`; kept `keep` seconds.

    Who replaces it is told by the fence of the entry.
    """
    return Outgoing(names.past_key(schedule, revision), encode_past(entry, end), {TTL: f"{keep}s"})


def intent(key: str, intent_: Intent, *, keep: int, expected: int) -> Outgoing:
    """What is about to be replaced, kept `keep` seconds, in place of the sequence `expected` under its key."""
    return Outgoing(key, encode(intent_), {TTL: f"{keep}s", **fenced(expected)})


def command(names: Names, command_: SyncCommand) -> Outgoing:
    """An order to cron-sync."""
    return Outgoing(names.sync(command_.app), encode(command_))


def ended(app: str, ticks: Sequence[Tick]) -> SyncCommand:
    """Tells cron-sync that these revisions fired for the last time; the same for the same ticks."""
    parts = [part for tick in ticks for part in (tick.schedule, tick.revision)]
    return SyncCommand(
        id=ulid(ticks[0].at, digest("ended", *parts)),
        command="ended",
        app=app,
        items=[tick.schedule for tick in ticks],
        revision=ticks[0].revision if len(ticks) == 1 else None,
        if_revisions={tick.schedule: tick.revision for tick in ticks},
    )


def gap(names: Names, gap_: Gap, function: str, keep: int) -> Outgoing:
    """A gap's journal entry: the same subject for the same start, kept `keep` seconds."""
    subject = names.journal_of(function, gap_token(gap_.schedule, gap_.start))
    return Outgoing(subject, encode(gap_), {TTL: f"{keep}s"})


def left_out(names: Names, run: Run, keep: int) -> Outgoing:
    """The gap of an occurrence that another one left no room: on a subject of its own, by which it is known.

    `run` has a schedule and a time.
    """
    assert run.schedule is not None
    assert run.scheduled_at is not None
    gap_ = Gap(schedule=run.schedule, start=run.scheduled_at, to=run.scheduled_at, count=1, reason="overlap")
    subject = names.journal_of(run.function, overlap_token(run.run))
    return Outgoing(subject, encode(gap_), {TTL: f"{keep}s", **fenced(0)})


def undecodable(names: Names, delivery: Delivery, letter: str, reason: str, now: int) -> Outgoing:
    """A dead letter for a message nobody can read: its raw bytes survive, up to `MAX_BODY`."""
    return Outgoing(
        names.dead_letter(letter, delivery.stream, str(delivery.sequence)),
        encode(
            DeadLetter(
                letter=letter,  # type: ignore[arg-type]
                reason=storable(reason),
                at=now,
                subject=storable(delivery.subject),
                stream=delivery.stream,
                sequence=delivery.sequence,
                size=len(delivery.payload),
                body=delivery.payload[:MAX_BODY],
                headers=_short(delivery.headers),
            )
        ),
    )


def _short(headers: dict[str, str]) -> dict[str, str]:
    """The headers that fit in `MAX_HEADERS` bytes, in order."""
    kept, size = {}, 0
    for name, value in headers.items():
        size += len(name) + len(value)
        if size > MAX_HEADERS:
            break
        kept[storable(name)] = storable(value)
    return kept


def storable(text: str) -> str:
    """Text without lone surrogates, which a subject or a file name may have and UTF-8 does not."""
    return text.encode("utf-8", "backslashreplace").decode()


def failed_run(names: Names, run: Run, delivery: Delivery, reason: str, now: int, *, most: int) -> Outgoing:
    """A dead letter for a run that failed for good: one subject a run, so that repeating replaces it.

    It carries the run's message, from which the run can be started again, up to `most` bytes.
    """
    return Outgoing(
        names.dead_letter("failed", *run.function.split(".", 1), run.run),
        encode(
            DeadLetter(
                letter="failed",
                reason=reason,
                at=now,
                subject=delivery.subject,
                stream=delivery.stream,
                sequence=delivery.sequence,
                size=len(delivery.payload),
                body=delivery.payload[:most],
                function=run.function,
                run=run.run,
            )
        ),
    )
