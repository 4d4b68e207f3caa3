"""Edits turn one text into another, cut between characters, and stay cheap whatever the texts are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.contents import thorough

from heliograph.core import textedit

pieces = st.sampled_from(['{"a":', "1,", '"é",', "€", "[", "\U0001f9c0", '"bb",', "}", "e\u0301", "Ω,", "\u00a4"])
texts = st.lists(pieces, max_size=300).map("".join)


@thorough
@given(st.lists(pieces, max_size=300), st.randoms())
def test_an_edit_leads_from_a_text_to_one_that_is_like_it(parts, rnd):
    changed = [part for part in parts if rnd.random() < 0.95]
    changed.insert(rnd.randint(0, len(changed)), rnd.choice(["Ä", "1,", "\U0001f9c1", "¥"]))
    leads("".join(parts), "".join(changed))


@given(texts, texts)
def test_an_edit_leads_from_any_text_to_any_other(old, new):
    leads(old, new)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_cut_is_never_inside_a_character(head, one, two, tail):
    leads(head + one + tail, head + two + tail)


def leads(old: str, new: str) -> None:
    a, b = old.encode(), new.encode()
    edits = textedit.edit(a, b)
    assert textedit.splice(a, edits) == b
    assert bool(edits) == (a != b)
    last = 0
    for start, end, text in edits:
        assert last <= start <= end <= len(a)
        a[:start].decode()
        a[start:end].decode()
        assert text or end > start
        last = end
    json.loads(json.dumps(edits))


def test_a_change_of_one_field_is_small():
    old = {f"service-{i}": {"timeout_ms": i, "on": True, "hosts": ["a", "b"]} for i in range(500)}
    new = {**old, "service-77": {**old["service-77"], "timeout_ms": 9000}, "service-400": {**old["service-400"], "on": False}}
    a, b = (json.dumps(each, separators=(",", ":")).encode() for each in (old, new))
    edits = textedit.edit(a, b)
    assert textedit.splice(a, edits) == b
    assert len(json.dumps(edits)) < 120


@pytest.mark.parametrize("shape", ["every second", "reversed", "the same again", "nothing in common", "too many pieces"])
def test_texts_that_would_take_a_slow_search_minutes(shape):
    """A quadratic search needs 10^9 steps for these; the test's time limit is the assertion."""
    count = 60_000
    old = [f"k{i}," for i in range(count)]
    new = {
        "every second": [piece if i % 2 else "z" + piece for i, piece in enumerate(old)],
        "reversed": old[::-1],
        "the same again": ["1,"] * count,
        "nothing in common": [f"n{i}," for i in range(count)],
        "too many pieces": old[1:] + old[:1],
    }[shape]
    for size in (9_000, count):
        leads("".join(old[:size]), "".join(new[:size]))


@pytest.mark.parametrize(
    "edits", [[(1, 0, "")], [(0, 9, "")], [(-1, 0, "")], [(2, 3, ""), (0, 1, "")], [("0", 1, "")], [(0, 1, None)]]
)
def test_edits_that_do_not_fit(edits):
    with pytest.raises(ValueError):
        textedit.splice(b"abc", edits)
