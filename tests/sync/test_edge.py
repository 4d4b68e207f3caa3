"""An edge below a sync node: what is published arrives, receipts come back, and it serves on when its parent is gone."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import httpx
import msgspec
import pytest
from contracts.authority import Authority
from pydantic import SecretStr
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH
from tests.sync.edges import SCOPE, Edge, alone, at_a_node, edge_below, edge_token, registry_of
from tests.sync.in_memory import StillLoop
from tests.sync.test_feed import receipt as a_receipt
from tests.sync.test_node import metric
from tests.sync.test_receipts import logged

from heliograph.core import feed, frames
from heliograph.core.digest import digest
from heliograph.core.errors import Forbidden, Forked, InvalidRequest, NotFound, Overloaded, TooLarge, Unavailable
from heliograph.core.events import FromSync, NodeAlive, Received, Subscribed, Unsubscribed
from heliograph.core.records import Signed
from heliograph.core.replica import Assembler, Replica
from heliograph.core.token import Token, mint
from heliograph.eventlog.postgres import PostgresAppender
from heliograph.runtime.clock import now_us
from heliograph.services.sync import receipts as outboxes
from heliograph.services.sync.edge import app, receipts, uplink, upstream
from heliograph.services.sync.edge.parent import Parent
from heliograph.services.sync.edge.receipts import EdgeOutbox
from heliograph.services.sync.edge.settings import EdgeSettings
from heliograph.services.sync.edge.uplink import Uplink
from heliograph.services.sync.environment import MAX_RECOVERIES, Environment
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.records import one_record
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

WELCOME = frames.Welcome(
    connection="c",
    node="n",
    region="r",
    received_at_us=1,
    sent_at_us=1,
    heartbeat_s=20.0,
    receipt_jitter_ms=0,
    limits=frames.Limits(max_frame_bytes=frames.MAX_CLIENT_FRAME, max_subscriptions=frames.MAX_SUBSCRIPTIONS),
)


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


async def test_two_edges_in_a_row(world, tmp_path, database):
    """The lower one's clients get what the centre publishes, and what they say goes all the way up, by the path it came."""
    async with (
        edge_below(world, registry_of(world), tmp_path / "site") as site,
        edge_below(site.world, site.url, tmp_path / "floor", token=await edge_token(world, "floor")) as floor,
        floor.world.client(instance="deep") as client,
    ):
        await client.until(1)
        number = (await world.publish(banner={"text": "far"}))["number"]
        await client.until(number)
        assert client.configs == {"banner": {"text": "far"}}
        await client.send(client.receipt(seq=1))
        await client.until_kind(frames.ReceiptAck)
        [stored] = await logged(database, Received)
        assert (stored.instance, stored.number) == ("deep", number)
        assert stored.node.startswith(f"{site.token['id']}/{floor.token['id']}/floor-")
        (await world.api.delete(f"/v1/tokens/{world.tokens['client_id']}")).raise_for_status()
        assert await client.closed() == 4105


async def test_a_parent_that_was_away_brings_what_was_missed_and_takes_what_was_said(world, edge: Edge, database):
    await world.publish(banner={"text": "a"})
    async with edge.world.client(instance="patient") as client:
        await client.until(2)
        await world.sync.end()
        await edge.until_away()
        ready = (await edge.ask("/readyz"))["impaired"]
        assert "away" in ready["parent"]
        await client.send(client.receipt(seq=3))
        await client.send(frames.Heartbeat(sent_at_us=1))
        await client.until_kind(frames.HeartbeatAck)
        assert "ReceiptAck" not in client.kinds  # nobody has it yet but the edge
        for i in range(3):
            await world.publish(banner={"text": f"b{i}"})
        await world.sync.start()
        await client.until(5)
        assert client.configs == {"banner": {"text": "b2"}}
        if "ReceiptAck" not in client.kinds:
            await client.until_kind(frames.ReceiptAck)
    [stored] = await logged(database, Received)
    assert (stored.instance, stored.number) == ("patient", 2)
    assert await edge.ask("/readyz") == {"status": "ready"}


