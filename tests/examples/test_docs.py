"""The documents say what is so: commands, options, names, figures and links are held against the code."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from jetcron import App, Context, client
from jetcron.cli import app as cli
from jetcron.errors import TopologyMismatch
from jetcron.metrics import Metrics
from jetcron.settings import Settings, variable_of
from jetcron_protocol import messages
from jetcron_protocol.ids import gap_token
from jetcron_protocol.messages import VERSION
from jetcron_protocol.subjects import MAX_EVENT_NAME, MAX_ID, Names
from jetcron_protocol.topology import MIN_SERVER, consumers, streams
from tests.examples.documents import ALL, DOCS, README, ROOT, Block, anchors, blocks, inline_code, links
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack

OPERATIONS, PROTOCOL, CONCEPTS, DURABLE, CONTRIBUTING = (
    ROOT / "docs" / f"{name}.md"
    for name in ("operations", "protocol", "concepts", "durable-runs", "contributing")
)
NAMES = Names()


def named(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


# Code.


@pytest.mark.parametrize("block", [b for file in ALL for b in blocks(file, "python")], ids=named)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize(
    "block", [b for file in (CONCEPTS, DURABLE) for b in blocks(file, "python")], ids=named
)
def test_examples_in_documents_run(block: Block) -> None:
    scope: dict[str, Any] = {"__name__": "concepts"}
    exec(compile(block.text, str(block), "exec"), scope)
    for app in (value for value in scope.values() if isinstance(value, App)):
        app.check()
        assert app.functions


async def test_the_test_shown_to_contributors_passes(shared_nats: NatsServer, namespace: str) -> None:
    (block,) = blocks(CONTRIBUTING, "python")
    scope: dict[str, Any] = {"__name__": "contributing"}
    exec(compile(block.text, str(block), "exec"), scope)
    (test,) = (value for name, value in scope.items() if name.startswith("test_"))
    await test(shared_nats, namespace)


# The command line.


def commands_of(file: Path) -> list[str]:
    """Every ``jetcron …`` a reader could type, in blocks and in the text."""
    in_blocks = [line.removeprefix("$ ") for b in blocks(file, "bash", "console") for line in b.commands]
    return [text for text in (*in_blocks, *inline_code(file)) if re.match(r"jetcron [a-z]", text)]


@pytest.mark.parametrize("file", ALL, ids=named)
def test_commands_are_verbs_with_options_that_exist(file: Path) -> None:
    for text in commands_of(file):
        words = shlex.split(text)[1:]
        command: Any = typer.main.get_command(cli)
        name = "jetcron"
        while hasattr(command, "commands"):
            assert words, f"{text!r} needs a verb"
            name = words.pop(0)
            assert name in command.commands, f"{text!r}: there is no {name!r}"
            command = command.commands[name]
        try:
            command.make_context(name, words)
        except Exception as error:  # click's, or typer's own copies of them
            raise AssertionError(f"{text!r}: {error}") from error


def test_commands_were_found() -> None:
    assert len(commands_of(README)) >= 6
    assert len(commands_of(OPERATIONS)) >= 12


# Names and figures.


def variables() -> dict[str, Any]:
    return {variable_of(name): field.default for name, field in Settings.model_fields.items()}


@pytest.mark.parametrize("file", ALL, ids=named)
def test_variables_are_settings(file: Path) -> None:
    buckets = {"JETCRON_REGISTRY", "JETCRON_EXECUTORS", "JETCRON_OBJECTS"}
    known = {*variables(), *(stream["name"] for stream in streams(NAMES)), *buckets}
    text = file.read_text()
    for variable in set(re.findall(r"\b(?:JETCRON|NATS)_[A-Z_]*[A-Z]\b", re.sub(r"\b(KV|OBJ)_", "", text))):
        assert variable in known, variable


@pytest.mark.parametrize("file", ALL, ids=named)
def test_defaults_are_the_settings(file: Path) -> None:
    """``JETCRON_X` (30 s)`` and ``7 days (`JETCRON_X`)`` name the default."""
    text = re.sub(r"\s+", " ", file.read_text())
    units = {"s": 1, "day": 86_400, "days": 86_400, "min": 60, "minutes": 60}
    after = re.findall(r"`(JETCRON_\w+)` \((\d+) (\w+)\)", text)
    before = [
        (v, n, u) for n, u, v in re.findall(r"(\d+) (s|days?|minutes)(?: late)? \(`(JETCRON_\w+)`\)", text)
    ]
    for variable, number, unit in [*after, *before]:
        assert variables()[variable] == int(number) * units[unit], variable


def test_defaults_were_found() -> None:
    assert len(re.findall(r"`JETCRON_\w+` \(\d+ \w+\)", OPERATIONS.read_text())) >= 4


def test_metrics_exist() -> None:
    registry = Metrics().registry
    known = {metric.name for metric in registry.collect()}
    known |= {f"{metric.name}_total" for metric in registry.collect() if metric.type == "counter"}
    said = set(re.findall(r"`(jetcron_[a-z_]+)", OPERATIONS.read_text())) - {"jetcron_protocol"}
    assert len(said) > 8
    assert said <= known, said - known


