"""One environment as a node holds it: the content of its head, the tries of its recent past, and the frames made from them.

Tries share structure between versions and entries are kept once by digest, so that a delta across any of the kept versions is made from what is in
memory. Frames are functions of (subscription id, view, from, head): made once, kept until the head moves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple, TypeVar, cast

import msgspec

from heliograph.core import delta, frames, history, proof, trie
from heliograph.core.delta import Entry
from heliograph.core.digest import Digest, spell, unspell
from heliograph.core.errors import Corrupt, NotFound
from heliograph.core.frames import AdvanceFrame, Answer, Changed, Current, DeltaFrame, HeadFrame, Recovery, SnapshotFrame
from heliograph.core.names import View
from heliograph.core.records import Cursor, Head, Signed, Version
from heliograph.services.sync.kept import Kept

SWEEP_EVERY: Final = 256
SNAPSHOT_SHARE: Final = 0.5
"""A delta that touches more than this share of a view is compared with the snapshot; the smaller one is sent."""
MAX_DIGESTS: Final = 4096
MAX_RECOVERIES: Final = 64
SHARED: Final = 0
"""The subscription that frames are made for; another one's differ by its number."""
_SHARED: Final = b'"subscription":%d' % SHARED

_encode = msgspec.json.Encoder().encode


STEP: Final = 500
"""Configs that are encoded in about a millisecond."""

Whole = SnapshotFrame | DeltaFrame | AdvanceFrame
T = TypeVar("T")


class Key(NamedTuple):
    """What a frame is a function of, while the head stays. ``at``: a snapshot of that version, whatever `have` is."""

    subscription: int
    view: View
    have: Cursor | None
    at: Cursor | None = None


