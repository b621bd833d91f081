"""Two copies of every actor as real processes on a real server, and the books of what they did.

Owns the processes: it kills and freezes them as a test asks, and starts anew what died, as a supervisor does.
Owns the books too: the journal as it is stored, entry by entry, and what the functions' code noted, against
the occurrences that were due. Nothing of it outlives the test process.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetcron.bus import Bus, Outgoing
from jetcron.errors import BusError, NotFound, TryAgain
from jetcron.events import Event, store_events, to_wire
from jetcron.health_checker import arm
from jetcron.history import FINISHED
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import DeadLetter, Gap, JournalEntry, Schedule
from jetcron_protocol.subjects import Names, TickName
from tests.chaos.apps import PERIODS
from tests.support.nats_server import NatsCluster, NatsServer, _die_with, _follows_parent
from tests.support.stack import not_done

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Seconds a wait may take before the test fails."""
KINDS = ("cron-sync", "cron-tick", "event-router", "health-checker", "executor")
COPIES = 2
FAST: dict[str, str] = {
    "JETCRON_LEAD": "0.5",
    "JETCRON_SETTLE": "0.25",
    "JETCRON_ACK_WAIT": "4",
    "JETCRON_EXECUTOR_BEAT": "0.3",
    "JETCRON_EXECUTOR_TTL": "3",
    "JETCRON_LOST_ATTEMPTS": "50",
    "JETCRON_LATE_AFTER": "600",
    "JETCRON_SWEEP_EVERY": "5",
    "JETCRON_REPAIR_GRACE": "3",
    "JETCRON_GRACE": "3",
    "JETCRON_LOG_FORMAT": "json",
    "JETCRON_LOG_LEVEL": "info",
}
"""Everything that waits made short, but for two: a run may be lost many times, for here it is killed more often
than it deserves; and nothing is late, so that every occurrence has to run, however long it takes."""

_AWAY = (
    "no NATS server answers",
    "answers without JetStream",
    "the connection to NATS was lost",
    "no answer within",
)
"""The last word of an actor that was starting when the server went away; its supervisor tries again."""


