"""What clients meet of a node, whatever feeds it: the stream, events and polls, with the same limits and the same goodbye."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, Self

from fastapi import FastAPI
from starlette.types import ASGIApp

from heliograph.access.principal import DigestAuthenticator, Knows
from heliograph.runtime.process import on_hangup
from heliograph.runtime.tls import Certificate
from heliograph.services.sync import feed_api
from heliograph.services.sync.admission import Admission
from heliograph.services.sync.api import make_router
from heliograph.services.sync.drain import Drain
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.settings import HubSettings
from heliograph.services.sync.shortcut import Shortcut
from heliograph.services.sync.sse import Events
from heliograph.services.sync.stream import Stream
from heliograph.services.sync.tickets import Tickets
from heliograph.telemetry import loop_lag
from heliograph.telemetry.metrics import Metrics


class Doorman(DigestAuthenticator, Knows, Protocol):
    """Whom all doors of a node ask whose a token is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    hub: Hub
    outbox: Outbox
    doorman: Doorman
    admission: Admission
    stream: Stream
    events: Events
    tickets: Tickets
    settings: HubSettings
    metrics: Metrics
    certificate: Certificate | None

    @classmethod
    def of(
        cls,
        hub: Hub,
        outbox: Outbox,
        doorman: Doorman,
        settings: HubSettings,
        metrics: Metrics,
        *,
        secret: str,
        backlog: Callable[[], int],
        certificate: Certificate | None,
    ) -> Self:
        """``secret``: what nodes of one installation share, and nobody else has. ``backlog``: what waits to become durable and should not."""
        admission, tickets = Admission(settings, metrics, backlog), Tickets(secret)
        stream = Stream(hub, doorman, settings, admission, tickets, metrics)
        hub.check_renewal = stream.renew
        return cls(
            hub=hub,
            outbox=outbox,
            doorman=doorman,
            admission=admission,
            stream=stream,
            events=Events(hub, stream, settings),
            tickets=tickets,
            settings=settings,
            metrics=metrics,
            certificate=certificate,
        )

    @property
    def tls(self) -> ssl.SSLContext | None:
        return self.certificate.context if self.certificate else None

    def over_http(self, app: FastAPI) -> ASGIApp:
        """The application with all routes of a node, and the short way in front of them."""
        app.include_router(
            make_router(
                self.hub,
                self.outbox,
                self.doorman,
                self.admission,
                self.metrics,
                events=self.events,
                tickets=self.tickets,
            )
        )
        app.include_router(feed_api.make_router(self.hub, self.doorman))
        return Shortcut(app, self.hub, self.doorman, self.admission, self.metrics)

    async def listen(self) -> asyncio.base_events.Server:
        """Opens the stream. Raises InvalidRequest when it cannot."""
        return await self.stream.serve(self.settings.listen_host, self.settings.sync_port, self.tls)

    def work(self, stop: asyncio.Event) -> tuple[Coroutine[Any, Any, None], ...]:
        """What goes on while it serves. Each until cancelled."""
        certificate = (_look_after(self.certificate),) if self.certificate else ()
        return (
            *certificate,
            self.hub.run(),
            self.outbox.run(),
            self.stream.recheck(),
            self.events.run(),
            loop_lag.run(self.metrics, stop, self.admission.lagged),
        )

    async def drain(self) -> None:
        """Sends everybody elsewhere, within `drain_s`."""
        settings, stream = self.settings, self.stream
        await Drain(
            self.hub, per_s=settings.drain_clients_per_s, within_s=settings.drain_s, opening=lambda: stream.greeting
        ).run()
        await stream.farewell()
        await self.hub.end()


async def certificate_of(settings: HubSettings, metrics: Metrics) -> Certificate | None:
    """The one that the settings name, if they do. Raises InvalidRequest when it cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return await Certificate.open(settings.tls_cert_file, settings.tls_key_file, metrics)


async def _look_after(certificate: Certificate) -> None:
    """Until cancelled. Who has changed the files need not wait for us to notice: SIGHUP."""
    with on_hangup(certificate.ask):
        await certificate.run()
