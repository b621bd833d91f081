"""App: the functions a user declares, each checked where it is written.

Owns the meaning of `@app.function` and the definitions made of it; the wire forms are the protocol's. It
runs nothing, talks to nobody and changes no function it is given: a decorated function is still its own.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, Never, TypeVar

from jetcron.errors import ConfigurationError
from jetcron.options import (
    CATCH_UPS,
    DAY,
    DSTS,
    HOUR,
    MAX_ATTEMPTS,
    MAX_CONCURRENCY,
    MILLISECOND,
    OVERLAPS,
    YEAR,
    ZERO,
    CancelOn,
    CatchUp,
    Cron,
    Duration,
    Retry,
    check_choice,
    check_cron,
    check_duration,
    check_int,
    check_timezone,
    suggestion,
)
from jetcron.values.payload import PayloadReader, function_under
from jetcron_protocol.codec import encode
from jetcron_protocol.ids import digest
from jetcron_protocol.messages import CancelTrigger, CatchUpPolicy, CronTrigger, Dst, Function, Overlap
from jetcron_protocol.subjects import (
    HANDLER,
    OWN_APP,
    InvalidName,
    Names,
    check_app,
    check_event_name,
    check_id,
    function_id,
)

Handler = TypeVar("Handler", bound=Callable[..., Any])


class _Unwritten(int):
    """A default nobody wrote, which its equal in the user's code is not."""


_RETRIES: Final = _Unwritten(4)
_LATEST: Final = CatchUp("latest")
_NAMES = Names()


