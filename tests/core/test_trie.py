"""The trie against a dict: the same set has the same root, whatever led to it, and nothing else has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.contents import bucket_of, buckets, built, contents, edited, edits, hashed, thorough

from heliograph.core import trie
from heliograph.core.digest import raw_digest


@thorough
@given(contents, st.randoms(), buckets)
def test_the_same_set_has_the_same_root_in_any_order_and_batching(content, rnd, bucket):
    with bucket_of(bucket):
        todo, root = list(content.items()), trie.EMPTY
        rnd.shuffle(todo)
        while todo:
            count = rnd.randint(1, len(todo))
            root, todo = trie.update(root, dict(todo[:count])), todo[count:]
        assert root.digest == built(content).digest
        assert dict(trie.leaves(root)) == content


@thorough
@given(contents, edits, buckets)
def test_edits_and_then_their_inverse_lead_back(content, change, bucket):
    with bucket_of(bucket):
        before = built(content)
        after = trie.update(before, change)
        assert dict(trie.leaves(after)) == edited(content, change)
        assert after.digest == built(edited(content, change)).digest
        assert trie.update(after, {name: content.get(name) for name in change}).digest == before.digest


@given(contents, contents, buckets)
def test_a_diff_is_exactly_what_differs(one, two, bucket):
    with bucket_of(bucket):
        a, b = built(one), built(two)
        differing = {name: two.get(name) for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
        assert dict(trie.diff(a, b)) == differing
        assert (a.digest == b.digest) == (one == two)
        assert trie.update(a, differing).digest == b.digest


@given(contents, edits, buckets)
def test_every_name_is_found_and_no_other(content, change, bucket):
    with bucket_of(bucket):
        root = built(content)
        for name in content.keys() | change.keys():
            assert trie.get(root, name) == content.get(name)
        for folder in ("x/", "x/y/", "nowhere/"):
            found = trie.get(root, folder)
            assert not isinstance(found, bytes)
            inside = {name: entry for name, entry in content.items() if name.startswith(folder)}
            assert dict(trie.leaves(found, folder)) == inside


@thorough
@given(contents, edits, buckets)
def test_a_commit_stores_enough_to_load_every_version(content, change, bucket):
    with bucket_of(bucket):
        before = built(content)
        after = trie.update(before, change)
        stored = {node.digest: node.encode() for node in [*trie.fresh(None, before), *trie.fresh(before, after), trie.EMPTY]}
        for root, truth in ((before, content), (after, edited(content, change))):
            assert dict(trie.leaves(loaded(stored, root.digest))) == truth


def loaded(stored: dict[bytes, bytes], digest: bytes) -> trie.Node:
    body = stored[digest]
    assert raw_digest("node", body) == digest
    node = trie.decode(body)
    if isinstance(node, trie.Branch):
        return trie.Branch({slot: loaded(stored, child.digest) for slot, child in node.children.items()})
    return trie.Bucket(
        {name: entry if isinstance(entry, bytes) else loaded(stored, entry.digest) for name, entry in node.entries.items()}
    )


@given(contents.filter(bool), st.integers(0, 10_000), st.integers(1, 255))
def test_a_stored_node_with_one_byte_changed_never_has_its_digest(content, where, flip):
    with bucket_of(3):
        root = built(content)
        body = bytearray(root.encode())
        body[where % len(body)] ^= flip
        assert raw_digest("node", bytes(body)) != root.digest


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda tail: b"\x00\x01" + tail))
def test_decoding_refuses_or_gives_back_the_same_bytes(body):
    try:
        node = trie.decode(body)
    except ValueError:
        return
    assert node.encode() == body


@given(contents, edits)
def test_what_lies_below_a_stub_is_never_guessed(content, change):
    with bucket_of(2):
        root = built(content)
        hidden = trie.update(root, {}, {"#": root.digest})
        assert hidden.digest == root.digest
        for name in change:
            with pytest.raises(trie.Unknown):
                trie.get(hidden, name)
        if change:
            with pytest.raises(trie.Unknown):
                trie.update(hidden, change)


def test_a_folder_without_entries_does_not_exist():
    root = built({"x/y/a": hashed(1), "b": hashed(2)})
    after = trie.update(root, {"x/y/a": None})
    assert after.digest == built({"b": hashed(2)}).digest
    assert trie.update(after, {"b": None}) is trie.EMPTY


def test_a_config_and_a_folder_of_one_name_are_two_entries():
    root = built({"x": hashed(1), "x/a": hashed(2)})
    assert trie.get(root, "x") == hashed(1)
    assert trie.get(root, "x/a") == hashed(2)
    assert trie.get(trie.update(root, {"x": None}), "x/a") == hashed(2)


@pytest.mark.parametrize(
    ("changes", "stubs"),
    [
        ({"X": hashed(1)}, {}),
        ({"a" * 201: hashed(1)}, {}),
        ({"x/": hashed(1), "x/a": hashed(2)}, {}),
        ({"x/a": hashed(2), "x/": None}, {}),
        ({}, {"x/#g": None}),
        ({}, {"#" + "0" * 17: hashed(1)}),
        ({"x/": hashed(1)}, {"x/#": hashed(2)}),
    ],
)
def test_edits_that_make_no_sense(changes, stubs):
    with pytest.raises(ValueError):
        trie.update(trie.EMPTY, changes, stubs)
