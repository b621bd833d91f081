"""Random workflows in real processes that are killed and frozen, on a server that is killed and frozen too."""

from pathlib import Path
from random import Random

import pytest

from tests.support.durable import disturbed, durable


@pytest.mark.parametrize(
    ("server", "seconds"), [(False, 15), (True, 35)], ids=["actors", "actors and server"]
)
async def test_workflows_come_to_the_same_whatever_is_killed_or_frozen(
    server: bool, seconds: float, tmp_path: Path
) -> None:
    async with durable(tmp_path, seed=1) as running:
        await disturbed(running, seconds, Random(1), at_once=24, server=server)
        print(running.done, len(running.play.flows))
        assert len(running.play.flows) > seconds
        assert running.done.total() > 5
        assert await running.problems() == []
