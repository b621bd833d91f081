"""Which subject, header and message id go with which message."""

import pytest

from jetcron import dispatch
from jetcron.cycle import make_run
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Event, Gap, Run, Schedule, SyncCommand, Tick
from jetcron_protocol.subjects import Names

NAMES = Names("ns")
AT = 1_893_456_000_000  # 2030-01-01T00:00:00Z
RUN = Run(run="R", function="app.f", trigger="manual", fire_at=AT)


def test_a_held_tick_is_released_a_lead_early_on_a_subject_of_its_own() -> None:
    tick = Tick(schedule="a.b", revision=3, at=AT)
    message = dispatch.held_tick(NAMES, tick, 2_000)
    assert message.subject == NAMES.tick_held("a.b", 3, AT)
    assert message.headers == {
        "Nats-Schedule": "@at 2029-12-31T23:59:58.000Z",
        "Nats-Schedule-Target": NAMES.tick_due("a.b", 3, AT),
    }
    assert decode(Tick, message.payload) == tick


@pytest.mark.parametrize(("now", "held"), [(AT - 2_001, True), (AT - 2_000, False), (AT + 9, False)])
def test_a_run_is_held_only_when_it_is_due_beyond_the_lead(now: int, held: bool) -> None:
    message = dispatch.new_run(NAMES, RUN, now=now, lead=2_000)
    assert message.subject == (NAMES.run_later("app.f", "R", 0) if held else NAMES.run_ready("app.f"))
    headers = message.headers or {}
    assert headers["Nats-Msg-Id"] == "R"
    assert headers.get("Nats-Schedule-Target") == (NAMES.run_ready("app.f") if held else None)
    assert decode(Run, message.payload) == RUN


def test_the_next_turn_carries_no_id() -> None:
    message = dispatch.next_turn(NAMES, RUN, turn=4, fire_at=AT + 5_000, lead=2_000)
    assert message.subject == NAMES.run_later("app.f", "R", 4)
    assert "Nats-Msg-Id" not in (message.headers or {})
    run = decode(Run, message.payload)
    assert (run.turn, run.fire_at, run.run) == (4, AT + 5_000, "R")


def test_our_events_say_what_they_are() -> None:
    event = Event(id="e", name="order.created", data=1, ts=5, at=AT)
    message = dispatch.event(NAMES, event)
    assert message.subject == "ns.event.order.created"
    assert message.headers == {"Jetcron-Event": "1", "Nats-Msg-Id": "order.created:e"}


def test_ended_is_the_same_command_for_the_same_tick() -> None:
    tick = Tick(schedule="s", revision=3, at=AT)
    first = dispatch.ended("app", [tick])
    assert first == dispatch.ended("app", [tick])
    assert first.id != dispatch.ended("app", [Tick(schedule="s", revision=4, at=AT)]).id
    other = Tick(schedule="t", revision=9, at=AT)
    both = dispatch.ended("app", [tick, other])
    assert (both.items, both.if_revisions) == (["s", "t"], {"s": 3, "t": 9})
    assert decode(SyncCommand, dispatch.command(NAMES, first).payload) == first


def test_a_gap_has_one_subject_for_its_start_and_a_time_to_live() -> None:
    gap = Gap(schedule="s", start=5, to=9, count=1, reason="catch_up")
    message = dispatch.gap(NAMES, gap, "app.f", 3_600)
    longer = dispatch.gap(NAMES, Gap(schedule="s", start=5, to=99, count=3, reason="catch_up"), "app.f", 1)
    assert message.subject == longer.subject
    assert message.headers == {"Nats-TTL": "3600s"}


def test_what_is_left_out_has_a_subject_of_its_own_written_once() -> None:
    """Beside a gap of the same schedule from the same time, which may be replaced by a longer one."""
    run = make_run(Schedule(id="app.f", function="app.f", cron="@daily", overlap="skip"), AT)
    message = dispatch.left_out(NAMES, run, 3_600)
    gap = Gap(schedule="app.f", start=AT, to=AT, count=1, reason="overlap")
    assert decode(Gap, message.payload) == gap
    assert message.subject != dispatch.gap(NAMES, gap, "app.f", 3_600).subject
    assert message.headers == {"Nats-TTL": "3600s", "Nats-Expected-Last-Subject-Sequence": "0"}


@pytest.mark.parametrize("lead", [500, 2_000])
def test_what_is_due_beyond_the_server_s_time_is_not_released_at_once(lead: int) -> None:
    """The server counts nanoseconds in 64 bits, to the year 2262."""
    message = dispatch.held_tick(NAMES, Tick(schedule="s", revision=1, at=253_402_300_799_999), lead)
    assert (message.headers or {})["Nats-Schedule"] == "@at 2262-04-11T23:47:16.000Z"
    assert decode(Tick, message.payload).at == 253_402_300_799_999
