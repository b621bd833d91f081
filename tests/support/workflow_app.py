"""The app that runs workflows: real steps for every node, and a note of everything that has an effect.

Notes are lines in the file WORKFLOW_NOTES, each written by one `write` to a file opened for appending: whoever is
killed leaves whole lines. How often something was tried is counted by files in the folder WORKFLOW_MARKS, which
all processes see. The data of a run is ``{"root": its name, "flow": the workflow}``; those it invokes share the name.
"""

import asyncio
import json
import os
import re
import signal
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio

from jetcron import App, Context, Event, NonRetriableError, Retry, StepError
from jetcron.clock import SystemClock, from_ms
from jetcron.errors import Signal, leaves
from tests.support.workflows import LOST, SENT, Node

app = App("wf")
clock = SystemClock()
FOREVER = timedelta(hours=1)
STUBBORN = Retry(attempts=1000, waits=[0.05], jitter=0)
BIG = 3_000
"""Bytes of a large result: more than JETCRON_MAX_INLINE has to be in the tests."""


class Crash(Exception):
    """Code outside steps raised, the first time it came there."""


class Hopeless(NonRetriableError):
    """A step failed for good: the node `k`."""

    def __init__(self, k: int) -> None:
        super().__init__(f"hopeless {k}")
        self.k = k


class Wrong(NonRetriableError):
    """Something that cannot be; the run fails with it."""


