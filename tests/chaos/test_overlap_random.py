"""A schedule every second under each overlap policy, its runs of random length, its executors killed at random.

And tens of schedules created as data, all of one function, each with a queue of its own. Each occurrence is accounted
for: it ran or is in the ledger, never two of one schedule went on at once, and those of a queue began in their order.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from jetcron import App, Client, Context, Retry
from jetcron.control import RunControl
from jetcron.cycle import make_run
from jetcron.dispatch import new_run
from jetcron.history import FINISHED
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import ulid_time
from jetcron_protocol.messages import Gap, JournalEntry, Overlap, Schedule
from tests.support.faults import Die, LoseAnswer, Refuse, was_killed
from tests.support.nats_server import NatsServer
from tests.support.stack import Running, Stack, until

POLICIES: tuple[Overlap, ...] = ("skip", "queue", "cancel_running")
SECOND = 1_000
ROUNDS = 12
EVERY_SECOND = "* * * * * *"
TEAMS = [f"team-{number}" for number in range(30)]
OF_A_TEAM = "lane.team"


@dataclass
class Watched:
    """What the users' code does: two of one schedule that execute at one moment are noted."""

    now: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    met: list[tuple[str, str, str]] = field(default_factory=list)


def declare(chance: random.Random, watched: Watched) -> App:
    app = App("lane")

    async def work(ctx: Context, schedule: str, longest: float) -> None:
        # Its own code may still be unwinding where a lease was lost: that is no other occurrence.
        now = watched.now[schedule]
        watched.met += [(schedule, other, ctx.run_id) for other in now if other != ctx.run_id]
        now.add(ctx.run_id)
        try:
            kind = chance.random()
            if kind < 0.2:
                await ctx.step.sleep("nap", 0.3)  # it leaves its executor
            await asyncio.sleep(chance.random() * longest)
            if kind > 0.9 and ctx.attempt == 0:
                raise ValueError("try again")
        finally:
            now.discard(ctx.run_id)

    retry = Retry(attempts=3, waits=[0.2], jitter=0)

    def one(policy: Overlap) -> None:
        @app.function(id=policy, cron=EVERY_SECOND, overlap=policy, retry=retry)
        async def f(ctx: Context) -> None:
            await work(ctx, policy, 0.8 if policy == "queue" else 1.8)

    for policy in POLICIES:
        one(policy)

    @app.function(id="team", retry=retry)
    async def team(ctx: Context, data: dict[str, str]) -> None:
        await work(ctx, data["team"], 0.8)

    return app


@dataclass
class Storm:
    stack: Stack
    app: App
    chance: random.Random
    executors: list[Running] = field(default_factory=list)

    async def more(self) -> None:
        """Two executors, again."""
        for running in list(self.executors):
            if running.task.done():
                error = running.task.exception()
                assert error is None or was_killed(error), error
                self.executors.remove(running)
        while len(self.executors) < 2:
            self.executors.append(await self.stack.execute(self.app, short_wait=0))

    async def strike(self) -> None:
        """One thing that may happen to an executor, or to a message."""
        victim = self.chance.choice(self.executors)
        match self.chance.randrange(6):
            case 0:
                self.executors.remove(victim)
                await victim.kill()
            case 1:
                victim.bus.arm(Die(after=self.chance.random() < 0.5), nth=self.chance.randrange(8))
            case 2:
                victim.bus.arm(LoseAnswer(), nth=self.chance.randrange(8), times=2)
            case 3:
                victim.bus.arm(Refuse(), nth=self.chance.randrange(8), times=2)
            case 4:
                await self.repeat()
            case _:
                await self.cancel()

    async def repeat(self) -> None:
        """Publish some of the latest occurrences again, in any order, as crashes of a server do."""
        now = self.stack.clock.now()
        for policy in POLICIES:
            id = f"lane.{policy}"
            schedule = Schedule(id=id, function=id, cron=EVERY_SECOND, overlap=policy)
            await self._repeat(schedule, 3, until=now)
        for id in self.chance.sample(TEAMS, 3):
            # Of all of them there were occurrences at these times.
            await self._repeat(data_schedule(id), 1, until=now - 2 * SECOND)

    async def _repeat(self, schedule: Schedule, most: int, *, until: int) -> None:
        names = self.stack.names
        subjects = await self.stack.bus.subjects(names.journal, names.journal_of(schedule.function))
        began = [ulid_time(subject.rsplit(".", 1)[1]) for subject in subjects]
        times = sorted({at for at in began if at is not None and at <= until})
        for at in self.chance.sample(times, min(most, len(times))):
            again = new_run(names, make_run(schedule, at), now=self.stack.clock.now(), lead=500)
            await self.stack.bus.store(again.without_id())

    async def cancel(self) -> None:
        """A user ends a run: one that goes on, or one that waits for its turn."""
        unfinished = await self.unfinished()
        if unfinished:
            function, run = self.stack.names.parse_journal(self.chance.choice(unfinished))
            await RunControl(self.stack.bus).cancel(function, run, "not this one")

    async def calm(self) -> None:
        """Wait until every run has ended and every message is dealt with."""
        names = self.stack.names

        async def quiet() -> bool:
            await self.more()
            return (
                await self.stack.bus.subjects(names.work, f"{names.namespace}.run.>") == []
                and await self.unfinished() == []
            )

        await until(quiet, patience=90, what="every run ended")

    async def unfinished(self) -> list[str]:
        subjects = await self.stack.bus.subjects(self.stack.names.journal, self.stack.names.journal_all)
        runs = [subject for subject in subjects if ".gap-" not in subject]
        last = await self.stack.bus.multi_last_all(self.stack.names.journal, runs)
        return [run for run in runs if decode(JournalEntry, last[run].payload).entry not in FINISHED]


