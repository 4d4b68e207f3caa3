"""What the hub tells the ledger of its own accord: who came, who left, how a fan-out went, that the node is there."""

from __future__ import annotations

from heliograph.core.events import FannedOut, NodeAlive, Subscribed, Unsubscribed
from heliograph.core.records import Cursor
from heliograph.runtime.clock import now_us
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.session import Subscriber
from heliograph.telemetry.metrics import Metrics


class Reports:
    """Put into the outbox behind what is there. Of edges and of anonymous readers nothing is told."""

    def __init__(self, node: str, region: str, outbox: Outbox, metrics: Metrics) -> None:
        self._node = node
        self._region = region
        self._outbox = outbox
        self._metrics = metrics

    def joined(self, subscriber: Subscriber) -> None:
        """Also once more, when what it declares has changed. What it declares is told until a report of it is taken."""
        session = subscriber.session
        if session.anonymous or session.relays:
            return
        assert session.fingerprint, "nothing is known of a session before its hello"
        taken = self._outbox.put(
            Subscribed(
                namespace=subscriber.namespace,
                environment=subscriber.environment,
                instance=session.instance,
                incarnation=session.incarnation,
                connection=session.connection,
                subscription=subscriber.id,
                view=subscriber.view,
                node=self._node,
                region=self._region,
                token=session.principal.id,
                fingerprint=session.fingerprint,
                have=subscriber.cursor,
                at_us=now_us(),
                declares=subscriber.declares,
            ),
            session.instance,
        )
        if taken:
            subscriber.declares = None

    def left(self, subscriber: Subscriber, reason: str) -> None:
        session = subscriber.session
        if session.anonymous or session.relays:
            return
        self._outbox.put(
            Unsubscribed(
                namespace=subscriber.namespace,
                environment=subscriber.environment,
                instance=session.instance,
                connection=session.connection,
                subscription=subscriber.id,
                node=self._node,
                reason=reason,
                at_us=now_us(),
            ),
            session.instance,
        )

    def fanned_out(self, environment: Environment, cursor: Cursor, recipients: int, logged_us: int, started_us: int) -> None:
        """The walk to ``cursor`` has ended just now."""
        done_us = now_us()
        self._metrics.fan_out_seconds.observe((done_us - started_us) / 1e6)
        self._metrics.fan_out_recipients.observe(recipients)
        self._outbox.put(
            FannedOut(
                namespace=environment.namespace,
                environment=environment.environment,
                epoch=cursor.epoch,
                number=cursor.number,
                node=self._node,
                recipients=recipients,
                logged_at_us=logged_us,
                started_at_us=started_us,
                done_at_us=done_us,
            ),
            self._node,
        )

    def alive(self, connections: int, *, leaving: bool = False) -> None:
        event = NodeAlive(node=self._node, region=self._region, connections=connections, at_us=now_us(), leaving=leaving)
        self._outbox.put(event, self._node)
