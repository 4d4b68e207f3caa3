"""Puts an author's changes on top of a head that has moved since the author looked, when nothing overlaps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from heliograph.core.digest import spell
from heliograph.core.errors import Invalid, NotFound, StaleBase
from heliograph.services.registry.changes import Change
from heliograph.services.registry.commit import Order
from heliograph.services.registry.draft import Rebased
from heliograph.services.registry.heads import HeadRow
from heliograph.services.registry.merging import MAX_MERGED, Config, Configs, change_to, changed_by, merge_configs
from heliograph.services.registry.store import Store

Edit = Callable[[bytes], Awaitable[tuple[Change, ...]]]
"""What an author wants to change, given the root of the version that it is done to."""


class Rebase:
    def __init__(self, store: Store, configs: Configs) -> None:
        self._store = store
        self._configs = configs

    async def __call__(self, order: Order, edit: Edit, head: HeadRow) -> tuple[tuple[Change, ...], Rebased]:
        """The changes that give the three-way merge of base, head and what the author made of the base; and that base.

        Raises StaleBase where both changed the same place, and for a base that this environment never had; what ``edit`` raises.
        """
        assert order.if_match is not None, "without a base there is nothing to rebase"
        try:
            base = await self._store.version(order.place, order.if_match)
        except NotFound:
            raise stale(order, head, "that one is not in its history") from None
        changes = await edit(base.root)
        if len(changes) > MAX_MERGED:
            raise stale(order, head, f"more than {MAX_MERGED:,} changes are not rebased")
        names = [change.name for change in changes]
        before = await self._configs.at(order.place.namespace, base.root, names, bases=True)
        now = await self._configs.at(order.place.namespace, head.root, names)
        return await asyncio.to_thread(_rebased, order, head, changes, before, now), Rebased(base.number, spell(base.id))


def _rebased(
    order: Order,
    head: HeadRow,
    changes: tuple[Change, ...],
    before: dict[str, Config | None],
    now: dict[str, Config | None],
) -> tuple[Change, ...]:
    merged: list[Change] = []
    for change in changes:
        name = change.name
        outcome = merge_configs(before[name], now[name], changed_by(change, before[name]))
        if outcome.conflicts:
            raise stale(order, head, "the changes overlap")
        try:
            if outcome.changed:
                merged.append(change_to(name, outcome.config))
        except Invalid as error:
            raise stale(order, head, f"put together, {name} is no document: {error.detail}") from None
    return tuple(merged)


def stale(order: Order, head: HeadRow, why: str) -> StaleBase:
    return StaleBase(
        f"{order.place} is at version {head.number} now, not at the one in If-Match, and {why}",
        head=head.id,
        number=head.number,
    )
