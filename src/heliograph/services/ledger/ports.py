"""What the ledger needs from elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from heliograph.core.records import Signed
from heliograph.services.ledger.report import Report


class CurrentHead(msgspec.Struct, frozen=True):
    """An environment's signed head, with the version it names."""

    namespace: str
    environment: str
    head: Signed
    version: Signed


class Registry(Protocol):
    def heads(self) -> AsyncIterator[CurrentHead]:
        """Every environment's. Raises Unavailable."""
        ...

    async def record_closed(self, report: Report, trace: str | None) -> None:
        """Writes ``propagation.closed`` into the audit trail. Idempotent by the version's id.

        Raises Unavailable when it may succeed later, any other HeliographError when it will not.
        """
        ...
