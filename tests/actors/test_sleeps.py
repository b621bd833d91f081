"""Sleeps on real actors: short ones in the process, long ones with the server, through every restart."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from jetcron import Context
from jetcron.clock import from_ms
from jetcron.errors import ConfigurationError
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until
from tests.support.stage import AWAY, AWHILE, HERE, LOSSES, Stage, outcomes, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

YEAR = timedelta(days=366)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats, **LOSSES) as stage:
        yield stage


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_a_sleep_ends_no_sooner_and_what_is_short_stays(stage: Stage, app: str) -> None:
    clock = stage.stack.clock
    slept: list[int] = []

    async def code(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("seconds", AWHILE)
        slept.append(clock.now())
        await ctx.step.sleep("span", timedelta(milliseconds=350))
        slept.append(clock.now())
        await ctx.step.sleep_until("moment", from_ms(slept[-1] + 300))
        slept.append(clock.now())

    handle = await stage.play(code, on=f"{app}.once")
    await handle.result(PATIENCE)
    opened = [one.entry for one in stage.stack.journal.of("opened", run=handle.id)]
    steps = [one.entry for one in stage.stack.journal.of("step", run=handle.id)]
    assert [entry.step for entry in opened] == ["seconds", "span", "moment"]
    for begun, done in zip(opened, steps, strict=True):
        assert begun.until is not None
        assert done.at >= begun.until
    assert outcomes(await handle.history()) == ["waiting"] * (3 if app == AWAY else 0) + ["completed"]


async def test_what_is_past_or_no_time_at_all_is_over_at_once(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("none", 0)
        await ctx.step.sleep_until("past", datetime(2020, 1, 1, tzinfo=UTC))
        await ctx.step.sleep_until("past", datetime.fromtimestamp(1, UTC))

    handle = await stage.play(code)
    await handle.result(PATIENCE)
    history = await handle.history()
    assert outcomes(history) == ["completed"]
    assert list(history.steps) == ["none", "past", "past#2"]


async def test_what_is_no_span_is_refused(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        for span in (-1, YEAR + timedelta(seconds=1), float("nan"), float("inf"), "5", None, True):
            with pytest.raises(ConfigurationError, match="from 0 s to 366 days"):
                await ctx.step.sleep("span", span)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="an aware datetime"):
            await ctx.step.sleep_until("naive", datetime(2030, 1, 1))
        with pytest.raises(ConfigurationError, match="366 days at most"):
            await ctx.step.sleep_until("far", datetime.now(UTC) + YEAR + timedelta(minutes=1))
        return "refused"  # type: ignore[return-value]

    assert await stage.result(code) == "refused"


async def test_a_year_is_held_by_the_server(stage: Stage) -> None:
    async def code(ctx: Context, _: Any) -> None:
        await ctx.step.sleep("year", YEAR)

    handle = await stage.play(code)
    waiting = (await stage.waiting(handle)).entry
    names = stage.stack.names

    async def held() -> Any:
        return await stage.stack.bus.last(names.work, names.run_later(handle.function, handle.id, 1))

    found = await until(held, what="held")
    assert waiting.next_at is not None
    due = from_ms(waiting.next_at - stage.stack.settings.lead_ms)
    assert (
        found.headers["Nats-Schedule"]
        == f"@at {due.isoformat(timespec='milliseconds').replace('+00:00', 'Z')}"
    )
    assert abs(due - datetime.now(UTC) - YEAR) < timedelta(minutes=1)
    assert await handle.status() == "waiting"
    assert await handle.cancel() == "cancelled"
    assert await held() is None


async def test_the_earliest_of_several_wakes_the_run_and_the_others_keep_their_times(stage: Stage) -> None:
    order: list[str] = []

    async def code(ctx: Context, _: Any) -> None:
        async def sleeps(name: str, seconds: float) -> None:
            await ctx.step.sleep(name, seconds)
            order.append(name)

        await asyncio.gather(sleeps("long", 1.1), sleeps("short", 0.3), sleeps("middle", 0.7))

    handle = await stage.play(code)
    await handle.result(PATIENCE)
    opened = {one.entry.step: one.entry.until for one in stage.stack.journal.of("opened", run=handle.id)}
    assert len(stage.stack.journal.of("opened", run=handle.id)) == 3, "a sleep began anew"
    waiting = [one.entry for one in stage.stack.journal.of("waiting", run=handle.id)]
    assert [entry.next_at for entry in waiting] == [opened[name] for name in ("short", "middle", "long")]
    assert [len(entry.on or ()) for entry in waiting] == [3, 2, 1]
    assert order[-3:] == ["short", "middle", "long"], "the order of the first time"


@pytest.mark.parametrize("app", [AWAY, HERE])
async def test_a_sleep_survives_its_executor(stage: Stage, app: str) -> None:
    async def code(ctx: Context, _: Any) -> str:
        await ctx.step.sleep("long", 1.5)
        return "slept"

    handle = await stage.play(code, on=f"{app}.once")
    (opened,) = await stage.opened(handle)
    if app == AWAY:
        await stage.waiting(handle)
    await stage.restart(app)
    assert await handle.result(PATIENCE) == "slept"
    assert len(stage.stack.journal.of("opened", run=handle.id)) == 1, "the sleep began anew"
    (step,) = [one.entry for one in stage.stack.journal.of("step", run=handle.id)]
    assert opened.entry.until is not None
    assert step.at >= opened.entry.until
    assert outcomes(await handle.history()) == ["waiting" if app == AWAY else "lost", "completed"]
