"""The only importer of nats: connection, publishing, batches, held messages, reading, pulling, objects.

`Bus` is one connection with all of it. Every storage call an actor makes is a method here, and each raises
errors of `jetcron.errors` alone.
"""

from jetcron.bus.admin import Change
from jetcron.bus.objects import LONGEST, Objects
from jetcron.bus.publish import (
    MAX_BATCH,
    MSG_ID,
    ROLLUP,
    SCHEDULE,
    SCHEDULE_TARGET,
    SCHEDULE_TTL,
    SCHEDULER,
    TTL,
    Outgoing,
    Stored,
    fenced,
    hold,
    purging,
    with_id,
)
from jetcron.bus.pull import Consumer, Delivery
from jetcron.bus.read import OPERATION, StoredMessage, StreamState, rfc3339_ms
from jetcron.bus.wire import Message


class Bus(Objects):
    """One connection to NATS and everything Jetcron does over it. Use as an async context manager."""

    def consume(self, stream: str, durable: str) -> Consumer:
        """Take messages from a durable consumer."""
        return Consumer(self, stream, durable)


__all__ = [
    "LONGEST",
    "MAX_BATCH",
    "MSG_ID",
    "OPERATION",
    "ROLLUP",
    "SCHEDULE",
    "SCHEDULER",
    "SCHEDULE_TARGET",
    "SCHEDULE_TTL",
    "TTL",
    "Bus",
    "Change",
    "Consumer",
    "Delivery",
    "Message",
    "Outgoing",
    "Stored",
    "StoredMessage",
    "StreamState",
    "fenced",
    "hold",
    "purging",
    "rfc3339_ms",
    "with_id",
]
