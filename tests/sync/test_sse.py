"""Server-Sent Events on a real node: the stream's frames and rules, read over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE
from tests.sync.test_node import metric
from websockets.asyncio.client import connect

from heliograph.core import frames
from heliograph.core.errors import Unauthenticated
from heliograph.core.records import Cursor
from heliograph.core.replica import Assembler, Replica
from heliograph.runtime.clock import now_us
from heliograph.services.sync.tickets import LIFE_S, Tickets

EVENTS = f"/v1/events/{NAMESPACE}/{ENVIRONMENT}"


@dataclass(frozen=True)
class Event:
    """As the standard reads it. ``last_id``: what a reader would say when it comes back now."""

    kind: str
    data: bytes
    last_id: str

    @property
    def frame(self) -> Any:
        return msgspec.json.decode(self.data, type=frames.FromServer)


class Reader:
    """Reads as an `EventSource` does, and believes only what verifies."""

    def __init__(self, answer: httpx.Response, replica: Replica, last_id: str) -> None:
        self.answer = answer
        self.replica = replica
        self.last_id = last_id
        self.comments = 0
        self.retry_ms = 0
        self.kinds: list[str] = []
        self._assembler = Assembler()
        self._lines = answer.aiter_lines()

    async def next(self) -> Event:
        async with asyncio.timeout(DEADLINE_S):
            event = await self._event()
        self.kinds.append(event.kind)
        if event.kind in ("snapshot", "delta", "advance"):
            whole = self._assembler.add(event.frame)
            if whole is not None and (candidate := self.replica.consider(whole, now_us())):
                self.replica.adopt(candidate)
        return event

    async def _event(self) -> Event:
        kind, data = "message", []
        async for line in self._lines:
            field, _, value = line.partition(": ")
            match field:
                case "event":
                    kind = value
                case "data":
                    data.append(value)
                case "id":
                    self.last_id = value
                case "retry":
                    self.retry_ms = int(value)
                case ":":
                    self.comments += 1
                case "" if data:
                    return Event(kind, "\n".join(data).encode(), self.last_id)
        raise EOFError

    async def until(self, number: int) -> Event:
        """Until it runs on that version or a later one."""
        event = None
        while self.replica.cursor is None or self.replica.cursor.number < number:
            event = await self.next()
        assert event
        return event

    async def until_kind(self, kind: str) -> Event:
        while (event := await self.next()).kind != kind:
            pass
        return event


@asynccontextmanager
async def reading(
    world: Any, view: tuple[str, ...] = ("",), *, last_id: str = "", replica: Replica | None = None, **params: Any
) -> AsyncIterator[Reader]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with world.bundles.stream("GET", EVENTS, params={"view": list(view), **params}, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"] == "text/event-stream"
        yield Reader(answer, replica or world.replica(view), last_id)


async def test_a_reader_gets_what_there_is_and_each_version_as_it_comes(world):
    await world.publish(banner={"text": "a"}, checkout__limits={"max": 1})
    await world.synced(2)
    async with reading(world, ("checkout/",)) as reader:
        event = await reader.until(2)
        assert (event.kind, event.last_id) == ("snapshot", str(reader.replica.cursor))
        await world.publish(checkout__limits={"max": 2})
        event = await reader.until(3)
        assert (event.kind, event.last_id) == ("delta", str(reader.replica.cursor))
        await world.publish(banner={"text": "b"})
        assert (await reader.until(4)).kind == "advance"
        assert reader.replica.configs == {"checkout/limits": {"max": 2}}
        assert reader.kinds[0] == "welcome"
        assert reader.retry_ms >= 1000


async def test_the_data_is_the_very_frame_of_the_stream(world):
    async with reading(world) as reader, reading(world) as other, world.client() as client:
        for each in (reader, other, client):
            await each.until(1)
        await world.publish(banner={"text": "a"})
        event = await reader.until(2)
        await client.until(2)
        assert event.data.replace(b'"subscription":0', b'"subscription":1') == client.raw[-1]
        assert (await other.until(2)).data == event.data


async def test_a_reader_that_comes_back_is_told_current_or_a_delta(world):
    await world.publish(banner={"text": "a"})
    async with reading(world) as reader:
        await reader.until(2)
    async with reading(world, last_id=reader.last_id) as again:
        assert (await again.until_kind("current")).last_id == reader.last_id
    for text in "bcd":
        await world.publish(banner={"text": text})
    await world.synced(5)
    async with reading(world, last_id=reader.last_id, have="1.1.sha256:" + "0" * 64, replica=reader.replica) as again:
        await again.until(5)
        assert again.kinds == ["welcome", "delta"]
        assert again.replica.configs == {"banner": {"text": "d"}}
    async with reading(world, have=str(again.replica.cursor)) as other:  # does what the header does
        await other.until_kind("current")
    async with reading(world, have=str(Cursor(1, 1, "sha256:" + "5" * 64))) as foreign:
        assert (await foreign.until(5)).kind == "snapshot"


async def test_an_id_comes_only_with_the_last_part(world):
    await world.publish(**{f"c{i}": {"text": f"{i}" * 20_000} for i in range(40)})
    await world.synced(2)
    async with reading(world) as reader:
        ids = []
        while reader.replica.cursor is None:
            event = await reader.next()
            ids += [event.last_id] if event.kind == "snapshot" else []
        assert len(ids) > 1
        assert set(ids[:-1]) == {""}
        assert ids[-1] == str(reader.replica.cursor)


async def test_silence_is_broken_by_comments(world):
    async with reading(world) as reader:
        await reader.until(1)
        waiting = asyncio.create_task(reader.next())
        async with asyncio.timeout(DEADLINE_S):
            while reader.comments < 2:
                await asyncio.sleep(0.05)
        await world.publish(banner={"text": "a"})
        assert (await waiting).kind == "delta"


# --- who reads ----------------------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[str, dict[str, str], dict[str, str], int]] = [
    (EVENTS, {"have": "nonsense"}, {}, 400),
    (EVENTS, {}, {"Last-Event-ID": "7"}, 400),
    (EVENTS, {"view": "../.."}, {}, 400),
    (EVENTS, {"incarnation": "-1"}, {}, 400),
    (EVENTS, {"instance": "x" * 101}, {}, 400),
    (EVENTS, {"ticket": "none"}, {}, 401),
    (EVENTS, {}, {"Authorization": "Bearer hel_client_cut"}, 401),
    (f"/v1/events/{NAMESPACE}/staging", {}, {}, 403),
    (f"/v1/events/{NAMESPACE}/nowhere", {}, {"Authorization": "Bearer {admin}"}, 404),
]


async def test_what_is_refused_with_a_problem_document(world):
    for path, params, headers, status in REFUSED:
        told = {key: value.format(**world.tokens) for key, value in headers.items()}
        answer = await world.bundles.get(path, params=params, headers=told)
        assert answer.status_code == status, (path, params, headers)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]


async def test_a_ticket_stands_for_the_token_in_an_address(world):
    ticket = (await world.bundles.post("/v1/tickets")).raise_for_status().json()["ticket"]
    assert world.tokens["client"] not in ticket
    async with httpx.AsyncClient(base_url=world.bundles.base_url, timeout=DEADLINE_S) as nobody:
        assert (await nobody.get(EVENTS)).status_code == 401
        async with nobody.stream("GET", EVENTS, params={"ticket": ticket}) as answer:
            assert answer.headers["access-control-allow-origin"] == "*"
            await Reader(answer, world.replica(), "").until(1)
        address = f"{world.stream}?ticket={ticket}"
        async with connect(address, subprotocols=[frames.SUBPROTOCOL]) as opened:
            assert opened.subprotocol == frames.SUBPROTOCOL
            wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT)
            mark = frames.Fingerprint(sdk="test", sdk_version="1")
            said = frames.Hello(instance="browser", incarnation=1, fingerprint=mark, subscriptions=(wanted,))
            await opened.send(msgspec.json.encode(said), text=True)
            async with asyncio.timeout(DEADLINE_S):
                assert '"welcome"' in await opened.recv()
        assert (await nobody.get(EVENTS, params={"ticket": ticket[:-8] + "AAAAAAA="})).status_code == 401


async def test_a_revoked_token_ends_its_answers_and_no_others(world):
    asked = {"kind": "client", "name": "soon gone", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
    made = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    async with reading(world) as other:
        await other.until(1)
        soon_gone = {"Authorization": f"Bearer {made['token']}"}
        async with world.bundles.stream("GET", EVENTS, headers=soon_gone) as answer:
            reader = Reader(answer, world.replica(), "")
            await reader.until(1)
            (await world.api.delete(f"/v1/tokens/{made['id']}")).raise_for_status()
            assert (await reader.until_kind("error")).frame.code == "token-revoked"
            with pytest.raises(EOFError):
                await reader.next()
        await world.publish(banner={"text": "on"})
        await other.until(2)


async def test_an_anonymous_reader_is_nobody_and_an_instance_is_counted(world, database):
    import asyncpg

    async def told(kind: str) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(database.url())
        rows = await connection.fetch("select body from eventlog.log_receipt order by position")
        await connection.close()
        return [body for body in (json.loads(row["body"]) for row in rows) if body["type"] == kind]

    async with reading(world) as anonymous, reading(world, instance="kiosk-7", app="kiosk") as reader:
        await anonymous.until(1)
        await reader.until(1)
        cursor = reader.replica.cursor
        receipt = frames.Receipt(
            seq=1, subscription=0, epoch=cursor.epoch, number=cursor.number, version=cursor.version, state="applied"
        )
        posted = {
            "instance": "kiosk-7",
            "incarnation": 0,
            "fingerprint": {"sdk": "sse", "sdk_version": "1"},
            "receipts": [{"namespace": NAMESPACE, "environment": ENVIRONMENT, "receipt": msgspec.to_builtins(receipt)}],
        }
        (await world.bundles.post("/v1/receipts", json=posted)).raise_for_status()
    async with asyncio.timeout(DEADLINE_S):
        while not (left := await told("unsubscribed")):
            await asyncio.sleep(0.02)
    assert [(each["instance"], each["fingerprint"]["app"]) for each in await told("subscribed")] == [("kiosk-7", "kiosk")]
    assert [each["instance"] for each in await told("received")] == ["kiosk-7"]
    assert [each["instance"] for each in left] == ["kiosk-7"]


# --- slow, gone, and the end --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sync_settings():
    return {"stall_s": 1.0, "heartbeat_s": 5.0, "max_connections": 8}


async def stalled(world: Any) -> socket.socket:
    """A reader that has asked and takes nothing."""
    silent = socket.socket()
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    silent.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(silent, ("127.0.0.1", world.bundles.base_url.port))
    ask = f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.tokens['client']}\r\n\r\n"
    await loop.sock_sendall(silent, ask.encode())
    return silent


async def test_a_reader_that_does_not_read_is_left_out_and_closed_while_others_are_served(world):
    silent = await stalled(world)
    async with reading(world) as healthy:
        await healthy.until(1)
        number = 1
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_slow_consumers_entered_total") < 1:
                number = (await world.publish(banner={"text": "x" * 200_000, "n": number}))["number"]
                await healthy.until(number)
            while await metric(world, "heliograph_connections") > 1:
                await asyncio.sleep(0.05)
        number = (await world.publish(banner={"text": "small"}))["number"]
        await healthy.until(number)
    silent.close()


async def test_a_reader_that_was_slow_gets_one_event_and_is_current(world):
    async with reading(world) as slow, reading(world) as healthy:
        await slow.until(1)
        await healthy.until(1)
        number = 1
        async with asyncio.timeout(DEADLINE_S):
            while await metric(world, "heliograph_slow_consumers_entered_total") < 1:
                number = (await world.publish(banner={"text": "y" * 300_000, "n": number}))["number"]
                await healthy.until(number)
        for i in range(3):
            number = (await world.publish(banner={"text": "small", "n": i}))["number"]
            await healthy.until(number)
        await slow.until(number)
        assert slow.replica.configs == {"banner": {"text": "small", "n": 2}}
        assert len(slow.kinds) < number


async def test_readers_and_sockets_share_the_limit_of_connections(world):
    async with contextlib.AsyncExitStack() as stack:
        both = [await stack.enter_async_context(each) for _ in range(4) for each in (reading(world), world.client())]
        for each in both:
            await each.until(1)
        async with asyncio.timeout(DEADLINE_S):
            refused = await world.bundles.get(EVENTS)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


async def test_what_a_reader_still_sends_changes_nothing_until_it_is_too_much(world):
    reader, writer = await asyncio.open_connection("127.0.0.1", world.bundles.base_url.port)
    ask = f"GET {EVENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.tokens['client']}\r\n\r\n".encode()
    writer.write(ask)
    async with asyncio.timeout(DEADLINE_S):
        await reader.readuntil(b"event: snapshot")
        writer.write(ask)
        await world.publish(banner={"text": "a"})
        assert b"HTTP/1.1" not in await reader.readuntil(b"event: delta")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"x" * 4096)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
    writer.close()


async def test_a_stopping_node_says_so_and_ends_its_answers(world):
    async with reading(world) as reader:
        await reader.until(1)
        ending = asyncio.create_task(world.sync.end())
        assert (await reader.until_kind("drain")).frame.within_s > 0
        assert (await reader.until_kind("error")).frame.code == "drain"
        with pytest.raises(EOFError):
            await reader.next()
        await ending
    await world.sync.start()


def test_a_ticket_lives_for_a_minute_and_is_of_those_who_share_a_token():
    tickets, minute_us = Tickets("hel_service_a"), LIFE_S * 1_000_000
    ticket = tickets.issue("hel_client_x", 1)
    assert tickets.redeem(ticket, minute_us) == "hel_client_x"
    assert Tickets("hel_service_a").redeem(ticket, 1) == "hel_client_x"
    for others, text, at_us in [
        (tickets, ticket, 1 + minute_us),
        (Tickets("hel_service_b"), ticket, 1),
        (tickets, ticket[:-4], 1),
        (tickets, "AAAB" + ticket[4:], 1),  # a later end
        (tickets, "", 1),
        (tickets, "€", 1),
        (tickets, "A" * 100_000, 1),
    ]:
        with pytest.raises(Unauthenticated):
            others.redeem(text, at_us)
