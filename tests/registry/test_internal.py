"""What sync and ledger ask the registry."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from heliograph.access.principal import Principal
from heliograph.core import trie
from heliograph.core.canonical import canonical
from heliograph.core.digest import digest, raw_digest, spell, unspell
from heliograph.core.events import MAX_EVENT, VersionEvent
from heliograph.core.records import Head, Signed, Version
from heliograph.services.registry.draft import changed_configs

from .conftest import Author, good, problem

PLACE = "/v1/internal/shop/production"


class State(msgspec.Struct):
    """A whole state as a reader puts it together."""

    head: Head
    version: Version
    leaves: dict[str, str]
    documents: dict[str, str]

    @property
    def root(self) -> str:
        """Computed from what was told, not from what was claimed."""
        return spell(
            trie.update(trie.EMPTY, {name: raw_digest("leaf", leaf.encode()) for name, leaf in self.leaves.items()}).digest
        )


async def state_of(service: Author, at: int | None = None) -> State:
    answer = await service.get(f"{PLACE}/state", params={} if at is None else {"at": at})
    assert answer.status_code == 200, answer.text
    first, *lines = (msgspec.json.decode(line) for line in answer.text.splitlines())
    return State(
        Head.read(first["head"]["payload"]),
        Version.read(first["version"]["payload"]),
        {line["name"]: line["leaf"] for line in lines},
        {line["name"]: line["document"] for line in lines},
    )


async def test_state_leads_to_the_signed_root(author: Author, service: Author) -> None:
    await author.publish(*({"name": f"f{i % 5}/c{i}", "document": {"i": i}} for i in range(150)))
    await author.publish({"name": "f0/c0", "delete": True}, {"name": "top", "document": "é"})
    now, before, first = await state_of(service), await state_of(service, 2), await state_of(service, 1)
    for state, count in ((now, 150), (before, 150), (first, 0)):
        assert (state.root, len(state.leaves)) == (state.version.root, count)
        assert state.head.root == state.version.root
        for name, text in state.documents.items():
            assert msgspec.json.decode(state.leaves[name])["document"] == digest("document", text.encode())
    assert list(now.leaves) == sorted(now.leaves)
    assert now.documents["top"] == '"é"'


async def test_versions_come_as_their_events(author: Author, service: Author, sql: Any) -> None:
    await author.publish({"name": "a", "document": 1}, {"name": "b", "document": 2})
    await author.publish({"name": "a", "delete": True}, {"name": "b", "document": 3})
    told = [
        msgspec.json.decode(row["body"], type=VersionEvent)
        for row in await sql.fetch("select body from eventlog.event order by position")
    ]
    for number, event in enumerate(told, 1):
        answer = await service.get(f"{PLACE}/versions/{number}")
        assert msgspec.json.decode(answer.content, type=VersionEvent) == event


async def test_heads_in_pages(author: Author, service: Author) -> None:
    for name in ("dev", "staging", "test"):
        good(await author.ask("POST", "/v1/namespaces/shop/environments", json={"name": name}), 201)
    seen, cursor = [], ""
    while cursor is not None:
        page = good(await service.get("/v1/internal/heads", params={"limit": 3, "cursor": cursor}))
        seen += page["items"]
        cursor = page["next"]
    assert [each["environment"] for each in seen] == ["dev", "production", "staging", "test"]
    for each in seen:
        head, record = msgspec.convert(each["head"], Signed), msgspec.convert(each["version"], Signed)
        assert Head.read(head.payload).version == Version.id_of(record.payload)


async def test_version_ids_in_order(author: Author, service: Author) -> None:
    ids = [(await author.head())["version"]] + [good(await author.put("a", i), 201)["version"] for i in range(6)]
    found = good(await service.get(f"{PLACE}/version-ids", params={"after": 0, "limit": 4}))
    assert found == {"items": ids[:4], "next": "4"}
    assert good(await service.get(f"{PLACE}/version-ids", params={"after": 4})) == {"items": ids[4:], "next": None}
    assert good(await service.get(f"{PLACE}/version-ids", params={"after": 7}))["items"] == []
    problem(await service.get("/v1/internal/shop/nowhere/version-ids"), 404, "not-found")


async def test_objects_by_digest_belong_to_their_namespace(author: Author, service: Author) -> None:
    good(await author.ask("POST", "/v1/namespaces", json={"name": "bank"}), 201)
    await author.put("a", {"secret": "shop's"})
    wanted = digest("document", canonical({"secret": "shop's"}))
    assert (await service.get(f"/v1/internal/objects/shop/{wanted}")).content == canonical({"secret": "shop's"})
    problem(await service.get(f"/v1/internal/objects/bank/{wanted}"), 404, "not-found")
    problem(await service.get("/v1/internal/objects/shop/sha256:ABC"), 400, "invalid-request")


async def test_introspection_of_a_token(author: Author, service: Author) -> None:
    asked = {"kind": "author", "name": "ci", "scopes": [{"namespace": "shop", "environment": "dev"}], "expires_in_s": 60}
    made = good(await author.ask("POST", "/v1/tokens", json=asked), 201)
    body = {"sha256": hashlib.sha256(made["token"].encode()).hexdigest()}
    answer = await service.ask("POST", "/v1/internal/introspect", json=body)
    principal = msgspec.json.decode(answer.content, type=Principal)
    assert (principal.id, principal.kind, principal.scopes[0].environment) == (made["id"], "author", "dev")
    assert principal.expires_at_us
    good(await author.ask("DELETE", f"/v1/tokens/{made['id']}"))
    problem(await service.ask("POST", "/v1/internal/introspect", json=body), 404, "not-found")
    problem(await service.ask("POST", "/v1/internal/introspect", json={"sha256": "zz"}), 400, "invalid-request")


async def test_only_services_ask_inside(author: Author) -> None:
    for path in (
        "/v1/internal/heads",
        f"{PLACE}/state",
        f"{PLACE}/version-ids",
        f"{PLACE}/versions/1",
        "/v1/internal/objects/shop/sha256:" + "0" * 64,
    ):
        problem(await author.get(path), 403, "forbidden")
    problem(await author.ask("POST", "/v1/internal/introspect", json={"sha256": "00" * 32}), 403, "forbidden")


async def test_audit_of_the_ledger_is_written_once(author: Author, service: Author) -> None:
    body = {"action": "propagation.closed", "namespace": "shop", "environment": "production", "detail": {"applied": 8}}
    for _ in range(3):
        good(
            await service.ask("POST", "/v1/internal/audit", json=body, headers={"Idempotency-Key": "propagation.closed:x"}), 201
        )
    rows = good(await author.get("/v1/audit/shop/production"))["items"]
    assert [row["detail"] for row in rows if row["action"] == "propagation.closed"] == [{"applied": 8}]
    other = body | {"detail": {"applied": 9}}
    answer = await service.ask("POST", "/v1/internal/audit", json=other, headers={"Idempotency-Key": "propagation.closed:x"})
    problem(answer, 422, "idempotency-key-reused")
    good(await service.ask("POST", "/v1/internal/audit", json=other), 201)


async def test_rollback_over_thousands_of_configs_is_told_without_its_changes(
    author: Author, service: Author, sql: Any
) -> None:
    good(await author.publish(*({"name": f"c{i:04}", "document": i} for i in range(4000))), 201)
    good(await author.ask("POST", "/rollback", json={"to": 1}), 201)
    good(await author.ask("POST", "/rollback", json={"to": 2}), 201)
    body = await sql.fetchval("select body from eventlog.event order by position desc limit 1")
    event = msgspec.json.decode(body, type=VersionEvent)
    assert len(body) < MAX_EVENT
    assert (event.partial, event.changes) == (True, ())
    whole = msgspec.json.decode((await service.get(f"{PLACE}/versions/4")).content, type=VersionEvent)
    assert (whole.partial, len(whole.changes), whole.changes[7].document) == (False, 4000, "7")


def test_documents_are_told_all_or_none() -> None:
    from heliograph.core.records import Leaf

    leaves = {"a": Leaf(digest("document", b"1")), "b": None}
    assert [each.document for each in changed_configs(leaves, {digest("document", b"1"): b"1"}, 1)] == ["1", None]
    assert [each.document for each in changed_configs(leaves, {digest("document", b"1"): b"1"}, 0)] == [None, None]
    assert unspell(leaves["a"].document)
