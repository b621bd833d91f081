"""`jetcron doctor`: looks at everything that can be wrong from outside, and says what to do about it.

Only reads. It sees what the server and the registry show at this moment: whether somebody pulls, not whether
the code behind the pull is right. Of very many schedules it looks at a sample.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from jetcron.bus import Bus, rfc3339_ms
from jetcron.cli.cycles import Cycles, Finding
from jetcron.cli.deep import DeepCheck
from jetcron.cli.health import Health
from jetcron.cli.output import counted, size
from jetcron.clock import Clock, SystemClock
from jetcron.errors import BusError, NotFound, TopologyMissing
from jetcron.settings import Settings
from jetcron_protocol import topology
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.ids import GROUPS
from jetcron_protocol.messages import ExecutorEntry, Function, Sweep
from jetcron_protocol.subjects import CANARY, split_function

_NEARLY_FULL = 0.8
_LOOKS = 4
_PAUSE = 0.25
_AT_WORK_MS = 5_000
_ACTORS = {
    "cron-sync": "jetcron cron-sync",
    "cron-tick": "jetcron cron-tick",
    "health-checker": "jetcron health-checker",
    "event-router": "jetcron event-router",
    "event-router-later": "jetcron event-router",
}


async def examine(settings: Settings, clock: Clock | None = None, *, deep: bool = False) -> list[Finding]:
    """Every finding, the faults among them; never raises for what it is meant to find. `deep`: see `cli.deep`."""
    clock = clock or SystemClock()
    try:
        async with Bus(settings, clock=clock, name="jetcron doctor") as bus:
            doctor = _Doctor(bus, clock, settings, deep=deep)
            return [finding async for finding in doctor.findings()]
    except BusError as error:
        return [Finding("wrong", "server", str(error))]


class _Doctor:
    def __init__(self, bus: Bus, clock: Clock, settings: Settings, *, deep: bool) -> None:
        self._deep = deep
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings

    async def findings(self) -> AsyncIterator[Finding]:
        """In the order in which one thing rests on another."""
        yield Finding(
            "ok",
            "server",
            f"nats-server {self._bus.server_version} with JetStream at {self._settings.shown_url}",
        )
        shape = await self._topology()
        yield shape
        if shape.level == "wrong":
            return
        for part in (
            self._storage,
            self._our_clock,
            self._actors,
            self._sweeps,
            self._apps,
            DeepCheck(self._bus, self._clock, self._settings).look
            if self._deep
            else Cycles(self._bus, self._clock).look,
            Health(self._bus, self._clock, self._settings).look,
            self._dead,
        ):
            for finding in await part():
                yield finding

    async def _topology(self) -> Finding:
        missing = []
        for stream in topology.streams(self._names, self._settings.limits):
            try:
                await self._bus.stream_state(stream["name"])
            except TopologyMissing:
                missing.append(stream["name"])
        if missing:
            return Finding("wrong", "streams", f"missing: {', '.join(missing)}", "run jetcron init")
        try:
            await self._bus.check_topology()
        except BusError as error:
            return Finding("wrong", "streams", str(error), "run jetcron init")
        return Finding("ok", "streams", f"as they should be, in the namespace {self._names.namespace}")

    async def _storage(self) -> list[Finding]:
        account = await self._bus.api("INFO")
        tier = account.get("tier") or {}
        limits = account.get("limits") or tier.get("limits") or {}
        found = []
        for kind, used, limit in (
            ("file", account.get("storage", 0), limits.get("max_storage", -1)),
            ("memory", account.get("memory", 0), limits.get("max_memory", -1)),
        ):
            if limit > 0 and used > limit * _NEARLY_FULL:
                found.append(
                    Finding(
                        "wrong",
                        "storage",
                        f"the account uses {used / limit:.0%} of its {size(limit)} of {kind} storage",
                        "raise its limit, or keep events, runs and dead letters for less long",
                    )
                )
        return found or [Finding("ok", "storage", f"{size(account.get('storage', 0))} used")]

    async def _our_clock(self) -> list[Finding]:
        await self._bus.stream_state(self._names.work)
        offset = self._bus.clock_offset_ms
        text = f"this machine's clock is {abs(offset):.0f} ms {'ahead of' if offset > 0 else 'behind'} the server's"
        if abs(offset) > self._settings.lead_ms:
            return [Finding("wrong", "clock", text, "set it right (chrony, ntp): actors here are not ready")]
        if abs(offset) > self._settings.lead_ms / 4:
            return [
                Finding(
                    "note", "clock", text, "set it right (chrony, ntp): runs start as much too early or late"
                )
            ]
        return [Finding("ok", "clock", text)]

    # Actors: who pulls from a durable consumer shows as a waiting request.

    async def _pulled(self, stream: str, durable: str) -> dict[str, Any]:
        """The consumer's state at the last of a few looks, or at the first that finds a waiting request."""
        info: dict[str, Any] = {}
        for look in range(_LOOKS):
            info = await self._bus.consumer(stream, durable)
            if info.get("num_waiting"):
                break
            if look < _LOOKS - 1:
                await self._clock.sleep(_PAUSE)
        return info

    async def _actors(self) -> list[Finding]:
        consumers = topology.consumers(self._names, self._settings.limits)
        states = await asyncio.gather(
            *(self._pulled(stream, config["durable_name"]) for stream, config in consumers)
        )
        found = []
        for (_, config), info in zip(consumers, states, strict=True):
            durable = config["durable_name"]
            waiting = info.get("num_pending", 0)
            backlog = f", {waiting} messages wait" if waiting else ""
            if info.get("num_waiting") or self._at_work(info):
                found.append(Finding("ok", durable, f"pulls{backlog}"))
            else:
                found.append(Finding("wrong", durable, f"nobody pulls{backlog}", f"start {_ACTORS[durable]}"))
        return found

    def _at_work(self, info: dict[str, Any]) -> bool:
        """Whether somebody has just taken messages: whoever has its hands full asks for no more."""
        last = (info.get("delivered") or {}).get("last_active")
        if not last or not info.get("num_ack_pending"):
            return False
        return rfc3339_ms(info["ts"]) - rfc3339_ms(last) < _AT_WORK_MS

    async def _sweeps(self) -> list[Finding]:
        held = await self._bus.subjects(self._names.work, f"{self._names.namespace}.health.held.*")
        if len(held) < GROUPS:
            return [
                Finding(
                    "wrong", "sweeps", f"only {len(held)} of {GROUPS} sweeps are armed", "run jetcron init"
                )
            ]
        now = self._clock.now()
        keys = [self._names.health_key(group) for group in range(GROUPS)]
        late = 0
        entries = await self._bus.entries(keys)
        for stored in entries.values():
            try:
                sweep = decode(Sweep, stored.payload)
            except DecodeError:
                continue
            # Where very many schedules have no tick, it takes several sweeps to look at all of them.
            seen_at = sweep.swept_at if sweep.absent else sweep.healthy_at
            late += now - seen_at > 3 * self._settings.sweep_every_ms + self._settings.repair_grace_ms
        if late:
            return [
                Finding(
                    "wrong",
                    "sweeps",
                    f"{late} of {GROUPS} groups were not swept for three periods: broken cycles stay broken",
                    "look at the health-checker's log",
                )
            ]
        return [Finding("ok", "sweeps", f"{len(entries)} of {GROUPS} groups swept lately")]

    # Apps, functions and their executors.

    async def _apps(self) -> list[Finding]:
        functions, unread = await self._functions()
        alive = await self._executors()
        found = [
            Finding(
                "wrong",
                "functions",
                f"the entry {key} cannot be read",
                "update this program, or sync its app",
            )
            for key in unread
        ]
        by_app: dict[str, list[Function]] = {}
        for function in functions:
            if function.id == CANARY:
                continue  # the health-checker's own
            by_app.setdefault(split_function(function.id)[0], []).append(function)
        for app, members in sorted(by_app.items()):
            found += await self._app(app, members, alive.get(app, []))
        if not by_app:
            found.append(
                Finding("note", "apps", "no functions are registered", "jetcron executor MODULE:APP does it")
            )
        return found

    async def _app(
        self, app: str, functions: Sequence[Function], alive: Sequence[ExecutorEntry]
    ) -> list[Finding]:
        if not alive:
            return [
                Finding(
                    "wrong",
                    app,
                    f"no executor is alive for its {counted(len(functions), 'function')}",
                    "start jetcron executor MODULE:APP with this app",
                )
            ]
        running = sum(one.running for one in alive)
        parts = (
            f"{counted(len(alive), 'executor')} alive",
            counted(len(functions), "function"),
            f"{counted(running, 'run')} in hand",
        )
        found = [Finding("ok", app, ", ".join(parts))]
        for function in functions:
            found += await self._function(function)
        return found

    async def _function(self, function: Function) -> list[Finding]:
        if function.state == "paused":
            return [Finding("note", function.id, "is paused", f"jetcron functions unpause {function.id}")]
        try:
            info = await self._pulled(self._names.work, self._names.run_consumer(function.id))
        except NotFound:
            return [
                Finding(
                    "wrong", function.id, "its consumer is missing", "run jetcron sync MODULE:APP --force"
                )
            ]
        if info.get("num_waiting"):
            return []
        ready, busy = info.get("num_pending", 0), info.get("num_ack_pending", 0)
        if busy:
            return [
                Finding(
                    "note",
                    function.id,
                    f"its executors ask for no more: {busy} runs are in hand, {ready} wait",
                    "start another executor if that lasts",
                )
            ]
        return [
            Finding(
                "wrong",
                function.id,
                f"no executor pulls its runs ({ready} wait)",
                "start an executor whose code has this function",
            )
        ]

    async def _functions(self) -> tuple[list[Function], list[str]]:
        keys = await self._bus.subjects(self._names.registry, self._names.functions)
        functions, unread = [], []
        for key, stored in sorted((await self._bus.entries(keys)).items()):
            try:
                function = decode(Function, stored.payload)
            except DecodeError:
                unread.append(key)
            else:
                if function.state != "archived":
                    functions.append(function)
        return functions, unread

    async def _executors(self) -> dict[str, list[ExecutorEntry]]:
        """By app: those whose key stands."""
        found: dict[str, list[ExecutorEntry]] = {}
        keys = await self._bus.subjects(self._names.executors, self._names.executors_all)
        for key in keys:
            stored = await self._bus.last(self._names.executors, key)
            if stored is not None and stored.payload:
                entry = decode(ExecutorEntry, stored.payload)
                found.setdefault(entry.app, []).append(entry)
        return found

    async def _dead(self) -> list[Finding]:
        state = await self._bus.stream_state(self._names.dead)
        if not state.messages:
            return [Finding("ok", "dead letters", "none")]
        return [Finding("note", "dead letters", f"{state.messages}", "look at them: jetcron dead list")]
