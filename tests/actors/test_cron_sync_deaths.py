"""cron-sync dies before any of its writes, or hears nothing of it, or a command comes twice: the same is stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from jetcron.bus import Delivery
from jetcron.dispatch import held_tick, new_run, next_turn
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.ids import manual_run_id
from jetcron_protocol.messages import CronTrigger, Function, Run, Schedule, SyncCommand, Tick
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import HastyClock, Scenario, Stack, every_fault, play, take

NEW_YEAR = CronTrigger(expression="0 0 1 1 *")
LABOUR_DAY = CronTrigger(expression="0 0 1 5 *")
YEAR_2200 = 7_258_118_400_000
BOTH = Function(id="app.both", cron=[NEW_YEAR, LABOUR_DAY], concurrency=3)
ON_EVENT = Function(id="app.on", on=["order.*"])
FIRST = SyncCommand(id="1", command="register", app="app", functions=[BOTH, ON_EVENT], hash="one")


async def handle(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
    """A fresh cron-sync handles what was delivered."""
    await stack.make("cron-sync", bus, clock=HastyClock()).handle(deliveries)


async def apply(stack: Stack, command: SyncCommand) -> None:
    """Have a command applied without disturbance."""
    await stack.bus.publish(stack.names.sync(command.app), encode(command))
    await handle(stack, stack.bus, await take(stack.bus, stack.names.work, stack.names.cron_sync))
    await stack.settled(stack.names.work, stack.names.cron_sync)


async def revision_of(stack: Stack, schedule: str) -> int:
    entry = await stack.bus.entry(stack.names.schedule_key(schedule))
    assert entry is not None
    return entry.sequence


@dataclass(frozen=True, slots=True)
class Case:
    """What was applied before, what runs the functions have, and the command."""

    command: SyncCommand | bytes
    before: Sequence[SyncCommand] = ()
    runs_of: str | None = None
    ended: str | None = None

    async def prepare(self, stack: Stack) -> None:
        for command in self.before:
            await apply(stack, command)
        if self.runs_of is not None:
            for number, turn in enumerate((0, 0, 1)):
                run = Run(
                    run=manual_run_id(self.runs_of, str(number)),
                    function=self.runs_of,
                    trigger="manual",
                    fire_at=0 if number == 0 else YEAR_2200,
                )
                await stack.bus.store(
                    next_turn(stack.names, run, turn=turn, fire_at=YEAR_2200, lead=500)
                    if turn
                    else new_run(stack.names, run, now=0, lead=500)
                )
        command = self.command
        if self.ended is not None:
            await stack.bus.purge(stack.names.work, stack.names.ticks_of(self.ended))
            command = SyncCommand(
                id="ended",
                command="ended",
                app="app",
                items=[self.ended],
                revision=await revision_of(stack, self.ended),
            )
        raw = command if isinstance(command, bytes) else encode(command)
        await stack.bus.publish(stack.names.sync("app"), raw)

    def scenario(self) -> Scenario:
        return Scenario(self.prepare, handle, durable="cron_sync")


SECOND = SyncCommand(
    id="2",
    command="register",
    app="app",
    functions=[
        Function(id="app.both", cron=[LABOUR_DAY], concurrency=5),
        Function(id="app.new", cron=[NEW_YEAR], on=["x"]),
    ],
    hash="two",
)


def order(command: str, *items: str) -> SyncCommand:
    return SyncCommand(id=command, command=command, app="app", items=list(items))  # type: ignore[arg-type]


CASES = {
    "register": Case(FIRST),
    "register again, changed": Case(SECOND, before=[FIRST], runs_of="app.on"),
    "register the same": Case(FIRST, before=[FIRST]),
    "pause": Case(order("pause", "app.both", "app.on"), before=[FIRST]),
    "unpause": Case(order("unpause", "app.both"), before=[FIRST, order("pause", "app.both")]),
    "archive": Case(order("archive", "app.both"), before=[FIRST], runs_of="app.both"),
    "ended": Case(order("ended"), before=[FIRST], ended="app.both"),
    "refused": Case(order("pause", "app.absent", "app.on"), before=[FIRST]),
    "cannot be read": Case(b"\xc1", before=[FIRST]),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_in_any_write_changes_nothing(name: str, shared_nats: NatsServer) -> None:
    async for where, whole, disturbed in every_fault(shared_nats, CASES[name].scenario()):
        assert disturbed.state == whole.state, where


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("name", CASES)
async def test_every_command_twice_is_every_command_once(
    name: str, forgotten: bool, shared_nats: NatsServer
) -> None:
    once = await play(shared_nats, CASES[name].scenario())
    twice = await play(shared_nats, CASES[name].scenario(), again=1, forgotten=forgotten)
    assert twice.state == once.state


@pytest.mark.parametrize(("settle", "near"), [(0.25, 30_000), (60, 60_400)])
async def test_a_tick_of_an_older_revision_is_purged_only_when_far_off(
    settle: float, near: int, shared_nats: NatsServer
) -> None:
    """And not while it is governed by that one still, however long a change takes to be in force."""
    async with Stack(shared_nats, settle=settle) as stack:
        await apply(stack, FIRST)
        now = stack.clock.now()
        revision = await revision_of(stack, "app.both")
        for after in (near, 200_000):
            tick = Tick(schedule="app.both", revision=revision, at=now + after)
            await stack.bus.store(held_tick(stack.names, tick, 500))
        await apply(stack, order("pause", "app.both"))
        held = await stack.bus.subjects(stack.names.work, stack.names.ticks_of("app.both"))
        assert sorted(stack.names.parse_tick(subject).at - now for subject in held) == [near]
        entry = await stack.bus.entry(stack.names.schedule_key("app.both"))
        assert entry is not None
        assert decode(Schedule, entry.payload).state == "paused"
