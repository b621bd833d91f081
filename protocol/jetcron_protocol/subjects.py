"""Every subject, stream, bucket and durable name, spelled once.

Owns the mapping between what users name (apps, functions, schedules, events) and NATS tokens. Never
decides when something is published. A name that NATS could not carry is refused here, where it is written.
"""

import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jetcron_protocol.ids import digest, shard

MAX_DURABLE = 255
"""Longest durable consumer name, in characters: the server keeps one folder a consumer."""
MAX_EVENT_NAME = 200
"""Longest event name, in characters."""
MAX_ID = 200
"""Longest id a user may choose, in characters."""

_TOKEN_LIMIT = 255
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_NAMESPACE = re.compile(r"[a-z0-9_-]{1,64}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,18}")  # up to 2**63
_TIME = re.compile(r"0|-?[1-9][0-9]{0,17}")
_SHARD = re.compile(r"[0-9a-f]{2}")
_ESCAPED = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_EVENT_TOKEN = re.compile(r"[^\s*>.\x00-\x20\x7f]+")
_KEEP = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class InvalidName(ValueError):
    """A name that cannot be used; the message says which, why, and what is allowed."""


def escape(text: str) -> str:
    """One subject token for any non-empty string: bytes outside ``[A-Za-z0-9_-]`` become ``=XX``.

    Reversible with `unescape`; two different strings never give the same token.
    """
    if not text:
        raise InvalidName("a name is empty; give at least one character")
    if _PLAIN.fullmatch(text):
        return text
    raw = text.encode("utf-8", "surrogatepass")
    return "".join(chr(byte) if byte in _KEEP else f"={byte:02X}" for byte in raw)


def unescape(token: str) -> str:
    """The string `escape` made this token from; raises `InvalidName` for anything else."""
    if not _ESCAPED.fullmatch(token):
        raise InvalidName(f"{token!r} is not an escaped name: allowed are A-Z a-z 0-9 _ - and =XX")
    if "=" not in token:
        return token
    raw = re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), token.encode())
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise InvalidName(f"{token!r} is not an escaped name: {error}") from None
    if escape(text) != token:
        raise InvalidName(f"{token!r} is not how a name is escaped: it would be {escape(text)!r}")
    return text


def _bounded(text: str) -> str:
    """One token for any string, the empty one too, for subjects nobody parses: a long one is digested.

    A server closes the connection of whoever sends a subject beyond its control line (4 KiB). ``==`` stands
    in no escaped token, so the two forms cannot meet.
    """
    token = escape(text) if text else "=="
    return token if len(token) <= _TOKEN_LIMIT else f"=={digest(text, size=16).hex()}"


def _step(step: str) -> str:
    """A step's token: short, for a million waits are a million subjects."""
    return digest("step", step, size=8).hex()


def check_id(kind: str, text: str) -> str:
    """`text` if it can name an app, function or schedule; else `InvalidName` saying why."""
    if not isinstance(text, str):
        raise InvalidName(f"{kind} must be a string, not {type(text).__name__}")
    if not text:
        raise InvalidName(f"{kind} is empty; give at least one character")
    if len(text) > MAX_ID:
        raise InvalidName(f"{kind} {text[:40]!r}… has {len(text)} characters; at most {MAX_ID} are allowed")
    if not text.isprintable():
        raise InvalidName(f"{kind} {text!r} has characters that do not print; leave them out")
    return text


def check_app(name: str) -> str:
    """An app's name: as any id, without a dot, for the dot ends it in ``app.function``."""
    check_id("the app name", name)
    if "." in name:
        raise InvalidName(f"the app name {name!r} has a dot; a dot ends the app in 'app.function'")
    return name


