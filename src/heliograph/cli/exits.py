"""What the command's exit status means. Scripts may rely on every one of these."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    OK = 0
    FAILED = 1  # something unexpected
    USAGE = 2  # the command line, or a setting, is not understood
    INVALID = 3  # a document, schema, name or request was refused as it is
    NOT_FOUND = 4
    CONFLICT = 5  # somebody else was faster, or it exists already
    DENIED = 6  # no token, or one that does not permit this
    UNAVAILABLE = 7  # not now; trying again later is right
    TIMEOUT = 8  # published, but the wanted share has not applied in time
    UNVERIFIED = 9  # a signature, digest, proof or history does not hold


OF_CODE: Final[dict[str, Exit]] = {
    "not-found": Exit.NOT_FOUND,
    "stale-base": Exit.CONFLICT,
    "conflict": Exit.CONFLICT,
    "already-exists": Exit.CONFLICT,
    "idempotency-key-reused": Exit.CONFLICT,
    "contended": Exit.CONFLICT,
    "denied": Exit.DENIED,
    "unauthenticated": Exit.DENIED,
    "forbidden": Exit.DENIED,
    "unavailable": Exit.UNAVAILABLE,
    "not-ready": Exit.UNAVAILABLE,
    "overloaded": Exit.UNAVAILABLE,
    "timed-out": Exit.UNAVAILABLE,
    "internal": Exit.FAILED,
    "corrupt": Exit.FAILED,
    "refused": Exit.UNVERIFIED,
    "bad-signature": Exit.UNVERIFIED,
    "bad-digest": Exit.UNVERIFIED,
    "bad-proof": Exit.UNVERIFIED,
    "rolled-back": Exit.UNVERIFIED,
    "forked": Exit.UNVERIFIED,
    "untrusted-root": Exit.UNVERIFIED,
}


def exit_for(code: str) -> Exit:
    """By the stable code of an error or problem document; everything else is about the input."""
    return OF_CODE.get(code, Exit.INVALID)
