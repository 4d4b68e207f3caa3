"""Half an hour of everything at once: steady publishes, clients that come and go, clients that do not read, and a sync process that is killed.

The registry's caches are small, so that they are full by then. Kills fall into the first half. After it, and a warm-up, memory must be flat: the line
through what each service holds must not rise by more than `GROWTH_BYTES` until the end. At the end nobody has lost or doubled a version, the ledger has
the receipts, and nothing is left behind: no connection, no file, no task.

`SOAK_MINUTES` (default 30) says how long; a run of 2 is for trying. A whole run writes its result to docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from bench.soak import MIB, Course, Outcome, open_files, pss_bytes
from tests.end_to_end.processes import keeping_alive
from tests.end_to_end.stack import Stack, running
from tests.fixtures.postgres import require
from websockets.asyncio.client import connect

from heliograph import Heliograph
from heliograph.client import Retry
from heliograph.core import frames

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
WHOLE_RUN = 30.0
GROWTH_BYTES = 8 * MIB
STEADY, CHURNING, SLOW = 6, 3, 3
GAP_S = 0.25
KILLS = 6
SETTLE_S = 120
SAMPLE_S = 2.0
SPARE_FILES = 8  # pools and keep-alive connections that may be open or not
NAMESPACE, ENVIRONMENT = "soak", "main"
PATH = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}"


@dataclass
class Soak:
    stack: Stack
    folder: Path
    token: str
    seconds: float
    started: float = field(default_factory=time.monotonic)
    acknowledged: list[int] = field(default_factory=list)
    kills: int = 0
    churned: int = 0
    slow: int = 0
    last_start: float | None = None  # of the sync process, once it is killed no more

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def over(self) -> bool:
        return self.elapsed > self.seconds

    def client(self, name: str) -> Heliograph:
        return Heliograph(
            self.stack.url,
            token=self.token,
            namespace=NAMESPACE,
            environment=ENVIRONMENT,
            cache_dir=self.folder / name,
            start_timeout=SETTLE_S,
            retry=Retry(cap_s=1.0),
        )

    async def publishes(self) -> None:
        async with self.stack.http() as api:
            for revision in count(1):
                if self.over:
                    return
                document = {"revision": revision, "padding": "x" * (revision % 4000)}
                answer = await api.put(f"{PATH}/configs/service-{revision % 20}", json=document)
                self.acknowledged.append(int(answer.raise_for_status().json()["number"]))
                await asyncio.sleep(GAP_S)

    async def churns(self, which: int) -> None:
        while not self.over:
            async with self.client(f"churn-{which}") as client:
                assert client.status.cursor is not None
                await asyncio.sleep(0.5)
            self.churned += 1

    async def does_not_read(self) -> None:
        """Says hello, and leaves what comes in the socket until somebody closes it or ten seconds have gone."""
        while not self.over:
            with contextlib.suppress(Exception):  # the process may be dead; the next one is tried then
                async with connect(
                    self.stack.endpoints["stream"],
                    subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]
                    additional_headers={"Authorization": f"Bearer {self.token}"},
                    compression=None,
                    ping_interval=None,
                    max_queue=1,
                    close_timeout=1,
                ) as socket:
                    await socket.send(_hello(f"slow-{self.slow}"))
                    self.slow += 1
                    await asyncio.sleep(10)
            await asyncio.sleep(0.2)

    async def kills_sync(self) -> None:
        """Spread over the first half; whoever keeps it alive starts it again."""
        pause = self.seconds / 2 / (KILLS + 1)
        while self.elapsed + pause < self.seconds / 2:
            await asyncio.sleep(pause)
            await self.stack.services["sync"].kill()
            self.kills += 1
            await self.stack.services["sync"].ready(revived=True)
        self.last_start = self.elapsed

    async def watches(self) -> list[Course]:
        """From the middle on, when everything is warm."""
        courses = {name: Course(name) for name in self.stack.services}
        warm_up = min(180.0, self.seconds / 5)
        while not self.over:
            if self.last_start is None or self.elapsed < max(self.last_start, self.seconds / 2) + warm_up:
                await asyncio.sleep(1.0)
                continue
            for name, course in courses.items():
                course.samples.append((self.elapsed, await asyncio.to_thread(pss_bytes, _pid(self.stack, name))))
            await asyncio.sleep(SAMPLE_S)
        return list(courses.values())


def _hello(instance: str) -> bytes:
    wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)
    mark = frames.Fingerprint(sdk="slow", sdk_version="0")
    return msgspec.json.encode(frames.Hello(instance=instance, incarnation=1, fingerprint=mark, subscriptions=(wanted,)))


def _pid(stack: Stack, name: str) -> int:
    child = stack.services[name].child
    assert child
    return child.pid


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(MINUTES * 60 + 600)
async def test_soak() -> None:
    require(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")), "Debian's PostgreSQL is not installed (make setup)")
    with tempfile.TemporaryDirectory(prefix="heliograph-soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        async with running(folder, kafka=False, prepare=_small_caches) as stack, keeping_alive(list(stack.services.values())):
            soak = Soak(stack, folder, await _prepare(stack), MINUTES * 60)
            outcome = await _run(soak)
    print(outcome.text())  # noqa: T201
    for course in outcome.courses:
        grown = course.bytes_per_minute * course.minutes
        assert grown < GROWTH_BYTES, f"{course.name} has grown by {grown / MIB:.1f} MiB in {course.minutes:.0f} minutes"
    if MINUTES >= WHOLE_RUN:
        outcome.publish()


async def _small_caches(stack: Stack) -> None:
    """That fill within the warm-up: what rises after it is no cache."""
    registry = stack.services["registry"]
    registry.env = {**registry.env, "HELIOGRAPH_NODE_CACHE_BYTES": str(2 * MIB), "HELIOGRAPH_TEXT_CACHE_BYTES": str(2 * MIB)}


async def _prepare(stack: Stack) -> str:
    async with stack.http() as api:
        (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        (await api.post(PATH.rsplit("/", 1)[0], json={"name": ENVIRONMENT})).raise_for_status()
        changes = [{"name": f"service-{number}", "document": {"revision": 0}} for number in range(20)]
        (await api.post(f"{PATH}/versions", json={"changes": changes})).raise_for_status()
        asked = {"kind": "client", "name": "soak", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
        return str((await api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"])


async def _run(soak: Soak) -> Outcome:
    before = asyncio.all_tasks()
    files = open_files(_pid(soak.stack, "sync"))
    seen: list[list[int]] = [[] for _ in range(STEADY)]
    async with contextlib.AsyncExitStack() as opened:
        for number in range(STEADY):
            client = await opened.enter_async_context(soak.client(f"steady-{number}"))
            client.on_version(lambda update, mine=seen[number]: mine.append(update.cursor.number))
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(soak.watches())
            group.create_task(soak.publishes())
            group.create_task(soak.kills_sync())
            for number in range(CHURNING):
                group.create_task(soak.churns(number))
            for _ in range(SLOW):
                group.create_task(soak.does_not_read())
        await _eventually(lambda: all(mine[-1:] == soak.acknowledged[-1:] for mine in seen))
    assert soak.acknowledged == list(range(3, 3 + len(soak.acknowledged))), "a version that was acknowledged is lost"
    assert all(mine == sorted(set(mine)) for mine in seen), "doubled or out of order at the application"
    receipts = await _answered(soak.stack, seen)
    await _nothing_left(soak.stack, files)
    await _eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    courses = watching.result()
    return Outcome(MINUTES, len(soak.acknowledged), soak.kills, soak.churned, soak.slow, receipts, courses)


async def _eventually(reached: Any) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not reached():
            await asyncio.sleep(0.1)


async def _answered(stack: Stack, seen: list[list[int]]) -> int:
    """For what each steady client saw there is a receipt; how many were looked for."""
    numbers = sorted({number for mine in seen for number in mine})
    checked = 0
    async with stack.http(stack.endpoints["ledger"]) as ledger:
        for number in numbers[:: max(1, len(numbers) // 200)]:
            expected = sum(number in mine for mine in seen)
            path = f"/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}/receipts"
            async with asyncio.timeout(SETTLE_S):
                while await _applied(ledger, path) < expected:
                    await asyncio.sleep(0.2)
            checked += expected
    return checked


async def _applied(ledger: httpx.AsyncClient, path: str) -> int:
    answer = await ledger.get(path, params={"limit": 500})
    items = answer.json()["items"] if answer.status_code == httpx.codes.OK else []
    return sum(1 for each in items if each["state"] in ("applied", "unaffected"))


async def _nothing_left(stack: Stack, files: int) -> None:
    """Of the clients, in the sync process."""
    url = stack.services["sync"].ready_url.replace("/readyz", "/metrics")
    async with httpx.AsyncClient() as http, asyncio.timeout(SETTLE_S):
        while True:
            text = (await http.get(url)).text.splitlines()
            gauges = {
                line.split()[0]: float(line.split()[1]) for line in text if line.startswith("heliograph_") and "{" not in line
            }
            left = gauges["heliograph_connections"], gauges["heliograph_subscriptions"], gauges["heliograph_slow_consumers"]
            if not any(left) and open_files(_pid(stack, "sync")) <= files + SPARE_FILES:
                return
            await asyncio.sleep(0.5)
