"""What a client believes: the state of one view of one environment, and every check before it changes. Pure; the one place where trust is decided.

`Replica.consider` checks, in this order, and changes nothing:

1. the head: signature, namespace, environment. Expired means stale, which is said and never refused;
2. its place: a lower (epoch, number) is a rollback, the same with another version id is a fork, the same issued earlier is old news;
3. the version: its digest is the head's, its signature, and the same namespace, environment, epoch, number and root;
4. its descent: the parent, or a path in the version's history, leads to the version that runs here. In a higher epoch without such a path, only
   a signed `recover` version that kept everything this client knew to be safe;
5. the content: changes and proof lead to the signed root, every selector of the view is resolved, every document hashes to what its leaf names.
   What is believed is then read from the proved trie, never from the message: a change that was left out of it cannot linger.

`Replica.adopt` swaps. Whoever lets an application object does so in between, and persists afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from heliograph.core import delta, history, proof, trie
from heliograph.core.canonical import Json
from heliograph.core.delta import Entry
from heliograph.core.digest import Digest, raw_digest, unspell
from heliograph.core.errors import BadDigest, BadProof, BadSignature, Corrupt, Forked, RolledBack
from heliograph.core.frames import AdvanceFrame, Changed, Current, DeltaFrame, HeadFrame, Recovery, SnapshotFrame
from heliograph.core.names import View
from heliograph.core.names import view as view_of
from heliograph.core.records import Count, Cursor, Head, Signed, Version
from heliograph.core.times import to_us
from heliograph.core.trust import Trust

StateFrame: TypeAlias = SnapshotFrame | DeltaFrame | AdvanceFrame
Statement: TypeAlias = StateFrame | Current | HeadFrame


STORED = b"heliograph-replica/1"
"""How a stored state begins: the version of its form."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is believed about one version. ``safe``: the highest number that was ever said to be safe; it never falls."""

    head: Head
    signed_head: Signed
    signed_version: Signed
    safe: int
    trie: trie.Node
    entries: Mapping[str, Entry]


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    view: tuple[str, ...]
    safe: Count
    snapshot: SnapshotFrame


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A verified next state, not yet in force.

    ``changed``: names in the view whose document or schema differs from what is held. ``lost_from``: the number from which versions of older epochs
    may be no more, because the history was restarted there by a signed recovery; 0: it was not.
    """

    held: Held
    after: Held | None
    changed: frozenset[str]
    lost_from: int = 0

    @property
    def restarted(self) -> bool:
        return self.lost_from > 0

    @property
    def cursor(self) -> Cursor:
        return self.held.head.cursor

    @property
    def texts(self) -> Mapping[str, bytes]:
        return _texts(self.held.entries)


class Replica:
    """``trust`` may be replaced when a newer root has been verified."""

    def __init__(self, trust: Trust, namespace: str, environment: str, view: Iterable[str]) -> None:
        self.trust = trust
        self.namespace = namespace
        self.environment = environment
        self.view: View = view_of(view)
        self._held: Held | None = None

    # --- what is believed ---

    @property
    def cursor(self) -> Cursor | None:
        return self._held.head.cursor if self._held else None

    @property
    def head(self) -> Head | None:
        return self._held.head if self._held else None

    @property
    def held(self) -> Held | None:
        """What is believed, with what proves it."""
        return self._held

    @property
    def texts(self) -> Mapping[str, bytes]:
        """Name -> exact canonical text of each config in the view."""
        return _texts(self._held.entries) if self._held else {}

    @property
    def configs(self) -> dict[str, Json]:
        """Freshly parsed; for tools. SDKs parse when somebody reads."""
        return {name: msgspec.json.decode(text) for name, text in self.texts.items()}

    @property
    def view_digest(self) -> Digest:
        """ETag of a bundle, content of a heartbeat."""
        return proof.view_digest(self._held.trie if self._held else trie.EMPTY, self.view)

    def stale(self, now_us: int) -> bool:
        """Whether the head's signature has run out: what runs here may be behind. Nothing held is stale too."""
        return self._held is None or to_us(self._held.head.expires_at) <= now_us

    # --- what is said ---

    def consider(self, frame: Statement, now_us: int) -> Candidate | None:
        """The next state, or None when the frame says nothing new. Raises a subclass of Refused, and leaves everything as it was."""
        del now_us  # an expired head is stale, not refused; see `stale`
        head = self._verified_head(frame.head)
        held = self._held
        if held and not self._is_newer(head, held):
            return self._refreshed(head, frame, held)
        if isinstance(frame, Current | HeadFrame):
            if held is None:
                raise BadProof("a head alone, and nothing is held here")
            return None  # its state is on the way
        version = self._verified_version(frame.version, head)
        lost_from = self._descends(held, head, version, frame.ancestry, frame.recovery) if held else 0
        return self._content(frame, head, lost_from=lost_from)

    def adopt(self, candidate: Candidate) -> None:
        """Makes a candidate the state. Raises ValueError if another one was adopted since it was considered."""
        if candidate.after is not self._held:
            raise ValueError("the candidate was checked against a state that is gone")
        self._held = candidate.held

    # --- 1, 2: the head ---

    def _verified_head(self, signed: Signed) -> Head:
        head = self.trust.verify_head(signed)
        if (head.namespace, head.environment) != (self.namespace, self.environment):
            raise BadSignature("the head is signed for another environment")
        return head

    @staticmethod
    def _is_newer(head: Head, held: Held) -> bool:
        """Raises RolledBack or Forked."""
        at, mine = head.cursor, held.head.cursor
        if (at.epoch, at.number) < (mine.epoch, mine.number):
            raise RolledBack(f"was at {mine.epoch}.{mine.number}, was told {at.epoch}.{at.number}")
        if (at.epoch, at.number) == (mine.epoch, mine.number) and at.version != mine.version:
            raise Forked(f"another version {at.number} of epoch {at.epoch} than the one that runs here")
        return at != mine

    @staticmethod
    def _refreshed(head: Head, frame: Statement, held: Held) -> Candidate | None:
        """The same version, signed again."""
        if head.root != held.head.root:
            raise Forked("the same version with another root")
        if head.issued_at <= held.head.issued_at or not isinstance(frame, Current | HeadFrame):
            return None
        safe = max(held.safe, head.safe)
        renewed = msgspec.structs.replace(held, head=head, signed_head=frame.head, safe=safe)
        return Candidate(held=renewed, after=held, changed=frozenset())

    # --- 3: the version ---

    def _verified_version(self, signed: Signed, head: Head) -> Version:
        if Version.id_of(signed.payload) != head.version:
            raise BadDigest("the version is not the one that the head names")
        version = self.trust.verify_version(signed)
        said = (head.namespace, head.environment, head.epoch, head.number, head.root)
        if (version.namespace, version.environment, version.epoch, version.number, version.root) != said:
            raise Forked("head and version contradict each other")
        return version

    # --- 4: its descent ---

    def _descends(
        self, held: Held, head: Head, version: Version, ancestry: tuple[str, ...] | None, recovery: Recovery | None
    ) -> int:
        """Where the history was restarted in between; 0: nowhere. Raises Forked, BadSignature."""
        mine = held.head.cursor
        if version.number == mine.number + 1 and version.parent == mine.version:
            return 0
        if version.number > mine.number + 1 and _is_ancestor(mine.version, mine.number, version, ancestry):
            return 0
        if head.epoch == mine.epoch or recovery is None:
            raise Forked(f"version {version.number} does not descend from version {mine.number} that runs here")
        return self._restarts(held, head, version, recovery)

    def _restarts(self, held: Held, head: Head, version: Version, recovery: Recovery) -> int:
        opened = self.trust.verify_version(recovery.version)
        identity = Version.id_of(recovery.version.payload)
        mine = held.head.cursor
        if (opened.namespace, opened.environment, opened.kind) != (self.namespace, self.environment, "recover"):
            raise Forked("the history was restarted without a recover version of this environment")
        if not mine.epoch < opened.epoch <= head.epoch:
            raise Forked("the recover version does not open a newer epoch")
        if not held.safe < opened.number <= mine.number:
            raise Forked(
                f"the recover version {opened.number} drops what was safe here (up to {held.safe}), or nothing of ours"
            )
        if identity != head.version and not _is_ancestor(identity, opened.number, version, recovery.ancestry):
            raise Forked("the recover version is not in the history of the head")
        return opened.number

    # --- 5: the content ---

    def _content(self, frame: StateFrame, head: Head, *, lost_from: int) -> Candidate:
        base = None if isinstance(frame, SnapshotFrame) else self._base(frame)
        told = self._told(frame.changes)
        leaves = {name: None if each.leaf is None else raw_digest("leaf", each.leaf.encode()) for name, each in told.items()}
        before = base.trie if base else None
        after = proof.advance(before, self.view, leaves, proof.from_text(frame.proof), unspell(head.root))
        found = dict(proof.differing(before, after, self.view))
        new = _read(told, base.entries if base else {}, found)
        held = self._held
        changed = found if base is held else dict(proof.differing(held.trie if held else None, after, self.view))
        return Candidate(
            held=Held(
                head=head,
                signed_head=frame.head,
                signed_version=frame.version,
                safe=max(held.safe, head.safe) if held else head.safe,
                trie=after,
                entries=new,
            ),
            after=held,
            changed=frozenset(changed),
            lost_from=lost_from,
        )

    def _base(self, frame: DeltaFrame | AdvanceFrame) -> Held:
        if self._held is None or frame.from_ != self._held.head.cursor:
            raise BadProof("a delta from a version that is not held here")
        return self._held

    def _told(self, changes: Iterable[Changed]) -> dict[str, Changed]:
        told: dict[str, Changed] = {}
        covered = proof.covering(self.view)
        for each in changes:
            if each.name in told or each.name.endswith("/") or not covered(each.name):
                raise BadProof(f"{each.name[:80]!r} is told twice, or is no config of the view")
            if each.leaf is not None:
                delta.read_leaf(each.leaf)
            told[each.name] = each
        return told

    # --- on disk ---

    def stored(self) -> bytes:
        """The state with its signatures and proof, after a line with the version of this form and a digest over the rest.

        Raises ValueError while nothing is held.
        """
        if self._held is None:
            raise ValueError("nothing is held")
        snapshot = SnapshotFrame(
            subscription=0,
            head=self._held.signed_head,
            version=self._held.signed_version,
            changes=tuple(delta.to_wire(name, None, entry) for name, entry in sorted(self._held.entries.items())),
            proof=proof.to_text(proof.known(self._held.trie, self.view)),
        )
        body = msgspec.json.encode(_Stored(view=self.view, safe=self._held.safe, snapshot=snapshot))
        return _first_line(body) + body

    @classmethod
    def load(cls, stored: bytes, trust: Trust, namespace: str, environment: str, view: Iterable[str]) -> Replica:
        """A replica in a stored state, which is verified as if a server had sent it.

        Raises Corrupt for what was damaged, or is of another form or view; Refused for what does not verify.
        """
        replica = cls(trust, namespace, environment, view)
        read = _read_stored(stored)
        if read.view != replica.view:
            raise Corrupt("the stored state is of another view")
        candidate = replica.consider(read.snapshot, 0)
        assert candidate, "nothing was held"
        held = candidate.held
        if not held.head.safe <= read.safe <= held.head.number:
            raise Corrupt("the stored state contradicts its head")
        replica._held = msgspec.structs.replace(held, safe=read.safe)  # its own
        return replica


