"""An executor dies before any of its writes, or hears nothing of it, or a run comes twice: the same is stored.

User code may run again, as the docs say first; what is recorded and sent stands once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from jetcron import App, Context, Retry
from jetcron.bus import Delivery
from jetcron.dispatch import new_run
from jetcron.errors import LeaseLost, Unconfirmed, WrongSequence
from jetcron.events import Event
from jetcron.executor import Executor
from jetcron_protocol import topology
from jetcron_protocol.ids import manual_run_id
from jetcron_protocol.messages import Run
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import ALL_FAULTS, Scenario, Stack, every_fault, play

app = App("app")


@app.function()
async def returns(ctx: Context) -> dict[str, int]:
    return {"n": 1}


@app.function()
async def sends(ctx: Context) -> str:
    await ctx.step.send("one", Event("sent.one", {"n": 1}))
    await ctx.step.send("more", [Event("sent.more", {"n": n}) for n in range(3)])
    return "sent"


@app.function(retry=Retry(attempts=2, waits=[3600], jitter=0))
async def retries(ctx: Context) -> None:
    await ctx.step.send("one", Event("sent.one"))
    raise ValueError("again")


@app.function(retries=0)
async def fails(ctx: Context) -> None:
    await ctx.step.send("one", Event("sent.one"))
    raise ValueError("never")


@app.function()
async def unstorable(ctx: Context) -> Any:
    return {1, 2}


@dataclass(frozen=True, slots=True)
class Case:
    """A run of a function of `app`, or what should be one."""

    function: str
    raw: bytes | None = None

    async def prepare(self, stack: Stack) -> None:
        await stack.bus.apply_consumer(
            *topology.run_consumer(stack.names, self.function, 0, stack.settings.limits)
        )
        run = Run(run=manual_run_id(self.function, "1"), function=self.function, trigger="manual", fire_at=1)
        message = new_run(stack.names, run, now=1, lead=500)
        await stack.bus.publish(message.subject, self.raw or message.payload, message.headers)

    async def act(self, stack: Stack, bus: FaultyBus, deliveries: Sequence[Delivery]) -> None:
        """A fresh executor's worker; the keys of those before it have expired."""
        await stack.bus.purge(stack.names.executors, ">")
        executor = Executor(bus, stack.clock, stack.settings, stack.process(bus), app)
        armed, bus._armed = bus._armed, []
        await executor._lease.open()
        bus._armed = armed
        bus.writes.clear()
        for delivery in deliveries:
            try:
                await executor._worker.handle(app.functions[self.function], delivery, executor._lease.current)
            except (LeaseLost, WrongSequence, Unconfirmed):
                pass  # whoever has it now records it: the message comes again

    def scenario(self) -> Scenario:
        return Scenario(self.prepare, self.act, durable=f"run==app=={self.function.removeprefix('app.')}")


CASES = {name: Case(f"app.{name}") for name in ("returns", "sends", "retries", "fails", "unstorable")} | {
    "cannot be read": Case("app.returns", b"\xc1")
}


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_in_any_write_changes_nothing(name: str, shared_nats: NatsServer) -> None:
    async for where, whole, disturbed in every_fault(shared_nats, CASES[name].scenario(), ALL_FAULTS):
        assert disturbed.state == whole.state, where


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("name", CASES)
async def test_every_run_twice_is_every_run_once(name: str, forgotten: bool, shared_nats: NatsServer) -> None:
    once = await play(shared_nats, CASES[name].scenario())
    twice = await play(shared_nats, CASES[name].scenario(), again=1, forgotten=forgotten)
    assert twice.state == once.state
