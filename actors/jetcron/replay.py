"""Dead letters as users read them, and their replay.

Owns the order of a replay: what is sent again is stored before its dead letter goes. Dying in between leaves
both, and the same replay again stores a run that has the same id.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, get_args

from jetcron import dispatch
from jetcron.bus import Bus, Outgoing, StoredMessage
from jetcron.clock import to_ms
from jetcron.errors import ConfigurationError, NotFound, PayloadTooLarge
from jetcron.many import each
from jetcron_protocol.codec import AT_HEADER, EVENT_HEADER, DecodeError, decode, decode_event
from jetcron_protocol.ids import digest, manual_run_id, ulid
from jetcron_protocol.messages import MAX_TIME, MIN_TIME, DeadLetter, Run
from jetcron_protocol.subjects import InvalidName, Names

Kind = Literal["failed", "run", "event", "tick", "sync", "health"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_REPLAYED_HEADERS = (EVENT_HEADER, AT_HEADER)
_PAGE = 64
"""Letters read at one time; each may take a megabyte."""
_FEW = 8
_SKEW_MS = 60_000
"""A letter is stored after the time it tells, but for the clocks of two machines."""
_ITS_OWN = (NotFound, ConfigurationError, PayloadTooLarge, DecodeError, InvalidName)
"""What is wrong with one letter, and says nothing of the others."""


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter and the sequence it is kept under."""

    sequence: int
    letter: DeadLetter


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a letter that was to be sent again: `sent`, as `DeadLetters.replay` gives it, or the `error`."""

    sequence: int
    sent: str | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which letters: a filter of the server's, and what it cannot filter by."""

    subject: str
    since: int
    until: int

    @classmethod
    def by(
        cls,
        names: Names,
        kind: str | None,
        function: str | None,
        since: datetime | None,
        until: datetime | None,
    ) -> "_Wanted":
        if kind is not None and kind not in KINDS:
            raise ConfigurationError(f"kind={kind!r}; allowed are {', '.join(map(repr, KINDS))}")
        if function is not None and kind not in (None, "failed"):
            raise ConfigurationError(
                f"function={function!r} with kind={kind!r}; only letters of kind 'failed' are of a function"
            )
        subject = names.dead_all
        if function is not None:
            try:
                subject = names.dead_letters_of(function)
            except InvalidName as error:
                raise ConfigurationError(str(error)) from None
        elif kind is not None:
            subject = f"{names.dead_letter(kind)}.>"
        return cls(subject, _ms("since", since, MIN_TIME), _ms("until", until, MAX_TIME))


