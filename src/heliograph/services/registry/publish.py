"""Publishes changes: documents and schemas set, configs deleted, in one new version."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from heliograph.core import trie
from heliograph.core.canonical import Json, parse
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import InvalidSchema, NotFound, SchemaViolation, StaleBase
from heliograph.core.records import Leaf
from heliograph.core.trie import Bucket, Node
from heliograph.services.registry.changes import Change, Text, below
from heliograph.services.registry.commit import Commits, Committed, Order, Unchanged
from heliograph.services.registry.draft import MANY, Content, Stored, stored
from heliograph.services.registry.evolution import Evolution
from heliograph.services.registry.heads import HeadRow, Place
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.schemas import MAX_FAULTS
from heliograph.services.registry.three_way import ThreeWay
from heliograph.services.registry.validation import Validation
from heliograph.telemetry.metrics import Metrics

PAUSE: Final = 50
"""Quick validations in a row before others get their turn on the loop: a millisecond or two."""
Leaves = dict[str, Leaf | None]


class Publish:
    def __init__(
        self,
        commits: Commits,
        objects: Objects,
        validation: Validation,
        evolution: Evolution,
        three_way: ThreeWay,
        metrics: Metrics,
    ) -> None:
        self._evolution = evolution
        self._metrics = metrics
        self._commits = commits
        self._three_way = three_way
        self._objects = objects
        self._validation = validation

    async def __call__(self, order: Order, changes: tuple[Change, ...]) -> Committed | Unchanged:
        """One version with all changes that change something, Unchanged if none does.

        Raises SchemaViolation, InvalidSchema, Incompatible, NotFound (a config to delete or to give a schema is not there), and what
        `Commits.commit` raises.
        """
        try:
            done = await self._commits.commit(order, partial(self._content, order.place, changes))
        except StaleBase as error:
            raise await self._three_way(order, error, [change.name for change in changes]) from None
        return await self._evolution.told(order.place, changes, done)

    async def _content(self, place: Place, changes: tuple[Change, ...], base: HeadRow) -> Content | None:
        leaving = frozenset(change.name for change in changes if change.delete)
        root = await self._objects.paths(place.namespace, base.root, [change.name for change in changes], leaving)
        old = await self._leaves(place, root, changes)
        new: Leaves = {change.name: _next_leaf(change, old[change.name]) for change in changes}
        changed = [change for change in changes if new[change.name] != old[change.name]]
        if not changed:
            return None
        with self._metrics.publish_seconds.labels("validate").time():
            await self._check(place, changed, new)
            await self._evolution.guard(place, changed)
        grown = sum((new[each.name] is not None) - (old[each.name] is not None) for each in changed)
        put_together = partial(_content, root, changed, new, base.configs + grown)
        return await asyncio.to_thread(put_together) if len(changed) >= MANY else put_together()

    async def _leaves(self, place: Place, root: Node, changes: tuple[Change, ...]) -> Leaves:
        at = {change.name: trie.get(root, change.name) for change in changes}
        digests = {name: found for name, found in at.items() if isinstance(found, bytes)}
        leaves = await self._objects.leaves(place.namespace, set(digests.values()))
        return {change.name: leaves[digests[change.name]] if change.name in digests else None for change in changes}

    async def _check(self, place: Place, changed: list[Change], new: Leaves) -> None:
        """Every document against its schema. Raises one error for all faults of all configs."""
        violations = []
        for index, change in enumerate(changed, 1):
            leaf = new[change.name]
            if leaf is None or leaf.schema is None:
                continue
            if index % PAUSE == 0:
                await asyncio.sleep(0)
            try:
                await self._check_one(place, change, leaf, leaf.schema)
            except SchemaViolation as error:
                violations.append(SchemaViolation(f"{change.name}: {error.detail}", error.faults))
        if len(violations) == 1:
            raise violations[0]
        if violations:
            faults = [fault for each in violations for fault in each.faults]
            names = ", ".join(each.detail.split(":", 1)[0] for each in violations[:5])
            raise SchemaViolation(f"{len(violations)} configs break their schemas: {names}", faults[:MAX_FAULTS])

    async def _check_one(self, place: Place, change: Change, leaf: Leaf, schema_digest: str) -> None:
        key = unspell(schema_digest)
        if isinstance(change.schema, Text):
            schema = change.schema.text
            await self._usable(change.schema)
        else:
            schema = await self._objects.text(place.namespace, key)
        text, value, at = await self._document(place, change, leaf)
        try:
            await self._validation.document(key, schema, text, value)
        except SchemaViolation as error:
            raise below(error, at) from None

    async def _usable(self, schema: Text) -> None:
        try:
            await self._validation.schema(schema.digest, schema.text)
        except InvalidSchema as error:
            raise below(error, schema.at) from None

    async def _document(self, place: Place, change: Change, leaf: Leaf) -> tuple[bytes, Json, str]:
        """Text, value, and the pointer to it in the request."""
        if change.document:
            return change.document.text, change.document.value, change.document.at
        text = await self._objects.text(place.namespace, unspell(leaf.document))
        return text, parse(text), ""


def _next_leaf(change: Change, old: Leaf | None) -> Leaf | None:
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


def _content(root: Node, changed: list[Change], new: Leaves, configs: int) -> Content:
    """Pure; takes about 50 µs for each change."""
    leaves: Leaves = {change.name: new[change.name] for change in changed}
    written = {name: stored("leaf", leaf.text()) for name, leaf in leaves.items() if leaf}
    after = trie.update(root, {name: written[name].digest if name in written else None for name in leaves})
    objects = [*written.values(), *(stored("node", node.encode()) for node in trie.fresh(root, after))]
    if isinstance(after, Bucket) and not after.entries:
        objects.append(stored("node", after.encode()))
    texts: dict[str, bytes] = {}
    for change in changed:
        if change.document:
            objects.append(Stored("document", change.document.digest, change.document.text))
            texts[spell(change.document.digest)] = change.document.text
        if isinstance(change.schema, Text):
            objects.append(Stored("schema", change.schema.digest, change.schema.text))
    return Content("publish", after, leaves, texts, tuple(objects), configs)
