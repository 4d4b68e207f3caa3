"""A node that goes away: its clients move at a pace, with everything they need, and nothing that they said is lost."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, Client, Service, head_of
from tests.sync.test_receipts import logged
from websockets.exceptions import ConnectionClosed

from heliograph.client._backoff import Backoff
from heliograph.client._connection import Retry
from heliograph.core import frames
from heliograph.core.events import Received
from heliograph.services.sync import app as sync
from heliograph.services.sync.drain import Pace
from heliograph.services.sync.settings import SyncSettings

CROWD = 40


@pytest.fixture
def sync_settings():
    return {"drain_clients_per_s": 100.0, "drain_s": 20.0, "keep_alive_grace_s": 0.0}


# --- the pace ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [0, 1, 10, 1000, 9_999, 50_000])
def test_all_are_told_in_time_and_never_more_than_a_share_at_once(clients):
    pace = Pace.of(clients, per_s=1000, within_s=10)
    assert pace.told_after(5.0) >= clients, "half of the time is for going"
    assert pace.per_s >= 1000
    on_the_way = pace.per_s * pace.leave_s
    assert on_the_way <= max(1000, clients / 2)
    assert 0 < pace.leave_s <= 1


def test_a_few_clients_are_not_kept_waiting():
    assert Pace.of(3, per_s=1000, within_s=10).leave_s < 0.01


# --- a node and its successor ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def successor(world, database, free_port, tmp_path):
    """Another node beside the first one."""
    port = free_port()
    service = Service(
        sync.serve,
        SyncSettings(
            data_dir=tmp_path,
            drain_s=1.0,
            sync_port=port,
            sync_http_port=free_port(),
            database_url=SecretStr(database.url("heliograph_sync")),
            registry_url=str(world.api.base_url).rstrip("/"),
            service_token_file=tmp_path / "tokens/service.token",
            heartbeat_s=20.0,
        ),
    )
    await service.start()
    yield f"ws://127.0.0.1:{port}/v1/stream"
    await service.end()


class Moved:
    """One client: on the first node until it is asked to go, then on the other one. Its pauses are the SDK's."""

    def __init__(self, world: Any, name: str) -> None:
        self.world, self.name = world, name
        self.held = world.replica()
        self.told = asyncio.Event()
        self.back = asyncio.Event()
        self.numbers: list[int] = []

    async def run(self, successor: str, last: int) -> None:
        async with self.world.client(replica=self.held, instance=self.name) as client:
            await client.until(1)
            self.back.set()
            drain = await client.until_kind(frames.Drain)
            self.told.set()
            await asyncio.sleep(Random(self.name).uniform(0, drain.within_s))
            self.numbers += client.adopted
        async with self.world.client(replica=self.held, instance=self.name, at=successor) as client:
            await client.until(last)
            self.numbers += client.adopted


async def test_a_crowd_moves_to_another_node_and_misses_nothing(world, successor):
    crowd = [Moved(world, f"i{number}") for number in range(CROWD)]
    last = 8
    async with asyncio.timeout(DEADLINE_S * 2), asyncio.TaskGroup() as tasks:
        for each in crowd:
            tasks.create_task(each.run(successor, last))
            await each.back.wait()  # in this order
        world.sync.stop.set()
        for number in range(2, last + 1):
            made = await world.publish(banner={"n": number})
            assert made["number"] == number
        await crowd[0].told.wait()
        await world.sync.end()
    for each in crowd:
        assert each.told.is_set()
        assert each.numbers == sorted(set(each.numbers)), "doubled or out of order"
        assert each.numbers[-1] == last


async def test_a_receipt_that_comes_in_the_drain_is_durable_and_acknowledged_before_the_close(world, database):
    await world.publish(banner={"text": "a"})
    async with world.client(instance="me") as client:
        await client.until(2)
        world.sync.stop.set()
        await client.until_kind(frames.Drain)
        await client.send(client.receipt(seq=3))
        assert (await client.until_kind(frames.ReceiptAck)).seq == 3
        [stored] = await logged(database, Received)
        assert stored.instance == "me"
        assert await client.closed() == 4000
    await world.sync.end()


