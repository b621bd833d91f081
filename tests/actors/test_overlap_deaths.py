"""An executor dies before any of its writes while it lets an occurrence in, leaves it out or lets it wait.

Or hears nothing of a write, or gets a run twice: the same is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest

from jetcron import App, Context
from jetcron.bus import Delivery, Outgoing
from jetcron.cycle import make_run
from jetcron.dispatch import new_run, next_turn
from jetcron.errors import LeaseLost, Unconfirmed, WrongSequence
from jetcron.executor import Executor
from jetcron.history import about
from jetcron.lanes import LANE_STEP
from jetcron_protocol import topology
from jetcron_protocol.codec import encode
from jetcron_protocol.messages import JournalEntry, Lane, Overlap, Run, Schedule
from tests.support.faults import FaultyBus
from tests.support.nats_server import NatsServer
from tests.support.stack import ALL_FAULTS, Scenario, Stack, every_fault, play

app = App("app")


@app.function(cron="0 0 29 2 *")
async def f(ctx: Context) -> int:
    return 1


def occurrence(number: int, policy: Overlap) -> Run:
    schedule = Schedule(id="app.f", function="app.f", cron="0 0 29 2 *", overlap=policy)
    return make_run(schedule, 1_000 * number)


Holder = Literal["goes on", "completed", "cancelled", "is the run itself"]


@dataclass(frozen=True, slots=True)
class Case:
    """Run `number` is delivered; run 5 has the lane, if any has it, and `queue` wait for it. It ended at 7,500 ms."""

    policy: Overlap
    holder: Holder | None = None
    number: int = 9
    queue: list[int] = field(default_factory=list)

    async def prepare(self, stack: Stack) -> None:
        names, bus = stack.names, stack.bus
        await bus.apply_consumer(*topology.run_consumer(names, "app.f", 0, stack.settings.limits))
        if self.holder is not None:
            holder = occurrence(self.number if self.holder == "is the run itself" else 5, self.policy)
            lane = Lane(
                function="app.f",
                lane="app.f",
                run=holder.run,
                message=999_999,
                queue=[occurrence(number, self.policy).run for number in self.queue],
            )
            await bus.publish(names.lane("app.f", "app.f"), encode(lane))
            if self.holder in ("completed", "cancelled", "goes on"):
                entry = JournalEntry(
                    entry="claimed" if self.holder == "goes on" else self.holder,  # type: ignore[arg-type]
                    turn=0,
                    at=7_500,
                    executor="another",
                    message=1,
                    about=about(holder),
                )
                await bus.publish(names.journal_of("app.f", holder.run), encode(entry))
        for number in self.queue:
            waiting = occurrence(number, self.policy)
            entry = JournalEntry(
                entry="waiting",
                turn=0,
                at=5_000,
                executor="another",
                about=about(waiting),
                on=[LANE_STEP],
                next_at=1 << 42,
            )
            await bus.publish(names.journal_of("app.f", waiting.run), encode(entry))
            await self._store(stack, next_turn(names, waiting, turn=1, fire_at=1 << 42, lead=500))
        await self._store(stack, new_run(names, occurrence(self.number, self.policy), now=1 << 42, lead=500))

    async def _store(self, stack: Stack, message: Outgoing) -> None:
        await stack.bus.publish(message.subject, message.payload, message.headers)

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
                await executor._worker.handle(app.functions["app.f"], delivery, executor._lease.current)
            except (LeaseLost, WrongSequence, Unconfirmed):
                pass  # whoever has it now records it: the message comes again

    def scenario(self) -> Scenario:
        return Scenario(self.prepare, self.act, durable="run==app==f")


CASES = {
    "skip, nobody before": Case("skip"),
    "skip, one goes on": Case("skip", "goes on"),
    "skip, one has ended": Case("skip", "completed"),
    "skip, one had not ended at its time": Case("skip", "completed", number=7),
    "queue, nobody before": Case("queue"),
    "queue, one goes on": Case("queue", "goes on"),
    "queue, others wait": Case("queue", "goes on", queue=[6, 11]),
    "queue, the one before has ended": Case("queue", "completed"),
    "queue, ended, and another one waits": Case("queue", "completed", queue=[6]),
    "queue, it ends, and others wait": Case("queue", "is the run itself", number=5, queue=[6, 11]),
    "cancel_running, nobody before": Case("cancel_running"),
    "cancel_running, one goes on": Case("cancel_running", "goes on"),
    "cancel_running, one was cancelled": Case("cancel_running", "cancelled"),
    "cancel_running, a newer one goes on": Case("cancel_running", "goes on", number=4),
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


@pytest.mark.parametrize("name", CASES)
async def test_each_case_ends_as_it_should(name: str, shared_nats: NatsServer) -> None:
    """So that the others compare the right thing."""
    case = CASES[name]
    state = (await play(shared_nats, case.scenario())).state
    entries = [body for _, body in state["journal"] if isinstance(body, dict)]
    completed = sum(body.get("entry") == "completed" for body in entries)
    before = int(case.holder == "completed")
    gaps = sum(body.get("reason") == "overlap" for body in entries)
    (lane,) = [body for subject, body in state["journal"] if ".lane." in subject]
    mine = occurrence(case.number, case.policy).run
    match name:
        case (
            "skip, one goes on"
            | "skip, one had not ended at its time"
            | "cancel_running, a newer one goes on"
        ):
            assert (completed - before, gaps, lane["run"] == mine) == (0, 1, False)
        case "queue, one goes on" | "queue, others wait":
            assert (completed, gaps) == (0, 0)
            assert lane["queue"] == [occurrence(n, "queue").run for n in sorted([*case.queue, 9])]
        case "queue, it ends, and others wait":
            assert (completed, gaps, lane["queue"]) == (3, 0, [])
        case "queue, ended, and another one waits":
            assert (completed - before, gaps, lane["queue"]) == (2, 0, [])
        case _:
            assert (completed - before, gaps, lane["run"]) == (1, 0, mine)