class Content(NamedTuple):
    """All of a view at one head: a frame without its changes, and these as text, a group for each part."""

    view: View
    cursor: Cursor
    frame: SnapshotFrame
    groups: list[bytes]


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
        self._recoveries: dict[Cursor, Signed] = {}  # the recover versions that came by
        self._frames: Kept[Key, list[bytes]] = Kept(frame_cache_bytes)
        self._digests: dict[View, Digest] = {}
        self._gathered: Kept[View, Content] = Kept(frame_cache_bytes)
        self._since_sweep = 0
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
        self._forget_lost()

    def commit(
        self, head: Signed, version: Signed, changes: Mapping[str, Entry | None], *, answer: Answer, trace: str | None
    ) -> None:
        """The next version. Raises Corrupt when the changes do not lead to its root: read the state from the registry then."""
        root = trie.update(self._root, {name: entry.digest if entry else None for name, entry in changes.items()})
        self._entries |= {entry.digest: entry for entry in changes.values() if entry}
        self.answer, self.trace = answer, trace
        self._move(head, version, root)

    def adopt(
        self,
        head: Signed,
        version: Signed,
        root: trie.Node,
        entries: Iterable[Entry],
        past: history.History | None,
        *,
        answer: Answer,
        trace: str | None,
    ) -> None:
        """A version that was verified elsewhere, with its whole trie. ``entries``: those that the version before had not. ``past``: all versions
        before it, unless it follows the one that is here. Raises Corrupt when the past is another one."""
        self._entries |= {entry.digest: entry for entry in entries}
        if past is not None:
            self._history = past
        self.answer, self.trace = answer, trace
        self._move(head, version, root)
        if past is not None:
            self._forget_lost()

    def renew(self, head: Signed) -> bool:
        """A head of the same version with a later signature. Whether it was one."""
        new = Head.read(head.payload)
        if new.cursor != self.cursor or new.issued_at <= self.head.issued_at:
            return False
        self.head, self._signed_head = new, head
        self._forget_frames()
        return True

    def note_recovery(self, signed: Signed) -> None:
        """A recover version is kept, for readers that run on what it dropped, also when another has followed; any other one is nothing here."""
        version = Version.read(signed.payload)
        if version.kind == "recover":
            self._recoveries[Cursor(version.epoch, version.number, Version.id_of(signed.payload))] = signed
            if len(self._recoveries) > MAX_RECOVERIES:
                del self._recoveries[min(self._recoveries)]

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
        self._digests.clear()
        self._forget_frames()

    def _forget_lost(self) -> None:
        """No delta can begin at a version that is in this history no more: its readers would have to refuse it."""
        self._past = OrderedDict((number, kept) for number, kept in self._past.items() if self.knows(kept[0]))

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
        self._gathered.clear()
        self._frames.clear()

    # --- reading ---

    def close(self) -> None:
        """It is gone: nobody need wait for its next version."""
        self.closed = True

    def knows(self, cursor: Cursor) -> bool:
        """Whether it is in this environment's history up to the head."""
        return 0 < cursor.number <= len(self._history) and self._history.levels[0][cursor.number - 1] == history.leaf(
            unspell(cursor.version)
        )

    @property
    def history(self) -> history.History:
        return self._history

    @property
    def recoveries(self) -> tuple[Signed, ...]:
        """The recover versions that are known."""
        return tuple(self._recoveries.values())

    def entry(self, digest: bytes) -> Entry:
        try:
            return self._entries[digest]
        except KeyError:
            raise NotFound("an entry that is kept no longer") from None

    def view_digest(self, view: View) -> Digest:
        """Made once for each head: every heartbeat and every conditional request asks."""
        if (found := self._digests.get(view)) is None:
            if len(self._digests) >= MAX_DIGESTS:
                self._digests.clear()
            found = self._digests[view] = proof.view_digest(self._root, view)
        return found

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
        return self._made(Key(subscription, view, have), self._frame)

    def snapshot(self, subscription: int, view: View, have: Cursor | None) -> list[bytes]:
        """Everything, for a reader whose state is in doubt; with the path from `have` where it is known."""
        return self._made(Key(subscription, view, have, self.cursor), self._snapshot)

    def at_hand(self, view: View, have: Cursor | None) -> bool:
        """Whether `frames` will be quick: a delta, or a snapshot that is small or gathered already. Otherwise `gather` it first."""
        return self._at(have) is not None or view in self._gathered or self.cursor == have or not self._is_larger(view, STEP)

    def _made(self, key: Key, make: Callable[[View, Cursor | None], list[bytes]]) -> list[bytes]:
        """Made once for all subscriptions, whatever their clients call them; kept until the head moves or others need the room."""
        if (found := self._frames.get(key)) is not None:
            return found
        if key.subscription == SHARED:
            made = make(key.view, key.have)
        else:
            made = _renumbered(self._made(key._replace(subscription=SHARED), make), key.subscription)
        self._frames.put(key, made, _size(made))
        return made

    def pushed_again(self, subscription: int, view: View, have: Cursor | None, trace: str | None) -> list[bytes]:
        """Everything, for a reader that refused it before: it is to answer at once, under this trace."""
        content = self._content(view)
        frame = msgspec.structs.replace(content.frame, answer="now", trace=trace)
        return _renumbered(self._whole(content._replace(frame=frame), have), subscription)

    def _at(self, have: Cursor | None) -> trie.Node | None:
        """The state there, if deltas from it can be made."""
        past = self._past.get(have.number) if have else None
        return past[1] if past and past[0] == have else None

    def _frame(self, view: View, have: Cursor | None) -> list[bytes]:
        old = self._at(have)
        if have is None or old is None:
            return self._snapshot(view, have)
        changed = proof.changes(old, self._root, view)
        kind = DeltaFrame if changed else AdvanceFrame
        frame = kind(
            subscription=SHARED,
            from_=have,
            head=self._signed_head,
            version=self._signed_version,
            ancestry=self._ancestry(have, self.cursor),
            proof=_proof(proof.prove(old, self._root, view)),
            answer=self.answer,
            trace=self.trace,
        )
        changes = (self._change(name, old, digest) for name, digest in sorted(changed.items()))
        parts = _parts(frame, _at_once(_grouped(changes)))
        if len(changed) <= 1 or self._is_larger(view, len(changed) / SNAPSHOT_SHARE):
            return parts
        return min(parts, self._snapshot(view, have), key=_size)

    def _is_larger(self, view: View, than: float) -> bool:
        """Without counting more configs than it takes to know: a view may hold many."""
        return any(index >= than for index, _ in enumerate(proof.visible(self._root, view)))

    def _snapshot(self, view: View, have: Cursor | None) -> list[bytes]:
        return self._whole(self._content(view), have)

    def _content(self, view: View) -> Content:
        return self._gathered.get(view) or _at_once(self.gather(view))

    def gather(self, view: View) -> Generator[None, None, Content]:
        """All of a view, as the head has it now, in steps of about a millisecond; the head may move on meanwhile. Raises NotFound when a text of
        that head is kept no longer."""
        cursor, root = self.cursor, self._root
        frame = SnapshotFrame(
            subscription=SHARED,
            head=self._signed_head,
            version=self._signed_version,
            proof=_proof(proof.prove(None, root, view)),
            answer=self.answer,
            trace=self.trace,
        )
        visible = []
        for item in proof.visible(root, view):
            visible.append(item)
            if len(visible) % STEP == 0:
                yield
        visible.sort()
        groups = yield from _grouped(delta.to_wire(name, None, self.entry(digest)) for name, digest in visible)
        content = Content(view, cursor, frame, groups)
        if self.cursor == cursor:
            self._gathered.put(view, content, _size(groups))
        return content

    def parts_of(self, content: Content, subscription: int, have: Cursor | None) -> list[bytes]:
        """The snapshot of what was gathered, for a reader that holds `have`."""
        key = Key(subscription, content.view, have, content.cursor)
        return self._made(key, lambda _, have: self._whole(content, have))

    def _whole(self, content: Content, have: Cursor | None) -> list[bytes]:
        to, known = content.cursor, have is not None and self.knows(have)
        ancestry = self._ancestry(have, to) if have and known else None
        recovery = self._recovery(have, to) if have and have.epoch < to.epoch and not known else None
        return _parts(msgspec.structs.replace(content.frame, ancestry=ancestry, recovery=recovery), content.groups)

    def _change(self, name: str, old: trie.Node, digest: bytes | None) -> Changed:
        before = trie.get(old, name)
        held = self._entries.get(before) if isinstance(before, bytes) else None
        return delta.to_wire(name, held, self.entry(digest) if digest else None)

    def _ancestry(self, have: Cursor, to: Cursor) -> tuple[str, ...] | None:
        """None for the parent, which the record names."""
        if have.number >= to.number - 1:
            return None
        return tuple(spell(each) for each in self._history.path(have.number, to.number - 1))

    def _recovery(self, have: Cursor, to: Cursor) -> Recovery | None:
        """How this history began anew, for a reader at `have`, which was lost then: of the recover versions up to `to` that dropped it, the one that
        kept most."""
        dropping = [
            each
            for each in self._recoveries
            if have.epoch < each.epoch <= to.epoch and each.number <= min(have.number, to.number) and self.knows(each)
        ]
        if not dropping:
            return None
        opened = max(dropping, key=lambda each: each.number)
        path = () if opened == to else tuple(spell(each) for each in self._history.path(opened.number, to.number - 1))
        return Recovery(version=self._recoveries[opened], ancestry=path)


