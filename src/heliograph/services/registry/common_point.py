"""The last common point of two environments, for each config: the base of the three-way merge that a promotion is.

What a version *knows* is, for each environment, the highest number whose state of a config has flowed into it: its own past, what it was branched
from, what was promoted into it, and what those knew. Two versions have in common, of each environment that both know, the lower of the two numbers;
the last common point is the one of these that was committed last, so nothing newer is common.

A rollback takes knowledge back together with content: what had been promoted in between can be promoted again. Of one environment only the newest
version that is known counts, so a promotion of a source that was rolled back takes over that, too. A cherry-pick is knowledge of its configs only
where it left nothing out (see `promote`).

`known` is pure; `CommonPoints` reads what it asks for: a few rows for each environment on the way, never a history.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from heapq import heappop, heappush
from typing import Final, NamedTuple

from heliograph.core.errors import TooLarge
from heliograph.core.names import Namespace
from heliograph.services.registry.store import FlowRow, PointRow, Store

MAX_STEPS: Final = 256
"""Versions that are looked into on the way back. What is older than that many exchanges between environments is not found any more: the base is
then an older one, which can show conflicts that are none but hides no change."""
MANY: Final = 2_000
"""Configs from which on looking at each is for a thread: some milliseconds."""
_NOW: Final = datetime.max.replace(tzinfo=UTC)


class Point(NamedTuple):
    """A version, within a namespace."""

    environment: str
    number: int


@dataclass(frozen=True, slots=True)
class Flow:
    """A version's content came here from a source. ``selectors`` None: all of it."""

    source: Point
    at: datetime
    selectors: frozenset[str] | None = None

    def covers(self, name: str) -> bool:
        return self.selectors is None or not self.selectors.isdisjoint(selectors_of(name))


Flows = Mapping[Point, Sequence[Flow]]
"""What flowed into a version directly, and into those before it as far as that was not taken back."""


@lru_cache(1 << 14)
def selectors_of(name: str) -> tuple[str, ...]:
    """Every selector that covers a config."""
    cuts = [place + 1 for place, character in enumerate(name) if character == "/"]
    return ("", *(name[:cut] for cut in cuts), name)


def known(name: str, start: Point, flows: Flows) -> tuple[dict[str, int], Point | None]:
    """What a version knows of a config: environment -> number; and a point whose flows are missing to know the rest.

    Walks back in time, so that an environment is first met at its newest version that flowed here.
    """
    found: dict[str, int] = {}
    ahead: list[tuple[float, int, Point]] = [(-_NOW.timestamp(), -start.number, start)]
    for _ in range(MAX_STEPS):
        if not ahead:
            break
        *_, point = heappop(ahead)
        if found.get(point.environment, 0) >= point.number:
            continue
        found[point.environment] = point.number
        if point not in flows:
            return found, point
        for flow in _newest(name, flows[point]):
            heappush(ahead, (-flow.at.timestamp(), -flow.source.number, flow.source))
    return found, None


def _newest(name: str, flows: Sequence[Flow]) -> Collection[Flow]:
    """Of each source the newest version that this config came from."""
    newest: dict[str, Flow] = {}
    for flow in flows:
        held = newest.get(flow.source.environment)
        if (held is None or flow.source.number > held.source.number) and flow.covers(name):
            newest[flow.source.environment] = flow
    return newest.values()


def in_common(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[Point]:
    """Of each environment that both know, the newest version that both know."""
    return [Point(each, min(ours[each], theirs[each])) for each in sorted(ours.keys() & theirs.keys())]


def grouped(names: Collection[str], flows: Flows) -> list[list[str]]:
    """Configs that the same flows cover, so that one stands for all of its group."""
    partial = [flow for each in flows.values() for flow in each if flow.selectors is not None]
    groups: dict[tuple[bool, ...], list[str]] = defaultdict(list)
    for name in names:
        groups[tuple(flow.covers(name) for flow in partial)].append(name)
    return list(groups.values())


class CommonPoints:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def __call__(
        self, namespace: Namespace, ours: Point, theirs: Point, names: Collection[str]
    ) -> dict[str, PointRow | None]:
        """Of each config the last common point; None: they have nothing in common."""
        groups, flows = await self._walked(namespace, (ours, theirs), names)
        common = [(group, in_common(known(group[0], ours, flows)[0], known(group[0], theirs, flows)[0])) for group in groups]
        return await self._newest(namespace, common)

    async def held(
        self, namespace: Namespace, ours: Point, environment: str, names: Collection[str]
    ) -> dict[str, PointRow | None]:
        """Of each config the newest version of an environment that has flowed into ``ours``; None: none has."""
        groups, flows = await self._walked(namespace, (ours,), names)
        found = [(group, known(group[0], ours, flows)[0].get(environment)) for group in groups]
        return await self._newest(
            namespace, [(group, [Point(environment, number)] if number else []) for group, number in found]
        )

    async def _walked(
        self, namespace: Namespace, starts: Sequence[Point], names: Collection[str]
    ) -> tuple[list[list[str]], Flows]:
        """The configs by what covers them, and all flows on the ways back from the starts."""
        flows: dict[Point, Sequence[Flow]] = {}
        for _ in range(MAX_STEPS):
            groups = await asyncio.to_thread(grouped, names, flows) if len(names) > MANY else grouped(names, flows)
            missing = {lacking for group in groups for start in starts if (lacking := known(group[0], start, flows)[1])}
            if not missing:
                return groups, flows
            for point in missing:
                rows = await self._store.sources_of(namespace, point.environment, point.number)
                flows[point] = [_flow(row) for row in rows]
        raise TooLarge(
            "the histories of these environments are too entangled to find what they have in common; promote less at once"
        )

    async def _newest(self, namespace: Namespace, found: list[tuple[list[str], list[Point]]]) -> dict[str, PointRow | None]:
        """Of each group's points the one that was committed last."""
        rows = await self._store.points(namespace, {point for _, points in found for point in points})
        newest: dict[str, PointRow | None] = {}
        for group, points in found:
            there = [rows[point] for point in points if point in rows]
            newest |= dict.fromkeys(group, max(there, key=lambda row: row.committed_at, default=None))
        return newest


def _flow(row: FlowRow) -> Flow:
    selectors = None if row.selectors is None else frozenset(row.selectors)
    return Flow(Point(row.environment, row.number), row.at, selectors)
