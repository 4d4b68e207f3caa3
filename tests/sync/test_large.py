"""Large views on a real node: a slow reader of a snapshot in parts, and what others see meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tests.sync.conftest import DEADLINE_S
from tests.sync.test_node import metric

from heliograph.core import frames

COUNT = 60
LARGE = {f"large/c{i:02d}": {"text": f"{i:02d}" * 25_000} for i in range(COUNT)}  # 3 MB: a dozen parts


@pytest.fixture
def sync_settings() -> dict[str, Any]:
    return {"transfer_bytes": 600 * 1024}


async def fill(world: Any) -> None:
    """Half at a time: a request has a limit."""
    names = list(LARGE)
    for half in (names[: COUNT // 2], names[COUNT // 2 :]):
        await world.publish(**{name.replace("/", "__"): LARGE[name] for name in half})
    await world.synced(3)


async def in_parts(client: Any) -> None:
    """Until the first part has come; the socket takes nothing then."""
    await client.until_kind(frames.SnapshotFrame)
    client.socket.transport.pause_reading()


async def test_versions_reach_a_fast_reader_while_a_slow_one_is_being_sent_a_snapshot(world):
    await fill(world)
    async with world.client(hello=False) as slow, world.client() as fast:
        slow.socket.transport.pause_reading()  # before anything is sent: what it takes is what the system's buffers hold
        await slow.hello(None, "slow", 1)
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_slow_consumers") < 1:
                await asyncio.sleep(0.02)
        await fast.until(3)
        number = 3
        for text in "abc":
            number = (await world.publish(banner={"text": text}))["number"]
            await fast.until(number)
        assert fast.kinds.count("DeltaFrame") == 3
        slow.socket.transport.resume_reading()
        await slow.until(number)
        # it ended with what it had begun, and went on from there
        assert slow.kinds[1:] == ["SnapshotFrame"] * (len(slow.kinds) - 2) + ["DeltaFrame"]
        assert slow.configs == fast.configs == {**LARGE, "banner": {"text": "c"}}


async def test_what_is_unread_is_bounded_however_many_do_not_read(world):
    await fill(world)
    clients = []
    async with asyncio.TaskGroup() as group, asyncio.timeout(2 * DEADLINE_S):
        release = asyncio.Event()

        async def one(*, stalls: bool) -> None:
            async with world.client() as client:
                clients.append(client)
                if stalls:
                    await client.until_kind(frames.Welcome)
                    client.socket.transport.pause_reading()
                    await release.wait()
                    client.socket.transport.resume_reading()
                await client.until(3)
                assert client.configs == LARGE

        for _ in range(12):
            group.create_task(one(stalls=True))
        while await metric(world, "heliograph_transfers_waiting") == 0:
            assert await metric(world, "heliograph_transfer_bytes_unread") <= 600 * 1024
            await asyncio.sleep(0.02)
        release.set()
    assert await metric(world, "heliograph_transfer_bytes_unread") == 0


async def test_a_snapshot_that_is_asked_for_again_and_again_comes_once_it_can(world):
    """Behind a full socket nothing is read, and what is asked for while one is on its way is one more."""
    await fill(world)
    async with world.client() as client:
        await client.until(3)
        before = await metric(world, "heliograph_resyncs_total")
        client.socket.transport.pause_reading()
        for _ in range(20):
            await client.send(frames.Resync(subscription=1))
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_slow_consumers") < 1:
                await asyncio.sleep(0.02)
        assert await metric(world, "heliograph_resyncs_total") - before == 1
        client.socket.transport.resume_reading()
        number = (await world.publish(banner={"text": "a"}))["number"]
        await client.until(number)
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_frames_received_total") < 21:
                with contextlib.suppress(TimeoutError):  # it reads on, whether there is something or not
                    async with asyncio.timeout(0.2):
                        await client.next()
        assert await metric(world, "heliograph_resyncs_total") - before <= 5


async def test_every_subscription_is_answered_though_the_first_takes_long(world):
    await fill(world)
    async with world.client() as held:
        await held.until(3)
        cursor = held.replica.cursor
    mark = frames.Fingerprint(sdk="test", sdk_version="1")
    async with world.client(hello=False) as client:
        from tests.sync.conftest import ENVIRONMENT, NAMESPACE

        wanted = tuple(
            frames.Subscription(id=number, namespace=NAMESPACE, environment=ENVIRONMENT, have=have)
            for number, have in ((1, None), (2, cursor), (3, cursor))
        )
        await client.send(frames.Hello(instance="i", incarnation=1, fingerprint=mark, subscriptions=wanted))
        told = [(await client.until_kind(frames.Current)).subscription for _ in range(2)]
        assert told == [2, 3]
