"""What one client, edge, stranger or broken registry says ends nothing and holds up nothing of the others'."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.sync.bare import DEADLINE_S, ENVIRONMENT, NAMESPACE, Node, Raw, running

from heliograph.access.principal import Principal, Scope
from heliograph.core import feed, frames, token
from heliograph.core.errors import NotReady
from heliograph.core.events import NodeAlive
from heliograph.core.records import Cursor
from heliograph.eventlog.ports import Stream
from heliograph.eventlog.postgres import PostgresLog
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.services.sync import hub as hubs
from heliograph.services.sync import stream
from heliograph.services.sync.shortcut import Shortcut

MARK = frames.Fingerprint(sdk="test", sdk_version="1")
OTHER = Cursor(1, 44, "sha256:" + "1" * 64)


def hello(instance: str = "bad", **more: Any) -> bytes:
    wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)
    told = {"fingerprint": MARK, "incarnation": 1, "subscriptions": (wanted,), **more}
    return msgspec.json.encode(frames.Hello(instance=instance, **told))


def receipt(node: Node, **more: Any) -> bytes:
    cursor = node.environment.cursor
    told = {"seq": 0, "subscription": 1, "state": "applied", **more}
    return msgspec.json.encode(frames.Receipt(epoch=cursor.epoch, number=cursor.number, version=cursor.version, **told))


async def is_acknowledged(node: Node) -> None:
    async with node.open() as good:
        await good.follow(node.replica(), 1)
        good.text(receipt(node))
        await good.until(frames.ReceiptAck)


@asynccontextmanager
async def edge(node: Node) -> AsyncIterator[Raw]:
    text = token.mint("edge", f"{'edge':0<30}", node.keys.anchor)
    node.known.names[text] = Principal(id="edge", kind="edge", name="edge", scopes=(Scope(NAMESPACE, ENVIRONMENT),))
    async with node.open(hello=False, token=text) as raw:
        raw.text(hello("below", subscriptions=()))
        await raw.until(frames.Welcome)
        yield raw


# --- what cannot be stored ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        {"applied_at_us": 10**4300 - 1, "clock_offset_us": 1},  # one digit more than Python spells
        {"applied_at_us": -1},
        {"seq": 1 << 53},
    ],
)
async def test_numbers_that_nobody_can_store_end_their_own_connection(lie: dict[str, int]) -> None:
    async with running() as node, node.open() as bad:
        await bad.follow(node.replica(), 1)
        bad.text(receipt(node, **lie))
        assert await bad.closed() == (problems.MALFORMED_FRAME, "invalid-request")
        await is_acknowledged(node)


@pytest.mark.parametrize(
    "said",
    [
        hello("bad\0"),
        hello(fingerprint=frames.Fingerprint(sdk="test", sdk_version="1", labels={"a": "\0"})),
        hello(incarnation=1 << 53),
    ],
)
async def test_an_identity_that_nobody_can_store_is_refused(said: bytes) -> None:
    async with running() as node, node.open(hello=False) as bad:
        bad.text(said)
        assert await bad.closed() == (problems.MALFORMED_FRAME, "invalid-request")
        await is_acknowledged(node)


async def test_a_receipts_texts_are_made_such_as_can_be_stored() -> None:
    async with running() as node, node.open() as raw:
        await raw.follow(node.replica(), 1)
        raw.text(receipt(node, trace="a\0b", state="rejected", reason="not\0so"))
        await raw.until(frames.ReceiptAck)
        [stored] = [each for each in node.log.records if b'"rejected"' in each.body]
        told = msgspec.json.decode(stored.body)
        assert (stored.trace, told.get("trace"), told["reason"]) == (None, None, "not\N{REPLACEMENT CHARACTER}so")


async def test_an_event_that_the_log_refuses_holds_up_no_other(database: Any) -> None:
    log = await PostgresLog.open(database.url("heliograph_sync"), "test")
    durable: list[int] = []
    try:
        async with running() as node:
            node.outbox._appender = log.appender(Stream.RECEIPTS)
            for number in range(20):
                key = "no\0key" if number in (3, 19) else "n"
                at_us = 10**5000 if number == 7 else 1  # which cannot be spelled
                event = NodeAlive(node="n", region="r", connections=0, at_us=at_us)
                node.outbox.put(event, key, lambda number=number: durable.append(number))
            await node.until(lambda: not node.outbox.waiting)
            assert sorted(durable) == list(range(20))  # also those left out: nobody is to say them for ever
            sql = await asyncpg.connect(database.url())
            assert await sql.fetchval("select count(*) from eventlog.log_receipt where key = 'n'") == 17
            await sql.close()
            await is_acknowledged(node)
    finally:
        await log.close()


async def test_a_resync_from_a_cursor_that_is_none_is_refused() -> None:
    async with running() as node, node.open() as raw:
        await raw.follow(node.replica(), 1)
        have = {"epoch": 1, "number": 1, "version": "garbage"}
        raw.text(msgspec.json.encode({"type": "resync", "subscription": 1, "have": have}))
        assert await raw.closed() == (problems.MALFORMED_FRAME, "invalid-request")


# --- environments that are not known here ------------------------------------------------------------------------------------------


async def test_nothing_is_written_for_a_subscription_that_was_given_up_before_it_was_served() -> None:
    """What is left of its connection is a number, which is another socket's soon."""
    async with running() as node:
        node.hub._rooms.clear()
        node.hub.look_for = lambda *_: None
        async with edge(node) as raw:
            raw.text(msgspec.json.encode(feed.Follow(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)))
            raw.text(msgspec.json.encode(feed.Unfollow(id=1)))
            await raw.alive()
            node.hub.add_environment(node.environment)
            await raw.alive()
            room = node.hub.room(NAMESPACE, ENVIRONMENT)
            assert room is not None
            assert not any(room.groups.values())


