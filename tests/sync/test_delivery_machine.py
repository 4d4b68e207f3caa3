"""Ordering and exactly-once, proved by trying to break them: Hypothesis plays authors, network, log, nodes and applications, with everything of
Heliograph that decides between an author's commit and an application's callback in the middle, for real.

What can happen: publishes, some of them too large for the log, roll-backs, purges, deletion and restoration of the environment, fail-overs that
lose a tail; a registry that is slow to give documents; nodes that lag, miss records, drain and die; connections cut anywhere, also between the parts
of a snapshot, whose node sees the end late and goes on reading; clients that read slowly, or hop between nodes; a log of receipts that fails before
or after it has stored them; applications that are slow or reject.

What must hold after every step, whatever happened:

- the application sees versions in strictly growing (epoch, number) order, each at most once, and content that is exactly that version's;
- nothing is acknowledged that is not stored; no honest client is told to stop for good; nothing raises.

And once all is quiet: every client is at the head, and the ledger has its receipt for each version it was shown, each once.

Proven to catch, by breaking one thing at a time: see `test_what_the_machine_catches`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from structlog.testing import capture_logs
from tests.sync import in_memory
from tests.sync.in_memory import Node, Process, Region, StillLoop

from heliograph.client._dispatch import Mailbox
from heliograph.client._receipts import Receipts
from heliograph.core.replica import Replica
from heliograph.runtime import problems
from heliograph.services.sync import fan_out, hub, receipts
from heliograph.services.sync.connections import Connection
from heliograph.services.sync.drain import Drain
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.receipts import Outbox

NAMES = ["checkout/limits", "checkout/cart", "search", "a/b/c"]
VIEWS: list[list[tuple[str, ...]]] = [[("",)], [("checkout/",), ("search",)], [("checkout/limits", "a/")]]
PATIENT_ROUNDS = 160
ROUNDS = 40  # of two seconds, until all is quiet: reconnects, resyncs and receipts take a few each

LONG = {4: {"text": "x" * 1500, "n": 1}, 5: {"text": "x" * 1500, "n": 2}}  # told of by edits

documents = st.integers(0, 5)
clients = st.integers(0, len(VIEWS) - 1)
nodes = st.integers(0, 1)


class Delivery(RuleBasedStateMachine):
    @initialize(sample=st.booleans())
    def begin(self, sample: bool) -> None:
        self.stack = ExitStack()
        self.logs = self.stack.enter_context(capture_logs())
        self.loop = StillLoop()
        self.stack.callback(self.loop.close)
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(hub, "moment_us", lambda: int(self.loop.now_s * 1e6) + 1)  # 0 is none
        self.sample = sample
        self.region = Region()
        self.region.publish({"checkout/limits": 0, "search": 0}, "soon")
        self.nodes = [self.new_node(number) for number in range(2)]
        self.rejects: list[set[str]] = [set() for _ in VIEWS]
        self.clients = [
            Process(self.region, f"client-{number}", views, self.rejects[number]) for number, views in enumerate(VIEWS)
        ]
        for number, client in enumerate(self.clients):
            client.connect(self.nodes[number % 2], 100)

    def new_node(self, number: int) -> Node:
        node = Node(f"node-{number}", self.region, self.loop, sample=self.sample)
        self.loop.play(node.start())
        return node

    # --- authors ---

    @rule(
        changes=st.dictionaries(st.sampled_from(NAMES), st.none() | documents, min_size=1, max_size=3),
        urgent=st.booleans(),
        large=st.booleans(),
    )
    def publish(self, changes: dict[str, Any], urgent: bool, large: bool) -> None:
        if self.region.there:
            told = {name: LONG.get(value, value) for name, value in changes.items()}
            self.region.publish(told, "now" if urgent else "soon", large=large)

    @rule(prompt=st.booleans())
    def registry_gives_documents(self, prompt: bool) -> None:
        if prompt:
            self.region.prompt.set()
        else:
            self.region.prompt.clear()
        self.loop.turn(2)

    @rule(by=clients)
    def publish_what_one_rejects(self, by: int) -> None:
        if self.region.there:
            self.rejects[by].add(self.region.publish({"checkout/limits": 9, "search": 9, "a/b/c": 9}, "soon").id)

    @rule(back=st.integers(1, 4))
    def roll_back(self, back: int) -> None:
        if self.region.there:
            self.region.roll_back(max(1, self.region.authority.latest.version.number - back))

    @rule(what=st.sampled_from(["purge", "delete", "restore", "renew"]))
    def keep_house(self, what: str) -> None:
        """``renew``: the head is signed again, and says that all up to it is safe."""
        if what == "purge":
            self.region.purge()
        elif what == "delete" and self.region.there:
            self.region.delete()
        elif what == "restore" and not self.region.there:
            self.region.restore()
        elif what == "renew" and self.region.there:
            self.region.safe = self.region.authority.latest.version.number
            self.region.renew()

    @rule(lost=st.integers(1, 3))
    def fail_over(self, lost: int) -> None:
        """What was never safe may be lost."""
        last = self.region.authority.latest.version.number
        first = max(self.region.safe + 1, 2, last - lost + 1)
        if self.region.there and first <= last:
            self.region.recover(first)

    # --- nodes ---

    @rule(node=nodes, records=st.integers(1, 4), turns=st.integers(1, 12))
    def node_follows(self, node: int, records: int, turns: int) -> None:
        """In one batch; after a few turns of the loop its walk may still be under way."""
        self.nodes[node].tail.step(records)
        self.loop.turn(turns)

    @rule(node=nodes)
    def node_catches_up(self, node: int) -> None:
        self.nodes[node].tail.step(1000)
        self.loop.turn()

    @rule(node=nodes, records=st.integers(0, 2))
    def node_misses_records(self, node: int, records: int) -> None:
        self.nodes[node].tail.miss(records)
        self.loop.turn()

    @rule(turns=st.integers(1, 3))
    def loop_turns(self, turns: int) -> None:
        self.loop.turn(turns)

    @rule(node=nodes)
    def node_dies(self, node: int) -> None:
        """All of its connections with it, and what it had not appended. Another one starts in its place."""
        gone = self.nodes[node]
        self.loop.play(gone.die())
        self.forget(gone)
        self.nodes[node] = self.new_node(node)

    @rule(node=nodes, reads=st.integers(0, 30))
    def node_drains(self, node: int, reads: int) -> None:
        going = self.nodes[node]

        async def drain() -> None:
            await Drain(going.hub, per_s=1000, within_s=1.0).run()
            await going.hub.end()

        task = self.loop.create_task(drain())
        self.loop.turn(2)
        for client in self.clients:
            for _ in range(reads):
                if client.wire and client.wire.node is going:
                    client.read()
        while not task.done():
            self.loop.pass_time(0.6)
        self.store_all(going)
        self.loop.play(going.die())
        self.forget(going)
        self.nodes[node] = self.new_node(node)

    def forget(self, node: Node) -> None:
        for client in self.clients:
            client.left = [wire for wire in client.left if wire.node is not node]
            if client.wire and client.wire.node is node:
                client.leave()
                client.left.remove(next(wire for wire in client.left if wire.node is node))

    # --- connections ---

    @rule(client=clients, node=nodes, capacity=st.sampled_from([0, 1, 2, 3, 100]))
    def connect(self, client: int, node: int, capacity: int) -> None:
        """Wherever it was before; the old connection's node does not know yet."""
        self.clients[client].connect(self.nodes[node], capacity)

    @rule(client=clients, frames=st.integers(1, 6))
    def client_reads(self, client: int, frames: int) -> None:
        for _ in range(frames):
            self.clients[client].read()
        self.clients[client].tick()

    @rule(client=clients, frames=st.integers(1, 6), old=st.booleans())
    def node_reads(self, client: int, frames: int, old: bool) -> None:
        """Also what a client sent before it went away."""
        wires = self.clients[client].left if old else self.clients[client].wires()
        for wire in wires[:1] if old else wires[-1:]:
            for _ in range(frames):
                wire.node_reads()
        self.loop.turn(2)

    @rule(client=clients, node=nodes)
    def hop(self, client: int, node: int) -> None:
        """To a node that may know less, which hears at once what the client has."""
        self.connect(client, node, 100)
        self.flow(client)

    @rule(client=clients)
    def flow(self, client: int) -> None:
        """Everything between a client and its node arrives, and is answered."""
        one = self.clients[client]
        for _ in range(3):
            while one.wire and one.wire.node_reads():
                pass
            self.loop.turn(2)
            while one.read():
                pass
            one.tick()

    @rule(client=clients)
    def cut(self, client: int) -> None:
        self.clients[client].leave()

    @rule(client=clients)
    def node_sees_the_end(self, client: int) -> None:
        for wire in self.clients[client].left[:1]:
            wire.node_sees_the_end()
            self.clients[client].left.remove(wire)

    @rule(client=clients)
    def node_gives_up_a_slow_one(self, client: int) -> None:
        for wire in self.clients[client].wires():
            if wire.open and wire.connection.paused_us:
                self.loop.call(wire.node.hub.close, wire.connection, problems.SLOW_CONSUMER, "did not read")

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.pass_time(seconds)
        for client in self.clients:
            client.pass_time(seconds)

    # --- receipts and applications ---

    @rule(node=nodes, stored=st.booleans(), said=st.booleans())
    def log_of_receipts_answers(self, node: int, stored: bool, said: bool) -> None:
        self.nodes[node].journal.decide(stored=stored, said=said)
        self.loop.turn(4)

    @rule(client=clients, notices=st.integers(1, 4))
    def application_reads(self, client: int, notices: int) -> None:
        one = self.clients[client]
        for number in one.lives:
            for _ in range(notices):
                one.callback(number)

    # --- what must hold ---

    @invariant()
    def versions_come_once_and_in_order(self) -> None:
        for client in getattr(self, "clients", []):
            for seen in (*client.shown.values(), *client.called.values()):
                order = [(one.epoch, one.number) for one in seen]
                assert order == sorted(set(order))

    @invariant()
    def content_is_that_of_the_version(self) -> None:
        for client in getattr(self, "clients", []):
            for number, live in client.lives.items():
                if live.state is not None:
                    commit = self.region.truth[live.state.cursor.version]
                    assert commit.cursor == live.state.cursor
                    held = {name: live.state.text(name) for name in live.state.names()}
                    assert held == client.seen(number, commit)

    @invariant()
    def nothing_raises(self) -> None:
        if hasattr(self, "loop"):
            assert not self.loop.faults
            assert not [each for each in self.logs if each["log_level"] == "error"]
            assert not [each for node in self.nodes for each in node.failures()]
            assert not self.region.ledger.poison

    # --- and when all is quiet ---

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            self.become_quiet()
            self.versions_come_once_and_in_order()
            self.content_is_that_of_the_version()
            self.nothing_raises()
            for client in self.clients:
                self.is_at_the_head(client)
                self.is_answered_for(client)
        finally:
            for node in self.nodes:
                self.loop.play(node.die())
            self.stack.close()

    def become_quiet(self) -> None:
        self.region.prompt.set()
        if not self.region.there:
            self.region.restore()
        for rejected in self.rejects:
            rejected.clear()
        self.region.publish({"checkout/limits": 7, "search": 7, "a/b/c": 7}, "now")
        for client in self.clients:
            for wire in client.left:
                wire.node_sees_the_end()
            client.left.clear()
        for _ in range(ROUNDS):
            self.exchange()
        for _ in range(
            PATIENT_ROUNDS
        ):  # a receipt that found no room, and of a version that a fail-over has lost, is waited for
            if not any(len(client.session.receipts) for client in self.clients):
                break
            self.exchange()

    def exchange(self) -> None:
        """One round in which everything moves that can."""
        for node in self.nodes:
            node.tail.step(1000)
        for number, client in enumerate(self.clients):
            if client.wire is None:
                client.connect(self.nodes[number % 2], 100)
        self.loop.turn()
        for client in self.clients:
            wire = client.wire
            while wire and wire.node_reads():
                pass
            while client.read():
                pass
            while any(client.callback(number) for number in client.lives):
                pass
        for node in self.nodes:
            self.store_all(node)
        self.time_passes(2.0)

    def store_all(self, node: Node) -> None:
        for _ in range(20):
            node.journal.decide()
            self.loop.turn(4)

    def is_at_the_head(self, client: Process) -> None:
        head = self.region.authority.latest
        for number, live in client.lives.items():
            assert live.state is not None
            assert live.state.cursor == head.cursor, f"{client.identity.instance}/{number} is not at the head"
            held = client.session.channels[number].replica
            assert held.view_digest == self.nodes[0].hub.room("shop", "production").environment.view_digest(live.view)  # type: ignore[union-attr]

    def is_answered_for(self, client: Process) -> None:
        """By one receipt for each version it was shown; those of a lost tail may have gone with it."""
        assert len(client.session.receipts) == 0
        kept = {commit.cursor for commit in self.region.authority.commits}
        for number, shown in client.shown.items():
            if client.called[number] or shown:
                assert client.called[number][-1:] in ([], shown[-1:])
            answered = {one for one in shown if self.region.answer(one.version, client.identity.instance, number)}
            assert set(shown) & kept <= answered
            assert shown[-1] in answered


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk over three clients is interrupted after each of them; a log that is away has soon no room for more receipts."""
    monkeypatch.setattr(hub, "SLICE", 1)
    monkeypatch.setattr(fan_out, "SLICE", 1)
    monkeypatch.setattr(fan_out, "SLICE_US", 0)
    monkeypatch.setattr(receipts, "MAX_WAITING", 2)


def play(examples: int, **more: Any) -> None:
    run_state_machine_as_test(Delivery, settings=settings(max_examples=examples, stateful_step_count=50, deadline=None, **more))


@pytest.mark.timeout(900)  # a failure is made small first, which takes minutes
def test_every_version_once_and_in_order() -> None:
    play(settings.default.max_examples)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_version_once_and_in_order_at_length() -> None:
    play(3000, derandomize=False)


def test_who_rejects_the_first_version_after_a_fail_over_is_shown_the_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it runs is of a lost tail, and has the number before the one that comes: no server lies here."""
    state = Delivery()
    state.begin(sample=False)
    state.roll_back(back=2)
    state.node_dies(node=1)
    state.fail_over(lost=2)
    state.publish_what_one_rejects(by=0)
    state.node_dies(node=0)
    state.hop(client=0, node=1)
    state.hop(client=0, node=0)
    state.teardown()


