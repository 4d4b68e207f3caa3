"""Which values of a document are the same ones as in an older document. Pure.

A value is a scalar or an empty object or list. In lists, items of the common head and tail are the same ones although their indexes may differ,
by the same rule as `jsondiff`: so what is inserted in front of a list changes nothing behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

from heliograph.core.canonical import Json
from heliograph.core.jsondiff import common, same

Path = tuple[str | int, ...]


def values(document: Json, at: Path = ()) -> Iterator[Path]:
    """Where the document has values, in its order."""
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from values(value, (*at, key))
    elif isinstance(document, list) and document:
        for place, value in enumerate(document):
            yield from values(value, (*at, place))
    else:
        yield at


def unchanged(new: Json, old: Json, at: Path = (), was: Path = ()) -> Iterator[tuple[Path, Path]]:
    """Each value of ``new`` that ``old`` has too: (its place, its place in ``old``)."""
    if isinstance(new, dict) and isinstance(old, dict) and new:
        for key in new.keys() & old.keys():
            yield from unchanged(new[key], old[key], (*at, key), (*was, key))
    elif isinstance(new, list) and isinstance(old, list) and new:
        for here, there in _pairs(new, old):
            yield from unchanged(new[here], old[there], (*at, here), (*was, there))
    elif same(new, old):
        yield at, was


def _pairs(new: list[Json], old: list[Json]) -> Iterator[tuple[int, int]]:
    head = common(new, old)
    tail = common(new[head:][::-1], old[head:][::-1])
    middle = min(len(new), len(old)) - head - tail
    yield from ((place, place) for place in range(head + middle))
    yield from ((len(new) - back, len(old) - back) for back in range(tail, 0, -1))


class Trail:
    """Values of a document, followed back from version to version. ``open``: place in the document reached so far -> place in the first one."""

    def __init__(self, document: Json) -> None:
        self.open: dict[Path, Path] = {each: each for each in values(document)}
        self._at = document

    def skip_to(self, older: Json) -> None:
        """Goes on at an older document; values that changed in between are somebody else's to tell."""
        self.step(older)

    def step(self, older: Json) -> list[Path]:
        """One document back: where the first document has the values that are not in ``older``. They changed here."""
        kept = dict(unchanged(self._at, older))
        changed = [first for place, first in self.open.items() if place not in kept]
        self.open = {kept[place]: first for place, first in self.open.items() if place in kept}
        self._at = older
        return changed

    def end(self) -> list[Path]:
        """There is no older document: all that is left changed here."""
        left, self.open = list(self.open.values()), {}
        return left
