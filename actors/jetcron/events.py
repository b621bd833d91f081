"""Events as users write and read them, and how they are stored.

Owns the checks on an event, its id, and the all-or-nothing sending of lists. If the process dies between two
batches of a long list, the first stands: sending again with the same ids stores nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import token_bytes
from typing import Any

from jetcron import dispatch
from jetcron.bus import MAX_BATCH, Bus, Outgoing
from jetcron.clock import from_ms, to_ms
from jetcron.errors import ConfigurationError, KnownId, PayloadTooLarge, SendFailed, TryAgain
from jetcron_protocol import messages
from jetcron_protocol.codec import EncodeError
from jetcron_protocol.ids import ulid
from jetcron_protocol.subjects import MAX_ID, InvalidName, check_event_name

_ATTEMPTS = 5
_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `name` such as ``order.created``, and `data` as any map or value.

    `data` may be anything `msgpack` carries, a dataclass or a pydantic model. A second event with the same
    `id` starts no second run while the first is remembered (a day); without one it is new each time. `at`, an
    aware datetime in the future, holds the event back until then. `ts` is set when it was sent.
    """

    name: str
    data: Any = None
    id: str | None = None
    at: datetime | None = None
    ts: datetime | None = None

    def __post_init__(self) -> None:
        try:
            check_event_name(self.name)
        except InvalidName as error:
            raise ConfigurationError(f"Event({self.name!r}): {error}") from None
        where = f"Event({self.name!r})"
        if self.id is not None and (not isinstance(self.id, str) or not self.id or not self.id.isprintable()):
            raise ConfigurationError(
                f"{where}: id={self.id!r}; allowed are printable characters, at least one"
            )
        if self.id is not None and len(self.id) > MAX_ID:
            raise ConfigurationError(f"{where}: its id has {len(self.id)} characters; allowed are {MAX_ID}")
        if self.at is not None and (not isinstance(self.at, datetime) or self.at.utcoffset() is None):
            raise ConfigurationError(
                f"{where}: at={self.at!r}; allowed is an aware datetime, such as datetime(2030, 1, 31, tzinfo=UTC)"
            )


def from_wire(event: messages.Event) -> Event:
    """A stored event as a function sees it."""
    return Event(
        name=event.name,
        data=event.data,
        id=event.id,
        at=from_ms(event.at) if event.at is not None else None,
        ts=from_ms(event.ts),
    )


def to_wire(event: Event, *, now: int, id: str | None = None) -> messages.Event:
    """An event to be stored; without an id of its own or the given one it gets a new ULID."""
    return messages.Event(
        id=event.id or id or ulid(now, token_bytes(10)),
        name=event.name,
        data=event.data,
        ts=now,
        at=to_ms(event.at) if event.at is not None else None,
    )


def check_sendable(event: Event) -> None:
    """Refuse the names that are Jetcron's own."""
    if event.name.startswith(dispatch.SYSTEM_EVENTS):
        raise ConfigurationError(
            f"Event({event.name!r}): names beginning with {dispatch.SYSTEM_EVENTS!r} are Jetcron's own"
        )


async def store_events(bus: Bus, events: Sequence[messages.Event]) -> None:
    """Store events in batches of 1,000, each whole; the same ids again change nothing.

    Raises `PayloadTooLarge` or `EncodeError` before anything is stored, `SendFailed` with how many were.
    """
    outgoing = [_outgoing(bus, event) for event in events]
    for start in range(0, len(outgoing), MAX_BATCH):
        try:
            await _store_batch(bus, outgoing[start : start + MAX_BATCH])
        except TryAgain as error:
            raise SendFailed(start, len(outgoing), str(error)) from None


def _outgoing(bus: Bus, event: messages.Event) -> Outgoing:
    try:
        message = dispatch.event(bus.names, event)
    except EncodeError as error:
        raise EncodeError(f"event {event.name!r}: {error}") from None
    if len(message.payload) > bus.max_body:
        raise PayloadTooLarge(len(message.payload), bus.max_body)
    return message


async def _store_batch(bus: Bus, batch: list[Outgoing]) -> None:
    failures = 0
    while True:
        try:
            await bus.publish_atomic(batch)
            return
        except KnownId:
            if len(batch) == 1:
                return
            # One was stored before, perhaps by a try of ours that was not answered. Without message ids the
            # batch is whole again; the runs of what is stored twice have equal ids and run once.
            batch = [message.without_id() for message in batch]
        except TryAgain:
            failures += 1
            if failures == _ATTEMPTS:
                raise
            await bus.clock.sleep(_PAUSE * failures)
