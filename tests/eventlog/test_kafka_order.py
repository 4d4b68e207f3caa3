"""What a Kafka reader makes of a partition that is not what it was: a tail lost with its leader, a topic made again under the same name.

The consumer is reset to the partition's beginning then, and tells what is there from the first record on.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from heliograph.eventlog.kafka import _Order
from heliograph.eventlog.ports import Gap, Record, Stream


@dataclass
class Message:
    at: int
    body: bytes
    epoch: int | None
    time_us: int

    def error(self) -> None:
        return None

    def headers(self) -> list[tuple[str, bytes]]:
        return [("committed_at_us", b"%d" % self.time_us)]

    def offset(self) -> int:
        return self.at

    def partition(self) -> int:
        return 0

    def leader_epoch(self) -> int | None:
        return self.epoch

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes:
        return self.body

    def timestamp(self) -> tuple[int, int]:
        return 1, self.time_us // 1000


def old(*offsets: int, epoch: int | None = 3) -> list[Message]:
    """Two nodes wrote them, whose clocks differ."""
    return [Message(each, b"old %d" % each, epoch, 1000 + each + each % 2 * 500) for each in offsets]


def fresh(*offsets: int, epoch: int | None, time_us: int = 9000) -> list[Message]:
    return [Message(each, b"new %d" % each, epoch, time_us) for each in offsets]


def bodies(items: list[Record | Gap]) -> list:
    return [Gap if isinstance(each, Gap) else each.body for each in items]


@pytest.fixture
def order() -> _Order:
    """A reader that has read ten receipts."""
    order = _Order(Stream.RECEIPTS, {0: 0})
    assert len(order.take(old(*range(10)))) == 10
    return order


def test_what_follows_a_tail_lost_with_its_leader_is_read_after_a_gap_and_what_was_kept_not_twice(order):
    told = order.take([*old(*range(5)), *fresh(5, 6, 7, epoch=4)])
    assert bodies(told) == [Gap, b"new 5", b"new 6", b"new 7"]
    assert [each.mark for each in told if isinstance(each, Record)] == [6, 7, 8]
    assert bodies(order.take(fresh(8, epoch=4))) == [b"new 8"]


def test_it_is_found_by_its_leader_whatever_the_clocks_of_those_who_wrote_say(order):
    assert bodies(order.take([*old(*range(5)), *fresh(5, 6, epoch=4, time_us=7)])) == [Gap, b"new 5", b"new 6"]


def test_a_topic_that_was_made_again_is_read_from_its_beginning_after_a_gap(order):
    assert bodies(order.take(fresh(0, 1, 2, epoch=0))) == [Gap, b"new 0", b"new 1", b"new 2"]
    assert bodies(order.take(fresh(3, epoch=1))) == [b"new 3"]


def test_a_topic_that_was_made_again_and_is_longer_already_is_no_continuation(order):
    assert bodies(order.take(fresh(10, 11, epoch=0))) == [Gap, b"new 10", b"new 11"]


def test_what_was_lost_is_told_once_also_where_nothing_says_what_was_read(order):
    """Of a broker that names no epochs, and with clocks that went back."""
    order = _Order(Stream.RECEIPTS, {0: 0})
    order.take(old(*range(10), epoch=None))
    told = bodies(order.take([*old(*range(5), epoch=None), *fresh(*range(5, 12), epoch=None, time_us=7)]))
    assert told == [Gap, b"new 10", b"new 11"]


def test_another_leader_that_lost_nothing_is_no_gap(order):
    assert bodies(order.take(fresh(10, 11, epoch=4))) == [b"new 10", b"new 11"]


def test_a_second_loss_is_a_second_gap(order):
    assert bodies(order.take([*old(*range(5)), *fresh(5, 6, epoch=4)])) == [Gap, b"new 5", b"new 6"]
    again = [*old(*range(5)), *fresh(5, epoch=4), *fresh(6, epoch=5)]
    assert bodies(order.take(again)) == [Gap, b"new 6"]