async def test_who_leaves_during_a_walk_of_a_deleted_environment_is_written_to_no_more() -> None:
    async with running() as node, edge(node) as raw:
        raw.text(msgspec.json.encode(feed.Follow(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)))
        await raw.until(frames.SnapshotFrame | frames.AdvanceFrame)
        await raw.alive()
        room = node.hub.room(NAMESPACE, ENVIRONMENT)
        assert room is not None
        [members] = room.groups.values()
        assert members.ways
        assert members.ways != [None]
        node.hub.remove_environment(NAMESPACE, ENVIRONMENT, "gone")
        raw.text(msgspec.json.encode(feed.Unfollow(id=1)))
        await raw.alive()
        assert members.ways == [None]


async def test_who_has_left_is_not_kept_for_an_environment_that_does_not_come() -> None:
    async with running() as node:
        node.hub._rooms.clear()
        node.hub.look_for = lambda *_: None
        for _ in range(3):
            async with node.open() as raw:
                await raw.alive()
                assert len(node.hub._awaited[NAMESPACE, ENVIRONMENT]) == 1
            await node.empty()
        assert node.hub._awaited == {}


async def test_who_asked_in_vain_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "FIND_S", 0.001)
    async with running() as node:
        node.hub._rooms.clear()
        node.hub.look_for = lambda *_: None
        for _ in range(3):
            with pytest.raises(NotReady):
                await node.hub.find(NAMESPACE, ENVIRONMENT)
        assert node.hub._sought == {}


# --- a registry that answers nonsense ----------------------------------------------------------------------------------------------


async def nonsense(_: str) -> Principal:
    return msgspec.json.decode(b"<html>", type=Principal)


async def test_nobody_is_left_open_when_a_token_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as node:
        monkeypatch.setattr(node.known, "principal", nonsense)
        async with node.open(hello=False) as raw:
            raw.text(raw.hello())
            assert (await raw.closed())[0] == problems.UNAVAILABLE
        await node.empty()


async def test_tokens_are_rechecked_again_after_an_answer_that_was_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "RECHECK_S", 0.01)
    async with running() as node, node.open() as raw:
        rechecking = asyncio.create_task(node.stream.recheck())
        with monkeypatch.context() as patch:
            asked = asyncio.Event()

            async def principal(text: str) -> Principal:
                asked.set()
                return await nonsense(text)

            patch.setattr(node.known, "principal", principal)
            await asyncio.wait_for(asked.wait(), DEADLINE_S)
        node.known.names.clear()
        assert (await raw.closed())[0] == problems.REVOKED
        rechecking.cancel()
        await asyncio.gather(rechecking, return_exceptions=True)


# --- polls, and edges that drain ---------------------------------------------------------------------------------------------------


class Asking:
    """A connection of the HTTP server, of which nothing is asked but to say when it goes."""

    def when_gone(self, _: Any) -> None: ...


async def test_a_poll_that_has_waited_is_not_held_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error it ends with is the framework's to say."""
    async with running() as node:
        monkeypatch.setattr(node.known, "known", node.known.names.get)
        held: list[float] = []

        async def hold(*asked: Any) -> None:
            held.append(asked[2])

        monkeypatch.setattr(node.hub, "hold", hold)
        passed_on: list[dict[str, Any]] = []

        async def app(scope: Any, *_: Any) -> None:
            passed_on.append(scope)

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}",
            "query_string": f"have={OTHER}&wait=1".encode(),
            "headers": [(b"authorization", f"Bearer {node.token}".encode())],
            "client": ("127.0.0.1", 1),
            "extensions": {"heliograph.connection": Asking()},
        }
        shortcut = Shortcut(app, node.hub, node.known, node.admission, node.metrics)  # type: ignore[arg-type]
        await shortcut(scope, None, None)  # type: ignore[arg-type]
        assert held == [1.0]
        assert passed_on[0]["heliograph.held"]


async def test_long_addresses_are_not_remembered() -> None:
    async with running() as node:
        shortcut = Shortcut(None, node.hub, node.known, node.admission, node.metrics)  # type: ignore[arg-type]
        path = f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}"
        for length in (10, 60_000):
            assert shortcut._meaning({"path": path, "query_string": b"x=" + b"a" * length}) is not None
        assert [len(query) for _, query in shortcut._asked] == [12]


async def test_an_edge_is_not_sent_away_with_events_that_are_not_durable() -> None:
    async with running() as node:
        may = asyncio.Event()
        append = node.log.append

        async def later(records: Any) -> None:
            await may.wait()
            await append(records)

        node.log.append = later  # type: ignore[method-assign]
        async with edge(node) as raw:
            alive = NodeAlive(node="n", region="r", connections=1, at_us=now_us())
            raw.text(msgspec.json.encode(feed.Relay(seq=1, events=(alive,))))
            await raw.alive()
            [connection] = node.hub.connections()
            assert connection.unanswered
            may.set()
            await raw.until(frames.ReceiptAck)
            assert not connection.unanswered
