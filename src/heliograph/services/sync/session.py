"""One connection's side of the protocol, without a socket: frames in, effects out. The hub carries them out.

    connected ──hello──▶ live ──(superseded, revoked, malformed, silent)──▶ closed

A session promises that it acknowledges nothing that is not durable, that a receipt can only be for its own instance and for a version that was
there to be sent to it, and that no input makes it raise: what is wrong closes the connection with a code that says whether to come back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import msgspec

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Principal
from heliograph.core import frames, names
from heliograph.core.errors import HeliographError, InvalidRequest, MalformedFrame, NotReady
from heliograph.core.events import FromSync, Received
from heliograph.core.names import View
from heliograph.core.records import Cursor
from heliograph.runtime import problems
from heliograph.services.sync.members import Company

MISSED_HEARTBEATS: Final = 3
MAX_TEXT: Final = 200
MAX_LABELS: Final = 32
MAX_REASON: Final = 1000
MAX_SKEW_US: Final = 24 * 3600 * 1_000_000
NUL: Final = "\0"
"""JSON can say it, PostgreSQL's text cannot hold it: one client's would hold up what all others say."""
MAX_INT: Final = 1 << 53
"""What is stored of a client's numbers is below it: JSON's, and a column's."""

_decode = msgspec.json.Decoder(frames.FromClient).decode


@dataclass(slots=True, eq=False)
class Subscriber:
    """One subscription of one session. ``own``: its `cursor` where it stands alone. ``runs``: what it said it runs."""

    session: Session
    id: int
    namespace: str
    environment: str
    view: View
    own: Cursor | None
    runs: Cursor | None = None
    declares: frames.Declares | None = None  # until it is reported; the ledger keeps it
    owed: bool = False  # an answer to its hello, though there be nothing new
    doubted: Reset | None = None  # its state, and nothing could be sent since
    company: Company | None = None
    place: int = 0

    @property
    def cursor(self) -> Cursor | None:
        """The head it was last sent, or claims to have; None: nothing. Who is given one of its own is alone from then."""
        return self.own if self.company is None else self.company.at(self.place)

    @cursor.setter
    def cursor(self, value: Cursor | None) -> None:
        if self.company is not None:
            self.company.part(self)
        self.own = value

    def answered(self, receipt: frames.Receipt) -> None:
        if receipt.state in ("applied", "unaffected") and (
            self.runs is None or (receipt.epoch, receipt.number) > (self.runs.epoch, self.runs.number)
        ):
            self.runs = Cursor(receipt.epoch, receipt.number, receipt.version)


class Opened(msgspec.Struct, frozen=True):
    """Hello was understood: welcome it, and bring each subscription up to date."""

    hello: frames.Hello
    subscribers: tuple[Subscriber, ...]


class Answered(msgspec.Struct, frozen=True):
    """A receipt to be stored, acknowledged with ``seq`` once it is durable."""

    receipt: Received
    seq: int


class Reset(msgspec.Struct, frozen=True):
    """Send a snapshot: the client's state is in doubt."""

    subscriber: Subscriber
    have: Cursor | None
    cause: str


class Declared(msgspec.Struct, frozen=True):
    """What these subscriptions can read is another thing now."""

    subscribers: tuple[Subscriber, ...]


class Send(msgspec.Struct, frozen=True):
    frame: frames.FromServer


class Renewed(msgspec.Struct, frozen=True):
    """The client has a new token, to be checked before the old one ends."""

    token: str


class Close(msgspec.Struct, frozen=True):
    code: int
    reason: str


class Followed(msgspec.Struct, frozen=True):
    """One more subscription, on a connection that is open."""

    subscriber: Subscriber


class Unfollowed(msgspec.Struct, frozen=True):
    subscriber: Subscriber


class Relayed(msgspec.Struct, frozen=True):
    """What clients of an edge said, to be stored in this order, and acknowledged with ``seq`` once all is durable."""

    events: tuple[FromSync, ...]
    seq: int


Effect = Opened | Answered | Reset | Declared | Send | Renewed | Followed | Unfollowed | Relayed | Close


