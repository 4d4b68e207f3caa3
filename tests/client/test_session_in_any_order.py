"""The session alone, without I/O: Hypothesis plays a network that delays, repeats, reorders and loses, an application that rejects, and
connections that come and go. Whatever it does, the application sees each version at most once and in order, and ends on the head."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from heliograph.client._clock import Moment
from heliograph.client._identity import ephemeral
from heliograph.client._live import Live
from heliograph.client._session import Applied, Channel, Raised, Rejected, Session
from heliograph.core import frames
from heliograph.core.errors import Invalid
from heliograph.core.records import Cursor
from heliograph.core.replica import Replica
from heliograph.core.trust import Trust

START = Moment(1_790_000_000_000_000, 1_000_000)
FINGERPRINT = frames.Fingerprint(sdk="test", sdk_version="0")
NAMES = ["checkout/limits", "checkout/cart", "search", "a/b/c"]
VIEWS = [("",), ("checkout/",), ("search",), ("checkout/limits", "a/")]


class Network(RuleBasedStateMachine):
    """``authority`` publishes; ``flying`` is what the server has sent and the client has not read."""

    new_authority: Callable[..., Any]

    @initialize(view=st.sampled_from(VIEWS))
    def begin(self, view: tuple[str, ...]) -> None:
        self.authority = self.new_authority()
        self.view = view
        self.live = Live("shop", "production", view, lambda _: None)
        self.rejects: set[int] = set()
        self.live.validators.append(self.check)
        trust = Trust.from_root(self.authority.root(), self.authority.anchor)
        self.channel = Channel(1, Replica(trust, "shop", "production", self.live.view))
        self.session = Session(ephemeral("t"), FINGERPRINT, [self.channel], self.propose, random=Random(3))
        self.now = START
        self.applied: list[Cursor] = []
        self.answers: list[frames.Receipt] = []
        self.flying: list[frames.FromServer] = []
        self.node_head: Any = None
        self.node_thinks: Cursor | None = None  # what the node believes that its client holds
        self.connected = self.disordered = False

    def check(self, update: Any) -> None:
        if update.cursor.number in self.rejects:
            raise Invalid("not this one")

    def propose(self, channel: Channel, candidate: Any) -> Any:
        return self.live.propose(candidate.cursor, candidate.texts, candidate.changed, restarted=candidate.restarted)

    # --- what can happen ---------------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), value=st.integers(0, 3) | st.none(), rejected=st.booleans())
    def publish(self, name: str, value: int | None, rejected: bool) -> None:
        done = self.authority.publish(**{name.replace("/", "__"): None if value is None else {"v": value}})
        if rejected:
            self.rejects.add(done.record.number)

    @precondition(lambda self: not self.connected)
    @rule(behind=st.integers(0, 2))
    def connect(self, behind: int) -> None:
        """To a node that may be some versions behind the others."""
        hello = self.session.greet(self.now)
        self.connected, self.disordered, self.flying = True, False, []
        self.node_head = self.authority.versions[max(0, len(self.authority.versions) - 1 - behind)]
        self.node_thinks = hello.subscriptions[0].have
        limits = frames.Limits(max_frame_bytes=1, max_subscriptions=1)
        self.take(
            frames.Welcome(
                connection="c",
                node="n",
                region="r",
                received_at_us=0,
                sent_at_us=0,
                heartbeat_s=5,
                receipt_jitter_ms=100,
                limits=limits,
            )
        )
        if self.node_thinks == self.node_head.cursor:
            self.flying.append(frames.Current(subscription=1, head=self.authority.head(self.node_head)))
        else:
            self.node_sends()

    @precondition(lambda self: self.connected)
    @rule(whole=st.booleans())
    def node_learns(self, whole: bool) -> None:
        """The next version reaches the node, and it sends what its client lacks: a delta, or a snapshot where that is smaller."""
        at = self.authority.versions.index(self.node_head)
        if at + 1 < len(self.authority.versions):
            self.node_head = self.authority.versions[at + 1]
            self.node_sends(whole=whole)

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.session.lost()
        self.connected, self.flying = False, []

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 5), keep=st.booleans())
    def deliver(self, which: int, keep: bool) -> None:
        """Any of the frames, not only the first; once, or once more later."""
        at = which % len(self.flying)
        self.disordered |= at > 0 or keep
        frame = self.flying[at]
        if not keep:
            del self.flying[at]
        self.take(frame)

    @precondition(lambda self: self.flying)
    @rule()
    def lose(self) -> None:
        self.disordered = True
        del self.flying[0]

    @precondition(lambda self: self.connected)
    @rule(ms=st.integers(0, 120_000))
    def time_passes(self, ms: int) -> None:
        self.now = Moment(self.now.wall_us + ms * 1000, self.now.steady_us + ms * 1000)
        self.tick()

    @precondition(lambda self: self.connected)
    @rule()
    def head_is_renewed(self) -> None:
        self.authority.clock_us += 1000
        if self.node_thinks == self.node_head.cursor:
            self.flying.append(frames.HeadFrame(subscription=1, head=self.authority.head(self.node_head)))

    # --- helpers -------------------------------------------------------------------------------------------------------------------

    def node_sends(self, *, whole: bool = False) -> None:
        """As a node does: nothing to a client that has seen more than itself."""
        have = self.node_thinks
        if have is not None and have.number >= self.node_head.record.number:
            return
        known = next((one for one in self.authority.versions if one.cursor == have), None)
        if known is None or whole:
            self.flying.append(self.authority.snapshot(self.view, to=self.node_head, have=have))
        else:
            self.flying.append(self.authority.delta(known, self.view, to=self.node_head))
        self.node_thinks = self.node_head.cursor

    def take(self, frame: frames.FromServer) -> None:
        frame = msgspec.json.decode(msgspec.json.encode(frame), type=frames.FromServer)
        for effect in self.session.take(frame, self.now):
            match effect:
                case Applied(_, proposal):
                    self.live.swap(proposal)
                    self.applied.append(proposal.update.cursor)
                    assert not proposal.update.changed or proposal.update.cursor.number not in self.rejects
                case Raised(
                    _, alarm
                ):  # late looks like replayed, and early like a hole in the history; in order nothing is suspected
                    assert self.disordered
                    held = self.channel.replica.cursor.number
                    assert alarm.claimed.number < held if alarm.code == "rolled-back" else alarm.claimed.number > held + 1
                case Rejected(_, rejection):
                    assert rejection.cursor.number in self.rejects

    def tick(self) -> None:
        for frame in self.session.due(self.now):
            if isinstance(frame, frames.Receipt):
                self.receive(frame)
            elif isinstance(frame, frames.Resync):
                self.node_thinks = self.node_head.cursor
                if frame.have is None or frame.have.number <= self.node_head.record.number:
                    self.flying.append(self.authority.snapshot(self.view, to=self.node_head, have=frame.have))

    def receive(self, receipt: frames.Receipt) -> None:
        """A node closes the connection for good on a receipt for a version that it cannot know of."""
        thinks = self.node_thinks
        assert thinks is not None
        is_held = (receipt.number, receipt.version) == (thinks.number, thinks.version)
        assert is_held or receipt.number <= min(thinks.number, self.node_head.record.number)
        self.answers.append(receipt)
        self.take(frames.ReceiptAck(seq=receipt.seq))

    # --- what must hold ------------------------------------------------------------------------------------------------------------

    @invariant()
    def versions_come_once_and_in_order(self) -> None:
        numbers = [(one.epoch, one.number) for one in getattr(self, "applied", [])]
        assert numbers == sorted(set(numbers))

    @invariant()
    def what_is_read_is_what_that_version_says(self) -> None:
        state = getattr(self, "live", None) and self.live.state
        if state:
            assert state.cursor == self.channel.replica.cursor
            truth = self.authority.at(state.cursor.number).documents
            seen = {name: text for name, text in truth.items() if any(name == s or name.startswith(s) for s in self.view)}
            assert {name: state.text(name) for name in state.names()} == seen

    def teardown(self) -> None:
        """The network becomes good and the application content: it ends on the head, with a receipt for it."""
        if not hasattr(self, "authority"):
            return
        self.rejects.clear()
        if self.connected:
            self.disconnect()
        self.connect(behind=0)
        for _ in range(3):
            while self.flying:
                self.take(self.flying.pop(0))
            self.now = Moment(self.now.wall_us + 10**9, self.now.steady_us + 10**9)
            self.tick()
        head = self.authority.latest
        assert self.channel.replica.cursor == head.cursor
        good = [one.version for one in self.answers if one.state in {"applied", "unaffected"}]
        assert head.id in good
        assert len(self.session.receipts) == 0
        self.versions_come_once_and_in_order()
        self.what_is_read_is_what_that_version_says()


def test_whatever_the_network_does(new_authority: Callable[..., Any]) -> None:
    machine = type("Played", (Network,), {"new_authority": staticmethod(new_authority)})
    run_state_machine_as_test(machine, settings=settings(max_examples=200, stateful_step_count=40, deadline=None))
