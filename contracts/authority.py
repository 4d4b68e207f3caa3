"""An honest environment made of `heliograph.core` alone: its keys, its whole history, and every frame that can be made of it.

The vectors are written from it, and tests let it lie by changing one thing in a frame. Its keys and times are fixed, so what it signs is always the
same.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from heliograph.core import delta, dsse, frames, history, proof, trie
from heliograph.core.canonical import Json, canonical
from heliograph.core.delta import Content
from heliograph.core.digest import Digest, digest, spell, unspell
from heliograph.core.names import view as view_of
from heliograph.core.records import HEAD_TYPE, ROOT_TYPE, VERSION_TYPE, Cursor, Head, Signed, Source, Version
from heliograph.core.times import to_text
from heliograph.core.trust import Role, Roles, Root, Trust, anchor_of

START_US = 1_785_587_696_000_000  # 2026-08-01T12:34:56.000Z
HEAD_LIFE_US = 600_000_000
FAR = "2036-01-01T00:00:00.000Z"


class Key:
    """An Ed25519 key from a seed of one repeated byte."""

    def __init__(self, seed: int) -> None:
        self.seed = bytes([seed]) * 32
        self._private = Ed25519PrivateKey.from_private_bytes(self.seed)
        self.public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = dsse.key_id(self.public)

    def sign(self, kind: str, payload: bytes) -> Signed:
        return dsse.attach(payload, [(self.id, self._private.sign(dsse.pae(kind, payload)))])


def statement(number: int, signers: Mapping[str, list[Key]], threshold: int = 1, *, expires_at: str = FAR) -> Root:
    """A root statement; ``signers``: role -> its keys. ``threshold`` is the root role's."""
    keys = {key.id: base64.b64encode(key.public).decode() for listed in signers.values() for key in listed}
    roles = {
        role: Role(tuple(key.id for key in listed), threshold if role == "root" else 1) for role, listed in signers.items()
    }
    return Root(number=number, keys=keys, roles=Roles(**roles), expires_at=expires_at)


def sign_root(root: Root, *keys: Key) -> Signed:
    payload = canonical(msgspec.to_builtins(root))
    each = [key.sign(ROOT_TYPE, payload) for key in keys]
    return Signed(payload.decode(), tuple(signature for signed in each for signature in signed.signatures))


@dataclass(frozen=True)
class Commit:
    """One version with everything that belongs to it."""

    version: Version
    signed: Signed
    node: trie.Node
    content: Content

    @property
    def id(self) -> Digest:
        return Version.id_of(self.signed.payload)

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.version.epoch, self.version.number, self.id)


