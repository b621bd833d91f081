"""Every valid row of an uploaded list becomes a contact, once; the uploader hears of the others."""

import re
import threading
from pathlib import Path

import pytest

from examples import contact_upload
from jetcron import NonRetriableError, Retry
from jetcron.events import Event
from jetcron_protocol.codec import decode
from jetcron_protocol.messages import Event as WireEvent
from tests.examples.play import Play, away, events, executors, failure, playing, steps
from tests.support.nats_server import NatsServer
from tests.support.stack import PATIENCE, until

FIRST, AGAIN = events(contact_upload, "contacts.uploaded")
CREATED = "6 contacts created, 1 were known, 2 rows were invalid"
EMAILS = {"ada", "grace", "linus", "margaret", "barbara", "ken"}


@pytest.fixture(autouse=True)
def quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away(contact_upload, tmp_path, monkeypatch)
    monkeypatch.setattr(contact_upload, "DIRECTORY", Retry(attempts=3, waits=[0.01], jitter=0))
    monkeypatch.setattr(contact_upload, "asked", set())


def contacts(play: Play) -> dict[str, str]:
    """The contacts there are, by the first part of their addresses, each with its company."""
    made = [re.fullmatch(r"contact (\w+)@\S+: .+ of (.+)", what) for what in play.world().values()]
    return {one[1]: one[2] for one in made if one is not None}


def mails(play: Play) -> list[str]:
    return [what for what in play.world().values() if what.startswith("mail ")]


async def announced(play: Play) -> list[Event]:
    name = play.stack.names.event("contact.created")
    stored = await play.stack.stored(play.stack.names.events, name)
    return [decode(WireEvent, message.payload) for message in stored]


async def test_valid_rows_become_contacts_and_the_uploader_is_told(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = ("check_rows", "company_of", "create_contact", "mail")
    async with playing(shared_nats, contact_upload, monkeypatch, *watched) as play:
        first = await play.send("import_contacts", "contacts.uploaded", FIRST)
        assert await first.result(PATIENCE) == CREATED
        assert contacts(play) == {
            "ada": "Analytical Engines",
            "grace": "The Navy",
            "linus": "Kernel & Sons",
            "margaret": "no known company",
            "barbara": "Abstract Types",
            "ken": "Bell",
        }
        assert mails(play) == [
            "mail to ada@example.com: line 4 has no valid email; line 6 has no valid name",
            f"mail to ada@example.com: {CREATED}",
        ]
        # Seven rows: two of busy domains asked for twice, one thrice in vain.
        assert play.calls == {"check_rows": 1, "company_of": 11, "create_contact": 7, "mail": 2}
        sent = {event.data["email"]: event.data["company"] for event in await announced(play)}
        assert len(sent) == len(await announced(play)) == 6
        assert sent["margaret@moon.example"] is None
        assert (await first.history()).steps["enrich 7"].error.type.endswith("Busy")

        again = await play.result("import_contacts", "contacts.uploaded", AGAIN)
        assert again == "0 contacts created, 7 were known, 2 rows were invalid"
        assert len(contacts(play)) == len(await announced(play)) == 6


async def test_a_list_without_faults_or_without_rows(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {"good": "name,email\nAda,ada@engines.example\n", "empty": "name,email\n"}
    monkeypatch.setattr(contact_upload, "UPLOADS", lists)
    async with playing(shared_nats, contact_upload, monkeypatch) as play:
        told = [
            await play.result("import_contacts", "contacts.uploaded", {"upload": upload, "by": "ada"})
            for upload in ("good", "empty")
        ]
        assert told == [f"{count} contacts created, 0 were known, 0 rows were invalid" for count in (1, 0)]
        assert mails(play) == [f"mail to ada: {text}" for text in told]


async def test_few_are_enriched_at_a_time(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, full = threading.Lock(), threading.Event()
    inside: set[str] = set()
    most = 0

    def slow(contact: contact_upload.Contact) -> str:
        nonlocal most
        with lock:
            inside.add(contact.name)
            most = max(most, len(inside))
            if len(inside) == contact_upload.AT_ONCE:
                full.set()
        assert full.wait(PATIENCE), "they come one after the other"
        with lock:
            inside.remove(contact.name)
        return "a company"

    monkeypatch.setattr(contact_upload, "company_of", slow)
    async with playing(shared_nats, contact_upload, monkeypatch) as play:
        assert await play.result("import_contacts", "contacts.uploaded", FIRST) == CREATED
        assert most == contact_upload.AT_ONCE


async def test_an_upload_that_failed_goes_on_where_it_was(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jetcron runs retry`, once what made it fail is mended."""
    create = contact_upload.create_contact

    def broken(key: str, contact: contact_upload.Contact, company: str | None) -> bool:
        if contact.name == "Ken":
            raise NonRetriableError("the table is full")
        return create(key, contact, company)

    monkeypatch.setattr(contact_upload, "create_contact", broken)
    async with playing(shared_nats, contact_upload, monkeypatch, "check_rows", "company_of") as play:
        handle = await play.send("import_contacts", "contacts.uploaded", FIRST)
        assert "the table is full" in (await failure(handle)).traceback
        assert set(contacts(play)) <= EMAILS - {"ken"}
        done = [id for id, done in (await handle.history()).steps.items() if done.error is None]
        await until(play.stack.dead)
        monkeypatch.setattr(contact_upload, "create_contact", create)
        await play.client.runs.retry(handle.id)
        await play.stack.journal.wait("completed", run=handle.id)
        assert await handle.result(PATIENCE) == CREATED
        assert set(contacts(play)) == EMAILS
        assert len(mails(play)) == 2
        assert play.calls["check_rows"] == 1
        assert len(await announced(play)) == 6
        assert (await steps(handle))[: len(done)] == done, "what was done is done once"


async def test_two_executors_die_on_the_way(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One when the first contact is recorded, one before the last mail is."""
    async with playing(
        shared_nats, contact_upload, monkeypatch, "check_rows", "create_contact", "mail"
    ) as play:
        play.die_in("create_contact")
        handle = await play.send("import_contacts", "contacts.uploaded", FIRST)
        await play.take_over()
        play.die_in("mail", f"{handle.id} end", before=True)
        await play.take_over()
        assert await handle.result(PATIENCE) == CREATED
        assert set(contacts(play)) == EMAILS
        assert len(mails(play)) == 2
        assert len(await announced(play)) == 6
        assert play.calls["check_rows"] == 1
        assert play.calls["mail"] == 3, "the last one is asked for twice, and sent once"
        # Of three at a time, the record of one was the end of the first executor: two may be done again.
        assert 7 <= play.calls["create_contact"] <= 9
        assert await executors(handle) == 3
