"""JSON that cannot be changed: what applications read.

Objects become read-only mappings and arrays become tuples, all the way down, so that a value can be shared by every part of an
application and swapped by one reference.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

_INDEX = re.compile(r"0|[1-9][0-9]*")


class Absent(enum.Enum):
    """The type of `ABSENT`, which is not JSON's null: nothing is there."""

    ABSENT = "absent"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT


def sayable(text: str) -> str:
    """With ``?`` for each lone surrogate, which is what Python makes of a file or host name that is no UTF-8, and which no frame can carry."""
    return text.encode("utf-8", "replace").decode()


def read(text: bytes | str) -> Any:
    """The deeply immutable value of a document's canonical text."""
    return freeze(msgspec.json.decode(text))


def freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: freeze(member) for key, member in value.items()})
    if isinstance(value, list):
        return tuple(freeze(member) for member in value)
    return value


def thaw(value: Any) -> Any:
    """A copy of plain dicts and lists, for whoever has to change or encode it."""
    if isinstance(value, Mapping):
        return {key: thaw(member) for key, member in value.items()}
    if isinstance(value, tuple):
        return [thaw(member) for member in value]
    return value


def same(a: Any, b: Any) -> bool:
    """Equality as JSON has it: true is not 1."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(member, b[key]) for key, member in a.items())
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def resolve(value: Any, tokens: Iterable[str]) -> Any:
    """What lies at a pointer, or ABSENT."""
    for token in tokens:
        if isinstance(value, Mapping):
            value = value.get(token, ABSENT)
        elif isinstance(value, tuple) and _INDEX.fullmatch(token) and int(token) < len(value):
            value = value[int(token)]
        else:
            return ABSENT
    return value
