"""What travels: one frozen dataclass a message.

Times are epoch milliseconds, durations milliseconds, both whole. A field that is None is not sent; a key
nobody knows is ignored on arrival. `VERSION` travels as ``v``: a reader refuses what is newer than itself.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

VERSION = 1

Trigger = Literal["cron", "event", "manual", "invoke"]
CatchUp = Literal["latest", "all", "skip"]
Dst = Literal["default", "skip", "both"]
ScheduleState = Literal["active", "paused", "archived", "deleted", "ended"]
FunctionState = Literal["active", "paused", "archived"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `at` in the future holds it back until then."""

    kind: ClassVar[str] = "event"
    id: str
    name: str
    data: Any = None
    ts: int
    at: int | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One occurrence of one revision of a schedule is due."""

    kind: ClassVar[str] = "tick"
    schedule: str
    revision: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Execute `function` at `fire_at`. `run` is deterministic; `turn` counts retries and wake-ups.

    `scheduled_at` is the occurrence's own time; `fire_at` adds its jitter, or is that of a retry.
    """

    kind: ClassVar[str] = "run"
    run: str
    turn: int = 0
    function: str
    trigger: Trigger
    fire_at: int
    schedule: str | None = None
    scheduled_at: int | None = None
    event: Event | None = None
    events: list[Event] | None = None
    payload: Any = None
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A registry entry: when `function` runs. Its revision is the sequence under which it is stored.

    In force in (`armed_from`, the next revision's `armed_from`]. `origin` says whether code declared it
    (its runs are then named by function and time alone) or it was created as data. `command` is the
    sequence of the sync command that wrote it.
    """

    kind: ClassVar[str] = "schedule"
    id: str
    function: str
    origin: Literal["code", "data"] = "code"
    cron: str | None = None
    every: int | None = None
    at: int | None = None
    timezone: str = "UTC"
    dst: Dst = "default"
    jitter: int = 0
    catch_up: CatchUp = "latest"
    overlap: Literal["allow"] = "allow"
    state: ScheduleState = "active"
    payload: Any = None
    start: int | None = None
    end: int | None = None
    armed_from: int = 0
    command: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A replaced schedule entry: in force up to and including `end`."""

    kind: ClassVar[str] = "past"
    schedule: Schedule
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CronTrigger:
    """One cron trigger of a function in code."""

    kind: ClassVar[str] = "cron_trigger"
    expression: str
    timezone: str = "UTC"
    dst: Dst = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A registry entry: what an app declares about one of its functions.

    `concurrency` 0 means no limit. `keep` 0 means the streams' defaults. `command` is the sequence of the
    sync command that wrote the entry; `state` is kept across registrations.
    """

    kind: ClassVar[str] = "function"
    id: str
    cron: list[CronTrigger] = field(default_factory=list)
    on: list[str] = field(default_factory=list)
    concurrency: int = 0
    jitter: int = 0
    catch_up: CatchUp = "latest"
    attempts: int = 5
    timeout: int | None = None
    keep: int | None = None
    description: str = ""
    state: FunctionState = "active"
    command: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A hash of definitions that was current until `at`."""

    kind: ClassVar[str] = "replaced"
    hash: str
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntry:
    """A registry entry: the hash of an app's current definitions, and the hashes they replaced."""

    kind: ClassVar[str] = "app"
    app: str
    hash: str
    functions: list[str] = field(default_factory=list)
    replaced: list[Replaced] = field(default_factory=list)
    command: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncCommand:
    """An order to cron-sync.

    `register`: `functions` and their `hash` become the app's. `pause`, `unpause`, `archive`: the function
    ids in `items`. `ended`: schedule `items[0]` at `revision` fired for the last time.
    """

    kind: ClassVar[str] = "sync"
    id: str
    command: Literal["register", "pause", "unpause", "archive", "ended"]
    app: str
    functions: list[Function] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    hash: str | None = None
    revision: int | None = None
    force: bool = False
    reply: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReply:
    """What became of a command: revisions and next fire times by schedule id, or why it was refused."""

    kind: ClassVar[str] = "sync_reply"
    id: str
    revisions: dict[str, int] = field(default_factory=dict)
    next: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of the user's code as text: `type` is its class name, `traceback` without our frames."""

    kind: ClassVar[str] = "failure"
    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a run's journal says of where the run came from."""

    kind: ClassVar[str] = "about"
    trigger: Trigger
    fire_at: int
    schedule: str | None = None
    scheduled_at: int | None = None
    event: str | None = None
    event_id: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt in a folded journal. `started` is when the user's code really began."""

    kind: ClassVar[str] = "attempt"
    turn: int
    number: int
    executor: str
    claimed: int
    started: int | None = None
    ended: int | None = None
    outcome: Literal["completed", "retrying", "failed", "lost", "cancelled"] | None = None
    error: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A finished step in a folded journal."""

    kind: ClassVar[str] = "step_result"
    id: str
    op: str
    at: int
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One entry of a run's history. `entry` says which fields matter:

    - ``claimed``: `executor`, `nonce`, `message` (sequence of the message it was claimed through),
      `attempt`, `lost` (lost attempts in a row, this claim's takeovers included), `about` at the first
    - ``step``: `step`, `op`, `result`
    - ``retrying``: `started`, `error`, `next_at`: this turn ended, the next one fires then
    - ``completed`` ``failed`` ``cancelled``: the last entry, replacing the others: `about`, `attempts`,
      `steps` are the folded history; `result` or `error`
    """

    kind: ClassVar[str] = "journal"
    entry: Literal["claimed", "step", "retrying", "completed", "failed", "cancelled"]
    turn: int
    at: int
    executor: str
    nonce: str = ""
    message: int | None = None
    attempt: int = 0
    lost: int = 0
    about: About | None = None
    step: str | None = None
    op: str | None = None
    result: Any = None
    started: int | None = None
    error: Failure | None = None
    next_at: int | None = None
    attempts: list[Attempt] | None = None
    steps: list[StepResult] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Occurrences in [`start`, `to`] that did not run, and why. Where a run exists too, the run counts."""

    kind: ClassVar[str] = "gap"
    schedule: str
    start: int
    to: int
    count: int
    reason: Literal["catch_up", "too_many", "unknown_history"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorEntry:
    """A liveness key: `clock` is the executor's own time when it wrote it."""

    kind: ClassVar[str] = "executor"
    app: str
    executor: str
    host: str
    pid: int
    slots: int
    running: int
    clock: int
    started: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A registry entry: when a group of shards was last found whole, and where its long reads stand."""

    kind: ClassVar[str] = "sweep"
    group: int
    healthy_at: int
    cursor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What could not be handled, as it came. `body` holds at most the first 64 KiB of `size` bytes."""

    kind: ClassVar[str] = "dead"
    letter: Literal["event", "tick", "sync", "run", "failed", "health"]
    reason: str
    at: int
    subject: str
    stream: str
    sequence: int
    size: int
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
    | Function
    | AppEntry
    | SyncCommand
    | SyncReply
    | JournalEntry
    | Gap
    | ExecutorEntry
    | Sweep
    | DeadLetter
)
