"""The trust root: which keys may sign what. Rules of TUF, for a handful of keys.

The anchor is the fingerprint of one root key. The first root statement must be signed by the anchored key (and a threshold of its own root role);
each later one by a threshold of the root role before it and of its own.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from heliograph.core import dsse
from heliograph.core.digest import Digest, digest
from heliograph.core.errors import BadSignature, UntrustedRoot
from heliograph.core.records import (
    HEAD_TYPE,
    PURGE_TYPE,
    ROOT_TYPE,
    VERSION_TYPE,
    Head,
    Instant,
    Positive,
    Purge,
    Signed,
    Version,
)
from heliograph.core.times import to_us


class Role(msgspec.Struct, frozen=True):
    """Who may sign a kind of statement, and how many of them must."""

    keyids: tuple[str, ...]
    threshold: Annotated[int, msgspec.Meta(ge=1)]


class Roles(msgspec.Struct, frozen=True):
    root: Role
    commit: Role
    head: Role


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """``keys``: key id -> base64 of the raw Ed25519 public key."""

    number: Positive
    keys: dict[str, str]
    roles: Roles
    expires_at: Instant


def anchor_of(public: bytes) -> Digest:
    return digest("key", public)


@dataclass(frozen=True, slots=True)
class Trust:
    """A verified root. ``signed`` is kept so that it can be stored and verified again."""

    root: Root
    signed: Signed
    keys: dict[str, bytes]

    @classmethod
    def from_root(cls, signed: Signed, anchor: str) -> Trust:
        """Raises UntrustedRoot unless the anchored key is in the root role and signed it, with as many others as the role asks."""
        trust = _read(signed)
        roots = trust.signers(trust.root.roles.root)
        anchored = {keyid: public for keyid, public in roots.items() if anchor_of(public) == anchor}
        if not anchored:
            raise UntrustedRoot("the trust root does not name the key that the anchor in the token stands for")
        _require(signed, anchored, 1)
        _require(signed, roots, trust.root.roles.root.threshold)
        return trust

    def next(self, signed: Signed) -> Trust:
        """The root after this one. Raises UntrustedRoot unless it is signed by the root roles of both and its number is one more."""
        trust = _read(signed)
        if trust.root.number != self.root.number + 1:
            raise UntrustedRoot(f"expected root {self.root.number + 1}, was given {trust.root.number}")
        for each in (self, trust):
            _require(signed, each.signers(each.root.roles.root), each.root.roles.root.threshold)
        return trust

    def signers(self, role: Role) -> dict[str, bytes]:
        """Key id -> raw public key."""
        return {keyid: self.keys[keyid] for keyid in role.keyids if keyid in self.keys}

    def verify_version(self, signed: Signed) -> Version:
        """Raises BadSignature."""
        role = self.root.roles.commit
        return _decode(dsse.verify(signed, VERSION_TYPE, self.signers(role), role.threshold), Version)

    def verify_purge(self, signed: Signed) -> Purge:
        """Raises BadSignature."""
        role = self.root.roles.commit
        return _decode(dsse.verify(signed, PURGE_TYPE, self.signers(role), role.threshold), Purge)

    def verify_head(self, signed: Signed) -> Head:
        """Raises BadSignature, also for a head that is signed and makes no sense."""
        role = self.root.roles.head
        head = _decode(dsse.verify(signed, HEAD_TYPE, self.signers(role), role.threshold), Head)
        if head.safe > head.number or not (_is_time(head.issued_at) and _is_time(head.expires_at)):
            raise BadSignature("a signed head that contradicts itself")
        return head


def _read(signed: Signed) -> Trust:
    try:
        root = msgspec.json.decode(signed.payload, type=Root)
        keys = {keyid: base64.b64decode(text, validate=True) for keyid, text in root.keys.items()}
    except (msgspec.DecodeError, ValueError):
        raise UntrustedRoot("not a trust root") from None
    if any(dsse.key_id(public) != keyid or len(public) != 32 for keyid, public in keys.items()):
        raise UntrustedRoot("a key of the trust root stands under another key's id")
    return Trust(root, signed, keys)


def _require(signed: Signed, keys: dict[str, bytes], threshold: int) -> None:
    try:
        dsse.verify(signed, ROOT_TYPE, keys, threshold)
    except BadSignature as error:
        raise UntrustedRoot(f"the trust root is not signed as it must be: {error.detail}") from None


def _is_time(text: str) -> bool:
    try:
        to_us(text)
    except ValueError:
        return False
    return True


_Record = TypeVar("_Record", Head, Version, Purge)


def _decode(payload: bytes, kind: type[_Record]) -> _Record:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError:
        raise BadSignature(f"a signed statement that is not a {kind.__name__.lower()}") from None