_UNWRITTEN: Final[Mapping[str, Any]] = {
    "cron": None,
    "on": None,
    "timezone": "UTC",
    "retries": _RETRIES,
    "retry": None,
    "timeout": None,
    "concurrency": None,
    "jitter": None,
    "catch_up": "latest",
    "overlap": "allow",
    "dst": "default",
    "deadline": None,
    "start_timeout": None,
    "cancel_on": None,
    "keep": None,
}
"""The options of a function for which none is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionDefinition:
    """One function of an app, every default resolved.

    `id` is ``app.name``. Durations and `concurrency` are None where there is none; `on_failure` is the id of the
    function that handles its failures. The function takes `ctx` alone when `payload` is None, else also what
    `payload.read(data)` returns.
    """

    id: str
    name: str
    handler: Callable[..., Any]
    is_async: bool
    cron: tuple[Cron, ...] = ()
    on: tuple[str, ...] = ()
    retry: Retry
    timeout: timedelta | None = None
    concurrency: int | None = None
    jitter: timedelta | None = None
    catch_up: CatchUp = _LATEST
    overlap: Overlap = "allow"
    deadline: timedelta | None = None
    start_timeout: timedelta | None = None
    cancel_on: tuple[CancelOn, ...] = ()
    on_failure: str | None = None
    keep: timedelta | None = None
    description: str = ""
    payload: PayloadReader | None = None

    def wire(self) -> Function:
        """What is registered: durations in whole milliseconds."""
        return Function(
            id=self.id,
            cron=[
                CronTrigger(
                    expression=cron.expression,
                    timezone=cron.timezone or "UTC",
                    dst=cron.dst or "default",
                )
                for cron in self.cron
            ],
            on=list(self.on),
            concurrency=self.concurrency or 0,
            jitter=_milliseconds(self.jitter) or 0,
            catch_up=self.catch_up.policy,
            catch_up_within=_milliseconds(self.catch_up.window),
            catch_up_most=self.catch_up.most,
            overlap=self.overlap,
            attempts=self.retry.attempts,
            timeout=_milliseconds(self.timeout),
            deadline=_milliseconds(self.deadline),
            start_timeout=_milliseconds(self.start_timeout),
            cancel_on=[CancelTrigger(event=one.event, match=dict(one.match or {})) for one in self.cancel_on],
            keep=_milliseconds(self.keep),
            description=self.description,
        )

    def schedule_ids(self) -> list[str]:
        """The schedule of each cron trigger: ``app.name``, then ``app.name:2`` and so on."""
        return [_schedule_id(self.id, number) for number in range(1, len(self.cron) + 1)]


class App:
    """A named set of functions, which executors run together.

    `name` is any printable text without a dot; `ConfigurationError` otherwise.
    """

    def __init__(self, name: str) -> None:
        try:
            self._name = check_app(name)
        except InvalidName as error:
            raise ConfigurationError(f"App({name!r}): {error}") from None
        if name == OWN_APP:
            raise ConfigurationError(f"App({name!r}): that name is Jetcron's own; choose another")
        self._functions: dict[str, FunctionDefinition] = {}

    def __repr__(self) -> str:
        return f"App({self._name!r}, {len(self._functions)} functions)"

    @property
    def name(self) -> str:
        return self._name

    @property
    def functions(self) -> Mapping[str, FunctionDefinition]:
        """The definitions by function id (``app.name``), in the order they were declared."""
        return MappingProxyType(self._functions)

    def wire(self) -> list[Function]:
        """The definitions as they are registered."""
        return [definition.wire() for definition in self._functions.values()]

    @property
    def hash(self) -> str:
        """A digest of what is registered; the order of declaration and descriptions do not count."""
        encoded = sorted(encode(replace(function, description="")).hex() for function in self.wire())
        return digest(self._name, *encoded, size=16).hex()

    def check(self) -> None:
        """What can be checked only once the whole module is imported: annotations naming later types.

        `ConfigurationError` for one that cannot be resolved. Executors call it before they take a run.
        """
        for definition in self._functions.values():
            if definition.payload is not None:
                definition.payload.resolve()

    def function(
        self,
        *misplaced: Never,
        id: str | None = None,
        cron: str | Cron | Sequence[str | Cron] | None = None,
        on: str | Sequence[str] | None = None,
        timezone: str = "UTC",
        retries: int = _RETRIES,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        concurrency: int | None = None,
        jitter: Duration | None = None,
        catch_up: CatchUpPolicy | CatchUp = "latest",
        overlap: Overlap = "allow",
        dst: Dst = "default",
        deadline: Duration | None = None,
        start_timeout: Duration | None = None,
        cancel_on: CancelOn | Sequence[CancelOn] | None = None,
        on_failure: Callable[..., Any] | None = None,
        keep: Duration | None = None,
        **unknown: Never,
    ) -> Callable[[Handler], Handler]:
        """Declare a function of this app; the function itself is returned as it was.

        Durations are seconds or a timedelta. `cron` starts it on a schedule, `on` on events whose name
        matches (``*`` is one part, ``>`` all that remain); both may be lists, and without either it is
        started by name. `retries` come after the first attempt; `retry` sets their waits too. `timeout`
        bounds one attempt, what it waits for while an executor has it included; `deadline` the whole run, from
        the time it is due; a run that has not begun `start_timeout` after that is cancelled. `concurrency` bounds
        the runs at one time over all executors. `cancel_on` events cancel runs. `on_failure` is called with
        (ctx) or (ctx, failed) when a run has failed for good, in a run of its own, with retries; `failed` has
        ``function``, ``run``, ``error`` (``type``, ``message``), ``attempts`` and ``data``, that of the failed
        run, or None if it is so large that it does not fit beside the rest. `jitter`, `catch_up`, `overlap`,
        `timezone` and `dst` are for `cron`. `overlap` is what becomes of an occurrence whose time comes while the
        one before it goes on, its waits and retries included: ``allow`` runs it too, ``skip`` leaves it out (the
        ledger says so), ``queue`` lets it wait, ``cancel_running`` ends the other one. `keep` is how long a
        finished run is remembered (an hour at least).

        The function takes `ctx`, or `ctx` and the event's data, validated if the second parameter is
        annotated. A run started by cron has no data: give such a parameter a default or a type that takes
        None. Raises `ConfigurationError`, naming function, option, value and what is allowed.
        """
        written: dict[str, Any] = {
            "cron": cron,
            "on": on,
            "timezone": timezone,
            "retries": retries,
            "retry": retry,
            "timeout": timeout,
            "concurrency": concurrency,
            "jitter": jitter,
            "catch_up": catch_up,
            "overlap": overlap,
            "dst": dst,
            "deadline": deadline,
            "start_timeout": start_timeout,
            "cancel_on": cancel_on,
            "on_failure": on_failure,
            "keep": keep,
        }
        if misplaced:
            raise ConfigurationError(
                f"{self._name}: @app.function takes no positional arguments; "
                "write @app.function() or @app.function(cron='0 9 * * *')"
            )

        def declare(handler: Handler) -> Handler:
            full = self._identify(handler, id)
            for option in unknown:
                near = suggestion(option, ("id", *written))
                raise ConfigurationError(f"{full}: {option!r} is not an option of a function{near}")
            scope = sys._getframe(1).f_locals
            definitions = [_define(full, handler, written, scope)]
            if on_failure is not None:
                failed = _failure_handler(full, on_failure, keep, scope)
                definitions = [replace(definitions[0], on_failure=failed.id), failed]
            self._functions |= {definition.id: definition for definition in definitions}
            return handler

        return declare

    def _identify(self, handler: Any, id: str | None) -> str:
        """The function's id, if it can be one and is not taken."""
        name = id if id is not None else getattr(handler, "__name__", None)
        if name is None or name == "<lambda>":
            kind = "a lambda" if name else f"a {type(handler).__name__}"
            raise ConfigurationError(f"{self._name}: {kind} has no name; give it one with id='...'")
        full = function_id(self._name, name)
        try:
            check_id(f"{full}: id", name)
        except InvalidName as error:
            raise ConfigurationError(str(error)) from None
        _check_durable(full)
        if ":" in name:
            raise ConfigurationError(
                f"{full}: id={name!r} has ':', which numbers a function's schedules; leave it out"
            )
        if full in self._functions:
            taken = self._functions[full].handler
            raise ConfigurationError(
                f"{full}: declared already, by {_place(taken)}; give one of them another name with id='...'"
            )
        return full


