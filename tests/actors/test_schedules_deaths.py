"""cron-sync dies in an order about schedules, or the order comes twice: the same is stored, whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from jetcron.bus import Delivery
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import CronTrigger, Function, Schedule, SyncCommand
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import HastyClock, Scenario, Stack, every_fault, play, take, until

FUNCTIONS = [Function(id="app.f"), Function(id="app.g", cron=[CronTrigger(expression="0 0 1 1 *")])]
REGISTER = SyncCommand(id="0", command="register", app="app", functions=FUNCTIONS, hash="one")
LABOUR_DAY = "0 0 1 5 *"


async def handle(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
    """A fresh cron-sync handles what was delivered."""
    await stack.make("cron-sync", bus, clock=HastyClock()).handle(deliveries)


def order(what: str, *schedules: dict[str, Any], **more: Any) -> SyncCommand:
    return SyncCommand(
        id=what,
        command=f"schedules.{what}",  # type: ignore[arg-type]
        app="schedules",
        schedules=list(schedules),
        by="test",
        **more,
    )


def yearly(id: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "function": "app.f", "cron": LABOUR_DAY} | more


def function_order(what: str) -> SyncCommand:
    return SyncCommand(id=what, command=what, app="app", items=["app.f"])  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Case:
    """What was ordered before, and the order; of what ended, its schedule."""

    command: SyncCommand | None
    before: Sequence[SyncCommand] = ()
    ended: str | None = None

    async def prepare(self, stack: Stack) -> None:
        for command in (REGISTER, *self.before):
            await stack.bus.publish(stack.names.sync(command.app), encode(command))
            await handle(stack, stack.bus, await take(stack.bus, stack.names.work, stack.names.cron_sync))
            await stack.settled(stack.names.work, stack.names.cron_sync)
        command = self.command or await self._ended(stack)
        await stack.bus.publish(stack.names.sync(command.app), encode(command))

    async def _ended(self, stack: Stack) -> SyncCommand:
        assert self.ended is not None
        await stack.bus.purge(stack.names.work, stack.names.ticks_of(self.ended))
        entry = await stack.bus.entry(stack.names.schedule_key(self.ended))
        assert entry is not None
        return SyncCommand(
            id="ended", command="ended", app="app", items=[self.ended], revision=entry.sequence
        )

    def scenario(self) -> Scenario:
        return Scenario(self.prepare, handle, durable="cron_sync")


TWO = order("create", yearly("a", max_runs=2, payload={"n": 1}), yearly("b", tags=["x"]))
PAUSE = order("pause", items=["a", "b"])
CASES = {
    "create": Case(
        order(
            "create",
            yearly("a"),
            yearly("b", cron=None, at=4_102_444_800_000),
            yearly("c", cron=None, every=316_224_000_000),
        )
    ),
    "create some that stand": Case(order("create", yearly("b", tags=["x"]), yearly("c")), before=[TWO]),
    "create what was deleted": Case(order("create", yearly("a")), before=[TWO, order("delete", items=["a"])]),
    "create, refused": Case(order("create", yearly("a"), yearly("b", every=5)), before=[TWO]),
    "update": Case(
        order("update", {"id": "a", "payload": 2}, {"id": "b", "cron": "0 0 1 6 *", "tags": None}),
        before=[TWO],
    ),
    "update, at a revision that is gone": Case(
        order("update", {"id": "a", "payload": 2}, if_revisions={"a": 1}), before=[TWO]
    ),
    "pause": Case(PAUSE, before=[TWO]),
    "unpause": Case(order("unpause", items=["b", "a"]), before=[TWO, PAUSE]),
    "archive": Case(order("archive", items=["a"]), before=[TWO]),
    "delete": Case(order("delete", items=["a", "b"]), before=[TWO]),
    "its function is paused": Case(function_order("pause"), before=[TWO]),
    "its function goes on": Case(function_order("unpause"), before=[TWO, function_order("pause")]),
    "its function is archived": Case(function_order("archive"), before=[TWO]),
    "its function comes back": Case(
        SyncCommand(id="9", command="register", app="app", functions=FUNCTIONS, hash="two"),
        before=[TWO, function_order("archive")],
    ),
    "what is once has ended": Case(
        None, before=[order("create", yearly("a", cron=None, at=4_102_444_800_000))], ended="a"
    ),
    "what is limited has ended": Case(None, before=[TWO], ended="a"),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_in_any_write_changes_nothing(name: str, shared_nats: NatsServer) -> None:
    async for where, whole, disturbed in every_fault(shared_nats, CASES[name].scenario()):
        assert disturbed.state == whole.state, where


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("name", CASES)
async def test_every_order_twice_is_every_order_once(
    name: str, forgotten: bool, shared_nats: NatsServer
) -> None:
    once = await play(shared_nats, CASES[name].scenario())
    twice = await play(shared_nats, CASES[name].scenario(), again=1, forgotten=forgotten)
    assert twice.state == once.state


@pytest.mark.parametrize("what", ["update", "pause", "archive", "delete"])
async def test_a_fault_while_what_is_replaced_is_mended_changes_nothing(
    what: str, shared_nats: NatsServer
) -> None:
    """Of two schedules without a tick: one is due since long, the other has a time to come."""
    both = order("create", yearly("a", cron=None, at=1), yearly("b"))
    changes = [{"id": "a", "payload": 2}, {"id": "b", "payload": 2}]
    command = order(what, *changes) if what == "update" else order(what, items=["a", "b"])

    async def prepare(stack: Stack) -> None:
        await Case(command, before=[both]).prepare(stack)
        for id in ("a", "b"):
            await stack.bus.purge(stack.names.work, stack.names.ticks_of(id))

    async def act(stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
        await handle(stack, bus, deliveries)
        due = stack.names.ticks_of("a", state="due")
        await until(lambda: stack.bus.subjects(stack.names.work, due), what="the tick of long ago released")

    scenario = Scenario(prepare, act, durable="cron_sync")
    async for where, whole, disturbed in every_fault(shared_nats, scenario):
        assert disturbed.state == whole.state, where
        ticks = [subject.split(".")[2:5] for subject, _ in whole.state["work"] if ".tick." in subject]
        assert [(state, id) for state, _, id in sorted(ticks) if id in ("a", "b")] == (
            [("due", "a"), ("held", "b")] if what == "update" else [("due", "a")]
        ), "the old one of b is far off and gone"


async def test_a_copy_that_was_frozen_over_newer_orders_changes_nothing(shared_nats: NatsServer) -> None:
    """It comes back with an order that was applied, and with newer ones applied since."""
    async with Stack(shared_nats) as stack:
        await Case(order("update", {"id": "a", "payload": 2}), before=[TWO]).prepare(stack)
        (delivery,) = await take(stack.bus, stack.names.work, stack.names.cron_sync)
        await stack.start("cron-sync")
        await stack.bus.post(delivery._reply, b"-NAK")
        later = order("update", {"id": "a", "payload": 3})
        await stack.bus.publish(stack.names.sync(later.app), encode(later))
        await stack.settled(stack.names.work, stack.names.cron_sync)
        before = (await stack.bus.stream_state(stack.names.registry)).last_sequence
        await handle(stack, stack.bus, [delivery])
        assert (await stack.bus.stream_state(stack.names.registry)).last_sequence == before
        entry = await stack.bus.entry(stack.names.schedule_key("a"))
        assert entry is not None
        assert decode(Schedule, entry.payload).payload == 3
