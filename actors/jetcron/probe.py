"""The HTTP endpoint of an actor: /livez, /readyz, /metrics.

Owns a small server in a thread of its own, so that it answers when the event loop is stuck, and says so.
If the thread dies, the supervisor's probe fails and it starts the process anew.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from jetcron.clock import Clock
from jetcron.serving import Start, answer, serving

STUCK_SECONDS = 10.0
"""A loop that has not turned for so long makes /livez fail."""


class Heartbeat:
    """Says when the event loop last turned; written by the loop, read by the endpoint's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at = clock.monotonic()

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            self._at = self._clock.monotonic()
            await self._clock.sleep(1)

    def silent(self) -> float:
        """Seconds since the last beat."""
        return self._clock.monotonic() - self._at


@contextmanager
def serve(
    port: int, *, registry: CollectorRegistry, heartbeat: Heartbeat, unready: Callable[[], str | None]
) -> Iterator[int]:
    """Answer on `port` (0: any free one) while the context is open; gives the port.

    `unready` says why the actor is not ready, or None. Raises `ConfigurationError` when the port is taken.
    """
    metrics = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/livez":
                silent = heartbeat.silent()
                return _answer(
                    start,
                    f"the event loop has not turned for {silent:.0f} s" if silent > STUCK_SECONDS else None,
                )
            case "/readyz":
                return _answer(start, unready())
            case "/metrics":
                return metrics(environ, start)  # type: ignore[no-any-return]
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"try /livez, /readyz or /metrics\n"]

    with serving(app, "", port, name="probe") as bound:
        yield bound


def _answer(start: Start, problem: str | None) -> Iterable[bytes]:
    return answer(start, "200 OK" if problem is None else "503 Service Unavailable", problem or "ok")