def _check_durable(full: str) -> None:
    try:
        _NAMES.run_consumer(full)
    except InvalidName as error:
        raise ConfigurationError(str(error)) from None


def _failure_handler(
    full: str, handler: object, keep: Duration | None, scope: Mapping[str, Any]
) -> FunctionDefinition:
    """The function that handles the failures of another one: started by them alone."""
    if not callable(handler):
        raise ConfigurationError(
            f"{full}: on_failure={handler!r}; allowed is a function that takes (ctx) or (ctx, failed)"
        )
    failed = f"{full}{HANDLER}"
    _check_durable(failed)
    return _define(failed, handler, {**_UNWRITTEN, "keep": keep}, scope)


def _define(
    full: str, handler: Callable[..., Any], written: dict[str, Any], scope: Mapping[str, Any]
) -> FunctionDefinition:
    check_choice(full, "overlap", written["overlap"], OVERLAPS)
    if written["overlap"] == "cancel_running" and written["concurrency"] == 1:
        raise ConfigurationError(
            f"{full}: overlap='cancel_running' with concurrency=1: no executor takes a run while another one goes on, "
            "so nothing would be cancelled; allowed is a concurrency of 2 or more, or none"
        )
    check_timezone(full, written["timezone"])
    check_choice(full, "dst", written["dst"], DSTS)
    catch_up = _catch_up(full, written["catch_up"])
    cron = _crons(full, written)
    second = _second_parameter(full, handler)
    return FunctionDefinition(
        id=full,
        name=full.partition(".")[2],
        handler=handler,
        is_async=inspect.iscoroutinefunction(handler)
        or inspect.iscoroutinefunction(getattr(handler, "__call__", None)),  # noqa: B004 - the method is wanted
        cron=cron,
        on=_patterns(full, written["on"]),
        retry=_retry(full, written["retries"], written["retry"]),
        timeout=_duration(full, "timeout", written, MILLISECOND, YEAR),
        concurrency=written["concurrency"]
        if written["concurrency"] is None
        else check_int(full, "concurrency", written["concurrency"], 1, MAX_CONCURRENCY),
        jitter=_duration(full, "jitter", written, ZERO, DAY),
        catch_up=catch_up,
        overlap=written["overlap"],
        deadline=_duration(full, "deadline", written, MILLISECOND, 10 * YEAR),
        start_timeout=_duration(full, "start_timeout", written, MILLISECOND, YEAR),
        cancel_on=_cancel_on(full, written["cancel_on"]),
        keep=_duration(full, "keep", written, HOUR, 10 * YEAR),
        description=_first_line(handler),
        payload=None
        if second is None
        else PayloadReader(full, handler, second, scope=scope, cron=bool(cron)),
    )


def _duration(
    full: str, option: str, written: dict[str, Any], least: timedelta, most: timedelta
) -> timedelta | None:
    value = written[option]
    return None if value is None else check_duration(full, option, value, least, most)


def _catch_up(full: str, value: object) -> CatchUp:
    if isinstance(value, CatchUp):
        return value
    return CatchUp(check_choice(full, "catch_up", value, CATCH_UPS))  # type: ignore[arg-type]  # it is one of them


def _retry(full: str, retries: object, retry: object) -> Retry:
    if retry is None:
        return Retry(attempts=check_int(full, "retries", retries, 0, MAX_ATTEMPTS - 1) + 1)
    if retries is not _RETRIES:
        raise ConfigurationError(
            f"{full}: retries={retries!r} and retry= are both given; allowed is one of them, "
            "for Retry(attempts=...) says it too"
        )
    if not isinstance(retry, Retry):
        raise ConfigurationError(f"{full}: retry={retry!r}; allowed is a Retry(attempts, waits, jitter)")
    return retry


