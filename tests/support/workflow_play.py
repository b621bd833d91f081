"""Workflows under way: they are started, what they wait for is sent, and what became of them is judged.

Owns the judgement: results against the reckoning of `workflows`, the journal as it was stored, entry by entry, and
what the code noted. Knows nothing of who executes them, or of what is done to those.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

from jetcron.bus import Bus
from jetcron.control import RunControl
from jetcron.dispatch import new_run
from jetcron.errors import BusError, JetcronError, RunFailed, TryAgain
from jetcron.events import Event, store_events, to_wire
from jetcron.history import FINISHED
from jetcron.runs import RunHandle
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import manual_run_id
from jetcron_protocol.messages import Event as WireEvent
from jetcron_protocol.messages import JournalEntry, Run
from tests.support.chaos import Books, now_ms, until
from tests.support.stack import not_done, waits_of
from tests.support.workflow_app import app
from tests.support.workflows import LOST, SENT, Node, agrees, expected, grow, nodes

FLOW, IDLE, COLLECT = "wf.flow", "wf.idle", "wf.collect"
_SHOWN = ("step", "op", "target", "until", "next_at", "on", "child", "tries", "result")
FUNCTIONS = [function.id for function in app.functions.values()]


class Diary(Books):
    """Books that also know the order in which their entries came."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.order: list[tuple[str, JournalEntry]] = []
        self._over: set[str] = set()

    def _enter(self, sequence: int, subject: str, payload: bytes) -> None:
        new = sequence not in self._seen
        super()._enter(sequence, subject, payload)
        run = subject.rsplit(".", 1)[1]
        if new and not run.startswith("gap-"):
            entry = decode(JournalEntry, payload)
            self.order.append((run, entry))
            if entry.entry in FINISHED:
                self._over.add(run)

    def forget(self) -> None:
        """Begin anew: what was entered so far is over."""
        self.runs.clear()
        self.function.clear()
        self.order.clear()

    def over(self, run: str) -> bool:
        return run in self._over

    def told(self, run: str) -> str:
        """A run's entries, a line each."""
        lines = [f"{self.function.get(run, '?')} {run}"]
        for one in self.runs.get(run, ()):
            entry = one.entry
            shown = {name: value for name in _SHOWN if (value := getattr(entry, name)) not in (None, 0)}
            if entry.error is not None:
                shown["error"] = f"{entry.error.type}: {entry.error.message}"
            who = f"{entry.executor[-6:]} {entry.turn}"
            lines.append(f"  {one.sequence} {entry.at} {who} {entry.entry} {shown}")
        return "\n".join(lines)


