"""kill -9 of every service, of PostgreSQL and of Kafka at random moments of a publish storm, on both logs.

A round hits each of them once, in random order, while those that were hit before may still be starting; the next begins when all are back, so a
slow machine sees as many faults as a fast one, and no more.

What must hold afterwards: no acknowledged version is lost; numbers are gapless; what applications saw is strictly ascending, never twice; every
client ends on the head; and the ledger has a receipt for every version that a client applied.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.end_to_end.processes import keeping_alive
from tests.end_to_end.stack import Stack, running
from tests.fixtures.postgres import SCRIPT, require

from heliograph import Heliograph
from heliograph.client import Retry
from heliograph.runtime.children import start

NAMESPACE, ENVIRONMENT = "storm", "main"
PATH = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}"
PUBLISHES = 40
"""At the least; the storm lasts until the last round is over."""
CLIENTS = 4
SETTLE_S = 90


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="heliograph-test-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def _create(stack: Stack) -> str:
    """The environment with one config; a token for the clients."""
    async with stack.http() as api:
        (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        (await api.post(PATH.rsplit("/", 1)[0], json={"name": ENVIRONMENT})).raise_for_status()
        (await api.put(f"{PATH}/configs/storm", json={"revision": 0})).raise_for_status()
        asked = {"kind": "client", "name": "storm", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
        return (await api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"]


async def _publish(stack: Stack, acknowledged: dict[int, int], struck: asyncio.Event) -> None:
    """One author. Every publish is repeated under its idempotency key until it is acknowledged."""
    while len(acknowledged) < PUBLISHES or not struck.is_set():
        revision = len(acknowledged) + 1
        async with asyncio.timeout(SETTLE_S):
            acknowledged[revision] = await _until_acknowledged(stack, revision)
        await asyncio.sleep(random.uniform(0, 0.1))


async def _until_acknowledged(stack: Stack, revision: int) -> int:
    while True:
        try:
            async with stack.http() as api:
                headers = {"Idempotency-Key": f"storm-{revision}"}
                answer = await api.put(f"{PATH}/configs/storm", json={"revision": revision}, headers=headers)
            if answer.status_code in (200, 201):
                return int(answer.json()["number"])
            assert answer.status_code in (409, 500, 503), answer.text
        except (httpx.HTTPError, AttributeError):  # the second: anyio, of a socket that was reset in the moment it opened
            pass
        await asyncio.sleep(0.1)


async def _strike(stack: Stack, chance: random.Random, rounds: int) -> None:
    victims = [*stack.services, *stack.servers]
    for _ in range(rounds):
        for name in chance.sample(victims, len(victims)):
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            await _kill(stack, name, chance.uniform(0, 0.3))
        await stack.all_ready()


async def _kill(stack: Stack, name: str, down_s: float) -> None:
    """A service is started again by who keeps it alive, a server here, after it was gone for ``down_s``."""
    if name in stack.services:
        await stack.services[name].kill()
        return
    await stack.servers[name].kill()
    await asyncio.sleep(down_s)
    await stack.servers[name].start()


class Witness:
    """An application: what it saw, in its order."""

    def __init__(self, client: Heliograph) -> None:
        self.client = client
        self.seen: list[int] = []
        self.values: list[int] = []
        client.on_version(self._saw)

    def _saw(self, update: Any) -> None:
        self.seen.append(update.cursor.number)
        self.values.append(update.value("storm")["revision"])


@pytest.mark.postgres
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("log", ["postgresql", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_nothing_acknowledged_is_lost_nothing_is_doubled_everything_is_answered(log, rounds, folder):
    require(list(Path("/usr/lib/postgresql").glob("*/bin/postgres")), "Debian's PostgreSQL is not installed (make setup)")
    if log == "kafka":
        script = SCRIPT.parents[1] / "kafka/kafka.sh"
        child = await start("bash", script, "installed")
        require(await child.wait() == 0, "Kafka's jars are missing (make setup)")
    seed = int(os.environ.get("STORM_SEED", random.randrange(1 << 30)))
    print(f"STORM_SEED={seed}")  # noqa: T201  # shown when it fails
    async with running(folder, kafka=log == "kafka") as stack:
        token = await _create(stack)
        clients = [
            Heliograph(
                stack.url,
                token=token,
                namespace=NAMESPACE,
                environment=ENVIRONMENT,
                cache_dir=folder / f"client-{i}",
                start_timeout=60,
                retry=Retry(cap_s=1.0),
            )
            for i in range(CLIENTS)
        ]
        async with keeping_alive(list(stack.services.values())), clients[0], clients[1], clients[2], clients[3]:
            witnesses = [Witness(each) for each in clients]
            acknowledged: dict[int, int] = {}
            struck = asyncio.Event()
            async with asyncio.TaskGroup() as storm:
                storm.create_task(_publish(stack, acknowledged, struck))
                try:
                    await _strike(stack, random.Random(seed), rounds)
                finally:
                    struck.set()
            head = await _head(stack)
            for each in clients:
                await each.wait_for_version(head["number"], timeout=SETTLE_S)
            await _check_versions(stack, acknowledged, head)
            for each in witnesses:
                assert each.seen == sorted(set(each.seen)), "doubled or out of order at the application"
                assert each.values == sorted(each.values)
                assert each.client.config("storm")["revision"] == len(acknowledged)
                assert each.client.status.alarm is None
            await _check_receipts(stack, witnesses)


async def _head(stack: Stack) -> dict[str, Any]:
    async with stack.http() as api:
        return (await api.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).raise_for_status().json()


async def _check_versions(stack: Stack, acknowledged: dict[int, int], head: dict[str, Any]) -> None:
    """Each acknowledged revision has exactly one version, in the order in which they were acknowledged; numbers have no gap."""
    last = len(acknowledged)
    assert [acknowledged[revision] for revision in range(1, last + 1)] == list(range(3, last + 3))
    assert head["number"] == last + 2
    async with stack.http() as api:
        for revision in (1, last // 2, last):
            document = (await api.get(f"{PATH}/configs/storm", params={"at": acknowledged[revision]})).raise_for_status().json()
            assert document == {"revision": revision}


async def _check_receipts(stack: Stack, witnesses: list[Witness]) -> None:
    """Whatever an application has seen, the ledger knows."""
    applied = {number for each in witnesses for number in each.seen}
    async with stack.http(stack.endpoints["ledger"]) as ledger:
        for number in sorted(applied):
            expected = sum(number in each.seen for each in witnesses)
            try:
                async with asyncio.timeout(SETTLE_S):
                    while (found := await _applied(ledger, number)) < expected:
                        await asyncio.sleep(0.2)
            except TimeoutError:
                told = {each: stack.services[each].tail() for each in ("ledger", "sync")}
                raise AssertionError(
                    f"version {number}: {found} of {expected} receipts\n{told['ledger']}\n{told['sync']}"
                ) from None
            assert found == expected


async def _applied(ledger: httpx.AsyncClient, number: int) -> int:
    answer = await ledger.get(f"/v1/propagations/{NAMESPACE}/{ENVIRONMENT}/{number}/receipts")
    if answer.status_code != 200:
        return 0
    return len({each["instance"] for each in answer.json()["items"] if each["state"] == "applied"})