def show_an_older_head(patch: pytest.MonkeyPatch) -> None:
    for room in (hub, fan_out):
        patch.setattr(room, "is_ahead", lambda have, head: False)


def believe_an_older_head(patch: pytest.MonkeyPatch) -> None:
    show_an_older_head(patch)
    patch.setattr(Replica, "_is_newer", staticmethod(lambda head, held: head.cursor != held.head.cursor))
    patch.setattr(Replica, "_descends", lambda *_: False)


def acknowledge_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    put = Outbox.put

    def early(self: Outbox, event: Any, key: str, durable: Any = None) -> bool:
        taken = put(self, event, key)
        if durable:
            durable()
        return taken

    patch.setattr(Outbox, "put", early)


def acknowledge_what_was_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "refuse", lambda *_: True)


def forget_receipts_with_the_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Receipts, "again", lambda self, **_: self._queue.clear())


def forget_the_slow_when_they_drain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hub.Hub, "resumed", lambda _, connection: setattr(connection, "paused_us", 0))


def take_an_interrupted_walk_for_done(patch: pytest.MonkeyPatch) -> None:
    async def stop(_: fan_out.FanOut, room: fan_out.Room, __: object) -> None:
        room.fanning = None

    patch.setattr(fan_out.FanOut, "_go_on", stop)


def forget_what_a_socket_did_not_take(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(in_memory.Wire, "rest", lambda *_: None)


def keep_the_past_of_another_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Environment, "knows", lambda self, cursor: cursor.number <= self.cursor.number)


def leave_out_how_history_began_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Environment, "_recovery", lambda _: None)


def take_receipts_of_a_lost_tail_for_lies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hub.Hub, "lost", lambda *_: False)


def show_the_application_the_newest_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mailbox, "take", lambda self: self._waiting.pop() if self._waiting else None)


FAULTS = [
    show_an_older_head,
    believe_an_older_head,
    acknowledge_before_it_is_stored,
    acknowledge_what_was_refused,
    forget_receipts_with_the_connection,
    forget_the_slow_when_they_drain,
    take_an_interrupted_walk_for_done,
    forget_what_a_socket_did_not_take,
    keep_the_past_of_another_epoch,
    leave_out_how_history_began_anew,
    take_receipts_of_a_lost_tail_for_lies,
    show_the_application_the_newest_first,
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_the_machine_catches(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(Exception, match=r"."):  # whatever the first thing is that does not hold
        play(2000, phases=[Phase.generate])
