"""Whole lives of environments over REST, against a model: what a promotion makes, what conflicts, and what is unchanged."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from heliograph.core.merge import ABSENT, Side
from heliograph.services.registry.common_point import Point, in_common, known
from heliograph.services.registry.merging import Config, merge_configs

from .conftest import Author, good, problem
from .test_common_point import World
from .test_promoting import Team

STEPS = 60
NAMES = ("limits", "checkout/limits", "checkout/rates")
MEMBERS = ("a", "b", "c")
SELECTORS = (None, None, ["limits"], ["checkout/"])

Documents = dict[str, Any]


@dataclass
class Model:
    """The graph of what flowed where, and every version's content."""

    world: World = field(default_factory=World)
    content: dict[Point, Documents] = field(default_factory=dict)

    def head(self, environment: str) -> Point:
        return Point(environment, self.world.heads[environment])

    def now(self, environment: str) -> Documents:
        return dict(self.content[self.head(environment)])

    def commit(self, environment: str, documents: Documents) -> Point:
        point = self.world.next(environment)
        self.content[point] = documents
        return point

    def merged(self, source: Point, target: str, selectors: list[str] | None) -> tuple[Documents, set[tuple[str, str]]]:
        """What a promotion leads to, with ours where there is a conflict; and the conflicts."""
        flows, found, conflicts = self.world.flows(), self.now(target), set()
        for name in NAMES:
            if selectors and not any(name == each or name.startswith(each) for each in selectors):
                continue
            knowns = (known(name, point, flows)[0] for point in (self.head(target), source))
            common = max(in_common(*knowns), key=self.world.times.__getitem__, default=None)
            sides = [
                self.content[point].get(name, ABSENT) if point else ABSENT for point in (common, self.head(target), source)
            ]
            if sides[1] == sides[2]:
                continue
            outcome = merge_configs(*map(config, sides))
            conflicts |= {(name, each.pointer) for each in outcome.conflicts}
            found.pop(name, None)
            if outcome.config:
                found[name] = outcome.config.document
        return found, conflicts


def config(document: Side) -> Config | None:
    return None if document is ABSENT else Config(document)


@dataclass
class Life:
    chance: random.Random
    team: Team
    model: Model = field(default_factory=Model)

    async def step(self) -> None:
        environment = self.chance.choice(sorted(self.model.world.heads))
        steps = (self.publish, self.patch, self.promote, self.promote, self.roll_back, self.branch, self.delete_and_restore)
        await self.chance.choice(steps)(environment)
        assert await everything(self.team.at(environment)) == self.model.now(environment)

    async def publish(self, environment: str) -> None:
        documents = self.model.now(environment)
        name = self.chance.choice(NAMES)
        if name in documents and self.chance.random() < 0.2:
            del documents[name]
        else:
            documents[name] = documents.get(name, {}) | {self.chance.choice(MEMBERS): self.chance.randrange(3)}
        if documents == self.model.now(environment):
            return
        change = {"name": name} | ({"document": documents[name]} if name in documents else {"delete": True})
        made = good(await self.team.at(environment).publish(change), 201)
        assert made["number"] == self.model.commit(environment, documents).number

    async def patch(self, environment: str) -> None:
        """One member of one config, by either kind of patch, or taken away."""
        documents, name, member = self.model.now(environment), self.chance.choice(NAMES), self.chance.choice(MEMBERS)
        if name not in documents:
            return
        value = self.chance.choice((None, 0, 1, 2))
        if value is not None and self.chance.random() < 0.5:
            kind, body = "json-patch", [{"op": "add", "path": f"/{member}", "value": value}]
        else:
            kind, body = "merge-patch", {member: value}
        headers = {"Content-Type": f"application/{kind}+json"}
        answer = await self.team.at(environment).ask("PATCH", f"/configs/{name}", content=json.dumps(body), headers=headers)
        kept = {key: each for key, each in documents[name].items() if key != member}
        documents[name] = kept | ({} if value is None else {member: value})
        if documents == self.model.now(environment):
            assert good(answer, 200)["unchanged"] is True
        else:
            assert good(answer, 201)["number"] == self.model.commit(environment, documents).number

    async def delete_and_restore(self, environment: str) -> None:
        """While it is away it is nowhere: not to read, not to promote from. It comes back with its whole past."""
        author, others = self.team.at(environment), [each for each in self.model.world.heads if each != environment]
        good(await author.ask("DELETE", author.place))
        problem(await author.get("/configs"), 404, "not-found")
        for each in others:
            problem(await self.team.promote(environment, each), 404, "not-found")
        good(await author.ask("POST", "/restore"))

    async def roll_back(self, environment: str) -> None:
        to = Point(environment, self.chance.randint(1, self.model.world.heads[environment]))
        answer = await self.team.at(environment).ask("POST", "/rollback", json={"to": to.number})
        if self.model.content[to] == self.model.now(environment):
            good(answer, 200)
            return
        good(answer, 201)
        self.model.world.roll_back(environment, to.number)
        self.model.content[self.model.head(environment)] = self.model.content[to]

    async def branch(self, environment: str) -> None:
        name = self.chance.choice(("staging", "production", "feature"))
        if name in self.model.world.heads:
            return
        source = Point(environment, self.chance.randint(1, self.model.world.heads[environment]))
        good(await self.team.create(name, {"environment": environment, "version": source.number}), 201)
        self.model.world.flow(self.model.commit(name, self.model.content[source]), source, None)

    async def promote(self, target: str) -> None:
        others = [each for each in sorted(self.model.world.heads) if each != target]
        if not others:
            return
        source = self.model.head(self.chance.choice(others))
        selectors = self.chance.choice(SELECTORS)
        asked = {"configs": selectors} if selectors else {}
        wanted, conflicts = self.model.merged(source, target, selectors)
        answer = await self.team.promote(source.environment, target, **asked)
        if answer.status_code == 404:
            assert selectors
            return
        if conflicts:
            told = answer.json()["conflicts"]
            assert (answer.status_code, {(each["config"], each["pointer"]) for each in told}) == (409, conflicts)
            resolve: dict[str, dict[str, str]] = {}
            for name, pointer in conflicts:
                resolve.setdefault(name, {})[pointer] = "ours"
            answer = await self.team.promote(source.environment, target, **asked, resolve=resolve)
        covered = tuple(selectors) if selectors else None
        if wanted == self.model.now(target):
            assert good(answer, 200)["unchanged"] is True
            self.model.world.note(target, source, covered)
        else:
            good(answer, 201)
            self.model.world.flow(self.model.commit(target, wanted), source, covered)


async def everything(author: Author) -> Documents:
    folders = [good(await author.get("/configs", params={"folder": each}))["items"] for each in await folders_of(author)]
    names = [each["name"] for items in folders for each in items if each["kind"] == "config"]
    return {name: good(await author.get(f"/configs/{name}")) for name in names}


async def folders_of(author: Author) -> list[str]:
    top = good(await author.get("/configs"))["items"]
    return ["", *(each["name"] for each in top if each["kind"] == "folder")]


@pytest.mark.parametrize("seed", range(4))
async def test_lives_go_as_the_model_says(admin: Author, seed: int) -> None:
    team = Team(admin)
    good(await admin.ask("POST", "/v1/namespaces", json={"name": "shop"}), 201)
    good(await team.create("dev"), 201)
    life = Life(random.Random(seed), team)
    life.model.commit("dev", {})
    for _ in range(STEPS):
        await life.step()
    kinds = [each["kind"] for each in good(await team.at("dev").get("/versions", params={"limit": 100}))["items"]]
    assert len(kinds) == life.model.world.heads["dev"]
