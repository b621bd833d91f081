"""The child of `jetcron dev`: all actors and the user's app on one event loop.

Owns nothing that outlives it. It tells its parent over a socket when it is ready, drains at SIGTERM, and ends
at once when the parent is gone. An unexpected error in one actor ends them all; the parent starts them anew.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence

from jetcron import logs, loop
from jetcron.app import App
from jetcron.bus import Bus
from jetcron.clock import Clock, SystemClock
from jetcron.cron_sync import CronSync
from jetcron.cron_tick import CronTick
from jetcron.dev.banner import app_lines
from jetcron.dev.live import Live, Paint, colours, say
from jetcron.errors import ConfigurationError, JetcronError, TryAgain, leaves
from jetcron.event_router import EventRouter
from jetcron.executor import Executor
from jetcron.health_checker import HealthChecker
from jetcron.loading import AppNotFound, ImportFailed, Loaded, load
from jetcron.process import Make, Process, run_actor
from jetcron.registration import register
from jetcron.settings import Settings

FAILED = 1
NOT_FOUND = 4
"""No such module or app."""
CODE_AT_FAULT = 5
"""The user's module raised, or its definitions were refused: a change of it may mend that."""

_REGISTER_SECONDS = 10.0
_LOST_ATTEMPTS = 1_000
_INFRASTRUCTURE: tuple[tuple[str, Make], ...] = (
    (CronSync.name, CronSync),
    (CronTick.name, CronTick),
    (EventRouter.name, EventRouter),
    (HealthChecker.name, HealthChecker),
)


def main(arguments: Sequence[str]) -> int:
    """`arguments`: the socket's file descriptor, the grace period in seconds, the known hash, the target."""
    control = socket.socket(fileno=int(arguments[0]))
    threading.Thread(target=_end_with_parent, args=(control,), daemon=True).start()
    paint = Paint(colours())
    target = arguments[3]
    try:
        # Every reload may cut a long run short: here that says nothing about the run.
        # No canary: nobody watches its metric here, and what runs is what was written here.
        settings = Settings.load(grace=float(arguments[1]), lost_attempts=_LOST_ATTEMPTS, canary_every=0)
        clock = SystemClock()
        if settings.log_format == "json":
            logs.configure(settings, long_lived=True)
        else:
            live = Live(paint, settings.log_level, clock.now)
            logs.configure(settings, renderer=live, level="debug", to="stdout", long_lived=True)
        loaded = load(target) if target else None
        crew = _Crew(settings, clock, control, paint, known=arguments[2])
        loop.run(crew.run(loaded))
        loop.leave_threads()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent shows and decides
        return _explain(error, paint)
    return 0


def _explain(error: BaseException, paint: Paint) -> int:
    causes = list(leaves(error))
    if not all(isinstance(one, JetcronError) for one in causes):
        say(paint("".join(traceback.format_exception(error)).rstrip(), "dim"))
        return FAILED
    for one in causes:
        if isinstance(one, ImportFailed):
            say(one.traceback)
        say(paint(str(one), "red"))
    match causes[0]:
        case AppNotFound():
            return NOT_FOUND
        case ConfigurationError():
            return CODE_AT_FAULT
    return FAILED


def _end_with_parent(control: socket.socket) -> None:
    """The parent never writes: when this ends, it is gone, and so is the server."""
    try:
        while control.recv(64):
            pass
    except OSError:
        pass
    os._exit(FAILED)


class _Crew:
    """The actors, started in order, stopped together."""

    def __init__(
        self, settings: Settings, clock: Clock, control: socket.socket, paint: Paint, *, known: str
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._control = control
        self._paint = paint
        self._known = known
        self._stopping = asyncio.Event()
        self._processes: list[Process] = []

    async def run(self, loaded: Loaded | None) -> None:
        """Until SIGTERM, then drain. Raises what keeps an actor from starting, or what broke it."""
        running = asyncio.get_running_loop()
        running.add_signal_handler(signal.SIGTERM, self._stop)
        # A Ctrl-C in the terminal reaches us too; the parent decides what it means.
        running.add_signal_handler(signal.SIGINT, lambda: None)
        async with asyncio.TaskGroup() as group:
            for name, make in _INFRASTRUCTURE:
                group.create_task(self._actor(name, make))
            if loaded is not None:
                loaded.app.check()
                if not await self._register(loaded.app):
                    return
                app = loaded.app

                def executor(bus: Bus, clock: Clock, settings: Settings, process: Process) -> Executor:
                    return Executor(bus, clock, settings, process, app)

                group.create_task(self._actor(Executor.name, executor))
                if app.hash != self._known:
                    for line in app_lines(loaded, self._clock.now(), self._paint):
                        say(line)
            self._tell(ready=True, hash=loaded.app.hash if loaded else "", folder=_folder(loaded))

    async def _actor(self, name: str, make: Make) -> None:
        await run_actor(name, make, self._settings, clock=self._clock, signals=False, started=self._started)

    def _started(self, process: Process, _: int | None) -> None:
        self._processes.append(process)
        if self._stopping.is_set():
            process.stopping.set()

    def _stop(self) -> None:
        self._stopping.set()
        for process in self._processes:
            process.stopping.set()

    async def _register(self, app: App) -> bool:
        """Make these definitions the current ones, whatever stood; False when told to stop before that."""
        async with Bus(self._settings, clock=self._clock, name="jetcron dev") as bus:
            while not self._stopping.is_set():
                try:
                    reply = await register(bus, app, clock=self._clock, force=True, wait=_REGISTER_SECONDS)
                except TryAgain:
                    continue
                if reply.errors:
                    raise ConfigurationError("\n".join(reply.errors))
                return True
        return False

    def _tell(self, **facts: object) -> None:
        try:
            self._control.sendall(f"{json.dumps(facts)}\n".encode())
        except OSError:
            pass  # the parent is gone, and we shall be


def _folder(loaded: Loaded | None) -> str:
    return str(loaded.folder) if loaded is not None else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
