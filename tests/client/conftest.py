"""A registry and a server in one small object, made of `heliograph.core` alone: honest by default, lying where a test tells it to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import string
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.server import Server, ServerConnection, serve

from heliograph.client import Heliograph, Retry
from heliograph.core import dsse, frames, history, proof, trie
from heliograph.core import token as token_text
from heliograph.core.canonical import canonical
from heliograph.core.digest import Digest, digest, spell, unspell
from heliograph.core.names import view as view_of
from heliograph.core.records import HEAD_TYPE, ROOT_TYPE, VERSION_TYPE, Cursor, Head, Leaf, Signed, Version
from heliograph.core.times import to_text
from heliograph.core.trust import Role, Roles, Root, anchor_of

START_US = 1_790_000_000_000_000
FAR_US = 4_000_000_000_000_000
DEADLINE_S = 20.0
QUICK = Retry(first_s=0.01, cap_s=0.05)


class Key:
    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed * 32)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = dsse.key_id(self.public)

    def sign(self, kind: str, payload: bytes) -> Signed:
        return dsse.attach(payload, [(self.id, self._key.sign(dsse.pae(kind, payload)))])


@dataclass(frozen=True)
class Committed:
    """One version with everything that belongs to it."""

    record: Version
    signed: Signed
    trie: trie.Node
    documents: Mapping[str, bytes]

    @property
    def id(self) -> str:
        return Version.id_of(self.signed.payload)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.record.epoch, self.record.number, self.id)


class Authority:
    """The history of one environment, its keys, and every frame that can be made of it."""

    def __init__(self, seed: bytes = b"\x01", *, namespace: str = "shop", environment: str = "production") -> None:
        self.namespace, self.environment = namespace, environment
        self.root_key, self.commit_key, self.head_key = Key(seed), Key(bytes([seed[0] + 1])), Key(bytes([seed[0] + 2]))
        self.versions: list[Committed] = []
        self.clock_us = START_US
        self._publish("create", {}, {})

    # --- trust -----------------------------------------------------------------------------------------------------------------

    @property
    def anchor(self) -> Digest:
        return anchor_of(self.root_key.public)

    def token(self, kind: token_text.TokenKind = "client") -> str:
        secret = "".join(random.Random(7).choices(string.ascii_letters, k=30))
        return token_text.mint(kind, secret, self.anchor if kind == "client" else None)

    def root(self, number: int = 1) -> Signed:
        keys = (self.root_key, self.commit_key, self.head_key)
        roles = Roles(*(Role((key.id,), 1) for key in keys))
        listed = {key.id: base64.b64encode(key.public).decode() for key in keys}
        root = Root(number=number, keys=listed, roles=roles, expires_at=to_text(FAR_US))
        return self.root_key.sign(ROOT_TYPE, canonical(msgspec.to_builtins(root)))

    # --- history ---------------------------------------------------------------------------------------------------------------

    @property
    def latest(self) -> Committed:
        return self.versions[-1]

    def at(self, number: int) -> Committed:
        """The last one with this number: after a recovery a number may have been used twice."""
        return next(one for one in reversed(self.versions) if one.record.number == number)

    def publish(self, **changes: Any) -> Committed:
        """``publish(limits={"max": 1}, checkout__cart=None)``: names with ``__`` for the slash; None deletes."""
        told = {name.replace("__", "/"): value for name, value in changes.items()}
        documents = {**self.latest.documents, **{name: canonical(value) for name, value in told.items() if value is not None}}
        for name in [name for name, value in told.items() if value is None]:
            documents.pop(name, None)
        return self._publish("publish", documents, self._leaves(documents))

    def recover(self, number: int, *, epoch: int | None = None, kind: str = "recover") -> Committed:
        """Drops everything after ``number - 1`` and opens a new epoch with version ``number``, whose content is that of ``number - 1``."""
        kept = [one for one in self.versions if one.record.number < number]
        self.versions = [one for one in kept if one in self._chain(kept[-1])]
        return self._publish(
            kind, self.latest.documents, self._leaves(self.latest.documents), epoch=epoch or self.latest.record.epoch + 1
        )

    def _chain(self, tip: Committed) -> list[Committed]:
        by_id = {one.id: one for one in self.versions}
        out = [tip]
        while out[-1].record.parent is not None:
            out.append(by_id[out[-1].record.parent])
        return out

    def fork(self) -> Authority:
        """The same keys and the same past, free to go another way."""
        twin = object.__new__(Authority)
        twin.__dict__ = {**self.__dict__, "versions": list(self.versions)}
        return twin

    def _leaves(self, documents: Mapping[str, bytes]) -> dict[str, bytes]:
        return {name: unspell(leaf_of(text).digest()) for name, text in documents.items()}

    def _publish(
        self, kind: str, documents: Mapping[str, bytes], leaves: Mapping[str, bytes], *, epoch: int | None = None
    ) -> Committed:
        self.clock_us += 1_000_000
        node = trie.update(trie.EMPTY, leaves)
        last = self.versions[-1] if self.versions else None
        record = Version(
            namespace=self.namespace,
            environment=self.environment,
            epoch=epoch or (last.record.epoch if last else 1),
            number=last.record.number + 1 if last else 1,
            parent=last.id if last else None,
            root=spell(node.digest),
            history=spell(self._history().root()),
            kind=kind,
            author="u_test",
            at=to_text(self.clock_us),
        )
        done = Committed(record, self.commit_key.sign(VERSION_TYPE, record.text()), node, dict(documents))
        self.versions.append(done)
        return done

    def _history(self, until: Committed | None = None) -> history.History:
        chain = self._chain(until or self.versions[-1])[::-1] if self.versions else []
        return history.History([unspell(one.id) for one in chain])

    # --- frames ----------------------------------------------------------------------------------------------------------------

    def head(
        self, at: Committed | None = None, *, issued_us: int | None = None, safe: int | None = None, expires_us: int = FAR_US
    ) -> Signed:
        return self.head_key.sign(HEAD_TYPE, self.head_record(at, issued_us=issued_us, safe=safe, expires_us=expires_us).text())

    def head_record(
        self, at: Committed | None = None, *, issued_us: int | None = None, safe: int | None = None, expires_us: int = FAR_US
    ) -> Head:
        record = (at or self.latest).record
        return Head(
            namespace=self.namespace,
            environment=self.environment,
            epoch=record.epoch,
            number=record.number,
            version=(at or self.latest).id,
            root=record.root,
            safe=record.number if safe is None else safe,
            issued_at=to_text(self.clock_us if issued_us is None else issued_us),
            expires_at=to_text(expires_us),
        )

    def ancestry(self, of: Cursor, to: Committed) -> tuple[str, ...] | None:
        """The path that proves that ``of`` is an ancestor; None where none is needed or none exists."""
        past = [one.id for one in self._chain(to)[1:]]
        if of.version not in past or to.record.number == of.number + 1:
            return None
        return tuple(spell(one) for one in self._history(to).path(of.number, to.record.number - 1))

    def path(self, number: int, to: Committed) -> tuple[str, ...]:
        return tuple(spell(one) for one in self._history(to).path(number, to.record.number - 1))

    def snapshot(
        self, view: tuple[str, ...] = ("",), *, to: Committed | None = None, have: Cursor | None = None, **more: Any
    ) -> frames.SnapshotFrame:
        to = to or self.latest
        return frames.SnapshotFrame(
            subscription=1,
            head=more.pop("head", None) or self.head(to),
            version=to.signed,
            ancestry=self.ancestry(have, to) if have else None,
            changes=self._changes(None, to, view),
            proof=proof.to_text(proof.prove(None, to.trie, view_of(view))),
            **more,
        )

    def delta(
        self, of: Committed, view: tuple[str, ...] = ("",), *, to: Committed | None = None, **more: Any
    ) -> frames.DeltaFrame | frames.AdvanceFrame:
        to = to or self.latest
        changes = self._changes(of, to, view)
        kind = frames.DeltaFrame if changes else frames.AdvanceFrame
        return kind(
            subscription=1,
            from_=of.cursor,
            head=more.pop("head", None) or self.head(to),
            version=to.signed,
            ancestry=self.ancestry(of.cursor, to),
            changes=changes,
            proof=proof.to_text(proof.prove(of.trie, to.trie, view_of(view))),
            **more,
        )

    def current(self, **more: Any) -> frames.Current:
        return frames.Current(subscription=1, head=self.head(**more))

    def bring(self, have: Cursor | None, view: tuple[str, ...] = ("",)) -> frames.FromServer:
        """What an honest server sends to a client that has this."""
        if have is None:
            return self.snapshot(view)
        if have == self.latest.cursor:
            return self.current()
        known = next((one for one in self.versions if one.cursor == have), None)
        return self.delta(known, view) if known else self.snapshot(view)

    def _changes(self, of: Committed | None, to: Committed, view: tuple[str, ...]) -> tuple[frames.Changed, ...]:
        changed = proof.changes(of.trie if of else None, to.trie, view_of(view))
        return tuple(self._changed(name, to) for name in sorted(changed))

    def _changed(self, name: str, to: Committed) -> frames.Changed:
        text = to.documents.get(name)
        if text is None:
            return frames.Changed(name=name, leaf=None)
        return frames.Changed(name=name, leaf=leaf_of(text).text().decode(), document=text.decode())


def leaf_of(text: bytes) -> Leaf:
    return Leaf(document=digest("document", text))


class Connection:
    """One client's socket as the server sees it."""

    def __init__(self, socket: ServerConnection, hello: frames.Hello) -> None:
        self.socket = socket
        self.hello = hello
        self.subscriptions = {one.id: one for one in hello.subscriptions}

    async def send(self, *told: frames.FromServer) -> None:
        for frame in told:
            await self.socket.send(msgspec.json.encode(frame), text=True)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.socket.close(code, reason)


