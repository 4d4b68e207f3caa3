"""Proofs for filtered views. One mechanism: a client holds the part of the trie that its view needs (a partial trie); a proof is what it
has to add to the view's own changes to compute the new root. A first proof is the same thing, starting from nothing.

A view is a set of selectors: ``checkout/limits`` (a config), ``checkout/`` (a folder with all below it), ``""`` (everything).

What `advance` guarantees when it returns: the client's entries inside its view are exactly those of the signed root. Nothing withheld,
nothing added, nothing altered, absent names included. The entries are the ones of the trie that it returns (`visible`, `differing`): a proof may
leave one out of the changes and be right, when what it is about is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import msgspec

from heliograph.core import frames
from heliograph.core.canonical import canonical
from heliograph.core.digest import Digest, digest, spell, unspell
from heliograph.core.errors import BadProof
from heliograph.core.trie import (
    EMPTY,
    Branch,
    Bucket,
    Entry,
    Node,
    Stub,
    Unknown,
    diff,
    digits,
    entries,
    get,
    leaves,
    same,
    segments,
    spread,
    update,
)

Want: TypeAlias = dict[str, "Want | bool"]  # one folder's segments: True = all of it is in view, a dict = only parts below


class Proof(msgspec.Struct, frozen=True):
    """Neighbours (entries outside the view that share a bucket with one inside) and subtrees known by digest only.

    entries: name -> digest of the leaf, or of the folder if the name ends in ``/``; None = gone.
    stubs: ``folder#place`` (hex digits inside that folder's trie) -> digest; None = empty.
    """

    entries: dict[str, bytes | None] = {}
    stubs: dict[str, bytes | None] = {}


def to_text(proof: Proof) -> frames.ProofText:
    """As it travels: digests spelled."""
    return frames.ProofText(_spelled(proof.entries), _spelled(proof.stubs))


def from_text(text: frames.ProofText | None) -> Proof:
    """Inverse of `to_text`; None is the empty proof. Raises BadProof."""
    if text is None:
        return Proof()
    try:
        return Proof(_raw(text.entries), _raw(text.stubs))
    except ValueError:
        raise BadProof("a digest in the proof is none") from None


def _spelled(digests: Mapping[str, bytes | None]) -> dict[str, str | None]:
    return {name: None if raw is None else spell(raw) for name, raw in sorted(digests.items())}


def _raw(digests: Mapping[str, str | None]) -> dict[str, bytes | None]:
    return {name: None if text is None else unspell(text) for name, text in digests.items()}


# --- views ---------------------------------------------------------------------------------------------------------------------


def covering(view: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name (or a folder's) is inside the view, at the cost of a few look-ups however many selectors there are."""
    selectors = frozenset(view)
    if "" in selectors:
        return lambda _: True
    folders = frozenset(each for each in selectors if each.endswith("/"))

    def covers(name: str) -> bool:
        return name in selectors or any(name[: at + 1] in folders for at, character in enumerate(name) if character == "/")

    return covers


def covers(view: Iterable[str], name: str) -> bool:
    return covering(view)(name)


def wanted(view: Iterable[str]) -> Want | bool:
    """The view as a tree of segments; True: everything."""
    top: Want = {}
    for selector in sorted(view):  # a folder sorts before what is in it
        *path, last = segments(selector) or [""]
        if not last:
            return True
        _want(top, path, last)
    return top


def _want(at: Want, path: list[str], last: str) -> None:
    for segment in path:
        below = at.setdefault(segment, {})
        if isinstance(below, bool):  # the whole folder is wanted already
            return
        at = below
    at[last] = True


def resolved(root: Node, view: Iterable[str]) -> bool:
    """Whether the partial trie settles every selector: present, or proved absent, with no stub in it."""
    try:
        return all((at := get(root, s)) is None or isinstance(at, bytes) or at.complete for s in view)
    except Unknown:
        return False


