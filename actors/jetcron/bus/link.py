"""The connection: reconnecting, with one reply inbox for all requests.

Owns the nats client, the futures of open requests and the measured offset of our clock. While the server is
away every publish fails at once instead of waiting in a buffer: an acknowledgement that reached the server
late could remove a message under its new owner. If the process dies here, open requests die with it; the
server answers nobody.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Self

import nats.errors
import structlog
from pydantic_core import from_json

from jetcron.bus.refusals import refusal
from jetcron.bus.wire import STATUS, Client, Headers, Message, write_headers
from jetcron.clock import Clock, SystemClock
from jetcron.errors import (
    AuthorizationFailed,
    BusError,
    ConfigurationError,
    JetStreamDisabled,
    PayloadTooLarge,
    ServerTooOld,
    ServerUnreachable,
    TryAgain,
)
from jetcron.settings import Settings
from jetcron_protocol.topology import MIN_SERVER

log = structlog.get_logger("jetcron.bus")

_CONNECT_SECONDS = 5.0
_RECONNECT_WAIT = 0.25
REQUEST_SECONDS = 5.0
PAYLOAD_RESERVE = 16 * 1024
"""What a payload leaves of the server's limit for headers and for the envelope around it."""

_UNSENT = (
    nats.errors.ConnectionClosedError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionDrainingError,
)
"""What the client raises while it does not send."""


