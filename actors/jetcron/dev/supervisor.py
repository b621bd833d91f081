"""The parent of `jetcron dev`: the server, the child, and what makes the child start anew.

Owns the order: server, topology, child; and back. A file that changed, a child that broke and a signal are
what it waits for. Ctrl-C drains, a second one stops at once. Killed, it takes the server with it (see
`guard`), and the child, whose socket ends.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from jetcron.bus import Bus
from jetcron.clock import Clock, SystemClock
from jetcron.dev.child import CODE_AT_FAULT, NOT_FOUND
from jetcron.dev.handle import Child, spawn
from jetcron.dev.live import Paint, clock_time, colours, say
from jetcron.dev.server import DevServer
from jetcron.errors import ConfigurationError
from jetcron.health_checker import arm
from jetcron.nearby import STORE
from jetcron.settings import Settings

_GRACE = 3.0
"""Seconds that running work has to finish at a reload and at the end; runs cut short are taken up again."""
_KILL_AFTER = 2.0
_PAUSES = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`jetcron dev` as it was called. `once` is in seconds, None for as long as it is wanted."""

    target: str | None = None
    store: Path = STORE
    nats_port: int = 0
    reload: bool = True
    once: float | None = None


async def run_dev(options: Options, settings: Settings, *, embedded: bool, version: str) -> int:
    """Run until told to stop; the exit code. Raises what keeps it from starting."""
    clock = SystemClock()
    supervisor = _Supervisor(options, clock, settings)
    if options.reload:
        _need_watchfiles()
    supervisor.handle_signals()
    paint = supervisor.paint
    async with _server(options, settings, clock, embedded=embedded) as (found, server):
        async with Bus(found, clock=clock, name="jetcron dev") as bus:
            await bus.apply_topology()
            await arm(bus, found)
            kind = f"nats-server {bus.server_version}" + (", embedded" if server else "")
        say(f"{paint('Jetcron', 'bold', 'cyan')} {version}")
        say(f"  {paint('server', 'dim')}   {found.shown_url}  {paint(f'({kind})', 'dim')}")
        if server is not None:
            say(f"  {paint('store', 'dim')}    {options.store}")
            say(
                f"  {paint('look', 'dim')}     jetcron runs list; in another folder first: export NATS_URL={server.url}"
            )
        if not options.target:
            say(paint("  no MODULE:APP was given: every actor but the executor", "dim"))
        return await supervisor.run(found, server)


def _need_watchfiles() -> None:
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "watchfiles is not installed; pip install 'jetcron[dev]', or give --no-reload"
        ) from None


@contextlib.asynccontextmanager
async def _server(
    options: Options, settings: Settings, clock: Clock, *, embedded: bool
) -> AsyncIterator[tuple[Settings, DevServer | None]]:
    if not embedded:
        yield settings, None
        return
    async with DevServer(options.store, options.nats_port, clock) as server:
        yield Settings.load(nats_url=server.url), server


