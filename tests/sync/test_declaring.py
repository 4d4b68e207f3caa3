"""What clients declare reaches the log with their subscription, and again when it changes; too much of it is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE

from heliograph.core import frames
from heliograph.core.events import FromSync, Subscribed

SCHEMA = '{"type":"object"}'


@pytest.fixture
def declared_in_log(database):
    async def read(count: int) -> list[dict[str, str] | None]:
        """Of all `subscribed` events, once there are so many."""
        connection = await asyncpg.connect(database.url())
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    rows = await connection.fetch("select body from eventlog.log_receipt order by committed_at, position")
                    events = [msgspec.json.decode(row["body"], type=FromSync) for row in rows]
                    found = [each.declares for each in events if isinstance(each, Subscribed)]
                    if len(found) >= count:
                        return found
                    await asyncio.sleep(0.02)
        finally:
            await connection.close()

    return read


def hello(declares: Any = msgspec.UNSET) -> frames.Hello:
    wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT, declares=declares)
    mark = frames.Fingerprint(sdk="test", sdk_version="1")
    return frames.Hello(instance="declaring", incarnation=1, fingerprint=mark, subscriptions=(wanted,))


async def test_what_hello_and_heartbeats_declare_is_in_the_log(world, declared_in_log):
    async with world.client(hello=False) as client:
        await client.send(hello({"limits": SCHEMA}))
        await client.until(1)
        await client.send(frames.Heartbeat(declares={"1": {"limits": SCHEMA, "search": SCHEMA}}))
        await client.send(frames.Heartbeat())
        assert await declared_in_log(2) == [{"limits": SCHEMA}, {"limits": SCHEMA, "search": SCHEMA}]


async def test_a_client_that_declares_nothing(world, declared_in_log):
    text = msgspec.json.encode(hello())
    assert b"declares" not in text
    async with world.client(hello=False) as client:
        await client.socket.send(text, text=True)
        await client.until(1)
        assert await declared_in_log(1) == [None]


@pytest.mark.parametrize(
    "declares",
    [
        {"Bad Name": "{}"},
        {"a": "x" * (frames.MAX_DECLARED_SCHEMA + 1)},
        {f"c{n}": "{}" for n in range(frames.MAX_DECLARED + 1)},
    ],
)
async def test_too_much_is_refused(world, declares):
    async with world.client(hello=False) as client:
        await client.send(hello(declares))
        assert await client.closed() == 4102
    async with world.client() as client:
        await client.until(1)
        await client.send(frames.Heartbeat(declares={"1": declares}))
        assert await client.closed() == 4102


@pytest.mark.parametrize("subscription", ["2", "x", "-1", "9" * 30])
async def test_declaring_for_a_subscription_that_is_not_there(world, subscription):
    async with world.client() as client:
        await client.until(1)
        await client.send(frames.Heartbeat(declares={subscription: {"a": "{}"}}))
        assert await client.closed() == 4102
