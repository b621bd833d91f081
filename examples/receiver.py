"""An HTTP endpoint that stands in for Slack: it takes posts, and on purpose does not take all of them.

Every third post it has not seen before is refused once, in turn with 500 and with 429 and Retry-After; posts to
a channel that is gone are refused always. It keeps everything it saw: what it took, under which key, how
often it refused, and whether a key or a notification it had taken came again.

    python -m examples.receiver [PORT]
"""

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

RETRY_AFTER = 1
REFUSE_EVERY = 3


class Receiver:
    """What arrived. Requests come in threads of their own, one lock for all."""

    def __init__(self, gone: str) -> None:
        self._gone = gone
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._refusals = cycle([500, 429])
        self.posts: dict[str, dict[str, Any]] = {}
        """By key, what was taken."""
        self.repeated: list[str] = []
        """Keys that came again after they had been taken."""
        self.refused: Counter[str] = Counter()
        """By key, how often it was refused."""
        self.refused_bodies: dict[str, dict[str, Any]] = {}
        self.statuses: Counter[int] = Counter()

    def take(self, key: str, body: dict[str, Any]) -> int:
        """The status to answer with."""
        with self._lock:
            status = self._decide(key, body["channel"])
            self.statuses[status] += 1
            if status == 200 and key in self.posts:
                self.repeated.append(key)
            elif status == 200:
                self.posts[key] = body
            else:
                self.refused[key] += 1
                self.refused_bodies[key] = body
        line = f"    {status} to {body['channel']} for {body['due'][:16]}: {body['text']}\n"
        sys.stdout.write(line)  # one write: posts come on several threads at once
        sys.stdout.flush()
        return status

    def _decide(self, key: str, channel: str) -> int:
        if channel == self._gone:
            return 500
        if key in self._seen:
            return 200
        self._seen.add(key)
        return next(self._refusals) if len(self._seen) % REFUSE_EVERY == 0 else 200


@contextmanager
def serve(receiver: Receiver, port: int = 0) -> Iterator[str]:
    """Answer on 127.0.0.1 while the context is open (port 0: any free one); gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = receiver.take(self.headers["Idempotency-Key"], body)
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", str(RETRY_AFTER))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """The receiver says itself what came."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    from examples.notifications import GONE

    with serve(Receiver(GONE), int(sys.argv[1]) if len(sys.argv) > 1 else 8099) as address:
        print(f"taking posts on {address}, until Ctrl-C", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
