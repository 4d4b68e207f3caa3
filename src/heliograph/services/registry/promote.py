"""Promotes: brings what changed in one environment to another, by a three-way merge of each config against the last common point.

Ours is the target, theirs the source. Where only the source changed, its very objects are taken over; where both did, documents are merged member by
member and schemas as a whole. A conflict stops everything and is told with base, ours and theirs; the request is sent again with choices.

A promotion that finds nothing to change commits nothing, but it is a common point all the same, and is kept as one: that the two agree, or that
the target's own way was meant, was looked at and holds. Otherwise the next change of the target would conflict with one that is settled.

A cherry-pick (``change``) is merged against the version before the picked one. It is a common point for a config only if the target had that version
of the config before: otherwise it left changes out, which are still to come.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from heliograph.core import trie
from heliograph.core.canonical import parse
from heliograph.core.digest import spell, unspell
from heliograph.core.errors import Conflict, Fault, Invalid, InvalidRequest, MergeConflict, NotFound, StaleBase, TooLarge
from heliograph.core.events import MAX_EVENT_TEXT
from heliograph.core.merge import ABSENT, Absent, Side, alike
from heliograph.core.merge import Conflict as Disagreement
from heliograph.core.names import ConfigName
from heliograph.core.pointer import pointer_text
from heliograph.core.records import Leaf, Source, Version
from heliograph.core.trie import Node
from heliograph.core.which import Which
from heliograph.services.registry.answers import ConflictAnswer, PromotionAnswer, PromotionItem, PromotionPoint, SideName
from heliograph.services.registry.assembling import Leaves, assembled, texts_of
from heliograph.services.registry.changes import Change, Text
from heliograph.services.registry.commit import Commits, Committed, Order, Unchanged
from heliograph.services.registry.common_point import MANY, CommonPoints, Point, selectors_of
from heliograph.services.registry.draft import Content, Lineage
from heliograph.services.registry.heads import HeadRow, Place, VersionRow
from heliograph.services.registry.merging import (
    MAX_MERGED,
    Config,
    Configs,
    Outcome,
    change_to,
    merge_configs,
    next_leaf,
    operations,
    side_of,
)
from heliograph.services.registry.objects import Objects
from heliograph.services.registry.promotion import MAX_SELECTORS, Promotion
from heliograph.services.registry.publish import Publish
from heliograph.services.registry.store import PointRow, Store
from heliograph.services.registry.three_way import ThreeWay

MAX_PROMOTED: Final = 20_000
"""Configs that may differ."""
MAX_CONFLICTS: Final = 1_000
"""Conflicts that are listed; all are counted."""
MAX_TOLD: Final = 1 << 20
"""Bytes of values in one answer; what does not fit is told without values."""
SHOWN: Final = 500
"""Configs in a preview; all are counted."""
BATCH: Final = 20
"""Configs whose texts are in memory at once for a preview: 80 MiB at most."""

Readable = Callable[[str], bool]
"""Whether whoever asks may read an environment: the common point may lie in a third one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a promotion makes of a head. ``taken``: where only the source changed; ``merged``: where both did. ``ours``: what is there now, of both.

    ``sides``: base and theirs of what is merged. ``bases``: the last common points; ``lineage``: what is known once it is done.
    """

    taken: Leaves
    merged: dict[str, Outcome]
    ours: Leaves
    sides: dict[str, tuple[Leaf | None, Leaf | None]]
    bases: dict[str, PointRow | None]
    lineage: Lineage | None

    @property
    def conflicts(self) -> list[tuple[str, Disagreement]]:
        return [(name, each) for name in sorted(self.merged) for each in self.merged[name].conflicts]


class Promote:
    def __init__(
        self, commits: Commits, store: Store, objects: Objects, configs: Configs, publish: Publish, three_way: ThreeWay
    ) -> None:
        self._commits = commits
        self._store = store
        self._objects = objects
        self._configs = configs
        self._publish = publish
        self._three_way = three_way
        self._points = CommonPoints(store)

    async def __call__(self, order: Order, asked: Promotion, at: Which | None, readable: Readable) -> Committed | Unchanged:
        """One version of kind ``promote``, or Unchanged.

        Raises MergeConflict, SchemaViolation (what comes out breaks its schema), InvalidRequest (a choice that settles nothing), NotFound, Conflict
        (a purged document), Incompatible, TooLarge, and what `Commits.commit` raises.
        """
        agreed: list[tuple[VersionRow, Lineage]] = []
        looked_at: list[Change] = []

        async def make(head: HeadRow) -> Content | None:
            ends = await self._ends(order.place, asked, at)  # here, so that a replay is answered although they are gone since
            plan = await self._plan(order.place, asked, ends, head)
            agreed[:] = [(ends.source, plan.lineage)] if plan.lineage else []
            if plan.conflicts:
                raise _refusal(ends.source, head, plan, readable)
            return await self._content(order.place, ends.source, plan, head, looked_at)

        try:
            outcome = await self._commits.commit(order, make)
        except StaleBase as error:
            raise await self._three_way(order, error) from None
        if isinstance(outcome, Unchanged) and agreed:
            await self._note(order, outcome.head, *agreed[0])
        return await self._publish.told(order.place, looked_at, outcome)

    async def preview(self, place: Place, asked: Promotion, at: Which | None, readable: Readable) -> PromotionAnswer:
        """What it would do to the head, with every conflict. Changes nothing. Raises as the promotion does, but no conflict."""
        ends, head = await self._ends(place, asked, at), await self._store.head(place)
        plan = await self._plan(place, asked, ends, head)
        names = sorted(name for name in {**plan.taken, **plan.merged} if _does_something(name, plan))
        items, room = [], MAX_TOLD
        for start in range(0, min(len(names), SHOWN), BATCH):
            if room <= 0:
                break
            for item in await self._items(place, plan, names[start : min(start + BATCH, SHOWN)], readable):
                size = len(msgspec.json.encode(item))
                items.append(item if size <= room else msgspec.structs.replace(item, operations=[], truncated=True))
                room -= min(size, room)
        return PromotionAnswer(
            from_=PromotionPoint(ends.source_place.environment, ends.source.number, spell(ends.source.id)),
            to=PromotionPoint(place.environment, head.number, head.id),
            items=items,
            change_count=len(names),
            conflict_count=len(plan.conflicts),
        )

    async def _note(self, order: Order, head: HeadRow, source: VersionRow, lineage: Lineage) -> None:
        detail = {
            "number": head.number,
            "changed": 0,
            "source": {"environment": lineage.environment, "number": source.number, "version": spell(source.id)},
        }
        await self._store.note_lineage(
            order.place, head.number, lineage, actor=order.author, action=order.action, detail=detail
        )

    # --- what differs, and since when ---------------------------------------------------------------------------------------------

    async def _ends(self, place: Place, asked: Promotion, at: Which | None) -> _Ends:
        if asked.source == place.environment:
            raise InvalidRequest(f"{place} cannot be promoted to itself; to bring back an older version, roll back")
        source = Place(place.namespace, asked.source)
        if asked.change is not None:
            return _Ends(
                source, await self._store.version(source, asked.change), await self._store.version(source, asked.change - 1)
            )
        which = (await self._store.head(source)).version if at is None else at
        return _Ends(source, await self._store.version(source, which))

    async def _plan(self, place: Place, asked: Promotion, ends: _Ends, head: HeadRow) -> Plan:
        names = await self._differing(place, asked, ends, head)
        target = Point(place.environment, head.number)
        theirs = await self._digests(place, ends.source.root, names)
        ours = await self._digests(place, head.root, names)
        bases = await self._bases(place, ends, target, names)
        base = await self._at_bases(place, dict.fromkeys(names, ends.before.root) if ends.before else _roots(bases))
        apart = [name for name in names if ours[name] != theirs[name] and base[name] != theirs[name]]
        both = [name for name in apart if base[name] != ours[name]]
        if len(both) > MAX_MERGED:
            raise TooLarge(
                f"{len(both):,} configs were changed in both environments; at most {MAX_MERGED:,} are merged at once: name some"
            )
        leaves = await self._leaves(place, (each[name] for each in (ours, theirs) for name in apart))
        more = await self._leaves(place, (base[name] for name in both))
        sides = {name: (_leaf(base[name], more), _leaf(theirs[name], leaves)) for name in both}
        mine: Leaves = {name: _leaf(ours[name], leaves) for name in apart}
        merged = await self._merge(place, asked, sides, mine)
        _refuse_idle(asked, merged)
        taken: Leaves = {name: _leaf(theirs[name], leaves) for name in apart if name not in sides}
        return Plan(taken, merged, mine, sides, bases, await self._lineage(place, asked, ends, target, names))

    async def _differing(self, place: Place, asked: Promotion, ends: _Ends, head: HeadRow) -> list[str]:
        await self._refuse_unknown(place, asked, ends, head)
        before = ends.before.root if ends.before else head.root
        old, new = await self._objects.pair(place.namespace, before, ends.source.root)
        found = await asyncio.to_thread(_within, old, new, frozenset(asked.selectors or [""]))
        if len(found) > MAX_PROMOTED:
            raise TooLarge(
                f"{len(found):,} configs differ; at most {MAX_PROMOTED:,} are promoted at once: name some, or folders. "
                "A whole environment is brought over by a branch"
            )
        return found

    async def _refuse_unknown(self, place: Place, asked: Promotion, ends: _Ends, head: HeadRow) -> None:
        """A name that neither side has is a mistake."""
        if asked.selectors is None:
            return
        roots = [await self._objects.paths(place.namespace, root, asked.selectors) for root in (head.root, ends.source.root)]
        for each in asked.selectors:
            if all(trie.get(root, each) is None for root in roots):
                raise NotFound(f"neither {place} nor {ends.source_place} has {each}")

    async def _digests(self, place: Place, root: bytes, names: Collection[str]) -> dict[str, bytes | None]:
        loaded = await self._objects.paths(place.namespace, root, names)

        def found() -> dict[str, bytes | None]:
            at = {name: trie.get(loaded, name) for name in names}
            return {name: each if isinstance(each, bytes) else None for name, each in at.items()}

        return await asyncio.to_thread(found) if len(names) > MANY else found()

    async def _bases(self, place: Place, ends: _Ends, target: Point, names: Collection[str]) -> dict[str, PointRow | None]:
        """Of a cherry-pick none: its base is the version before the picked one."""
        if ends.before or not names:
            return dict.fromkeys(names)
        return await self._points(place.namespace, target, Point(ends.source_place.environment, ends.source.number), names)

    async def _at_bases(self, place: Place, roots: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
        """The configs' digests, each at the root that is its base."""
        together: dict[bytes, list[str]] = defaultdict(list)
        for name, root in roots.items():
            if root is not None:
                together[root].append(name)
        found: dict[str, bytes | None] = dict.fromkeys(roots)
        for root, names in together.items():
            found |= await self._digests(place, root, names)
        return found

    async def _lineage(
        self, place: Place, asked: Promotion, ends: _Ends, target: Point, names: Collection[str]
    ) -> Lineage | None:
        """What is known after this promotion, for the next one."""
        source = Lineage("promote", ends.source_place.environment, ends.source.number)
        if ends.before is None:
            return source._replace(selectors=list(asked.selectors) if asked.selectors else None)
        held = await self._points.held(place.namespace, target, source.environment, names)
        there = await self._at_bases(place, _roots(held))
        before = await self._digests(place, ends.before.root, names)
        whole = [name for name in names if held[name] and there[name] == before[name]]
        return source._replace(selectors=whole) if 0 < len(whole) <= MAX_SELECTORS else None

    # --- putting it together ------------------------------------------------------------------------------------------------------

    async def _leaves(self, place: Place, digests: Iterable[bytes | None]) -> dict[bytes, Leaf]:
        return await self._objects.leaves(place.namespace, {each for each in digests if each}, keep=False)

    async def _merge(
        self, place: Place, asked: Promotion, sides: Mapping[str, tuple[Leaf | None, Leaf | None]], ours: Leaves
    ) -> dict[str, Outcome]:
        every = {leaf for name, pair in sides.items() for leaf in (*pair, ours[name]) if leaf}
        needed = {leaf for name, (_, theirs) in sides.items() for leaf in (theirs, ours[name])}
        read = await self._configs.of(place.namespace, every, bases=every - needed)

        def merged() -> dict[str, Outcome]:
            return {
                name: merge_configs(
                    _config(base, read), _config(ours[name], read), _config(theirs, read), asked.choices.get(name, {})
                )
                for name, (base, theirs) in sides.items()
            }

        return await asyncio.to_thread(merged)

    async def _content(
        self, place: Place, source: VersionRow, plan: Plan, head: HeadRow, looked_at: list[Change]
    ) -> Content | None:
        changes = {name: _change(name, outcome) for name, outcome in plan.merged.items() if _does_something(name, plan)}
        leaves: Leaves = plan.taken | {name: next_leaf(change, plan.ours[name]) for name, change in changes.items()}
        leaves = {name: leaf for name, leaf in leaves.items() if leaf != plan.ours[name]}
        if not leaves:
            return None
        made = [changes[name] for name, leaf in leaves.items() if name in changes and leaf not in plan.sides[name]]
        await self._publish.check(place, made, leaves)
        taken = await self._texts(place, plan.taken)
        looked_at[:] = [*made, *_taken_over(plan.taken, taken)]
        await self._publish.guard(place, looked_at)
        texts = taken | {spell(each.document.digest): each.document.text for each in changes.values() if each.document}
        leaving = frozenset(name for name, leaf in leaves.items() if leaf is None)
        root = await self._objects.paths(place.namespace, head.root, leaves, leaving)
        grown = sum((leaf is not None) - (plan.ours[name] is not None) for name, leaf in leaves.items())
        origin = Source(_source_of(source), source.number, spell(source.id))
        return await assembled(
            "promote", root, leaves, texts, texts_of(changes.values()), head.configs + grown, origin, plan.lineage
        )

    async def _texts(self, place: Place, taken: Leaves) -> dict[str, bytes]:
        """The documents that are taken over, when the event has room for them. Raises Conflict when one is gone."""
        wanted = {unspell(leaf.document) for leaf in taken.values() if leaf}
        schemas = {unspell(leaf.schema) for leaf in taken.values() if leaf and leaf.schema}
        weight = await self._store.weigh(place.namespace, wanted | schemas)
        if weight.purged:
            raise Conflict("the source holds a document or schema that was purged; it cannot be promoted")
        if weight.bytes > MAX_EVENT_TEXT:
            return {}
        texts = await self._objects.texts(place.namespace, wanted, keep=False)
        return {spell(digest): text for digest, text in texts.items()}

    async def _items(self, place: Place, plan: Plan, names: list[str], readable: Readable) -> list[PromotionItem]:
        every = {leaf for name in names for leaf in (plan.ours[name], plan.taken.get(name)) if leaf}
        read = await self._configs.of(place.namespace, every)

        def compared() -> list[PromotionItem]:
            return [_item(name, plan, read, readable) for name in names]

        return await asyncio.to_thread(compared)


