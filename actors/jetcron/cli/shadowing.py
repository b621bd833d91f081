"""`shadow`: when the old scheduler fired, beside when Jetcron would have.

Owns the time that is watched. Reports are events, stored in the events stream by whoever sends them: should this
process die, `--since` compares what was reported meanwhile.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import typer

from jetcron.bus import Bus
from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.cli.schedule_reading import read
from jetcron.cli.shadow_http import receive
from jetcron.cli.shadow_shown import Seen, plain, show, tell_of_silence
from jetcron.cli.times import parse_past, parse_span
from jetcron.clock import SystemClock, to_ms
from jetcron.errors import ConfigurationError, ScheduleRefused
from jetcron.events import Event, store_events, to_wire
from jetcron.given import checked
from jetcron.loop import run as run_loop
from jetcron.options import MILLISECOND
from jetcron.schedules.views import Filter
from jetcron.shadow import (
    ALLOWED,
    EVENT,
    Report,
    check_tolerance,
    compare,
    read_report,
)
from jetcron_protocol.codec import DecodeError, decode, decode_event
from jetcron_protocol.messages import Schedule


def add_to(app: typer.Typer) -> None:
    """Add this verb."""
    app.command("shadow")(shadow)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is compared: `file` or those in the registry that pass `filter`, from `since` on, for `length` ms."""

    file: str | None
    filter: Filter
    since: int | None
    until: int | None
    length: int | None
    tolerance: int
    event: str
    http: tuple[str, int] | None


def shadow(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]", help="A file of schedules; without one, those in the registry, paused too."
        ),
    ] = None,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Watch so long from now: 90s, 30m, 24h.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="WHEN",
            help="Compare what was reported from then on: so long ago, such as 24h, or ISO.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="WHEN", help="With --since: up to then, as there; else up to now."),
    ] = None,
    tolerance: Annotated[
        str,
        typer.Option(
            "--tolerance",
            metavar="DURATION",
            help="A report so far from its time is in time: under half the shortest period, such as 2s or 400ms.",
        ),
    ] = "2s",
    app_: Annotated[str | None, typer.Option("--app", metavar="APP", help="Of this app alone.")] = None,
    function: Annotated[
        str | None, typer.Option("--function", "-f", metavar="APP.FUNCTION", help="Of this function alone.")
    ] = None,
    tag: Annotated[str | None, typer.Option("--tag", "-t", help="That have this tag.")] = None,
    http: Annotated[
        str | None,
        typer.Option(
            "--http", metavar="[HOST:]PORT", help="Take reports by HTTP POST, too; HOST is 127.0.0.1."
        ),
    ] = None,
    event: Annotated[
        str, typer.Option("--event", metavar="NAME", help="The event that reports a firing.")
    ] = EVENT,
    json: Json = False,
) -> None:
    """Compare when another scheduler fires with when Jetcron would; exit code 1 if they differ.

    The other one reports each firing: an event, with {"schedule": ID} or {"function": APP.FUNCTION}, and "at" if it
    knows better than the time of the report. Ctrl-C compares what there is so far.
    """
    if (for_ is None) == (since is None):
        raise typer.BadParameter("give --for DURATION, or --since ISO")
    if until is not None and since is None:
        raise typer.BadParameter("--until goes with --since")
    now = SystemClock().now()
    end = None if until is None else to_ms(parse_past(until, now))
    if end is not None and end > now:
        raise typer.BadParameter(
            f"--until: {until} is to come; allowed are times up to now, or --for DURATION"
        )
    Event(event)  # a name that cannot be is told here
    asked = _Asked(
        file,
        Filter(app_, function, None, tag),
        None if since is None else to_ms(parse_past(since, now)),
        end,
        None if for_ is None else parse_span("--for", for_) // MILLISECOND,
        parse_span("--tolerance", tolerance) // MILLISECOND,
        event,
        None if http is None else _address(http),
    )
    seen = run_loop(_work(asked))
    if json:
        output.print_json(plain(seen))
    else:
        show(seen)
    tell_of_silence(seen)
    if seen.found.differences or seen.unread:
        raise typer.Exit(1)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65_535:
        raise typer.BadParameter(f"--http {text!r}; allowed is [HOST:]PORT, such as 8125")
    return host or "127.0.0.1", int(port)


