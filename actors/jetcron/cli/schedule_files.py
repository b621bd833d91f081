"""`jetcron schedules apply`: have schedules stand as a file says, YAML or JSON Lines; what changes is shown first.

Owns the reading of such files. What is in them means what the arguments of `client.schedules.create` mean.
"""

import json as json_
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
import yaml

from jetcron.cli import output, session
from jetcron.cli.functions import Json
from jetcron.client import Client
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.schedules.plan import Change, Plan

LINES = (".jsonl", ".ndjson")
"""How the name of a file of JSON Lines ends; any other is YAML."""
_SHOWN = 200
"""Changes that are shown; the others are counted."""


def add_to(app: typer.Typer) -> None:
    """Add this verb."""
    app.command("apply")(apply)


def apply(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="YAML, or JSON Lines (.jsonl, .ndjson); - reads stdin.")
    ],
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete schedules of the same functions that are not in the file.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Create, update and, with --prune, delete schedules, so that they stand as a file says."""
    wanted = read(file)

    async def look(client: Client) -> Plan:
        return await client.schedules.plan(wanted, prune=prune)

    async def carry_out(client: Client) -> None:
        with output.progress("applying", plan.size) as advance:
            await client.schedules.apply(plan, progress=advance)

    plan = session.with_client(look)
    if json:
        output.print_json(_plain(plan))
    else:
        _show(plan)
    if dry_run or not plan.size:
        return
    if not yes:
        _ask(plan, file)  # it may take long: nobody is connected meanwhile
    try:
        session.with_client(carry_out)
    except TryAgain as error:
        output.fail(f"not all of it is applied; the same again goes on: {error.description}")
    output.say(f"{plan.size:,} schedules are applied, {plan.unchanged:,} stood already")


def read(file: str) -> list[Any]:
    """The schedules in a file: a list, one under the key ``schedules``, or one a line."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from None
    if file.endswith(LINES) or (file == "-" and text.lstrip().startswith("{")):
        return list(_lines(file, text))
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: not YAML: {error}") from None
    if isinstance(found, dict) and set(found) == {"schedules"}:
        found = found["schedules"]
    if not isinstance(found, list):
        raise ConfigurationError(
            f"{file}: it holds {type(found).__name__}; allowed is a list of schedules, or one under 'schedules:'"
        )
    return found


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Safe YAML whose times stay text: so what is wrong with one is told as it is written."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _lines(file: str, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json_.loads(line)
            except ValueError as error:
                raise ConfigurationError(f"{file}, line {number}: not JSON: {error}") from None


def _ask(plan: Plan, file: str) -> None:
    if file == "-" or not sys.stdin.isatty():
        raise ConfigurationError("nobody can be asked here; --yes applies it, --dry-run only shows it")
    output.say(f"[bold]{plan.size:,} schedules change.[/bold]")
    if not typer.confirm("Apply?", err=True):
        raise typer.Exit(1)


def _show(plan: Plan) -> None:
    """What changes, as a diff: + is created, ~ changes, - goes."""
    lines = [
        *(f"[green]+ {output.escape(part.id)}[/green]  {_when(part.raw)}" for part in plan.create),
        *(line for change in plan.update for line in _changed(change)),
        *(f"[red]- {output.escape(part.id)}[/red]" for part in plan.delete),
    ]
    console = output.out()
    for line in lines[:_SHOWN]:
        console.print(line)
    if len(lines) > _SHOWN:
        console.print(f"[dim]and {len(lines) - _SHOWN:,} lines more[/dim]")
    console.print(
        f"{len(plan.create):,} to create, {len(plan.update):,} to update, {len(plan.delete):,} to delete, "
        f"{plan.unchanged:,} unchanged"
    )


def _changed(change: Change) -> Iterator[str]:
    yield f"[yellow]~ {output.escape(change.part.id)}[/yellow]"
    for name, (old, new) in change.fields.items():
        yield f"    {name}: [red]{_value(name, old)}[/red] → [green]{_value(name, new)}[/green]"


def _when(raw: Any) -> str:
    return "  ".join(
        f"{name}={_value(name, raw[name])}" for name in ("function", "cron", "every", "at") if name in raw
    )


def _value(name: str, value: Any) -> str:
    """A value as its author would write it: durations and times travel as milliseconds."""
    if value is None:
        return "none"
    if name in ("every", "jitter"):
        return output.span(value)
    if name in ("at", "start", "end"):
        return output.moment(value) or ""
    text = (
        value if isinstance(value, str) else json_.dumps(value, default=output.jsonable, ensure_ascii=False)
    )
    return output.first_line(text, 60)


def _plain(plan: Plan) -> dict[str, Any]:
    return {
        "create": [part.id for part in plan.create],
        "update": [
            {"id": change.part.id, "fields": {name: list(pair) for name, pair in change.fields.items()}}
            for change in plan.update
        ],
        "delete": [part.id for part in plan.delete],
        "unchanged": plan.unchanged,
    }
