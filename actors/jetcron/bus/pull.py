"""Taking messages: a pull loop of our own over a durable consumer.

Owns open pull requests. A request is bounded by an expiry and watched by idle heartbeats; one that falls
silent, or that a reconnect orphaned, is forgotten and made anew, so that a consumer never stays deaf. If the
process dies here, the server redelivers what was not acknowledged.
"""

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Self

import nats.errors

from jetcron.bus.publish import Publisher
from jetcron.bus.wire import DESCRIPTION, STATUS, VERSION, Headers, Message, parse_headers
from jetcron.errors import BusError, NotFound, TryAgain

_EXPIRES = 30.0
_HEARTBEAT = 5.0
_FIRST_EXPIRES = 0.25
_MANY_EXPIRES = 3.0
_FEW = 4
_WAKE = "reconnected"
_WOKEN = f"{VERSION} {_WAKE}\r\n\r\n".encode()
_MAX_BYTES = 8 * 1024 * 1024
"""Bytes one pull request may bring."""
_NANOSECONDS = 1_000_000_000


class Delivery:
    """One message delivered to us, to be acknowledged once what it caused is stored."""

    __slots__ = (
        "_block",
        "_bus",
        "_headers",
        "_reply",
        "_settled",
        "delivered",
        "payload",
        "sequence",
        "stored_at",
        "stream",
        "subject",
    )

    def __init__(self, bus: Publisher, msg: Message) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<time>.<pending>, or the same
        # with domain and account hash before the stream.
        tokens = msg.reply.split(".")
        first = 2 if len(tokens) == 9 else 4
        self._bus = bus
        self._reply = msg.reply
        self._settled = False
        self._block = msg.block
        self._headers: Headers | None = None
        self.subject = msg.subject
        self.payload = msg.data
        self.stream = tokens[first]
        self.delivered = int(tokens[first + 2])
        self.sequence = int(tokens[first + 3])
        self.stored_at = int(tokens[first + 5]) // 1_000_000
        """Epoch milliseconds of the server's clock."""

    @property
    def headers(self) -> Headers:
        """Its headers."""
        if self._headers is None:
            self._headers = parse_headers(self._block)
        return self._headers

    @property
    def settled(self) -> bool:
        """Whether we have acknowledged it, or handed it back."""
        return self._settled

    async def ack(self) -> None:
        """Done. Lost when the server is away: the message comes again, and its handler can bear that."""
        self._settled = True
        with contextlib.suppress(TryAgain):
            await self._bus.post(self._reply, b"+ACK")

    async def hand_back(self, delay: float = 0.0) -> None:
        """Deliver it again, to anyone, after `delay` seconds."""
        body = b"-NAK" if delay <= 0 else b"-NAK " + json.dumps({"delay": int(delay * _NANOSECONDS)}).encode()
        self._settled = True
        with contextlib.suppress(TryAgain):
            await self._bus.post(self._reply, body)

    async def in_progress(self) -> None:
        """Still at work: the server waits another `ack_wait`. Says nothing once it is acknowledged or handed back."""
        if self._settled:
            return
        with contextlib.suppress(TryAgain):
            await self._bus.post(self._reply, b"+WPI")


@dataclass(slots=True)
class _Request:
    """An open pull request: how many messages it may still bring, and when it was last heard of."""

    left: int
    heard: float
    expires: float = field(default=0.0)


