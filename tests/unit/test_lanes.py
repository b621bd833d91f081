"""Overlap, decided purely: who goes in, who waits, who is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetcron.bus import Bus
from jetcron.cycle import make_run
from jetcron.history import about
from jetcron.lanes import Lanes, Standing, lane_for, places
from jetcron.overlap import MAX_QUEUE, CancelHolder, Enter, LeaveOut, Place, Wait, decide
from jetcron.waits import Waits
from jetcron_protocol.codec import decode
from jetcron_protocol.ids import code_run_id, lane_of, manual_run_id, overlap_token, ulid_time
from jetcron_protocol.messages import MAX_CATCH_UP, Lane, Overlap, Run, Schedule
from jetcron_protocol.subjects import Names

SECOND = 1_000


def id_of(number: int) -> str:
    return code_run_id("app.f", number * SECOND)


def decided(
    policy: Overlap,
    number: int,
    *,
    holder: int | None = 5,
    ended_at: float | None = None,
    queue: Sequence[int] = (),
    begun: bool = False,
    blocked: bool = False,
) -> Any:
    lane = None
    if holder is not None:
        lane = Lane(
            function="app.f",
            lane="app.f",
            run=id_of(holder),
            message=1,
            queue=[id_of(one) for one in queue],
        )
    return decide(
        policy,
        id_of(number),
        due=number * SECOND,
        begun=begun,
        lane=lane,
        ended_at=None if ended_at is None else int(ended_at * SECOND),
        queue=waiting(*queue),
        blocked=blocked,
    )


def waiting(*numbers: int) -> tuple[Place, ...]:
    return tuple(Place(number * SECOND, id_of(number)) for number in numbers)


def test_run_ids_sort_by_the_time_of_their_occurrence() -> None:
    assert sorted(map(id_of, (12, 3, 100, 4))) == list(map(id_of, (3, 4, 12, 100)))


@pytest.mark.parametrize("policy", ["skip", "queue", "cancel_running"])
def test_nobody_is_in_the_way_of_the_first_nor_of_oneself(policy: Overlap) -> None:
    assert decided(policy, 7, holder=None) == Enter(())
    # Delivered again, taken over, retried, or come back from a wait.
    assert decided(policy, 5, queue=[6, 7]) == Enter(waiting(6, 7))
    assert decided(policy, 5, queue=[6, 7], begun=True) == Enter(waiting(6, 7))


@pytest.mark.parametrize(
    ("number", "ended_at", "out"),
    [
        (7, None, True),  # one goes on
        (4, None, True),  # a newer one does
        (7, 6.5, False),
        (7, 7, False),  # at its very time: it had ended
        (7, 7.5, True),  # at its time it still went on
        (4, 6.5, False),  # it comes late, and never met it
        (7, 0, False),  # forgotten
    ],
)
def test_skip(number: int, ended_at: float | None, out: bool) -> None:
    decision = decided("skip", number, ended_at=ended_at)
    assert isinstance(decision, LeaveOut) if out else decision == Enter(())


@pytest.mark.parametrize(
    ("number", "ended_at", "queue", "expected"),
    [
        (7, None, (), Wait(waiting(7))),
        (7, None, (6, 8), Wait(waiting(6, 7, 8))),
        (7, None, (7, 8), Wait(waiting(7, 8), known=True)),
        (7, 6, (), Enter(())),
        (7, 6, (7, 8), Enter(waiting(8))),
        (6, 6, (7, 8), Enter(waiting(7, 8))),  # late, and older than all that wait
        (8, 6, (7, 8), Wait(waiting(7, 8), known=True)),
        (9, 6, (7, 8), Wait(waiting(7, 8, 9))),
        (4, None, (6,), Wait(waiting(4, 6))),
    ],
)
def test_queue(number: int, ended_at: float | None, queue: Sequence[int], expected: Any) -> None:
    assert decided("queue", number, ended_at=ended_at, queue=queue) == expected


def test_a_queue_is_in_the_order_in_which_its_runs_fall_due_and_jitter_delays_them() -> None:
    late, soon, next_ = (Place(due * SECOND, id_of(number)) for due, number in ((30, 6), (8, 7), (31, 8)))

    def decided_due(place: Place, *queue: Place, ended_at: int | None = None) -> Any:
        lane = Lane(function="app.f", lane="app.f", run=id_of(5), message=1)
        return decide(
            "queue", place.run, due=place.due, begun=False, lane=lane, ended_at=ended_at, queue=queue
        )

    assert decided_due(late, soon) == Wait((soon, late))
    assert decided_due(soon, late, next_) == Wait((soon, late, next_))
    assert decided_due(late, soon, late, ended_at=6_000) == Wait((soon, late), known=True)
    assert decided_due(soon, soon, late, ended_at=6_000) == Enter((late,))
    assert decided_due(soon, late, next_, ended_at=6_000) == Enter((late, next_))
    # An older program wrote the queue, and left out when they fall due: whoever is woken as the first goes in.
    as_written = [Place(6_000, late.run), Place(7_000, soon.run)]
    assert decided_due(late, *as_written, ended_at=6_000) == Enter((as_written[1],))


@pytest.mark.parametrize(
    ("number", "queue", "expected"),
    [
        (7, (), Wait(waiting(7))),
        (7, (8, 9), Wait(waiting(7, 8, 9))),
        (7, (7, 9), Wait(waiting(7, 9), known=True)),
        (5, (7,), Enter(waiting(7))),  # the lane is its own
    ],
)
def test_who_is_due_after_one_that_is_still_to_come_waits_though_the_lane_is_free(
    number: int, queue: Sequence[int], expected: Any
) -> None:
    assert decided("queue", number, ended_at=5.5, queue=queue, blocked=True) == expected


def test_when_runs_fall_due_is_stored_of_those_that_jitter_delays() -> None:
    lanes = Lanes(cast(Bus, SimpleNamespace(names=Names("jetcron"))), cast(Waits, None))
    standing = Standing("app.f", "app.f")
    queue = (Place(8_000, id_of(7)), Place(30_000, id_of(6)))
    stored = decode(Lane, lanes.change(standing, run=id_of(5), message=1, queue=queue).payload)
    assert (stored.queue, stored.due) == ([id_of(7), id_of(6)], {id_of(7): 8_000, id_of(6): 30_000})
    assert places(stored) == queue
    stored = decode(Lane, lanes.change(standing, run=id_of(5), message=1, queue=waiting(6, 7)).payload)
    assert (stored.queue, stored.due) == ([id_of(6), id_of(7)], None)
    assert places(stored) == waiting(6, 7)


def test_a_queue_is_bounded_and_one_catch_up_fits() -> None:
    assert MAX_QUEUE >= MAX_CATCH_UP - 1
    full = range(10, 10 + MAX_QUEUE)
    assert isinstance(decided("queue", 9_999, queue=full), LeaveOut)
    assert decided("queue", 10, queue=full) == Wait(waiting(*full), known=True)
    assert decided("queue", 9_999, queue=full, begun=True) == Wait(waiting(*full, 9_999))


@pytest.mark.parametrize(
    ("number", "ended_at", "expected"),
    [
        (7, None, CancelHolder()),
        (7, 6, Enter(())),
        (7, 8, Enter(())),
        (4, None, LeaveOut("a newer occurrence went in before it")),
        (4, 6, LeaveOut("a newer occurrence went in before it")),
    ],
)
def test_cancel_running(number: int, ended_at: float | None, expected: Any) -> None:
    assert decided("cancel_running", number, ended_at=ended_at) == expected


@pytest.mark.parametrize("policy", ["skip", "cancel_running"])
def test_what_was_begun_is_neither_left_out_nor_cancels(policy: Overlap) -> None:
    assert decided(policy, 4, begun=True) == Wait(waiting(4))
    assert decided(policy, 7, begun=True) == Wait(waiting(7))
    assert decided(policy, 4, begun=True, ended_at=6, queue=[4]) == Enter(())


@dataclass
class World:
    """A lane and its runs, without a server."""

    lane: Lane | None = None
    executing: int | None = None
    entered: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    now: int = 0

    def arrive(self, number: int, policy: Overlap) -> None:
        queue = list(self.lane.queue) if self.lane is not None else []
        decision = decide(
            policy,
            id_of(number),
            due=number * SECOND,
            begun=id_of(number) in queue,
            lane=self.lane,
            ended_at=self.ended.get(self.lane.run) if self.lane is not None else 0,
            queue=[Place(ulid_time(run) or 0, run) for run in queue],
        )
        match decision:
            case Enter(queue=waiting):
                assert self.executing in (None, number), "two at once"
                if self.executing is None:
                    self.entered.append(number)
                self.executing = number
                self._change(id_of(number), waiting)
            case Wait(queue=waiting):
                assert self.lane is not None
                self._change(self.lane.run, waiting)
            case LeaveOut():
                self.left.append(number)
            case CancelHolder():
                self.end()
                self.arrive(number, policy)

    def end(self) -> None:
        if self.executing is not None:
            self.ended[id_of(self.executing)] = self.now
            self.executing = None

    def _change(self, run: str, queue: Sequence[Place]) -> None:
        waiting = [place.run for place in queue]
        self.lane = Lane(function="app.f", lane="app.f", run=run, message=1, queue=waiting)


@given(
    st.sampled_from(["skip", "queue", "cancel_running"]),
    st.lists(st.none() | st.integers(1, 30), max_size=80),
)
def test_never_two_at_once_none_lost_and_queued_ones_in_order(
    policy: Overlap, events: list[int | None]
) -> None:
    """A number arrives (again, perhaps, and in whatever order); None: what executes ends."""
    world = World()
    settled: set[int] = set()
    for now, event in enumerate(events):
        world.now = now * SECOND
        if event is None:
            world.end()
        elif event not in settled:
            world.arrive(event, policy)
        settled = {*world.left, *(n for n in world.entered if id_of(n) in world.ended)}
    numbers = {event for event in events if event is not None}
    waiting = [n for n in sorted(numbers) if world.lane is not None and id_of(n) in world.lane.queue]
    assert sorted([*world.entered, *world.left, *waiting]) == sorted(numbers)
    if policy == "queue":
        assert world.left == []
        while waiting:
            world.end()
            world.arrive(waiting[0], policy)
            assert world.entered[-1] == waiting.pop(0), "the first that waits goes in"
        assert world.lane is None or world.lane.queue == []


# Which lane.


def test_triggers_in_code_share_a_lane_and_schedules_made_as_data_have_their_own() -> None:
    second = Schedule(id="app.f:2", function="app.f", cron="@daily", overlap="queue")
    run = make_run(second, 5 * SECOND)
    assert run.overlap == "queue"
    assert lane_for("app.f", run.run, run) == "app.f"
    assert lane_for("app.f", run.run, about(run)) == "app.f"
    run = make_run(Schedule(id="team-1", function="app.f", origin="data", at=5, overlap="skip"), 5 * SECOND)
    assert lane_for("app.f", run.run, run) == lane_of("app.f", "team-1", 5 * SECOND, run.run) == "team-1"


def test_a_run_nobodys_clock_made_or_that_is_allowed_has_no_lane() -> None:
    allowed = make_run(Schedule(id="app.f", function="app.f", cron="@daily"), 5 * SECOND)
    named = Run(run=manual_run_id("app.f", "x"), function="app.f", trigger="manual", fire_at=5)
    assert allowed.overlap is None
    assert lane_for("app.f", allowed.run, allowed) is None
    assert lane_for("app.f", named.run, named) is None


def test_the_ledgers_token_of_a_run_left_out_is_its_own() -> None:
    assert overlap_token(id_of(1)) != overlap_token(id_of(2))
    assert overlap_token(id_of(1)).startswith("gap-")
