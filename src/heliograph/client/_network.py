"""The way to a server: whose signatures count there, and links to it. One over HTTP and WebSockets; `heliograph.client.testing` has another."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final, Protocol

import httpx

from heliograph.client._discovery import Discovery, Endpoints
from heliograph.client._disk import DiskWriter
from heliograph.client._link import Link
from heliograph.client._options import Options
from heliograph.client._tls import trusting
from heliograph.client._transport_polling import PollingLink, Reporter
from heliograph.client._transport_websocket import WebSocketLink
from heliograph.core.errors import Unavailable
from heliograph.core.frames import Subscription
from heliograph.core.trust import Trust

HTTP_TIMEOUT_S: Final = 10.0
ASK_AFTER: Final = 3
"""Failed links in a row after which the server is asked anew where its services are. A node that dies is no reason: all its clients would ask."""
Wanted = Callable[[], Iterable[Subscription]]


class Reach(Protocol):
    """A server, as far as one client can reach it."""

    async def recall(self) -> Trust | None:
        """What is known of its trust root without asking it."""

    async def trust(self) -> Trust:
        """Raises Unavailable while nobody can be asked and nothing is known, UntrustedRoot for another server than the token's."""

    def doubt(self) -> None:
        """Something did not fit: the next call of `trust` asks anew."""

    async def websocket(self) -> Link:
        """After `trust`. Raises Unavailable when it may work later, another HeliographError when it cannot."""

    def polling(self, reporter: Reporter, wanted: Wanted, *, random: Random) -> Link:
        """After `trust`."""


class Network(Protocol):
    """Where a client finds its server. Applications do not write one; a test takes `heliograph.client.testing.InMemoryServer.network`."""

    def open(self, options: Options, folder: Path | None, disk: DiskWriter) -> AbstractAsyncContextManager[Reach]:
        """``folder`` and ``disk``: where what is learnt may be kept."""


class OverHttp:
    @asynccontextmanager
    async def open(self, options: Options, folder: Path | None, disk: DiskWriter) -> AsyncIterator[Reach]:
        tls = await asyncio.to_thread(trusting, options.ca_file) if options.tls is None else options.tls
        async with httpx.AsyncClient(
            verify=tls, proxy=options.proxy, trust_env=False, timeout=HTTP_TIMEOUT_S, headers={"User-Agent": options.agent}
        ) as http:
            yield _Reach(options, http, tls, Discovery(http, options.url, options.anchor, folder=folder, disk=disk))


class _Reach:
    def __init__(self, options: Options, http: httpx.AsyncClient, tls: ssl.SSLContext, discovery: Discovery) -> None:
        self._options = options
        self._http = http
        self._tls = tls
        self._discovery = discovery
        self._asked = False  # whether the server was asked for endpoints and root since links failed, or a signature
        self._failures = 0  # of links, in a row

    async def recall(self) -> Trust | None:
        await asyncio.to_thread(self._discovery.recall)
        return self._discovery.trust

    async def trust(self) -> Trust:
        await self._discover()
        assert self._discovery.trust is not None
        return self._discovery.trust

    def doubt(self) -> None:
        self._asked = False

    async def websocket(self) -> Link:
        try:
            link = await WebSocketLink.open(
                self._endpoints.stream, self._options.token, agent=self._options.agent, proxy=self._options.proxy, tls=self._tls
            )
        except Unavailable:
            self._failures += 1
            self._asked &= self._failures % ASK_AFTER > 0
            raise
        self._failures = 0
        return link

    def polling(self, reporter: Reporter, wanted: Wanted, *, random: Random) -> Link:
        return PollingLink(self._http, self._endpoints.bundles, self._options.token, reporter, wanted, random=random)

    @property
    def _endpoints(self) -> Endpoints:
        assert self._discovery.endpoints is not None
        return self._discovery.endpoints

    async def _discover(self) -> None:
        """Where the services were is good enough while nobody can be asked."""
        if self._asked:
            return
        try:
            await self._discovery.refresh()
            self._asked = True
        except Unavailable:
            if self._discovery.trust is None or self._discovery.endpoints is None:
                raise
