"""SDKs below an edge of a whole stack: the ledger and whoever publishes see them as any others."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from tests.conftest import free_port
from tests.fixtures.dev import DevStack
from tests.sync.conftest import DEADLINE_S, Service

from heliograph.client import Heliograph
from heliograph.services.sync.edge import app
from heliograph.services.sync.edge.settings import EdgeSettings


@pytest.fixture
def place(dev_stack: DevStack) -> Any:
    return dev_stack.place({"limits": {"max": 1}})


@asynccontextmanager
async def edge_of(place: Any, folder: Path) -> Any:
    scope = {"namespace": place.namespace, "environment": place.environment}
    with place.http() as http:
        asked = {"kind": "edge", "name": "office", "scopes": [scope]}
        made = await asyncio.to_thread(lambda: http.post("/v1/tokens", json=asked).raise_for_status().json())
    settings = EdgeSettings(
        parent_url=place.url,
        edge_token=SecretStr(made["token"]),
        sync_port=free_port(),
        sync_http_port=free_port(),
        data_dir=folder,
        drain_s=1.0,
        node="office",
    )
    service = Service(app.serve, settings)
    await service.start()
    try:
        yield settings, made
    finally:
        await service.end()


async def test_sdks_below_an_edge_are_waited_for_and_shown_as_any_others(place: Any, tmp_path: Path) -> None:
    told = {"token": place.token, "namespace": place.namespace, "environment": place.environment}
    async with (
        edge_of(place, tmp_path / "edge") as (settings, made),
        Heliograph(settings.bundles_url, app="till", cache_dir=tmp_path / "one", **told) as below,
        Heliograph(settings.bundles_url, app="till", cache_dir=tmp_path / "other", view=("limits",), **told) as other,
        Heliograph(place.url, app="desk", cache_dir=tmp_path / "centre", **told) as beside,
    ):
        async with asyncio.timeout(DEADLINE_S):
            while len(await asyncio.to_thread(place.instances)) < 3:
                await asyncio.sleep(0.05)
        answer = await asyncio.to_thread(place.publish, {"limits": {"max": 2}}, "wait=20, share=1.0")
        assert answer["propagation"]["instances"] == 3
        assert answer["propagation"]["applied"] == 3
        for client in (below, other, beside):
            assert client.config("limits")["max"] == 2
        receipts = await asyncio.to_thread(place.receipts, answer["number"])
        assert set(receipts) == {below.status.instance, other.status.instance, beside.status.instance}
        nodes = {one["instance"]: one["node"] for one in await asyncio.to_thread(place.instances)}
        assert nodes[below.status.instance].startswith(f"{made['id']}/office-")
        assert not nodes[beside.status.instance].startswith("edge_")