async def _work(asked: _Asked) -> Seen:
    async with Bus(session.settings(), name="jetcron shadow") as bus:
        if asked.length is None:
            assert asked.since is not None
            first, since, until = 1, asked.since, asked.until or bus.clock.now()
            schedules = await _schedules(bus, asked, since)
            check_tolerance(schedules, since=since, until=until, tolerance=asked.tolerance)
        else:
            # What is reported a little early belongs to it: so the time begins when reports are read for so long.
            first = (await bus.stream_state(bus.names.events)).last_sequence + 1
            since = bus.clock.now() + asked.tolerance
            schedules = await _schedules(bus, asked, since)
            until = since + asked.length
            check_tolerance(schedules, since=since, until=until, tolerance=asked.tolerance)
            until = await _watch(bus, asked, schedules, until)
        if until <= since:
            raise ConfigurationError("no time has passed that could be compared")
        kept = bus.settings.events_max_age
        if bus.clock.now() - since > kept * 1_000:
            raise ConfigurationError(
                f"--since is {output.moment(since)}; reports are kept {timedelta(seconds=kept)}: name a later time"
            )
        reports, unread = await _reports(bus, asked.event, first, since - asked.tolerance)
        found = compare(schedules, reports, since=since, until=until, tolerance=asked.tolerance)
        return Seen(found, len(reports), unread, _how(asked, schedules))


def _how(asked: _Asked, schedules: Sequence[Schedule]) -> str:
    """The command that reports a firing."""
    return f"""jetcron send {asked.event} '{{"schedule": "{schedules[0].id}"}}'"""


async def _schedules(bus: Bus, asked: _Asked, since: int) -> list[Schedule]:
    """Those that are compared; `ConfigurationError` when there are none."""
    if asked.file is not None:
        found = [one for one in _from_file(asked.file, since) if asked.filter.passes(one)]
    else:
        found = []
        async for page in bus.pages(bus.names.registry, bus.names.schedules, size=1_000):
            found += [one for stored in page if asked.filter.passes(one := decode(Schedule, stored.payload))]
    if not found:
        raise ConfigurationError(f"there are no such schedules in {asked.file or 'the registry'}")
    return found


def _from_file(file: str, since: int) -> list[Schedule]:
    schedules = []
    faults: dict[str, list[str]] = {}
    for number, values in enumerate(read(file), 1):
        if not isinstance(values, dict):
            faults[f"#{number}"] = [f"a schedule is a map, not {type(values).__name__}"]
            continue
        _, found = checked(values, now=since)
        if found.schedule is None:
            faults[found.name or f"#{number}"] = found.faults
        else:
            schedules.append(found.schedule)
    if faults:
        raise ScheduleRefused(faults)
    return schedules


async def _watch(bus: Bus, asked: _Asked, schedules: list[Schedule], until: int) -> int:
    """Wait until the time is over, and what may come a little late for its end; until when it was."""
    assert asked.length is not None
    stopped = asyncio.Event()
    async with _endpoint(bus, asked) as where:
        report = where + _how(asked, schedules)
        output.say(
            f"[dim]comparing {output.counted(len(schedules), 'schedule')} for {output.span(asked.length)}; "
            f"report each firing: {output.escape(report)}[/dim]"
        )
        with contextlib.suppress(NotImplementedError, ValueError):  # Windows, and threads but the main one
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout((until + asked.tolerance - bus.clock.now()) / 1_000):
                await stopped.wait()
    return bus.clock.now() - asked.tolerance if stopped.is_set() else until


@contextlib.asynccontextmanager
async def _endpoint(bus: Bus, asked: _Asked) -> AsyncIterator[str]:
    """Take reports by HTTP while the context is open, if that was asked for; how to send one."""
    if asked.http is None:
        yield ""
        return

    async def store(data: dict[str, Any]) -> None:
        await store_events(bus, [to_wire(Event(asked.event, data), now=bus.clock.now())])

    with receive(*asked.http, store, asyncio.get_running_loop()) as port:
        yield f"curl -d schedule=ID http://{asked.http[0]}:{port}/  or  "
        # Whoever waits for an answer gets it before the server goes: closing does not turn the loop.
        await bus.clock.sleep(0)


async def _reports(bus: Bus, event: str, first: int, since: int) -> tuple[list[Report], list[str]]:
    """What was reported under sequences from `first` on and stored since then; and what cannot be read."""
    names = bus.names
    reports: list[Report] = []
    unread: list[str] = []
    last = await bus.last(names.events, names.event(event))
    async for page in bus.between(names.events, names.event(event), first, last.sequence if last else 0):
        for stored in page:
            if stored.stored_at < since:
                continue
            try:
                found = decode_event(
                    event,
                    stored.payload,
                    stored.headers,
                    sequence=stored.sequence,
                    stored_at=stored.stored_at,
                )
                reports.append(read_report(found.data, stored.stored_at))
            except DecodeError:
                unread.append(
                    f"message {stored.sequence}: {stored.payload[:40]!r}; {ALLOWED}, as JSON or msgpack"
                )
            except ConfigurationError as error:
                unread.append(f"message {stored.sequence}: {error}")
    return reports, unread
