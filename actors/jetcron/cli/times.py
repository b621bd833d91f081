"""`next`: when an expression fires. Talks to no server."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from jetcron.cli import output
from jetcron.clock import SystemClock, from_ms
from jetcron.cron import CronError, fire_times
from jetcron.cron.durations import is_duration, parse_duration
from jetcron.options import MILLISECOND


class Dst(StrEnum):
    """What happens where clocks change."""

    default = "default"
    skip = "skip"
    both = "both"


def add_to(app: typer.Typer) -> None:
    """Add this verb."""
    app.command("next")(next_times)


def next_times(
    expression: Annotated[
        str, typer.Argument(metavar="EXPR", help="Such as '0 9 * * MON-FRI', '@daily', '@every 90s'.")
    ],
    timezone: Annotated[str, typer.Option("--timezone", "-z", metavar="ZONE", help="An IANA zone.")] = "UTC",
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="ISO", help="Times later than this; without an offset, in the zone."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000)] = 5,
    dst: Annotated[Dst, typer.Option("--dst", help="What happens where clocks change.")] = Dst.default,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """When a cron expression fires next, in its zone and in UTC. Needs no server."""
    try:
        fire_times(expression, timezone=timezone, after=from_ms(0), dst=dst.value)
        zone = _zone(expression, timezone)
        start = parse_moment(after, zone) if after else from_ms(SystemClock().now())
        times = fire_times(expression, timezone=timezone, after=start, count=count, dst=dst.value)
    except CronError as error:
        output.fail(str(error))
    if json:
        output.print_json([{"utc": at, "local": at.astimezone(zone)} for at in times])
        return
    output.table(
        times,
        {
            str(zone): lambda at: f"{at.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}",
            "UTC" if str(zone) != "UTC" else "ISO": lambda at: f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}Z",
        },
        empty="it fires no more before the year 10000",
    )


def _zone(expression: str, timezone: str) -> ZoneInfo:
    """The zone it fires in: a prefix in the expression wins."""
    first, _, _ = expression.strip().partition(" ")
    name, equals, zone = first.partition("=")
    return ZoneInfo(zone if equals and name in ("CRON_TZ", "TZ") else timezone)


def parse_moment(text: str, zone: ZoneInfo | None = None) -> datetime:
    """An aware datetime from ISO 8601, in `zone` (UTC) when it names none; a usage error for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; write ISO 8601, such as 2030-01-31T09:00:00Z"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone or UTC)


def parse_span(option: str, text: str) -> timedelta:
    """A duration, such as 90s or 1h30m, or one below a second, such as 400ms; a usage error for anything else."""
    digits = text.removesuffix("ms")
    if digits != text and digits.isdecimal() and 0 < int(digits) < 1_000:
        return int(digits) * MILLISECOND
    try:
        return parse_duration(text)
    except CronError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def parse_past(text: str, now: int) -> datetime:
    """A time from ISO 8601, or a duration before `now` (epoch ms), such as 2h; a usage error for anything else."""
    if not is_duration(text):
        try:
            return parse_moment(text)
        except typer.BadParameter:
            raise typer.BadParameter(
                f"{text!r} is no time; write how long ago, such as 90m, 2h or 7d, or ISO 8601, such as "
                "2030-01-31T09:00:00Z"
            ) from None
    try:
        return from_ms(now) - parse_duration(text)
    except (CronError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from None
