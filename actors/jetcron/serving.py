"""A small HTTP server in threads of its own, beside whatever the event loop does.

Owns nothing but the threads: they end with the context, and answer while the loop is stuck.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from jetcron.errors import ConfigurationError

Start = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], Start], Iterable[bytes]]
"""As WSGI has it (PEP 3333)."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A line for each request would hide what matters."""


@contextmanager
def serving(application: Application, host: str, port: int, *, name: str) -> Iterator[int]:
    """Answer on `port` (0: any free one) while the context is open; gives the port.

    `host` empty: on all addresses. Raises `ConfigurationError` when the port is taken.
    """
    try:
        server = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        where = f"{host}:{port}" if host else port
        raise ConfigurationError(
            f"--http {where}: cannot listen there ({error.strerror}); choose another port"
        ) from None
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.2}, name=name, daemon=True
    )
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def answer(start: Start, status: str, text: str) -> Iterable[bytes]:
    """A line of text, or nothing where `text` is empty."""
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()] if text else []