async def test_a_client_that_lags_gets_a_path_across_what_the_edge_itself_skipped(world, edge: Edge):
    """The edge has never seen these versions one by one; it has asked for the history's leaves between them."""
    async with edge.world.client() as client:
        await client.until(1)
        held = client.replica
    await world.sync.end()
    for i in range(5):
        await world.publish(banner={"text": f"b{i}"})
    await world.sync.start()
    await edge.until(lambda status: status["connected"] and status["environments"][0]["number"] == 6)
    async with edge.world.client(replica=held) as client:
        await client.until(6)
        assert client.kinds == ["Welcome", "DeltaFrame"]
        await world.publish(banner={"text": "on"})
        await client.until(7)


async def test_started_again_without_its_parent_it_serves_what_is_on_disk(world, edge: Edge):
    for i in range(3):
        await world.publish(banner={"text": f"a{i}"}, limits={"max": i})
    async with edge.world.client() as client:
        await client.until(4)
    await edge.until(lambda status: status["environments"][0]["confirmed"])
    await edge.service.end()
    await world.sync.end()
    await world.registry.end()
    assert all(each.stat().st_mode & 0o077 == 0 for each in [edge.folder, *edge.folder.iterdir()])
    await edge.service.start()
    async with edge.world.client(("limits",)) as client:
        await client.until(4)
        assert client.configs == {"limits": {"max": 2}}
    status = await edge.ask("/v1/edge")
    assert not status["connected"]
    assert [(each["number"], each["confirmed"]) for each in status["environments"]] == [(4, False)]
    assert (await edge.ask("/readyz"))["status"] == "degraded"
    assert await metric(edge.world, "heliograph_edge_parent_connected") == 0
    async with asyncio.timeout(DEADLINE_S):
        while not await metric(edge.world, "heliograph_edge_staleness_seconds"):
            await asyncio.sleep(0.05)
    async with edge.world.client(token=world.tokens["admin"]) as client:  # never seen here: it cannot be checked now
        assert await client.closed() == 4004
    await world.registry.start()
    await world.sync.start()
    async with edge.world.client() as client:
        await client.until(4)
        await world.publish(limits={"max": 9})
        await client.until(5)


async def test_a_copy_that_was_altered_is_not_served(world, edge: Edge):
    await world.publish(banner={"text": "true"})
    async with edge.world.client() as client:
        await client.until(2)
    await edge.service.end()
    [copy] = edge.folder.glob("state-*")
    _, body = copy.read_bytes().split(b"\n", 1)
    forged = body.replace(b"true", b"fake")
    assert forged != body
    copy.write_bytes(b"heliograph-edge/1 sha256:" + hashlib.sha256(forged).hexdigest().encode() + b"\n" + forged)
    await edge.service.start()
    async with edge.world.client() as client:
        await client.until(2)
        assert client.configs == {"banner": {"text": "true"}}


async def test_a_revoked_token_is_closed_below_and_no_other(world, edge: Edge):
    asked = {"kind": "client", "name": "soon gone", "scopes": SCOPE}
    made = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    async with edge.world.client(token=made["token"]) as client, edge.world.client() as other:
        await client.until(1)
        await other.until(1)
        (await world.api.delete(f"/v1/tokens/{made['id']}")).raise_for_status()
        assert await client.closed() == 4105
        await world.publish(banner={"text": "on"})
        await other.until(2)
    async with edge.world.client(token=made["token"]) as client:
        assert await client.closed() == 4100


