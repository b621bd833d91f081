"""When a zone's wall clock shows a local time, and what becomes of times it skips or shows twice.

Owns: finding a zone's changes of offset, and the timeline of pieces made of them under each daylight-saving
rule. Never does: expressions. The same pieces serve every schedule of the zone.

zoneinfo does not list a zone's changes, so they are looked for: the offset is read every twelve hours and a
difference is bisected down to the second. Two changes within twelve hours that undo each other would go
unseen; no zone has had two within three days. Nothing here assumes how large a change is (Kwajalein skipped a
day), only that it is no more than `REACH`.

Source: the rule for skipped and repeated times is that of Debian's cron (cron(8), "Daylight Saving Time").
"""

from __future__ import annotations

import difflib
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from .days import DAY
from .errors import CronError

Rule = Literal["wall", "default", "skip", "both"]
"""`wall`: the clock as it passes. The others are for fixed times, and are named as users name them."""

FIRST = int(datetime(1, 1, 3, tzinfo=UTC).timestamp())
LAST = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
"""The seconds since the epoch that schedules live between."""

REACH = 2 * DAY
"""More than any two offsets of one zone differ (Apia: 25.5 hours)."""

CHUNK = 16 * DAY
_LOCAL = {"localtime", "posixrules"}
"""What a machine calls its own zone."""

_NEAR = 0.8
"""How alike a name must be to be suggested."""

_STEP = 12 * 3_600


class Piece(NamedTuple):
    """A stretch of time, in seconds since the epoch, and the local times it stands for.

    In [start, end) each instant stands for the local time `instant + offset`. `gaps` are intervals of local
    times that the wall clock never shows, all of which stand for the instant `start`. A piece may consist of
    these alone, with end = start.
    """

    start: int
    end: int
    offset: int
    gaps: tuple[tuple[int, int], ...]


class Timeline(NamedTuple):
    pieces: tuple[Piece, ...]
    end: int


def check_zone(name: str) -> None:
    """Raise `CronError` unless this is the name of a zone of the IANA database."""
    # These depend on the machine or count leap seconds: two executors would disagree.
    odd = name.startswith(("posix/", "right/")) or name in _LOCAL
    try:
        if not odd:
            _zone(name)
            return
    except (KeyError, ValueError, OSError):
        pass
    names = {known.lower(): known for known in zoneinfo.available_timezones() - _LOCAL}
    cities = {known.rpartition("/")[2].lower(): known for known in sorted(names.values())}
    wanted = name.strip().lower().replace(" ", "_")
    close = [names[near] for near in difflib.get_close_matches(wanted, names, n=1, cutoff=_NEAR)]
    if not close:
        city = wanted.rpartition("/")[2]
        close = [cities[near] for near in difflib.get_close_matches(city, cities, n=1, cutoff=_NEAR)]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise CronError(f"the time zone {name!r} is not one of the IANA names, such as 'America/New_York'{hint}")


@lru_cache(maxsize=1_024)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


@lru_cache(maxsize=16_384)
def timeline(name: str, rule: Rule, chunk: int) -> Timeline:
    """The pieces of the chunk that starts at chunk * CHUNK; of all time, in a zone that never changes."""
    fixed = _zone(name).utcoffset(None)
    if fixed is not None:
        return Timeline((Piece(FIRST - DAY, LAST + 1, _seconds(fixed), ()),), LAST + 1)
    start, end = chunk * CHUNK, (chunk + 1) * CHUNK
    return Timeline(tuple(_clip(_pieces(_stretches(name, chunk), rule), start, end)), end)


def _stretches(name: str, chunk: int) -> list[tuple[int, int, int]]:
    """(start, end, offset) over a chunk and its neighbours, for these decide what is repeated in it."""
    changes: list[tuple[int, int]] = []
    for near in (chunk - 1, chunk, chunk + 1):
        for change in _changes(name, near):
            if not changes or changes[-1][1] != change[1]:
                changes.append(change)
    ends = [start for start, _ in changes[1:]] + [(chunk + 2) * CHUNK]
    return [(start, end, offset) for (start, offset), end in zip(changes, ends, strict=True)]


def _pieces(stretches: Sequence[tuple[int, int, int]], rule: Rule) -> list[Piece]:
    if rule == "wall" or len(stretches) == 1:
        return [Piece(start, end, offset, ()) for start, end, offset in stretches]
    shown = [(start + offset, end + offset) for start, end, offset in stretches]
    pieces: list[Piece] = []
    skipped: list[tuple[int, int]] = []
    for i, (start, _, offset) in enumerate(stretches):
        gaps: list[tuple[int, int]] = []
        if i and rule != "skip" and shown[i - 1][1] < shown[i][0]:
            gaps = _without([(shown[i - 1][1], shown[i][0])], shown + skipped)
            skipped += gaps
        parts = [shown[i]] if rule == "both" else _without([shown[i]], shown[:i])
        if gaps and not (parts and parts[0][0] == shown[i][0]):
            pieces.append(Piece(start, start, offset, tuple(gaps)))
            gaps = []
        for low, high in parts:
            pieces.append(Piece(low - offset, high - offset, offset, tuple(gaps)))
            gaps = []
    return pieces


def _without(intervals: list[tuple[int, int]], taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    for low, high in taken:
        intervals = [
            part
            for start, end in intervals
            for part in ((start, min(end, low)), (max(start, high), end))
            if part[0] < part[1]
        ]
    return intervals


def _clip(pieces: Sequence[Piece], start: int, end: int) -> list[Piece]:
    clipped = []
    for piece in pieces:
        gaps = piece.gaps if start <= piece.start < end else ()
        low, high = max(piece.start, start), min(piece.end, end)
        if gaps or low < high:
            clipped.append(Piece(low, max(low, high), piece.offset, gaps))
    return clipped


@lru_cache(maxsize=16_384)
def _changes(name: str, chunk: int) -> tuple[tuple[int, int], ...]:
    """(instant, offset from then on) for the start of a chunk and each change in it."""
    zone = _zone(name)
    last = (chunk + 1) * CHUNK - 1
    at = chunk * CHUNK
    offset = _offset(zone, at)
    found = [(at, offset)]
    while at < last:
        later = min(at + _STEP, last)
        offset_later = _offset(zone, later)
        if offset_later != offset:
            _bisect(zone, at, offset, later, offset_later, found)
        at, offset = later, offset_later
    return tuple(found)


def _bisect(
    zone: ZoneInfo, low: int, offset_low: int, high: int, offset_high: int, found: list[tuple[int, int]]
) -> None:
    if offset_low == offset_high:
        return
    if high - low == 1:
        found.append((high, offset_high))
        return
    middle = (low + high) // 2
    offset = _offset(zone, middle)
    _bisect(zone, low, offset_low, middle, offset, found)
    _bisect(zone, middle, offset, high, offset_high, found)


def _offset(zone: ZoneInfo, instant: int) -> int:
    # datetime ends with years 1 and 9999, and a zone's own arithmetic needs a day of room on either side.
    instant = min(max(instant, FIRST), LAST - 2 * DAY)
    found = zone.fromutc(datetime(1970, 1, 1, tzinfo=zone) + timedelta(0, instant)).utcoffset()
    return 0 if found is None else _seconds(found)


def _seconds(offset: timedelta) -> int:
    return offset.days * DAY + offset.seconds
