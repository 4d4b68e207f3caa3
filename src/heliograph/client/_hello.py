"""The first frame of a connection, and how much of it is left for schemas: a server closes on a frame of more than `MAX_CLIENT_FRAME` bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from heliograph.core import frames
from heliograph.core.errors import InvalidRequest
from heliograph.core.records import Cursor

_MOST: Final = 2**53 - 1
_LONGEST: Final = Cursor(_MOST, _MOST, "sha256:" + 64 * "0")
_INSTANCE: Final = 36 * "0"


class Followed(Protocol):
    """What is asked for, whatever is held of it."""

    @property
    def namespace(self) -> str: ...

    @property
    def environment(self) -> str: ...

    @property
    def view(self) -> Sequence[str]: ...


def require_room(fingerprint: frames.Fingerprint, followed: Iterable[Followed]) -> None:
    """Raises InvalidRequest when servers would not take the hello."""
    if (over := -room_for_schemas(fingerprint, followed)) > 0:
        raise InvalidRequest(
            f"the subscriptions, their views, the app and the labels are {over:,} bytes more than one connection can say "
            f"({frames.MAX_CLIENT_FRAME:,}); use folders, such as 'checkout/', or several clients"
        )


def room_for_schemas(fingerprint: frames.Fingerprint, followed: Iterable[Followed]) -> int:
    """Bytes, as `declared_bytes` counts them; less than 0 when there is no room for the rest. The same at every hello of a client."""
    subscriptions = tuple(
        frames.Subscription(
            id=number, namespace=one.namespace, environment=one.environment, view=tuple(one.view), have=_LONGEST, declares={}
        )
        for number, one in enumerate(followed, start=1)
    )
    hello = frames.Hello(
        instance=_INSTANCE, incarnation=_MOST, fingerprint=fingerprint, subscriptions=subscriptions, sent_at_us=_MOST
    )
    return frames.MAX_CLIENT_FRAME - len(msgspec.json.encode(hello))


def declared_bytes(name: str, schema: str) -> int:
    """What one schema adds to a frame: a text of JSON within JSON, whose every quote is escaped."""
    return len(msgspec.json.encode({name: schema}))