async def test_purged_text_leaves_the_edge(world, edge: Edge):
    await world.publish(a={"password": "hunter2"}, b=1)
    async with edge.world.client() as client:
        await client.until(2)
        old, replica = client.replica.cursor, client.replica
        await world.publish(a={"password": None})
        await client.until(3)
    asked = {"digests": [digest("document", b'{"password":"hunter2"}')], "reason": "leaked", "order": "DPO-17"}
    (await world.api.post(f"/v1/namespaces/{NAMESPACE}/purges", json=asked)).raise_for_status()
    async with asyncio.timeout(DEADLINE_S):
        while True:
            body = (await edge.world.bundles.get(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}?have={old}")).content
            if msgspec.json.decode(body)["type"] == "snapshot":
                break
            await asyncio.sleep(0.02)
    async with edge.world.client(replica=replica, have=old) as client:
        await client.until(3)
    await edge.service.end()
    [copy] = edge.folder.glob("state-*")
    assert b"hunter2" not in body + copy.read_bytes()


async def test_a_deleted_environment_is_told_below_and_comes_back_when_restored(world, edge: Edge):
    async with edge.world.client() as client:
        await client.until(1)
        (await world.api.delete(PATH)).raise_for_status()
        told = await client.until_kind(frames.ErrorFrame)
        assert (told.code, told.subscription) == ("not-found", 1)
    await edge.until(lambda status: not status["environments"])
    (await world.api.post(f"{PATH}/restore")).raise_for_status()
    await world.publish(a=2)
    await world.synced(2)
    async with edge.world.client() as client:
        await client.until(2)


async def test_what_exists_is_found_however_often_what_does_not_was_asked_for(world, tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "MAX_FOLLOWED", 4)
    token = await edge_token(world, scopes=({"namespace": NAMESPACE, "environment": "*"},))
    admin = {"Authorization": f"Bearer {world.tokens['admin']}"}
    async with edge_below(world, registry_of(world), tmp_path / "office", token=token) as edge:
        for _ in range(6):
            assert (await edge.world.bundles.get(f"/v1/heads/{NAMESPACE}/typo", headers=admin)).status_code == 404
        assert (await edge.world.bundles.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).status_code == 200


async def test_only_a_parent_that_knows_of_no_such_environment_makes_it_one_that_is_not_there(tmp_path):
    """Refused for any other reason it may exist: whoever asks is to come again. Either way the parent is told that it is followed no longer."""
    async with alone(tmp_path / "edge", Authority()) as edge:
        for number, code in enumerate((NotFound.code, Forbidden.code, InvalidRequest.code), 1):
            edge.seek(NAMESPACE, ENVIRONMENT)
            await edge.upstream.take(frames.ErrorFrame(code=code, detail="no", subscription=number))
            assert edge.sent[-2:] == [
                feed.Follow(id=number, namespace=NAMESPACE, environment=ENVIRONMENT),
                feed.Unfollow(id=number),
            ]
            assert not edge.upstream.status()
    assert [type(each) for each in edge.told] == [NotFound, Unavailable, Unavailable]


async def test_an_edge_that_follows_all_it_may_does_not_say_that_the_others_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "MAX_FOLLOWED", 1)
    async with alone(tmp_path / "edge", Authority()) as edge:
        edge.seek(NAMESPACE, ENVIRONMENT)
        edge.seek(NAMESPACE, "staging")
    assert [type(each) for each in edge.told] == [Overloaded]


async def test_an_environment_that_is_dropped_in_the_middle_of_its_frames_holds_up_no_other(tmp_path, monkeypatch):
    """The connection was waiting for room among them."""
    monkeypatch.setattr(upstream, "WAITING", 2)

    async def busy(*_: Any) -> None:
        await asyncio.Event().wait()

    async with alone(tmp_path / "edge", Authority()) as edge:
        monkeypatch.setattr(edge.upstream, "_step", busy)
        channel = edge.channel
        frame = frames.Current(subscription=channel.id, head=Signed(payload="", signatures=()))
        for _ in range(3):  # one is being looked at
            await edge.upstream.take(frame)
            await asyncio.sleep(0)
        waits = asyncio.create_task(edge.upstream.take(frame))
        await asyncio.sleep(0)
        assert channel.frames.full()
        assert not waits.done()
        edge.upstream._drop_idle(channel)
        await asyncio.wait_for(waits, DEADLINE_S)


async def test_what_nobody_asks_for_is_dropped_and_what_is_held_is_not(world, tmp_path):
    (await world.api.post(PATH.rsplit("/", 1)[0], json={"name": "staging"})).raise_for_status()
    token = await edge_token(world, scopes=({"namespace": NAMESPACE, "environment": "*"},))
    more = {"edge_idle_s": 0.1, "edge_hold": f"{NAMESPACE}/staging"}
    admin = {"Authorization": f"Bearer {world.tokens['admin']}"}
    async with edge_below(world, registry_of(world), tmp_path / "office", token=token, **more) as edge:
        async with edge.world.client() as client:
            await client.until(1)
        await edge.until(lambda status: not status["environments"])
        shown = (await edge.world.bundles.get("/v1/edge", headers=admin)).json()["environments"]
        assert [each["environment"] for each in shown] == ["staging"]
        async with edge.world.client() as client:
            await client.until(1)


