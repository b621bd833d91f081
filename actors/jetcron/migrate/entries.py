"""What an import makes of each entry: a schedule as `jetcron schedules apply` takes it, or a refusal.

Owns the names entries get, and the last look at them: what `settled` lets through is what `apply` accepts, but for
functions that are not registered yet.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from inspect import Parameter, signature
from typing import Any

from jetcron.errors import ConfigurationError
from jetcron.given import checked
from jetcron_protocol.codec import EncodeError, pack, unpack
from jetcron_protocol.subjects import InvalidName, check_app, split_function


class Refused(Exception):
    """An entry that cannot be carried over; the text says why, and what to write instead where there is something."""


@dataclass(slots=True)
class Entry:
    """One entry of the old scheduler: where it stands and how it reads there, and what it becomes.

    `names` are what ``--map`` may call it, the first its own; `schedule` is what becomes of it, or `refused` says why
    nothing does. `remarks` are what differs, and what has to be done by hand.
    """

    place: str
    text: str
    names: tuple[str, ...] = ()
    schedule: dict[str, Any] | None = None
    remarks: list[str] = field(default_factory=list)
    refused: str | None = None

    def fill(self, convert: Callable[["Entry"], dict[str, Any]]) -> "Entry":
        """This entry, with what `convert` makes of it."""
        try:
            self.schedule = convert(self)
        except Refused as error:
            self.refuse(str(error))
        return self

    def refuse(self, reason: str) -> None:
        """Nothing becomes of it."""
        self.schedule, self.refused = None, reason


@dataclass(frozen=True, slots=True)
class Naming:
    """How old names become function ids: by the first of `maps` (pattern, function) that fits, else ``app.name``."""

    app: str | None = None
    maps: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, app: str | None, maps: Iterable[str]) -> "Naming":
        """From what the command line says; `ConfigurationError` for what names no app or function."""
        found = []
        for text in maps:
            old, equals, function = text.partition("=")
            try:
                split_function(function)
            except InvalidName as error:
                raise ConfigurationError(f"--map {text!r}: {error}") from None
            if not (old and equals):
                raise ConfigurationError(f"--map {text!r}; allowed is OLD=APP.FUNCTION")
            found.append((old, function))
        if app is not None:
            try:
                check_app(app)
            except InvalidName as error:
                raise ConfigurationError(f"--app: {error}") from None
        return cls(app, tuple(found))

    def function(self, names: Sequence[str], app: str, name: str) -> str:
        """The function of an entry known by these names; `app` and `name` are its own, if nothing else is said."""
        for pattern, function in self.maps:
            if any(fnmatchcase(one, pattern) for one in names):
                return function
        return f"{self.app or app}.{name}"


def settled(entries: Sequence[Entry], *, now: int) -> list[Entry]:
    """The entries, each looked at as `apply` will: ids and functions told apart, every field allowed.

    `now` (epoch ms) is from when they count.
    """
    ids: dict[str, Entry] = {}
    functions: dict[str, Entry] = {}
    for entry in entries:
        if entry.schedule is None:
            continue
        id, function = entry.schedule["id"], entry.schedule["function"]
        if id == function or id.startswith(f"{function}:"):
            id = entry.schedule["id"] = f"schedule-{id}"  # the function's own are those of its cron triggers
        first = functions.setdefault(function, entry)
        if id in ids:
            entry.refuse(f"its id would be {id!r}, as that of {ids[id].place}; rename one of them")
        elif first.names[:1] != entry.names[:1] and not _mapped(first, entry):
            entry.refuse(
                f"its function would be {function!r}, as that of {first.names[0]!r} at {first.place}; "
                f"tell them apart with --map '{entry.names[0]}=APP.FUNCTION'"
            )
        else:
            _, found = checked(entry.schedule, now=now)
            if found.faults:
                entry.refuse("; ".join(found.faults))
            else:
                ids[id] = entry
    return list(entries)


def _mapped(first: Entry, second: Entry) -> bool:
    """Whether somebody asked for one function for both."""
    return MAPPED in first.remarks and MAPPED in second.remarks


MAPPED = "function given by --map"


def named(entry: Entry, naming: Naming, app: str, name: str) -> str:
    """The function of an entry; a remark where somebody gave it."""
    function = naming.function(entry.names, app, name)
    if any(fnmatchcase(one, pattern) for pattern, _ in naming.maps for one in entry.names):
        entry.remarks.append(MAPPED)
    return function


def payload_of(
    entry: Entry, called: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The one value that arguments become: a map by the names of their parameters; None where there are none.

    What `called` names its parameters is read from its signature. Without it, or where it has none, what has no name
    stands in a list under ``args``.
    """
    if not args and not kwargs:
        return None
    try:
        parameters = signature(called) if called is not None else None
    except (TypeError, ValueError):
        parameters = None
    if parameters is None:
        if args:
            entry.remarks.append(
                "names of its parameters are not known: positional arguments are under 'args'"
            )
        value = {**({"args": list(args)} if args else {}), **kwargs}
    else:
        try:
            bound = parameters.bind(*args, **kwargs)
        except TypeError as error:
            raise Refused(f"its arguments do not fit its function: {error}") from None
        value = {}
        for name, given in bound.arguments.items():
            if parameters.parameters[name].kind is Parameter.VAR_KEYWORD:
                value |= given
            else:
                value[name] = given
    return _writable(entry, value)


def _writable(entry: Entry, value: Any) -> Any:
    """What a file and a message can carry of it; `Refused` for anything else."""
    try:
        found = unpack(pack(value))
    except EncodeError as error:
        raise Refused(f"its arguments cannot be stored: {error}") from None
    _check_plain("payload", found)
    if found != _lists(value):
        entry.remarks.append("arguments are stored as plain values: look at the payload")
    return found


def _check_plain(where: str, value: Any) -> None:
    match value:
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise Refused(f"{where} has the key {key!r}; allowed are texts")
                _check_plain(f"{where}.{key}", item)
        case list():
            for number, item in enumerate(value):
                _check_plain(f"{where}[{number}]", item)
        case bytes():
            raise Refused(f"{where} is bytes, which the file cannot hold; give text")
        case float() if not math.isfinite(value):
            raise Refused(f"{where} is {value}, which the file cannot hold")


def _lists(value: Any) -> Any:
    match value:
        case dict():
            return {key: _lists(item) for key, item in value.items()}
        case list() | tuple():
            return [_lists(item) for item in value]
    return value
