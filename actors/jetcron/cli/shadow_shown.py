"""How what `shadow` found is shown: to people as a table of differences, to programs as JSON."""

from dataclasses import dataclass
from typing import Any

from jetcron.cli import output
from jetcron.shadow import Comparison, Difference

_SHOWN = 200
"""Differences that are shown; the others are counted."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a comparison: of how many reports, which were not to be read, and how one is sent."""

    found: Comparison
    reports: int
    unread: list[str]
    how: str


def tell_of_silence(seen: Seen) -> None:
    """Say how firings are reported, where none was: that they are all missing is not what is wrong."""
    if not seen.reports and not seen.unread:
        output.say(f"[yellow]not one report came; report each firing: {output.escape(seen.how)}[/yellow]")


def show(seen: Seen) -> None:
    found, unread = seen.found, seen.unread
    output.table(
        found.differences[:_SHOWN],
        {
            "schedule": lambda one: output.escape(one.schedule or ""),
            "function": lambda one: output.escape(one.function or ""),
            "due": lambda one: output.moment(one.due) or "",
            "reported": lambda one: output.moment(one.reported) or "",
            "difference": _told,
        },
        empty="no differences",
    )
    if len(found.differences) > _SHOWN:
        output.say(f"[dim]and {len(found.differences) - _SHOWN:,} more[/dim]")
    for text in unread[:_SHOWN]:
        output.say(f"[yellow]a report that cannot be read: {output.escape(text)}[/yellow]")
    kinds = {
        kind: sum(one.kind == kind for one in found.differences) for kind in ("missing", "late", "extra")
    }
    said = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    output.say(f"{found.occurrences:,} occurrences, {found.in_time:,} reported in time; {said}")


def _told(one: Difference) -> str:
    if one.kind == "late":
        assert one.due is not None
        assert one.reported is not None
        return f"[yellow]late by {output.span(one.reported - one.due)}[/yellow]"
    return f"[red]{one.kind}[/red]"


def plain(seen: Seen) -> dict[str, Any]:
    differences = [
        output.jsonable(one) | {"due": output.moment(one.due), "reported": output.moment(one.reported)}
        for one in seen.found.differences
    ]
    whole = output.jsonable(seen.found) | {"differences": differences}
    return {"unread": seen.unread, "reports": seen.reports, **whole}
