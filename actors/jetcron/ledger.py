"""The ledger: occurrences that did not run, and why, each written before what else their tick leads to.

Owns the rule that an entry only grows: a gap written again from the same start, by a copy that was frozen since,
must not hide occurrences a longer one told. If the process dies here, the tick comes again and tells the gap anew.
"""

from jetcron import dispatch
from jetcron.bus import Bus, fenced
from jetcron.errors import WrongSequence
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Gap


async def record(bus: Bus, gap: Gap, function: str, *, keep: int) -> None:
    """Write a gap, kept `keep` seconds, unless the ledger tells as much already. Waits until it is stored."""
    message = dispatch.gap(bus.names, gap, function, keep)
    sequence = 0
    while True:
        try:
            await bus.store(message.with_headers(fenced(sequence)))
            return
        except WrongSequence:
            stored = await bus.last(bus.names.journal, message.subject)
            if stored is None:
                sequence = 0
                continue
            sequence = stored.sequence
            try:
                told = decode(Gap, stored.payload)
            except DecodeError:
                continue  # unreadable: ours takes its place
            if (told.to, told.count) >= (gap.to, gap.count):
                return
