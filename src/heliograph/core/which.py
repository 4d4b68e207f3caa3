"""How a version is named wherever one is asked for: by number, by id, by a label, or by the time at which it was the head.

A label is written ``label:release-7``. It has the grammar of a name, which a number has too: without its prefix ``42`` could be either, and what
it meant could change when somebody labels a version. No number, id or time contains ``label:``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from heliograph.core import names
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import InvalidRequest
from heliograph.core.times import to_text

MAX_NUMBER: Final = 2**53 - 1
MAX_LENGTH: Final = 80
PREFIX: Final = "label:"
TIME: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
_TIME: Final = re.compile(TIME)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Label:
    """What the label names now."""

    name: str


@dataclass(frozen=True, slots=True)
class AsOf:
    """What was the head then. Microseconds since 1970, cut to milliseconds when it is compared."""

    us: int


Which = int | bytes | Label | AsOf


def which(text: str) -> Which:
    """Raises InvalidRequest, InvalidName for a label that cannot be one."""
    if text.isascii() and text.isdigit() and len(text) <= 16 and 1 <= int(text) <= MAX_NUMBER:
        return int(text)
    if text.startswith(PREFIX):
        return Label(names.label(text.removeprefix(PREFIX)))
    if _TIME.fullmatch(text):
        return AsOf(instant(text))
    try:
        return unspell(text)
    except ValueError:
        raise InvalidRequest(
            "a version is named by its number, its id (sha256:…), a label (label:release-7) or a time with its zone (2026-11-01T12:00:00Z)"
        ) from None


def instant(text: str) -> int:
    """A time of RFC 3339 as microseconds since 1970. Raises InvalidRequest, also without a zone."""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{text[:40]!r} is not a time with its zone; write it as in 2026-11-01T12:00:00Z") from None


def said(meant: Which) -> str:
    """As a person would say it."""
    match meant:
        case int():
            return f"version {meant}"
        case bytes():
            return f"version {spell(meant)}"
        case Label(name):
            return f"label {name}"
        case AsOf(us):
            return f"version of {to_text(us)}: it began later"