async def until(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> Any:
    """Ask again and again until `condition`, plain or async, gives something true; returns that.

    A server that is away is asked again.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
        except TryAgain:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so within {patience:g} s")
        await asyncio.sleep(0.05)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Member:
    """One copy of an actor: the process its command starts, and its log over all its lives. Executors run `app`."""

    def __init__(
        self,
        kind: str,
        number: int,
        folder: Path,
        environment: dict[str, str],
        app: str = "tests.chaos.apps:app",
    ) -> None:
        self.kind = kind
        self.name = f"{kind}-{number}"
        self.environment = environment
        self.wanted = False
        """Whether it is started anew when it ends."""
        self.frozen = False
        self.told = False
        """Whether this life was told to end."""
        self.lives = 0
        self.ends: list[str] = []
        """How its lives ended that nobody here ended: exit code and last lines."""
        self._app = app
        self._log = folder / f"{self.name}.log"
        self._born_at = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and keep it running from now on."""
        self.wanted = True
        if self.alive:
            return
        target = [self._app] if self.kind == "executor" else []
        self._born_at = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("jetcron")), self.kind, *target, "--http", "0"],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()) if _follows_parent() else None,
            )
        self.lives += 1
        self.frozen = self.told = False

    def kill(self, *, again: bool = True) -> None:
        """End it at once. `again`: it is started anew, as a supervisor would."""
        self.wanted = again
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def tell(self) -> None:
        """Tell it to stop, as a supervisor does for a deploy; it is started anew when it has."""
        if self.begun() and not self.told:
            self.told = True
            os.kill(self.pid, signal.SIGTERM)

    def freeze(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGSTOP)
            self.frozen = True

    def thaw(self) -> None:
        if self.frozen and self.alive:
            os.kill(self.pid, signal.SIGCONT)
        self.frozen = False

    def tend(self) -> None:
        """Start it anew if it should run and does not; note an end that nobody here caused."""
        if not self.wanted or self.alive:
            return
        if (
            self._process is not None
            and self._process.returncode != -signal.SIGKILL
            and not (self.told and self._process.returncode == 0)
            and not any(text in self.log()[-300:] for text in _AWAY)
        ):
            self.ends.append(f"{self.name} ended with {self._process.returncode}: {self.log()[-3000:]}")
        self.start()

    def log(self, *, whole: bool = False) -> str:
        """What it has logged in this life, or in all."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(0 if whole else self._born_at)
            return file.read().decode(errors="replace")

    def begun(self) -> bool:
        """Whether it runs, connected, in this life."""
        return self.alive and f'"actor": "{self.kind}"' in self.log() and '"event": "started"' in self.log()


def unexpected(members: Iterable[Member]) -> list[str]:
    """Ends of processes that nobody caused, and what their loops threw away."""
    found = []
    for member in members:
        found += member.ends
        found += [
            f"{member.name}: {line}"
            for line in member.log(whole=True).splitlines()
            if "never retrieved" in line or "was destroyed but it is pending" in line
        ]
    return found


@dataclass(frozen=True, slots=True)
class Note:
    """What a function's code said it did."""

    what: str
    run: str
    function: str
    scheduled_at: int | None
    event: str | None
    attempt: int
    at: int
    pid: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal entry and the sequence it is stored under."""

    sequence: int
    entry: JournalEntry


class Books:
    """The journal as it was stored, entry by entry, read by a consumer of its own while the actors write it.

    What stands only in the stream's last state would not do: a run's last entry takes the place of the others,
    and a second one would take the place of the first.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.runs: dict[str, list[Entry]] = defaultdict(list)
        self.function: dict[str, str] = {}
        self.gaps: dict[str, dict[int, Gap]] = defaultdict(dict)
        """By function, every gap entry by its sequence."""
        self._seen: set[int] = set()
        self.last = 0

    async def open(self) -> None:
        names = self._bus.names
        await self._bus.apply_consumer(
            names.journal,
            {
                "durable_name": "books",
                "filter_subject": names.journal_all,
                "ack_policy": "none",
                "deliver_policy": "all",
                "replay_policy": "instant",
            },
        )

    async def keep(self) -> None:
        """Read until cancelled, over every restart of the server."""
        while True:
            with contextlib.suppress(BusError):
                async with self._bus.consume(self._bus.names.journal, "books") as consumer:
                    while True:
                        for delivery in await consumer.fetch(500, wait=1.0):
                            self._enter(delivery.sequence, delivery.subject, delivery.payload)
            await asyncio.sleep(0.1)

    def _enter(self, sequence: int, subject: str, payload: bytes) -> None:
        if sequence in self._seen:
            return
        self._seen.add(sequence)
        self.last = max(self.last, sequence)
        function, run = self._bus.names.parse_journal(subject)
        try:
            if run.startswith("gap-"):
                self.gaps[function][sequence] = decode(Gap, payload)
                return
            self.runs[run].append(Entry(sequence, decode(JournalEntry, payload)))
        except DecodeError:
            return  # a test's own
        self.runs[run].sort(key=lambda one: one.sequence)
        self.function[run] = function

    async def complete(self) -> None:
        """Return when everything stored up to now has been read."""

        async def read() -> bool:
            last = await self._bus.last(self._bus.names.journal, self._bus.names.journal_all)
            # A consumer's delivery may be repeated after a crash of the server, never left out.
            return last is None or self.last >= last.sequence

        await until(read, "the books are complete")

    def ended(self, run: str) -> list[Entry]:
        """The entries that end this run: one, if all is well."""
        return [one for one in self.runs[run] if one.entry.entry in FINISHED]

    def completed(self, run: str) -> bool:
        return any(one.entry.entry == "completed" for one in self.runs[run])

    def scheduled(self, function: str) -> dict[int, set[str]]:
        """The runs of each occurrence of a function, by its time."""
        found: dict[int, set[str]] = defaultdict(set)
        for run, of in self.function.items():
            if of == function:
                for one in self.runs[run]:
                    about = one.entry.about
                    if about is not None and about.scheduled_at is not None:
                        found[about.scheduled_at].add(run)
        return found

    def of_event(self, function: str) -> dict[str, set[str]]:
        """The runs of each event a function had, by the event's id."""
        found: dict[str, set[str]] = defaultdict(set)
        for run, of in self.function.items():
            if of == function:
                for one in self.runs[run]:
                    about = one.entry.about
                    if about is not None and about.event_id is not None:
                        found[about.event_id].add(run)
        return found

    def doubled(self) -> list[str]:
        """Turns that were recorded twice, runs that ended twice."""
        wrong = []
        for run, entries in self.runs.items():
            ends = [one for one in entries if one.entry.entry in (*FINISHED, "retrying")]
            for turn, times in Counter(one.entry.turn for one in ends).items():
                if times > 1:
                    shown = [(one.sequence, one.entry.entry, one.entry.executor) for one in ends]
                    wrong.append(f"{self.function[run]} {run}: turn {turn} recorded {times} times: {shown}")
            if len(self.ended(run)) > 1:
                wrong.append(f"{self.function[run]} {run} ended {len(self.ended(run))} times")
        return wrong


