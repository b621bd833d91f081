"""What every verb needs: the settings, the server to talk to, a connection, a loop.

The server is ``NATS_URL``, else that of the `jetcron dev` that runs in this folder, else the default.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from jetcron import logs, loop
from jetcron.client import Client
from jetcron.nearby import nearby_url
from jetcron.settings import Settings

T = TypeVar("T")


def settings(**arguments: Any) -> Settings:
    """The settings of this process; logs are configured by them.

    Raises `ConfigurationError`.
    """
    arguments.setdefault("nats_url", nearby_url())
    found = Settings.load(**arguments)
    logs.configure(found)
    return found


def with_client(work: Callable[[Client], Awaitable[T]]) -> T:
    """Connect, do it, close. Raises what the client raises."""
    found = settings()

    async def connected() -> T:
        async with Client(found) as client:
            return await work(client)

    return loop.run(connected())
