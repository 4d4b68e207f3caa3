"""The text form of tokens: ``hel_<kind>_<30 base62 secret>[<43 base62 anchor>]<6 base62 checksum>``.

The checksum (CRC32 of all before) lets scanners and servers throw out typos and fakes without a look-up. A client or edge token carries the trust
anchor: the fingerprint of the signing root, so that its holder never has to learn it from whom it verifies. Only the SHA-256 of the whole is stored.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from heliograph.core.digest import Digest, spell, unspell
from heliograph.core.errors import Unauthenticated

TokenKind = Literal["admin", "author", "client", "service", "edge"]
KINDS: tuple[TokenKind, ...] = get_args(TokenKind)
ANCHORED: frozenset[TokenKind] = frozenset({"client", "edge"})
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SECRET_LENGTH = 30
ANCHOR_LENGTH = 43
CHECKSUM_LENGTH = 6
REMEMBERED = 1024
"""Tokens whose parts are: thousands of instances come with the same few, and reading one anew was a seventh of what a connect cost."""

_TOKEN = re.compile(
    rf"hel_({'|'.join(KINDS)})_([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{ANCHOR_LENGTH}}})?([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
PATTERN = re.compile(r"hel_(?:admin|author|client|service|edge)_[0-9A-Za-z]{8,}")
"""Anything that looks like a token, for redaction."""
_NOT_A_TOKEN = "not a token, or one that was cut off or mistyped"  # noqa: S105  # a sentence


@dataclass(frozen=True, slots=True)
class TokenParts:
    kind: TokenKind
    anchor: Digest | None


class Token:
    """A token's text with a masked repr. `text` is the only way to the secret."""

    __slots__ = ("_text", "parts")

    def __init__(self, text: str) -> None:
        self.parts = parse(text)
        self._text = text

    @property
    def text(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<Token hel_{self.parts.kind}_…>"


def mint(kind: TokenKind, secret: str, anchor: Digest | None = None) -> str:
    """Token text from 30 characters of `ALPHABET` that the caller drew at random (178 bits)."""
    if len(secret) != SECRET_LENGTH or not set(secret) <= set(ALPHABET):
        raise ValueError("a secret has 30 base62 characters")
    if (kind in ANCHORED) != (anchor is not None):
        raise ValueError("client and edge tokens carry an anchor, others do not")
    head = f"hel_{kind}_{secret}" + (_base62(int.from_bytes(unspell(anchor), "big"), ANCHOR_LENGTH) if anchor else "")
    return head + _checksum(head)


@lru_cache(maxsize=REMEMBERED)
def parse(text: str) -> TokenParts:
    """Kind and anchor. Raises Unauthenticated for a wrong shape or checksum; says nothing about whether the token is known."""
    found = _TOKEN.fullmatch(text)
    if not found or _checksum(text[:-CHECKSUM_LENGTH]) != found[4]:
        raise Unauthenticated(_NOT_A_TOKEN)
    kind: TokenKind = found[1]  # type: ignore[assignment]  # the pattern lists the kinds
    if (kind in ANCHORED) != (found[3] is not None):
        raise Unauthenticated(_NOT_A_TOKEN)
    return TokenParts(kind, _anchor(found[3]) if found[3] else None)


def sha256(text: str) -> bytes:
    """What is stored and looked up."""
    return hashlib.sha256(text.encode()).digest()


def _anchor(text: str) -> Digest:
    number = 0
    for character in text:
        number = number * 62 + ALPHABET.index(character)
    if number >= 1 << 256:
        raise Unauthenticated(_NOT_A_TOKEN)
    return spell(number.to_bytes(32, "big"))


def _checksum(head: str) -> str:
    return _base62(zlib.crc32(head.encode()), CHECKSUM_LENGTH)


def _base62(number: int, width: int) -> str:
    out = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        out = ALPHABET[digit] + out
    return out
