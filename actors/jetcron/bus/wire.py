"""The nats client with a shorter way for messages: fewer steps between the socket and whoever waits.

Owns what was measured to be the actors' largest costs: incoming messages go straight to a plain function instead of
through a queue and a task, headers are read and written without a regular expression a line, the messages of a batch
are written in one go. Everything else, reconnecting above all, is nats-py's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.subscription import Subscription
from nats.protocol.command import hpub_cmd, pub_cmd

Headers = dict[str, str]

VERSION = "NATS/1.0"
"""How headers begin; a status stands in the rest of this line."""
STATUS = "Status"
DESCRIPTION = "Description"


@dataclass(slots=True)
class Message:
    """A message as it came; `block` has its headers, empty where there are none."""

    subject: str
    reply: str
    data: bytes
    block: bytes = b""

    @property
    def is_status(self) -> bool:
        """Whether it is the server's own word, a status, and no message of a stream or of somebody's."""
        line, _, _ = self.block.partition(b"\r\n")
        return line[len(VERSION) :].strip() != b""

    @property
    def headers(self) -> Headers:
        """Read anew each time. An inline status of the server is in it, as `STATUS` and `DESCRIPTION`."""
        return parse_headers(self.block)


Handler = Callable[[Message], None]


class Client(NatsClient):
    """nats-py's client. `attach` subscribes a plain function, called once for each message, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}

    async def attach(self, subject: str, handler: Handler) -> Subscription:
        """Call `handler` for each message on `subject`; it must not block and must not raise."""
        subscription = await self.subscribe(subject, cb=_unreached)
        self._handlers[subscription._id] = handler
        return subscription

    async def detach(self, subscription: Subscription) -> None:
        """Stop calling the handler, and tell the server."""
        self.forget(subscription)
        await subscription.unsubscribe()

    def forget(self, subscription: Subscription) -> None:
        """Stop calling the handler; until then it is called with what comes after `unsubscribe` too."""
        self._handlers.pop(subscription._id, None)

    def forget_unsent(self) -> None:
        """Drop what is queued behind a lost connection: whoever sent it has been told that it was not sent."""
        self._pending = []
        self._pending_data_size = 0

    async def publish_all(self, messages: Iterable[tuple[str, bytes, Headers]]) -> None:
        """`publish` several, each with headers, in one go: all are written, or it raises what `publish` does."""
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats.errors.ConnectionDrainingError
        if not self.is_connected:
            raise nats.errors.OutboundBufferLimitError
        commands = [
            hpub_cmd(subject, "", write_headers(headers), payload) for subject, payload, headers in messages
        ]
        await self._send(b"".join(commands))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        # A subject need not be UTF-8, and nothing may end the loop that reads the connection.
        handler(
            Message(
                subject.decode("utf-8", "surrogateescape"),
                reply.decode("utf-8", "replace"),
                data,
                headers or b"",
            )
        )

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: Headers | None
    ) -> None:
        if headers:
            command = hpub_cmd(subject, reply, write_headers(headers), payload)
        else:
            command = pub_cmd(subject, reply, payload)
        await self._send(command)

    async def _send(self, command: bytes) -> None:
        await self._send_command(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()


async def _unreached(message: object) -> None:
    """What nats-py would call: every message of an attached subscription has gone to its handler."""


def write_headers(headers: Headers) -> bytes:
    """A header block (ADR-4). Raises `BadHeaderError` for a name or value that would break out of its line."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise nats.errors.BadHeaderError("a header has a line break")
    return f"{VERSION}\r\n{lines}\r\n".encode()


def parse_headers(raw: bytes) -> Headers:
    """The headers in a block, its inline status among them; none in an empty one."""
    if not raw:
        return {}
    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    found: Headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    status = first[len(VERSION) :].strip()
    if status:
        code, _, description = status.partition(" ")
        found[STATUS] = code
        found[DESCRIPTION] = description
    return found
