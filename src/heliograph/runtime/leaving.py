"""How a service goes without failing anybody.

First it says that it is not ready and goes on as before, so that balancers can turn away from it (`unready_s`). Then it takes no new connections,
finishes what is in hand, and answers what still comes on the connections that it has, each time for the last time (`keep_alive_grace_s`). What is
not over after `drain_s` is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from heliograph.runtime.settings import ServiceSettings
from heliograph.telemetry.health import Readiness


async def _nothing() -> None:
    """There is nothing else to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """All in seconds. ``meanwhile``: what a service does between turning people away and closing its door; it bounds itself."""

    readiness: Readiness | None = None
    unready_s: float = 0.0
    keep_alive_grace_s: float = 0.0
    drain_s: float = 10.0
    meanwhile: Callable[[], Awaitable[object]] = _nothing

    @classmethod
    def of(cls, settings: ServiceSettings, readiness: Readiness, meanwhile: Callable[[], Awaitable[object]] = _nothing) -> Self:
        return cls(
            readiness=readiness,
            unready_s=settings.unready_s,
            keep_alive_grace_s=settings.keep_alive_grace_s,
            drain_s=settings.drain_s,
            meanwhile=meanwhile,
        )

    async def turn_away(self) -> None:
        """Not ready from now on; returns when those who look at that have had their time."""
        if self.readiness is not None:
            self.readiness.unmet("drain", "stopping")
        await asyncio.sleep(self.unready_s)
