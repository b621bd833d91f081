"""cron-sync: applies sync commands to the registry, arms schedules, keeps the run consumers.

Owns the registry: nobody else writes definitions. Commands come one at a time, and each is applied whole or
refused whole, for one that cannot be applied must not keep the others waiting. If it dies in one, the command is
delivered again: it finds its own sequence in the entries it wrote and repeats only what follows them.
"""

from collections.abc import Sequence

import structlog
from pydantic import TypeAdapter

from jetcron.bus import Bus, Delivery
from jetcron.clock import Clock
from jetcron.cron import CronError
from jetcron.cron_sync import declared
from jetcron.cron_sync.following import Following
from jetcron.cron_sync.orders import Orders, Refused
from jetcron.dead_letters import bury
from jetcron.errors import PayloadTooLarge, TopologyMismatch, TryAgain, WrongSequence
from jetcron.many import each
from jetcron.process import FATAL, Process
from jetcron.registry import Applied, Held, Registry
from jetcron.retirement import Retirement
from jetcron.revisions import END
from jetcron.settings import Settings
from jetcron_protocol import topology
from jetcron_protocol.codec import DecodeError, EncodeError, decode, encode, unpack
from jetcron_protocol.messages import (
    AppEntry,
    Function,
    FunctionState,
    Replaced,
    Subject,
    SyncCommand,
    SyncReply,
    replace,
)
from jetcron_protocol.subjects import InvalidName, split_function

log = structlog.get_logger("jetcron.cron-sync")

_TRIES = 5
_PAUSE = 0.2
_LONGEST_REASON = 64 * 1024
"""Characters of a refusal in its dead letter: hundreds of schedules may each have several faults."""
_LOGGED = 20
_SUBJECT: TypeAdapter[str] = TypeAdapter(Subject)
_UNAPPLICABLE = (InvalidName, CronError, DecodeError, TopologyMismatch, PayloadTooLarge)
"""What a command or the entries it meets may provoke: it is refused, and says why."""


