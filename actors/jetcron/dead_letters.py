"""What becomes of a message that nobody can handle: it goes to the dead stream with its reason, and is counted.

Owns the order: it is stored there before anyone acknowledges it. If the process dies in between, it is
delivered again and takes its own place in the dead stream.
"""

import structlog

from jetcron import dispatch
from jetcron.bus import Bus, Delivery
from jetcron.metrics import Metrics

log = structlog.get_logger("jetcron.dead")


async def bury(bus: Bus, metrics: Metrics, delivery: Delivery, letter: str, reason: str) -> None:
    """Write `delivery` to the dead stream as a `letter` (event, tick, sync, run or health). The caller acknowledges."""
    await bus.store(dispatch.undecodable(bus.names, delivery, letter, reason, bus.clock.now()))
    metrics.dead.labels(letter).inc()
    log.error("a message went to the dead stream", kind=letter, subject=delivery.subject, reason=reason)
