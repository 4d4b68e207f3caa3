"""Three versions of one config, and what becomes of them: the document member by member, the schema as a whole.

A schema is one statement about a document: half of one and half of another is a statement that nobody made, so it is not merged inside. A config
that one side deleted and the other changed is a conflict of the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from heliograph.core import trie
from heliograph.core.canonical import Json, canonical, parse
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Conflict, NotFound, TooLarge
from heliograph.core.jsondiff import Operation, diff
from heliograph.core.merge import ABSENT, NO_CHOICES, Absent, Choice, Side, Value, alike, merge
from heliograph.core.merge import Conflict as Disagreement
from heliograph.core.names import ConfigName, Namespace
from heliograph.core.records import Leaf
from heliograph.core.trie import Node
from heliograph.services.registry.assembling import Leaves
from heliograph.services.registry.changes import Change, Text, read_text
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Store

SCHEMA: Final = "schema"
"""What stands for a config's schema where a JSON Pointer stands for a place in its document."""
WHOLE: Final = ""
MAX_MERGED: Final = 1_000
"""Configs whose texts are merged in one request."""
MAX_MERGED_TEXT: Final = 48 << 20
"""Bytes of their texts, all three sides together."""


@dataclass(frozen=True, slots=True)
class Config:
    """A config as one version has it, with what its texts say. Only of a `LOST` base is the document not there."""

    document: Side
    schema: Side = ABSENT


LOST: Final = Config(ABSENT)
"""A base whose texts were purged: there was one, and nobody knows what it said. So whatever is not equal on both sides is a conflict."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``config`` None: deleted; where there is a conflict it has ours. Pointers of conflicts: into the document, or ``schema``. ``changed``:
    it is not ours."""

    config: Config | None
    conflicts: tuple[Disagreement, ...] = ()
    settled: frozenset[str] = frozenset()
    changed: bool = True


def merge_configs(
    base: Config | None, ours: Config | None, theirs: Config | None, choices: Mapping[str, Choice] = NO_CHOICES
) -> Outcome:
    """``choices``: what is taken where the sides disagree, by pointer, or for ``schema``."""
    outcome = _merged(base, ours, theirs, choices)
    return replace(outcome, changed=not _same(outcome.config, ours))


def _merged(base: Config | None, ours: Config | None, theirs: Config | None, choices: Mapping[str, Choice]) -> Outcome:
    if ours is None or theirs is None:
        return _one_is_gone(base, ours, theirs, choices.get(WHOLE))
    document = merge(base.document if base else ABSENT, ours.document, theirs.document, choices)
    schema = _as_a_whole(base.schema if base else ABSENT, ours.schema, theirs.schema, choices.get(SCHEMA))
    return Outcome(
        Config(document.value, schema.value), document.conflicts + schema.conflicts, document.settled | schema.settled
    )


def _one_is_gone(base: Config | None, ours: Config | None, theirs: Config | None, choice: Choice | None) -> Outcome:
    """One side, or both, have no such config; so it counts as a whole, with its schema."""
    if _same(ours, theirs) or _same(base, theirs):
        return Outcome(ours)
    if _same(base, ours):
        return Outcome(theirs)
    match choice:
        case "ours":
            return Outcome(ours, settled=frozenset([WHOLE]))
        case "theirs":
            return Outcome(theirs, settled=frozenset([WHOLE]))
        case Value(value=value):
            kept = ours or theirs
            return Outcome(Config(value, kept.schema if kept else ABSENT), settled=frozenset([WHOLE]))
    return Outcome(ours, (Disagreement(WHOLE, side_of(base), side_of(ours), side_of(theirs)),))


def _same(a: Config | None, b: Config | None) -> bool:
    if a is None or b is None:
        return a is b
    return alike(a.document, b.document) and alike(a.schema, b.schema)


def side_of(config: Config | None) -> Side:
    return ABSENT if config is None else config.document


@dataclass(frozen=True, slots=True)
class _Atomic:
    value: Side
    conflicts: tuple[Disagreement, ...] = ()
    settled: frozenset[str] = frozenset()


def _as_a_whole(base: Side, ours: Side, theirs: Side, choice: Choice | None) -> _Atomic:
    if alike(ours, theirs) or alike(base, theirs):
        return _Atomic(ours)
    if alike(base, ours):
        return _Atomic(theirs)
    settled = frozenset([SCHEMA])
    match choice:
        case "ours":
            return _Atomic(ours, settled=settled)
        case "theirs":
            return _Atomic(theirs, settled=settled)
        case Value(value=value):
            return _Atomic(value, settled=settled)
    return _Atomic(ours, (Disagreement(SCHEMA, base, ours, theirs),))


