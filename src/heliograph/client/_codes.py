"""WebSocket close codes of ``heliograph.v1`` and what a client does about each.

The same table as ``contracts/close-codes.json``, kept here so that the SDK needs no file of the server; a test compares the two.
4000 to 4099: come back, with backoff. 4100 to 4199: stop, trying again cannot help. Anything else is a lost connection: come back.
"""

from __future__ import annotations

from typing import Final

from heliograph.core import errors
from heliograph.core.frames import retry_after

RECONNECT: Final = {
    4000: "drain",
    4001: "slow-consumer",
    4002: "overloaded",
    4003: "not-ready",
    4004: "unavailable",
}
STOP: Final = {
    4100: "unauthenticated",
    4101: "forbidden",
    4102: "malformed-frame",
    4103: "superseded-incarnation",
    4104: "unknown-subscription",
    4105: "token-revoked",
    4106: "protocol",
}

_ADVICE: Final[dict[int, tuple[type[errors.HeliographError], str]]] = {
    4100: (
        errors.Unauthenticated,
        "the server does not know this token; check that it belongs to this server and was not cut off",
    ),
    4101: (errors.Forbidden, "the token does not permit this namespace and environment; ask for one whose scope covers them"),
    4102: (errors.MalformedFrame, "the server could not read a frame of this SDK; update the older of the two"),
    4103: (
        errors.Conflict,
        "another process runs as this instance, or another token owns its id, probably from a copied cache folder; give it its own cache_dir",
    ),
    4104: (errors.InvalidRequest, "the server does not know a subscription, or there are too many; check names and views"),
    4105: (errors.Unauthenticated, "the token was revoked; start the client with a new one"),
    4106: (errors.MalformedFrame, "the server expected something else of this SDK; update the older of the two"),
}


def is_terminal(code: int) -> bool:
    """Whether a connection closed with this code must not be opened again."""
    return 4100 <= code <= 4199


def error_for(code: int, reason: str = "") -> errors.HeliographError:
    """What a closed connection means, as a sentence with advice. ``reason`` is the server's own words (never a secret)."""
    if not is_terminal(code):
        named = RECONNECT.get(code, "closed")
        told = f"the server closed the connection ({code} {named}){': ' + reason if reason else ''}"
        return errors.Unavailable(told, retry_after=retry_after(reason))
    kind, advice = _ADVICE.get(code, (errors.Denied, "the server will not serve this client"))
    return kind(f"{advice} (close code {code}{': ' + reason if reason else ''})")


def error_of(code: str, detail: str) -> errors.HeliographError:
    """The error that an ``error`` frame or a problem document names by its stable code."""
    if code == errors.StaleBase.code:  # the one leaf that needs data; a client never commits
        return errors.Conflict(detail)
    return errors.by_code(code)(detail)
