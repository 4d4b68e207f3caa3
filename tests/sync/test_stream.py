"""What a client of the stream is told, checked with the client's own rules: snapshot, delta, advance, resume, filtered views."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from heliograph.core import frames
from heliograph.core.records import Cursor


async def test_a_snapshot_then_each_version_as_a_delta(world):
    await world.publish(checkout__limits={"max": 1}, banner={"text": "a"})
    await world.synced(2)
    async with world.client() as client:
        await client.until(2)
        assert client.configs == {"checkout/limits": {"max": 1}, "banner": {"text": "a"}}
        await world.publish(checkout__limits={"max": 2})
        await client.until(3)
        await world.publish(banner=None)
        await client.until(4)
        assert client.configs == {"checkout/limits": {"max": 2}}
        assert client.kinds == ["Welcome", "SnapshotFrame", "DeltaFrame", "DeltaFrame"]


@pytest.mark.parametrize("view", [("checkout/",), ("checkout/limits",), ("banner", "checkout/"), ("not/there",)])
async def test_a_filtered_view_gets_what_it_covers_and_proves_the_rest_unchanged(world, view):
    await world.publish(
        checkout__limits={"max": 1}, checkout__cart={"a": 1}, banner={"text": "a"}, **{f"c{i}": {"i": i} for i in range(60)}
    )
    async with world.client(view) as client:
        await client.until(2)
        expected = {
            name
            for name in ("checkout/limits", "checkout/cart", "banner")
            if any(name == v or (v.endswith("/") and name.startswith(v)) for v in view)
        }
        assert set(client.configs) == expected
        await world.publish(c7={"i": 70})
        await client.until(3)
        assert client.kinds[-1] == "AdvanceFrame"
        assert set(client.configs) == expected
        await world.publish(checkout__limits={"max": 9})
        await client.until(4)
        assert client.kinds[-1] == ("DeltaFrame" if "checkout/limits" in expected else "AdvanceFrame")


async def test_equal_views_share_the_very_same_bytes(world):
    async with world.client() as one, world.client() as other:
        await one.until(1)
        await other.until(1)
        await world.publish(banner={"text": "b"})
        await one.until(2)
        await other.until(2)
        assert one.raw[-1] == other.raw[-1]


async def test_resume_is_current_delta_or_snapshot(world):
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)
        held = client.replica
    async with world.client(replica=held) as client:
        await client.until_kind(frames.Current)
    for i in range(5):
        await world.publish(banner={"text": f"b{i}"})
    await world.synced(7)
    async with world.client(replica=held) as client:
        await client.until(7)
        assert client.kinds == ["Welcome", "DeltaFrame"]
        assert client.configs == {"banner": {"text": "b4"}}


async def test_a_cursor_that_is_not_of_this_history_gets_a_snapshot_without_a_path(world):
    await world.publish(banner={"text": "a"})
    lost = Cursor(1, 1, "sha256:" + "0" * 64)
    async with world.client(have=lost) as client:
        frame = await client.until_kind(frames.SnapshotFrame)
        assert frame.ancestry is None


async def test_a_client_that_is_ahead_is_shown_nothing_older(world):
    ahead = Cursor(1, 99, "sha256:" + "1" * 64)
    async with world.client(have=ahead) as client:
        await client.until_kind(frames.Welcome)
        await client.send(frames.Heartbeat(sent_at_us=1))
        assert isinstance(await client.next(), frames.HeartbeatAck)


async def test_a_large_document_travels_as_edits(world):
    text = "x" * 300
    await world.publish(big={f"k{i:03d}": text for i in range(40)})
    async with world.client() as client:
        await client.until(2)
        document = {f"k{i:03d}": text for i in range(40)}
        document["k007"] = "changed"
        await world.publish(big=document)
        await client.until(3)
        assert client.configs == {"big": document}
        assert len(client.raw[-1]) < 4000


async def test_a_large_snapshot_comes_in_parts_that_apply_together(world):
    documents = {f"c{i}": {"text": f"{i}" * 20_000} for i in range(40)}
    await world.publish(**documents)
    async with world.client() as client:
        await client.until(2)
        assert client.kinds.count("SnapshotFrame") > 1
        assert client.configs == documents
        assert all(len(raw) < 300 * 1024 for raw in client.raw)


async def test_a_schema_alone_travels_as_a_leaf(world):
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)
        schema = {"type": "object", "required": ["text"]}
        (await world.api.put(f"{PATH}/schemas/banner", json=schema)).raise_for_status()
        frame = await client.until_kind(frames.DeltaFrame)
        [change] = frame.changes
        assert change.document is msgspec.UNSET
        assert client.replica.cursor.number == 3


async def test_a_heartbeat_with_a_wrong_digest_is_answered_with_a_snapshot(world):
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)
        await client.send(frames.Heartbeat(views={"1": client.replica.view_digest}, sent_at_us=5))
        acknowledged = await client.until_kind(frames.HeartbeatAck)
        assert acknowledged.echo_us == 5
        await client.send(frames.Heartbeat(views={"1": "sha256:" + "2" * 64}, sent_at_us=6))
        await client.until_kind(frames.SnapshotFrame)


async def test_resync_brings_a_snapshot_with_the_path_from_what_is_held(world):
    await world.publish(banner={"text": "a"})
    async with world.client() as client:
        await client.until(2)
        held = client.replica.cursor
        for i in range(3):
            await world.publish(banner={"text": f"{i}"})
        await client.until(5)
        await client.send(frames.Resync(subscription=1, have=held))
        frame = await client.until_kind(frames.SnapshotFrame)
        assert frame.ancestry


async def test_an_environment_made_later_reaches_those_who_wait_for_it(world):
    (await world.api.post(PATH.rsplit("/", 1)[0], json={"name": "later"})).raise_for_status()
    async with world.client(hello=False, token=world.tokens["admin"]) as client:
        wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment="later")
        mark = frames.Fingerprint(sdk="test", sdk_version="1")
        await client.send(frames.Hello(instance="i", incarnation=1, fingerprint=mark, subscriptions=(wanted,)))
        async with asyncio.timeout(DEADLINE_S):
            while True:
                raw = await client.socket.recv(decode=False)
                frame = msgspec.json.decode(raw, type=frames.FromServer)
                if isinstance(frame, frames.SnapshotFrame):
                    break
        assert '"number":1,' in frame.head.payload


async def test_an_environment_that_is_nowhere_is_said_and_the_connection_stays(world):
    async with world.client(hello=False, token=world.tokens["admin"]) as client:
        wanted = frames.Subscription(id=3, namespace=NAMESPACE, environment="nowhere")
        mark = frames.Fingerprint(sdk="test", sdk_version="1")
        await client.send(frames.Hello(instance="i", incarnation=1, fingerprint=mark, subscriptions=(wanted,)))
        told = await client.until_kind(frames.ErrorFrame)
        assert (told.code, told.subscription) == ("not-found", 3)
        await client.send(frames.Heartbeat(sent_at_us=1))
        await client.until_kind(frames.HeartbeatAck)


# --- the door -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "subprotocols", "headers", "status"),
    [
        ("/v1/stream", [], {"Authorization": "Bearer {client}"}, 400),
        ("/v1/stream", ["other.v1"], {"Authorization": "Bearer {client}"}, 400),
        ("/v1/else", [frames.SUBPROTOCOL], {"Authorization": "Bearer {client}"}, 400),
        ("/v1/stream", [frames.SUBPROTOCOL], {}, 401),
        ("/v1/stream", [frames.SUBPROTOCOL], {"Authorization": "Bearer hel_client_cut"}, 401),
        ("/v1/stream", [frames.SUBPROTOCOL], {"Authorization": "Basic abc"}, 401),
    ],
)
async def test_what_is_refused_before_the_upgrade_with_words(world, path, subprotocols, headers, status):
    address = world.stream.replace("/v1/stream", path)
    told = {key: value.format(**world.tokens) for key, value in headers.items()}
    with pytest.raises(InvalidStatus) as refused:
        async with connect(address, subprotocols=subprotocols or None, additional_headers=told):
            pytest.fail("was let in")
    assert refused.value.response.status_code == status
    assert len(refused.value.response.body) > 10


async def test_firefox_is_let_in(world):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.stream.split(":")[2].split("/")[0]))
    writer.write(
        b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: heliograph.v1\r\n"
        b"Authorization: Bearer " + world.tokens["client"].encode() + b"\r\n\r\n"
    )
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    writer.close()


async def test_a_token_of_another_server_is_closed_with_a_code_that_says_stop(world):
    from heliograph.access.store import draw

    stranger = draw("client", world.trust.root and "sha256:" + "3" * 64)
    async with world.client(token=stranger) as client:
        assert await client.closed() == 4100


async def test_a_token_without_scope_here_is_forbidden(world):
    asked = {"kind": "client", "name": "else", "scopes": [{"namespace": "other", "environment": "*"}]}
    made = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    async with world.client(token=made["token"]) as client:
        assert await client.closed() == 4101


async def test_a_revoked_token_closes_its_connections_and_no_others(world):
    asked = {"kind": "client", "name": "soon gone", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
    made = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    async with world.client(token=made["token"]) as client, world.client() as other:
        await client.until(1)
        await other.until(1)
        (await world.api.delete(f"/v1/tokens/{made['id']}")).raise_for_status()
        assert await client.closed() == 4105
        await world.publish(banner={"text": "on"})
        await other.until(2)
    async with world.client(token=made["token"]) as client:
        assert await client.closed() == 4100


async def test_a_renewed_token_carries_the_connection_on(world):
    asked = {"kind": "client", "name": "next", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
    new = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    async with world.client() as client:
        await client.until(1)
        await client.send(frames.Renew(token="hel_client_cut"))
        assert (await client.until_kind(frames.ErrorFrame)).code == "unauthenticated"
        await client.send(frames.Renew(token=new["token"]))
        await client.send(frames.Heartbeat(sent_at_us=1))
        await client.until_kind(frames.HeartbeatAck)
        made = await world.publish(banner={"text": "a"})
        await client.until(made["number"])
        (await world.api.delete(f"/v1/tokens/{world.tokens['client_id']}")).raise_for_status()
        made = await world.publish(banner={"text": "b"})
        await client.until(made["number"])
        (await world.api.delete(f"/v1/tokens/{new['id']}")).raise_for_status()
        assert await client.closed() == 4105


# --- what a connection may say ------------------------------------------------------------------------------------------------------

BAD_FRAMES = [
    (b"not json", 4102),
    (b"{}", 4102),
    (b'{"type":"dance"}', 4102),
    (b'{"type":"receipt"}', 4102),
    (b'{"type":"heartbeat","views":{"9":"x"}}', 4102),
    (b'{"type":"resync","subscription":9}', 4102),
    (b"[" * 5000, 4102),
    (b'{"type":"hello","instance":"i","incarnation":1,"fingerprint":{"sdk":"a","sdk_version":"1"},"subscriptions":[]}', 4106),
]


@pytest.mark.parametrize(("text", "code"), BAD_FRAMES)
async def test_a_frame_that_is_none_closes_with_its_code(world, text, code):
    async with world.client() as client:
        await client.until(1)
        await client.socket.send(text, text=True)
        assert await client.closed() == code


async def test_hello_comes_first(world):
    async with world.client(hello=False) as client:
        await client.send(frames.Heartbeat(sent_at_us=1))
        assert await client.closed() == 4106


async def test_binary_frames_are_refused(world):
    async with world.client() as client:
        await client.until(1)
        await client.socket.send(b"{}")
        assert await client.closed() == 4102


async def test_a_message_in_fragments_is_one_and_a_huge_one_is_refused(world):
    async with world.client() as client:
        await client.until(1)
        text = msgspec.json.encode(frames.Heartbeat(sent_at_us=7)).decode()
        await client.socket.send(iter([text[:5], text[5:9], text[9:]]))
        assert (await client.until_kind(frames.HeartbeatAck)).echo_us == 7
        await client.socket.send("x" * 70_000)
        assert await client.closed() in (1009, 4104, 1006)


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "../etc"},
        {"environment": "Production"},
        {"view": ("a" * 300,)},
        {"view": ()},
        {"view": ("..",)},
        {"have": Cursor(1, 1, "nonsense")},
        {"have": Cursor(-1, 1, "sha256:" + "0" * 64)},
    ],
)
async def test_a_subscription_that_cannot_be_is_refused(world, change):
    async with world.client(hello=False) as client:
        usual = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)
        wanted = msgspec.structs.replace(usual, **change)
        mark = frames.Fingerprint(sdk="test", sdk_version="1")
        await client.send(frames.Hello(instance="i", incarnation=1, fingerprint=mark, subscriptions=(wanted,)))
        assert await client.closed() in (4101, 4102)