@dataclass(slots=True)
class Tally:
    """Every occurrence due in a window, and what became of it."""

    expected: int = 0
    runs: int = 0
    in_gaps: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Runs nothing was due for, and runs that ended otherwise than they should."""

    def __str__(self) -> str:
        return (
            f"{self.expected} due: {self.runs} runs, {self.in_gaps} in gaps, {len(self.lost)} lost, "
            f"{len(self.doubled)} doubled, {len(self.wrong)} wrong"
        )

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def problems(self) -> str:
        lines = [f"{kind}: {item}" for kind in ("lost", "doubled", "wrong") for item in getattr(self, kind)]
        return "\n".join([str(self), *lines[:40]])


def due_times(function: str, after: int, until: int) -> set[int]:
    """The times in (`after`, `until`] at which a function is due."""
    return {
        time
        for period in PERIODS[function]
        for time in range((after // period + 1) * period, until + 1, period)
    }


class Chaos:
    """A server with the topology applied, two copies of each actor, and the books."""

    def __init__(self, folder: Path, server: NatsServer | NatsCluster, **environment: str) -> None:
        self.server = server
        self.notes_file = folder / "notes"
        self.gates = folder / "gates"
        self.gates.mkdir()
        self.notes_file.touch()
        self.environment = FAST | {
            "NATS_URL": server.url,
            "CHAOS_NOTES": str(self.notes_file),
            "CHAOS_GATES": str(self.gates),
            **environment,
        }
        given = {
            name.removeprefix("JETCRON_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("JETCRON_")
        }
        self.settings = Settings.load(nats_url=server.url, **given)
        self.bus = Bus(self.settings, name="chaos")
        self.books = Books(self.bus)
        self.members = [
            Member(kind, number, folder, dict(self.environment)) for kind in KINDS for number in range(COPIES)
        ]
        self.armed: dict[str, int] = {}
        """From when on each function's schedules are in force."""

    @property
    def names(self) -> Names:
        return self.bus.names

    def of(self, *kinds: str) -> list[Member]:
        return [member for member in self.members if member.kind in kinds]

    async def open(self) -> None:
        """Apply the topology, start everything, wait until the app is registered and every copy runs."""
        await self.bus.apply_topology()
        await arm(self.bus, self.settings)
        await self.books.open()
        for member in self.members:
            member.start()
        await self.all_begun()
        self.armed = await until(self._armed, "the schedules are armed")

    async def _armed(self) -> dict[str, int] | None:
        if await self.bus.entry(self.names.app_key("chaos")) is None:
            return None  # it is written last: events sent before find no function that wants them
        found: dict[str, int] = {}
        for schedule in self.schedules():
            stored = await self.bus.entry(self.names.schedule_key(schedule))
            if stored is None:
                return None
            entry = decode(Schedule, stored.payload)
            found[entry.function] = max(found.get(entry.function, 0), entry.armed_from)
        return found

    def schedules(self) -> list[str]:
        """The ids of all schedules."""
        return [*PERIODS, *(f"{id}:2" for id, periods in PERIODS.items() if len(periods) > 1)]

    async def all_begun(self) -> None:
        """Thaw and start whatever stands still; return when every copy runs."""
        if not self.server.running:
            await self.server.start()
        self.server.resume()
        for member in self.members:
            member.thaw()
            member.start()

        def begun() -> bool:
            ends = [end for member in self.members for end in member.ends]
            assert len(ends) < COPIES * len(KINDS), ends[-1]
            return all(member.begun() for member in self.members)

        await until(begun, "every actor runs")

    async def tend(self) -> None:
        """Keep the processes running, until cancelled."""
        while True:
            if self.server.running:
                for member in self.members:
                    member.tend()
            await asyncio.sleep(0.1)

    # What is stored.

    async def ticks(self, schedule: str) -> list[TickName]:
        """The ticks of a schedule, held or due."""
        subjects = await self.bus.subjects(self.names.work, self.names.ticks_of(schedule))
        return [self.names.parse_tick(subject) for subject in subjects]

    async def all_ticks(self) -> dict[str, list[TickName]]:
        """The ticks of every schedule, in one request."""
        found: dict[str, list[TickName]] = defaultdict(list)
        for subject in await self.bus.subjects(self.names.work, f"{self.names.namespace}.tick.>"):
            with contextlib.suppress(ValueError):
                name = self.names.parse_tick(subject)
                found[name.schedule].append(name)
        return found

    async def chains_merge(self) -> None:
        """Wait until no schedule has more than one held tick, look after look, and each has one in the end."""

        async def one_each() -> bool:
            for _ in range(20):
                found = await self.all_ticks()
                for schedule in self.schedules():
                    states = [tick.state for tick in found[schedule]]
                    if states.count("held") > 1 or len(states) > 2:
                        return False
                await asyncio.sleep(0.05)
            return all(found[schedule] for schedule in self.schedules())

        await until(one_each, "one chain for each schedule")

    async def revision(self, schedule: str) -> int:
        stored = await self.bus.entry(self.names.schedule_key(schedule))
        assert stored is not None, f"{schedule} is not registered"
        return stored.sequence

    async def left(self, stream: str, durable: str) -> int:
        """How many messages a consumer has not done with."""
        try:
            info = await self.bus.consumer(stream, durable)
        except NotFound:
            return 0
        return await not_done(self.bus, info)

    async def drained(self, *functions: str) -> None:
        """Wait until no event is left to route, and no run of these functions to execute, now or later."""

        async def nothing_left() -> bool:
            if await self.left(self.names.events, self.names.event_router):
                return False
            for function in functions:
                if await self.left(self.names.work, self.names.run_consumer(function)):
                    return False
                if await self.bus.subjects(self.names.work, self.names.runs_later_of(function)):
                    return False
            return True

        async def done() -> bool:
            # Behind our back, what was held may be released, and what was sent may become a run: a second look sees it.
            return await nothing_left() and await nothing_left()

        await until(done, f"no run of {', '.join(functions)} is left")

    async def dead(self) -> list[DeadLetter]:
        """The dead letters, oldest first."""
        return [
            decode(DeadLetter, message.payload)
            async for page in self.bus.pages(self.names.dead, ">")
            for message in page
        ]

    # What goes in.

    async def send(self, name: str, ids: Iterable[str], **data: Any) -> None:
        """Send events with these ids; returns when the server has them, however often it was away."""
        wire = [to_wire(Event(name, {"id": id, **data}, id=id), now=now_ms()) for id in ids]
        while True:
            try:
                await store_events(self.bus, wire)
                return
            except BusError:
                await asyncio.sleep(0.1)

    async def store(self, messages: Sequence[Outgoing]) -> None:
        """Store messages one by one, in this order."""
        for message in messages:
            await self.bus.store(message)

    # What came of it.

    def notes(self, *, function: str = "", what: str = "", run: str = "") -> list[Note]:
        """What the functions' code noted, in order."""
        found = [Note(**json.loads(line)) for line in self.notes_file.read_text().splitlines()]
        return [
            one
            for one in found
            if function in ("", one.function) and what in ("", one.what) and run in ("", one.run)
        ]

    def tally(self, after: int, until: int, functions: Iterable[str] = PERIODS) -> Tally:
        """Every occurrence due in (`after`, `until`]: a run, in a gap, or lost; any run too many."""
        tally = Tally()
        for function in functions:
            expected = due_times(function, max(after, self.armed[function]), until)
            found = self.books.scheduled(function)
            gaps = self.books.gaps[function].values()
            for time_ in sorted(expected):
                tally.expected += 1
                runs = found.get(time_, set())
                if any(self.books.completed(run) for run in runs):
                    tally.runs += 1
                elif any(gap.start <= time_ <= gap.to for gap in gaps):
                    tally.in_gaps += 1
                else:
                    tally.lost.append(f"{function} at {time_}: {self._trace(runs)}")
                if len(runs) > 1:
                    tally.doubled.append(f"{function} at {time_} has the runs {sorted(runs)}")
            for time_ in found:
                if after < time_ <= until and time_ > self.armed[function] and time_ not in expected:
                    tally.wrong.append(f"{function} ran for {time_}, when nothing was due")
        tally.doubled += self.books.doubled()
        return tally

    async def state(self) -> str:
        """What stands in the streams, and who waits for it: for whoever has to find out why nothing moves."""
        lines = [f"at {now_ms()}: alive {[member.name for member in self.members if member.alive]}"]
        info = await self.bus.api(f"STREAM.INFO.{self.names.work}", {"subjects_filter": ">"})
        lines += [f"  {subject}: {count}" for subject, count in sorted(info["state"]["subjects"].items())]
        answer = await self.bus.api(f"CONSUMER.LIST.{self.names.work}")
        for consumer in answer["consumers"]:
            shown = {
                key: consumer[key]
                for key in ("num_pending", "num_ack_pending", "num_redelivered", "num_waiting", "ack_floor")
            }
            lines.append(f"  {consumer['name']}: {shown}")
        return "\n".join(lines)

    def _trace(self, runs: Iterable[str]) -> str:
        found = {run: [one.entry.entry for one in self.books.runs[run]] for run in runs}
        return str(found) if found else "no run"

    async def settled(self, after: int, until_: int, functions: Sequence[str] = tuple(PERIODS)) -> Tally:
        """The tally, once nothing due in the window is missing any more, or when patience ends."""

        def whole() -> bool:
            return now_ms() > until_ and not self.tally(after, until_, functions).lost

        try:
            await until(whole, "every occurrence has its run or gap")
        except AssertionError:
            print(await self.state())
        await self.books.complete()
        return self.tally(after, until_, functions)

    def check_events(self, tally: Tally, sent: dict[str, list[str]]) -> None:
        """Count events into a tally: each of `sent`, by function, has one run, and it completed."""
        for function, ids in sent.items():
            found = self.books.of_event(function)
            for id in ids:
                tally.expected += 1
                runs = found.get(id, set())
                if any(self.books.completed(run) for run in runs):
                    tally.runs += 1
                else:
                    tally.lost.append(f"{function}, event {id}: {self._trace(runs)}")
                if len(runs) > 1:
                    tally.doubled.append(f"{function}, event {id} has the runs {sorted(runs)}")

    def check_relayed(self, tally: Tally, sent: int) -> None:
        """Count what `relay` sent on into a tally: one event and one run for each of `sent` events."""
        runs = {run for runs in self.books.of_event("chaos.relayed").values() for run in runs}
        done = sum(self.books.completed(run) for run in runs)
        tally.expected += sent
        tally.runs += min(done, sent)
        if done < sent:
            tally.lost.append(f"chaos.relayed: {done} runs of {sent}")
        if len(runs) > sent:
            tally.doubled.append(f"chaos.relayed: {len(runs)} runs of {sent}")

    def unexpected(self) -> list[str]:
        """Ends of processes nobody here caused, and what their loops threw away."""
        return unexpected(self.members)

    def repairs(self) -> list[str]:
        """Cycles the health-checker found broken: an occurrence it saved is a fault all the same."""
        return [
            line
            for member in self.of("health-checker")
            for line in member.log(whole=True).splitlines()
            if "a broken cycle was restarted" in line
        ]


