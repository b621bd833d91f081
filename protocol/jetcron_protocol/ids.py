"""Deterministic identifiers: run ids, event ids, shards.

Owns the rule that makes repetition harmless: whoever publishes an occurrence, in whatever order and
however often, gives it the same id. Never reads a clock or a random source; callers bring both.
"""

from functools import lru_cache
from hashlib import blake2b

from msgpack import packb

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {char: value for value, char in enumerate(_CROCKFORD)}
_MAX_TIME = (1 << 48) - 1
RUN_ID_LENGTH = 26
SHARDS = 256
GROUPS = 16
"""Sweep groups of the health checker; each covers ``SHARDS / GROUPS`` shards."""


def ulid(time_ms: int, entropy: bytes) -> str:
    """26 characters in ULID form (https://github.com/ulid/spec): 48 bits of epoch ms, 80 bits of `entropy`.

    Sorts by time. Times outside 48 bits are clamped; `entropy` must be 10 bytes.
    """
    if len(entropy) != 10:
        raise ValueError(f"a ULID takes 10 bytes of entropy, not {len(entropy)}")
    number = min(max(time_ms, 0), _MAX_TIME) << 80 | int.from_bytes(entropy)
    return "".join([_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5)])


@lru_cache(maxsize=4096)
def ulid_time(text: str) -> int | None:
    """The epoch milliseconds in a ULID, or None if `text` is not one."""
    if len(text) != RUN_ID_LENGTH or text[0] > "7":
        return None
    try:
        number = 0
        for char in text:
            number = number << 5 | _VALUES[char]
    except KeyError:
        return None
    return number >> 80


def digest(*parts: str | int, size: int = 10) -> bytes:
    """A stable digest of a tuple of strings and numbers; the parts cannot run into each other."""
    encoded: bytes = packb(parts, unicode_errors="surrogatepass")
    return blake2b(encoded, digest_size=size).digest()


@lru_cache(maxsize=4096)
def shard(schedule: str) -> str:
    """The shard of a schedule: two hex digits. One is asked for several times while something is done to it."""
    return blake2b(schedule.encode("utf-8", "surrogatepass"), digest_size=1).hexdigest()


def group_of(shard_: str) -> int:
    """The sweep group of a shard: its first hex digit."""
    return int(shard_[0], 16)


def shards_of(group: int) -> list[str]:
    """The shards of a sweep group."""
    return [f"{group:x}{low:x}" for low in range(SHARDS // GROUPS)]


def code_run_id(function: str, scheduled_at: int) -> str:
    """The run of a cron trigger in code: two triggers meeting at one instant are one run."""
    return ulid(scheduled_at, digest("code", function, scheduled_at))


def schedule_run_id(function: str, schedule: str, scheduled_at: int) -> str:
    """The run of a schedule created as data."""
    return ulid(scheduled_at, digest("schedule", function, schedule, scheduled_at))


def event_run_id(function: str, name: str, event: str, *, stored_at: int = 0) -> str:
    """The run of a function for an event; its time is the event id's when that is a ULID, else zero.

    `stored_at` is the time instead for an event whose id is the sequence under which it was stored, and for
    no other: an id its sender gave makes a second sending the same run, whenever it is stored.
    """
    return ulid(ulid_time(event) or stored_at, digest("event", function, name, event))


def child_run_id(parent: str, step: str) -> str:
    """The run a step started, at its parent's time."""
    return ulid(ulid_time(parent) or 0, digest("child", parent, step))


def manual_run_id(function: str, id: str) -> str:
    """A run started by name: `id` is the caller's, or a new ULID, whose time it takes."""
    return ulid(ulid_time(id) or 0, digest("manual", function, id))


def step_event_id(run: str, step: str, index: int) -> str:
    """The id of the `index`-th event a step sends, at its run's time: a replay sends the same one."""
    return ulid(ulid_time(run) or 0, digest("step-event", run, step, index))


def gap_token(schedule: str, start: int) -> str:
    """The token under which a gap is journaled: ``gap-`` and a digest of schedule and start."""
    return f"gap-{digest('gap', schedule, start).hex()}"


def overlap_token(run: str) -> str:
    """The token under which it is journaled that this run was left out, for another one of its schedule went on."""
    return f"gap-{digest('overlap', run).hex()}"


def lane_of(function: str, schedule: str, scheduled_at: int, run: str) -> str:
    """Which runs must not meet this one: those of its schedule; of triggers in code, those of its whole function."""
    return function if run == code_run_id(function, scheduled_at) else schedule


def hand_over_rank(schedule: str) -> int:
    """A number in ``[0, 10_000)``, always the same for one schedule: at 25 % Jetcron executes those below 2,500."""
    return int.from_bytes(digest("hand-over", schedule, size=8)) % 10_000


def spread(schedule: str, at: int, width: int) -> int:
    """A number in ``[0, width)`` milliseconds, always the same for one occurrence: its jitter."""
    if width <= 0:
        return 0
    return int.from_bytes(digest("jitter", schedule, at, size=8)) % width