async def test_long_poll_and_receipts_over_http_as_at_a_sync_node(world, edge: Edge, database):
    await world.publish(banner={"text": "a"})
    await edge.world.synced(2)
    bundle = await edge.ask(f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}")
    frame = msgspec.convert(bundle, frames.SnapshotFrame)
    replica = world.replica()
    replica.adopt(replica.consider(frame, now_us()))
    cursor = replica.cursor
    receipt = {"seq": 1, "subscription": 1, "epoch": cursor.epoch, "number": 2, "version": cursor.version, "state": "applied"}
    told = {
        "instance": "polls",
        "incarnation": 1,
        "fingerprint": {"sdk": "t", "sdk_version": "1"},
        "receipts": [{"namespace": NAMESPACE, "environment": ENVIRONMENT, "receipt": receipt}],
    }
    answer = await edge.world.bundles.post("/v1/receipts", json=told)
    assert answer.json() == {"acknowledged": 1}
    assert [each.instance for each in await logged(database, Received)] == ["polls"]


async def test_what_is_too_large_to_relay_goes_without_its_schemas(world, edge: Edge, database):
    """A hello may be larger than what one frame to the parent takes; nothing gets stuck behind it."""
    schemas = {f"c{i}": '{"description": "' + "x" * 7500 + '"}' for i in range(7)}
    async with edge.world.client(hello=False) as client:
        wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT, declares=schemas)
        mark = frames.Fingerprint(sdk="test", sdk_version="1")
        await client.send(frames.Hello(instance="large", incarnation=1, fingerprint=mark, subscriptions=(wanted,)))
        await client.until(1)
        await client.send(client.receipt())
        await client.until_kind(frames.ReceiptAck)
    [joined] = await logged(database, Subscribed)
    assert (joined.instance, joined.declares) == ("large", None)


def sent_on(environment: Environment, client: Replica) -> str:
    """The first frame that a client of everything is sent from where it is: it must take it."""
    assembler, whole = Assembler(), None
    for text in environment.frames(1, ("",), client.cursor):
        whole = assembler.add(msgspec.json.decode(text, type=frames.FromServer))
    assert whole is not None
    candidate = client.consider(whole, now_us())
    assert candidate is not None
    client.adopt(candidate)
    return type(whole).__name__


def forged(authority: Authority) -> list[Signed]:
    """None is worth anything: not signed, of another environment, of another history, or no recover version."""
    opened = next(each.signed for each in authority.commits if each.version.kind == "recover")
    elsewhere, other = Authority(environment="staging"), authority.fork(3)
    other.recover(3, epochs=3)
    elsewhere.publish({"a": 1})
    return [
        Signed(opened.payload, ()),
        Signed(opened.payload.replace('"epoch":2', '"epoch":9'), opened.signatures),
        elsewhere.recover(2).signed,
        other.latest.signed,
        authority.latest.signed,
    ]


@pytest.mark.parametrize("told", ["told", "by an older parent"])
@pytest.mark.parametrize("edge_was", ["there", "away", "there, and started again", "away, and started again", "not yet"])
async def test_a_client_on_a_version_that_a_fail_over_lost_goes_on(tmp_path, edge_was, told):
    """As at a sync node, whether or not the edge has seen how the history began anew."""
    authority = Authority()
    for number in range(2, 5):
        authority.publish({"a": number})
    client = Replica(authority.trust, NAMESPACE, ENVIRONMENT, ("",))
    async with alone(tmp_path / "edge", authority) as edge:
        if told == "by an older parent":
            edge.parent.recoveries = nothing
        if edge_was == "not yet":
            sent_on(at_a_node(authority), client)
        else:
            sent_on(await edge.shown(at_a_node(authority)), client)
        authority.recover(3)
        if edge_was.startswith("there"):
            await edge.shown(at_a_node(authority))
        for number in range(4, 8):
            authority.publish({"a": 10 * number})
        environment = await edge.shown(at_a_node(authority))
    if edge_was.endswith("started again"):
        async with alone(tmp_path / "edge", authority) as edge:
            assert await edge.upstream.load() == 1
            assert edge.channel.environment is not None
            environment = edge.channel.environment
    assert client.cursor is not None
    assert client.cursor.number == 4
    if (edge_was, told) == ("not yet", "by an older parent"):
        with pytest.raises(Forked):
            sent_on(environment, client)
    else:
        assert sent_on(environment, client) == "SnapshotFrame"
        assert client.cursor == authority.latest.cursor


