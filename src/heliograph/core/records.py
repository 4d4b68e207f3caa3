"""Version records, signed heads, leaves, cursors: what is hashed and signed, with its exact text.

A record is kept and shipped as the canonical text (RFC 8785) that was hashed; nobody encodes it twice. Unknown members are kept in the
text and ignored by readers. What is read is checked for its form: digests, numbers and times that could not be written are refused.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, NewType, Self

import msgspec

from heliograph.core.canonical import canonical
from heliograph.core.digest import Digest, digest

Number = NewType("Number", int)
DigestText = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Instant = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z\Z")]
VersionKind = Literal["create", "publish", "rollback", "promote", "branch", "rekey", "recover"]

VERSION_TYPE = "application/vnd.heliograph.version.v1+json"
HEAD_TYPE = "application/vnd.heliograph.head.v1+json"
ROOT_TYPE = "application/vnd.heliograph.root.v1+json"
PURGE_TYPE = "application/vnd.heliograph.purge.v1+json"
_CURSOR = re.compile(r"([0-9]{1,16})\.([0-9]{1,16})\.(sha256:[0-9a-f]{64})")


class Signature(msgspec.Struct, frozen=True):
    """``keyid``: first 16 hex digits of the key's digest, a hint only. ``sig``: base64 of the Ed25519 signature over DSSE's PAE."""

    keyid: str
    sig: str


class Signed(msgspec.Struct, frozen=True):
    """A DSSE statement with its payload as exact text (in files and over REST the standard envelope has it in base64)."""

    payload: str
    signatures: tuple[Signature, ...]


class Cursor(msgspec.Struct, frozen=True, order=True):
    """Where a reader is. ``number`` alone would not do: two histories may share it; only ``version`` tells a lost tail from the real one."""

    epoch: int
    number: int
    version: str

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}.{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str``. Raises ValueError."""
        found = _CURSOR.fullmatch(text)
        if not found:
            raise ValueError("not a cursor: expected <epoch>.<number>.<version id>")
        return cls(int(found[1]), int(found[2]), found[3])


class Source(msgspec.Struct, frozen=True):
    """Provenance: what was rolled back to, promoted or branched from. Not a second parent."""

    environment: str
    number: Positive
    version: DigestText


class Leaf(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a version says of one config; the trie's entry is the digest of `text`."""

    document: DigestText
    schema: DigestText | None = None
    statement: DigestText | None = None

    def text(self) -> bytes:
        return canonical({k: v for k, v in msgspec.structs.asdict(self).items() if v is not None})

    def digest(self) -> Digest:
        return digest("leaf", self.text())


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable commit to an environment; its id is the digest of `text`. ``history``: RFC 6962 root over all earlier ids."""

    namespace: str
    environment: str
    epoch: Positive
    number: Positive
    parent: DigestText | None
    root: DigestText
    history: DigestText
    kind: str
    author: str
    at: Instant
    message: DigestText | None = None
    source: Source | None = None

    def text(self) -> bytes:
        return canonical(msgspec.to_builtins(self))

    @staticmethod
    def id_of(text: bytes | str) -> Digest:
        return digest("version", text.encode() if isinstance(text, str) else text)

    @classmethod
    def read(cls, text: bytes | str) -> Version:
        return msgspec.json.decode(text, type=cls)


class Purge(msgspec.Struct, frozen=True, kw_only=True):
    """Says that texts of a namespace are gone for good, and on whose ``order``. Only with it may a verifier accept that one is missing."""

    namespace: str
    digests: tuple[DigestText, ...]
    order: str
    at: Instant

    def text(self) -> bytes:
        return canonical(msgspec.to_builtins(self))


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment is at: signed, short-lived. Order of heads: (epoch, number, issued_at)."""

    namespace: str
    environment: str
    epoch: Positive
    number: Positive
    version: DigestText
    root: DigestText
    safe: Count
    issued_at: Instant
    expires_at: Instant
    rollout: dict[str, object] | None = None

    def text(self) -> bytes:
        return canonical(msgspec.to_builtins(self))

    @classmethod
    def read(cls, text: bytes | str) -> Head:
        return msgspec.json.decode(text, type=cls)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.number, self.version)
