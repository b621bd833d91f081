"""The ledger: occurrences that did not run, and why, each written before what else their tick leads to.

Owns the rule that an entry only grows: a gap written again from the same start, by a copy that was frozen since,
must not hide occurrences a longer one told. If the process dies here, the tick comes again and tells the gap anew.
"""

from jetcron import dispatch
from jetcron.bus import Bus, fenced
from jetcron.errors import WrongSequence
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Function, Gap


async def kept(bus: Bus, function: str) -> int:
    """How long the journals of a function's completed runs are kept, in seconds, at most the default."""
    stored = await bus.entry(bus.names.function_key(function))
    keep = decode(Function, stored.payload).keep if stored is not None else None
    default = bus.settings.keep_completed
    return default if keep is None else min(default, keep // 1000)


async def record(bus: Bus, gap: Gap, function: str) -> None:
    """Write a gap, kept as long as runs are, unless the ledger tells as much already. Waits until it is stored."""
    message = dispatch.gap(bus.names, gap, function, await kept(bus, function))
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
