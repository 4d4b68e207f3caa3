"""What does a client cost that reads HTTP? A 304 beside the same server's answer with a constant; requests that wait for a version, or follow all.

Rounds of each kind are interleaved in one run, over kept connections, one request at a time on each. CPU is the server process's own; what it uses
by itself meanwhile (the embedded stack's services, their PostgreSQL apart) is measured in a quiet second and taken off.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvloop

from bench.report import machine
from bench.scale import resident_mb
from bench.stacks import Stack, embedded, free_ports
from heliograph.core.dsse import from_envelope
from heliograph.core.records import Head
from heliograph.runtime.http_server import serve_http

ROUNDS = 15
CONNECTIONS = 16
REQUESTS = 4_000
"""Of one round, all connections together."""
UNBOUNDED = {"HELIOGRAPH_REQUESTS_PER_ADDRESS_S": "0", "HELIOGRAPH_CONNECTS_PER_ADDRESS_S": "0"}
"""All of it comes from one address."""
NAMESPACE, ENVIRONMENT = "polls", "production"
TRACE = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


@dataclass
class Kind:
    """A request, whom it goes to, and what each round of it took."""

    name: str
    port: int
    pid: int
    request: bytes
    idle: float = 0.0  # cores that the process uses by itself
    cpu_us: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)


async def measure(held: int) -> str:
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
        async with embedded(Path(folder), settings=UNBOUNDED) as stack, _bare() as (port, pid):
            bundle, tag = await _publish(stack)
            kinds = _kinds(stack, port, pid, bundle, tag)
            for each in kinds:
                each.idle = await _idle(each.pid)
            for _ in range(ROUNDS):
                for each in kinds:
                    await _round(each)
            crowds = [await _measure_crowd(stack, bundle, each, held) for each in CROWDS]
    return _text(kinds, held, crowds)


def _kinds(stack: Stack, port: int, pid: int, bundle: str, tag: str) -> list[Kind]:
    """The bare server is asked with the same headers: reading them is part of both."""
    address = urlsplit(stack.endpoints["bundles"])
    head = f"GET {bundle} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.token}\r\nIf-None-Match: {tag}\r\n"
    assert address.port
    return [
        Kind("bare server, constant 304", port, pid, f"{head}\r\n".encode()),
        Kind("bundle not modified", address.port, stack.pids[0], f"{head}\r\n".encode()),
        Kind("the same by way of the framework", address.port, stack.pids[0], f"{head}{TRACE}\r\n".encode()),
    ]


async def _publish(stack: Stack) -> tuple[str, str]:
    """Where there is something to poll, and its ETag."""
    headers = {"Authorization": f"Bearer {stack.token}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        (await http.post(f"{stack.url}/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        made = await http.post(f"{stack.url}/v1/namespaces/{NAMESPACE}/environments", json={"name": ENVIRONMENT})
        made.raise_for_status()
        await _put(http, stack, 0)
        bundle = f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}"
        while (answer := await http.get(stack.endpoints["bundles"] + bundle)).headers.get("heliograph-version") != "2":
            await asyncio.sleep(0.1)
        return bundle, answer.headers["etag"]


async def _put(http: httpx.AsyncClient, stack: Stack, number: int) -> None:
    path = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}/configs/limits"
    (await http.put(stack.url + path, json={"limit": number, "note": "x" * 400})).raise_for_status()


# --- not modified -------------------------------------------------------------------------------------------------------------------


async def _round(kind: Kind) -> None:
    cpu, began = _cpu_s(kind.pid), time.perf_counter()
    await asyncio.gather(*(_ask(kind, REQUESTS // CONNECTIONS) for _ in range(CONNECTIONS)))
    took_s = time.perf_counter() - began
    kind.cpu_us.append((_cpu_s(kind.pid) - cpu - kind.idle * took_s) * 1e6 / REQUESTS)
    kind.per_s.append(REQUESTS / took_s)


async def _ask(kind: Kind, times: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", kind.port)
    for _ in range(times):
        writer.write(kind.request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 304"):
            raise RuntimeError(f"{kind.name}: {answer[:200]!r}")
    writer.close()
    await writer.wait_closed()


def _cpu_s(pid: int) -> float:
    """Of all its threads, to the scheduler's own precision."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def _idle(pid: int) -> float:
    before = _cpu_s(pid)
    await asyncio.sleep(2)
    return (_cpu_s(pid) - before) / 2