async def nothing(*_: Any) -> list[Signed]:
    return []


async def test_how_the_history_began_anew_is_believed_only_if_it_is_signed_and_in_it(tmp_path):
    authority = Authority()
    authority.publish({"a": 1})
    authority.publish({"a": 2})
    authority.recover(3)
    authority.publish({"a": 3})

    async def told(*_: Any) -> list[Signed]:
        return forged(authority)

    async with alone(tmp_path / "edge", authority) as edge:
        edge.parent.recoveries = told
        environment = await edge.shown(at_a_node(authority))
        assert environment.recoveries == ()
    async with alone(tmp_path / "other", authority) as edge:
        environment = await edge.shown(at_a_node(authority))
        assert environment.recoveries == (authority.commits[2].signed,)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b"[]", 0),
        (200, msgspec.json.encode([Authority().latest.signed] * 3), 3),
        (200, msgspec.json.encode([Authority().latest.signed] * 1000), MAX_RECOVERIES),
        (404, b"{}", 0),  # an older parent
        (503, b"{}", None),
        (200, b"<html>", None),
        (200, b'[{"payload": 1}]', None),
    ],
)
async def test_how_the_history_began_anew_is_asked_of_parents_of_any_release(status, body, told):
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body))) as http:
        parent = Parent("http://parent", Token(mint("edge", "0" * 30, digest("key", b""))), None)  # type: ignore[arg-type]
        await parent.close()
        parent.http = http
        http.base_url = httpx.URL("http://parent")
        if told is None:
            with pytest.raises(Unavailable):
                await parent.recoveries(NAMESPACE, ENVIRONMENT)
        else:
            assert len(await parent.recoveries(NAMESPACE, ENVIRONMENT)) == told


class Silent:
    """Follows nothing."""

    def connected(self, away_s: float | None) -> None: ...

    def lost(self) -> None: ...

    async def take(self, frame: feed.ToEdge) -> None: ...


@pytest.fixture
def still():
    loop = StillLoop()
    yield loop
    loop.close()


@pytest.fixture
def line(still: StillLoop) -> Uplink:
    """One whose parent has welcomed it, on a loop whose time passes when a test lets it."""

    async def made() -> Uplink:
        one = Uplink(EdgeSettings(), "office-1", None, Metrics(), Readiness("stream"))  # type: ignore[arg-type]
        one.listener = Silent()
        one._come_up(WELCOME)
        return one

    return still.play(made())


def told_up(line: Uplink) -> list[Any]:
    """What is on its way to the parent, and no more then."""
    return [msgspec.json.decode(line._outgoing.get_nowait()) for _ in range(line._outgoing.qsize())]


def test_what_was_told_is_told_once_however_long_the_parents_log_is_away(still: StillLoop, line: Uplink):
    """Each time it came again the parent would keep one more."""
    told = still.call(lambda: asyncio.ensure_future(line.append([one_record(a_receipt(), "i")])))
    for _ in range(100):
        still.pass_time(60.0)
    assert [each["type"] for each in told_up(line)] == ["relay"]
    assert not told.done()
    still.play(line._take(frames.ReceiptAck(seq=1)))
    still.play(told)


def test_what_is_not_acknowledged_is_told_again_when_the_connection_was_lost(still: StillLoop, line: Uplink):
    told = still.call(lambda: asyncio.ensure_future(line.append([one_record(a_receipt(), "i")])))
    still.turn()
    still.call(line._down)
    with pytest.raises(Unavailable):
        still.play(told)


def test_an_edge_that_is_to_reconnect_does_not_wait_for_its_parents_next_word(still: StillLoop, line: Uplink):
    class Quiet:
        async def recv(self, decode: bool) -> bytes:
            await asyncio.Event().wait()
            return b""

    listening = still.call(lambda: asyncio.ensure_future(line._listen(Quiet(), 1e6)))  # type: ignore[arg-type]
    still.pass_time(1000.0)
    assert not listening.done()
    still.call(line.reconnect_soon)
    still.pass_time(uplink.RETRUST_S)
    assert listening.done()
    still.play(listening)


