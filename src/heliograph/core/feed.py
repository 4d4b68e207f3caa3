"""What an edge and its parent say to each other, beside the frames that every client knows: one connection for everything below the edge.

An edge is a reader of whole environments. It gets the frames that any client of the view ``""`` gets, the very same bytes, and verifies them by the
same rules. What it needs beyond that is here: to begin and end subscriptions while it is connected, to pass on what its clients say, and to hear
what is no longer to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from heliograph.core.events import FromSync
from heliograph.core.frames import (
    MAX_CLIENT_FRAME,
    ClientFrame,
    FromServer,
    Heartbeat,
    Hello,
    Renew,
    Resync,
    ServerFrame,
)
from heliograph.core.records import Cursor

MAX_FOLLOWED = 10_000
"""Environments that one edge follows at a time."""
MAX_RELAYED_BYTES = 48 * 1024
"""Of events in one `Relay`: the frame has to fit what a client may send."""

MAX_EVENT_BYTES = MAX_CLIENT_FRAME - 256
"""Of one that goes alone, with what is around it."""

# --- edge to parent -------------------------------------------------------------------------------------------------------------


class Follow(ClientFrame, frozen=True, kw_only=True, tag="follow"):
    """Subscribes to all of an environment. ``id`` names it in the frames that follow, and is never used twice on a connection."""

    id: int
    namespace: str
    environment: str
    have: Cursor | None = None


class Unfollow(ClientFrame, frozen=True, kw_only=True, tag="unfollow"):
    id: int


class Relay(ClientFrame, frozen=True, kw_only=True, tag="relay"):
    """Events of clients below the edge, as it would have appended them to a log. ``seq`` grows per connection; `ReceiptAck` says that all up to
    it are durable."""

    seq: int
    events: tuple[FromSync, ...]


FromEdge = Hello | Heartbeat | Renew | Resync | Follow | Unfollow | Relay
"""Its hello has no subscriptions, and names the edge's node as the instance."""

# --- parent to edge -------------------------------------------------------------------------------------------------------------


class Revoked(ServerFrame, frozen=True, kw_only=True, tag="revoked"):
    """Tokens that are no longer valid, by id."""

    tokens: tuple[str, ...]


class Purged(ServerFrame, frozen=True, kw_only=True, tag="purged"):
    """Texts of this namespace were purged: nothing but its heads' content may be kept."""

    namespace: str


ToEdge = FromServer | Revoked | Purged

# --- questions ------------------------------------------------------------------------------------------------------------------
#
# Over HTTP, with the edge's token, at the address of the parent's bundles:
#
#   POST /v1/internal/introspect                       {"sha256": …}: the principal of that token
#   GET  /v1/internal/history/NAMESPACE/ENVIRONMENT    leaves of versions after + 1 to upto, 32 bytes each
#   GET  /v1/internal/recoveries/NAMESPACE/ENVIRONMENT signed recover versions, [{"payload": …, "signatures": […]}]; 404: an older parent

LEAF_BYTES = 32


def join_leaves(leaves: Iterable[bytes]) -> bytes:
    return b"".join(leaves)


def split_leaves(body: bytes) -> list[bytes]:
    """Leaves of a history, as `heliograph.core.history.leaf` makes them. Raises ValueError for a body that is cut off."""
    if len(body) % LEAF_BYTES:
        raise ValueError("a leaf has 32 bytes")
    return [body[at : at + LEAF_BYTES] for at in range(0, len(body), LEAF_BYTES)]
