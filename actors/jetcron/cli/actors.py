"""Verbs that run something: `dev`, the actors, `init` and `sync`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

import jetcron
from jetcron import logs, loop
from jetcron.bus import Bus, Change
from jetcron.carried import void_copies
from jetcron.cli import output, session
from jetcron.clock import Clock, SystemClock
from jetcron.cron_sync import CronSync
from jetcron.cron_tick import CronTick
from jetcron.dev import Options, run_dev
from jetcron.errors import ServerUnreachable, TryAgain
from jetcron.event_router import EventRouter
from jetcron.executor import Executor
from jetcron.health_checker import HealthChecker, arm
from jetcron.loading import load
from jetcron.nearby import STORE
from jetcron.process import Make, Process, run_actor
from jetcron.registration import register
from jetcron.settings import Settings
from jetcron_protocol.ids import GROUPS
from jetcron_protocol.messages import SyncReply

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:APP",
        help="Where the App is: package.module:app or path/to/file.py:app; without :app, the module's only App.",
    ),
]
Http = Annotated[
    int | None,
    typer.Option(
        "--http",
        metavar="PORT",
        min=0,
        max=65535,
        help="Serve /livez, /readyz and /metrics there; 0: any port.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add these verbs."""
    app.command("dev")(dev)
    app.command("init")(init)
    app.command("sync")(sync)
    for name, make, help in (
        (CronSync.name, CronSync, "Apply sync commands: register apps, arm schedules."),
        (CronTick.name, CronTick, "Turn released ticks into runs and next ticks."),
        (EventRouter.name, EventRouter, "Turn events into runs."),
        (HealthChecker.name, HealthChecker, "Restart cycles that broke."),
    ):
        app.command(name, help=f"{help} Runs until SIGTERM or Ctrl-C.")(_actor(name, make))
    app.command("executor")(executor)


def _actor(name: str, make: Make) -> Callable[..., None]:
    def verb(http: Http = None) -> None:
        _run(name, make, session.settings(), http)

    return verb


def _run(name: str, make: Make, settings: Settings, http: int | None) -> None:
    logs.configure(settings, long_lived=True)
    loop.run(run_actor(name, make, settings, http=http))
    loop.leave_threads()


def executor(
    target: Target,
    http: Http = None,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="Runs executed at one time (JETCRON_SLOTS).")
    ] = None,
) -> None:
    """Execute the runs of an app's functions. Runs until SIGTERM or Ctrl-C."""
    settings = session.settings(slots=slots)
    app = load(target).app

    def make(bus: Bus, clock: Clock, settings: Settings, process: Process) -> Executor:
        return Executor(bus, clock, settings, process, app)

    _run(Executor.name, make, settings, http)


def dev(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:APP", help="Where the App is, as for `executor`; without it, no executor runs."
        ),
    ] = None,
    store: Annotated[
        Path, typer.Option("--store", metavar="DIR", help="Where the embedded server keeps everything.")
    ] = STORE,
    nats_port: Annotated[
        int, typer.Option("--nats-port", metavar="N", min=0, max=65535, help="Its port; 0: any free one.")
    ] = 0,
    no_reload: Annotated[bool, typer.Option("--no-reload", help="Do not start anew on changes.")] = False,
    once: Annotated[
        float | None,
        typer.Option("--once", metavar="SECONDS", min=0, help="Stop by itself, so long after it was ready."),
    ] = None,
) -> None:
    """Run everything here: an embedded nats-server, every actor, reload on save.

    With NATS_URL set it uses that server instead. Other verbs and clients in the same folder find the embedded
    server by themselves. Ctrl-C drains and ends it; the store stays.
    """
    embedded = not os.environ.get("NATS_URL")
    settings = Settings.load()
    others = f"NATS_URL={settings.shown_url} is set, and dev starts no server of its own"
    if nats_port and not embedded:
        raise typer.BadParameter(f"--nats-port {nats_port}: {others}; unset NATS_URL, or leave the port out")
    logs.configure(settings)
    options = Options(target=target, store=store, nats_port=nats_port, reload=not no_reload, once=once)
    try:
        code = loop.run(run_dev(options, settings, embedded=embedded, version=jetcron.__version__))
    except ServerUnreachable as error:
        if embedded:
            raise
        output.fail(f"{error}\n{others}; unset NATS_URL to have one here")
    raise typer.Exit(code)


def init(
    restored: Annotated[
        bool,
        typer.Option(
            "--restored", help="The registry was restored from a backup: read every definition anew."
        ),
    ] = False,
) -> None:
    """Create or update streams, buckets and consumers; changes nothing that is as it should be."""
    settings = session.settings()

    async def apply() -> list[Change]:
        async with Bus(settings, name="jetcron init") as bus:
            changes = await bus.apply_topology()
            armed = await arm(bus, settings)
            action = "unchanged" if not armed else "created" if armed == GROUPS else "updated"
            if restored:
                await void_copies(bus, 0, bus.clock.now())
            return [*changes, Change("sweeps", f"{GROUPS} groups", action)]

    changes = loop.run(apply())
    columns: dict[str, Callable[[Change], str]] = {
        "KIND": lambda change: change.kind,
        "NAME": lambda change: change.name,
        "DONE": lambda change: output.state(change.action),
    }
    if any(change.fields for change in changes):
        columns["WHAT"] = lambda change: ", ".join(change.fields)
    output.table(changes, columns, empty="")
    if restored:
        output.say("ticks that are held carry copies of definitions; from now on those in the registry count")


def sync(
    target: Target,
    force: Annotated[
        bool, typer.Option("--force", help="Also definitions that newer ones replaced a short while ago.")
    ] = False,
) -> None:
    """Register an app's functions, as executors do at their start."""
    settings = session.settings()
    app = load(target).app
    app.check()

    async def offer() -> SyncReply:
        async with Bus(settings, name="jetcron sync") as bus:
            await bus.check_topology()
            return await register(bus, app, clock=SystemClock(), force=force)

    try:
        reply = loop.run(offer())
    except TryAgain as error:
        output.fail(f"{app.name} was sent but not applied yet: {error.description}")
    for warning in reply.warnings:
        output.say(f"[yellow]{output.escape(warning)}[/yellow]")
    if reply.errors:
        output.fail("\n".join(reply.errors))
    output.table(
        sorted(reply.revisions),
        {
            "SCHEDULE": output.escape,
            "REVISION": lambda schedule: str(reply.revisions[schedule]),
            "NEXT": lambda schedule: output.shown(reply.next.get(schedule)),
        },
        empty=f"{app.name}: {output.counted(len(app.functions), 'function')}, no schedule changed",
    )