def _first_line(body: bytes) -> bytes:
    return STORED + b" sha256:" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _read_stored(stored: bytes) -> _Stored:
    line, _, body = stored.partition(b"\n")
    if line + b"\n" != _first_line(body):
        raise Corrupt("the stored state is damaged, or was written by another release")
    try:
        return msgspec.json.decode(body, type=_Stored)
    except msgspec.DecodeError:
        raise Corrupt("the stored state cannot be read") from None


def _read(told: Mapping[str, Changed], base: Mapping[str, Entry], found: Mapping[str, bytes | None]) -> Mapping[str, Entry]:
    """The entries after `found`, the proved differences. Raises BadDigest for a text that is not the named one, BadProof for one that is missing."""
    read = {name: delta.from_wire(each, base.get(name)) for name, each in told.items()}
    new = {name: None if leaf is None else read.get(name) for name, leaf in found.items()}
    for name, leaf in found.items():
        if leaf is not None and new[name] is None:
            raise BadProof(f"{name} is in the view, and came without its text")
    return delta.apply(base, new)


def _texts(entries: Mapping[str, Entry]) -> dict[str, bytes]:
    return {name: entry.document for name, entry in entries.items()}


def _is_ancestor(identity: str, number: int, version: Version, path: tuple[str, ...] | None) -> bool:
    if path is None:
        return False
    try:
        siblings = [unspell(each) for each in path]
    except ValueError:
        return False
    return history.verify(unspell(identity), number, version.number - 1, siblings, unspell(version.history))


class Assembler:
    """Joins the parts of one state frame. Parts come in order; anything else begins anew."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._parts: list[StateFrame] = []
        self._changes: list[Changed] = []

    def add(self, frame: StateFrame) -> StateFrame | None:
        """The whole frame with its last part, None before. Raises BadProof for parts that do not follow each other, or never end."""
        if frame.part == 1:
            self._forget()
        if frame.part != len(self._parts) + 1 or not self._continues(frame):
            self._forget()
            raise BadProof("a part of a frame is missing")
        self._parts.append(frame)
        self._changes += frame.changes
        if max(len(self._changes), frame.parts) > self._limit:
            self._forget()
            raise BadProof("more configs than an environment may have")
        if frame.part < frame.parts:
            return None
        changes = tuple(self._changes)
        self._forget()
        return msgspec.structs.replace(frame, changes=changes, part=1, parts=1)

    def _forget(self) -> None:
        self._parts, self._changes = [], []

    def _continues(self, frame: StateFrame) -> bool:
        if not self._parts:
            return True
        first = self._parts[0]
        return type(first) is type(frame) and first.version == frame.version and first.parts == frame.parts
