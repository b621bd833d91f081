"""The bus on a real server: connecting, topology, writing, reading, pulling."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from jetcron.bus import Bus, Outgoing, StoredMessage, fenced, hold, link, purging, with_id
from jetcron.errors import (
    AuthorizationFailed,
    JetStreamDisabled,
    KnownId,
    NotFound,
    PayloadTooLarge,
    ServerTooOld,
    ServerUnreachable,
    TopologyMismatch,
    TopologyMissing,
    TryAgain,
    Unconfirmed,
    WrongSequence,
)
from jetcron_protocol import topology
from tests.support.faults import FaultyBus, LoseAnswer, Refuse
from tests.support.nats_server import NatsServer
from tests.support.stack import Stack, fast_settings, take, until

YEAR_3000 = 32_503_680_000_000


@pytest_asyncio.fixture
async def stack(shared_nats: NatsServer) -> AsyncIterator[Stack]:
    async with Stack(shared_nats) as stack:
        yield stack


# Connecting.


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{reserved.getsockname()[1]}"
        settings = fast_settings(NatsServerAt(url), "t")
        with pytest.raises(ServerUnreachable, match=url):
            await Bus(settings).__aenter__()


class NatsServerAt:
    """An address, where a server is wanted."""

    def __init__(self, url: str) -> None:
        self.url = url


async def test_wrong_credentials_are_said_to_be_wrong() -> None:
    async with NatsServer(user="right", password="secret") as server:
        async with Bus(fast_settings(server, "t")) as bus:
            assert bus.connected
        wrong = NatsServerAt(server.url.replace("right:secret", "right:wrong"))
        with pytest.raises(AuthorizationFailed) as raised:
            await Bus(fast_settings(wrong, "t")).__aenter__()
        assert "wrong@" not in str(raised.value), "a password is in the message"


async def test_a_server_without_jetstream_is_refused() -> None:
    async with NatsServer(jetstream=False) as server:
        with pytest.raises(JetStreamDisabled, match="-js"):
            await Bus(fast_settings(server, "t")).__aenter__()


async def test_a_server_too_old_is_refused(shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MIN_SERVER", (99, 1, 2))
    with pytest.raises(ServerTooOld, match=r"99\.1\.2"):
        await Bus(fast_settings(shared_nats, "t")).__aenter__()


# Topology.


async def test_missing_topology_names_init(shared_nats: NatsServer, namespace: str) -> None:
    async with Bus(fast_settings(shared_nats, namespace)) as bus:
        with pytest.raises(TopologyMissing, match="jetcron init") as raised:
            await bus.check_topology()
        assert f"{namespace.upper()}_WORK" in str(raised.value)


async def test_applying_the_topology_again_changes_nothing(shared_nats: NatsServer, namespace: str) -> None:
    async with Bus(fast_settings(shared_nats, namespace)) as bus:
        first = await bus.apply_topology()
        assert {change.action for change in first} == {"created"}
        assert {change.action for change in await bus.apply_topology()} == {"unchanged"}
        await bus.check_topology()


async def test_a_changed_setting_changes_the_stream_in_place(stack: Stack) -> None:
    names = stack.names
    await stack.bus.publish(names.event("x"), b"kept")
    other = stack.settings.model_copy(update={"events_max_age": 7_200, "ack_wait": 9.0})
    async with Bus(other) as bus:
        changed = {change.name: change for change in await bus.apply_topology() if change.action == "updated"}
        assert changed[names.events].fields == ("max_age",)
        assert changed[names.cron_tick].fields == ("ack_wait",)
        assert (await bus.stream_state(names.events)).config["max_age"] == 7_200 * 10**9
        assert [m.payload for m in await stack.stored(names.events)] == [b"kept"]
        await bus.check_topology()


async def test_what_cannot_be_changed_in_place_says_what_is_and_what_is_wanted(
    shared_nats: NatsServer, namespace: str
) -> None:
    async with Bus(fast_settings(shared_nats, namespace)) as bus:
        stream = bus.names.work
        await bus.api(
            f"STREAM.CREATE.{stream}",
            {"name": stream, "subjects": [f"{namespace}.sync.>"], "retention": "limits", "storage": "memory"},
        )
        with pytest.raises(TopologyMismatch, match=stream) as raised:
            await bus.apply_topology()
        assert "retention is 'limits', wanted 'workqueue'" in str(raised.value)


async def test_limits_on_a_stream_that_holds_messages_are_refused(stack: Stack) -> None:
    found = (await stack.bus.stream_state(stack.names.work)).config
    await stack.bus.api(f"STREAM.UPDATE.{stack.names.work}", found | {"max_msgs": 1_000})
    with pytest.raises(TopologyMismatch, match="max_msgs"):
        await stack.bus.check_topology()


async def test_a_missing_consumer_is_named(stack: Stack) -> None:
    await stack.bus.delete_consumer(stack.names.work, stack.names.cron_tick)
    with pytest.raises(TopologyMissing, match="cron-tick"):
        await stack.bus.check_topology()


async def test_a_changed_consumer_stays_paused(stack: Stack) -> None:
    stream, config = topology.run_consumer(stack.names, "app.f", 1, stack.settings.limits)
    await stack.bus.apply_consumer(stream, config)
    await stack.bus.pause_consumer(stream, config["durable_name"], paused=True)
    await stack.bus.apply_consumer(stream, config | {"max_ack_pending": 7})
    info = await stack.bus.consumer(stream, config["durable_name"])
    assert (info["config"]["max_ack_pending"], info["paused"]) == (7, True)


# Writing.


async def test_a_known_id_stores_nothing_again(stack: Stack) -> None:
    subject = stack.names.event("x")
    first = await stack.bus.publish(subject, b"1", with_id("a"))
    again = await stack.bus.publish(subject, b"2", with_id("a"))
    assert (first.duplicate, again.duplicate, again.sequence) == (False, True, first.sequence)
    assert [message.payload for message in await stack.stored(stack.names.events)] == [b"1"]


async def test_a_refused_batch_stores_none_of_it(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    journal = names.journal_of("app.f", "run")
    await bus.publish(journal, b"first")
    batch = [Outgoing(names.journal_of("app.f", "other"), b"x"), Outgoing(journal, b"second", fenced(0))]
    with pytest.raises(WrongSequence):
        await bus.publish_atomic(batch)
    assert [message.payload for message in await stack.stored(names.journal)] == [b"first"]
    last = await bus.publish_atomic([batch[0], Outgoing(journal, b"second", fenced(1))])
    assert [(m.sequence, m.payload) for m in await stack.stored(names.journal)] == [
        (1, b"first"),
        (last - 1, b"x"),
        (last, b"second"),
    ]


async def test_a_batch_dies_whole(stack: Stack) -> None:
    """Its parts are with the server, its end is not: nothing is stored, now or later."""
    subject = stack.names.event("x")
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Refuse())
        with pytest.raises(TryAgain):
            await bus.publish_atomic([Outgoing(subject, b"1"), Outgoing(subject, b"2")])
        await bus.settled()
        assert bus.writes == [subject]
    await stack.bus.publish(subject, b"3")
    assert [message.payload for message in await stack.stored(stack.names.events)] == [b"3"]


async def test_a_known_id_among_groups_leaves_the_rest_stored(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    ready = names.run_ready("app.f")
    await bus.publish(ready, b"known", with_id("known"))
    groups = [
        [Outgoing(ready, b"a", with_id("a")), Outgoing(ready, b"tick a")],
        [Outgoing(ready, b"known again", with_id("known")), Outgoing(ready, b"tick known")],
        [Outgoing(ready, b"b", with_id("b")), Outgoing(ready, b"a once more", with_id("a"))],
        [],
    ]
    with pytest.raises(KnownId):
        await bus.publish_atomic(groups[1])
    assert sorted(await bus.publish_groups(groups)) == [0, 1, 2, 3]
    stored = sorted(message.payload for message in await stack.stored(names.work))
    assert stored == [b"a", b"b", b"known", b"tick a", b"tick known"]


async def test_more_than_a_batch_holds_goes_in_several(stack: Stack) -> None:
    subject = stack.names.event("x")
    groups = [[Outgoing(subject, f"{n}-{m}".encode()) for m in range(700)] for n in range(3)]
    groups.append([Outgoing(subject, f"3-{m}".encode()) for m in range(1_500)])
    async with FaultyBus(stack.settings) as bus:
        assert sorted(await bus.publish_groups(groups)) == [0, 1, 2, 3]
        assert len(bus.writes) == 5
    stored = [message.payload for message in await stack.stored(stack.names.events)]
    assert stored == [message.payload for group in groups for message in group]


async def test_groups_that_were_not_confirmed_are_named(stack: Stack) -> None:
    subject = stack.names.event("x")
    groups = [[Outgoing(subject, b"%d" % n)] * 600 for n in range(3)]
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Refuse(), nth=1)
        assert sorted(await bus.publish_groups(groups)) == [0, 2]
    assert len(await stack.stored(stack.names.events)) == 1_200


async def test_a_held_message_may_take_another_s_place_and_is_released_as_any(stack: Stack) -> None:
    """Many of them in one batch. What names the other one is not there any more when it is released."""
    names, now = stack.names, stack.clock.now()
    old = [names.tick_held("s", number, now + 3_600_000) for number in range(3)]
    for subject in old:
        await stack.bus.store(hold(subject, names.tick_due("s", 9, 9), now + 3_600_000, b"old"))
    at = now + 1_000
    new = [
        hold(names.tick_held("s", 9, number), names.tick_due("s", 9, number), at, b"new", purging(subject))
        for number, subject in enumerate(old)
    ]
    await stack.bus.publish_atomic(new)
    held = f"{names.namespace}.tick.held.>"
    assert await stack.bus.subjects(names.work, held) == [message.subject for message in new]
    other = hold(old[0], names.tick_due("s", 9, 10), now + 3_600_000, b"another")
    await stack.bus.store(other)
    taken = await take(stack.bus, names.work, names.cron_tick, 3)
    assert [delivery.payload for delivery in taken] == [b"new"] * 3
    released = [delivery.headers["Nats-Scheduler"] for delivery in taken]
    assert sorted(released) == sorted(message.subject for message in new), "by the server, of itself"
    assert await stack.bus.subjects(names.work, held) == [other.subject], "not once more at the release"


async def test_held_messages_are_released_to_their_target_with_their_own_headers(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    at = stack.clock.now() + 300
    await bus.publish_atomic(
        [
            hold(names.run_later("app.f", "a", 1), names.run_ready("app.f"), at, b"soon", {"Mine": "1"}),
            hold(names.run_later("app.f", "b", 1), names.run_ready("app.f"), 0, b"long ago"),
            hold(names.run_later("app.f", "c", 1), names.run_ready("app.f"), YEAR_3000, b"much later"),
        ]
    )
    await bus.apply_consumer(*topology.run_consumer(names, "app.f", 0, stack.settings.limits))
    taken = await take(bus, names.work, names.run_consumer("app.f"), 2)
    released = {delivery.payload: delivery for delivery in taken}
    assert set(released) == {b"long ago", b"soon"}
    assert released[b"soon"].headers["Mine"] == "1"
    assert released[b"soon"].stored_at >= at
    assert await bus.subjects(names.work, names.run_later_all) == [names.run_later("app.f", "c", 1)]


async def test_a_lost_answer_of_an_append_is_recognised_as_our_own(stack: Stack) -> None:
    subject = stack.names.journal_of("app.f", "run")
    async with FaultyBus(stack.settings) as bus:
        bus.arm(LoseAnswer())
        sequence = await bus.append(subject, b"nonce-1", fenced(0))
        assert bus.writes == [subject, subject], "it was sent again, and refused"
    assert [(m.sequence, m.payload) for m in await stack.stored(stack.names.journal)] == [
        (sequence, b"nonce-1")
    ]


async def test_an_append_after_somebody_elses_is_refused(stack: Stack) -> None:
    subject = stack.names.journal_of("app.f", "run")
    await stack.bus.append(subject, b"theirs", fenced(0))
    with pytest.raises(WrongSequence):
        await stack.bus.append(subject, b"ours", fenced(0))


async def test_an_append_nobody_answers_is_given_up_as_unknown(stack: Stack) -> None:
    async with FaultyBus(stack.settings) as bus:
        bus.arm(Refuse(), times=1_000)
        with pytest.raises(Unconfirmed):
            await bus.append(stack.names.journal_of("app.f", "run"), b"x", fenced(0), patience=0.2)
        assert len(bus.writes) > 1


async def test_a_payload_too_large_is_refused_with_both_sizes(stack: Stack) -> None:
    bus, subject = stack.bus, stack.names.event("x")
    size = bus.max_payload + 1
    for attempt in (
        bus.publish(subject, b"x" * size),
        bus.publish_atomic([Outgoing(subject, b"1"), Outgoing(subject, b"x" * size)]),
    ):
        with pytest.raises(PayloadTooLarge) as raised:
            await attempt
        assert (raised.value.size, raised.value.limit) == (size, bus.max_payload)
    assert await stack.stored(stack.names.events) == []
    assert bus.connected


# Reading.


async def test_many_last_messages_in_one_request(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    for n in range(3):
        await bus.publish(names.schedule_key(f"s{n}"), b"old")
        await bus.publish(names.schedule_key(f"s{n}"), b"%d" % n)
    keys = [names.schedule_key(f"s{n}") for n in range(5)]
    found = await bus.multi_last(names.registry, keys)
    assert {key: message.payload for key, message in found.items()} == {keys[n]: b"%d" % n for n in range(3)}
    assert await bus.multi_last(names.registry, []) == {}
    assert len(await bus.multi_last(names.registry, [names.schedules_of_shard("*")])) == 3


async def test_a_message_that_says_it_is_another_is_read_as_what_it_is(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    key = names.schedule_key("s")
    told = {
        "Nats-Stream": "x",
        "Nats-Subject": "y",
        "Nats-Sequence": "7",
        "Nats-Time-Stamp": "z",
        "Mine": "1",
    }
    stored = await bus.publish(key, b"body", told)
    (found,) = (await bus.multi_last(names.registry, [key])).values()
    assert (found.subject, found.sequence, found.payload) == (key, stored.sequence, b"body")
    assert found.headers["Mine"] == "1"
    alone = await bus.last(names.registry, key)
    assert alone is not None
    assert (alone.subject, alone.stored_at) == (key, found.stored_at)
    (page,) = [page async for page in bus.pages(names.registry, key)]
    assert page == [found]


async def test_a_stale_replica_is_not_believed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers with an old entry, leaves one out, and says how far it had read: the leader has the last word."""
    names, bus = stack.names, stack.bus
    keys = [names.schedule_key(f"s{n}") for n in range(3)]
    for key in keys:
        await bus.publish(key, b"old")
    stale = await bus._direct(names.registry, {"multi_last": keys})
    await bus.publish(keys[0], b"new")
    await bus.publish(keys[1], b"new")

    async def replica(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        messages, up_to = stale
        return [message for message in messages if message.subject != keys[1]], up_to

    monkeypatch.setattr(bus, "_direct", replica)
    found = await bus.multi_last(names.registry, keys)
    assert [found[key].payload for key in keys] == [b"new", b"new", b"old"]


async def test_the_subjects_of_many_filters(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in a few requests; one by one where too many match for one answer, and where the replica lags."""
    names, bus = stack.names, stack.bus
    filters = [names.journal_of(f"app.f{n}") for n in range(600)]
    assert await bus.subjects_of(names.journal, filters[:2]) == []
    wanted = {names.journal_of(f"app.f{n}", f"run{m}") for n in range(600) for m in range(1 if n else 1100)}
    await bus.publish_groups([[Outgoing(subject, b"x")] for subject in sorted(wanted)])
    requests: list[int] = []
    direct = bus._direct
    stale = await direct(names.journal, {"multi_last": filters[1:3]})

    async def counted(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        requests.append(len(query["multi_last"]))
        return await direct(stream, query)

    monkeypatch.setattr(bus, "_direct", counted)
    found = await bus.subjects_of(names.journal, filters)
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert requests == [250, 250, 100]

    async def replica(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        return stale

    await bus.publish(names.journal_of("app.f1", "new"), b"x")
    monkeypatch.setattr(bus, "_direct", replica)
    assert set(await bus.subjects_of(names.journal, filters[1:3])) == {
        names.journal_of("app.f1", "new"),
        names.journal_of("app.f1", "run0"),
        names.journal_of("app.f2", "run0"),
    }


async def test_a_history_is_whole_though_the_replica_lacks_its_end(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, bus = stack.names, stack.bus
    subject = names.journal_of("app.f", "run")
    for n in range(5):
        await bus.publish(subject, b"%d" % n)
        await bus.publish(names.journal_of("app.f", "other"), b"other")
    assert [m.payload for m in await bus.history(names.journal, subject)] == [b"0", b"1", b"2", b"3", b"4"]
    direct = bus._direct

    async def replica(stream: str, query: dict[str, Any]) -> tuple[list[StoredMessage], int]:
        messages, up_to = await direct(stream, query)
        return messages[:2], up_to

    monkeypatch.setattr(bus, "_direct", replica)
    assert [m.payload for m in await bus.history(names.journal, subject)] == [b"0", b"1", b"2", b"3", b"4"]
    assert await bus.history(names.journal, names.journal_of("app.f", "none")) == []


async def test_pages_bring_every_message_once(stack: Stack) -> None:
    subject = stack.names.event("x")
    await stack.bus.publish_groups([[Outgoing(subject, b"%d" % n)] for n in range(25)])
    pages = [page async for page in stack.bus.pages(stack.names.events, subject, size=10)]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [message.payload for page in pages for message in page] == [b"%d" % n for n in range(25)]
    assert [page async for page in stack.bus.pages(stack.names.events, subject, start=26)] == []
    last = pages[-1][-1].stored_at
    await until(lambda: stack.clock.now() > last + 1)
    await stack.bus.publish(subject, b"later")
    (page,) = [page async for page in stack.bus.pages(stack.names.events, subject, since=last + 1)]
    assert [message.payload for message in page] == [b"later"]
    (*_, (_, first)) = [page async for page in stack.bus.pages(stack.names.events, subject, since=0, size=2)][
        :1
    ]
    assert first.payload == b"1"


async def test_a_deleted_entry_is_absent(stack: Stack) -> None:
    key = stack.names.schedule_key("s")
    await stack.bus.publish(key, b"x")
    assert (await stack.bus.entry(key)) is not None
    await stack.bus.publish(key, b"", {"KV-Operation": "DEL"})
    assert await stack.bus.entry(key) is None
    assert await stack.bus.entries([key]) == {}
    assert await stack.bus.at_sequence(stack.names.registry, 99) is None


# Pulling.


async def test_a_pull_goes_on_after_the_server_restarts(nats: NatsServer) -> None:
    """However it went: in good order or killed, with an open request in its hands."""
    async with Stack(nats, storage="file") as stack:
        names, bus = stack.names, stack.bus
        async with bus.consume(names.events, names.event_router) as consumer:
            assert await consumer.fetch(10, wait=0.5) == []
            for kill in (False, True):
                generation = bus.generation
                await nats.restart(kill=kill)
                await until(lambda before=generation: bus.generation > before, what="reconnected")
                await bus.store(Outgoing(names.event("x"), b"%d" % kill))
                seen: set[bytes] = set()
                async with asyncio.timeout(20):
                    while b"%d" % kill not in seen:
                        for delivery in await consumer.fetch(10):
                            seen.add(delivery.payload)
                            await delivery.ack()
                # What was acknowledged just before a kill may come again; what was never published does not.
                assert seen <= {b"0", b"1"}


async def test_nothing_is_published_while_the_server_is_away(nats: NatsServer) -> None:
    """Neither now nor, out of some buffer, later: a late acknowledgement could remove another's message."""
    async with Stack(nats, storage="file") as stack:
        names, bus = stack.names, stack.bus
        await bus.publish(names.event("x"), b"1")
        (delivery,) = await take(bus, names.events, names.event_router)
        await nats.kill()
        await until(lambda: not bus.connected, what="disconnected")
        with pytest.raises(TryAgain):
            await bus.publish(names.event("x"), b"2")
        await delivery.ack()
        await nats.start()
        await until(lambda: bus.connected, what="connected")
        (again,) = await take(bus, names.events, names.event_router)
        assert (again.payload, again.sequence) == (b"1", delivery.sequence)
        assert [message.payload for message in await stack.stored(names.events)] == [b"1"]


async def test_a_deleted_consumer_is_not_found(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    async with bus.consume(names.events, names.event_router) as consumer:
        assert await consumer.fetch(1, wait=0.5) == []
        fetching = asyncio.create_task(_until_it_raises(consumer))
        await bus.delete_consumer(names.events, names.event_router)
        with pytest.raises(NotFound):
            await fetching
    async with bus.consume(names.events, "never-was") as consumer:
        with pytest.raises(NotFound):
            await _until_it_raises(consumer)


async def _until_it_raises(consumer: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            await consumer.fetch(1)


async def test_a_message_in_progress_is_not_given_to_another(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats, ack_wait=2.0) as stack:
        names, bus = stack.names, stack.bus
        await bus.publish(names.event("x"), b"1")
        (delivery,) = await take(bus, names.events, names.event_router)
        began = stack.clock.monotonic()
        async with bus.consume(names.events, names.event_router) as consumer:
            while stack.clock.monotonic() - began < 2.6:
                await delivery.in_progress()
                assert await consumer.fetch(1, wait=0.2) == []
            (again,) = await until(lambda: consumer.fetch(1), what="redelivery")
        assert (again.delivered, again.sequence) == (2, delivery.sequence)


async def test_what_is_handed_back_comes_again_and_not_before_its_delay(stack: Stack) -> None:
    names, bus = stack.names, stack.bus
    await bus.publish(names.event("x"), b"1")
    (first,) = await take(bus, names.events, names.event_router)
    await first.hand_back()
    (second,) = await take(bus, names.events, names.event_router)
    handed = stack.clock.monotonic()
    await second.hand_back(0.5)
    (third,) = await take(bus, names.events, names.event_router)
    assert stack.clock.monotonic() - handed > 0.4
    assert [d.delivered for d in (first, second, third)] == [1, 2, 3]
    await third.ack()
    await stack.settled(names.events, names.event_router)


async def test_closing_hands_back_what_was_not_fetched(shared_nats: NatsServer) -> None:
    async with Stack(shared_nats, ack_wait=600) as stack:
        names, bus = stack.names, stack.bus
        await bus.publish_groups([[Outgoing(names.event("x"), b"%d" % n)] for n in range(20)])
        async with bus.consume(names.events, names.event_router) as consumer:
            fetched = await consumer.fetch(20)
            fetched += await consumer.fetch(20)
            fetched += await consumer.fetch(20, wait=0.01)
            taken = {delivery.payload for delivery in fetched}
            more = asyncio.create_task(consumer.fetch(5, wait=5))
            await bus.publish_groups([[Outgoing(names.event("y"), b"y%d" % n)] for n in range(20)])
            taken |= {delivery.payload for delivery in await more}
        rest = await take(bus, names.events, names.event_router, 40 - len(taken))
        assert {delivery.payload for delivery in rest}.isdisjoint(taken)
