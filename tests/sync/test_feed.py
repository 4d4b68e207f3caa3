"""What a parent lets an edge do: follow, relay and ask within its token's scope, and nothing else. Nothing of it is open to clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, World
from tests.sync.edges import edge_token
from tests.sync.test_receipts import logged
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from heliograph.core import feed, frames, history
from heliograph.core.digest import unspell
from heliograph.core.events import NodeAlive, Received, Subscribed, Unsubscribed
from heliograph.core.token import sha256
from heliograph.runtime.clock import now_us

MARK = frames.Fingerprint(sdk="test", sdk_version="1")


class RawEdge:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, frame: Any) -> None:
        await self.socket.send(msgspec.json.encode(frame), text=True)

    async def next(self, kind: type[Any]) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                frame = msgspec.json.decode(await self.socket.recv(decode=False), type=feed.ToEdge)
                if isinstance(frame, kind):
                    return frame

    async def closed(self) -> int:
        with pytest.raises(ConnectionClosed) as raised:
            await self.next(feed.Purged)
        assert raised.value.rcvd
        return raised.value.rcvd.code


@asynccontextmanager
async def raw_edge(world: World, token: str, **hello: Any) -> AsyncIterator[RawEdge]:
    async with connect(
        world.stream,
        subprotocols=[frames.SUBPROTOCOL],
        additional_headers={"Authorization": f"Bearer {token}"},
        compression=None,
        ping_interval=None,
    ) as socket:
        edge = RawEdge(socket)
        said = {"instance": "node-1", "incarnation": 1, "fingerprint": MARK, "subscriptions": (), **hello}
        await edge.send(frames.Hello(**said))
        yield edge


def follow(number: int = 1, environment: str = ENVIRONMENT) -> feed.Follow:
    return feed.Follow(id=number, namespace=NAMESPACE, environment=environment)


def receipt(environment: str = ENVIRONMENT, node: str = "node-1") -> Received:
    return Received(
        namespace=NAMESPACE,
        environment=environment,
        instance="i",
        connection="c",
        subscription=1,
        node=node,
        epoch=1,
        number=1,
        version="sha256:" + "0" * 64,
        state="applied",
        reason=None,
        applied_at_us=now_us(),
        received_at_us=now_us(),
    )


async def test_an_edge_gets_what_a_client_of_everything_gets_and_is_no_instance(world, database):
    made = await edge_token(world)
    async with world.client(instance="me") as client, raw_edge(world, made["token"]) as edge:
        await client.until(1)
        await edge.send(follow(1))
        await edge.next(frames.SnapshotFrame)
        await world.publish(banner={"text": "a"})
        await client.until(2)
        delta = await edge.next(frames.DeltaFrame)
        assert client.raw[-1] == msgspec.json.encode(delta)
        await edge.send(feed.Unfollow(id=1))
        await edge.send(frames.Heartbeat(sent_at_us=5))
        await edge.next(frames.HeartbeatAck)
        await world.publish(banner={"text": "b"})
        await client.until(3)
        await edge.send(follow(2))
        assert (await edge.next(frames.SnapshotFrame)).subscription == 2
    await logged(database, Unsubscribed)  # the client has gone, and its edge before it
    assert [each.instance for each in await logged(database, Subscribed)] == ["me"]


async def test_what_it_may_not_follow_ends_the_subscription_and_not_the_connection(world):
    made = await edge_token(world)
    async with raw_edge(world, made["token"]) as edge:
        for number, wanted, code in (
            (1, follow(1, "staging"), "forbidden"),
            (2, feed.Follow(id=2, namespace="NO", environment="x"), "invalid-name"),
            (3, follow(-3), "invalid-request"),
        ):
            await edge.send(wanted)
            told = await edge.next(frames.ErrorFrame)
            assert (told.code, told.subscription) == (code, wanted.id), number
        await edge.send(follow(4))
        await edge.next(frames.SnapshotFrame)
        await edge.send(follow(4))
        assert (await edge.next(frames.ErrorFrame)).code == "invalid-request"


async def test_what_is_not_there_is_told(world):
    made = await edge_token(world, scopes=({"namespace": NAMESPACE, "environment": "*"},))
    async with raw_edge(world, made["token"]) as edge:
        await edge.send(follow(9, "nowhere"))
        told = await edge.next(frames.ErrorFrame)
        assert (told.code, told.subscription) == ("not-found", 9)


async def test_what_is_not_there_or_no_more_takes_no_place_of_what_may_be_followed(world, monkeypatch):
    """An edge whose clients misspell a name would be refused what exists, until it connects again."""
    monkeypatch.setattr(feed, "MAX_FOLLOWED", 2)
    made = await edge_token(world, scopes=({"namespace": NAMESPACE, "environment": "*"},))
    async with raw_edge(world, made["token"]) as edge:
        await edge.send(follow(1))
        await edge.next(frames.SnapshotFrame)
        (await world.api.delete(PATH)).raise_for_status()
        assert (await edge.next(frames.ErrorFrame)).subscription == 1
        for number in range(2, 6):
            await edge.send(follow(number, "nowhere"))
            told = await edge.next(frames.ErrorFrame)
            assert (told.code, told.subscription) == ("not-found", number)
        (await world.api.post(f"{PATH}/restore")).raise_for_status()
        await world.publish(banner={"text": "back"})
        await world.synced(2)
        await edge.send(follow(6))
        assert (await edge.next(frames.SnapshotFrame)).subscription == 6


async def test_a_resync_that_crosses_the_end_of_its_subscription_is_nothing(world):
    made = await edge_token(world, scopes=({"namespace": NAMESPACE, "environment": "*"},))
    async with raw_edge(world, made["token"]) as edge:
        await edge.send(follow(1, "nowhere"))
        await edge.next(frames.ErrorFrame)
        await edge.send(frames.Resync(subscription=1))
        await edge.send(follow(2))
        assert (await edge.next(frames.SnapshotFrame)).subscription == 2


async def test_events_are_acknowledged_when_durable_and_stand_under_the_token(world, database):
    made = await edge_token(world)
    async with raw_edge(world, made["token"]) as edge:
        alive = NodeAlive(node="node-1", region="r", connections=1, at_us=now_us())
        await edge.send(feed.Relay(seq=4, events=(receipt(), alive, receipt(node="lower/node-2"))))
        assert (await edge.next(frames.ReceiptAck)).seq == 4
        stored = await logged(database, Received, 2)
        assert {each.node for each in stored} == {f"{made['id']}/node-1", f"{made['id']}/lower/node-2"}


@pytest.mark.parametrize(
    "refused",
    [receipt("staging"), receipt("Not A Name"), receipt(node=""), receipt(node="n" * 300), receipt(node="n\0")],
    ids=["scope", "name", "no node", "long node", "nul"],
)
async def test_events_that_may_not_be_stored_are_left_out_and_hold_up_no_other(world, database, refused):
    """Its edge would tell them for ever: its token is another one since, or an edge below it has a long name."""
    made = await edge_token(world)
    async with raw_edge(world, made["token"]) as edge:
        await edge.send(feed.Relay(seq=1, events=(refused,)))
        assert (await edge.next(frames.ReceiptAck)).seq == 1
        await edge.send(feed.Relay(seq=2, events=(receipt(), refused, receipt(node="node-2"))))
        assert (await edge.next(frames.ReceiptAck)).seq == 2
    stored = await logged(database, Received, 2)
    assert {each.node.rpartition("/")[2] for each in stored} == {"node-1", "node-2"}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b'{"type":"relay","seq":1,"events":[{"type":"version"}]}', 4102),
        (b'{"type":"relay","seq":1,"events":[{"type":"node_alive"}]}', 4102),
        (b'{"type":"receipt"}', 4102),
    ],
)
async def test_what_is_no_event_of_a_client_closes_the_connection(world, database, said, code):
    made = await edge_token(world)
    async with raw_edge(world, made["token"]) as edge:
        await edge.next(frames.Welcome)
        await edge.socket.send(said, text=True)
        assert await edge.closed() == code
    connection = await asyncpg.connect(database.url())
    rows = await connection.fetchval("select count(*) from eventlog.log_receipt where key = 'i'")
    await connection.close()
    assert rows == 0


async def test_hello_comes_first_and_without_subscriptions(world):
    made = await edge_token(world)
    subscription = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)
    async with raw_edge(world, made["token"], subscriptions=(subscription,)) as edge:
        assert (await edge.next(frames.ErrorFrame)).code == "invalid-request"
    async with world.client(token=made["token"], hello=False) as client:
        await client.send(follow())
        assert await client.closed() == 4106


async def test_a_client_may_neither_follow_nor_relay_nor_ask(world):
    for frame in (follow(), feed.Relay(seq=1, events=(receipt(),))):
        async with world.client() as client:
            await client.until(1)
            await client.send(frame)
            assert await client.closed() == 4102
    asked = await world.bundles.post("/v1/internal/introspect", json={"sha256": "0" * 64})
    assert asked.status_code == 403
    asked = await world.bundles.get(f"/v1/internal/history/{NAMESPACE}/{ENVIRONMENT}?upto=1")
    assert asked.status_code == 403


async def test_tokens_are_told_as_far_as_the_edges_own_scope_goes(world):
    made = await edge_token(world)
    edge = {"Authorization": f"Bearer {made['token']}"}

    async def told(text: str) -> Any:
        return await world.bundles.post("/v1/internal/introspect", json={"sha256": sha256(text).hex()}, headers=edge)

    known = (await told(world.tokens["client"])).json()
    assert (known["id"], known["kind"]) == (world.tokens["client_id"], "client")
    admin = (await told(world.tokens["admin"])).json()  # reaches everything, and here no further than the edge
    assert admin["scopes"] == [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]
    asked = {"kind": "client", "name": "other", "scopes": [{"namespace": "other", "environment": "*"}]}
    other = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    assert (await told(other["token"])).status_code == 404
    assert (await told("hel_unknown")).status_code == 404
    for body in (b"", b'{"sha256": "xyz"}', b"[]"):
        answer = await world.bundles.post("/v1/internal/introspect", content=body, headers=edge)
        assert answer.status_code == 400, body


async def test_history_is_told_as_leaves(world):
    first = await world.publish(a=1)
    await world.publish(a=2)
    await world.synced(3)
    edge = {"Authorization": f"Bearer {(await edge_token(world))['token']}"}
    path = f"/v1/internal/history/{NAMESPACE}/{ENVIRONMENT}"
    answer = await world.bundles.get(path, params={"after": 1, "upto": 2}, headers=edge)
    assert feed.split_leaves(answer.content) == [history.leaf(unspell(first["version"]))]
    assert (await world.bundles.get(path, params={"upto": -1}, headers=edge)).status_code == 400
    assert (await world.bundles.get(f"/v1/internal/history/{NAMESPACE}/staging?upto=1", headers=edge)).status_code == 403


async def test_how_the_history_began_anew_is_told_as_it_was_signed(world):
    """Nothing of it here; and nothing of what is not in the edge's scope."""
    edge = {"Authorization": f"Bearer {(await edge_token(world))['token']}"}
    path = "/v1/internal/recoveries"
    answer = await world.bundles.get(f"{path}/{NAMESPACE}/{ENVIRONMENT}", headers=edge)
    assert (answer.status_code, answer.json()) == (200, [])
    assert (await world.bundles.get(f"{path}/{NAMESPACE}/staging", headers=edge)).status_code == 403
    assert (await world.bundles.get(f"{path}/{NAMESPACE}/{ENVIRONMENT}")).status_code == 403
    older = await world.bundles.get(f"/v1/internal/not-known-to-this-release/{NAMESPACE}/{ENVIRONMENT}", headers=edge)
    assert older.status_code == 404  # what an edge hears of a parent that does not know the question


async def test_a_connection_that_comes_again_replaces_the_one_before(world):
    made = await edge_token(world)
    async with raw_edge(world, made["token"]) as one:
        await one.next(frames.Welcome)
        async with raw_edge(world, made["token"]) as other:
            await other.next(frames.Welcome)
            assert await one.closed() == 4004
            await other.send(follow())
            await other.next(frames.SnapshotFrame)
