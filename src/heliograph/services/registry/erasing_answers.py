"""What the REST surface says of purges, as types; see `answers`."""

from __future__ import annotations

from datetime import datetime

import msgspec

from heliograph.services.registry.answers import Envelope, Left


class Remains(msgspec.Struct, frozen=True):
    """A place where a purged text can still be. ``until``: when it is gone from there by itself; null: nobody here knows, see ``what``."""

    where: str
    until: datetime | None
    what: str


class PurgeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``envelope``: the signed statement that a verifier needs. ``already``: purged before; when there is nothing else, nothing else is told."""

    namespace: str
    digests: list[str]
    by: str | Left = msgspec.UNSET
    at: datetime | Left = msgspec.UNSET
    reason: str | Left = msgspec.UNSET
    order: str | Left = msgspec.UNSET
    envelope: Envelope | Left = msgspec.UNSET
    already: list[str] | Left = msgspec.UNSET
    remains: list[Remains] | Left = msgspec.UNSET


class PurgeList(msgspec.Struct, frozen=True):
    items: list[PurgeAnswer]
    next: str | None
