"""The results of steps on their way into the journal and out of it: as they are, or as objects beside it if large.

Owns what is too large, and that code and journal never share a value: what the one does to it is not done to the other.
Never journals anything. If the process dies here, an object may stand that no entry names: it goes when its run ends.
"""

from typing import Any

from jetcron.bus import Bus
from jetcron.errors import LimitExceeded, NonRetriableError
from jetcron.executor.claimed import Claimed
from jetcron.journal import most_inline
from jetcron.settings import Settings, variable_of
from jetcron_protocol.codec import EncodeError, pack, unpack
from jetcron_protocol.messages import ObjectRef

_SCALARS = (bool, int, float, str, bytes)


class Results:
    """What the steps of one attempt give."""

    def __init__(self, bus: Bus, settings: Settings, claimed: Claimed) -> None:
        self._bus = bus
        self._settings = settings
        self._claimed = claimed

    async def storable(self, step: str, result: Any) -> dict[str, Any]:
        """A result as fields of its entry: itself, or where it is kept if it is large."""
        self._claimed.check_running(step)
        if result is None:
            return {}
        run = self._claimed.run.run
        try:
            body = pack(result)
        except EncodeError as error:
            raise NonRetriableError(f"run {run}, step {step!r}: {error}") from None
        if len(body) <= most_inline(self._bus, self._settings):
            # A copy: the code may change what it was given.
            return {"result": result if isinstance(result, _SCALARS) else unpack(body)}
        if len(body) > self._settings.max_result:
            self._claimed.fail(
                LimitExceeded(
                    f"run {run}, step {step!r}: its result takes {len(body)} bytes; allowed are "
                    f"{self._settings.max_result} ({variable_of('max_result')})"
                )
            )
        # Under a name of our own: if we are frozen, and another has the run, we must not replace what it journals.
        name = f"{step}/{self._claimed.identity.id}"
        return {"object": await self._claimed.surely(lambda: self._bus.put_object(run, name, body))}

    async def loaded(self, result: Any, ref: ObjectRef | None) -> Any:
        """A stored result, the caller's own: what it does to it is not done to what is remembered."""
        if ref is None:
            return result if result is None or isinstance(result, _SCALARS) else unpack(pack(result))
        return unpack(await self._claimed.surely(lambda: self._bus.get_object(ref)))
