"""The algebra of deltas, and how a change travels."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.contents import config_names, thorough

from heliograph.core import delta, trie
from heliograph.core.canonical import canonical
from heliograph.core.errors import BadDigest
from heliograph.core.frames import Changed

small = st.sampled_from([1, "Käse", {"on": True}, [1, 2], {"name": "\U0001f9c0"}])
large = st.integers(0, 3).map(lambda n: {f"k{i}": {"n": i * n % 7, "text": "Käse \U0001f9c0 €"} for i in range(60)})
entries = st.builds(
    lambda value, schema: delta.entry_of(canonical(value), schema), small | large, st.sampled_from([None, "sha256:" + "1" * 64])
)
contents = st.dictionaries(config_names, entries, max_size=12)
deltas = st.dictionaries(config_names, st.none() | entries, max_size=8)


def root_of(content):
    return trie.update(trie.EMPTY, {name: entry.digest for name, entry in content.items()}).digest


@thorough
@given(contents, contents)
def test_a_delta_over_the_wire_leads_to_the_same_texts_entries_and_root(old, new):
    frame = [delta.to_wire(name, old.get(name), entry) for name, entry in delta.diff(old, new).items()]
    read = msgspec.json.decode(msgspec.json.encode(frame), type=list[Changed])
    after = delta.apply(old, {each.name: delta.from_wire(each, old.get(each.name)) for each in read})
    assert after == new
    assert {name: entry.document for name, entry in after.items()} == {name: entry.document for name, entry in new.items()}
    assert root_of(after) == root_of(new)
    assert delta.diff(after, new) == {}


@given(contents, deltas, deltas, deltas)
def test_composing_is_applying_one_after_the_other_and_associative(content, one, two, three):
    assert delta.apply(delta.apply(content, one), two) == delta.apply(content, delta.compose(one, two))
    assert delta.compose(delta.compose(one, two), three) == delta.compose(one, delta.compose(two, three))


@thorough
@given(contents, contents, contents)
def test_two_deltas_compose_to_the_direct_one(a, b, c):
    composed = delta.compose(delta.diff(a, b), delta.diff(b, c))
    assert delta.apply(a, composed) == c == delta.apply(a, delta.diff(a, c))
    assert root_of(delta.apply(a, composed)) == root_of(c)


def long_entry(**more):
    return delta.entry_of(canonical({**{f"k{i}": "x" * 20 for i in range(100)}, **more}))


def test_a_small_document_travels_as_text():
    old, new = (delta.entry_of(canonical({"max": n})) for n in (1, 2))
    assert delta.to_wire("a", old, new).document == '{"max":2}'


def test_a_large_one_with_a_small_change_travels_as_edits():
    told = delta.to_wire("a", long_entry(), long_entry(k50="y"))
    assert told.document is msgspec.UNSET
    assert len(json.dumps(told.edits)) < 60


def test_a_large_one_without_a_base_or_with_another_one_travels_as_text():
    assert isinstance(delta.to_wire("a", None, long_entry()).document, str)
    assert isinstance(delta.to_wire("a", delta.entry_of(canonical(list(range(900)))), long_entry()).document, str)


def test_a_new_schema_alone_travels_without_the_document():
    old = long_entry()
    new = delta.entry_of(old.document, "sha256:" + "2" * 64)
    assert delta.to_wire("a", old, new) == Changed(name="a", leaf=new.leaf)
    assert delta.from_wire(delta.to_wire("a", old, new), old) == new


def test_members_of_a_leaf_that_are_not_known_are_kept():
    document = b'{"max":1}'
    leaf = delta.entry_of(document).leaf.replace("{", '{"colour":"red",')
    told = Changed(name="a", leaf=leaf, document=document.decode())
    assert delta.from_wire(told, None) == delta.Entry(leaf, document)


@given(deltas.filter(bool), st.randoms())
def test_a_text_that_is_not_the_named_one_is_refused(some, rnd):
    name, entry = rnd.choice(sorted(some.items(), key=lambda each: each[0]))
    told = delta.to_wire(name, None, entry)
    if entry is None:
        assert delta.from_wire(told, None) is None
        return
    for text in (told.document + " ", told.document[:-1], "null", ""):
        with pytest.raises(BadDigest):
            delta.from_wire(msgspec.structs.replace(told, document=text), None)
