"""A sync node's stream without a registry or a log around it: the real hub, session and sockets, on a history made in memory.

It starts in a millisecond, so that a table of two hundred cases has a fresh one for each. What needs the whole node is tested with `world`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from tests.fixtures.certificates import Authority

from heliograph.access.principal import Principal, Scope
from heliograph.client.testing._history import History, Keys
from heliograph.core import delta, frames, token
from heliograph.core.canonical import canonical
from heliograph.core.errors import HeliographError, Unauthenticated
from heliograph.core.replica import Assembler, Replica
from heliograph.runtime.clock import now_us
from heliograph.runtime.tls import Certificate
from heliograph.services.sync.admission import Admission
from heliograph.services.sync.drain import Drain
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.settings import SyncSettings
from heliograph.services.sync.stream import Stream
from heliograph.services.sync.tickets import Tickets
from heliograph.telemetry.metrics import Metrics

DEADLINE_S = 30.0
NAMESPACE, ENVIRONMENT = "shop", "production"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
_instances = itertools.count(1)


class Durable:
    """A log that has everything at once. Implements `Appender`."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    async def append(self, records: Any) -> None:
        self.records += records

    async def close(self) -> None:
        pass


class Known:
    """Tokens by heart. Implements `Knows`."""

    def __init__(self, anchor: str) -> None:
        self.names: dict[str, Principal] = {}
        self._anchor = anchor

    def add(self, name: str) -> str:
        text = token.mint("client", f"{name:0<30}", self._anchor)
        scope = Scope(NAMESPACE, ENVIRONMENT)
        self.names[text] = Principal(id=name, kind="client", name=name, scopes=(scope,))
        return text

    def known(self, text: str) -> Principal | None:
        """Those who ask are to wait."""
        return None

    async def principal(self, text: str) -> Principal:
        await asyncio.sleep(0)
        if text not in self.names:
            raise Unauthenticated("not known here")
        return self.names[text]


class Node:
    def __init__(self, **settings: Any) -> None:
        self.settings = SyncSettings(**{"registry_url": "http://127.0.0.1:1", **settings})
        self.metrics = Metrics()
        self.log = Durable()
        self.keys = Keys()
        self.history = History(self.keys, NAMESPACE, ENVIRONMENT)
        self.known = Known(self.keys.anchor)
        self.token = self.known.add("test")
        self.outbox = Outbox(self.log, self.metrics)
        self.hub = Hub("bare", self.settings, self.outbox, self.metrics)
        self.admission = Admission(self.settings, self.metrics, lambda: self.outbox.waiting)
        self.stream = Stream(self.hub, self.known, self.settings, self.admission, Tickets("service"), self.metrics)
        self.hub.check_renewal = self.stream.renew
        self.hub.warm = True
        self.environment = Environment(
            NAMESPACE,
            ENVIRONMENT,
            past_versions=self.settings.past_versions,
            frame_cache_bytes=self.settings.frame_cache_bytes,
        )
        latest = self.history.latest
        self.environment.replace(latest.head, latest.version, {}, [latest.cursor.version])
        self.hub.add_environment(self.environment)
        self.port = 0
        self.trusted: ssl.SSLContext | None = None

    def publish(self, **documents: Any) -> int:
        """The next version, fanned out as one that came from the log."""
        self.history.publish(documents)
        latest = self.history.latest
        changes = {name: delta.entry_of(canonical(document)) for name, document in documents.items()}
        self.environment.commit(latest.head, latest.version, changes, answer="soon", trace=None)
        self.hub.moved(self.environment, now_us())
        return latest.cursor.number

    def replica(self) -> Replica:
        return Replica(self.keys.trust(), NAMESPACE, ENVIRONMENT, ("",))

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.collectors.get_sample_value(f"heliograph_{metric}", labels or None) or 0.0

    def request(self, *, token: str = "", **changed: Any) -> bytes:
        """An upgrade request; a header is replaced by name (``_`` for ``-``), or left out with None."""
        headers: dict[str, Any] = {
            "host": "x",
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": KEY.decode(),
            "sec-websocket-protocol": "heliograph.v1",
            "authorization": f"Bearer {token or self.token}",
        }
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        lines = [f"{name}: {value}".encode("latin-1") for name, value in headers.items() if value is not None]
        return b"\r\n".join([b"GET /v1/stream HTTP/1.1", *lines, b"", b""])

    async def dial(self, address: str = "127.0.0.1") -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0), ssl=self.trusted)
        return Raw(self, reader, writer)

    @asynccontextmanager
    async def open(self, *, hello: bool = True, address: str = "127.0.0.1", token: str = "") -> AsyncIterator[Raw]:
        """Upgraded, and welcomed if it says hello."""
        raw = await self.dial(address)
        try:
            raw.write(self.request(token=token))
            assert (await raw.head()).startswith("HTTP/1.1 101 ")
            if hello:
                raw.text(raw.hello())
                await raw.until(frames.Welcome)
            yield raw
        finally:
            await raw.leave()

    async def serves(self) -> None:
        """A good client is served as ever: welcomed, brought to the head, told of the next version."""
        replica = self.replica()
        async with self.open() as good:
            number = self.publish(still={"here": next(_instances)})
            await good.follow(replica, number)

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                await asyncio.sleep(0.005)

    async def empty(self) -> None:
        """Until nobody is left, not even on the way out."""
        await self.until(lambda: not (self.hub or self.stream.ending or self.stream.opening))


