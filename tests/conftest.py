"""Fixtures every test may use: a real nats-server, its own or shared, and names nobody else has."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio

from tests.support.nats_server import NatsServer

# No deadline for an example: on a busy machine it fails tests that are right.
hypothesis.settings.register_profile("jetcron", deadline=None)
hypothesis.settings.load_profile("jetcron")


@pytest_asyncio.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own, on an empty store: it may be killed, frozen, restarted."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def nats_server(nats: NatsServer) -> NatsServer:
    """The same server as `nats`, where that name is taken by the client library."""
    return nats


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """One nats-server for all tests of a worker. Use a `namespace` in it; never stop it."""
    async with NatsServer(tmp_path_factory.mktemp("shared-nats")) as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A namespace no other test has, also in upper case, as the names of its streams."""
    return f"t{uuid.uuid4().hex[:12]}"