# --- from and to what is stored ---------------------------------------------------------------------------------------------------


def change_to(name: ConfigName, config: Config | None) -> Change:
    """The change that makes a config so. Raises InvalidDocument, TooLarge: what was put together is no document."""
    if config is None:
        return Change(name, delete=True)
    assert not isinstance(config.document, Absent), "only a base can be lost"
    schema = False if isinstance(config.schema, Absent) else read_text("schema", canonical(config.schema))
    return Change(name, read_text("document", canonical(config.document)), schema)


def next_leaf(change: Change, old: Leaf | None) -> Leaf | None:
    """Raises NotFound for a config that would have to be there."""
    if old is None and (change.delete or change.document is None):
        raise NotFound(f"no config {change.name}")
    if change.delete:
        return None
    document = spell(change.document.digest) if change.document else (old.document if old else "")
    match change.schema:
        case Text(digest=digest):
            schema: str | None = spell(digest)
        case False:
            schema = None
        case _:
            schema = old.schema if old else None
    return Leaf(document, schema)


def changed_by(change: Change, old: Config | None) -> Config | None:
    """What an author's change makes of a config; the same as `next_leaf`, with what the texts say."""
    if change.delete:
        return None
    document: Side = change.document.value if change.document else (old.document if old else ABSENT)
    match change.schema:
        case Text(value=value):
            return Config(document, value)
        case False:
            return Config(document)
    return Config(document, old.schema if old else ABSENT)


async def leaves_at(objects: Objects, namespace: Namespace, root: Node, names: Iterable[str], *, keep: bool = True) -> Leaves:
    """``root``: loaded along the names. None where a version has no such config."""
    at = {name: trie.get(root, name) for name in names}
    digests = {name: found for name, found in at.items() if isinstance(found, bytes)}
    leaves = await objects.leaves(namespace, set(digests.values()), keep=keep)
    return {name: leaves[digests[name]] if name in digests else None for name in at}


class Configs:
    """Reads configs with their texts, a bounded amount at a time."""

    def __init__(self, store: Store, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def at(
        self, namespace: Namespace, root: bytes, names: Collection[str], *, bases: bool = False
    ) -> dict[str, Config | None]:
        """Of the version with this root. ``bases``: they may be `LOST`. Raises what `of` does."""
        loaded = await self._objects.paths(namespace, root, names)
        leaves = await leaves_at(self._objects, namespace, loaded, names, keep=False)
        there = {leaf for leaf in leaves.values() if leaf}
        every = await self.of(namespace, there, bases=there if bases else frozenset())
        return {name: every[leaf] if leaf else None for name, leaf in leaves.items()}

    async def of(
        self, namespace: Namespace, leaves: Collection[Leaf], *, bases: Collection[Leaf] = frozenset()
    ) -> dict[Leaf, Config]:
        """``bases``: those among them that may be `LOST`. Raises Conflict when another's text was purged, TooLarge when it is more than one request
        may merge."""
        wanted = {unspell(text) for leaf in leaves for text in (leaf.document, leaf.schema) if text}
        weight = await self._store.weigh(namespace, wanted)
        if weight.bytes > MAX_MERGED_TEXT:
            raise TooLarge(
                f"{weight.bytes:,} bytes of text would have to be compared; the limit is {MAX_MERGED_TEXT:,}: do it in parts"
            )
        texts = await self._objects.texts(namespace, wanted, keep=False)
        read = await asyncio.to_thread(lambda: {digest: parse(text) for digest, text in texts.items()})
        return {leaf: _config(leaf, read, base=leaf in bases) for leaf in leaves}


def _config(leaf: Leaf, read: Mapping[bytes, Json], *, base: bool) -> Config:
    if any(text and unspell(text) not in read for text in (leaf.document, leaf.schema)):
        if base:
            return LOST
        raise Conflict("a document or schema that has to be compared was purged")
    return Config(read[unspell(leaf.document)], read[unspell(leaf.schema)] if leaf.schema else ABSENT)


def operations(old: Side, new: Side) -> list[Operation]:
    """RFC 6902 from one side to another, either of which may not be there."""
    if isinstance(new, Absent):
        return [] if isinstance(old, Absent) else [{"op": "remove", "path": ""}]
    return [{"op": "add", "path": "", "value": new}] if isinstance(old, Absent) else diff(old, new)
