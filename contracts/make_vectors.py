"""Writes `contracts/vectors/*.json`: what every implementation of Heliograph's formats must agree on, good and bad.

    python -m contracts.make_vectors

Each file holds one object; its ``about`` is the docstring of the function that makes it. Everything is fixed (keys, times, names), so the files
change only when a format does. The private keys in them are for tests and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from contracts.authority import Authority, Key, sign_root, statement
from contracts.stories import NOW_US, Story, every_story, grown, plain, replace

from heliograph.core import delta, dsse, events, frames, history, proof, rollout, textedit, times, token, trie
from heliograph.core.canonical import Json, canonical, canonical_text, parse
from heliograph.core.delta import Content, Entry
from heliograph.core.digest import digest, spell, unspell
from heliograph.core.errors import InvalidDocument, TooLarge
from heliograph.core.names import view as view_of
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Leaf, Signed
from heliograph.core.replica import Statement

FOLDER = Path(__file__).parent / "vectors"
Vectors = dict[str, Any]


def hashed(text: object) -> bytes:
    return hashlib.sha256(str(text).encode()).digest()


def spelled(digests: Mapping[str, bytes | None]) -> dict[str, str | None]:
    return {name: None if raw is None else spell(raw) for name, raw in sorted(digests.items())}


# --- names, times, tokens, shards ------------------------------------------------------------------------------------------------

LONGEST = "a" * 63
BAD_SEGMENTS = ["", "A", "-a", ".a", "_a", "a b", "a\n", "ä", "a" * 64, "a/b", "a:b", "a\u0660"]


def names() -> Vectors:
    """segment: the grammar of namespaces and environments. config, selector: valid and invalid names. views: selectors as given
    -> as kept (sorted by bytes, without those inside another).
    """
    long_name = "/".join(["a" * 49] * 4) + "b"
    return {
        "segment": {"valid": ["a", "0", "a.b_c-d", LONGEST], "invalid": BAD_SEGMENTS},
        "config": {
            "valid": ["limits", "checkout/limits", "a/b/c/d/e/f/g/h", long_name],
            "invalid": [
                "/a",
                "a/",
                "a//b",
                "a/B",
                "a/b/c/d/e/f/g/h/i",
                long_name + "b",
                *(each for each in BAD_SEGMENTS if each != "a/b"),
            ],
        },
        "selector": {
            "valid": ["", "limits", "checkout/", "checkout/eu/", "a/b/c/d/e/f/g/"],
            "invalid": ["/", "a//", "a/b/c/d/e/f/g/h/", "*", "checkout/*"],
        },
        "views": [
            {"given": ["b", "a", "b"], "kept": ["a", "b"]},
            {"given": ["checkout/limits", "checkout/", "checkout/eu/x", "checkout-2"], "kept": ["checkout-2", "checkout/"]},
            {"given": ["a", ""], "kept": [""]},
            {"given": ["a/", "a"], "kept": ["a", "a/"]},
        ],
    }


def time_texts() -> Vectors:
    """us: microseconds since the Unix epoch; text: RFC 3339 in UTC, milliseconds, 24 characters. cut: what is below a
    millisecond is dropped.
    """
    moments = [0, 1_785_587_696_789_000, 951_782_400_000_000, -1_000, 253_402_300_799_999_000]
    return {
        "same": [{"us": us, "text": times.to_text(us)} for us in moments],
        "cut": [{"us": 1_785_587_696_789_999, "text": "2026-08-01T12:34:56.789Z"}],
        "invalid": [
            "2026-08-01T12:34:56Z",
            "2026-08-01T12:34:56.7890Z",
            "2026-08-01T12:34:56.789+00:00",
            "2026-08-01 12:34:56.789Z",
            "2026-02-30T12:34:56.789Z",
            "2026-08-01T12:34:60.000Z",
            "2026-08-01T12:34:56.789Z\n",
            "٢٠٢٦-08-01T12:34:56.789Z",
        ],
    }


def tokens() -> Vectors:
    """hel_<kind>_<30 base62 secret>[<43 base62 anchor>]<6 base62 CRC32 of all before>; digits 0-9 A-Z a-z. Only client and edge
    tokens have an anchor: the digest of the root key. stored: SHA-256 of the token, hex.
    """
    secret = token.ALPHABET[: token.SECRET_LENGTH]
    anchor = Authority().anchor
    low, high = "sha256:" + "0" * 64, "sha256:" + "f" * 64
    made = [(kind, None) for kind in token.KINDS if kind not in token.ANCHORED]
    made += [("edge", anchor), *(("client", each) for each in (anchor, low, high))]
    cases = [{"kind": kind, "anchor": each, "token": token.mint(kind, secret, each)} for kind, each in made]  # type: ignore[arg-type]
    admin, client = cases[0]["token"], cases[-1]["token"]
    assert admin
    assert client
    invalid = ["", admin[:-1], admin + "0", admin[:-1] + "!", admin.replace("admin", "root"), admin.replace("admin", "author")]
    invalid += [
        admin[:20] + chr(ord(admin[20]) + 1) + admin[21:],
        client[:-6],
        client.replace("client", "author"),
        admin + "\n",
    ]
    invalid += [
        checked(f"hel_client_{secret}"),
        checked(f"hel_admin_{secret}{'0' * 43}"),
        checked(f"hel_client_{secret}{'z' * 43}"),
    ]
    return {
        "secret": secret,
        "valid": [{**case, "stored": token.sha256(case["token"] or "").hex()} for case in cases],
        "invalid": invalid,
    }


def checked(head: str) -> str:
    """With a right checksum, whatever stands before it."""
    return head + token._checksum(head)  # noqa: SLF001  # to be refused for another reason than the checksum


def shards() -> Vectors:
    """shard_of(parts): the first 8 bytes (big-endian) of SHA-256 over the parts joined by '/', modulo shards."""
    keys = [["shop", "production"], ["shop", "staging"], ["a", "b"], ["018f2b9e-0000-7000-8000-000000000001"], ["käse"]]
    return {
        "cases": [{"parts": key, "shards": n, "shard": events.shard_of(*key, shards=n)} for key in keys for n in (1, 16, 64)],
    }


# --- canonical text and digests ------------------------------------------------------------------------------------------------------

TEXTS = [
    "null",
    "true",
    '""',
    "[]",
    "{}",
    ' { "b" : 1 , "a" : [ 1.0, -0, -0.0, 0.1e1, 100, 1e2 ] } ',
    '{"\\u00e9":1,"e\\u0301":2}',
    '{"\\ufb33":1,"\\ud83d\\ude00":2,"z":3}',
    '{"1":1,"10":2,"2":3,"":4}',
    '"\\u0000\\u001f\\u007f\\u2028\\/\\"\\\\\\b\\f\\n\\r\\t"',
    '"\\ud83e\\uddc0 K\\u00e4se \u20ac"',
    "[0.1,1e-7,0.000001,0.0000001,1.5e300,1e21,1e22,5e-324,1.7976931348623157e308,333333333.33333329,1e-400]",
    "[9007199254740991,-9007199254740991,9007199254740991.0,0.3,4.35,123456789012345.6]",
    '{"__proto__":1,"constructor":2,"toJSON":3}',
]
BAD_TEXTS: list[tuple[str, str, list[str]]] = [
    (
        "syntax",
        "",
        ["", " ", "{", "[1,]", "{a:1}", "{'a':1}", "1 2", "01", "+1", ".5", "1.", '"\t"', '"\\x"', "nul", "[1]]", "// 1\n1"],
    ),
    (
        "number",
        "/0",
        ["[9007199254740992]", "[-9007199254740992]", "[1e20]", "[1e400]", "[-1e400]", "[NaN]", "[Infinity]", "[-Infinity]"],
    ),
    ("number", "/a/1", ['{"a":[0,9007199254740993.0]}', '{"a":[0,123456789012345678901234567890]}']),
    ("duplicate-key", "", ['{"a":1,"a":1}', '{"a":1,"b":2,"\\u0061":3}']),
    ("duplicate-key", "/a~1b/0", ['{"a/b":[{"x":1,"x":2}]}']),
    ("unicode", "/s", ['{"s":"\\ud800"}', '{"s":"\\udc00\\ud800"}', '{"s":{"\\udfff":1}}']),
]


def canonical_texts() -> Vectors:
    """texts: text -> RFC 8785 text of it. refused: text (or base64 of bytes) -> the rule it breaks and where. built:
    prefix*times + middle + suffix*times, in quotes if quoted; limits are 64 levels and 1,048,576 bytes.
    """
    nested = [{"prefix": "[", "times": n, "middle": "", "suffix": "]"} for n in (64, 65, 100_000)]
    sizes = [{"prefix": "a", "times": n, "middle": "", "suffix": ""} for n in (1024 * 1024 - 2, 1024 * 1024 - 1)]
    return {
        "texts": [{"text": text, "canonical": canonical_text(text).decode()} for text in TEXTS],
        "refused": [{"text": text, "rule": rule, "pointer": where} for rule, where, texts in BAD_TEXTS for text in texts]
        + [
            {"base64": base64.b64encode(data).decode(), "rule": "encoding", "pointer": ""}
            for data in (b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b"\xef\xbb\xbf1", "1".encode("utf-16"))
        ],
        "built": [{**each, "quoted": False, "outcome": outcome(built(each))} for each in nested]
        + [{**each, "quoted": True, "outcome": outcome('"' + built(each) + '"')} for each in sizes],
    }


def built(parts: Mapping[str, Any]) -> str:
    return str(parts["prefix"] * parts["times"] + parts["middle"] + parts["suffix"] * parts["times"])


def outcome(text: str) -> str:
    try:
        parse(text)
    except InvalidDocument as error:
        return error.faults[0].rule
    except TooLarge as error:
        return error.code
    return "accepted"


def digests() -> Vectors:
    """digest(kind, bytes) = SHA-256('heliograph/v1/' + kind + LF + bytes), spelled sha256:<64 lower-case hex>."""
    document, schema = canonical_text('{"limit":10,"name":"K\\u00e4se \\ud83e\\uddc0"}'), canonical_text('{"type":"object"}')
    leaf = Leaf(document=digest("document", document))
    full = Leaf(document=leaf.document, schema=digest("schema", schema))
    version = Authority().latest.signed.payload.encode()
    view = canonical([["checkout/", spell(trie.EMPTY.digest)], ["limits", None]])
    texts: list[tuple[Any, bytes]] = [
        ("document", document),
        ("schema", schema),
        ("message", "e\u0301 is not normalised\n".encode()),
        ("leaf", leaf.text()),
        ("leaf", full.text()),
        ("version", version),
        ("view", view),
        ("document", b""),
    ]
    public = Authority().root_key.public
    return {
        "texts": [{"kind": kind, "text": data.decode(), "digest": digest(kind, data)} for kind, data in texts],
        "bytes": [
            {"kind": "node", "hex": trie.EMPTY.encode().hex(), "digest": spell(trie.EMPTY.digest)},
            {"kind": "key", "hex": public.hex(), "digest": digest("key", public), "keyid": dsse.key_id(public)},
        ],
        "not_digests": [
            "",
            "sha256:",
            "sha256:" + "A" * 64,
            "sha256:" + "a" * 63,
            "sha512:" + "a" * 64,
            "a" * 64,
            "sha256:" + "a" * 64 + "\n",
        ],
    }


# --- tries and proofs --------------------------------------------------------------------------------------------------------------------


def content_of(count: int, folders: int) -> dict[str, bytes]:
    def folder(i: int) -> str:
        return "" if not folders else f"team-{i % folders}/" if i % 3 else "deep/er/"

    return {f"{folder(i)}c{i}": hashed(f"d{i}") for i in range(count)}


def tries() -> Vectors:
    """contents: config -> leaf digest, and the root. nodes: the stored bytes (hex) of every node of the last one, by digest.
    malformed: bytes that no node has.
    """
    shapes = [(0, 0), (1, 0), (32, 0), (33, 0), (200, 0), (110, 2)]
    whole = [content_of(count, folders) for count, folders in shapes]
    root = trie.update(trie.EMPTY, whole[-1])
    nodes = sorted(node.encode() for node in trie.fresh(None, root))
    good = next(body for body in nodes if body[:1] == b"\x00")
    cut, long, kind = good[:-1], good + b"\x00", b"\x02" + good[1:]
    unsorted = b"\x00\x02" + b"".join(bytes([1]) + name + bytes(32) for name in (b"b", b"a"))
    bad_name, empty_branch = b"\x00\x01\x01A" + bytes(32), b"\x01\x00\x00"
    return {
        "contents": [{"content": spelled(each), "root": spell(trie.update(trie.EMPTY, each).digest)} for each in whole],
        "nodes": {digest("node", body): body.hex() for body in nodes},
        "malformed": [body.hex() for body in (b"", b"\x00", cut, long, kind, unsorted, bad_name, empty_branch)],
    }


VIEWS = [["c7", "absent"], ["team-1/", "deep/er/c0", "nowhere/at/all"], ["deep/", "c1"], [""]]


def proofs() -> Vectors:
    """A reader with a view follows versions: inside (the view's changes) and proof lead from the last trie to root; visible is
    then what it sees. In lies, the same message with one thing changed must be refused for the same root, and nothing must
    change.
    """
    return {
        "readers": [follow(content_of(120, 2), view) for view in VIEWS] + [follow(content_of(90, 0), VIEWS[0])],
    }


def follow(content: dict[str, bytes], view: list[str]) -> Vectors:
    rnd = random.Random(7)  # noqa: S311  # the same every time
    selected = view_of(view)
    roots: list[trie.Node] = [trie.update(trie.EMPTY, content)]
    for step in range(1, 5):
        edits: dict[str, bytes | None] = {name: hashed((step, name)) for name in rnd.sample(sorted(content), 2)}
        edits |= {f"added-{step}": hashed(step), "team-1/added": hashed((step, "in a folder"))}
        if step == 3:
            edits = {name: None for name in sorted(content) if rnd.random() < 0.9}
        if step == 4:
            edits = {name: content[name] for name in sorted(content) if rnd.random() < 0.5}
        roots.append(trie.update(roots[-1], edits))
    steps = [step_of(old, new, selected) for old, new in zip([None, *roots], roots, strict=False)]
    return {"view": list(selected), "steps": steps, "lies": list(lies(steps[1]))}


def step_of(old: trie.Node | None, new: trie.Node, view: tuple[str, ...]) -> Vectors:
    return {
        "root": spell(new.digest),
        "inside": spelled(proof.changes(old, new, view)),
        "proof": plain(proof.to_text(proof.prove(old, new, view))),
        "visible": digest("document", canonical(plain(spelled(dict(proof.visible(new, view)))))),
        "view_digest": proof.view_digest(new, view),
    }


def lies(good: Vectors) -> Iterator[Vectors]:
    inside, shown = good["inside"], good["proof"]
    yield {"why": "the old content for the new root", "inside": {}, "proof": {"entries": {}, "stubs": {}}}
    yield {"why": "everything hidden", "inside": {}, "proof": {"entries": {}, "stubs": {"#": good["root"]}}}
    yield {"why": "too deep", "inside": inside, "proof": {**shown, "stubs": {**shown["stubs"], "#" + "0" * 17: good["root"]}}}
    for name in inside:
        yield {"why": f"{name} withheld", "inside": {n: e for n, e in inside.items() if n != name}, "proof": shown}
        yield {"why": f"{name} altered", "inside": inside | {name: spell(hashed("bad"))}, "proof": shown}
        yield {"why": f"{name} told twice", "inside": inside, "proof": {**shown, "entries": shown["entries"] | {name: None}}}
    for part in ("entries", "stubs"):
        for key in shown[part]:
            less = {**shown, part: {k: v for k, v in shown[part].items() if k != key}}
            yield {"why": f"{part} {key} left out", "inside": inside, "proof": less}


# --- history, edits, deltas ----------------------------------------------------------------------------------------------------------


def histories() -> Vectors:
    """RFC 6962 over raw version ids: version n is leaf n-1. ids: n -> digest('version', decimal n). roots: size -> root. paths:
    version number in the tree of size; each must hold for its id and for no other number. reference: leaf data (hex) and
    roots of Certificate Transparency.
    """
    ids = [digest("version", str(n).encode()) for n in range(1, 98)]
    past = history.History(unspell(each) for each in ids)
    places = [(1, 1), (1, 2), (2, 2), (3, 7), (41, 96), (64, 96), (65, 96), (96, 96), (97, 97)]
    return {
        "ids": len(ids),
        "roots": {str(size): spell(past.root(size)) for size in (0, 1, 2, 3, 4, 7, 8, 63, 64, 96, 97)},
        "paths": [{"number": n, "size": size, "path": [spell(each) for each in past.path(n, size)]} for n, size in places],
        "reference": {
            "data": ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"],
            "roots": {
                "1": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "2": "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
                "8": "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
            },
        },
    }


def long_document(**more: Json) -> Json:
    return {**{f"k{i:03d}": {"name": "K\u00e4se \U0001f9c0 \u20ac", "on": True, "n": i} for i in range(40)}, **more}


def edits() -> Vectors:
    """edits: [start, end, text] in UTF-8 bytes of old, ascending, not overlapping, between characters; new is what they make of
    it. Other edits may lead there, too. refused: edits of old that no reader applies.
    """
    old = canonical(long_document())
    news = [
        canonical(long_document(**more))
        for more in ({"k003": {"n": 1000}}, {"k003": 7, "k030": "\U0001f9c1"}, {"a": 0, "z": "\u00e9"}, {})
    ]
    return {
        "old": old.decode(),
        "cases": [{"edits": plain(textedit.edit(old, new)), "new": digest("document", new)} for new in news],
        "refused": [
            [[5, 4, ""]],
            [[-1, 2, ""]],
            [[0, len(old) + 1, ""]],
            [[10, 20, ""], [19, 21, ""]],
            [[10, 20, ""], [5, 6, ""]],
        ],
    }


def deltas() -> Vectors:
    """contents: config -> [leaf text, document text], with root. deltas: changes that turn contents[from] (null: nothing) into
    contents[to]. refused: changes that do not fit contents[from].
    """
    small: dict[str, Json] = {"limits": {"max": 1}, "checkout/cart": {"currency": "EUR"}, "big": long_document()}
    steps: list[dict[str, Json]] = [
        small,
        {**small, "limits": {"max": 2}},
        {**small, "big": long_document(k003=7)},
        {"big": "now it is small", "checkout/eu/vat": 19},
        {},
    ]
    contents = [{name: delta.entry_of(canonical(value)) for name, value in each.items()} for each in steps]
    schema = digest("schema", b"{}")
    contents.append({name: delta.entry_of(canonical(value), schema) for name, value in small.items()})
    pairs = [(a, b) for a in range(len(contents)) for b in range(len(contents)) if a != b]
    return {
        "contents": [{"root": root_of(each), "configs": texts_of(each)} for each in contents],
        "deltas": [{"from": a, "to": b, "changes": told(contents[a], contents[b])} for a, b in pairs]
        + [{"from": None, "to": b, "changes": told({}, each)} for b, each in enumerate(contents)],
        "refused": list(bad_changes(contents[0], contents[2])),
    }


def root_of(content: Content) -> str:
    return spell(trie.update(trie.EMPTY, {name: entry.digest for name, entry in content.items()}).digest)


def texts_of(content: Content) -> dict[str, list[str]]:
    return {name: [entry.leaf, entry.document.decode()] for name, entry in sorted(content.items())}


def told(old: Content, new: Content) -> list[Any]:
    return [plain(delta.to_wire(name, old.get(name), entry)) for name, entry in sorted(delta.diff(old, new).items())]


def bad_changes(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Iterator[Vectors]:
    good = delta.to_wire("big", old["big"], new["big"])
    assert isinstance(good.edits, tuple)
    start, end, text = good.edits[0]
    leaf = delta.to_wire("limits", None, old["limits"]).leaf
    cases: list[tuple[str, frames.Changed]] = [
        ("edits of another text", replace(good, name="limits")),
        ("an edit that is off by one", replace(good, edits=((start + 1, end, text),))),
        ("an edit out of range", replace(good, edits=((start, 10**9, text),))),
        ("another document", replace(good, edits=msgspec.UNSET, document="{}")),
        ("no text, and the held one is another", replace(good, edits=msgspec.UNSET)),
        ("no text, and nothing is held", frames.Changed(name="new", leaf=leaf)),
        ("a purged document", replace(good, edits=msgspec.UNSET, document='{"purged":{"at":"2026-08-01T12:34:56.000Z"}}')),
        ("not a leaf record", frames.Changed(name="limits", leaf="{}", document="{}")),
        ("a leaf with a digest that is none", frames.Changed(name="limits", leaf='{"document":"sha256:00"}', document="{}")),
    ]
    for why, changed in cases:
        yield {"why": why, "from": 0, "change": plain(changed)}


# --- signatures and trust ----------------------------------------------------------------------------------------------------------------


def signatures() -> Vectors:
    """DSSE over Ed25519. seeds: private keys (hex) by role. version, head: as in frames; envelope: the same in base64, as in
    files. bad_heads must all be refused. rollout: desired version of the head.
    """
    shop = grown()
    version, head = shop.at(5), shop.head(safe=4)
    commit_key, head_key = shop.commit_key, shop.head_key
    text = head.payload.encode()
    bad = {
        "another text": Signed(head.payload.replace('"safe":4', '"safe":5'), head.signatures),
        "another type": head_key.sign(VERSION_TYPE, text),
        "another key": commit_key.sign(HEAD_TYPE, text),
        "another key under the right key's id": Signed(
            head.payload, (replace(commit_key.sign(HEAD_TYPE, text).signatures[0], keyid=head_key.id),)
        ),
        "no signature": Signed(head.payload, ()),
        "not base64": Signed(head.payload, (replace(head.signatures[0], sig="*"),)),
        "the text alone": dsse.attach(text, [(head_key.id, bytes(64))]),
        "safe above number": head_key.sign(HEAD_TYPE, replace(shop.head_record(), safe=10**9).text()),
        "not a head": head_key.sign(HEAD_TYPE, b"{}"),
        "a version with a root that is none": head_key.sign(HEAD_TYPE, replace(shop.head_record(), root="sha256:00").text()),
        "a day that is none": head_key.sign(
            HEAD_TYPE, replace(shop.head_record(), issued_at="2026-02-30T00:00:00.000Z").text()
        ),
    }
    return {
        "seeds": {"root": shop.root_key.seed.hex(), "commit": commit_key.seed.hex(), "head": head_key.seed.hex()},
        "pae": {"type": HEAD_TYPE, "payload": "{}", "hex": dsse.pae(HEAD_TYPE, b"{}").hex()},
        "version": {
            "signed": plain(version.signed),
            "id": version.id,
            "envelope": dsse.to_envelope(version.signed, VERSION_TYPE),
        },
        "head": {"signed": plain(head), "envelope": dsse.to_envelope(head, HEAD_TYPE)},
        "bad_heads": {why: plain(signed) for why, signed in bad.items()},
        "rollout": plain(rollout.desired_version(shop.head_record(), "018f2b9e-0000-7000-8000-000000000001")),
    }


def trust() -> Vectors:
    """first: a root statement and whether the anchor (digest of one root key) makes it trusted. chain: each statement is
    accepted after the one before. not_next: refused after the first.
    """
    one, two, commit, head = Key(1), Key(9), Key(2), Key(3)
    online = {"commit": [commit], "head": [head]}
    first = statement(1, {"root": [one], **online})
    both = statement(2, {"root": [one, two], **online}, threshold=2)
    after = statement(3, {"root": [two], "commit": [Key(12)], "head": [head]})
    skipped = statement(3, {"root": [one], **online})
    signed = sign_root(first, one)
    swapped = replace(first, keys={**first.keys, commit.id: first.keys[head.id]})
    anchor = digest("key", one.public)
    return {
        "anchor": anchor,
        "first": [
            {"why": "good", "signed": plain(signed), "trusted": True},
            {"why": "signed by a key that is not the anchored one", "signed": plain(sign_root(first, two)), "trusted": False},
            {"why": "not signed", "signed": plain(replace(signed, signatures=())), "trusted": False},
            {
                "why": "altered",
                "signed": plain(replace(signed, payload=signed.payload.replace("2036", "2037"))),
                "trusted": False,
            },
            {
                "why": "does not name the anchored key",
                "signed": plain(sign_root(statement(1, {"root": [two], **online}), one, two)),
                "trusted": False,
            },
            {"why": "one signature of two", "signed": plain(sign_root(both, one)), "trusted": False},
            {"why": "two of two", "signed": plain(sign_root(both, one, two)), "trusted": True},
            {"why": "the same signature twice", "signed": plain(sign_root(both, one, one)), "trusted": False},
            {"why": "a key under another key's id", "signed": plain(sign_root(swapped, one)), "trusted": False},
            {
                "why": "a threshold of nothing",
                "signed": plain(sign_root(statement(1, {"root": [one], **online}, threshold=0), one)),
                "trusted": False,
            },
        ],
        "chain": [plain(each) for each in (signed, sign_root(both, one, two), sign_root(after, one, two))],
        "not_next": [
            {"why": "not signed by the old root", "signed": plain(sign_root(both, two))},
            {"why": "not signed by the new root", "signed": plain(sign_root(both, one))},
            {"why": "a number is left out", "signed": plain(sign_root(skipped, one))},
            {"why": "the same number", "signed": plain(signed)},
        ],
    }


# --- frames and the client's rules -----------------------------------------------------------------------------------------------------------


def frame_examples() -> Vectors:
    """One of each frame of heliograph.v1, told apart by type. Members may be missing (their default is meant) and unknown ones
    are ignored. malformed: what a server refuses from a client. cursors: their text in URLs and Last-Event-ID.
    """
    shop = grown()
    have, cursor = shop.at(2), shop.latest.cursor
    view = ("checkout/",)
    lost = shop.fork()
    opened = lost.recover(4)
    instance = "018f2b9e-0000-7000-8000-000000000001"
    subscription = frames.Subscription(id=1, namespace="shop", environment="production", view=view, have=have.cursor)
    fingerprint = frames.Fingerprint(
        sdk="python", sdk_version="0.1.0", language="python 3.11", host="web-1", labels={"zone": "a"}
    )
    client: list[Any] = [
        frames.Hello(
            instance=instance, incarnation=3, fingerprint=fingerprint, subscriptions=(subscription,), sent_at_us=NOW_US
        ),
        frames.Receipt(
            seq=1,
            subscription=1,
            epoch=1,
            number=5,
            version=cursor.version,
            state="rejected",
            reason="max_items: too small",
            applied_at_us=NOW_US,
            clock_offset_us=-250,
        ),
        frames.Heartbeat(views={"1": proof.view_digest(shop.latest.node, view)}, sent_at_us=NOW_US),
        frames.Renew(token="hel_client_…"),  # noqa: S106  # an example
        frames.Resync(subscription=1, have=have.cursor),
    ]
    limits = frames.Limits(max_frame_bytes=65536, max_subscriptions=64)
    server: list[Any] = [
        frames.Welcome(
            connection="c1",
            node="n1",
            region="local",
            received_at_us=NOW_US,
            sent_at_us=NOW_US + 90,
            heartbeat_s=20.0,
            receipt_jitter_ms=250,
            limits=limits,
        ),
        shop.snapshot(view),
        shop.delta(have, view),
        shop.delta(shop.at(4), ("search",)),
        lost.snapshot(("search",), recovery=lost.recovery(opened)),
        frames.Current(subscription=1, head=shop.head()),
        frames.HeadFrame(subscription=1, head=shop.head(later_us=300_000_000)),
        frames.ReceiptAck(seq=1),
        frames.Ping(sent_at_us=NOW_US),
        frames.HeartbeatAck(echo_us=NOW_US, received_at_us=NOW_US + 40),
        frames.Drain(within_s=30.0),
        frames.ErrorFrame(code="not-found", detail="no such environment", subscription=1),
    ]
    return {
        "client": plain(client),
        "server": plain(server),
        "malformed": [{}, {"type": "unknown"}, {"type": "receipt"}, {"type": "hello", "instance": 1}, []],
        "cursors": {
            "valid": [{"cursor": plain(cursor), "text": str(cursor)}],
            "invalid": [
                "",
                "1.5",
                f"1.-5.{cursor.version}",
                f"1.5.{cursor.version}0",
                f"1.\u0665.{cursor.version}",
                f"1. 5.{cursor.version}",
            ],
        },
    }


def replicas() -> Vectors:
    """What one client makes of what a server says, step by step: applied (state as given), renewed (the head only), nothing, or
    the code of a refusal, which changes nothing; checked in the order head, place, version, descent, content. A step's frame
    is an index into frames; in those, head and version are indices into signed.
    """
    shop, book = grown(), Book()
    stories = [book.written(story) for story in every_story()]
    return {
        "namespace": shop.namespace,
        "environment": shop.environment,
        "anchor": shop.anchor,
        "root": plain(shop.signed_root),
        "now_us": NOW_US,
        "stories": stories,
        "frames": list(book.frames.values()),
        "signed": list(book.signed.values()),
    }


class Book:
    """Stories written down with everything that is said twice written once."""

    def __init__(self) -> None:
        self.frames: dict[str, Any] = {}
        self.signed: dict[str, Any] = {}

    def written(self, story: Story) -> Vectors:
        steps = [{"frame": self._frame(frame), **found} for frame, found in story.steps]
        return {"why": story.why, "view": list(story.view), "steps": steps}

    def _frame(self, frame: Statement) -> int:
        said = plain(frame)
        for part in (said, said.get("recovery") or {}):
            part.update({name: _index(self.signed, part[name]) for name in ("head", "version") if name in part})
        return _index(self.frames, said)


def _index(seen: dict[str, Any], value: Any) -> int:
    key = json.dumps(value)
    seen.setdefault(key, value)
    return list(seen).index(key)


FILES: dict[str, Callable[[], Vectors]] = {
    "names": names,
    "times": time_texts,
    "tokens": tokens,
    "shards": shards,
    "canonical": canonical_texts,
    "digests": digests,
    "tries": tries,
    "proofs": proofs,
    "history": histories,
    "textedit": edits,
    "deltas": deltas,
    "signatures": signatures,
    "trust": trust,
    "frames": frame_examples,
    "replica": replicas,
}


def written(name: str) -> str:
    """The file's text: one line for each member of a list or object at the second level, so that a diff can be read."""
    make = FILES[name]
    return _lines({"about": " ".join((make.__doc__ or "").split()), **make()}, 2) + "\n"


def _lines(value: Any, levels: int, indent: str = "") -> str:
    inner = indent + " "
    if levels and isinstance(value, dict):
        each = [f"{inner}{json.dumps(key)}: {_lines(below, levels - 1, inner)}" for key, below in value.items()]
        return "{\n" + ",\n".join(each) + f"\n{indent}}}" if each else "{}"
    if levels and isinstance(value, list):
        each = [inner + _lines(below, levels - 1, inner) for below in value]
        return "[\n" + ",\n".join(each) + f"\n{indent}]" if each else "[]"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        text = written(name)
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}.json: {len(text.encode()) / 1024:.0f} KB")


if __name__ == "__main__":
    main()
