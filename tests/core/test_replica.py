"""Parts of the client's rules that stories on the wire do not show: what is stored, what is adopted, how parts are joined.

What a server may say, and what is made of it, stands in `contracts/vectors/replica.json`.
"""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from contracts.authority import Authority
from contracts.stories import NOW_US, grown

from heliograph.core import frames
from heliograph.core.errors import BadProof, BadSignature, Corrupt, Forked, Refused, RolledBack
from heliograph.core.replica import STORED, Assembler, Replica
from heliograph.core.times import to_us

replace = msgspec.structs.replace
VIEWS = [("",), ("checkout/",), ("checkout/limits", "mail"), ("nowhere/",)]


@pytest.fixture
def shop() -> Authority:
    return grown()


def client_of(shop: Authority, view=("",), *frames_) -> Replica:
    client = Replica(shop.trust, shop.namespace, shop.environment, view)
    for frame in frames_:
        client.adopt(client.consider(frame, NOW_US))
    return client


def stored_with(body: bytes) -> bytes:
    """A copy with a right first line, by someone who can write to the disk."""
    return STORED + b" sha256:" + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_nothing_is_held_at_first(shop):
    client = client_of(shop)
    assert (client.cursor, client.head, dict(client.texts), client.configs) == (None, None, {}, {})
    assert client.stale(0)
    with pytest.raises(ValueError, match="nothing is held"):
        client.stored()


def test_configs_are_values_of_their_own(shop):
    client = client_of(shop, ("",), shop.snapshot())
    client.configs["checkout/limits"]["max_items"] = 666
    assert client.configs["checkout/limits"] == {"max_items": 2}
    assert client.texts["checkout/limits"] == b'{"max_items":2}'


def test_an_expired_head_is_stale_and_still_serves(shop):
    client = client_of(shop, ("",), shop.snapshot())
    expires = to_us(client.head.expires_at)
    assert [client.stale(now) for now in (expires - 1, expires)] == [False, True]
    assert client.consider(shop.snapshot(to=shop.latest), expires + 1) is None
    late = Replica(shop.trust, shop.namespace, shop.environment, [""])
    late.adopt(late.consider(shop.snapshot(), expires + 1))
    assert late.configs["search"] == {"pages": 10}
    assert late.stale(expires + 1)


def test_considering_changes_nothing_until_it_is_adopted(shop):
    client = client_of(shop, ("",), shop.snapshot(to=shop.at(4)))
    candidate = client.consider(shop.delta(shop.at(4)), NOW_US)
    assert candidate.cursor == shop.latest.cursor
    assert set(candidate.texts) == {"checkout/limits", "checkout/cart", "search"}
    assert client.cursor == shop.at(4).cursor
    client.adopt(candidate)
    assert client.cursor == shop.latest.cursor


def test_a_candidate_of_a_state_that_is_gone_is_not_adopted(shop):
    client = client_of(shop, ("",), shop.snapshot(to=shop.at(2)))
    early = client.consider(shop.delta(shop.at(2), to=shop.at(3)), NOW_US)
    late = client.consider(shop.delta(shop.at(2)), NOW_US)
    client.adopt(late)
    for stale in (early, late):
        with pytest.raises(ValueError, match="gone"):
            client.adopt(stale)
    assert client.cursor == shop.latest.cursor


def test_a_trust_root_that_was_renewed_counts_for_the_next_statement(shop):
    client = client_of(shop, ("",), shop.snapshot(to=shop.at(4)))
    client.trust = Authority(seed=50).trust
    with pytest.raises(BadSignature):
        client.consider(shop.delta(shop.at(4)), NOW_US)
    client.trust = shop.trust
    assert client.consider(shop.delta(shop.at(4)), NOW_US)


# --- on disk -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=",".join)
def test_a_stored_state_comes_back_and_goes_on(shop, view):
    client = client_of(shop, view, shop.snapshot(view, to=shop.at(3), head=shop.head(shop.at(3), safe=2)))
    again = Replica.load(client.stored(), shop.trust, shop.namespace, shop.environment, view)
    assert (again.cursor, again.head, again.view_digest) == (client.cursor, client.head, client.view_digest)
    assert dict(again.texts) == dict(client.texts)
    assert again.stored() == client.stored()
    again.adopt(again.consider(shop.delta(shop.at(3), view), NOW_US))
    assert again.view_digest == client_of(shop, view, shop.snapshot(view)).view_digest
    with pytest.raises(RolledBack):
        again.consider(shop.snapshot(view, to=shop.at(4)), NOW_US)


def test_what_was_once_safe_is_remembered_on_disk(shop):
    lost = shop.fork()
    opened = lost.recover(4)
    recovered = lost.snapshot(recovery=lost.recovery(opened))
    client = client_of(shop, ("",), shop.snapshot(head=shop.head(safe=4)))
    lower = frames.Current(subscription=1, head=shop.head(safe=1, later_us=1_000_000))
    client.adopt(client.consider(lower, NOW_US))
    for each in (client, Replica.load(client.stored(), shop.trust, shop.namespace, shop.environment, [""])):
        assert each.head.safe == 1
        with pytest.raises(Forked, match="safe"):
            each.consider(recovered, NOW_US)


