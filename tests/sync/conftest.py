"""A real registry and a real sync node on a fresh database, and a client that speaks raw frames and verifies with `core.replica`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from heliograph.core import dsse, frames
from heliograph.core.records import Cursor, Head
from heliograph.core.replica import Assembler, Replica
from heliograph.core.token import parse as parse_token
from heliograph.core.trust import Trust
from heliograph.runtime.clock import now_us
from heliograph.services.registry import app as registry
from heliograph.services.registry.settings import RegistrySettings
from heliograph.services.sync import app as sync
from heliograph.services.sync.settings import SyncSettings

DEADLINE_S = 30.0
NAMESPACE, ENVIRONMENT = "shop", "production"
PATH = f"/v1/namespaces/{NAMESPACE}/environments/{ENVIRONMENT}"
_counter = itertools.count(1)


@dataclass
class Service:
    """One service as a task, stopped and started again at will."""

    serve: Any
    settings: Any
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def start(self, *, until_ready: bool = True) -> None:
        self.ready, self.stop = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self.serve(self.settings, ready=self.ready, stop=self.stop))
        if until_ready:
            waiting = asyncio.create_task(self.ready.wait())
            done, _ = await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE_S)
            waiting.cancel()
            assert done
            if self.task.done():
                self.task.result()

    async def end(self) -> None:
        if self.task is not None:
            self.stop.set()
            await asyncio.wait_for(self.task, DEADLINE_S)
            self.task = None


@dataclass
class World:
    registry: Service
    sync: Service
    api: httpx.AsyncClient
    bundles: httpx.AsyncClient
    stream: str
    trust: Trust
    tokens: dict[str, str]

    async def publish(self, *, wait: bool = False, **documents: Any) -> dict[str, Any]:
        """``publish(checkout__limits={…}, banner=None)``: names with ``__`` for the slash; None deletes."""
        changes = [
            {"name": name.replace("__", "/"), **({"delete": True} if document is None else {"document": document})}
            for name, document in documents.items()
        ]
        answer = await self.api.post(f"{PATH}/versions", json={"changes": changes})
        answer.raise_for_status()
        return answer.json()

    async def synced(self, number: int) -> None:
        """Until the node serves that version or a later one."""
        async with asyncio.timeout(DEADLINE_S):
            while head_of((await self.bundles.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).json()).number < number:
                await asyncio.sleep(0.02)

    def replica(self, view: tuple[str, ...] = ("",)) -> Replica:
        return Replica(self.trust, NAMESPACE, ENVIRONMENT, view)

    @asynccontextmanager
    async def client(self, view: tuple[str, ...] = ("",), **more: Any) -> AsyncIterator[Client]:
        async with Client.open(self, view, **more) as client:
            yield client


class Client:
    """Speaks frames; everything it is told goes through a replica, so what it holds is verified."""

    def __init__(self, world: World, socket: ClientConnection, view: tuple[str, ...], replica: Replica) -> None:
        self.world = world
        self.socket = socket
        self.view = view
        self.replica = replica
        self.assembler = Assembler()
        self.welcome: frames.Welcome | None = None
        self.kinds: list[str] = []
        self.adopted: list[int] = []
        self.raw: list[bytes] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        world: World,
        view: tuple[str, ...],
        *,
        replica: Replica | None = None,
        have: Cursor | None = None,
        instance: str = "",
        incarnation: int = 1,
        token: str = "",
        hello: bool = True,
        at: str = "",
    ) -> AsyncIterator[Client]:
        async with connect(
            at or world.stream,
            subprotocols=[frames.SUBPROTOCOL],
            additional_headers={"Authorization": f"Bearer {token or world.tokens['client']}"},
            compression=None,
            max_size=None,
            ping_interval=None,
        ) as socket:
            client = cls(world, socket, view, replica or world.replica(view))
            if hello:
                await client.hello(have or client.replica.cursor, instance or f"instance-{next(_counter)}", incarnation)
            yield client

    async def hello(self, have: Cursor | None, instance: str, incarnation: int) -> None:
        wanted = frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT, view=self.view, have=have)
        await self.send(
            frames.Hello(
                instance=instance,
                incarnation=incarnation,
                fingerprint=frames.Fingerprint(sdk="test", sdk_version="1"),
                subscriptions=(wanted,),
                sent_at_us=now_us(),
            )
        )

    async def send(self, frame: frames.FromClient) -> None:
        await self.socket.send(msgspec.json.encode(frame), text=True)

    async def next(self) -> frames.FromServer:
        """The next frame, believed if it is a state."""
        async with asyncio.timeout(DEADLINE_S):
            raw = await self.socket.recv(decode=False)
        self.raw.append(raw)
        frame = msgspec.json.decode(raw, type=frames.FromServer)
        self.kinds.append(type(frame).__name__)
        if isinstance(frame, frames.Welcome):
            self.welcome = frame
        elif isinstance(frame, (frames.SnapshotFrame, frames.DeltaFrame, frames.AdvanceFrame)):
            whole = self.assembler.add(frame)
            if whole is not None and (candidate := self.replica.consider(whole, now_us())):
                self.replica.adopt(candidate)
                self.adopted.append(candidate.cursor.number)
        elif isinstance(frame, (frames.Current, frames.HeadFrame)) and (candidate := self.replica.consider(frame, now_us())):
            self.replica.adopt(candidate)
        return frame

    async def until(self, number: int) -> None:
        """Until it runs on that version or a later one."""
        while self.replica.cursor is None or self.replica.cursor.number < number:
            await self.next()

    async def until_kind(self, kind: type[Any]) -> Any:
        while not isinstance(frame := await self.next(), kind):
            pass
        return frame

    async def closed(self) -> int:
        """The code the server closed with."""
        try:
            while True:
                await self.next()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006

    @property
    def configs(self) -> dict[str, Any]:
        return self.replica.configs

    def receipt(
        self, *, seq: int = 1, number: int | None = None, version: str | None = None, state: str = "applied"
    ) -> frames.Receipt:
        cursor = self.replica.cursor
        assert cursor
        return frames.Receipt(
            seq=seq,
            subscription=1,
            epoch=cursor.epoch,
            number=cursor.number if number is None else number,
            version=version or cursor.version,
            state=state,
            applied_at_us=now_us(),
        )


@pytest.fixture
def sync_settings() -> dict[str, Any]:
    """Override to change what a node does."""
    return {}


@pytest.fixture
def registry_settings() -> dict[str, Any]:
    """Override to change where the registry says that clients find the rest."""
    return {}


@pytest.fixture
async def world(
    database: Any, free_port: Any, tmp_path: Path, sync_settings: dict[str, Any], registry_settings: dict[str, Any]
) -> AsyncIterator[World]:
    ports = {name: free_port() for name in ("registry_port", "sync_port", "sync_http_port", "ledger_port")}
    shared = {"data_dir": tmp_path, "drain_s": 1.0}
    registering = Service(
        registry.serve,
        RegistrySettings(**shared, **ports, database_url=SecretStr(database.url("heliograph_registry")), **registry_settings),
    )
    await registering.start()
    url = f"http://127.0.0.1:{ports['registry_port']}"
    syncing = Service(
        sync.serve,
        SyncSettings(
            sync_port=ports["sync_port"],
            sync_http_port=ports["sync_http_port"],
            database_url=SecretStr(database.url("heliograph_sync")),
            registry_url=url,
            service_token_file=tmp_path / "tokens/service.token",
            **{**shared, "heartbeat_s": 20.0, **sync_settings},
        ),
    )
    admin = (tmp_path / "tokens/admin.token").read_text().strip()
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {admin}"}, timeout=DEADLINE_S) as api:
        (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
        (await api.post(PATH.rsplit("/", 1)[0], json={"name": ENVIRONMENT})).raise_for_status()
        asked = {"kind": "client", "name": "test", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
        made = (await api.post("/v1/tokens", json=asked)).raise_for_status().json()
        _, root = dsse.from_envelope((await api.get("/v1/trust")).json())
        anchor = parse_token(made["token"]).anchor
        await syncing.start()
        bundles = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{ports['sync_http_port']}",
            headers={"Authorization": f"Bearer {made['token']}"},
            timeout=DEADLINE_S,
        )
        tokens = {"client": made["token"], "client_id": made["id"], "admin": admin}
        stream = f"ws://127.0.0.1:{ports['sync_port']}/v1/stream"
        yield World(registering, syncing, api, bundles, stream, Trust.from_root(root, anchor), tokens)
        await bundles.aclose()
    await syncing.end()
    await registering.end()


def head_of(envelope: dict[str, Any]) -> Head:
    _, signed = dsse.from_envelope(envelope)
    return Head.read(signed.payload)