class History(Protocol):
    """What a session asks about environments."""

    def knows(self, namespace: str, environment: str, cursor: Cursor) -> bool: ...

    def behind(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        """Whether the version is above the head here: a client may have it from a node that is ahead."""
        ...

    def lost(self, namespace: str, environment: str, cursor: Cursor) -> bool:
        """Whether the version is of an older epoch and not in this history: nobody can say whether it ever was."""
        ...

    def view_digest(self, subscriber: Subscriber) -> str: ...


@dataclass(slots=True, eq=False)
class Session:
    """``relays``: whether this is an edge (`feed.EdgeSession`), no instance of its own."""

    relays: ClassVar[bool] = False

    connection: str
    node: str
    principal: Principal
    history: History
    opened_us: int
    heartbeat_us: int
    instance: str = ""
    incarnation: int = 0
    subscribers: dict[int, Subscriber] = field(default_factory=dict)
    heard_us: int = 0
    fingerprint: frames.Fingerprint | None = None
    anonymous: bool = False
    """It is sent what it asks for, and nobody counts it: no instance is told of by it."""

    def take(self, text: bytes, now_us: int) -> list[Effect]:
        """Everything one text message means. Never raises for what a client sends."""
        self.heard_us = now_us
        try:
            frame = self._read(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return [Close(problems.MALFORMED_FRAME, "not a frame of heliograph.v1")]
        try:
            return self._take(frame, now_us)
        except HeliographError as error:
            told = frames.ErrorFrame(code=error.code, detail=error.detail)
            return [Send(told), Close(problems.close_code_of(error), error.code)]

    def open(self, hello: frames.Hello) -> Opened:
        """As a hello that came in a frame, for who says it by other means. Raises what is wrong with it."""
        opened = self._opened(hello)
        assert isinstance(opened, Opened), "said once"
        return opened

    def _read(self, text: bytes) -> frames.FromClient:
        frame: frames.FromClient = _decode(text)
        return frame

    def _take(self, frame: frames.FromClient, now_us: int) -> list[Effect]:
        if isinstance(frame, frames.Hello):
            return [self._opened(frame)]
        if not self.instance:
            return [Close(problems.PROTOCOL, "hello was expected")]
        match frame:
            case frames.Receipt():
                return self._answered(frame, now_us)
            case frames.Heartbeat():
                return self._alive(frame, now_us)
            case frames.Resync():
                if frame.have is not None:
                    check_cursor(frame.have)
                return [Reset(self._subscriber(frame.subscription), frame.have, "asked")]
            case frames.Renew():
                return [Renewed(frame.token)]

    def _opened(self, hello: frames.Hello) -> Effect:
        if self.instance:
            return Close(problems.PROTOCOL, "hello was said already")
        _check_hello(hello)
        subscribers = tuple(self._subscribed(each) for each in hello.subscriptions)
        if len({each.id for each in subscribers}) != len(subscribers):
            raise InvalidRequest("two subscriptions have the same id")
        self.instance, self.incarnation, self.fingerprint = hello.instance, hello.incarnation, hello.fingerprint
        self.subscribers = {each.id: each for each in subscribers}
        return Opened(hello, subscribers)

    def _subscribed(self, wanted: frames.Subscription) -> Subscriber:
        namespace, environment = names.namespace(wanted.namespace), names.environment(wanted.environment)
        if len(wanted.view) > frames.MAX_SELECTORS or not 0 <= wanted.id < 1 << 31:
            raise InvalidRequest(f"a view has at most {frames.MAX_SELECTORS} selectors, a subscription id fits 31 bits")
        allow(self.principal, Action.CONNECT, namespace, environment)
        if wanted.have is not None:
            check_cursor(wanted.have)
        subscriber = Subscriber(self, wanted.id, namespace, environment, names.view(wanted.view), wanted.have, wanted.have)
        subscriber.declares = wanted.declares or None
        return subscriber

    def _subscriber(self, number: int) -> Subscriber:
        if (found := self.subscribers.get(number)) is None:
            raise InvalidRequest(f"there is no subscription {number}")
        return found

    def _answered(self, receipt: frames.Receipt, now_us: int) -> list[Effect]:
        """None for a version that a fail-over has lost: its client drops the receipt as soon as it hears of the new epoch, which is on its way."""
        subscriber = self._subscriber(receipt.subscription)
        try:
            stored = received(receipt, subscriber, self.history, now_us)
        except InvalidRequest:
            if self._lost(subscriber, receipt):
                return []
            raise
        subscriber.answered(receipt)
        return [Answered(stored, receipt.seq)]

    def _lost(self, subscriber: Subscriber, receipt: frames.Receipt) -> bool:
        cursor = Cursor(receipt.epoch, receipt.number, receipt.version)
        check_cursor(cursor)
        return self.history.lost(subscriber.namespace, subscriber.environment, cursor)

    def _alive(self, heartbeat: frames.Heartbeat, now_us: int) -> list[Effect]:
        effects: list[Effect] = [Send(frames.HeartbeatAck(echo_us=heartbeat.sent_at_us, received_at_us=now_us))]
        for text, digest in heartbeat.views.items():
            subscriber = self.subscribers.get(int(text)) if text.isascii() and text.isdigit() and len(text) < 11 else None
            if subscriber is None:
                raise InvalidRequest("a heartbeat for a subscription that is not there")
            if self.history.view_digest(subscriber) not in ("", digest):
                effects.append(Reset(subscriber, subscriber.cursor, "heartbeat"))
        if heartbeat.declares:
            effects.append(self._declared(heartbeat.declares))
        return effects

    def _declared(self, told: dict[str, frames.Declares]) -> Declared:
        _check_declared(told.values())
        changed = []
        for text, declares in told.items():
            if not (text.isascii() and text.isdigit() and len(text) < 11):
                raise InvalidRequest("schemas are declared for a subscription that is not there")
            subscriber = self._subscriber(int(text))
            subscriber.declares = declares
            changed.append(subscriber)
        return Declared(tuple(changed))


def received(receipt: frames.Receipt, subscriber: Subscriber, history: History, now_us: int) -> Received:
    """The receipt as it is stored. Raises InvalidRequest for a version that was never there to be sent."""
    cursor = Cursor(receipt.epoch, receipt.number, receipt.version)
    sent = subscriber.cursor
    if cursor != sent:  # what most answer for is what was sent; looking at its spelling again was a seventh of a receipt's cost
        check_cursor(cursor)
    at = cursor.epoch, cursor.number
    held = cursor == sent
    if (
        sent is not None
        and at < (sent.epoch, sent.number)
        and history.behind(subscriber.namespace, subscriber.environment, cursor)
    ):
        raise NotReady(f"version {cursor.number} is not here yet", retry_after=1)
    if not held and (
        sent is None
        or at > (sent.epoch, sent.number)
        or not history.knows(subscriber.namespace, subscriber.environment, cursor)
    ):
        raise InvalidRequest(f"a receipt for version {receipt.number}, which was never sent to this subscription")
    numbers_fit = 0 <= receipt.seq < MAX_INT and 0 <= receipt.applied_at_us < MAX_INT
    if not numbers_fit or abs(receipt.clock_offset_us) > MAX_SKEW_US * 3650:
        raise InvalidRequest("a receipt's seq, time and clock offset are out of range")
    session = subscriber.session
    return Received(
        namespace=subscriber.namespace,
        environment=subscriber.environment,
        instance=session.instance,
        connection=session.connection,
        subscription=subscriber.id,
        node=session.node,
        epoch=receipt.epoch,
        number=receipt.number,
        version=receipt.version,
        state=receipt.state,
        reason=receipt.reason[:MAX_REASON].replace(NUL, "\N{REPLACEMENT CHARACTER}") if receipt.reason else None,
        applied_at_us=receipt.applied_at_us + receipt.clock_offset_us,
        received_at_us=now_us,
        trace=receipt.trace if receipt.trace and len(receipt.trace) <= MAX_TEXT and NUL not in receipt.trace else None,
    )


def check_identity(hello: frames.Hello) -> None:
    """Limits of what a client says of itself."""
    mark = hello.fingerprint
    texts = (
        hello.instance,
        mark.sdk,
        mark.sdk_version,
        mark.language,
        mark.host,
        mark.app,
        *mark.labels,
        *mark.labels.values(),
    )
    if not hello.instance or any(len(each) > MAX_TEXT for each in texts) or len(mark.labels) > MAX_LABELS:
        raise InvalidRequest(f"texts of a fingerprint have at most {MAX_TEXT} characters, labels are at most {MAX_LABELS}")
    refuse_nul(*texts)
    if not 0 <= hello.incarnation < MAX_INT:
        raise InvalidRequest("an incarnation is a number from 0 to 2^53 - 1")


def refuse_nul(*texts: str) -> None:
    if any(NUL in each for each in texts):
        raise InvalidRequest("a text holds U+0000, which cannot be stored")


def _check_hello(hello: frames.Hello) -> None:
    check_identity(hello)
    if not 1 <= len(hello.subscriptions) <= frames.MAX_SUBSCRIPTIONS:
        raise InvalidRequest(f"a connection has 1 to {frames.MAX_SUBSCRIPTIONS} subscriptions")
    _check_declared(each.declares for each in hello.subscriptions if each.declares)
    if hello.public_key is not None and len(hello.public_key) > MAX_TEXT:
        raise MalformedFrame("a public key of that length is none")


def _check_declared(told: Iterable[frames.Declares]) -> None:
    schemas = [(name, schema) for declares in told for name, schema in declares.items()]
    for name, schema in schemas:
        names.config(name)
        refuse_nul(schema)
        if len(schema.encode()) > frames.MAX_DECLARED_SCHEMA:
            raise InvalidRequest(f"a declared schema has at most {frames.MAX_DECLARED_SCHEMA:,} bytes")
    if len(schemas) > frames.MAX_DECLARED:
        raise InvalidRequest(f"at most {frames.MAX_DECLARED} schemas are declared on one connection")


def check_cursor(cursor: Cursor) -> None:
    try:
        if Cursor.parse(str(cursor)) != cursor or max(cursor.epoch, cursor.number) >= MAX_INT:
            raise ValueError
    except ValueError:
        raise InvalidRequest("not a cursor") from None
