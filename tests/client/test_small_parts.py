"""Clock offset, backoff, mailboxes, close codes."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.client import Heliograph, Subscription, _codes
from heliograph.client._backoff import Backoff
from heliograph.client._clock import ClockOffset, Moment
from heliograph.client._dispatch import CAPACITY, Feed, Mailbox, call_each
from heliograph.client._identity import ephemeral
from heliograph.client._session import BEAT_US, Session
from heliograph.core import errors, frames

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"


def at(wall_us: int, *, apart_us: int = 0) -> Moment:
    """The two clocks are ``apart_us`` apart: a constant, until the wall clock jumps."""
    return Moment(wall_us, wall_us - apart_us)


@given(offset=st.integers(-(10**9), 10**9), there=st.integers(0, 5_000), back=st.integers(0, 5_000))
def test_the_offset_is_right_within_half_of_the_unevenness_of_the_way(offset: int, there: int, back: int) -> None:
    clock = ClockOffset()
    sent = 10**15
    clock.exchanged(sent, sent + offset + there, sent + offset + there + 100, at(sent + there + 100 + back))
    assert abs(clock.us - offset) <= abs(there - back) / 2 + 1


def test_the_quickest_exchange_counts() -> None:
    clock = ClockOffset()
    assert not clock.known
    clock.exchanged(1_000_000, 1_900_000, 1_900_000, at(1_900_001))  # 900 ms there: offset estimated far off
    clock.exchanged(2_000_000, 2_000_500, 2_000_500, at(2_001_000))
    assert clock.us == 0


def test_an_exchange_that_ends_before_it_began_is_not_counted() -> None:
    clock = ClockOffset()
    clock.exchanged(2_000_000, 2_000_500, 2_000_500, at(1_000_000))
    clock.exchanged(0, 5, 5, at(10))
    assert not clock.known
    assert clock.us == 0


@pytest.mark.parametrize("jump_us", [3_600_000_000, -3_600_000_000, 200_000])
def test_after_a_jump_of_the_wall_clock_the_first_exchange_counts(jump_us: int) -> None:
    clock, sent = ClockOffset(), 10**15
    for _ in range(10):
        sent += 10_000_000
        clock.exchanged(sent, sent + 500, sent + 500, at(sent + 1_000))
    sent += jump_us
    clock.exchanged(sent, sent - jump_us + 1_000, sent - jump_us + 1_000, at(sent + 2_000, apart_us=jump_us))
    assert clock.us == -jump_us


def test_two_clocks_that_are_not_read_in_one_moment_are_no_jump() -> None:
    clock, sent = ClockOffset(), 10**15
    clock.exchanged(sent, sent + 500, sent + 500, at(sent + 1_000))
    clock.exchanged(sent, sent + 40_000, sent + 40_000, at(sent + 40_000, apart_us=10_000))
    assert clock.us == 0


def places(count: int, selectors: int) -> list[Subscription]:
    view = [f"team-{number:02}/service-with-some-name/component-with-a-name/" for number in range(selectors)]
    return [Subscription("shop", f"environment-{number:02}", view) for number in range(count)]


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"subscriptions": places(64, 20)}, "views"),
        (
            {"subscriptions": places(64, 3), "labels": {chr(0x1F6F0 + number) * 200: "🛰" * 200 for number in range(32)}},
            "labels",
        ),
    ],
)
def test_a_client_that_could_not_say_hello_is_not_made(authority: Any, more: dict[str, Any], names: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=f"{names}.* bytes more than one connection can say"):
        Heliograph("http://localhost", token=authority.token(), cache_dir=None, **more)


def test_as_many_subscriptions_as_servers_take_fit_with_views_of_some_folders(authority: Any) -> None:
    Heliograph("http://localhost", token=authority.token(), cache_dir=None, subscriptions=places(64, 10))


def heartbeats(heartbeat_s: float, *, offset_us: int = 0, count: int = 40) -> list[Moment]:
    """When a session sends them that is asked each time it wants to be."""
    session = Session(ephemeral("t"), frames.Fingerprint(sdk="test", sdk_version="0"), [], lambda *_: None, random=Random(3))
    now, sent = Moment(10**15, 10**6), []
    session.greet(now)
    limits = frames.Limits(max_frame_bytes=1, max_subscriptions=1)
    at = now.wall_us + offset_us
    told = {"connection": "c", "node": "n", "region": "r", "received_at_us": at, "sent_at_us": at}
    session.take(frames.Welcome(**told, heartbeat_s=heartbeat_s, receipt_jitter_ms=0, limits=limits), now)
    while len(sent) < count:
        wake_us = session.wake_us()
        assert wake_us is not None
        now = Moment(now.wall_us + wake_us - now.steady_us, wake_us)
        if session.due(now):
            sent.append(now)
            session.take(frames.HeartbeatAck(echo_us=now.wall_us, received_at_us=now.wall_us + offset_us), now)
    return sent


@pytest.mark.parametrize("offset_us", [0, 123_456, -7_654_321])
def test_heartbeats_come_at_the_servers_beat_and_spread_over_many(offset_us: int) -> None:
    _, *later = heartbeats(25.0, offset_us=offset_us)
    assert {(each.wall_us + offset_us) % BEAT_US for each in later} == {0}
    pauses = [after.steady_us - before.steady_us for before, after in itertools.pairwise(later)]
    assert min(pauses) > 0.68 * 25e6
    assert max(pauses) < 25e6
    assert len(set(pauses)) > 10


def test_short_pauses_between_heartbeats_keep_their_length() -> None:
    sent = heartbeats(0.4)
    assert all(after.steady_us - before.steady_us >= 0.28e6 for before, after in itertools.pairwise(sent))


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_backoff_has_full_jitter_under_a_growing_capped_ceiling(seed: int, failures: int) -> None:
    backoff = Backoff(Random(seed), first_s=0.5, cap_s=30)
    for _ in range(failures):
        backoff.delay()
    assert 0 <= backoff.delay() <= min(30, 0.5 * 2**failures)
    assert backoff.delay(at_least_s=5) >= 5


@given(st.integers(0, 2**32), st.floats(0, 1e9))
def test_what_a_server_asks_is_done_with_jitter_of_its_size_and_within_reason(seed: int, asked: float) -> None:
    delay = Backoff(Random(seed), first_s=0.5, cap_s=30).delay(asked)
    assert min(asked, 300) <= delay <= min(asked, 300) + min(30, max(asked, 0.5))


def test_a_crowd_that_is_sent_away_for_five_seconds_comes_back_spread_over_five() -> None:
    delays = [Backoff(Random(seed), first_s=0.5).delay(5.0) for seed in range(1000)]
    assert max(delays) - min(delays) > 4


@pytest.mark.parametrize("seconds", [0.0, 0.2, 5, 7.4, 86_400])
def test_a_close_says_how_long_to_stay_away(seconds: float) -> None:
    error = _codes.error_for(4002, frames.closing("overloaded", seconds))
    assert isinstance(error, errors.Unavailable)
    assert error.retry_after is not None
    assert max(1, seconds) <= error.retry_after < max(1, seconds) + 1


@pytest.mark.parametrize(
    "reason", ["", "overloaded", "retry-after=5", "x; retry-after=", "x; retry-after=-5", "x; retry-after=5s"]
)
def test_a_close_that_does_not_say_it_is_one_without_a_time(reason: str) -> None:
    assert frames.retry_after(reason) is None


@dataclass(frozen=True)
class Span:
    """The numbers first to last, as one notice."""

    first: int
    last: int

    def merged(self, later: Span) -> Span:
        return Span(self.first, later.last)


async def test_a_full_mailbox_merges_into_its_last_notice() -> None:
    box: Mailbox[Span] = Mailbox()
    for number in range(CAPACITY + 100):
        box.put(Span(number, number))
    box.close()
    got = []
    while (notice := await box.get()) is not None:
        got.append(notice)
    assert len(got) == CAPACITY
    assert got[-1] == Span(CAPACITY - 1, CAPACITY + 99)
    assert all(earlier.last + 1 == later.first for earlier, later in itertools.pairwise(got))


async def test_a_failing_callback_gets_the_next_notice_and_the_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def callback(number: int) -> None:
        seen.append(number)
        if number == 1:
            raise RuntimeError("first")

    feed: Feed[Span, int] = Feed(lambda span: span.first, lambda _: None)
    for number in (1, 2, 3):
        feed.mailbox.put(Span(number, number))
    feed.mailbox.close()
    await call_each(feed, callback)
    assert seen == [1, 2, 3]
    assert "a callback of the application failed" in caplog.text


async def test_a_callback_that_awaits_what_was_cancelled_gets_the_next_notice(caplog: pytest.LogCaptureFixture) -> None:
    """As with a job that the next notice cancels: nobody cancelled the callback."""
    seen = []

    async def callback(number: int) -> None:
        seen.append(number)
        job = asyncio.create_task(asyncio.Event().wait())
        job.cancel()
        await job

    feed: Feed[Span, int] = Feed(lambda span: span.first, lambda _: None)
    for number in (1, 2):
        feed.mailbox.put(Span(number, number))
    feed.mailbox.close()
    await call_each(feed, callback)
    assert seen == [1, 2]
    assert "a callback of the application failed" in caplog.text


async def test_a_callback_that_is_cancelled_itself_ends(caplog: pytest.LogCaptureFixture) -> None:
    entered = asyncio.Event()

    async def callback(_: int) -> None:
        entered.set()
        await asyncio.Event().wait()

    feed: Feed[Span, int] = Feed(lambda span: span.first, lambda _: None)
    feed.mailbox.put(Span(1, 1))
    calling = asyncio.create_task(call_each(feed, callback))
    await entered.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert not caplog.records


async def test_a_cancelled_feed_ends_at_once() -> None:
    gone = []
    feed: Feed[Span, int] = Feed(lambda span: span.first, gone.append)
    feed.mailbox.put(Span(1, 1))
    waiting = asyncio.create_task(_all(feed))
    feed.cancel()
    assert await waiting == []
    assert gone == [feed]


async def _all(feed: Feed[Span, int]) -> list[int]:
    return [number async for number in feed]


def test_the_close_codes_are_those_of_the_contract() -> None:
    contract = json.loads((CONTRACTS / "close-codes.json").read_text())
    named = {one["code"]: one["name"] for one in contract["codes"]}
    assert named == {**_codes.RECONNECT, **_codes.STOP}
    stop = range(contract["stop"]["from"], contract["stop"]["to"] + 1)
    assert all(_codes.is_terminal(code) == (code in stop) for code in range(4000, 5000))


@pytest.mark.parametrize("code", list(_codes.STOP))
def test_a_terminal_code_stops_and_advises(code: int) -> None:
    assert _codes.is_terminal(code)
    error = _codes.error_for(code, "why")
    assert not isinstance(error, errors.Unavailable)
    assert str(code) in str(error)
    assert "why" in str(error)


@pytest.mark.parametrize("code", [1000, 1006, 1009, 1012, *_codes.RECONNECT, 4050])
def test_any_other_code_means_come_back(code: int) -> None:
    assert not _codes.is_terminal(code)
    assert isinstance(_codes.error_for(code), errors.Unavailable)


def test_every_code_of_the_error_tree_comes_back_as_its_class() -> None:
    assert isinstance(_codes.error_of("forbidden", "x"), errors.Forbidden)
    assert isinstance(_codes.error_of("not-found", "x"), errors.NotFound)
    assert type(_codes.error_of("stale-base", "x")) is errors.Conflict
    assert type(_codes.error_of("from-the-future", "x")) is errors.HeliographError
