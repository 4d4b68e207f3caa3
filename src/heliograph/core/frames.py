"""Frames of the WebSocket subprotocol ``heliograph.v1``: one JSON text message each, told apart by ``type``.

The same server frames are the answers of the HTTP bundle and long-poll endpoints, so a cursor means the same everywhere. A frame that carries
state is encoded once per (subscription id, view, from, to) and its bytes are shared by every connection: nothing in it is about one client.

Times are integers in microseconds since the Unix epoch (``_us``) where they measure, RFC 3339 text where they are signed.
Unknown members are ignored (newer peers may add some); unknown types are refused with `MalformedFrame`.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Literal

import msgspec

from heliograph.core.records import Cursor, Signed

SUBPROTOCOL = "heliograph.v1"
MAX_SUBSCRIPTIONS = 64
MAX_SELECTORS = 256
MAX_CLIENT_FRAME = 64 * 1024
MAX_DECLARED = 32
"""Schemas that one frame declares, of all its subscriptions together."""
MAX_DECLARED_SCHEMA = 8 * 1024
MAX_DECLARED_BYTES = 32 * 1024
"""UTF-8 bytes of one declared schema, and of all in one frame: the rest of the frame needs room too."""
PART_BYTES = 256 * 1024

_RETRY_AFTER = re.compile(r"; retry-after=([0-9]{1,6})\Z")

State = Literal["applied", "rejected", "superseded", "unaffected"]
Answer = Literal["now", "soon"]
_UNSET = msgspec.UNSET
Maybe = msgspec.UnsetType
Declares = dict[str, str]
"""Config -> JSON Schema (text) of the type that the application reads it as. Servers warn or refuse before a change breaks it."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who an instance says it is. Shown to operators, grouped by in percentiles; never trusted for permissions."""

    sdk: str
    sdk_version: str
    language: str = ""
    host: str = ""
    app: str = ""
    labels: dict[str, str] = {}


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """``id`` is chosen by the client and names the subscription in every later frame. Clients with the same id and view share frames.

    ``declares``: what the application can read, as far as it fits `MAX_DECLARED_BYTES`.
    """

    id: int
    namespace: str
    environment: str
    view: tuple[str, ...] = ("",)
    have: Cursor | None = None
    declares: Declares | Maybe = _UNSET


# --- client to server ---------------------------------------------------------------------------------------------------------


class ClientFrame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class Hello(ClientFrame, frozen=True, kw_only=True, tag="hello"):
    """First frame. ``instance``: UUIDv7 kept beside the SDK's disk copy; ``incarnation`` strictly grows with each start of it."""

    instance: str
    incarnation: int
    fingerprint: Fingerprint
    subscriptions: tuple[Subscription, ...]
    public_key: str | None = None
    sent_at_us: int = 0


class Receipt(ClientFrame, frozen=True, kw_only=True, tag="receipt"):
    """An instance's answer for one version of one subscription. ``seq`` grows per connection; resent until acknowledged.

    ``applied_at_us`` is the client's own clock; ``clock_offset_us`` is what it believes the server's clock is ahead of it.
    """

    seq: int
    subscription: int
    epoch: int
    number: int
    version: str
    state: State
    reason: str | None = None
    applied_at_us: int = 0
    clock_offset_us: int = 0
    trace: str | None = None


class Heartbeat(ClientFrame, frozen=True, kw_only=True, tag="heartbeat"):
    """``views``: subscription id (as text, JSON keys are) -> view digest. A wrong digest is answered with a snapshot.

    ``declares``: subscription id -> all that it declares, when that has changed since the last time it was said.
    """

    views: dict[str, str] = {}
    sent_at_us: int = 0
    declares: dict[str, Declares] | Maybe = _UNSET


class Renew(ClientFrame, frozen=True, kw_only=True, tag="token"):
    token: str


class Resync(ClientFrame, frozen=True, kw_only=True, tag="resync"):
    """Asks for a snapshot of one subscription: what was sent did not verify, or starts at a version that was rejected here.

    ``have``: what the client really holds, which is not what the server last sent. The answer carries ``ancestry`` from there.
    """

    subscription: int
    have: Cursor | None = None


FromClient = Hello | Receipt | Heartbeat | Renew | Resync

# --- server to client ---------------------------------------------------------------------------------------------------------


class ServerFrame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    pass


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    max_frame_bytes: int
    max_subscriptions: int