@dataclass(slots=True)
class Notes:
    """What the code noted, read as it grows. `waits`: which node and kind waits, by run and name of event."""

    file: Path
    read: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    waits: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    def look(self) -> Self:
        with self.file.open("rb") as file:
            file.seek(self.read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in map(json.loads, whole.splitlines()):
            self.lines.append(line)
            if line["what"] == "waits":
                self.waits[line["run"], line["name"]] = line["k"], line["kind"]
        return self

    def of(self, *whats: str) -> list[dict[str, Any]]:
        return [line for line in self.look().lines if line["what"] in whats]


class Play:
    """A number of workflows, each started once under a name of its own, its root, that begins with `name`."""

    def __init__(self, bus: Bus, diary: Diary, notes: Path, seed: int, *, name: str = "") -> None:
        self.flows: dict[str, Node] = {}
        self.diary = diary
        self.notes = Notes(notes, read=notes.stat().st_size)
        self._bus = bus
        self._name = name
        self._random = Random(seed)
        self._answered = 0
        self._cancelled: set[str] = set()
        self._open: dict[str, str] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def run_of(self, root: str) -> str:
        return manual_run_id(FLOW, root)

    async def start(self, flow: Node) -> None:
        """Start a workflow; returns when the server has it, however often it was away, also if cancelled meanwhile."""
        root = f"{self._name}-{len(self.flows)}"
        self.flows[root] = flow
        self._open[root] = self.run_of(root)
        now = now_ms()
        data = {"root": root, "flow": flow}
        run = Run(run=self.run_of(root), function=FLOW, trigger="manual", fire_at=now, payload=data)
        message = new_run(self._bus.names, run, now=now, lead=self._bus.settings.lead_ms)
        storing = asyncio.create_task(self._bus.store(message))
        try:
            await asyncio.shield(storing)
        finally:
            await storing

    # What workflows wait for.

    async def post(self) -> None:
        """Send what is waited for, once it is waited for, until cancelled."""
        while True:
            for run, entry in self.diary.order[self._answered :]:
                self._answered += 1
                if entry.entry == "opened" and entry.op == "wait" and entry.target != LOST:
                    task = asyncio.create_task(self._answer(run, entry))
                    self._sending.add(task)
                    task.add_done_callback(self._sending.discard)
            for task in self._sending:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def _answer(self, run: str, entry: JournalEntry) -> None:
        assert entry.target is not None
        k, kind = self.notes.look().waits[run, entry.target]
        chance = self._random.random
        data = {"run": run, "to": {"node": k}}
        if kind == "raced":
            at_the_end = ((entry.until or 0) - now_ms()) / 1000
            await asyncio.sleep(max(at_the_end + (chance() - 0.5) * 0.2, 0))
        elif chance() < 0.7:
            await asyncio.sleep(chance() * 0.8)
        others = [{**data, "run": "another"}, {**data, "run": f"{run}x"}]
        if chance() < 0.3:
            await self._send(entry.target, self._random.choice(others), f"decoy-{run}-{k}")
        for number in range(self._random.choice((1, 1, 1, 2))):
            name = f"{run}-{k}-{number}"
            later = 0.7 if chance() < 0.1 else 0.0
            for _ in range(self._random.choice((1, 1, 2))):
                await self._send(entry.target, {**data, "token": name}, name, later=later)

    async def _send(self, name: str, data: dict[str, Any], id: str, *, later: float = 0.0) -> None:
        event = to_wire(Event(name, data, id=id), now=now_ms())
        if later:
            event = WireEvent(id=id, name=name, data=data, ts=event.ts, at=now_ms() + round(later * 1000))
        while True:
            try:
                await store_events(self._bus, [event])
                return
            except BusError:
                await asyncio.sleep(0.1)

    # The end.

    def under_way(self) -> list[str]:
        self._open = {root: run for root, run in self._open.items() if not self.diary.over(run)}
        return list(self._open)

    async def all(
        self, count: int, chance: Random, *, at_once: int, patience: float = 60.0, **shape: Any
    ) -> None:
        """Start so many workflows, no more than `at_once` under way; return when half of that is."""
        for _ in range(count):
            await self.room(at_once, patience=patience)
            await self.start(grow(chance, **shape))
        await self.room(at_once // 2, patience=patience)

    async def room(self, most: int, *, patience: float) -> None:
        """Wait until fewer than so many are under way."""
        await self._until(lambda: len(self.under_way()) < most, f"fewer than {most} are under way", patience)

    async def finished(self, *, patience: float) -> None:
        """Wait until every workflow has ended and all it left is done; tell what hangs, if anything does."""
        await self._until(self._all_ended, "every workflow has ended, and what it invoked", patience)
        await self._until(self._abandoned_ended, "what was abandoned is cancelled", patience)
        await self._until(self._nothing_left, "no message is left", patience)
        await self.diary.complete()

    def _all_ended(self) -> bool:
        functions = self.diary.function.items()
        return not self.under_way() and all(self.diary.over(run) for run, id in functions if id != IDLE)

    async def _until(self, condition: Callable[[], Any], what: str, patience: float) -> None:
        try:
            await until(condition, what, patience=patience)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self._hanging()}") from None

    async def _abandoned_ended(self) -> bool:
        idle = [run for run, function in self.diary.function.items() if function == IDLE]
        for run in idle:
            if run not in self._cancelled:
                await RunControl(self._bus).cancel(IDLE, run, "nobody waits for it")
                self._cancelled.add(run)
        return all(map(self.diary.over, self.diary.function))

    async def _nothing_left(self) -> bool:
        names = self._bus.names
        for stream, durable in (
            (names.events, names.event_router),
            (names.later, names.event_router_later),
            *((names.work, names.run_consumer(function)) for function in FUNCTIONS),
        ):
            if await not_done(self._bus, await self._bus.consumer(stream, durable)):
                return False
        return True

    async def _hanging(self) -> str:
        lines = [f"{len(self.under_way())} of {len(self.flows)} under way: {self.under_way()}"]
        open_runs = [run for run in self.diary.function if not self.diary.over(run)]
        lines += [self.diary.told(run) for run in open_runs[:5]]
        names = self._bus.names
        for run in open_runs[:5]:
            for stream, filter in (
                (names.journal, waits_of(names, run)),
                (names.work, names.run_later_of(run)),
            ):
                try:
                    lines += await self._bus.subjects(stream, filter)
                except TryAgain as error:
                    lines.append(str(error))
        info = await self._bus.api(f"CONSUMER.LIST.{names.work}")
        for one in info["consumers"]:
            lines.append(f"{one['name']}: {one['num_pending']} pending, {one['num_ack_pending']} out")
        return "\n".join(lines)

    # The judgement.

    async def judge(self, *, disturbed: bool, server_died: bool = False) -> None:
        """Fail with everything that is not as it should be."""
        found = await self.problems(disturbed=disturbed, server_died=server_died)
        if found:
            raise AssertionError(
                "\n".join([f"{len(found)} problems of {len(self.flows)} workflows", *found[:20]])
            )

    async def problems(self, *, disturbed: bool, server_died: bool = False) -> list[str]:
        """Everything that is not as it should be. After kill -9 of a server, what was removed may be back, by the
        hundred (nats-server 2.15.1): then what is left behind tells nothing.
        """
        found = [problem for root in self.flows async for problem in self._judge_result(root)]
        found += self._judge_journal()
        found += self._judge_effects(disturbed=disturbed)
        found += await self._judge_sent()
        if not server_died:
            found += await self._judge_remains()
        return found

    async def _judge_result(self, root: str):  # type: ignore[no-untyped-def]
        run, wanted = self.run_of(root), expected(self.flows[root])
        try:
            result = await RunHandle(self._bus, FLOW, run).result(10)
        except RunFailed as error:
            number = error.message.removeprefix("hopeless ")
            if not (number.isdecimal() and int(number) in wanted.fails):
                yield f"{root}: failed with {error}; expected {wanted.value or wanted.fails}\n{self.diary.told(run)}"
            return
        except (JetcronError, TimeoutError) as error:
            yield f"{root}: its result cannot be read: {error!r}"
            return
        if wanted.fails or not agrees(result, wanted.value):
            yield f"{root}: gave {result}; expected {wanted.value or wanted.fails}\n{self.diary.told(run)}"

    def _judge_journal(self) -> Iterator[str]:
        """Each run ended once, each step is recorded once, by who held the run."""
        yield from self.diary.doubled()
        for run, entries in self.diary.runs.items():
            steps = Counter(one.entry.step for one in entries if one.entry.entry == "step")
            last = self.diary.ended(run)[-1].entry
            folded = Counter(done.id for done in last.steps or ())
            wrong = [step for step, times in (steps + folded).items() if steps[step] > 1 or folded[step] != 1]
            if wrong:
                yield f"steps recorded more or less than once: {wrong}; in the end {sorted(folded)}"
                yield self.diary.told(run)
            opened: dict[str | None, int] = {}
            holder: tuple[str, int] | None = None
            for one in entries:
                entry = one.entry
                if entry.entry == "claimed":
                    holder = entry.executor, entry.turn
                elif (
                    entry.attempts
                ):  # the last, which may have come before we read those it took the place of
                    holder = entry.attempts[-1].executor, entry.attempts[-1].turn
                if entry.entry != "cancelled" and (entry.executor, entry.turn) != holder:
                    yield f"written by who did not hold the run: {entry}\n{self.diary.told(run)}"
                if entry.entry == "opened":
                    opened[entry.step] = entry.until or 0
                early = entry.entry == "step" and (
                    entry.op == "sleep"
                    or (entry.op == "wait" and entry.result is None and entry.object is None)
                )
                if early and entry.at < opened.get(entry.step, 0):
                    yield f"over before its time: {entry}\n{self.diary.told(run)}"
            if last.entry != ("cancelled" if self.diary.function[run] == IDLE else last.entry):
                yield f"an abandoned run {last.entry}"

    def _judge_effects(self, *, disturbed: bool) -> Iterator[str]:
        """Results that were remembered are of an execution, and stay; nothing took effect that should not."""
        done: dict[tuple[str, int], list[str]] = defaultdict(list)
        calls: Counter[tuple[str, int]] = Counter()
        seen: dict[tuple[str, int], set[str]] = defaultdict(set)
        kinds: dict[tuple[str, int], str] = {}
        for line in self.notes.of("done", "call", "saw"):
            key = line["root"], line["k"]
            match line["what"]:
                case "done":
                    done[key].append(line["token"])
                case "call":
                    calls[key] += 1
                case "saw":
                    seen[key].add(line["token"])
                    kinds[key] = line["kind"]
        journaled: dict[tuple[str, int], list[str]] = defaultdict(list)
        roots = {line["run"]: line["root"] for line in self.notes.of("done")}
        runs = {(line["root"], line["k"]): line["run"] for line in self.notes.of("done")}
        for run, entry in self.diary.order:
            if entry.entry == "step" and entry.op == "run" and isinstance(entry.result, dict):
                journaled[roots[run], entry.result["k"]].append(entry.result["token"])
        for key, tokens in seen.items():
            if len(tokens) > 1:
                yield f"{key} gave several results: {tokens}"
            if kinds[key] not in ("event", "raced", "never") and not tokens <= set(done[key]):
                yield f"{key} gave {tokens}, which no execution returned: {done[key]}"
            if key in journaled and journaled[key] != list(tokens):
                yield f"{key} gave {tokens}, and the journal has {journaled[key]}"
        disturbed = disturbed or self._lost()
        for root, flow in self.flows.items():
            wanted = expected(flow)
            # What is cut off beside a failure is not recorded, and done again when the code comes there again.
            alone = not any(node["do"] in ("crash", "hopeless") for node in nodes(flow))
            once = alone and not disturbed
            for node in nodes(flow):
                if node["do"] not in ("step", "deadly", "outer"):
                    continue
                key = root, node["k"]
                if node["k"] in wanted.must and not done[key]:
                    yield f"{key} never took effect"
                if node["k"] not in wanted.must | wanted.may and done[key]:
                    yield f"{key} took effect, after what had failed"
                if once and len(done[key]) > 1:
                    yield f"{key} took effect {len(done[key])} times, and nobody was killed"
                    yield self.diary.told(runs[key])
                if once and node["do"] == "step" and calls[key] > node["fails"] + 1:
                    yield f"{key} was called {calls[key]} times, and nobody was killed"

    def _lost(self) -> bool:
        """Whether an executor was taken for dead: on a busy machine it may be."""
        ends = (one.entry for run in self.diary.runs for one in self.diary.ended(run))
        return any(attempt.outcome == "lost" for end in ends for attempt in end.attempts or ())

    async def _judge_sent(self) -> list[str]:
        """Each event of a step is stored under one id, and each has one run."""
        found = []
        names = self._bus.names
        ids: dict[tuple[str, int], set[str]] = defaultdict(set)
        async for page in self._bus.pages(names.events, names.event(SENT)):
            for message in page:
                event = decode(WireEvent, message.payload)
                ids[event.data["root"], event.data["k"]].add(event.id)
        runs = self.diary.of_event(COLLECT)
        for root, flow in self.flows.items():
            wanted = expected(flow)
            for node in nodes(flow):
                if node["do"] != "send":
                    continue
                sent = ids.pop((root, node["k"]), set())
                many = node["many"]
                if len(sent) not in ({many} if node["k"] in wanted.must else {0, many}):
                    found.append(f"{root} {node['k']}: {len(sent)} events of {many}: {sent}")
                if node["k"] not in wanted.must | wanted.may and sent:
                    found.append(f"{root} {node['k']}: sent what it should not")
                for id in sent:
                    if len(runs.get(id, ())) != 1 or not all(map(self.diary.completed, runs[id])):
                        found.append(f"{root} {node['k']}: the event {id} has the runs {runs.get(id)}")
        return found

    async def _judge_remains(self) -> list[str]:
        """Nothing stands any more that belongs to what has ended."""
        names = self._bus.names
        found = await self._bus.subjects(names.work, names.run_ready_all)
        for subject in await self._bus.subjects(names.work, names.run_later_all):
            found.append(f"{subject}\n{self.diary.told(subject.split('.')[-2])}")
        for subject in await self._bus.subjects(names.journal, names.wait_all):
            if subject.count(".") > 2:
                found.append(f"{subject}\n{self.diary.told(subject.split('.')[-2])}")
        return [f"left behind: {one}" for one in found]
