"""Receipts: acknowledged when they are durable, only for what was there to be sent, only for one's own instance."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE

from heliograph.core import frames
from heliograph.core.events import FannedOut, FromSync, NodeAlive, Received, Subscribed, Unsubscribed
from heliograph.core.records import Cursor
from heliograph.runtime.clock import now_us
from heliograph.services.sync import receipts as outbox


async def logged(database: Any, kind: type[Any], count: int = 1) -> list[Any]:
    """The first `count` events of a kind in the log, once they are there."""
    connection = await asyncpg.connect(database.url())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                rows = await connection.fetch("select body from eventlog.log_receipt order by committed_at, shard, position")
                found = [event for row in rows if isinstance(event := msgspec.json.decode(row["body"], type=FromSync), kind)]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def test_a_receipt_is_in_the_log_before_it_is_acknowledged(world, database):
    await world.publish(banner={"text": "a"})
    async with world.client(instance="me") as client:
        await client.until(2)
        await client.send(client.receipt(seq=5))
        acknowledged = await client.until_kind(frames.ReceiptAck)
        assert acknowledged.seq == 5
        connection = await asyncpg.connect(database.url())
        rows = await connection.fetch("select body from eventlog.log_receipt")
        await connection.close()
        [stored] = [e for row in rows if isinstance(e := msgspec.json.decode(row["body"], type=FromSync), Received)]
        assert (stored.instance, stored.number, stored.state, stored.subscription) == ("me", 2, "applied", 1)


async def test_times_are_corrected_by_the_clients_offset(world, database):
    async with world.client() as client:
        await client.until(1)
        ours = now_us()
        late = msgspec.structs.replace(client.receipt(), applied_at_us=ours - 5_000_000, clock_offset_us=5_000_000)
        await client.send(late)
        await client.until_kind(frames.ReceiptAck)
        [stored] = await logged(database, Received)
        assert stored.applied_at_us == ours


async def test_joining_leaving_signs_of_life_and_fan_outs_are_told(world, database):
    async with world.client(instance="me", view=("checkout/",)) as client:
        await client.until(1)
        [joined] = await logged(database, Subscribed)
        assert (joined.instance, joined.view, joined.token) == ("me", ("checkout/",), world.tokens["client_id"])
        await world.publish(checkout__limits={"max": 1})
        await client.until(2)
        [fanned] = await logged(database, FannedOut)
        assert (fanned.number, fanned.recipients) == (2, 1)
        assert fanned.logged_at_us <= fanned.started_at_us <= fanned.done_at_us
    [left] = await logged(database, Unsubscribed)
    assert (left.instance, left.connection) == ("me", joined.connection)
    assert (await logged(database, NodeAlive))[0].node == joined.node


async def test_a_node_that_stops_says_so_and_asks_its_clients_to_go(world, database):
    async with world.client() as client:
        await client.until(1)
        ending = asyncio.create_task(world.sync.end())
        assert (await client.until_kind(frames.Drain)).within_s > 0
        assert await client.closed() == 4000
        await ending
    assert (await logged(database, NodeAlive))[-1].leaving or any(each.leaving for each in await logged(database, NodeAlive))
    assert len(await logged(database, Unsubscribed)) == 1


@pytest.mark.parametrize("lie", ["a number to come", "another id", "an id that is none"])
async def test_a_receipt_for_a_version_never_sent_is_refused_and_not_stored(world, database, lie):
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)
        told = {
            "a number to come": {"number": 3},
            "another id": {"version": "sha256:" + "4" * 64, "number": 1},
            "an id that is none": {"version": "mine"},
        }[lie]
        await client.send(client.receipt(**told))
        error = await client.until_kind(frames.ErrorFrame)
        assert error.code == "invalid-request"
        assert await client.closed() == 4102
    connection = await asyncpg.connect(database.url())
    rows = await connection.fetch("select body from eventlog.log_receipt")
    await connection.close()
    assert not [e for row in rows if isinstance(e := msgspec.json.decode(row["body"], type=FromSync), Received)]


async def test_an_older_incarnation_and_another_token_may_not_speak_for_an_instance(world):
    asked = {"kind": "client", "name": "other", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
    other = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"]
    async with world.client(instance="me", incarnation=7) as client:
        await client.until(1)
        async with world.client(instance="me", incarnation=6) as older:
            assert await older.closed() == 4103
        async with world.client(instance="me", incarnation=9, token=other) as thief:
            assert await thief.closed() == 4103
        async with world.client(instance="me", incarnation=8) as newer:
            await newer.until(1)
            assert await client.closed() == 4103


async def test_the_same_incarnation_may_come_back_at_once(world):
    async with world.client(instance="me", incarnation=7) as first:
        await first.until(1)
        async with world.client(instance="me", incarnation=7) as again:
            await again.until(1)
            assert 4000 <= await first.closed() < 4100


# --- pollers -----------------------------------------------------------------------------------------------------------------------


def posted(receipt: frames.Receipt, *, instance: str = "poller", incarnation: int = 1) -> dict[str, Any]:
    return {
        "instance": instance,
        "incarnation": incarnation,
        "fingerprint": {"sdk": "test", "sdk_version": "1"},
        "receipts": [
            {"namespace": NAMESPACE, "environment": ENVIRONMENT, "view": [""], "receipt": msgspec.to_builtins(receipt)}
        ],
    }


async def head(world: Any) -> Cursor:
    told = (await world.api.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).json()
    return Cursor(told["epoch"], told["number"], told["version"])


def receipt_for(cursor: Cursor, **more: Any) -> frames.Receipt:
    told = {
        "seq": 1,
        "subscription": 1,
        "epoch": cursor.epoch,
        "number": cursor.number,
        "version": cursor.version,
        "state": "applied",
        **more,
    }
    return frames.Receipt(**told, applied_at_us=now_us())


async def test_a_poller_posts_receipts_and_is_answered_when_they_are_durable(world, database):
    answer = await world.bundles.post("/v1/receipts", json=posted(receipt_for(await head(world), seq=9)))
    assert answer.status_code == 200
    [stored] = await logged(database, Received)
    assert stored.instance == "poller"


async def test_a_poller_whose_receipts_have_no_room_posts_them_again(world, database, monkeypatch):
    told = posted(receipt_for(await head(world)))
    monkeypatch.setattr(outbox, "MAX_WAITING", -1)
    answer = await world.bundles.post("/v1/receipts", json=told)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    assert (await world.bundles.post("/v1/receipts", json=told)).status_code == 200
    assert len(await logged(database, Received)) == 1


async def test_what_a_poller_may_not_post(world):
    cursor = await head(world)
    async with world.client(instance="mine") as client:
        await client.until(1)
        asked = {"kind": "client", "name": "other", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
        other = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"]
        theirs = await world.bundles.post(
            "/v1/receipts", json=posted(receipt_for(cursor), instance="mine"), headers={"Authorization": f"Bearer {other}"}
        )
        assert theirs.status_code == 403
    for body, status in (
        (posted(receipt_for(Cursor(1, cursor.number, "sha256:" + "0" * 64))), 400),
        (posted(receipt_for(Cursor(1, 44, "sha256:" + "0" * 64))), 503),  # it may come from a node that is ahead
        (posted(receipt_for(cursor)) | {"receipts": [1]}, 400),
        ({"nothing": 1}, 400),
    ):
        answer = await world.bundles.post("/v1/receipts", json=body)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await world.bundles.post("/v1/receipts", content=b"{")).status_code == 400
