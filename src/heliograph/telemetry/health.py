"""Readiness: named conditions that must all hold before a service takes traffic, and what is missing while they do not."""

from __future__ import annotations

import asyncio
from typing import Protocol

from heliograph.telemetry.metrics import Metrics


class Readiness:
    """All conditions start unmet. Without any condition a service is ready.

        readiness = Readiness("database", "log")
        readiness.met("database")
        readiness.missing()    # {"log": "starting"}

    Belongs to one event loop.
    """

    def __init__(self, *conditions: str) -> None:
        self._missing = dict.fromkeys(conditions, "starting")
        self._impaired: dict[str, str] = {}
        self._changed = asyncio.Event()

    def met(self, condition: str) -> None:
        if self._missing.pop(condition, None) is not None:
            self._changed.set()

    def unmet(self, condition: str, reason: str) -> None:
        """``condition`` (it may be a new one, such as "drain") does not hold; ``reason`` is shown to operators: no secrets."""
        self._missing[condition] = reason
        self._changed.set()

    def impaired(self, condition: str, reason: str) -> None:
        """It serves, and not as well as it should: told to operators, and no cause to send traffic elsewhere."""
        self._impaired[condition] = reason

    def sound(self, condition: str) -> None:
        self._impaired.pop(condition, None)

    def impairments(self) -> dict[str, str]:
        """Condition -> reason for each that is impaired."""
        return dict(self._impaired)

    def missing(self) -> dict[str, str]:
        """Condition -> reason for each that does not hold."""
        return dict(self._missing)

    @property
    def ready(self) -> bool:
        return not self._missing

    async def wait(self) -> None:
        """Returns once everything holds. The caller brings the deadline."""
        while self._missing:
            self._changed.clear()
            await self._changed.wait()


class Health(Protocol):
    """What is answered when a service is asked how it is."""

    async def missing(self) -> dict[str, str]:
        """Condition -> reason for each that does not hold; empty: ready."""

    async def impairments(self) -> dict[str, str]:
        """Condition -> reason for each that is impaired."""

    async def exposition(self) -> bytes:
        """Metrics in Prometheus' text format."""


class OwnHealth:
    """Of one process alone. Implements `Health`."""

    def __init__(self, metrics: Metrics, readiness: Readiness) -> None:
        self._metrics = metrics
        self._readiness = readiness

    async def missing(self) -> dict[str, str]:
        return self._readiness.missing()

    async def impairments(self) -> dict[str, str]:
        return self._readiness.impairments()

    async def exposition(self) -> bytes:
        return await asyncio.to_thread(self._metrics.exposition)  # it reads /proc
