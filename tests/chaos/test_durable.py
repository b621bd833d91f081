"""Random workflows in real processes that are killed and frozen, on a server that is killed and frozen too."""

from pathlib import Path
from random import Random

from tests.support.durable import disturbed, durable

SECONDS = 40


async def test_workflows_come_to_the_same_whatever_is_killed_or_frozen(tmp_path: Path) -> None:
    seed = 1
    async with durable(tmp_path, seed) as running:
        await disturbed(running, SECONDS, Random(seed), at_once=24)
        print(running.done, len(running.play.flows))
        assert len(running.play.flows) > 40
        await running.play.judge(disturbed=True)
        assert running.unexpected() == []
