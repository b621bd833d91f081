"""The runs that steps invoke: which run it is, whether anybody knows it, and how it is stored.

Owns that a step invokes one run, the same however often it is stored: its id is made of the run's and the step's. Never
waits for one: its end is left for the run that invoked it, whoever brings that about. If the process dies between the
step's `opened` entry and the storing, whoever takes the run over finds the child unknown, and stores it.
"""

from typing import Any

from jetcron import dispatch
from jetcron.bus import Bus, Outgoing
from jetcron.clock import Clock
from jetcron.errors import LimitExceeded, NonRetriableError
from jetcron.executor.claimed import Claimed
from jetcron.executor.nesting import WITHIN
from jetcron.settings import Settings
from jetcron.waits import Waits
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import child_run_id
from jetcron_protocol.messages import Function, OpenStep, Run


class Children:
    """The runs that one attempt's steps invoke."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, waits: Waits, claimed: Claimed) -> None:
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._waits = waits
        self._claimed = claimed

    async def registered(self, step: str, function: str) -> Function:
        """The function to invoke; the run fails if there is none."""
        bus = self._bus
        stored = await self._claimed.surely(lambda: bus.entry(bus.names.function_key(function)))
        found = None if stored is None else decode(Function, stored.payload)
        if found is None or found.state == "archived":
            self._claimed.fail(
                NonRetriableError(
                    f"run {self._claimed.run.run}, step {step!r}: there is no function {function!r}; "
                    "'jetcron functions list' shows those that are registered"
                )
            )
        return found

    def of(self, step: str, function: str, data: Any, opened: OpenStep | None) -> Run:
        """The run this step invokes, or has invoked, if it is `opened`; the run fails if that is too large."""
        parent = self._claimed.run
        run = Run(
            run=opened.child if opened is not None and opened.child is not None else self._id(step),
            function=function,
            trigger="invoke",
            fire_at=self._clock.now(),
            payload=data,
            parent=parent.run,
            parent_function=parent.function,
            parent_step=step,
            quiet=dispatch.is_quiet(parent),
        )
        size, most = len(self._message(run).payload), self._bus.max_body
        if size > most:
            self._claimed.fail(
                LimitExceeded(
                    f"run {parent.run}, step {step!r}: the data for {function} makes a message of {size} bytes; "
                    f"the server takes {most}"
                )
            )
        return run

    async def start(self, function: Function, run: Run) -> None:
        """Store the run a step invokes, and before it what waits for the events that cancel it."""
        await self._claimed.surely(lambda: self._waits.open_cancels(function.cancel_on, run))
        await self._claimed.surely(lambda: self._bus.store(self._message(run)))

    async def is_unknown(self, run: Run) -> bool:
        """Whether nothing is journaled of a run that was to be started: we may have died just before."""
        bus = self._bus
        journal = bus.names.journal_of(run.function, run.run)
        return await self._claimed.surely(lambda: bus.last(bus.names.journal, journal)) is None

    def _id(self, step: str) -> str:
        """Another one when the run that had failed begins again."""
        life = self._claimed.journal.history.reopened
        return child_run_id(self._claimed.run.run, f"{step}{WITHIN}{life}" if life else step)

    def _message(self, run: Run) -> Outgoing:
        return dispatch.new_run(self._bus.names, run, now=run.fire_at, lead=self._settings.lead_ms)
