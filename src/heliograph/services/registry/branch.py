"""Branches: a new environment that begins with the content of a version of another, and shares every object with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from heliograph.core import trie
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Conflict, HeliographError
from heliograph.core.names import Namespace
from heliograph.core.records import Leaf, Source
from heliograph.core.trie import Stub
from heliograph.core.which import Which
from heliograph.services.registry.commit import Commits, Committed, Order
from heliograph.services.registry.draft import Content, Lineage
from heliograph.services.registry.environments import create_environment
from heliograph.services.registry.heads import Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Store

BATCH: Final = 5_000
"""Configs that are looked at at once."""


class Branch:
    def __init__(self, commits: Commits, store: Store, objects: Objects) -> None:
        self._commits = commits
        self._store = store
        self._objects = objects

    async def __call__(self, order: Order, source: Place, at: Which | None) -> Committed:
        """Version 1 of ``order.place`` with the root of a version of ``source``, by default its head's. Costs the same for any number of configs,
        unless something in the namespace was ever purged: then every config is looked at.

        Raises NotFound (no such environment or version), Conflict (it holds a purged document), AlreadyExists, IdempotencyKeyReused.
        """
        try:
            content = await self._content(source, at)
        except HeliographError:  # the retry of one that was made: what it was made from may be gone since
            if before := await self._commits.answered(order):
                return before
            raise
        return await create_environment(self._store, self._commits, order, content)

    async def _content(self, source: Place, at: Which | None) -> Content:
        which = (await self._store.head(source)).version if at is None else at
        row = await self._store.version(source, which)
        if await self._store.purged_any(source.namespace):
            await self._refuse_purged(source.namespace, row.root)
        origin = Source(source.environment, row.number, spell(row.id))
        lineage = Lineage("branch", source.environment, row.number)
        return Content("branch", Stub(row.root), {}, {}, (), row.configs, origin, lineage)

    async def _refuse_purged(self, namespace: Namespace, root: bytes) -> None:
        digests = sorted({digest for _, digest in trie.leaves(await self._objects.whole(namespace, root))})
        for start in range(0, len(digests), BATCH):
            leaves = await self._objects.leaves(namespace, digests[start : start + BATCH], keep=False)
            if (await self._store.weigh(namespace, _texts(leaves.values()))).purged:
                raise Conflict("that version holds a document or schema that was purged; branch from one without it")


def _texts(leaves: Iterable[Leaf]) -> set[bytes]:
    return {unspell(text) for leaf in leaves for text in (leaf.document, leaf.schema) if text}
