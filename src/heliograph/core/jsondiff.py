"""Differences for people: RFC 6902 operations that turn one JSON value into another. Pure.

JSON's own equality holds: true is not 1. Lists lose their common head and tail, what is left is compared item by item; so one insertion into a long
list is one operation. Replaying the operations in order gives exactly the second value.
"""

from __future__ import annotations

from heliograph.core.canonical import Json

Operation = dict[str, Json]


def diff(old: Json, new: Json, at: str = "") -> list[Operation]:
    """The operations from ``old`` to ``new``; ``at`` is the pointer that their paths begin with."""
    if isinstance(old, dict) and isinstance(new, dict):
        return _objects(old, new, at)
    if isinstance(old, list) and isinstance(new, list):
        return _lists(old, new, at)
    return [] if same(old, new) else [{"op": "replace", "path": at, "value": new}]


def same(a: Json, b: Json) -> bool:
    """Equality of JSON values."""
    if a is b:
        return True
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def _objects(old: dict[str, Json], new: dict[str, Json], at: str) -> list[Operation]:
    out: list[Operation] = [{"op": "remove", "path": f"{at}/{_escaped(key)}"} for key in old if key not in new]
    for key, value in new.items():
        place = f"{at}/{_escaped(key)}"
        out += diff(old[key], value, place) if key in old else [{"op": "add", "path": place, "value": value}]
    return out


def _lists(old: list[Json], new: list[Json], at: str) -> list[Operation]:
    head = common(old, new)
    tail = common(old[head:][::-1], new[head:][::-1])
    was, now = old[head : len(old) - tail], new[head : len(new) - tail]
    out: list[Operation] = []
    for place, (a, b) in enumerate(zip(was, now, strict=False), head):
        out += diff(a, b, f"{at}/{place}")
    out += [{"op": "remove", "path": f"{at}/{head + place}"} for place in range(len(was) - 1, len(now) - 1, -1)]
    out += [{"op": "add", "path": f"{at}/{head + place}", "value": now[place]} for place in range(len(was), len(now))]
    return out


def common(a: list[Json], b: list[Json]) -> int:
    """How many items at the beginning are the same."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if not same(x, y):
            break
        count += 1
    return count


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
