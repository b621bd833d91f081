"""Who handles failures and who hears of ends, on real actors: once, and never in a loop."""

from dataclasses import replace
from typing import Any

from jetcron import App, Context, NonRetriableError, Retry
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Event as WireEvent
from tests.actors.test_executor import House, house
from tests.support.nats_server import NatsServer
from tests.support.stack import until
from tests.support.stage import Calls, outcomes

QUICK = Retry(attempts=2, waits=[0.02], jitter=0)


async def system_events(h: House, name: str) -> list[WireEvent]:
    names = h.stack.names
    return [decode(WireEvent, m.payload) for m in await h.stack.stored(names.events, names.event(name))]


async def quiet(h: House) -> None:
    """Wait until every event is routed and every run has ended."""
    names = h.stack.names

    async def stored() -> list[int]:
        states = [await h.stack.bus.stream_state(stream) for stream in (names.events, names.work)]
        return [state.last_sequence for state in states]

    before: list[int] = []
    while (now := await stored()) != before:
        before = now
        await h.stack.settled(names.events, names.event_router)
        for function in h.app.functions:
            await h.stack.settled(names.work, names.run_consumer(function))


async def test_a_handler_is_given_the_failure_and_is_retried(shared_nats: NatsServer) -> None:
    app, calls = App("handled"), Calls()

    async def mend(ctx: Context, failed: dict[str, Any]) -> str:
        await calls.failing(1, "mended")
        calls.made.append((ctx.function_id, failed))
        return "mended"

    async def plainly(ctx: Context) -> None:
        calls.made.append("without data")

    @app.function(retry=QUICK, on_failure=mend)
    async def fails(ctx: Context, data: Any) -> None:
        raise ValueError("no")

    @app.function(retries=0, on_failure=plainly)
    async def other(ctx: Context) -> None:
        raise NonRetriableError("at once")

    @app.function(retries=4, on_failure=mend)
    async def fine(ctx: Context) -> str:
        return "fine"

    handler = app.functions["handled.fails:on_failure"]
    app._functions[handler.id] = replace(handler, retry=QUICK)  # its own takes 15 s
    async with house(shared_nats, app, "event-router") as h:
        handle = await h.run("fails", {"n": 1})
        with_failure = await h.failure("other")
        assert with_failure.message == "at once"
        assert await h.result("fine") == "fine"
        (ended,) = await h.stack.journal.wait("completed", function="handled.fails:on_failure")
        await h.stack.journal.wait("completed", function="handled.other:on_failure")
        await quiet(h)
        assert calls.made.count("mended") == 2, "the handler has retries of its own"
        assert calls.made.count("without data") == 1
        ((function, failed),) = [made for made in calls.made if isinstance(made, tuple)]
        assert function == "handled.fails:on_failure"
        assert failed == {
            "function": "handled.fails",
            "run": handle.id,
            "error": {"type": "ValueError", "message": "no"},
            "attempts": 2,
            "data": {"n": 1},
        }
        about = (await h.client.runs.get(ended.run)).history.about
        assert about is not None
        assert (about.parent, about.parent_function) == (handle.id, "handled.fails")


async def test_a_handler_s_own_failure_triggers_nothing(shared_nats: NatsServer) -> None:
    app, calls = App("loops"), Calls()

    async def mend(ctx: Context) -> None:
        calls.made.append("handler")
        raise NonRetriableError("the handler's")

    @app.function(retries=0, on_failure=mend)
    async def fails(ctx: Context) -> None:
        raise ValueError("first")

    @app.function(on="jetcron.function.*", retries=0)
    async def hears(ctx: Context, data: dict[str, Any]) -> None:
        calls.made.append((ctx.event and ctx.event.name, data["function"], data["outcome"]))
        raise ValueError("the hearer's")

    async with house(shared_nats, app, "event-router") as h:
        await until(lambda: h.executors[0].actor._demand.wanted)
        await h.failure("fails")
        await h.stack.journal.wait("failed", 4)
        await quiet(h)
        assert sorted(calls.made, key=str) == [
            ("jetcron.function.failed", "loops.fails", "failed"),
            ("jetcron.function.finished", "loops.fails", "failed"),
            "handler",
        ]
        assert [event.data["function"] for event in await system_events(h, "jetcron.function.>")] == [
            "loops.fails"
        ] * 2
        assert {letter.function for letter in await h.stack.dead()} == {
            "loops.fails",
            "loops.fails:on_failure",
            "loops.hears",
        }


