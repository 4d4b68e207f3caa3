"""Two workers on one pair of ports: real processes behind a real registry and ledger, and SDKs that follow them through deaths and renewals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from tests.end_to_end.processes import Managed, heliograph
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, Service

from heliograph import Heliograph
from heliograph.client import Retry
from heliograph.services.ledger import app as ledger
from heliograph.services.ledger.settings import LedgerSettings
from heliograph.services.registry import app as registry
from heliograph.services.registry.settings import RegistrySettings

pytestmark = pytest.mark.timeout(240)
WORKERS = 2
SETTLE_S = 90.0
RETRY = Retry(first_s=0.05, cap_s=0.5)


@dataclass
class Node:
    """The processes under test."""

    process: Managed
    http: httpx.AsyncClient
    api: httpx.AsyncClient
    ledger: httpx.AsyncClient
    token: str
    url: str
    clients: list[Follower] = field(default_factory=list)

    async def publish(self, text: str) -> int:
        answer = await self.api.put(f"{PATH}/configs/banner", json={"text": text})
        return int(answer.raise_for_status().json()["number"])

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """What was logged."""
        lines = [line for line in self.process.log.read_bytes().splitlines() if line.startswith(b"{")]
        told = [msgspec.json.decode(line) for line in lines]
        return [each for each in told if each["event"] == name and fields.items() <= each.items()]

    async def logged(self, name: str, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        async with asyncio.timeout(SETTLE_S):
            while len(found := self.events(name, **fields)) < count:
                await asyncio.sleep(0.05)
        return found

    def pids(self) -> dict[int, int]:
        """The newest of each place."""
        return {each["worker"]: each["pid"] for each in self.events("worker_started")}

    async def metrics(self) -> list[Any]:
        text = (await self.http.get("/metrics")).raise_for_status().text
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    async def value(self, name: str) -> dict[str, float]:
        return {each.labels["worker"]: each.value for each in await self.metrics() if each.name == name}

    async def ready(self) -> bool:
        return (await self.http.get("/readyz")).status_code == 200

    async def until_ready(self) -> None:
        async with asyncio.timeout(SETTLE_S):
            while not await self.ready():
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def followers(self, count: int):
        async with AsyncExitStack() as opened:
            self.clients = [Follower(self) for _ in range(count)]
            for each in self.clients:
                await opened.enter_async_context(each.client)
            yield self.clients

    async def current(self, number: int) -> None:
        """Until all clients are at that version."""
        async with asyncio.timeout(SETTLE_S):
            for each in self.clients:
                while not each.seen or each.seen[-1] < number:
                    await asyncio.sleep(0.02)

    async def instances(self) -> list[dict[str, Any]]:
        return (await self.ledger.get(f"/v1/instances/{NAMESPACE}/{ENVIRONMENT}")).raise_for_status().json()["items"]

    async def answered(self, number: int) -> dict[str, Any]:
        """The version's report, once every client's receipt is in it."""
        async with asyncio.timeout(SETTLE_S):
            while True:
                answer = await self.ledger.get(f"/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}")
                if answer.status_code == 200 and answer.json()["applied"] >= len(self.clients):
                    return answer.json()
                await asyncio.sleep(0.05)


class Follower:
    def __init__(self, node: Node) -> None:
        self.client = Heliograph(
            node.url, token=node.token, namespace=NAMESPACE, environment=ENVIRONMENT, cache_dir=None, retry=RETRY
        )
        self.seen: list[int] = []
        self.client.on_version(lambda update: self.seen.append(update.cursor.number))


def ledger_settings(database, folder, shared, port, registry_url):
    return LedgerSettings(
        **shared,
        ledger_port=port,
        registry_url=registry_url,
        service_token=SecretStr((folder / "tokens/service.token").read_text().strip()),
        database_url=SecretStr(database.url("heliograph_ledger")),
        propagation_settle_s=0,
        node_silence_s=4,
        tick_s=0.2,
    )


@pytest.fixture
async def stack(database, free_port, tmp_path):
    """A registry and a ledger in this process, with one config published; what the processes of sync are started with."""
    ports = {name: free_port() for name in ("registry_port", "sync_port", "sync_http_port", "ledger_port")}
    shared = {"data_dir": tmp_path, "drain_s": 1.0}
    url = f"http://127.0.0.1:{ports['registry_port']}"
    registering = Service(
        registry.serve, RegistrySettings(**shared, **ports, database_url=SecretStr(database.url("heliograph_registry")))
    )
    await registering.start()
    keeping = Service(ledger.serve, ledger_settings(database, tmp_path, shared, ports["ledger_port"], url))
    await keeping.start()
    env = {
        "HELIOGRAPH_DATA_DIR": str(tmp_path),
        "HELIOGRAPH_DATABASE_URL": database.url("heliograph_sync"),
        "HELIOGRAPH_REGISTRY_URL": url,
        "HELIOGRAPH_SERVICE_TOKEN_FILE": str(tmp_path / "tokens/service.token"),
        "HELIOGRAPH_SYNC_PORT": str(ports["sync_port"]),
        "HELIOGRAPH_SYNC_HTTP_PORT": str(ports["sync_http_port"]),
        "HELIOGRAPH_NODE": "node",
        "HELIOGRAPH_DRAIN_S": "2",
    }
    http = f"http://127.0.0.1:{ports['sync_http_port']}"
    process = Managed(
        "sync", heliograph("serve", "sync", "--workers", str(WORKERS)), env, tmp_path / "sync.log", f"{http}/readyz"
    )
    headers = {"Authorization": f"Bearer {(tmp_path / 'tokens/admin.token').read_text().strip()}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=DEADLINE_S) as api,
        httpx.AsyncClient(base_url=http, timeout=DEADLINE_S) as asking,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['ledger_port']}", headers=headers) as reports,
    ):
        (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        (await api.post(PATH.rsplit("/", 1)[0], json={"name": ENVIRONMENT})).raise_for_status()
        asked = {"kind": "client", "name": "test", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
        token = (await api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"]
        node = Node(process, asking, api, reports, token, url)
        await node.publish("first")
        yield node
    await process.kill()
    await keeping.end()
    await registering.end()


@pytest.fixture
async def node(stack):
    await stack.process.start()
    await stack.process.ready()
    return stack


async def spread(node: Node) -> dict[str, float]:
    """Connections of each worker."""
    return await node.value("heliograph_connections")


async def test_clients_spread_over_the_workers_and_all_get_and_answer_every_version(node):
    async with node.followers(12):
        counts = await spread(node)
        assert set(counts) == {"1", "2"}
        assert sum(counts.values()) == 12
        assert all(counts.values()), counts
        for text in ("a", "b", "c"):
            number = await node.publish(text)
            await node.current(number)
        report = await node.answered(number)
        assert (report["instances"], report["applied"]) == (12, 12)
        assert {tuple(each.seen) for each in node.clients} == {(3, 4, 5)}
        assert {each["connected"] for each in await node.instances()} == {True}


async def test_metrics_and_readiness_are_the_node_s_whichever_worker_is_asked(node):
    assert await node.ready()
    for _ in range(10):
        async with httpx.AsyncClient(base_url=str(node.http.base_url)) as other:  # another connection, perhaps another worker
            text = (await other.get("/metrics")).raise_for_status().text
            families = {family.name: family for family in text_string_to_metric_families(text)}
            assert {each.labels["worker"]: each.value for each in families["heliograph_worker_up"].samples} == {"1": 1, "2": 1}
            assert {each.labels["worker"] for each in families["heliograph_connections"].samples} == {"1", "2"}
            assert {each.value for each in families["heliograph_worker_starts"].samples} == {1}
    pid = node.pids()[2]
    os.kill(pid, signal.SIGSTOP)  # alive, and does not answer
    async with asyncio.timeout(SETTLE_S):
        while True:
            try:
                async with httpx.AsyncClient(base_url=str(node.http.base_url), timeout=3) as other:
                    answer = await other.get("/readyz")
                    assert answer.status_code == 503
                    assert answer.json()["missing"] == {"worker 2": "does not answer"}
                    assert (await other.get("/metrics")).text.count('heliograph_worker_up{worker="2"} 0') == 1
                    break
            except httpx.TimeoutException:
                continue  # it came to the one that is stopped
    os.kill(pid, signal.SIGCONT)
    await node.until_ready()


async def test_a_worker_that_is_killed_is_replaced_and_its_clients_are_current_again(node):
    async with node.followers(12):
        before = await spread(node)
        os.kill(node.pids()[1], signal.SIGKILL)
        number = await node.publish("after the kill")
        await node.current(number)
        await node.logged("worker_started", worker=1, start=2)
        assert node.events("worker_died", worker=1, status=-signal.SIGKILL)
        await node.until_ready()
        number = await node.publish("after the replacement")
        report = await node.answered(number)
        assert (report["instances"], report["applied"]) == (12, 12)  # who came back to the sibling is not counted twice
        assert len(await node.instances()) == 12
        assert sum((await spread(node)).values()) == 12
        assert all(each.seen == sorted(set(each.seen)) for each in node.clients)
        assert (await node.value("heliograph_worker_starts"))["1"] == 2
        assert before["1"] > 0


async def test_hangup_renews_the_workers_one_after_another_and_nobody_is_refused(node):
    old = node.pids()
    refused: Counter[str] = Counter()
    done = asyncio.Event()

    async def ask() -> None:
        """New connections all the time, each with a request."""
        while not done.is_set():
            try:
                async with httpx.AsyncClient(base_url=str(node.http.base_url), timeout=DEADLINE_S) as http:
                    refused[str((await http.get("/healthz")).status_code)] += 1
            except httpx.ConnectError as error:
                refused[repr(error)] += 1
            except httpx.TransportError:
                refused["cut"] += 1
            await asyncio.sleep(0.01)

    async with node.followers(8), asyncio.TaskGroup() as group:
        group.create_task(ask())
        node.process.child.send_signal(signal.SIGHUP)
        for text in range(20):
            number = await node.publish(f"during the renewal {text}")
        await node.logged("workers_renewed")
        done.set()
        new = node.pids()
        assert set(new) == {1, 2}
        assert not set(new.values()) & set(old.values())
        number = await node.publish("after the renewal")
        await node.current(number)
        assert (await node.answered(number))["applied"] == 8
        assert all(each.seen == sorted(set(each.seen)) for each in node.clients)
    assert not [each for each in refused if "Connect" in each], refused
    assert refused["200"] > 0
    assert not node.events("worker_died")
    assert await node.ready()


async def test_sigterm_drains_all_workers(node):
    async with node.followers(6):
        pids = node.pids().values()
        node.process.child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(node.process.child.wait(), SETTLE_S) == 0
        assert not any(alive(pid) for pid in pids)
    assert len(node.events("service_stopped")) == WORKERS + 1
    assert not node.events("worker_died")


async def test_workers_do_not_outlive_their_supervisor(node):
    pids = node.pids().values()
    async with node.followers(2):
        await node.process.kill()
        async with asyncio.timeout(SETTLE_S):
            while any(alive(pid) for pid in pids):
                await asyncio.sleep(0.05)
    assert len(node.events("supervisor_gone")) == WORKERS


async def test_workers_that_cannot_start_end_the_node_with_a_reason(stack, tmp_path):
    stack.process.env = {**stack.process.env, "HELIOGRAPH_SERVICE_TOKEN_FILE": str(tmp_path / "missing.token")}
    await stack.process.start()
    assert await asyncio.wait_for(stack.process.child.wait(), SETTLE_S) == 2
    [said] = stack.events("service_ended", code="invalid-request", worker=1)[:1]
    assert "HELIOGRAPH_SERVICE_TOKEN_FILE" in said["detail"]
    assert any("cannot start with these settings" in each["detail"] for each in stack.events("service_ended"))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
