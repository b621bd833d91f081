"""The endpoint of `jetcron shadow` for schedulers that speak HTTP: each POST becomes a report, stored as an event.

Owns a small server in threads of its own. It answers once the report is stored, or says that it is not: nothing is kept
here, and nothing is lost when the process dies.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

from jetcron.errors import ConfigurationError, JetcronError
from jetcron.serving import Start, answer, serving
from jetcron.shadow import ALLOWED, read_report

MAX_BODY = 64 * 1024
"""Bytes of one report."""
_STORED_WITHIN = 10.0

Store = Callable[[dict[str, Any]], Awaitable[Any]]
"""Stores the data of one report."""


@contextmanager
def receive(host: str, port: int, store: Store, loop: asyncio.AbstractEventLoop) -> Iterator[int]:
    """Take reports on `port` (0: any free one) while the context is open, and have `loop` store them; gives the port.

    Raises `ConfigurationError` when the port is taken.
    """

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "POST":
            return answer(start, "405 Method Not Allowed", "POST a report: schedule=ID, or JSON")
        try:
            data = _data(environ)
            read_report(data, 0)
        except ConfigurationError as error:
            return answer(start, "400 Bad Request", str(error))
        except ValueError as error:
            return answer(start, "400 Bad Request", f"{error}; {ALLOWED}")
        try:
            asyncio.run_coroutine_threadsafe(_stored(store, data), loop).result(_STORED_WITHIN)
        except (JetcronError, TimeoutError, RuntimeError) as error:
            return answer(start, "503 Service Unavailable", f"not stored: {error}")
        return answer(start, "204 No Content", "")

    with serving(app, host, port, name="reports") as bound:
        yield bound


async def _stored(store: Store, data: dict[str, Any]) -> None:
    await store(data)


def _data(environ: dict[str, Any]) -> dict[str, Any]:
    """The report in a request: a JSON map, or a form."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if not 0 < length <= MAX_BODY:
        raise ConfigurationError(f"a report has 1 to {MAX_BODY} bytes, not {length}")
    body = environ["wsgi.input"].read(length).decode()
    if body.lstrip().startswith("{"):
        found = json.loads(body)
        assert isinstance(found, dict)
        return found
    return dict(parse_qsl(body, strict_parsing=True))