class DeadLetters:
    """What nobody could decode, and runs that failed for good.

    Letters are chosen by `kind` (``failed``, ``run``, ``event``, ``tick``, ``sync`` or ``health``), `function`
    (those of its failed runs), and the time they tell: from `since` on and before `until`, aware datetimes. What
    chooses raises `ConfigurationError` for a value that is not allowed.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._names = bus.names

    async def list(
        self,
        *,
        kind: str | None = None,
        function: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[Dead]:
        """The newest first, at most `limit`."""
        found: list[Dead] = []
        async for dead in self.find(kind=kind, function=function, since=since, until=until):
            if len(found) >= limit:
                break
            found.append(dead)
        return found

    async def find(
        self,
        *,
        kind: str | None = None,
        function: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncIterator[Dead]:
        """All that stand now, the newest first, read as far back as they are asked for."""
        wanted = _Wanted.by(self._names, kind, function, since, until)
        state = await self._bus.stream_state(self._names.dead)
        end, width = state.last_sequence, _PAGE
        while end >= max(state.first_sequence, 1):
            first = max(end - width + 1, state.first_sequence, 1)
            pages = self._bus.between(self._names.dead, wanted.subject, first, end, size=_PAGE)
            window = [message async for page in pages for message in page]
            for message in reversed(window):
                if message.stored_at < wanted.since - _SKEW_MS:
                    return
                dead = _dead(message)
                if wanted.since <= dead.letter.at < wanted.until:
                    yield dead
            end = first - 1
            if len(window) < _FEW:
                width *= 4  # few of the stream are wanted

    async def get(self, sequence: int) -> Dead:
        """One dead letter; raises `NotFound`."""
        stored = await self._bus.at_sequence(self._names.dead, sequence)
        if stored is None:
            raise NotFound(f"there is no dead letter {sequence}; 'jetcron dead list' shows them")
        return _dead(stored)

    async def of_run(self, run: str) -> Dead | None:
        """The letter of a run that failed for good, if it stands."""
        stored = await self._bus.last(self._names.dead, self._names.dead_letter_of_run(run))
        return None if stored is None else _dead(stored)

    async def replay(self, sequence: int) -> str:
        """Send a dead letter again, and remove it. A failed run starts anew, as a new run; gives its id.

        What could not be decoded is published again as it was, with its headers, on its own subject; gives that
        subject. Raises `NotFound`, `ConfigurationError` for a body that was too large to be kept whole.
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
        await self._bus.delete(self._names.dead, sequence)
        return sent

    async def replay_all(
        self,
        *,
        kind: str | None = None,
        function: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        told: Callable[[Replayed], None] | None = None,
    ) -> Sequence[Replayed]:
        """`replay` all letters that are chosen and stand now, as `replay_each`: those that fail again come after."""
        found = self.find(kind=kind, function=function, since=since, until=until)
        return await self.replay_each([dead.sequence async for dead in found], told=told)

    async def replay_each(
        self, sequences: Iterable[int], *, told: Callable[[Replayed], None] | None = None
    ) -> Sequence[Replayed]:
        """`replay` these, some at one time; what became of each, oldest first. `told` hears of each at once.

        What is wrong with one stops no other. Raises what is wrong with the server; then the same call does the rest.
        """
        found: dict[int, Replayed] = {}

        async def one(sequence: int) -> None:
            try:
                found[sequence] = Replayed(sequence, sent=await self.replay(sequence))
            except _ITS_OWN as error:
                found[sequence] = Replayed(sequence, error=error)
            if told is not None:
                told(found[sequence])

        ordered = sorted(set(sequences))
        await each(one, ordered)
        return [found[sequence] for sequence in ordered]

    def _again(self, letter: DeadLetter) -> Outgoing:
        """What could not be decoded, as it was; an event that can be by now, with the id it had."""
        headers = {name: value for name, value in letter.headers.items() if name in _REPLAYED_HEADERS}
        if letter.letter == "event":
            with contextlib.suppress(DecodeError, InvalidName):
                name = self._names.parse_event(letter.subject)
                event = decode_event(
                    name, letter.body, letter.headers, sequence=letter.sequence, stored_at=letter.at
                )
                return dispatch.event(self._names, event).without_id()
        return Outgoing(letter.subject, letter.body, headers or None)

    async def _run_again(self, sequence: int, letter: DeadLetter) -> str:
        old = decode(Run, letter.body)
        now = self._bus.clock.now()
        # The id comes from the dead letter: replaying it twice, after a crash in between, is one run.
        id = ulid(letter.at, digest("replay", old.run, sequence))
        # Whoever invoked the old run has had its outcome: it does not wait for this one's. Nor is this one an
        # occurrence of its schedule, that would wait for others or be left out: somebody wants it now.
        new = manual_run_id(old.function, id)
        run = replace(old, run=new, turn=0, fire_at=now, parent_step=None, overlap=None)
        message = dispatch.new_run(self._names, run, now=now, lead=self._bus.settings.lead_ms)
        await self._bus.store(message)
        return run.run


def _dead(message: StoredMessage) -> Dead:
    return Dead(message.sequence, decode(DeadLetter, message.payload))


def _ms(option: str, moment: datetime | None, otherwise: int) -> int:
    if moment is None:
        return otherwise
    try:
        return to_ms(moment)
    except (ValueError, AttributeError, TypeError):
        raise ConfigurationError(
            f"{option}={moment!r}; allowed is an aware datetime, such as datetime(2030, 1, 31, tzinfo=UTC)"
        ) from None