class Link:
    """One connection to NATS. Use as an async context manager."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, name: str = "jetcron") -> None:
        self.settings = settings
        self.names = settings.names
        self.clock: Clock = clock or SystemClock()
        self.name = name
        self.generation = 0
        """Grows with every reconnect: what the server held for the old connection is gone."""
        self.clock_offset_ms = 0.0
        """Our clock minus the server's, at the last answer that carried the server's time."""
        self._client = Client()
        self._inbox = ""
        self._open: dict[str, asyncio.Future[Message]] = {}
        self._counter = 0
        self._last_error: Exception | None = None
        self._closed = False
        self._when_closed: list[Callable[[], object]] = []
        self._when_reconnected: set[Callable[[], None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self._connect()
            await self._check_server()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Flush what was published and close. Open requests fail with `TryAgain`."""
        if self._client.is_connected and self._inbox:
            with contextlib.suppress(BusError):
                await self.settled(2)
        if not self._client.is_closed and self._client.options:
            # The client asserts that it was once connected.
            with contextlib.suppress(nats.errors.Error, OSError, AssertionError):
                await self._client.close()
        for future in self._open.values():
            if not future.done():
                future.set_exception(TryAgain(0, 0, "the connection was closed"))
        self._open.clear()

    async def _connect(self) -> None:
        settings = self.settings
        options: dict[str, Any] = {
            "servers": settings.servers,
            "name": self.name,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
            "reconnected_cb": self._on_reconnect,
            "closed_cb": self._on_closed,
            "connect_timeout": 2,
            "reconnect_time_wait": _RECONNECT_WAIT,
            "max_reconnect_attempts": 3,
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "pending_size": 0,
            "flusher_queue_size": 65_536,
            # Subjects are made by `Names`, of escaped tokens and checked event names.
            "skip_subject_validation": True,
        } | _credentials(settings)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(**options)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._explain(self._last_error or error) from None
        except Exception as error:
            self._explain_files(error)
            raise
        # The first connection fails fast, so that a wrong address is reported; later ones never give up.
        self._client.options["max_reconnect_attempts"] = -1
        self._inbox = self._client.new_inbox()
        await self._client.attach(f"{self._inbox}.*", self._on_reply)

    def _explain_files(self, error: Exception) -> None:
        """Raise `AuthorizationFailed` when the client could not make sense of a credentials file."""
        for variable, file in (
            ("NATS_CREDS", self.settings.nats_creds),
            ("NATS_NKEY_SEED", self.settings.nats_nkey_seed),
        ):
            if file is not None:
                text = str(error) or type(error).__name__
                raise AuthorizationFailed(f"{variable}={str(file)!r}: cannot be used ({text})") from None

    def _explain(self, error: Exception) -> BusError:
        url = self.settings.shown_url
        text = str(error) or type(error).__name__
        if _is_refusal(error):
            return AuthorizationFailed(
                f"{url} refused the credentials ({text}); check NATS_CREDS, NATS_USER and NATS_PASSWORD"
            )
        return ServerUnreachable(f"no NATS server answers at {url} ({text}); start one, or set NATS_URL")

    async def _check_server(self) -> None:
        found = self._client.connected_server_version
        version = (found.major, found.minor, found.patch)
        if version < MIN_SERVER:
            raise ServerTooOld(".".join(map(str, version)), ".".join(map(str, MIN_SERVER)))
        try:
            await self.api("INFO", timeout=_CONNECT_SECONDS)
        except (TryAgain, JetStreamDisabled) as error:
            raise JetStreamDisabled(
                f"the server at {self.settings.shown_url} answers without JetStream ({error}); start it with -js, or "
                "enable JetStream for this account; in a cluster, a majority of its servers must run"
            ) from None

    async def _on_error(self, error: Exception) -> None:
        # The server closes the connection it refuses, and that may be reported after its refusal.
        if self._last_error is None or not _is_refusal(self._last_error):
            self._last_error = error
        level = log.error if "permission" in str(error).lower() else log.debug
        level("nats error", error=str(error) or repr(error))

    async def _on_disconnect(self) -> None:
        if not self._client.is_closed:
            log.warning("disconnected from NATS", url=self.settings.shown_url)
            self._client.forget_unsent()
        for future in self._open.values():
            if not future.done():
                future.set_exception(TryAgain(0, 0, "the connection to NATS was lost"))

    async def _on_reconnect(self) -> None:
        self.generation += 1
        log.info("connected to NATS again", url=self.settings.shown_url)
        for call in tuple(self._when_reconnected):
            call()

    async def _on_closed(self) -> None:
        """The client gave up, which it does only when told to, or when the server refused what we sent."""
        self._closed = True
        for call in self._when_closed:
            call()

    def when_closed(self, call: Callable[[], object]) -> None:
        """Have `call` called if the connection is closed for good."""
        self._when_closed.append(call)

    @contextlib.contextmanager
    def when_reconnected(self, call: Callable[[], None]) -> Iterator[None]:
        """Have `call` called after every reconnect while the context is open."""
        self._when_reconnected.add(call)
        try:
            yield
        finally:
            self._when_reconnected.discard(call)

    def check_open(self) -> None:
        """Raise `ServerUnreachable` if the connection was closed for good, saying why."""
        if self._closed:
            raise ServerUnreachable(
                f"the connection to {self.settings.shown_url} was closed for good: {self._last_error}"
            )

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, in bytes, headers included."""
        return self._client.max_payload

    @property
    def max_body(self) -> int:
        """The largest body we send: the server's limit less `PAYLOAD_RESERVE`."""
        return self.max_payload - PAYLOAD_RESERVE

    @property
    def server_version(self) -> str:
        return str(self._client.connected_server_version).removeprefix("<nats server v").removesuffix(">")

    def _on_reply(self, msg: Message) -> None:
        future = self._open.get(msg.subject)
        if future is not None and not future.done():
            future.set_result(msg)

    async def post(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: Headers | None = None
    ) -> None:
        """Publish without waiting for an answer. Raises `TryAgain` while the server is away."""
        size = len(payload)
        if headers and size > self.max_body:
            size += len(write_headers(headers))
        if size > self.max_payload:
            # The server would close the connection for good.
            raise PayloadTooLarge(size, self.max_payload)
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
        except _UNSENT as error:
            raise self._unsent(error) from None

    async def post_all(self, messages: Iterable[tuple[str, bytes, Headers]]) -> None:
        """`post` several at one time: subject, body and headers of each. They must not be too large for the server."""
        try:
            await self._client.publish_all(messages)
        except _UNSENT as error:
            raise self._unsent(error) from None

    def _unsent(self, error: Exception) -> TryAgain:
        if isinstance(error, nats.errors.ConnectionClosedError):
            self.check_open()
            return TryAgain(0, 0, "the connection is closed")
        return TryAgain(0, 0, f"not connected to NATS: {error}")

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: Headers | None = None,
        timeout: float = REQUEST_SECONDS,
    ) -> Message:
        """Publish and wait for one answer. Raises `TryAgain` when none came within `timeout` seconds."""
        reply, future = self._expect()
        timer = asyncio.get_running_loop().call_later(timeout, _expire, future, timeout)
        try:
            await self.post(subject, payload, reply=reply, headers=headers)
            msg = await future
        finally:
            timer.cancel()
            self._open.pop(reply, None)
        if not msg.data and msg.headers.get(STATUS) == "503":
            raise TryAgain(503, 0, f"nobody answers on {subject}")
        return msg

    def _expect(self) -> tuple[str, "asyncio.Future[Message]"]:
        self._counter += 1
        reply = f"{self._inbox}.{self._counter}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._open[reply] = future
        return reply, future

    async def api(
        self, call: str, body: dict[str, Any] | None = None, *, timeout: float = REQUEST_SECONDS
    ) -> Any:
        """One JetStream API request: ``$JS.API.<call>``. Raises the typed refusal."""
        payload = json.dumps(body).encode() if body is not None else b""
        msg = await self.request(f"$JS.API.{call}", payload, timeout=timeout)
        return parse_answer(msg.data)

    async def settled(self, timeout: float = REQUEST_SECONDS) -> None:
        """Return when the server has taken in all we sent before: it reads a connection in order.

        Not by the client's own flush: one that times out leaves its connection deaf when the answer comes late.
        """
        await self.api("INFO", timeout=timeout)

    @contextlib.asynccontextmanager
    async def replies(self) -> AsyncIterator[tuple[str, "asyncio.Queue[Message]"]]:
        """A reply subject of its own and the queue of what arrives there, for answers in many parts."""
        inbox = self._client.new_inbox()
        queue: asyncio.Queue[Message] = asyncio.Queue()
        subscription = await self._client.attach(inbox, queue.put_nowait)
        try:
            yield inbox, queue
        finally:
            with contextlib.suppress(nats.errors.Error):
                await self._client.detach(subscription)

    @contextlib.asynccontextmanager
    async def listen(self, subject: str) -> AsyncIterator["asyncio.Queue[tuple[str, bytes]]"]:
        """What is published on `subject` (wildcards allowed) while the context is open: subject and body.

        Nothing is kept for us while we are disconnected: whoever must not miss a message reads the stream too.
        """
        queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

        def put(msg: Message) -> None:
            queue.put_nowait((msg.subject, msg.data))

        subscription = await self._client.attach(subject, put)
        try:
            await self.settled()
            yield queue
        finally:
            with contextlib.suppress(nats.errors.Error):
                await self._client.detach(subscription)