class StagedServer:
    """Endpoints, trust, bundles and receipts over HTTP; the stream over a WebSocket; both on loopback.

    By default it is honest. `script` replaces what it does after its welcome; the flags break it in one way each.
    """

    def __init__(self, *authorities: Authority) -> None:
        self.authorities = {(one.namespace, one.environment): one for one in authorities}
        self.authority = authorities[0]
        self.connections: list[Connection] = []
        self.hellos: list[frames.Hello] = []
        self.receipts: list[frames.Receipt] = []
        self.heard: list[frames.FromClient] = []
        self.requests: list[tuple[str, str, dict[str, list[str]]]] = []
        self.posted: list[dict[str, Any]] = []
        self.refused = 0
        self.script: Callable[[Connection], Any] = self.honest
        self.acknowledge = True
        self.refuse_upgrade: HTTPStatus | None = None
        self.close_with: int | None = None
        self.answers_http = True
        self.retry_after: int | None = None
        self.upgrades = 0
        self.endpoints: dict[str, str] | None = None
        self.poison: set[int] = set()
        self.deaf_to: set[int] = set()  # a post with a receipt for one of these versions is answered 503
        self.holds = True
        self.bundle_status: tuple[HTTPStatus, dict[str, Any]] | None = None
        self.root: Signed = self.authority.root()
        self.welcome: dict[str, Any] = {}
        self.stream_port = 0
        self.http_port = 0
        self._stream: Server | None = None
        self._http: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    # --- up and down -----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._http = await asyncio.start_server(self._serve_http, "127.0.0.1", self.http_port)
        self.http_port = self._http.sockets[0].getsockname()[1]
        await self.start_stream()

    async def start_stream(self) -> None:
        self._stream = await serve(
            self._serve_stream,
            "127.0.0.1",
            self.stream_port,
            subprotocols=[frames.SUBPROTOCOL],  # type: ignore[list-item]
            compression=None,
            process_request=self._upgrade,
            ping_interval=None,
        )
        self.stream_port = next(iter(self._stream.sockets)).getsockname()[1]

    async def stop(self) -> None:
        await self.stop_stream()
        if self._http:
            self._http.close()
            self._http = None
            self._changed.set()
            await asyncio.gather(*self._serving)

    async def stop_stream(self) -> None:
        if self._stream:
            self._stream.close()
            await self._stream.wait_closed()
            self._stream = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    # --- for tests -------------------------------------------------------------------------------------------------------------

    async def until(self, reached: Callable[[], Any], what: str = "") -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while not (found := reached()):
                self._changed.clear()
                await self._changed.wait()
        return found

    async def connection(self, number: int = 1) -> Connection:
        """The number-th connection since the start, once it has said hello."""
        await self.until(lambda: len(self.connections) >= number)
        return self.connections[number - 1]

    async def receipt(self, number: int, state: str | None = None) -> frames.Receipt:
        """The first receipt for a version."""
        wanted = lambda: [one for one in self.receipts if one.number == number and state in (None, one.state)]  # noqa: E731
        return (await self.until(wanted))[0]

    async def publish(self, **changes: Any) -> Committed:
        """Commits, and sends the delta to everybody who is connected."""
        before = self.authority.latest
        done = self.authority.publish(**changes)
        for connection in self.connections:
            with contextlib.suppress(Exception):
                await connection.send(self.authority.delta(before, connection.subscriptions[1].view, answer="now"))
        self._changed.set()
        return done

    async def honest(self, connection: Connection) -> None:
        for one in connection.hello.subscriptions:
            authority = self.authorities[one.namespace, one.environment]
            await connection.send(msgspec.structs.replace(authority.bring(one.have, one.view), subscription=one.id))

    # --- the stream ------------------------------------------------------------------------------------------------------------

    def _upgrade(self, connection: ServerConnection, request: Any) -> Any:
        self.upgrades += 1
        if self.refuse_upgrade is not None:
            answer = connection.respond(self.refuse_upgrade, "no")
            del answer.headers["Content-Type"]
            answer.headers["Content-Type"] = "application/problem+json"
            if self.retry_after is not None:
                answer.headers["Retry-After"] = str(self.retry_after)
            return answer
        if request.headers.get("Authorization") != f"Bearer {self.authority.token()}":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "who are you")
        return None

    async def _serve_stream(self, socket: ServerConnection) -> None:
        hello = msgspec.json.decode(await socket.recv(), type=frames.FromClient)
        assert isinstance(hello, frames.Hello)
        self.hellos.append(hello)
        if self.close_with is not None:
            self._changed.set()
            await socket.close(self.close_with, "because")
            return
        connection = Connection(socket, hello)
        now = hello.sent_at_us
        usual = {"heartbeat_s": 10.0, "receipt_jitter_ms": 20, "region": "here", "node": "n1"}
        limits = frames.Limits(max_frame_bytes=1 << 20, max_subscriptions=64)
        told = {**usual, **self.welcome}
        await connection.send(frames.Welcome(connection="c", received_at_us=now, sent_at_us=now, limits=limits, **told))
        await self.script(connection)
        self.connections.append(connection)
        self._changed.set()
        async for message in socket:
            await self.hear(connection, msgspec.json.decode(message, type=frames.FromClient))

    async def hear(self, connection: Connection, frame: frames.FromClient) -> None:
        self.heard.append(frame)
        if isinstance(frame, frames.Receipt):
            self.receipts.append(frame)
            if self.acknowledge:
                await connection.send(frames.ReceiptAck(seq=frame.seq))
        if isinstance(frame, frames.Resync):
            await self.resynced(connection, frame)
        if isinstance(frame, frames.Heartbeat):
            await connection.send(frames.HeartbeatAck(echo_us=frame.sent_at_us, received_at_us=frame.sent_at_us))
        self._changed.set()

    async def resynced(self, connection: Connection, frame: frames.Resync) -> None:
        one = connection.subscriptions[frame.subscription]
        authority = self.authorities[one.namespace, one.environment]
        await connection.send(msgspec.structs.replace(authority.snapshot(one.view, have=frame.have), subscription=one.id))

    # --- HTTP ------------------------------------------------------------------------------------------------------------------

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            line = (await reader.readline()).decode().split()
            length = 0
            while (header := (await reader.readline()).decode().strip().lower()) != "":
                if header.startswith("content-length:"):
                    length = int(header.split(":")[1])
            status, body = await self._answer(line[0], line[1], await reader.readexactly(length))
            data = msgspec.json.encode(body)
            kind = "application/json" if status < 400 else "application/problem+json"
            writer.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
                + data
            )
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, method: str, target: str, body: bytes) -> tuple[HTTPStatus, Any]:
        parts = urlsplit(target)
        query = parse_qs(parts.query, keep_blank_values=True)
        self.requests.append((method, parts.path, query))
        if not self.answers_http:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"code": "unavailable", "detail": "away"}
        self._changed.set()
        match method, parts.path.split("/")[2:]:
            case "GET", ["endpoints"]:
                if self.endpoints is not None:
                    return HTTPStatus.OK, self.endpoints
                stream = f"ws://127.0.0.1:{self.stream_port}/v1/stream"
                return HTTPStatus.OK, {"api": self.url, "stream": stream, "bundles": self.url, "ledger": self.url}
            case "GET", ["trust"]:
                return HTTPStatus.OK, dsse.to_envelope(self.root, ROOT_TYPE)
            case "GET", ["bundles", namespace, environment]:
                return await self._bundle(self.authorities.get((namespace, environment)), query)
            case "POST", ["receipts"]:
                return self._posted(body)
        return HTTPStatus.NOT_FOUND, {"code": "not-found", "detail": "no such place"}

    async def _bundle(self, authority: Authority | None, query: dict[str, list[str]]) -> tuple[HTTPStatus, Any]:
        if self.bundle_status is not None:
            return self.bundle_status
        if authority is None:
            return HTTPStatus.NOT_FOUND, {"code": "not-found", "detail": "no such environment"}
        have = Cursor.parse(query["have"][0]) if "have" in query else None
        if have == authority.latest.cursor and "wait" in query and self.holds:
            with contextlib.suppress(TimeoutError):
                await self.until(lambda: authority.latest.cursor != have or self._http is None)
        return HTTPStatus.OK, authority.bring(have, tuple(query["view"]))

    def _posted(self, body: bytes) -> tuple[HTTPStatus, Any]:
        told = msgspec.json.decode(body)
        if self.poison & {one["receipt"]["number"] for one in told["receipts"]}:
            return HTTPStatus.BAD_REQUEST, {"code": "invalid-request", "detail": "a receipt for a version that was never sent"}
        if self.deaf_to & {one["receipt"]["number"] for one in told["receipts"]}:
            self.refused += 1
            return HTTPStatus.SERVICE_UNAVAILABLE, {"code": "unavailable", "detail": "the log takes no receipts now"}
        self.posted.append(told)
        self.receipts += [msgspec.convert(one["receipt"], frames.Receipt) for one in told["receipts"]]
        return HTTPStatus.OK, {}


@pytest.fixture
def authority() -> Authority:
    made = Authority()
    made.publish(checkout__limits={"max_items": 1}, checkout__cart={"currency": "EUR"}, search={"pages": 10})
    return made


@pytest.fixture
def new_authority() -> Callable[..., Authority]:
    return Authority


@pytest.fixture
def new_key() -> Callable[[bytes], Key]:
    return Key


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[StagedServer]:
    staged = StagedServer(authority)
    await staged.start()
    yield staged
    await staged.stop()


@pytest.fixture
def new_server() -> Callable[..., StagedServer]:
    return StagedServer


@pytest.fixture
def connect(server: Any, tmp_path: Path) -> Callable[..., Heliograph]:
    """Clients of it that try again at once; a room whose clients are others has its own."""

    def make(**more: Any) -> Heliograph:
        told = {"namespace": "shop", "environment": "production", "cache_dir": tmp_path, "retry": QUICK, **more}
        return Heliograph(server.url, token=server.authority.token(), **told)

    return make


async def eventually(reached: Callable[[], Any]) -> Any:
    """Until it holds; what it came to."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := reached()):
            await asyncio.sleep(0.005)
    return found
