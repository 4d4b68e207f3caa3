"""A client in an arbitrary world: honest servers, servers whose history was lost, forged or rewound with the real keys, and messages in which
anything was exchanged for anything else.

Whatever it is told, it is always in the exact state of one version that the keys have signed, and it only ever moves along that version's own
history, forwards; or, by a signed recovery, to one that kept everything it knew to be safe.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
from contracts.authority import Authority, Commit
from contracts.stories import NOW_US
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.core.contents import config_names, views

from heliograph.core import frames, proof
from heliograph.core.errors import Refused, RolledBack
from heliograph.core.replica import Replica

documents = (
    st.none()
    | st.integers(0, 3)
    | st.sampled_from([{"max_items": 1}, ["Käse \U0001f9c0"], {"long": "x" * 1500, "n": 1}, {"long": "x" * 1500}])
)
changes = st.dictionaries(config_names, documents, min_size=1, max_size=4)


class World(RuleBasedStateMachine):
    @initialize(view=views)
    def start(self, view: frozenset[str]) -> None:
        self.honest = Authority()
        self.others: list[Authority] = []  # what thieves of both keys, and lost tails, have made of it
        self.client = Replica(self.honest.trust, "shop", "production", view)
        self.signed = {self.honest.latest.id: self.honest.latest}
        self.said: list[Any] = []
        self.announced = 0  # what the honest server has called safe
        self.believed = 0  # what the client took for safe, whoever said it
        self.deceived = False  # whether it ever followed anybody else
        self.at: Commit | None = None

    # --- the world goes on ---

    @rule(documents=changes)
    def publish(self, documents: dict[str, Any]) -> None:
        self.remember(self.honest.publish(documents))

    @precondition(lambda self: len(self.honest.commits) > 2)
    @rule(back=st.integers(1, 3))
    def roll_back(self, back: int) -> None:
        self.remember(self.honest.roll_back(max(1, len(self.honest.commits) - back)))

    @rule(back=st.integers(0, 4), documents=st.lists(changes, max_size=3), restarts=st.booleans(), data=st.data())
    def somebody_goes_another_way(self, back: int, documents: list[Any], restarts: bool, data: st.DataObject) -> None:
        """With or without opening an epoch of its own."""
        twin = data.draw(st.sampled_from([self.honest, *self.others])).fork()
        back = min(back, len(twin.commits) - 1)
        if restarts and back:
            self.remember(twin.recover(len(twin.commits) - back + 1))
        twin = twin.fork(len(twin.commits) - (0 if restarts else back))
        for each in documents:
            self.remember(twin.publish({**each, "forged": 1}))
        self.others = [*self.others[-3:], twin]

    @precondition(lambda self: len(self.honest.commits) > 1)
    @rule(lost=st.integers(1, 3), documents=st.lists(changes, max_size=2))
    def the_server_loses_its_tail(self, lost: int, documents: list[dict[str, Any]]) -> None:
        """Every version after what it has called safe may be lost."""
        number = max(2, self.announced + 1, len(self.honest.commits) + 1 - lost)
        if number > len(self.honest.commits):
            return
        self.others = [*self.others[-3:], self.honest.fork()]
        self.remember(self.honest.recover(number))
        for each in documents:
            self.remember(self.honest.publish(each))

    def remember(self, commit: Commit) -> None:
        self.signed[commit.id] = commit

    # --- the client is told the truth ---

    @rule(unsafe=st.integers(0, 3), whole=st.booleans())
    def the_honest_server_speaks(self, unsafe: int, whole: bool) -> None:
        """And is followed, unless somebody else was before."""
        safe = max(self.announced, self.honest.latest.version.number - unsafe)
        frame = self.honest_frame(safe, whole=whole)
        self.announced = safe
        self.tell(frame)
        assert self.deceived or self.at is self.honest.latest

    def honest_frame(self, safe: int, *, whole: bool) -> Any:
        latest, head, view, at = self.honest.latest, self.honest.head(safe=safe), tuple(self.client.view), self.at
        known = at is not None and at in self.honest.commits
        if at is not None and known and not whole:
            return self.honest.delta(at, view, head=head)
        recovery = None
        if at is not None and not known and latest.version.epoch > at.version.epoch:
            opened = next(each for each in self.honest.commits if each.version.epoch > at.version.epoch)
            recovery = frames.Recovery(
                version=opened.signed, ancestry=() if opened is latest else self.honest.path(opened.version.number)
            )
        return self.honest.snapshot(view, have=at.cursor if at and known else None, head=head, recovery=recovery)

    @rule(later=st.integers(1, 1000))
    def the_head_is_renewed(self, later: int) -> None:
        frame = frames.HeadFrame(subscription=1, head=self.honest.head(safe=self.announced, later_us=later * 1000))
        self.tell(frame)

    # --- and anything else ---

    @precondition(lambda self: self.others)
    @rule(data=st.data(), whole=st.booleans(), proved=st.booleans(), unsafe=st.integers(0, 4))
    def another_history_speaks(self, data: st.DataObject, whole: bool, proved: bool, unsafe: int) -> None:
        """Both keys are its own, so every signature is good, and so is every path."""
        other = data.draw(st.sampled_from(self.others))
        to = data.draw(st.sampled_from(other.commits))
        view, at = tuple(self.client.view), self.at
        head = other.head(to, safe=max(0, to.version.number - unsafe))
        if whole or at not in other.commits:
            frame: Any = other.snapshot(view, to=to, have=at.cursor if at in other.commits else None, head=head)
        else:
            frame = other.delta(at, view, to=to, head=head)
        if proved and at is not None and at.version.number < to.version.number:
            frame = msgspec.structs.replace(frame, ancestry=other.path(at.version.number, to))
        opened = data.draw(st.sampled_from(other.commits[: to.version.number]))
        if proved and opened is not to:
            path = other.path(opened.version.number, to)
            frame = msgspec.structs.replace(frame, recovery=frames.Recovery(version=opened.signed, ancestry=path))
        self.tell(frame, honest=False)

    @precondition(lambda self: self.said)
    @rule(seed=st.integers(0, 2**32), times=st.integers(1, 3))
    def anything_is_exchanged_for_anything(self, seed: int, times: int) -> None:
        rnd = random.Random(seed)
        frame = msgspec.to_builtins(rnd.choice(self.said))
        for _ in range(times):
            frame = exchanged(rnd, frame, msgspec.to_builtins(rnd.choice(self.said)))
        try:
            lie = msgspec.json.decode(msgspec.json.encode(frame), type=frames.FromServer)
        except (msgspec.DecodeError, UnicodeEncodeError):
            return
        if isinstance(lie, frames.StateFrame | frames.Current | frames.HeadFrame):
            self.tell(lie, honest=False, keep=False)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def what_was_said_before_is_said_again(self, data: st.DataObject) -> None:
        self.tell(data.draw(st.sampled_from(self.said)), honest=False)

    @rule()
    def the_client_restarts(self) -> None:
        if self.at is not None:
            client = self.client
            self.client = Replica.load(client.stored(), client.trust, client.namespace, client.environment, client.view)
            assert self.client.stored() == client.stored()

    # --- what it makes of it ---

    def tell(self, frame: Any, *, honest: bool = True, keep: bool = True) -> None:
        self.said = [*self.said[-30:], frame] if keep else self.said
        before = (self.client.cursor, self.client.head, dict(self.client.texts))
        try:
            candidate = self.client.consider(frame, NOW_US)
        except Refused:
            candidate = None
        assert (self.client.cursor, self.client.head, dict(self.client.texts)) == before
        if candidate is not None:
            self.deceived |= not honest
            self.take(candidate)

    def take(self, candidate: Any) -> None:
        before, texts = self.at, dict(self.client.texts)
        self.client.adopt(candidate)
        after = self.signed[candidate.cursor.version]
        if before is not None and after is not before:
            self.moved(before, after, restarted=candidate.restarted)
        now = dict(self.client.texts)
        assert candidate.changed >= {name for name in texts.keys() | now.keys() if texts.get(name) != now.get(name)}
        self.at = after
        self.believed = max(self.believed, self.client.head.safe)

    def moved(self, before: Commit, after: Commit, *, restarted: bool) -> None:
        assert after.cursor > before.cursor
        past = self.past_of(after)
        if before in past:
            assert not restarted
            return
        assert restarted
        assert after.version.epoch > before.version.epoch
        opened = [each for each in past if each.version.kind == "recover" and each.version.epoch > before.version.epoch]
        assert any(self.believed < each.version.number <= before.version.number for each in opened)

    def past_of(self, commit: Commit) -> list[Commit]:
        """With itself."""
        past = [commit]
        while past[-1].version.parent is not None:
            past.append(self.signed[past[-1].version.parent])
        return past

    @invariant()
    def the_state_is_that_of_a_signed_version(self) -> None:
        if self.at is None:
            assert self.client.cursor is None
            return
        covers = proof.covering(self.client.view)
        truth = {name: entry.document for name, entry in self.at.content.items() if covers(name)}
        assert self.client.cursor == self.at.cursor
        assert dict(self.client.texts) == truth
        assert self.client.view_digest == proof.view_digest(self.at.node, self.client.view)

    @invariant()
    def the_past_is_refused(self) -> None:
        if self.at is not None and self.at.version.number > 1 and self.at.version.epoch == 1:
            earlier = self.signed[self.at.version.parent]
            try:
                self.client.consider(self.honest.snapshot(tuple(self.client.view), to=earlier), NOW_US)
            except RolledBack:
                return
            raise AssertionError("a rollback was accepted")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def at_place(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def exchanged(rnd: random.Random, frame: Any, other: Any) -> Any:
    """The frame with one member left out, taken from another frame, taken from elsewhere in it, or altered."""
    path = rnd.choice(places(frame)[1:])
    same_key = [place for place in places(other)[1:] if place[-1] == path[-1]]
    new: Any = None
    match rnd.randrange(4):
        case 1 if same_key:
            new = at_place(other, rnd.choice(same_key))
        case 2:
            new = at_place(frame, rnd.choice(places(frame)[1:]))
        case 3:
            new = altered(rnd, at_place(frame, path))
    return put(frame, path, new)


def altered(rnd: random.Random, value: Any) -> Any:
    if isinstance(value, str) and value:
        at = rnd.randrange(len(value))
        return value[:at] + rnd.choice(["", "0", "x", "\U0001f9c0"]) + value[at + 1 :]
    if isinstance(value, int):
        return value + rnd.choice([-1, 1, 1000])
    return [*value, *value] if isinstance(value, list | tuple) else value


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """None takes a member out."""
    key, *rest = path
    if isinstance(value, dict):
        put_in = {**value, key: put(value[key], tuple(rest), new) if rest else new}
        return {name: each for name, each in put_in.items() if rest or name != key or new is not None}
    each = list(value)
    each[key : key + 1] = [put(value[key], tuple(rest), new)] if rest else [] if new is None else [new]
    return each


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=max(100, settings().max_examples), stateful_step_count=40)
