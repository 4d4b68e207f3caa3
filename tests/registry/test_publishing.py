"""What an author does: publish, read, compare, roll back. What is signed is checked with what a client has."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import msgspec

from heliograph.core import dsse, history, trie
from heliograph.core.canonical import canonical
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.events import HeadEvent, RevokedEvent, VersionEvent
from heliograph.core.records import Leaf, Version
from heliograph.core.times import to_us
from heliograph.core.token import parse
from heliograph.core.trust import Trust

from .conftest import Author, good

LIMITS = {"max_items": 20, "currency": "EUR"}
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["max_items"],
    "properties": {"max_items": {"type": "integer", "minimum": 1}},
}
Json = dict[str, Any]


async def trust_of(author: Author) -> Trust:
    """As a client does it: the anchor comes in its token, the root from the server."""
    made = good(
        await author.ask("POST", "/v1/tokens", json={"kind": "client", "name": "c", "scopes": [{"namespace": "shop"}]}), 201
    )
    anchor = parse(made["token"]).anchor
    assert anchor
    return Trust.from_root(dsse.from_envelope(good(await author.get("/v1/trust")))[1], anchor)


def root_of(contents: dict[str, Leaf]) -> str:
    return spell(trie.update(trie.EMPTY, {name: unspell(leaf.digest()) for name, leaf in contents.items()}).digest)


def leaf(document: Any, schema: Any = None) -> Leaf:
    return Leaf(digest("document", canonical(document)), digest("schema", canonical(schema)) if schema else None)


async def test_environment_begins_with_an_empty_signed_version(author: Author) -> None:
    head, version = await author.head(), good(await author.get("/versions/1"))
    assert (head["number"], head["configs"], version["kind"], version["parent"]) == (1, 0, "create", None)
    assert (version["root"], version["change_count"]) == (spell(trie.EMPTY.digest), 0)


async def test_put_commits_a_version_that_verifies(author: Author) -> None:
    said = good(await author.put("checkout/limits", LIMITS, headers={"Heliograph-Message": quote("mehr als zwölf")}), 201)
    assert (said["number"], said["kind"], said["changes"], said["message"]) == (
        2,
        "publish",
        ["checkout/limits"],
        "mehr als zwölf",
    )
    assert (said["safe"], said["copies"], said["durability"], said["configs"]) == (True, 1, "local", 1)
    trust = await trust_of(author)
    version = trust.verify_version(dsse.from_envelope(said["envelope"])[1])
    head = trust.verify_head(dsse.from_envelope(said["head"])[1])
    assert (head.version, head.root, head.number, head.safe) == (said["version"], version.root, 2, 2)
    assert Version.id_of(dsse.from_envelope(said["envelope"])[1].payload) == said["version"]
    assert version.root == root_of({"checkout/limits": leaf(LIMITS)})
    assert version.message == digest("message", "mehr als zwölf".encode())
    assert 0 < to_us(head.expires_at) - to_us(head.issued_at) <= 600_000_000


async def test_document_is_read_as_its_canonical_text(author: Author) -> None:
    said = good(await author.put("limits", b' {"b": 1.0, "a": [true, null, "\\u00e9"] }'), 201)
    answer = await author.get("/configs/limits")
    assert answer.content == '{"a":[true,null,"é"],"b":1}'.encode()
    assert (answer.headers["etag"], answer.headers["heliograph-version"]) == (f'"{said["version"]}"', "2")
    assert answer.headers["content-type"] == "application/json"
    again = await author.get("/configs/limits", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_publish_that_changes_nothing_commits_nothing(author: Author) -> None:
    first = good(await author.put("limits", LIMITS), 201)
    again = good(await author.put("limits", dict(reversed(LIMITS.items()))), 200)
    assert again["unchanged"] is True
    assert (again["version"], (await author.head())["version"]) == (first["version"], first["version"])
    good(await author.publish({"name": "limits", "document": LIMITS}), 200)
    good(await author.ask("DELETE", "/schemas/limits"), 200)


async def test_several_changes_are_one_version(author: Author) -> None:
    good(await author.publish({"name": "a", "document": 1}, {"name": "b", "document": 2}), 201)
    said = good(
        await author.publish(
            {"name": "a", "delete": True},
            {"name": "b", "document": 2},
            {"name": "c/d", "document": LIMITS, "schema": SCHEMA},
            message="why",
        ),
        201,
    )
    assert (said["number"], said["changes"], said["configs"], said["message"]) == (3, ["a", "c/d"], 2, "why")
    assert said["root"] == root_of({"b": leaf(2), "c/d": leaf(LIMITS, SCHEMA)})
    assert (await author.get("/configs/a")).status_code == 404
    assert (await author.get("/configs/a", params={"at": "2"})).json() == 1
    assert (await author.get("/schemas/c/d")).content == canonical(SCHEMA)


async def test_schema_belongs_to_the_version_and_comes_back_with_it(author: Author) -> None:
    good(await author.put("limits", LIMITS), 201)
    with_schema = good(await author.put_schema("limits", SCHEMA), 201)
    good(await author.ask("DELETE", "/schemas/limits"), 201)
    assert (await author.get("/schemas/limits")).status_code == 404
    good(await author.put("limits", {"max_items": "many"}), 201)
    back = good(await author.ask("POST", "/rollback", json={"to": with_schema["number"]}), 201)
    assert back["root"] == with_schema["root"]
    assert (await author.put("limits", {"max_items": "many"})).status_code == 422
    good(await author.ask("DELETE", "/configs/limits"), 201)
    assert (await author.get("/schemas/limits")).status_code == 404


async def test_rollback_by_number_and_by_id(author: Author) -> None:
    first = good(await author.publish({"name": "a", "document": 1}, {"name": "b/c", "document": 1}), 201)
    good(await author.publish({"name": "a", "document": 2}, {"name": "b/c", "delete": True}, {"name": "d", "document": 3}), 201)
    back = good(await author.ask("POST", "/rollback", json={"to": 2, "message": "no"}), 201)
    assert (back["number"], back["kind"], back["root"], back["changes"]) == (4, "rollback", first["root"], ["a", "b/c", "d"])
    assert (back["source"], back["message"]) == ({"environment": "production", "number": 2, "version": first["version"]}, "no")
    assert back["configs"] == 2
    good(await author.ask("POST", "/rollback", json={"to": first["version"]}), 200)
    empty = good(await author.ask("POST", "/rollback", json={"to": "1"}), 201)
    assert (empty["root"], empty["configs"]) == (spell(trie.EMPTY.digest), 0)


async def test_history_is_a_chain_that_an_auditor_can_follow(author: Author) -> None:
    for number in range(5):
        good(await author.put("limits", number), 201)
    trust = await trust_of(author)
    lines = (await author.get("/history")).text.splitlines()
    ids: list[bytes] = []
    for line in lines:
        signed = dsse.attach(b"", [])
        signed = msgspec.json.decode(line, type=type(signed))
        version = trust.verify_version(signed)
        assert (version.number, version.parent) == (len(ids) + 1, spell(ids[-1]) if ids else None)
        assert version.history == spell(history.History(ids).root())
        ids.append(unspell(Version.id_of(signed.payload)))
    assert len(ids) == 6
    assert len((await author.get("/history", params={"after": 4})).text.splitlines()) == 2


async def test_history_list_newest_first_in_pages(author: Author) -> None:
    for number in range(6):
        good(await author.put("limits", number), 201)
    seen, cursor = [], ""
    while cursor is not None:
        page = good(await author.get("/versions", params={"limit": 3, "cursor": cursor}))
        seen += page["items"]
        cursor = page["next"]
    assert [each["number"] for each in seen] == [7, 6, 5, 4, 3, 2, 1]
    assert seen[0]["changes"] == ["limits"]
    assert good(await author.get(f"/versions/{seen[2]['version']}"))["number"] == 5


async def test_diff_between_any_two_versions(author: Author) -> None:
    good(await author.publish({"name": "a", "document": {"x": [1, 2, 3], "y": "old"}}, {"name": "gone", "document": 1}), 201)
    good(await author.publish({"name": "a", "document": {"x": [1, 3], "z": "new"}}, {"name": "gone", "delete": True}), 201)
    good(await author.publish({"name": "b", "document": LIMITS}), 201)
    good(await author.put_schema("b", SCHEMA), 201)
    found = good(await author.get("/diff", params={"from": 2, "to": 3}))
    assert (found["from"]["number"], found["to"]["number"], found["next"]) == (2, 3, None)
    changed, removed = found["items"]
    assert changed["operations"] == [
        {"op": "remove", "path": "/y"},
        {"op": "remove", "path": "/x/1"},
        {"op": "add", "path": "/z", "value": "new"},
    ]
    assert (removed["name"], removed["change"], removed["operations"]) == ("gone", "removed", [{"op": "remove", "path": ""}])
    added = good(await author.get("/diff", params={"from": 3, "to": 4}))["items"]
    assert added == [
        {"name": "b", "change": "added", "operations": [{"op": "add", "path": "", "value": LIMITS}], "schema_changed": False}
    ]
    (schema_only,) = good(await author.get("/diff"))["items"]
    assert (schema_only["operations"], schema_only["schema_changed"]) == ([], True)
    backwards = good(await author.get("/diff", params={"from": 5, "to": 1}))
    assert [(each["name"], each["change"]) for each in backwards["items"]] == [("a", "removed"), ("b", "removed")]


async def test_folders_are_listed_in_pages(author: Author) -> None:
    names = [f"c{i:02}" for i in range(40)] + ["checkout/limits", "checkout/deep/a", "other/x"]
    good(await author.publish(*({"name": name, "document": name} for name in names)), 201)
    seen, cursor = [], ""
    while cursor is not None:
        page = good(await author.get("/configs", params={"limit": 20, "cursor": cursor}))
        seen += page["items"]
        cursor = page["next"]
    assert [each["name"] for each in seen] == sorted([f"c{i:02}" for i in range(40)] + ["checkout/", "other/"])
    below = good(await author.get("/configs", params={"folder": "checkout/"}))
    assert [(each["name"], each["kind"]) for each in below["items"]] == [
        ("checkout/deep/", "folder"),
        ("checkout/limits", "config"),
    ]
    assert below["items"][1]["document"] == digest("document", canonical("checkout/limits"))
    assert (await author.get("/configs", params={"folder": "nowhere/"})).status_code == 404
    assert good(await author.get("/configs", params={"at": 1}))["items"] == []


async def test_large_versions_are_put_together_beside_the_loop(author: Author) -> None:
    said = good(await author.publish(*({"name": f"f{i % 7}/c{i}", "document": {"i": i}} for i in range(1500))), 201)
    assert (said["change_count"], said["configs"]) == (1500, 1500)
    assert said["root"] == root_of({f"f{i % 7}/c{i}": leaf({"i": i}) for i in range(1500)})
    half = good(await author.publish(*({"name": f"f{i % 7}/c{i}", "delete": True} for i in range(1490))), 201)
    assert half["root"] == root_of({f"f{i % 7}/c{i}": leaf({"i": i}) for i in range(1490, 1500)})


async def test_events_tell_every_commit_in_order(author: Author, sql: Any) -> None:
    good(await author.put("limits", LIMITS, headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}), 201)
    good(await author.put_schema("limits", SCHEMA), 201)
    good(await author.ask("DELETE", "/configs/limits"), 201)
    rows = await sql.fetch("select body, key, trace, position, shard from eventlog.event order by position")
    events = [msgspec.json.decode(row["body"], type=VersionEvent | HeadEvent | RevokedEvent) for row in rows]
    assert [each.number for each in events] == [1, 2, 3, 4]
    assert [row["position"] for row in rows] == [1, 2, 3, 4]
    assert {row["key"] for row in rows} == {"shop/production"}
    _, put, schema, gone = events
    assert (put.changes[0].name, put.changes[0].document) == ("limits", canonical(LIMITS).decode())
    assert put.changes[0].leaf == leaf(LIMITS).text().decode()
    assert str(put.trace).split("-")[1] == "ab" * 16
    assert rows[1]["trace"] == put.trace
    assert schema.changes[0].document_digest == leaf(LIMITS).document
    assert (gone.changes[0].leaf, gone.changes[0].document) == (None, None)
    assert put.received_at_us <= to_us(json.loads(put.version.payload)["at"]) + 1000


async def test_large_texts_are_left_out_of_the_event(author: Author, sql: Any) -> None:
    good(await author.publish({"name": "big", "document": "x" * 200_000}, {"name": "small", "document": "y" * 70_000}), 201)
    body = await sql.fetchval("select body from eventlog.event order by position desc limit 1")
    event = msgspec.json.decode(body, type=VersionEvent)
    assert [each.document for each in event.changes] == [None, None]
    assert event.changes[1].document_digest == digest("document", canonical("y" * 70_000))


async def test_namespaces_and_environments_are_listed(author: Author) -> None:
    good(await author.ask("POST", "/v1/namespaces", json={"name": "bank"}), 201)
    good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "dev"}), 201)
    assert [each["name"] for each in good(await author.get("/v1/namespaces"))["items"]] == ["bank", "shop"]
    listed = good(await author.get("/v1/namespaces/shop/environments"))["items"]
    assert [(each["name"], each["number"], each["configs"]) for each in listed] == [("dev", 1, 0), ("production", 1, 0)]
    assert good(await author.get("/v1/namespaces/bank/environments"))["items"] == []
    assert (await author.get("/v1/namespaces/nobody/environments")).status_code == 404


async def test_environments_share_equal_objects_and_nothing_else(author: Author) -> None:
    good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": "dev"}), 201)
    dev = Author(author.http, author.headers["Authorization"].split()[1], "/v1/namespaces/shop/environments/dev")
    one, other = good(await author.put("a", 1), 201), good(await dev.put("a", 1), 201)
    assert (one["root"], one["number"]) == (other["root"], other["number"])
    assert one["version"] != other["version"]


async def test_audit_rows_are_written_with_what_they_describe(author: Author) -> None:
    said = good(await author.put("limits", LIMITS), 201)
    rows = good(await author.get("/v1/audit/shop/production"))["items"]
    assert [row["action"] for row in rows] == ["config.put", "environment.create"]
    assert rows[0]["detail"] == {"number": 2, "version": said["version"], "changed": 1, "names": ["limits"]}
    assert rows[0]["actor"] == said["author"]