def check_event_name(name: str, *, pattern: bool = False) -> str:
    """An event's name: dot-separated tokens of printable characters but space, ``*`` and ``>``.

    With `pattern`, a token may be ``*`` (any one token) and the last one ``>`` (one or more tokens).
    """
    if not isinstance(name, str):
        raise InvalidName(f"an event name must be a string, not {type(name).__name__}")
    if not name:
        raise InvalidName("an event name is empty; give something like 'order.created'")
    if len(name) > MAX_EVENT_NAME:
        raise InvalidName(
            f"the event name {name[:40]!r}… has {len(name)} characters; at most {MAX_EVENT_NAME} are allowed"
        )
    tokens = name.split(".")
    for index, token in enumerate(tokens):
        if pattern and (token == "*" or (token == ">" and index == len(tokens) - 1)):
            continue
        if not token:
            raise InvalidName(f"the event name {name!r} has an empty part; write it like 'order.created'")
        if not token.isprintable() or not _EVENT_TOKEN.fullmatch(token):
            allowed = "'*' and a last '>' stand alone as wildcards" if pattern else "no wildcards here"
            raise InvalidName(
                f"the event name {name!r} has {token!r}; allowed are printable characters "
                f"but space, '*' and '>' ({allowed})"
            )
    return name


def pattern_matches(pattern: str, name: str) -> bool:
    """Whether an event's name fits a pattern: ``*`` is one token, a last ``>`` one or more."""
    parts, tokens = pattern.split("."), name.split(".")
    for index, part in enumerate(parts):
        if part == ">" and index == len(parts) - 1:
            return len(tokens) > index
        if index >= len(tokens) or part not in ("*", tokens[index]):
            return False
    return len(parts) == len(tokens)


def function_id(app: str, name: str) -> str:
    """``<app>.<name>``: how a function is known everywhere."""
    return f"{app}.{name}"


OWN_APP = "jetcron"
"""The app Jetcron's own functions are of; no user's app has that name."""
CANARY = "jetcron.canary"
"""The function whose runs the health-checker takes itself, to see how late they are."""
HANDLER = ":on_failure"
"""Ends the id of a function that handles another one's failures. Nobody is told of its own ends: no loops."""


def _function_of(app: str, name: str) -> str:
    """The function id of two tokens; `InvalidName` when the app would hold a dot, and so be another."""
    app = unescape(app)
    if "." in app:
        raise InvalidName(f"{app!r} is not an app: a dot ends the app in 'app.function'")
    return function_id(app, unescape(name))


def split_function(function: str) -> tuple[str, str]:
    """App and name of a function id; raises `InvalidName` when it has no dot or an empty half."""
    app, dot, name = function.partition(".")
    if not (app and dot and name):
        raise InvalidName(
            f"{function!r} is not a function id; write APP.FUNCTION, such as 'reports.dispatch'"
        )
    return app, name


class TickName(NamedTuple):
    """What a tick's subject says: `at` in epoch milliseconds."""

    state: Literal["held", "due"]
    shard: str
    schedule: str
    revision: int
    at: int


@dataclass(frozen=True, slots=True)
class RunLaterName:
    """What the subject of a held run says."""

    function: str
    run: str
    turn: int


