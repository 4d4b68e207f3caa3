"""The content of one version: config name -> digest of its leaf record, as one canonical hash trie per folder. Pure, no I/O.

A folder is a trie over its own entries: configs (``limits``) and folders (``checkout/``, with the slash). An entry's place is the
SHA-256 of that segment, one hex digit a level. At most 32 entries below a place: one bucket; more: a branch of 16. The shape follows
from the set of entries alone, so equal contents have equal digests, whatever the history, and a whole folder has one digest.

Nodes are immutable and shared between versions. A node may be a `Stub`: its digest is known, what is below is not (a client's filtered
view, or a node not loaded yet). Every function works on such partial tries and raises `Unknown` where it would have to guess.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import ClassVar, TypeAlias

import msgspec

from heliograph.core.digest import raw_digest
from heliograph.core.names import MAX_CONFIG_NAME, SEGMENT

BUCKET = 32
FANOUT = 16
MAX_PLACE = 16
"""Digits of the deepest place that a proof may name. A real one would take 33 names whose SHA-256 begin with the same 64 bits; what is deeper is
made up, to exhaust the reader's stack."""

_HEX = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))
_SEGMENT = re.compile(rf"{SEGMENT}/?")
_NAME = re.compile(rf"(?:{SEGMENT}/){{0,7}}{SEGMENT}/?")
_POSITION = re.compile(rf"(?:{SEGMENT}/){{0,8}}#[0-9a-f]{{0,{MAX_PLACE}}}")


class Unknown(Exception):
    """The answer lies below a stub."""


class Stub(msgspec.Struct, frozen=True, gc=False):
    """A node of which only the digest is known."""

    digest: bytes
    complete: ClassVar[bool] = False