class Welcome(ServerFrame, frozen=True, kw_only=True, tag="welcome"):
    """``received_at_us``/``sent_at_us`` are the server's clock around hello, for the client's estimate of its offset (as in SNTP).

    ``sample``: answer every version at once. ``heartbeat_s``: send one at least this often. ``receipt_jitter_ms``: bound of the random
    delay of receipts that nobody waits for.
    """

    connection: str
    node: str
    region: str
    received_at_us: int
    sent_at_us: int
    heartbeat_s: float
    receipt_jitter_ms: int
    sample: bool = False
    limits: Limits


class Changed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One config of a view. ``leaf``: exact text of the leaf record, None = the name left the trie.

    ``document``: exact canonical text; or ``edits`` of the text held at ``from``, ``[start, end, text]`` in UTF-8 bytes. Neither: the document is
    the one already held (its digest in the leaf must match).
    """

    name: str
    leaf: str | None
    document: str | Maybe = _UNSET
    edits: tuple[tuple[int, int, str], ...] | Maybe = _UNSET


class ProofText(msgspec.Struct, frozen=True):
    """A proof with digests spelled. See `heliograph.core.proof`."""

    entries: dict[str, str | None] = {}
    stubs: dict[str, str | None] = {}


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    version: Signed
    ancestry: tuple[str, ...]


class StateFrame(ServerFrame, frozen=True, kw_only=True):
    """What snapshot, delta and advance share. ``part``/``parts``: a large frame comes in pieces that apply atomically after the last;
    only the last carries ``proof``. ``answer`` (unsigned): "now" when an author waits for receipts."""

    subscription: int
    head: Signed
    version: Signed
    ancestry: tuple[str, ...] | None = None
    recovery: Recovery | None = None
    changes: tuple[Changed, ...] = ()
    proof: ProofText | None = None
    part: int = 1
    parts: int = 1
    answer: Answer = "soon"
    trace: str | None = None


class SnapshotFrame(StateFrame, frozen=True, kw_only=True, tag="snapshot"):
    pass


class DeltaFrame(StateFrame, frozen=True, kw_only=True, tag="delta"):
    from_: Cursor = msgspec.field(name="from")


class AdvanceFrame(StateFrame, frozen=True, kw_only=True, tag="advance"):
    """A delta that changes nothing in the view."""

    from_: Cursor = msgspec.field(name="from")


class Current(ServerFrame, frozen=True, kw_only=True, tag="current"):
    """You have what the head says. Carries a fresh head."""

    subscription: int
    head: Signed


class HeadFrame(ServerFrame, frozen=True, kw_only=True, tag="head"):
    """A renewed head of the same version. Never makes a receipt."""

    subscription: int
    head: Signed


class ReceiptAck(ServerFrame, frozen=True, kw_only=True, tag="receipt_ack"):
    """Every receipt of this connection up to ``seq`` is durable."""

    seq: int


class Ping(ServerFrame, frozen=True, kw_only=True, tag="ping"):
    sent_at_us: int


class HeartbeatAck(ServerFrame, frozen=True, kw_only=True, tag="heartbeat_ack"):
    """Echoes the client's ``sent_at_us`` with the server's clock, so the offset is kept fresh."""

    echo_us: int
    received_at_us: int


class Drain(ServerFrame, frozen=True, kw_only=True, tag="drain"):
    """Reconnect at a random moment within ``within_s``; keep receiving until then."""

    within_s: float


class ErrorFrame(ServerFrame, frozen=True, kw_only=True, tag="error"):
    """``code`` as in `heliograph.core.errors`. ``subscription`` when only that one is concerned; otherwise the connection closes."""

    code: str
    detail: str
    subscription: int | None = None


FromServer = (
    Welcome
    | SnapshotFrame
    | DeltaFrame
    | AdvanceFrame
    | Current
    | HeadFrame
    | ReceiptAck
    | Ping
    | HeartbeatAck
    | Drain
    | ErrorFrame
)


# --- reasons of a close --------------------------------------------------------------------------------------------------------


def closing(reason: str, retry_after_s: float) -> str:
    """The reason of a close that asks the client to stay away for so long: ``overloaded; retry-after=5``."""
    return f"{reason}; retry-after={max(1, ceil(retry_after_s))}"


def retry_after(reason: str) -> float | None:
    """Seconds that a close asked the client to stay away; None when it did not say."""
    told = _RETRY_AFTER.search(reason)
    return float(told[1]) if told else None
