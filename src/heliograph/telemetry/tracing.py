"""W3C trace context (https://www.w3.org/TR/trace-context/), carried from an author's request to each receipt.

Only the ``traceparent`` is carried; spans are not recorded here.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Self

_SHAPE: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_MAX_LENGTH: Final = 256  # a later version of the standard may append fields; no peer needs more


@dataclass(frozen=True, slots=True)
class Trace:
    """One span's place in a trace. ``str`` is the ``traceparent`` to hand on."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @classmethod
    def new(cls) -> Self:
        return cls(_random_id(16), _random_id(8))

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """The context in a ``traceparent``; None when there is none or it breaks the standard."""
        if header is None or len(header) > _MAX_LENGTH or not (found := _SHAPE.fullmatch(header)):
            return None
        version, trace_id, span_id, flags, rest = found.groups()
        if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1))

    def child(self) -> Trace:
        """A new span of the same trace."""
        return Trace(self.trace_id, _random_id(8), self.sampled)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


current: ContextVar[Trace | None] = ContextVar("heliograph_trace", default=None)
"""The trace of the request or event being handled in this task."""


def continued(header: str | None) -> Trace:
    """A child of the caller's trace, or the start of a new one."""
    parent = Trace.parse(header)
    return parent.child() if parent else Trace.new()


def _random_id(size: int) -> str:
    while not any(raw := secrets.token_bytes(size)):
        pass  # all zeros is forbidden by the standard
    return raw.hex()