class Bucket:
    """Up to 32 entries by their segment. ``complete``: there is no stub in it, nor below."""

    __slots__ = ("_digest", "complete", "entries")

    def __init__(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.complete: bool = all(isinstance(e, bytes) or e.complete for e in entries.values())
        self._digest: bytes | None = None

    def encode(self) -> bytes:
        out = [b"\x00", bytes([len(self.entries)])]
        for segment in sorted(self.entries):
            entry, name = self.entries[segment], segment.encode()
            out += bytes([len(name)]), name, entry if isinstance(entry, bytes) else entry.digest
        return b"".join(out)

    @property
    def digest(self) -> bytes:
        if self._digest is None:
            self._digest = raw_digest("node", self.encode())
        return self._digest


class Branch:
    """More than 32 entries, by the next digit of their place. ``complete``: there is no stub below."""

    __slots__ = ("_digest", "children", "complete")

    def __init__(self, children: dict[int, Node]) -> None:
        self.children = children
        self.complete: bool = all(child.complete for child in children.values())
        self._digest: bytes | None = None

    def encode(self) -> bytes:
        bitmap = sum(1 << slot for slot in self.children).to_bytes(2, "big")
        return b"\x01" + bitmap + b"".join(self.children[slot].digest for slot in sorted(self.children))

    @property
    def digest(self) -> bytes:
        if self._digest is None:
            self._digest = raw_digest("node", self.encode())
        return self._digest


Node: TypeAlias = Bucket | Branch | Stub
Entry: TypeAlias = bytes | Node  # of a config: its leaf's digest, 32 bytes; of a folder: its trie
EMPTY = Bucket({})


@lru_cache(1 << 17)
def digits(segment: str) -> bytes:
    """The place of an entry: 64 numbers from 0 to 15."""
    return hashlib.sha256(segment.encode()).hexdigest().encode().translate(_HEX)


def segments(name: str) -> list[str]:
    """``checkout/limits`` -> ``["checkout/", "limits"]``; a folder's own name ends in a slash."""
    *folders, last = name.split("/")
    return [f + "/" for f in folders] + ([last] if last else [])


def _node_of(entry: Entry | None) -> Node | None:
    assert not isinstance(entry, bytes), "a folder's entry is a node"
    return entry


# --- reading -------------------------------------------------------------------------------------------------------------------


def find(node: Node | None, segment: str) -> Entry | None:
    """A folder's own entry. Raises Unknown."""
    place, depth = digits(segment), 0
    while isinstance(node, Branch):
        node, depth = node.children.get(place[depth]), depth + 1
    if isinstance(node, Stub):
        raise Unknown(segment)
    return node.entries.get(segment) if node else None


def get(root: Node, name: str) -> Entry | None:
    """The config or folder at a name, None if the version has none. Raises Unknown where the partial trie cannot tell."""
    at: Entry | None = root
    for segment in segments(name):
        at = find(_node_of(at), segment)
        if at is None:
            return None
    return at


def entries(node: Node | None) -> Iterator[tuple[str, Entry]]:
    """One folder's own entries, unordered. Raises Unknown."""
    if isinstance(node, Branch):
        for child in node.children.values():
            yield from entries(child)
    elif isinstance(node, Stub):
        raise Unknown
    elif node:
        yield from node.entries.items()


def leaves(node: Node | None, folder: str = "") -> Iterator[tuple[str, bytes]]:
    """Every config below, with its full name, unordered. Raises Unknown."""
    for segment, entry in entries(node):
        if isinstance(entry, bytes):
            yield folder + segment, entry
        else:
            yield from leaves(entry, folder + segment)


def same(a: Entry | None, b: Entry | None) -> bool:
    if a is None or b is None or isinstance(a, bytes) or isinstance(b, bytes):
        return a == b
    return a is b or a.digest == b.digest


def diff(a: Node | None, b: Node | None, folder: str = "") -> Iterator[tuple[str, bytes | None]]:
    """What turns a into b, skipping everything with equal digests. Raises Unknown."""
    if same(a, b):
        return
    if isinstance(a, Branch) and isinstance(b, Branch):
        for slot in a.children.keys() | b.children.keys():
            was, now = a.children.get(slot), b.children.get(slot)
            if was is not now:
                yield from diff(was, now, folder)
        return
    old, new = dict(entries(a)), dict(entries(b))
    for segment in old.keys() | new.keys():
        x, y = old.get(segment), new.get(segment)
        if segment.endswith("/"):
            yield from diff(_node_of(x), _node_of(y), folder + segment)
        elif x != y:
            assert isinstance(y, bytes | None), "a config's entry is a digest"
            yield folder + segment, y


def fresh(old: Node | None, new: Node | None) -> Iterator[Bucket | Branch]:
    """The nodes a commit has to store: those of new that old has not at the same place.

    A stub of new is one of old that moved (its bucket was split): stored already.
    """
    if new is None or isinstance(new, Stub) or same(old, new):
        return
    yield new
    if isinstance(new, Branch):
        for slot, child in new.children.items():
            yield from fresh(old.children.get(slot) if isinstance(old, Branch) else None, child)
        return
    for segment, entry in new.entries.items():
        if not isinstance(entry, bytes):
            yield from fresh(_before(old, segment), entry)


def _before(old: Node | None, segment: str) -> Node | None:
    """The same folder in old, seen from a bucket of new."""
    if isinstance(old, Bucket):
        return _node_of(old.entries.get(segment))
    return _node_of(find(old, segment)) if old else None


# --- writing -------------------------------------------------------------------------------------------------------------------


class Edits:
    """Edits of one folder: entries by segment (a nested Edits for a folder below), and subtrees replaced by stubs, by place."""

    __slots__ = ("entries", "stubs")

    def __init__(self) -> None:
        self.entries: dict[str, bytes | Stub | Edits | None] = {}
        self.stubs: dict[bytes, Stub | None] = {}

    def folder(self, path: list[str]) -> Edits:
        """The edits of a folder below. Raises ValueError if one on the way is edited as a whole."""
        at = self
        for segment in path:
            below = at.entries.setdefault(segment, Edits())
            if not isinstance(below, Edits):
                raise ValueError(f"{segment} is edited as a whole and in parts")  # noqa: TRY004  # a value from a proof, not a mistake of ours
            at = below
        return at

    def put(self, segment: str, value: bytes | None) -> None:
        if segment in self.entries:
            raise ValueError(f"{segment} is edited twice")
        self.entries[segment] = Stub(value) if value and segment.endswith("/") else value


def plan(changes: Mapping[str, bytes | None], stubs: Mapping[str, bytes | None]) -> Edits:
    """Raises ValueError for what is no name, no position, or contradicts itself."""
    top = Edits()
    for name, value in changes.items():
        if len(name) > MAX_CONFIG_NAME or not _NAME.fullmatch(name):
            raise ValueError(f"not a name: {name[:80]!r}")
        *path, last = segments(name)
        top.folder(path).put(last, value)
    for position, digest in stubs.items():  # "checkout/#3a": below digits 3, a of the folder checkout/
        if not _POSITION.fullmatch(position):
            raise ValueError(f"not a position: {position[:80]!r}")
        name, _, place = position.rpartition("#")
        top.folder(segments(name)).stubs[place.encode().translate(_HEX)] = Stub(digest) if digest else None
    return top


def update(root: Node, changes: Mapping[str, bytes | None], stubs: Mapping[str, bytes | None] | None = None) -> Node:
    """The trie after all changes at once; None removes. O(changes x depth); untouched nodes are shared.

    A folder's name with a digest makes it opaque; stubs do the same for a place inside a folder. Only proofs need either.
    Raises Unknown when a change lies below a stub, ValueError as `plan` does.
    """
    return _folder(root, plan(changes, stubs or {})) or EMPTY


_Item: TypeAlias = tuple[bytes, str, bytes | Stub | Edits | None]  # place, segment, what it becomes


def _folder(node: Node | None, edits: Edits) -> Node | None:
    items = [(digits(segment), segment, value) for segment, value in edits.entries.items()]
    return _below(node, items, edits.stubs, 0)


def _below(node: Node | None, items: list[_Item], stubs: Mapping[bytes, Stub | None], depth: int) -> Node | None:
    if b"" in stubs:
        node, stubs = stubs[b""], {place: stub for place, stub in stubs.items() if place}
    if not items and not stubs:
        return node
    if isinstance(node, Stub):
        raise Unknown("an edit below a stub")
    if not stubs and not isinstance(node, Branch):
        return _settle(_edited(node.entries if node else {}, items), depth)
    children: dict[int, Node] = dict(node.children if isinstance(node, Branch) else spread(node, depth))
    for slot in {place[depth] for place, _, _ in items} | {place[0] for place in stubs}:
        child = _below(
            children.pop(slot, None),
            [item for item in items if item[0][depth] == slot],
            {place[1:]: stub for place, stub in stubs.items() if place[0] == slot},
            depth + 1,
        )
        if child is not None:
            children[slot] = child
    return _join(children)


def _edited(old: Mapping[str, Entry], items: list[_Item]) -> dict[str, Entry]:
    out = dict(old)
    for _, segment, value in items:
        entry = _folder(_node_of(out.get(segment)), value) if isinstance(value, Edits) else value
        if entry is None:
            out.pop(segment, None)
        else:
            out[segment] = entry
    return out


def spread(node: Bucket | None, depth: int) -> dict[int, Bucket]:
    """A bucket's entries as the children a branch in its place would have."""
    groups: dict[int, dict[str, Entry]] = {}
    for segment, entry in node.entries.items() if node else ():
        groups.setdefault(digits(segment)[depth], {})[segment] = entry
    return {slot: Bucket(group) for slot, group in groups.items()}


def _settle(found: dict[str, Entry], depth: int) -> Bucket | Branch | None:
    if not found:
        return None
    return _split(Bucket(found), depth)


def _split(bucket: Bucket, depth: int) -> Bucket | Branch:
    if len(bucket.entries) <= BUCKET:
        return bucket
    return Branch({slot: _split(child, depth + 1) for slot, child in spread(bucket, depth).items()})


def _join(children: dict[int, Node]) -> Branch | Bucket | None:
    """A branch, or one bucket when 32 or fewer entries are left below it. A branch with a stub never folds: how much it hides is not known."""
    buckets = [child for child in children.values() if isinstance(child, Bucket)]
    if len(buckets) < len(children) or sum(len(each.entries) for each in buckets) > BUCKET:
        return Branch(children)
    merged = {segment: entry for each in buckets for segment, entry in each.entries.items()}
    return Bucket(merged) if merged else None


# --- stored form ---------------------------------------------------------------------------------------------------------------


def decode(body: bytes) -> Bucket | Branch:
    """Strict inverse of ``encode``; everything below becomes stubs. Raises ValueError for whatever ``encode`` would not have written."""
    node = _decode_branch(body) if body[:1] == b"\x01" else _decode_bucket(body)
    if node.encode() != body:
        raise ValueError("not the canonical form of a node")
    return node


def _decode_branch(body: bytes) -> Branch:
    bitmap = int.from_bytes(body[1:3], "big")
    slots = [slot for slot in range(FANOUT) if bitmap >> slot & 1]
    if len(body) != 3 + 32 * len(slots) or not slots:
        raise ValueError("a branch of a wrong length")
    return Branch({slot: Stub(body[3 + 32 * i : 35 + 32 * i]) for i, slot in enumerate(slots)})


def _decode_bucket(body: bytes) -> Bucket:
    if len(body) < 2 or body[0] != 0 or body[1] > BUCKET:
        raise ValueError("not a node")
    found: dict[str, Entry] = {}
    at = 2
    for _ in range(body[1]):
        end = at + 33 + (body[at] if at < len(body) else 0)
        segment, digest, at = body[at + 1 : end - 32].decode("ascii"), body[end - 32 : end], end
        if len(digest) != 32 or not _SEGMENT.fullmatch(segment):
            raise ValueError("a bucket of a wrong shape")
        found[segment] = Stub(digest) if segment.endswith("/") else digest
    return Bucket(found)
