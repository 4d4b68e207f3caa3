from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.client._values import ABSENT, freeze, read, resolve, same, thaw
from heliograph.core.errors import InvalidRequest
from heliograph.core.pointer import pointer_text, pointer_tokens

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def test_nothing_in_a_read_value_can_be_changed() -> None:
    value = read(b'{"a":{"b":[1,{"c":2}]}}')
    with pytest.raises(TypeError):
        value["a"] = 1
    with pytest.raises(TypeError):
        value["a"]["b"] = 1
    with pytest.raises(TypeError):
        value["a"]["b"][0] = 1
    with pytest.raises(TypeError):
        value["a"]["b"][1]["c"] = 1


@given(json_values)
def test_a_thawed_copy_is_what_was_frozen(value: object) -> None:
    assert thaw(freeze(value)) == value
    assert same(freeze(value), read(json.dumps(value)))


def test_true_is_not_one() -> None:
    assert not same(freeze({"a": [True]}), freeze({"a": [1]}))
    assert not same(freeze([0]), freeze([False]))
    assert same(freeze([1, {"a": None}]), freeze([1, {"a": None}]))
    assert not same(freeze({"a": 1}), freeze([1]))


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("", {"a/b": [10, 20], "m~n": None, "": 5}),
        ("/a~1b/1", 20),
        ("/m~0n", None),
        ("/", 5),
        ("/a~1b/2", ABSENT),
        ("/a~1b/01", ABSENT),
        ("/a~1b/-", ABSENT),
        ("/x", ABSENT),
        ("/m~0n/x", ABSENT),
    ],
)
def test_pointers_are_rfc_6901(pointer: str, found: object) -> None:
    value = freeze({"a/b": [10, 20], "m~n": None, "": 5})
    assert thaw(resolve(value, pointer_tokens(pointer))) == found


@pytest.mark.parametrize("pointer", ["a", "a/b", "/~2", "/~"])
def test_what_is_no_pointer_is_refused_with_advice(pointer: str) -> None:
    with pytest.raises(InvalidRequest, match="JSON Pointer"):
        pointer_tokens(pointer)


@given(st.lists(st.text(max_size=4), max_size=4))
def test_pointer_text_and_tokens_are_inverse(tokens: list[str]) -> None:
    assert pointer_tokens(pointer_text(tokens)) == tuple(tokens)


def test_absent_is_false_and_is_not_null() -> None:
    assert not ABSENT
    assert ABSENT is not None
    assert repr(ABSENT) == "ABSENT"
