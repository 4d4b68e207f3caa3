"""Tries loaded node by node say and become exactly what whole ones do."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from heliograph.core import trie
from heliograph.core.trie import Branch, Bucket, Node, Stub
from heliograph.services.registry import trees

names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3).map("/".join) | st.integers(0, 120).map("c{}".format)
contents = st.dictionaries(names, st.integers(0, 3), max_size=90)


def built(content: dict[str, int]) -> Node:
    return trie.update(trie.EMPTY, {name: _leaf(value) for name, value in content.items()})


def _leaf(value: int) -> bytes:
    return hashlib.sha256(str(value).encode()).digest()


class Shelf:
    """Stored nodes by digest, and how many were asked for."""

    def __init__(self, *roots: Node) -> None:
        self.nodes: dict[bytes, bytes] = {}
        self.asked = 0
        for root in roots:
            self.store(root)

    def store(self, node: Node) -> None:
        assert not isinstance(node, Stub)
        self.nodes[node.digest] = node.encode()
        below = node.children.values() if isinstance(node, Branch) else node.entries.values()
        for each in below:
            if isinstance(each, Bucket | Branch):
                self.store(each)

    def load(self, digests: set[bytes]) -> dict[bytes, Bucket | Branch]:
        self.asked += len(digests)
        return {digest: trie.decode(self.nodes[digest]) for digest in digests}


@given(contents, contents)
def test_changes_on_loaded_paths_lead_to_the_same_root(before: dict[str, int], after: dict[str, int]) -> None:
    changed = {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changes = {name: None if value is None else _leaf(value) for name, value in changed.items()}
    leaving = frozenset(name for name, value in changes.items() if value is None)
    old = built(before)
    shelf = Shelf(old)
    root: Node = Stub(old.digest)
    while needed := trees.on_paths(root, changes, leaving):
        root = trees.graft(root, shelf.load(needed))
    new = trie.update(root, changes)
    assert new.digest == built(after).digest
    for node in trie.fresh(root, new):
        shelf.nodes[node.digest] = node.encode()
    assert dict(trie.leaves(_whole(new.digest, shelf))) == {name: _leaf(value) for name, value in after.items()}


def _whole(digest: bytes, shelf: Shelf) -> Node:
    """From what is stored alone."""
    if digest == trie.EMPTY.digest:
        return trie.EMPTY
    root: Node = Stub(digest)
    while needed := trees.everywhere(root):
        root = trees.graft(root, shelf.load(needed))
    return root


@given(contents, contents)
def test_difference_of_loaded_tries(before: dict[str, int], after: dict[str, int]) -> None:
    old, new = built(before), built(after)
    shelf = Shelf(old, new)
    a: Node = Stub(old.digest)
    b: Node = Stub(new.digest)
    while needed := trees.between(a, b):
        loaded = shelf.load(needed)
        a, b = trees.graft(a, loaded), trees.graft(b, loaded)
    assert dict(trie.diff(a, b)) == dict(trie.diff(old, new))


@given(contents)
def test_folder_of_a_loaded_trie(content: dict[str, int]) -> None:
    whole = built(content)
    shelf = Shelf(whole)
    root: Node = Stub(whole.digest)
    while needed := trees.of_folder(root):
        root = trees.graft(root, shelf.load(needed))
    assert {name for name, _ in trie.entries(root)} == {name.split("/")[0] + "/" * ("/" in name) for name in content}


def test_one_config_of_thousands_needs_its_path_only() -> None:
    whole = built({f"c{i}": 0 for i in range(5000)})
    shelf = Shelf(whole)
    root: Node = Stub(whole.digest)
    while needed := trees.on_paths(root, ["c77"]):
        root = trees.graft(root, shelf.load(needed))
    assert shelf.asked <= 5
    assert trees.graft(root, {}) is root
