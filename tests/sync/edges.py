"""Edges below a world: started, stopped and started again; clients of one speak to it as they do to a sync node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from tests.conftest import free_port
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, Service, World

from heliograph.services.sync.edge import app
from heliograph.services.sync.edge.settings import EdgeSettings

SCOPE = ({"namespace": NAMESPACE, "environment": ENVIRONMENT},)


async def edge_token(world: World, name: str = "office", scopes: tuple[dict[str, str], ...] = SCOPE) -> dict[str, Any]:
    made = await world.api.post("/v1/tokens", json={"kind": "edge", "name": name, "scopes": scopes})
    return dict(made.raise_for_status().json())


@dataclass
class Edge:
    """``world``: the same environment, as this edge's clients see it."""

    service: Service
    settings: EdgeSettings
    token: dict[str, Any]
    world: World

    @property
    def url(self) -> str:
        return self.settings.bundles_url

    @property
    def folder(self) -> Path:
        return self.settings.data_dir / "edge"

    async def ask(self, path: str) -> Any:
        return (await self.world.bundles.get(path)).raise_for_status().json()

    async def until(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Until its own word of itself is so."""
        async with asyncio.timeout(DEADLINE_S):
            while not what(status := await self.ask("/v1/edge")):
                await asyncio.sleep(0.02)
        return dict(status)

    async def until_connected(self) -> None:
        await self.until(lambda status: status["connected"])

    async def until_away(self) -> None:
        await self.until(lambda status: not status["connected"])


@asynccontextmanager
async def edge_below(
    world: World, url: str, folder: Path, *, token: dict[str, Any] | None = None, start: bool = True, **more: Any
) -> AsyncIterator[Edge]:
    token = token or await edge_token(world)
    settings = EdgeSettings(
        parent_url=url,
        edge_token=SecretStr(token["token"]),
        sync_port=free_port(),
        sync_http_port=free_port(),
        data_dir=folder,
        drain_s=1.0,
        **{"heartbeat_s": 20.0, "edge_reconnect_cap_s": 0.2, "node": folder.name, **more},
    )
    headers = {"Authorization": f"Bearer {world.tokens['client']}"}
    async with httpx.AsyncClient(base_url=settings.bundles_url, headers=headers, timeout=DEADLINE_S) as bundles:
        service = Service(app.serve, settings)
        edge = Edge(service, settings, token, replace(world, sync=service, bundles=bundles, stream=settings.stream_url))
        if start:
            await service.start()
        try:
            yield edge
        finally:
            await service.end()


def registry_of(world: World) -> str:
    return str(world.api.base_url)
