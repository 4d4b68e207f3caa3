"""Whom a change would break, and what the environment's policy makes of it. The ledger's side is played by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request

from heliograph.runtime.http import Json, make_app, serve_http
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

from .conftest import DEADLINE_S, Author, Running, good, problem

INTEGER = {"type": "object", "properties": {"max": {"type": "integer"}}, "required": ["max"]}
STRING = {"type": "object", "properties": {"max": {"type": "string"}}}


@dataclass
class Ledger:
    """What instances declare: config -> schemas."""

    declared: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)
    names_asked: int = 0
    fails: bool = False

    def answer(self, request: Request) -> Any:
        configs = request.query_params.getlist("config")
        self.asked.append(configs)
        items = [
            {
                "config": name,
                "schema": text if isinstance(text, str) else json.dumps(text),
                "instances": 3,
                "sample": ["i-1"],
                "apps": ["web"],
            }
            for name in configs
            for text in self.declared.get(name, [])
        ]
        return ["what?"] if self.fails else {"items": items, "all": True}

    def names(self) -> Any:
        self.names_asked += 1
        return ["what?"] if self.fails else {"items": sorted(self.declared), "all": True}


@pytest.fixture
async def ledger(registry: Running) -> AsyncIterator[Ledger]:
    told = Ledger()
    async with _serving(registry.settings.ledger_port, told):
        yield told


@asynccontextmanager
async def _serving(port: int, told: Ledger) -> AsyncIterator[None]:
    app: FastAPI = make_app("ledger", metrics=Metrics(), readiness=Readiness())

    @app.get("/v1/internal/declared/shop/production")
    async def declared(request: Request) -> Json:
        return Json(told.answer(request))

    @app.get("/v1/internal/declared-names/shop/production")
    async def names() -> Json:
        return Json(told.names())

    stop, started = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve_http(app, "127.0.0.1", port, stop=stop, on_started=started.set))
    await asyncio.wait_for(started.wait(), DEADLINE_S)
    yield
    stop.set()
    await serving


async def policy(author: Author, which: str) -> None:
    assert good(await author.ask("PUT", "/policy", json={"compatibility": which})) == {"compatibility": which}


async def check(author: Author, *changes: dict[str, Any]) -> Any:
    return good(await author.ask("POST", "/schemas-check", json={"changes": list(changes)}))


async def test_the_policy_of_an_environment_is_audited(author: Author) -> None:
    assert good(await author.get("/policy")) == {"compatibility": "warn"}
    await policy(author, "refuse")
    await policy(author, "refuse")
    assert good(await author.get("/policy")) == {"compatibility": "refuse"}
    rows = good(await author.get("/v1/audit/shop/production"))["items"]
    assert [each["detail"] for each in rows if each["action"] == "policy.change"] == [
        {"compatibility": "refuse", "before": "refuse"},
        {"compatibility": "refuse", "before": "warn"},
    ]
    for wrong in ({}, {"compatibility": "maybe"}, {"compatibility": "off", "x": 1}, []):
        problem(await author.ask("PUT", "/policy", json=wrong), 400, "invalid-request")
    nowhere = "/v1/namespaces/shop/environments/nowhere/policy"
    problem(await author.ask("PUT", nowhere, json={"compatibility": "off"}), 404, "not-found")
    problem(await author.get(nowhere), 404, "not-found")
    made = good(await author.ask("POST", "/v1/tokens", json={"kind": "author", "name": "x", "scopes": [{}]}), 201)
    problem(await Author(author.http, made["token"]).ask("PUT", "/policy", json={"compatibility": "off"}), 403, "forbidden")


async def test_a_publish_that_breaks_instances_says_so_and_stands(author: Author, ledger: Ledger) -> None:
    ledger.declared = {"limits": [INTEGER, STRING]}
    said = good(await author.put("limits", {"max": "a secret"}), 201)
    told = said["compatibility"]
    assert (told["policy"], told["compatible"], told["downstream"], told["unchecked"]) == ("warn", False, [], [])
    (broken,) = told["instances"]
    assert (broken["config"], broken["instances"], broken["apps"], broken["sample"]) == ("limits", 3, ["web"], ["i-1"])
    assert [(each["pointer"], each["rule"]) for each in broken["faults"]] == [("/max", "type")]
    assert "a secret" not in json.dumps(told)
    assert (await author.head())["number"] == 2
    assert "compatibility" not in good(await author.put("other", {"max": "x"}), 201)


async def test_a_publish_that_would_break_instances_is_refused_where_that_is_the_policy(author: Author, ledger: Ledger) -> None:
    good(await author.put("limits", {"max": 1}), 201)
    ledger.declared = {"limits": [INTEGER]}
    await policy(author, "refuse")
    refused = problem(await author.put("limits", {"max": "x"}, headers={"Idempotency-Key": "k"}), 409, "incompatible")
    assert refused["compatibility"]["instances"][0]["instances"] == 3
    assert "3 connected instances" in refused["detail"]
    assert (await author.head())["number"] == 2
    good(await author.put("limits", {"max": 5}, headers={"Idempotency-Key": "k2"}), 201)
    ledger.declared = {}
    good(await author.put("limits", {"max": "x"}, headers={"Idempotency-Key": "k"}), 201)  # a refusal is not remembered


async def test_a_schema_that_breaks_another_environment(author: Author, ledger: Ledger) -> None:
    good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "staging"}), 201)
    staging = Author(author.http, author.headers["Authorization"].split()[1], author.place.replace("production", "staging"))
    good(await staging.put("limits", {"max": "from staging"}), 201)
    good(await author.put("limits", {"max": 1}), 201)

    said = good(await author.put_schema("limits", INTEGER), 201)
    (broken,) = said["compatibility"]["downstream"]
    assert (broken["environment"], broken["config"], broken["faults"][0]["pointer"]) == ("staging", "limits", "/max")
    assert "from staging" not in json.dumps(said)

    await policy(author, "refuse")
    good(await author.put_schema("limits", {"type": "object"}), 201)
    refused = problem(await author.put_schema("limits", INTEGER | {"title": "again"}), 409, "incompatible")
    assert "values in staging" in refused["detail"]
    good(await staging.put("limits", {"max": 2}), 201)
    good(await author.put_schema("limits", INTEGER | {"title": "again"}), 201)


async def test_a_check_tells_everything_and_publishes_nothing(author: Author, ledger: Ledger) -> None:
    good(await author.publish({"name": "limits", "document": {"max": "text"}, "schema": STRING}), 201)
    ledger.declared = {"limits": [STRING]}
    told = await check(author, {"name": "limits", "schema": INTEGER})
    assert (told["compatible"], told["instances"]) == (False, [])
    assert [(each["environment"], each["config"]) for each in told["values"]] == [("production", "limits")]
    together = await check(author, {"name": "limits", "schema": INTEGER, "document": {"max": 1}})
    assert (together["values"], [each["config"] for each in together["instances"]]) == ([], ["limits"])
    only_value = await check(author, {"name": "limits", "document": {"max": 1}})
    assert (len(only_value["values"]), len(only_value["instances"])) == (1, 1)
    ledger.declared = {}
    assert (await check(author, {"name": "limits", "document": {"max": "x"}}))["compatible"]
    assert (await check(author, {"name": "limits", "delete": True}))["compatible"]
    assert (await check(author, {"name": "new", "document": 1, "schema": {"type": "integer"}}))["compatible"]
    assert (await author.head())["number"] == 2
    body = {"changes": [{"name": "limits", "schema": {"type": "nonsense"}}]}
    problem(await author.ask("POST", "/schemas-check", json=body), 422, "invalid-schema")
    body = {"changes": [{"name": "missing", "schema": INTEGER}]}
    problem(await author.ask("POST", "/schemas-check", json=body), 404, "not-found")
    problem(await author.ask("POST", "/schemas-check", json={}), 400, "invalid-request")


async def test_off_looks_at_nothing(author: Author, ledger: Ledger) -> None:
    ledger.declared = {"limits": [INTEGER]}
    await policy(author, "off")
    assert "compatibility" not in good(await author.put("limits", {"max": "x"}), 201)
    assert (ledger.asked, ledger.names_asked) == ([], 0)


async def test_a_publish_of_what_nobody_declares_asks_nothing(author: Author, ledger: Ledger) -> None:
    """And which configs are declared is asked once for many publishes, where the policy is to warn."""
    ledger.declared = {"limits": [INTEGER]}
    for value in range(20):
        good(await author.put("other", value), 201)
    assert ledger.asked == []
    assert 1 <= ledger.names_asked < 20
    assert "compatibility" in good(await author.put("limits", {"max": "x"}), 201)
    assert ledger.asked == [["limits"]]


async def test_what_was_declared_a_moment_ago_is_missed_by_a_warning_for_seconds_and_by_a_refusal_never(
    author: Author, ledger: Ledger
) -> None:
    good(await author.put("limits", {"max": 1}), 201)
    ledger.declared = {"limits": [INTEGER]}
    async with asyncio.timeout(DEADLINE_S):
        number = 0
        while "compatibility" not in good(await author.put("limits", {"max": f"x{(number := number + 1)}"}), 201):
            await asyncio.sleep(0.2)
    ledger.declared = {}
    good(await author.put("limits", {"max": 2}), 201)
    await policy(author, "refuse")
    ledger.declared = {"limits": [INTEGER]}
    problem(await author.put("limits", {"max": "y"}), 409, "incompatible")


async def test_a_ledger_that_is_away_refuses_nothing_and_is_said(author: Author) -> None:
    await policy(author, "refuse")
    good(await author.put("limits", {"max": "x"}), 201)
    told = await check(author, {"name": "limits", "document": {"max": 1}})
    assert (told["compatible"], len(told["unchecked"])) == (True, 1)
    assert "ledger" in told["unchecked"][0]


async def test_a_ledger_that_is_not_understood(author: Author, ledger: Ledger) -> None:
    ledger.fails = True
    good(await author.put("limits", {"max": "x"}), 201)
    good(await author.put("limits", {"max": "y"}), 201)
    assert ledger.names_asked == 1, "nobody waits for it again at once"


async def test_what_is_declared_may_be_nonsense(author: Author, ledger: Ledger) -> None:
    """Clients are not trusted: what cannot be used as a schema is said, and breaks nothing."""
    await policy(author, "refuse")
    deep = "[" * 4000 + "]" * 4000
    ledger.declared = {
        "limits": [
            "not json",
            '{"type": "nonsense"}',
            '{"$ref": "http://127.0.0.1:1/x"}',
            deep,
            '"text"',
            '{"pattern": "(?=x)"}',
        ]
    }
    good(await author.put("limits", "xyz"), 201)
    told = await check(author, {"name": "limits", "document": "abc"})
    assert (told["compatible"], len(told["unchecked"])) == (True, len(ledger.declared["limits"]))
    assert (await author.head())["number"] == 2


async def test_many_changes_are_looked_at_up_to_a_bound(author: Author, ledger: Ledger) -> None:
    ledger.declared = {f"c{n:04}": [INTEGER] if n in (0, 200) else [] for n in range(300)}
    said = good(await author.publish(*({"name": f"c{n:04}", "document": n} for n in range(300))), 201)
    assert [each["config"] for each in said["compatibility"]["instances"]] == ["c0000"]
    assert len(ledger.asked[0]) == 100
    assert "100 of 300" in said["compatibility"]["unchecked"][0]