def _crons(full: str, written: dict[str, Any]) -> tuple[Cron, ...]:
    value = written["cron"]
    if value is None:
        for option, default in (
            ("timezone", "UTC"),
            ("dst", "default"),
            ("catch_up", "latest"),
            ("overlap", "allow"),
            ("jitter", None),
        ):
            if written[option] != default:
                raise ConfigurationError(
                    f"{full}: {option}={written[option]!r} without cron= has no effect; leave it out"
                )
        return ()
    listed = [value] if isinstance(value, str | Cron) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise ConfigurationError(
            f"{full}: cron={value!r}; allowed are a string such as '0 9 * * *', "
            "a Cron(...), or a list of them"
        )
    crons: list[Cron] = []
    for number, one in enumerate(listed, 1):
        option = f"cron={one.expression if isinstance(one, Cron) else one!r}"
        given = one if isinstance(one, Cron) else None
        expression = one.expression if isinstance(one, Cron) else one
        timezone = (given and given.timezone) or written["timezone"]
        dst = (given and given.dst) or written["dst"]
        seed = _schedule_id(full, number)
        zone = check_cron(f"{full}: {option}", expression, timezone=timezone, dst=dst, seed=seed)
        cron = Cron(expression, timezone=zone, dst=dst)
        if cron in crons:
            raise ConfigurationError(f"{full}: {option} is in the list twice; allowed is once")
        crons.append(cron)
    return tuple(crons)


def _patterns(full: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise ConfigurationError(
            f"{full}: on={value!r}; allowed are an event name or pattern such as 'order.*', or a list of them"
        )
    for number, pattern in enumerate(listed):
        try:
            check_event_name(pattern, pattern=True)
        except InvalidName as error:
            raise ConfigurationError(f"{full}: on={pattern!r}: {error}") from None
        if pattern in listed[:number]:
            raise ConfigurationError(f"{full}: on={pattern!r} is in the list twice; allowed is once")
    return tuple(listed)


def _cancel_on(full: str, value: object) -> tuple[CancelOn, ...]:
    if value is None:
        return ()
    listed = [value] if isinstance(value, CancelOn) else value
    if (
        not isinstance(listed, list | tuple)
        or not listed
        or not all(isinstance(one, CancelOn) for one in listed)
    ):
        raise ConfigurationError(
            f"{full}: cancel_on={value!r}; allowed are CancelOn('order.deleted', match={{...}}) or a list of them"
        )
    return tuple(listed)


def _second_parameter(full: str, handler: Any) -> inspect.Parameter | None:
    """The parameter that takes the data, if there is one; refuses what cannot be called as (ctx[, data])."""
    if not callable(handler) or isinstance(handler, type):
        raise ConfigurationError(f"{full}: {handler!r} is not a function")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigurationError(
            f"{full}: it is a generator, for it has `yield`; allowed are `def` and `async def` that return"
        )
    wanted = "allowed are (ctx) or (ctx, data)"
    try:
        parameters = _parameters(handler)
    except ValueError:
        raise ConfigurationError(f"{full}: its parameters cannot be read; {wanted}") from None
    if parameters and parameters[0].name in ("self", "cls"):
        raise ConfigurationError(
            f"{full}: its first parameter is {parameters[0].name!r}: a method cannot be declared "
            f"inside its class; {wanted}"
        )
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needless = [
        p.name
        for p in parameters
        if (p.kind is p.KEYWORD_ONLY or p in positional[2:]) and p.default is p.empty
    ]
    if not positional or needless:
        shown = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
        raise ConfigurationError(f"{full}: it takes {shown}; {wanted}")
    return positional[1] if len(positional) > 1 else None


def _parameters(handler: Any) -> list[inspect.Parameter]:
    if sys.version_info >= (
        3,
        14,
    ):  # annotations are evaluated when asked for: not yet, for some name later types
        import annotationlib

        return list(
            inspect.signature(handler, annotation_format=annotationlib.Format.FORWARDREF).parameters.values()
        )
    return list(inspect.signature(handler).parameters.values())


def _first_line(handler: Any) -> str:
    lines = (getattr(function_under(handler), "__doc__", None) or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def _place(handler: Any) -> str:
    code = getattr(function_under(handler), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(handler)


def _schedule_id(full: str, number: int) -> str:
    return full if number == 1 else f"{full}:{number}"


def _milliseconds(span: timedelta | None) -> int | None:
    return None if span is None else span // MILLISECOND
