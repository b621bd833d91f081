"""What steps give back after a replay, and code that changed between two turns, on real actors."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import BaseModel

from jetcron import Context, NonRetriableError, StepError
from tests.support.nats_server import NatsServer
from tests.support.stage import AWHILE, HERE, QUICK, Calls, Stage, stage_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(shared_nats: NatsServer) -> AsyncIterator[Stage]:
    async with stage_of(shared_nats) as stage:
        yield stage


@pytest.fixture
def calls() -> Calls:
    return Calls()


# Results.


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    when: datetime
    amount: Decimal
    inner: "Model | None" = None


@dataclass
class Data:
    day: date
    ids: list[UUID]


class Typed(TypedDict):
    raw: bytes
    span: timedelta


class Named(NamedTuple):
    colour: Colour
    pair: tuple[int, str]


WHEN = datetime(2030, 1, 31, 12, 30, 0, 123456, tzinfo=UTC)
MODEL = Model(when=WHEN, amount=Decimal("0.10"))


def a_model() -> Model:
    return Model(when=WHEN, amount=Decimal("1.50"), inner=MODEL)


async def a_dataclass() -> Data:
    return Data(date(2030, 1, 1), [UUID(int=1), UUID(int=2)])


async def a_typed_dict() -> Typed:
    return {"raw": b"\x00\xff", "span": timedelta(minutes=5)}


async def a_named_tuple() -> Named:
    return Named(Colour.RED, (1, "x"))


async def scalars() -> tuple[datetime, Decimal, UUID, bytes, Colour, float, None]:
    return WHEN, Decimal("1.10"), UUID(int=7), b"\xfe", Colour.RED, 1.0, None


async def maps() -> dict[UUID, list[Model | None]]:
    return {UUID(int=3): [MODEL, None]}


@pytest.mark.parametrize("function", [a_model, a_dataclass, a_typed_dict, a_named_tuple, scalars, maps])
async def test_a_replayed_result_is_of_the_type_that_was_promised(
    stage: Stage, function: Callable[[], Any]
) -> None:
    seen = []

    async def code(ctx: Context, _: Any) -> None:
        seen.append(await ctx.step.run("make", function))
        await ctx.step.sleep("pause", AWHILE)

    await stage.result(code)
    live, replayed = seen
    assert replayed == live
    assert type(replayed) is type(live)
    assert replayed is not live


async def test_what_cannot_be_stored_fails_its_step_alone_and_is_not_tried_again(
    stage: Stage, calls: Calls
) -> None:
    async def a_set() -> set[int]:
        calls.made.append(1)
        return {1}

    async def code(ctx: Context, _: Any) -> Any:
        try:
            await ctx.step.run("set", a_set, retry=QUICK)
        except StepError as error:
            return error.message

    message = await stage.result(code)
    assert "step 'set'" in message
    assert "builtins.set" in message
    assert calls.made == [1]


async def test_what_code_does_to_a_result_changes_nothing_that_is_remembered(stage: Stage) -> None:
    seen: list[Any] = []

    async def load() -> dict[str, Any]:
        return {"names": ["a"]}

    def untyped():  # type: ignore[no-untyped-def]
        return {"names": ["a"]}

    async def code(ctx: Context, _: Any) -> None:
        for result in (await ctx.step.run("load", load), await ctx.step.run("untyped", untyped)):
            seen.append(list(result["names"]))
            result["names"].append("mine")
        await ctx.step.sleep("pause", AWHILE)
        raise NonRetriableError("to see what is kept")

    handle = await stage.play(code)
    await stage.failure_of(handle)
    assert seen == [["a"]] * 4
    steps = (await handle.history()).steps
    assert [steps[step].result for step in ("load", "untyped")] == [{"names": ["a"]}] * 2


# Code that changed.


async def nothing() -> None: ...


KINDS: dict[str, Callable[[Context], Any]] = {
    "a step that runs a function": lambda ctx: ctx.step.run("x", nothing),
    "a sleep": lambda ctx: ctx.step.sleep("x", 0.02),
    "a send": lambda ctx: ctx.step.send("x", []),
    "a wait for 'one'": lambda ctx: ctx.step.wait_for_event("x", "one", timeout=0.02),
    "a wait for 'other'": lambda ctx: ctx.step.wait_for_event("x", "other", timeout=0.02),
    "an invoke of 'away.once'": lambda ctx: ctx.step.invoke("x", "away.once", timeout=0),
    "an invoke of 'away.again'": lambda ctx: ctx.step.invoke("x", "away.again", timeout=0),
}
CHANGES = [
    ("a step that runs a function", "a sleep"),
    ("a sleep", "a step that runs a function"),
    ("a send", "a wait for 'one'"),
    ("a wait for 'one'", "a wait for 'other'"),
    ("a wait for 'one'", "an invoke of 'away.once'"),
    ("an invoke of 'away.once'", "an invoke of 'away.again'"),
    ("an invoke of 'away.again'", "a send"),
]


async def test_a_step_found_under_another_kind_or_target_fails_the_run(stage: Stage) -> None:
    async def changed(was: str, now: str, caught: bool) -> None:
        attempts = []

        async def code(ctx: Context, _: Any) -> Any:
            attempts.append(ctx.attempt)
            try:
                await KINDS[was if len(attempts) == 1 else now](ctx)
            except Exception:
                if not caught and len(attempts) > 1:
                    raise
            if len(attempts) == 1:
                raise ValueError("changed meanwhile")
            return "went on"

        failed = await stage.failure(code, on=f"{HERE}.again")
        assert failed.type.endswith("NonRetriableError")
        assert "step 'x'" in failed.message
        assert f"it is {now} now, but was journaled as {was};" in failed.message
        assert len(attempts) == 2

    async with asyncio.TaskGroup() as group:
        for was, now in CHANGES:
            for caught in (False, True):
                group.create_task(changed(was, now, caught))


async def test_an_open_step_found_under_another_kind_fails_the_run(stage: Stage) -> None:
    turns = []

    async def code(ctx: Context, _: Any) -> None:
        turns.append(1)
        if len(turns) == 1:
            await ctx.step.sleep("x", AWHILE)
        await ctx.step.wait_for_event("x", "never", timeout=9)

    failed = await stage.failure(code)
    assert "it is a wait for 'never' now, but was journaled as a sleep;" in failed.message
