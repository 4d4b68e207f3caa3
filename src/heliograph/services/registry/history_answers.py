"""What the REST surface says of labels and of the past of one config, as types; see `answers`."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from heliograph.core.records import Source, VersionKind

ConfigChangeKind = Literal["added", "changed", "removed"]


class LabelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``number``, ``version``: what it names. Wherever a version is asked for it may be given as ``label:<name>``."""

    name: str
    number: int
    version: str
    set_by: str
    set_at: datetime


class LabelList(msgspec.Struct, frozen=True):
    items: list[LabelAnswer]
    next: str | None


class ConfigChange(msgspec.Struct, frozen=True, kw_only=True):
    """One version that changed a config. ``document``, ``schema``: digests of what it has since; null where it has none.

    ``purged``: the document's text is gone for good. ``source``: the version it was rolled back to, or brought from.
    """

    number: int
    version: str
    epoch: int
    kind: VersionKind
    author: str
    at: str
    message: str | None
    source: Source | None
    change: ConfigChangeKind
    document: str | None
    schema: str | None
    schema_changed: bool
    purged: bool


class ConfigHistory(msgspec.Struct, frozen=True):
    items: list[ConfigChange]
    next: str | None


class BlameVersion(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    version: str
    author: str
    at: str
    message: str | None


class BlameLine(msgspec.Struct, frozen=True):
    """``number``: the version that last changed what is at ``pointer``. ``certain`` False: or an earlier one, as the text before was purged."""

    pointer: str
    number: int
    certain: bool = True


class Blame(msgspec.Struct, frozen=True, kw_only=True):
    """Who last changed each value of a document, as of version ``number``.

    ``open``: values whose last change lies further back than this answer looked; ``next`` goes on from there. A value that a later answer tells
    again keeps what the earlier one said.
    """

    number: int
    version: str
    versions: list[BlameVersion]
    items: list[BlameLine]
    open: int
    next: str | None
