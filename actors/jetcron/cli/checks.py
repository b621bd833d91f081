"""`settings` and `doctor`: how things are set, and what is wrong, if anything."""

from collections import Counter
from typing import Annotated

import typer

from jetcron import loop
from jetcron.cli import output, session
from jetcron.cli.doctor import examine
from jetcron.cli.functions import Json

Deep = Annotated[
    bool, typer.Option("--deep", help="compare every held tick with its definition: minutes for a million")
]
_SOURCES = {"default": "[dim]default[/dim]", "environment": "environment", "argument": "jetcron dev here"}
_MARKS = {"ok": "[green]✓[/green]", "note": "[yellow]•[/yellow]", "wrong": "[red]✗[/red]"}


def add_to(app: typer.Typer) -> None:
    """Add these verbs."""
    app.command("doctor")(doctor)
    app.command("settings")(settings)


def settings(json: Json = False) -> None:
    """Every setting: its value, and whether it comes from the environment or is the default."""
    rows = session.settings().explain()
    if json:
        output.print_json([row._asdict() for row in rows])
        return
    output.table(
        rows,
        {
            "SETTING": lambda row: row.variable,
            "VALUE": lambda row: output.escape(row.value),
            "FROM": lambda row: _SOURCES[row.source],
            "MEANING": lambda row: f"[dim]{output.escape(row.meaning)}[/dim]",
        },
        empty="",
    )


def doctor(json: Json = False, deep: Deep = False) -> None:
    """What is wrong, if anything, and what to do about it; exit code 1 if something is."""
    found = loop.run(examine(session.settings(), deep=deep))
    wrong = Counter(finding.level for finding in found)["wrong"]
    if json:
        output.print_json({"ok": not wrong, "findings": found})
    else:
        console = output.out()
        width = max(len(finding.about) for finding in found)
        for finding in found:
            do = f"\n  {' ' * width}  → {output.escape(finding.do)}" if finding.do else ""
            about = output.escape(finding.about.ljust(width))
            console.print(f"{_MARKS[finding.level]} [bold]{about}[/bold]  {output.escape(finding.what)}{do}")
        console.print("[green]nothing is wrong[/green]" if not wrong else f"[red]{wrong} wrong[/red]")
    if wrong:
        raise typer.Exit(1)
