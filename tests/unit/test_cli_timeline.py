"""A run's timeline, from histories made by hand: its rows, and how they look."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from rich.text import Text

from jetcron.cli import follow, output, runs
from jetcron.cli.one_run import page, shortened
from jetcron.cli.run_facts import child_runs
from jetcron.cli.run_json import brief, whole
from jetcron.cli.timeline import Row, timeline
from jetcron.endings import handling_run
from jetcron.history import finish, fold, reopen
from jetcron.runs import RunView, view
from jetcron_protocol.messages import About, Failure, Gap, JournalEntry, ObjectRef

RUN = "01M80JVRDMGNAY21PG4JVE9DHC"
CHILD = "01M80JVRDMBN5P1DCZEH4R5VMK"
NOON = 1_900_000_000_000
"""When the run is due: 2030-03-17 17:46:40Z."""
SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000
ABOUT = About(trigger="manual", fire_at=NOON)
NO_FUNDS = Failure(type="bank.NoFunds", message="card declined\nask again", traceback="")


def entry(kind: str, after: int, turn: int = 0, **more: Any) -> JournalEntry:
    """An entry so many ms after the run was due."""
    if "started" in more:
        more["started"] += NOON
    for key in ("until", "next_at"):
        if key in more:
            more[key] += NOON
    return JournalEntry(entry=kind, turn=turn, at=NOON + after, **{"executor": "one"} | more)  # type: ignore[arg-type]


def claimed(after: int = -500, turn: int = 0, **more: Any) -> JournalEntry:
    return entry("claimed", after, turn, **({"about": ABOUT} if turn == 0 else {}) | more)


def done(step: str, after: int, op: str = "run", **more: Any) -> JournalEntry:
    return entry("step", after, step=step, op=op, **more)


def opened(step: str, after: int, op: str, **more: Any) -> JournalEntry:
    return entry("opened", after, step=step, op=op, **more)


def run(*entries: JournalEntry, ended: bool = False) -> RunView:
    """The run these entries are the journal of; `ended`: the last one replaces the others, as it does."""
    numbered = list(enumerate(entries, 1))
    if ended:
        last = finish(fold(numbered[:-1]), entries[-1], keep_steps=entries[-1].entry != "completed")
        numbered = [(len(entries), last)]
    return view("shop.checkout", RUN, fold(numbered))


def rows(of: RunView, now: int = 0, **children: str) -> list[Row]:
    return timeline(of, now=NOON + now, children=children)


def drawn(
    of: RunView, *, now: int = 0, width: int | None = 80, most: int | None = None, **children: str
) -> list[str]:
    """The page as it is printed, without colours."""
    lines = page(of, now=NOON + now, children=children, width=width, most=most)
    return [Text.from_markup(line, emoji=False).plain for line in lines]


def body(lines: list[str]) -> list[str]:
    """The timeline alone."""
    start = lines.index("") + 1
    rest = lines[start:]
    return rest[: rest.index("")] if "" in rest else rest


def brief_rows(found: list[Row]) -> list[tuple[int, int, str, str, str]]:
    return [(row.at - NOON, row.depth, row.mark, row.name, row.what) for row in found]


# What happened, in order.


def test_a_completed_run() -> None:
    found = run(
        claimed(),
        done("load", 25, started=5, result={"id": 7}),
        done("tell", 40, "send", started=30, result=3),
        entry("completed", 60, started=3, result="fine"),
        ended=True,
    )
    assert brief_rows(rows(found)) == [
        (3, 0, "begun", "attempt 1", "completed"),
        (5, 1, "done", "load", "run"),
        (30, 1, "done", "tell", "send"),
        (60, 0, "done", "completed", ""),
    ]
    assert drawn(found) == [
        f"shop.checkout  {RUN}",
        "status   completed in 57 ms",
        "trigger  by name",
        "due      2030-03-17 17:46:40.000Z",
        "started  2030-03-17 17:46:40.003Z, 3 ms late",
        "",
        "    +0ms  ▶ attempt 1  completed   57 ms  on one",
        "    +2ms    ✓ load     run         20 ms",
        "   +27ms    ✓ tell     send        10 ms  3 events",
        "   +57ms  ✓ completed              57 ms",
        "",
        'result  "fine"',
    ]


def test_retried_attempts_have_their_errors_and_the_last_one_is_told_whole() -> None:
    trace = 'Traceback (most recent call last):\n  File "shop.py", line 3, in pay\nValueError: no 7\nnor 8'
    last = Failure(type="ValueError", message="no 7\nnor 8", traceback=trace)
    found = run(
        claimed(),
        entry("retrying", 50, started=0, error=NO_FUNDS, next_at=15 * SECOND),
        claimed(13 * SECOND, 1, attempt=1, executor="two"),
        entry("failed", 15_040, 1, started=15 * SECOND, error=last, attempt=1),
        ended=True,
    )
    lines = drawn(found)
    assert body(lines) == [
        "    +0ms  ▶ attempt 1  retrying    50 ms  on one",
        "              bank.NoFunds: card declined",
        "  +15.0s  ▶ attempt 2  failed      40 ms  on two",
        "  +15.0s  ✗ failed                  15 s  2 attempts",
    ]
    assert lines[-5:] == [
        "last error",
        "Traceback (most recent call last):",
        '  File "shop.py", line 3, in pay',
        "ValueError: no 7",
        "nor 8",
    ]
    assert (brief(found)["attempts"], brief(found)["took_ms"]) == (2, 15_040)


def test_a_step_that_was_tried_again_begins_with_its_first_try() -> None:
    entries = [
        claimed(),
        opened("charge", 30, "run", started=10, tries=1, until=SECOND, error=NO_FUNDS),
        opened("charge", 1_020, "run", started=1_000, tries=2, until=9 * SECOND, error=NO_FUNDS),
    ]
    waiting = run(*entries, entry("waiting", 1_030, started=0, next_at=9 * SECOND, on=["charge"]))
    assert body(drawn(waiting, now=3 * SECOND)) == [
        "    +0ms  ▶ attempt 1  waiting    1.03 s  on one",
        "   +10ms    ○ charge   run",
        "                failed twice, tried again at 2030-03-17 17:46:49Z (in 6 s)",
        "                bank.NoFunds: card declined",
    ]
    assert "waiting until 2030-03-17 17:46:49Z (in 6 s)" in drawn(waiting, now=3 * SECOND)[1]
    assert drawn(waiting)[-3:] == ["error of step charge", "bank.NoFunds: card declined", "ask again"]
    trying = run(*entries, claimed(9 * SECOND, 1))
    assert "failed twice, being tried again" in "\n".join(drawn(trying, now=10 * SECOND))
    well = run(
        *entries,
        done("charge", 9_050, started=9_000, tries=2),
        entry("completed", 9_060, started=0),
        ended=True,
    )
    (charge,) = [row for row in rows(well) if row.name == "charge"]
    assert (charge.at, charge.took, charge.mark) == (NOON + 10, 9_040, "done")
    assert (charge.notes, charge.error) == (("failed twice before",), "bank.NoFunds: card declined")
    badly = run(*entries, done("charge", 9_050, started=9_000, tries=2, error=NO_FUNDS))
    (charge,) = [row for row in rows(badly) if row.name == "charge"]
    assert (charge.mark, charge.notes) == ("failed", ("failed 3 times",))


def test_parallel_steps_come_in_order_of_their_beginning() -> None:
    found = run(
        claimed(),
        done("third", 20, started=12),
        done("first", 40, started=10),
        done("second", 60, started=11),
        done("none", 61, "sleep"),
    )
    assert [row.name for row in rows(found)] == ["attempt 1", "first", "second", "third", "none"]


def test_steps_within_steps_stand_under_them() -> None:
    found = run(
        claimed(),
        done("lines#/one", 30, started=11),
        done("lines#/two#/deep#2", 35, started=33),
        done("lines#/two", 40, started=32),
        done("lines#/two#/deep", 33, started=32),
        done("lines", 50, started=10),
        done("lines#2#/one", 70, started=60),
        done("other", 45, started=20),
    )
    assert brief_rows(rows(found))[1:] == [
        (10, 1, "done", "lines", "run"),
        (11, 2, "done", "one", "run"),
        (32, 2, "done", "two", "run"),
        (32, 3, "done", "deep", "run"),
        (33, 3, "done", "deep#2", "run"),
        (20, 1, "done", "other", "run"),
        (60, 1, "open", "lines#2", "run"),  # known by what is within it alone
        (60, 2, "done", "one", "run"),
    ]
    assert rows(found)[-2].notes == ("running",)
    over = run(
        claimed(), done("lines#/one", 30, started=11), entry("cancelled", 90, executor="client"), ended=True
    )
    (outer,) = [row for row in rows(over) if row.name == "lines"]
    assert (outer.mark, outer.notes) == ("cancelled", ("not finished",))


def waiting_run(*more: JournalEntry, ended: bool = False) -> RunView:
    return run(
        claimed(),
        opened("nap", 10, "sleep", until=2 * HOUR),
        opened("paid", 11, "wait", target="order.paid", until=7 * DAY, wait="jetcron.wait.x"),
        opened("bill", 12, "invoke", target="shop.bill", child=CHILD, until=366 * DAY, wait="jetcron.wait.y"),
        entry("waiting", 20, started=0, next_at=2 * HOUR, on=["nap", "paid", "bill"]),
        *more,
        ended=ended,
    )


def test_what_is_waited_for() -> None:
    found = waiting_run()
    assert body(drawn(found, now=HOUR, **{CHILD: "running"})) == [
        "    +0ms  ▶ attempt 1  waiting     20 ms  on one",
        "   +10ms    ○ nap      sleep              until 2030-03-17 19:46:40Z (in 60 min)",
        "   +11ms    ○ paid     wait",
        "                waiting for order.paid until 2030-03-24 17:46:40Z (in 6.96 days)",
        "   +12ms    ○ bill     invoke",
        f"                shop.bill {CHILD}, running",
        "                at the latest 2031-03-18 17:46:40Z (in 366 days)",
    ]
    assert child_runs(found) == {CHILD: "shop.bill"}
    assert "shop.bill 01M80JVRDMBN5P1DCZEH4R5VMK, queued" in " ".join(drawn(found, width=None))
    assert brief(found)["waits_on"] == ["nap", "paid", "bill"]
    assert brief(found)["next_at"] == "2030-03-17T19:46:40.000Z"


def test_what_was_waited_for_when_the_run_was_cancelled() -> None:
    reason = Failure(type="Cancelled", message="ordered [twice]")
    found = waiting_run(entry("cancelled", 3 * HOUR, executor="client", error=reason), ended=True)
    lines = body(drawn(found, now=4 * HOUR, width=None, **{CHILD: "completed"}))
    assert lines[1:] == [
        "   +10ms    ⊘ nap      sleep              ended with the run",
        "   +11ms    ⊘ paid     wait               waited for order.paid, ended with the run",
        f"   +12ms    ⊘ bill     invoke             shop.bill {CHILD}, completed, ended with the run",
        "  +3h00m  ⊘ cancelled                3 h  by client: ordered [twice]",
    ]
    assert "last error" not in "\n".join(drawn(found))
    assert drawn(found)[1] == "status   cancelled at 2030-03-17 20:46:40.000Z"
    assert whole(found, {})["cancelled_by"] == "client"


def test_waits_that_are_over() -> None:
    event = {"id": "E1", "name": "order.paid", "data": {"n": 1}}
    entries = [
        *(
            claimed(),
            opened("nap", 10, "sleep", until=HOUR),
            entry("waiting", 20, started=0, next_at=HOUR, on=["nap"]),
        ),
        claimed(HOUR - SECOND, 1),
        done("nap", HOUR, "sleep", started=10),
        done("paid", HOUR + 5 * SECOND, "wait", started=HOUR, target="order.paid", result=event),
        done("late", HOUR + 6 * SECOND, "wait", started=HOUR, target="order.paid"),
        done(
            "large",
            HOUR + 7 * SECOND,
            "wait",
            started=HOUR,
            target="order.paid",
            object=ObjectRef(name="x", size=1),
        ),
        done("bill", HOUR + 8 * SECOND, "invoke", started=HOUR, target="shop.bill", child=CHILD, result="b"),
    ]
    for found in (
        run(*entries),
        run(*entries, entry("completed", HOUR + 9 * SECOND, 1, started=HOUR), ended=True),
    ):
        told = {row.name: (row.took, row.notes[:1]) for row in rows(found)}
        assert told["nap"] == (HOUR - 10, ())
        assert told["paid"] == (5 * SECOND, ("order.paid E1",))
        assert told["late"] == (6 * SECOND, ("no order.paid came",))
        assert told["large"] == (7 * SECOND, ("order.paid",))
        assert told["bill"] == (8 * SECOND, (f"shop.bill {CHILD}",))
    assert [row.name for row in rows(found) if row.depth == 0] == ["attempt 1", "resumed", "completed"]
    assert brief(found)["attempts"] == 1, "a turn after a wait is the same attempt"


def test_lost_attempts_are_taken_over() -> None:
    died = Failure(type="ProcessDied", message="the process executing it died 2 times in a row")
    found = run(
        claimed(),
        claimed(40 * SECOND, executor="two", lost=1),
        entry("failed", 90 * SECOND, error=died, lost=2, executor="three"),
        ended=True,
    )
    assert body(drawn(found, width=None)) == [
        "    +0ms  ▶ attempt 1              lost               on one, its process died, found out after 40.5 s",
        "  +40.0s  ▶ attempt 1, taken over  lost               on two, its process died, found out after 50 s",
        "  +1m30s  ✗ failed                              90 s  2 attempts",
    ]
    first, second, end = rows(found)
    assert (first.what, first.took, second.what, second.name) == (
        "lost",
        None,
        "lost",
        "attempt 1, taken over",
    )
    assert first.notes == ("on one", "its process died, found out after 40.5 s")
    assert end.mark == "failed"


def failed_run(*entries: JournalEntry) -> RunView:
    return run(claimed(), *entries, ended=True)


def test_a_run_that_was_begun_again() -> None:
    failed = failed_run(
        done("load", 10, started=1, result=1),
        done("charge", 20, started=11, error=NO_FUNDS),
        entry("failed", 30, started=0, error=NO_FUNDS),
    )
    assert failed.history.last is not None
    again = reopen(failed.history, entry("retrying", HOUR, 1, next_at=HOUR, executor="client"))
    found = view("shop.checkout", RUN, fold([(5, again)]))
    assert [(row.mark, row.name) for row in rows(found)] == [
        ("begun", "attempt 1"),
        ("done", "load"),
        ("again", "begun again"),
    ]
    resumed = view("shop.checkout", RUN, fold([(5, again), (6, claimed(HOUR, 2))]))
    assert [(row.mark, row.name, row.what) for row in rows(resumed)][2:] == [
        ("again", "begun again", ""),
        ("begun", "attempt 1", "running"),
    ]


def test_the_error_of_the_step_that_failed_a_run_is_told_before_the_runs() -> None:
    trace = "Traceback (most recent call last):\n  File bill.py\nbank.NoFunds: card declined\nask again"
    own = Failure(type="bank.NoFunds", message="card declined\nask again", traceback=trace)
    text = "step 'bill' failed: bank.NoFunds: card declined\nask again"
    outer = Failure(type="jetcron.errors.StepError", message=text, traceback="Traceback\n  File shop.py")
    steps = [
        done("other", 20, started=11, error=own),
        done("bill", 20, "invoke", started=11, error=own, child=CHILD, target="shop.bill"),
    ]
    lines = drawn(failed_run(*steps, entry("failed", 30, started=0, error=outer)))
    assert lines[lines.index("error of step bill") :] == [
        "error of step bill",
        *trace.splitlines(),
        "",
        "last error",
        "Traceback",
        "  File shop.py",
        *f"jetcron.errors.StepError: {text}".splitlines(),
    ]
    chained = Failure(type=outer.type, message=text, traceback=f"{trace}\n\nThe above…\n\nTraceback")
    assert "error of step bill" not in drawn(
        failed_run(*steps, entry("failed", 30, started=0, error=chained))
    )


def test_the_run_that_handles_a_failure_is_shown_when_there_is_one() -> None:
    found = failed_run(entry("failed", 30, started=0, error=NO_FUNDS))
    handler = handling_run(RUN, 0)
    assert child_runs(found) == {handler: "shop.checkout:on_failure"}
    assert rows(found)[-1].name == "failed"
    shown = rows(found, **{handler: "completed"})[-1]
    assert (shown.name, shown.what, shown.notes) == (
        "on_failure",
        "completed",
        (f"shop.checkout:on_failure {handler}",),
    )


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (
            About(trigger="cron", fire_at=NOON, schedule="shop.nightly", scheduled_at=NOON),
            "schedule shop.nightly",
        ),
        (
            About(trigger="event", fire_at=NOON, event="order.created", event_id="E1"),
            "event order.created E1",
        ),
        (
            About(
                trigger="invoke", fire_at=NOON, parent="P1", parent_function="shop.all", parent_step="a#/b"
            ),
            "invoked",
        ),
    ],
    ids=["cron", "event", "invoke"],
)
def test_where_a_run_came_from(about: About, said: str) -> None:
    lines = drawn(run(entry("claimed", 0, about=about)))
    assert f"trigger  {said}" in lines
    parents = [line for line in lines if line.startswith("parent")]
    assert parents == (["parent   shop.all P1, step a › b"] if about.parent else [])


def test_jitter_is_told() -> None:
    about = About(trigger="cron", fire_at=NOON + 7, schedule="s", scheduled_at=NOON)
    lines = drawn(run(entry("claimed", 0, about=about)))
    assert "schedule 2030-03-17 17:46:40.000Z, with jitter" in lines
    assert "due      2030-03-17 17:46:40.007Z" in lines


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (NOON, "queued, no executor has taken it yet"),
        (NOON + HOUR, "queued until 2030-03-17 18:46:40Z (in 60 min)"),
    ],
)
def test_a_queued_run(at: int, said: str) -> None:
    found = run()
    found.history.about = About(trigger="manual", fire_at=at)
    lines = drawn(found)
    assert lines[1] == f"status   {said}"
    assert "" not in lines, "nothing has happened yet"


def test_a_run_that_waits_for_its_turn() -> None:
    found = run(entry("waiting", 5, about=ABOUT, next_at=60 * SECOND, on=["#lane"]))
    assert drawn(found)[1] == "status   waiting for its turn, another one of its schedule goes on"
    assert runs._note(found) == "its turn, another one of its schedule goes on"


def test_the_ledger_has_words_for_every_reason() -> None:
    assert set(runs._WHY) == set(get_args(get_type_hints(Gap)["reason"]))


def test_a_run_that_was_cancelled_before_anybody_took_it() -> None:
    found = run(entry("cancelled", 5, executor="client"), ended=True)
    assert body(drawn(found)) == ["    +0ms  ⊘ cancelled                     by client"]
    assert (brief(found)["took_ms"], brief(found)["attempts"]) == (None, 0)


# How it looks.


def many(count: int = 1_000) -> RunView:
    steps = [done(f"tick#{n}", 10 * n + 5, started=10 * n, result=n) for n in range(count - 2)]
    steps[500] = done("tick#500", 5_005, started=5_000, error=NO_FUNDS)
    return run(
        claimed(),
        *steps,
        done("outer#/inner", 10_000, started=9_998),
        opened("nap", 10_001, "sleep", until=DAY),
        entry("waiting", 10_002, started=0, next_at=DAY, on=["nap"]),
    )


def test_of_a_thousand_steps_the_latest_are_shown_and_what_failed_or_waits() -> None:
    lines = body(drawn(many(), most=12))
    assert len(lines) < 20
    assert lines[:5] == [
        "    +0ms  ▶ attempt 1   waiting      10 s  on one",
        "            ⋮ 500 more",
        "  +5.00s    ✗ tick#500  run          5 ms",
        "                bank.NoFunds: card declined",
        "            ⋮ 489 more",
    ]
    assert [line.split()[2] for line in lines[5:]] == [
        *(f"tick#{n}" for n in range(990, 998)),
        "outer",
        "inner",
        "nap",
    ]
    whole_rows = rows(many())
    assert len(whole_rows) == 1_002
    assert shortened(whole_rows, 2_000) == whole_rows
    left_out = [int(row.name.split()[0]) for row in shortened(whole_rows, 12) if row.mark == "left out"]
    kept = [row for row in shortened(whole_rows, 12) if row.mark != "left out"]
    assert sum(left_out) + len(kept) == len(whole_rows)
    assert len(body(drawn(many(), most=None, width=None))) == 1_003


def test_a_step_within_another_is_not_shown_without_it() -> None:
    steps = [done("outer", 5_000, started=0)]
    for n in range(1, 50):
        failure = NO_FUNDS if n == 7 else None
        steps.append(done(f"outer#/{n}#/deep", 10 * n, started=10 * n - 1, error=failure))
        steps.append(done(f"outer#/{n}", 10 * n + 1, started=10 * n - 1))
    kept = [row.name for row in shortened(rows(run(claimed(), *steps)), 1) if row.mark != "left out"]
    assert kept == ["attempt 1", "outer", "7", "deep"]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_of_the_timeline_is_wider_than_the_terminal(width: int) -> None:
    long = Failure(type="E", message="word " * 50)
    found = run(
        claimed(executor="a-host-with-a-rather-long-name-45741ad630e0"),
        done("x" * 70, 10, started=1, result={"text": "y" * 500}),
        done("a step with a name " + "z" * 20, 20, started=11, result=list(range(100))),
        done("漢字のステップ", 21, started=12, result="好" * 100),
        done("charge", 30, started=21, tries=2, error=long),
        opened("paid", 31, "wait", target="order." + "p" * 20, until=7 * DAY),
        opened("a#/b#/c#/d#/e#/f#/g#/h", 31, "sleep", until=7 * DAY),
    )
    for line in body(drawn(found, width=width)):
        assert Text(line).cell_len <= width or "x" * 70 in line, line
    assert "x" * 70 in "\n".join(drawn(found, width=width)), "a name is whole"
    rows_ = timeline(found, now=NOON)
    marks = [line for line in body(drawn(found, width=None)) if line.strip().startswith("+")]
    assert len(marks) == len(rows_), "a line each, where lines are read"


def test_markup_in_names_and_values_is_text() -> None:
    found = failed_run(
        done("[red]step[/red]", 10, started=1, result={"a": "[bold]:smile:"}),
        entry("failed", 20, started=0, error=Failure(type="E", message="[/nothing] :warning:")),
    )
    text = "\n".join(drawn(found))
    for shown in ("[red]step[/red]", "[bold]:smile:", "[/nothing] :warning:"):
        assert shown in text


def test_large_results() -> None:
    kept = run(
        claimed(),
        entry("completed", 5, started=0, object=ObjectRef(name="R-result/", size=5_000_000)),
        ended=True,
    )
    assert (
        drawn(kept)[-1] == f"result  4.8 MiB, kept as an object; the whole: jetcron runs show {RUN} --result"
    )
    long = run(claimed(), entry("completed", 5, started=0, result="x" * 5_000), ended=True)
    assert drawn(long)[-1].endswith(f"… 5,002 characters; the whole: jetcron runs show {RUN} --result")
    step = run(claimed(), done("big", 5, started=1, object=ObjectRef(name="R/big", size=2_000_000)))
    assert rows(step)[-1].notes == ("returned 1.9 MiB",)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "+0ms"),
        (999, "+999ms"),
        (1_230, "+1.23s"),
        (59_900, "+59.9s"),
        (61_000, "+1m01s"),
        (HOUR + 5 * 60_000, "+1h05m"),
        (3 * DAY + 2 * HOUR, "+3d02h"),
        (366 * DAY, "+366d00h"),
        (-1_500, "-1.50s"),
    ],
)
def test_offsets(ms: int, text: str) -> None:
    assert output.offset(ms) == text
    assert len(text) <= 8


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (12, "12 ms"),
        (1_500, "1.5 s"),
        (150_000, "2.5 min"),
        (3 * HOUR, "3 h"),
        (3 * DAY, "3 days"),
        (1_500 * DAY, "1500 days"),
    ],
)
def test_spans(ms: int, text: str) -> None:
    assert output.span(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (600, "10 min"),
        (3_661, "1 h 1 min 1 s"),
        (86_400, "1 day"),
        (180_000, "2 days 2 h"),
    ],
)
def test_a_duration_is_shown_as_it_was_defined(seconds: float, text: str) -> None:
    assert output.length(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 runs"), (1, "1 run"), (1_200, "1,200 runs")])
def test_things_are_counted_in_words(number: int, text: str) -> None:
    assert output.counted(number, "run") == text


# As JSON.


def test_json_has_everything_under_stable_keys() -> None:
    found = run(
        claimed(),
        opened("charge", 30, "run", started=10, tries=1, until=SECOND, error=NO_FUNDS),
        done("charge", 1_050, started=1_000, tries=1, result=b"\x00\xff"),
        done("bill#/x", 1_060, "invoke", started=1_051, target="shop.bill", child=CHILD, error=NO_FUNDS),
        opened("paid", 1_070, "wait", target="order.paid", until=DAY),
    )
    told = json.loads(json.dumps(whole(found, {CHILD: "failed"}), default=output.jsonable))
    assert set(told) == {
        *("run", "function", "status", "trigger", "event", "event_id", "schedule", "scheduled_at", "fire_at"),
        *(
            "started",
            "ended",
            "took_ms",
            "late_ms",
            "parent",
            "attempts",
            "steps",
            "waits",
            "next_at",
            "waits_on",
        ),
        *("cancelled_by", "result", "result_object", "error"),
    }
    charge, bill = told["steps"]
    assert charge == {
        "id": "charge",
        "name": "charge",
        "within": None,
        "op": "run",
        "first": "2030-03-17T17:46:40.010Z",
        "started": "2030-03-17T17:46:41.000Z",
        "at": "2030-03-17T17:46:41.050Z",
        "took_ms": 50,
        "target": None,
        "child": None,
        "failures": 1,
        "result": {"base64": "AP8="},
        "result_object": None,
        "error": None,
        "error_before": {"type": "bank.NoFunds", "message": "card declined\nask again", "traceback": ""},
    }
    assert (bill["name"], bill["within"], bill["failures"]) == ("x", "bill", 1)
    assert bill["child"] == {"run": CHILD, "function": "shop.bill", "status": "failed"}
    (paid,) = told["waits"]
    assert (paid["op"], paid["target"], paid["until"]) == ("wait", "order.paid", "2030-03-18T17:46:40.000Z")


# Following.


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (claimed(), "▶ shop.checkout  R  claimed"),
        (claimed(1, 1), "▶ shop.checkout  R  resumed"),
        (claimed(1, 1, attempt=1), "▶ shop.checkout  R  attempt 2"),
        (claimed(1, lost=2), "▶ shop.checkout  R  claimed  taken over, 2 lost"),
        (
            opened("a#/charge", 1, "run", tries=2, until=SECOND, error=NO_FUNDS),
            "○ shop.checkout  R  run a › charge  failed 2×, again at 2030-03-17 17:46:41Z  bank.NoFunds: card declined",
        ),
        (
            opened("nap", 1, "sleep", until=SECOND),
            "○ shop.checkout  R  sleep nap  until 2030-03-17 17:46:41Z",
        ),
        (
            opened("paid", 1, "wait", target="order.paid", until=SECOND),
            "○ shop.checkout  R  wait paid  waits for order.paid until 2030-03-17 17:46:41Z",
        ),
        (
            opened("bill", 1, "invoke", target="shop.bill", child="C", until=SECOND),
            "○ shop.checkout  R  invoke bill  waits for shop.bill C",
        ),
        (done("load", 12, started=2), "• shop.checkout  R  run load  10 ms"),
        (
            done("paid", 12, "wait", target="order.paid", started=2),
            "• shop.checkout  R  wait paid  order.paid  10 ms  none came",
        ),
        (
            done("paid", 12, "wait", target="order.paid", started=2, result={"id": "E"}),
            "• shop.checkout  R  wait paid  order.paid  10 ms",
        ),
        (
            entry("waiting", 1, next_at=SECOND, on=["a", "b", "c", "d", "e"]),
            "○ shop.checkout  R  waiting  until 2030-03-17 17:46:41Z, on a, b, c and 2 more",
        ),
        (
            entry("waiting", 1, next_at=SECOND, on=["#lane"]),
            "○ shop.checkout  R  waiting  for its turn",
        ),
        (
            entry("waiting", 1, next_at=SECOND, on=[]),
            "○ shop.checkout  R  waiting  handed over, its executor was told to stop",
        ),
        (
            entry("retrying", 1, next_at=SECOND, error=NO_FUNDS),
            "↻ shop.checkout  R  retrying  again at 2030-03-17 17:46:41Z  bank.NoFunds: card declined",
        ),
        (entry("completed", 1), "✓ shop.checkout  R  completed"),
        (entry("failed", 1, error=NO_FUNDS), "✗ shop.checkout  R  failed  bank.NoFunds: card declined"),
        (
            entry("cancelled", 1, executor="client", error=Failure(type="Cancelled", message="twice")),
            "⊘ shop.checkout  R  cancelled  by client: twice",
        ),
    ],
    ids=lambda one: one.entry if isinstance(one, JournalEntry) else "",
)
def test_an_entry_is_a_line(of: JournalEntry, said: str) -> None:
    line = Text.from_markup(follow.line("shop.checkout", "R", of), emoji=False).plain
    assert "\n" not in line
    assert line.partition("  ")[2] == said


def test_an_entry_for_programs() -> None:
    told = follow.plain("shop.checkout", "R", opened("paid", 1, "wait", target="order.paid", until=SECOND))
    assert told == {
        "at": "2030-03-17T17:46:40.001Z",
        "function": "shop.checkout",
        "run": "R",
        "entry": "opened",
        "turn": 0,
        "attempt": 0,
        "executor": "one",
        "step": "paid",
        "op": "wait",
        "target": "order.paid",
        "until": "2030-03-17T17:46:41.000Z",
    }
