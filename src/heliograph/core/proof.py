"""Proofs for filtered views. One mechanism: a client holds the part of the trie that its view needs (a partial trie); a proof is what it
has to add to the view's own changes to compute the new root. A first proof is the same thing, starting from nothing.

A view is a set of selectors: ``checkout/limits`` (a config), ``checkout/`` (a folder with all below it), ``""`` (everything).

What `advance` guarantees when it returns: the client's entries inside its view are exactly those of the signed root. Nothing withheld,
nothing added, nothing altered, absent names included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from heliograph.core import frames
from heliograph.core.canonical import canonical
from heliograph.core.digest import Digest, digest, spell, unspell
from heliograph.core.errors import BadProof
from heliograph.core.names import inside
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

Want = dict[str, "Want | bool"]  # one folder's segments: True = all of it is in view, a dict = only parts below


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
    return {name: raw and spell(raw) for name, raw in sorted(digests.items())}


def _raw(digests: Mapping[str, str | None]) -> dict[str, bytes | None]:
    return {name: None if text is None else unspell(text) for name, text in digests.items()}


# --- views ---------------------------------------------------------------------------------------------------------------------


def covers(view: Iterable[str], name: str) -> bool:
    return any(inside(name, selector) for selector in view)


def wanted(view: Iterable[str]) -> Want | bool:
    top: Want = {}
    for selector in sorted(view):  # a folder sorts before what is in it
        *path, last = segments(selector) or [""]
        if not last:
            return True
        at: Want | bool = top
        for segment in path:
            at = at if at is True else at.setdefault(segment, {})
        if at is not True:
            at[last] = True
    return top


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


def view_digest(root: Node, view: Iterable[str]) -> Digest:
    """ETag of a bundle and content of a heartbeat: equal as long as nothing in the view changes. Raises Unknown below a stub."""
    return digest("view", canonical([[selector, _spelled_entry(get(root, selector))] for selector in sorted(view)]))


def _spelled_entry(entry: Entry | None) -> str | None:
    if entry is None or isinstance(entry, bytes):
        return entry and spell(entry)
    return spell(entry.digest)


# --- making (the side that has both tries) --------------------------------------------------------------------------------------


def changes(old: Node | None, new: Node, view: Iterable[str]) -> dict[str, bytes | None]:
    """The version's changes inside a view."""
    return {name: digest for name, digest in diff(old, new) if covers(view, name)}


def prove(old: Node | None, new: Node, view: Iterable[str]) -> Proof:
    """What a client that holds the view at old (None: nothing) needs besides `changes`."""
    out = Proof({}, {})
    _folder(_or_none(old), _or_none(new), wanted(view), "", out)
    return out


def _or_none(root: Node | None) -> Node | None:
    """Only a version's root can be an empty bucket; below it, nothing is None."""
    return None if isinstance(root, Bucket) and not root.entries else root


def _folder(old: Node | None, new: Node | None, want: Want | bool, folder: str, out: Proof) -> None:
    if want is not True:
        _walk(old, new, {s: (digits(s), w) for s, w in want.items()}, folder, "", out, hidden=False)


def _walk(old: Node | None, new: Node | None, want: dict, folder: str, place: str, out: Proof, *, hidden: bool) -> None:
    """hidden: the client knows old by stubs at best and new must be told entry by entry (a branch that folded into a bucket)."""
    if not hidden and same(old, new):
        return
    if new is None or (hidden and not want):
        if old is not None:
            out.stubs[f"{folder}#{place}"] = None
        _entries(None, new, want, folder, out)
    elif not want:
        out.stubs[f"{folder}#{place}"] = new.digest
    elif isinstance(old, Branch) or isinstance(new, Branch):
        folded, depth = not isinstance(new, Branch), len(place)
        was, now = (n.children if isinstance(n, Branch) else spread(n, depth) for n in (old, new))
        for slot in sorted(was.keys() | now.keys()):
            inside = {s: w for s, w in want.items() if w[0][depth] == slot}
            _walk(was.get(slot), now.get(slot), inside, folder, f"{place}{slot:x}", out, hidden=folded)
    else:
        _entries(old, new, want, folder, out)


def _entries(old: Bucket | None, new: Bucket | None, want: dict, folder: str, out: Proof) -> None:
    was, now = dict(entries(old)), dict(entries(new))
    for segment in sorted(was.keys() | now.keys()):
        x, y = was.get(segment), now.get(segment)
        _, inside = want.get(segment, (None, False))
        if isinstance(inside, dict):
            _folder(x, y, inside, folder + segment, out)
        elif not inside and not same(x, y):
            out.entries[folder + segment] = y if isinstance(y, bytes | None) else y.digest


def known(root: Node, view: Iterable[str]) -> Proof:
    """The first proof of what a partial trie knows: with the view's entries it rebuilds the same trie from nothing."""
    out = Proof({}, {})
    _known(root, tuple(view), "", "", out)
    return out


def _known(node: Node, view: tuple[str, ...], folder: str, place: str, out: Proof) -> None:
    if isinstance(node, Stub):
        out.stubs[f"{folder}#{place}"] = node.digest
    elif isinstance(node, Branch):
        for slot, child in node.children.items():
            _known(child, view, folder, f"{place}{slot:x}", out)
    else:
        for segment, entry in node.entries.items():
            _known_entry(entry, view, folder + segment, out)


def _known_entry(entry: Entry, view: tuple[str, ...], name: str, out: Proof) -> None:
    if covers(view, name):
        return
    if isinstance(entry, bytes):
        out.entries[name] = entry
    elif isinstance(entry, Stub):
        out.entries[name] = entry.digest
    else:
        _known(entry, view, name, "", out)


# --- checking (the client) ------------------------------------------------------------------------------------------------------


def advance(held: Node | None, view: Iterable[str], inside: Mapping[str, bytes | None], proof: Proof, root: bytes) -> Node:
    """The client's next partial trie. `root` comes from a signed version. Raises BadProof and changes nothing otherwise."""
    if clash := inside.keys() & proof.entries.keys():
        raise BadProof(f"told twice: {min(clash)}")
    try:
        after = update(held or EMPTY, {**proof.entries, **inside}, proof.stubs)
    except (Unknown, ValueError) as e:
        raise BadProof(f"does not fit what is held: {e}") from e
    if after.digest != root:
        raise BadProof("does not lead to the signed root")
    if not resolved(after, view):
        raise BadProof("leaves part of the view unproved")
    return after