@pytest.mark.parametrize("back", ["before that", "after that"])
async def test_what_came_on_a_connection_that_is_gone_confirms_nothing(tmp_path, back):
    """The history's leaves took until then."""
    authority, asked, answered = Authority(), asyncio.Event(), asyncio.Event()
    authority.publish({"a": 1})
    async with alone(tmp_path / "edge", authority) as edge:

        async def late(*what: Any) -> list[bytes]:
            asked.set()
            await answered.wait()
            return await edge.leaves(*what)

        edge.parent.leaves = late
        shown = asyncio.create_task(edge.shown(at_a_node(authority)))
        await asyncio.wait_for(asked.wait(), DEADLINE_S)
        edge.upstream.lost()
        if back == "before that":
            edge.upstream.connected(1.0)
        answered.set()
        await shown
        await asyncio.sleep(0)
        assert [(each.number, each.confirmed) for each in edge.upstream.status()] == [(2, False)]
        if back == "after that":
            edge.upstream.connected(1.0)
        await edge.upstream.take(frames.Current(subscription=edge.channel.id, head=authority.head(safe=1)))
        async with asyncio.timeout(DEADLINE_S):
            while not edge.channel.confirmed:
                await asyncio.sleep(0.01)


async def test_a_hello_as_large_as_it_may_be_holds_up_nobody(world, edge: Edge, database):
    """What is told of it would be larger than a frame, and close the edge's line each time it is told."""
    view = tuple(f"{i:03d}{'b' * 59}/{'a' * 62}/{'a' * 62}/{'c' * 11}" for i in range(frames.MAX_SELECTORS))
    labels = {f"{i:02d}{'k' * 198}": "" for i in range(32)}

    def hello() -> frames.Hello:
        wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT, view=view)
        mark = frames.Fingerprint(sdk="test", sdk_version="1", host="h" * 200, app="a" * 200, labels=labels)
        return frames.Hello(instance="large", incarnation=1, fingerprint=mark, subscriptions=(wanted,))

    for key in labels:
        labels[key] = "v" * max(0, min(200, frames.MAX_CLIENT_FRAME - len(msgspec.json.encode(hello()))))
    assert len(msgspec.json.encode(hello())) == frames.MAX_CLIENT_FRAME
    async with edge.world.client(hello=False) as client, edge.world.client(instance="beside") as beside:
        await client.send(hello())
        await client.until(1)
        await client.send(client.receipt())
        await client.until_kind(frames.ReceiptAck)
        await beside.until(1)
        await beside.send(beside.receipt())
        await beside.until_kind(frames.ReceiptAck)
    told = {each.instance: each for each in await logged(database, Subscribed, 2)}
    assert (told["large"].view, told["large"].fingerprint.labels) == (view, {})
    assert told["large"].fingerprint.app == "a" * 200


def test_what_cannot_fit_a_frame_is_refused_before_it_closes_the_line(still: StillLoop, line: Uplink):
    """The outbox leaves such an event out."""
    fits = one_record(msgspec.structs.replace(a_receipt(), reason="x" * (feed.MAX_EVENT_BYTES - 1000)), "i")
    still.call(lambda: asyncio.ensure_future(line.append([fits])))
    still.turn()
    [frame] = [line._outgoing.get_nowait() for _ in range(line._outgoing.qsize())]
    assert len(frame) <= frames.MAX_CLIENT_FRAME
    with pytest.raises(TooLarge):
        still.play(
            line.append([fits, one_record(msgspec.structs.replace(a_receipt(), reason="x" * feed.MAX_EVENT_BYTES), "i")])
        )
    assert not told_up(line)


async def test_an_edge_that_stops_tells_what_is_on_its_way_once(world, edge: Edge, monkeypatch):
    """The log takes it only after the edge has begun to end."""
    taken, begun, ending, there = [], asyncio.Event(), asyncio.Event(), asyncio.Event()
    put, append, flush = Outbox.put, PostgresAppender.append, EdgeOutbox.flush

    def noted(self: Outbox, event: FromSync, key: str, durable: Any = None) -> bool:
        if isinstance(event, Received) and "/" in event.node:
            taken.append(event)
        return put(self, event, key, durable)

    async def late(self: PostgresAppender, records: Any) -> None:
        begun.set()
        await there.wait()
        await append(self, records)

    async def last(self: EdgeOutbox, within_s: float) -> None:
        ending.set()
        await flush(self, DEADLINE_S)

    async with edge.world.client(instance="below") as client:
        await client.until(1)
        await client.send(client.receipt(seq=1))
        await client.until_kind(frames.ReceiptAck)
        monkeypatch.setattr(Outbox, "put", noted)
        monkeypatch.setattr(PostgresAppender, "append", late)
        monkeypatch.setattr(EdgeOutbox, "flush", last)
        await client.send(client.receipt(seq=2))
        async with asyncio.timeout(DEADLINE_S):
            while not taken:
                await asyncio.sleep(0.01)
            await begun.wait()
    ended = asyncio.create_task(edge.service.end())
    await asyncio.wait_for(ending.wait(), DEADLINE_S)
    there.set()
    await ended
    assert len(taken) == 1


