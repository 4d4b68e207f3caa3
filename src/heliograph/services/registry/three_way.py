"""What stands between an author's base and the head, for people who have to decide."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import msgspec

from heliograph.core import trie
from heliograph.core.digest import unspell
from heliograph.core.errors import HeliographError, NotFound, StaleBase
from heliograph.services.registry.changes import Change
from heliograph.services.registry.commit import Order
from heliograph.services.registry.heads import VersionRow
from heliograph.services.registry.merging import (
    Config,
    Configs,
    changed_by,
    merge_configs,
    operations,
    side_of,
)
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.rebase import Edit
from heliograph.services.registry.store import Store

SHOWN: Final = 1_000
"""Names in each list."""
COMPARED: Final = 100
"""Configs whose differences are told."""
MAX_TOLD: Final = 256 << 10
"""Bytes of all differences together; a config whose do not fit is told by its conflicts alone."""


class ThreeWay:
    def __init__(self, store: Store, objects: Objects, configs: Configs) -> None:
        self._store = store
        self._objects = objects
        self._configs = configs

    async def __call__(self, order: Order, error: StaleBase, edit: Edit | None = None) -> StaleBase:
        """The same error with the three-way difference: names changed since the base, names this request changes, those in both, and of these
        what each side did (RFC 6902) and where they conflict.

        A base that this environment never had is said to be none.
        """
        assert order.if_match is not None, "only a condition can be stale"
        try:
            base = await self._store.version(order.place, order.if_match)
        except NotFound:
            return StaleBase(
                f"If-Match names no version of {order.place}, which is at version {error.number}",
                head=error.head,
                number=error.number,
            )
        head = await self._store.version(order.place, unspell(error.head))
        old, new = await self._objects.pair(order.place.namespace, base.root, head.root)
        changed = {name for name, _ in trie.diff(old, new)}
        yours: dict[str, Change] = {change.name: change for change in await _asked(edit, base)}
        overlap = sorted(changed & yours.keys())
        more: dict[str, object] = {
            "base_number": base.number,
            "changed": sorted(changed)[:SHOWN],
            "yours": sorted(yours)[:SHOWN],
            "overlap": overlap[:SHOWN],
            "differences": await self._differences(order, base, head, [yours[name] for name in overlap[:COMPARED]]),
        }
        return StaleBase(
            f"{order.place} went from version {base.number} to {error.number}: {len(changed):,} configs changed since, "
            f"{len(overlap):,} of them also in this request; look at the head and publish again with its id in If-Match",
            head=error.head,
            number=error.number,
            more=more,
        )

    async def _differences(
        self, order: Order, base: VersionRow, head: VersionRow, changes: list[Change]
    ) -> list[dict[str, object]]:
        names = [change.name for change in changes]
        try:
            before = await self._configs.at(order.place.namespace, base.root, names, bases=True)
            now = await self._configs.at(order.place.namespace, head.root, names)
        except HeliographError:  # purged, or too much; the names are told all the same
            return []
        return await asyncio.to_thread(_told, changes, before, now)


async def _asked(edit: Edit | None, base: VersionRow) -> Collection[Change]:
    """What the request would have done to the base. Nothing when it does not fit there: the stale base is what has to be said."""
    try:
        return await edit(base.root) if edit else ()
    except HeliographError:
        return ()


def _told(changes: list[Change], before: dict[str, Config | None], now: dict[str, Config | None]) -> list[dict[str, object]]:
    told, left = [], MAX_TOLD
    for change in changes:
        one = _difference(change.name, before[change.name], now[change.name], changed_by(change, before[change.name]))
        if len(msgspec.json.encode(one)) > left:
            one |= {"since": [], "yours": [], "truncated": True}
        if (size := len(msgspec.json.encode(one))) > left:
            break
        left -= size
        told.append(one)
    return told


def _difference(name: str, base: Config | None, head: Config | None, yours: Config | None) -> dict[str, object]:
    return {
        "name": name,
        "since": operations(side_of(base), side_of(head)),
        "yours": operations(side_of(base), side_of(yours)),
        "conflicts": [each.pointer for each in merge_configs(base, head, yours).conflicts][:SHOWN],
    }
