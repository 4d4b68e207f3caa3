"""PostgreSQL for every service: pools, listeners, and its failures in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import asyncpg
import structlog

from heliograph.core.errors import TimedOut, Unavailable
from heliograph.runtime.retry import attempts

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

log = structlog.get_logger()

_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # asyncpg's state when the server's last words came between two statements
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    ConnectionError,
    OSError,
)
_READ_ONLY = (asyncpg.ReadOnlySQLTransactionError,)
_FULL = (asyncpg.DiskFullError, asyncpg.OutOfMemoryError)


@contextmanager
def translating() -> Iterator[None]:
    """Turns a server that is away, read-only, full or slow into Unavailable. Nothing that raised was acknowledged."""
    try:
        yield
    except _READ_ONLY:
        raise Unavailable("the database is read-only; nothing was changed", retry_after=2) from None
    except _FULL:
        raise Unavailable("the database has no room; nothing was changed", retry_after=10) from None
    except TimeoutError:
        raise TimedOut("the database took too long", retry_after=1) from None
    except _AWAY as error:
        raise Unavailable(f"the database is not reachable ({type(error).__name__})", retry_after=1) from None


async def open_pool(url: str, application_name: str, *, size: int = 10, timeout_s: float = 15.0, tries: int = 60) -> Pool:
    """A pool whose connections are made when they are needed. Waits, bounded, for a server that is just starting; raises Unavailable."""
    last: Unavailable | None = None
    async for _ in attempts(tries, cap_s=1.0):
        try:
            with translating():
                return await asyncpg.create_pool(
                    url,
                    min_size=1,
                    max_size=size,
                    timeout=5,
                    command_timeout=timeout_s,
                    reset=_keep,
                    max_inactive_connection_lifetime=300,
                    server_settings={"application_name": application_name, "timezone": "UTC"},
                )
        except Unavailable as error:
            last = error
    raise last or Unavailable


async def _keep(_: object) -> None:
    """asyncpg's default reset is one more round trip inside the caller's wait; our statements leave nothing behind on a connection."""


async def listen(url: str, channel: str, notify: Callable[[], None], *, application_name: str) -> None:
    """Calls `notify` for each NOTIFY on `channel`, and once after every (re)connect, as something may have been missed. Runs until cancelled."""
    async for _ in attempts(cap_s=1.0):
        try:
            with translating():
                connection = await asyncpg.connect(url, timeout=5, server_settings={"application_name": application_name})
        except Unavailable:
            continue
        try:
            await _listen_on(connection, channel, notify)
        finally:
            await _close(connection)


async def _listen_on(connection: Connection, channel: str, notify: Callable[[], None]) -> None:
    gone = asyncio.Event()
    connection.add_termination_listener(lambda *_: gone.set())
    try:
        with translating():
            await connection.add_listener(channel, lambda *_: notify())
    except Unavailable:
        return
    notify()
    await gone.wait()
    log.warning("listener_disconnected", channel=channel)


async def _close(connection: Connection) -> None:
    try:
        await asyncio.wait_for(connection.close(), 2)
    except (TimeoutError, *_AWAY):
        connection.terminate()
