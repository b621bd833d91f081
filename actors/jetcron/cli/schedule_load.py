"""`jetcron schedules load`: how many schedules fire in each minute of the next day, drawn in the terminal."""

from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.cron import CronError
from jetcron.cron.zones import check_zone
from jetcron.schedules.load import MINUTE, Load

_BARS = "▁▂▃▄▅▆▇█"
_HOUR = 60


def add_to(app: typer.Typer) -> None:
    """Add this verb."""
    app.command("load")(load)


def load(
    hours: Annotated[int, typer.Option("--hours", min=1, max=166, help="How far to look.")] = 24,
    timezone: Annotated[str, typer.Option("--timezone", "-z", metavar="ZONE", help="An IANA zone.")] = "UTC",
    json: Json = False,
) -> None:
    """How many fire in each minute of the next day: a herd is seen before it runs."""
    try:
        check_zone(timezone)
    except CronError as error:
        raise typer.BadParameter(f"--timezone: {error}") from None

    async def work(client: Client) -> Load:
        with output.progress("reading schedules", await client.schedules.count()) as advance:
            return await client.schedules.load(hours * _HOUR, progress=advance)

    found = session.with_client(work)
    if json:
        minutes = [
            {"minute": output.moment(found.start + number * MINUTE), "fires": count}
            for number, count in enumerate(found.counts)
            if count
        ]
        output.print_json({"schedules": found.schedules, "total": found.total, "minutes": minutes})
        return
    console = output.out()
    for line in plot(found, ZoneInfo(timezone)):
        console.print(line)


def plot(found: Load, zone: ZoneInfo) -> list[str]:
    """A line for each hour, a bar for each minute, as high as it is full beside the fullest of all."""
    most = max(found.counts, default=0)
    lines = [
        f"[dim]{'':16}{''.join(f':{minute:02}'.ljust(15) for minute in range(0, _HOUR, 15))}"
        f"{'fires':>10}{'most':>8}[/dim]"
    ]
    for start, minutes in _hours(found, zone):
        bars = "".join(" " if count is None else _bar(count, most) for count in minutes)
        known = [count for count in minutes if count is not None]
        label = f"{from_ms(start).astimezone(zone):%m-%d %H:00 %Z}"
        lines.append(f"[dim]{label:16}[/dim]{bars}{sum(known):>10,}{max(known):>8,}")
    lines.append(
        f"[dim]{output.counted(found.schedules, 'active schedule')}, "
        f"{output.counted(found.total, 'time')}[/dim]"
    )
    for at, count in found.peaks(3):
        lines.append(f"{from_ms(at).astimezone(zone):%m-%d %H:%M %Z}  {count:,} at most in one minute")
    return lines


def _hours(found: Load, zone: ZoneInfo) -> list[tuple[int, list[int | None]]]:
    """The minutes by the hour of the wall clock, as its zone has it; None where the stretch has not begun, or ended."""
    hours: dict[int, list[int | None]] = {}
    for number, count in enumerate(found.counts):
        at = found.start + number * MINUTE
        minute = from_ms(at).astimezone(zone).minute
        hours.setdefault(at - minute * MINUTE, [None] * _HOUR)[minute] = count
    return sorted(hours.items())


def _bar(count: int, most: int) -> str:
    if not count:
        return "[dim]·[/dim]"
    return _BARS[(count * len(_BARS) - 1) // most]
