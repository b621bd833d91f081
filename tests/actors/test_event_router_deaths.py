"""event-router dies before any of its writes, or hears nothing of it, or an event comes twice: the same is stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from jetcron.bus import Delivery, with_id
from jetcron.dispatch import event_id
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import Event, Function
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import Scenario, Stack, every_fault, play

YEAR_2200 = 7_258_118_400_000
FUNCTIONS = (
    Function(id="app.exact", on=["order.created"]),
    Function(id="app.wild", on=["order.*"]),
    Function(id="app.all", on=[">"], state="paused"),
    Function(id="app.gone", on=["order.created"], state="archived"),
)

Published = tuple[str, bytes, dict[str, str] | None]


def own(name: str, id: str, at: int | None = None) -> Published:
    event = Event(id=id, name=name, data={"n": 1}, ts=1, at=at)
    return name, encode(event), event_id(event)


@dataclass(frozen=True, slots=True)
class Case:
    """Events as they are published; `released` ones were held and are due."""

    events: Sequence[Published]
    released: bool = False

    async def prepare(self, stack: Stack) -> None:
        for function in FUNCTIONS:
            await stack.bus.publish(stack.names.function_key(function.id), encode(function))
        for name, body, headers in self.events:
            if self.released:
                await stack.bus.publish(stack.names.later_due(name), body, {"Jetcron-Event": "1"})
            else:
                await stack.bus.publish(stack.names.event(name), body, headers)

    async def act(self, stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
        router = stack.make("event-router", bus)
        await (router.handle_released if self.released else router.handle)(deliveries)

    def scenario(self) -> Scenario:
        if self.released:
            return Scenario(self.prepare, self.act, "later", "event_router_later", len(self.events))
        return Scenario(self.prepare, self.act, "events", "event_router", len(self.events))


CASES = {
    "one, three functions": Case([own("order.created", "a")]),
    "many, one for nobody but the one that takes all": Case(
        [own("order.created", "a"), own("order.paid", "b"), own("x", "c")]
    ),
    "bare": Case(
        [("order.created", b'{"n": 1}', with_id("a")), ("order.created", b'{"n": 2}', with_id("b"))]
    ),
    "future": Case([own("order.created", "a", YEAR_2200), own("order.created", "b")]),
    "released": Case([own("order.created", "a", 1)], released=True),
    "cannot be read": Case([("order.created", b"\xc1", None), own("order.created", "b")]),
    "released, cannot be read": Case([("order.created", b"\xc1", None)], released=True),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_in_any_write_changes_nothing(name: str, shared_nats: NatsServer) -> None:
    async for where, whole, disturbed in every_fault(shared_nats, CASES[name].scenario()):
        assert disturbed.state == whole.state, where


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("name", CASES)
async def test_every_event_twice_is_every_event_once(
    name: str, forgotten: bool, shared_nats: NatsServer
) -> None:
    once = await play(shared_nats, CASES[name].scenario())
    twice = await play(shared_nats, CASES[name].scenario(), again=1, forgotten=forgotten)
    assert twice.state == once.state
