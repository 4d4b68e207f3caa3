"""The session alone, without I/O, in cases that a network seldom plays."""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import Any

import msgspec

from heliograph.client._clock import Moment
from heliograph.client._identity import ephemeral
from heliograph.client._live import Live
from heliograph.client._receipts import RESEND_CAP_US
from heliograph.client._session import Applied, Channel, Effect, Session
from heliograph.core import frames
from heliograph.core.errors import Invalid
from heliograph.core.replica import Replica
from heliograph.core.trust import Trust

START = Moment(1_790_000_000_000_000, 1_000_000)
FINGERPRINT = frames.Fingerprint(sdk="test", sdk_version="0")


def later(seconds: float) -> Moment:
    return Moment(START.wall_us + int(seconds * 1e6), START.steady_us + int(seconds * 1e6))


class Client:
    """A session with the application beside it, which rejects the versions ``rejects``; ``held`` is what the disk had."""

    def __init__(
        self, authority: Any, *, rejects: Collection[int] = (), held: Replica | None = None, view: tuple[str, ...] = ("",)
    ) -> None:
        self.live = Live("shop", "production", view, lambda _: None)
        self.rejects = rejects
        self.live.validators.append(self.check)
        trust = Trust.from_root(authority.root(), authority.anchor)
        replica = held or Replica(trust, "shop", "production", self.live.view)
        self.channel = Channel(1, replica, source="disk" if held else "none")
        if held:
            assert held.cursor is not None
            self.live.swap(self.live.propose(held.cursor, held.texts, frozenset(held.texts)))
        self.session = Session(ephemeral("t"), FINGERPRINT, [self.channel], self.propose, random=Random(3))

    def check(self, update: Any) -> None:
        if update.cursor.number in self.rejects:
            raise Invalid("the application's reason")

    def propose(self, _: Channel, candidate: Any) -> Any:
        return self.live.propose(candidate.cursor, candidate.texts, candidate.changed, restarted=candidate.restarted)

    def connect(self, now: Moment) -> None:
        self.session.greet(now)
        limits = frames.Limits(max_frame_bytes=1, max_subscriptions=1)
        told = {"connection": "c", "node": "n", "region": "r", "received_at_us": 0, "sent_at_us": 0, "heartbeat_s": 10}
        self.take(frames.Welcome(**told, receipt_jitter_ms=3_000, limits=limits), now)

    def take(self, frame: frames.FromServer, now: Moment) -> list[Effect]:
        effects = self.session.take(frame, now)
        for effect in effects:
            if isinstance(effect, Applied):
                self.live.swap(effect.proposal)
        return effects

    def receipts(self, now: Moment) -> list[frames.Receipt]:
        return [frame for frame in self.session.due(now) if isinstance(frame, frames.Receipt)]


def test_before_the_welcome_nothing_is_due_and_nothing_wakes(authority: Any) -> None:
    """Else who waits for the session's next word would ask for it without a pause."""
    client = Client(authority)
    client.connect(START)
    client.take(authority.snapshot(), START)
    assert client.receipts(later(5))
    client.session.lost()
    now = later(5 + 3 * RESEND_CAP_US / 1e6)
    client.session.greet(now)
    assert client.session.due(now) == []
    wake_us = client.session.wake_us()
    assert wake_us is not None
    assert wake_us > now.steady_us
    assert client.session.silent(Moment(now.wall_us, wake_us)), "it wakes when it has waited enough"


def test_a_rejection_that_verified_is_told_after_a_reconnect_also_when_its_version_had_come_damaged(authority: Any) -> None:
    """What did not verify is told to the connection that said it and forgotten with it; what the application said is not."""
    client = Client(authority, rejects={3})
    client.connect(START)
    client.take(authority.snapshot(), START)
    client.receipts(later(5))
    client.session.receipts.acknowledged(1)
    held = authority.latest
    authority.publish(checkout__limits={"max_items": 2})
    good = authority.delta(held)
    damaged = msgspec.structs.replace(
        good, changes=tuple(msgspec.structs.replace(one, document='{"max_items":3}') for one in good.changes)
    )
    client.take(damaged, later(6))
    assert [type(frame) for frame in client.session.due(later(6))] == [frames.Resync]
    client.take(damaged, later(6))
    assert client.channel.alarm is not None
    client.take(authority.snapshot(have=held.cursor), later(7))
    assert client.channel.rejection is not None
    client.session.lost()
    client.connect(later(8))
    client.take(authority.delta(held), later(8))
    told = [(one.number, one.state, one.reason) for one in client.receipts(later(60))]
    assert told == [(3, "rejected", "the application's reason")]


def test_a_replay_of_what_came_from_the_disk_is_not_answered_as_a_rejection(authority: Any) -> None:
    before = Client(authority)
    before.connect(START)
    before.take(authority.snapshot(), START)
    client = Client(authority, held=before.channel.replica)
    client.connect(START)
    client.take(authority.current(), START)
    held = authority.latest
    authority.publish(checkout__limits={"max_items": 2})
    client.take(authority.delta(held), later(1))
    assert [one.number for one in client.receipts(later(10))] == [2, 3]
    client.session.receipts.acknowledged(2)
    client.take(authority.snapshot(to=held), later(11))
    assert client.channel.alarm is not None
    assert client.receipts(later(60)) == []


def test_schemas_are_declared_as_far_as_the_whole_hello_has_room(authority: Any) -> None:
    """Quotes count twice: a schema is JSON within JSON. What a heartbeat says afterwards is the same choice."""
    view = tuple(f"team-{number:03}/{'f' * 60}/{'c' * 60}" for number in range(256))
    client = Client(authority, view=view)
    declared = dict.fromkeys(view[:32], '"' * 3_000)
    client.channel.declares = lambda: declared
    hello = client.session.greet(START)
    assert len(msgspec.json.encode(hello)) <= frames.MAX_CLIENT_FRAME
    chosen = hello.subscriptions[0].declares
    assert chosen
    assert len(chosen) < len(declared)
    client.connect(later(1))
    [beat] = [frame for frame in client.session.due(later(3)) if isinstance(frame, frames.Heartbeat)]
    assert beat.declares is msgspec.UNSET
