"""Client: send events, start runs, read what became of them, manage functions and dead letters.

Owns no state but its connection. What it stores is stored when the call returns; what it orders of cron-sync
is applied when the call returns, or the call says that nobody has applied it yet.
"""

from collections.abc import Sequence
from datetime import datetime
from secrets import token_bytes
from typing import Any, Literal, Self

from jetcron import dispatch, logs
from jetcron.bus import Bus, fenced
from jetcron.clock import Clock, to_ms
from jetcron.errors import (
    ConfigurationError,
    NotFound,
    PayloadTooLarge,
    WrongSequence,
)
from jetcron.events import Event, check_sendable, store_events, to_wire
from jetcron.nearby import nearby_url
from jetcron.registration import order
from jetcron.replay import DeadLetters
from jetcron.runs import RunHandle, Runs
from jetcron.schedules import Schedules
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import manual_run_id, ulid
from jetcron_protocol.messages import (
    Function,
    Run,
    SyncCommand,
)
from jetcron_protocol.subjects import CANARY, InvalidName, split_function

_STORE_SECONDS = 30.0


class Client:
    """A connection to Jetcron. Use as an async context manager: ``async with Client() as client``.

    Without `settings` they are those of the environment, and the server is ``NATS_URL``, else that of the `jetcron dev`
    that runs in this folder, else nats://127.0.0.1:4222; others are ``Settings.load(nats_url=...)`` of
    `jetcron.settings`. What it logs below a warning is shown only where structlog is configured. Raises
    `ServerUnreachable`, `AuthorizationFailed`, `JetStreamDisabled` or `ServerTooOld` when it
    cannot connect.
    """

    def __init__(self, settings: Settings | None = None, *, clock: Clock | None = None) -> None:
        if settings is not None and not isinstance(settings, Settings):
            # Its type alone: an address may hold a password.
            raise ConfigurationError(
                f"Client: settings is no Settings but {type(settings).__name__}; allowed is "
                "Settings.load(nats_url='nats://...') of jetcron.settings, or nothing: then NATS_URL says where"
            )
        logs.quiet()
        found = settings or Settings.load(nats_url=nearby_url())
        self._bus = Bus(found, clock=clock, name="jetcron client")
        self.functions = Functions(self._bus)
        self.schedules = Schedules(self._bus)
        self.runs = Runs(self._bus)
        self.dead = DeadLetters(self._bus)

    async def __aenter__(self) -> Self:
        await self._bus.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._bus.__aexit__(*exception)

    async def send(self, events: Event | Sequence[Event]) -> list[str]:
        """Send one event or a list; returns their ids once they are stored.

        Up to 1,000 stand or fall whole; a longer list goes in batches of 1,000, each whole. An event with an id
        that was sent before starts nothing again while its runs are remembered. Raises `PayloadTooLarge` or
        `EncodeError` before anything is stored, `SendFailed` with how many were.
        """
        listed = [events] if isinstance(events, Event) else list(events)
        for event in listed:
            if not isinstance(event, Event):
                raise ConfigurationError(f"{event!r} is not an Event; write Event('order.created', data)")
            check_sendable(event)
        now = self._bus.clock.now()
        wire = [to_wire(event, now=now) for event in listed]
        await store_events(self._bus, wire)
        return [event.id for event in wire]

    async def run(
        self, function: str, data: Any = None, *, id: str | None = None, at: datetime | None = None
    ) -> RunHandle:
        """Start a function by name (``app.function``); returns a handle once the run is stored.

        `data` is what its second parameter receives. A second call with the same `id` starts nothing again
        while the first run is remembered. `at`, an aware datetime, holds it until then. Raises `NotFound` when no such
        function is registered.
        """
        try:
            split_function(function)
        except InvalidName as error:
            raise ConfigurationError(str(error)) from None
        if function == CANARY:
            raise ConfigurationError(f"{function} is Jetcron's own: it runs by its schedule alone")
        definition = await self.functions.get(function)
        if definition.state == "archived":
            raise NotFound(f"{function} is archived; registering its app again brings it back")
        now = self._bus.clock.now()
        run = Run(
            run=manual_run_id(function, id if id is not None else ulid(now, token_bytes(10))),
            function=function,
            trigger="manual",
            fire_at=to_ms(at) if at is not None else now,
            payload=data,
        )
        message = dispatch.new_run(self._bus.names, run, now=now, lead=self._bus.settings.lead_ms)
        if len(message.payload) > self._bus.max_body:
            raise PayloadTooLarge(len(message.payload), self._bus.max_body)
        # Before it is stored: what cancels it may come before it begins.
        waits = Waits(self._bus, self._bus.clock, self._bus.settings)
        await waits.open_cancels_of_new(definition.cancel_on, run)
        if message.is_held:
            # A second call must not move the first: what is held stands as it is.
            message = message.with_headers(fenced(0))
        try:
            await self._bus.store(message, patience=_STORE_SECONDS)
        except WrongSequence:
            pass
        return RunHandle(self._bus, function, run.run)


class Functions:
    """The registered functions."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self) -> list[Function]:
        """All of them, by id; archived ones too."""
        keys = await self._bus.subjects(self._bus.names.registry, self._bus.names.functions)
        entries = await self._bus.entries(keys)
        return sorted((decode(Function, e.payload) for e in entries.values()), key=lambda f: f.id)

    async def get(self, id: str) -> Function:
        """One function; raises `NotFound`."""
        stored = await self._bus.entry(self._bus.names.function_key(id))
        if stored is None:
            raise NotFound(f"there is no function {id!r}; 'jetcron functions list' shows them")
        return decode(Function, stored.payload)

    async def pause(self, *ids: str, wait: float = 5.0) -> None:
        """Stop their schedules and their runs: what is ready, retried or started by events waits.

        Each of `pause`, `unpause` and `archive` returns when cron-sync has applied it. Raises `ConfigurationError`
        when it was refused, `TryAgain` when cron-sync has not answered in `wait` seconds: the order stands.
        """
        await self._order("pause", ids, wait)

    async def unpause(self, *ids: str, wait: float = 5.0) -> None:
        """Go on: schedules from now, waiting runs at once."""
        await self._order("unpause", ids, wait)

    async def archive(self, *ids: str, wait: float = 5.0) -> None:
        """Retire them: what is ready or held is cancelled. Registering the app again brings them back."""
        await self._order("archive", ids, wait)

    async def _order(
        self, command: Literal["pause", "unpause", "archive"], ids: Sequence[str], wait: float
    ) -> None:
        by_app: dict[str, list[str]] = {}
        for id in ids:
            try:
                by_app.setdefault(split_function(id)[0], []).append(id)
            except InvalidName as error:
                raise ConfigurationError(str(error)) from None
        for app, items in by_app.items():
            id = ulid(self._bus.clock.now(), token_bytes(10))
            reply = await order(
                self._bus, SyncCommand(id=id, command=command, app=app, items=items), wait=wait
            )
            if reply.errors:
                raise ConfigurationError("; ".join(reply.errors))
