"""What one client must make of what a server says, lie by lie. `make_vectors` writes these stories down for every SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import msgspec
from contracts.authority import Authority

from heliograph.core import delta, frames, trie
from heliograph.core.digest import digest, spell
from heliograph.core.errors import Refused
from heliograph.core.names import view as view_of
from heliograph.core.records import HEAD_TYPE, VERSION_TYPE, Cursor, Signed, Version
from heliograph.core.replica import Replica, StateFrame, Statement

NOW_US = 1_785_587_800_000_000
replace = msgspec.structs.replace
plain: Callable[[object], Any] = msgspec.to_builtins


def grown() -> Authority:
    """Five versions: created, filled, changed, one config deleted, rolled back."""
    shop = Authority()
    shop.publish({"checkout/limits": {"max_items": 1}, "checkout/cart": {"currency": "EUR"}, "search": {"pages": 10}})
    shop.publish({"checkout/limits": {"max_items": 2}}, schemas={"checkout/limits": {"type": "object"}})
    shop.publish({"checkout/cart": None, "mail": {"from": "K\u00e4se <cheese@example.org>"}})
    shop.roll_back(3)
    return shop


class Story:
    """What a server says to one client, with what the client must make of it. A new one is written down as the client takes it."""

    def __init__(self, shop: Authority, why: str, view: tuple[str, ...] = ("",)) -> None:
        self.why, self.view = why, view_of(view)
        self.client = Replica(shop.trust, shop.namespace, shop.environment, view)
        self.steps: list[tuple[Statement, dict[str, Any]]] = []

    def says(self, frame: Statement, expected: str) -> Story:
        """``expected``: "applied", "renewed", "nothing", or the code of a refusal."""
        found = self._made_of(frame)
        assert found["outcome"] == expected, f"{self.why}: {found['outcome']} instead of {expected}"
        self.steps.append((frame, found))
        return self

    def _made_of(self, frame: Statement) -> dict[str, Any]:
        before = self.client.cursor
        try:
            candidate = self.client.consider(frame, NOW_US)
        except Refused as refusal:
            return {"outcome": refusal.code, "alarm": refusal.alarm}
        if candidate is None:
            return {"outcome": "nothing"}
        self.client.adopt(candidate)
        if candidate.cursor == before:
            return {"outcome": "renewed"}
        texts = {name: text.decode() for name, text in sorted(self.client.texts.items())}
        changed = sorted(candidate.changed)
        state = {"cursor": plain(candidate.cursor), "view_digest": self.client.view_digest, "changed": changed, "texts": texts}
        return {"outcome": "applied", **state, **({"restarted": True} if candidate.restarted else {})}


def honest_stories() -> Iterator[Story]:
    shop = grown()
    for view in ((), ("checkout/",), ("checkout/limits", "mail"), ("nowhere/",)):
        story = Story(shop, f"follows through {list(view) or 'everything'}", view or ("",))
        story.says(shop.snapshot(story.view, to=shop.at(1)), "applied")
        for old, new in pairwise(shop.commits):
            story.says(shop.delta(old, story.view, to=new), "applied")
        yield story.says(shop.delta(shop.at(4), story.view), "nothing")
    jumps = Story(shop, "jumps over versions, by delta and by snapshot")
    jumps.says(shop.snapshot(to=shop.at(1)), "applied").says(shop.delta(shop.at(1), to=shop.at(3)), "applied")
    yield jumps.says(shop.snapshot(have=shop.at(3).cursor), "applied")
    later = Story(shop, "heads of the same version: newer ones renew, older ones are old news, expired ones are only stale")
    later.says(shop.snapshot(), "applied").says(frames.HeadFrame(subscription=1, head=shop.head(later_us=1_000_000)), "renewed")
    later.says(frames.Current(subscription=1, head=shop.head()), "nothing")
    yield later.says(frames.Current(subscription=1, head=shop.head(later_us=-4_000_000_000)), "nothing")
    ahead = Story(shop, "a head of a version whose state is on its way").says(shop.snapshot(to=shop.at(4)), "applied")
    yield ahead.says(frames.HeadFrame(subscription=1, head=shop.head()), "nothing").says(shop.delta(shop.at(4)), "applied")


def head_lies() -> Iterator[Story]:
    shop, other = grown(), Authority(seed=40)
    staging = Authority(environment="staging")
    record = shop.head_record()

    def story(why: str, head: Signed, code: str) -> Story:
        told = Story(shop, why).says(shop.snapshot(to=shop.at(4)), "applied")
        return told.says(shop.delta(shop.at(4), head=head), code).says(shop.delta(shop.at(4)), "applied")

    yield story("a head of another key", other.sign_head(record), "bad-signature")
    yield story("a head signed by the commit key", shop.commit_key.sign(HEAD_TYPE, record.text()), "bad-signature")
    yield story("a head of another environment", staging.sign_head(replace(record, environment="staging")), "bad-signature")
    yield story("a head of another namespace", shop.sign_head(replace(record, namespace="bank")), "bad-signature")
    yield story(
        "a head with a root that its version has not", shop.sign_head(replace(record, root=shop.at(1).version.root)), "forked"
    )
    yield story("a head in an epoch that its version is not of", shop.sign_head(replace(record, epoch=2)), "forked")
    yield story("a head with another number than its version", shop.sign_head(replace(record, number=6)), "forked")
    yield story("a head that names another version", shop.sign_head(replace(record, version=shop.at(3).id)), "bad-digest")
    first = Story(shop, "a head alone, and nothing is held")
    yield first.says(frames.HeadFrame(subscription=1, head=shop.head()), "bad-proof").says(shop.snapshot(), "applied")
    back = Story(shop, "an older version after a newer one: by snapshot, by delta, by its head alone").says(
        shop.snapshot(), "applied"
    )
    back.says(shop.snapshot(to=shop.at(4)), "rolled-back").says(shop.delta(shop.at(3), to=shop.at(4)), "rolled-back")
    yield back.says(frames.HeadFrame(subscription=1, head=shop.head(shop.at(1))), "rolled-back")
    twin = shop.fork(4)
    twin.publish({"search": {"pages": 666}})
    fork = Story(shop, "the same number with another version").says(shop.snapshot(), "applied")
    fork.says(twin.snapshot(), "forked").says(twin.delta(twin.at(4)), "forked")
    yield fork.says(frames.Current(subscription=1, head=twin.head(later_us=1_000_000)), "forked")


def history_lies() -> Iterator[Story]:
    shop, twin = grown(), grown().fork(2)
    for pages in range(4):
        twin.publish({"search": {"pages": pages}})
    signed = shop.head_key.sign(VERSION_TYPE, shop.latest.version.text())
    story = Story(shop, "a version signed by the head key").says(shop.snapshot(to=shop.at(4)), "applied")
    yield story.says(replace(shop.delta(shop.at(4)), version=signed), "bad-signature")
    yield Story(shop, "first contact needs a signed version, too").says(
        replace(shop.snapshot(), version=signed), "bad-signature"
    )
    story = Story(shop, "the next number with another parent").says(shop.snapshot(to=shop.at(3)), "applied")
    yield story.says(twin.snapshot(to=twin.at(4)), "forked").says(shop.delta(shop.at(3), to=shop.at(4)), "applied")
    jump = shop.delta(shop.at(2))
    assert jump.ancestry
    story = Story(shop, "a jump without its path, with an empty one, a cut one, another's, and the right one")
    story.says(shop.snapshot(to=shop.at(2)), "applied")
    for path in (None, (), jump.ancestry[:-1], (*jump.ancestry, jump.ancestry[0]), twin.path(3), ("sha256:00",)):
        story.says(replace(jump, ancestry=path), "forked")
    yield story.says(jump, "applied")
    story = Story(shop, "a snapshot of a rewritten history, whose numbers go on").says(shop.snapshot(to=shop.at(3)), "applied")
    for path in (None, twin.path(3), shop.fork().path(3, shop.latest)):
        story.says(replace(twin.snapshot(), ancestry=path), "forked")
    yield story.says(shop.snapshot(have=shop.at(3).cursor), "applied")


def recoveries() -> Iterator[Story]:
    shop = grown()
    lost = shop.fork()
    opened = lost.recover(4)
    lost.publish({"search": {"pages": 11}})
    held = shop.snapshot(head=shop.head(safe=3))
    good = lost.snapshot(recovery=lost.recovery(opened))

    def story(why: str, start: frames.SnapshotFrame = held) -> Story:
        return Story(shop, why).says(start, "applied")

    told = story("a recovery that lost only what was not safe").says(good, "applied")
    yield told.says(shop.delta(shop.at(4)), "rolled-back").says(
        frames.Current(subscription=1, head=lost.head(later_us=1)), "nothing"
    )
    at_once = shop.fork()
    first = at_once.recover(5)
    yield story("the recover version itself is the head").says(at_once.snapshot(recovery=at_once.recovery(first)), "applied")
    kept = shop.fork()
    kept.recover(6)
    yield story("a recovery that lost nothing of ours needs only its parent").says(kept.delta(shop.latest), "applied")
    later = kept.fork()
    later.publish({"search": {"pages": 12}})
    yield story("or a path").says(later.snapshot(have=shop.latest.cursor), "applied")
    yield story("without its record").says(lost.snapshot(), "forked").says(good, "applied")
    yield story("drops what was said to be safe", shop.snapshot(head=shop.head(safe=4))).says(good, "forked")
    once_safe = story("drops what was once said to be safe", shop.snapshot(head=shop.head(safe=5)))
    once_safe.says(frames.Current(subscription=1, head=shop.head(safe=3, later_us=1_000_000)), "renewed")
    yield once_safe.says(good, "forked")
    yield from recoveries_that_hide(shop, held)
    flaws = {
        "is no recover version": (replace(opened.version, kind="publish"), "forked"),
        "opens no newer epoch": (replace(opened.version, epoch=1), "forked"),
        "opens an epoch above the head's": (replace(opened.version, epoch=3), "forked"),
        "is of another environment": (replace(opened.version, environment="staging"), "forked"),
        "is not in the history of the head": (replace(opened.version, author="u_other"), "forked"),
        "keeps more than we had": (replace(opened.version, number=6), "forked"),
    }
    for why, (version, code) in flaws.items():
        recovery = frames.Recovery(version=signed_version(shop, version), ancestry=lost.path(4))
        yield story(f"a record that {why}").says(replace(good, recovery=recovery), code)
    unsigned = frames.Recovery(version=shop.head_key.sign(VERSION_TYPE, opened.version.text()), ancestry=lost.path(4))
    yield story("a record signed by the head key").says(replace(good, recovery=unsigned), "bad-signature")
    other = frames.Recovery(version=opened.signed, ancestry=())
    yield story("a record without its path").says(replace(good, recovery=other), "forked")
    same_epoch = replace(shop.snapshot(), recovery=lost.recovery(opened))
    yield story("in the same epoch nothing is restarted", shop.fork(3).snapshot()).says(same_epoch, "forked")


def recoveries_that_hide(shop: Authority, held: frames.SnapshotFrame) -> Iterator[Story]:
    """Every record here is signed and in the history of the head, and is not the one that dropped what the client knew to be safe."""
    safe = shop.snapshot(head=shop.head(safe=4))
    lost = shop.fork()
    lost.recover(4)
    after = lost.publish({"search": {"pages": 11}})
    lost.publish({"search": {"pages": 12}})
    told = Story(shop, "a version after the restart in the place of its record").says(safe, "applied")
    yield told.says(lost.snapshot(recovery=lost.recovery(after)), "forked")
    again = lost.recover(6)
    lost.publish({"search": {"pages": 13}})
    told = Story(shop, "a later restart in the place of the first").says(safe, "applied")
    yield told.says(lost.snapshot(recovery=lost.recovery(again)), "forked")
    first = shop.fork()
    opened = first.recover(4)
    for pages in range(3):
        first.publish({"search": {"pages": pages}})
    second = first.fork()
    second.recover(6)
    told = Story(shop, "a restart that was followed already in the place of the next").says(held, "applied")
    told.says(first.snapshot(recovery=first.recovery(opened), head=first.head(safe=3)), "applied")
    yield told.says(second.snapshot(recovery=frames.Recovery(version=opened.signed, ancestry=second.path(4))), "forked")
    told = Story(shop, "what was safe stays so when a later version's head says less")
    told.says(shop.snapshot(to=shop.at(4), head=shop.head(shop.at(4), safe=4)), "applied")
    told.says(shop.delta(shop.at(4), head=shop.head(safe=2)), "applied")
    short = shop.fork()
    yield told.says(short.snapshot(to=(only := short.recover(4)), recovery=short.recovery(only)), "forked")


def signed_version(shop: Authority, version: Version) -> Signed:
    return shop.commit_key.sign(VERSION_TYPE, version.text())


def content_lies() -> Iterator[Story]:
    shop = grown()
    view = ("checkout/",)
    good = shop.delta(shop.at(2), view)
    whole = shop.snapshot(view, have=shop.at(2).cursor)
    limits = next(each for each in good.changes if each.name == "checkout/limits")
    other = delta.to_wire("checkout/limits", None, delta.entry_of(b'{"max_items":666}'))
    gone = frames.Changed(name="checkout/limits", leaf=None)
    cut = replace(limits, document="{}")
    purged = replace(limits, document='{"purged":{"at":"2026-08-01T12:34:56.000Z","by":"u_1","order":"o","reason":"r"}}')
    bare = replace(limits, document=msgspec.UNSET)
    hidden = frames.ProofText({}, {"#": shop.latest.version.root})
    folder = trie.get(shop.latest.node, "checkout/")
    assert isinstance(folder, trie.Bucket)
    folded = frames.ProofText({"checkout/": spell(folder.digest), "mail": None}, {})
    named = frames.ProofText({"checkout/limits": digest("leaf", (limits.leaf or "").encode())}, {})
    for what, frame in (("delta", good), ("snapshot", whole)):
        rest = tuple(each for each in frame.changes if each.name != "checkout/limits")
        lies: list[tuple[str, StateFrame, str]] = [
            ("a change is withheld", replace(frame, changes=rest), "bad-proof"),
            ("everything is withheld", replace(frame, changes=()), "bad-proof"),
            ("a config is said to be gone", replace(frame, changes=(*rest, gone)), "bad-proof"),
            ("another leaf with its document", replace(frame, changes=(*rest, other)), "bad-proof"),
            ("another document", replace(frame, changes=(*rest, cut)), "bad-digest"),
            ("a purged document at a head", replace(frame, changes=(*rest, purged)), "bad-digest"),
            ("a leaf without its document", replace(frame, changes=(*rest, bare)), "bad-digest"),
            ("a config told twice", replace(frame, changes=(*frame.changes, limits)), "bad-proof"),
            (
                "a config that is not there",
                replace(frame, changes=(*frame.changes, replace(limits, name="checkout/more"))),
                "bad-proof",
            ),
            ("a config outside the view", replace(frame, changes=(*frame.changes, replace(limits, name="mail"))), "bad-proof"),
            (
                "a folder told as a config",
                replace(frame, changes=(*frame.changes, replace(limits, name="checkout/"))),
                "bad-proof",
            ),
            ("the view behind a stub", replace(frame, changes=(), proof=hidden), "bad-proof"),
            ("the folder behind its digest", replace(frame, changes=(), proof=folded), "bad-proof"),
            ("a config of the view only in the proof", replace(frame, changes=rest, proof=named), "bad-proof"),
            ("a digest that is none", replace(frame, proof=frames.ProofText({"mail": "md5:0"}, {})), "bad-proof"),
            ("a place that is none", replace(frame, proof=frames.ProofText({}, {"#z": None})), "bad-proof"),
        ]
        for why, lie, code in lies:
            story = Story(shop, f"{why} ({what})", view).says(shop.snapshot(view, to=shop.at(2)), "applied")
            yield story.says(lie, code).says(frame, "applied")
    yield from stale_bases(shop)


def stale_bases(shop: Authority) -> Iterator[Story]:
    story = Story(shop, "a delta from a version that is not held").says(shop.snapshot(to=shop.at(2)), "applied")
    path = shop.delta(shop.at(2)).ancestry
    yield story.says(replace(shop.delta(shop.at(4)), ancestry=path), "bad-proof")
    yield Story(shop, "a delta, and nothing is held").says(shop.delta(shop.at(4)), "bad-proof").says(shop.snapshot(), "applied")
    story = Story(shop, "a base with the right number and another version").says(shop.snapshot(to=shop.at(4)), "applied")
    wrong = Cursor(1, 4, shop.at(3).id)
    yield story.says(replace(shop.delta(shop.at(4)), from_=wrong), "bad-proof").says(shop.delta(shop.at(4)), "applied")
    view = ("checkout/",)
    story = Story(shop, "a deletion that only the proof tells of is believed", view).says(
        shop.snapshot(view, to=shop.at(2)), "applied"
    )
    emptied = shop.fork(2)
    emptied.publish({"checkout/limits": None, "checkout/cart": None})
    quiet = emptied.delta(emptied.at(2), view)
    yield story.says(replace(quiet, changes=(), proof=frames.ProofText({"checkout/": None}, {})), "applied")


def every_story() -> Iterator[Story]:
    for make in (honest_stories, head_lies, history_lies, recoveries, content_lies):
        yield from make()
