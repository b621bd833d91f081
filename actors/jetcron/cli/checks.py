"""`settings`, and `doctor` on the command line."""

import typer

from jetcron.cli import output, session
from jetcron.cli.functions import Json


def add_to(app: typer.Typer) -> None:
    """Add these verbs."""
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
            "FROM": lambda row: f"[dim]{row.source}[/dim]" if row.source == "default" else row.source,
            "MEANING": lambda row: f"[dim]{output.escape(row.meaning)}[/dim]",
        },
        empty="",
    )
