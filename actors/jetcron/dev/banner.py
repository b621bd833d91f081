"""What `jetcron dev` says of an app: its functions, what starts each, and when next. Pure."""

from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

from jetcron.app import FunctionDefinition
from jetcron.clock import from_ms
from jetcron.cron import fire_times
from jetcron.dev.live import Paint, until
from jetcron.loading import Loaded
from jetcron.options import Cron
from jetcron_protocol.subjects import HANDLER


def app_lines(loaded: Loaded, now: int, paint: Paint) -> Iterator[str]:
    """A line for the app, one for each trigger of each function."""
    app = loaded.app
    yield f"  {paint('app', 'dim')}      {paint(app.name, 'bold')}  {paint(f'({loaded.target})', 'dim')}"
    if not app.functions:
        yield paint("  it has no functions yet; declare one with @app.function()", "yellow")
    width = max((len(id) for id in app.functions), default=0)
    for definition in app.functions.values():
        for number, trigger in enumerate(_triggers(definition, now, paint)):
            named = definition.id if number == 0 else ""
            yield f"    {paint(named.ljust(width), 'bold')}  {trigger}"
    yield ""


def _triggers(definition: FunctionDefinition, now: int, paint: Paint) -> Iterator[str]:
    for cron, schedule in zip(definition.cron, definition.schedule_ids(), strict=True):
        at = next_time(cron, schedule, now)
        when = f"next {at:%a %Y-%m-%d %H:%M:%S %Z}, {until(at, now)}" if at else "never again"
        yield f"cron {cron.expression}  {paint(when, 'dim')}"
    for name in definition.on:
        yield f"on {name}"
    if definition.name.endswith(HANDLER):
        yield f"when {definition.id.removesuffix(HANDLER)} has failed"
    elif not definition.cron and not definition.on:
        yield paint(f"by name: jetcron run {definition.id}", "dim")


def next_time(cron: Cron, schedule: str, now: int) -> datetime | None:
    """When a trigger fires next, in its zone."""
    zone = cron.timezone or "UTC"
    found = fire_times(
        cron.expression, timezone=zone, after=from_ms(now), dst=cron.dst or "default", seed=schedule
    )
    return found[0].astimezone(ZoneInfo(zone)) if found else None