class Raw:
    """A socket that says exactly what it is told to."""

    def __init__(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.node = node
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def text(self, data: bytes) -> None:
        self.write(frame(0x1, data))

    async def head(self) -> str:
        async with asyncio.timeout(DEADLINE_S):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")

    async def next(self) -> tuple[int, bytes]:
        """Opcode and payload. Raises IncompleteReadError at the end."""
        async with asyncio.timeout(DEADLINE_S):
            first, second = await self.reader.readexactly(2)
            assert first & 0xF0 == 0x80, "a server's frames are whole, without reserved bits"
            assert not second & 0x80, "a server's frames are not masked"
            length = second
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            elif length == 127:
                length = int.from_bytes(await self.reader.readexactly(8), "big")
            return first & 0xF, await self.reader.readexactly(length)

    async def frame(self) -> Any:
        while True:
            opcode, payload = await self.next()
            if opcode == 0x1:
                return msgspec.json.decode(payload, type=frames.FromServer)
            assert opcode != 0x8, payload

    async def follow(self, held: Replica, number: int) -> list[type]:
        """Until what it holds, all verified, is at that version or a later one; the kinds of what it was told."""
        told: list[type] = []
        assembler = Assembler()
        async with asyncio.timeout(DEADLINE_S):
            while held.cursor is None or held.cursor.number < number:
                got = await self.frame()
                if isinstance(got, frames.SnapshotFrame | frames.DeltaFrame | frames.AdvanceFrame):
                    told.append(type(got))
                    whole = assembler.add(got)
                    if whole is not None and (candidate := held.consider(whole, now_us())):
                        held.adopt(candidate)
        return told

    async def until(self, kind: type[Any]) -> Any:
        while not isinstance(told := await self.frame(), kind):
            pass
        return told

    async def closed(self) -> tuple[int, str]:
        """The code and reason the server closed with, once the connection is gone; 1006 when it said nothing."""
        code, reason = 1006, ""
        try:
            while True:
                opcode, payload = await self.next()
                if opcode == 0x8:
                    code, reason = int.from_bytes(payload[:2], "big"), payload[2:].decode()
                    self.write(frame(0x8, payload[:2]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return code, reason

    async def alive(self) -> None:
        """Answers a heartbeat of ours, after whatever it was told before."""
        at_us = now_us()
        self.text(msgspec.json.encode(frames.Heartbeat(sent_at_us=at_us)))
        while (await self.until(frames.HeartbeatAck)).echo_us != at_us:
            pass

    async def leave(self) -> None:
        self.writer.close()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self.writer.wait_closed()
        except (OSError, HeliographError):
            pass

    @staticmethod
    def hello(view: tuple[str, ...] = ("",), *, subscriptions: int = 1) -> bytes:
        wanted = tuple(
            frames.Subscription(id=number, namespace=NAMESPACE, environment=ENVIRONMENT, view=view)
            for number in range(1, subscriptions + 1)
        )
        mark = frames.Fingerprint(sdk="test", sdk_version="1")
        return msgspec.json.encode(
            frames.Hello(instance=f"raw-{next(_instances)}", incarnation=1, fingerprint=mark, subscriptions=wanted)
        )


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = None, length: bytes | None = None
) -> bytes:
    """A client's frame. ``mask``: random unless given, none with ``b""``. ``length``: the length field, 7 bits and what extends them."""
    key = os.urandom(4) if mask is None else mask
    if length is None:
        size = len(payload)
        length = (
            bytes([size])
            if size < 126
            else b"\x7e" + size.to_bytes(2, "big")
            if size < 65536
            else b"\x7f" + size.to_bytes(8, "big")
        )
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload)) if key else payload
    return bytes([fin << 7 | rsv << 4 | opcode, (0x80 if key else 0) | length[0]]) + length[1:] + key + masked


@asynccontextmanager
async def running(authority: Authority | None = None, **settings: Any) -> AsyncIterator[Node]:
    """With TLS, given an authority."""
    node = Node(**settings)
    tls = None
    if authority:
        tls = (await Certificate.open(*authority.install(authority.pair()), node.metrics)).context
        node.trusted = ssl.create_default_context(cafile=authority.file)
    server = await node.stream.serve("127.0.0.1", 0, tls)
    node.port = server.sockets[0].getsockname()[1]
    tasks = [asyncio.create_task(each) for each in (node.hub.run(), node.outbox.run())]
    try:
        yield node
    finally:
        server.close()
        await Drain(node.hub, per_s=1e6, within_s=0.01).run()
        await node.hub.end()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await node.stream.close()
        await asyncio.sleep(0)
