"""`import`: schedules of crontab, Celery beat and APScheduler as a file for `jetcron schedules apply`.

Owns the reading of what is imported and the file that is written; what entries mean is `jetcron.migrate`'s. Talks to no
server.
"""

import contextlib
import json as json_
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from jetcron.cli import output
from jetcron.cli.functions import Json
from jetcron.cli.schedule_reading import LINES
from jetcron.clock import SystemClock
from jetcron.cron import CronError, parse
from jetcron.errors import ConfigurationError
from jetcron.loading import load_object
from jetcron.migrate import Entry, Naming, settled
from jetcron.migrate import apscheduler as apscheduler_
from jetcron.migrate import celery as celery_
from jetcron.migrate import crontab as crontab_

app = typer.Typer(
    no_args_is_help=True,
    help="Take over schedules of crontab, Celery beat or APScheduler. Needs no server.",
)

App = Annotated[
    str | None, typer.Option("--app", metavar="APP", help="The app of functions that --map does not name.")
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="OLD=APP.FUNCTION",
        help="The function that takes the place of an old name; OLD may have * in it. Repeatable.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write a file for 'jetcron schedules apply': .yaml or .jsonl."
    ),
]
HandOver = Annotated[
    bool,
    typer.Option(
        "--executes-other",
        help="The old scheduler goes on executing them, until 'jetcron schedules hand-over'.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file.")]


