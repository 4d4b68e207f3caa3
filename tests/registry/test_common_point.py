"""The last common point, against a model that keeps the whole graph of what flowed where: pure, and as PostgreSQL finds it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import asyncpg
from hypothesis import given
from hypothesis import strategies as st

from heliograph.services.registry.common_point import Flow, Point, grouped, in_common, known

ENVIRONMENTS = ("dev", "staging", "production", "feature")
NAMES = ("limits", "checkout/limits", "checkout/deep/limits")
SELECTORS = (None, ("limits",), ("checkout/",), ("checkout/deep/", "limits"), ("checkout/limits",))
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class World:
    """Environments and everything that ever flowed, in the order of time. Small and slow on purpose."""

    times: dict[Point, datetime] = field(default_factory=dict)
    direct: dict[Point, list[Flow]] = field(default_factory=dict)
    back: dict[Point, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    noted: dict[str, list[Flow]] = field(default_factory=dict)
    clock: Any = field(default_factory=count)

    def next(self, environment: str) -> Point:
        self.heads[environment] = self.heads.get(environment, 0) + 1
        point = Point(environment, self.heads[environment])
        self.times[point] = START + timedelta(seconds=next(self.clock))
        self.direct[point] = self.noted.pop(environment, [])
        return point

    def flow(self, target: Point, source: Point, selectors: tuple[str, ...] | None) -> None:
        self.direct[target].append(Flow(source, self.times[source], selectors and frozenset(selectors)))

    def note(self, environment: str, source: Point, selectors: tuple[str, ...] | None) -> None:
        """A promotion that found nothing to change."""
        flow = Flow(source, self.times[source], selectors and frozenset(selectors))
        self.noted.setdefault(environment, []).append(flow)

    def roll_back(self, environment: str, to: int) -> None:
        self.noted.pop(environment, None)
        self.back[self.next(environment)] = to

    def erase(self, environment: str) -> None:
        """Nobody came from there any more."""
        for kept in (self.times, self.direct, self.back):
            for point in [each for each in kept if each.environment == environment]:
                del kept[point]
        del self.heads[environment]
        self.noted.pop(environment, None)
        for flows in (*self.direct.values(), *self.noted.values()):
            flows[:] = [flow for flow in flows if flow.source.environment != environment]

    def line(self, point: Point) -> list[Flow]:
        """What flowed into a version and those before it, as far as no rollback took it back."""
        if point.number == 0:
            return []
        before = self.back.get(point, point.number - 1)
        return self.line(Point(point.environment, before)) + self.direct[point]

    def flows(self) -> dict[Point, list[Flow]]:
        return {point: self.line(point) for point in self.times}

    def ancestors(self, name: str, point: Point, seen: set[Point] | None = None) -> set[Point]:
        """All versions whose state of a config has flowed into this one; without rollbacks."""
        seen = set() if seen is None else seen
        if point.number and point not in seen:
            seen.add(point)
            self.ancestors(name, Point(point.environment, point.number - 1), seen)
            for each in self.direct[point]:
                if each.covers(name):
                    self.ancestors(name, each.source, seen)
        return seen


def play(chance: Any, steps: int, *, rollbacks: bool) -> World:
    """``chance``: what `random.Random` offers."""
    world = World()
    world.next("dev")
    for _ in range(steps):
        environment = chance.choice(ENVIRONMENTS)
        others = [each for each in world.heads if each != environment]
        what = chance.choice(("publish", "promote", "promote", "note", "rollback"))
        if environment not in world.heads:
            if others:
                source = chance.choice(others)
                world.flow(world.next(environment), Point(source, chance.randint(1, world.heads[source])), None)
            continue
        if what == "rollback" and rollbacks and world.heads[environment] > 1:
            world.roll_back(environment, chance.randint(1, world.heads[environment]))
        elif what in ("promote", "note") and others:
            source = chance.choice(others)
            at = Point(source, chance.randint(1, world.heads[source]))
            if what == "promote":
                world.flow(world.next(environment), at, chance.choice(SELECTORS))
            else:
                world.note(environment, at, chance.choice(SELECTORS))
        else:
            world.next(environment)
    return world


@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_what_is_known_is_the_newest_of_all_ancestors(chance: Any, steps: int) -> None:
    world = play(chance, steps, rollbacks=False)
    flows = world.flows()
    for name in NAMES:
        for environment, number in world.heads.items():
            found, missing = known(name, Point(environment, number), flows)
            assert missing is None
            every = world.ancestors(name, Point(environment, number))
            assert found == {
                each: max(p.number for p in every if p.environment == each) for each in {p.environment for p in every}
            }


@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_nothing_newer_is_common(chance: Any, steps: int) -> None:
    world = play(chance, steps, rollbacks=False)
    flows = world.flows()
    for name in NAMES:
        ours, theirs = (chance.choice(sorted(world.times)) for _ in range(2))
        both = world.ancestors(name, ours) & world.ancestors(name, theirs)
        common = in_common(known(name, ours, flows)[0], known(name, theirs, flows)[0])
        if not common:
            assert not both
            continue
        last = max(common, key=lambda point: world.times[point])
        assert last in both
        assert not any(last in world.ancestors(name, other) for other in both - {last})


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_a_rollback_knows_what_its_content_knew(chance: Any, steps: int) -> None:
    world = play(chance, steps, rollbacks=True)
    flows = world.flows()
    for point, to in world.back.items():
        for name in NAMES:
            now, then = (known(name, each, flows)[0] for each in (point, Point(point.environment, to)))
            assert now.pop(point.environment) == point.number
            assert then.pop(point.environment) == to
            assert now == then


@given(st.randoms(use_true_random=False), st.integers(1, 25))
def test_one_of_a_group_stands_for_all(chance: Any, steps: int) -> None:
    world = play(chance, steps, rollbacks=True)
    flows = world.flows()
    groups = grouped(NAMES, flows)
    assert sorted(name for group in groups for name in group) == sorted(NAMES)
    for group in groups:
        for point in world.times:
            assert len({tuple(sorted(known(name, point, flows)[0].items())) for name in group}) == 1


def test_what_is_missing_is_asked_for_one_after_the_other() -> None:
    dev, staging, production = (Point(each, 5) for each in ENVIRONMENTS[:3])
    found, missing = known("a", production, {})
    assert (found, missing) == ({"production": 5}, production)
    flows = {production: [Flow(staging, START)]}
    assert known("a", production, flows)[1] == staging
    flows |= {staging: [Flow(dev, START), Flow(Point("production", 4), START)], dev: []}
    assert known("a", production, flows) == ({"production": 5, "staging": 5, "dev": 5}, None)


# --- as PostgreSQL finds it -------------------------------------------------------------------------------------------------------


async def write(sql: asyncpg.Connection, namespace: str, world: World) -> None:
    """The rows as commits write them, in the order of time."""
    for point in world.times:
        if point in world.back:
            values = (point.environment, point.number, "rollback", point.environment, world.back[point], None)
            await sql.execute("select registry.add_lineage($1, $2, $3, $4, $5, $6, $7)", namespace, *values)
        for flow in world.direct[point]:
            selectors = None if flow.selectors is None else sorted(flow.selectors)
            values = (point.environment, point.number, "promote", *flow.source, selectors)
            await sql.execute("select registry.add_lineage($1, $2, $3, $4, $5, $6, $7)", namespace, *values)


def newest(flows: list[tuple[str, int, frozenset[str] | None]], name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for environment, number, selectors in flows:
        if Flow(Point(environment, number), START, selectors).covers(name):
            found[environment] = max(number, found.get(environment, 0))
    return found


async def test_the_database_finds_what_the_model_says(sql: asyncpg.Connection) -> None:
    for seed in range(40):
        world = play(random.Random(seed), 40, rollbacks=True)
        await write(sql, f"n{seed}", world)
        for point in world.times:
            rows = await sql.fetch("select * from registry.sources_of($1, $2, $3)", f"n{seed}", *point)
            found = [
                (
                    row["source_environment"],
                    row["source_number"],
                    None if row["selectors"] is None else frozenset(row["selectors"]),
                )
                for row in rows
            ]
            wanted = [(*flow.source, flow.selectors) for flow in world.line(point)]
            for name in NAMES:
                assert newest(found, name) == newest(wanted, name), (seed, point, name)


async def test_many_promotions_are_few_rows(sql: asyncpg.Connection) -> None:
    """What is read does not grow with the history."""
    for number in range(2, 302):
        await sql.execute("select registry.add_lineage('n', 'production', $1, 'promote', 'dev', $1, null)", number)
        if number % 3 == 0:
            await sql.execute(
                "select registry.add_lineage('n', 'production', $1, 'rollback', 'production', $2, null)", number, number - 2
            )
    rows = await sql.fetch("select * from registry.sources_of('n', 'production', 301)")
    assert len(rows) <= 2 * 64
    assert max(row["source_number"] for row in rows) == 301


async def test_lineage_is_written_once(sql: asyncpg.Connection) -> None:
    await sql.execute("select registry.add_lineage('n', 'production', 2, 'promote', 'dev', 2, null)")
    try:
        await sql.execute("delete from registry.lineage")
    except asyncpg.RestrictViolationError:
        return
    raise AssertionError("a row of the lineage was deleted")
