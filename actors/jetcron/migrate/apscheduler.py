"""APScheduler 3's jobs as schedules.

Owns what its triggers mean: cron (0 is Monday, all fields must match, seconds and years), interval (counted from its
start, not from the epoch), date; and what becomes of misfire_grace_time, coalesce and max_instances. Reads the user's
objects by their attributes, and never imports APScheduler.
"""

from datetime import datetime, timedelta
from typing import Any

from jetcron.clock import from_ms, to_ms
from jetcron.cron import CronError, parse
from jetcron.migrate.apscheduler_fields import cron
from jetcron.migrate.clocks import changes_clocks, tell, zone_name
from jetcron.migrate.entries import MAPPED, Entry, Naming, Refused, named, payload_of
from jetcron.options import readable

APP = "apscheduler"
WHO = "APScheduler"
_LEAST = timedelta(seconds=1)
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)
_DAY = 86_400
_LATE_RUNS = 60
"""Seconds an occurrence may be late and still run, whatever catch_up says."""
_ABSENT = object()


def is_version_4(scheduler: Any) -> bool:
    """Whether it is a scheduler of APScheduler 4: what it fires are schedules, and its jobs are what they became."""
    return callable(getattr(scheduler, "get_schedules", None))


def read(scheduler: Any, naming: Naming, *, now: int, realign: bool = False) -> list[Entry]:
    """An entry for each job. `now` is in epoch ms.

    `realign`: an interval that no schedule can say from where it starts is taken over, counted from the epoch.
    """
    defaults = getattr(scheduler, "_job_defaults", {})
    entries = []
    for job in scheduler.get_jobs():
        entry = Entry(f"job {job.id!r}", f"{job.name} {job.trigger}", (_called(job), str(job.id)))
        convert = _Job(job, defaults, naming, now, realign)
        entries.append(entry.fill(convert.schedule))
    return entries


def notes(scheduler: Any, *, now: int) -> list[str]:
    """What is to be said of the whole of it."""
    said = []
    stores = {
        name: type(store).__name__
        for name, store in getattr(scheduler, "_jobstores", {}).items()
        if type(store).__name__ != "MemoryJobStore"
    }
    if stores and not getattr(scheduler, "running", False):
        names = ", ".join(f"{name} ({kind})" for name, kind in stores.items())
        said.append(
            f"the scheduler is not started, so the jobs stored in {names} are not read: "
            "call start(paused=True) where it is made"
        )
    if any(_changes_clocks(job.trigger, now) for job in scheduler.get_jobs()):
        said.append(
            "where clocks change, APScheduler may overlook the first time after it (its search adds hours that passed "
            "to local times); Jetcron does not"
        )
    return said


def _changes_clocks(trigger: Any, now: int) -> bool:
    try:
        return type(trigger).__name__ == "CronTrigger" and changes_clocks(zone_name(trigger.timezone), now)
    except Refused:
        return False


def _called(job: Any) -> str:
    """How a job's function is called: ``module.function``, or its job's name where it can be named by none."""
    reference = getattr(job, "func_ref", None)
    return str(reference).replace(":", ".") if reference else str(job.name)