@dataclass(frozen=True, slots=True)
class _Ends:
    """``before``: of a cherry-pick, the version before the picked one."""

    source_place: Place
    source: VersionRow
    before: VersionRow | None = None


def _within(old: Node, new: Node, selectors: frozenset[str]) -> list[str]:
    """Configs that differ, as far as they were asked for."""
    return sorted(name for name, _ in trie.diff(old, new) if not selectors.isdisjoint(selectors_of(name)))


def _source_of(row: VersionRow) -> str:
    return Version.read(row.record.payload).environment


def _roots(points: Mapping[str, PointRow | None]) -> dict[str, bytes | None]:
    return {name: point.root if point else None for name, point in points.items()}


def _leaf(digest: bytes | None, leaves: Mapping[bytes, Leaf]) -> Leaf | None:
    return leaves[digest] if digest else None


def _config(leaf: Leaf | None, read: Mapping[Leaf, Config]) -> Config | None:
    return read[leaf] if leaf else None


def _change(name: str, outcome: Outcome) -> Change:
    """Raises Invalid: what was put together is no document."""
    try:
        return change_to(ConfigName(name), outcome.config)
    except Invalid as error:
        raise type(error)(f"{name}, put together: {error.detail}", error.faults) from None


def _does_something(name: str, plan: Plan) -> bool:
    """Not when a merge, or the choices, come to what the target has already."""
    outcome = plan.merged.get(name)
    return outcome is None or bool(outcome.conflicts) or outcome.changed