@contextlib.asynccontextmanager
async def chaos(folder: Path, *, replicas: int = 1, **environment: str) -> AsyncIterator[Chaos]:
    """A server, or three, and two copies of every actor; all of it ends with the context."""
    servers = NatsServer(folder / "nats") if replicas == 1 else NatsCluster(folder / "nats")
    async with servers as server:
        environment["JETCRON_REPLICAS"] = str(replicas)
        running = Chaos(folder, server, **environment)
        async with running.bus:
            tasks: list[asyncio.Task[None]] = []
            try:
                opening = asyncio.create_task(running.books.keep())
                tasks = [opening, asyncio.create_task(running.tend())]
                await running.open()
                yield running
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for member in running.members:
                    member.kill(again=False)


class Load:
    """Events sent steadily: what was sent, by the function it starts. `name` begins their ids."""

    def __init__(self, running: Chaos, name: str, *, pause: float = 0.2) -> None:
        self.sent: dict[str, list[str]] = defaultdict(list)
        self._running = running
        self._name = name
        self._pause = pause
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._flow())

    async def stop(self) -> None:
        """Stop between two sends: what was sent is counted."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _flow(self) -> None:
        number = 0
        while not self._stopping.is_set():
            for event, many in (("order", 5), ("relay", 2), ("flaky", 2)):
                ids = [f"{event}-{self._name}-{number}-{n}" for n in range(many)]
                await self._running.send(f"chaos.{event}", ids)
                self.sent[f"chaos.{event}"] += ids
            number += 1
            await asyncio.sleep(self._pause)


class Mischief:
    """Kills chosen by chance: the same seed, the same choices."""

    def __init__(self, running: Chaos, seed: int) -> None:
        self._running = running
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()

    def kill_one(self) -> None:
        """SIGKILL one copy of one actor."""
        alive = [member for member in self._running.members if member.alive]
        if alive:
            self.random.choice(alive).kill()
            self.done["one killed"] += 1

    def kill_pair(self) -> None:
        """SIGKILL every copy of one actor."""
        for member in self._running.of(self.random.choice(KINDS)):
            member.kill()
        self.done["pair killed"] += 1

    def kill_all(self) -> None:
        """SIGKILL every copy of every actor."""
        for member in self._running.members:
            member.kill()
        self.done["all killed"] += 1

    async def kill_server(self, *, away: float = 0.0) -> None:
        """SIGKILL the server; it comes back after `away` seconds."""
        await self._running.server.kill()
        await asyncio.sleep(away)
        await self._running.server.start()
        self.done["server killed"] += 1

    async def freeze_one(self, seconds: float) -> None:
        """SIGSTOP one copy of one actor for so long."""
        member = self.random.choice([member for member in self._running.members if member.alive])
        member.freeze()
        await asyncio.sleep(seconds)
        member.thaw()
        self.done["one frozen"] += 1

    async def freeze_server(self, seconds: float) -> None:
        """SIGSTOP the server for so long."""
        self._running.server.pause()
        await asyncio.sleep(seconds)
        self._running.server.resume()
        self.done["server frozen"] += 1
