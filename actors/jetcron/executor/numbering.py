"""Where every step begins: it is given its name, or is turned away, if the code that calls it is over.

Owns the counts by which an id used twice is two steps, in the order of their use. Never knows what is journaled: the
same calls get the same names however often they are made. If the process dies, the counts begin anew with the code.
"""

import asyncio
from collections import Counter, defaultdict

import structlog

from jetcron.clock import Clock
from jetcron.executor import nesting
from jetcron.executor.branches import Branches
from jetcron.executor.claimed import Claimed

log = structlog.get_logger("jetcron.executor")

_PATIENT, _REFUSALS, _PAUSE = 10, 1000, 1.0
"""So many calls of steps are refused to code that is over before it is cancelled at each; and before each takes so
many seconds."""


class Numbering:
    """The names of one attempt's steps."""

    def __init__(self, claimed: Claimed, branches: Branches, clock: Clock) -> None:
        self._claimed = claimed
        self._branches = branches
        self._clock = clock
        self._used: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
        """How often each id was used, in the function and in each of its steps that runs."""
        self._refused = 0

    async def number(self, id: str) -> str:
        """``id``, ``id#2`` …; under the step whose function uses it, if one runs."""
        try:
            self._claimed.check_running(id)
        except BaseException:
            await self._refuse()
            raise
        self._branches.calls_steps()
        outer = nesting.outer()
        used = self._used[outer]
        used[id] += 1
        times = used[id]
        name = id if times == 1 else f"{id}#{times}"
        return name if outer is None else f"{outer}{nesting.WITHIN}{name}"

    def begin(self, step: str) -> None:
        """The function of this step is called: each of its tries uses the same ids."""
        self._used.pop(step, None)

    async def _refuse(self) -> None:
        """Code that is over calls a step. One that catches whatever is raised, in a loop, must come to an end too."""
        self._refused += 1
        if self._refused == _REFUSALS:
            log.error("code does not let go of its run, which has ended or left", run=self._claimed.run.run)
        await self._clock.sleep(0 if self._refused < _REFUSALS else _PAUSE)
        task = asyncio.current_task()
        if _PATIENT < self._refused < _REFUSALS and task is not None:
            task.cancel()  # what it awaits between its calls
