"""Many authors at once: two hundred on one environment, on as many environments of one shard, and of all shards.

Each author publishes one config's new value after the other, as fast as answers come; the time is the author's. Authors of one environment change
different configs; none uses If-Match, so each publish is on top of whatever is there. Afterwards every environment must have exactly the versions that
were acknowledged: a lost update fails the run.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx

from bench.report import machine, quantile
from bench.stacks import Stack, servers
from heliograph.core.events import SHARDS, shard_of

AUTHORS = 200
PUBLISHES = 15
NAMESPACE = "authors"


@dataclass
class Case:
    label: str
    environments: list[str]
    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    refused: int = 0


def _names(prefix: str, shards: set[int]) -> Iterator[str]:
    """Environments whose events go to these shards."""
    return (name for i in count() if shard_of(NAMESPACE, name := f"{prefix}-{i}") in shards)


def _cases() -> list[Case]:
    one, all_ = _names("one-shard", {0}), _names("all-shards", set(range(SHARDS)))
    return [
        Case("one environment", ["together"] * AUTHORS),
        Case(f"{AUTHORS} environments of one shard", [next(one) for _ in range(AUTHORS)]),
        Case(f"{AUTHORS} environments of {SHARDS} shards", [next(all_) for _ in range(AUTHORS)]),
    ]


async def measure() -> str:
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
        async with servers(Path(folder)) as stack, _api(stack) as api:
            (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
            cases = _cases()
            for case in cases:
                await _run(api, case)
    return _table(cases)


def _api(stack: Stack) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {stack.token}", "Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=AUTHORS, max_keepalive_connections=AUTHORS)
    return httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=120, limits=limits)


async def _run(api: httpx.AsyncClient, case: Case) -> None:
    for name in dict.fromkeys(case.environments):
        (await api.post(f"/v1/namespaces/{NAMESPACE}/environments", json={"name": name})).raise_for_status()
    started = time.perf_counter()
    await asyncio.gather(*(_author(api, case, i) for i in range(AUTHORS)))
    case.seconds = time.perf_counter() - started
    for name in dict.fromkeys(case.environments):
        head = (await api.get(f"/v1/heads/{NAMESPACE}/{name}")).raise_for_status().json()
        expected = 1 + PUBLISHES * case.environments.count(name)
        if head["number"] != expected:
            raise RuntimeError(f"{name} is at version {head['number']}, {expected - 1} publishes were acknowledged")


async def _author(api: httpx.AsyncClient, case: Case, i: int) -> None:
    path = f"/v1/namespaces/{NAMESPACE}/environments/{case.environments[i]}/configs/author-{i}"
    for revision in range(PUBLISHES):
        started = time.perf_counter()
        while (answer := await api.put(path, content=json.dumps({"revision": revision}))).status_code == 503:
            case.refused += 1
            await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
        answer.raise_for_status()
        case.milliseconds.append((time.perf_counter() - started) * 1000)


def _table(cases: list[Case]) -> str:
    def line(case: Case) -> str:
        cells = " | ".join(f"{quantile(case.milliseconds, share):.0f}" for share in (0.5, 0.95, 0.99))
        return f"| {case.label} | {len(case.milliseconds) / case.seconds:,.0f} | {cells} | {case.refused} |"

    return "\n".join(
        [
            f"{AUTHORS} authors, {PUBLISHES} publishes each, one registry process on PostgreSQL (fsync on) beside Kafka and all services. {machine()}.",
            "",
            "| authors on | commits/s | p50, ms | p95 | p99 | told to come back |",
            "|---|---|---|---|---|---|",
            *(line(case) for case in cases),
            "",
            "No update was lost: every environment had exactly the versions that were acknowledged.",
        ]
    )