class Consumer:
    """Messages of one durable consumer. Use as an async context manager, from one task.

    `fetch` returns what has arrived. Requests are topped up when half of what was asked for has come.
    """

    def __init__(self, bus: Publisher, stream: str, durable: str) -> None:
        self._bus = bus
        self.stream = stream
        self.durable = durable
        self.pulled_at: float | None = None
        """Monotonic time of the last sign of life from the server: a message, a heartbeat or an expiry."""
        self._inbox = ""
        self._arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._requests: dict[str, _Request] = {}
        self._number = 0
        self._exit = contextlib.ExitStack()
        self._refused: BusError | None = None
        self.resting = False
        """Set while nothing is asked for on purpose: then silence means nothing."""
        self._unanswered = False
        self._generation = bus.generation
        # The server drops who lets more than its limit for one client pile up.
        self._max_bytes = max(_MAX_BYTES, 2 * bus.max_payload)

    async def __aenter__(self) -> Self:
        self._inbox = self._bus._client.new_inbox()
        self._subscription = await self._bus._client.attach(f"{self._inbox}.*", self._arrived.put_nowait)
        self._exit.enter_context(self._bus.when_reconnected(self._wake))
        return self

    def _wake(self) -> None:
        """After a reconnect the open requests are gone: whoever waits in `fetch` must ask anew."""
        self._arrived.put_nowait(Message(self._inbox, "", b"", _WOKEN))

    async def __aexit__(self, *_: object) -> None:
        """Stop taking. What arrived and was not fetched is handed back."""
        self._exit.close()
        with contextlib.suppress(nats.errors.Error, BusError):
            await self._subscription.unsubscribe()
            if self._bus.connected:
                # What was under way when the server heard of it still comes, and must not be dropped: nobody
                # else would get it for a whole `ack_wait`.
                await self._bus.settled(2)
        self._bus._client.forget(self._subscription)
        while not self._arrived.empty():
            msg = self._arrived.get_nowait()
            if msg.reply:
                await Delivery(self._bus, msg).hand_back()

    @property
    def asked(self) -> int:
        """How many messages may still come without being asked for again, those that have arrived included."""
        return self.open + self._arrived.qsize()

    @property
    def open(self) -> int:
        """How many messages the requests that are open may still bring."""
        return sum(request.left for request in self._requests.values())

    async def fetch(self, most: int, *, wait: float = 1.0) -> list[Delivery]:
        """Up to `most` messages: those that have come, or the first within `wait` seconds; else an empty list.

        Raises `NotFound` when the consumer is gone, `TryAgain` when the server is away.
        """
        deadline = self._bus.clock.monotonic() + wait
        found: list[Delivery] = []
        while not found:
            self._raise_refused()
            await self._top_up(most)
            try:
                async with asyncio.timeout(deadline - self._bus.clock.monotonic()):
                    msg = await self._arrived.get()
            except TimeoutError:
                self._forget_silent()
                return found
            # What arrives may be no message but the end of a request: then ask and wait on.
            self._take(msg, found)
            if self._unanswered and not found:
                # Nobody listens on the consumer's subject: it is gone, or JetStream is.
                self._unanswered = False
                await self._bus.api(f"CONSUMER.INFO.{self.stream}.{self.durable}")
                await self._bus.clock.sleep(0.1)
            while len(found) < most and not self._arrived.empty():
                self._take(self._arrived.get_nowait(), found)
        return found

    def _raise_refused(self) -> None:
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused

    async def _top_up(self, most: int) -> None:
        if self._generation != self._bus.generation:
            self._generation = self._bus.generation
            self._requests.clear()
        asked = self.asked
        if asked > most // 2:
            return
        want = most - asked
        if want <= 0:
            return
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        # The first request ends soon, so that readiness is known without waiting for a heartbeat.
        # One for many ends soon too: what it may bring is room that others cannot use.
        expires = _FIRST_EXPIRES if self.pulled_at is None else _EXPIRES if want <= _FEW else _MANY_EXPIRES
        body = {"batch": want, "expires": int(expires * _NANOSECONDS), "max_bytes": self._max_bytes}
        if expires == _EXPIRES:
            body["idle_heartbeat"] = int(_HEARTBEAT * _NANOSECONDS)
        now = self._bus.clock.monotonic()
        await self._bus.post(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}", json.dumps(body).encode(), reply=reply
        )
        self._requests[reply] = _Request(want, now, now + expires)

    def _take(self, msg: Message, found: list[Delivery]) -> None:
        now = self._bus.clock.monotonic()
        request = self._requests.get(msg.subject) if not msg.reply else None
        headers = {} if msg.reply else msg.headers
        status = headers.get(STATUS)
        if status is None:
            self.pulled_at = now
            # The subject of a delivered message is its own; the request it answers is the oldest one open.
            self._count_down()
            found.append(Delivery(self._bus, msg))
            return
        if status == _WAKE:
            return
        if status == "503":
            self._requests.pop(msg.subject, None)
            self._unanswered = True
            return
        self.pulled_at = now
        if status == "100":
            if request is not None:
                request.heard = now
            return
        self._requests.pop(msg.subject, None)
        description = headers.get(DESCRIPTION, "")
        if (status == "404" and "Consumer" in description) or "Consumer Deleted" in description:
            self._refused = NotFound(f"the consumer {self.durable} is gone")
        elif status == "409" and "Exceeded" in description:
            self._refused = TryAgain(409, 0, description)

    def _count_down(self) -> None:
        for reply, request in list(self._requests.items()):
            request.heard = self._bus.clock.monotonic()
            request.left -= 1
            if request.left <= 0:
                del self._requests[reply]
            return

    def _forget_silent(self) -> None:
        now = self._bus.clock.monotonic()
        for reply, request in list(self._requests.items()):
            if now - request.heard > 2.5 * _HEARTBEAT or now > request.expires + 2 * _HEARTBEAT:
                del self._requests[reply]
