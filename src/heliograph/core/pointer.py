"""JSON Pointers (RFC 6901): how a place in a document is named everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable

from heliograph.core.errors import InvalidRequest

_BAD_ESCAPE = re.compile(r"~(?![01])")


def pointer_tokens(pointer: str) -> tuple[str, ...]:
    """The steps of a pointer, unescaped. Raises InvalidRequest."""
    if not pointer:
        return ()
    if not pointer.startswith("/") or _BAD_ESCAPE.search(pointer):
        raise InvalidRequest(
            f"{pointer!r} is not a JSON Pointer; write '' for the whole document or '/member/0' for a place in it"
        )
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/"))


def pointer_text(steps: Iterable[str | int]) -> str:
    """Inverse of `pointer_tokens`."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
