"""A schedule as its author writes it, in Python or in a file, and as it travels.

Owns the conversions: durations and times become milliseconds, a payload what msgpack makes of it. Each value that
cannot be converted is a fault of its own, told beside those that `definitions` finds. Pure: no I/O, no clock.
"""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

from jetcron.clock import from_ms, to_ms
from jetcron.cron import CronError, parse_duration
from jetcron.definitions import FIELDS, LEAST_EVERY, MOST_EVERY, MOST_WITHIN, Checked, definition
from jetcron.errors import ConfigurationError
from jetcron.fields import check, check_changes
from jetcron.options import DAY, MILLISECOND, ZERO, CatchUp, check_duration, suggestion, told
from jetcron_protocol.codec import EncodeError, pack, unpack
from jetcron_protocol.messages import Schedule

_KNOWN = ("id", *FIELDS)
_TIMES = ("at", "start", "end")


class Unchanged:
    """What an update leaves as it is; None takes away."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()


def checked(values: Mapping[str, Any], *, now: int) -> tuple[dict[str, Any], Checked]:
    """A whole definition: as it travels, and what is to be said of it."""
    raw, faults, faulty = wire(values)
    found = check(raw, now=now, faulty=faulty)
    if faults:
        found.schedule = None
        found.faults = faults + found.faults
    return raw, found


def changed(id: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """An update: as it travels, and what is wrong with it whatever the schedule is that it changes."""
    raw, faults, faulty = wire({"id": id, **values})
    return raw, faults + check_changes(raw, faulty=faulty)


def wire(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], set[str]]:
    """These values as they travel; what is wrong with those that cannot, and which these are.

    A `ConfigurationError` in the place of a value says why whoever gives it could not read it.
    """
    raw: dict[str, Any] = {}
    faults: list[str] = []
    faulty: set[str] = set()
    for name, value in _flat(values).items():
        if isinstance(value, Unchanged):
            continue
        try:
            if isinstance(value, ConfigurationError):
                raise ConfigurationError(f"{name}: {value}")
            raw[name] = None if value is None else _converted(name, value)
        except (ConfigurationError, CronError, EncodeError) as error:
            faults.append(str(error).removeprefix(": "))
            faulty.add(name)
    return raw, faults, faulty


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, a `CatchUp` among them taken apart."""
    flat = dict(values)
    bounded = flat.get("catch_up")
    if isinstance(bounded, CatchUp):
        flat |= {
            "catch_up": bounded.policy,
            "catch_up_within": bounded.within,
            "catch_up_most": bounded.most,
        }
    return flat


def _converted(name: str, value: Any) -> Any:
    if name not in _KNOWN:
        raise ConfigurationError(
            f"{name!r} is no field of a schedule{suggestion(name, _KNOWN)}; allowed are {', '.join(_KNOWN)}"
        )
    match name:
        case "every":
            return _span(name, value, LEAST_EVERY, MOST_EVERY)
        case "jitter":
            return _span(name, value, ZERO, DAY)
        case "catch_up_within":
            return _span(name, value, MILLISECOND, MOST_WITHIN)
        case "at" | "start" | "end":
            return moment(name, value)
        case "tags":
            return sorted(set(value)) if _is_texts(value) else value
        case "payload":
            try:
                return unpack(pack(value))
            except EncodeError as error:
                raise ConfigurationError(f"payload: {error}") from None
    return value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(one, str) for one in value)


def _span(name: str, value: Any, least: timedelta, most: timedelta) -> int:
    written = value if isinstance(value, str) else None
    if written is not None:
        try:
            value = parse_duration(written)
        except CronError as error:
            raise ConfigurationError(f"{name}={told(value)}: {error}") from None
    span = check_duration("", name, value, least, most, written=written)
    if span % MILLISECOND:
        raise ConfigurationError(f"{name}={told(value)}; allowed are whole milliseconds")
    return span // MILLISECOND


def moment(name: str, value: Any) -> int:
    """Epoch milliseconds of an aware datetime, or of a text that is one; `ConfigurationError` for anything else."""
    allowed = "allowed is a time with its zone, such as 2030-01-31T09:00:00Z or an aware datetime"
    found = value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            raise ConfigurationError(f"{name}={told(value)}; {allowed}") from None
    if not isinstance(found, datetime) or found.utcoffset() is None:
        shown = value.isoformat() if isinstance(value, date) else value
        raise ConfigurationError(f"{name}={told(shown)}; {allowed}")
    return to_ms(found)


def written(schedule: Schedule) -> dict[str, Any]:
    """A definition as its author would write it in a file: `checked` makes the same schedule of it again."""
    given = definition(schedule)
    for name in _TIMES:
        if name in given:
            given[name] = from_ms(given[name]).isoformat().replace("+00:00", "Z")
    for name in ("every", "jitter", "catch_up_within"):
        if name in given:
            given[name] = given[name] / 1000 if given[name] % 1000 else given[name] // 1000
    return {"id": schedule.id, **given}
