"""The load: how many fire in each minute, against counting every occurrence one by one."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from jetcron.cli.schedule_load import plot
from jetcron.clock import to_ms
from jetcron.cycle import make_run, next_occurrence
from jetcron.schedules.load import MINUTE, empty
from jetcron_protocol.messages import Schedule

NOW = to_ms(datetime(2030, 3, 30, 12, 0, 30, tzinfo=UTC))

schedules = st.builds(
    lambda number, cron, jitter, zone, start: Schedule(
        id=f"s{number}", function="a.b", origin="data", cron=cron, jitter=jitter, timezone=zone, start=start
    ),
    st.integers(0, 99),
    st.sampled_from(["*/5 * * * *", "0 9 * * *", "H H * * *", "30 2 * * *", "*/20 * * * * *"]),
    st.sampled_from([0, 0, 1, 90_000, 3_600_000]),
    st.sampled_from(["UTC", "Europe/Prague"]),
    st.none() | st.just(NOW + 3_600_000),
)


@given(st.lists(schedules, max_size=8))
def test_each_occurrence_is_counted_in_the_minute_it_fires(some: list[Schedule]) -> None:
    load = empty(NOW, 180)
    counts = [0] * 180
    for schedule in some:
        load.add(schedule)
        at = next_occurrence(schedule, load.start - 1 - schedule.jitter)
        while at is not None and at < load.end:
            minute = (make_run(schedule, at).fire_at - load.start) // MINUTE
            if 0 <= minute < 180:
                counts[minute] += 1
            at = next_occurrence(schedule, at)
    load.settle()
    assert load.counts == counts
    assert load.schedules == len(some)
    assert load.total == sum(counts)


def test_the_plot_follows_the_wall_clock_over_a_change() -> None:
    load = empty(NOW, 24 * 60)
    load.add(Schedule(id="s", function="a.b", cron="0 3 * * *", timezone="Europe/Prague"))
    load.settle()
    lines = plot(load, ZoneInfo("Europe/Prague"))
    hours = [line[5:20].strip() for line in lines[1:-2]]
    assert hours[0] == "03-30 13:00 CET"
    assert "03-31 02:00 CET" not in "".join(hours)
    (fullest,) = (line for line in lines if "█" in line)
    assert "03-31 03:00" in fullest
    assert "03-31 03:00 CEST  1 at most" in lines[-1]


def test_the_plot_of_nothing() -> None:
    found = empty(NOW, 60)
    assert "0 active schedules, 0 times" in plot(found, ZoneInfo("UTC"))[-1]
    found.schedules = found.counts[0] = 1
    assert any("1 active schedule, 1 time[" in line for line in plot(found, ZoneInfo("UTC")))