def note(what: str, root: str, k: int, **more: Any) -> None:
    """Append one line."""
    line = {"what": what, "root": root, "k": k, "at": clock.now(), "pid": os.getpid(), **more}
    file = os.open(os.environ["WORKFLOW_NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def times(root: str, k: int) -> int:
    """How often this was asked before, in any process."""
    folder = Path(os.environ["WORKFLOW_MARKS"])
    number = 0
    while True:
        try:
            (folder / f"{root}-{k}-{number}").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


@app.function(retry=STUBBORN)
async def flow(ctx: Context, data: dict[str, Any]) -> Any:
    return await _Interpreter(ctx, data["root"]).run(data["flow"])


@app.function(retry=STUBBORN, concurrency=2)
async def narrow(ctx: Context, data: dict[str, Any]) -> Any:
    """The same, two at a time."""
    return await _Interpreter(ctx, data["root"]).run(data["flow"])


@app.function(retry=STUBBORN)
async def idle(ctx: Context, data: dict[str, Any]) -> None:
    """Waits for what never comes, until it is cancelled."""
    await ctx.step.wait_for_event("lost", LOST, match={"run": ctx.run_id}, timeout=FOREVER)


@app.function(on=SENT, retry=STUBBORN)
async def collect(ctx: Context, data: dict[str, Any]) -> None:
    note("collected", data["root"], data["k"], run=ctx.run_id, number=data["number"])


class _Interpreter:
    """Executes nodes; a failure of a node comes out as `Hopeless`, whatever it went through."""

    def __init__(self, ctx: Context, root: str) -> None:
        self._ctx = ctx
        self._root = root

    async def run(self, node: Node) -> Any:
        match node["do"]:
            case "seq":
                return [await self.run(part) for part in node["parts"]]
            case "all":
                return await self._side_by_side(node)
            case "try":
                try:
                    return await self.run(node["body"])
                except Hopeless as error:
                    return ["caught", error.k, await self.run(node["or"])]
            case "spin":
                for _ in range(node["turns"]):
                    await asyncio.sleep(0)
                return None
            case "crash":
                if not times(self._root, node["k"]):
                    raise Crash(f"the first time at {node['k']}")
                return None
        try:
            return await self._step(node)
        except StepError as error:
            raise _hopeless(error) from error

    async def _step(self, node: Node) -> Any:
        step, kind, k, id = self._ctx.step, node["do"], node["k"], node["id"]
        match kind:
            case "step" | "hopeless" | "deadly":
                return self._seen(k, kind, await self._called(node))
            case "outer":

                async def inside() -> Any:
                    value = await self.run(node["body"])
                    return {"k": k, "token": self._done(k), "value": value}

                found = await step.run(id, inside, retry=STUBBORN)
                self._seen(k, kind, found)
                return [kind, k, found["value"]]
            case "sleep":
                if k % 2:
                    await step.sleep(id, node["ms"] / 1000)
                else:
                    await step.sleep_until(id, from_ms(clock.now() + node["ms"]))
                return [kind, k]
            case "event" | "raced" | "never":
                return await self._waited(node)
            case "send":
                data = {"root": self._root, "k": k}
                await step.send(
                    id, [Event(SENT, {**data, "number": number}) for number in range(node["many"])]
                )
                note("sent", self._root, k, run=self._ctx.run_id, many=node["many"])
                return [kind, k]
            case "invoke":
                data = {"root": self._root, "flow": node["flow"]}
                return ["child", k, await step.invoke(id, node["function"], data)]
            case "abandon":
                try:
                    await step.invoke(id, "wf.idle", {"root": self._root}, timeout=node["ms"] / 1000)
                except StepError as error:
                    if error.type != "TimeoutError":
                        raise Wrong(f"{k}: a child that waits for ever ended: {error}") from None
                return [kind, k]
        raise AssertionError(f"there is no node of kind {kind!r}")

    async def _called(self, node: Node) -> Any:
        k, root = node["k"], self._root
        fails = {"step": node.get("fails", 0), "hopeless": 1_000, "deadly": 0}[node["do"]]

        def before() -> None:
            number = times(root, k)
            note("call", root, k, run=self._ctx.run_id, number=number)
            if node["do"] == "deadly" and not number:
                os.kill(os.getpid(), signal.SIGKILL)
            if number < fails:
                raise ValueError(f"hopeless {k}" if node["do"] == "hopeless" else "not yet")

        def result() -> Any:
            return {"k": k, "token": self._done(k), "big": "x" * BIG if node.get("big") else ""}

        async def function() -> Any:
            before()
            if node.get("lasts"):
                await asyncio.sleep(node["lasts"] / 1000)
            return result()

        def in_a_thread() -> Any:
            before()
            return result()

        attempts = 2 if node["do"] == "hopeless" else fails + 1
        return await self._ctx.step.run(
            node["id"],
            in_a_thread if node.get("how") == "thread" else function,
            retry=Retry(attempts=attempts, waits=[node["ms"] / 1000], jitter=0),
        )

    async def _waited(self, node: Node) -> Any:
        kind, k = node["do"], node["k"]
        match = {"run": self._ctx.run_id}
        if kind == "never":
            name, timeout = LOST, timedelta(milliseconds=node["ms"])
        else:
            name = node["name"]
            timeout = FOREVER if kind == "event" else timedelta(milliseconds=node["ms"])
            if node["exact"]:
                match["to.node"] = k
        note("waits", self._root, k, run=self._ctx.run_id, name=name, kind=kind)
        found = await self._ctx.step.wait_for_event(node["id"], name, match=match, timeout=timeout)
        token = found.data["token"] if found is not None else "nothing"
        note("saw", self._root, k, run=self._ctx.run_id, token=token, kind=kind)
        if (found is None and kind == "event") or (found is not None and kind == "never"):
            raise Wrong(f"{k}: a wait of kind {kind} gave {found}")
        if found is not None and (found.data["run"], found.data["to"]["node"]) != (self._ctx.run_id, k):
            raise Wrong(f"{k}: another's event came: {found}")
        return [kind, k]

    def _done(self, k: int) -> str:
        """A token of this very execution; it must be this one that is remembered."""
        token = token_hex(6)
        note("done", self._root, k, run=self._ctx.run_id, token=token)
        return token

    def _seen(self, k: int, kind: str, found: Any) -> list[Any]:
        note("saw", self._root, k, run=self._ctx.run_id, token=found["token"], kind=kind)
        return [kind, found["k"]]

    async def _side_by_side(self, node: Node) -> list[Any]:
        parts = node["parts"]
        try:
            return await _STYLES[node["how"]]([self.run(part) for part in parts])
        except Signal:
            raise
        except BaseExceptionGroup as group:
            errors = list(leaves(group))
            first = next((one for one in errors if not isinstance(one, Hopeless)), errors[0])
            raise first from None


Works = list[Coroutine[Any, Any, Any]]


async def _gather(works: Works) -> list[Any]:
    return list(await asyncio.gather(*works))


async def _collect(works: Works) -> list[Any]:
    found = await asyncio.gather(*works, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, Hopeless):
            raise one
    return [["failed", one.k] if isinstance(one, Hopeless) else one for one in found]


async def _group(works: Works) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def _anyio(works: Works) -> list[Any]:
    found: list[Any] = [None] * len(works)

    async def one(number: int, work: Awaitable[Any]) -> None:
        found[number] = await work

    async with anyio.create_task_group() as group:
        for number, work in enumerate(works):
            group.start_soon(one, number, work)
    return found


async def _wait(works: Works) -> list[Any]:
    tasks = [asyncio.create_task(work) for work in works]
    await asyncio.wait(tasks)
    errors = [error for task in tasks if (error := task.exception()) is not None]
    if errors:
        raise next((one for one in errors if not isinstance(one, Hopeless)), errors[0])
    return [task.result() for task in tasks]


_STYLES: dict[str, Callable[[Works], Awaitable[list[Any]]]] = {
    "gather": _gather,
    "collect": _collect,
    "group": _group,
    "anyio": _anyio,
    "wait": _wait,
}


def _hopeless(error: StepError) -> BaseException:
    """The node whose failure this is, also through steps and runs around it."""
    found = re.findall(r"hopeless (\d+)", error.message)
    return Hopeless(int(found[-1])) if found else error
