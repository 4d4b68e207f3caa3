"""What every test may use: a PostgreSQL, a fresh migrated database, loopback only, nothing that blocks the event loop."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import uvloop
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from heliograph.services.registry.validation import Validation

pytest_plugins = ["tests.fixtures.postgres", "tests.fixtures.kafka", "tests.fixtures.dev", "tests.fixtures.certificates"]

settings.register_profile(
    "quiet", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quiet"))


# one line per event as in production; structlog's own default draws tracebacks, and reads files for it
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(default=repr),
    ]
)


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """The services run on uvloop, so do their tests."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """A call that blocks the event loop fails the test that made it."""
    buster = BlockBuster(["heliograph"])
    buster.activate()
    for function in buster.functions.values():  # a few stats of local files when a connection is opened
        function.can_block_in(
            "asyncpg/connect_utils.py", {"_read_password_file", "_parse_connect_dsn_and_args", "_dot_postgresql_path"}
        )
        function.can_block_in("linecache.py", {"checkcache", "updatecache"})  # the traceback of what nobody expected
    try:
        yield
    finally:
        buster.deactivate()


@pytest.fixture(autouse=True, scope="session")
def loopback_only() -> Iterator[None]:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            if host != "localhost" and not ip_address(host).is_loopback:
                raise AssertionError(f"a test reached for {host}; only loopback is allowed")
        return connect(self, address)

    socket.socket.connect = guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(autouse=True, scope="session")
def made_once() -> Iterator[None]:
    """What each of a thousand services and clients would make anew, and needs seldom or alike: httpx reads the system's certificates for each client, a
    registry starts a validator process before anybody asks it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx._transports.default, "create_ssl_context", cache(httpx.create_ssl_context))
        patch.setattr(Validation, "open", _started_when_asked)
        yield


async def _started_when_asked(_: Validation) -> None: ...


def _ports() -> Iterator[int]:
    """Below those that the system gives to connections, which could take one between two looks; each worker of a run has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    first = FIRST_PORT + worker * PORTS_EACH
    start = os.getpid() * 997 % PORTS_EACH  # another run at the same time begins far from here
    return (first + (start + each) % PORTS_EACH for each in count())


FIRST_PORT, PORTS_EACH = 12_000, 5_000
_candidates = _ports()


def free_port() -> int:
    for port in _candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is always another one")


@pytest.fixture(name="free_port")
def _free_port() -> Any:
    """Call it for a port that nobody listens on."""
    return free_port


MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 << 30


@pytest.fixture(scope="session")
def public_folder() -> Iterator[Path]:
    """A temporary folder that other users may walk to: as root, PostgreSQL runs as one of them. In memory where there is room: each test makes a database
    of some seven hundred files."""
    in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    with tempfile.TemporaryDirectory(prefix="heliograph-test-", dir=MEMORY if in_memory else None) as name:
        Path(name).chmod(0o755)
        yield Path(name)
