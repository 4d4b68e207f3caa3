"""Reads what was committed: configs, folders, differences, whole states, versions as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final, Literal

import msgspec

from heliograph.core import trie
from heliograph.core.canonical import Json, parse
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Corrupt, NotFound
from heliograph.core.events import VersionEvent
from heliograph.core.jsondiff import diff
from heliograph.core.names import ConfigName, Namespace
from heliograph.core.records import Leaf, Version
from heliograph.core.trie import Node
from heliograph.services.registry.answers import Difference, Entry
from heliograph.services.registry.changes import MAX_TEXT
from heliograph.services.registry.draft import changed_configs
from heliograph.services.registry.heads import Place, VersionRow
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Store

STATE_BATCH: Final = 64
"""Configs whose documents are in memory at once while a state is streamed: 64 MiB at most."""
BESIDE_THE_LOOP: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Found:
    """One config's part that was asked for, as its exact text."""

    text: bytes
    leaf: Leaf


class Reading:
    def __init__(self, store: Store, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def config(self, place: Place, root: bytes, name: ConfigName, part: Literal["document", "schema"]) -> Found:
        """Raises NotFound."""
        leaf = await self._objects.leaf_of(place.namespace, root, name)
        if leaf is None:
            raise NotFound(f"{place} has no config {name}")
        digest = leaf.document if part == "document" else leaf.schema
        if digest is None:
            raise NotFound(f"{name} has no schema")
        return Found(await self._text(place.namespace, digest), leaf)

    async def _text(self, namespace: Namespace, digest: str) -> bytes:
        texts = await self._objects.texts(namespace, [unspell(digest)], keep=False)
        if not texts:
            raise NotFound("its text was purged")
        return next(iter(texts.values()))

    async def folder(self, place: Place, root: bytes, folder: str, after: str, limit: int) -> list[Entry]:
        """A folder's own entries by name, from the one after ``after``. Raises NotFound for a folder that is not there."""
        node = await self._objects.folder(place.namespace, root, folder)
        if node is None:
            raise NotFound(f"{place} has no folder {folder}")
        page = await asyncio.to_thread(_page, node, folder, after, limit)
        leaves = await self._objects.leaves(place.namespace, {entry for _, entry in page if isinstance(entry, bytes)})
        return [_entry(folder + segment, entry, leaves) for segment, entry in page]

    # --- differences --------------------------------------------------------------------------------------------------------------

    async def differences(self, place: Place, old: VersionRow, new: VersionRow, after: str, limit: int) -> list[Difference]:
        """Configs that differ, by name, from the one after ``after``."""
        a, b = await self._objects.pair(place.namespace, old.root, new.root)
        names = sorted(name for name, _ in trie.diff(a, b) if name > after)[:limit]
        before, now = await self._leaves(place, a, names), await self._leaves(place, b, names)
        digests = {unspell(leaf.document) for leaf in (*before.values(), *now.values()) if leaf}
        texts = await self._objects.texts(place.namespace, digests, keep=False)

        def compared() -> list[Difference]:
            return [_difference(name, before[name], now[name], texts) for name in names]

        large = sum(map(len, texts.values())) > BESIDE_THE_LOOP
        return await asyncio.to_thread(compared) if large else compared()

    async def _leaves(self, place: Place, root: Node, names: list[str]) -> dict[str, Leaf | None]:
        at = {name: _leaf_at(root, name) for name in names}
        leaves = await self._objects.leaves(place.namespace, {each for each in at.values() if each}, keep=False)
        return {name: leaves[found] if found else None for name, found in at.items()}

    # --- for other services -------------------------------------------------------------------------------------------------------

    async def event(self, place: Place, row: VersionRow) -> VersionEvent:
        """A version as its event told it: the changes against the version before, with their documents up to the limit of a version's text."""
        version = Version.read(row.record.payload)
        before = (await self._store.version(place, row.number - 1)).root if row.number > 1 else trie.EMPTY.digest
        old, new = await self._objects.pair(place.namespace, before, row.root)
        found = dict(trie.diff(old, new))
        leaves = await self._objects.leaves(place.namespace, {each for each in found.values() if each}, keep=False)
        changed = {name: leaves[each] if each else None for name, each in found.items()}
        return VersionEvent(
            namespace=place.namespace,
            environment=place.environment,
            epoch=version.epoch,
            number=version.number,
            version=row.record,
            head=row.head,
            changes=changed_configs(changed, await self._documents(place, changed), MAX_TEXT),
            received_at_us=row.received_at_us,
            trace=row.trace,
        )

    async def _documents(self, place: Place, leaves: dict[str, Leaf | None]) -> dict[str, bytes]:
        digests = {unspell(leaf.document) for leaf in leaves.values() if leaf}
        if (await self._store.weigh(place.namespace, digests)).bytes > MAX_TEXT:
            return {}
        texts = await self._objects.texts(place.namespace, digests, keep=False)
        return {spell(digest): text for digest, text in texts.items()}

    async def state(self, place: Place, root: bytes) -> AsyncIterator[bytes]:
        """Every config of a version, by name: one line of JSON each, {"name", "leaf", "document"} with exact texts."""
        node = await self._objects.whole(place.namespace, root)
        every = await asyncio.to_thread(lambda: sorted(trie.leaves(node)))
        for at in range(0, len(every), STATE_BATCH):
            yield await self._lines(place, every[at : at + STATE_BATCH])

    async def _lines(self, place: Place, batch: list[tuple[str, bytes]]) -> bytes:
        leaves = await self._objects.leaves(place.namespace, {digest for _, digest in batch}, keep=False)
        wanted = {unspell(leaf.document) for leaf in leaves.values()}
        texts = await self._objects.texts(place.namespace, wanted, keep=False)
        if missing := wanted - texts.keys():
            raise Corrupt(f"{place}: document {spell(min(missing))} is missing")

        def encoded() -> bytes:
            lines = (_line(name, leaves[digest], texts) for name, digest in batch)
            return b"".join(lines)

        large = sum(map(len, texts.values())) > BESIDE_THE_LOOP
        return await asyncio.to_thread(encoded) if large else encoded()


def _page(node: Node, folder: str, after: str, limit: int) -> list[tuple[str, trie.Entry]]:
    """Sorting a folder of 100,000 takes a tenth of a second."""
    later = [each for each in trie.entries(node) if folder + each[0] > after]
    return nsmallest(limit, later, key=lambda each: each[0])


def _line(name: str, leaf: Leaf, texts: dict[bytes, bytes]) -> bytes:
    document = texts[unspell(leaf.document)].decode()
    return msgspec.json.encode({"name": name, "leaf": leaf.text().decode(), "document": document}) + b"\n"


def _leaf_at(root: Node, name: str) -> bytes | None:
    found = trie.get(root, name)
    return found if isinstance(found, bytes) else None


def _entry(name: str, entry: trie.Entry, leaves: dict[bytes, Leaf]) -> Entry:
    if isinstance(entry, bytes):
        leaf = leaves[entry]
        return Entry(name=name, kind="config", digest=spell(entry), document=leaf.document, schema=leaf.schema)
    return Entry(name=name, kind="folder", digest=spell(entry.digest))


def _difference(name: str, before: Leaf | None, now: Leaf | None, texts: dict[bytes, bytes]) -> Difference:
    schema_changed = (before.schema if before else None) != (now.schema if now else None)
    if before is None:
        operations = [{"op": "add", "path": "", "value": _value(now, texts)}]
        return Difference(name=name, change="added", operations=operations, schema_changed=schema_changed)
    if now is None:
        operations = [{"op": "remove", "path": ""}]
        return Difference(name=name, change="removed", operations=operations, schema_changed=schema_changed)
    same_text = before.document == now.document
    operations = [] if same_text else list(diff(_value(before, texts), _value(now, texts)))
    return Difference(name=name, change="changed", operations=operations, schema_changed=schema_changed)


def _value(leaf: Leaf | None, texts: dict[bytes, bytes]) -> Json:
    """None where it was purged."""
    text = texts.get(unspell(leaf.document)) if leaf else None
    return None if text is None else parse(text)
