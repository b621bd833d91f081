"""What travels: one frozen dataclass a message.

Times are epoch milliseconds, durations milliseconds, both whole. A field that is None is not sent; a key
nobody knows is ignored on arrival. `VERSION` travels as ``v``: a reader refuses what is newer than itself.
The bounds below are checked on arrival only: whoever decodes a message can build its subjects and its
datetimes without a second look.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field

M = TypeVar("M")

VERSION = 1
MIN_TIME = -62_135_596_800_000
"""Epoch ms of the first moment a datetime can hold, in UTC."""
MAX_TIME = 253_402_300_799_999
"""Epoch ms of the last moment a datetime can hold, in UTC."""

Time = Annotated[int, Field(ge=MIN_TIME, le=MAX_TIME)]
"""Epoch ms."""
Duration = Annotated[int, Field(ge=0, le=MAX_TIME)]
"""Milliseconds."""
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
"""A number, a sequence, a revision."""
Name = Annotated[str, Field(min_length=1, max_length=260)]
"""What a user named; `subjects.escape` makes it a token, short enough for the server's control line."""
FunctionId = Annotated[str, Field(pattern=r"(?s)^[^.]+\..", max_length=260)]
"""``<app>.<function>``."""
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64)]
"""A run's id: part of a subject as it stands."""
Subject = Annotated[
    str, Field(pattern=r"^[^\s\x00-\x20\x7f*>.]+(\.[^\s\x00-\x20\x7f*>.]+)*$", max_length=512)
]
"""Where an answer is published."""

Trigger = Literal["cron", "event", "manual", "invoke"]
CatchUpPolicy = Literal["latest", "all", "skip"]
Overlap = Literal["allow", "skip", "queue", "cancel_running"]
MAX_CATCH_UP = 1000
"""Most occurrences that run after an outage: the newest."""
CatchUpMost = Annotated[int, Field(ge=1, le=MAX_CATCH_UP)]
Dst = Literal["default", "skip", "both"]
Executes = Literal["jetcron", "other"]
"""Who executes a schedule's occurrences: `other` is the scheduler it is taken over from."""
ScheduleState = Literal["active", "paused", "archived", "deleted", "ended"]
FunctionState = Literal["active", "paused", "archived"]
ScheduleCommand = Literal[
    "schedules.create",
    "schedules.update",
    "schedules.pause",
    "schedules.unpause",
    "schedules.archive",
    "schedules.delete",
]
"""Orders about schedules created as data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `at` in the future holds it back until then."""

    kind: ClassVar[str] = "event"
    id: Name
    name: str
    data: Any = None
    ts: Time
    at: Time | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One occurrence of one revision of a schedule is due.

    `entry` is a copy of that revision's registry entry, as the registry had it at `read_at`. It makes no other tick of
    it; it spares whoever turns it a read, see docs/protocol.md.
    """

    kind: ClassVar[str] = "tick"
    schedule: Name
    revision: Count
    at: Time
    entry: bytes | None = field(default=None, compare=False, repr=False)
    read_at: Time | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Execute `function` at `fire_at`. `run` is deterministic; `turn` counts retries and wake-ups.

    `scheduled_at` is the occurrence's own time; `fire_at` adds its jitter, or is that of a retry. Of a run
    another one started, `parent` and `parent_function` say which; `parent_step`, where it waits for the outcome.
    `overlap`, of an occurrence, is what its schedule does when the one before it still goes on; None is ``allow``.
    `quiet`: no event tells of its end, for it descends from one that did of another's.
    """

    kind: ClassVar[str] = "run"
    run: Token
    turn: Count = 0
    function: FunctionId
    trigger: Trigger
    fire_at: Time
    schedule: Name | None = None
    scheduled_at: Time | None = None
    event: Event | None = None
    events: list[Event] | None = None
    payload: Any = None
    overlap: Overlap | None = None
    parent: Token | None = None
    parent_function: FunctionId | None = None
    parent_step: str | None = None
    quiet: bool = False