@dataclass(frozen=True, slots=True)
class Names:
    """All names of one namespace. Subjects begin with it, stream names with its upper-case form."""

    namespace: str = "jetcron"

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise InvalidName(
                f"the namespace {self.namespace[:80]!r} must be 1 to 64 lower-case letters, digits, "
                "'_' or '-' (its upper-case form names the streams)"
            )

    # Streams and buckets.
    def _stream(self, name: str) -> str:
        return f"{self.namespace.upper()}_{name}"

    @property
    def work(self) -> str:
        return self._stream("WORK")

    @property
    def events(self) -> str:
        return self._stream("EVENTS")

    @property
    def later(self) -> str:
        return self._stream("LATER")

    @property
    def journal(self) -> str:
        return self._stream("JOURNAL")

    @property
    def dead(self) -> str:
        return self._stream("DEAD")

    @property
    def objects(self) -> str:
        """The stream under the object store ``<NAMESPACE>_OBJECTS``."""
        return f"OBJ_{self._stream('OBJECTS')}"

    @property
    def registry(self) -> str:
        """The stream under the KV bucket ``<NAMESPACE>_REGISTRY``."""
        return f"KV_{self._stream('REGISTRY')}"

    @property
    def executors(self) -> str:
        """The stream under the KV bucket ``<NAMESPACE>_EXECUTORS``."""
        return f"KV_{self._stream('EXECUTORS')}"

    # Durable consumers.
    cron_sync = "cron-sync"
    cron_tick = "cron-tick"
    event_router = "event-router"
    event_router_later = "event-router-later"
    health_checker = "health-checker"

    def run_consumer(self, function: str) -> str:
        """The durable of a function's runs; `InvalidName` when it would exceed `MAX_DURABLE`."""
        app, name = split_function(function)
        durable = f"run=={escape(app)}=={escape(name)}"
        if len(durable) > MAX_DURABLE:
            raise InvalidName(
                f"the id {function!r} is too long: escaped it takes {len(durable)} characters of the "
                f"{MAX_DURABLE} a consumer's name may have; shorten it"
            )
        return durable

    # JETCRON_WORK.
    def sync(self, app: str) -> str:
        return f"{self.namespace}.sync.{escape(app)}"

    @property
    def sync_all(self) -> str:
        return f"{self.namespace}.sync.>"

    def tick_held(self, schedule: str, revision: int, at: int) -> str:
        return f"{self.namespace}.tick.held.{shard(schedule)}.{escape(schedule)}.{revision}.{at}"

    def tick_due(self, schedule: str, revision: int, at: int) -> str:
        return f"{self.namespace}.tick.due.{shard(schedule)}.{escape(schedule)}.{revision}.{at}"

    def ticks_of(self, schedule: str, revision: int | None = None, *, state: str = "*") -> str:
        """A filter for the ticks of a schedule: of all its revisions, or of one."""
        which = "*" if revision is None else str(revision)
        return f"{self.namespace}.tick.{state}.{shard(schedule)}.{escape(schedule)}.{which}.*"

    def ticks_of_shard(self, shard_: str) -> str:
        return f"{self.namespace}.tick.*.{shard_}.>"

    @property
    def ticks(self) -> str:
        """A filter for every tick, held and due."""
        return f"{self.namespace}.tick.>"

    @property
    def tick_due_all(self) -> str:
        return f"{self.namespace}.tick.due.>"

    def parse_tick(self, subject: str) -> TickName:
        """The parts of a tick's subject, held or due; `InvalidName` for any other subject."""
        match subject.split("."):
            case [self.namespace, "tick", ("held" | "due") as state, shard_, schedule, revision, at]:
                if _SHARD.fullmatch(shard_) and _COUNT.fullmatch(revision) and _TIME.fullmatch(at):
                    return TickName(
                        "held" if state == "held" else "due",
                        shard_,
                        unescape(schedule),
                        int(revision),
                        int(at),
                    )
        raise InvalidName(f"{subject!r} is not the subject of a tick")

    def split_tick(self, subject: str) -> tuple[bool, str, int, int]:
        """As `parse_tick`, for hundreds of thousands: whether it is held, its schedule's token, revision and time.

        The token stays escaped, and the parts are not looked at closely; `InvalidName` when they are too few or many.
        """
        try:
            _, _, state, _, schedule, revision, at = subject.split(".")
            return state == "held", schedule, int(revision), int(at)
        except ValueError:
            raise InvalidName(f"{subject!r} is not the subject of a tick") from None

    def run_ready(self, function: str) -> str:
        app, name = split_function(function)
        return f"{self.namespace}.run.ready.{escape(app)}.{escape(name)}"

    def run_later(self, function: str, run: str, turn: int) -> str:
        app, name = split_function(function)
        return f"{self.namespace}.run.later.{escape(app)}.{escape(name)}.{run}.{turn}"

    def runs_later_of(self, function: str, run: str = "*") -> str:
        app, name = split_function(function)
        return f"{self.namespace}.run.later.{escape(app)}.{escape(name)}.{run}.*"

    @property
    def run_ready_all(self) -> str:
        return f"{self.namespace}.run.ready.>"

    def parse_run_ready(self, subject: str) -> str:
        """The function whose runs stand on a subject."""
        match subject.split("."):
            case [self.namespace, "run", "ready", app, name]:
                return _function_of(app, name)
        raise InvalidName(f"{subject!r} is not the subject of runs that are ready")

    def run_later_of(self, run: str) -> str:
        """A filter for what is held of one run whose function is not known."""
        return f"{self.namespace}.run.later.*.*.{run}.*"

    @property
    def run_later_all(self) -> str:
        return f"{self.namespace}.run.later.>"

    def parse_run_later(self, subject: str) -> RunLaterName:
        match subject.split("."):
            case [self.namespace, "run", "later", app, name, run, turn]:
                if _PLAIN.fullmatch(run) and _COUNT.fullmatch(turn):
                    return RunLaterName(_function_of(app, name), run, int(turn))
        raise InvalidName(f"{subject!r} is not the subject of a held run")

    def health_held(self, group: int) -> str:
        return f"{self.namespace}.health.held.{group:x}"

    @property
    def health_due(self) -> str:
        return f"{self.namespace}.health.due"

    def health_noted(self, group: int) -> str:
        return f"{self.namespace}.health.noted.{group:x}"

    # JETCRON_EVENTS and JETCRON_LATER.
    def event(self, name: str) -> str:
        return f"{self.namespace}.event.{name}"

    @property
    def event_all(self) -> str:
        return f"{self.namespace}.event.>"

    def parse_event(self, subject: str) -> str:
        """The event's name: the rest of the subject as it stands."""
        prefix = f"{self.namespace}.event."
        if not subject.startswith(prefix):
            raise InvalidName(f"{subject!r} is not the subject of an event")
        return check_event_name(subject[len(prefix) :])

    def later_held(self, name: str, id: str) -> str:
        return f"{self.namespace}.later.held.{_bounded(name)}.{_bounded(id)}"

    @property
    def later_held_all(self) -> str:
        return f"{self.namespace}.later.held.>"

    def later_due(self, name: str) -> str:
        return f"{self.namespace}.later.due.{_bounded(name)}"

    @property
    def later_due_all(self) -> str:
        return f"{self.namespace}.later.due.>"

    # JETCRON_JOURNAL.
    def journal_of(self, function: str, run: str = "*") -> str:
        app, name = split_function(function)
        return f"{self.namespace}.journal.{escape(app)}.{escape(name)}.{run}"

    @property
    def journal_all(self) -> str:
        return f"{self.namespace}.journal.>"

    def journal_of_run(self, run: str) -> str:
        """A filter for one run whose function is not known."""
        return f"{self.namespace}.journal.*.*.{run}"

    @property
    def wait_all(self) -> str:
        return f"{self.namespace}.wait.>"

    def wait_paths(self, name: str) -> str:
        """Where the paths that waits for events of this name compare are listed."""
        return f"{self.namespace}.wait.{_bounded(name)}"

    def wait_for(self, name: str, paths: str, values: str, run: str, step: str) -> str:
        """Where one run waits for an event; `paths` and `values` are tokens of `matching`."""
        return f"{self.namespace}.wait.{_bounded(name)}.{paths}.{values}.{run}.{_step(step)}"

    def waits_for(self, name: str, paths: str, values: str) -> str:
        """A filter for every wait that an event of this name with these values meets."""
        return f"{self.namespace}.wait.{_bounded(name)}.{paths}.{values}.*.*"

    def wait_for_child(self, run: str, child: str) -> str:
        """Where the outcome of a run that another one invoked is left for it."""
        return f"{self.namespace}.wait.==child.-.-.{run}.{child}"

    def waits_for_children(self, run: str) -> str:
        """A filter for the outcomes left for a run."""
        return f"{self.namespace}.wait.==child.-.-.{run}.*"

    @property
    def lane_all(self) -> str:
        return f"{self.namespace}.lane.>"

    def lane(self, function: str, lane: str) -> str:
        """Where it stands which run has a lane of this function, and which wait for it."""
        app, name = split_function(function)
        return f"{self.namespace}.lane.{escape(app)}.{escape(name)}.{_bounded(lane)}"

    def lanes_of(self, function: str) -> str:
        """A filter for the lanes of a function."""
        app, name = split_function(function)
        return f"{self.namespace}.lane.{escape(app)}.{escape(name)}.*"

    def parse_journal(self, subject: str) -> tuple[str, str]:
        """Function id and run (or ``gap-…``) of a journal subject."""
        match subject.split("."):
            case [self.namespace, "journal", app, name, run] if _PLAIN.fullmatch(run):
                return _function_of(app, name), run
        raise InvalidName(f"{subject!r} is not the subject of a journal")

    # JETCRON_DEAD.
    def dead_letter(self, kind: str, *tokens: str) -> str:
        """Never refused, whatever the tokens hold: what is broken must have a place to go."""
        return ".".join([self.namespace, "dead", kind, *(_bounded(token) for token in tokens)])

    @property
    def dead_all(self) -> str:
        return f"{self.namespace}.dead.>"

    def dead_letters_of(self, function: str) -> str:
        """A filter for the letters of a function's runs that failed for good."""
        return f"{self.dead_letter('failed', *split_function(function))}.*"

    def dead_letter_of_run(self, run: str) -> str:
        """A filter for the letter of one run whose function is not known."""
        return f"{self.dead_letter('failed')}.*.*.{run}"

    # The object store, as other NATS clients know it (ADR-20).
    def object_meta(self, name: str) -> str:
        encoded = urlsafe_b64encode(name.encode("utf-8", "surrogatepass")).decode()
        return f"$O.{self._stream('OBJECTS')}.M.{encoded}"

    @property
    def object_metas(self) -> str:
        return f"$O.{self._stream('OBJECTS')}.M.>"

    def object_chunks(self, nuid: str) -> str:
        return f"$O.{self._stream('OBJECTS')}.C.{nuid}"

    # Plain messages, in no stream.
    def cancelled(self, app: str) -> str:
        """Where executors of an app hear of runs that somebody else ended."""
        return f"{self.namespace}.cancel.{escape(app)}"

    # Keys of the two buckets, as the subjects their entries are stored under.
    def _registry(self, key: str) -> str:
        return f"$KV.{self._stream('REGISTRY')}.{key}"

    def app_key(self, app: str) -> str:
        return self._registry(f"app.{escape(app)}")

    @property
    def apps(self) -> str:
        return self._registry("app.*")

    def function_key(self, function: str) -> str:
        app, name = split_function(function)
        return self._registry(f"function.{escape(app)}.{escape(name)}")

    @property
    def functions(self) -> str:
        return self._registry("function.>")

    def schedule_key(self, schedule: str) -> str:
        return self._registry(f"schedule.{shard(schedule)}.{escape(schedule)}")

    @property
    def schedules(self) -> str:
        return self._registry("schedule.>")

    def schedules_of_shard(self, shard_: str) -> str:
        return self._registry(f"schedule.{shard_}.*")

    def parse_schedule_key(self, subject: str) -> str:
        """The id of the schedule whose registry entry has this subject."""
        prefix = self._registry("schedule.")
        if subject.startswith(prefix):
            match subject[len(prefix) :].split("."):
                case [shard_, schedule] if _SHARD.fullmatch(shard_):
                    return unescape(schedule)
        raise InvalidName(f"{subject!r} is not the key of a schedule")

    def past_key(self, schedule: str, revision: int) -> str:
        return self._registry(f"past.{shard(schedule)}.{escape(schedule)}.{revision}")

    def pasts_of(self, schedule: str) -> str:
        """A filter for the replaced revisions of a schedule."""
        return self._registry(f"past.{shard(schedule)}.{escape(schedule)}.*")

    def pasts_of_shard(self, shard_: str) -> str:
        return self._registry(f"past.{shard_}.*.*")

    def intent_key(self, number: int) -> str:
        """Where it is said which revisions are about to be replaced; so many as are at one time have a key each."""
        return self._registry(f"intent.{number}")

    @property
    def intents(self) -> str:
        """A filter for all of them."""
        return self._registry("intent.*")

    def is_intent(self, subject: str) -> bool:
        """Whether `intents` matches it."""
        return subject.startswith(self._registry("intent."))

    def breaks_key(self, schedule: str) -> str:
        """Where it is counted how often a schedule's cycle broke."""
        return self._registry(f"breaks.{shard(schedule)}.{escape(schedule)}")

    @property
    def breaks(self) -> str:
        return self._registry("breaks.>")

    @property
    def canary_key(self) -> str:
        """Where the last canary that came through is noted."""
        return self._registry("canary")

    @property
    def restored_key(self) -> str:
        """Where it is noted that the registry was restored from a backup; absent, as a rule."""
        return self._registry("restored")

    def health_key(self, group: int) -> str:
        return self._registry(f"health.{group:x}")

    def _executors(self, key: str) -> str:
        return f"$KV.{self._stream('EXECUTORS')}.{key}"

    def executor_key(self, app: str, executor: str) -> str:
        return self._executors(f"{escape(app)}.{escape(executor)}")

    @property
    def executors_all(self) -> str:
        return self._executors(">")
