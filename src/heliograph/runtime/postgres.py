"""PostgreSQL for every service: pools, listeners, and its failures in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg
import structlog
from asyncpg.pool import PoolAcquireContext

from heliograph.core.errors import InvalidRequest, TimedOut, Unavailable
from heliograph.runtime.retry import attempts, until_available

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

log = structlog.get_logger()

CONNECT_S: Final = 5.0
CLOSE_S: Final = 10.0
ALIVE_S: Final = 15.0
"""Seconds after which a quiet listener asks whether its server is still there: a host that vanished says nothing."""

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
_NO_LOGIN = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)  # also: wrong password
_SLOW = (TimeoutError, asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
_UNDONE = (asyncpg.TransactionRollbackError, asyncpg.InvalidCachedStatementError)  # deadlocks; plans from before a migration
_READ_ONLY = (asyncpg.ReadOnlySQLTransactionError,)
_FULL = (asyncpg.DiskFullError, asyncpg.OutOfMemoryError)


@contextmanager
def translating() -> Iterator[None]:
    """Turns a server that is away, read-only, full or slow into Unavailable. Nothing that raised was acknowledged.

    A value that the driver cannot send is a fault of ours and no lost connection: asyncpg.DataError, without the value. Other errors of
    the server pass as they are, but for their detail, which quotes rows.
    """
    try:
        yield
    except _READ_ONLY:
        raise Unavailable("the database is read-only; nothing was changed", retry_after=2) from None
    except _FULL:
        raise Unavailable("the database has no room; nothing was changed", retry_after=10) from None
    except _SLOW:
        raise TimedOut("the database took too long", retry_after=1) from None
    except _UNDONE:
        raise Unavailable("the database undid this because of another change; nothing was changed", retry_after=1) from None
    except _NO_LOGIN as error:
        raise Unavailable(f"the database refuses the login ({type(error).__name__})", retry_after=5) from None
    except ValueError as error:
        if not isinstance(error, asyncpg.InterfaceError):
            raise
        raise asyncpg.DataError("a value does not fit its parameter") from None
    except _AWAY as error:
        raise Unavailable(f"the database is not reachable ({type(error).__name__})", retry_after=1) from None
    except asyncpg.PostgresError as error:
        error.detail = None
        raise


if TYPE_CHECKING:
    _Base = asyncpg.Pool[asyncpg.Record]
else:
    _Base = asyncpg.Pool  # generic in its stubs only


class _BoundedPool(_Base):
    """A pool whose waits end: for a free connection, for giving it back, for closing."""

    def __init__(self, url: str, *, acquire_s: float, **options: Any) -> None:
        super().__init__(url, **options)
        self._acquire_s = acquire_s

    def acquire(self, *, timeout: float | None = None) -> PoolAcquireContext[asyncpg.Record]:
        return super().acquire(timeout=self._acquire_s if timeout is None else timeout)

    async def close(self) -> None:
        """What is still in use after CLOSE_S seconds is cut off."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await super().close()


async def open_pool(
    url: str, application_name: str, *, size: int = 10, timeout_s: float = 15.0, acquire_s: float = 15.0, tries: int = 60
) -> Pool:
    """A pool of up to `size` connections, made when they are needed. Waits, bounded, for a server that is just starting.

    `timeout_s` bounds each statement, `acquire_s` the wait for a free connection; both end as TimeoutError, under `translating` as
    TimedOut. Raises Unavailable after `tries` attempts (60 take about half a minute), InvalidRequest for an address that cannot work.
    """

    async def open_once() -> Pool:
        with _connecting():
            return await _BoundedPool(
                url,
                acquire_s=acquire_s,
                min_size=1,
                max_size=size,
                max_queries=50_000,
                max_inactive_connection_lifetime=300,
                loop=None,
                connection_class=asyncpg.Connection,
                record_class=asyncpg.Record,
                timeout=CONNECT_S,
                command_timeout=timeout_s,
                reset=_keep,
                server_settings=_session(application_name),
            )

    return await until_available(open_once, limit=tries, cap_s=1.0)


async def connect(url: str, application_name: str, *, timeout_s: float | None = None, **server_settings: str) -> Connection:
    """One connection of its own, for what belongs to a session: locks, listening. Raises Unavailable, InvalidRequest."""
    with _connecting():
        return await asyncpg.connect(
            url, timeout=CONNECT_S, command_timeout=timeout_s, server_settings=_session(application_name) | server_settings
        )


async def disconnect(connection: Connection) -> None:
    """Closes it, politely for two seconds. Never raises for a connection that is broken already."""
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except (TimeoutError, *_AWAY):
        connection.terminate()


def _session(application_name: str) -> dict[str, str]:
    # compiling a plan costs more than any of our statements
    return {"application_name": application_name, "timezone": "UTC", "jit": "off"}


@contextmanager
def _connecting() -> Iterator[None]:
    """As `translating`; and says what the settings, or the lack of a migration, have to do with it."""
    with translating():
        try:
            yield
        except asyncpg.InvalidPasswordError:
            raise InvalidRequest("the database refuses the password in HELIOGRAPH_DATABASE_URL") from None
        except _NO_LOGIN as error:
            raise Unavailable(f"the database refuses the login: {error.args[0]} (made by: heliograph migrate)") from None
        except ValueError:  # its own text may quote the password
            raise InvalidRequest(
                "HELIOGRAPH_DATABASE_URL is not an address of PostgreSQL: postgresql://role:password@host:5432/database"
            ) from None


async def _keep(_: object) -> None:
    """Instead of asyncpg's reset statement, which is one more round trip inside the caller's wait: our statements leave nothing behind on a
    connection. An open transaction is rolled back before this is called."""


async def listen(url: str, channel: str, notify: Callable[[str], None], *, application_name: str) -> None:
    """Calls `notify` with the text of each NOTIFY on `channel`, and with none after every (re)connect, as something may have been missed. Runs until
    cancelled."""
    async for _ in attempts(cap_s=1.0):
        try:
            connection = await connect(url, application_name)
        except Unavailable:
            continue
        try:
            await _listen_on(connection, channel, notify)
        finally:
            await disconnect(connection)


async def _listen_on(connection: Connection, channel: str, notify: Callable[[str], None]) -> None:
    gone = asyncio.Event()
    connection.add_termination_listener(lambda *_: gone.set())
    try:
        with translating():
            await connection.add_listener(channel, lambda *told: notify(str(told[-1])))
            notify("")
            while not await _within(ALIVE_S, gone):
                await connection.fetchval("select 1", timeout=CONNECT_S)
    except Unavailable:
        pass
    log.warning("listener_disconnected", channel=channel)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False
