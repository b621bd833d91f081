"""The child process as its parent holds it: started, heard, stopped.

Owns the socket between the two: the child says on it when it is ready, and ends when it ends.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys

from jetcron.clock import Clock


class Child:
    """One start of the child process."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.process = process
        self.ready = asyncio.Event()
        self.hash = ""
        self.folder = ""
        self._control = control
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._control)
        try:
            while line := await reader.readline():
                facts = json.loads(line)
                self.hash, self.folder = facts["hash"], facts["folder"]
                self.ready.set()
        finally:
            writer.close()

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        return await self.process.wait()

    async def stop(self, clock: Clock, seconds: float) -> None:
        """Drain it, for at most so long; then kill it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        waiting = asyncio.ensure_future(self.process.wait())
        timer = asyncio.ensure_future(clock.sleep(seconds))
        await asyncio.wait({waiting, timer}, return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()
        self.kill()
        await waiting
        await self.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)


async def spawn(target: str, nats_url: str, *, grace: float, known: str) -> Child:
    """Start a child. `grace` in seconds; an app whose hash is `known` is not shown again."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    # Until the child handles it itself, a Ctrl-C must not end it with a traceback.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "from jetcron.dev.child import main; sys.exit(main(sys.argv[1:]))"
    )
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            start,
            str(theirs.fileno()),
            str(grace),
            known,
            target,
            env={**os.environ, "NATS_URL": nats_url, "PYTHONUNBUFFERED": "1"},
            pass_fds=(theirs.fileno(),),
        )
    finally:
        theirs.close()
    return Child(process, ours)