async def test_who_talks_to_the_last_hears_why_it_was_closed(world):
    """A socket that is closed on unread bytes is reset, and the close frame with it."""
    async with world.client() as client:
        await client.until(1)

        async def talk() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await client.send(frames.Heartbeat(sent_at_us=1))
                    await asyncio.sleep(0.001)  # so much that it can read what it is answered

        talking = asyncio.create_task(talk())
        world.sync.stop.set()
        assert await client.closed() == 4000
        await talking
    await world.sync.end()


async def test_a_poll_that_is_held_is_answered_and_is_the_last_on_its_connection(world):
    head = head_of((await world.bundles.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).json())
    have = f"{head.epoch}.{head.number}.{head.version}"
    held = asyncio.create_task(
        world.bundles.get(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}", params={"have": have, "wait": 25}, timeout=DEADLINE_S)
    )
    async with asyncio.timeout(DEADLINE_S), httpx.AsyncClient(base_url=world.bundles.base_url) as other:
        while b"heliograph_polls_held 1.0" not in (await other.get("/metrics")).content:
            await asyncio.sleep(0.01)
        world.sync.stop.set()
        answer = await held
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert b'"type":"current"' in answer.content
    await world.sync.end()


# --- a storm -----------------------------------------------------------------------------------------------------------------------


def test_clients_that_were_lost_together_come_back_spread():
    """The default of the SDK: of ten thousand none would find more than a few dozen beside it in the same ten milliseconds."""
    retry = Retry()
    returns = [Backoff(Random(seed), first_s=retry.first_s, cap_s=retry.cap_s).delay() for seed in range(10_000)]
    slots = [0] * 200
    for each in returns:
        slots[int(each / retry.first_s * 200)] += 1
    assert max(slots) < 100, "fifty is even"
    assert min(slots) > 15


async def test_all_are_cut_off_at_once_come_back_and_are_current_and_publishes_reach_those_who_are_there(world):
    """Each goes on from what it held, whichever versions it missed meanwhile."""
    crowd = [Stormy(world, number) for number in range(CROWD)]
    steady = Stormy(world, CROWD)
    last = 12
    async with asyncio.timeout(DEADLINE_S * 2), asyncio.TaskGroup() as tasks:
        for each in (*crowd, steady):
            tasks.create_task(each.run(last))
        for each in (*crowd, steady):
            await each.there.wait()
        for each in crowd:
            each.cut_off()
        for number in range(2, last + 1):
            await world.publish(banner={"n": number})
            await steady.has(number)  # each goes out at once, storm or not
    for each in crowd:
        assert each.connections > 1
        assert each.numbers == sorted(set(each.numbers))
        assert each.numbers[-1] == last
    assert steady.numbers == list(range(1, last + 1)), "one that stayed got every version by itself"


class Stormy:
    """A client whose link is cut, and which comes back after the SDK's pause, on a shorter scale."""

    def __init__(self, world: Any, number: int) -> None:
        self.world, self.name = world, f"s{number}"
        self.held = world.replica()
        self.there = asyncio.Event()
        self.connections = 0
        self.numbers: list[int] = []
        self._backoff = Backoff(Random(number), first_s=0.5)
        self._client: Client | None = None
        self._moved = asyncio.Event()

    async def run(self, last: int) -> None:
        while not self.numbers or self.numbers[-1] < last:
            try:
                await self._follow(last)
            except (OSError, ConnectionClosed):
                await asyncio.sleep(self._backoff.delay())

    async def _follow(self, last: int) -> None:
        async with self.world.client(replica=self.held, instance=self.name) as client:
            self._client = client
            self.connections += 1
            while True:
                await client.next()
                self.numbers += client.adopted
                client.adopted.clear()
                if self.numbers:
                    self.there.set()
                    self._moved.set()
                if self.numbers and self.numbers[-1] >= last:
                    return

    def cut_off(self) -> None:
        assert self._client
        self._client.socket.transport.abort()

    async def has(self, number: int) -> None:
        while not self.numbers or self.numbers[-1] < number:
            self._moved.clear()
            await self._moved.wait()