def _refuse_idle(asked: Promotion, merged: Mapping[str, Outcome]) -> None:
    """A choice for a place that is in no conflict is a mistake, or the conflict has gone meanwhile: better looked at."""
    for name, choices in asked.choices.items():
        settled = merged[name].settled if name in merged else frozenset[str]()
        for place in sorted(choices.keys() - settled):
            fault = Fault(pointer_text(["resolve", name, place]), "choice", "there is no such conflict")
            raise InvalidRequest(
                f"resolve: there is no conflict at {name} {place or '(the whole)'}; look at the preview", [fault]
            )


# --- telling ----------------------------------------------------------------------------------------------------------------------


def _refusal(source: VersionRow, head: HeadRow, plan: Plan, readable: Readable) -> MergeConflict:
    listed = conflicts_of(plan, plan.conflicts[:MAX_CONFLICTS], readable)
    configs = len({name for name, _ in plan.conflicts})
    return MergeConflict(
        f"{len(plan.conflicts):,} places in {configs:,} configs were changed in both environments; "
        'send it again with a choice for each in "resolve"',
        more={
            "conflicts": msgspec.to_builtins(listed),
            "conflict_count": len(plan.conflicts),
            "head": head.id,
            "number": head.number,
            "source": {"environment": _source_of(source), "number": source.number, "version": spell(source.id)},
        },
    )