def test_a_damaged_copy_is_not_used(shop):
    stored = client_of(shop, ("",), shop.snapshot()).stored()
    damaged = [b"", b"\n", stored[:-1], stored + b" ", stored[1:], stored.replace(b"replica/1", b"replica/2")]
    damaged += [stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :] for at in range(0, len(stored), 97)]
    for each in [*damaged, stored_with(b""), stored_with(b"{}"), stored_with(b"[1]")]:
        with pytest.raises(Corrupt):
            Replica.load(each, shop.trust, shop.namespace, shop.environment, [""])


def test_a_copy_of_another_view_environment_or_signer_is_not_used(shop):
    stored = client_of(shop, ("",), shop.snapshot()).stored()
    with pytest.raises(Corrupt, match="view"):
        Replica.load(stored, shop.trust, "shop", "production", ["checkout/"])
    with pytest.raises(BadSignature):
        Replica.load(stored, shop.trust, "shop", "staging", [""])
    with pytest.raises(BadSignature):
        Replica.load(stored, Authority(seed=50).trust, "shop", "production", [""])


@pytest.mark.parametrize("lie", ["text", "leaf", "withheld", "safe below", "safe above", "another head", "proof"])
def test_a_forged_copy_is_verified_like_a_server(shop, lie):
    """Whoever writes to the disk can make the first line right, and nothing else."""
    view = ("checkout/",)
    _, _, body = client_of(shop, view, shop.snapshot(view)).stored().partition(b"\n")
    said = msgspec.json.decode(body)
    snapshot, change = said["snapshot"], said["snapshot"]["changes"][0]
    match lie:
        case "text":
            change["document"] = '{"max_items":666}'
        case "leaf":
            change["leaf"] = shop.at(3).content["search"].leaf
        case "withheld":
            snapshot["changes"].pop()
        case "safe below":
            said["safe"] -= 1
        case "safe above":
            said["safe"] += 1
        case "another head":
            snapshot["head"] = msgspec.to_builtins(shop.head(shop.at(4)))
        case "proof":
            snapshot["proof"] = {"entries": {}, "stubs": {"#": shop.latest.version.root}}
    with pytest.raises((Corrupt, Refused)):
        Replica.load(stored_with(msgspec.json.encode(said)), shop.trust, shop.namespace, shop.environment, view)


# --- parts -------------------------------------------------------------------------------------------------------------------------------


def in_parts(frame, count):
    each = [replace(frame, changes=(), proof=None, part=number, parts=count) for number in range(1, count + 1)]
    for number, change in enumerate(frame.changes):
        at = number * count // len(frame.changes)
        each[at] = replace(each[at], changes=(*each[at].changes, change))
    each[-1] = replace(each[-1], proof=frame.proof)
    return each


def test_parts_make_the_frame_with_the_last(shop):
    whole, assembler = shop.snapshot(), Assembler()
    assert assembler.add(whole) == whole
    *parts, last = in_parts(whole, 3)
    assert [assembler.add(each) for each in parts] == [None, None]
    assert assembler.add(last) == whole


def test_a_new_first_part_begins_anew(shop):
    whole, assembler = shop.snapshot(), Assembler()
    old = in_parts(shop.snapshot(to=shop.at(4)), 3)
    assembler.add(old[0])
    assembler.add(old[1])
    assert [assembler.add(each) for each in in_parts(whole, 2)] == [None, whole]
    assembler.add(old[0])
    assert assembler.add(whole) == whole


def test_parts_that_do_not_follow_each_other(shop):
    one, two, three = in_parts(shop.snapshot(), 3)
    other = in_parts(shop.snapshot(to=shop.at(4)), 3)[1]
    delta = replace(shop.delta(shop.at(1)), part=2, parts=3)
    for wrong in (three, other, delta, replace(two, parts=4), replace(two, part=0), replace(two, part=-1)):
        assembler = Assembler()
        assembler.add(one)
        with pytest.raises(BadProof, match="missing"):
            assembler.add(wrong)
        with pytest.raises(BadProof, match="missing"):
            assembler.add(two)
        assert [assembler.add(each) for each in (one, two)] == [None, None]
        assert assembler.add(three) == shop.snapshot()


def test_parts_never_hold_more_than_an_environment_may_have(shop):
    one, two, _ = in_parts(shop.snapshot(), 3)
    assembler = Assembler(limit=2)
    with pytest.raises(BadProof, match="more configs"):
        assembler.add(one)
    assembler = Assembler(limit=3)
    assembler.add(one)
    with pytest.raises(BadProof, match="more configs"):
        assembler.add(replace(two, changes=two.changes * 3))
