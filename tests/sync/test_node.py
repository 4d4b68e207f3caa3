"""A node's life: warm before ready, healed after a gap, one poisoned environment beside healthy ones, slow clients that cost only themselves."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, head_of

from heliograph.core import frames
from heliograph.core.events import shard_of
from heliograph.services.sync import stream


async def metric(world: Any, name: str) -> float:
    text = (await world.bundles.get("/metrics")).text
    return sum(
        sample.value for family in text_string_to_metric_families(text) for sample in family.samples if sample.name == name
    )


async def test_a_node_started_again_is_warm_before_it_is_ready_and_clients_resume(world):
    await world.publish(**{f"c{i}": {"i": i} for i in range(50)})
    async with world.client() as client:
        await client.until(2)
        held = client.replica
    await world.sync.end()
    await world.publish(c1={"i": 100})
    await world.sync.start()
    async with world.client(replica=held) as client:
        await client.until(3)
        assert client.configs["c1"] == {"i": 100}
        # the node knows only the head's state; where it came from is proved by the history
        assert client.kinds == ["Welcome", "SnapshotFrame"]


async def test_it_waits_for_a_registry_that_is_away(world):
    await world.sync.end()
    await world.registry.end()
    await world.sync.start(until_ready=False)
    assert not world.sync.ready.is_set()
    async with asyncio.timeout(DEADLINE_S):
        while True:  # alive, and honest about not being ready
            try:
                answer = await world.bundles.get(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.02)
    assert (answer.status_code, (await world.bundles.get("/readyz")).status_code) == (503, 503)
    await world.registry.start()
    async with asyncio.timeout(DEADLINE_S):
        await world.sync.ready.wait()
    async with world.client() as client:
        await client.until(1)


async def poison(database: Any, body: bytes) -> None:
    connection = await asyncpg.connect(database.url())
    shard = shard_of(NAMESPACE, ENVIRONMENT)
    await connection.execute("select eventlog.append_event($1, $2, $3, null)", shard, f"{NAMESPACE}/{ENVIRONMENT}", body)
    await connection.close()


async def test_an_event_that_cannot_be_read_is_set_aside_and_the_next_one_is_served(world, database):
    await poison(database, b"this is no event")
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)
    connection = await asyncpg.connect(database.url())
    rows = await connection.fetch("select stream, consumer, reason, state from eventlog.dead_letter")
    await connection.close()
    assert [tuple(row.values())[:2] for row in rows] == [("versions", "sync")]


async def test_an_event_that_lies_about_its_content_is_healed_from_the_registry(world, database):
    """The trie's root tells; the registry's state is read instead."""
    await world.publish(banner={"text": "a"})
    connection = await asyncpg.connect(database.url())
    row = await connection.fetchrow(
        "select body from eventlog.event where position = (select max(position) from eventlog.event)"
    )
    await connection.close()
    told = msgspec.json.decode(row["body"])
    told["number"] += 1
    async with world.client() as client:
        await client.until(2)
        await poison(database, msgspec.json.encode(told))
        await world.publish(banner={"text": "b"})
        await client.until(3)
        assert client.configs == {"banner": {"text": "b"}}


async def test_other_environments_go_on_beside_a_poisoned_one(world, database):
    (await world.api.post(PATH.rsplit("/", 1)[0], json={"name": "staging"})).raise_for_status()
    await poison(database, b"{}")
    (await world.api.put(PATH.replace(ENVIRONMENT, "staging") + "/configs/x", json={"a": 1})).raise_for_status()
    admin = {"Authorization": f"Bearer {world.tokens['admin']}"}
    async with asyncio.timeout(DEADLINE_S):
        while True:
            answer = await world.bundles.get(f"/v1/heads/{NAMESPACE}/staging", headers=admin)
            if answer.status_code == 200 and head_of(answer.json()).number == 2:
                break
            await asyncio.sleep(0.02)


@pytest.fixture
def sync_settings(monkeypatch):
    monkeypatch.setattr(stream, "HANDSHAKE_S", 1.0)
    return {"stall_s": 1.0, "hello_s": 1.0}


async def test_handshakes_that_trickle_in_are_cut_off_and_others_are_served(world):
    """Slow loris: each sends its upgrade a byte now and then, and never to the end."""
    port = int(world.stream.split(":")[2].split("/")[0])
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
    for _, writer in slow:
        writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n")

    async def trickle():
        while True:
            for _, writer in slow:
                writer.write(b"X")
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    async with world.client() as healthy:
        await healthy.until(1)
    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*(reader.read() for reader, _ in slow), return_exceptions=True)
    assert not any(isinstance(answer, bytes) and b" 101 " in answer for answer in answers)
    trickling.cancel()
    for _, writer in slow:
        writer.close()


async def test_hello_must_come_in_time(world):
    async with world.client(hello=False) as client:
        assert await client.closed() == 4106


async def test_a_client_that_does_not_read_is_closed_and_others_are_served(world):
    """Its socket is full after some frames; it leaves the fan-out and is closed; everybody else gets every version."""
    text = "x" * 200_000
    port = int(world.stream.split(":")[2].split("/")[0])
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, ("127.0.0.1", port))
    await loop.sock_sendall(
        stalled,
        b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: heliograph.v1\r\n"
        b"Authorization: Bearer " + world.tokens["client"].encode() + b"\r\n\r\n",
    )
    hello = msgspec.json.encode(
        frames.Hello(
            instance="stalled",
            incarnation=1,
            fingerprint=frames.Fingerprint(sdk="test", sdk_version="1"),
            subscriptions=(frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT),),
        )
    )
    await loop.sock_sendall(stalled, b"\x81\xfe" + len(hello).to_bytes(2, "big") + bytes(4) + hello)
    async with world.client() as healthy:
        await healthy.until(1)
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_connections") < 2:
                await asyncio.sleep(0.02)
            number = 1
            while await metric(world, "heliograph_slow_consumers_entered_total") < 1:
                number = (await world.publish(banner={"text": text, "n": number}))["number"]
                await healthy.until(number)
            while await metric(world, "heliograph_connections") > 1:
                await asyncio.sleep(0.05)
        await world.publish(banner={"text": "small"})
        await healthy.until(number + 1)
        assert healthy.configs == {"banner": {"text": "small"}}
    stalled.close()


async def test_a_client_that_was_slow_gets_one_frame_and_is_current(world):
    async with world.client() as slow, world.client() as healthy:
        await slow.until(1)
        await healthy.until(1)
        slow.socket.transport.pause_reading()
        number = 1
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_slow_consumers_entered_total") < 1:
                number = (await world.publish(banner={"text": "y" * 300_000, "n": number}))["number"]
                await healthy.until(number)
        for i in range(3):
            number = (await world.publish(banner={"text": "small", "n": i}))["number"]
            await healthy.until(number)
        slow.socket.transport.resume_reading()
        await slow.until(number)
        assert slow.configs == {"banner": {"text": "small", "n": 2}}
        assert len(slow.kinds) < number