class _Supervisor:
    def __init__(self, options: Options, clock: Clock, settings: Settings) -> None:
        self.paint = Paint(colours())
        self._options = options
        self._clock = clock
        self._grace = min(settings.grace, _GRACE)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._changes: set[str] = set()
        self._child: Child | None = None
        self._hash = ""
        self._folders = {Path.cwd()}
        self._more_folders = asyncio.Event()
        self._was_ready = False

    def handle_signals(self) -> None:
        """SIGINT and SIGTERM: the first drains, the second ends everything at once."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if self._stopping.is_set():
                if self._child is not None:
                    self._child.kill()
                os._exit(1)  # the guard sees the pipe end, and stops the server
            say(self.paint("  stopping; Ctrl-C again stops at once", "dim"))
            self._stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)

    async def run(self, settings: Settings, server: DevServer | None) -> int:
        """Start the child, and again, until told to stop; the exit code."""
        watching = asyncio.ensure_future(self._watch()) if self._options.reload else None
        lost = asyncio.ensure_future(server.ended()) if server is not None else None
        try:
            return await self._supervise(settings, lost)
        finally:
            if self._child is not None:
                await self._child.stop(self._clock, self._grace + _KILL_AFTER)
            for task in (watching, lost):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    async def _supervise(self, settings: Settings, lost: "asyncio.Future[str] | None") -> int:
        broken = 0
        while not self._stopping.is_set():
            self._changed.clear()
            child = self._child = await spawn(
                self._options.target or "", settings.nats_url, grace=self._grace, known=self._hash
            )
            code = await self._until(child, lost)
            if lost is not None and lost.done():
                say(self.paint(f"the nats-server has ended: {lost.result()}", "red"))
                return 1
            if code is None:  # told to stop, or a file changed, or the time of --once is over
                await child.stop(self._clock, self._grace + _KILL_AFTER)
                self._child = None
                if not self._changed.is_set():
                    return 0
                broken = 0
                self._note(f"{self._shown_changes()} changed, reloading")
                continue
            await child.close()
            self._child = None
            if self._stopping.is_set():
                return 0
            if code in (NOT_FOUND, CODE_AT_FAULT):
                if not self._waits(code):
                    return 1
                self._note("waiting for a change")
                await self._first(self._changed.wait(), self._stopping.wait(), lost)
                continue
            if self._options.once is not None:
                return 1
            broken = 0 if child.ready.is_set() else broken + 1
            pause = _PAUSES[min(broken, len(_PAUSES) - 1)]
            self._note(f"the actors ended with exit code {code}; they start again in {pause:g} s")
            await self._first(self._clock.sleep(pause), self._changed.wait(), self._stopping.wait())
        return 0

    def _waits(self, code: int) -> bool:
        """Whether the next save may mend it; a name nobody has is a slip of the command line."""
        if not self._options.reload or self._options.once is not None:
            return False
        return code == CODE_AT_FAULT or self._was_ready

    async def _until(self, child: Child, lost: "asyncio.Future[str] | None") -> int | None:
        """The child's exit code, or None when something else comes first."""
        ended = asyncio.ensure_future(child.ended())
        ready = asyncio.ensure_future(self._ready(child))
        try:
            await self._first(ended, ready, self._changed.wait(), self._stopping.wait(), lost)
            return ended.result() if ended.done() else None
        finally:
            ended.cancel()
            ready.cancel()

    async def _ready(self, child: Child) -> None:
        """Returns when the time of `--once` is over, counted from when all was ready."""
        began = self._clock.monotonic()
        await child.ready.wait()
        took = self._clock.monotonic() - began
        if not self._was_ready:
            self._note("ready; Ctrl-C to stop")
        else:
            self._note(f"ready again in {took:.1f} s")
        self._was_ready = True
        self._hash = child.hash
        if child.folder and Path(child.folder) not in self._folders:
            self._folders.add(Path(child.folder))
            self._more_folders.set()
        if self._options.once is None:
            await asyncio.Event().wait()
        else:
            await self._clock.sleep(self._options.once)

    # Reload.

    async def _watch(self) -> None:
        """Note Python files that change under our folders."""
        from watchfiles import PythonFilter, awatch

        while True:
            folders = _outermost(self._folders)
            self._more_folders.clear()
            async for changes in awatch(
                *folders, watch_filter=PythonFilter(), stop_event=self._more_folders, debounce=400, step=30
            ):
                self._changes |= {path for _, path in changes}
                self._changed.set()

    def _shown_changes(self) -> str:
        names = sorted(os.path.relpath(path) for path in self._changes)
        self._changes.clear()
        return names[0] if len(names) == 1 else f"{len(names)} files"

    def _note(self, text: str) -> None:
        paint = self.paint
        say(f"{paint(clock_time(self._clock.now()), 'dim')}  {paint('·', 'dim')}  {paint(text, 'dim')}")

    async def _first(self, *work: object) -> None:
        """Returns when the first of these is done; those that are no futures of the caller's are cancelled."""
        tasks = {asyncio.ensure_future(each) for each in work if each is not None}  # type: ignore[call-overload]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks - {each for each in work if isinstance(each, asyncio.Future)}:
                task.cancel()


def _outermost(folders: set[Path]) -> list[Path]:
    """Without those that lie in another of them."""
    return [
        one
        for one in sorted(folders)
        if not any(one != other and one.is_relative_to(other) for other in folders)
    ]
