"""The trust root: which keys may sign what. Rules of TUF, for a handful of keys.

The anchor is the fingerprint of one root key. The first root statement must be signed by the anchored key (and a threshold of its own root role);
each later one by a threshold of the root role before it and of its own.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from heliograph.core import dsse
from heliograph.core.digest import Digest, digest
from heliograph.core.errors import BadSignature, UntrustedRoot
from heliograph.core.records import HEAD_TYPE, ROOT_TYPE, VERSION_TYPE, Head, Signed, Version


class Role(msgspec.Struct, frozen=True):
    keyids: tuple[str, ...]
    threshold: int


class Roles(msgspec.Struct, frozen=True):
    root: Role
    commit: Role
    head: Role


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """``keys``: key id -> base64 of the raw Ed25519 public key."""

    number: int
    keys: dict[str, str]
    roles: Roles
    expires_at: str


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
        trust = cls._read(signed)
        anchored = {
            keyid: public for keyid, public in trust._role(trust.root.roles.root).items() if anchor_of(public) == anchor
        }
        if not anchored:
            raise UntrustedRoot("the trust root does not name the key that the anchor in the token stands for")
        trust._signed_by(signed, anchored, 1)
        trust._signed_by(signed, trust._role(trust.root.roles.root), trust.root.roles.root.threshold)
        return trust

    def next(self, signed: Signed) -> Trust:
        """The root after this one. Raises UntrustedRoot unless it is signed by the root roles of both and its number is one more."""
        trust = self._read(signed)
        if trust.root.number != self.root.number + 1:
            raise UntrustedRoot(f"expected root {self.root.number + 1}, was given {trust.root.number}")
        for each in (self, trust):
            each._signed_by(signed, each._role(each.root.roles.root), each.root.roles.root.threshold)
        return trust

    def verify_version(self, signed: Signed) -> Version:
        """Raises BadSignature."""
        return _decode(
            dsse.verify(signed, VERSION_TYPE, self._role(self.root.roles.commit), self.root.roles.commit.threshold), Version
        )

    def verify_head(self, signed: Signed) -> Head:
        """Raises BadSignature."""
        return _decode(dsse.verify(signed, HEAD_TYPE, self._role(self.root.roles.head), self.root.roles.head.threshold), Head)

    @classmethod
    def _read(cls, signed: Signed) -> Trust:
        try:
            root = msgspec.json.decode(signed.payload, type=Root)
            keys = {keyid: base64.b64decode(text, validate=True) for keyid, text in root.keys.items()}
        except (msgspec.DecodeError, binascii.Error, ValueError):
            raise UntrustedRoot("not a trust root") from None
        if any(dsse.key_id(public) != keyid or len(public) != 32 for keyid, public in keys.items()):
            raise UntrustedRoot("a key of the trust root stands under another key's id")
        return cls(root, signed, keys)

    def _role(self, role: Role) -> dict[str, bytes]:
        return {keyid: self.keys[keyid] for keyid in role.keyids if keyid in self.keys}

    def _signed_by(self, signed: Signed, keys: dict[str, bytes], threshold: int) -> None:
        try:
            dsse.verify(signed, ROOT_TYPE, keys, threshold)
        except BadSignature as error:
            raise UntrustedRoot(f"the trust root is not signed as it must be: {error.detail}") from None


_Record = TypeVar("_Record", Head, Version)


def _decode(payload: bytes, kind: type[_Record]) -> _Record:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError:
        raise BadSignature(f"a signed statement that is not a {kind.__name__.lower()}") from None
