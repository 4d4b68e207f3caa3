from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.client._receipts import LIMIT, RESEND_US, Answered, Receipts
from heliograph.core.frames import State
from heliograph.core.records import Cursor


def answered(number: int, state: State = "applied", subscription: int = 1) -> Answered:
    return Answered(subscription, Cursor(1, number, f"v{number}"), state, applied_at_us=number)


def connected(receipts: Receipts, now_us: int = 0) -> Receipts:
    """A connection to a server that knows everything."""
    receipts.connected({1: None})
    receipts.shown(1, Cursor(9, 10**9, "newest"))
    receipts.again(now_us=now_us, jitter_us=0)
    return receipts


@pytest.fixture
def receipts() -> Receipts:
    return connected(Receipts(Random(1)))


def numbers(receipts: Receipts, now_us: int) -> list[int]:
    return [frame.number for frame in receipts.due(now_us, 0)]


def test_a_receipt_waits_for_one_random_moment_within_the_jitter(receipts: Receipts) -> None:
    receipts.add(answered(1), now_us=0, jitter_us=1_000)
    receipts.add(answered(2), now_us=500, jitter_us=1_000)
    wake = receipts.wake_us
    assert wake is not None
    assert wake <= 1_000
    assert numbers(receipts, wake - 1) == []
    assert numbers(receipts, wake) == [1, 2]


def test_a_receipt_that_this_server_may_not_be_told_leaves_the_others_their_random_moment() -> None:
    receipts = Receipts(Random(1))
    receipts.connected({1: None, 2: None})
    receipts.add(answered(9), now_us=0, jitter_us=1_000)
    receipts.shown(2, Cursor(1, 5, "v5"))
    receipts.add(answered(5, subscription=2), now_us=10_000, jitter_us=1_000_000)
    assert numbers(receipts, 10_000) == []
    assert numbers(receipts, 1_010_000) == [5]


def test_an_urgent_receipt_takes_those_that_wait_with_it(receipts: Receipts) -> None:
    receipts.add(answered(1), now_us=0, jitter_us=1_000_000)
    receipts.add(answered(2), now_us=10, jitter_us=0)
    assert numbers(receipts, 10) == [1, 2]


def test_a_receipt_comes_again_with_the_same_seq_until_it_is_durable(receipts: Receipts) -> None:
    receipts.add(answered(1), now_us=0, jitter_us=0)
    [first] = receipts.due(0, 0)
    assert receipts.due(RESEND_US - 1, 0) == []
    [again] = receipts.due(RESEND_US * 2, 0)
    assert again.seq == first.seq
    receipts.acknowledged(first.seq)
    assert len(receipts) == 0
    assert receipts.wake_us is None


def test_a_new_connection_numbers_anew_what_is_not_durable(receipts: Receipts) -> None:
    for number in (1, 2, 3):
        receipts.add(answered(number), now_us=0, jitter_us=0)
    assert [frame.seq for frame in receipts.due(0, 0)] == [1, 2, 3]
    receipts.acknowledged(1)
    connected(receipts, 100)
    assert [(frame.seq, frame.number) for frame in receipts.due(100, 0)] == [(1, 2), (2, 3)]


def test_an_acknowledgement_of_the_old_connection_means_nothing_before_anything_was_sent(receipts: Receipts) -> None:
    receipts.add(answered(1), now_us=0, jitter_us=0)
    receipts.due(0, 0)
    connected(receipts, 1)
    receipts.acknowledged(5)
    assert len(receipts) == 1


def test_the_same_answer_is_not_kept_twice(receipts: Receipts) -> None:
    for _ in range(3):
        receipts.add(answered(1, "rejected"), now_us=0, jitter_us=0)
    receipts.add(answered(1, "applied"), now_us=0, jitter_us=0)
    assert [frame.state for frame in receipts.due(0, 0)] == ["rejected", "applied"]


def test_another_reason_is_another_answer(receipts: Receipts) -> None:
    for reason in ("too small", "too small", "too large"):
        receipts.add(Answered(1, Cursor(1, 1, "v1"), "rejected", reason), now_us=0, jitter_us=0)
    assert [frame.reason for frame in receipts.due(0, 0)] == ["too small", "too large"]


def test_an_answer_that_verified_takes_the_place_of_one_that_did_not_and_not_the_other_way_round(receipts: Receipts) -> None:
    refused = Answered(1, Cursor(1, 5, "v5"), "rejected", "bad-proof", verified=False)
    receipts.add(refused, now_us=0, jitter_us=0)
    assert [frame.seq for frame in receipts.due(0, 0)] == [1]
    for answer in (Answered(1, Cursor(1, 5, "v5"), "rejected", "too small"), refused):
        receipts.add(answer, now_us=1, jitter_us=0)
    [frame] = receipts.due(1, 0)
    assert (frame.seq, frame.reason) == (2, "too small")
    assert numbers(connected(receipts), 0) == [5]


