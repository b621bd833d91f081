"""Keeps a nats-server no longer than the process that wanted it. Run as a script, by its path.

Owns one child: the server. Its own stdin is a pipe from `jetcron dev`: when that ends, however it ended, the
pipe ends too, and the server is stopped. Imports the standard library alone, so that it starts at once. If it
is killed itself, Linux kills the server; elsewhere the server is left, and holds its store's files.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 1.5


def main(command: list[str]) -> None:
    """Run `command` until stdin ends; exit with its code when it ends first."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_us())
    threading.Thread(target=lambda: os._exit(server.wait() or 1), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    while os.read(0, 64):
        pass
    server.terminate()
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _die_with_us() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: nothing may be imported between fork and exec
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
