"""Every service as a process of its own, on a real PostgreSQL and, if wanted, a real Kafka; any of them can be killed and comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.conftest import free_port
from tests.end_to_end.processes import ROOT, Managed, heliograph

from heliograph.runtime.children import DEVNULL, start

PG_SCRIPT = ROOT / "deploy/postgres/postgres.sh"
KAFKA_SCRIPT = ROOT / "deploy/kafka/kafka.sh"


@dataclass
class Server:
    """PostgreSQL or Kafka, by the project's script."""

    name: str
    script: Path
    env: dict[str, str]

    async def run(self, verb: str) -> None:
        """Its output goes to a file: what the script leaves running would keep a pipe open."""
        with tempfile.TemporaryFile() as out:
            child = await start("bash", self.script, verb, env={**os.environ, **self.env}, stdout=out, stderr=out)
            status = await asyncio.wait_for(child.wait(), 180)
            out.seek(0)
            assert status == 0, f"{self.name} {verb} ended with {status}: {out.read().decode()[-2000:]}"

    async def start(self) -> None:
        await self.run("start")

    async def kill(self) -> None:
        await self.run("kill")


@dataclass
class Stack:
    folder: Path
    url: str
    servers: dict[str, Server]
    services: dict[str, Managed]
    ports: dict[str, int] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)

    @property
    def admin_token(self) -> str:
        return (self.folder / "data/tokens/admin.token").read_text().strip()

    def http(self, base: str = "") -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=base or self.url, headers={"Authorization": f"Bearer {self.admin_token}"}, timeout=15)

    async def look_around(self) -> None:
        async with self.http() as api:
            self.endpoints = (await api.get("/v1/endpoints")).json()

    async def all_ready(self) -> None:
        """Of services that are being kept alive."""
        for each in self.services.values():
            await each.ready(revived=True)


@asynccontextmanager
async def running(
    folder: Path, *, kafka: bool, prepare: Callable[[Stack], Awaitable[None]] | None = None, services: bool = True
) -> AsyncIterator[Stack]:
    """``prepare``: what happens between the migrations and the first start of a service. Without ``services`` only what they need is started."""
    ports = {
        name: free_port() for name in ("registry", "sync", "sync_http", "ledger", "relay", "postgres", "kafka", "controller")
    }
    postgres = Server(
        "postgres", PG_SCRIPT, {"POSTGRES_DIR": str(folder / "postgres"), "POSTGRES_PORT": str(ports["postgres"])}
    )
    servers = {"postgres": postgres}
    if kafka:
        env = {
            "KAFKA_DIR": str(folder / "kafka"),
            "KAFKA_PORT": str(ports["kafka"]),
            "KAFKA_CONTROLLER_PORT": str(ports["controller"]),
        }
        servers["kafka"] = Server("kafka", KAFKA_SCRIPT, env)
    stack = _stack(folder, ports, servers)
    try:
        await asyncio.gather(*(each.start() for each in servers.values()))
        await _migrate(stack, ports)
        if prepare:
            await prepare(stack)
        if services:
            for each in stack.services.values():
                await each.start()
                await each.ready()
            await stack.look_around()
        yield stack
    finally:
        for each in reversed(stack.services.values()):
            await each.kill()
        for each in servers.values():
            await each.run("kill")
        postgres_data = folder / "postgres"
        if postgres_data.is_symlink():
            shutil.rmtree(postgres_data.resolve())


def _stack(folder: Path, ports: dict[str, int], servers: dict[str, Server]) -> Stack:
    url = f"http://127.0.0.1:{ports['registry']}"
    shared = {
        "HELIOGRAPH_DATA_DIR": str(folder / "data"),
        "HELIOGRAPH_SERVICE_TOKEN_FILE": str(folder / "data/tokens/service.token"),
        "HELIOGRAPH_REGISTRY_URL": url,
        "HELIOGRAPH_LEDGER_URL": f"http://127.0.0.1:{ports['ledger']}",
        "HELIOGRAPH_REGISTRY_PORT": str(ports["registry"]),
        "HELIOGRAPH_SYNC_PORT": str(ports["sync"]),
        "HELIOGRAPH_SYNC_HTTP_PORT": str(ports["sync_http"]),
        "HELIOGRAPH_LEDGER_PORT": str(ports["ledger"]),
        "HELIOGRAPH_RELAY_PORT": str(ports["relay"]),
        "HELIOGRAPH_KAFKA_BOOTSTRAP": f"127.0.0.1:{ports['kafka']}" if "kafka" in servers else "",
        "HELIOGRAPH_DRAIN_S": "2",
    }
    names = ["registry", *(["relay"] if "kafka" in servers else []), "ledger", "sync"]
    health = {"registry": "registry", "relay": "relay", "ledger": "ledger", "sync": "sync_http"}

    def service(name: str) -> Managed:
        database = f"postgresql://heliograph_{name}@127.0.0.1:{ports['postgres']}/heliograph"
        return Managed(
            name=name,
            command=heliograph("serve", name),
            env=shared | {"HELIOGRAPH_DATABASE_URL": database},
            log=folder / f"{name}.log",
            ready_url=f"http://127.0.0.1:{ports[health[name]]}/readyz",
        )

    return Stack(folder, url, servers, {name: service(name) for name in names}, ports)


async def _migrate(stack: Stack, ports: dict[str, int]) -> None:
    url = f"postgresql://postgres@127.0.0.1:{ports['postgres']}/heliograph"
    child = await start(*heliograph("migrate", "--database-url", url), stdout=DEVNULL)
    assert await asyncio.wait_for(child.wait(), 120) == 0