def test_beyond_the_limit_the_latest_and_every_rejection_are_kept(receipts: Receipts) -> None:
    receipts.add(answered(1, "rejected"), now_us=0, jitter_us=1_000)
    for number in range(2, LIMIT + 200):
        receipts.add(answered(number), now_us=0, jitter_us=1_000)
    sent = receipts.due(1_000, 0)
    assert [frame.number for frame in sent] == [1, *range(201, LIMIT + 200)]


def test_an_applied_receipt_is_never_covered_by_an_unaffected_one_nor_by_another_subscriptions(receipts: Receipts) -> None:
    receipts.add(answered(1), now_us=0, jitter_us=1_000)
    receipts.add(answered(1, "unaffected", subscription=2), now_us=0, jitter_us=1_000)
    for number in range(2, LIMIT + 200):
        receipts.add(answered(number, "unaffected"), now_us=0, jitter_us=1_000)
    kept = [(each.answered.subscription, each.answered.cursor.number) for each in receipts._queue]
    assert (1, 1) in kept
    assert (2, 1) in kept
    assert len(kept) == LIMIT


def test_where_nothing_is_covered_the_oldest_is_given_up(receipts: Receipts) -> None:
    for number in range(LIMIT + 50):
        receipts.add(answered(number, "rejected"), now_us=0, jitter_us=1_000)
    assert [each.answered.cursor.number for each in receipts._queue] == list(range(50, LIMIT + 50))


def test_frames_carry_the_clock_offset_of_the_moment_they_leave(receipts: Receipts) -> None:
    receipts.add(answered(1), now_us=0, jitter_us=0)
    assert receipts.due(0, 42)[0].clock_offset_us == 42


def test_a_receipt_waits_for_a_server_that_knows_the_version(receipts: Receipts) -> None:
    for number in (42, 43, 44):
        receipts.add(answered(number), now_us=0, jitter_us=0)
    receipts.connected({1: Cursor(1, 44, "v44")})
    receipts.again(now_us=0, jitter_us=0)
    assert numbers(receipts, 0) == [44], "it was told in hello that we hold 44"
    receipts.shown(1, Cursor(1, 42, "v42"))
    assert receipts.wake_us == 0
    assert numbers(receipts, 0) == [42]
    receipts.shown(1, Cursor(2, 1, "x"))
    assert numbers(receipts, 0) == [43]


def test_what_did_not_verify_is_told_to_nobody_else(receipts: Receipts) -> None:
    receipts.add(Answered(1, Cursor(1, 5, "forged"), "rejected", verified=False), now_us=0, jitter_us=0)
    assert numbers(receipts, 0) == [5]
    connected(receipts)
    assert len(receipts) == 0


def test_a_restarted_history_ends_the_receipts_of_what_it_lost_and_no_others(receipts: Receipts) -> None:
    for number, subscription in ((4, 1), (5, 1), (6, 1), (6, 2)):
        receipts.add(answered(number, subscription=subscription), now_us=0, jitter_us=0)
    receipts.drop_lost(1, epoch=2, number=5)
    assert [(each.answered.subscription, each.answered.cursor.number) for each in receipts._queue] == [(1, 4), (2, 6)]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from(["applied", "unaffected", "rejected"]), st.booleans()),
            st.tuples(st.just("ack"), st.integers(0, 30)),
            st.tuples(st.just("reconnect")),
            st.tuples(st.just("wait"), st.integers(0, RESEND_US)),
        )
    )
)
def test_whatever_happens_nothing_is_lost_before_it_is_durable(steps: list[tuple]) -> None:
    receipts, now, number = connected(Receipts(Random(2))), 0, 0
    given_out: dict[int, tuple[str, int]] = {}  # seq -> (state, number), on this connection
    durable: set[int] = set()
    states: dict[int, str] = {}
    for step in steps:
        match step:
            case ("add", state, urgent):
                number += 1
                states[number] = state
                receipts.add(answered(number, state), now_us=now, jitter_us=0 if urgent else 1_000_000)
            case ("ack", seq):
                receipts.acknowledged(seq)
                durable |= {given_out[s][1] for s in given_out if s <= seq}
            case ("reconnect",):
                connected(receipts, now)
                given_out.clear()
            case ("wait", us):
                now += us
        for frame in receipts.due(now, 0):
            assert given_out.setdefault(frame.seq, (frame.state, frame.number)) == (frame.state, frame.number)
        assert [n for _, (_, n) in sorted(given_out.items())] == sorted(n for _, n in given_out.values())
    now += 10 * RESEND_US
    connected(receipts, now)
    last = {frame.number for frame in receipts.due(now, 0)}
    assert set(states) == durable | last
