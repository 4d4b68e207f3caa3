"""A running Heliograph that is measured: its own processes, environments to publish to, and what became of a version."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.load import Failed, Load, Round, load
from bench.machine import cpu_us, family, pin, pinned
from bench.propagation import document
from bench.stacks import Stack, free_ports, servers

NAMESPACE = "bench"
CONFIGS = 12
"""Of some 500 bytes each: with digests, proof and signatures the snapshot is about 10 KB."""
SERVER_CPU, OTHER_CPU = 0, 1
SETTLE_S = 0.03
STORY_S = 20
LIMITS = {
    "HELIOGRAPH_MAX_CONNECTIONS_PER_TOKEN": "0",
    "HELIOGRAPH_MAX_CONNECTIONS_PER_ADDRESS": "0",
    "HELIOGRAPH_CONNECTS_PER_ADDRESS_S": "0",
    "HELIOGRAPH_REQUESTS_PER_ADDRESS_S": "0",
    "HELIOGRAPH_BUSY_LAG_S": "60",
    "HELIOGRAPH_HEARTBEAT_S": "600",
    "HELIOGRAPH_HUGE_PAGES": "true",
}
"""Settings of sync in a benchmark: all clients come from a few addresses, with one token, as fast as they can. Heartbeats are put off as the others'
pings are; the row about idle connections has them. Huge pages are for nodes with thousands of clients, which these are."""


@dataclass(frozen=True)
class Published:
    number: int
    started_us: int
    answered_us: int


@dataclass
class World:
    stack: Stack
    api: httpx.AsyncClient
    ledger: httpx.AsyncClient
    folder: Path
    token: str = ""
    _count: int = 0

    @property
    def sync(self) -> list[int]:
        """The processes of the sync service, its workers among them."""
        return family(self.stack.services["sync"])

    @property
    def pids(self) -> list[int]:
        return family(*self.stack.pids, *self.stack.services.values(), *_postgres(self.folder))

    def cpu_by_service(self) -> dict[str, float]:
        """Microseconds of CPU until now, of each service with its children, and of PostgreSQL."""
        used = {name: cpu_us(family(pid)) for name, pid in self.stack.services.items()}
        return used | {"PostgreSQL": cpu_us(family(*_postgres(self.folder)))}

    async def environment(self, name: str = "main", configs: int = CONFIGS) -> str:
        (await self.api.post(f"/v1/namespaces/{NAMESPACE}/environments", json={"name": name})).raise_for_status()
        changes = [{"name": f"service-{i}", "document": document(0)} for i in range(configs)]
        path = f"/v1/namespaces/{NAMESPACE}/environments/{name}/versions"
        (await self.api.post(path, json={"changes": changes})).raise_for_status()
        return name

    async def publish(self, environment: str = "main", *, wait: bool = False) -> Published:
        """A change of one document of some 500 bytes. `wait`: clients are to answer at once; the author is answered when all have."""
        self._count += 1
        headers = {"Content-Type": "application/json"} | ({"Prefer": "wait=10"} if wait else {})
        path = f"/v1/namespaces/{NAMESPACE}/environments/{environment}/configs/service-0"
        started = time.time_ns() // 1000
        answer = await self.api.put(path, content=json.dumps(document(self._count)).encode(), headers=headers)
        answer.raise_for_status()
        return Published(answer.json()["number"], started, time.time_ns() // 1000)

    async def version(self, clients: Load, environment: str = "main", *, wait: bool = False) -> tuple[Published, Round]:
        """Publishes one, and waits until the last of `clients` has it."""
        await clients.arm()
        publishing = asyncio.create_task(self.publish(environment, wait=wait))
        try:
            arrived = await clients.arrived()
            while not publishing.done():  # with `wait`, the last answers are still on their way
                await clients.serve(5)
            return await publishing, arrived
        finally:
            await asyncio.wait([publishing])

    async def snapshot_bytes(self, environment: str = "main") -> int:
        """Of the frame that a new client gets, once the node has all of it."""
        headers, path = {"Authorization": f"Bearer {self.token}"}, f"/v1/bundles/{NAMESPACE}/{environment}"
        async with httpx.AsyncClient(base_url=self.stack.endpoints["bundles"], headers=headers, timeout=30) as sync:
            for _ in range(500):
                answer = (await sync.get(path)).raise_for_status()
                if len(answer.json().get("changes", {})) == CONFIGS:
                    return len(answer.content)
                await asyncio.sleep(0.01)
        raise Failed("the node did not get the first version within 5 s")

    async def story(self, environment: str, number: int, *, answered: bool = True) -> dict[str, Any]:
        """What the ledger tells of a version once the fan-out is reported and, if they do that, all have answered. Raises Failed when that does not
        come."""
        deadline = time.monotonic() + STORY_S
        while True:
            answer = await self.ledger.get(f"/v1/propagations/{NAMESPACE}/{environment}/{number}")
            if answer.status_code == httpx.codes.NOT_FOUND and time.monotonic() < deadline:  # it has not read that far
                await asyncio.sleep(0.02)
                continue
            story = answer.raise_for_status().json()
            if story.get("fanned_out_at_us") and not (answered and story["missing"]):
                return story
            if time.monotonic() > deadline:
                raise Failed(f"{story['missing']:,} receipts of version {number} were not stored within {STORY_S} s")
            await asyncio.sleep(0.1)

    async def taken_us(self, environment: str, number: int) -> int:
        """When the node took the last receipt of a version, as the receipts themselves say."""
        last, cursor = 0, None
        while True:
            asked = {"limit": 500} | ({"cursor": cursor} if cursor else {})
            page = (
                (await self.ledger.get(f"/v1/propagations/{NAMESPACE}/{environment}/{number}/receipts", params=asked))
                .raise_for_status()
                .json()
            )
            last = max([last, *(each["received_at_us"] for each in page["items"])])
            cursor = page["next"]
            if not cursor:
                return last

    @asynccontextmanager
    async def clients(self, count: int, environment: str = "main", *, port: int = 0, **options: object) -> AsyncIterator[Load]:
        asked = {"token": self.token, "namespace": NAMESPACE, "environment": environment, "heartbeat": 600} | options
        async with load("heliograph", port or self.stack.stream_port, count, **asked) as running:
            yield running

    @asynccontextmanager
    async def another_sync(self, settings: Mapping[str, str], *, cpu: int | None) -> AsyncIterator[tuple[int, list[int]]]:
        """One more sync node of this world, with other settings: the port of its stream and its processes."""
        stream, http = free_ports(2)
        environ = Path(f"/proc/{self.stack.services['sync']}/environ").read_bytes().split(b"\0")
        env = dict(each.decode().split("=", 1) for each in environ if each)
        env |= {"HELIOGRAPH_SYNC_PORT": str(stream), "HELIOGRAPH_SYNC_HTTP_PORT": str(http)} | settings
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "heliograph.cli", "serve", "sync"),
            env=env,
            stdout=(log := (self.folder / "another-sync.log").open("wb")),
            stderr=log,
        )
        try:
            await _opened(child, stream, self.folder / "another-sync.log")
            if cpu is not None:
                pin(family(child.pid), cpu)
            yield stream, family(child.pid)
        finally:
            if child.returncode is None:
                child.terminate()
            await asyncio.wait_for(child.wait(), 60)
            log.close()


async def _opened(child: asyncio.subprocess.Process, port: int, log: Path) -> None:
    for _ in range(600):
        if child.returncode is not None:
            raise Failed(f"sync ended at start: {log.read_text(errors='replace')[-300:].strip()}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    raise Failed("sync did not listen within a minute")


def _postgres(folder: Path) -> list[int]:
    try:
        return [int((folder / "stack/postgres/data/postmaster.pid").read_text().splitlines()[0])]
    except OSError:
        return []


@asynccontextmanager
async def world(
    *, kafka: bool = False, pin_sync: bool = True, workers: int = 1, settings: Mapping[str, str] | None = None
) -> AsyncIterator[World]:
    """Registry, relay, ledger and sync on real servers, with namespace and token. `pin_sync`: sync has core 0 for itself, all else core 1."""
    sync: Sequence[str] = ["--workers", str(workers)] if workers > 1 else []
    several = pin_sync and len(os.sched_getaffinity(0)) > 1
    async with AsyncExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="heliograph-bench-")))
        open_.enter_context(pinned(OTHER_CPU if several else None))
        try:
            stack = await open_.enter_async_context(
                servers(folder, kafka=kafka, sync=sync, settings=LIMITS | (dict(settings or {})))
            )
        except RuntimeError as error:
            if workers > 1 and "No such option" in str(error) + _log(folder, "sync"):
                raise Failed("needs `heliograph serve sync --workers`") from None
            raise
        headers = {"Authorization": f"Bearer {stack.token}"}
        api = await open_.enter_async_context(httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60))
        ledger = await open_.enter_async_context(
            httpx.AsyncClient(base_url=stack.endpoints["ledger"], headers=headers, timeout=60)
        )
        made = World(stack, api, ledger, folder)
        if several:
            pin(made.sync, SERVER_CPU)
        (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        await made.environment()
        asked = {"kind": "client", "name": "bench", "scopes": [{"namespace": NAMESPACE}]}
        made.token = str((await api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"])
        yield made


def _log(folder: Path, service: str) -> str:
    try:
        return (folder / f"stack/logs/{service}.log").read_text(errors="replace")
    except OSError:
        return ""


@asynccontextmanager
async def spent(pids: Sequence[int]) -> AsyncIterator[list[float]]:
    """Microseconds of CPU of these processes, with the work that they finish right after; one number, there when the block has ended."""
    out: list[float] = []
    before = cpu_us(pids)
    yield out
    await asyncio.sleep(SETTLE_S)
    out.append(cpu_us(pids) - before)
