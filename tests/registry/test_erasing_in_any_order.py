"""Publish, branch, roll back, delete, restore, erase, begin again and purge in any order, against a plain model: contents and refusals agree.

Values are few, so that environments share texts all the time: what is erased or purged in one place is often needed in another.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from heliograph.core.digest import digest
from heliograph.services.registry.erasing import Eraser

from .conftest import Author, good, problem
from .test_deletion import SHOP, eraser, overdue  # noqa: F401  # the second is a fixture

ENVIRONMENTS, CONFIGS, VALUES, STEPS = ("dev", "test", "live"), ("a", "f/b"), range(4), 40
WHY = {"reason": "r", "order": "o"}


def digest_of(value: int) -> str:
    return str(digest("document", json.dumps({"v": value}, separators=(",", ":")).encode()))


@dataclass
class History:
    """``versions[n - 1]``: config -> value."""

    versions: list[dict[str, int]] = field(default_factory=lambda: [{}])
    deleted: bool = False

    @property
    def head(self) -> dict[str, int]:
        return self.versions[-1]


@dataclass
class World:
    author: Author
    eraser: Eraser
    sql: Any
    random: Random
    histories: dict[str, History] = field(default_factory=dict)
    purged: set[int] = field(default_factory=set)

    def path(self, name: str) -> str:
        return f"{SHOP}/environments/{name}"

    async def step(self) -> None:
        name = self.random.choice(ENVIRONMENTS)
        history = self.histories.get(name)
        if history is None:
            await self.random.choice((self.create, self.branch, self.branch))(name)
        elif history.deleted:
            await self.random.choice((self.restore, self.restore, self.erase, self.take_the_name))(name, history)
        else:
            every = (
                self.publish,
                self.publish,
                self.publish,
                self.publish,
                self.roll_back,
                self.roll_back,
                self.delete,
                self.purge,
            )
            await self.random.choice(every)(name, history)

    async def create(self, name: str) -> None:
        good(await self.author.ask("POST", f"{SHOP}/environments", json={"name": name}), 201)
        self.histories[name] = History()

    async def branch(self, name: str) -> None:
        source = self.random.choice(sorted(self.histories) or [name])
        number = self.random.randint(1, len(self.histories[source].versions)) if source in self.histories else 1
        asked = {"name": name, "from": {"environment": source, "version": number}}
        answer = await self.author.ask("POST", f"{SHOP}/environments", json=asked)
        if source not in self.histories or self.histories[source].deleted:
            problem(answer, 404, "not-found")
            return
        content = self.histories[source].versions[number - 1]
        if self.purged & set(content.values()):
            problem(answer, 409, "conflict")
        else:
            good(answer, 201)
            self.histories[name] = History([dict(content)])

    async def publish(self, name: str, history: History) -> None:
        config, value = self.random.choice(CONFIGS), self.random.choice(VALUES)
        answer = await self.author.ask("PUT", f"{self.path(name)}/configs/{config}", json={"v": value})
        if value in self.purged:
            problem(answer, 409, "conflict")
        elif good(answer)["number"] > len(history.versions):
            history.versions.append(history.head | {config: value})

    async def roll_back(self, name: str, history: History) -> None:
        to = self.random.randint(1, len(history.versions))
        wanted = history.versions[to - 1]
        brought = {value for config, value in wanted.items() if history.head.get(config) != value}
        answer = await self.author.ask("POST", f"{self.path(name)}/rollback", json={"to": to})
        if brought & self.purged:
            problem(answer, 409, "conflict")
        elif good(answer)["number"] > len(history.versions):
            history.versions.append(dict(wanted))

    async def delete(self, name: str, history: History) -> None:
        good(await self.author.ask("DELETE", self.path(name)))
        history.deleted = True

    async def restore(self, name: str, history: History) -> None:
        good(await self.author.ask("POST", f"{self.path(name)}/restore"))
        history.deleted = False

    async def erase(self, name: str, _: History) -> None:
        others = [each for each, history in self.histories.items() if history.deleted and each != name]
        await overdue(self.sql)
        await self.sql.execute(
            "update registry.deleted_environment set erase_at = now() + interval '1 day' where environment = any($1)", others
        )
        await asyncio.gather(self.eraser.work(), self.eraser.work())  # should two ever do it at once, they take turns
        del self.histories[name]

    async def take_the_name(self, name: str, _: History) -> None:
        problem(await self.author.ask("POST", f"{SHOP}/environments", json={"name": name}), 409, "already-exists")

    async def purge(self, name: str, history: History) -> None:
        held = {value for each in self.histories.values() for value in each.head.values()}
        number = self.random.randint(1, len(history.versions))
        if not history.versions[number - 1]:
            return
        config, value = self.random.choice(sorted(history.versions[number - 1].items()))
        asked = {"environment": name, "config": config, "versions": [number]}
        answer = await self.author.ask("POST", f"{SHOP}/purges", json=asked | WHY)
        if value in self.purged:
            assert good(answer, 200)["already"] == [digest_of(value)]
        elif value in held:
            holders = {each for each, history in self.histories.items() if value in history.head.values()}
            assert problem(answer, 409, "still-named")["held_by"].keys() == holders
        else:
            assert good(answer, 201)["digests"] == [digest_of(value)]
            self.purged.add(value)
            await self.sql.execute("update registry.purged set at = at - interval '2 minutes'")  # branches wait for one

    async def check(self) -> None:
        for name, history in self.histories.items():
            for number, version in enumerate(history.versions, 1):
                for config in CONFIGS:
                    answer = await self.author.get(f"{self.path(name)}/configs/{config}", params={"at": number})
                    if history.deleted or version.get(config) is None or version[config] in self.purged:
                        problem(answer, 404, "not-found")
                    else:
                        assert answer.json() == {"v": version[config]}, (name, number, config)
        stored = {
            row["digest"]
            for row in await self.sql.fetch("select digest from registry.object where kind = 'document' and not purged")
        }
        named = {
            bytes.fromhex(digest_of(value)[7:])
            for history in self.histories.values()
            for each in history.versions
            for value in each.values()
        }
        assert {each for each in named if each.hex() not in {digest_of(v)[7:] for v in self.purged}} <= stored


@pytest.mark.parametrize("seed", range(5))
async def test_in_any_order(author: Author, eraser: Eraser, sql: Any, seed: int) -> None:  # noqa: F811
    world = World(author, eraser, sql, Random(seed), {"live": History()})
    good(await author.ask("DELETE", f"{SHOP}/environments/production"))
    good(await author.ask("POST", f"{SHOP}/environments", json={"name": "live"}), 201)
    for _ in range(STEPS):
        await world.step()
    await world.check()
    for name in [each for each, history in world.histories.items() if history.deleted]:
        await world.erase(name, world.histories[name])
    await world.check()
    kept = {value for history in world.histories.values() for each in history.versions for value in each.values()}
    left = await sql.fetchval("select count(*) from registry.object where kind = 'document'")
    assert left == len(kept), "nothing is kept that nobody names"
