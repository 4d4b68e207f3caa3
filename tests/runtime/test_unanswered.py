"""A socket that is reset in the moment it opens is an outage for whoever asks another service, as one that never opens is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from heliograph.core.errors import Unavailable
from heliograph.core.names import environment, namespace
from heliograph.services.ledger.registry import HttpRegistry
from heliograph.services.registry.heads import Place
from heliograph.services.registry.propagations import Propagations
from heliograph.services.sync.registry import Registry

BROKEN = [AttributeError("'NoneType' object has no attribute 'get_extra_info'"), httpx.ConnectError("refused")]


@pytest.fixture(params=BROKEN, ids=lambda error: type(error).__name__)
def client(request: pytest.FixtureRequest) -> httpx.AsyncClient:
    def reset(_: httpx.Request) -> httpx.Response:
        raise request.param

    return httpx.AsyncClient(base_url="http://away", transport=httpx.MockTransport(reset))


async def first(asked: Any) -> None:
    async for _ in asked:
        return


async def test_a_sync_node_that_asks_the_registry(client: httpx.AsyncClient) -> None:
    registry = Registry("http://away", "token")
    await registry.close()
    registry._http = client
    with pytest.raises(Unavailable, match="not reachable"):
        await registry.document("shop", b"\0" * 32)
    await registry.close()


async def test_a_ledger_that_asks_the_registry(client: httpx.AsyncClient) -> None:
    registry = HttpRegistry(client)
    with pytest.raises(Unavailable, match="not reachable"):
        await first(registry.heads())
    await registry.close()


async def test_a_publish_that_waits_is_told_so_and_committed_all_the_same(client: httpx.AsyncClient) -> None:
    propagations = Propagations(client)
    place = Place(namespace("shop"), environment("production"))
    waited, story = await propagations.wait(place, 1, "sha256:" + "0" * 64, share=1.0, seconds=0.1)
    assert (waited.reached, story) == (False, None)
    assert "not reachable" in (waited.problem or "")
    await propagations.close()
