"""Receipts at rate: how long from the author's first byte until the propagation shows an answer of every client, and how many a second are taken in.

The crowd (C, one thread) answers each version at once, because an author waits for it: the worst case, nothing is spread. Then a row of versions
without a pause: what the ledger sustains. Fan-out is the node's own: the moment of its last send.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.clients import crowd
from bench.propagation import TARGET, document, prepare
from bench.report import machine, quantile
from bench.stacks import Stack

NAMESPACE, ENVIRONMENT = TARGET
PATH = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}/configs/service-0"
ROUNDS = 12
WARM_UP = 2
ROW = 5
WAIT_S = 20


@dataclass
class Result:
    """Milliseconds since the author's first byte, one entry per version."""

    stack: str
    clients: int
    sent: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    row_s: float = 0.0

    @property
    def per_second(self) -> float:
        return self.clients * ROW / self.row_s


async def measure(stack: Stack, folder: Path, *, clients: int) -> Result:
    headers = {"Authorization": f"Bearer {stack.token}"}
    result = Result(stack.name, clients)
    async with httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=60) as api:
        token = await prepare(api)
        async with crowd(stack, token, TARGET, clients, folder / "crowd"):
            for number in range(WARM_UP + ROUNDS):
                one = await _publish_and_wait(api, number)
                if number >= WARM_UP:
                    result.sent.append(one["sent"])
                    result.shown.append(one["shown"])
                    result.answered.append(one["answered"])
            started = time.perf_counter()
            numbers = [await _publish_only(api, 100 + number) for number in range(ROW)]
            await _all_shown(stack, headers, numbers)
            result.row_s = time.perf_counter() - started
    return result


async def _publish_only(api: httpx.AsyncClient, revision: int) -> int:
    return int((await api.put(PATH, json=document(revision))).raise_for_status().json()["number"])


async def _publish_and_wait(api: httpx.AsyncClient, revision: int) -> dict[str, float]:
    """Raises RuntimeError when not all have answered within `WAIT_S`."""
    started_us, started = time.time_ns() // 1000, time.perf_counter()
    answer = await api.put(PATH, json=document(revision), headers={"Prefer": f"wait={WAIT_S}, share=1"})
    took = (time.perf_counter() - started) * 1000
    story: dict[str, Any] = answer.raise_for_status().json()["propagation"]
    if story["missing"]:
        raise RuntimeError(f"{story['missing']:,} of {story['instances']:,} receipts were not there after {took:,.0f} ms")
    sent_us = story["fanned_out_at_us"] or started_us  # its report may come after the last receipt
    return {"sent": (sent_us - started_us) / 1000, "shown": took, "answered": story["times_ms"]["applied"]["max"]}


async def _all_shown(stack: Stack, headers: dict[str, str], numbers: list[int]) -> None:
    """Until none of these versions misses an answer. Raises TimeoutError."""
    async with (
        httpx.AsyncClient(base_url=stack.endpoints["ledger"], headers=headers, timeout=60) as ledger,
        asyncio.timeout(60),
    ):
        for number in numbers:
            path = f"/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}"
            while (await ledger.get(path)).raise_for_status().json()["missing"]:
                await asyncio.sleep(0.1)


def section(results: list[Result]) -> str:
    def line(result: Result) -> str:
        cells = [
            f"{quantile(values, share):,.0f}"
            for values in (result.sent, result.answered, result.shown)
            for share in (0.5, 0.99)
        ]
        return f"| {result.stack} | {result.clients:,} | {' | '.join(cells)} | {result.per_second:,.0f} |"

    return "\n".join(
        [
            f"{ROUNDS} publishes that wait for every client, then {ROW} without a pause. {machine()}.",
            "",
            "| log | clients | last send, p50 ms | p99 | last client ran it, p50 | p99 | **all receipts shown, p50** | p99 | receipts/s in a row |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(line, results),
        ]
    )
