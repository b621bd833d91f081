"""Offer an app's functions to cron-sync, and hear what became of the offer.

Owns the waiting: cron-sync may be down, and whoever hears nothing reads the registry, which names what
stands. Used by executors at their start and by `jetcron sync`.
"""

import asyncio
from dataclasses import replace
from secrets import token_bytes

import structlog

from jetcron import dispatch
from jetcron.app import App
from jetcron.bus import Bus
from jetcron.clock import Clock
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.process import Process
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import ulid
from jetcron_protocol.messages import AppEntry, SyncCommand, SyncReply

log = structlog.get_logger("jetcron.registration")

_WAIT = 5.0


async def ensure_registered(bus: Bus, app: App, *, clock: Clock, process: Process) -> None:
    """Register unless these very definitions stand already; waits for cron-sync as long as it takes."""
    while True:
        try:
            if await _stands(bus, app):
                return
            reply = await register(bus, app, clock=clock)
            for warning in reply.warnings:
                log.warning(warning, app=app.name)
            if reply.errors:
                raise ConfigurationError("; ".join(reply.errors))
            process.blocked(None)
            return
        except TryAgain as error:
            process.blocked(f"{app.name} is not registered yet: {error}")
            log.warning("waiting for cron-sync to register the app", app=app.name, reason=str(error))
            await clock.sleep(1)


async def register(
    bus: Bus, app: App, *, clock: Clock, force: bool = False, wait: float = _WAIT
) -> SyncReply:
    """Send the definitions and wait for what cron-sync says; `TryAgain` when it says nothing in `wait` seconds."""
    command = SyncCommand(
        id=ulid(clock.now(), token_bytes(10)),
        command="register",
        app=app.name,
        functions=app.wire(),
        hash=app.hash,
        force=force,
    )
    return await order(bus, command, wait=wait)


async def order(bus: Bus, command: SyncCommand, *, wait: float = _WAIT) -> SyncReply:
    """Send a sync command and wait for its reply; `TryAgain` when none comes in `wait` seconds.

    The command stands all the same and is applied when cron-sync runs.
    """
    async with bus.replies() as (inbox, queue):
        message = dispatch.command(bus.names, replace(command, reply=inbox))
        await bus.store(message)
        try:
            async with asyncio.timeout(wait):
                while True:
                    answer = await queue.get()
                    try:
                        reply = decode(SyncReply, answer.data)
                    except DecodeError as error:
                        log.warning("a reply cannot be read", reason=str(error))
                        continue
                    if reply.id == command.id:
                        return reply
        except TimeoutError:
            raise TryAgain(
                408, 0, f"cron-sync has not answered within {wait:g} s; is 'jetcron cron-sync' running?"
            ) from None


async def _stands(bus: Bus, app: App) -> bool:
    stored = await bus.entry(bus.names.app_key(app.name))
    if stored is None:
        return False
    try:
        return decode(AppEntry, stored.payload).hash == app.hash
    except DecodeError:
        return False
