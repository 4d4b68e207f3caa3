"""The three-way merge: its algebra, and what people rely on."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.merge import ABSENT, Conflict, Value, alike, merge

from .test_jsondiff import values

sides = values | st.just(ABSENT)


@given(sides, sides)
def test_a_side_that_did_nothing_gives_way(base: Any, changed: Any) -> None:
    for merged in (merge(base, base, changed), merge(base, changed, base), merge(base, changed, changed)):
        assert alike(merged.value, changed)
        assert merged.conflicts == ()


@given(sides, sides, sides)
def test_conflicts_do_not_depend_on_who_is_who(base: Any, ours: Any, theirs: Any) -> None:
    there, back = merge(base, ours, theirs), merge(base, theirs, ours)
    turned = {(each.pointer, repr(each.base), repr(each.theirs), repr(each.ours)) for each in back.conflicts}
    assert {(each.pointer, repr(each.base), repr(each.ours), repr(each.theirs)) for each in there.conflicts} == turned
    if not there.conflicts:
        assert alike(there.value, back.value)


@given(sides, sides, sides)
def test_choices_settle_exactly_the_conflicts(base: Any, ours: Any, theirs: Any) -> None:
    before = copy.deepcopy((base, ours, theirs))
    open_ones = {each.pointer for each in merge(base, ours, theirs).conflicts}
    mine = merge(base, ours, theirs, dict.fromkeys(open_ones, "ours"))
    yours = merge(base, theirs, ours, dict.fromkeys(open_ones, "theirs"))
    assert mine.conflicts == yours.conflicts == ()
    assert alike(mine.value, yours.value)
    assert mine.settled == open_ones
    assert repr((base, ours, theirs)) == repr(before)


@given(sides, sides, sides)
def test_every_change_of_one_side_alone_is_in_the_result(base: Any, ours: Any, theirs: Any) -> None:
    """Merging the result again with either side finds nothing more to do."""
    merged = merge(base, ours, theirs)
    if not merged.conflicts:
        assert alike(merge(ours, merged.value, ours).value, merged.value)
        assert merge(base, merged.value, theirs).conflicts == ()
        assert alike(merge(base, merged.value, theirs).value, merged.value)


def test_objects_member_by_member_and_the_rest_as_a_whole() -> None:
    base = {"a": 1, "b": {"c": 1, "d": 1}, "list": [1, 2]}
    merged = merge(base, {"a": 2, "b": {"c": 1}, "list": [1, 2, 3]}, {"a": 1, "b": {"c": 5, "d": 1}, "list": [0, 1, 2]})
    assert merged.value == {"a": 2, "b": {"c": 5}, "list": [1, 2, 3]}
    assert merged.conflicts == (Conflict("/list", [1, 2], [1, 2, 3], [0, 1, 2]),)


def test_who_deleted_is_told() -> None:
    merged = merge({"a/b": 1}, {}, {"a/b": 2})
    assert merged.conflicts == (Conflict("/a~1b", 1, ABSENT, 2),)
    assert merge({"a/b": 1}, {}, {"a/b": 2}, {"/a~1b": "theirs"}).value == {"a/b": 2}
    assert merge({"a/b": 1}, {}, {"a/b": 2}, {"/a~1b": Value(None)}).value == {"a/b": None}


def test_a_null_is_something() -> None:
    assert merge({}, {"a": None}, {}).value == {"a": None}
    assert merge({"a": 1}, {"a": None}, {}).conflicts == (Conflict("/a", 1, None, ABSENT),)


def test_true_is_not_one() -> None:
    assert merge({"a": 0}, {"a": 1}, {"a": True}).conflicts == (Conflict("/a", 0, 1, True),)
    assert merge({"a": 0}, {"a": 1}, {"a": 1.0}).conflicts == ()


def test_both_added_an_object() -> None:
    assert merge(ABSENT, {"a": 1}, {"b": 2}).value == {"a": 1, "b": 2}
    assert merge(ABSENT, {"a": 1}, {"a": 2}).conflicts == (Conflict("/a", ABSENT, 1, 2),)
