"""The keys of a server and the history of one environment: real tries, versions, signatures and proofs, made with `heliograph.core` alone."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from heliograph.client._values import ABSENT, thaw
from heliograph.core import delta, dsse, history, names, proof, trie
from heliograph.core.canonical import canonical
from heliograph.core.delta import Entry
from heliograph.core.digest import Digest, spell, unspell
from heliograph.core.errors import InvalidRequest, NotFound
from heliograph.core.frames import AdvanceFrame, Current, DeltaFrame, SnapshotFrame
from heliograph.core.names import View
from heliograph.core.records import HEAD_TYPE, ROOT_TYPE, VERSION_TYPE, Cursor, Head, Signed, Source, Version
from heliograph.core.times import to_text
from heliograph.core.trust import Role, Roles, Root, Trust, anchor_of

LIFE_US: Final = 365 * 24 * 3600 * 1_000_000  # heads are not renewed here, and a test may move its clock
AUTHOR: Final = "u_test"
Frame = SnapshotFrame | DeltaFrame | AdvanceFrame | Current


class _Key:
    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = dsse.key_id(self.public)

    def sign(self, kind: str, payload: bytes) -> Signed:
        return dsse.attach(payload, [(self.id, self._private.sign(dsse.pae(kind, payload)))])


class Keys:
    """Made anew for each server."""

    def __init__(self) -> None:
        self.root, self.commit, self.head = _Key(), _Key(), _Key()

    @property
    def anchor(self) -> Digest:
        return anchor_of(self.root.public)

    def trust(self) -> Trust:
        keys = (self.root, self.commit, self.head)
        root = Root(
            number=1,
            keys={key.id: base64.b64encode(key.public).decode() for key in keys},
            roles=Roles(*(Role((key.id,), 1) for key in keys)),
            expires_at=to_text(_now_us() + LIFE_US),
        )
        return Trust.from_root(self.root.sign(ROOT_TYPE, _text(root)), self.anchor)


class Committed(NamedTuple):
    cursor: Cursor
    head: Signed
    version: Signed
    trie: trie.Node
    entries: Mapping[str, Entry]


class History:
    """Not thread-safe."""

    def __init__(self, keys: Keys, namespace: str, environment: str) -> None:
        self.namespace = names.namespace(namespace)
        self.environment = names.environment(environment)
        self._keys = keys
        self._ids = history.History()
        self._versions: list[Committed] = []
        self._last_us = 0
        self._commit("create", {})

    @property
    def latest(self) -> Committed:
        return self._versions[-1]

    def at(self, number: int) -> Committed:
        """Raises NotFound."""
        if not 1 <= number <= len(self._versions):
            raise NotFound(f"{self.namespace}/{self.environment} has versions 1 to {len(self._versions)}, not {number}")
        return self._versions[number - 1]

    def publish(self, changes: Mapping[str, Any]) -> Cursor:
        """A document for each name, `ABSENT` to delete.

        Raises InvalidName, InvalidDocument, InvalidRequest, NotFound for what is not there to be deleted; then nothing is changed.
        """
        if not changes:
            raise InvalidRequest("nothing to publish: name at least one config")
        entries = dict(self.latest.entries)
        for name, document in changes.items():
            if document is not ABSENT:
                entries[names.config(name)] = delta.entry_of(canonical(thaw(document)))
            elif entries.pop(names.config(name), None) is None:
                raise NotFound(f"{name} is not there to be deleted")
        return self._commit("publish", entries)

    def rollback(self, to: int) -> Cursor:
        """A new version with the content of an old one. Raises NotFound."""
        old = self.at(to)
        source = Source(environment=self.environment, number=to, version=old.cursor.version)
        return self._commit("rollback", old.entries, source)

    def bring(self, view: View, have: Cursor | None) -> Frame:
        """What brings a reader from what it has to the latest version."""
        if have == self.latest.cursor:
            return Current(subscription=0, head=self.latest.head)
        known = self._known(have)
        return self.snapshot(view, have) if known is None else self._delta(view, known)

    def snapshot(self, view: View, have: Cursor | None) -> SnapshotFrame:
        latest = self.latest
        visible = sorted(proof.visible(latest.trie, view))
        known = self._known(have)
        return SnapshotFrame(
            subscription=0,
            head=latest.head,
            version=latest.version,
            ancestry=self._ancestry(known.cursor) if known else None,
            changes=tuple(delta.to_wire(name, None, latest.entries[name]) for name, _ in visible),
            proof=proof.to_text(proof.prove(None, latest.trie, view)),
            answer="now",
        )

    def knows(self, cursor: Cursor) -> bool:
        return self._known(cursor) is not None

    def _delta(self, view: View, old: Committed) -> DeltaFrame | AdvanceFrame:
        latest = self.latest
        changed = sorted(proof.changes(old.trie, latest.trie, view))
        kind = DeltaFrame if changed else AdvanceFrame
        return kind(
            subscription=0,
            from_=old.cursor,
            head=latest.head,
            version=latest.version,
            ancestry=self._ancestry(old.cursor),
            changes=tuple(delta.to_wire(name, old.entries.get(name), latest.entries.get(name)) for name in changed),
            proof=proof.to_text(proof.prove(old.trie, latest.trie, view)),
            answer="now",
        )

    def _known(self, cursor: Cursor | None) -> Committed | None:
        found = self._versions[cursor.number - 1] if cursor and 1 <= cursor.number <= len(self._versions) else None
        return found if found and found.cursor == cursor else None

    def _ancestry(self, of: Cursor) -> tuple[str, ...] | None:
        """None for the parent, which the record names."""
        number = self.latest.cursor.number
        return None if of.number >= number - 1 else tuple(map(spell, self._ids.path(of.number, number - 1)))

    def _commit(self, kind: str, entries: Mapping[str, Entry], source: Source | None = None) -> Cursor:
        """As a real server: what would change nothing makes no version."""
        node = trie.update(trie.EMPTY, {name: entry.digest for name, entry in entries.items()})
        if self._versions and node.digest == self.latest.trie.digest:
            return self.latest.cursor
        self._last_us = max(_now_us(), self._last_us + 1000)
        version = Version(
            namespace=self.namespace,
            environment=self.environment,
            epoch=1,
            number=len(self._versions) + 1,
            parent=self.latest.cursor.version if self._versions else None,
            root=spell(node.digest),
            history=spell(self._ids.root()),
            kind=kind,
            author=AUTHOR,
            at=to_text(self._last_us),
            source=source,
        )
        head = self._head(version)
        signed = self._keys.commit.sign(VERSION_TYPE, version.text())
        self._versions.append(Committed(head.cursor, self._keys.head.sign(HEAD_TYPE, head.text()), signed, node, dict(entries)))
        self._ids.append(unspell(head.version))
        return head.cursor

    def _head(self, version: Version) -> Head:
        return Head(
            namespace=self.namespace,
            environment=self.environment,
            epoch=version.epoch,
            number=version.number,
            version=Version.id_of(version.text()),
            root=version.root,
            safe=version.number,
            issued_at=to_text(self._last_us),
            expires_at=to_text(self._last_us + LIFE_US),
        )


def _text(root: Root) -> bytes:
    return canonical(msgspec.to_builtins(root))


def _now_us() -> int:
    return time.time_ns() // 1000