def data_of(run: Run) -> Any:
    """A run's own data, which its function's second parameter receives: its event's, or its payload."""
    return run.event.data if run.event is not None else run.payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A registry entry: when `function` runs. Its revision is the sequence under which it is stored.

    In force in (`armed_from`, the next revision's `armed_from`]. `origin` says whether code declared it
    (its runs are then named by function and time alone) or it was created as data. `command` is the
    sequence of the sync command that wrote it, `by` who gave it. Of what was missed, `catch_up` runs nothing older
    than `catch_up_within`, and ``all`` no more than the `catch_up_most` newest. `with_function`: its state is its
    function's, with which it becomes active again. `from_other`: a revision before had `executes` ``other``, so that
    scheduler knows it, and a hand-over may give it back.

    With `max_runs`, `end` is the time of the last occurrence it leaves, or `end_given`, its author's own, if that
    is earlier; `counted` are the occurrences before this revision.
    """

    kind: ClassVar[str] = "schedule"
    id: Name
    function: FunctionId
    origin: Literal["code", "data"] = "code"
    cron: str | None = None
    every: Annotated[int, Field(ge=1, le=MAX_TIME)] | None = None
    at: Time | None = None
    timezone: str = "UTC"
    dst: Dst = "default"
    jitter: Duration = 0
    catch_up: CatchUpPolicy = "latest"
    catch_up_within: Duration | None = None
    catch_up_most: CatchUpMost | None = None
    overlap: Overlap = "allow"
    state: ScheduleState = "active"
    with_function: bool = False
    payload: Any = None
    start: Time | None = None
    end: Time | None = None
    max_runs: Count | None = None
    counted: Count = 0
    end_given: Time | None = None
    executes: Executes = "jetcron"
    from_other: bool = False
    tags: list[str] = field(default_factory=list)
    by: str | None = None
    armed_from: Time = 0
    command: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A replaced schedule entry: in force up to and including `end`."""

    kind: ClassVar[str] = "past"
    schedule: Schedule
    end: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """These revisions (by schedule id) are about to be replaced, and nobody knows yet until when they govern.

    Of none, it is over.
    """

    kind: ClassVar[str] = "intent"
    revisions: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CronTrigger:
    """One cron trigger of a function in code."""

    kind: ClassVar[str] = "cron_trigger"
    expression: str
    timezone: str = "UTC"
    dst: Dst = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTrigger:
    """An event that cancels a function's runs: those in whose data the value at each path of `match` (key) equals
    the event's value at the other path (value) it is given with.
    """

    kind: ClassVar[str] = "cancel_trigger"
    event: str
    match: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A registry entry: what an app declares about one of its functions.

    `concurrency` 0 means no limit. `keep` 0 means the streams' defaults. `command` is the sequence of the
    sync command that wrote the entry; `state` is kept across registrations.
    """

    kind: ClassVar[str] = "function"
    id: FunctionId
    cron: list[CronTrigger] = field(default_factory=list)
    on: list[str] = field(default_factory=list)
    concurrency: Count = 0
    jitter: Duration = 0
    catch_up: CatchUpPolicy = "latest"
    catch_up_within: Duration | None = None
    catch_up_most: CatchUpMost | None = None
    overlap: Overlap = "allow"
    attempts: Count = 5
    timeout: Duration | None = None
    deadline: Duration | None = None
    start_timeout: Duration | None = None
    cancel_on: list[CancelTrigger] = field(default_factory=list)
    keep: Duration | None = None
    description: str = ""
    state: FunctionState = "active"
    command: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A hash of definitions that was current until `at`."""

    kind: ClassVar[str] = "replaced"
    hash: str
    at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntry:
    """A registry entry: the hash of an app's current definitions, and the hashes they replaced."""

    kind: ClassVar[str] = "app"
    app: Name
    hash: str
    functions: list[str] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    command: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncCommand:
    """An order to cron-sync.

    `register`: `functions` and their `hash` become the app's. `pause`, `unpause`, `archive`: the function
    ids in `items`. `ended`: the schedules in `items` fired for the last time, each at its revision in
    `if_revisions`, or at `revision`; ignored where another is in force.

    `schedules.create` and `schedules.update`: `schedules`, hundreds of them, each a map with its `id` and keys of
    `Schedule`; of an update those that change, nil for what is taken away. They are maps so that every field at
    fault can be named in the reply. The other `schedules.` commands: the schedule ids in `items`. What is ordered of
    a schedule in `if_revisions` is refused unless that is its revision. `by` says who orders it.
    """

    kind: ClassVar[str] = "sync"
    id: Name
    command: Literal["register", "pause", "unpause", "archive", "ended"] | ScheduleCommand
    app: Name
    functions: list[Function] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    hash: str | None = None
    revision: Count | None = None
    force: bool = False
    reply: Subject | None = None
    schedules: list[Any] = field(default_factory=list)
    if_revisions: dict[str, Count] = field(default_factory=dict)
    by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReply:
    """What became of a command: revisions and next fire times by schedule id, or why it was refused.

    `faults` are the `errors` that are of one schedule, by its id; `stale` has the revisions of those that were to be
    changed at another one.
    """

    kind: ClassVar[str] = "sync_reply"
    id: Name
    revisions: dict[str, Count] = field(default_factory=dict)
    next: dict[str, Time] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    stale: dict[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of the user's code as text: `type` is its class name, `traceback` without our frames."""

    kind: ClassVar[str] = "failure"
    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run's journal says of where the run came from. `cancels` are subjects of waits for what cancels it."""

    kind: ClassVar[str] = "about"
    trigger: Trigger
    fire_at: Time
    schedule: Name | None = None
    scheduled_at: Time | None = None
    overlap: Overlap | None = None
    event: str | None = None
    event_id: str | None = None
    parent: Token | None = None
    parent_function: FunctionId | None = None
    parent_step: str | None = None
    quiet: bool = False
    cancels: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One turn in an executor's hands, in a folded journal; turns with one `number` are one attempt, between
    waits. `started` is when the user's code really began.
    """

    kind: ClassVar[str] = "attempt"
    turn: Count
    number: Count
    executor: str
    claimed: Time
    started: Time | None = None
    ended: Time | None = None
    outcome: Literal["completed", "retrying", "waiting", "failed", "lost", "cancelled"] | None = None
    error: Failure | None = None


Op = Literal["run", "sleep", "wait", "invoke", "send"]
"""What a step does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """A value kept in the object store instead of its message: `size` bytes of msgpack."""

    kind: ClassVar[str] = "object_ref"
    name: str
    size: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A finished step in a folded journal: a `result`, here or as `object`, or the `error` it failed with for good.

    `target` is the event it waited for, or the function it invoked, as the run `child`; `tries` how often it failed
    before, from `first` on, at last with `before`, whose traceback is left out. `wait` is where it had waited.
    """

    kind: ClassVar[str] = "step_result"
    id: str
    op: str
    at: Time
    started: Time | None = None
    result: Any = None
    object: ObjectRef | None = None
    error: Failure | None = None
    target: str | None = None
    child: Token | None = None
    tries: Count = 0
    first: Time | None = None
    before: Failure | None = None
    wait: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStep:
    """A step that has begun and waits, in a folded journal: at the latest until `until`.

    A ``run`` waits to be tried again after `error`, its failure number `tries`; the first try began at `first`. The
    others as in `StepResult`. `wait` is the subject its wake-up comes on.
    """

    kind: ClassVar[str] = "open_step"
    id: str
    op: str
    at: Time
    until: Time
    started: Time | None = None
    tries: Count = 0
    first: Time | None = None
    error: Failure | None = None
    target: str | None = None
    child: Token | None = None
    wait: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One entry of a run's history. `entry` says which fields matter:

    - ``claimed``: `executor`, `nonce`, `message` (sequence of the message it was claimed through),
      `attempt`, `lost` (lost attempts in a row, this claim's takeovers included), `about` at the first
    - ``opened``: a step began to wait, see `OpenStep`: `step`, `op`, `until`, `tries`, `error`, `target`, `child`,
      `wait`
    - ``step``: a step is done, see `StepResult`: `step`, `op`, `result` or `object` or `error`
    - ``waiting``: `started`, `on`, `next_at`: every branch waits, on these steps; the next turn comes then, or when
      one is met. On none: its executor was told to stop, the next turn comes at once
    - ``retrying``: `started`, `error`, `next_at`: this turn ended, the next one fires then. With `attempts` and `steps`
      it replaces the others: a run that had failed begins again
    - ``completed`` ``failed`` ``cancelled``: the last entry, replacing the others: `about`, `attempts`,
      `steps`, `waits` are the folded history; `result` or `object` or `error`

    A folded history too large for a message is the object `folded`: a JournalEntry with those three fields.
    """

    kind: ClassVar[str] = "journal"
    entry: Literal["claimed", "opened", "step", "waiting", "retrying", "completed", "failed", "cancelled"]
    turn: Count
    at: Time
    executor: str
    nonce: str = ""
    message: Count | None = None
    attempt: Count = 0
    lost: Count = 0
    about: About | None = None
    step: str | None = None
    op: str | None = None
    result: Any = None
    object: ObjectRef | None = None
    target: str | None = None
    child: Token | None = None
    until: Time | None = None
    tries: Count = 0
    wait: str | None = None
    started: Time | None = None
    error: Failure | None = None
    next_at: Time | None = None
    on: list[str] | None = None
    attempts: list[Attempt] | None = None
    steps: list[StepResult] | None = None
    waits: list[OpenStep] | None = None
    folded: ObjectRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """What a wait was for has come: an event, or the outcome of a run that was invoked.

    What is too large is the `object`: the result, or the event's data.
    """

    kind: ClassVar[str] = "met"
    at: Time
    event: Event | None = None
    outcome: Literal["completed", "failed", "cancelled"] | None = None
    result: Any = None
    object: ObjectRef | None = None
    error: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A run waits for an event; stored again with `met` when it came. Of an outcome only the latter is stored.

    `purpose` is what the event does: it wakes `step`, or cancels the run. `seen` are ids of events the run had
    before: delivered twice, they must not count again.
    """

    kind: ClassVar[str] = "wait"
    function: FunctionId
    run: Token
    step: str
    purpose: Literal["wake", "cancel"] = "wake"
    seen: list[str] = field(default_factory=list)
    met: Met | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSet:
    """Paths that waits compare; no wait stored so far outlives `until`."""

    kind: ClassVar[str] = "path_set"
    paths: list[str]
    until: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitPaths:
    """Which paths of an event's data are compared by waits for events of this name, by the paths' token."""

    kind: ClassVar[str] = "wait_paths"
    name: str
    sets: dict[str, PathSet] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Somebody ended this run: its executor stops the code. Sent plainly; the journal is what counts."""

    kind: ClassVar[str] = "cancelled"
    run: Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Where the runs of one schedule go one at a time: `run`, the last one that went in, has it until it has ended.

    `message` is the sequence of the message through which that run was claimed last; `queue` are the runs
    that wait for their turn, by when they were due: at the times of their occurrences, which their ids begin
    with, or, with jitter, at those in `due`.
    """

    kind: ClassVar[str] = "lane"
    function: FunctionId
    lane: Name
    run: Token
    message: Count
    queue: list[Token] = field(default_factory=list)
    due: dict[Token, Time] | None = None


Reason = Literal["catch_up", "too_old", "too_many", "unknown_history", "overlap", "handed_over", "archived"]
"""Why an occurrence did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Occurrences in [`start`, `to`] that did not run, and why. Where a run exists too, the run counts.

    ``catch_up``: missed, and the policy runs others or none; ``too_old``, ``too_many``: missed, and outside its
    window or beyond its cap; ``unknown_history``: nobody can tell; ``overlap``: another one went on, see `Lane`;
    ``handed_over``: left to another scheduler; ``archived``: turned when its function was archived already.
    """

    kind: ClassVar[str] = "gap"
    schedule: Name
    start: Time
    to: Time
    count: Count
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorEntry:
    """A liveness key: `clock` is the executor's own time when it wrote it."""

    kind: ClassVar[str] = "executor"
    app: Name
    executor: Name
    host: str
    pid: Count
    slots: Count
    running: Count
    clock: Time
    started: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A registry entry: when a group of shards was last found whole, and where its long reads stand.

    `cursor` is for held runs and events. Of very many schedules without a tick each sweep looks at some: `absent` is
    the last of them, and `rotation_at` what `healthy_at` becomes once all were looked at.
    """

    kind: ClassVar[str] = "sweep"
    group: Count
    healthy_at: Time
    swept_at: Time = 0
    cursor: Count = 0
    absent: str = ""
    rotation_at: Time = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A registry entry: at `at` it was seen that the registry was restored from a backup.

    A tick was found of `revision`, which the registry does not know: no copy of an entry that was read before counts.
    """

    kind: ClassVar[str] = "restored"
    at: Time
    revision: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaks:
    """A registry entry: how often a schedule's cycle broke and was mended, each time within a day of the one before.

    `causes` has the times by cause, `at` is the last one, `message` the sequence of the sweep message it was found by.
    """

    kind: ClassVar[str] = "breaks"
    schedule: Name
    times: Count
    causes: dict[str, Count] = field(default_factory=dict)
    at: Time
    message: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A registry entry: the last canary that came through was due `at`, and `late` when it was executed."""

    kind: ClassVar[str] = "canary"
    at: Time
    late: Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What could not be handled, as it came. `body` holds at most the first 64 KiB of `size` bytes."""

    kind: ClassVar[str] = "dead"
    letter: Literal["event", "tick", "sync", "run", "failed", "health"]
    reason: str
    at: Time
    subject: str
    stream: str
    sequence: Count
    size: Count
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    function: str | None = None
    run: str | None = None


Message = (
    Event
    | Tick
    | Run
    | Schedule
    | Past
    | Intent
    | Function
    | AppEntry
    | SyncCommand
    | SyncReply
    | JournalEntry
    | Wait
    | WaitPaths
    | Cancelled
    | Lane
    | Gap
    | ExecutorEntry
    | Sweep
    | Breaks
    | Canary
    | DeadLetter
)


_writers: dict[type, dict[str, Callable[[object, object], None]]] = {}


def replace(message: M, /, **changes: Any) -> M:
    """A copy of a message with other values in these fields; `TypeError` for one it does not have.

    As `dataclasses.replace`, at less than half its cost: slots are filled as they stand, without `__init__`.
    """
    kind = type(message)
    if kind not in _writers:
        _writers[kind] = {one.name: getattr(kind, one.name).__set__ for one in fields(kind)}  # type: ignore[arg-type]
    writers = _writers[kind]
    made = object.__new__(kind)
    for name, write in writers.items():
        write(made, getattr(message, name))
    try:
        for name, value in changes.items():
            writers[name](made, value)
    except KeyError as error:
        raise TypeError(f"{kind.__name__} has no field {error}") from None
    return made
