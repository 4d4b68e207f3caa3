"""Many authors at once: two hundred on one environment and on two hundred, on installations of 1, 16 and 64 shards.

Each author publishes one config's new value after the other, as fast as answers come, for a fixed time; the time measured is the author's. Authors of
one environment change different configs; none uses If-Match, so each publish is on top of whatever is there. Afterwards every environment must have
exactly the versions that were acknowledged: a lost update fails the run.

All together is bounded: what does not fit into the time is left out, and said.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.report import machine, quantile
from bench.stacks import Stack, servers

AUTHORS = 200
CASE_S = 15.0
BUDGET_S = 230.0
ANSWER_S = 30.0
NAMESPACE = "authors"


@dataclass
class Case:
    """``acknowledged``, ``unknown``: publishes by environment; nobody knows whether one without an answer was committed."""

    shards: int
    label: str
    environments: list[str]
    milliseconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    refused: int = 0
    acknowledged: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def _cases(shards: int) -> list[Case]:
    return [
        Case(shards, "one environment", ["together"] * AUTHORS),
        Case(shards, f"{AUTHORS} environments", [f"own-{i}" for i in range(AUTHORS)]),
    ]


async def measure(shards: list[int]) -> str:
    done: list[Case] = []
    missing = ""
    try:
        async with asyncio.timeout(BUDGET_S):
            for count in shards:
                await _installation(count, done)
    except TimeoutError:
        missing = f"Stopped after {BUDGET_S:.0f} s, in the middle of the last one; what is not listed did not fit."
    return _table(done, missing)


async def _installation(shards: int, done: list[Case]) -> None:
    print(f"{shards} shards: starting", flush=True)
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
        async with servers(Path(folder), settings={"HELIOGRAPH_SHARDS": str(shards)}) as stack, _api(stack) as api:
            (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
            for case in _cases(shards):
                done.append(case)  # what it has counts, should the time be over
                await _run(stack, api, case)
                print(_line(case), flush=True)


def _api(stack: Stack, trusted: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {stack.token}", "Content-Type": "application/json"}
    return httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=ANSWER_S, verify=trusted or True)


async def _run(stack: Stack, api: httpx.AsyncClient, case: Case) -> None:
    """Each author has a connection, and a client, of its own: two hundred waiting in one pool cost this process ten times what the registry does."""
    for name in dict.fromkeys(case.environments):
        (await api.post(f"/v1/namespaces/{NAMESPACE}/environments", json={"name": name})).raise_for_status()
    trusted = ssl.create_default_context()
    async with AsyncExitStack() as open_:
        own = [await open_.enter_async_context(_api(stack, trusted)) for _ in range(AUTHORS)]
        started = time.perf_counter()
        try:
            await asyncio.gather(*(_author(own[i], case, i, started + CASE_S) for i in range(AUTHORS)))
        finally:
            case.seconds = time.perf_counter() - started
    for name in dict.fromkeys(case.environments):
        number = (await api.get(f"/v1/heads/{NAMESPACE}/{name}")).raise_for_status().json()["number"]
        least = 1 + case.acknowledged[name]
        if not least <= number <= least + case.unknown[name]:
            raise RuntimeError(f"{name} is at version {number}, {least - 1} publishes were acknowledged")


async def _author(api: httpx.AsyncClient, case: Case, i: int, until: float) -> None:
    name, revision = case.environments[i], 0
    path = f"/v1/namespaces/{NAMESPACE}/environments/{name}/configs/author-{i}"
    while (started := time.perf_counter()) < until:
        revision += 1
        try:
            answer = await api.put(path, content=json.dumps({"revision": revision}))
        except httpx.TimeoutException:
            case.unknown[name] += 1
            continue
        if answer.status_code == 503:
            case.refused += 1
            await asyncio.sleep(min(float(answer.headers.get("Retry-After", "1")), until - started))
            continue
        answer.raise_for_status()
        case.acknowledged[name] += 1
        case.milliseconds.append((time.perf_counter() - started) * 1000)


def _line(case: Case) -> str:
    cells = " | ".join(f"{quantile(case.milliseconds, share):.0f}" for share in (0.5, 0.95, 0.99))
    rate = len(case.milliseconds) / case.seconds
    return f"| {case.shards} | {case.label} | {rate:,.0f} | {cells} | {case.refused} | {sum(case.unknown.values())} |"


def _table(cases: list[Case], missing: str) -> str:
    return "\n".join(
        [
            (
                f"{AUTHORS} authors for {CASE_S:.0f} s each time, one registry process on PostgreSQL (fsync on) beside Kafka and all services. "
                f"{machine()}."
            ),
            "",
            "| shards | authors on | commits/s | p50, ms | p95 | p99 | told to come back | no answer |",
            "|---|---|---|---|---|---|---|---|",
            *map(_line, (each for each in cases if each.milliseconds)),
            "",
            missing or "No update was lost: every environment had exactly the versions that were acknowledged.",
        ]
    )