class _Job:
    """One job on its way."""

    def __init__(self, job: Any, defaults: dict[str, Any], naming: Naming, now: int, realign: bool) -> None:
        self._job = job
        self._defaults = defaults
        self._naming = naming
        self._now = now
        self._realign = realign

    def schedule(self, entry: Entry) -> dict[str, Any]:
        if getattr(self._job, "next_run_time", _ABSENT) is None:
            raise Refused("it is paused; resume it, or leave it behind")
        when = self._when(entry)
        schedule = {"id": str(self._job.id), "function": self._function(entry), **when}
        if "at" not in when:
            schedule |= self._policies(entry)
        payload = payload_of(entry, self._job.func, self._job.args, self._job.kwargs)
        return schedule if payload is None else {**schedule, "payload": payload}

    def _function(self, entry: Entry) -> str:
        parts = [part for part in entry.names[0].split(".") if part.isidentifier()]
        name = named(entry, self._naming, parts[0] if len(parts) > 1 else APP, parts[-1] if parts else "")
        if MAPPED not in entry.remarks and (not getattr(self._job, "func_ref", None) or not parts):
            raise Refused(
                f"its function {entry.names[0]!r} has no name of its own (a lambda, a closure, a partial); "
                f"give one with --map '{self._job.id}=APP.FUNCTION'"
            )
        return name

    def _policies(self, entry: Entry) -> dict[str, Any]:
        """When it was down, and when the last run is not over."""
        grace, coalesce = self._option("misfire_grace_time", 1), self._option("coalesce", True)
        policies: dict[str, Any] = {}
        if grace is None:
            policies["catch_up"] = "latest" if coalesce else "all"
            if not coalesce:
                entry.remarks.append("coalesce=False: at most 1,000 missed occurrences run, the newest")
        elif grace <= _LATE_RUNS:
            policies["catch_up"] = "skip"
            entry.remarks.append(
                f"misfire_grace_time={grace}: here, what is up to {_LATE_RUNS} s late still runs"
            )
        else:
            policies["catch_up"] = "latest" if coalesce else "all"
            entry.remarks.append(f"misfire_grace_time={grace}: here, what was missed runs however late")
        most = self._option("max_instances", 1)
        if most == 1:
            policies["overlap"] = "skip"
        else:
            entry.remarks.append(
                f"max_instances={most}: give its function concurrency={most}; more would wait"
            )
        return policies

    def _option(self, name: str, default: Any) -> Any:
        return getattr(self._job, name, self._defaults.get(name, default))

    # Triggers.

    def _when(self, entry: Entry) -> dict[str, Any]:
        trigger = self._job.trigger
        kind = type(trigger)
        known = kind.__name__ if kind.__module__.startswith("apscheduler.triggers.") else ""
        match known:
            case "CronTrigger":
                return self._cron(entry, trigger)
            case "IntervalTrigger":
                return self._interval(entry, trigger)
            case "DateTrigger":
                return self._date(trigger)
        raise Refused(
            f"its trigger is a {kind.__name__}; known are CronTrigger, IntervalTrigger and DateTrigger"
        )

    def _date(self, trigger: Any) -> dict[str, Any]:
        if to_ms(trigger.run_date) < self._now:
            raise Refused(f"its time, {trigger.run_date.isoformat()}, has passed")
        return {"at": _text(to_ms(trigger.run_date))}

    def _cron(self, entry: Entry, trigger: Any) -> dict[str, Any]:
        zone = zone_name(trigger.timezone)
        expression, start, end = cron(entry, {field.name: field for field in trigger.fields}, zone)
        # It fires both times in an hour that comes twice.
        schedule = {"cron": expression, "timezone": zone, "dst": "both"}
        try:
            parse(expression, timezone=zone)
        except CronError as error:
            raise Refused(str(error).partition("': ")[2]) from None
        tell(entry, schedule, WHO, again=True, now=self._now)
        if zone == "UTC" or any("*" in part for part in expression.split()[:-3]):
            del schedule["dst"]  # it would have no effect
        return {**schedule, **self._bounds(trigger, start, end), **_jitter(entry, trigger)}

    def _bounds(self, trigger: Any, start: int | None, end: int | None) -> dict[str, Any]:
        """From and until when it fires, by the trigger and by its years; a start that has passed is left out."""
        if trigger.start_date is not None:
            start = max(start or 0, _rounded_up(trigger.start_date))
        if trigger.end_date is not None:
            given = to_ms(trigger.end_date)
            end = given if end is None else min(end, given)
        bounds: dict[str, Any] = {}
        if start is not None and start > self._now:
            bounds["start"] = _text(start)
        if end is not None:
            bounds["end"] = _text(end)
        return bounds

    def _interval(self, entry: Entry, trigger: Any) -> dict[str, Any]:
        every = trigger.interval
        if every < _LEAST:
            raise Refused(f"its interval is {every.total_seconds():g} s; allowed is a second and longer")
        if every % _MILLISECOND:
            raise Refused(f"its interval is {every.total_seconds():g} s; allowed are whole milliseconds")
        rest = {**self._bounds(trigger, None, None), **_jitter(entry, trigger)}
        if rest.get("jitter"):
            entry.remarks.append("its jitter moved all that followed; here each occurrence keeps its time")
        same = {"every": every.total_seconds(), **rest}
        if trigger.start_date.microsecond:
            entry.remarks.append(
                f"its {readable(every)} are counted from when your program started; here they are multiples of it "
                "since 1970"
            )
            return same
        late = to_ms(trigger.start_date) % (every // _MILLISECOND)
        if not late:
            return same
        expression = _aligned(to_ms(trigger.start_date) // 1_000, every)
        if expression is not None:
            return {"cron": expression, "timezone": "UTC", **rest}
        if self._realign:
            entry.remarks.append(
                f"realigned: each time is {late / 1_000:g} s earlier than its own, a multiple of {readable(every)} "
                "since 1970"
            )
            return same
        raise Refused(
            f"its {readable(every)} count from {trigger.start_date.isoformat()}; Jetcron's are multiples of it since "
            f"1970, {late / 1_000:g} s earlier, and no expression says it. Take these with --realign"
        )


def _rounded_up(moment: datetime) -> int:
    """Epoch milliseconds, rounded up, so that nothing before `moment` is let in."""
    return to_ms(moment) + (1 if moment.microsecond % 1_000 else 0)


def _text(ms: int) -> str:
    return from_ms(ms).isoformat().replace("+00:00", "Z")


def _jitter(entry: Entry, trigger: Any) -> dict[str, Any]:
    if not trigger.jitter:
        return {}
    entry.remarks.append("jitter is the same for the same occurrence, always")
    return {"jitter": trigger.jitter}


def _aligned(start: int, every: timedelta) -> str | None:
    """The expression, in UTC, of a period counted from `start` (epoch seconds), if there is one."""
    if every % _SECOND:
        return None
    period = every // _SECOND
    second, minute, hour = start % 60, start // 60 % 60, start // 3_600 % 24
    if 60 % period == 0:
        return f"{second % period}-59/{period} * * * * *"
    if period % 60 == 0 and 3_600 % period == 0:
        return f"{second} {minute % (period // 60)}-59/{period // 60} * * * *"
    if period % 3_600 == 0 and _DAY % period == 0:
        hours = period // 3_600
        return f"{second} {minute} {hour % hours}-23/{hours} * * *"
    if period == 7 * _DAY:
        return f"{second} {minute} {hour} * * {(start // _DAY + 4) % 7}"  # 1970 began on a Thursday
    return None
