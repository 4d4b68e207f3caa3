from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from heliograph.core.canonical import canonical
from heliograph.services.ledger.answers import RANK, Answer, Line, better, digest_of

states = st.sampled_from(sorted(RANK))
times = st.integers(0, 2**53 - 1)
answers = st.builds(Answer, states, st.none() | st.text(min_size=1, max_size=5), times, times)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
lines = st.builds(Line, texts, st.integers(0, 99), states, st.none() | texts, times, times)


@given(answers, answers, answers)
def test_joining_answers_knows_no_order_and_no_repetition(a, b, c):
    assert better(a, a) == a
    assert better(a, b) == better(b, a)
    assert better(better(a, b), c) == better(a, better(b, c))


def test_a_version_that_was_taken_after_all_counts_as_taken():
    refused, taken = Answer("rejected", "too large", 0, 1), Answer("applied", None, 5, 9)
    assert better(taken, refused) is taken


def test_the_first_of_two_equal_answers_stays():
    first, resent = Answer("applied", None, 5, 9), Answer("applied", None, 5, 20)
    assert better(resent, first) is first


@given(lines)
def test_the_text_of_a_line_is_canonical(line):
    by_hand = digest_of("v", [line])
    assert canonical([line.instance, line.subscription, line.state, line.reason, line.applied_at_us, line.received_at_us])
    import hashlib

    text = b"heliograph/v1/receipts\nv\n" + canonical(list(line)) + b"\n"
    assert by_hand == "sha256:" + hashlib.sha256(text).hexdigest()


def test_the_digest_of_a_known_set_never_changes():
    known = [
        Line("0190-a", 1, "applied", None, 1_790_000_000_012_000, 1_790_000_000_013_000),
        Line("0190-b", 1, "rejected", "max_items: must be ≤ 20", 0, 1_790_000_000_014_000),
    ]
    assert digest_of("sha256:" + "0" * 64, known) == "sha256:b588a0fc4a18488c724f4cb20d4420e4a2a14a29abd5cdd0da64a4130b29557a"
