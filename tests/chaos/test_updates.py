"""Schedules changed by the hundred a second while they fire: every occurrence is its revision's, and none is lost.

Once as real processes that are killed and frozen with their server, once in this process with a fault in any write,
and once after an outage, when what is changed is overdue. The books are reckoned from the registry's own revisions.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from jetcron import intents
from jetcron.bus import Bus
from jetcron.health_checker import arm
from jetcron.schedules.orders import Order, Part
from jetcron.settings import Settings
from tests.chaos.updates_app import app
from tests.support.chaos import FAST, Books, Member, Tally, now_ms, until
from tests.support.faults import Die, LoseAnswer, Refuse, Stall, was_killed
from tests.support.nats_server import NatsServer
from tests.support.stack import Running, Stack
from tests.support.update_books import Reign, audit, reigns
from tests.support.update_storm import FUNCTION, Storm

SETTINGS = FAST | {"JETCRON_SETTLE": "1", "JETCRON_LOG_LEVEL": "warning"}
SETTLES = 1_500
KINDS = ("cron-sync", "cron-tick", "executor", "health-checker")


async def accounted(bus: Bus, books: Books, storm: Storm) -> Tally:
    """The tally of all that was due up to now, once nothing of it is missing, or when patience ends."""
    await until(storm.drained, "every order is applied")
    last = now_ms()
    tally = Tally()

    async def whole() -> bool:
        nonlocal tally
        tally = audit(books, await reigns(bus, storm.ids, now_ms()), last)
        return now_ms() > last + 500 and not tally.lost

    with contextlib.suppress(AssertionError):
        await until(whole, "every occurrence has its run or gap", patience=30)
    await books.complete()
    return audit(books, await reigns(bus, storm.ids, now_ms()), last)


async def one_chain_each(bus: Bus, storm: Storm) -> list[str]:
    """Active schedules of which not exactly one tick stands, and two at the moment at which it is turned."""
    wrong = []
    for id, own in (await reigns(bus, storm.ids, now_ms())).items():
        names = await bus.subjects(bus.names.work, bus.names.ticks_of(id, own[-1].revision))
        if own[-1].schedule.state == "active" and not 1 <= len(names) <= 2:
            wrong.append(f"{id}: {names}")
    return wrong


async def chains_merge(bus: Bus, storm: Storm) -> None:
    """Wait until no schedule has a second chain: what repairs and repeated ticks began flows into the first."""

    async def merged() -> bool:
        return not await one_chain_each(bus, storm)

    await until(merged, "one chain for each schedule")


# Real processes.


@contextlib.asynccontextmanager
async def processes(folder: Path) -> AsyncIterator[tuple[NatsServer, Bus, Books, list[Member]]]:
    """A server, two copies of each actor that has to do with schedules, and the books."""
    async with NatsServer(folder / "nats") as server:
        environment = SETTINGS | {"NATS_URL": server.url}
        fast = {key.removeprefix("JETCRON_").lower(): value for key, value in SETTINGS.items()}
        settings = Settings.load(nats_url=server.url, **fast)
        bus = Bus(settings, name="updates")
        books = Books(bus)
        members = [
            Member(kind, number, folder, dict(environment), "tests.chaos.updates_app:app")
            for kind in KINDS
            for number in range(2)
        ]

        async def tend() -> None:
            while True:
                if server.running:
                    for member in members:
                        member.tend()
                await asyncio.sleep(0.1)

        async with bus:
            await bus.apply_topology()
            await arm(bus, settings)
            await books.open()
            for member in members:
                member.start()
            tasks = [asyncio.create_task(books.keep()), asyncio.create_task(tend())]
            try:

                async def registered() -> bool:
                    return await bus.entry(bus.names.function_key(FUNCTION)) is not None

                await until(registered, "the app is registered")
                yield server, bus, books, members
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for member in members:
                    member.kill(again=False)


async def mischief(server: NatsServer, members: list[Member]) -> None:
    """In some thirteen seconds: each kind of process dies once, all cron-ticks together, and the server."""
    one = {member.name: member for member in members}
    await asyncio.sleep(2)
    one["cron-tick-0"].kill()
    await asyncio.sleep(1.5)
    one["cron-sync-0"].kill()
    await asyncio.sleep(1.5)
    one["executor-1"].kill()
    one["cron-sync-1"].kill()
    await asyncio.sleep(1.5)
    await server.restart(kill=True)
    await asyncio.sleep(2)
    one["cron-tick-0"].kill()
    one["cron-tick-1"].kill()
    await asyncio.sleep(1.5)
    one["cron-tick-0"].freeze()
    await asyncio.sleep(1.5)
    one["cron-tick-0"].thaw()
    one["cron-sync-0"].kill()


async def test_no_occurrence_is_lost_or_doubled_while_processes_die(tmp_path: Path) -> None:
    async with processes(tmp_path) as (server, bus, books, members):
        storm = Storm(bus, 1, many=36, few=8, settles=SETTLES)
        await storm.create()
        begun = now_ms()
        bad = asyncio.create_task(mischief(server, members))
        await storm.run(13, least=2_200)  # however slow the machine is
        await bad
        seconds = (now_ms() - begun) / 1_000
        tally = await accounted(bus, books, storm)
        changes = sum(len(own) - 1 for own in (await reigns(bus, storm.ids, now_ms())).values())
        print(f"{tally}; {changes} revisions in {seconds:.1f} s; {dict(storm.done)}")
        assert tally.clean, tally.problems()
        assert tally.expected > 100
        assert tally.runs > 50
        assert changes > 1_300
        await chains_merge(bus, storm)
        assert [end for member in members for end in member.ends] == []


# A fault in any write.


class Strikes:
    """Two copies of cron-sync and cron-tick in this process: faults in their writes; the dead begin anew."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack = stack
        self._random = Random(seed)
        self._running: list[Running] = []
        self.count = 0

    async def run(self) -> None:
        while True:
            await self.more()
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
            victim = self._random.choice(self._running)
            fault = self._random.choice(
                (Die(), Die(after=True), LoseAnswer(), LoseAnswer(), Refuse(), Refuse())
            )
            victim.bus.arm(fault, nth=self._random.randrange(6))
            self.count += 1

    async def more(self) -> None:
        """Two of each, again."""
        for running in list(self._running):
            if running.task.done():
                error = running.task.exception()
                assert error is None or was_killed(error), error
                self._running.remove(running)
        for kind in ("cron-sync", "cron-tick"):
            while sum(one.name == kind for one in self._running) < 2:
                self._running += await self._stack.start(kind)

    async def calm(self) -> None:
        for running in self._running:
            running.bus.disarm()
        await self.more()


