"""RFC 6902 operations say exactly what changed."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.jsondiff import diff, same

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text("ab~/é", max_size=2),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("ab~/", max_size=2), inner, max_size=4),
    max_leaves=20,
)


def patched(document: Any, operations: list[Any]) -> Any:
    """RFC 6902 as it is written, for add, remove and replace."""
    document = copy.deepcopy(document)
    for operation in operations:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        if not parts:
            document = copy.deepcopy(operation["value"])
            continue
        at = document
        for part in parts[:-1]:
            at = at[int(part)] if isinstance(at, list) else at[part]
        _apply(at, parts[-1], operation)
    return document


def _apply(at: Any, last: str, operation: Any) -> None:
    key = int(last) if isinstance(at, list) else last
    if operation["op"] == "remove":
        del at[key]
    elif operation["op"] == "add" and isinstance(at, list):
        at.insert(key, copy.deepcopy(operation["value"]))
    else:
        assert operation["op"] == "add" or key in (range(len(at)) if isinstance(at, list) else at)
        at[key] = copy.deepcopy(operation["value"])


@given(values, values)
def test_replaying_the_operations_gives_the_second_value(old: Any, new: Any) -> None:
    operations = diff(old, new)
    assert same(patched(old, operations), new)
    assert (operations == []) == same(old, new)


def test_true_is_not_one() -> None:
    assert diff({"a": 1}, {"a": True}) == [{"op": "replace", "path": "/a", "value": True}]
    assert diff({"a": 1}, {"a": 1.0}) == []
    assert diff({"a": None}, {}) == [{"op": "remove", "path": "/a"}]


def test_one_insertion_into_a_long_list_is_one_operation() -> None:
    long = [{"id": i} for i in range(500)]
    assert diff(long, [*long[:250], {"id": "new"}, *long[250:]]) == [{"op": "add", "path": "/250", "value": {"id": "new"}}]
    assert diff(long, [*long[:250], *long[252:]]) == [{"op": "remove", "path": "/251"}, {"op": "remove", "path": "/250"}]
