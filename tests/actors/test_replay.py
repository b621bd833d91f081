"""Dead letters chosen and sent again, failed runs begun anew, runs found by how they stand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jetcron import App, Context, RunFailed, replay
from jetcron.client import Client
from jetcron.clock import from_ms
from jetcron.errors import ConfigurationError, NotFound, RunNotFound
from jetcron.replay import Replayed
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import DeadLetter, Run
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, Stack, until

NOON = datetime(2020, 1, 31, 12, tzinfo=UTC)
NOON_MS = round(NOON.timestamp() * 1000)
HOUR = timedelta(hours=1)


@contextlib.asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[tuple[Stack, Client]]:
    async with Stack(server) as stack, Client(stack.settings) as client:
        yield stack, client


async def bury(stack: Stack, function: str, number: int, at: int = NOON_MS, **more: Any) -> int:
    """A dead letter of a failed run; its sequence."""
    run = Run(run=f"R{number}", function=function, trigger="manual", fire_at=at, payload=number)
    body = encode(run)
    letter = DeadLetter(
        letter="failed",
        reason="ValueError: no",
        at=at,
        subject=stack.names.run_ready(function),
        stream=stack.names.work,
        sequence=number,
        function=function,
        run=run.run,
        **{"size": len(body), "body": body} | more,
    )
    subject = stack.names.dead_letter("failed", *function.split(".", 1), run.run)
    return (await stack.bus.publish(subject, encode(letter))).sequence


async def bury_event(stack: Stack, number: int) -> int:
    letter = DeadLetter(
        letter="event",
        reason="no map",
        at=NOON_MS,
        subject=stack.names.event("x"),
        stream=stack.names.events,
        sequence=number,
        size=1,
        body=b"\xc1",
    )
    subject = stack.names.dead_letter("event", stack.names.events, str(number))
    return (await stack.bus.publish(subject, encode(letter))).sequence


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences of the letters that were read."""
    sequences: list[int] = []
    one = replay._dead

    def note(message: Any) -> Any:
        sequences.append(message.sequence)
        return one(message)

    monkeypatch.setattr(replay, "_dead", note)
    return sequences


async def test_letters_are_chosen_by_kind_function_and_time(shared_nats: NatsServer, read: list[int]) -> None:
    async with connected(shared_nats) as (stack, client):
        early = await bury(stack, "app.f", 1, NOON_MS - 3_600_000)
        many = await asyncio.gather(*(bury(stack, "app.other", 1_000 + n) for n in range(300)))
        event = await bury_event(stack, 7)
        late = await bury(stack, "app.f", 2)
        dotted = await bury(stack, "app.f.g", 3)

        async def found(**chosen: Any) -> list[int]:
            read.clear()
            return [dead.sequence for dead in await client.dead.list(**chosen)]

        assert await found(limit=3) == [dotted, late, event]
        assert len(read) < 70, "the stream was read to its beginning"
        assert await found(limit=1_000) == sorted([early, *many, event, late, dotted], reverse=True)
        assert await found(function="app.f") == [late, early]
        assert sorted(read) == [early, late], "letters of other functions were read"
        assert await found(function="app.f.g", kind="failed") == [dotted]
        assert await found(kind="event") == [event]
        assert read == [event]
        assert await found(kind="tick") == []
        assert await found(function="app.f", since=NOON) == [late]
        assert await found(function="app.f", until=NOON) == [early], "`until` itself is out"
        assert await found(since=NOON - HOUR, until=NOON) == [early]
        assert await found(since=NOON + HOUR, until=NOON + 2 * HOUR) == []


async def test_what_was_stored_long_before_is_not_read(shared_nats: NatsServer, read: list[int]) -> None:
    async with connected(shared_nats) as (stack, client):
        for number in range(5):
            await bury(stack, "app.f", number, stack.clock.now())
        tomorrow = from_ms(stack.clock.now()) + timedelta(days=1)
        assert await client.dead.list(since=tomorrow) == []
        assert read == []


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"kind": "faild"}, "kind='faild'; allowed are 'failed', 'run'"),
        ({"function": "f"}, "APP.FUNCTION"),
        ({"function": "app.f", "kind": "event"}, "only letters of kind 'failed' are of a function"),
        ({"since": datetime(2030, 1, 1)}, "since=.*an aware datetime"),
        ({"until": "yesterday"}, "until='yesterday'.*an aware datetime"),
    ],
    ids=str,
)
async def test_what_chooses_is_checked(shared_nats: NatsServer, chosen: dict[str, Any], said: str) -> None:
    async with connected(shared_nats) as (_, client):
        with pytest.raises(ConfigurationError, match=said):
            await client.dead.list(**chosen)
        with pytest.raises(ConfigurationError, match=said):
            await client.dead.replay_all(**chosen)


