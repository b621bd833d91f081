"""What `jetcron doctor` says of the health-checker's own findings: cycles that break again and again, and the canary.

Only reads.
"""

from jetcron.bus import Bus
from jetcron.cli.cycles import Finding
from jetcron.cli.output import counted
from jetcron.clock import Clock
from jetcron.health_checker.breaks import TOO_OFTEN
from jetcron.health_checker.canary import PERIODS_SILENT, read_note
from jetcron.settings import Settings
from jetcron_protocol.codec import DecodeError, decode
from jetcron_protocol.messages import Breaks, Function
from jetcron_protocol.subjects import CANARY

_NAMED = 3


class Health:
    """Breaks and the canary, as the registry shows them."""

    def __init__(self, bus: Bus, clock: Clock, settings: Settings) -> None:
        self._bus = bus
        self._names = bus.names
        self._clock = clock
        self._settings = settings

    async def look(self) -> list[Finding]:
        """What was found."""
        return [*await self._breaks(), *await self._canary()]

    async def _breaks(self) -> list[Finding]:
        keys = await self._bus.subjects(self._names.registry, self._names.breaks)
        counts = []
        for stored in (await self._bus.entries(keys)).values():
            try:
                counts.append(decode(Breaks, stored.payload))
            except DecodeError:
                continue  # the health-checker starts it afresh
        often = sorted(
            (one for one in counts if one.times >= TOO_OFTEN), key=lambda one: (-one.times, one.schedule)
        )
        if often:
            named = ", ".join(f"{one.schedule} ({one.times} times)" for one in often[:_NAMED])
            more = f" and {len(often) - _NAMED} more" if len(often) > _NAMED else ""
            return [
                Finding(
                    "wrong",
                    "repairs",
                    f"{counted(len(often), 'cycle')} broke {TOO_OFTEN} times or more, each within a day: {named}{more}",
                    "look at the health-checker's log, and find out who removes their ticks",
                )
            ]
        if counts:
            return [Finding("note", "repairs", f"{counted(len(counts), 'cycle')} mended within a day")]
        return [Finding("ok", "repairs", "none within a day")]

    async def _canary(self) -> list[Finding]:
        every = self._settings.canary_every
        if not every:
            return []
        stored = await self._bus.entry(self._names.function_key(CANARY))
        if stored is None:
            return [
                Finding(
                    "note",
                    "canary",
                    "is not registered (jetcron dev has none)",
                    "a health-checker and cron-sync together do it",
                )
            ]
        try:
            function = decode(Function, stored.payload)
        except DecodeError as error:
            return [Finding("wrong", "canary", f"cannot be read: {error}", "update this program")]
        if function.state != "active":
            return [Finding("note", "canary", f"is {function.state}", f"jetcron functions unpause {CANARY}")]
        last = await read_note(self._bus)
        if last is None:
            return [Finding("note", "canary", "none has come through yet", "look again in a minute")]
        age = (self._clock.now() - last.at) / 1000
        if age > PERIODS_SILENT * every:
            return [
                Finding(
                    "wrong",
                    "canary",
                    f"the last one came through {age:,.0f} s ago: what is due now does not run",
                    "see what is wrong above; else look at the logs of cron-tick and the health-checker",
                )
            ]
        if last.late > self._settings.lead_ms:
            return [
                Finding(
                    "wrong",
                    "canary",
                    f"the last one was {last.late / 1000:.1f} s late: so is what is due now",
                    "see how much waits for cron-tick, and how busy the server's disk is",
                )
            ]
        return [Finding("ok", "canary", f"the last one was {last.late} ms late, {max(age, 0):.0f} s ago")]