def conflicts_of(plan: Plan, conflicts: Iterable[tuple[str, Disagreement]], readable: Readable) -> list[ConflictAnswer]:
    told, room = [], MAX_TOLD
    for name, each in conflicts:
        base = plan.bases.get(name)
        one = _conflict(name, each, base, shown=base is None or readable(base.environment))
        size = len(msgspec.json.encode(one))
        if size > room:
            one = ConflictAnswer(config=name, pointer=each.pointer, absent=one.absent, truncated=True)
        else:
            room -= size
        told.append(one)
    return told


def _conflict(name: str, each: Disagreement, base: PointRow | None, *, shown: bool) -> ConflictAnswer:
    sides: dict[SideName, Side] = {"base": each.base, "ours": each.ours, "theirs": each.theirs}
    return ConflictAnswer(
        config=name,
        pointer=each.pointer,
        absent=[side for side, value in sides.items() if isinstance(value, Absent)],
        base=_told(each.base) if shown else msgspec.UNSET,
        ours=_told(each.ours),
        theirs=_told(each.theirs),
        common=PromotionPoint(base.environment, base.number) if base else None,
    )


def _told(side: Side) -> Any:
    return msgspec.UNSET if isinstance(side, Absent) else side


def _item(name: str, plan: Plan, read: Mapping[Leaf, Config], readable: Readable) -> PromotionItem:
    old = _config(plan.ours[name], read)
    outcome = plan.merged.get(name)
    new = outcome.config if outcome else _config(plan.taken[name], read)
    base = plan.bases.get(name)
    return PromotionItem(
        name=name,
        change="added" if old is None else "removed" if new is None else "changed",
        operations=operations(side_of(old), side_of(new)),
        schema_changed=not alike(old.schema if old else ABSENT, new.schema if new else ABSENT),
        common=PromotionPoint(base.environment, base.number) if base else None,
        conflicts=conflicts_of(plan, [(name, each) for each in outcome.conflicts] if outcome else [], readable),
    )


def _taken_over(taken: Leaves, texts: Mapping[str, bytes]) -> list[Change]:
    """What is taken over from the source as changes of the target, of documents that are at hand: for those who may break."""
    return [
        Change(ConfigName(name), document=Text(text, parse(text), unspell(leaf.document)))
        for name, leaf in taken.items()
        if leaf and (text := texts.get(leaf.document)) is not None
    ]
