"""The hub's outbox, of an edge: its log is the parent, which may be away for days."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import structlog

from heliograph.core.events import FannedOut, FromSync, NodeAlive, Received, Subscribed
from heliograph.core.feed import MAX_EVENT_BYTES, MAX_RELAYED_BYTES
from heliograph.eventlog.ports import Appender, NewRecord
from heliograph.services.sync.receipts import Durable, Outbox
from heliograph.services.sync.records import Told, one_record
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

MAX_REPORTS: Final = 100_000
_encode = msgspec.json.Encoder().encode


class EdgeOutbox(Outbox):
    """While the parent is away, receipts wait as in any outbox. Signs of life and fan-outs are of the moment and are not kept; who came and went
    is, up to a bound, and `put` says so: everybody who is there is reported again when the parent is back, but for those whose report still
    waits."""

    def __init__(self, appender: Appender, metrics: Metrics, connected: Callable[[], bool]) -> None:
        super().__init__(appender, metrics)
        self._connected = connected
        self._reports: set[tuple[str, int]] = set()
        """Whose report waits, or is on its way: connection and subscription, which are reported again and again and the same each time."""

    def put(self, event: FromSync, key: str, durable: Durable | None = None) -> bool:
        if durable is None and not isinstance(event, Received) and not self._connected():
            if isinstance(event, (NodeAlive, FannedOut)):
                return True
            if self.waiting >= MAX_REPORTS:
                self._metrics.edge_events_dropped.inc()
                return False
        if isinstance(event, Subscribed):
            return self._report(event, key)
        return super().put(event, key, durable)

    def _report(self, event: Subscribed, key: str) -> bool:
        """Once, unless it declares something: that may be another thing by now."""
        slot = event.connection, event.subscription
        if event.declares is not None or slot not in self._reports:
            self._reports.add(slot)
            self._add(_fitting(event), key, partial(self._reports.discard, slot))
        return True

    def _records(self, told: list[Told]) -> list[NewRecord]:
        """Each its own, as a frame to the parent names events one by one."""
        return [one_record(event, key) for event, key in told]


def _fitting(event: Subscribed) -> Subscribed:
    """What does not fit a frame to the parent goes without what its application declares, then without its labels: a hello may be as large as a
    frame, and what is told of it is larger. The longest view fits with the rest of it."""
    if event.declares is not None and len(_encode(event)) > MAX_RELAYED_BYTES:
        log.warning("edge_declared_schemas_too_large", namespace=event.namespace, environment=event.environment)
        event = msgspec.structs.replace(event, declares=None)
    if event.fingerprint.labels and len(_encode(event)) > MAX_EVENT_BYTES:
        log.warning("edge_labels_too_large", namespace=event.namespace, environment=event.environment)
        event = msgspec.structs.replace(event, fingerprint=msgspec.structs.replace(event.fingerprint, labels={}))
    return event
