"""Every zone of the database around its changes of offset, against an oracle that walks the minutes."""

from __future__ import annotations

import random
import zoneinfo
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from jetcron.cron import CronError, fire_times, parse
from tests.support.cron_oracle import Minutes, changes, fires

FIRST_YEAR, LAST_YEAR = 1990, 2037
BATCHES = 8
SEEN, JUDGED = timedelta(hours=30), timedelta(hours=25)
# What the machine calls its own zone is no zone of the database, and refused.
NAMES = zoneinfo.available_timezones() - {"localtime", "posixrules"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

WILDCARDS = ("*/15 * * * *", "0 * * * *", "30 0-3/1 * * *", "* 1,2 * * *", "*/20 23-1 * * 6,0", "0 */3 * * *")
FIXED = (
    "0 0 * * *",
    "30 2 * * *",
    "0,15,45 0-23 * * *",
    "30 1 * * SUN",
    "0-59 0-3 * * *",
    "15 23-1 * * *",
    "59 23 L * *",
    "0 12 * * 1-5",
    "0 2 1-7 * SUN",
    "45 2 */2 * SAT,SUN",
)


def _file(name: str) -> bytes:
    for folder in zoneinfo.TZPATH:
        path = Path(folder, name)
        if path.is_file():
            return path.read_bytes()
    return resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()


@lru_cache(maxsize=1)
def _zones() -> list[list[str]]:
    """All zones, those that are one under several names together."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name in sorted(NAMES):
        groups[_file(name)].append(name)
    return list(groups.values())


def _sample(zone: ZoneInfo) -> list[datetime]:
    """The first and the last of each kind of change (how much, when in the day): three, the rarest first."""
    kinds: dict[tuple[timedelta, str], list[datetime]] = defaultdict(list)
    for change in changes(zone, FIRST_YEAR, LAST_YEAR):
        before = (change - timedelta(minutes=1)).astimezone(zone)
        after = change.astimezone(zone)
        jump = after.replace(tzinfo=None) - before.replace(tzinfo=None)
        kinds[jump, f"{before:%H:%M}"].append(change)
    rarest_first = sorted(kinds.values(), key=len)
    return [change for times in rarest_first for change in dict.fromkeys((times[0], times[-1]))][:3]


def _ms(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(milliseconds=1)


def check(name: str, change: datetime, expressions: list[tuple[str, str]]) -> int:
    minutes = Minutes(ZoneInfo(name), change - SEEN, change + SEEN)
    start, end = change - JUDGED, change + JUDGED
    for expression, dst in expressions:
        expected = [instant for instant in fires(expression, minutes, dst) if start < instant <= end]
        said = f"{expression!r} in {name}, dst={dst}, around {change}"
        parsed = parse(expression, timezone=name, dst=dst)  # type: ignore[arg-type]
        window = parsed.window(_ms(start), _ms(end), 10_000)
        assert window.count == len(expected), said
        assert list(window.newest) == [_ms(instant) for instant in expected], said
        at, found = _ms(start), []
        while (following := parsed.next_after(at)) is not None and following <= _ms(end):
            found.append(following)
            at = following
        assert found == list(window.newest), said
    return len(expressions)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_zone_around_its_changes(batch: int) -> None:
    judged = 0
    for number, names in enumerate(_zones()):
        if number % BATCHES != batch:
            continue
        zone = ZoneInfo(names[0])
        for change in _sample(zone):
            rng = random.Random(f"{names[0]} {change}")
            # Just before the change the clock shows what is skipped next, or what is about to be repeated.
            before = (change - timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None)
            near = before + timedelta(minutes=rng.choice((1, 11, 31, 61)))
            repeated = before - timedelta(minutes=rng.choice((0, 9, 29, 45)))
            touched = f"{near.minute} {near.hour} * * *"
            on_the_day = (
                f"{repeated.minute},{near.minute} {repeated.hour},{near.hour} {near.day} {near.month} *"
            )
            fixed = rng.sample(FIXED, 2)
            cases = [
                *((touched, dst) for dst in ("default", "skip", "both")),
                *((on_the_day, dst) for dst in ("default", "skip", "both")),
                (fixed[0], "default"),
                (fixed[1], rng.choice(("default", "skip", "both"))),
                *(
                    (wildcard, rng.choice(("default", "skip", "both")))
                    for wildcard in rng.sample(WILDCARDS, 2)
                ),
            ]
            judged += check(names[0], change, cases)
    assert judged > 100


def test_every_name_is_accepted_and_agrees_with_its_other_names() -> None:
    after = datetime(2024, 3, 1, tzinfo=UTC)
    total = 0
    for names in _zones():
        times = [fire_times("30 2 * * *", timezone=name, after=after, count=3) for name in names]
        assert all(found == times[0] for found in times), names
        total += len(names)
    assert total == len(NAMES) > 400


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # all of 30 December
        ("Pacific/Kwajalein", datetime(1993, 8, 21, 12, tzinfo=UTC)),  # all of 21 August
        ("Pacific/Kiritimati", datetime(1994, 12, 31, 10, tzinfo=UTC)),
        ("Australia/Lord_Howe", datetime(2024, 4, 6, 15, tzinfo=UTC)),  # half an hour
        ("Australia/Lord_Howe", datetime(2024, 10, 5, 15, 30, tzinfo=UTC)),
        ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),  # midnight is skipped
        ("America/Havana", datetime(2024, 3, 10, 5, tzinfo=UTC)),
        ("America/Havana", datetime(2024, 11, 3, 5, tzinfo=UTC)),  # midnight comes twice
        ("Asia/Pyongyang", datetime(2015, 8, 14, 15, tzinfo=UTC)),
        ("America/Caracas", datetime(2016, 5, 1, 7, tzinfo=UTC)),
        ("Antarctica/Troll", datetime(2024, 3, 31, 1, tzinfo=UTC)),  # two hours
        ("Europe/Dublin", datetime(2024, 10, 27, 1, tzinfo=UTC)),
        ("Antarctica/Casey", datetime(2018, 3, 10, 17, tzinfo=UTC)),
        ("America/Goose_Bay", datetime(2010, 11, 7, 3, 1, tzinfo=UTC)),  # back across midnight
        ("America/New_York", datetime(2500, 3, 14, 7, tzinfo=UTC)),
    ],
)
def test_odd_changes_under_every_expression(name: str, change: datetime) -> None:
    dates = ["30 0,12 30 12 *", "0 9 21 8 *", "5,35 1-2 31 * *"]
    cases = [(text, dst) for text in (*FIXED, *WILDCARDS, *dates) for dst in ("default", "skip", "both")]
    check(name, change, cases)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Foo/Bar", None),
        ("Europe/Nowhere", None),
        ("Mars", None),
        ("Europe/Prag", "Europe/Prague"),
        ("Prague", "Europe/Prague"),
        ("Europe/New_York", "America/New_York"),
        ("new york", "America/New_York"),
    ],
)
def test_only_a_name_that_is_near_is_suggested(name: str, hint: str | None) -> None:
    with pytest.raises(CronError) as refused:
        parse("0 9 * * *", timezone=name)
    _, asked, near = str(refused.value).partition("did you mean ")
    assert (near if asked else None) == (f"{hint!r}?" if hint else None)