class Authority:
    """``commits`` is the history as it stands; `recover` and `fork` are the two ways in which there comes to be another one."""

    def __init__(self, seed: int = 1, *, namespace: str = "shop", environment: str = "production") -> None:
        self.namespace, self.environment = namespace, environment
        self.root_key, self.commit_key, self.head_key = Key(seed), Key(seed + 1), Key(seed + 2)
        self.commits: list[Commit] = []
        self._commit("create", {})

    @property
    def anchor(self) -> Digest:
        return anchor_of(self.root_key.public)

    @property
    def signed_root(self) -> Signed:
        signers = {"root": [self.root_key], "commit": [self.commit_key], "head": [self.head_key]}
        return sign_root(statement(1, signers), self.root_key)

    @property
    def trust(self) -> Trust:
        return Trust.from_root(self.signed_root, self.anchor)

    # --- history ---

    @property
    def latest(self) -> Commit:
        return self.commits[-1]

    def at(self, number: int) -> Commit:
        return self.commits[number - 1]

    def publish(self, documents: Mapping[str, Json | None], *, schemas: Mapping[str, Json] | None = None) -> Commit:
        """None deletes."""
        changed = {
            name: None if value is None else delta.entry_of(canonical(value), _schema(schemas, name))
            for name, value in documents.items()
        }
        return self._commit("publish", delta.apply(self.latest.content, changed))

    def roll_back(self, number: int) -> Commit:
        to = self.at(number)
        return self._commit("rollback", to.content, source=Source(self.environment, number, to.id))

    def recover(self, number: int, *, epochs: int = 1) -> Commit:
        """Loses every version from ``number`` on; a recover version of that number opens a new epoch."""
        lost, self.commits = self.commits[-1], self.commits[: number - 1]
        return self._commit("recover", self.latest.content, epoch=lost.version.epoch + epochs)

    def fork(self, number: int | None = None) -> Authority:
        """The same keys and the same past up to ``number``, free to go another way."""
        twin = object.__new__(Authority)
        twin.__dict__ = {**self.__dict__, "commits": self.commits[:number]}
        return twin

    def _commit(self, kind: str, content: Content, *, epoch: int | None = None, source: Source | None = None) -> Commit:
        last = self.commits[-1] if self.commits else None
        number = len(self.commits) + 1
        node = trie.update(trie.EMPTY, {name: entry.digest for name, entry in content.items()})
        version = Version(
            namespace=self.namespace,
            environment=self.environment,
            epoch=epoch or (last.version.epoch if last else 1),
            number=number,
            parent=last.id if last else None,
            root=spell(node.digest),
            history=spell(self._history().root()),
            kind=kind,
            author="u_7f3a",
            at=to_text(START_US + number * 1_000_000),
            message=digest("message", f"change {number}".encode()),
            source=source,
        )
        commit = Commit(version, self.commit_key.sign(VERSION_TYPE, version.text()), node, content)
        self.commits.append(commit)
        return commit

    def _history(self) -> history.History:
        return history.History(unspell(commit.id) for commit in self.commits)

    # --- what it says ---

    def head_record(self, commit: Commit | None = None, *, safe: int | None = None, later_us: int = 0) -> Head:
        of = commit or self.latest
        issued_us = START_US + of.version.number * 1_000_000 + 500_000 + later_us
        return Head(
            namespace=self.namespace,
            environment=self.environment,
            epoch=of.version.epoch,
            number=of.version.number,
            version=of.id,
            root=of.version.root,
            safe=of.version.number if safe is None else safe,
            issued_at=to_text(issued_us),
            expires_at=to_text(issued_us + HEAD_LIFE_US),
        )

    def head(self, commit: Commit | None = None, *, safe: int | None = None, later_us: int = 0) -> Signed:
        return self.sign_head(self.head_record(commit, safe=safe, later_us=later_us))

    def sign_head(self, head: Head) -> Signed:
        return self.head_key.sign(HEAD_TYPE, head.text())

    def path(self, number: int, to: Commit | None = None) -> tuple[str, ...]:
        """From a version to the history of a later one."""
        size = (to or self.latest).version.number - 1
        return tuple(spell(each) for each in self._history().path(number, size))

    def ancestry(self, have: Cursor | None, to: Commit) -> tuple[str, ...] | None:
        """As a server makes it: only for a version that it knows, and not for the parent, which the record names."""
        if have is None or have.number >= to.version.number - 1 or self.at(have.number).cursor != have:
            return None
        return self.path(have.number, to)

    def recovery(self, opened: Commit) -> frames.Recovery:
        at_head = opened is self.latest
        return frames.Recovery(version=opened.signed, ancestry=() if at_head else self.path(opened.version.number))

    def snapshot(
        self,
        view: tuple[str, ...] = ("",),
        *,
        to: Commit | None = None,
        have: Cursor | None = None,
        head: Signed | None = None,
        recovery: frames.Recovery | None = None,
    ) -> frames.SnapshotFrame:
        of = to or self.latest
        seen = sorted(name for name, _ in proof.visible(of.node, view_of(view)))
        return frames.SnapshotFrame(
            subscription=1,
            head=head or self.head(of),
            version=of.signed,
            ancestry=self.ancestry(have, of),
            recovery=recovery,
            changes=tuple(delta.to_wire(name, None, of.content[name]) for name in seen),
            proof=proof.to_text(proof.prove(None, of.node, view_of(view))),
        )

    def delta(
        self, have: Commit, view: tuple[str, ...] = ("",), *, to: Commit | None = None, head: Signed | None = None
    ) -> frames.DeltaFrame | frames.AdvanceFrame:
        of = to or self.latest
        changed = sorted(proof.changes(have.node, of.node, view_of(view)))
        kind = frames.DeltaFrame if changed else frames.AdvanceFrame
        return kind(
            subscription=1,
            from_=have.cursor,
            head=head or self.head(of),
            version=of.signed,
            ancestry=self.ancestry(have.cursor, of),
            changes=tuple(delta.to_wire(name, have.content.get(name), of.content.get(name)) for name in changed),
            proof=proof.to_text(proof.prove(have.node, of.node, view_of(view))),
        )


def _schema(schemas: Mapping[str, Json] | None, name: str) -> Digest | None:
    return digest("schema", canonical(schemas[name])) if schemas and name in schemas else None
