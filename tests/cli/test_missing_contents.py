"""A text that is missing without a signed statement, a statement that somebody else made, content that is another version's: none of it passes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from heliograph.cli.contents import check_contents
from heliograph.cli.target import Target
from heliograph.core import dsse, trie
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.errors import BadDigest, BadSignature, NotFound
from heliograph.core.records import PURGE_TYPE, ROOT_TYPE, Leaf, Purge, Version
from heliograph.core.trust import Role, Roles, Root, Trust, anchor_of

AT = "2026-01-01T00:00:00.000Z"
TEXTS = {"a": b'{"a":1}', "f/b": b"2"}


class Key:
    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()
        self.id = dsse.key_id(self.public)

    def sign(self, kind: str, text: bytes) -> Any:
        return dsse.attach(text, [(self.id, self._key.sign(dsse.pae(kind, text)))])


class Server:
    """What `check_contents` asks of a server, with texts that may be missing."""

    def __init__(self, texts: dict[str, bytes], statements: list[Any]) -> None:
        self.api = self
        self._texts = texts
        self._statements = statements

    def pages(self, path: str, **_: Any) -> Any:
        if path.endswith("/purges"):
            return iter({"envelope": dsse.to_envelope(each, PURGE_TYPE)} for each in self._statements)
        entries = [
            {"name": name, "kind": "config", "document": digest("document", text), "schema": None}
            for name, text in TEXTS.items()
        ]
        return iter(entries)

    def call(self, _: str, path: str, **__: Any) -> Any:
        name = path.split("/configs/")[1]
        if name not in self._texts:
            raise NotFound("its text was purged")
        return type("Answer", (), {"content": self._texts[name]})


@pytest.fixture
def key() -> Key:
    return Key()


@pytest.fixture
def trust(key: Key) -> Trust:
    role = Role((key.id,), 1)
    root = Root(number=1, keys={key.id: base64.b64encode(key.public).decode()}, roles=Roles(role, role, role), expires_at=AT)
    return Trust.from_root(key.sign(ROOT_TYPE, json.dumps(_plain(root)).encode()), anchor_of(key.public))


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


@pytest.fixture
def version() -> Version:
    leaves = {name: unspell(Leaf(digest("document", text)).digest()) for name, text in TEXTS.items()}
    root = spell(trie.update(trie.EMPTY, leaves).digest)
    return Version(
        namespace="shop", environment="dev", epoch=1, number=2, parent=root, root=root, history=root, kind="publish", author="x", at=AT
    )  # fmt: skip


def purged(key: Key, name: str, namespace: str = "shop") -> Any:
    said = Purge(namespace=namespace, digests=(digest("document", TEXTS[name]),), order="o", at=AT)
    return key.sign(PURGE_TYPE, said.text())


def check(server: Server, version: Version, trust: Trust) -> Any:
    return check_contents(server, Target.parse("shop/dev"), version, "sha256:x", trust)  # type: ignore[arg-type]


def test_whole(key: Key, trust: Trust, version: Version) -> None:
    assert check(Server(TEXTS, []), version, trust).purged == 0
    checked = check(Server({"a": TEXTS["a"]}, [purged(key, "f/b")]), version, trust)
    assert (checked.configs, checked.purged) == (2, 1)


def test_missing_without_a_statement(key: Key, trust: Trust, version: Version) -> None:
    for statements in ([], [purged(key, "a")], [purged(key, "f/b", namespace="bank")]):
        with pytest.raises(BadDigest, match="no signed statement"):
            check(Server({"a": TEXTS["a"]}, statements), version, trust)


def test_statement_of_somebody_else(trust: Trust, version: Version) -> None:
    with pytest.raises(BadSignature):
        check(Server({"a": TEXTS["a"]}, [purged(Key(), "f/b")]), version, trust)


def test_other_content(trust: Trust, version: Version) -> None:
    with pytest.raises(BadDigest, match="not the one"):
        check(Server(TEXTS | {"a": b"9"}, []), version, trust)
    other = Version(**{**{f: getattr(version, f) for f in version.__struct_fields__}, "root": digest("node", b"x")})
    with pytest.raises(BadDigest, match="not those of version 2"):
        check(Server(TEXTS, []), other, trust)
