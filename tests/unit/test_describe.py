"""Errors as they are stored and shown: the frames of the user's code, not ours around it."""

import re
from typing import Any

import anyio
import pytest

from jetcron import ConfigurationError, NonRetriableError, StepError
from jetcron.context import Step
from jetcron.executor.invoke import describe
from jetcron.executor.threads import call


def refused() -> None:
    raise ValueError("the card was refused")


async def in_a_thread(function: Any) -> None:
    await call("shop.fulfil", function, (), limiter=anyio.CapacityLimiter(1))


def files(text: str) -> list[str]:
    return re.findall(r'File "(.+?)"', text)


async def charge() -> None:
    try:
        await call("shop.fulfil", refused, (), limiter=anyio.CapacityLimiter(1))
    except ValueError as error:
        raise StepError("charge", "ValueError", str(error)) from error


async def test_of_an_error_and_what_caused_it() -> None:
    with pytest.raises(StepError) as raised:
        await charge()
    failure = describe(raised.value)
    assert failure.type == "jetcron.errors.StepError"
    assert "direct cause" in failure.traceback
    assert "in refused" in failure.traceback
    assert set(files(failure.traceback)) == {__file__}


async def test_of_a_group() -> None:
    with pytest.raises(StepError) as raised:
        await charge()
    failure = describe(ExceptionGroup("several", [raised.value, NonRetriableError("no")]))
    assert "the card was refused" in failure.traceback
    assert set(files(failure.traceback)) == {__file__}


async def test_what_we_refuse_is_shown_where_it_is_written() -> None:
    async def code() -> None:
        await Step(None, None).run("a#b", refused)  # type: ignore[arg-type]  # it does not come to them

    with pytest.raises(ConfigurationError) as raised:
        await in_a_thread(lambda: code())
    told = describe(raised.value).traceback
    assert set(files(told)) == {__file__}
    assert "which numbers repeated ids" in told


async def test_a_fault_of_ours_is_shown_where_it_is() -> None:
    async def code() -> None:
        await in_a_thread(3)

    with pytest.raises(TypeError) as raised:
        await code()
    assert files(describe(raised.value).traceback)[-1].endswith("jetcron/executor/threads.py")