@contextlib.asynccontextmanager
async def open_books(bus: Bus) -> AsyncIterator[Books]:
    books = Books(bus)
    await books.open()
    task = asyncio.create_task(books.keep())
    try:
        yield books
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_no_occurrence_is_lost_or_doubled_whatever_write_fails(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats, settle=1.0) as stack, open_books(stack.bus) as books:
        strikes = Strikes(stack, 2)
        await strikes.more()
        await stack.start("health-checker")
        await stack.register(app)
        await stack.execute(app)
        storm = Storm(stack.bus, 2, many=10, few=4, settles=SETTLES)
        await storm.create()
        striking = asyncio.create_task(strikes.run())
        await storm.run(5)
        assert not striking.done(), striking.result()
        striking.cancel()
        await asyncio.gather(striking, return_exceptions=True)
        await strikes.calm()
        tally = await accounted(stack.bus, books, storm)
        print(tally, strikes.count, dict(storm.done))
        assert tally.clean, tally.problems()
        assert tally.runs > 20
        assert strikes.count > 20
        await chains_merge(stack.bus, storm)


# cron-sync is not given the CPU.


@pytest.mark.parametrize("longest", [0.8, 2.5], ids=["within its intents", "beyond them"])
async def test_every_occurrence_is_its_revisions_however_long_cron_sync_stalls(
    longest: float, shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stalls before each of its writes, for longer than its successors settle."""
    monkeypatch.setattr(intents, "INTENT_KEPT", 1)
    random = Random(3)
    async with Stack(shared_nats) as stack, open_books(stack.bus) as books:
        syncs = await stack.start("cron-sync", copies=2)
        await stack.start("cron-tick", copies=2)
        await stack.register(app)
        await stack.execute(app)
        storm = Storm(stack.bus, 3, many=20, few=4, settles=SETTLES)
        await storm.create()
        for running in syncs:
            stall = Stall(lambda: random.choice((0, random.uniform(0, longest))))
            running.bus.arm(stall, on="_REGISTRY.", times=1_000_000)
        await storm.run(8)
        for running in syncs:
            running.bus.disarm()
        tally = await accounted(stack.bus, books, storm)
        changes = sum(len(own) - 1 for own in (await reigns(stack.bus, storm.ids, now_ms())).values())
        print(tally, changes, dict(storm.done))
        assert tally.clean, tally.problems()
        assert tally.runs > 20
        assert changes > 20
        await chains_merge(stack.bus, storm)


# What is changed is overdue.

ORDERS: tuple[tuple[Order, dict[str, Any] | None], ...] = (
    ("update", {"payload": 2}),
    ("update", {"payload": 2, "every": 1_500}),
    ("update", {"payload": 2, "catch_up": "all"}),
    ("update", {"payload": 2, "executes": "other"}),
    ("pause", None),
    ("delete", None),
)
POLICIES: tuple[dict[str, Any], ...] = (
    {"catch_up": "latest"},
    {"catch_up": "all"},
    {"catch_up": "skip"},
    {"catch_up": "all", "catch_up_most": 2},
    {"catch_up": "all", "catch_up_within": 2_000},
    {"executes": "other"},
)


class Overdue(Storm):
    """A schedule for each policy and each order that comes while it is overdue."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus, 0, many=0, few=0, settles=0)
        self.kinds = {
            f"overdue-{p}-{o}": (policy, *order)
            for p, policy in enumerate(POLICIES)
            for o, order in enumerate(ORDERS)
        }
        self.many = list(self.kinds)

    def _new(self, id: str) -> dict[str, Any]:
        return {"id": id, "function": FUNCTION, "payload": 1, "every": 1_000} | self.kinds[id][0]

    async def order(self) -> None:
        for id, (_, what, changes) in self.kinds.items():
            await self._order(what, [Part(id, None if changes is None else {"id": id, **changes})])


async def _outage(server: NatsServer, first: tuple[str, ...], down: asyncio.Barrier) -> None:
    async with Stack(server, settle=1.0, late_after=1.0, storage="file") as stack:
        await stack.start("cron-sync", "cron-tick")
        await stack.register(app)
        await stack.execute(app)
        storm = Overdue(stack.bus)
        await storm.create()
        await stack.journal.wait("completed", 10)
        for running in stack.running:
            await running.kill()
        await down.wait()
        await down.wait()  # the server was away in between
        await until(lambda: stack.bus.entry(stack.names.function_key(FUNCTION)), "the server is back")
        await storm.order()
        async with open_books(stack.bus) as books:
            await stack.execute(app)
            await stack.start(*first, copies=2)
            if first == ("cron-sync",):
                # The reign of what was in force before the orders ends while its ticks are overdue, too.
                await until(storm.drained, "every order is applied")
                await stack.clock.sleep(2.5)
                await stack.start("cron-tick", copies=2)
            elif first == ("cron-tick",):
                await stack.settled(stack.names.work, stack.names.cron_tick)
                await stack.start("cron-sync", copies=2)
            tally = await accounted(stack.bus, books, storm)
            print(first, tally)
            assert tally.clean, tally.problems()
            assert tally.in_gaps > 20
            _check_policies(storm, books, await reigns(stack.bus, storm.ids, now_ms()))


def _check_policies(storm: Overdue, books: Books, governed: dict[str, list[Reign]]) -> None:
    """The first revision's missed occurrences, by its policy."""
    left = dict.fromkeys(storm.ids, 0)
    for of in books.gaps.values():
        for gap in of.values():
            first = governed[gap.schedule][0]
            if first.after < gap.start <= first.until:
                left[gap.schedule] += gap.count
    for id, (policy, *_) in storm.kinds.items():
        if policy == {"catch_up": "all"}:
            assert left[id] == 0, id
        else:
            assert left[id] >= 2, (id, policy)


async def test_what_is_overdue_is_its_own_revisions_when_it_is_changed(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server:
        orders = (("cron-sync",), ("cron-tick",), ("cron-sync", "cron-tick"))
        away = asyncio.Barrier(len(orders) + 1)

        async def outage() -> None:
            await away.wait()
            await server.kill()
            await asyncio.sleep(4)
            await server.start()
            await away.wait()

        async with asyncio.TaskGroup() as group:
            group.create_task(outage())
            for first in orders:
                group.create_task(_outage(server, first, away))
