"""Every vector of `contracts/vectors`, as an SDK in another language would run them: nothing here but the files and `heliograph.core`."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from contracts import make_vectors

from heliograph.core import delta, dsse, events, frames, history, names, proof, rollout, textedit, times, token, trie
from heliograph.core.canonical import canonical, canonical_text, parse
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.errors import (
    BadDigest,
    BadProof,
    BadSignature,
    InvalidDocument,
    InvalidName,
    Refused,
    TooLarge,
    Unauthenticated,
    UntrustedRoot,
)
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Cursor, Head, Signed, Version
from heliograph.core.replica import Replica, StateFrame
from heliograph.core.trust import Trust

FOLDER = Path(make_vectors.__file__).parent / "vectors"


def vectors(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def signed(value: Any) -> Signed:
    return msgspec.convert(value, Signed)


def raw(digests: dict[str, str | None]) -> dict[str, bytes | None]:
    return {name: None if text is None else unspell(text) for name, text in digests.items()}


@pytest.mark.parametrize("name", sorted(make_vectors.FILES))
def test_a_file_says_what_the_code_does(name: str) -> None:
    """After a change of a format: python -m contracts.make_vectors, and say in the changelog why."""
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == make_vectors.written(name)


def test_there_is_no_file_that_nobody_makes() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(make_vectors.FILES)


# --- small formats -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "read"),
    [("segment", names.namespace), ("segment", names.environment), ("config", names.config), ("selector", names.selector)],
)
def test_names(kind: str, read: Any) -> None:
    for text in vectors("names")[kind]["valid"]:
        assert read(text) == text
    for text in vectors("names")[kind]["invalid"]:
        with pytest.raises(InvalidName):
            read(text)


def test_views() -> None:
    for case in vectors("names")["views"]:
        assert list(names.view(case["given"])) == case["kept"]
    with pytest.raises(InvalidName):
        names.view([])


def test_times() -> None:
    told = vectors("times")
    for case in told["same"]:
        assert times.to_text(case["us"]) == case["text"]
        assert times.to_us(case["text"]) == case["us"]
    for case in told["cut"]:
        assert times.to_text(case["us"]) == case["text"]
    for text in told["invalid"]:
        with pytest.raises(ValueError):
            times.to_us(text)


def test_tokens() -> None:
    told = vectors("tokens")
    for case in told["valid"]:
        assert token.mint(case["kind"], told["secret"], case["anchor"]) == case["token"]
        assert token.parse(case["token"]) == token.TokenParts(case["kind"], case["anchor"])
        assert token.sha256(case["token"]).hex() == case["stored"]
    for text in told["invalid"]:
        with pytest.raises(Unauthenticated):
            token.parse(text)


def test_shards() -> None:
    for case in vectors("shards")["cases"]:
        assert events.shard_of(*case["parts"], shards=case["shards"]) == case["shard"]


def test_digests() -> None:
    told = vectors("digests")
    for case in told["texts"]:
        assert digest(case["kind"], case["text"].encode()) == case["digest"]
    for case in told["bytes"]:
        assert digest(case["kind"], bytes.fromhex(case["hex"])) == case["digest"]
        assert case.get("keyid") in (None, dsse.key_id(bytes.fromhex(case["hex"])))
    for text in told["not_digests"]:
        with pytest.raises(ValueError, match="not a digest"):
            unspell(text)


# --- canonical text ------------------------------------------------------------------------------------------------------------------------


def test_canonical_texts() -> None:
    for case in vectors("canonical")["texts"]:
        assert canonical_text(case["text"]).decode() == case["canonical"]
        assert canonical_text(case["canonical"]).decode() == case["canonical"]


def test_texts_that_are_not_strict_json() -> None:
    for case in vectors("canonical")["refused"]:
        data = base64.b64decode(case["base64"]) if "base64" in case else case["text"]
        with pytest.raises(InvalidDocument) as refused:
            parse(data)
        [fault, *_] = refused.value.faults
        assert (fault.rule, fault.pointer) == (case["rule"], case["pointer"]), case


def test_texts_at_the_limits() -> None:
    for case in vectors("canonical")["built"]:
        text = case["prefix"] * case["times"] + case["middle"] + case["suffix"] * case["times"]
        assert outcome(f'"{text}"' if case["quoted"] else text) == case["outcome"]


def outcome(text: str) -> str:
    try:
        parse(text)
    except InvalidDocument as refused:
        return refused.faults[0].rule
    except TooLarge as refused:
        return refused.code
    return "accepted"


# --- tries, proofs, history, edits, deltas ---------------------------------------------------------------------------------------------------


def test_tries() -> None:
    told = vectors("tries")
    for case in told["contents"]:
        content = raw(case["content"])
        root = trie.update(trie.EMPTY, content)
        assert spell(root.digest) == case["root"]
        assert dict(trie.leaves(root)) == content
    assert {digest("node", node.encode()): node.encode().hex() for node in trie.fresh(None, root)} == told["nodes"]
    for name, body in told["nodes"].items():
        assert spell(trie.decode(bytes.fromhex(body)).digest) == name
    for body in told["malformed"]:
        with pytest.raises(ValueError):
            trie.decode(bytes.fromhex(body))


@pytest.mark.parametrize("reader", vectors("proofs")["readers"], ids=lambda reader: ",".join(reader["view"]))
def test_proofs(reader: Any) -> None:
    view = names.view(reader["view"])
    held: trie.Node | None = None
    for number, step in enumerate(reader["steps"]):
        for lie in reader["lies"] if number == 1 else ():
            with pytest.raises(BadProof):
                advanced(held, view, lie, step["root"])
        held = advanced(held, view, step, step["root"])
        visible = {name: spell(entry) for name, entry in proof.visible(held, view)}
        assert digest("document", canonical(visible)) == step["visible"]
        assert proof.view_digest(held, view) == step["view_digest"]


def advanced(held: trie.Node | None, view: names.View, step: Any, root: str) -> trie.Node:
    told = proof.from_text(msgspec.convert(step["proof"], frames.ProofText))
    return proof.advance(held, view, raw(step["inside"]), told, unspell(root))


def test_histories() -> None:
    told = vectors("history")
    ids = [unspell(digest("version", str(number).encode())) for number in range(1, told["ids"] + 1)]
    past = history.History(ids)
    for size, root in told["roots"].items():
        assert spell(past.root(int(size))) == root
    for case in told["paths"]:
        path, size = [unspell(each) for each in case["path"]], case["size"]
        assert past.path(case["number"], size) == path
        for number in range(size + 2):
            claimed = ids[case["number"] - 1]
            assert history.verify(claimed, number, size, path, past.root(size)) == (number == case["number"])


def test_histories_of_certificate_transparency() -> None:
    told = vectors("history")["reference"]
    past = history.History(bytes.fromhex(each) for each in told["data"])
    for size, root in told["roots"].items():
        assert past.root(int(size)).hex() == root


def test_edits() -> None:
    told = vectors("textedit")
    old = told["old"].encode()
    for case in told["cases"]:
        assert digest("document", textedit.splice(old, case["edits"])) == case["new"]
    for edits in told["refused"]:
        with pytest.raises(ValueError, match="edits"):
            textedit.splice(old, edits)


def contents() -> list[dict[str, delta.Entry]]:
    return [
        {name: delta.Entry(leaf, document.encode()) for name, (leaf, document) in each["configs"].items()}
        for each in vectors("deltas")["contents"]
    ]


def test_deltas() -> None:
    told, known = vectors("deltas"), contents()
    for case in told["deltas"]:
        old = {} if case["from"] is None else known[case["from"]]
        changes = msgspec.convert(case["changes"], list[frames.Changed])
        after = delta.apply(old, {each.name: delta.from_wire(each, old.get(each.name)) for each in changes})
        assert after == known[case["to"]]
        root = trie.update(trie.EMPTY, {name: entry.digest for name, entry in after.items()})
        assert spell(root.digest) == told["contents"][case["to"]]["root"]


def test_changes_that_do_not_fit() -> None:
    known = contents()
    for case in vectors("deltas")["refused"]:
        changed = msgspec.convert(case["change"], frames.Changed)
        with pytest.raises(BadDigest):
            delta.from_wire(changed, known[case["from"]].get(changed.name))


# --- signatures, trust -----------------------------------------------------------------------------------------------------------------------


def public_keys() -> dict[str, bytes]:
    root = parse(vectors("replica")["root"]["payload"])
    assert isinstance(root, dict)
    return {keyid: base64.b64decode(text) for keyid, text in root["keys"].items()}  # type: ignore[union-attr,arg-type]


def test_signatures() -> None:
    told, keys = vectors("signatures"), public_keys()
    assert dsse.pae(told["pae"]["type"], told["pae"]["payload"].encode()).hex() == told["pae"]["hex"]
    for kind, case, record in ((VERSION_TYPE, told["version"], Version), (HEAD_TYPE, told["head"], Head)):
        payload = dsse.verify(signed(case["signed"]), kind, keys)
        assert payload == case["signed"]["payload"].encode()
        assert record.read(payload).text() == payload
        assert dsse.from_envelope(case["envelope"]) == (kind, signed(case["signed"]))
    assert Version.id_of(told["version"]["signed"]["payload"]) == told["version"]["id"]
    head = Head.read(told["head"]["signed"]["payload"])
    assert msgspec.to_builtins(rollout.desired_version(head, "any")) == told["rollout"]


def test_heads_that_are_refused() -> None:
    told, replica = vectors("signatures"), vectors("replica")
    trust = Trust.from_root(signed(replica["root"]), replica["anchor"])
    trust.verify_head(signed(told["head"]["signed"]))
    for why, head in told["bad_heads"].items():
        with pytest.raises(BadSignature):
            pytest.fail(f"{why}: {trust.verify_head(signed(head))}")


def test_first_roots() -> None:
    told = vectors("trust")
    for case in told["first"]:
        if case["trusted"]:
            assert Trust.from_root(signed(case["signed"]), told["anchor"]).signed == signed(case["signed"])
        else:
            with pytest.raises(UntrustedRoot):
                pytest.fail(f"{case['why']}: {Trust.from_root(signed(case['signed']), told['anchor'])}")


def test_roots_that_follow_each_other() -> None:
    told = vectors("trust")
    first, *rest = told["chain"]
    trust = Trust.from_root(signed(first), told["anchor"])
    for case in told["not_next"]:
        with pytest.raises(UntrustedRoot):
            pytest.fail(f"{case['why']}: {trust.next(signed(case['signed']))}")
    for number, each in enumerate(rest, 2):
        trust = trust.next(signed(each))
        assert trust.root.number == number


# --- frames, and what a client makes of them -------------------------------------------------------------------------------------------------


def test_frames() -> None:
    told = vectors("frames")
    for side, kind in (("client", frames.FromClient), ("server", frames.FromServer)):
        for each in told[side]:
            frame = msgspec.json.decode(json.dumps({**each, "unknown": {"member": 1}}), type=kind)
            assert json.loads(msgspec.json.encode(frame)) == each
        types = {each["type"] for each in told[side]}
        assert types == {each.__struct_config__.tag for each in kind.__args__}
    for each in told["malformed"]:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(json.dumps(each), type=frames.FromClient)


def test_cursors() -> None:
    told = vectors("frames")["cursors"]
    for case in told["valid"]:
        assert str(msgspec.convert(case["cursor"], Cursor)) == case["text"]
        assert Cursor.parse(case["text"]) == msgspec.convert(case["cursor"], Cursor)
    for text in told["invalid"]:
        with pytest.raises(ValueError):
            Cursor.parse(text)


REPLICA = vectors("replica")


def frame_of(index: int) -> StateFrame | frames.Current | frames.HeadFrame:
    told = REPLICA["frames"][index]
    told = {**told, **{name: REPLICA["signed"][told[name]] for name in ("head", "version") if name in told}}
    if told.get("recovery"):
        told["recovery"] = {**told["recovery"], "version": REPLICA["signed"][told["recovery"]["version"]]}
    frame: StateFrame | frames.Current | frames.HeadFrame = msgspec.convert(told, frames.FromServer)
    return frame


@pytest.mark.parametrize("story", REPLICA["stories"], ids=lambda story: story["why"])
def test_what_a_client_makes_of_a_server(story: Any) -> None:
    trust = Trust.from_root(signed(REPLICA["root"]), REPLICA["anchor"])
    client = Replica(trust, REPLICA["namespace"], REPLICA["environment"], story["view"])
    for step in story["steps"]:
        before = (client.cursor, client.head, dict(client.texts))
        frame = frame_of(step["frame"])
        match step["outcome"]:
            case "applied":
                candidate = client.consider(frame, REPLICA["now_us"])
                assert candidate is not None
                assert (candidate.changed, candidate.restarted) == (set(step["changed"]), step.get("restarted", False))
                client.adopt(candidate)
                assert msgspec.to_builtins(client.cursor) == step["cursor"]
                assert client.view_digest == step["view_digest"]
                assert {name: text.decode() for name, text in client.texts.items()} == step["texts"]
            case "renewed":
                candidate = client.consider(frame, REPLICA["now_us"])
                assert candidate is not None
                assert not candidate.changed
                client.adopt(candidate)
                assert (client.cursor, dict(client.texts)) == (before[0], before[2])
                assert client.head != before[1]
            case "nothing":
                assert client.consider(frame, REPLICA["now_us"]) is None
            case code:
                with pytest.raises(Refused) as refused:
                    client.consider(frame, REPLICA["now_us"])
                assert (refused.value.code, refused.value.alarm) == (code, step["alarm"])
        if step["outcome"] not in ("applied", "renewed"):
            assert (client.cursor, client.head, dict(client.texts)) == before
