"""Offer an app's functions to cron-sync, and hear what became of the offer.

Owns the waiting: cron-sync may be down, and whoever hears nothing reads the registry, which names what
stands. Used by executors at their start and by `jetcron sync`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from secrets import token_bytes
from typing import Protocol

import structlog

from jetcron import dispatch
from jetcron.app import App
from jetcron.bus import Bus, Message
from jetcron.clock import Clock
from jetcron.errors import ConfigurationError, TryAgain
from jetcron.process import Process
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import ulid
from jetcron_protocol.messages import AppEntry, Function, SyncCommand, SyncReply

log = structlog.get_logger("jetcron.registration")

_WAIT = 5.0
_PAUSE = 1.0
QUIET = 5.0
"""Seconds without an answer after which whoever waits longer is given a hint."""


class Definitions(Protocol):
    """What is registered: an app, or what looks like one."""

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...

    def wire(self) -> list[Function]: ...


async def ensure_registered(
    bus: Bus, app: Definitions, *, clock: Clock, process: Process, blocking: bool = True
) -> None:
    """Register unless these very definitions stand already; waits for cron-sync as long as it takes.

    Meanwhile the process is not ready, if `blocking`. One command is stored and waited for, and another only when that
    one is gone without having been heard of.
    """
    if blocking:
        # From the start: a function that was registered before is pulled already, and the others are not known yet.
        process.blocked(f"{app.name} is not registered yet")
    async with bus.replies() as (inbox, queue):
        command = replace(_command(app, clock), reply=inbox)
        sequence = 0
        while True:
            try:
                if await _stands(bus, app):
                    break
                if not sequence or await bus.at_sequence(bus.names.work, sequence) is None:
                    message = dispatch.command(bus.names, command)
                    sequence = (await bus.publish(message.subject, message.payload)).sequence
                reply = await _reply(queue, command.id, _WAIT)
            except TryAgain as error:
                if blocking:
                    process.blocked(f"{app.name} is not registered yet: {error}")
                log.warning("waiting for cron-sync to register the app", app=app.name, reason=str(error))
                # Without a server it fails at once: the loop must turn for the connection to come back.
                await process.unless_stopping(clock.sleep(_PAUSE))
                continue
            for warning in reply.warnings:
                log.warning(warning, app=app.name)
            if reply.errors:
                raise ConfigurationError("; ".join(reply.errors))
            break
    if blocking:
        process.blocked(None)


def _command(app: Definitions, clock: Clock, *, force: bool = False) -> SyncCommand:
    return SyncCommand(
        id=ulid(clock.now(), token_bytes(10)),
        command="register",
        app=app.name,
        functions=app.wire(),
        hash=app.hash,
        force=force,
    )


async def register(
    bus: Bus, app: App, *, clock: Clock, force: bool = False, wait: float = _WAIT
) -> SyncReply:
    """Send the definitions and wait for what cron-sync says; `TryAgain` when it says nothing in `wait` seconds."""
    return await order(bus, _command(app, clock, force=force), wait=wait)


async def order(
    bus: Bus, command: SyncCommand, *, wait: float = _WAIT, quiet: Callable[[str], None] | None = None
) -> SyncReply:
    """Send a sync command and wait for its reply; `TryAgain` when none comes in `wait` seconds.

    `quiet` is called with a hint when nothing was heard for some seconds and the wait goes on. Once stored, the command
    is applied when cron-sync runs, whether its reply is heard or not.
    """
    async with bus.replies() as (inbox, queue):
        await bus.store(dispatch.command(bus.names, replace(command, reply=inbox)), patience=wait)
        if quiet is not None and wait > QUIET:
            try:
                return await _reply(queue, command.id, QUIET)
            except TryAgain as error:
                quiet(error.description)
            return await _reply(queue, command.id, wait - QUIET, after=QUIET)
        return await _reply(queue, command.id, wait)


async def _reply(queue: "asyncio.Queue[Message]", id: str, wait: float, *, after: float = 0.0) -> SyncReply:
    """What cron-sync says to this command; `TryAgain` when it says nothing in `wait` seconds more, `after` others."""
    try:
        async with asyncio.timeout(wait):
            while True:
                answer = await queue.get()
                try:
                    reply = decode(SyncReply, answer.data)
                except DecodeError as error:
                    log.warning("a reply cannot be read", reason=str(error))
                    continue
                if reply.id == id:
                    return reply
    except TimeoutError:
        raise TryAgain(
            408, 0, f"cron-sync has not answered within {after + wait:g} s; is 'jetcron cron-sync' running?"
        ) from None


async def _stands(bus: Bus, app: Definitions) -> bool:
    stored = await bus.entry(bus.names.app_key(app.name))
    if stored is None:
        return False
    try:
        return decode(AppEntry, stored.payload).hash == app.hash
    except DecodeError:
        return False
