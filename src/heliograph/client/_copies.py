"""The disk copy of each subscription's state, named by what it holds.

A copy is the replica's own stored form after one line about it; reading it verifies it again.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from heliograph.client._disk import kept, read_copy
from heliograph.client._live import Live
from heliograph.client._session import Channel
from heliograph.core.errors import HeliographError
from heliograph.core.replica import Replica
from heliograph.core.trust import Trust

_log = logging.getLogger("heliograph")
_NAME_LENGTH: Final = 24


class About(msgspec.Struct, frozen=True):
    """``applied_at_us``: when this application began to run on it, our wall clock, for the receipt that may have been lost."""

    applied_at_us: int


def name_of(live: Live) -> str:
    what = msgspec.json.encode([live.namespace, live.environment, live.view])
    return "state-" + hashlib.sha256(what).hexdigest()[:_NAME_LENGTH]


def encode(channel: Channel) -> bytes:
    return msgspec.json.encode(About(channel.applied_at_us)) + b"\n" + channel.replica.stored()


class Copy(NamedTuple):
    """``damaged``: something that could not be used was passed over."""

    replica: Replica | None
    applied_at_us: int
    damaged: bool


def load(folder: Path, live: Live, trust: Trust) -> Copy:
    """Blocks."""
    damaged = False
    for path in kept(folder, name_of(live)):
        try:
            body = read_copy(path)
            if body is not None:
                about, _, stored = body.partition(b"\n")
                applied_at_us = msgspec.json.decode(about, type=About).applied_at_us
                return Copy(Replica.load(stored, trust, live.namespace, live.environment, live.view), applied_at_us, damaged)
        except (OSError, HeliographError, msgspec.DecodeError, ValueError) as error:
            damaged = True
            _log.warning("the disk copy %s is not used: %s", path, error)
    return Copy(None, 0, damaged)
