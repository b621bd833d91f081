"""How the difference between a file of schedules and what stands is shown: to people as a diff, to programs as JSON.

Owns how values look: as their author would write them, for durations and times travel as milliseconds. What is left out
of a definition is shown as what it means.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from jetcron.cli import output
from jetcron.definitions import FIELDS, definition
from jetcron.options import MILLISECOND, readable
from jetcron.schedules.orders import Part
from jetcron.schedules.plan import Change, Plan
from jetcron_protocol.messages import Schedule

_SHOWN = 200
"""Lines that are shown; the others are counted."""
_WIDTH = 60
_SPANS = ("every", "jitter", "catch_up_within")
_TIMES = ("at", "start", "end")
_UNSAID = Schedule(id="-", function="-.-", origin="data")
"""What a schedule is where nothing is said of it."""


def show(plan: Plan) -> None:
    """What changes, as a diff: + is created, ~ changes, - goes."""
    console = output.out()
    for line in islice(_lines(plan), _SHOWN):
        console.print(line)
    more = plan.size + sum(len(change.fields) for change in plan.update) - _SHOWN
    if more > 0:
        console.print(f"[dim]and {output.counted(more, 'line')} more[/dim]")
    console.print(
        f"{len(plan.create):,} to create, {len(plan.update):,} to update, {len(plan.delete):,} to delete, "
        f"{plan.unchanged:,} unchanged"
    )


def _lines(plan: Plan) -> Iterator[str]:
    for part in plan.create:
        yield f"[green]+ {output.escape(part.id)}[/green]  {_created(part)}"
    for change in plan.update:
        yield from _changed(change)
    for part in plan.delete:
        yield f"[red]- {output.escape(part.id)}[/red]"


def plain(plan: Plan) -> dict[str, Any]:
    """The same for programs: values are those of `jetcron schedules list --json`."""
    return {
        "create": [
            {"id": part.id, **{name: _plain(name, value) for name, value in _defined(part).items()}}
            for part in plan.create
        ],
        "update": [
            {
                "id": change.part.id,
                "fields": {name: [_plain(name, one) for one in pair] for name, pair in change.fields.items()},
            }
            for change in plan.update
        ],
        "delete": [part.id for part in plan.delete],
        "unchanged": plan.unchanged,
    }


def _defined(part: Part) -> Mapping[str, Any]:
    """All that is not so by default."""
    assert part.checked is not None, "what has a fault is not planned"
    found = definition(part.checked)
    return {name: found[name] for name in FIELDS if name in found}


def _created(part: Part) -> str:
    return "  ".join(f"{name}={_value(name, value)}" for name, value in _defined(part).items())


def _changed(change: Change) -> Iterator[str]:
    yield f"[yellow]~ {output.escape(change.part.id)}[/yellow]"
    for name, (old, new) in change.fields.items():
        yield f"    {name}: [red]{_value(name, old)}[/red] → [green]{_value(name, new)}[/green]"


def _meant(name: str, value: Any) -> Any:
    return getattr(_UNSAID, name) if value is None else value


def _value(name: str, value: Any) -> str:
    value = _meant(name, value)
    if value is None or value == [] or (name in _SPANS and not value):
        return "none"
    if name in _SPANS:
        return readable(value * MILLISECOND)
    if name in _TIMES:
        return output.moment(value) or ""
    if name == "tags":
        return output.first_line(", ".join(value), _WIDTH)
    return output.first_line(value if isinstance(value, str) else output.compact(value), _WIDTH)


def _plain(name: str, value: Any) -> Any:
    value = _meant(name, value)
    if name in _SPANS:
        return value / 1_000 if value else None
    return output.moment(value) if name in _TIMES else value
