from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from heliograph.core.events import (
    FannedOut,
    FromSync,
    NodeAlive,
    Received,
    Subscribed,
    Unsubscribed,
    VersionEvent,
)
from heliograph.core.frames import Fingerprint, State
from heliograph.core.records import Cursor, Head, Signed, Version
from heliograph.core.times import to_text
from heliograph.services.ledger.answers import Address

START_US = 1_790_000_000_000_000
SECOND_US = 1_000_000
ZERO = "sha256:" + "0" * 64


@dataclass
class Story:
    """Makes the events that a registry and some sync nodes would write. Times are milliseconds after the start of the story."""

    address: Address = field(default_factory=lambda: Address("shop", "production"))
    incarnation: int = 1
    start_us: int = START_US
    versions: list[VersionEvent] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)

    def at(self, ms: float) -> int:
        return self.start_us + int(ms * 1000)

    def version(self, *, received: float, number: int | None = None, epoch: int = 1) -> VersionEvent:
        number = number or len(self.versions) + 1
        record = Version(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=epoch,
            number=number,
            parent=None,
            root=ZERO,
            history=ZERO,
            kind="publish",
            author="author",
            at=to_text(self.at(received)),
        )
        text = record.text()
        event = VersionEvent(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=epoch,
            number=number,
            version=Signed(text.decode(), ()),
            head=Signed(self.head(epoch, number, Version.id_of(text), issued=received), ()),
            changes=(),
            received_at_us=self.at(received),
        )
        self.versions.append(event)
        return event

    def head(self, epoch: int, number: int, version: str, *, issued: float) -> str:
        head = Head(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=epoch,
            number=number,
            version=version,
            root=ZERO,
            safe=number,
            issued_at=to_text(self.at(issued)),
            expires_at=to_text(self.at(issued + 3_600_000)),
        )
        return head.text().decode()

    def subscribed(
        self,
        instance: str,
        at: float,
        *,
        node: str = "node-1",
        region: str = "eu",
        sdk_version: str = "1.0",
        labels: dict[str, str] | None = None,
        subscription: int = 1,
        connection: str = "",
        incarnation: int = 1,
        have: Cursor | None = None,
    ) -> Subscribed:
        return Subscribed(
            namespace=self.address.namespace,
            environment=self.address.environment,
            instance=instance,
            incarnation=incarnation,
            connection=connection or f"{node}/{instance}",
            subscription=subscription,
            view=("",),
            node=node,
            region=region,
            token="token-1",
            fingerprint=Fingerprint(sdk="heliograph-python", sdk_version=sdk_version, labels=labels or {}),
            have=have,
            at_us=self.at(at),
        )

    def unsubscribed(
        self, instance: str, at: float, *, node: str = "node-1", subscription: int = 1, connection: str = ""
    ) -> Unsubscribed:
        return Unsubscribed(
            namespace=self.address.namespace,
            environment=self.address.environment,
            instance=instance,
            connection=connection or f"{node}/{instance}",
            subscription=subscription,
            node=node,
            reason="closed",
            at_us=self.at(at),
        )

    def answer(
        self,
        instance: str,
        version: VersionEvent,
        state: State,
        at: float,
        *,
        node: str = "node-1",
        subscription: int = 1,
        connection: str = "",
        reason: str | None = None,
        taken: float | None = None,
    ) -> Received:
        return Received(
            namespace=self.address.namespace,
            environment=self.address.environment,
            instance=instance,
            connection=connection or f"{node}/{instance}",
            subscription=subscription,
            node=node,
            epoch=version.epoch,
            number=version.number,
            version=Version.id_of(version.version.payload),
            state=state,
            reason=reason,
            applied_at_us=self.at(at),
            received_at_us=self.at(at + 1 if taken is None else taken),
        )

    def fanned_out(
        self, version: VersionEvent, *, logged: float, started: float, done: float, recipients: int = 1, node: str = "node-1"
    ) -> FannedOut:
        return FannedOut(
            namespace=self.address.namespace,
            environment=self.address.environment,
            epoch=version.epoch,
            number=version.number,
            node=node,
            recipients=recipients,
            logged_at_us=self.at(logged),
            started_at_us=self.at(started),
            done_at_us=self.at(done),
        )

    def alive(self, at: float, *, node: str = "node-1", leaving: bool = False) -> NodeAlive:
        return NodeAlive(node=node, region="eu", connections=1, at_us=self.at(at), leaving=leaving)


@pytest.fixture
def story() -> Story:
    return Story()


__all__ = ["FromSync", "Story"]
