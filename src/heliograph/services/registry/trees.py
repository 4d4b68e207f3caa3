"""Which nodes of partly loaded tries are still needed for a question, and putting them in place. Pure.

Tries come from the database as single nodes with stubs below. Each function here says which stubs stand in the way of a question; the caller loads
those, grafts them on, and asks again until nothing is missing: one round trip for each level of the trie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from heliograph.core.trie import Branch, Bucket, Entry, Node, Stub, digits, entries, same, segments

Loaded = Mapping[bytes, Bucket | Branch]


def graft(node: Node, loaded: Loaded) -> Node:
    """The trie with loaded nodes in the place of their stubs; parts without one are shared."""
    if isinstance(node, Stub):
        return loaded.get(node.digest, node)
    if isinstance(node, Branch):
        children = {slot: graft(child, loaded) for slot, child in node.children.items()}
        return node if all(children[slot] is child for slot, child in node.children.items()) else Branch(children)
    below = {name: entry if isinstance(entry, bytes) else graft(entry, loaded) for name, entry in node.entries.items()}
    return node if all(below[name] is entry for name, entry in node.entries.items()) else Bucket(below)


def on_paths(root: Node, names: Iterable[str], leaving: frozenset[str] = frozenset()) -> set[bytes]:
    """What stands in the way of reading or changing ``names``. ``leaving``: those that will be deleted; a branch may then fold into a bucket, for
    which its other children must be known."""
    found: set[bytes] = set()
    for name in names:
        _along(root, segments(name), found, siblings=name in leaving)
    return found


def _along(root: Node, path: list[str], found: set[bytes], *, siblings: bool) -> None:
    at: Entry | None = root
    for segment in path:
        for slot in digits(segment):
            if not isinstance(at, Branch):
                break
            if siblings:
                found.update(child.digest for child in at.children.values() if isinstance(child, Stub))
            at = at.children.get(slot)
        if isinstance(at, Stub):
            found.add(at.digest)
            return
        at = at.entries.get(segment) if isinstance(at, Bucket) else None
    if isinstance(at, Stub):  # a folder that was asked for by its own name
        found.add(at.digest)


def of_folder(node: Node | None) -> set[bytes]:
    """What hides a folder's own entries; folders below it stay closed."""
    if isinstance(node, Stub):
        return {node.digest}
    if isinstance(node, Branch):
        return {digest for child in node.children.values() for digest in of_folder(child)}
    return set()


def everywhere(node: Node | None) -> set[bytes]:
    """Every stub."""
    if isinstance(node, Stub):
        return {node.digest}
    if node is None or node.complete:
        return set()
    below = node.children.values() if isinstance(node, Branch) else node.entries.values()
    return {digest for each in below if not isinstance(each, bytes) for digest in everywhere(each)}


def between(a: Node | None, b: Node | None) -> set[bytes]:
    """What hides the difference of two tries; what is equal stays closed."""
    if same(a, b):
        return set()
    if isinstance(a, Branch) and isinstance(b, Branch):
        slots = a.children.keys() | b.children.keys()
        return {digest for slot in slots for digest in between(a.children.get(slot), b.children.get(slot))}
    if hidden := of_folder(a) | of_folder(b):
        return hidden
    old, new = dict(entries(a)), dict(entries(b))
    return {digest for name in old.keys() | new.keys() for digest in between(_folder(old.get(name)), _folder(new.get(name)))}


def _folder(entry: Entry | None) -> Node | None:
    return None if isinstance(entry, bytes) else entry
