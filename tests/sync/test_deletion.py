"""An environment that is deleted and restored, and a purge, as a node and its clients live through it."""

from __future__ import annotations

import asyncio

import msgspec

from heliograph.core import frames
from heliograph.core.digest import digest

from .conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, World


async def gone(world: World) -> str:
    """Until the node serves it no more; what it says then."""
    async with asyncio.timeout(DEADLINE_S):
        while (answer := await world.bundles.get(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}")).status_code != 404:
            await asyncio.sleep(0.02)
    return str(answer.json()["detail"])


async def test_clients_of_a_deleted_environment_are_told_and_keep_what_they_have(world: World) -> None:
    await world.publish(a=1)
    async with world.client() as client:
        await client.until(2)
        held = str(client.replica.cursor)
        waiting = asyncio.create_task(world.bundles.get(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}?have={held}&wait=25"))
        (await world.api.delete(PATH)).raise_for_status()
        told = await client.until_kind(frames.ErrorFrame)
        assert client.replica.cursor is not None
        assert (told.code, told.subscription) == ("not-found", 1)
        assert "it can be restored until" in told.detail
        assert client.configs == {"a": 1}
        assert "restored" in await gone(world)
        async with asyncio.timeout(DEADLINE_S):
            assert (await waiting).status_code == 404
        async with world.client() as late:
            assert "restored" in (await late.until_kind(frames.ErrorFrame)).detail
    (await world.api.post(f"{PATH}/restore")).raise_for_status()
    await world.publish(a=2)
    await world.synced(3)
    async with world.client(replica=client.replica, have=client.replica.cursor) as client:
        await client.until(3)
        assert client.configs == {"a": 2}


async def test_deletion_and_restoration_one_after_the_other(world: World) -> None:
    """Both may be read in one batch, and while the state is being read: what counts is the last."""
    for number in range(3):
        (await world.api.delete(PATH)).raise_for_status()
        (await world.api.post(f"{PATH}/restore")).raise_for_status()
        await world.publish(a=number)
        await world.synced(number + 2)
    async with world.client() as client:
        await client.until(4)
        assert client.configs == {"a": 2}


async def test_node_that_starts_after_a_deletion_does_not_know_it(world: World) -> None:
    await world.publish(a=1)
    (await world.api.delete(PATH)).raise_for_status()
    await gone(world)
    await world.sync.end()
    await world.sync.start()
    assert "restored" in await gone(world)


async def test_purged_text_leaves_the_node(world: World) -> None:
    """A reader of an older version gets a snapshot; what the node holds is the head's alone."""
    await world.publish(a={"password": "hunter2"}, b=1)
    async with world.client() as client:
        await client.until(2)
        old, replica = client.replica.cursor, client.replica
    await world.publish(a={"password": None})
    await world.synced(3)
    named = digest("document", b'{"password":"hunter2"}')
    asked = {"digests": [named], "reason": "leaked", "order": "DPO-17"}
    (await world.api.post(f"/v1/namespaces/{NAMESPACE}/purges", json=asked)).raise_for_status()
    async with asyncio.timeout(DEADLINE_S):  # the head that was signed anew by the purge is behind its event
        while True:
            body = (await world.bundles.get(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}?have={old}")).content
            if msgspec.json.decode(body)["type"] == "snapshot":
                break
            await asyncio.sleep(0.02)
    assert b"hunter2" not in body
    async with world.client(replica=replica, have=old) as client:
        await client.until(3)
        assert client.configs == {"a": {"password": None}, "b": 1}
    await world.publish(b=2)
    await world.synced(4)
