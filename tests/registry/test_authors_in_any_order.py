"""The whole write side in any order, against a plain model: publish, patch, branch, promote, roll back, label, delete, restore, erase, purge.

After every step the answer, the numbers, the contents, the ids and the conflicts are what the model says; a version's id is computed here from what the
model holds (its root, its parent, the history before it). One machine, two drivers: the registry's own use cases, and REST.

Broken on purpose, it failed when a rollback left no lineage, when a promotion that changed nothing was not kept as a common point, when the history
tree was grown at the wrong place, and when a repeated request was not recognised.

Values are few, so that environments share texts all the time and edits overlap: what is erased or purged in one place is often needed in another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import asyncpg
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from heliograph.core.digest import digest
from heliograph.core.merge import ABSENT, Choice, Side, Value
from heliograph.core.patch import JSON_PATCH, MERGE_PATCH
from heliograph.core.records import Version
from heliograph.runtime.postgres import open_pool
from heliograph.services.registry.common_point import Point
from heliograph.services.registry.erasing import Eraser
from heliograph.services.registry.erasure import Erasure
from heliograph.services.registry.settings import RegistrySettings
from heliograph.telemetry.metrics import Metrics

from .drivers import Driver, Said, in_process, over_rest
from .model import Changes, Documents, Model, Promotion, Refused, history_of, objects_of, root_of, text_of

ENVIRONMENTS = ("dev", "staging", "production", "feature")
NAMES = ("limits", "checkout/limits", "checkout/rates")
MEMBERS = ("a", "b")
SELECTORS = (None, ("limits",), ("checkout/",), ("checkout/rates", "limits"))
LABELS = ("r1", "r2")

indices = st.integers(0, 11)
"""Of one of those environments that are there."""
configs = st.sampled_from(NAMES)
values = st.integers(0, 2)
documents = st.dictionaries(st.sampled_from(MEMBERS), values, min_size=1)
changes = st.dictionaries(configs, documents | st.just(ABSENT), min_size=1, max_size=3)
patches = st.dictionaries(st.sampled_from(MEMBERS), values | st.just(ABSENT), min_size=1)


class Authors(RuleBasedStateMachine):
    """Each example has a namespace of its own in one database."""

    driver: Driver
    run: Callable[..., Any]
    eraser: Eraser
    sql: asyncpg.Connection
    namespaces = count()

    @initialize()
    def begin(self) -> None:
        self.namespace = f"shop-{next(self.namespaces)}"
        self.model = Model()
        self.keys = count()
        self.run(self.driver.begin, self.namespace)
        self.make("dev")
        self.publish(0, {"limits": {"a": 0, "b": 0}, "checkout/limits": {"a": 0}}, None, rebase=False, again=False)
        self.branch(0, 0)
        self.branch(0, 0)

    # --- histories begin ------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.free())
    @rule()
    def create(self) -> None:
        self.make(self.free())

    def make(self, name: str) -> None:
        said = self.run(self.driver.create, {"name": name})
        self.model.begin(name, {}, self.done(said)["version"])
        self.check(name)

    @precondition(lambda self: self.free())
    @rule(at=indices, back=st.integers(0, 3))
    def branch(self, at: int, back: int) -> None:
        """Of one of the last versions: a purged text stops it."""
        source, name = self.alive(at), self.free()
        number = max(1, self.model.lives[source].head - back)
        said = self.run(self.driver.create, {"name": name, "from": {"environment": source, "version": number}})
        expected = self.model.branched(Point(source, number))
        if isinstance(expected, Refused):
            self.refused(said, expected.code)
        else:
            self.model.begin(name, expected, self.done(said)["version"], Point(source, number))
            self.check(name)

    @rule(at=indices)
    def take_a_name(self, at: int) -> None:
        """That somebody has, or had until lately."""
        name = sorted(self.model.lives)[at % len(self.model.lives)]
        self.refused(self.run(self.driver.create, {"name": name}), "already-exists")

    def free(self) -> str:
        return next((each for each in ENVIRONMENTS if each not in self.model.lives), "")

    # --- authors ----------------------------------------------------------------------------------------------------------------------

    @rule(at=indices, wanted=changes, back=st.none() | st.integers(0, 2), rebase=st.booleans(), again=st.booleans())
    def publish(self, at: int, wanted: Changes, back: int | None, rebase: bool, again: bool) -> None:
        """``back``: how many versions ago the author looked, if that is a condition. ``again``: the answer was lost, so it is asked twice."""
        life = self.model.lives[name := self.alive(at)]
        base = 0 if back is None else max(1, life.head - back)
        ask = partial(
            self.driver.publish,
            name,
            {"changes": [change_of(config, each) for config, each in wanted.items()]},
            base=life.ids[base - 1] if base else "",
            rebase=rebase,
            key=f"{self.namespace}-{next(self.keys)}" if again else "",
        )
        said = self.run(ask)
        self.versioned(name, said, self.model.published(name, wanted, base, rebase=rebase))
        if again and not said.refusal and not said.unchanged:
            assert self.run(ask) == said
            self.check(name)

    @rule(at=indices, config=configs, patch=patches, rfc6902=st.booleans())
    def patch(self, at: int, config: str, patch: Changes, rfc6902: bool) -> None:
        life = self.model.lives[name := self.alive(at)]
        before = life.now.get(config, {})
        if rfc6902:
            body: Any = [operation for member, each in patch.items() for operation in operations_of(before, member, each)]
        else:
            body = {member: None if each is ABSENT else each for member, each in patch.items()}
        said = self.run(self.driver.patch, name, config, JSON_PATCH if rfc6902 else MERGE_PATCH, body)
        self.versioned(name, said, self.model.patched(name, config, patch))

    @rule(at=indices, back=st.integers(0, 6), label=st.sampled_from((None, None, *LABELS)))
    def roll_back(self, at: int, back: int, label: str | None) -> None:
        life = self.model.lives[name := self.alive(at)]
        number = max(1, life.head - back)
        if label:
            number = life.labels.get(label, 0)
        said = self.run(self.driver.roll_back, name, f"label:{label}" if label else number)
        if number:
            self.versioned(name, said, self.model.rolled_back(name, number), back_to=number)
        else:
            self.refused(said, "not-found")

    @rule(at=indices, label=st.sampled_from(LABELS), back=st.none() | st.integers(0, 3), move=st.booleans())
    def label(self, at: int, label: str, back: int | None, move: bool) -> None:
        """``back`` None: takes it away."""
        life = self.model.lives[name := self.alive(at)]
        if back is None:
            said = self.run(self.driver.unlabel, name, label)
            self.done(said) if life.labels.pop(label, None) else self.refused(said, "not-found")
            return
        number = max(1, life.head - back)
        said = self.run(partial(self.driver.label, name, label, number, move=move))
        if life.labels.get(label, number) != number and not move:
            self.refused(said, "conflict")
        else:
            self.done(said)
            life.labels[label] = number

    # --- promotions ---------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.there()) > 1)
    @rule(at=indices, other=indices, data=st.data())
    def promote(self, at: int, other: int, data: st.DataObject) -> None:
        self.bring(at, other, None, 0, False, data)

    @precondition(lambda self: len(self.model.there()) > 1)
    @rule(at=indices, other=indices, selectors=st.sampled_from(SELECTORS), back=st.integers(0, 2), data=st.data())
    def promote_some(self, at: int, other: int, selectors: tuple[str, ...] | None, back: int, data: st.DataObject) -> None:
        self.bring(at, other, selectors, back, False, data)

    @precondition(lambda self: len(self.model.there()) > 1)
    @rule(at=indices, other=indices, selectors=st.sampled_from(SELECTORS), back=st.integers(0, 2), data=st.data())
    def cherry_pick(self, at: int, other: int, selectors: tuple[str, ...] | None, back: int, data: st.DataObject) -> None:
        self.bring(at, other, selectors, back, True, data)

    @precondition(lambda self: len(self.model.there()) > 1)
    @rule(at=indices, other=indices, wanted=changes, again=changes, data=st.data())
    def pass_on(self, at: int, other: int, wanted: Changes, again: Changes, data: st.DataObject) -> None:
        """What chance alone rarely does in a row: change and promote, and the same once more after the target has gone its own way."""
        self.publish(at, wanted, None, rebase=False, again=False)
        self.bring(at, other, None, 0, False, data)
        self.publish(self.there_at(self.target(at, other)), again, None, rebase=False, again=False)
        self.bring(at, other, None, 0, False, data)
        self.publish(at, again, None, rebase=False, again=False)
        self.bring(at, other, None, 0, data.draw(st.booleans()), data)

    @precondition(lambda self: len(self.model.there()) > 1)
    @rule(at=indices, other=indices, wanted=changes, data=st.data())
    def take_back(self, at: int, other: int, wanted: Changes, data: st.DataObject) -> None:
        """A promotion that is rolled back, and comes again."""
        self.publish(at, wanted, None, rebase=False, again=False)
        self.bring(at, other, None, 0, False, data)
        self.roll_back(self.there_at(self.target(at, other)), 1, None)
        self.bring(at, other, None, 0, False, data)

    def target(self, at: int, other: int) -> str:
        return next(each for each in (self.alive(other), self.alive(other + 1)) if each != self.alive(at))

    def there_at(self, name: str) -> int:
        return self.model.there().index(name)

    def bring(
        self, at: int, other: int, selectors: tuple[str, ...] | None, back: int, picked: bool, data: st.DataObject
    ) -> None:
        """Whatever conflicts is settled place by place, by either side or another value."""
        source = self.alive(at)
        into = self.target(at, other)
        life = self.model.lives[source]
        picked = picked and life.head > 1
        number = max(1 + picked, life.head - back)
        point = Point(source, number)
        body: dict[str, Any] = {"from": source}
        body |= {"change": number} if picked else {"version": number} if number < life.head else {}
        body |= {"configs": list(selectors)} if selectors else {}
        expect = partial(self.model.promoted, point, into, selectors, picked=picked)
        expected = expect(choices={})
        said = self.run(self.driver.promote, into, body)
        if isinstance(expected, Promotion) and expected.conflicts:
            self.refused(said, "merge-conflict")
            assert {(each["config"], each["pointer"]) for each in said.body["conflicts"]} == expected.conflicts
            choices = {
                place: data.draw(st.sampled_from(("ours", "theirs", Value({"a": 9})))) for place in sorted(expected.conflicts)
            }
            expected = expect(choices=by_config(choices))
            said = self.run(self.driver.promote, into, body | {"resolve": resolve_of(choices)})
        if isinstance(expected, Refused):
            self.refused(said, expected.code)
            return
        self.versioned(into, said, expected.documents)
        self.model.flowed(into, expected, committed=not said.unchanged)

    # --- what leaves --------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.there()) > 1)
    @rule(at=indices)
    def delete(self, at: int) -> None:
        name = self.alive(at)
        self.done(self.run(self.driver.delete, name))
        self.model.lives[name].deleted = True

    @precondition(lambda self: self.model.gone())
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.model.gone()))
        self.done(self.run(self.driver.restore, name))
        self.model.lives[name].deleted = False
        self.check(name)

    @precondition(lambda self: self.model.gone())
    @rule(data=st.data())
    def is_nowhere(self, data: st.DataObject) -> None:
        """While it is deleted."""
        name = data.draw(st.sampled_from(self.model.gone()))
        publish = partial(self.driver.publish, base="", rebase=False, key="")
        for said in (
            self.run(publish, name, {"changes": [change_of("limits", {"a": 0})]}),
            self.run(self.driver.patch, name, "limits", MERGE_PATCH, {"a": 0}),
            self.run(self.driver.roll_back, name, 1),
            self.run(self.driver.document, name, "limits", 1),
            self.run(partial(self.driver.label, name, "r1", 1, move=True)),
            *(self.run(self.driver.promote, each, {"from": name}) for each in self.model.there()),
        ):
            self.refused(said, "not-found")

    @precondition(lambda self: self.model.gone())
    @rule(data=st.data())
    def erase(self, data: st.DataObject) -> None:
        """Its time is over: nothing is left of it, and of what it shared with others everything."""
        name = data.draw(st.sampled_from(self.model.gone()))
        self.run(
            self.sql.execute,
            "update registry.deleted_environment set erase_at = now() - interval '1 second' where namespace = $1 and environment = $2",
            self.namespace,
            name,
        )
        self.run(self.erase_twice)
        self.model.erase(name)
        left = self.run(self.sql.fetch, "select digest from registry.object where namespace = $1", self.namespace)
        versions = [each for life in self.model.lives.values() for each in life.versions]
        assert {row["digest"] for row in left} == objects_of(versions)

    async def erase_twice(self) -> None:
        """Should two ever do it at once, they take turns."""
        await asyncio.gather(self.eraser.work(), self.eraser.work())

    @rule(at=indices, which=st.integers(0, 30))
    def purge(self, at: int, which: int) -> None:
        """What no head holds is tried first, and last a config that never was."""
        life = self.model.lives[name := self.alive(at)]
        held = {text_of(each) for other in self.model.lives.values() for each in other.now.values()}
        texts = [(text_of(each) in held, config, n) for n, v in enumerate(life.versions, 1) for config, each in v.items()]
        _, config, number = [*sorted(texts), (True, "never", 1)][min(which, len(texts))]
        said = self.run(self.driver.purge, name, config, number)
        if config not in life.versions[number - 1]:
            self.refused(said, "not-found")
            return
        text = text_of(life.versions[number - 1][config])
        if text in self.model.purged:
            assert self.done(said)["digests"] == []
        elif holders := self.model.holders(text):
            self.refused(said, "still-named")
            assert said.body["held_by"].keys() == holders
        else:
            assert self.done(said)["digests"] == [digest("document", text.encode())]
            self.model.purged.add(text)
            later = "update registry.purged set at = at - interval '2 minutes' where namespace = $1"  # branches wait for one
            self.run(self.sql.execute, later, self.namespace)

    # --- what is compared ---------------------------------------------------------------------------------------------------------------

    def alive(self, at: int) -> str:
        there = self.model.there()
        return there[at % len(there)]

    def done(self, said: Said) -> Any:
        assert not said.refusal, said
        return said.body

    def refused(self, said: Said, code: str) -> None:
        assert said.refusal == code, said

    def versioned(self, name: str, said: Said, expected: Documents | Refused, *, back_to: int = 0) -> None:
        """The answer to a request for one more version."""
        life = self.model.lives[name]
        if isinstance(expected, Refused):
            self.refused(said, expected.code)
            return
        body = self.done(said)
        assert said.unchanged == (expected == life.now), said
        if said.unchanged:
            assert (body["number"], body["version"]) == (life.head, life.ids[-1])
        else:
            self.model.commit(name, expected, body["version"], back_to=back_to)
            assert body["number"] == life.head
        self.check(name)

    def check(self, name: str) -> None:
        """The head, and the version it names."""
        life = self.model.lives[name]
        assert self.run(self.driver.head, name) == (life.head, life.ids[-1])
        self.check_version(name, life.head)

    def check_version(self, name: str, number: int) -> None:
        life = self.model.lives[name]
        told = self.run(self.driver.version, name, number)
        record = Version.read(told.record)
        assert told.id == life.ids[number - 1] == Version.id_of(told.record)
        assert (record.namespace, record.environment, record.number) == (self.namespace, name, number)
        assert record.parent == (life.ids[number - 2] if number > 1 else None)
        assert record.root == root_of(life.versions[number - 1])
        assert record.history == history_of(life.ids[: number - 1])
        assert told.configs == len(life.versions[number - 1])
        assert sorted(told.labels) == sorted(label for label, named in life.labels.items() if named == number)
        config = NAMES[number % len(NAMES)]  # the root stands for all of them; this is that they can be read
        said = self.run(self.driver.document, name, config, number)
        document: Side = life.versions[number - 1].get(config, ABSENT)
        if document is ABSENT or text_of(document) in self.model.purged:
            self.refused(said, "not-found")
        else:
            assert said == Said(document)

    def teardown(self) -> None:
        """Nothing of the past has changed either."""
        for name in self.model.there() if hasattr(self, "model") else ():
            for number in range(1, self.model.lives[name].head + 1):
                self.check_version(name, number)


def change_of(config: str, document: Side) -> dict[str, Any]:
    return {"name": config, "delete": True} if document is ABSENT else {"name": config, "document": document}


def operations_of(document: Any, member: str, value: Side) -> Iterator[dict[str, Any]]:
    """What the author saw is tested first."""
    if member in document:
        yield {"op": "test", "path": f"/{member}", "value": document[member]}
    if value is not ABSENT:
        yield {"op": "add", "path": f"/{member}", "value": value}
    elif member in document:
        yield {"op": "remove", "path": f"/{member}"}


def by_config(choices: dict[tuple[str, str], Choice]) -> dict[str, dict[str, Choice]]:
    found: dict[str, dict[str, Choice]] = {}
    for (config, pointer), choice in choices.items():
        found.setdefault(config, {})[pointer] = choice
    return found


def resolve_of(choices: dict[tuple[str, str], Choice]) -> dict[str, Any]:
    return {
        config: {place: {"value": each.value} if isinstance(each, Value) else each for place, each in places.items()}
        for config, places in by_config(choices).items()
    }


# --- one machine, two drivers ------------------------------------------------------------------------------------------------------------


@contextmanager
def play(settings: RegistrySettings, driver: Any, owner_url: str) -> Iterator[type[Authors]]:
    """The machine, on a loop in a thread of its own."""
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        opened(portal, settings, owner_url) as (sql, eraser),
        portal.wrap_async_context_manager(driver(settings)) as found,
    ):
        members = {"driver": found, "run": staticmethod(portal.call), "eraser": eraser, "sql": sql}
        yield type("Authors", (Authors,), members)


@contextmanager
def opened(portal: BlockingPortal, settings: RegistrySettings, owner_url: str) -> Iterator[tuple[asyncpg.Connection, Eraser]]:
    """The database as its owner sees it, and an eraser that works when it is told to."""
    url = settings.database_url.get_secret_value()
    sql = portal.call(asyncpg.connect, owner_url)
    name = portal.call(sql.fetchval, "select current_database()")
    portal.call(sql.execute, f"alter database {name} set synchronous_commit = off")  # nothing crashes here
    pool = portal.call(partial(open_pool, url, "test", size=2))
    try:
        yield sql, Eraser(Erasure(pool), url, Metrics())
    finally:
        portal.call(pool.close)
        portal.call(sql.close)


def run(settings: RegistrySettings, driver: Any, owner_url: str, *, examples: int, steps: int) -> None:
    with play(settings, driver, owner_url) as machine:
        limits = hypothesis_settings(max_examples=examples, stateful_step_count=steps, deadline=None)
        run_state_machine_as_test(machine, settings=limits)


@pytest.mark.parametrize(("driver", "examples"), [(in_process, 25), (over_rest, 8)])
def test_in_any_order(settings: RegistrySettings, database: Any, driver: Any, examples: int) -> None:
    run(settings, driver, database.url(), examples=examples, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("driver", "examples"), [(in_process, 200), (over_rest, 40)])
def test_for_long_in_any_order(settings: RegistrySettings, database: Any, driver: Any, examples: int) -> None:
    run(settings, driver, database.url(), examples=examples, steps=60)
