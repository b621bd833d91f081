"""Schedules created as data follow the state of their function: paused with it, archived with it, back with it.

Owns the search for them: nothing lists schedules by function, so all are looked at, a shard at a time. What somebody
paused or archived for a reason of their own stays so. If the process dies here, the command comes again and finds what
it wrote by its sequence.
"""

from collections.abc import Sequence

from jetcron.bus import Bus, Delivery
from jetcron.many import each
from jetcron.registry import Applied, Registry
from jetcron.revisions import followed
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import GROUPS, shards_of
from jetcron_protocol.messages import Function, Schedule

_SHARDS_AT_ONCE = 4


class Following:
    """Writes the schedules of functions whose state changed."""

    def __init__(self, bus: Bus, registry: Registry) -> None:
        self._bus = bus
        self._registry = registry

    async def follow(self, functions: Sequence[Function], delivery: Delivery, applied: Applied) -> None:
        """Bring their schedules into their state. Reads every schedule there is, if there are functions."""
        if not functions:
            return
        states = {function.id: function for function in functions}
        marks = [function.id.encode("utf-8", "surrogatepass") for function in functions]

        async def look(shard: str) -> None:
            keys = await self._bus.subjects(
                self._bus.names.registry, self._bus.names.schedules_of_shard(shard)
            )
            wanted = []
            for stored in (await self._bus.entries(keys)).values():
                if not any(mark in stored.payload for mark in marks):
                    continue  # seen at once, without decoding what is not theirs
                schedule = decode(Schedule, stored.payload)
                function = states.get(schedule.function)
                if schedule.origin != "data" or function is None:
                    continue
                mine = schedule.command == delivery.sequence
                made = schedule if mine else followed(schedule, function.state)
                if made is not None:
                    wanted.append(made)
            await self._registry.put_schedules(wanted, delivery, applied)

        shards = [shard for group in range(GROUPS) for shard in shards_of(group)]
        await each(look, shards, at_once=_SHARDS_AT_ONCE)
