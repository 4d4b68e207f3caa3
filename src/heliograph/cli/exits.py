"""What the command's exit status means. Scripts may rely on every one of these."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from heliograph.core import errors


class Exit(IntEnum):
    OK = 0  # done
    FAILED = 1  # something unexpected
    USAGE = 2  # the command line, or a setting, is not understood
    INVALID = 3  # a document, schema, name or request was refused as it is
    NOT_FOUND = 4  # no such namespace, environment, config, version or token
    CONFLICT = 5  # somebody else was faster, or it exists already
    DENIED = 6  # no token, or one that does not permit this
    UNAVAILABLE = 7  # not now; trying again later is right
    TIMEOUT = 8  # published, but the wanted share has not applied it in time
    UNVERIFIED = 9  # a signature, digest, proof or history does not hold
    REJECTED = 10  # published, but so many instances refused it that the wanted share cannot be reached
    INTERRUPTED = 130  # Ctrl-C, as shells say it


_OF: Final[dict[type[errors.HeliographError], Exit]] = {
    errors.HeliographError: Exit.FAILED,
    errors.Invalid: Exit.INVALID,
    errors.NotFound: Exit.NOT_FOUND,
    errors.Conflict: Exit.CONFLICT,
    errors.Denied: Exit.DENIED,
    errors.Unavailable: Exit.UNAVAILABLE,
    errors.TimedOut: Exit.TIMEOUT,
    errors.Refused: Exit.UNVERIFIED,
}


def exit_of(error: errors.HeliographError) -> Exit:
    """By its nearest ancestor."""
    return next(_OF[each] for each in type(error).__mro__ if each in _OF)