def _proof(made: proof.Proof) -> frames.ProofText | None:
    return proof.to_text(made) if made.entries or made.stubs else None


def _grouped(changes: Iterable[Changed]) -> Generator[None, None, list[bytes]]:
    """Encoded, in groups of about 256 KiB, cut between configs, in steps."""
    groups: list[list[bytes]] = [[]]
    size = 0
    for index, change in enumerate(changes, 1):
        text = _encode(change)
        if groups[-1] and size + len(text) > frames.PART_BYTES:
            groups.append([])
            size = 0
            yield
        elif index % STEP == 0:
            yield
        groups[-1].append(text)
        size += len(text)
    return [b",".join(group) for group in groups]


def _parts(frame: Whole, groups: list[bytes]) -> list[bytes]:
    """The frame with these changes, in as many parts; the last one carries the proof."""
    if len(groups) == 1:
        return [_with_changes(frame, groups[0])]
    count = len(groups)
    return [
        _with_changes(
            msgspec.structs.replace(frame, part=number, parts=count, proof=frame.proof if number == count else None), group
        )
        for number, group in enumerate(groups, 1)
    ]


def _with_changes(frame: Whole, group: bytes) -> bytes:
    """An encoded frame; the changes are text already, and stay it."""
    if not group:
        return _encode(frame)
    return _encode(msgspec.structs.replace(frame, changes=cast("tuple[Changed, ...]", (msgspec.Raw(group),))))


def _renumbered(parts: list[bytes], subscription: int) -> list[bytes]:
    """The same frames for another subscription."""
    return [part.replace(_SHARED, b'"subscription":%d' % subscription, 1) for part in parts]


def _size(parts: list[bytes]) -> int:
    return sum(map(len, parts))


def _at_once(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast("T", done.value)


def is_beyond(have: Cursor, head: Cursor) -> bool:
    """Further along than this node. At the same place with another id it is of another history, which a snapshot tells."""
    return (have.epoch, have.number) > (head.epoch, head.number)


def is_ahead(have: Cursor | None, head: Cursor) -> bool:
    """The client was served by a node that has seen more: wait until this one has caught up, rather than show it an older head."""
    return have is not None and (have.epoch, have.number) >= (head.epoch, head.number) and have.version != head.version
