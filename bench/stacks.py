"""The two shapes that are measured, as child processes on loopback: embedded (one process) and servers (PostgreSQL, Kafka, four services)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_S = 240


@dataclass(frozen=True)
class Stack:
    name: str
    url: str
    token: str
    endpoints: dict[str, str]
    pids: tuple[int, ...]
    services: dict[str, int] = field(default_factory=dict)
    """Name of a service -> its process, where each has its own."""

    @property
    def stream_port(self) -> int:
        return int(self.endpoints["stream"].rsplit(":", 1)[1].split("/")[0])


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def _ports() -> dict[str, str]:
    names = ("REGISTRY", "SYNC", "SYNC_HTTP", "LEDGER", "RELAY")
    return {f"HELIOGRAPH_{name}_PORT": str(port) for name, port in zip(names, free_ports(5), strict=True)}


def _niced(nice: int) -> list[str]:
    return ["nice", "-n", str(nice)] if nice else []


@asynccontextmanager
async def embedded(folder: Path, *, settings: Mapping[str, str] | None = None, nice: int = 0) -> AsyncIterator[Stack]:
    """Every service in one process on the embedded PostgreSQL. `nice`: of all its processes; below 0 if we may."""
    env = os.environ | _ports() | {"HELIOGRAPH_DATA_DIR": str(folder / "data")} | (settings or {})
    command = [*_niced(nice), sys.executable, "-m", "heliograph.cli", "dev"]
    async with _running("embedded", command, env, folder, "data/tokens") as stack:
        yield stack


@asynccontextmanager
async def servers(
    folder: Path, *, kafka: bool = True, sync: Sequence[str] = (), settings: Mapping[str, str] | None = None, nice: int = 0
) -> AsyncIterator[Stack]:
    """PostgreSQL, Kafka, and each service as its own process. `sync`: more arguments of `heliograph serve sync`; `settings`: variables for all.

    `nice`: of all these processes; below 0 if we may."""
    postgres_port, kafka_port = free_ports(2)
    env = (
        os.environ
        | _ports()
        | {
            "STACK_DIR": str(folder / "stack"),
            "POSTGRES_PORT": str(postgres_port),
            "KAFKA_PORT": str(kafka_port),
            "VENV": str(Path(sys.executable).parent.parent),
            "WITHOUT_KAFKA": "" if kafka else "1",
            "SYNC_ARGS": " ".join(sync),
        }
        | (settings or {})
    )
    command = [*_niced(nice), "bash", str(ROOT / "deploy/stack.sh"), "up"]
    async with _running("servers", command, env, folder, "stack/data/tokens") as stack:
        yield replace(stack, services=await _services(folder / "stack/pids"))


async def _services(file: Path) -> dict[str, int]:
    """What stack.sh tells when everything is ready."""
    async with asyncio.timeout(START_S):
        while not file.exists() or not file.read_text().endswith("\n"):
            await asyncio.sleep(0.05)
    return {name: int(pid) for name, pid in (line.split() for line in file.read_text().splitlines())}


@asynccontextmanager
async def _running(name: str, command: list[str], env: dict[str, str], folder: Path, tokens: str) -> AsyncIterator[Stack]:
    with (folder / f"{name}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log, cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{env['HELIOGRAPH_REGISTRY_PORT']}"
        ready = [
            url,
            f"http://127.0.0.1:{env['HELIOGRAPH_SYNC_HTTP_PORT']}",
            f"http://127.0.0.1:{env['HELIOGRAPH_LEDGER_PORT']}",
        ]
        await asyncio.wait_for(_all_ready(child, ready, folder / f"{name}.log"), START_S)
        async with httpx.AsyncClient() as http:
            endpoints = (await http.get(f"{url}/v1/endpoints")).json()
        token = (folder / tokens / "admin.token").read_text().strip()
        yield Stack(name, url, token, endpoints, (child.pid,))
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        await asyncio.wait_for(child.wait(), 60)


async def _all_ready(child: asyncio.subprocess.Process, urls: list[str], log: Path) -> None:
    async with httpx.AsyncClient() as http:
        for url in urls:
            while not await _ready(http, url):
                if child.returncode is not None:
                    raise RuntimeError(f"the stack ended at start:\n{log.read_text()[-3000:]}")
                await asyncio.sleep(0.1)


async def _ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/readyz")).status_code == 200
    except httpx.HTTPError:
        return False
