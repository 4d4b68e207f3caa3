"""What stands between an author's base and the head, for people who have to decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from heliograph.core import trie
from heliograph.core.digest import unspell
from heliograph.core.errors import NotFound, StaleBase
from heliograph.services.registry.commit import Order
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.store import Store

SHOWN: Final = 1_000


class ThreeWay:
    def __init__(self, store: Store, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def __call__(self, order: Order, error: StaleBase, yours: Sequence[str]) -> StaleBase:
        """The same error with a summary: names changed since the base, names this request changes, and those in both.

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
        summary = {"changed": changed, "yours": set(yours), "overlap": changed & set(yours)}
        more: dict[str, object] = {"base_number": base.number, **{key: sorted(names)[:SHOWN] for key, names in summary.items()}}
        return StaleBase(
            f"{order.place} went from version {base.number} to {error.number}: {len(changed):,} configs changed since, "
            f"{len(summary['overlap']):,} of them also in this request; look at the head and publish again with its id in If-Match",
            head=error.head,
            number=error.number,
            more=more,
        )
