"""Strict reading and canonical writing: stable, equal to the reference implementation, and linear for hostile text."""

from __future__ import annotations

import json
import math

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from tests.core.contents import thorough

from heliograph.core.canonical import MAX_DEPTH, MAX_FAULTS, MAX_INTEGER, canonical, canonical_text, parse
from heliograph.core.errors import Invalid, InvalidDocument, TooLarge


def is_strict(number: float) -> bool:
    return not MAX_INTEGER < abs(number) < 1e21


integers = st.integers(-MAX_INTEGER, MAX_INTEGER)
doubles = st.floats(allow_nan=False, allow_infinity=False).filter(is_strict)
edges = st.sampled_from(
    [1e-4, 9.999e-5, 1e-6, 1e-7, 0.1, -0.0, 0.0, 1.0, 1e15, 123456.5, 1e21, 1e22, 5e-324, 9007199254740991.0]
)
strings = st.text(max_size=20) | st.text(alphabet='\x00\x1f\x7f"\\/\u2028é€\ufb33\U0001f9c0ab~', max_size=8)
scalars = st.none() | st.booleans() | integers | doubles | edges | strings
values = st.recursive(
    scalars, lambda below: st.lists(below, max_size=5) | st.dictionaries(strings, below, max_size=5), max_leaves=25
)


@thorough
@given(values)
def test_canonical_text_is_that_of_the_reference_and_stable(value):
    text = canonical(value)
    assert text == rfc8785.dumps(value)
    again = parse(text)
    assert again == value
    assert canonical(again) == text == canonical_text(text)


@given(values, st.randoms())
def test_canonical_text_does_not_depend_on_the_way_it_was_written(value, rnd):
    def shuffled(each):
        if isinstance(each, dict):
            items = [(key, shuffled(below)) for key, below in each.items()]
            rnd.shuffle(items)
            return dict(items)
        return [shuffled(below) for below in each] if isinstance(each, list) else each

    for ascii_only in (True, False):
        written = json.dumps(shuffled(value), ensure_ascii=ascii_only, indent=rnd.choice([None, 1]))
        assert canonical_text(written) == canonical(value)


@thorough
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789.eE+-\\uad8 tfnrlsNaI', max_size=40))
def test_whatever_comes_in_is_read_or_refused(data):
    try:
        value = parse(data)
    except Invalid:
        return
    text = canonical(value)
    assert canonical(parse(text)) == text
    assert json.loads(data) == value


@given(st.floats())
def test_a_double_is_taken_only_if_it_comes_back(number):
    text = json.dumps([number])
    if not math.isfinite(number) or not is_strict(number):
        with pytest.raises(InvalidDocument) as refused:
            parse(text)
        assert [fault.rule for fault in refused.value.faults] == ["number"]
        assert refused.value.faults[0].pointer == "/0"
    else:
        assert parse(canonical_text(text)) == [number]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**53, "\ud800", {"\udfff": 1}, {1: 2}, {None: 1}, {1, 2}, object(), b"x", 1j]
)
def test_values_without_canonical_text(value):
    for each in (value, [value], {"a": [value]}):
        with pytest.raises(InvalidDocument):
            canonical(each)


def test_a_value_that_contains_itself():
    value: list = []
    value.append(value)
    with pytest.raises(InvalidDocument):
        canonical(value)


def test_every_fault_is_named_with_its_place():
    with pytest.raises(InvalidDocument) as refused:
        parse('{"a/b":[1e400,{"x~":NaN}],"c":{"d":1,"d":2},"e":12345678901234567890}')
    assert {(fault.rule, fault.pointer) for fault in refused.value.faults} == {
        ("number", "/a~1b/0"),
        ("number", "/a~1b/1/x~0"),
        ("duplicate-key", "/c"),
        ("number", "/e"),
    }


def test_faults_never_show_a_value():
    with pytest.raises(InvalidDocument) as refused:
        parse('{"password":[12345678901234567890,"\\ud800hunter2"]}')
    assert "12345678901234567890" not in str(refused.value)
    assert "hunter2" not in str([str(refused.value), *refused.value.faults])


def test_depth_counts_only_outside_strings():
    brackets = "[" * 1000
    assert parse(json.dumps([brackets, '"' + brackets, "\\" + brackets, '\\"' + brackets])) is not None
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    for opening in ("[", '{"a":'):
        with pytest.raises(InvalidDocument, match="nested"):
            parse(opening * (MAX_DEPTH + 1))


MEGABYTE = 1024 * 1024
HOSTILE = {
    "brackets": "[" * MEGABYTE,
    "an unterminated string of escapes": '"' + '\\"' * (MEGABYTE // 2 - 1),
    "one that ends in a backslash": '"' + '\\"' * (MEGABYTE // 2 - 2) + "\\",
    "many quotes": '"' * MEGABYTE,
    "brackets after escapes": '"' + '\\"' * 400_000 + "[" * 100_000,
    "many faults": "[" + "NaN," * 200_000 + "1]",
    "one key again and again": "{" + '"a":1,' * 170_000 + '"a":1}',
    "a number of a million digits": "[" + "7" * (MEGABYTE - 2) + "]",
    "a double of a million digits": "[0." + "7" * (MEGABYTE - 4) + "]",
    "many lone surrogates": "[" + '"\\ud800",' * 100_000 + "1]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name):
    """A quadratic reader needs 10^11 steps for these; the test's time limit is the assertion."""
    if name == "a double of a million digits":
        parse(HOSTILE[name])
        return
    with pytest.raises(InvalidDocument) as refused:
        parse(HOSTILE[name])
    assert 1 <= len(refused.value.faults) <= MAX_FAULTS


def test_too_large_before_it_is_read_and_after():
    with pytest.raises(TooLarge):
        parse('"' + "a" * MEGABYTE + '"')
    with pytest.raises(TooLarge):
        parse("[1,2,3]", limit=6)
    with pytest.raises(TooLarge):
        canonical_text("[" + "1e20".replace("20", "-9") + ",1e14" * 200_000 + "]")
