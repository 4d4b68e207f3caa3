"""Messages put together from frames as RFC 6455 wants it, where the library hands frames on as they come."""

from __future__ import annotations

import codecs
from typing import Final

from heliograph.core.frames import MAX_CLIENT_FRAME
from heliograph.runtime import problems

MAX_FRAGMENTS: Final = 256
"""Of one message: more than any library sends for 64 KiB, and few enough that pieces of nothing are no work."""
PROTOCOL_ERROR: Final = 1002
INVALID_TEXT: Final = 1007
_decoder: Final = codecs.getincrementaldecoder("utf-8")


class Violation(Exception):
    """The connection ends, with this close code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Fragments:
    """One message that comes in pieces. Fails as early as it can: bad text in the first piece is not waited for to end."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0
        self._text = _decoder()

    def add(self, data: bytes, *, last: bool) -> bytes | None:
        """The whole message once the last piece is there. Raises Violation."""
        self._count += 1
        if len(self._data) + len(data) > MAX_CLIENT_FRAME:
            raise Violation(problems.LIMITS, f"a message has at most {MAX_CLIENT_FRAME} bytes")
        if self._count > MAX_FRAGMENTS:
            raise Violation(problems.LIMITS, f"a message has at most {MAX_FRAGMENTS} fragments")
        self._data += data
        try:
            self._text.decode(data, last)
        except UnicodeDecodeError:
            raise Violation(INVALID_TEXT, "a text message is UTF-8") from None
        return bytes(self._data) if last else None


def text_frame(data: bytes) -> bytes:
    """A whole message from a server as it is on the wire (RFC 6455 section 5.2)."""
    size = len(data)
    if size < 126:
        return bytes((0x81, size)) + data
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2, "big") + data
    return b"\x81\x7f" + size.to_bytes(8, "big") + data


def whole(data: bytes) -> bytes:
    """A message of one frame. Raises Violation."""
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            raise Violation(INVALID_TEXT, "a text message is UTF-8") from None
    return data


def may_close_with(code: int) -> bool:
    """Whether a peer may send this close code (RFC 6455 section 7.4, and 1012 to 1014 of the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