@app.command("crontab")
def crontab(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A crontab; - reads stdin (crontab -l | …).")],
    timezone: Annotated[
        str | None,
        typer.Option(
            "--timezone", "-z", metavar="ZONE", help="The zone of its machine; else this machine's."
        ),
    ] = None,
    system: Annotated[
        bool, typer.Option("--system", help="Lines name a user, as in /etc/crontab and /etc/cron.d.")
    ] = False,
    app: App = None,
    map: Maps = None,
    out: Out = None,
    executes_other: HandOver = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """The lines of a crontab. Its commands stand in the payloads: your functions do what they did."""
    naming = Naming.of(app, map or ())
    zone = timezone if timezone is not None else _own_zone()
    try:
        parse("* * * * *", timezone=zone)
    except CronError as error:
        raise ConfigurationError(f"--timezone: {str(error).partition(': ')[2]}") from None
    entries = crontab_.read(_lines(file), naming, timezone=zone, system=system)
    said = (
        []
        if timezone is not None
        else [f"times are in {zone}, this machine's zone; --timezone names another"]
    )
    _finish(file, entries, said, out, executes_other, force, json)


@app.command("celery")
def celery(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:APP", help="Your Celery app, such as proj.celery:app.")
    ],
    app: App = None,
    map: Maps = None,
    out: Out = None,
    executes_other: HandOver = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """The entries of a Celery app's beat_schedule."""
    naming = Naming.of(app, map or ())
    found: Any = load_object(target, "app")
    if not hasattr(getattr(found, "conf", None), "beat_schedule"):
        raise ConfigurationError(f"{target} is a {type(found).__name__}; allowed is a Celery app")
    # As beat does before it reads them: entries and parameters may be in modules nobody imported yet.
    try:
        found.loader.import_default_modules()
        found.finalize()
    except Exception as error:  # noqa: BLE001 - the user's modules may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{target}: what it includes cannot be imported: {said}") from None
    entries = celery_.read(found, naming, now=SystemClock().now())
    _finish(target, entries, celery_.notes(found), out, executes_other, force, json)


@app.command("apscheduler")
def apscheduler(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:SCHEDULER", help="Your scheduler (3.x), not started, or paused.")
    ],
    realign: Annotated[
        bool,
        typer.Option(
            "--realign", help="Take intervals that no schedule can say from their start, from the epoch."
        ),
    ] = False,
    app: App = None,
    map: Maps = None,
    out: Out = None,
    executes_other: HandOver = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """The jobs of an APScheduler 3 scheduler."""
    naming = Naming.of(app, map or ())
    found: Any = load_object(target, "scheduler")
    if not callable(getattr(found, "get_jobs", None)):
        raise ConfigurationError(
            f"{target} is a {type(found).__name__}; allowed is a scheduler of APScheduler 3"
        )
    if apscheduler_.is_version_4(found):
        raise ConfigurationError(f"{target} is a scheduler of APScheduler 4; allowed is one of 3.x")
    now = SystemClock().now()
    entries = apscheduler_.read(found, naming, now=now, realign=realign)
    _finish(target, entries, apscheduler_.notes(found, now=now), out, executes_other, force, json)


def _lines(file: str) -> list[str]:
    """The lines of a file; bytes that are no UTF-8 survive, to be refused where they stand."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    if not raw.strip():
        where = "stdin ('crontab -l' prints nothing where a user has no crontab)" if file == "-" else file
        raise ConfigurationError(f"nothing was read from {where}, and nothing is written")
    return raw.decode("utf-8", "surrogateescape").split("\n")


def _own_zone() -> str:
    """The IANA name of this machine's zone."""
    found = [os.environ.get("TZ", "").removeprefix(":")]
    with contextlib.suppress(OSError):
        found.append(Path("/etc/timezone").read_text().strip())
    with contextlib.suppress(OSError):
        found.append(os.readlink("/etc/localtime").rpartition("zoneinfo/")[2])
    for name in found:
        try:
            if name:
                parse("* * * * *", timezone=name)
                return name
        except CronError:
            continue
    raise ConfigurationError(
        "the zone of this machine has no name here; give --timezone, such as Europe/Prague"
    )


def _finish(
    source: str,
    entries: list[Entry],
    said: Sequence[str],
    out: Path | None,
    executes_other: bool,
    force: bool,
    json: bool,
) -> None:
    for entry in entries:
        if executes_other and entry.schedule is not None:
            entry.schedule["executes"] = "other"
    entries = settled(entries, now=SystemClock().now())
    if json:
        output.print_json(entries)
    elif entries:
        output.table(entries, _COLUMNS, empty="")
    for text in said:
        output.say(f"[yellow]{output.escape(text)}[/yellow]")
    if not entries:  # a file of none would have 'apply' do nothing, and nobody wonder
        output.fail(f"{source}: there are no entries; nothing is written")
    refused = [entry for entry in entries if entry.schedule is None]
    carried = len(entries) - len(refused)
    if out is not None:
        _write(out, entries, force)
        place = output.escape(str(out))
        output.say(
            f"{place}: {output.counted(carried, 'schedule')}; look at it, then: jetcron schedules apply {place}"
        )
    if refused:
        output.fail(
            f"{len(refused)} of {len(entries)} {'entry' if len(entries) == 1 else 'entries'} cannot be carried over"
        )


def _when(entry: Entry) -> str:
    schedule = entry.schedule or {}
    name = next((name for name in ("cron", "every", "at") if name in schedule), "")
    if name == "every":
        return f"every {schedule[name]:g} s"
    return output.escape(str(schedule.get(name, "")))


def _told(entry: Entry) -> str:
    if entry.refused is not None:
        return f"[red]refused: {output.escape(entry.refused)}[/red]"
    return output.escape("; ".join(entry.remarks))


_COLUMNS = {
    "entry": lambda entry: output.escape(entry.place),
    "as it stands": lambda entry: output.first_line(entry.text, 60),
    "schedule": lambda entry: output.escape((entry.schedule or {}).get("id", "")),
    "function": lambda entry: output.escape((entry.schedule or {}).get("function", "")),
    "when": _when,
    "zone": lambda entry: output.escape((entry.schedule or {}).get("timezone", "")),
    "remarks": _told,
}


def _write(out: Path, entries: Sequence[Entry], force: bool) -> None:
    if out.exists() and not force:
        raise ConfigurationError(f"{out} exists; --force overwrites it")
    schedules = [entry.schedule for entry in entries if entry.schedule is not None]
    if out.name.endswith(LINES):
        text = "".join(json_.dumps(schedule, ensure_ascii=False) + "\n" for schedule in schedules)
    else:
        lines = [
            f"# not carried over: {entry.place}: {' '.join(str(entry.refused).split())}\n"
            for entry in entries
            if entry.refused is not None
        ]
        text = "".join(lines) + yaml.safe_dump(schedules, sort_keys=False, allow_unicode=True, width=110)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{out}: {error.strerror}") from None
