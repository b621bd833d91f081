"""Dead letters as users read them, and their replay.

Owns the order of a replay: what is sent again is stored before its dead letter goes. Dying in between leaves
both, and the same replay again stores a run that has the same id.
"""

import contextlib
from dataclasses import dataclass, replace

from jetcron import dispatch
from jetcron.bus import Bus, Outgoing, StoredMessage
from jetcron.errors import ConfigurationError, NotFound
from jetcron_protocol.codec import AT_HEADER, EVENT_HEADER, DecodeError, decode, decode_event
from jetcron_protocol.ids import digest, manual_run_id, ulid
from jetcron_protocol.messages import DeadLetter, Run
from jetcron_protocol.subjects import InvalidName

_REPLAYED_HEADERS = (EVENT_HEADER, AT_HEADER)


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter and the sequence it is kept under."""

    sequence: int
    letter: DeadLetter


class DeadLetters:
    """What nobody could decode, and runs that failed for good."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self, *, kind: str | None = None, limit: int = 100) -> list[Dead]:
        """The newest first; `kind` is ``failed``, ``run``, ``event``, ``tick`` or ``sync``."""
        found: list[Dead] = []
        filter = f"{self._bus.names.dead_letter(kind)}.>" if kind else self._bus.names.dead_all
        async for page in self._bus.pages(self._bus.names.dead, filter):
            found = [*found, *(_dead(message) for message in page)][-limit:]
        return found[::-1]

    async def get(self, sequence: int) -> Dead:
        """One dead letter; raises `NotFound`."""
        stored = await self._bus.at_sequence(self._bus.names.dead, sequence)
        if stored is None:
            raise NotFound(f"there is no dead letter {sequence}; 'jetcron dead list' shows them")
        return _dead(stored)

    async def replay(self, sequence: int) -> str:
        """Send a dead letter again, and remove it. A failed run starts anew, as a new run; gives its id.

        What could not be decoded is published again as it was, with its headers, on its own subject; gives that
        subject. Raises `ConfigurationError` for a body that was too large to be kept whole.
        """
        dead = await self.get(sequence)
        letter = dead.letter
        if letter.size > len(letter.body):
            raise ConfigurationError(
                f"dead letter {sequence} had {letter.size} bytes and only {len(letter.body)} were kept; send it anew"
            )
        if letter.letter == "failed":
            sent = await self._run_again(sequence, letter)
        else:
            # Without its message id, by which the server would drop it as known: an event keeps its id inside.
            message = self._again(letter)
            await self._bus.publish(message.subject, message.payload, message.headers)
            sent = letter.subject
        await self._bus.delete(self._bus.names.dead, sequence)
        return sent

    def _again(self, letter: DeadLetter) -> Outgoing:
        """What could not be decoded, as it was; an event that can be by now, with the id it had."""
        headers = {name: value for name, value in letter.headers.items() if name in _REPLAYED_HEADERS}
        if letter.letter == "event":
            with contextlib.suppress(DecodeError, InvalidName):
                name = self._bus.names.parse_event(letter.subject)
                event = decode_event(
                    name, letter.body, letter.headers, sequence=letter.sequence, stored_at=letter.at
                )
                return dispatch.event(self._bus.names, event).without_id()
        return Outgoing(letter.subject, letter.body, headers or None)

    async def _run_again(self, sequence: int, letter: DeadLetter) -> str:
        old = decode(Run, letter.body)
        now = self._bus.clock.now()
        # The id comes from the dead letter: replaying it twice, after a crash in between, is one run.
        id = ulid(letter.at, digest("replay", old.run, sequence))
        run = replace(old, run=manual_run_id(old.function, id), turn=0, fire_at=now)
        message = dispatch.new_run(self._bus.names, run, now=now, lead=self._bus.settings.lead_ms)
        await self._bus.store(message)
        return run.run


def _dead(message: StoredMessage) -> Dead:
    return Dead(message.sequence, decode(DeadLetter, message.payload))
