"""The command line in tests: a verb in this process, or `jetcron` as a process of its own, read line by line."""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import signal
import struct
import sys
import termios
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import structlog
from typer.testing import CliRunner, Result

from jetcron import logs
from jetcron.cli import app

PATIENCE = 25.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def untouched_logging() -> Iterator[None]:
    """Verbs configure logging for their process; here that is the tests' process, and is undone."""
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


def call(*arguments: str, input: str | None = None, env: Mapping[str, str] | None = None) -> Result:
    """Run one verb in this process, on a loop of its own; not from within a running loop (`acall`)."""
    with untouched_logging():
        # Actors of the test may log on the loop meanwhile: stdout is the verb's alone.
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
        return CliRunner().invoke(app, list(arguments), input=input, env=dict(env or {}))


async def acall(*arguments: str, **more: Any) -> Result:
    """`call` in a thread, for tests whose actors run on this loop meanwhile: what they log is not the verb's."""
    theirs, write = threading.get_ident(), logs.write

    def written(to: logs.Stream, line: str) -> None:
        if threading.get_ident() == theirs:
            print(line, file=sys.__stderr__)
        else:
            write(to, line)

    with mock.patch.object(logs, "write", written):
        return await asyncio.to_thread(call, *arguments, **more)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any setting of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JETCRON_", "NATS_"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | more


@dataclass(eq=False)
class Command:
    """`jetcron` as a process: what it has printed, stdout and stderr together, without colours."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reader: "asyncio.Task[None] | None" = None

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def sees(self, pattern: str, *, after: int = 0) -> int:
        """Wait for a line that matches, from line `after` on; the number of the line after it."""
        try:
            async with asyncio.timeout(PATIENCE), self._changed:
                while True:
                    for number, line in enumerate(self.lines[after:], after):
                        if re.search(pattern, line):
                            return number + 1
                    if self._reader is not None and self._reader.done():
                        raise AssertionError(f"it ended without {pattern!r}:\n{self.text}")
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no line {pattern!r} in {PATIENCE:g} s:\n{self.text}") from None

    async def ends(self) -> int:
        """Wait until it has ended and all is read; its exit code."""
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self.process.wait()
                if self._reader is not None:
                    await self._reader
                return code
        except TimeoutError:
            raise AssertionError(f"it has not ended in {PATIENCE:g} s:\n{self.text}") from None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            async with self._changed:
                self.lines.append(_COLOURS.sub("", raw.decode(errors="replace").rstrip()))
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()


@contextlib.asynccontextmanager
async def running(*arguments: str, cwd: Path, **env: str) -> AsyncIterator[Command]:
    """Run `jetcron` with these arguments; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "jetcron",
        *arguments,
        cwd=cwd,
        env=clean_environment(**env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    command = Command(process)
    command._reader = asyncio.create_task(command._read())
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        command._reader.cancel()
        await asyncio.gather(command._reader, return_exceptions=True)


async def on_a_terminal(
    *arguments: str, cwd: Path, answer: str = "", width: int = 80, **env: str
) -> tuple[int, str]:
    """Run `jetcron` on a terminal of its own, `answer` typed into it; its exit code and all it showed, plain."""
    ours, theirs = os.openpty()
    environment = clean_environment(TERM="xterm", **env)
    for variable in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(variable, None)  # of whoever runs the tests
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "jetcron",
            *arguments,
            cwd=cwd,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.write(ours, answer.encode())
    finally:
        os.close(theirs)
    try:
        async with asyncio.timeout(PATIENCE):
            shown = await asyncio.to_thread(_read_all, ours)
            code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        os.close(ours)
    return code, _COLOURS.sub("", shown.replace("\r\n", "\n"))


def _read_all(terminal: int) -> str:
    """Until the last process has closed it."""
    found = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # how Linux says so
            part = b""
        if not part:
            return found.decode(errors="replace")
        found += part
