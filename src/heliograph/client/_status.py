"""What a client says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heliograph.core.errors import HeliographError, InvalidRequest, NotFound
from heliograph.core.records import Cursor

Phase = Literal["new", "starting", "running", "stopped", "closed"]
Transport = Literal["websocket", "polling", "disk"]
Source = Literal["network", "disk", "parent", "none"]
DiskState = Literal["off", "ok", "damaged", "unwritable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """The server said something that does not verify. The client keeps what it had; somebody should look.

    Attributes:
        code: as in `heliograph.core.errors`: ``forked``, ``rolled-back``, ``bad-signature``, ``untrusted-root`` …
        detail: one sentence; never a document's value.
        claimed: the version that the refused statement spoke of, None when it could not even be read. Not to be believed.
        at_us: our wall clock, microseconds since the Unix epoch.
        repeated: further alarms merged into this one because the callback was slow.
    """

    code: str
    detail: str
    namespace: str
    environment: str
    claimed: Cursor | None
    at_us: int
    repeated: int = 0

    def merged(self, later: Alarm) -> Alarm:
        return Alarm(
            code=later.code,
            detail=later.detail,
            namespace=later.namespace,
            environment=later.environment,
            claimed=later.claimed,
            at_us=later.at_us,
            repeated=self.repeated + later.repeated + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A version that verified and that this instance will not run on, with the reason that its receipt carries."""

    cursor: Cursor
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionStatus:
    """One namespace and environment.

    Attributes:
        source: where the state came from or was last confirmed by: the network, only the disk, only the memory of the process that this
            one was forked from, or nowhere yet.
        head_age_s: seconds since the head was signed, by the server's clock as far as it is known.
        stale: the head's signature has expired (or there is none): the state is the last good one, and may not be the newest.
        rejected: the last version that did not fit the application, until a newer one is applied.
        alarm: the last statement that did not verify, until a newer one does.
        error: why the server does not serve this subscription, until it does.
    """

    namespace: str
    environment: str
    cursor: Cursor | None
    source: Source
    head_age_s: float | None
    stale: bool
    rejected: Rejection | None
    alarm: Alarm | None
    error: HeliographError | None

    @property
    def gone(self) -> bool:
        """The server says that there is no such environment: it was deleted, or never there (`error` tells which, as far as the server knows).
        What was applied stays, and is asked for again now and then: a deleted environment can be restored."""
        return isinstance(self.error, NotFound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One moment of a client; take a new one for the next moment.

    Attributes:
        phase: ``stopped`` means that the server said not to come back, or showed a wrong trust root; `last_error` says which. What was
            applied stays readable.
        transport: what brings news: the WebSocket, polling, or nothing (what is there came from the disk or from before).
        last_error: of the connection; None while it is healthy.
        receipts_pending: receipts that the server has not called durable.
        clock_offset_ms: how far the server's clock is ahead; None before it was measured.
        disk: ``damaged``: a copy did not match its digest or did not verify, and was not used; ``unwritable``: nothing can be kept.
    """

    phase: Phase
    connected: bool
    transport: Transport
    instance: str | None
    incarnation: int | None
    region: str | None
    node: str | None
    subscriptions: tuple[SubscriptionStatus, ...]
    last_error: HeliographError | None
    receipts_pending: int
    clock_offset_ms: float | None
    disk: DiskState

    @property
    def only(self) -> SubscriptionStatus:
        """The subscription of a client that has one. Raises InvalidRequest for a client of several."""
        if len(self.subscriptions) != 1:
            raise InvalidRequest("this client has several subscriptions; look at status.subscriptions")
        return self.subscriptions[0]

    @property
    def cursor(self) -> Cursor | None:
        return self.only.cursor

    @property
    def source(self) -> Source:
        return self.only.source

    @property
    def head_age_s(self) -> float | None:
        return self.only.head_age_s

    @property
    def stale(self) -> bool:
        return any(one.stale for one in self.subscriptions)

    @property
    def alarm(self) -> Alarm | None:
        """The first subscription's that has one."""
        return next((one.alarm for one in self.subscriptions if one.alarm), None)
