"""The write side of one namespace as a plain model: what every environment holds, what flowed where, and what each request must lead to.

It keeps documents and nothing else. What is merged, and what that leaves undecided, is asked of the pure merge, which has a model of its own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from heliograph.core import trie
from heliograph.core.canonical import canonical
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.history import History
from heliograph.core.merge import ABSENT, Choice, Side
from heliograph.core.records import Leaf
from heliograph.services.registry.common_point import Point, in_common, known, selectors_of
from heliograph.services.registry.merging import LOST, Config, merge_configs

from .test_common_point import World

Documents = dict[str, Any]
Changes = Mapping[str, Side]
"""Config -> its new document; absent: deleted."""
Selectors = tuple[str, ...] | None


@dataclass(frozen=True)
class Refused:
    """``conflicts``: (config, pointer)."""

    code: str
    conflicts: frozenset[tuple[str, str]] = frozenset()


@dataclass
class Life:
    """Of an environment, from its first version until it is erased. ``versions[n - 1]`` is what version n holds, ``ids[n - 1]`` its id."""

    versions: list[Documents] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    deleted: bool = False

    @property
    def head(self) -> int:
        return len(self.versions)

    @property
    def now(self) -> Documents:
        return dict(self.versions[-1])


@dataclass(frozen=True)
class Promotion:
    """``documents``: with ours wherever there is a conflict. ``covered``: of which configs it becomes a common point; empty: of none."""

    source: Point
    documents: Documents
    conflicts: frozenset[tuple[str, str]]
    covered: Selectors


@dataclass
class Model:
    lives: dict[str, Life] = field(default_factory=dict)
    world: World = field(default_factory=World)
    purged: set[str] = field(default_factory=set)

    # --- what there is --------------------------------------------------------------------------------------------------------------

    def there(self) -> list[str]:
        return sorted(name for name, life in self.lives.items() if not life.deleted)

    def gone(self) -> list[str]:
        return sorted(name for name, life in self.lives.items() if life.deleted)

    def at(self, point: Point) -> Documents:
        return self.lives[point.environment].versions[point.number - 1]

    def holders(self, text: str) -> set[str]:
        """Environments whose heads hold a document; deleted ones count."""
        return {name for name, life in self.lives.items() if text in map(text_of, life.now.values())}

    # --- what a request leads to: the next version's documents, the same as now, or a refusal -------------------------------------------

    def published(self, environment: str, changes: Changes, base: int, *, rebase: bool) -> Documents | Refused:
        """``base``: the version in If-Match; 0: none."""
        life = self.lives[environment]
        if base in (0, life.head):
            missing = any(each is ABSENT and name not in life.now for name, each in changes.items())
            return Refused("not-found") if missing else self._stored(life.now, changes)
        if not rebase:
            return Refused("stale-base")
        merged: dict[str, Side] = {}
        for name, wanted in changes.items():
            sides = self._base(Point(environment, base), name), config_of(life.now, name)
            outcome = merge_configs(*sides, None if wanted is ABSENT else Config(wanted))
            if outcome.conflicts:
                return Refused("stale-base")
            merged[name] = outcome.config.document if outcome.config else ABSENT
        return self._stored(life.now, merged)

    def patched(self, environment: str, name: str, patch: Changes) -> Documents | Refused:
        """``patch``: member -> its new value; absent: taken away."""
        now = self.lives[environment].now
        if name not in now:
            return Refused("not-found")
        return self._stored(now, {name: changed(now[name], patch)})

    def rolled_back(self, environment: str, to: int) -> Documents | Refused:
        wanted = self.lives[environment].versions[to - 1]
        return self._stored(self.lives[environment].now, {name: wanted.get(name, ABSENT) for name in self._names(environment)})

    def branched(self, source: Point) -> Documents | Refused:
        life = self.lives.get(source.environment)
        if life is None or life.deleted:
            return Refused("not-found")
        return self._stored({}, self.at(source))

    def promoted(
        self, source: Point, target: str, selectors: Selectors, *, picked: bool, choices: Mapping[str, Mapping[str, Choice]]
    ) -> Promotion | Refused:
        """``picked``: only what that one version of the source changed."""
        now, theirs = self.lives[target].now, self.at(source)
        if any(not covers(each, {*now, *theirs}) for each in selectors or ()):
            return Refused("not-found")
        before = Point(source.environment, source.number - 1) if picked else None
        names = [
            name
            for name in sorted({*theirs, *now, *(self.at(before) if before else ())})
            if not selectors or not set(selectors).isdisjoint(selectors_of(name))
        ]
        conflicts: set[tuple[str, str]] = set()
        changes: dict[str, Side] = {}
        for name in names:
            found, undecided = self._merged(name, before or self._common(name, source, target), source, target, choices)
            if found is LOST:
                return Refused("conflict")
            conflicts |= {(name, each) for each in undecided}
            changes[name] = found.document if found else ABSENT
        covered = self._settled(names, before, source, target) if before else selectors
        if conflicts:
            return Promotion(source, now, frozenset(conflicts), covered)
        documents = self._stored(now, changes)
        return documents if isinstance(documents, Refused) else Promotion(source, documents, frozenset(), covered)

    def _merged(
        self, name: str, base: Point | None, source: Point, target: str, choices: Mapping[str, Mapping[str, Choice]]
    ) -> tuple[Config | None, list[str]]:
        """What a config becomes, and places that are undecided. LOST: what would have to be compared was purged."""
        old = self.at(base).get(name, ABSENT) if base else ABSENT
        ours, theirs = self.lives[target].now.get(name, ABSENT), self.at(source).get(name, ABSENT)
        if text_of(theirs) in (text_of(ours), text_of(old)):
            return config_of(self.lives[target].now, name), []
        if text_of(old) == text_of(ours):
            return config_of(self.at(source), name), []
        if text_of(theirs) in self.purged:
            return LOST, []
        sides = (
            self._base(base, name) if base else None,
            config_of(self.lives[target].now, name),
            config_of(self.at(source), name),
        )
        outcome = merge_configs(*sides, choices.get(name, {}))
        return outcome.config, [each.pointer for each in outcome.conflicts]

    def _common(self, name: str, source: Point, target: str) -> Point | None:
        flows = self.world.flows()
        knowns = (known(name, point, flows)[0] for point in (Point(target, self.lives[target].head), source))
        return max(in_common(*knowns), key=self.world.times.__getitem__, default=None)

    def _settled(self, names: Iterable[str], before: Point, source: Point, target: str) -> Selectors:
        """Configs of which the target had just what the picked version changed."""
        flows, head = self.world.flows(), Point(target, self.lives[target].head)
        out = []
        for name in names:
            if self.at(before).get(name) == self.at(source).get(name):
                continue
            held = known(name, head, flows)[0].get(source.environment)
            if held and self.at(Point(source.environment, held)).get(name) == self.at(before).get(name):
                out.append(name)
        return tuple(out)

    def _base(self, point: Point, name: str) -> Config | None:
        document = self.at(point).get(name, ABSENT)
        return LOST if text_of(document) in self.purged else None if document is ABSENT else Config(document)

    def _stored(self, now: Documents, changes: Changes) -> Documents | Refused:
        """Nothing new may be a document that was purged."""
        documents = {name: each for name, each in {**now, **changes}.items() if each is not ABSENT}
        new = {text_of(each) for name, each in documents.items() if now.get(name, ABSENT) != each}
        return Refused("conflict") if new & self.purged else documents

    def _names(self, environment: str) -> set[str]:
        return {name for documents in self.lives[environment].versions for name in documents}

    # --- what happened ----------------------------------------------------------------------------------------------------------------

    def begin(self, environment: str, documents: Documents, version: str, source: Point | None = None) -> None:
        self.lives[environment] = Life()
        self.commit(environment, documents, version)
        if source:
            self.world.flow(Point(environment, 1), source, None)

    def commit(self, environment: str, documents: Documents, version: str, *, back_to: int = 0) -> None:
        life = self.lives[environment]
        if back_to:
            self.world.roll_back(environment, back_to)
        else:
            self.world.next(environment)
        life.versions.append(documents)
        life.ids.append(version)

    def flowed(self, target: str, promotion: Promotion, *, committed: bool) -> None:
        """After the commit, if there was one."""
        if promotion.covered == ():
            return
        if committed:
            self.world.flow(Point(target, self.lives[target].head), promotion.source, promotion.covered)
        else:
            self.world.note(target, promotion.source, promotion.covered)

    def erase(self, environment: str) -> None:
        del self.lives[environment]
        self.world.erase(environment)


# --- documents ------------------------------------------------------------------------------------------------------------------------


def text_of(document: Side) -> str:
    return "" if document is ABSENT else json.dumps(document, sort_keys=True, separators=(",", ":"))


def config_of(documents: Documents, name: str) -> Config | None:
    return Config(documents[name]) if name in documents else None


def covers(selector: str, names: Collection[str]) -> bool:
    return any(selector in selectors_of(name) for name in names)


def changed(document: Any, patch: Changes) -> Any:
    return {key: each for key, each in {**document, **patch}.items() if each is not ABSENT}


def trie_of(documents: Documents) -> trie.Node:
    leaves = {name: leaf_of(each).digest() for name, each in documents.items()}
    return trie.update(trie.EMPTY, {name: unspell(each) for name, each in leaves.items()})


def leaf_of(document: Any) -> Leaf:
    return Leaf(digest("document", canonical(document)))


def root_of(documents: Documents) -> str:
    """What stands for these documents in a version's record."""
    return spell(trie_of(documents).digest)


def objects_of(versions: Iterable[Documents]) -> set[bytes]:
    """Digests of all that has to be kept for these versions."""
    found: set[bytes] = set()
    for documents in versions:
        leaves = [leaf_of(each) for each in documents.values()]
        found |= {unspell(each) for leaf in leaves for each in (leaf.document, leaf.digest())}
        found |= {node.digest for node in trie.fresh(None, trie_of(documents))}
    return found


def history_of(ids: Iterable[str]) -> str:
    return spell(History(map(unspell, ids)).root())
