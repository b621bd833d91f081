"""What a reader does with a page: an empty folder, `jetcron dev` in one terminal, commands typed into another."""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

PATIENCE = 30.0
"""Seconds that one command may take: each is a process that imports everything, on a machine that is busy."""


def environment() -> dict[str, str]:
    """This process's, without any setting of ours."""
    ours = ("JETCRON_", "NATS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {
        "NO_COLOR": "1"
    }


async def shell(folder: Path, *commands: str) -> str:
    """Type these into a shell of their own, the environment that `make install` makes active; what they print."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", "\n".join(["source .venv/bin/activate", *commands])),
        cwd=folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE * len(commands)):
        out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    return out.decode()


@contextlib.asynccontextmanager
async def dev(folder: Path, command: str) -> AsyncIterator[str]:
    """This `jetcron dev …`, from its readiness to its end; what it printed until then."""
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("jetcron"), *shlex.split(command)[1:]),
        cwd=folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while b"ready; Ctrl-C to stop" not in said:
                line = await process.stdout.readline()
                assert line, said.decode()
                said += line
        rest = asyncio.create_task(process.stdout.read())
        yield said.decode()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            said += await rest
            assert await process.wait() == 0, said.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
