"""The past of one config: which versions changed it, and which of them changed each value last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from heliograph.core.canonical import parse
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import NotFound, TooLarge
from heliograph.core.names import ConfigName
from heliograph.core.pointer import pointer_text
from heliograph.core.records import Leaf, Version
from heliograph.services.registry.blame import Path, Trail
from heliograph.services.registry.heads import Place, VersionRow
from heliograph.services.registry.history_answers import (
    Blame,
    BlameLine,
    BlameVersion,
    ConfigChange,
    ConfigChangeKind,
)
from heliograph.services.registry.lookback import ChangeRow, Lookback
from heliograph.services.registry.objects import Objects

MAX_VALUES: Final = 10_000
"""Values of a document that are followed back; it bounds work and answer."""
TEXT_AT_ONCE: Final = 4 << 20
"""Bytes of documents that one answer looks through: some hundred milliseconds of a thread."""


@dataclass(slots=True)
class Found:
    """What a walk has found. ``at``: the version it has come to; None: there is nothing older to look at."""

    lines: dict[Path, BlameLine] = field(default_factory=dict)
    at: int | None = None

    def say(self, places: Sequence[Path], number: int, *, certain: bool = True) -> None:
        self.lines |= {place: BlameLine(pointer_text(place), number, certain) for place in places}


class Past:
    def __init__(self, lookback: Lookback, objects: Objects) -> None:
        self._lookback = lookback
        self._objects = objects

    async def changes(self, place: Place, name: ConfigName, before: int, limit: int) -> tuple[list[ConfigChange], bool]:
        """Versions that changed it, newest first, and whether there are more. Costs the page, however long the history is."""
        rows = await self._lookback.changes(place, name, before, limit + 1)
        leaves: list[Leaf | None] = [*await self._objects.leaves_at(place.namespace, [row.root for row in rows], name), None]
        documents = {unspell(leaf.document) for leaf in leaves if leaf}
        purged = await self._lookback.which_purged(place.namespace, documents)
        shown = list(zip(rows, pairwise(leaves), strict=False))[:limit]
        return [_change(row, now, older, purged) for row, (now, older) in shown], len(rows) > limit

    async def blame(self, place: Place, name: ConfigName, at: VersionRow, start: int | None, limit: int) -> Blame:
        """Who last changed each value. ``start``: the version that an earlier answer came to. Looks at no more than ``limit`` versions.

        Raises NotFound, TooLarge for a document with too many values.
        """
        rows = await self._lookback.changes(place, name, (at.number if start is None else start) + 1, limit + 1)
        leaves = await self._objects.leaves_at(place.namespace, [at.root, *(row.root for row in rows)], name)
        now = leaves[0]
        if now is None or not rows:
            raise NotFound(f"{place} has no config {name} in version {at.number}")
        trail = await self._trail(place, now)
        found = Found()
        if start is not None and leaves[1] is not None:
            trail.skip_to(parse(await self._text(place, leaves[1])))
        await self._walk(place, trail, found, rows, leaves[1:], whole=len(rows) <= limit)
        told = {row.number: row for row in rows}
        numbers = sorted({line.number for line in found.lines.values()}, reverse=True)
        return Blame(
            number=at.number,
            version=spell(at.id),
            versions=[_version(told[number]) for number in numbers],
            items=[found.lines[place] for place in sorted(found.lines, key=lambda steps: tuple(map(_order, steps)))],
            open=len(trail.open),
            next=None if found.at is None or not trail.open else str(found.at),
        )

    async def _trail(self, place: Place, leaf: Leaf) -> Trail:
        text = await self._text(place, leaf)
        trail = await asyncio.to_thread(lambda: Trail(parse(text)))
        if len(trail.open) > MAX_VALUES:
            raise TooLarge(f"the document has {len(trail.open):,} values; they are followed back up to {MAX_VALUES:,}")
        return trail

    async def _text(self, place: Place, leaf: Leaf) -> bytes:
        digest = unspell(leaf.document)
        texts = await self._objects.texts(place.namespace, [digest], keep=False)
        if digest not in texts:
            raise NotFound("its text was purged")
        return texts[digest]

    async def _walk(
        self, place: Place, trail: Trail, found: Found, rows: list[ChangeRow], leaves: list[Leaf | None], *, whole: bool
    ) -> None:
        """From version to version. ``whole``: the last of ``rows`` is the one that began it."""
        looked = 0
        for (row, now), (_, older) in pairwise(zip(rows, leaves, strict=True)):
            found.at = row.number
            if not trail.open or looked > TEXT_AT_ONCE:
                return
            if older is None:
                found.say(trail.end(), row.number)
                return
            if now is not None and now.document == older.document:
                continue
            digest = unspell(older.document)
            texts = await self._objects.texts(place.namespace, [digest], keep=False)
            if digest not in texts:
                found.say(trail.end(), row.number, certain=False)
                return
            looked += len(texts[digest])
            found.say(await asyncio.to_thread(_step, trail, texts[digest]), row.number)
        found.at = rows[-1].number
        if whole:
            found.say(trail.end(), rows[-1].number)


def _step(trail: Trail, text: bytes) -> list[Path]:
    return trail.step(parse(text))


def _order(step: str | int) -> tuple[bool, int, str]:
    return (True, step, "") if isinstance(step, int) else (False, 0, step)


def _change(row: ChangeRow, now: Leaf | None, older: Leaf | None, purged: set[bytes]) -> ConfigChange:
    version = Version.read(row.record)
    change: ConfigChangeKind = "removed" if now is None else "added" if older is None else "changed"
    return ConfigChange(
        number=row.number,
        version=spell(row.id),
        epoch=row.epoch,
        kind=version.kind,  # type: ignore[arg-type]  # an unknown kind of a newer release is passed on
        author=version.author,
        at=version.at,
        message=row.message,
        source=version.source,
        change=change,
        document=now.document if now else None,
        schema=now.schema if now else None,
        schema_changed=(now.schema if now else None) != (older.schema if older else None),
        purged=now is not None and unspell(now.document) in purged,
    )


def _version(row: ChangeRow) -> BlameVersion:
    version = Version.read(row.record)
    return BlameVersion(number=row.number, version=spell(row.id), author=version.author, at=version.at, message=row.message)
