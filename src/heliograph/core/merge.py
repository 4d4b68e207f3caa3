"""Three-way merge of JSON values: what two sides made of a common base, in one value, and the places where they disagree. Pure.

Objects are merged member by member; everything else is atomic, lists too: two edits of one list have no order that is right for everybody. A side
that left a place as it was gives way to the one that changed it, equal changes are one change, and what both changed differently is a conflict.
Equality is JSON's: true is not 1, and 1 is 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from heliograph.core.canonical import Json
from heliograph.core.jsondiff import same


class Absent(Enum):
    """There is nothing at a place; a null there is something."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
Side: TypeAlias = Json | Absent


@dataclass(frozen=True, slots=True)
class Value:
    """A conflict's third way out: neither side's value, but this one."""

    value: Json


Choice: TypeAlias = Literal["ours", "theirs"] | Value


@dataclass(frozen=True, slots=True)
class Conflict:
    """A place, by its JSON Pointer, that both sides changed differently."""

    pointer: str
    base: Side
    ours: Side
    theirs: Side


@dataclass(frozen=True, slots=True)
class Merged:
    """``value`` has ours wherever there is a conflict. ``settled``: pointers of the choices that settled one."""

    value: Side
    conflicts: tuple[Conflict, ...] = ()
    settled: frozenset[str] = frozenset()


NO_CHOICES: Final[Mapping[str, Choice]] = {}


def merge(base: Side, ours: Side, theirs: Side, choices: Mapping[str, Choice] = NO_CHOICES) -> Merged:
    """``choices``: by pointer, what is taken where the sides disagree."""
    merging = _Merge(choices)
    value = merging.at("", base, ours, theirs)
    return Merged(value, tuple(merging.conflicts), frozenset(merging.settled))


def alike(a: Side, b: Side) -> bool:
    """Equality of JSON values, of which nothing is one more."""
    return a is b if a is ABSENT or b is ABSENT else same(a, b)


class _Merge:
    def __init__(self, choices: Mapping[str, Choice]) -> None:
        self._choices = choices
        self.conflicts: list[Conflict] = []
        self.settled: set[str] = set()

    def at(self, pointer: str, base: Side, ours: Side, theirs: Side) -> Side:
        if alike(ours, theirs) or alike(base, theirs):
            return ours
        if alike(base, ours):
            return theirs
        if isinstance(ours, dict) and isinstance(theirs, dict) and (isinstance(base, dict) or base is ABSENT):
            return self._members(pointer, base if isinstance(base, dict) else {}, ours, theirs)
        return self._disagree(Conflict(pointer, base, ours, theirs))

    def _members(self, pointer: str, base: dict[str, Json], ours: dict[str, Json], theirs: dict[str, Json]) -> Json:
        merged: dict[str, Json] = {}
        for key in dict.fromkeys([*ours, *theirs]):
            below = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
            value = self.at(below, base.get(key, ABSENT), ours.get(key, ABSENT), theirs.get(key, ABSENT))
            if not isinstance(value, Absent):
                merged[key] = value
        return merged

    def _disagree(self, conflict: Conflict) -> Side:
        match self._choices.get(conflict.pointer):
            case "theirs":
                taken = conflict.theirs
            case "ours":
                taken = conflict.ours
            case Value(value=value):
                taken = value
            case None:
                self.conflicts.append(conflict)
                return conflict.ours
        self.settled.add(conflict.pointer)
        return taken