def _is_refusal(error: Exception) -> bool:
    text = str(error).lower()
    return "authorization" in text or "authentication" in text


def _credentials(settings: Settings) -> dict[str, Any]:
    """How to log in, in the nats client's words."""
    options: dict[str, Any] = {}
    if settings.nats_creds is not None:
        options["user_credentials"] = str(settings.nats_creds)
    if settings.nats_nkey_seed is not None:
        options["nkeys_seed"] = str(settings.nats_nkey_seed)
    if settings.nats_user is not None and settings.nats_password is not None:
        options |= {"user": settings.nats_user, "password": settings.nats_password.get_secret_value()}
    if settings.nats_token is not None:
        options["token"] = settings.nats_token.get_secret_value()
    if settings.nats_ca is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=str(settings.nats_ca))
        except OSError as error:
            raise ConfigurationError(
                f"NATS_CA={str(settings.nats_ca)!r}: holds no certificates ({error})"
            ) from None
    return options


def _expire(future: "asyncio.Future[Message]", timeout: float) -> None:
    if not future.done():
        future.set_exception(TryAgain(408, 0, f"no answer within {timeout:g} s"))


def parse_answer(raw: bytes) -> Any:
    """The JSON of a JetStream answer; raises the typed refusal in it."""
    answer = from_json(raw)
    error = answer.get("error")
    if error:
        raise refusal(error)
    return answer
