"""What is written about a run that did not start, and about one that ended: the ledger grows, a last entry fits."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron import ledger
from jetcron.bus import StoredMessage
from jetcron.errors import NotFound, PayloadTooLarge, TryAgain
from jetcron.history import fold
from jetcron.journal import RunJournal, read_history
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Failure, Gap, JournalEntry, ObjectRef
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
    """As much of a bus as a journal needs: a limit, what was written, and objects."""

    def __init__(self, max_body: int) -> None:
        self.names = Names()
        self.max_body = max_body
        self.body = b""
        self.objects: dict[str, tuple[bytes, int | None]] = {}

    async def append(self, subject: str, payload: bytes, headers: dict[str, str], *, patience: float) -> int:
        self.body = payload
        return 99

    async def history(self, stream: str, subject: str) -> list[StoredMessage]:
        return [StoredMessage(subject, 99, self.body)]

    async def put_object(self, run: str, step: str, body: bytes, *, ttl: int | None) -> ObjectRef:
        self.objects[f"{run}/{step}"] = body, ttl
        return ObjectRef(name=f"{run}/{step}", size=len(body))

    async def get_object(self, ref: ObjectRef) -> bytes:
        if ref.name not in self.objects:
            raise NotFound(ref.name)
        return self.objects[ref.name][0]

    async def drop_object(self, ref: ObjectRef) -> None:
        self.objects.pop(ref.name, None)


def entry(kind: str, turn: int = 0, **more: Any) -> JournalEntry:
    return JournalEntry(entry=kind, turn=turn, at=1, executor="one", **more)  # type: ignore[arg-type]


ATTEMPTS = 50
STEPS = 10


def journal_on(paper: Paper) -> RunJournal:
    return RunJournal(paper, "app.f", "run", patience=1)  # type: ignore[arg-type]


def long_journal(paper: Paper) -> RunJournal:
    """The journal of a run of many failed attempts and some steps."""
    entries = []
    error = Failure(type="E", message="m" * 300, traceback="t" * 1_000)
    for turn in range(ATTEMPTS):
        entries += [entry("claimed", turn, attempt=turn), entry("retrying", turn, error=error)]
    entries.append(entry("claimed", ATTEMPTS, attempt=ATTEMPTS))
    entries += [entry("step", ATTEMPTS, step=f"s{n}", op="send", result="r" * 1_000) for n in range(STEPS)]
    journal = journal_on(paper)
    journal.history = fold(enumerate(entries, 1))
    return journal


async def finished(max_body: int, kind: str = "completed", **more: Any) -> Paper:
    """What is written when a long run ends where so much fits: the same history, wherever it is kept."""
    paper = Paper(max_body)
    journal = long_journal(paper)
    last = await journal.finish(entry(kind, ATTEMPTS, **more), keep=KEEP, keep_steps=True)
    assert len(paper.body) <= max_body
    assert journal.history.finished
    history = await read_history(paper, "subject")  # type: ignore[arg-type]
    assert len(history.attempts) == ATTEMPTS + 1
    assert history.attempts[0].error is not None
    assert history.attempts[0].error.traceback
    assert history.steps == journal.history.steps == {done.id: done for done in last.steps or ()}
    assert all(done.result for done in history.steps.values())
    return paper


async def test_a_history_too_large_for_a_message_is_kept_beside_it() -> None:
    assert not (await finished(200_000, result="kept")).objects
    paper = await finished(9_000, result="kept")
    assert decode(JournalEntry, paper.body).result == "kept"
    ((_, ttl),) = paper.objects.values()
    assert ttl == KEEP, "it ends with its entry"


async def test_an_end_whose_history_is_gone_is_an_end_all_the_same() -> None:
    paper = await finished(9_000, result="kept")
    paper.objects.clear()
    history = await read_history(paper, "subject")  # type: ignore[arg-type]
    assert history.finished
    assert (history.attempts, history.steps) == ((), {})


async def test_a_run_begun_again_has_its_steps_or_does_not_go_on() -> None:
    paper = await finished(9_000, "failed", error=Failure(type="E", message="m"))
    journal = journal_on(paper)
    await journal.read()
    await journal.reopen(entry("retrying", ATTEMPTS + 1, next_at=1))
    assert len(paper.body) <= 9_000
    again = journal_on(paper)
    history = await again.read()
    assert (history.reopened, history.attempt, len(history.steps)) == (ATTEMPTS + 1, 0, STEPS)
    kept = dict(paper.objects)
    paper.objects.clear()
    with pytest.raises(TryAgain):
        await journal_on(paper).read()
    paper.objects = kept
    await again.append(entry("claimed", ATTEMPTS + 2))
    await again.finish(entry("completed", ATTEMPTS + 2), keep=KEEP, keep_steps=False)
    assert f"run-history/{ATTEMPTS + 1}" not in paper.objects, "nobody needs it any more"


async def test_a_result_too_large_alone_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        await finished(20_000, result="x" * 20_000)
