"""Digests: SHA-256 over a domain prefix and exact bytes.

    digest(kind, bytes) = SHA-256( ASCII "heliograph/v1/" || kind || LF || bytes )

``printf 'heliograph/v1/document\\n' | cat - file | sha256sum`` says the same. In JSON a digest is spelled ``sha256:<64 lower-case hex>``
(type `Digest`); inside tries and histories it is 32 raw bytes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal, NewType

Digest = NewType("Digest", str)
Kind = Literal["document", "schema", "message", "leaf", "statement", "node", "version", "key", "view"]

_SPELLED = re.compile(r"sha256:[0-9a-f]{64}")


def raw_digest(kind: Kind, data: bytes) -> bytes:
    """The 32 bytes themselves."""
    return hashlib.sha256(b"heliograph/v1/" + kind.encode() + b"\n" + data).digest()


def digest(kind: Kind, data: bytes) -> Digest:
    return spell(raw_digest(kind, data))


def spell(raw: bytes) -> Digest:
    return Digest("sha256:" + raw.hex())


def unspell(text: str) -> bytes:
    """Strict inverse of `spell`. Raises ValueError for anything else (capitals, other lengths, other algorithms)."""
    if not _SPELLED.fullmatch(text):
        raise ValueError("not a digest: expected sha256: and 64 lower-case hex digits")
    return bytes.fromhex(text[7:])
