"""The fields of a schedule created as data, looked at one by one and then together, as they travel.

Owns how the refusal of a definition reads: every field at fault is named with its value and what is allowed, all at
once. The client asks here before it sends, cron-sync before it writes. Pure: no I/O, no clock.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from jetcron.clock import from_ms
from jetcron.cron import CronError
from jetcron.cycle import next_occurrence
from jetcron.definitions import (
    DEFAULTS,
    EXECUTES,
    FIELDS,
    LEAST_EVERY,
    MAX_RUNS,
    MOST_EVERY,
    MOST_WITHIN,
    WHEN,
    Checked,
    check_overlap,
    check_payload,
    check_tags,
)
from jetcron.errors import ConfigurationError
from jetcron.options import (
    CATCH_UPS,
    DAY,
    DSTS,
    MILLISECOND,
    ZERO,
    check_choice,
    check_cron,
    check_int,
    check_timezone,
    readable,
    told,
)
from jetcron_protocol.messages import MAX_CATCH_UP, MAX_TIME, MIN_TIME, Dst, Schedule
from jetcron_protocol.subjects import CANARY, InvalidName, Names, check_id

_NAMES = Names()
_NEEDED = ("id", "function")
_TIMES = ("at", "start", "end")
_SPANS = ("every", "jitter", "catch_up_within")
_ONCE = ("start", "end", "max_runs")
_ALONE = ("id", *(name for name in FIELDS if name != "cron"))
"""What is looked at by itself; a cron expression is together with its zone."""
_FIRING = (*WHEN, "timezone", "dst", "start", "end")
"""What it takes to tell whether it fires at all."""


def check(raw: object, *, now: int, faulty: Collection[str] = (), sound: Collection[str] = ()) -> Checked:
    """The schedule that a map defines, or everything that is wrong with it.

    `now` (epoch ms) is from when it counts. `faulty` are fields that are known to be wrong, `sound` those known to be
    right: they are not looked at by themselves.
    """
    if not isinstance(raw, Mapping):
        return Checked("", faults=[f"a schedule is a map, not {type(raw).__name__}"])
    found = _Fields(raw, faulty, sound)
    id = raw.get("id")
    return Checked(id if isinstance(id, str) else "", found.schedule(now), found.faults)


def check_changes(raw: Mapping[str, Any], *, faulty: Collection[str] = ()) -> list[str]:
    """What is wrong with the fields of an update, whatever the schedule is that it changes; None takes a field away."""
    found = _Fields(raw, faulty, partial=True)
    found.look()
    return found.faults


class _Fields:
    """One walk over the fields of a definition; `faults` grows with each that cannot be.

    Of a `partial` one, what is left out is not known: nothing is held against it.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        faulty: Collection[str],
        sound: Collection[str] = (),
        *,
        partial: bool = False,
    ) -> None:
        self._raw = {name: value for name, value in raw.items() if value is not None}
        self._partial = partial
        for name in _NEEDED:
            if name in raw or not partial:
                self._raw.setdefault(name, "")
        self._faulty = set(faulty)
        self._sound = sound
        self.faults: list[str] = []

    def schedule(self, now: int) -> Schedule | None:
        self.look()
        schedule = self._made() if not self.faults and not self._faulty else None
        self._fires(schedule, now)
        return None if self.faults else schedule

    def look(self) -> None:
        for name in _ALONE:
            if name in self._raw:
                self._check(name)
        self._caught_up()
        self._when()
        self._order()

    def _look_at(self, name: str, value: Any) -> None:
        """One field by itself; raises what says why it cannot be."""
        match name:
            case "id":
                check_id("its id", value)
            case "function":
                self._function(value)
            case "timezone":
                check_timezone("", value)
            case "dst":
                check_choice("", name, value, DSTS)
            case "catch_up":
                check_choice("", name, value, CATCH_UPS)
            case "executes":
                check_choice("", name, value, EXECUTES)
            case "overlap":
                check_overlap("", value)
            case "every":
                self._span(name, value, LEAST_EVERY, MOST_EVERY)
            case "jitter":
                self._span(name, value, ZERO, DAY)
            case "catch_up_within":
                self._span(name, value, MILLISECOND, MOST_WITHIN)
            case "catch_up_most":
                check_int("", name, value, 1, MAX_CATCH_UP)
            case "max_runs":
                check_int("", name, value, 1, MAX_RUNS)
            case "at" | "start" | "end":
                self._time(name, value)
            case "tags":
                check_tags(value)
            case "payload":
                check_payload(value)
            case "cron":
                self._cron(value)

    def _made(self) -> Schedule:
        fields = {name: self._raw[name] for name in ("id", *FIELDS) if name in self._raw}
        # Beside `max_runs` the end in force is computed; the author's own is kept apart.
        given = fields.get("end") if "max_runs" in fields else None
        return Schedule(**fields, origin="data", end_given=given)

    def _get(self, name: str) -> Any:
        return self._raw.get(name, DEFAULTS[name])

    def _check(self, name: str) -> None:
        if name in self._faulty or name in self._sound:
            return
        try:
            self._look_at(name, self._raw[name])
        except (ConfigurationError, InvalidName, CronError) as error:
            self._fault(str(error).removeprefix(": "), name)

    def _fault(self, text: str, *names: str) -> None:
        self.faults.append(text)
        self._faulty.update(names)

    def _function(self, function: Any) -> None:
        if not isinstance(function, str):
            raise ConfigurationError(
                f"function={told(function)}; allowed is APP.FUNCTION, such as 'reports.send'"
            )
        try:
            _NAMES.run_consumer(function)
        except InvalidName as error:
            raise ConfigurationError(f"function={told(function)}: {error}") from None
        if function == CANARY:
            raise ConfigurationError(
                f"function={told(function)} is Jetcron's own; allowed is one of an app of yours"
            )
        id = self._raw.get("id")
        if id == function or (isinstance(id, str) and id.startswith(f"{function}:")):
            raise InvalidName(
                f"its id {id!r} is that of a cron trigger in code; allowed is any id but the function's own"
            )

    def _span(self, name: str, value: Any, least: timedelta, most: timedelta) -> None:
        low, high = least // MILLISECOND, most // MILLISECOND
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigurationError(
                f"{name}={told(value)} ms; allowed are whole milliseconds from {low} ({readable(least)}) "
                f"to {high} ({readable(most)})"
            )

    def _time(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not MIN_TIME <= value <= MAX_TIME:
            raise ConfigurationError(
                f"{name}={told(value)}; allowed are epoch milliseconds of the years 1 to 9999"
            )

    def _when(self) -> None:
        """Exactly one of cron, every and at, and what goes with it."""
        given = [name for name in WHEN if name in self._raw or name in self._faulty]
        if "cron" in self._raw:
            self._check("cron")  # once its zone and rule are known to be sound, or not
        if given and "cron" not in given and "dst" not in self._faulty and self._get("dst") != "default":
            self._fault(f"dst={self._get('dst')!r} without cron= has no effect; leave it out", "dst")
        if given == ["at"]:
            for name in _ONCE:
                if name in self._raw and name not in self._faulty:
                    self._fault(f"{name}={self._told(name)} beside at=, which is once; leave it out", name)
        if len(given) > 1 or not (given or self._partial):
            said = f"{' and '.join(given)} are given" if given else "cron, every and at are all absent"
            self._fault(f"{said}; allowed is exactly one of cron, every and at", *WHEN)

    def _cron(self, text: Any) -> None:
        """An expression is read in its zone, under its rule; in UTC, by default, where these cannot be."""
        id = self._raw.get("id")
        zone = "UTC" if "timezone" in self._faulty else self._get("timezone")
        dst: Dst = "default" if "dst" in self._faulty else self._get("dst")
        try:
            found = check_cron("", text, timezone=zone, dst=dst, seed=id if isinstance(id, str) else "")
        except ConfigurationError as error:
            raise ConfigurationError(f"cron={told(text)}{error}") from None
        if found != zone and "timezone" not in self._faulty:
            if "timezone" in self._raw and zone != "UTC":
                raise ConfigurationError(
                    f"timezone={zone!r}, and the expression {text!r} names {found!r}; allowed is one of them"
                )
            self._raw["timezone"] = found

    def _caught_up(self) -> None:
        """Bounds on what is caught up, where anything is."""
        if self._partial and "catch_up" not in self._raw:
            return
        policy = self._get("catch_up")
        for name, with_ in (("catch_up_within", ("latest", "all")), ("catch_up_most", ("all",))):
            if name in self._raw and not {name, "catch_up"} & self._faulty and policy not in with_:
                allowed = " or ".join(with_)
                self._fault(
                    f"{name}={self._told(name)} beside catch_up={policy!r} has no effect; it goes with {allowed}",
                    name,
                )

    def _order(self) -> None:
        if {"start", "end"} <= self._raw.keys() and not {"start", "end"} & self._faulty:
            start, end = self._told("start"), self._told("end")
            if self._raw["end"] < self._raw["start"]:
                self._fault(f"end={end} is before start={start}; allowed is an end after the start", "end")

    def _fires(self, schedule: Schedule | None, now: int) -> None:
        """That there is an occurrence at all; an `at` in the past is due at once. Told beside other fields' faults."""
        if schedule is None:
            if self._faulty & {*_FIRING}:
                return
            id = self._raw["id"]
            times = {name: self._raw[name] for name in _FIRING if name in self._raw}
            schedule = Schedule(id=id if isinstance(id, str) else "", function="", **times)
        if schedule.at is None and next_occurrence(schedule, now) is None:
            kind = "cron" if schedule.cron is not None else "every"
            bounds = [f"{name}={self._told(name)}" for name in ("start", "end") if name in self._raw]
            within = f" within {' and '.join(bounds)}" if bounds else ""
            counted = _iso(now)
            self._fault(f"{kind}={self._told(kind)}: it never fires{within}, counted from {counted}", "end")

    def _told(self, name: str) -> str:
        """A sound value as its author would write it."""
        value = self._raw[name]
        if name in _TIMES:
            return _iso(value)
        return readable(value * MILLISECOND) if name in _SPANS else told(value)


def _iso(ms: int) -> str:
    return from_ms(ms).isoformat().replace("+00:00", "Z")
