"""The servers that the sync engine is measured beside, each started fresh on loopback and ended after: where it cannot be had, `Failed` says so."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Failed, build
from bench.machine import family
from bench.stacks import ROOT, free_ports

FOLDER = Path(os.environ.get("RIVALS_DIR") or ROOT / ".cache/rivals")
START_S = 30


@dataclass(frozen=True)
class Server:
    """Something that `load` can be pointed at."""

    name: str
    protocol: str
    port: int
    pids: tuple[int, ...]
    options: dict[str, object] = field(default_factory=dict)


def install() -> None:
    """All that are not there yet. Says on standard error what cannot be had."""
    subprocess.run(["bash", str(ROOT / "bench/rivals.sh")], check=False)


def _program(name: str) -> str:
    found = FOLDER / name
    if found.exists():
        return str(found)
    if installed := shutil.which(Path(name).name):
        return installed
    raise Failed(f"{Path(name).name} is not installed: bench/rivals.sh")


@asynccontextmanager
async def _running(
    name: str, protocol: str, port: int, command: Sequence[str], folder: Path, *, cpu: int | None, **options: object
) -> AsyncIterator[Server]:
    pinned = ["taskset", "-c", str(cpu)] if cpu is not None else []
    with (folder / f"{name}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*pinned, *command, stdout=log, stderr=log, cwd=folder)
    try:
        await asyncio.wait_for(_listening(child, port, folder / f"{name}.log"), START_S)
        yield Server(name, protocol, port, tuple(family(child.pid)), options)
    finally:
        if child.returncode is None:
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 15)
        except TimeoutError:
            child.kill()
            await child.wait()


async def _listening(child: asyncio.subprocess.Process, port: int, log: Path) -> None:
    while True:
        if child.returncode is not None:
            raise Failed(f"{log.stem} ended at start: {log.read_text(errors='replace')[-300:].strip()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        await asyncio.sleep(0.05)


@asynccontextmanager
async def floor(folder: Path, *, cpu: int | None = None) -> AsyncIterator[Server]:
    """The C loop of `send()`."""
    (port,) = free_ports(1)
    async with _running("floor", "raw", port, [str(build("floor")), str(port)], folder, cpu=cpu) as server:
        yield server


@asynccontextmanager
async def bare(folder: Path, *, cpu: int | None = None, greeting: int = 0, tls: Sequence[Path] = ()) -> AsyncIterator[Server]:
    """picows without us. `greeting`: bytes that answer a client's first text. `tls`: certificate and key."""
    (port,) = free_ports(1)
    command = [sys.executable, str(ROOT / "bench/bare.py"), str(port), str(greeting), *map(str, tls)]
    options = {"greet": bool(greeting), "tls": bool(tls)}
    name = "bare-tls" if tls else "bare"
    async with _running(name, "raw", port, command, folder, cpu=cpu, **options) as server:
        yield server


@asynccontextmanager
async def redis(folder: Path, *, cpu: int | None = None) -> AsyncIterator[Server]:
    """Pub/sub, without persistence."""
    (port,) = free_ports(1)
    command = [
        *(_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
        *("--maxclients", "19000", "--tcp-backlog", "4096", "--loglevel", "warning", "--protected-mode", "no"),
    ]
    async with _running("redis", "redis", port, command, folder, cpu=cpu) as server:
        yield server


@asynccontextmanager
async def nats(folder: Path, *, cpu: int | None = None) -> AsyncIterator[Server]:
    """Core NATS. Pings are put off: the load does not answer any."""
    (port,) = free_ports(1)
    settings = folder / "nats.conf"
    settings.write_text(f'host: "127.0.0.1"\nport: {port}\nping_interval: "20m"\nmax_connections: 60000\n')
    async with _running("nats", "nats", port, [_program("bin/nats-server"), "-c", str(settings)], folder, cpu=cpu) as server:
        yield server


@asynccontextmanager
async def centrifugo(folder: Path, *, cpu: int | None = None) -> AsyncIterator[Server]:
    """Over WebSocket with JSON, in memory, any client may subscribe and publish. Pings are put off as for NATS."""
    (port,) = free_ports(1)
    settings = folder / "centrifugo.json"
    settings.write_text(
        json.dumps(
            {
                "http_server": {"address": "127.0.0.1", "port": str(port)},
                "client": {"insecure": True, "ping_interval": "20m", "pong_timeout": "1m", "allowed_origins": ["*"]},
                "channel": {"without_namespace": {"allow_subscribe_for_client": True, "allow_publish_for_client": True}},
                "log": {"level": "error"},
            }
        )
    )
    command = [_program("bin/centrifugo"), "--config", str(settings)]
    async with _running("centrifugo", "centrifugo", port, command, folder, cpu=cpu) as server:
        yield server


@asynccontextmanager
async def etcd(folder: Path) -> AsyncIterator[Server]:
    """One member with its defaults: a put is on disk before it is answered."""
    port, peer = free_ports(2)
    client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    command = [
        *(_program("bin/etcd"), "--data-dir", str(folder / "etcd"), "--name", "bench"),
        *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", f"bench={peer_url}", "--log-level", "error"),
    ]
    async with _running("etcd", "etcd", port, command, folder, cpu=None) as server:
        yield server


@asynccontextmanager
async def envoy(folder: Path, upstream: int, tls: Sequence[Path], *, cpu: int | None = None) -> AsyncIterator[Server]:
    """TLS and the WebSocket upgrade in front of a plain server, in one worker thread."""
    (port,) = free_ports(1)
    settings = folder / "envoy.json"
    settings.write_text(json.dumps(_envoy_settings(port, upstream, tls)))
    command = [
        _program("envoy/bin/envoy"),
        "-c",
        str(settings),
        "--concurrency",
        "1",
        "--use-dynamic-base-id",
        "--log-level",
        "error",
    ]
    async with _running("envoy", "heliograph", port, command, folder, cpu=cpu, tls=True) as server:
        yield server


def _envoy_settings(port: int, upstream: int, tls: Sequence[Path]) -> dict:
    def typed(name: str, **members: object) -> dict:
        return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **members}

    def at(number: int) -> dict:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    certificate, key = ({"filename": str(each)} for each in tls)
    chain = {"common_tls_context": {"tls_certificates": [{"certificate_chain": certificate, "private_key": key}]}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "sync", "timeout": "0s"}}
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="sync",
        stream_idle_timeout="0s",
        upgrade_configs=[{"upgrade_type": "websocket"}],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
    )
    listener = {
        "address": at(port),
        "filter_chains": [
            {
                "filters": [{"name": "http", "typed_config": manager}],
                "transport_socket": {
                    "name": "tls",
                    "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", **chain),
                },
            }
        ],
    }
    many = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}
    cluster = {
        "name": "sync",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": "sync", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(upstream)}}]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for this machine (ECDSA P-256), and its key."""
    files = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        check=True,
        capture_output=True,
    )
    return files
