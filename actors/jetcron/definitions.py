"""What a schedule created as data may be: its definition as it travels, checked field by field.

Owns what is allowed and how its refusal reads; every field at fault is named, all at once. The client asks here
before it sends, cron-sync before it writes. Pure: no I/O, no clock.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from jetcron.clock import from_ms
from jetcron.cron import CronError, parse
from jetcron.cycle import next_occurrence
from jetcron.errors import ConfigurationError
from jetcron.options import (
    CATCH_UPS,
    DAY,
    DSTS,
    OVERLAPS,
    YEAR,
    check_choice,
    check_cron,
    check_int,
    check_timezone,
    readable,
)
from jetcron_protocol.codec import EncodeError, pack
from jetcron_protocol.messages import MAX_CATCH_UP, MAX_TIME, MIN_TIME, Function, Schedule
from jetcron_protocol.subjects import CANARY, InvalidName, Names, check_id

T = TypeVar("T")

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

_NAMES = Names()
_MILLISECOND = timedelta(milliseconds=1)
_DEFAULTS: Mapping[str, Any] = {
    "timezone": "UTC",
    "dst": "default",
    "jitter": 0,
    "catch_up": "latest",
    "overlap": "allow",
    "executes": "jetcron",
    "tags": [],
}
EXECUTES = ("jetcron", "other")
_NEEDED = ("id", "function")
_ONCE = ("start", "end", "max_runs")


@dataclass(slots=True)
class Checked:
    """A definition that was looked at: `name` is its id as far as it has one; a `schedule`, or its `faults`."""

    name: str
    schedule: Schedule | None = None
    faults: list[str] = field(default_factory=list)


def definition(schedule: Schedule) -> dict[str, Any]:
    """What the author of a schedule gave, as it travels; what is left out is as it is by default."""
    given = {name: getattr(schedule, name) for name in FIELDS}
    if schedule.max_runs is not None:
        given["end"] = schedule.end_given
    return {
        name: value for name, value in given.items() if value is not None and value != _DEFAULTS.get(name)
    }


def check(raw: object, *, now: int, faulty: Collection[str] = ()) -> Checked:
    """The schedule that a map defines, or everything that is wrong with it.

    `now` (epoch ms) is from when it counts. `faulty` are fields that are known to be wrong: they are not looked at.
    """
    if not isinstance(raw, Mapping):
        return Checked("", faults=[f"a schedule is a map, not {type(raw).__name__}"])
    found = _Fields(raw, now, faulty)
    id = raw.get("id")
    return Checked(id if isinstance(id, str) else "", found.schedule(), found.faults)


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


class _Fields:
    """One walk over the fields of a definition; `faults` grows with each that cannot be."""

    def __init__(self, raw: Mapping[str, Any], now: int, faulty: Collection[str]) -> None:
        self._raw = {name: value for name, value in raw.items() if value is not None}
        self._now = now
        self._faulty = set(faulty)
        self.faults: list[str] = []

    def schedule(self) -> Schedule | None:
        self._check("id", lambda: check_id("its id", self._raw.get("id", "")))
        self._check("function", self._function)
        self._check("timezone", lambda: check_timezone("", self._get("timezone")))
        self._check("dst", lambda: check_choice("", "dst", self._get("dst"), DSTS))
        self._check("catch_up", lambda: check_choice("", "catch_up", self._get("catch_up"), CATCH_UPS))
        self._check("catch_up_within", lambda: self._span("catch_up_within", _MILLISECOND, MOST_WITHIN))
        self._check("catch_up_most", lambda: self._number("catch_up_most", 1, MAX_CATCH_UP))
        self._caught_up()
        self._check("executes", lambda: check_choice("", "executes", self._get("executes"), EXECUTES))
        self._check("overlap", lambda: check_overlap("", self._get("overlap")))
        self._check("jitter", lambda: self._span("jitter", timedelta(0), DAY))
        self._check("every", lambda: self._span("every", LEAST_EVERY, MOST_EVERY))
        for name in ("at", "start", "end"):
            self._check(name, lambda name=name: self._time(name))  # type: ignore[misc]
        self._check("max_runs", lambda: self._number("max_runs", 1, MAX_RUNS))
        self._check("tags", lambda: check_tags(self._get("tags")))
        self._check("payload", lambda: check_payload(self._raw.get("payload")))
        self._when()
        self._order()
        if self.faults or self._faulty:
            return None
        fields = {name: self._raw[name] for name in ("id", *FIELDS) if name in self._raw}
        # Beside `max_runs` the end in force is computed; the author's own is kept apart.
        given = fields.get("end") if "max_runs" in fields else None
        schedule = Schedule(**fields, origin="data", end_given=given)
        self._fires(schedule)
        return None if self.faults else schedule

    def _get(self, name: str) -> Any:
        return self._raw.get(name, _DEFAULTS[name])

    def _check(self, name: str, look: Callable[[], object]) -> None:
        if name in self._faulty or (name not in self._raw and name not in _NEEDED):
            return
        try:
            look()
        except (ConfigurationError, InvalidName, CronError) as error:
            self._fault(str(error).removeprefix(": "), name)

    def _fault(self, text: str, *names: str) -> None:
        self.faults.append(text)
        self._faulty.update(names)

    def _function(self) -> None:
        function = self._raw.get("function", "")
        if not isinstance(function, str):
            raise ConfigurationError(
                f"function={function!r}; allowed is APP.FUNCTION, such as 'reports.send'"
            )
        try:
            _NAMES.run_consumer(function)
        except InvalidName as error:
            raise ConfigurationError(f"function={function!r}: {error}") from None
        if function == CANARY:
            raise ConfigurationError(
                f"function={function!r} is Jetcron's own; allowed is one of an app of yours"
            )
        id = self._raw.get("id")
        if id == function or (isinstance(id, str) and id.startswith(f"{function}:")):
            raise InvalidName(
                f"its id {id!r} is that of a cron trigger in code; allowed is any id but the function's own"
            )

    def _span(self, name: str, least: timedelta, most: timedelta) -> None:
        if name in self._raw:
            low, high = least // _MILLISECOND, most // _MILLISECOND
            value = self._raw[name]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigurationError(
                    f"{name}={value!r} ms; allowed are whole milliseconds from {low} ({readable(least)}) "
                    f"to {high} ({readable(most)})"
                )

    def _time(self, name: str) -> None:
        if name in self._raw:
            value = self._raw[name]
            if isinstance(value, bool) or not isinstance(value, int) or not MIN_TIME <= value <= MAX_TIME:
                raise ConfigurationError(
                    f"{name}={value!r}; allowed are epoch milliseconds of the years 1 to 9999"
                )

    def _number(self, name: str, least: int, most: int) -> None:
        if name in self._raw:
            check_int("", name, self._raw[name], least, most)

    def _when(self) -> None:
        """Exactly one of cron, every and at, and what goes with it."""
        given = [name for name in WHEN if name in self._raw or name in self._faulty]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "cron, every and at are all absent"
            self._fault(f"{said}; allowed is exactly one of cron, every and at", *WHEN)
            return
        if given == ["cron"] and not {"cron", "timezone", "dst"} & self._faulty:
            self._check("cron", self._cron)
        if given != ["cron"] and "dst" not in self._faulty and self._get("dst") != "default":
            self._fault(f"dst={self._get('dst')!r} without cron= has no effect; leave it out", "dst")
        if given == ["at"]:
            for name in _ONCE:
                if name in self._raw:
                    self._fault(f"{name}={self._raw[name]!r} beside at=, which is once; leave it out", name)

    def _cron(self) -> None:
        zone = self._get("timezone")
        seed = self._raw.get("id")
        text = self._raw["cron"]
        found = check_cron(
            "", text, timezone=zone, dst=self._get("dst"), seed=seed if isinstance(seed, str) else ""
        )
        if found != zone:
            if "timezone" in self._raw and zone != "UTC":
                raise ConfigurationError(
                    f"timezone={zone!r}, and the expression {text!r} names {found!r}; allowed is one of them"
                )
            self._raw["timezone"] = found

    def _caught_up(self) -> None:
        """Bounds on what is caught up, where anything is."""
        policy = self._get("catch_up")
        for name, with_ in (("catch_up_within", ("latest", "all")), ("catch_up_most", ("all",))):
            if name in self._raw and not {name, "catch_up"} & self._faulty and policy not in with_:
                allowed = " or ".join(with_)
                self._fault(
                    f"{name}={self._raw[name]!r} beside catch_up={policy!r} has no effect; it goes with {allowed}",
                    name,
                )

    def _order(self) -> None:
        start, end = self._raw.get("start"), self._raw.get("end")
        if {"start", "end"} & self._faulty or start is None or end is None:
            return
        if end < start:
            self._fault(
                f"end={_shown(end)} is before start={_shown(start)}; allowed is an end after the start", "end"
            )

    def _fires(self, schedule: Schedule) -> None:
        """That there is an occurrence at all; an `at` in the past is due at once."""
        if schedule.at is None and next_occurrence(schedule, self._now) is None:
            bounds = [f"{name}={_shown(self._raw[name])}" for name in ("start", "end") if name in self._raw]
            within = f" within {' and '.join(bounds)}" if bounds else ""
            self._fault(f"it never fires{within}, counted from {_shown(self._now)}", "end")


def check_overlap(where: str, value: object) -> str:
    """`value` if it is something that can become of occurrences that overlap."""
    return check_choice(where, "overlap", value, OVERLAPS)


def check_tags(value: object) -> None:
    """Refuses what is no list of up to 32 tags, each printable and short."""
    if isinstance(value, str) or not isinstance(value, list | tuple) or len(value) > MAX_TAGS:
        raise ConfigurationError(f"tags={value!r}; allowed is a list of at most {MAX_TAGS} texts")
    for tag in value:
        if not isinstance(tag, str) or not tag or len(tag) > MAX_TAG or not tag.isprintable():
            raise ConfigurationError(
                f"tags: {tag!r}; allowed are texts of 1 to {MAX_TAG} printable characters"
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


def _shown(ms: int) -> str:
    return from_ms(ms).isoformat().replace("+00:00", "Z")