@asynccontextmanager
async def _bare() -> AsyncIterator[tuple[int, int]]:
    """The product's own HTTP server with an app that says 304 and nothing else, in a process of its own."""
    [port] = free_ports(1)
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.polls", str(port), stdout=asyncio.subprocess.PIPE)
    try:
        assert child.stdout
        await child.stdout.readline()
        yield port, child.pid
    finally:
        child.terminate()
        await child.wait()


async def _constant(_scope: Any, _receive: Any, send: Any) -> None:
    headers = [(b"etag", b'"x"'), (b"cache-control", b"private, max-age=5"), (b"heliograph-version", b"2")]
    await send({"type": "http.response.start", "status": 304, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


# --- those who wait -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """Who reads the next version over HTTP: by which address, until which bytes, counted by which metric."""

    name: str
    resource: str
    until: bytes
    metric: str


CROWDS = (
    Crowd("requests that wait", "bundles", b"\r\n\r\n", "heliograph_polls_held"),
    Crowd("event streams", "events", b"event: delta", "heliograph_connections"),
)


@dataclass(frozen=True)
class Cost:
    name: str
    kilobytes: float
    cpu_us: float
    first_ms: float
    last_ms: float


async def _measure_crowd(stack: Stack, bundle: str, crowd: Crowd, count: int) -> Cost:
    """So many wait; then a version comes."""
    server, pid = stack.endpoints["bundles"], stack.pids[0]
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.token}"}, timeout=60) as http:
        envelope = (await http.get(f"{server}/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).json()
        have = Head.read(from_envelope(envelope)[1].payload).cursor
        path = f"{bundle.replace('bundles', crowd.resource)}?have={have}&wait=25"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.token}\r\n\r\n".encode()
        memory, arrived = resident_mb(pid), list[float]()
        port = urlsplit(server).port
        assert port
        waiting = [asyncio.create_task(_wait(port, request, crowd.until, arrived)) for _ in range(count)]
        while f"{crowd.metric} {count}.0" not in (await http.get(f"{server}/metrics")).text:
            await asyncio.sleep(0.2)
        kilobytes = (resident_mb(pid) - memory) * 1024 / count
        cpu, began = _cpu_s(pid), time.perf_counter()
        await _put(http, stack, 1000 * have.number)
        await asyncio.gather(*waiting)
        cpu_us = (_cpu_s(pid) - cpu) * 1e6 / count
        while f"{crowd.metric} 0.0" not in (await http.get(f"{server}/metrics")).text:
            await asyncio.sleep(0.2)
    return Cost(crowd.name, kilobytes, cpu_us, (min(arrived) - began) * 1e3, (max(arrived) - began) * 1e3)


async def _wait(port: int, request: bytes, until: bytes, arrived: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await reader.readuntil(until)
    arrived.append(time.perf_counter())
    writer.close()


def _text(kinds: list[Kind], held: int, crowds: list[Cost]) -> str:
    bare = median(kinds[0].cpu_us)
    return "\n".join(
        [
            f"{ROUNDS} interleaved rounds of {REQUESTS:,} requests each on {CONNECTIONS} kept connections, medians; the server is one process.",
            f"{machine()}.",
            "",
            "| answer | per second | server CPU, µs each | above the bare server, µs |",
            "|---|---|---|---|",
            *(
                f"| {each.name} | {median(each.per_s):,.0f} | {median(each.cpu_us):.1f} | {median(each.cpu_us) - bare:.1f} |"
                for each in kinds
            ),
            "",
            f"{held:,} of each at once, and then a version; milliseconds since the author's first byte. The readers share the machine.",
            "",
            "| who reads | KB each, connection included | first has it, ms | last has it, ms | server CPU, µs each, publish included |",
            "|---|---|---|---|---|",
            *(
                f"| {each.name} | {each.kilobytes:.1f} | {each.first_ms:.0f} | {each.last_ms:.0f} | {each.cpu_us:.0f} |"
                for each in crowds
            ),
        ]
    )


async def _serve(port: int) -> None:
    await serve_http(_constant, "127.0.0.1", port, stop=asyncio.Event(), on_started=lambda: print("ready", flush=True))


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