def visible(root: Node, view: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The entries of a view; each once if no selector lies inside another."""
    for selector in view:
        at = get(root, selector)
        if isinstance(at, bytes):
            yield selector, at
        else:
            yield from leaves(at, selector)


def differing(old: Node | None, new: Node, view: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
    """What a view sees change between two partial tries that both settle it; None: it is gone. Costs what changed, not what is held."""
    for selector in view:
        was, now = get(old, selector) if old else None, get(new, selector)
        if isinstance(was, bytes) or isinstance(now, bytes):
            if was != now:
                yield selector, now if isinstance(now, bytes) else None
        else:
            yield from diff(was, now, selector)


def view_digest(root: Node, view: Iterable[str]) -> Digest:
    """ETag of a bundle and content of a heartbeat: equal as long as nothing in the view changes. Raises Unknown below a stub."""
    return digest("view", canonical([[selector, _spelled_entry(get(root, selector))] for selector in sorted(view)]))


def _spelled_entry(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    return spell(entry if isinstance(entry, bytes) else entry.digest)


# --- making (the side that has both tries) --------------------------------------------------------------------------------------


def changes(old: Node | None, new: Node, view: Iterable[str]) -> dict[str, bytes | None]:
    """The version's changes inside a view."""
    covered = covering(view)
    return {name: entry for name, entry in diff(old, new) if covered(name)}


def prove(old: Node | None, new: Node, view: Iterable[str]) -> Proof:
    """What a client that holds the view at old (None: nothing) needs besides `changes`."""
    out = Proof({}, {})
    _folder(_or_none(old), _or_none(new), wanted(view), "", out)
    return out


def _or_none(root: Node | None) -> Node | None:
    """Only a version's root can be an empty bucket; below it, nothing is None."""
    return None if isinstance(root, Bucket) and not root.entries else root


_Placed: TypeAlias = Mapping[
    str, tuple[bytes, Want | bool]
]  # what is wanted below a place: segment -> its digits, and what of it


def _folder(old: Entry | None, new: Entry | None, want: Want | bool, folder: str, out: Proof) -> None:
    assert not isinstance(old, bytes), "a folder's entry is a node"
    assert not isinstance(new, bytes), "a folder's entry is a node"
    if isinstance(want, dict):
        _walk(old, new, {segment: (digits(segment), below) for segment, below in want.items()}, folder, "", out, hidden=False)


def _walk(old: Node | None, new: Node | None, want: _Placed, folder: str, place: str, out: Proof, *, hidden: bool) -> None:
    """Down only where the view goes. hidden: a branch folded into a bucket, so the client, which knew old by stubs at best, must be told new entry by
    entry."""
    if not hidden and same(old, new):
        return
    if new is None or (hidden and not want):
        if old is not None:
            out.stubs[f"{folder}#{place}"] = None
        _entries(None, new, want, folder, out)
    elif not want:
        out.stubs[f"{folder}#{place}"] = new.digest
    elif isinstance(old, Branch) or isinstance(new, Branch):
        _slots(old, new, want, folder, place, out)
    else:
        _entries(old, new, want, folder, out)


def _slots(old: Node | None, new: Node, want: _Placed, folder: str, place: str, out: Proof) -> None:
    depth = len(place)
    was, now = _children(old, depth), _children(new, depth)
    for slot in sorted(was.keys() | now.keys()):
        below = {segment: placed for segment, placed in want.items() if placed[0][depth] == slot}
        _walk(was.get(slot), now.get(slot), below, folder, f"{place}{slot:x}", out, hidden=not isinstance(new, Branch))


def _children(node: Node | None, depth: int) -> Mapping[int, Node]:
    if isinstance(node, Stub):
        raise Unknown("a proof is made from tries that are known where the view goes")
    return node.children if isinstance(node, Branch) else spread(node, depth)


def _entries(old: Node | None, new: Node | None, want: _Placed, folder: str, out: Proof) -> None:
    was, now = dict(entries(old)), dict(entries(new))
    for segment in sorted(was.keys() | now.keys()):
        x, y = was.get(segment), now.get(segment)
        _, below = want.get(segment, (b"", False))
        if isinstance(below, dict):
            _folder(x, y, below, folder + segment, out)
        elif not below and not same(x, y):
            out.entries[folder + segment] = y if y is None or isinstance(y, bytes) else y.digest


def known(root: Node, view: Iterable[str]) -> Proof:
    """The first proof of what a partial trie knows: with the view's entries it rebuilds the same trie from nothing."""
    out = Proof({}, {})
    _known(root, covering(view), "", "", out)
    return out


def _known(node: Node, covered: Callable[[str], bool], folder: str, place: str, out: Proof) -> None:
    if isinstance(node, Stub):
        out.stubs[f"{folder}#{place}"] = node.digest
    elif isinstance(node, Branch):
        for slot, child in node.children.items():
            _known(child, covered, folder, f"{place}{slot:x}", out)
    else:
        for segment, entry in node.entries.items():
            _known_entry(entry, covered, folder + segment, out)


def _known_entry(entry: Entry, covered: Callable[[str], bool], name: str, out: Proof) -> None:
    if covered(name):
        return
    if isinstance(entry, bytes):
        out.entries[name] = entry
    elif isinstance(entry, Stub):
        out.entries[name] = entry.digest
    else:
        _known(entry, covered, name, "", out)


# --- checking (the client) ------------------------------------------------------------------------------------------------------


def advance(held: Node | None, view: Iterable[str], inside: Mapping[str, bytes | None], proof: Proof, root: bytes) -> Node:
    """The client's next partial trie. `root` comes from a signed version. Raises BadProof and changes nothing otherwise."""
    if clash := inside.keys() & proof.entries.keys():
        raise BadProof(f"told twice: {min(clash)[:80]!r}")
    try:
        after = update(held or EMPTY, {**proof.entries, **inside}, proof.stubs)
    except (Unknown, ValueError) as e:
        raise BadProof(f"does not fit what is held: {e}") from e
    if after.digest != root:
        raise BadProof("does not lead to the signed root")
    if not resolved(after, view):
        raise BadProof("leaves part of the view unproved")
    return after
