"""What an app's declarations come to: its schedules, what is wrong with them, what a command changes.

Pure: decides from what the registry holds and a command says; cron-sync carries it out.
"""

from collections.abc import Sequence

from jetcron.cron import CronError, parse
from jetcron.registry import Held
from jetcron_protocol.messages import Function, FunctionState, Schedule, ScheduleState, SyncCommand
from jetcron_protocol.subjects import CANARY, OWN_APP, InvalidName, Names


def faults(command: SyncCommand) -> list[str]:
    """Why nobody could run these definitions: every fault at once; none when they are sound."""
    problems = []
    for function in command.functions:
        try:
            Names().run_consumer(function.id)
        except InvalidName as error:
            problems.append(f"{function.id}: {error}")
        for number, cron in enumerate(function.cron, 1):
            seed = schedule_id(function.id, number)
            try:
                parse(cron.expression, timezone=cron.timezone, dst=cron.dst, seed=seed)
            except CronError as error:
                problems.append(f"{function.id}: {error}")
        if function.overlap == "cancel_running" and function.concurrency == 1:
            problems.append(
                f"{function.id}: overlap='cancel_running' needs a concurrency of 2 or more, or none"
            )
        if not function.id.startswith(f"{command.app}."):
            problems.append(f"{function.id} is not a function of the app {command.app!r}")
        elif command.app == OWN_APP and function.id != CANARY:
            problems.append(f"{function.id}: the app name {OWN_APP!r} is Jetcron's own; choose another")
    return problems


def schedule_id(function: str, number: int) -> str:
    """The schedule of a function's n-th cron trigger, from 1."""
    return function if number == 1 else f"{function}:{number}"


def fault(id: str, held: Held[Function], state: FunctionState, command: int) -> str | None:
    """Why this function cannot get that state: there is none, or only registering can bring it back."""
    if held.value is None:
        return f"there is no function {id!r}; 'jetcron functions list' shows them"
    if held.value.state == "archived" and held.value.command != command and state != "archived":
        return f"{id} is archived; 'jetcron sync --force' with the app that has it brings it back"
    return None


def still_to_archive(function: Function, command: int) -> bool:
    """Whether a function that is declared no more is still to be archived, or was by this very command."""
    return function.state != "archived" or function.command == command


def kept_state(found: Function | None) -> FunctionState:
    """A paused function stays paused across registrations; an archived one comes back."""
    return "paused" if found is not None and found.state == "paused" else "active"


def comes_back(function: Function, found: Function | None) -> bool:
    """Whether it was archived until now, or this same command brought it back and died."""
    return found is not None and (found.state == "archived" or found.command == function.command)


def needs_consumer(function: Function, found: Function | None) -> bool:
    """Whether its consumer may be absent or another: also when this same command wrote the entry and died."""
    if found is None or found.state == "archived":
        return True
    return found.concurrency != function.concurrency or found.command == function.command


_STATES: dict[FunctionState, ScheduleState] = {"active": "active", "paused": "paused", "archived": "archived"}


def schedules(written: Sequence[Function], found: dict[str, Held[Function]]) -> list[Schedule]:
    """The schedules of these functions' cron triggers; those a function no longer has are archived."""
    schedules = []
    for function in written:
        for number, cron in enumerate(function.cron, 1):
            schedules.append(
                Schedule(
                    id=schedule_id(function.id, number),
                    function=function.id,
                    cron=cron.expression,
                    timezone=cron.timezone,
                    dst=cron.dst,
                    jitter=function.jitter,
                    catch_up=function.catch_up,
                    catch_up_within=function.catch_up_within,
                    catch_up_most=function.catch_up_most,
                    overlap=function.overlap,
                    state=_STATES[function.state],
                )
            )
        before = found[function.id].value
        for number, cron in enumerate(before.cron if before else [], 1):
            if number > len(function.cron):
                schedules.append(
                    Schedule(
                        id=schedule_id(function.id, number),
                        function=function.id,
                        cron=cron.expression,
                        timezone=cron.timezone,
                        dst=cron.dst,
                        state="archived",
                    )
                )
    return schedules