class CronSync:
    """Takes sync commands, gives registry entries, first ticks and run consumers."""

    name = "cron-sync"

    def __init__(self, bus: Bus, clock: Clock, settings: Settings, process: Process) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings
        self._process = process
        self._registry = Registry(bus, clock, settings)
        self._orders = Orders(self._registry)
        self._following = Following(bus, self._registry)
        self._retirement = Retirement(bus, clock, settings, by=self.name)

    async def run(self) -> None:
        """Apply commands until told to stop."""
        await self._process.take(self._names.work, self._names.cron_sync, self.handle, most=1)

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Apply one command after the other; each is acknowledged once all it asks for is stored."""
        for delivery in deliveries:
            try:
                command = decode(SyncCommand, delivery.payload)
            except DecodeError as error:
                await self._bury(delivery, str(error))
                await self._tell(delivery.payload, str(error))
                await delivery.ack()
                continue
            applied = Applied()
            errors: list[str] = []
            refused = Refused()
            try:
                await self._apply_fenced(command, delivery, applied)
            except Refused as refusal:
                refused, errors = refusal, refusal.reasons
                await self._bury(delivery, f"refused: {refusal}"[:_LONGEST_REASON])
            except (TryAgain, *FATAL):
                raise
            except Exception as error:
                # Handed back, it would keep all other commands waiting.
                if delivery.delivered < _TRIES:
                    raise
                log.exception("a sync command cannot be applied", command=command.command)
                errors = [f"{command.command} cannot be applied: {type(error).__name__}: {error}"]
                await self._bury(delivery, errors[0])
            await self._reply(command, applied, errors, refused)
            await delivery.ack()
            outcome = "refused" if errors else "applied"
            self._process.metrics.commands.labels(command.command, outcome).inc()
            log.info(
                outcome,
                command=command.command,
                app=command.app,
                changed=len(applied.revisions),
                errors=errors[:_LOGGED] or None,
            )

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        await bury(self._bus, self._process.metrics, delivery, "sync", reason)

    async def _tell(self, payload: bytes, error: str) -> None:
        """Answer whoever sent what is no command, as far as it says where."""
        try:
            sent = unpack(payload)
            to, reply = _SUBJECT.validate_python(sent["reply"]), SyncReply(id=sent["id"], errors=[error])
            await self._bus.post(to, encode(reply))
        except (DecodeError, EncodeError, PayloadTooLarge, TypeError, LookupError, ValueError):
            return  # not even that, or more than an answer holds

    async def _reply(
        self, command: SyncCommand, applied: Applied, errors: list[str], refused: Refused
    ) -> None:
        if not command.reply:
            return
        reply = SyncReply(
            id=command.id,
            revisions=applied.revisions,
            next=applied.next,
            errors=errors,
            warnings=applied.warnings,
            faults=refused.faults,
            stale=refused.stale,
        )
        try:
            await self._bus.post(command.reply, encode(reply))
        except PayloadTooLarge:
            shortened = [error[:1000] for error in errors[:100]]
            short = replace(reply, revisions={}, next={}, errors=shortened, faults={}, stale={})
            await self._bus.post(command.reply, encode(short))

    async def _apply_fenced(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        """Apply; again from the start when the registry moved under us: another copy has this command, or a newer."""
        for attempt in range(1, _TRIES + 1):
            applied.parts = 0
            try:
                await self._apply(command, delivery, applied)
                return
            except WrongSequence as error:
                log.info("the registry moved, applying again", command=command.command, reason=str(error))
                await self._clock.sleep(_PAUSE * attempt)
            except _UNAPPLICABLE as error:
                raise Refused(f"{command.command} cannot be applied: {error}") from None
        raise TryAgain(0, 0, "the registry keeps moving")

    async def _apply(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        match command.command:
            case "register":
                await self._register(command, delivery, applied)
            case "pause":
                await self._set_state(command, "paused", delivery, applied)
            case "unpause":
                await self._set_state(command, "active", delivery, applied)
            case "archive":
                await self._set_state(command, "archived", delivery, applied)
            case "ended":
                await self._ended(command, delivery, applied)
            case _:
                await self._orders.apply(command, delivery, applied)

    # Register.

    async def _register(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        held = await self._registry.app(command.app)
        warning = self._not_now(command, held.value, delivery.sequence)
        if warning is not None:
            if warning:
                applied.warnings.append(warning)
            return
        problems = declared.faults(command)
        if problems:
            raise Refused(*problems)
        wanted = {function.id: function for function in command.functions}
        before = held.value.functions if held.value else []
        found = await self._registry.functions([*wanted, *(id for id in before if id not in wanted)])
        gone = [
            replace(old.value, state="archived", command=delivery.sequence)
            for id, old in found.items()
            if id not in wanted
            and old.value is not None
            and declared.still_to_archive(old.value, delivery.sequence)
        ]
        kept = [
            replace(function, state=declared.kept_state(found[function.id].value), command=delivery.sequence)
            for function in wanted.values()
        ]
        schedules = declared.schedules([*kept, *gone], found)
        await self._registry.check_owners(schedules)  # before anything is written: it is applied whole or not
        await self._consumers(kept, found, every=command.force)
        await self._registry.put_functions(
            gone, found
        )  # before their runs are cancelled: nobody starts another
        await self._registry.put_schedules(schedules, delivery, applied)
        back = [function for function in kept if declared.comes_back(function, found[function.id].value)]
        await self._following.follow([*gone, *back], delivery, applied)
        await self._retire(gone)
        # Only now: the entries these replace say which schedules a function had, should we die before here.
        await self._registry.put_functions(kept, found)
        await self._put_app(command, delivery, held)

    def _not_now(self, command: SyncCommand, app: AppEntry | None, sequence: int) -> str | None:
        """Why these definitions are not applied: a warning, or nothing to say for those that stand; None: apply."""
        if app is None or app.command == sequence:
            return None
        if app.command > sequence:
            return f"newer definitions of {command.app} were registered meanwhile and stand"
        if command.force:
            return None
        if app.hash == command.hash:
            return ""
        since = self._clock.now() - self._settings.rolled_back_within_ms
        if any(old.hash == command.hash and old.at > since for old in app.replaced):
            return (
                f"these definitions of {command.app} were replaced by newer ones a short while ago and do not "
                "come back by themselves; 'jetcron sync --force' brings them back"
            )
        return None

    async def _put_app(self, command: SyncCommand, delivery: Delivery, held: Held[AppEntry]) -> None:
        app = held.value
        if app is not None and app.command == delivery.sequence:
            return
        now = self._clock.now()
        since = now - self._settings.rolled_back_within_ms
        replaced = [old for old in app.replaced if old.at > since and old.hash != command.hash] if app else []
        if app is not None and app.hash != command.hash:
            replaced.append(Replaced(hash=app.hash, at=now))
        entry = AppEntry(
            app=command.app,
            hash=command.hash or "",
            functions=[function.id for function in command.functions],
            replaced=replaced,
            command=delivery.sequence,
        )
        await self._registry.put_app(entry, held)

    async def _consumers(
        self, functions: Sequence[Function], found: dict[str, Held[Function]], *, every: bool = False
    ) -> None:
        """A consumer for every function that runs; before any run of it can be published."""

        async def put(function: Function) -> None:
            limits = self._settings.limits
            await self._bus.apply_consumer(
                *topology.run_consumer(self._names, function.id, function.concurrency, limits)
            )
            if function.state == "paused":
                await self._pause_consumer(function)

        await each(put, [f for f in functions if every or declared.needs_consumer(f, found[f.id].value)])

    async def _pause_consumer(self, function: Function) -> None:
        durable = self._names.run_consumer(function.id)
        await self._bus.pause_consumer(self._names.work, durable, paused=function.state == "paused")

    async def _retire(self, functions: Sequence[Function]) -> None:
        if functions:
            await self._retirement.settle()
        current = await self._registry.functions([function.id for function in functions])
        for function in functions:
            entry = current[function.id].value
            if entry is not None and entry.command == function.command:
                await self._retirement.retire(function)

    # Pause, unpause, archive a function.

    async def _set_state(
        self, command: SyncCommand, state: FunctionState, delivery: Delivery, applied: Applied
    ) -> None:
        strangers = [id for id in command.items if split_function(id)[0] != command.app]
        if strangers:
            raise Refused(*(f"{id} is not a function of the app {command.app!r}" for id in strangers))
        found = await self._registry.functions(command.items)
        faults = [
            fault
            for id, held in found.items()
            if (fault := declared.fault(id, held, state, delivery.sequence))
        ]
        if faults:
            raise Refused(*faults)
        written = [
            replace(held.value, state=state, command=delivery.sequence)
            for held in found.values()
            if held.value is not None and held.value.command <= delivery.sequence
        ]
        if state != "archived":
            await self._consumers(written, found, every=True)
        await self._registry.put_functions(written, found)
        await self._registry.put_schedules(declared.schedules(written, found), delivery, applied)
        await self._following.follow(written, delivery, applied)
        if state == "archived":
            await self._retire(written)
        else:
            await each(self._pause_consumer, written)

    async def _ended(self, command: SyncCommand, delivery: Delivery, applied: Applied) -> None:
        """Revisions that fired for the last time; where a newer one is in force, nothing. What is once is gone then."""
        revisions = command.if_revisions or dict.fromkeys(command.items, command.revision)
        held = await self._registry.schedules(command.items)
        over = [
            replace(
                entry, state="deleted" if entry.at is not None and entry.origin == "data" else "ended", by=END
            )
            for schedule, one in held.items()
            if (entry := one.value) is not None
            and entry.state == "active"
            and one.sequence == revisions.get(schedule)
        ]
        await self._registry.put_schedules(over, delivery, applied, held=held, over=True)
