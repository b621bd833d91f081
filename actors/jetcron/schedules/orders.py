"""Orders about schedules, as the client gives them to cron-sync: a few large commands, several at one time.

Owns the parts a long list goes in, each applied whole or refused whole, and what is heard of them. If the process dies
between two, the first stands; the same order once more changes nothing of what stands.
"""

import getpass
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import token_bytes
from typing import Any, Literal, NamedTuple

import structlog

from jetcron import dispatch
from jetcron.bus import Bus
from jetcron.clock import from_ms
from jetcron.definitions import MAX_BY
from jetcron.errors import ConfigurationError, ScheduleRefused, TryAgain
from jetcron.many import each
from jetcron.registration import order
from jetcron_protocol.codec import pack
from jetcron_protocol.ids import ulid
from jetcron_protocol.messages import Schedule, ScheduleCommand, SyncCommand, SyncReply
from jetcron_protocol.subjects import InvalidName, check_id, escape

log = structlog.get_logger("jetcron.schedules")

MAX_SCHEDULES = 750
"""Schedules in one command: three parts, where they take the place of others."""
MAX_BYTES = 256 * 1024
"""Bytes of one command: a quarter of what a server takes, unless told otherwise."""
AT_ONCE = 3
"""Commands on their way: cron-sync applies one while the next are being made and stored."""

Progress = Callable[[int], None]
"""Called with the number of schedules done since the last call."""
Order = Literal["create", "update", "pause", "unpause", "archive", "delete"]


@dataclass(frozen=True, slots=True)
class InForce:
    """What an order about a schedule came to: its revision, and when it fires next (None: it does not).

    `revision` is None where nobody was waited for.
    """

    id: str
    revision: int | None
    next: datetime | None = None


class Part(NamedTuple):
    """What is ordered of one schedule: its map for create and update, its id for all else.

    `checked`: the schedule that a whole definition makes, where it was looked at here.
    """

    id: str
    raw: Mapping[str, Any] | None = None
    if_revision: int | None = None
    checked: Schedule | None = None


def named(ids: Iterable[str], if_revision: int | None = None) -> list[Part]:
    """Parts that name schedules, each once; raises `ScheduleRefused` for what can be no id."""
    faults: dict[str, list[str]] = {}
    parts: dict[str, Part] = {}
    for id in ids:
        try:
            parts[check_id("its id", id)] = Part(id, if_revision=if_revision)
        except InvalidName as error:
            faults.setdefault(str(id), []).append(str(error))
    if faults:
        raise ScheduleRefused(faults)
    return list(parts.values())


def author() -> str:
    """Who orders, where nobody says it: this process's user and host."""
    host = socket.gethostname()
    try:
        return f"{getpass.getuser()}@{host}"
    except (KeyError, OSError, ImportError):  # a container's user often has no name
        return host


async def submit(
    bus: Bus,
    what: Order,
    parts: Sequence[Part],
    *,
    by: str | None,
    wait: float | None,
    progress: Progress | None = None,
) -> list[InForce]:
    """Order something of these schedules; what is in force then, in their order.

    Each command is waited for `wait` seconds; None: until it is stored. Raises `ScheduleRefused`, with the faults of
    the first command that was refused, or `TryAgain` when one was not answered.
    """
    by = author() if by is None else by
    if not isinstance(by, str) or not 0 < len(by) <= MAX_BY or not by.isprintable():
        raise ConfigurationError(f"by={by!r}; allowed are 1 to {MAX_BY} printable characters")
    found: dict[str, InForce] = {}
    hinted = False

    def quiet(hint: str) -> None:
        nonlocal hinted
        if not hinted:  # several are waited for at one time, and none of them is answered
            log.warning(f"{hint} The orders are stored, and waited for {wait:g} s each")
        hinted = True

    async def send(some: Sequence[Part]) -> None:
        reply = await _send(bus, _command(bus, what, some, by), wait, quiet)
        for part in some:
            at = reply.next.get(part.id)
            found[part.id] = InForce(
                part.id, reply.revisions.get(part.id), None if at is None else from_ms(at)
            )
        if progress is not None:
            progress(len(some))

    try:
        await each(send, _commands(bus, parts), at_once=AT_ONCE)
    except TryAgain as error:
        if len(parts) == 1:
            raise
        said = f"{len(found)} of {len(parts)} schedules are done, then: {error.description}"
        raise TryAgain(error.code, error.err_code, said) from None
    return [found[part.id] for part in parts]


def _commands(bus: Bus, parts: Sequence[Part]) -> Iterator[list[Part]]:
    limit = min(MAX_BYTES, bus.max_body // 2)
    some: list[Part] = []
    size = 0
    for part in parts:
        # Its key is read in one request with those of the others.
        bytes_ = len(escape(part.id)) + (len(pack(dict(part.raw))) if part.raw is not None else 0)
        if some and (len(some) == MAX_SCHEDULES or size + bytes_ > limit):
            yield some
            some, size = [], 0
        some.append(part)
        size += bytes_
    if some:
        yield some


def _command(bus: Bus, what: Order, parts: Sequence[Part], by: str) -> SyncCommand:
    command: ScheduleCommand = f"schedules.{what}"  # type: ignore[assignment]
    return SyncCommand(
        id=ulid(bus.clock.now(), token_bytes(10)),
        command=command,
        app=dispatch.SCHEDULES,
        schedules=[part.raw for part in parts if part.raw is not None],
        items=[part.id for part in parts if part.raw is None],
        if_revisions={part.id: part.if_revision for part in parts if part.if_revision is not None},
        by=by,
    )


async def _send(
    bus: Bus, command: SyncCommand, wait: float | None, quiet: Callable[[str], None]
) -> SyncReply:
    if wait is None:
        await bus.store(dispatch.command(bus.names, command))
        return SyncReply(id=command.id)
    reply = await order(bus, command, wait=wait, quiet=quiet)
    if reply.faults:
        raise ScheduleRefused(reply.faults, reply.stale)
    if reply.errors:
        raise ConfigurationError("; ".join(reply.errors))
    for warning in reply.warnings:
        log.warning(warning)
    return reply
