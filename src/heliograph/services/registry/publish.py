"""Publishes changes: documents and schemas set, configs deleted, in one new version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from heliograph.core.canonical import Json, parse
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import InvalidSchema, SchemaViolation, StaleBase
from heliograph.core.records import Leaf
from heliograph.services.registry.assembling import Leaves, assembled, texts_of
from heliograph.services.registry.changes import Change, Text, below
from heliograph.services.registry.commit import Commits, Committed, Order, Unchanged
from heliograph.services.registry.draft import Content
from heliograph.services.registry.evolution import Evolution
from heliograph.services.registry.heads import HeadRow, Place
from heliograph.services.registry.merging import leaves_at, next_leaf
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.rebase import Edit, Rebase, stale
from heliograph.services.registry.schemas import MAX_FAULTS
from heliograph.services.registry.three_way import ThreeWay
from heliograph.services.registry.validation import Validation
from heliograph.telemetry.metrics import Metrics

PAUSE: Final = 50
"""Quick validations in a row before others get their turn on the loop: a millisecond or two."""


class Publish:
    def __init__(
        self,
        commits: Commits,
        objects: Objects,
        validation: Validation,
        evolution: Evolution,
        three_way: ThreeWay,
        rebase: Rebase,
        metrics: Metrics,
    ) -> None:
        self._evolution = evolution
        self._metrics = metrics
        self._commits = commits
        self._three_way = three_way
        self._rebase = rebase
        self._objects = objects
        self._validation = validation

    async def __call__(self, order: Order, changes: tuple[Change, ...]) -> Committed | Unchanged:
        """One version with all changes that change something, Unchanged if none does.

        Raises SchemaViolation, InvalidSchema, Incompatible, NotFound (a config to delete or to give a schema is not there), and what
        `Commits.commit` raises.
        """

        async def the_same(_: bytes) -> tuple[Change, ...]:
            return changes

        return await self.edit(order, the_same)

    async def edit(self, order: Order, edit: Edit) -> Committed | Unchanged:
        """The same for changes that depend on what is there; ``edit`` is asked again whenever the head has moved.

        With ``order.rebase`` a base that is not the head any more is no obstacle while nothing since then overlaps with the changes.
        """
        applied: list[Change] = []
        try:
            if order.rebase and order.if_match:
                make = partial(self._rebased, order, edit, applied)
                done = await self._commits.commit(replace(order, if_match=None), make)
            else:
                done = await self._commits.commit(order, partial(self._edited, order.place, edit, applied))
        except StaleBase as error:
            raise await self._three_way(order, error, edit) from None
        return await self.told(order.place, applied, done)

    async def _edited(self, place: Place, edit: Edit, applied: list[Change], base: HeadRow) -> Content | None:
        applied[:] = await edit(base.root)
        return await self._content(place, applied, base)

    async def _rebased(self, order: Order, edit: Edit, applied: list[Change], head: HeadRow) -> Content | None:
        if head.version == order.if_match:
            return await self._edited(order.place, edit, applied, head)
        applied[:], base = await self._rebase(order, edit, head)
        try:
            content = await self._content(order.place, applied, head)
        except SchemaViolation as error:
            raise stale(order, head, f"put together with what came since, {error.detail}") from None
        return content and replace(content, rebased=base)

    async def _content(self, place: Place, changes: Sequence[Change], base: HeadRow) -> Content | None:
        leaving = frozenset(change.name for change in changes if change.delete)
        root = await self._objects.paths(place.namespace, base.root, [change.name for change in changes], leaving)
        old = await leaves_at(self._objects, place.namespace, root, [change.name for change in changes])
        new: Leaves = {change.name: next_leaf(change, old[change.name]) for change in changes}
        changed = [change for change in changes if new[change.name] != old[change.name]]
        if not changed:
            return None
        with self._metrics.publish_seconds.labels("validate").time():
            await self.check(place, changed, new)
            await self.guard(place, changed)
        grown = sum((new[each.name] is not None) - (old[each.name] is not None) for each in changed)
        texts: dict[str, bytes] = {spell(each.document.digest): each.document.text for each in changed if each.document}
        leaves: Leaves = {each.name: new[each.name] for each in changed}
        return await assembled("publish", root, leaves, texts, texts_of(changed), base.configs + grown)

    async def guard(self, place: Place, changes: Sequence[Change]) -> None:
        """Raises Incompatible where the environment's policy refuses what would break somebody."""
        await self._evolution.guard(place, changes)

    async def told(self, place: Place, changes: Sequence[Change], done: Committed | Unchanged) -> Committed | Unchanged:
        """The same, and where the policy warns, with what breaks. Never raises: the version stands."""
        return await self._evolution.told(place, changes, done)

    async def check(self, place: Place, changed: list[Change], new: Leaves) -> None:
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
