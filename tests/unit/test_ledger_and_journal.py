"""What is written about a run that did not start, and about one that ended: the ledger grows, a last entry fits."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import ledger
from jetcron.errors import PayloadTooLarge
from jetcron.journal import RunJournal, fold
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Failure, Gap, JournalEntry
from jetcron_protocol.subjects import Names
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack

KEEP = 3600


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


def gap(to: int, count: int, start: int = 1_000) -> Gap:
    return Gap(schedule="app.f", start=start, to=to, count=count, reason="catch_up")


async def told(stack: Stack) -> list[Gap]:
    messages = await stack.stored(stack.names.journal, stack.names.journal_of("app.f"))
    last = {message.subject: decode(Gap, message.payload) for message in messages}
    return sorted(last.values(), key=lambda gap: gap.start)


async def test_a_shorter_gap_leaves_a_longer_one(stack: Stack) -> None:
    longer = gap(9_000, 9)
    await ledger.record(stack.bus, longer, "app.f")
    await ledger.record(stack.bus, gap(5_000, 5), "app.f")
    assert await told(stack) == [longer]


async def test_a_longer_gap_replaces_a_shorter_one(stack: Stack) -> None:
    longer, other = gap(9_000, 9), gap(5_000, 1, start=5_000)
    for one in (gap(5_000, 5), other, longer, longer):
        await ledger.record(stack.bus, one, "app.f")
    assert await told(stack) == [longer, other]


async def test_an_unreadable_entry_gives_way(stack: Stack) -> None:
    await ledger.record(stack.bus, gap(9_000, 9), "app.f")
    (subject,) = await stack.bus.subjects(stack.names.journal, stack.names.journal_of("app.f"))
    await stack.bus.publish(subject, b"\xc1")
    await ledger.record(stack.bus, gap(5_000, 5), "app.f")
    last = await stack.bus.last(stack.names.journal, subject)
    assert last is not None
    assert decode(Gap, last.payload) == gap(5_000, 5)


class Paper:
    """As much of a bus as a journal needs: a limit, and what was written."""

    def __init__(self, max_body: int) -> None:
        self.names = Names()
        self.max_body = max_body
        self.body = b""

    async def append(self, subject: str, payload: bytes, headers: dict[str, str], *, patience: float) -> int:
        self.body = payload
        return 99


def entry(kind: str, turn: int = 0, **more: Any) -> JournalEntry:
    return JournalEntry(entry=kind, turn=turn, at=1, executor="one", **more)  # type: ignore[arg-type]


ATTEMPTS = 50
STEPS = 10


async def finished(max_body: int, *, result: Any = None, traceback: int = 1_000) -> JournalEntry:
    """The last entry of a run of many failed attempts and some steps, where so much fits."""
    entries = []
    error = Failure(type="E", message="m" * 300, traceback="t" * traceback)
    for turn in range(ATTEMPTS):
        entries += [entry("claimed", turn, attempt=turn), entry("retrying", turn, error=error)]
    entries.append(entry("claimed", ATTEMPTS, attempt=ATTEMPTS))
    entries += [entry("step", ATTEMPTS, step=f"s{n}", op="send", result="r" * 1_000) for n in range(STEPS)]
    paper = Paper(max_body)
    journal = RunJournal(paper, "app.f", "run", patience=1)  # type: ignore[arg-type]
    journal.history = fold(enumerate(entries, 1))
    end = entry("completed", ATTEMPTS, result=result)
    last = await journal.finish(end, keep=KEEP, keep_steps=True)
    assert len(paper.body) <= max_body
    assert decode(JournalEntry, paper.body) == last
    assert journal.history.finished
    return last


async def shape(max_body: int) -> tuple[bool, int, int, int]:
    """Whether tracebacks are there, how many attempts, how many steps with results, how many steps."""
    last = await finished(max_body, result="kept")
    assert last.result == "kept"
    attempts, steps = last.attempts or [], last.steps or []
    whole = any(attempt.error is not None and attempt.error.traceback for attempt in attempts)
    return whole, len(attempts), sum(1 for done in steps if done.result is not None), len(steps)


async def test_a_last_entry_too_large_leaves_out_details_first() -> None:
    assert await shape(200_000) == (True, ATTEMPTS + 1, STEPS, STEPS)
    assert await shape(40_000) == (False, ATTEMPTS + 1, STEPS, STEPS)
    assert await shape(20_000) == (False, 20, STEPS, STEPS)
    assert await shape(9_000) == (False, 20, 0, STEPS)


async def test_a_result_too_large_alone_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        await finished(20_000, result="x" * 20_000)
