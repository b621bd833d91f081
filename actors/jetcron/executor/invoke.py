"""Call the user's code and say how it ended: one of a closed set of outcomes.

Owns the boundary between our code and the user's. Never records anything.
"""

import asyncio
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from types import FrameType
from typing import Any

import anyio

from jetcron.app import FunctionDefinition
from jetcron.context import Context
from jetcron.dispatch import storable
from jetcron.errors import JetcronError, PayloadInvalid, Signal, signal_in
from jetcron.executor.threads import call
from jetcron_protocol.messages import Failure

_MAX_TRACEBACK = 16_000
_MAX_MESSAGE = 4_000


@dataclass(frozen=True, slots=True)
class Returned:
    """It ended; `result` is what it returned."""

    result: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """It failed with `error`."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Waiting:
    """Every branch of it waits: it left, and begins again when a wait is over; or at once, if its executor left it."""


Outcome = Returned | Raised | Waiting


@dataclass(frozen=True, slots=True)
class Bound:
    """How long the code may run, in seconds, and what it failed if it runs longer."""

    seconds: float
    error: BaseException


async def invoke(
    definition: FunctionDefinition,
    context: Context,
    data: Any,
    limiter: anyio.CapacityLimiter,
    bound: Bound | None,
) -> Outcome:
    """Call the user's code, within the bound if there is one.

    Signals pass through. A cancellation is a failure like any other: whether it was one of ours, who cancelled knows.
    """
    try:
        args = (context,) if definition.payload is None else (context, definition.payload.read(data))
        if bound is None:
            return Returned(await call(definition.id, definition.handler, args, limiter=limiter))
        return await _within(bound, call(definition.id, definition.handler, args, limiter=limiter))
    except BaseExceptionGroup as group:
        # A task group of the user's wraps our signals, too.
        signal = signal_in(group)
        if signal is not None:
            raise signal from None
        return Raised(group)
    except (Signal, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the user's code may raise anything
        return Raised(error)


async def _within(bound: Bound, call: Coroutine[Any, Any, Any]) -> Outcome:
    scope = asyncio.timeout(bound.seconds)
    try:
        async with scope:
            return Returned(await call)
    except (TimeoutError, asyncio.CancelledError):
        # The latter where the code was cancelled before and went on: then the scope takes ours for such a one.
        if not scope.expired():
            raise
        return Raised(bound.error)


def describe(error: BaseException) -> Failure:
    """An error as text; the traceback begins in the user's code."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an error may fail even to say what it is
        text = f"(its text cannot be had: {type(broken).__name__})"
    if not text and isinstance(error, SystemExit):
        text = "the code called sys.exit"
    # Data that did not fit was refused by us, before the user's code: there is no frame to show.
    trace = None if isinstance(error, PayloadInvalid) else error.__traceback__
    told = traceback.TracebackException(kind, error, trace, compact=True)
    _leave_out_ours(told, error)
    return Failure(
        type=storable(name),
        message=storable(text)[:_MAX_MESSAGE],
        traceback=storable("".join(told.format()))[-_MAX_TRACEBACK:],
    )


def _leave_out_ours(told: traceback.TracebackException | None, error: BaseException | None) -> None:
    """Of an error and those behind it, leave out the frames around the user's code: ours, the thread pool's.

    Where something below that code failed they stay, unless we raised it on purpose: its text says all there is.
    """
    if told is None or error is None:
        return
    ours = [_is_ours(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if len(told.stack) == len(ours) and not all(ours):
        below = len(ours) if isinstance(error, JetcronError) else len(ours) - ours[::-1].index(False)
        told.stack[:] = [frame for place, frame in enumerate(told.stack) if place >= below or not ours[place]]
    _leave_out_ours(told.__cause__, error.__cause__)
    _leave_out_ours(told.__context__, error.__context__)
    if isinstance(error, BaseExceptionGroup):
        for one, inner in zip(told.exceptions or (), error.exceptions, strict=False):
            _leave_out_ours(one, inner)


def _is_ours(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.split(".")[0] in ("jetcron", "anyio")
