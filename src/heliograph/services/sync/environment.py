"""One environment as a node holds it: the content of its head, the tries of its recent past, and the frames made from them.

Tries share structure between versions and entries are kept once by digest, so that a delta across any of the kept versions is made from what is in
memory. Frames are functions of (subscription id, view, from, head): made once, kept until the head moves.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

import msgspec

from heliograph.core import delta, frames, history, proof, trie
from heliograph.core.delta import Entry
from heliograph.core.digest import Digest, spell, unspell
from heliograph.core.errors import Corrupt, NotFound
from heliograph.core.frames import AdvanceFrame, Answer, Changed, Current, DeltaFrame, HeadFrame, Recovery, SnapshotFrame
from heliograph.core.names import View
from heliograph.core.records import Cursor, Head, Signed, Version

SWEEP_EVERY: Final = 256
SNAPSHOT_SHARE: Final = 0.5
"""A delta that touches more than this share of a view is compared with the snapshot; the smaller one is sent."""

_encode = msgspec.json.Encoder().encode


class Environment:
    """Belongs to one event loop. `replace` and `commit` move the head; everything else reads."""

    def __init__(self, namespace: str, environment: str, *, past_versions: int, frame_cache_bytes: int) -> None:
        self.namespace = namespace
        self.environment = environment
        self.answer: Answer = "soon"
        self.trace: str | None = None
        self._past_versions = past_versions
        self._past: OrderedDict[int, tuple[Cursor, trie.Node]] = OrderedDict()
        self._entries: dict[bytes, Entry] = {}
        self._history = history.History()
        self._opened: tuple[Version, Signed] | None = None  # the latest recover version that came by
        self._frames: dict[tuple[int, View, Cursor | None], list[bytes]] = {}
        self._frame_bytes = 0
        self._frame_limit = frame_cache_bytes
        self._since_sweep = 0
        self._moved = asyncio.Event()
        self.closed = False
        self.head: Head
        self.cursor: Cursor
        self._signed_head: Signed
        self._signed_version: Signed
        self._root: trie.Node

    # --- moving the head ---

    def replace(self, head: Signed, version: Signed, entries: Mapping[str, Entry], ids: Iterable[str]) -> None:
        """The whole state, as read from the registry. Raises Corrupt when it does not add up."""
        digests = {name: entry.digest for name, entry in entries.items()}
        root = trie.update(trie.EMPTY, digests)
        past = history.History([unspell(each) for each in ids])
        self._entries |= {entry.digest: entry for entry in entries.values()}
        self._history = past
        self._move(head, version, root)
        self._past = OrderedDict((number, kept) for number, kept in self._past.items() if self.knows(kept[0]))

    def commit(
        self, head: Signed, version: Signed, changes: Mapping[str, Entry | None], *, answer: Answer, trace: str | None
    ) -> None:
        """The next version. Raises Corrupt when the changes do not lead to its root: read the state from the registry then."""
        root = trie.update(self._root, {name: entry.digest if entry else None for name, entry in changes.items()})
        self._entries |= {entry.digest: entry for entry in changes.values() if entry}
        self.answer, self.trace = answer, trace
        self._move(head, version, root)

    def renew(self, head: Signed) -> bool:
        """A head of the same version with a later signature. Whether it was one."""
        new = Head.read(head.payload)
        if new.cursor != self.cursor or new.issued_at <= self.head.issued_at:
            return False
        self.head, self._signed_head = new, head
        self._forget_frames()
        return True

    def note_recovery(self, signed: Signed) -> None:
        """A recover version is kept, for readers that run on what it dropped; any other one is nothing here."""
        version = Version.read(signed.payload)
        if version.kind == "recover" and (self._opened is None or version.epoch > self._opened[0].epoch):
            self._opened = version, signed

    def _move(self, signed_head: Signed, signed_version: Signed, root: trie.Node) -> None:
        head, version = Head.read(signed_head.payload), Version.read(signed_version.payload)
        if spell(root.digest) != head.root or Version.id_of(signed_version.payload) != head.version:
            raise Corrupt(f"{self.namespace}/{self.environment}: the content is not the one of version {head.number}")
        if len(self._history) == head.number - 1:
            if spell(self._history.root()) != version.history:
                raise Corrupt(f"{self.namespace}/{self.environment}: the history is not the one of version {head.number}")
            self._history.append(unspell(head.version))
        self.head, self.cursor, self._root = head, head.cursor, root
        self._signed_head, self._signed_version = signed_head, signed_version
        if version.kind == "recover":
            self.note_recovery(signed_version)
        self._remember(head.cursor, root)
        self._forget_frames()
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _remember(self, cursor: Cursor, root: trie.Node) -> None:
        self._past[cursor.number] = (cursor, root)
        self._past.move_to_end(cursor.number)
        while len(self._past) > self._past_versions:
            self._past.popitem(last=False)
            self._since_sweep += 1
        if self._since_sweep >= SWEEP_EVERY:
            self._sweep()

    def _sweep(self) -> None:
        """Forgets entries that no kept version has."""
        self._since_sweep = 0
        roots = [root for _, root in self._past.values()]
        kept = {digest for _, digest in trie.leaves(roots[0])}
        for old, new in pairwise(roots):
            kept |= {digest for _, digest in trie.diff(old, new) if digest}
        self._entries = {digest: entry for digest, entry in self._entries.items() if digest in kept}

    def forget_past(self) -> None:
        """Keeps only what the head has: readers of older versions get a snapshot. After a purge, which no head's text can be part of."""
        self._past = OrderedDict({self.cursor.number: (self.cursor, self._root)})
        self._sweep()
        self._forget_frames()

    def _forget_frames(self) -> None:
        self._frames.clear()
        self._frame_bytes = 0

    # --- reading ---

    async def moved_from(self, cursor: Cursor) -> None:
        """Until the head is another one. Raises NotFound when the environment is deleted meanwhile."""
        while self.cursor == cursor:
            if self.closed:
                raise NotFound(f"the environment {self.namespace}/{self.environment} was deleted")
            await self._moved.wait()

    def close(self) -> None:
        """It is gone: nobody need wait for its next version."""
        self.closed = True
        self._moved.set()

    def knows(self, cursor: Cursor) -> bool:
        """Whether it is in this environment's history up to the head."""
        return 0 < cursor.number <= len(self._history) and self._history.levels[0][cursor.number - 1] == history.leaf(
            unspell(cursor.version)
        )

    def entry(self, digest: bytes) -> Entry:
        try:
            return self._entries[digest]
        except KeyError:
            raise NotFound("an entry that is kept no longer") from None

    def view_digest(self, view: View) -> Digest:
        return proof.view_digest(self._root, view)

    @property
    def signed_head(self) -> Signed:
        return self._signed_head

    # --- frames ---

    def current(self, subscription: int) -> bytes:
        return _encode(Current(subscription=subscription, head=self._signed_head))

    def head_frame(self, subscription: int) -> bytes:
        return _encode(HeadFrame(subscription=subscription, head=self._signed_head))

    def frames(self, subscription: int, view: View, have: Cursor | None) -> list[bytes]:
        """What brings a reader of `view` from `have` (None: from nothing, or it asks for all) to the head: one frame, or its parts in order."""
        key = (subscription, view, have)
        found = self._frames.get(key)
        if found is None:
            found = _parts(self._frame(subscription, view, have))
            size = sum(map(len, found))
            if self._frame_bytes + size <= self._frame_limit:
                self._frames[key] = found
                self._frame_bytes += size
        return found

    def snapshot(self, subscription: int, view: View, have: Cursor | None) -> list[bytes]:
        """Everything, for a reader whose state is in doubt; with the path from `have` where it is known."""
        return _parts(self._snapshot(subscription, view, have))

    def pushed_again(self, subscription: int, view: View, have: Cursor | None, trace: str | None) -> list[bytes]:
        """Everything, for a reader that refused it before: it is to answer at once, under this trace."""
        frame = self._snapshot(subscription, view, have)
        return _parts(msgspec.structs.replace(frame, answer="now", trace=trace))

    def _frame(self, subscription: int, view: View, have: Cursor | None) -> SnapshotFrame | DeltaFrame | AdvanceFrame:
        past = self._past.get(have.number) if have else None
        if have is None or past is None or past[0] != have:
            return self._snapshot(subscription, view, have)
        _, old = past
        changed = proof.changes(old, self._root, view)
        kind = DeltaFrame if changed else AdvanceFrame
        frame = kind(
            subscription=subscription,
            from_=have,
            head=self._signed_head,
            version=self._signed_version,
            ancestry=self._ancestry(have),
            changes=tuple(self._change(name, old, digest) for name, digest in sorted(changed.items())),
            proof=_proof(proof.prove(old, self._root, view)),
            answer=self.answer,
            trace=self.trace,
        )
        if len(changed) <= 1 or len(changed) < SNAPSHOT_SHARE * sum(1 for _ in proof.visible(self._root, view)):
            return frame
        whole = self._snapshot(subscription, view, have)
        return whole if len(_encode(whole)) < len(_encode(frame)) else frame

    def _snapshot(self, subscription: int, view: View, have: Cursor | None) -> SnapshotFrame:
        visible = sorted(proof.visible(self._root, view))
        return SnapshotFrame(
            subscription=subscription,
            head=self._signed_head,
            version=self._signed_version,
            ancestry=self._ancestry(have) if have and self.knows(have) else None,
            recovery=self._recovery() if have and have.epoch < self.head.epoch and not self.knows(have) else None,
            changes=tuple(delta.to_wire(name, None, self.entry(digest)) for name, digest in visible),
            proof=_proof(proof.prove(None, self._root, view)),
            answer=self.answer,
            trace=self.trace,
        )

    def _change(self, name: str, old: trie.Node, digest: bytes | None) -> Changed:
        before = trie.get(old, name)
        held = self._entries.get(before) if isinstance(before, bytes) else None
        return delta.to_wire(name, held, self.entry(digest) if digest else None)

    def _ancestry(self, have: Cursor) -> tuple[str, ...] | None:
        """None for the parent, which the record names."""
        if have.number >= self.head.number - 1:
            return None
        return tuple(spell(each) for each in self._history.path(have.number, self.head.number - 1))

    def _recovery(self) -> Recovery | None:
        """How this history began anew, for a reader that runs on what was lost then."""
        if self._opened is None:
            return None
        number, signed = self._opened[0].number, self._opened[1]
        at_head = number == self.head.number
        path = () if at_head else tuple(spell(each) for each in self._history.path(number, self.head.number - 1))
        return Recovery(version=signed, ancestry=path)


def _proof(made: proof.Proof) -> frames.ProofText | None:
    return proof.to_text(made) if made.entries or made.stubs else None


def _parts(frame: SnapshotFrame | DeltaFrame | AdvanceFrame) -> list[bytes]:
    """In pieces of about 256 KiB, cut between configs; the last one carries the proof."""
    whole = _encode(frame)
    if len(whole) <= frames.PART_BYTES or len(frame.changes) < 2:
        return [whole]
    groups: list[list[Changed]] = [[]]
    size = 0
    for change in frame.changes:
        weight = len(_encode(change))
        if groups[-1] and size + weight > frames.PART_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(change)
        size += weight
    count = len(groups)
    return [
        _encode(
            msgspec.structs.replace(
                frame, changes=tuple(group), part=number, parts=count, proof=frame.proof if number == count else None
            )
        )
        for number, group in enumerate(groups, 1)
    ]