@pytest.mark.parametrize("file", [README, OPERATIONS, PROTOCOL], ids=named)
def test_versions_are_current(file: Path) -> None:
    oldest = ".".join(map(str, MIN_SERVER))
    for version in re.findall(r"nats-server (\d+\.\d+\.\d+) or later", file.read_text()):
        assert version == oldest


def test_figures_of_functions_are_those_of_the_code() -> None:
    definition = App("a")

    @definition.function()
    async def f(ctx: Context) -> None: ...

    (made,) = definition.functions.values()
    assert made.retry.attempts == 5
    assert [made.retry.wait(n).total_seconds() for n in range(4)] == [15, 30, 60, 120]
    text = re.sub(r"\s+", " ", CONCEPTS.read_text())
    assert "4 retries by default, after 15 s, 30 s, 1 min and 2 min, each up to 30 % longer" in text
    assert made.retry.jitter == 0.3
    assert variables()["JETCRON_SLOTS"] == 1_000
    assert variables()["JETCRON_KEEP_COMPLETED"] == 86_400
    assert variables()["JETCRON_KEEP_FAILED"] == 7 * 86_400


# The protocol.


def tables(file: Path) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in file.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def coded(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_stream_is_in_the_table() -> None:
    rows = {coded(row[0])[0]: row for row in tables(PROTOCOL) if len(row) == 4 and coded(row[0])}
    for stream in streams(NAMES):
        row = rows[stream["name"]]
        assert coded(row[2]) == stream["subjects"]
        assert ("work queue" in row[1]) == (stream["retention"] == "workqueue")
        days = re.search(r"(\d+) days", row[1])
        assert (int(days[1]) * 86_400 * 1_000_000_000 if days else 0) == stream["max_age"]
        assert ("one a subject" in row[1]) == (stream["max_msgs_per_subject"] == 1)
        assert ("message schedules" in row[3]) == bool(stream.get("allow_msg_schedules"))


def test_every_subject_is_in_the_table() -> None:
    templates = [code for row in tables(PROTOCOL) for code in coded(row[0]) if code.startswith("jetcron.")]
    patterns = [
        re.compile(
            re.sub(r"<\w+>", r"[^.]+", template.replace(".", r"\."))
            .replace(r"\.event\.[^.]+", r"\.event\..+")
            .replace(">", ".+")
        )
        for template in templates
    ]
    f, run = "app.a function", "01M80JVRDMGNAY21PG4JVE9DHC"
    for subject in (
        NAMES.sync("app"),
        NAMES.tick_held("a.b", 7, 1),
        NAMES.tick_due("a.b", 7, 1),
        NAMES.run_ready(f),
        NAMES.run_later(f, run, 2),
        NAMES.health_held(3),
        NAMES.health_due,
        NAMES.health_noted(3),
        NAMES.event("order.placed"),
        NAMES.later_held("order.placed", "7"),
        NAMES.later_due("order.placed"),
        NAMES.journal_of(f, run),
        NAMES.journal_of(f, gap_token("a.b", 1)),
        NAMES.dead_letter("failed", "app", "f", run),
        NAMES.wait_paths("order.placed"),
        NAMES.wait_for("order.placed", "1-ab", "cd", run, "a step"),
        NAMES.wait_for_child(run, run),
        NAMES.cancelled("app"),
    ):
        assert any(pattern.fullmatch(subject) for pattern in patterns), subject


def test_every_consumer_is_in_the_table() -> None:
    text = PROTOCOL.read_text()
    for _, consumer in consumers(NAMES):
        assert f"`{consumer['durable_name']}`" in text
    assert NAMES.run_consumer("app.f") == "run==app==f"
    assert "`run==<app>==<function>`" in text


def test_messages_have_these_keys() -> None:
    rows = {row[0]: coded_keys(row[1]) for row in tables(PROTOCOL) if len(row) == 2}
    said = [name for name in rows if isinstance(getattr(messages, name, None), type)]
    assert len(said) >= 10
    for name in said:
        fields = {field.name: field.default is None for field in dataclasses.fields(getattr(messages, name))}
        assert rows[name] == fields, name


def coded_keys(cell: str) -> dict[str, bool]:
    """By key, whether a '?' follows it: it may be absent."""
    return {key: bool(mark) for key, mark in re.findall(r"`(\w+)`(\??)", cell)}


def test_constants_of_the_protocol() -> None:
    text = re.sub(r"\s+", " ", PROTOCOL.read_text())
    assert f"the protocol version, now {VERSION}." in text
    assert f"A name has at most {MAX_EVENT_NAME} characters" in text
    assert f"1 to {MAX_ID} printable characters" in text
    for kind in ("event", "tick", "sync", "run", "health", "failed"):
        assert f"`{kind}`" in text


async def test_events_published_as_shown_start_runs(shared_nats: NatsServer) -> None:
    """Each ``nats req`` of the document, its subject, headers and body, on a real server."""
    app = App("shop")

    @app.function(on=["order.placed", "order.overdue"])
    async def note(ctx: Context, data: dict) -> str:  # type: ignore[type-arg]
        return f"{ctx.event and ctx.event.id} {data['order']}"

    requests = [
        shlex.split(line)
        for block in blocks(PROTOCOL, "bash")
        for line in block.commands
        if "nats req" in line
    ]
    assert len(requests) == 3
    async with Stack(shared_nats) as stack:
        await stack.start("cron-sync", "event-router")
        await stack.register(app)
        await stack.execute(app)
        for _, _, subject, body, *options in requests * 2:
            headers = dict(option.split(":", 1) for option in options if option != "-H")
            name = subject.removeprefix("jetcron.event.")
            await stack.bus.publish(stack.names.event(name), body.encode(), headers)
        # Sent twice each: without an id two runs, with one a single run; the third is held for years.
        await stack.journal.wait("completed", 3)
        await stack.settled(stack.names.events, stack.names.event_router)
        results = [run.result for run in await client.Runs(stack.bus).list()]
        held = await stack.bus.subjects(stack.names.later, stack.names.later_held_all)
    assert len(results) == 3
    assert results.count("order-7 7") == 1
    assert len(held) == 2


async def test_a_limit_on_a_stream_is_refused_and_taken_away(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats) as stack:
        stream = stack.names.work
        config = (await stack.bus.api(f"STREAM.INFO.{stream}"))["config"]
        await stack.bus.api(f"STREAM.UPDATE.{stream}", config | {"max_msgs": 1_000})
        with pytest.raises(TopologyMismatch, match="max_msgs"):
            await stack.bus.check_topology()
        await stack.bus.apply_topology()
        await stack.bus.check_topology()


# Files and links.


@pytest.mark.parametrize("file", ALL, ids=named)
def test_links_lead_somewhere(file: Path) -> None:
    for link in links(file):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}: {sorted(anchors(target))}"


@pytest.mark.parametrize("file", ALL, ids=named)
def test_files_that_are_named_exist(file: Path) -> None:
    text = file.read_text()
    for path in set(
        re.findall(r"(?<![\w/])((?:deploy|examples|tests|docs|protocol|actors|\.ci)/[\w./@-]*\w/?)", text)
    ):
        assert (ROOT / path).exists(), path


def test_every_document_is_linked_from_the_readme() -> None:
    assert {f"docs/{file.name}" for file in DOCS} <= set(links(README))
