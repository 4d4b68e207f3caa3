"""Times as text: RFC 3339 in UTC with milliseconds, always 24 characters, so that they compare as text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


def to_text(us: int) -> str:
    """Microseconds since the Unix epoch as ``YYYY-MM-DDTHH:MM:SS.mmmZ``; what is below a millisecond is cut off."""
    at = _EPOCH + timedelta(milliseconds=us // 1000)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def to_us(text: str) -> int:
    """Strict inverse of `to_text`. Raises ValueError for any other spelling."""
    if not _TEXT.fullmatch(text):
        raise ValueError("not a time: expected YYYY-MM-DDTHH:MM:SS.mmmZ")
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
