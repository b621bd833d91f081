"""Days that pass in milliseconds: a clock that a test sets forward, and the server's part in it.

Owns two stand-ins. `TravelClock` is the wall clock of an executor, and of a client: the machine's own, ahead by what
the test has let pass. `TimeTravel` stands for the one thing that a server does by its own clock, which no test can
set: it holds a run until its time (`run.later`), then releases it. When the travelling clock comes to that time,
this does what the server would have done (ADR-51): it publishes the message on the target that it names, with
the headers of a release, by which the server purges the held one in the same step.

Only the wall clock travels. Leases, signs of life, `asyncio.sleep` and `asyncio.timeout`, and with it the `timeout`
of a function, go by real seconds. The event-router stays on the machine's clock, for it takes nothing while its
own is off the server's; so what begins with an event has the server's time, and its `deadline` counts from there.
Every wait is made to leave the executor (``short_wait=0``), so that all of them are seen here.
"""

from datetime import timedelta

from jetcron.bus import SCHEDULE_TARGET, Outgoing, StoredMessage, purging
from jetcron.clock import SystemClock
from jetcron.options import MILLISECOND
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Run
from tests.support.stack import Stack, not_done, until

TRAVELLING = {"short_wait": 0.0}
"""Settings of a `Stack` in which time travels."""


class TravelClock(SystemClock):
    """The machine's clock, ahead of it by what has been let pass."""

    def __init__(self) -> None:
        self._ahead = 0

    def now(self) -> int:
        return super().now() + self._ahead

    def forward_to(self, moment: int) -> None:
        """Set it to `moment` (epoch ms); never back."""
        self._ahead += max(moment - self.now(), 0)


class TimeTravel:
    """Lets time pass in a stack whose executors have `clock`."""

    def __init__(self, stack: Stack, clock: TravelClock) -> None:
        self._stack = stack
        self._clock = clock

    async def forward(self, span: timedelta) -> None:
        """Let so much time pass. Each held run is released at its own time, and may wait again within the span.

        Returns when all of it has come to rest.
        """
        moment = self._clock.now() + span // MILLISECOND
        await self.rest()
        while (due := await self._first_due(moment)) is not None:
            held, run = due
            self._clock.forward_to(run.fire_at)
            await self._release(held)
            await self.rest()
        self._clock.forward_to(moment)

    async def rest(self) -> None:
        """Wait until every event is routed, and every run is held, waits, or has ended."""
        await until(self._rests, what="at rest")

    async def _first_due(self, moment: int) -> tuple[StoredMessage, Run] | None:
        """The held run that is due first, if it is by `moment`."""
        names = self._stack.names
        stored = await self._stack.stored(names.work, names.run_later_all)
        held = [(message, decode(Run, message.payload)) for message in stored]
        due = [(message, run) for message, run in held if run.fire_at <= moment]
        return min(due, key=lambda one: (one[1].fire_at, one[0].sequence), default=None)

    async def _release(self, held: StoredMessage) -> None:
        released = Outgoing(held.headers[SCHEDULE_TARGET], held.payload, purging(held.subject))
        await self._stack.bus.store(released)

    async def _rests(self) -> bool:
        """Whether nothing is under way: all is acknowledged, and nothing new came while we looked."""
        before = await self._stored()
        return await self._all_acknowledged() and await self._stored() == before

    async def _stored(self) -> list[int]:
        names = self._stack.names
        states = [await self._stack.bus.stream_state(stream) for stream in (names.events, names.work)]
        return [state.last_sequence for state in states]

    async def _all_acknowledged(self) -> bool:
        bus, names = self._stack.bus, self._stack.names
        for stream, consumers in ((names.events, (names.event_router,)), (names.work, ("run==",))):
            listing = await bus.api(f"CONSUMER.LIST.{stream}")
            for consumer in listing["consumers"]:
                if consumer["name"].startswith(consumers) and await not_done(bus, consumer):
                    return False
        return True
