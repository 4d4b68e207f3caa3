"""The one table from domain errors to HTTP problem documents (RFC 9457) and to WebSocket close codes."""

from __future__ import annotations

from typing import Any, Final

from heliograph.core import errors as e
from heliograph.core import frames

STATUS: Final[dict[type[e.HeliographError], int]] = {
    e.HeliographError: 500,
    e.Invalid: 400,
    e.InvalidName: 400,
    e.InvalidDocument: 400,
    e.InvalidSchema: 422,
    e.SchemaViolation: 422,
    e.InvalidRequest: 400,
    e.UnsupportedMedia: 415,
    e.InvalidPatch: 400,
    e.MalformedFrame: 400,
    e.TooLarge: 413,
    e.NotFound: 404,
    e.Conflict: 409,
    e.StaleBase: 412,
    e.PatchFailed: 409,
    e.MergeConflict: 409,
    e.StillNamed: 409,
    e.AlreadyExists: 409,
    e.IdempotencyKeyReused: 422,
    e.Contended: 409,
    e.Incompatible: 409,
    e.Denied: 403,
    e.Unauthenticated: 401,
    e.Forbidden: 403,
    e.Refused: 422,
    e.BadSignature: 422,
    e.BadDigest: 422,
    e.BadProof: 422,
    e.RolledBack: 422,
    e.Forked: 422,
    e.UntrustedRoot: 422,
    e.Unavailable: 503,
    e.NotReady: 503,
    e.Overloaded: 503,
    e.Throttled: 429,
    e.TimedOut: 503,
    e.Corrupt: 500,
}

# 4000-4099: connect again, with backoff. 4100-4199: stop; trying the same again cannot succeed.
DRAIN, SLOW_CONSUMER, OVERLOADED, NOT_READY, UNAVAILABLE = 4000, 4001, 4002, 4003, 4004
UNAUTHENTICATED, FORBIDDEN, MALFORMED_FRAME, SUPERSEDED, LIMITS, REVOKED, PROTOCOL = 4100, 4101, 4102, 4103, 4104, 4105, 4106

CLOSE_CODES: Final[dict[int, tuple[str, str]]] = {
    DRAIN: ("drain", "the node is going away; connect again"),
    SLOW_CONSUMER: ("slow-consumer", "the connection could not keep up; connect again"),
    OVERLOADED: ("overloaded", "too many connections at once; connect again later"),
    NOT_READY: ("not-ready", "the node is starting; connect again"),
    UNAVAILABLE: ("unavailable", "something the node depends on is away; connect again"),
    UNAUTHENTICATED: ("unauthenticated", "the token is not valid"),
    FORBIDDEN: ("forbidden", "the token does not permit this"),
    MALFORMED_FRAME: ("malformed-frame", "a frame was not understood"),
    SUPERSEDED: ("superseded-incarnation", "the instance id is in use by a newer incarnation or another token"),
    LIMITS: ("unknown-subscription", "a subscription is not known, or a limit of the protocol was exceeded"),
    REVOKED: ("token-revoked", "the token was revoked"),
    PROTOCOL: ("protocol", "hello was expected"),
}
"""code -> (name, what it tells a person). `contracts/close-codes.json` says the same to other languages."""

CLOSE: Final[dict[type[e.HeliographError], int]] = {
    e.MalformedFrame: MALFORMED_FRAME,
    e.Invalid: MALFORMED_FRAME,
    e.TooLarge: LIMITS,
    e.NotFound: FORBIDDEN,
    e.Unauthenticated: UNAUTHENTICATED,
    e.Denied: FORBIDDEN,
    e.Overloaded: OVERLOADED,
    e.Throttled: OVERLOADED,
    e.NotReady: NOT_READY,
    e.HeliographError: UNAVAILABLE,
}


CONTENT_TYPE: Final = "application/problem+json"


def status_of(error: e.HeliographError) -> int:
    """The nearest ancestor's status; a test keeps every class in the table."""
    return next(STATUS[each] for each in type(error).__mro__ if each in STATUS)


def close_code_of(error: e.HeliographError) -> int:
    """The nearest ancestor's code."""
    return next(CLOSE[each] for each in type(error).__mro__ if each in CLOSE)


def close_reason_of(error: e.HeliographError) -> str:
    """The stable code, and the time to stay away where one is known; `frames.retry_after` reads it."""
    if isinstance(error, e.Unavailable) and error.retry_after is not None:
        return frames.closing(error.code, error.retry_after)
    return error.code


def problem(error: e.HeliographError) -> dict[str, Any]:
    """The problem document. Members beside RFC 9457's: code, faults, head, number."""
    document: dict[str, Any] = {
        "type": f"urn:heliograph:problem:{error.code}",
        "title": error.title,
        "status": status_of(error),
        "detail": error.detail,
        "code": error.code,
    }
    if isinstance(error, e.Invalid) and error.faults:
        document["faults"] = [
            {"pointer": each.pointer, "rule": each.rule, "message": each.message, "schema_pointer": each.schema_pointer}
            for each in error.faults
        ]
    if isinstance(error, e.StaleBase):
        document |= {"head": error.head, "number": error.number}
    return document | getattr(error, "more", {})


def headers(error: e.HeliographError) -> dict[str, str]:
    out = {"Content-Type": CONTENT_TYPE}
    if isinstance(error, e.Unavailable) and error.retry_after is not None:
        out["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, e.UnsupportedMedia) and error.accepted:
        out["Accept-Patch"] = ", ".join(error.accepted)
    if isinstance(error, e.Unauthenticated):
        out["WWW-Authenticate"] = "Bearer"
    return out
