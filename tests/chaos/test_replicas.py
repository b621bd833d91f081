"""Three servers, each stream on all of them: the loss of any one loses no occurrence and no event, and doubles none."""

from pathlib import Path

from jetcron.errors import BusError
from jetcron_protocol import topology
from tests.support.chaos import Chaos, Load, chaos, now_ms, until
from tests.support.nats_server import NatsCluster


async def in_step(running: Chaos) -> bool:
    """Whether every stream has a leader, and replicas that have all it has."""
    for stream in topology.streams(running.names, running.settings.limits):
        try:
            info = (await running.bus.api(f"STREAM.INFO.{stream['name']}"))["cluster"]
        except BusError:
            return False
        if not info.get("leader") or not all(one["current"] for one in info["replicas"]):
            return False
    return True


async def test_each_of_three_servers_is_killed_in_turn(tmp_path: Path) -> None:
    async with chaos(tmp_path, replicas=3) as running:
        assert isinstance(running.server, NatsCluster)
        await until(lambda: in_step(running), "all replicas are in step")
        load = Load(running, "three")
        load.start()
        began = now_ms()
        for server in running.server.servers:
            before = now_ms()
            await server.kill()
            # Those that are left go on: what fell due meanwhile has run.
            tally = await running.settled(before, before + 2_000)
            assert tally.clean, tally.problems()
            await server.start()
            await until(lambda: in_step(running), "all replicas are in step again")
        await load.stop()
        await running.all_begun()
        tally = await running.settled(began, now_ms())
        await running.drained(*load.sent, "chaos.relayed")
        await running.books.complete()
        running.check_events(tally, load.sent)
        running.check_relayed(tally, len(load.sent["chaos.relay"]))
        assert tally.clean, tally.problems()
        assert tally.in_gaps == 0
        assert tally.expected > 100
        assert running.unexpected() == []