@pytest.mark.parametrize("parent", ["went away", "was not met since the start"])
async def test_what_is_declared_arrives_when_its_report_found_no_room(world, edge: Edge, database, monkeypatch, parent):
    """Everybody is reported again when the parent is there; what they declare had not been told yet."""
    async with edge.world.client() as client:
        await client.until(1)
    await edge.until(lambda status: status["environments"][0]["confirmed"])
    await logged(database, Unsubscribed)
    if parent == "was not met since the start":
        await edge.service.end()
        await world.sync.end()
        await edge.service.start()
    else:
        await world.sync.end()
        await edge.until_away()
    monkeypatch.setattr(receipts, "MAX_REPORTS", 0)
    schema = {"banner": '{"type":"object"}'}
    async with edge.world.client(hello=False) as client:
        wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT, declares=schema)
        mark = frames.Fingerprint(sdk="test", sdk_version="1")
        await client.send(frames.Hello(instance="declares", incarnation=1, fingerprint=mark, subscriptions=(wanted,)))
        await client.until(1)
        assert await metric(edge.world, "heliograph_edge_events_dropped_total") == 1
        await world.sync.start()
        told = (await logged(database, Subscribed, 2))[-1]
    assert (told.instance, told.declares) == ("declares", schema)


async def test_who_waits_to_be_reported_is_reported_once_however_often_the_line_comes_and_goes():
    """A change of what it declares is another report, and so is one after it was told."""
    told, there = asyncio.Queue[int](), asyncio.Event()

    class Line:
        async def append(self, records: Any) -> None:
            await there.wait()
            told.put_nowait(len(records))

        async def close(self) -> None: ...

    outbox = EdgeOutbox(Line(), Metrics(), lambda: True)
    running = asyncio.create_task(outbox.run())
    one, other, declares = a_report(1), a_report(2), a_report(1, declares={"banner": "{}"})
    for each in (one, other, one, other, declares, one):
        assert outbox.put(each, "i")
        await asyncio.sleep(2 * outboxes.GATHER_S)  # whether it waits or is on its way
    assert outbox.waiting == 3
    there.set()
    async with asyncio.timeout(DEADLINE_S):
        count = 0
        while count < 3:
            count += await told.get()
        while outbox.waiting:
            await asyncio.sleep(0.01)
    assert outbox.put(one, "i")
    assert await asyncio.wait_for(told.get(), DEADLINE_S) == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def a_report(subscription: int, declares: Any = None) -> Subscribed:
    return Subscribed(
        namespace=NAMESPACE,
        environment=ENVIRONMENT,
        instance="i",
        incarnation=1,
        connection="c",
        subscription=subscription,
        view=("",),
        node="n",
        region="r",
        token="t",
        fingerprint=frames.Fingerprint(sdk="test", sdk_version="1"),
        have=None,
        at_us=1,
        declares=declares,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "an edge needs a parent"),
        ({"parent_url": "http://127.0.0.1:1"}, "an edge token is needed"),
        ({"parent_url": "http://127.0.0.1:1", "edge_token": SecretStr("hel_edge_cut")}, "not a token"),
        ({"parent_url": "http://127.0.0.1:1", "edge_token": SecretStr(mint("service", "0" * 30))}, "this is a service token"),
    ],
)
async def test_what_cannot_work_ends_the_start_and_says_why(tmp_path, given, said):
    settings = EdgeSettings(data_dir=tmp_path, **given)
    with pytest.raises(InvalidRequest, match=said):
        await app.serve(settings, ready=asyncio.Event(), stop=asyncio.Event())


async def test_a_token_file_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / "edge.token"
    file.write_text("x")
    file.chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        await asyncio.to_thread(EdgeSettings(edge_token_file=file).read_token)
