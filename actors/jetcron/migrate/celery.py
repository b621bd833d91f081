"""Celery's beat_schedule as schedules.

Owns what `crontab`, `timedelta` and seconds mean in it, in which zone, and what becomes of the options a task is sent
with. Reads the user's objects by their attributes (Celery 4 and 5), and never imports Celery.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from jetcron.cron import CronError, parse
from jetcron.migrate.clocks import tell, zone_name
from jetcron.migrate.entries import Entry, Naming, Refused, named, payload_of
from jetcron.migrate.fields import BOTH, both_days, numbers
from jetcron.options import readable

APP = "celery"
WHO = "Celery"
_LEAST = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_ROUTING = ("queue", "exchange", "routing_key", "priority", "delivery_mode", "serializer", "compression")
_HARMLESS = (
    "retry",
    "retry_policy",
    "ignore_result",
    "shadow",
    "headers",
    "task_id",
    "time_limit",
    "soft_time_limit",
)
_CLEANUP = "celery.backend_cleanup"
_DEFAULT_BEAT = "celery.beat:PersistentScheduler"


def read(app: Any, naming: Naming, *, now: int) -> list[Entry]:
    """An entry for each of the app's beat_schedule. `now` is in epoch ms."""
    found = app.conf.beat_schedule
    entries = []
    for name, values in dict(found).items():
        entry = Entry(f"beat entry {name!r}", _text(values), (str(name),))
        entries.append(entry.fill(lambda entry: _schedule(entry, app, values, naming, now)))  # noqa: B023
    return entries


def notes(app: Any) -> list[str]:
    """What is to be said of the whole of it."""
    said = []
    beat = getattr(app.conf, "beat_scheduler", _DEFAULT_BEAT)
    if beat != _DEFAULT_BEAT:
        said.append(f"beat_scheduler is {beat}: what it keeps itself, in a database say, is not read here")
    deadline = getattr(app.conf, "beat_cron_starting_deadline", None)
    if deadline is not None:
        said.append(
            f"beat_cron_starting_deadline={deadline}: Jetcron's catch_up='latest' runs the newest occurrence that "
            "was missed, however late"
        )
    return said


def _text(values: Any) -> str:
    if not isinstance(values, Mapping):
        return repr(values)
    return f"{values.get('task')} {values.get('schedule')!r}"


def _schedule(entry: Entry, app: Any, values: Any, naming: Naming, now: int) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not isinstance(values.get("task"), str):
        raise Refused("it is no map with a 'task' and a 'schedule'")
    task = values["task"]
    if task == _CLEANUP:
        raise Refused("it cleans Celery's own results, and goes with Celery")
    if values.get("enabled") is False:
        raise Refused("it is not enabled")
    (name,) = entry.names
    entry.names = (task, name)
    parts = task.split(".")
    schedule = {
        "id": name,
        "function": named(entry, naming, parts[0] if len(parts) > 1 else APP, parts[-1]),
        **_when(entry, app, values, now),
    }
    _options(entry, values.get("options") or {})
    called = getattr(getattr(app, "tasks", {}).get(task), "run", None)
    args, kwargs = values.get("args") or (), values.get("kwargs") or {}
    for value in (*args, *kwargs.values()):
        if type(value).__name__ == "BeatLazyFunc":
            raise Refused(
                "an argument is computed each time it fires (BeatLazyFunc); compute it in the function"
            )
    payload = payload_of(entry, called, args, kwargs)
    return schedule if payload is None else {**schedule, "payload": payload}


def _when(entry: Entry, app: Any, values: Mapping[str, Any], now: int) -> dict[str, Any]:
    when: Any = values.get("schedule")
    if isinstance(when, timedelta | int | float) and not isinstance(when, bool):
        return _every(entry, app, when, relative=bool(values.get("relative")))
    kind = {one.__name__ for one in type(when).__mro__}
    if getattr(when, "nowfun", None) is not None:
        raise Refused("its schedule has a clock of its own (nowfun)")
    if "solar" in kind:
        raise Refused("it follows the sun (solar), which an expression cannot")
    if "crontab" in kind:
        return _crontab(entry, when, zone_name(vars(when).get("tz", app.timezone)), now)
    if type(when).__name__ == "schedule":
        return _every(entry, app, when.run_every, relative=bool(when.relative))
    raise Refused(f"its schedule is a {type(when).__name__}; known are crontab, timedelta and seconds")


def _crontab(entry: Entry, when: Any, zone: str, now: int) -> dict[str, Any]:
    days, week = both_days(when.day_of_month, when.day_of_week)
    expression = " ".join(
        [
            numbers(when.minute, 0, 59),
            numbers(when.hour, 0, 23),
            days,
            numbers(when.month_of_year, 1, 12),
            week,
        ]
    )
    if days != "*" and week != "*":
        entry.remarks.append(BOTH)
    try:
        parse(expression, timezone=zone)
    except CronError as error:
        raise Refused(str(error).partition("': ")[2]) from None
    schedule = {"cron": expression, "timezone": zone}
    tell(entry, schedule, WHO, again=False, now=now)
    return schedule


def _every(entry: Entry, app: Any, given: Any, *, relative: bool) -> dict[str, Any]:
    try:
        every = given if isinstance(given, timedelta) else timedelta(seconds=given)
    except (OverflowError, ValueError):
        raise Refused(f"its period is {given!r}") from None
    if every < _LEAST:
        raise Refused(f"its period is {every.total_seconds():g} s; allowed is a second and longer")
    if every % _MILLISECOND:
        raise Refused(f"its period is {every.total_seconds():g} s; allowed are whole milliseconds")
    if relative and every >= timedelta(minutes=1):
        return _relative(every, zone_name(app.timezone))
    entry.remarks.append(
        f"Celery counts {readable(every)} from when beat last sent it; Jetcron's times are multiples of it since 1970"
    )
    return {"every": every.total_seconds()}


def _relative(every: timedelta, zone: str) -> dict[str, Any]:
    """`relative` rounds each time down to the day, hour or minute; of one of these, its beginnings are left."""
    for unit, expression in ((timedelta(days=1), "0 0 * * *"), (timedelta(hours=1), "0 * * * *")):
        if every == unit:
            return {"cron": expression, "timezone": zone}
    if every == timedelta(minutes=1):
        return {"cron": "* * * * *", "timezone": zone}
    raise Refused(
        f"relative=True, with a period of {readable(every)}, is rounded from when beat last sent it; write a crontab"
    )


def _options(entry: Entry, options: Mapping[str, Any]) -> None:
    """What a task is sent with: what moves it in time cannot be carried, what routes it has no counterpart."""
    for name, value in options.items():
        if value is None:
            continue
        if name in ("countdown", "eta"):
            raise Refused(f"options have {name}={value!r}, which moves each run; put it into the schedule")
        if name in ("link", "link_error", "chord", "chain", "group_id"):
            raise Refused(
                f"options have {name}=, tasks that follow; start them from the function, or on its events"
            )
        if name == "expires" and isinstance(value, int | float):
            entry.remarks.append(f"expires={value}: give its function start_timeout={value}")
        elif name == "expires":
            raise Refused(f"options have expires={value!r}, the same for each run; give its schedule an end")
        elif name in _ROUTING:
            entry.remarks.append(
                f"{name}={value!r} has no counterpart: a function's app says who executes it"
            )
        elif name in ("time_limit", "soft_time_limit"):
            entry.remarks.append(f"{name}={value}: give its function timeout={value}")
        elif name not in _HARMLESS:
            entry.remarks.append(f"option {name}={value!r} is dropped")
