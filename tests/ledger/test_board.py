"""Who counts and where everyone stands, without any I/O."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from heliograph.core.events import FannedOut, NodeAlive, Receipts, Received, Subscribed, Unsubscribed, VersionEvent
from heliograph.core.records import Cursor
from heliograph.services.ledger.answers import Point
from heliograph.services.ledger.board import Board
from heliograph.services.ledger.intake import answer_in, commit_in
from heliograph.services.ledger.propagation import Hop


class Told:
    """A board, told of events one by one; a version is committed 2 ms after its first byte. What came before is kept, as the tables do."""

    def __init__(self, story) -> None:
        self.story = story
        self.board = Board()
        self.answers = defaultdict(list)
        self.hops = defaultdict(dict)

    def __call__(self, *events):
        for event in events:
            match event:
                case VersionEvent():
                    commit = commit_in(event, event.received_at_us + 2000)
                    self.board.opened(commit, self.answers[commit.version], self.hops[commit.point])
                case Subscribed():
                    self.board.subscribed(event)
                case Unsubscribed():
                    self.board.unsubscribed(event)
                case Received():
                    together = Receipts.of([event])
                    answer = answer_in(event.state, together.rows[0])
                    self.answers[event.version].append((event.instance, event.subscription, answer))
                    self.board.received(together, [answer])
                case FannedOut():
                    hop = Hop(event.logged_at_us, event.started_at_us, event.done_at_us, event.recipients)
                    self.hops[Point(event.epoch, event.number)][event.node] = hop
                    self.board.fanned_out(event)
                case NodeAlive():
                    self.board.node_alive(event)

    def report(self, version):
        return self.propagation(version).report()

    def propagation(self, version):
        found = self.board.open_propagation(self.story.address, version.number)
        assert found is not None
        return found


@pytest.fixture
def told(story):
    return Told(story)


def counts(report):
    return {
        name: getattr(report, name)
        for name in ("applied", "rejected", "unaffected", "superseded", "left", "missing")
        if getattr(report, name)
    }


def test_the_times_of_every_hop_and_exact_percentiles(story, told):
    told(*(story.subscribed(f"i{n:03}", -100) for n in range(100)))
    v = story.version(received=0)
    told(v, story.fanned_out(v, logged=4, started=5, done=9, recipients=100))
    order = list(range(100))
    random.Random(7).shuffle(order)
    told(*(story.answer(f"i{n:03}", v, "applied", 10 + n) for n in order))
    report = told.report(v)
    assert (report.instances, report.applied, report.share) == (100, 100, 1.0)
    times = report.times_ms
    assert (times.commit, times.log, times.fan_out) == (2.0, 4.0, 9.0)
    assert (times.applied.p50, times.applied.p95, times.applied.p99, times.applied.max) == (59.0, 104.0, 108.0, 109.0)
    assert times.applied.count == 100


def test_only_who_was_subscribed_at_the_commit_counts(story, told):
    told(
        story.subscribed("early", -50),
        story.subscribed("gone-before", -50),
        story.unsubscribed("gone-before", 1),
        v := story.version(received=0),
        story.subscribed("late", 3),
        story.answer("late", v, "applied", 5),
        story.answer("early", v, "applied", 6),
    )
    assert told.report(v).instances == 1
    assert counts(told.report(v)) == {"applied": 1}


def test_records_that_come_late_are_put_where_their_times_say(story, told):
    v = story.version(received=0)
    told(
        v,
        story.answer("a", v, "applied", 5),
        story.subscribed("b", -10),
        story.subscribed("a", -10),
        story.unsubscribed("b", 1),
    )
    assert told.report(v).instances == 1
    assert counts(told.report(v)) == {"applied": 1}


def test_a_leaver_is_left_and_does_not_hold_up_the_others(story, told):
    v = story.version(received=0)
    told(
        story.subscribed("a", -1), story.subscribed("b", -1), v, story.answer("a", v, "applied", 5), story.unsubscribed("b", 6)
    )
    assert counts(told.report(v)) == {"applied": 1, "left": 1}
    assert told.report(v).share == 1.0
    assert told.propagation(v).settled(1.0)
    assert not told.propagation(v).complete


def test_who_comes_back_in_time_and_answers_has_not_left(story, told):
    v = story.version(received=0)
    told(
        story.subscribed("a", -1),
        v,
        story.unsubscribed("a", 3),
        story.subscribed("a", 10, node="node-2"),
    )
    assert counts(told.report(v)) == {"missing": 1}
    told(story.answer("a", v, "applied", 20, node="node-2"))
    assert counts(told.report(v)) == {"applied": 1}


def test_nobody_left_is_not_everybody_has_it(story, told):
    v = story.version(received=0)
    told(story.subscribed("a", -1), v, story.unsubscribed("a", 3))
    assert told.report(v).share == 0.0
    assert not told.propagation(v).settled(0.5)


def test_the_instances_of_a_lost_node_are_missing_until_they_subscribe_elsewhere(story, told):
    v = story.version(received=0)
    told(story.subscribed("a", -1), story.subscribed("b", -1), story.alive(0), v)
    assert told.board.silent_nodes(story.at(0)) == set()
    assert told.board.silent_nodes(story.at(1)) == {"node-1"}
    told.board.lose({"node-1"})
    assert told.board.silent_nodes(story.at(1)) == set()
    assert counts(told.report(v)) == {"missing": 2}
    assert told.board.connected_by_region() == {}
    told(story.subscribed("a", 50, node="node-2"), story.answer("a", v, "applied", 60, node="node-2"))
    assert counts(told.report(v)) == {"applied": 1, "missing": 1}
    assert told.board.connected_by_region() == {"eu": 1}


def test_an_instance_of_a_lost_node_counts_in_later_versions_too(story, told):
    told(story.subscribed("a", -1), story.alive(0, leaving=True), v := story.version(received=100))
    assert counts(told.report(v)) == {"missing": 1}


def test_a_node_that_speaks_again_was_not_lost(story, told):
    told(story.subscribed("a", -1), story.alive(0))
    told.board.lose({"node-1"})
    told(story.alive(20_000))
    assert told.board.lost_nodes() == frozenset()
    assert told.board.connected_by_region() == {"eu": 1}


def test_the_newest_connection_replaces_the_older_whose_goodbye_comes_late(story, told):
    v = story.version(received=100)
    told(
        story.subscribed("a", -1, connection="c1"),
        story.subscribed("a", 50, connection="c2", node="node-2"),
        v,
        story.unsubscribed("a", 150, connection="c1"),
    )
    assert counts(told.report(v)) == {"missing": 1}
    told(story.unsubscribed("a", 160, connection="c2", node="node-2"))
    assert counts(told.report(v)) == {"left": 1}


def test_an_older_incarnation_that_is_told_later_takes_no_place(story, told):
    told(
        story.subscribed("a", 50, connection="c2", incarnation=2),
        story.subscribed("a", 10, connection="c1", incarnation=1),
        story.unsubscribed("a", 60, connection="c2"),
    )
    v = story.version(received=100)
    told(v)
    assert told.report(v).instances == 0


def test_a_later_version_that_was_applied_supersedes_the_earlier_ones(story, told):
    told(story.subscribed("a", -1), story.subscribed("b", -1))
    first, second, third = (story.version(received=n) for n in (0, 10, 20))
    told(first, second, third, story.answer("a", third, "applied", 30), story.answer("b", second, "superseded", 31))
    assert counts(told.report(first)) == {"superseded": 1, "missing": 1}
    assert counts(told.report(second)) == {"superseded": 1, "missing": 1}
    told(story.answer("b", third, "rejected", 32, reason="too large"))
    assert counts(told.report(second)) == {"superseded": 1, "missing": 1}
    assert counts(told.report(third)) == {"applied": 1, "rejected": 1}
    told(story.answer("b", story.version(received=40), "unaffected", 50))
    assert counts(told.report(second)) == {"superseded": 2}
    assert counts(told.report(third)) == {"applied": 1, "rejected": 1}


def test_what_a_returning_instance_says_to_have_supersedes_too(story, told):
    first, second = story.version(received=0), story.version(received=10)
    told(story.subscribed("a", -1), first, second, story.unsubscribed("a", 15))
    have = Cursor(second.epoch, second.number, told.propagation(second).commit.version)
    told(story.subscribed("a", 30, connection="c2", have=have))
    assert counts(told.report(first)) == {"superseded": 1}
    assert counts(told.report(second)) == {"missing": 1}


def test_an_instance_has_answered_when_all_its_subscriptions_have(story, told):
    told(story.subscribed("a", -1, subscription=1), story.subscribed("a", -1, subscription=2))
    v = story.version(received=0)
    told(v, story.answer("a", v, "applied", 5, subscription=1))
    assert counts(told.report(v)) == {"missing": 1}
    told(story.answer("a", v, "applied", 9, subscription=2))
    assert counts(told.report(v)) == {"applied": 1}
    assert told.report(v).times_ms.applied.max == 9.0


def test_one_subscription_that_refuses_makes_the_instance_refuse(story, told):
    told(story.subscribed("a", -1, subscription=1), story.subscribed("a", -1, subscription=2))
    v = story.version(received=0)
    told(
        v,
        story.answer("a", v, "unaffected", 5, subscription=1),
        story.answer("a", v, "rejected", 6, subscription=2, reason="no"),
    )
    report = told.report(v)
    assert counts(report) == {"rejected": 1}
    assert [(each.instance, each.reason) for each in report.rejections] == [("a", "no")]


def test_a_subscription_given_up_is_no_longer_awaited(story, told):
    told(story.subscribed("a", -1, subscription=1), story.subscribed("a", -1, subscription=2))
    v = story.version(received=0)
    told(v, story.answer("a", v, "applied", 5, subscription=1), story.unsubscribed("a", 6, subscription=2))
    assert counts(told.report(v)) == {"applied": 1}


def test_rejections_that_make_the_share_impossible_settle_it(story, told):
    told(*(story.subscribed(f"i{n}", -1) for n in range(20)))
    v = story.version(received=0)
    told(v, story.answer("i0", v, "rejected", 1))
    assert not told.propagation(v).settled(0.95)
    told(story.answer("i1", v, "rejected", 1))
    assert told.propagation(v).settled(0.95)
    assert not told.propagation(v).settled(0.9)


def test_the_share_is_reached_exactly_when_it_is_reached(story, told):
    told(*(story.subscribed(f"i{n}", -1) for n in range(20)))
    v = story.version(received=0)
    told(v, *(story.answer(f"i{n}", v, "unaffected", 1) for n in range(18)))
    assert not told.propagation(v).settled(0.95)
    told(story.answer("i18", v, "applied", 1))
    assert told.propagation(v).settled(0.95)
    assert not told.propagation(v).complete


def test_a_receipt_for_another_history_with_the_same_number_changes_nothing(story, told):
    told(story.subscribed("a", -1), v := story.version(received=0))
    other = story.version(received=7, number=v.number)
    told(story.answer("a", other, "applied", 5))
    assert counts(told.report(v)) == {"missing": 1}


def test_groups_are_the_largest_by_region_sdk_and_label(story, told):
    for n in range(30):
        told(story.subscribed(f"i{n:02}", -1, region="eu" if n % 3 else "us", labels={"tier": "web", "host": f"h{n}"}))
    v = story.version(received=0)
    told(v, *(story.answer(f"i{n:02}", v, "applied", 10 + n) for n in range(0, 30, 3)))
    by = told.report(v).by
    assert {name: (g.instances, g.applied, g.missing) for name, g in by.region.items()} == {
        "eu": (20, 0, 20),
        "us": (10, 10, 0),
    }
    assert (by.region["us"].times_ms.p50, by.region["us"].times_ms.max) == (22.0, 37.0)
    assert list(by.sdk_version) == ["1.0"]
    assert next(iter(by.label)) == "tier=web"
    assert len(by.label) == 20


def test_everything_told_twice_changes_nothing(story, told):
    v = story.version(received=0)
    events = [
        story.subscribed("a", -1),
        story.subscribed("b", -1),
        v,
        story.fanned_out(v, logged=3, started=4, done=5),
        story.answer("a", v, "applied", 5),
        story.unsubscribed("b", 7),
    ]
    told(*events)
    once = told.report(v)
    told(*events)
    assert told.report(v) == once
    assert len(told.board.take_news().applied) == 1


def test_any_order_of_what_different_writers_say_gives_the_same_report(story):
    v, w = story.version(received=0), story.version(received=10)
    writers = [
        [v, w],
        [story.subscribed("a", -5), story.answer("a", v, "applied", 5), story.answer("a", w, "applied", 15)],
        [story.subscribed("b", -5, node="n2"), story.unsubscribed("b", 5, node="n2")],
        [story.subscribed("c", -5, node="n2"), story.answer("c", w, "rejected", 15, node="n2")],
        [story.subscribed("d", 5, node="n3"), story.answer("d", w, "applied", 18, node="n3")],
        [story.fanned_out(v, logged=3, started=4, done=5), story.fanned_out(w, logged=13, started=14, done=15, node="n2")],
    ]
    seen = set()
    for seed in range(200):
        choose, queues = random.Random(seed), [list(each) for each in writers]
        told = Told(story)
        while any(queues):
            told(choose.choice([each for each in queues if each]).pop(0))
        seen.add((repr(counts(told.report(v))), repr(counts(told.report(w))), repr(told.report(w).times_ms)))
    assert len(seen) == 1


def test_closing_lets_go_of_what_was_awaited(story, told):
    told(story.subscribed("a", -1), v := story.version(received=0))
    told.board.closed(told.propagation(v))
    assert told.board.open_propagation(story.address, v.number) is None
    told(story.answer("a", v, "applied", 5), story.unsubscribed("a", 9))
    told.board.forget(story.at(8))
    assert told.board.connected_by_region() == {}
    told.board.forget(story.at(10))
    assert not list(told.board.all_open())
