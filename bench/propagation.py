"""Publish to applied: 20 or more real SDK processes inside a crowd of synthetic clients, on one stack.

t0 is taken just before the author's first byte; an SDK's time is when its application's callback has run (verified, applied), a synthetic
client's when it has read the frame's last byte. Half of the crowd connects before the SDKs and half after, as a node sends in the order in which
they came. Everything runs on this machine's one clock, so no offset is estimated. Receipts are
stored by the ledger throughout, verification is on.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.clients import Arrivals, crowd, read_arrivals, sdks
from bench.stacks import Stack

CONFIGS = 50
TARGET = ("bench", "main")
WARM_UP = 10


@dataclass
class Result:
    """Milliseconds since the author's first byte; one list entry per (version, client) or per version."""

    stack: str
    clients: int
    processes: int
    publishes: int
    answered: list[float] = field(default_factory=list)
    sdk: list[float] = field(default_factory=list)
    synthetic: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    receipts_stored: int = 0
    receipts_expected: int = 0


def document(number: int) -> dict[str, object]:
    """About 500 bytes of canonical text."""
    return {"flags": {f"feature_{i:02d}": {"on": i % 2 == 0, "limit": 100 + i} for i in range(12)}, "revision": number}


async def measure(stack: Stack, folder: Path, *, clients: int, processes: int, publishes: int, gap_s: float) -> Result:
    headers = {"Authorization": f"Bearer {stack.token}"}
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=30) as api:
        token = await prepare(api)
        half, arrivals = clients // 2, [folder / "crowd-before", folder / "crowd-after"]
        async with (
            crowd(stack, token, TARGET, half, arrivals[0]),
            sdks(stack, token, TARGET, processes, folder),
            crowd(stack, token, TARGET, clients - half, arrivals[1]),
        ):
            published = await _publish(api, publishes, gap_s)
            stories = await _stories(stack, headers, [number for number, _, _ in published])
    result = Result(stack.name, clients, processes, publishes)
    result.receipts_expected = publishes * (clients + processes)
    sdk_files = [folder / f"sdk-{i}" / "arrivals" for i in range(processes)]
    _collect(result, published, stories, read_arrivals(*sdk_files), read_arrivals(*arrivals))
    return result


async def prepare(api: httpx.AsyncClient) -> str:
    namespace, environment = TARGET
    (await api.post("/v1/namespaces", json={"name": namespace})).raise_for_status()
    (await api.post(f"/v1/namespaces/{namespace}/environments", json={"name": environment})).raise_for_status()
    changes = [{"name": f"service-{i}", "document": document(0)} for i in range(CONFIGS)]
    (
        await api.post(f"/v1/namespaces/{namespace}/environments/{environment}/versions", json={"changes": changes})
    ).raise_for_status()
    asked = {"kind": "client", "name": "bench", "scopes": [{"namespace": namespace, "environment": environment}]}
    answer = (await api.post("/v1/tokens", json=asked)).raise_for_status()
    return str(answer.json()["token"])


async def _publish(api: httpx.AsyncClient, publishes: int, gap_s: float) -> list[tuple[int, int, int]]:
    """(version number, first byte, answer) of each publish after the warm-up, in microseconds. Evenly spaced with jitter, so that no
    periodic task of the services is always hit or always missed."""
    out = []
    for i in range(WARM_UP + publishes):
        body = json.dumps(document(i + 1)).encode()
        path = f"/v1/namespaces/{TARGET[0]}/environments/{TARGET[1]}/configs/service-{i % CONFIGS}"
        started = time.time_ns() // 1000
        answer = (await api.put(path, content=body, headers={"Content-Type": "application/json"})).raise_for_status()
        if i >= WARM_UP:
            out.append((answer.json()["number"], started, time.time_ns() // 1000))
        await asyncio.sleep(gap_s * random.uniform(0.7, 1.3))
    await asyncio.sleep(2)
    return out


async def _stories(stack: Stack, headers: dict[str, str], numbers: list[int]) -> dict[int, dict[str, object]]:
    """The ledger's propagation of each version, once all its receipts are in or a minute has passed."""
    out = {}
    async with httpx.AsyncClient(base_url=stack.endpoints["ledger"], headers=headers, timeout=30) as ledger:
        deadline = time.monotonic() + 60
        for number in numbers:
            path = f"/v1/propagations/{TARGET[0]}/{TARGET[1]}/{number}"
            while True:
                story = (await ledger.get(path)).raise_for_status().json()
                if story["missing"] == 0 or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.2)
            out[number] = story
    return out


def _collect(
    result: Result, published: list[tuple[int, int, int]], stories: dict[int, dict], sdk: Arrivals, synthetic: Arrivals
) -> None:
    marks = {
        "received": "received_at_us",
        "committed": "committed_at_us",
        "read from the log": "logged_at_us",
        "last send": "fanned_out_at_us",
    }
    for number, started, answered in published:
        story = stories[number]
        result.answered.append((answered - started) / 1000)
        result.sdk += [(moment - started) / 1000 for moment in sdk[number]]
        result.synthetic += [(moment - started) / 1000 for moment in synthetic[number]]
        result.receipts_stored += sum(story[state] for state in ("applied", "unaffected", "superseded", "rejected"))
        for stage, member in marks.items():
            if story.get(member):
                result.stages.setdefault(stage, []).append((story[member] - started) / 1000)
