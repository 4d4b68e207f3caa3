"""Whatever is wrong with a request: a problem document that says so, no value in it, and nothing committed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .conftest import Author, good, problem

SECRET = "hunter2-is-the-value"
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["a"],
    "properties": {"a": {"type": "integer", "maximum": 5}, "b": {"enum": ["x"]}},
}


@pytest.fixture(autouse=True)
async def nothing_committed(author: Author, sql: Any) -> AsyncIterator[None]:
    """A published config with a schema; after the test the head, the events and the audit trail are what they were."""
    good(await author.publish({"name": "limits", "document": {"a": 1}, "schema": SCHEMA}), 201)
    before = await _everything(sql)
    yield
    assert await _everything(sql) == before


async def _everything(sql: Any) -> dict[str, int]:
    tables = (
        "registry.head",
        "registry.version",
        "registry.object",
        "registry.audit",
        "registry.idempotency",
        "registry.namespace",
        "eventlog.event",
    )
    return {
        table: await sql.fetchval(f"select md5(coalesce(string_agg(t::text, ',' order by t::text), '')) from {table} t")
        for table in tables
    }


NOT_STRICT = [
    (b"", "syntax", ""),
    (b'{"a": ', "syntax", ""),
    (b'{"a": 1} x', "syntax", ""),
    (b'{"o": {"a": 1, "a": 2}}', "duplicate-key", "/o"),
    (b'{"a": NaN}', "number", "/a"),
    (b'{"a": -Infinity}', "number", "/a"),
    (b'{"a": 9007199254740993}', "number", "/a"),
    (b'{"a": 1e400}', "number", "/a"),
    (b'{"a": "\\ud800"}', "unicode", "/a"),
    (b'{"a": "\xff"}', "encoding", ""),
    (b'\xef\xbb\xbf{"a": 1}', "encoding", ""),
    (b"[" * 100 + b"]" * 100, "depth", ""),
    (b"[" * 100_000, "depth", ""),
]


async def test_documents_that_are_not_strict_json(author: Author) -> None:
    for body, rule, pointer in NOT_STRICT:
        for answer in (await author.put("other", body), await author.ask("PUT", "/schemas/limits", content=body)):
            faults = problem(answer, 400, "invalid-document")["faults"]
            assert [(each["rule"], each["pointer"]) for each in faults] == [(rule, pointer)], body[:100]


async def test_documents_that_are_too_large(author: Author) -> None:
    problem(await author.put("other", b'"' + b"x" * 2_000_000 + b'"'), 413, "too-large")
    problem(await author.put("other", b'"' + b"x" * 3_000_000 + b'"'), 413, "too-large")
    problem(await author.publish({"name": "other", "document": "x" * 1_100_000}), 413, "too-large")
    problem(await author.publish(*({"name": f"c{i}", "document": "x" * 1_000_000} for i in range(17))), 413, "too-large")


async def test_every_fault_against_the_schema_and_never_the_value(author: Author) -> None:
    answer = await author.put("limits", {"a": 1234567, "b": SECRET, "c": SECRET})
    said = problem(answer, 422, "schema-violation")
    found = {(each["pointer"], each["rule"], each["schema_pointer"]) for each in said["faults"]}
    assert found == {
        ("/a", "maximum", "/properties/a/maximum"),
        ("/b", "enum", "/properties/b/enum"),
        ("", "additionalProperties", "/additionalProperties"),
    }
    assert SECRET not in answer.text
    assert "1234567" not in answer.text


async def test_faults_of_several_configs_point_into_the_request(author: Author) -> None:
    changes = [
        {"name": "limits", "document": {"a": "no"}},
        {"name": "fine", "document": 1},
        {"name": "other", "document": {"b": 1}, "schema": SCHEMA},
    ]
    faults = problem(await author.publish(*changes), 422, "schema-violation")["faults"]
    assert {each["pointer"] for each in faults} == {"/changes/0/document/a", "/changes/2/document", "/changes/2/document/b"}


async def test_more_faults_than_are_told_are_counted(author: Author) -> None:
    changes = {"name": "many", "document": ["x"] * 5000, "schema": {"items": {"type": "integer"}}}
    said = problem(await author.publish(changes), 422, "schema-violation")
    assert len(said["faults"]) == 100
    assert "5,000 faults" in said["detail"]


UNUSABLE = [
    ("a string", "type", ""),
    ({"type": "nope"}, "anyOf", "/type"),
    ({"properties": {"a": {"minimum": "1"}}}, "type", "/properties/a/minimum"),
    ({"$ref": "http://127.0.0.1:9/x.json"}, "$ref", ""),
    ({"$ref": "file:///etc/passwd"}, "$ref", ""),
    ({"$ref": "other.json"}, "$ref", ""),
    ({"$ref": "#/definitions/nowhere"}, "$ref", ""),
    ({"pattern": "^(?!x)a"}, "pattern", "/pattern"),
    ({"pattern": "("}, "pattern", "/pattern"),
    ({"pattern": "(a)\\1"}, "pattern", "/pattern"),
    ({"pattern": "((a{1000}){1000}){1000}"}, "pattern", "/pattern"),
    ({"$schema": "https://json-schema.org/draft/2020-12/schema"}, "$schema", "/$schema"),
    (
        {"properties": {"x": {"$id": "http://x/", "$schema": "http://json-schema.org/draft-04/schema#"}}},
        "$schema",
        "/properties/x/$schema",
    ),
]


async def test_schemas_that_cannot_be_used(author: Author) -> None:
    for schema, rule, pointer in UNUSABLE:
        said = problem(await author.put_schema("limits", schema), 422, "invalid-schema")
        assert (rule, pointer) in {(each["rule"], each["pointer"]) for each in said["faults"]}, schema
        inside = problem(await author.publish({"name": "new", "document": 1, "schema": schema}), 422, "invalid-schema")
        assert (rule, "/changes/0/schema" + pointer) in {(each["rule"], each["pointer"]) for each in inside["faults"]}, schema


async def test_schema_that_the_current_value_breaks(author: Author) -> None:
    said = problem(await author.put_schema("limits", {"required": ["z"]}), 422, "schema-violation")
    assert [(each["pointer"], each["rule"]) for each in said["faults"]] == [("", "required")]
    problem(await author.put_schema("nowhere", {}), 404, "not-found")


async def test_patterns_take_linear_time(author: Author) -> None:
    """^(a+)+$ against 41 characters takes a backtracking engine for ever."""
    answer = await author.publish({"name": "evil", "document": "a" * 40 + "!", "schema": {"pattern": "^(a+)+$"}})
    assert [each["rule"] for each in problem(answer, 422, "schema-violation")["faults"]] == ["pattern"]


async def test_explanations_that_would_take_for_ever_are_given_up(author: Author, http: Any) -> None:
    """Alternatives of alternatives: three to the power of the depth. The registry goes on answering meanwhile."""
    again = {"$ref": "#/definitions/a"}
    alternatives = [{"type": "array", "items": again, **extra} for extra in ({}, {"minItems": 1}, {"maxItems": 1})]
    document: Any = "x"
    for _ in range(40):
        document = [document]
    schema = {"definitions": {"a": {"anyOf": alternatives}}, **again}
    said = problem(await author.publish({"name": "evil", "document": document, "schema": schema}), 422, "invalid-schema")
    assert "simplify" in said["detail"]
    problem(await author.put("limits", {}), 422, "schema-violation")


NO_NAMES = [
    "Checkout",
    "a/../b",
    "..",
    "a//b",
    "/a",
    "a/",
    "x" * 300,
    "a b",
    "ä",
    "a/" * 8 + "a",
    "-a",
    "a\x00b",
    "a%2Fb%2F",
    ".",
]


async def test_names_that_are_none(author: Author) -> None:
    for name in NO_NAMES:
        path = "/configs/" + "".join(f"%{byte:02X}" for byte in name.encode())
        for answer in (await author.ask("PUT", path, content=b"1"), await author.get(path), await author.ask("DELETE", path)):
            problem(answer, 400, "invalid-name")
        problem(await author.publish({"name": name, "document": 1}), 400, "invalid-name")


async def test_names_of_namespaces_and_environments(author: Author) -> None:
    for name in ("Shop", "a/b", "..", "", "x" * 300, "ä", "*"):
        problem(await author.ask("POST", "/v1/namespaces", json={"name": name}), 400, "invalid-name")
        problem(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": name}), 400, "invalid-name")


async def test_places_that_are_not_there(author: Author) -> None:
    for place in ("/v1/namespaces/shop/environments/nowhere", "/v1/namespaces/nobody/environments/production"):
        other = Author(author.http, author.headers["Authorization"].split()[1], place)
        for answer in (
            await other.put("a", 1),
            await other.publish({"name": "a", "document": 1}),
            await other.get("/configs/a"),
            await other.get("/configs"),
            await other.get("/versions"),
            await other.get("/versions/1"),
            await other.get("/diff"),
            await other.get("/history"),
            await other.ask("POST", "/rollback", json={"to": 1}),
        ):
            problem(answer, 404, "not-found")
    problem(await author.ask("POST", "/v1/namespaces/nobody/environments", json={"name": "dev"}), 404, "not-found")
    problem(await author.ask("DELETE", "/configs/nowhere"), 404, "not-found")
    problem(await author.publish({"name": "nowhere", "delete": True}, {"name": "a", "document": 1}), 404, "not-found")
    problem(await author.ask("POST", "/rollback", json={"to": 99}), 404, "not-found")
    problem(await author.ask("POST", "/rollback", json={"to": "sha256:" + "0" * 64}), 404, "not-found")
    assert (await author.get("/nothing/here")).json()["code"] == "not-found"


async def test_things_that_are_there_already(author: Author) -> None:
    problem(await author.ask("POST", "/v1/namespaces", json={"name": "shop"}), 409, "already-exists")
    problem(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "production"}), 409, "already-exists")


NOT_UNDERSTOOD = [
    {},
    {"changes": []},
    {"changes": "a"},
    {"changes": [{"document": 1}]},
    {"changes": [{"name": "a"}]},
    {"changes": [{"name": "a", "delete": True, "document": 1}]},
    {"changes": [{"name": "a", "delete": True, "schema": None}]},
    {"changes": [{"name": "a", "document": 1}, {"name": "a", "document": 2}]},
    {"changes": [{"name": "a", "document": 1, "documnt": 2}]},
    {"changes": [{"name": "a", "document": 1}], "message": "x" * 1001},
    {"changes": [{"name": "a", "document": 1}], "mesage": "x"},
    [],
]


async def test_versions_that_are_not_understood(author: Author) -> None:
    for body in NOT_UNDERSTOOD:
        problem(await author.ask("POST", "/versions", json=body), 400, "invalid-request")
    deep = b'{"changes": [{"name": "a", "document": ' + b"[" * 100_000
    problem(await author.ask("POST", "/versions", content=deep), 400, "invalid-request")
    twice = (
        b'{"changes": [{"name": "a", "document": 1, "document": 2}]}',
        b'{"changes": [{"name": "a", "document": 1}], "changes": []}',
    )
    for body in twice:
        problem(await author.ask("POST", "/versions", content=body), 400, "invalid-request")
    for body in ({}, {"to": 1.5}, {"to": None}, {"to": "one"}, {"to": 0}, {"to": 1, "x": 1}):
        problem(await author.ask("POST", "/rollback", json=body), 400, "invalid-request")


async def test_too_many_changes_in_one_version(author: Author) -> None:
    problem(await author.publish(*({"name": f"c{i}", "document": i} for i in range(10_000))), 413, "too-large")


async def test_one_bad_change_refuses_all(author: Author) -> None:
    problem(await author.publish({"name": "a", "document": 1}, {"name": "limits", "document": SECRET}), 422, "schema-violation")
    bad = b'{"changes": [{"name": "a", "document": 1}, {"name": "b", "document": {"x": NaN}}]}'
    assert problem(await author.ask("POST", "/versions", content=bad), 400, "invalid-request")
    bad = b'{"changes": [{"name": "a", "document": 1}, {"name": "b", "document": {"x": 1, "x": 2}}]}'
    said = problem(await author.ask("POST", "/versions", content=bad), 400, "invalid-document")
    assert [each["pointer"] for each in said["faults"]] == ["/changes/1/document"]


async def test_stale_base_tells_what_has_changed(author: Author, sql: Any) -> None:
    missing = "sha256:" + "0" * 64
    said = problem(await author.put("limits", {"a": 2}, headers={"If-Match": f'"{missing}"'}), 412, "stale-base")
    assert (said["number"], "changed" in said) == (2, False)
    created = good(await author.get("/versions/1"))["version"]
    said = problem(await author.put("limits", {"a": 2}, headers={"If-Match": f'"{created}"'}), 412, "stale-base")
    head = await author.head()
    assert (said["head"], said["number"], said["base_number"]) == (head["version"], 2, 1)
    assert (said["changed"], said["yours"], said["overlap"]) == (["limits"], ["limits"], ["limits"])
    said = problem(
        await author.ask("POST", "/rollback", json={"to": 1}, headers={"If-Match": f'"{created}"'}), 412, "stale-base"
    )
    assert said["overlap"] == []


async def test_headers_that_are_not_understood(author: Author) -> None:
    digest = "sha256:" + "0" * 64
    conditions = (digest, '"abc"', f'W/"{digest}"', f'"{digest.upper()}"')
    keys = ("", "x" * 201, "a b")
    preferences = ("wait=soon", "wait=2, share=7", "wait=2, share=0", "wait=-1", "wait=nan", "wait")
    messages = ("x" * 1001, "%ff")
    for name, values in (
        ("If-Match", conditions),
        ("Idempotency-Key", keys),
        ("Prefer", preferences),
        ("Heliograph-Message", messages),
    ):
        for value in values:
            problem(await author.put("limits", {"a": 2}, headers={name: value}), 400, "invalid-request")


QUERIES = [
    *(
        "/versions?cursor=!!",
        "/versions?limit=0",
        "/versions?limit=501",
        "/versions/abc",
        "/versions/0",
        "/versions/99999999999999999999",
    ),
    *("/configs?cursor=AAAA", "/configs?folder=a", "/configs?folder=A/", "/diff?from=x", "/history?after=-1"),
]


async def test_queries_that_are_not_understood(author: Author) -> None:
    for path in QUERIES:
        answer = await author.get(path)
        assert answer.status_code == 400, (path, answer.text)
        assert answer.json()["code"] in ("invalid-request", "invalid-name")


async def test_tokens_that_are_none(author: Author, sql: Any) -> None:
    whole = author.headers["Authorization"].split()[1]
    for token in (whole[:-1], whole[:-7], whole + "x", "x", "hel_admin_" + "a" * 36, whole.replace("admin", "author")):
        problem(await author.put("limits", {"a": 2}, headers={"Authorization": f"Bearer {token}"}), 401, "unauthenticated")
    for scheme in ("Basic abc", "Bearer", whole):
        problem(await author.put("limits", {"a": 2}, headers={"Authorization": scheme}), 401, "unauthenticated")
    answer = await author.http.put(f"{author.place}/configs/limits", content=b"1")
    assert answer.headers["www-authenticate"] == "Bearer"
    problem(answer, 401, "unauthenticated")


async def test_a_body_of_another_method_or_path(author: Author) -> None:
    assert (await author.ask("POST", "/configs/limits", content=b"{}")).status_code == 405
    assert json.loads((await author.ask("POST", "/configs/limits", content=b"{}")).content)["code"] == "method-not-allowed"
