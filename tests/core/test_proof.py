"""What a client with a view believes is the truth of the signed root, whatever it is sent."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.contents import (
    bucket_of,
    buckets,
    built,
    config_names,
    contents,
    edited,
    edits,
    hashed,
    selectors,
    thorough,
    views,
)

from heliograph.core import names, proof, trie
from heliograph.core.errors import BadProof
from heliograph.core.proof import Proof


def message(old, new, view):
    return proof.changes(old, new, view), proof.from_text(proof.to_text(proof.prove(old, new, view)))


def seen(content, view):
    return {name: entry for name, entry in content.items() if proof.covers(view, name)}


@thorough
@given(contents, st.lists(edits, max_size=4), views, buckets)
def test_a_client_follows_any_history_through_its_view(content, steps, view, bucket):
    with bucket_of(bucket):
        root = built(content)
        held = proof.advance(None, view, *message(None, root, view), root.digest)
        assert dict(proof.visible(held, view)) == seen(content, view)
        for change in steps:
            before, content, after = held, edited(content, change), trie.update(root, change)
            held = proof.advance(held, view, *message(root, after, view), after.digest)
            assert dict(proof.visible(held, view)) == seen(content, view)
            assert dict(proof.differing(before, held, names.view(view))) == proof.changes(root, after, view)
            assert proof.view_digest(held, view) == proof.view_digest(after, view)
            root = after


@thorough
@given(contents, edits, edits, views, buckets)
def test_two_deltas_lead_where_one_leads(content, one, two, view, bucket):
    with bucket_of(bucket):
        a = built(content)
        b = trie.update(a, one)
        c = trie.update(b, two)
        start = proof.advance(None, view, *message(None, a, view), a.digest)
        halfway = proof.advance(start, view, *message(a, b, view), b.digest)
        stepwise = proof.advance(halfway, view, *message(b, c, view), c.digest)
        direct = proof.advance(start, view, *message(a, c, view), c.digest)
        assert stepwise.digest == direct.digest == c.digest
        assert dict(proof.visible(stepwise, view)) == dict(proof.visible(direct, view))


@thorough
@given(contents, st.lists(edits, min_size=1, max_size=3), views, buckets)
def test_what_is_known_rebuilds_the_partial_trie_from_nothing(content, steps, view, bucket):
    """So a stored state can be loaded, and followed from there."""
    with bucket_of(bucket):
        root = built(content)
        held = proof.advance(None, view, *message(None, root, view), root.digest)
        for change in steps:
            again = proof.advance(None, view, dict(proof.visible(held, names.view(view))), proof.known(held, view), root.digest)
            after = trie.update(root, change)
            told = message(root, after, view)
            held = proof.advance(again, view, *told, after.digest)
            root = after
        assert held.digest == root.digest


@thorough
@given(contents, edits, views, buckets, st.randoms())
def test_a_tampered_message_is_refused_or_changes_nothing_that_is_seen(content, change, view, bucket, rnd):
    with bucket_of(bucket):
        a = built(content)
        b = trie.update(a, change)
        held = proof.advance(None, view, *message(None, a, view), a.digest)
        for old, start in ((a, held), (None, None)):
            lie = tampered(rnd, *message(old, b, view), a, b)
            try:
                after = proof.advance(start, view, *lie, b.digest)
            except BadProof:
                continue
            assert dict(proof.visible(after, view)) == seen(edited(content, change), view)


def tampered(rnd, inside, told, a, b):
    lie = (dict(inside), dict(told.entries), dict(told.stubs))
    for _ in range(rnd.randint(1, 3)):
        rnd.choice([leave_out, alter, delete, hide_all, hide_some, hide_folders, empty_places, add])(rnd, *lie, a, b)
    return lie[0], Proof(lie[1], lie[2])


def one_of(rnd, *parts):
    return rnd.choice([(part, name) for part in parts for name in sorted(part)] or [({}, "nothing")])


def leave_out(rnd, inside, near, stubs, a, b):
    part, name = one_of(rnd, inside, near, stubs)
    part.pop(name, None)


def alter(rnd, inside, near, stubs, a, b):
    part, name = one_of(rnd, inside, near, stubs)
    part[name] = hashed("bad")


def delete(rnd, inside, near, stubs, a, b):
    part, name = one_of(rnd, inside, near, stubs)
    part[name] = None


def add(rnd, inside, near, stubs, a, b):
    rnd.choice([inside, near])["x/a0"] = hashed("more")


def hide_all(rnd, inside, near, stubs, a, b):
    """Everything below the true root, or below the old one."""
    stubs["#"] = rnd.choice([a, b]).digest


def hide_some(rnd, inside, near, stubs, a, b):
    stubs |= {place: node.digest for node, place in places(b) if rnd.random() < 0.3}


def hide_folders(rnd, inside, near, stubs, a, b):
    """By their true digests."""
    for segment, entry in list(trie.entries(b)):
        if segment.endswith("/"):
            near[segment] = entry.digest
            for name in [name for name in inside if name.startswith(segment)]:
                del inside[name]


def empty_places(rnd, inside, near, stubs, a, b):
    """Says that true places are empty now, and nothing about what was there."""
    stubs |= {place: None for node, place in places(a) if rnd.random() < 0.1}


def places(node, folder="", place=""):
    yield node, f"{folder}#{place}"
    if isinstance(node, trie.Branch):
        for slot, child in node.children.items():
            yield from places(child, folder, f"{place}{slot:x}")
    else:
        for segment, entry in node.entries.items():
            if segment.endswith("/"):
                yield from places(entry, folder + segment)


@pytest.mark.parametrize("view", [{"pay/"}, {"pay/c1", "pay/added"}, {"c7", "pay/"}])
def test_the_obvious_lies(view):
    a = built({f"c{i}": hashed(i) for i in range(500)} | {f"pay/c{i}": hashed(i) for i in range(100)})
    b = trie.update(a, {"pay/c1": hashed("new"), "pay/added": hashed("x"), "c7": hashed("y")})
    held = proof.advance(None, view, *message(None, a, view), a.digest)
    inside, told = message(a, b, view)
    proof.advance(held, view, inside, told, b.digest)
    withheld = [({n: e for n, e in inside.items() if n != name}, told) for name in inside]
    for lie in [*withheld, ({}, Proof({}, {"#": b.digest})), ({}, Proof()), (inside, Proof({next(iter(inside)): None}, {}))]:
        with pytest.raises(BadProof):
            proof.advance(held, view, *lie, b.digest)


def test_a_proof_that_would_exhaust_the_stack_is_refused():
    """Chains of branches as deep as places can be named, through as many folders as a name can have."""
    folders = ["x/" * depth for depth in range(8)]
    deep = {f"{folder}#{'0' * digits}": hashed(1) for folder in folders for digits in (trie.MAX_PLACE, 40, 64)}
    for stubs in ({place: stub for place, stub in deep.items() if len(place.partition("#")[2]) <= trie.MAX_PLACE}, deep):
        with pytest.raises(BadProof):
            proof.advance(None, {"a"}, {}, Proof({}, stubs), hashed(2))


def test_a_change_elsewhere_costs_a_view_next_to_nothing():
    rnd = random.Random(1)
    root = built({f"c{i}": hashed(i) for i in range(5000)})
    first = proof.prove(None, root, {"c17"})
    assert len(first.entries) <= 31
    assert len(first.stubs) <= 30
    assert proof.prove(None, root, {""}) == Proof()
    for _ in range(100):
        after = trie.update(root, {f"c{rnd.randrange(5000)}": hashed(rnd.random())})
        told = proof.prove(root, after, {"c17"})
        assert len(told.entries) + len(told.stubs) <= 1
        root = after


@given(st.lists(selectors, min_size=1, max_size=12), st.lists(config_names, max_size=20))
def test_a_view_covers_what_its_selectors_cover(given_selectors, some):
    view = names.view(given_selectors)
    assert names.view(view) == view
    assert not any(names.inside(one, other) for one in view for other in view if one != other)
    covers = proof.covering(view)
    for name in some:
        assert covers(name) == any(names.inside(name, each) for each in given_selectors)
