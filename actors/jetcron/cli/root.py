"""The verbs put together, and the entry point."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import jetcron
from jetcron import loop
from jetcron.cli import actors, checks, dead, functions, importing, runs, schedules, sending, shadowing, times
from jetcron.cli.output import telling


class Verbs(TyperGroup):
    """All verbs; what goes wrong in one is told in one place."""

    def invoke(self, ctx: Any) -> Any:
        with telling():
            return super().invoke(ctx)


app = typer.Typer(
    name="jetcron",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Durable cron, events and functions for Python teams, on NATS JetStream. "
        "Begin with: jetcron dev MODULE:APP"
    ),
    epilog=(
        "The server is NATS_URL; without it, the one of the jetcron dev that runs in this folder, "
        "else nats://127.0.0.1:4222. Exit codes: 0 done, 1 failed, 2 usage."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jetcron {jetcron.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


actors.add_to(app)
sending.add_to(app)
times.add_to(app)
app.add_typer(functions.app, name="functions")
app.add_typer(schedules.app, name="schedules")
app.add_typer(runs.app, name="runs")
app.add_typer(dead.app, name="dead")
app.add_typer(importing.app, name="import")
shadowing.add_to(app)
checks.add_to(app)


def main() -> None:
    """The entry point `jetcron`."""
    loop.calm_collector()
    app()