async def test_what_cannot_be_replayed_stops_no_other(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        whole = [await bury(stack, "app.f", number) for number in range(40)]
        cut = await bury(stack, "app.f", 40, size=100_000)
        other = await bury(stack, "app.g", 41)
        told: list[Replayed] = []
        became = await client.dead.replay_all(function="app.f", told=told.append)
        assert [one.sequence for one in became] == [*whole, cut]
        assert sorted(told, key=lambda one: one.sequence) == became
        assert all(one.error is None and one.sent for one in became[:-1])
        assert "had 100000 bytes" in str(became[-1].error)
        left = [dead.sequence for dead in await client.dead.list()]
        assert left == [other, cut]
        runs = [decode(Run, one.payload) for one in await stack.stored(stack.names.work)]
        assert sorted(run.payload for run in runs) == list(range(40))
        assert [one.sent for one in became[:-1]] == [
            run.run for run in sorted(runs, key=lambda run: run.payload)
        ]

        again = await client.dead.replay_each([whole[0], other, 999_999])
        assert [one.sequence for one in again] == [whole[0], other, 999_999]
        assert isinstance(again[0].error, NotFound), "it was replayed before"
        assert again[1].sent is not None
        assert isinstance(again[2].error, NotFound)


def failing() -> App:
    app = App("app")

    @app.function(retries=0)
    async def fails(ctx: Context, data: Any) -> None:
        raise LookupError("not there")

    @app.function()
    async def double(ctx: Context, n: int) -> int:
        return 2 * n

    @app.function()
    async def sleeps(ctx: Context) -> None:
        await ctx.step.sleep("long", 3_600)

    return app


@contextlib.asynccontextmanager
async def at_work(server: NatsServer) -> AsyncIterator[tuple[Stack, Client]]:
    app = failing()
    async with connected(server) as (stack, client):
        await stack.start("cron-sync")
        await stack.register(app)
        await stack.execute(app)
        yield stack, client


async def failed(stack: Stack, client: Client, data: Any = None) -> str:
    """A run that has failed, and its dead letter stands."""
    handle = await client.run("app.fails", data)
    with pytest.raises(RunFailed):
        await handle.result(PATIENCE)

    async def buried() -> bool:
        return await client.dead.of_run(handle.id) is not None

    await until(buried, what="a dead letter")
    return handle.id


async def test_letters_that_come_while_all_are_replayed_stand(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        first = [await failed(stack, client, n) for n in range(3)]
        became = await client.dead.replay_all(function="app.fails", since=from_ms(0))
        assert len(became) == 3, "what failed again is not replayed for ever"
        again = {one.sent for one in became}
        assert again.isdisjoint(first)
        await stack.journal.wait("failed", 6)
        await stack.settled(stack.names.work, stack.names.run_consumer("app.fails"))
        assert {dead.letter.run for dead in await client.dead.list()} == again


async def test_a_failed_run_begins_anew_by_its_id(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        run = await failed(stack, client, {"n": 1})
        anew = await client.runs.retry(run, from_start=True)
        assert anew != run
        (started,) = await stack.journal.wait("failed", run=anew)
        assert started.function == "app.fails"
        with pytest.raises(ConfigurationError, match=f"the dead letter of run {run} is gone"):
            await client.runs.retry(run, from_start=True)
        assert (await client.runs.get(run)).status == "failed"


async def test_it_does_also_when_its_journal_is_forgotten(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        run = await failed(stack, client)
        await stack.bus.purge(stack.names.journal, stack.names.journal_of("app.fails", run))
        anew = await client.runs.retry(run, from_start=True)
        await stack.journal.wait("failed", run=anew)
        with pytest.raises(RunNotFound):
            await client.runs.retry(run)


async def test_what_did_not_fail_is_not_begun_again(shared_nats: NatsServer) -> None:
    async with at_work(shared_nats) as (stack, client):
        done = await client.run("app.double", 4)
        assert await done.result(PATIENCE) == 8
        waiting = await client.run("app.sleeps")
        await stack.journal.wait("waiting")
        for from_start in (False, True):
            for run, status in ((done.id, "completed"), (waiting.id, "waiting")):
                with pytest.raises(ConfigurationError, match=f"is {status}; only one that failed"):
                    await client.runs.retry(run, from_start=from_start)
            for unknown in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "*", "app.double"):
                with pytest.raises(RunNotFound):
                    await client.runs.retry(unknown, from_start=from_start)


async def test_a_run_begun_anew_tells_its_outcome_to_no_parent(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        run = Run(
            run="R1",
            function="app.f",
            trigger="invoke",
            fire_at=1,
            turn=2,
            parent="P1",
            parent_function="app.p",
            parent_step="call",
        )
        body = encode(run)
        sequence = await bury(stack, "app.f", 1, body=body, size=len(body))
        anew = await client.dead.replay(sequence)
        (message,) = await stack.stored(stack.names.work)
        sent = decode(Run, message.payload)
        assert (sent.run, sent.turn) == (anew, 0)
        assert (sent.parent, sent.parent_function, sent.parent_step) == ("P1", "app.p", None)


async def test_runs_are_listed_by_how_they_stand(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetcron.runs._PAGE", 2)
    async with at_work(shared_nats) as (stack, client):
        waiting = [(await client.run("app.sleeps", at=from_ms(1_000 * n))).id for n in (1, 2)]
        await stack.journal.wait("waiting", 2)
        broken = [await failed(stack, client) for _ in range(2)]
        for n in range(4):
            await (await client.run("app.double", n)).result(PATIENCE)
        assert {run.id for run in await client.runs.list(status="waiting")} == set(waiting)
        assert {run.id for run in await client.runs.list(status=("waiting", "failed"))} == {
            *waiting,
            *broken,
        }
        assert len(await client.runs.list(status="completed", limit=3)) == 3
        assert await client.runs.list(status="waiting", function="app.double") == []
        with pytest.raises(ConfigurationError, match="status='waitin'; allowed are 'queued', 'running'"):
            await client.runs.list(status=["failed", "waitin"])
        (run,) = waiting[:1]
        stands = await client.runs.statuses({run: "app.sleeps", broken[0]: "app.fails", "R": "app.double"})
        assert stands == {run: "waiting", broken[0]: "failed"}


async def test_a_queued_run_is_known_by_its_message(shared_nats: NatsServer) -> None:
    async with connected(shared_nats) as (stack, client):
        await stack.start("cron-sync")
        await stack.register(failing())
        ready = await client.run("app.double", 1)
        at = from_ms(stack.clock.now() + 3_600_000)
        held = await client.run("app.double", 1, at=at)
        for run, fires in ((ready, None), (held, at)):
            view = await client.runs.get(run.id)
            assert (view.function, view.status) == ("app.double", "queued")
            about = view.history.about
            assert about is not None
            assert about.trigger == "manual"
            assert fires is None or from_ms(about.fire_at) == fires
            with pytest.raises(ConfigurationError, match="has not ended: it is queued"):
                await client.runs.result(run.id)
        assert await client.runs.list() == []


async def test_the_result_of_a_run_is_read_by_its_id(shared_nats: NatsServer) -> None:
    app = App("app")

    @app.function()
    async def large(ctx: Context) -> bytes:
        return b"x" * 20_000

    async with Stack(shared_nats, max_inline=10_000) as stack, Client(stack.settings) as client:
        await stack.start("cron-sync")
        await stack.register(app)
        await stack.execute(app)
        handle = await client.run("app.large")
        await handle.result(PATIENCE)
        view = await client.runs.get(handle.id)
        assert view.history.last is not None
        assert view.history.last.object is not None
        assert view.result is None
        assert await client.runs.result(handle.id) == b"x" * 20_000
