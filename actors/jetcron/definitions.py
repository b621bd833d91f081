"""What a schedule created as data is: its definition as it travels, and what single fields of it may hold.

Owns the names of its fields, their limits, and what it leaves out; `fields` looks at all of them together. Pure: no
I/O, no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from operator import attrgetter
from typing import Any

from jetcron.cron import parse
from jetcron.errors import ConfigurationError
from jetcron.options import OVERLAPS, YEAR, check_choice, told
from jetcron_protocol.codec import EncodeError, pack
from jetcron_protocol.messages import Function, Schedule

FIELDS = (
    "function",
    "cron",
    "every",
    "at",
    "timezone",
    "dst",
    "jitter",
    "catch_up",
    "catch_up_within",
    "catch_up_most",
    "overlap",
    "payload",
    "start",
    "end",
    "max_runs",
    "executes",
    "tags",
)
"""What the author of a schedule gives, beside its id."""
WHEN = ("cron", "every", "at")
LEAST_EVERY = timedelta(seconds=1)
MOST_EVERY = 10 * YEAR
MOST_WITHIN = 10 * YEAR
MAX_RUNS = 1_000_000_000
MAX_TAGS = 32
MAX_TAG = 100
MAX_PAYLOAD = 512 * 1024
"""Bytes of a payload as msgpack: it travels in the entry, in its replaced revisions and in every run."""
MAX_BY = 200

DEFAULTS: Mapping[str, Any] = {
    "timezone": "UTC",
    "dst": "default",
    "jitter": 0,
    "catch_up": "latest",
    "overlap": "allow",
    "executes": "jetcron",
    "tags": [],
}
EXECUTES = ("jetcron", "other")


@dataclass(slots=True)
class Checked:
    """A definition that was looked at: `name` is its id as far as it has one; a `schedule`, or its `faults`."""

    name: str
    schedule: Schedule | None = None
    faults: list[str] = field(default_factory=list)


_fields = attrgetter(*FIELDS)
_END = FIELDS.index("end")


def given_end(schedule: Schedule) -> int | None:
    """The author's own end: beside `max_runs` the one in force is computed."""
    return schedule.end if schedule.max_runs is None else schedule.end_given


def authored(schedule: Schedule) -> tuple[Any, ...]:
    """What its author gave, or it is by default: a value for each of `FIELDS`."""
    values: tuple[Any, ...] = _fields(schedule)
    return (*values[:_END], given_end(schedule), *values[_END + 1 :])


def definition(schedule: Schedule) -> dict[str, Any]:
    """What the author of a schedule gave, as it travels; what is left out is as it is by default."""
    return {
        name: value
        for name, value in zip(FIELDS, authored(schedule), strict=True)
        if value is not None and value != DEFAULTS.get(name)
    }


def unfit(id: str, function: Function | None, overlap: object) -> list[str]:
    """What is wrong with running this function, as it is registered under `id`, from a schedule that overlaps so."""
    if function is None:
        return [f"function={id!r} is not registered; 'jetcron functions list' shows what is"]
    if function.state == "archived":
        return [f"function={id!r} is archived; registering its app again brings it back"]
    if overlap == "cancel_running" and function.concurrency == 1:
        return [
            f"overlap={overlap!r}, and {id} runs one at a time; allowed is a function with a concurrency of 2 or "
            "more, or none"
        ]
    return []


def check_overlap(where: str, value: object) -> str:
    """`value` if it is something that can become of occurrences that overlap."""
    return check_choice(where, "overlap", value, OVERLAPS)


def check_tags(value: object) -> None:
    """Refuses what is no list of up to 32 tags, each printable and short; names every tag at fault."""
    if isinstance(value, str) or not isinstance(value, list | tuple) or len(value) > MAX_TAGS:
        raise ConfigurationError(f"tags={told(value)}; allowed is a list of at most {MAX_TAGS} texts")
    wrong = [
        told(tag)
        for tag in value
        if not isinstance(tag, str) or not tag or len(tag) > MAX_TAG or not tag.isprintable()
    ]
    if wrong:
        raise ConfigurationError(
            f"tags: {', '.join(wrong)}; allowed are texts of 1 to {MAX_TAG} printable characters"
        )


def check_payload(value: object) -> None:
    """Refuses what cannot be stored, or is too large for every run to carry."""
    try:
        size = len(pack(value))
    except EncodeError as error:
        raise ConfigurationError(f"payload: {error}") from None
    if size > MAX_PAYLOAD:
        raise ConfigurationError(f"payload has {size} bytes; allowed are {MAX_PAYLOAD}")


def zone_of(schedule: Schedule) -> str:
    """The zone its times are meant in: that of its expression, if it names one."""
    if schedule.cron is None:
        return schedule.timezone
    return parse(schedule.cron, timezone=schedule.timezone, dst=schedule.dst, seed=schedule.id).timezone