@dataclass(frozen=True)
class Account:
    """What became of the occurrences of one schedule: runs, by their times, with when they went on; the ledger.

    A run that was cancelled while it waited for its turn never went on.
    """

    runs: Mapping[int, tuple[int, int] | None]
    ledger: list[int]


async def account(stack: Stack, function: str) -> dict[str, Account]:
    """What became of a function's occurrences, by schedule."""
    runs: defaultdict[str, dict[int, tuple[int, int] | None]] = defaultdict(dict)
    ledger: defaultdict[str, list[int]] = defaultdict(list)
    for message in await stack.stored(stack.names.journal, stack.names.journal_of(function)):
        token = message.subject.rsplit(".", 1)[1]
        if token.startswith("gap-"):
            gap = decode(Gap, message.payload)
            assert (gap.reason, gap.count, gap.to) == ("overlap", 1, gap.start)
            ledger[gap.schedule].append(gap.start)
            continue
        entry = decode(JournalEntry, message.payload)
        at = ulid_time(token)
        assert at is not None
        assert entry.about is not None
        assert entry.about.schedule is not None
        of = runs[entry.about.schedule]
        assert at not in of
        queued = entry.about.overlap == "queue"
        assert entry.attempts or (queued and entry.entry == "cancelled"), f"{token} never began"
        of[at] = (entry.attempts[0].claimed, entry.at) if entry.attempts else None
    return {schedule: Account(runs[schedule], ledger[schedule]) for schedule in {*runs, *ledger}}


def data_schedule(id: str) -> Schedule:
    return Schedule(
        id=id, function=OF_A_TEAM, origin="data", every=SECOND, overlap="queue", payload={"team": id}
    )


def check(policy: Overlap, found: Account, *, least: int = ROUNDS) -> None:
    occurrences = sorted([*found.runs, *found.ledger])
    assert len(occurrences) >= least, "too few to tell anything"
    assert occurrences == list(range(occurrences[0], occurrences[-1] + SECOND, SECOND)), "each once"
    in_order = [span for _, span in sorted(found.runs.items()) if span is not None]
    spans = sorted(in_order)
    for (_, ended), (began, _) in pairwise(spans):
        assert ended <= began, "one went in before the other had ended"
    if policy == "queue":
        assert found.ledger == []
        assert in_order == spans, "they began in their order"
    else:
        assert found.ledger or policy == "cancel_running", "nothing ever overlapped"


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_occurrence_is_accounted_for(seed: int, shared_nats: NatsServer) -> None:
    await weather(shared_nats, seed)


async def test_the_server_may_be_killed_too(nats: NatsServer) -> None:
    await weather(nats, 3, kills=(4, 8), storage="file")


async def weather(server: NatsServer, seed: int, *, kills: tuple[int, ...] = (), **more: Any) -> None:
    """Let it storm for `ROUNDS` seconds, in some of which the server is killed; then account for everything."""
    chance, watched = random.Random(seed), Watched()
    app = declare(chance, watched)
    settings: dict[str, Any] = {"ack_wait": 1.0, "executor_ttl": 1.0, "executor_beat": 0.2} | more
    async with Stack(server, **settings) as stack:
        ticks = await stack.start("cron-tick", copies=2)
        await stack.start("cron-sync", "health-checker")
        await stack.register(app)
        storm = Storm(stack, app, chance)
        await storm.more()
        async with Client(stack.settings) as client:
            await client.schedules.create_many(
                [
                    {"id": id, "function": OF_A_TEAM, "every": 1, "overlap": "queue", "payload": {"team": id}}
                    for id in TEAMS
                ]
            )
        for number in range(ROUNDS):
            await asyncio.sleep(1)  # the schedules' own pace
            if number in kills:
                await server.restart(kill=True)
                continue
            await storm.strike()
            await storm.more()
        for tick in ticks:
            await tick.stop()
        for running in storm.executors:
            running.bus.disarm()
        await storm.calm()
        assert watched.met == []
        for policy in POLICIES:
            (found,) = (await account(stack, f"lane.{policy}")).values()
            check(policy, found)
        teams = await account(stack, OF_A_TEAM)
        assert sorted(teams) == sorted(TEAMS)
        for found in teams.values():
            check("queue", found, least=ROUNDS // 2)  # they were created while it stormed already
