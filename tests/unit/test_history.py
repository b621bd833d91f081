"""Folding a run's journal: what its entries add up to."""

import pytest

from jetcron.history import FINISHED, History, about, finish, fold
from jetcron_protocol.codec import decode, encode
from jetcron_protocol.messages import About, Event, Failure, JournalEntry, ObjectRef, Run

ABOUT = About(trigger="manual", fire_at=5)


def entry(kind: str, turn: int = 0, at: int = 1, **more: object) -> JournalEntry:
    return JournalEntry(entry=kind, turn=turn, at=at, executor="one", **more)  # type: ignore[arg-type]


def history(*entries: JournalEntry) -> History:
    return fold(enumerate(entries, 1))


def test_nothing_is_nothing() -> None:
    empty = history()
    assert (empty.sequence, empty.last, empty.claim, empty.finished) == (0, None, None, False)


def test_a_claim_is_the_run_s_owner_until_its_turn_ends() -> None:
    claim = entry("claimed", about=ABOUT, message=7)
    found = history(claim)
    assert (found.sequence, found.claim, found.about, found.attempt) == (1, claim, ABOUT, 0)
    assert [attempt.outcome for attempt in found.attempts] == [None]
    found = history(claim, entry("retrying", at=4, started=2, error=Failure(type="E", message="m")))
    assert found.claim is None
    assert found.attempt == 1
    (attempt,) = found.attempts
    assert (attempt.outcome, attempt.claimed, attempt.started, attempt.ended) == ("retrying", 1, 2, 4)
    assert attempt.error == Failure(type="E", message="m")


def test_a_claim_over_a_claim_closes_the_first_as_lost() -> None:
    found = history(entry("claimed", about=ABOUT), entry("claimed", at=9, lost=1))
    assert [(attempt.outcome, attempt.ended) for attempt in found.attempts] == [("lost", 9), (None, None)]
    assert (found.lost, found.attempt, found.about) == (1, 0, ABOUT)


def test_steps_are_remembered_and_end_a_row_of_losses() -> None:
    found = history(
        entry("claimed", lost=2),
        entry("step", step="a", op="send", result=3),
        entry("retrying"),
        entry("claimed", 1, attempt=1),
        entry("step", 1, step="b", op="run"),
    )
    assert found.lost == 0
    assert {id: (done.op, done.result) for id, done in found.steps.items()} == {
        "a": ("send", 3),
        "b": ("run", None),
    }
    assert (found.attempt, found.sequence) == (1, 5)


@pytest.mark.parametrize("kind", FINISHED)
def test_a_finished_run_is_one_entry_that_folds_to_all_before_it(kind: str) -> None:
    before = history(
        entry("claimed", about=ABOUT),
        entry("step", step="a", op="send", result=3),
        entry("retrying", at=4, error=Failure(type="E", message="m")),
        entry("claimed", 1, at=5, attempt=1),
    )
    last = finish(before, entry(kind, 1, at=8, started=6, result="r"), keep_steps=True)
    found = fold([(9, decode(JournalEntry, encode(last)))])
    assert found.finished
    assert (found.sequence, found.about, found.attempt, found.claim) == (9, ABOUT, 1, None)
    assert [attempt.outcome for attempt in found.attempts] == ["retrying", kind]
    assert (found.attempts[1].started, found.attempts[1].ended) == (6, 8)
    assert found.steps["a"].result == 3
    assert found.last is not None
    assert found.last.result == "r"


def test_results_of_steps_are_left_out_of_what_succeeded() -> None:
    event = {"id": "e1", "name": "order.paid", "data": {"secret": 1}}
    large = ObjectRef(name="R/large", size=1_000_000)
    before = history(
        entry("claimed"),
        entry("step", step="load", op="run", result={"secret": 1}),
        entry("step", step="tell", op="send", result=3),
        entry("step", step="paid", op="wait", target="order.paid", result=event),
        entry("step", step="large", op="wait", target="order.paid", object=large),
        entry("step", step="late", op="wait", target="order.paid"),
    )
    last = finish(before, entry("completed"), keep_steps=False)
    assert last.steps is not None
    assert {done.id: done.result for done in last.steps} == {
        "load": None,
        "tell": 3,
        "paid": {"id": "e1"},
        "large": {"id": None},
        "late": None,
    }
    assert [done.object for done in last.steps if done.object is not None] == [large]


def test_a_step_that_was_tried_again_keeps_what_it_failed_with_before() -> None:
    failure = Failure(type="E", message="m", traceback="long")
    found = history(
        entry("claimed"),
        entry(
            "opened", step="a", op="run", tries=1, until=5, started=2, error=Failure(type="D", message="d")
        ),
        entry("opened", step="a", op="run", tries=2, until=9, started=6, error=failure),
        entry("step", step="a", op="run", tries=2, started=9, result=1),
        entry("opened", step="b", op="sleep", until=5),
        entry("step", step="b", op="sleep", started=2),
        entry("opened", step="c", op="run", tries=1, until=9, started=7, error=failure),
    )
    assert found.steps["a"].before == Failure(type="E", message="m")
    assert (found.steps["a"].first, found.steps["a"].started) == (2, 9)
    assert (found.steps["b"].before, found.steps["b"].first) == (None, None)
    assert (found.waits["c"].error, found.waits["c"].first) == (failure, 7)
    last = decode(JournalEntry, encode(finish(found, entry("completed"), keep_steps=False)))
    assert fold([(9, last)]).steps["a"].before == Failure(type="E", message="m")


def test_folding_does_not_change_what_was_folded() -> None:
    first = history(entry("claimed"), entry("step", step="a", op="send"))
    steps = dict(first.steps)
    history(entry("claimed"), entry("step", step="a", op="send"), entry("step", step="b", op="send"))
    assert first.steps == steps


def test_a_journal_says_where_its_run_came_from() -> None:
    event = Event(id="e", name="x", ts=1)
    run = Run(run="R", function="a.f", trigger="event", fire_at=3, event=event, parent="P")
    assert about(run) == About(trigger="event", fire_at=3, event="x", event_id="e", parent="P")
    run = Run(run="R", function="a.f", trigger="cron", fire_at=3, schedule="s", scheduled_at=2)
    assert about(run) == About(trigger="cron", fire_at=3, schedule="s", scheduled_at=2)