async def test_what_a_hearer_invokes_tells_nothing_either(shared_nats: NatsServer) -> None:
    """It hears of failures and calls a function that fails: it must not hear of that."""
    app, calls = App("descend"), Calls()

    @app.function(retries=0)
    async def fails(ctx: Context) -> None:
        raise ValueError("first")

    @app.function(retries=0)
    async def notify(ctx: Context, depth: int) -> None:
        if depth:
            await ctx.step.invoke("deeper", "descend.notify", depth - 1)
        raise ValueError("cannot be reached")

    @app.function(on="jetcron.function.failed", retries=0)
    async def hears(ctx: Context, data: dict[str, Any]) -> None:
        await ctx.step.run("hear", calls.note, data["function"])
        await ctx.step.invoke("notify", "descend.notify", 1)

    async with house(shared_nats, app, "event-router") as h:
        await h.failure("fails")
        await h.stack.journal.wait("failed", 4)
        await quiet(h)
        assert calls.made == ["descend.fails"]
        await h.failure("notify", 0)
        await until(lambda: len(calls.made) == 2, what="told of one that nobody's event started")
        await quiet(h)
        assert calls.made == ["descend.fails", "descend.notify"]


async def test_ends_of_every_kind_are_told_where_somebody_listens(shared_nats: NatsServer) -> None:
    app, calls = App("told"), Calls()

    @app.function(retries=0)
    async def ends(ctx: Context, how: str) -> str:
        if how == "fails":
            raise ValueError("no")
        if how == "waits":
            await ctx.step.sleep("long", 600)
        return how

    @app.function(on="jetcron.function.finished", retries=0)
    async def hears(ctx: Context, data: dict[str, Any]) -> None:
        calls.made.append((data["outcome"], data["run"], data["attempts"], data.get("error")))

    async with house(shared_nats, app, "event-router") as h:
        await until(lambda: h.executors[0].actor._demand.wanted)
        fine = await h.run("ends", "returns")
        bad = await h.run("ends", "fails")
        long = await h.run("ends", "waits")
        await h.stack.journal.wait("waiting", run=long.id)
        await long.cancel("enough")
        await until(lambda: len(calls.made) == 3)
        await quiet(h)
        assert sorted(calls.made, key=str) == sorted(
            [
                ("completed", fine.id, 1, None),
                ("failed", bad.id, 1, {"type": "ValueError", "message": "no"}),
                ("cancelled", long.id, 1, {"type": "Cancelled", "message": "enough"}),
            ],
            key=str,
        )


async def test_a_run_begun_again_that_fails_again_is_handled_and_told_again(shared_nats: NatsServer) -> None:
    app, calls = App("twice"), Calls()

    async def mend(ctx: Context, failed: dict[str, Any]) -> None:
        calls.made.append(failed["run"])

    @app.function(retries=0, on_failure=mend)
    async def fails(ctx: Context) -> None:
        raise ValueError("no")

    async with house(shared_nats, app, "event-router") as h:
        handle = await h.run("fails")
        await h.stack.journal.wait("completed", function="twice.fails:on_failure")
        await quiet(h)
        await h.client.runs.retry(handle.id)
        await h.stack.journal.wait("completed", 2, function="twice.fails:on_failure")
        assert calls.made == [handle.id] * 2
        assert len({event.id for event in await system_events(h, "jetcron.function.failed")}) == 2
        assert outcomes(await handle.history()) == ["failed", "failed"]


async def test_data_as_large_as_a_message_can_be_is_left_out_of_what_the_handler_gets(
    shared_nats: NatsServer,
) -> None:
    """An event as large as the server takes, which fails with as much text as is kept."""
    app, calls = App("large"), Calls()

    async def mend(ctx: Context, failed: dict[str, Any]) -> None:
        calls.made.append((failed["run"], failed["error"]["message"][:5], failed["data"]))

    @app.function(on="large.event", retries=0, on_failure=mend)
    async def fails(ctx: Context, data: Any) -> None:
        raise ValueError("\U0001f600" * 10_000)

    async with house(shared_nats, app, "event-router") as h:
        size = h.stack.bus.max_payload - 2_000
        await h.stack.bus.publish(h.stack.names.event("large.event"), encode_data(size))
        ((run, text, data),) = await until(lambda: calls.made, what="handled")
        assert text == "\U0001f600" * 5
        assert (await h.client.runs.get(run)).status == "failed"
        assert data is None
        await quiet(h)
        assert len(calls.made) == 1


def encode_data(size: int) -> bytes:
    return b'{"x": "' + b"x" * (size - 9) + b'"}'
