"""A client tells what its bindings can read, so that nobody publishes what would break it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pydantic
import pytest

from heliograph.client import Heliograph
from heliograph.client._bind import schema_of
from heliograph.client._clock import Moment
from heliograph.client._identity import ephemeral
from heliograph.client._live import Live
from heliograph.client._session import Channel, Session
from heliograph.core import frames
from heliograph.core.replica import Replica
from heliograph.core.trust import Trust


@dataclasses.dataclass
class AsDataclass:
    max_items: int


class AsStruct(msgspec.Struct):
    max_items: int


class AsModel(pydantic.BaseModel):
    max_items: int


@pytest.mark.parametrize("kind", [AsDataclass, AsStruct, AsModel])
def test_the_schema_of_a_type_says_what_it_takes(kind: type) -> None:
    from heliograph.services.registry.schemas import compiled

    text = schema_of(kind)
    assert text
    validator = compiled(json.loads(text))
    assert validator.is_valid({"max_items": 5})
    assert not validator.is_valid({"max_items": "many"})
    assert not validator.is_valid({})


def test_what_has_no_schema_or_a_very_large_one_is_not_declared() -> None:
    class Odd:
        pass

    huge = msgspec.defstruct("Huge", [(f"a_rather_long_name_{n}", int) for n in range(500)])
    assert schema_of(Odd) is None
    assert schema_of(huge) is None
    assert schema_of(dict[str, int]) is not None


async def test_bindings_are_declared_by_a_heartbeat_and_in_the_next_hello(server: Any, tmp_path: Path) -> None:
    server.welcome = {"heartbeat_s": 0.2}
    async with Heliograph(
        server.url, token=server.authority.token(), namespace="shop", environment="production", cache_dir=tmp_path
    ) as client:
        connection = await server.connection()
        assert connection.hello.subscriptions[0].declares is msgspec.UNSET
        client.bind("checkout/limits", AsStruct)
        declared = {"checkout/limits": schema_of(AsStruct)}

        def beats() -> list[frames.Heartbeat]:
            return [each for each in server.heard if isinstance(each, frames.Heartbeat)]

        await server.until(lambda: [each for each in beats() if each.declares is not msgspec.UNSET])
        said = len(beats())
        await server.until(lambda: len(beats()) > said + 1)
        assert [each.declares for each in beats() if each.declares is not msgspec.UNSET] == [{"1": declared}], "once"
        await connection.close(1012)
        assert (await server.connection(2)).hello.subscriptions[0].declares == declared


def test_what_is_declared_fits_a_frame(authority: Any) -> None:
    kind = msgspec.defstruct("Large", [(f"a_rather_long_name_{n}", int) for n in range(100)])
    lives = [Live("shop", "production", ("",), lambda _: None) for _ in range(2)]
    for live in lives:
        for n in range(100):
            live.declare(f"c{n}", schema_of(kind))
            live.declare(f"c{n}", "another one for the same config")
    trust = Trust.from_root(authority.root(), authority.anchor)
    channels = [Channel(n, Replica(trust, "shop", "production", live.view)) for n, live in enumerate(lives, 1)]
    for channel, live in zip(channels, lives, strict=True):
        channel.declares = lambda live=live: live.declares
    session = Session(ephemeral("t"), frames.Fingerprint(sdk="t", sdk_version="0"), channels, None, random=Random(3))
    hello = session.greet(Moment(1, 1))
    declared = [text for each in hello.subscriptions if each.declares for text in each.declares.values()]
    assert 0 < len(declared) <= frames.MAX_DECLARED
    assert set(declared) == {schema_of(kind)}
    assert sum(map(len, declared)) <= frames.MAX_DECLARED_BYTES
    assert len(msgspec.json.encode(hello)) < frames.MAX_CLIENT_FRAME
