"""Content of a view, and what turns one into another.

    apply(a, diff(a, b)) == b          apply(apply(a, d), e) == apply(a, compose(d, e))          compose is associative

Entries are immutable and shared between contents: a delta over one config of five thousand copies references, never texts. On the wire a changed
document travels as its exact text, or, from 1 KiB up, as edits of the text that the reader holds where these are less than half of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from heliograph.core import textedit
from heliograph.core.digest import digest, raw_digest
from heliograph.core.errors import BadDigest
from heliograph.core.frames import Changed
from heliograph.core.records import Leaf

EDIT_FROM = 1024
"""Bytes of text below which edits are not worth it: record and head dominate such a frame."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One config as exact text: the leaf record, and the document it names."""

    leaf: str
    document: bytes

    @property
    def digest(self) -> bytes:
        """Of the leaf: what the trie holds."""
        return raw_digest("leaf", self.leaf.encode())


Content = Mapping[str, Entry]
Delta = Mapping[str, Entry | None]
"""name -> its new entry, or None where it is gone."""


def diff(old: Content, new: Content) -> Delta:
    """What turns old into new, and nothing else."""
    out: dict[str, Entry | None] = {name: entry for name, entry in new.items() if old.get(name) != entry}
    return out | dict.fromkeys(old.keys() - new.keys())


def apply(content: Content, delta: Delta) -> Content:
    """The content after a delta; what the delta does not name is shared with the one before."""
    merged = {**content, **delta}
    return {name: entry for name, entry in merged.items() if entry is not None}


def compose(first: Delta, second: Delta) -> Delta:
    """Both, one after the other, as one. A config that comes and goes again stays as None: the reader may hold it from before."""
    return {**first, **second}


# --- on the wire ----------------------------------------------------------------------------------------------------------------


def to_wire(name: str, old: Entry | None, new: Entry | None) -> Changed:
    """How a reader that holds `old` (None: nothing, or it is not sure) is told of `new`."""
    if new is None:
        return Changed(name=name, leaf=None)
    if old is not None and old.document == new.document:
        return Changed(name=name, leaf=new.leaf)
    if old is not None and len(new.document) >= EDIT_FROM:
        edits = tuple(textedit.edit(old.document, new.document))
        if 2 * len(msgspec.json.encode(edits)) < len(new.document):
            return Changed(name=name, leaf=new.leaf, edits=edits)
    return Changed(name=name, leaf=new.leaf, document=new.document.decode())


def from_wire(changed: Changed, held: Entry | None) -> Entry | None:
    """The entry a change leads to, its document's bytes checked against the leaf. Raises BadDigest."""
    if changed.leaf is None:
        return None
    wanted = read_leaf(changed.leaf).document
    document = _document(changed, held)
    if document is None or digest("document", document) != wanted:
        raise BadDigest(f"{changed.name}: the document is not the one that its leaf names")
    return Entry(changed.leaf, document)


def _document(changed: Changed, held: Entry | None) -> bytes | None:
    if isinstance(changed.document, str):
        return changed.document.encode()
    if held is None or isinstance(changed.edits, msgspec.UnsetType):
        return held.document if held else None
    try:
        return textedit.splice(held.document, changed.edits)
    except ValueError as error:
        raise BadDigest(f"{changed.name}: {error}") from None


def read_leaf(text: str) -> Leaf:
    """Raises BadDigest for what is no leaf record."""
    try:
        return msgspec.json.decode(text, type=Leaf)
    except msgspec.DecodeError:
        raise BadDigest("not a leaf record") from None


def entry_of(document: bytes, schema: str | None = None) -> Entry:
    """The entry of a document's canonical text with an optional schema's digest."""
    return Entry(Leaf(document=digest("document", document), schema=schema).text().decode(), document)
