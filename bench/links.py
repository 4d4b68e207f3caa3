"""Long and lossy lines: publish to applied in real SDKs behind a relay with delay and loss, over the WebSocket and by polling.

The relay is user space (tests/fixtures/link.py): a lost segment holds up what follows by a retransmission. SDKs run in this process, on the same clock
as the author, each behind lines of its own seeds; the services are the embedded stack's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from tests.fixtures.link import Link

from bench.propagation import TARGET, document, prepare
from bench.report import machine, quantile
from bench.stacks import Stack
from heliograph import Heliograph
from heliograph.client import Retry

NAMESPACE, ENVIRONMENT = TARGET
PATH = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}/configs/service-0"
DELAYS_MS = (0, 35, 80, 120)
LOSS = 0.01
CLIENTS = 10
PUBLISHES = 25
GAP_S = 0.3


@dataclass
class Case:
    delay_ms: int
    transport: str
    applied: list[float] = field(default_factory=list)
    expected: int = 0


async def measure(stack: Stack, folder: Path) -> str:
    headers = {"Authorization": f"Bearer {stack.token}"}
    cases = [Case(delay, transport) for delay in DELAYS_MS for transport in ("websocket", "polling")]
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as api:
        token = await prepare(api)
        for case in cases:
            await _run(stack, api, token, folder, case)
    return _table(cases)


async def _run(stack: Stack, api: httpx.AsyncClient, token: str, folder: Path, case: Case) -> None:
    seen: defaultdict[int, list[int]] = defaultdict(list)
    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(_behind(stack, token, folder, case, seed)) for seed in range(CLIENTS)]
        for client in clients:
            client.on_version(lambda update: seen[update.cursor.number].append(time.time_ns() // 1000))
        await _all_on(clients, case.transport)
        for revision in range(1, PUBLISHES + 1):  # none that is there already
            started = time.time_ns() // 1000
            number = (await api.put(PATH, json=document(revision))).raise_for_status().json()["number"]
            await asyncio.gather(*(client.wait_for_version(number, timeout=60) for client in clients))
            await asyncio.sleep(GAP_S)
            case.applied += [(moment - started) / 1000 for moment in seen[number]]
            case.expected += CLIENTS
    if len(case.applied) != case.expected:
        raise RuntimeError(f"{case.transport} at {case.delay_ms} ms: {len(case.applied)} of {case.expected} callbacks")


async def _all_on(clients: list[Heliograph], transport: str) -> None:
    async with asyncio.timeout(60):
        while any(client.status.transport != transport for client in clients):
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _behind(stack: Stack, token: str, folder: Path, case: Case, seed: int) -> AsyncIterator[Heliograph]:
    """A client at the end of its own lines; the WebSocket's lets none through where polling is measured."""
    delay_s = case.delay_ms / 1000
    loss = LOSS if case.delay_ms else 0.0
    stream, bundles = (Link(delay_s=delay_s, loss=loss, seed=2 * seed + kind) for kind in (0, 1))
    stream.upgrades = "refuse" if case.transport == "polling" else "pass"
    cache = folder / f"{case.transport}-{case.delay_ms}-{seed}"
    async with (
        stream.listening(urlsplit(stack.endpoints["stream"]).port or 0),
        bundles.listening(urlsplit(stack.endpoints["bundles"]).port or 0),
        _registry_that_names(stack, stream, bundles) as url,
        Heliograph(
            url,
            token=token,
            namespace=NAMESPACE,
            environment=ENVIRONMENT,
            cache_dir=cache,
            start_timeout=60,
            retry=Retry(first_s=0.1, cap_s=60),
        ) as client,
    ):
        yield client


@asynccontextmanager
async def _registry_that_names(stack: Stack, stream: Link, bundles: Link) -> AsyncIterator[str]:
    """What a client asks a registry for, with the lines' near ends for addresses."""
    async with httpx.AsyncClient(base_url=stack.url) as api:
        trust = (await api.get("/v1/trust")).raise_for_status().content
    named = stack.endpoints | {
        "stream": f"ws://127.0.0.1:{stream.port}/v1/stream",
        "bundles": f"http://127.0.0.1:{bundles.port}",
    }
    bodies = {"/v1/trust": trust, "/v1/endpoints": json.dumps(named).encode()}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = bodies[head.split()[1].decode()]
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def _table(cases: list[Case]) -> str:
    def line(case: Case) -> str:
        cells = " | ".join(f"{quantile(case.applied, share):,.0f}" for share in (0.5, 0.99))
        return f"| {case.delay_ms} ms, {LOSS if case.delay_ms else 0:.0%} | {case.transport} | {cells} | {max(case.applied):,.0f} | {len(case.applied)} |"

    return "\n".join(
        [
            f"{CLIENTS} SDKs behind a relay in user space, {PUBLISHES} publishes, embedded stack. {machine()}.",
            "",
            "| one way, loss | transport | publish to applied, p50 ms | p99 | max | callbacks, all there |",
            "|---|---|---|---|---|---|",
            *map(line, cases),
            "",
            "A lost segment is modelled as what a receiver sees of it: all that follows waits for a retransmission (200 ms and a round trip).",
        ]
    )
