"""What every verb needs: the settings, the server to talk to, a connection, a loop.

Owns the search for the server: ``NATS_URL``, else the `jetcron dev` that runs in this folder, else the default.
"""

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from jetcron import logs, loop
from jetcron.client import Client
from jetcron.settings import Settings

T = TypeVar("T")

STORE = Path(".jetcron")
_ANSWERS_WITHIN = 0.5


def settings(**arguments: Any) -> Settings:
    """The settings of this process; logs are configured by them.

    Raises `ConfigurationError`.
    """
    if not os.environ.get("NATS_URL"):
        arguments.setdefault("nats_url", dev_url())
    found = Settings.load(**arguments)
    logs.configure(found)
    return found


def dev_url(store: Path = STORE) -> str | None:
    """Where the `jetcron dev` of this folder listens, if it runs."""
    try:
        url = (store / "url").read_text().strip()
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_ANSWERS_WITHIN):
            return url
    except (OSError, ValueError):
        return None


def with_client(work: Callable[[Client], Awaitable[T]]) -> T:
    """Connect, do it, close. Raises what the client raises."""
    found = settings()

    async def connected() -> T:
        async with Client(found) as client:
            return await work(client)

    return loop.run(connected())
