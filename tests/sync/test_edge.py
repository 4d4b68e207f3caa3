"""An edge below a sync node: what is published arrives, receipts come back, and it serves on when its parent is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.sync.conftest import DEADLINE_S
from tests.sync.edges import Edge, edge_below, registry_of
from tests.sync.test_receipts import logged

from heliograph.core import frames
from heliograph.core.events import NodeAlive, Received, Subscribed


@pytest.fixture
async def edge(world, tmp_path):
    async with edge_below(world, registry_of(world), tmp_path / "office") as one:
        yield one


async def test_what_is_published_reaches_a_client_below_and_its_receipt_the_log(world, edge: Edge, database: Any):
    await world.publish(checkout__limits={"max": 1}, banner={"text": "a"})
    async with edge.world.client(("checkout/",), instance="below") as client:
        await client.until(2)
        assert client.configs == {"checkout/limits": {"max": 1}}
        await world.publish(checkout__limits={"max": 2})
        await client.until(3)
        assert client.configs == {"checkout/limits": {"max": 2}}
        assert client.kinds[-1] == "DeltaFrame"
        await client.send(client.receipt(seq=7))
        assert (await client.until_kind(frames.ReceiptAck)).seq == 7
    [stored] = await logged(database, Received)
    node = f"{edge.token['id']}/office-"
    assert (stored.instance, stored.number, stored.state) == ("below", 3, "applied")
    assert stored.node.startswith(node)
    [joined] = await logged(database, Subscribed)  # the edge itself is no instance
    assert (joined.instance, joined.view, joined.token) == ("below", ("checkout/",), world.tokens["client_id"])
    async with asyncio.timeout(DEADLINE_S):
        count = 1
        while not (alive := await logged(database, NodeAlive, count))[-1].node.startswith(node):
            count = len(alive) + 1
