"""TLS in the node itself, on both ports: from certificate to applied version, rotation under open connections, and what does not speak TLS."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from contextlib import nullcontext, suppress

import httpx
import msgspec
import pytest
from pydantic import SecretStr, ValidationError
from tests.fixtures.certificates import Authority
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, Service

from heliograph import Heliograph
from heliograph.cli.api import Api
from heliograph.client import Retry
from heliograph.core import frames
from heliograph.core.errors import InvalidRequest, TimedOut, Unavailable
from heliograph.runtime import http_server, tls
from heliograph.runtime.tls import Certificate
from heliograph.services.registry import app as registry
from heliograph.services.registry.settings import RegistrySettings
from heliograph.services.sync import app as sync
from heliograph.services.sync import stream
from heliograph.services.sync.settings import SyncSettings
from heliograph.telemetry.metrics import Metrics

RETRY = Retry(first_s=0.05, cap_s=0.2)


@pytest.fixture
async def secured(database, free_port, tmp_path, authority: Authority, monkeypatch):
    """A registry that tells clients where sync is, and a sync node with TLS on both of its ports."""
    monkeypatch.setattr(tls, "CHECK_S", 0.1)
    ports = {name: free_port() for name in ("registry_port", "sync_port", "sync_http_port", "ledger_port")}
    certificate, key = authority.install(authority.pair())
    shared = {"data_dir": tmp_path, "drain_s": 1.0}
    registering = Service(
        registry.serve,
        RegistrySettings(**shared, **ports, sync_tls=True, database_url=SecretStr(database.url("heliograph_registry"))),
    )
    url = f"http://127.0.0.1:{ports['registry_port']}"
    syncing = Service(
        sync.serve,
        SyncSettings(
            **shared,
            sync_port=ports["sync_port"],
            sync_http_port=ports["sync_http_port"],
            database_url=SecretStr(database.url("heliograph_sync")),
            registry_url=url,
            service_token_file=tmp_path / "tokens/service.token",
            tls_cert_file=certificate,
            tls_key_file=key,
            stall_s=1,
            slow_bytes_per_s=10_000_000,
        ),
    )
    await registering.start()
    try:
        admin = (tmp_path / "tokens/admin.token").read_text().strip()
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {admin}"}, timeout=DEADLINE_S) as api:
            (await api.post("/v1/namespaces", json={"name": NAMESPACE})).raise_for_status()
            (await api.post(PATH.rsplit("/", 1)[0], json={"name": ENVIRONMENT})).raise_for_status()
            asked = {"kind": "client", "name": "test", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
            token = (await api.post("/v1/tokens", json=asked)).raise_for_status().json()["token"]
            await syncing.start()
            yield Secured(authority, ports, url, token, api)
    finally:
        try:
            await syncing.end()
        finally:
            await registering.end()


class Secured:
    def __init__(self, authority, ports, url, token, api):
        self.authority, self.ports, self.url, self.token, self.api = authority, ports, url, token, api

    def client(self, **more):
        options = {"ca_file": self.authority.file, "cache_dir": None, "retry": RETRY} | more
        return Heliograph(self.url, token=self.token, namespace=NAMESPACE, environment=ENVIRONMENT, **options)

    async def publish(self, text):
        return (await self.api.put(f"{PATH}/configs/banner", json={"text": text})).raise_for_status().json()["number"]

    def http(self):
        trusted = ssl.create_default_context(cafile=self.authority.file)
        return httpx.AsyncClient(base_url=f"https://127.0.0.1:{self.ports['sync_http_port']}", verify=trusted)

    async def serial(self, port):
        """Of the certificate that a handshake shows now."""
        trusted = ssl.create_default_context(cafile=self.authority.file)
        _, writer = await asyncio.open_connection("127.0.0.1", self.ports[port], ssl=trusted)
        shown = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return shown

    async def metric(self, name):
        async with self.http() as http:
            lines = (await http.get("/metrics")).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


async def until(client, text):
    async with asyncio.timeout(DEADLINE_S):
        while client.config("banner")["text"] != text:
            await asyncio.sleep(0.02)


async def test_from_publish_to_applied_over_tls(secured):
    published = await secured.publish("one")
    async with secured.client() as client:
        await client.wait_for_version(published, timeout=DEADLINE_S)
        assert client.status.transport == "websocket"
        assert client.config("banner")["text"] == "one"
        await secured.publish("two")
        await until(client, "two")
    endpoints = (await secured.api.get("/v1/endpoints")).json()
    assert (endpoints["stream"][:6], endpoints["bundles"][:8]) == ("wss://", "https://")
    async with secured.http() as http:
        assert (await http.get("/readyz")).status_code == 200


async def test_a_new_pair_is_shown_at_once_and_open_connections_live_on(secured):
    await secured.publish("one")
    before = [await secured.serial(port) for port in ("sync_port", "sync_http_port")]
    async with secured.client() as client:
        secured.authority.install(secured.authority.pair(days=60))
        async with asyncio.timeout(DEADLINE_S):
            while await secured.serial("sync_port") == before[0]:
                await asyncio.sleep(0.05)
        assert await secured.serial("sync_http_port") != before[1]
        await secured.publish("two")
        await until(client, "two")
        assert await secured.metric("heliograph_connections ") == 1
        assert await secured.metric("heliograph_connections_closed_total{") == 0
    assert await secured.metric('heliograph_tls_reloads_total{outcome="loaded"}') >= 1


async def test_a_pair_that_does_not_fit_leaves_the_old_one_in_use(secured):
    await secured.publish("one")
    before = await secured.serial("sync_port")
    expires = await secured.metric("heliograph_tls_certificate_expires_at_seconds")
    other, (certificate, _) = secured.authority.pair(days=90), secured.authority.pair(days=90)
    secured.authority.install((certificate, other[1]))
    async with asyncio.timeout(DEADLINE_S):
        while await secured.metric('heliograph_tls_reloads_total{outcome="failed"}') < 1:
            await asyncio.sleep(0.05)
    assert await secured.serial("sync_port") == before
    assert await secured.metric("heliograph_tls_certificate_expires_at_seconds") == expires
    async with secured.client() as client:
        assert client.config("banner")["text"] == "one"


async def test_who_does_not_trust_the_authority_is_told_so(secured):
    await secured.publish("one")
    with pytest.raises((TimedOut, Unavailable), match=r"not trusted.*ca_file"):
        async with secured.client(ca_file=None, start_timeout=2):
            pass
    address = f"https://127.0.0.1:{secured.ports['sync_http_port']}"
    for ca_file in (None, secured.authority.file):
        api = Api(address, "", ca_file)
        with pytest.raises(Unavailable, match=r"not trusted.*--ca-file") if ca_file is None else nullcontext():
            assert (await asyncio.to_thread(api.call, "GET", "/healthz")).status_code == 200
        api.close()


@pytest.mark.parametrize("port", ["sync_port", "sync_http_port"])
async def test_a_client_without_tls_is_dropped_and_others_are_served(secured, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", secured.ports[port])
    writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(DEADLINE_S):
        with suppress(ConnectionError):
            assert b"HTTP/1.1 101" not in await reader.read()
    writer.close()
    published = await secured.publish("one")
    async with secured.client() as client:
        await client.wait_for_version(published, timeout=DEADLINE_S)  # its node may not have heard of it when it connects
        assert client.config("banner")["text"] == "one"


@pytest.fixture
def short_handshakes(monkeypatch):
    monkeypatch.setattr(stream, "HANDSHAKE_S", 0.5)
    monkeypatch.setattr(http_server, "HANDSHAKE_S", 0.5)


@pytest.mark.parametrize("port", ["sync_port", "sync_http_port"])
async def test_a_handshake_that_does_not_come_to_its_end_is_cut_off(short_handshakes, secured, port):
    reader, writer = await asyncio.open_connection("127.0.0.1", secured.ports[port])
    writer.write(b"\x16\x03\x01")  # the beginning of a ClientHello
    async with asyncio.timeout(DEADLINE_S):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_a_client_that_does_not_read_is_closed_and_others_are_served(secured):
    """Its socket fills up behind the encryption; it leaves the fan-out, as without TLS."""
    await secured.publish("one")
    trusted = ssl.create_default_context(cafile=secured.authority.file)
    _, writer = await asyncio.open_connection("127.0.0.1", secured.ports["sync_port"], ssl=trusted, limit=1024)
    writer.write(
        b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: heliograph.v1\r\n"
        b"Authorization: Bearer " + secured.token.encode() + b"\r\n\r\n"
    )
    hello = msgspec.json.encode(
        frames.Hello(
            instance="stalled",
            incarnation=1,
            fingerprint=frames.Fingerprint(sdk="test", sdk_version="1"),
            subscriptions=(frames.Subscription(id=1, namespace=NAMESPACE, environment=ENVIRONMENT),),
        )
    )
    writer.write(b"\x81\xfe" + len(hello).to_bytes(2, "big") + bytes(4) + hello)
    async with secured.client() as client, asyncio.timeout(2 * DEADLINE_S):
        while await secured.metric("heliograph_connections ") < 2:
            await asyncio.sleep(0.02)
        while await secured.metric("heliograph_slow_consumers_entered_total ") < 1:
            await secured.publish(secrets.token_hex(100_000))  # no small change of the one before
        while await secured.metric("heliograph_connections ") > 1:  # what it is sent may just fit what it takes without reading
            await secured.publish(secrets.token_hex(100_000))
            await asyncio.sleep(0.05)
        await secured.publish("small")
        await until(client, "small")
    writer.transport.abort()


def test_certificate_and_key_go_together(tmp_path):
    with pytest.raises(ValidationError, match="HELIOGRAPH_TLS_KEY_FILE"):
        SyncSettings(tls_cert_file=tmp_path / "server.pem")


async def test_what_cannot_be_used_is_said_without_what_is_in_it(tmp_path, authority: Authority):
    certificate, key = authority.install(authority.pair())
    with pytest.raises(InvalidRequest, match="cannot be read"):
        await Certificate.open(tmp_path / "missing", key, Metrics())
    with pytest.raises(InvalidRequest, match="does not begin with a certificate"):
        await Certificate.open(key, key, Metrics())
    with pytest.raises(InvalidRequest, match="cannot be used together"):
        await Certificate.open(certificate, certificate, Metrics())
    _, other = authority.pair()
    certificate, key = authority.install((certificate.read_bytes(), other))
    with pytest.raises(InvalidRequest, match="KEY_VALUES_MISMATCH"):
        await Certificate.open(certificate, key, Metrics())
