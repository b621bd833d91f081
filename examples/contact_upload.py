"""A list of contacts is uploaded: rows are checked, enriched side by side, and made into contacts, each once.

Shows steps whose results come back as the types they were, a step with retries of its own, steps side by side but
few at a time, a step that may fail without failing the run, and the sending of events.

    jetcron dev examples.contact_upload:app

In a second terminal, in the same folder:

    jetcron send contacts.uploaded '{"upload": "spring-fair", "by": "ada@example.com"}'
    jetcron runs list

What comes of it are lines in the first terminal. The directory that is asked for each contact's company is busy at
times, and for one of them it never answers: a contact without a company is better than none. Upload the list
again, and nobody is created twice:

    jetcron send contacts.uploaded '{"upload": "spring-fair", "by": "ada@example.com"}'
"""

import asyncio
import csv
import io
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from jetcron import App, Context, Event, NonRetriableError, Retry, StepError

AT_ONCE = 3
"""So many contacts at a time, for the directory's sake."""
DIRECTORY = Retry(attempts=3, waits=(0.5, 2))

app = App("contacts")


class Upload(BaseModel):
    upload: str
    by: str


class Contact(BaseModel):
    name: str = Field(min_length=1)
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")


class Checked(BaseModel):
    """The rows of a list, by their lines."""

    contacts: dict[int, Contact] = {}
    problems: dict[int, str] = {}


@app.function(on="contacts.uploaded")
async def import_contacts(ctx: Context, upload: Upload) -> str:
    """Check, enrich, create, and tell the uploader."""
    # A step's result comes back as the type its function is annotated with, after a replay too.
    checked: Checked = await ctx.step.run("check", check_rows, upload.upload)
    if checked.problems:
        text = "; ".join(f"line {line} has no valid {what}" for line, what in checked.problems.items())
        await ctx.step.run("tell of invalid rows", mail, f"{ctx.run_id} invalid rows", upload.by, text)

    few = asyncio.Semaphore(AT_ONCE)

    async def bring_in(line: int, contact: Contact) -> Event | None:
        async with few:
            try:
                # Tried three times in all: this step alone, not the run.
                company = await ctx.step.run(f"enrich {line}", company_of, contact, retry=DIRECTORY)
            except StepError as failed:
                ctx.log.warning("not enriched", line=line, because=failed.message)
                company = None
            # The key says which row of which run asks. It is the same should this be asked for twice.
            key = f"{ctx.run_id} {line}"
            created = await ctx.step.run(f"create {line}", create_contact, key, contact, company)
        return Event("contact.created", {**contact.model_dump(), "company": company}) if created else None

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bring_in(line, contact)) for line, contact in checked.contacts.items()]
    events = [event for task in tasks if (event := task.result()) is not None]

    await ctx.step.send("tell others", events)
    summary = (
        f"{len(events)} contacts created, {len(tasks) - len(events)} were known, "
        f"{len(checked.problems)} rows were invalid"
    )
    await ctx.step.run("tell of the end", mail, f"{ctx.run_id} end", upload.by, summary)
    return summary


def check_rows(upload: str) -> Checked:
    """A plain function as a step: it runs in a thread, so it may block."""
    checked = Checked()
    for line, row in enumerate(csv.DictReader(io.StringIO(download(upload))), 2):
        try:
            checked.contacts[line] = Contact.model_validate(row)
        except ValidationError as error:
            checked.problems[line] = ", ".join(str(problem["loc"][0]) for problem in error.errors())
    return checked


# The outside world: where lists are uploaded to, a directory of companies, and a file of SQLite in place of a database
# of contacts and a mail service. What was done under a key is not done again, however often it is asked for.

WORLD = Path(os.environ.get("CONTACTS_DB", ".jetcron/contacts.db"))
UPLOADS = {
    "spring-fair": """\
name,email
Ada,ada@engines.example
Grace,grace@navy.example
Nobody,nowhere
Linus,linus@kernel.example
,anon@ymous.example
Margaret,margaret@moon.example
Ada again,ada@engines.example
Barbara,barbara@abstract.example
Ken,ken@bell.example
""",
}
COMPANIES = {
    "engines.example": "Analytical Engines",
    "navy.example": "The Navy",
    "kernel.example": "Kernel & Sons",
    "abstract.example": "Abstract Types",
    "bell.example": "Bell",
}
BUSY = {"navy.example", "bell.example"}
"""The directory does not answer the first time it is asked for one of these."""
asked: set[str] = set()


class Busy(Exception):
    """The directory does not answer."""


def download(upload: str) -> str:
    if upload not in UPLOADS:
        raise NonRetriableError(f"there is no upload {upload!r}; there is {', '.join(UPLOADS)}")
    return UPLOADS[upload]


def company_of(contact: Contact) -> str:
    domain = contact.email.partition("@")[2]
    if domain not in COMPANIES or (domain in BUSY and domain not in asked):
        asked.add(domain)
        raise Busy(f"the directory does not answer for {domain}")
    return COMPANIES[domain]


def create_contact(key: str, contact: Contact, company: str | None) -> bool:
    """Whether it is made, now or before, for this key; a contact that others made is left as it is."""
    made = f"contact {contact.email}: {contact.name} of {company or 'no known company'}"
    return once(f"contact {contact.email}", made, by=key)


def mail(key: str, to: str, text: str) -> None:
    once(f"mail {key}", f"mail to {to}: {text}")


def once(key: str, what: str, *, by: str = "") -> bool:
    """Do something, unless it was done under this key before; whether it was done for `by`."""
    WORLD.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(WORLD, timeout=30, isolation_level=None)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, what TEXT, by TEXT)")
        if db.execute(
            "INSERT INTO effects VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (key, what, by)
        ).rowcount:
            print(f"    {what}", flush=True)
        return bool(db.execute("SELECT 1 FROM effects WHERE key = ? AND by = ?", (key, by)).fetchone())
