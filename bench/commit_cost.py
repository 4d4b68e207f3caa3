"""Does a commit cost what it changes? One-config publishes into environments of different sizes and histories, interleaved in one run.

The time is the author's: from before the request until the answer is read, on one kept connection (fsync on). The cold first commit after a
start of the registry is shown beside the warm median.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx

from bench.report import machine, quantile
from bench.stacks import embedded

ROUNDS = 300
WARM_UP = 20
SMALL, LARGE = 10, 5_000
SHORT, LONG = 10, 10_000
NAMESPACE = "cost"


def _body(number: int) -> bytes:
    return json.dumps({"limit": number, "note": "x" * 400}).encode()


async def measure() -> str:
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as folder:
        async with embedded(Path(folder)) as stack:
            headers = {"Authorization": f"Bearer {stack.token}", "Content-Type": "application/json"}
            async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as api:
                await _fill(api)
        # started again: nothing of the filling is in its caches
        async with embedded(Path(folder)) as stack, httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as api:
            times = await _rounds(api)
    return _table(times)


async def _fill(api: httpx.AsyncClient) -> None:
    (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
    for name, configs in (("small", SMALL), ("large", LARGE), ("short", SMALL), ("long", SMALL)):
        (await api.post(f"/v1/namespaces/{NAMESPACE}/environments", json={"name": name})).raise_for_status()
        changes = [{"name": f"c{i}", "document": {"limit": 0}} for i in range(configs)]
        (
            await api.post(f"/v1/namespaces/{NAMESPACE}/environments/{name}/versions", json={"changes": changes})
        ).raise_for_status()
    for name, versions in (("short", SHORT), ("long", LONG)):
        for i in range(versions - 2):
            await _put(api, name, i + 1)


async def _put(api: httpx.AsyncClient, environment: str, number: int) -> float:
    path = f"/v1/namespaces/{NAMESPACE}/environments/{environment}/configs/c{number % SMALL}"
    started = time.perf_counter()
    (await api.put(path, content=_body(number))).raise_for_status()
    return (time.perf_counter() - started) * 1000


async def _rounds(api: httpx.AsyncClient) -> dict[str, list[float]]:
    """One publish to each environment in turn, so that the machine's drift meets all alike. The first of each is the cold one."""
    times: dict[str, list[float]] = {name: [] for name in ("small", "large", "short", "long")}
    for i in range(WARM_UP + ROUNDS):
        for name, seen in times.items():
            seen.append(await _put(api, name, 100_000 + i))
            await asyncio.sleep(0.002)
    return times


def _table(times: dict[str, list[float]]) -> str:
    def line(label: str, name: str) -> str:
        warm = times[name][WARM_UP:]
        return (
            f"| {label} | {times[name][0]:.1f} | {median(warm):.2f} | {quantile(warm, 0.95):.2f} | {quantile(warm, 0.99):.2f} |"
        )

    def ratio(a: str, b: str) -> str:
        return f"{median(times[a][WARM_UP:]) / median(times[b][WARM_UP:]):.2f}"

    return "\n".join(
        [
            f"{ROUNDS} interleaved rounds, embedded PostgreSQL, fsync on. {machine()}.",
            "",
            "| environment | cold first commit, ms | median, ms | p95 | p99 |",
            "|---|---|---|---|---|",
            line(f"{SMALL} configs", "small"),
            line(f"{LARGE:,} configs", "large"),
            line(f"{SHORT} versions of history", "short"),
            line(f"{LONG:,} versions of history", "long"),
            "",
            f"Ratio of medians: {ratio('large', 'small')} (configs), {ratio('long', 'short')} (versions).",
        ]
    )
