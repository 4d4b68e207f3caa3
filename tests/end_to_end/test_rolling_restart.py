"""Every service is replaced, one after the other, while authors publish without a retry and applications follow.

What must hold: no request fails, no version is lost, every client is at the head at the end and was never long behind, every receipt is stored,
and every old process ends well.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from tests.end_to_end.stack import Stack, running
from tests.end_to_end.successors import Service, on_doors
from tests.fixtures.postgres import SCRIPT, require

from heliograph import Heliograph
from heliograph.runtime.children import start

NAMESPACE, ENVIRONMENT = "rolling", "main"
PATH = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}"
CLIENTS = 5
PAUSE_S = 0.05
SETTLE_S = 60
STALE_S = 30
"""A client that is behind for longer was forgotten, whatever the machine does beside."""


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="heliograph-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@asynccontextmanager
async def services(stack: Stack) -> AsyncIterator[dict[str, Service]]:
    """Each started, on sockets that outlive its processes."""
    doors = {"sync": {"sync": "sync", "sync-http": "sync_http"}}
    more = {"HELIOGRAPH_DRAIN_S": "10"}
    async with AsyncExitStack() as opened:
        out = {}
        for name, told in stack.services.items():
            ports = {door: stack.ports[port] for door, port in doors.get(name, {name: name}).items()}
            out[name] = await opened.enter_async_context(
                on_doors(name, told.command, {**told.env, **more}, stack.folder, ports)
            )
            await out[name].start()
        await stack.look_around()
        yield out


class Author:
    """Publishes steadily on a connection that it keeps, and takes no answer but a good one."""

    def __init__(self, stack: Stack, config: str, *, wait: bool = False) -> None:
        self.config = config
        self.acknowledged: dict[int, float] = {}  # version -> when
        self.failures: list[str] = []
        self._stack = stack
        self._headers = {"Prefer": "wait=5, share=1"} if wait else {}

    async def run(self, done: asyncio.Event) -> None:
        async with self._stack.http() as api:
            revision = 0
            while not done.is_set():
                revision += 1
                await self._publish(api, revision)
                await asyncio.sleep(PAUSE_S)

    async def _publish(self, api: httpx.AsyncClient, revision: int) -> None:
        try:
            answer = await api.put(f"{PATH}/configs/{self.config}", json={"revision": revision}, headers=self._headers)
        except httpx.HTTPError as error:
            self.failures.append(f"publish: {error!r}")
            return
        if answer.status_code not in (200, 201):
            self.failures.append(f"publish: {answer.status_code} {answer.text[:300]}")
        else:
            self.acknowledged[answer.json()["number"]] = monotonic()


class Reader:
    """Asks the node's HTTP side and the ledger, each time on a new connection, and holds a long poll on a kept one."""

    def __init__(self, stack: Stack, token: str) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._stack = stack
        self._token = {"Authorization": f"Bearer {token}"}

    async def run(self, done: asyncio.Event) -> None:
        await asyncio.gather(self._ask(done), self._poll(done))

    async def _ask(self, done: asyncio.Event) -> None:
        while not done.is_set():
            async with self._stack.http() as api:
                await self._get(api, f"{self._stack.endpoints['bundles']}/v1/bundles/{NAMESPACE}/{ENVIRONMENT}")
                await self._get(api, f"{self._stack.endpoints['ledger']}/v1/instances/{NAMESPACE}/{ENVIRONMENT}")
                await self._get(api, f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")
            await asyncio.sleep(PAUSE_S)

    async def _poll(self, done: asyncio.Event) -> None:
        bundles = f"{self._stack.endpoints['bundles']}/v1/bundles/{NAMESPACE}/{ENVIRONMENT}"
        async with httpx.AsyncClient(headers=self._token, timeout=40) as http:
            while not done.is_set():
                number = (await self._get(http, f"{self._stack.url}/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).json()
                have = f"{number['epoch']}.{number['number']}.{number['version']}"
                await self._get(http, bundles, have=have, wait=1)

    async def _get(self, http: httpx.AsyncClient, path: str, **params: Any) -> httpx.Response:
        try:
            answer = await http.get(path, params=params)
        except httpx.HTTPError as error:
            self.failures.append(f"{path}: {error!r}")
            raise
        self.answers += 1
        if answer.status_code != 200:
            self.failures.append(f"{path}: {answer.status_code} {answer.text[:300]}")
        return answer


class Witness:
    """An application: what it saw, and when."""

    def __init__(self, client: Heliograph) -> None:
        self.client = client
        self.seen: list[tuple[int, float]] = []
        client.on_version(lambda update: self.seen.append((update.cursor.number, monotonic())))

    def behind(self, acknowledged: dict[int, float]) -> float:
        """The longest time for which an author knew of a version that did not run here."""
        longest, seen = 0.0, iter(self.seen)
        number, when = 0, 0.0
        for wanted, at in sorted(acknowledged.items()):
            while number < wanted:
                number, when = next(seen, (1 << 60, float("inf")))
            longest = max(longest, when - at)
        return longest


@pytest.mark.postgres
@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    "log", [pytest.param("postgresql", marks=pytest.mark.slow), pytest.param("kafka", marks=pytest.mark.kafka)]
)
async def test_nothing_fails_and_nothing_is_lost_while_every_service_is_replaced(log, folder):
    require(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")), "Debian's PostgreSQL is not installed (make setup)")
    if log == "kafka":
        child = await start("bash", SCRIPT.parents[1] / "kafka/kafka.sh", "installed")
        require(await child.wait() == 0, "Kafka's jars are missing (make setup)")
    async with running(folder, kafka=log == "kafka", services=False) as stack, services(stack) as replaced:
        token = await _create(stack)
        authors = [Author(stack, "steady"), Author(stack, "waiting", wait=True)]
        reader, done = Reader(stack, token), asyncio.Event()
        async with AsyncExitStack() as opened:
            witnesses = [Witness(await opened.enter_async_context(_client(stack, token, i))) for i in range(CLIENTS)]
            async with asyncio.TaskGroup() as tasks:
                for each in (*authors, reader):
                    tasks.create_task(each.run(done))
                try:
                    for name, service in replaced.items():
                        assert await service.replace() == 0, f"{name} did not end well"
                finally:
                    done.set()
            failures = [failure for each in (*authors, reader) for failure in each.failures]
            assert not failures, f"{len(failures)} requests failed, the first: {failures[:5]}"
            acknowledged = {number: at for each in authors for number, at in each.acknowledged.items()}
            await _check(stack, acknowledged, witnesses)
            longest = max(each.behind(acknowledged) for each in witnesses)
            print(f"{len(acknowledged)} versions, {reader.answers} reads, nobody behind for more than {longest:.2f} s")  # noqa: T201
            assert longest < STALE_S


async def _create(stack: Stack) -> str:
    async with stack.http() as api:
        (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        (await api.post(PATH.rsplit("/", 1)[0], json={"name": ENVIRONMENT})).raise_for_status()
        asked = {"kind": "client", "name": "rolling", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
        return (await api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"]


def _client(stack: Stack, token: str, index: int) -> Heliograph:
    return Heliograph(
        stack.url,
        token=token,
        namespace=NAMESPACE,
        environment=ENVIRONMENT,
        cache_dir=stack.folder / f"client-{index}",
        start_timeout=60,
    )


async def _check(stack: Stack, acknowledged: dict[int, float], witnesses: list[Witness]) -> None:
    numbers = sorted(acknowledged)
    assert numbers == list(range(2, numbers[-1] + 1)), "an acknowledged version is not in the history, or one was made twice"
    async with stack.http() as api:
        head = (await api.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).raise_for_status().json()
    assert head["number"] == numbers[-1]
    for each in witnesses:
        await each.client.wait_for_version(head["number"], timeout=SETTLE_S)
        seen = [number for number, _ in each.seen]
        assert seen == sorted(set(seen)), "doubled or out of order at the application"
        assert each.client.status.alarm is None
    await _check_receipts(stack, witnesses)


async def _check_receipts(stack: Stack, witnesses: list[Witness]) -> None:
    """Whatever an application ran, the ledger knows, once."""
    expected: dict[int, int] = {}
    for each in witnesses:
        for number, _ in each.seen:
            expected[number] = expected.get(number, 0) + 1
    async with stack.http(stack.endpoints["ledger"]) as ledger, asyncio.timeout(SETTLE_S):
        for number, count in sorted(expected.items()):
            while (found := await _applied(ledger, number)) < count:
                await asyncio.sleep(0.1)
            assert found == count, f"version {number}: {found} receipts of {count}"


async def _applied(ledger: httpx.AsyncClient, number: int) -> int:
    answer = await ledger.get(f"/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}/receipts")
    return sum(each["state"] == "applied" for each in answer.json()["items"]) if answer.status_code == 200 else 0
