"""Rolls back: a new version whose root is an old one."""

from __future__ import annotations

from functools import partial

from heliograph.core import trie
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Conflict, StaleBase
from heliograph.core.events import MAX_EVENT_TEXT
from heliograph.core.records import Leaf, Source
from heliograph.core.which import Which
from heliograph.services.registry.commit import Commits, Committed, Order, Unchanged
from heliograph.services.registry.draft import Content, Lineage
from heliograph.services.registry.heads import HeadRow, Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Store
from heliograph.services.registry.three_way import ThreeWay


class Rollback:
    def __init__(self, commits: Commits, store: Store, objects: Objects, three_way: ThreeWay) -> None:
        self._commits = commits
        self._store = store
        self._objects = objects
        self._three_way = three_way

    async def __call__(self, order: Order, to: Which) -> Committed | Unchanged:
        """The digest proves that it is the same content. Bounded by the environment's size, not by the limit of changes.

        Raises NotFound (no such version), Conflict (it holds a purged document), and what `Commits.commit` raises.
        """
        try:
            return await self._commits.commit(order, partial(self._content, order.place, to))
        except StaleBase as error:
            raise await self._three_way(order, error) from None

    async def _content(self, place: Place, to: Which, base: HeadRow) -> Content | None:
        target = await self._store.version(place, to)  # here, so that a replay is answered although the label is gone since
        if target.root == base.root:
            return None
        old, new = await self._objects.pair(place.namespace, base.root, target.root)
        found = dict(trie.diff(old, new))
        leaves = await self._objects.leaves(place.namespace, {each for each in found.values() if each}, keep=False)
        changed: dict[str, Leaf | None] = {name: leaves[at] if at else None for name, at in found.items()}
        texts = await self._texts(place, changed)
        source = Source(place.environment, target.number, spell(target.id))
        lineage = Lineage("rollback", place.environment, target.number)
        return Content("rollback", new, changed, texts, (), target.configs, source, lineage)

    async def _texts(self, place: Place, changed: dict[str, Leaf | None]) -> dict[str, bytes]:
        """The documents, when the event has room for them. Raises Conflict when one is gone."""
        wanted = {unspell(leaf.document) for leaf in changed.values() if leaf}
        schemas = {unspell(leaf.schema) for leaf in changed.values() if leaf and leaf.schema}
        weight = await self._store.weigh(place.namespace, wanted | schemas)
        if weight.purged:
            raise Conflict("that version holds a document or schema that was purged; it cannot come back")
        if weight.bytes > MAX_EVENT_TEXT:
            return {}
        texts = await self._objects.texts(place.namespace, wanted, keep=False)
        return {spell(digest): text for digest, text in texts.items()}
