"""A registry that listens on loopback, over a fresh database, and an author's view of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from heliograph.services.registry.app import serve
from heliograph.services.registry.settings import RegistrySettings

DEADLINE_S = 60


class Author:
    """One token's view of the registry, with the words that tests speak in."""

    def __init__(self, http: httpx.AsyncClient, token: str, place: str = "/v1/namespaces/shop/environments/production") -> None:
        self.http = http
        self.place = place
        self.headers = {"Authorization": f"Bearer {token}"}

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = self.headers | more.pop("headers", {})
        return await self.http.request(
            method, path if path.startswith("/v1") else f"{self.place}{path}", headers=headers, **more
        )

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.ask("GET", path, **more)

    async def put(self, name: str, document: Any, **more: Any) -> httpx.Response:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await self.ask("PUT", f"/configs/{name}", content=body, **more)

    async def put_schema(self, name: str, schema: Any, **more: Any) -> httpx.Response:
        return await self.ask("PUT", f"/schemas/{name}", content=json.dumps(schema).encode(), **more)

    async def publish(self, *changes: dict[str, Any], message: str | None = None, **more: Any) -> httpx.Response:
        return await self.ask(
            "POST", "/versions", json={"changes": list(changes)} | ({"message": message} if message else {}), **more
        )

    async def head(self) -> dict[str, Any]:
        return good(await self.get(self.place.replace("/namespaces", "/heads").replace("/environments", "")))

    async def settle(self) -> None:
        """The namespace and environment that most tests work in."""
        _, _, _, namespace, _, environment = self.place.split("/")
        good(await self.ask("POST", "/v1/namespaces", json={"name": namespace}), 201)
        good(await self.ask("POST", f"/v1/namespaces/{namespace}/environments", json={"name": environment}), 201)


def good(answer: httpx.Response, status: int | None = None) -> Any:
    """The answer's body, of an answer that is as it should be."""
    assert answer.is_success, (answer.status_code, answer.text[:2000])
    assert status in (None, answer.status_code), (answer.status_code, answer.text[:2000])
    return answer.json() if answer.content else None


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of a refusal."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text[:2000]
    body: dict[str, Any] = answer.json()
    assert (body["code"], body["status"], body["type"]) == (code, status, f"urn:heliograph:problem:{code}")
    return body


class Running:
    """A registry in this loop."""

    def __init__(self, settings: RegistrySettings, stop: asyncio.Event) -> None:
        self.settings = settings
        self.stop = stop
        self.url = f"http://127.0.0.1:{settings.registry_port}"

    def token(self, kind: str = "admin") -> str:
        return (self.settings.data_dir / "tokens" / f"{kind}.token").read_text().strip()


@asynccontextmanager
async def running(settings: RegistrySettings) -> AsyncIterator[Running]:
    ready, stop = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(settings, ready=ready, stop=stop))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({serving, waiting}, timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        assert ready.is_set()
        yield Running(settings, stop)
    finally:
        waiting.cancel()
        stop.set()
        await asyncio.wait_for(serving, DEADLINE_S)


@pytest.fixture
def settings(database: Any, tmp_path: Path, free_port: Any) -> RegistrySettings:
    """Of a registry over this test's database. The ledger's port is one that nobody listens on."""
    return RegistrySettings(
        database_url=database.url("heliograph_registry"),
        data_dir=tmp_path / "data",
        registry_port=free_port(),
        ledger_port=free_port(),
        drain_s=2,
    )


@pytest.fixture
async def registry(settings: RegistrySettings) -> AsyncIterator[Running]:
    async with running(settings) as one:
        yield one


@pytest.fixture
async def http(registry: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=registry.url, timeout=DEADLINE_S, limits=httpx.Limits(max_connections=200)) as client:
        yield client


@pytest.fixture
async def admin(registry: Running, http: httpx.AsyncClient) -> Author:
    return Author(http, registry.token())


@pytest.fixture
async def author(admin: Author) -> Author:
    """The administrator, in an environment that is there."""
    await admin.settle()
    return admin


@pytest.fixture
async def service(registry: Running, http: httpx.AsyncClient) -> Author:
    return Author(http, registry.token("service"))


@pytest.fixture
async def sql(database: Any) -> AsyncIterator[asyncpg.Connection]:
    """The database as its owner sees it."""
    connection = await asyncpg.connect(database.url())
    yield connection
    await connection.close()
