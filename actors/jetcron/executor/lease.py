"""The liveness keys of one executor process: who it is, and whether others still believe it alive.

Owns the identities this process claims runs under. An identity whose key could not be renewed for its whole
time to live has lapsed: others may take its runs, so their code is stopped. If the process dies, its keys
expire and other executors take over what it claimed.
"""

import asyncio
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex

import structlog

from jetcron.bus import TTL, Bus
from jetcron.clock import Clock
from jetcron.errors import BusError
from jetcron.settings import Settings
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import ExecutorEntry

log = structlog.get_logger("jetcron.executor")


@dataclass(slots=True, eq=False)
class Identity:
    """A name to claim runs under. `renewed` is the monotonic time its key was last known to be stored."""

    id: str
    renewed: float
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    claims: set[str] = field(default_factory=set)
    """The nonces of the claims in hand under it, those that are being appended included."""
    lapsed: bool = False
    _nonces: "count[int]" = field(default_factory=count)

    def nonce(self) -> str:
        """Never the same twice: by it an append is recognised as ours."""
        return f"{self.id}-{next(self._nonces)}"


class Lease:
    """Keeps the key of the current identity, and of retired ones that still have runs in hand."""

    def __init__(
        self, bus: Bus, clock: Clock, settings: Settings, app: str, *, running: Callable[[], int]
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._app = app
        self._running = running
        self._started = clock.now()
        self._retired: list[Identity] = []
        self._current: Identity | None = None
        self._fresh = asyncio.Event()
        self._changing = asyncio.Lock()

    @property
    def current(self) -> Identity:
        """The identity new claims are made under."""
        assert self._current is not None, "the lease has not been opened"
        return self._current

    async def open(self) -> None:
        """Take an identity; returns once its key is stored."""
        identity = Identity(f"{socket.gethostname()}-{token_hex(6)}", self._clock.monotonic())
        await self._write(identity)
        self._current = identity
        self._fresh.set()

    async def keep(self) -> None:
        """Renew the keys every beat, until cancelled."""
        while True:
            await self._clock.sleep(self._settings.executor_beat)
            for identity in [self.current, *self._retired]:
                await self._renew(identity)
            self._retired = [identity for identity in self._retired if identity.tasks]

    async def usable(self) -> bool:
        """Wait until the current identity's key is believed to stand: pull nothing before that. Then True."""
        return await self._fresh.wait()

    def holds(self, executor: str, claim: str) -> bool | None:
        """Whether `executor`, if it is an id of ours, has the claim of this nonce in hand; None for another's id."""
        for identity in (self.current, *self._retired):
            if identity.id == executor:
                return claim in identity.claims
        return None

    def expired(self, identity: Identity) -> bool:
        """Whether others may hold this identity for dead. A process that was frozen asks before it records."""
        if not identity.lapsed:
            identity.lapsed = self._clock.monotonic() - identity.renewed > self._settings.executor_ttl
        return identity.lapsed

    async def retire(self, identity: Identity) -> None:
        """Claim nothing more under it: an append was given up whose outcome nobody knows.

        Its key is renewed while other runs are in hand under it, then left to expire.
        """
        async with self._changing:
            if identity is not self._current:
                return
            log.warning("taking a new executor id", old=identity.id)
            self._fresh.clear()
            while True:
                try:
                    await self.open()
                    break
                except BusError as error:
                    log.debug("the new id could not be stored yet", reason=str(error))
                    await self._clock.sleep(1)
            self._retired.append(identity)

    async def close(self) -> None:
        """Remove the keys: what is still claimed may be taken over at once."""
        for identity in [*self._retired, *([self._current] if self._current else [])]:
            try:
                await self._bus.purge(self._bus.names.executors, self._key(identity))
            except BusError as error:
                log.debug("a liveness key was left to expire", id=identity.id, reason=str(error))

    def _key(self, identity: Identity) -> str:
        return self._bus.names.executor_key(self._app, identity.id)

    async def _renew(self, identity: Identity) -> None:
        # Once lapsed, an identity stays lapsed: its runs may have been taken, whatever is written now.
        if not self.expired(identity):
            try:
                await self._write(identity)
                if identity is self._current:
                    self._fresh.set()
            except BusError as error:
                log.warning("cannot renew the executor's key", id=identity.id, reason=str(error))
                if identity is self._current:
                    self._fresh.clear()
        if self.expired(identity):
            self._stop(identity)
            await self.retire(identity)

    async def _write(self, identity: Identity) -> None:
        at = self._clock.monotonic()
        entry = ExecutorEntry(
            app=self._app,
            executor=identity.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            slots=self._settings.slots,
            running=self._running(),
            clock=self._clock.now(),
            started=self._started,
        )
        ttl = math.ceil(self._settings.executor_ttl)
        await self._bus.publish(self._key(identity), encode(entry), {TTL: f"{ttl}s"}, timeout=2)
        identity.renewed = at

    def _stop(self, identity: Identity) -> None:
        """Its runs may be others' by now: cancel their code, record nothing, acknowledge nothing."""
        if identity.tasks:
            log.error("the executor's key lapsed, its runs are left to others", runs=len(identity.tasks))
        for task in identity.tasks:
            task.cancel()
