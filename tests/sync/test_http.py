"""Bundles, heads and long poll: the same frames and cursors as the stream."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from tests.sync.conftest import ENVIRONMENT, NAMESPACE, head_of

from heliograph.core import frames
from heliograph.core.records import Cursor
from heliograph.runtime.clock import now_us

BUNDLE = f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}"


def believed(world: Any, view: tuple[str, ...], content: bytes) -> Any:
    replica = world.replica(view)
    frame = msgspec.json.decode(content, type=frames.SnapshotFrame)
    replica.adopt(replica.consider(frame, now_us()))
    return replica


async def test_a_bundle_is_a_snapshot_that_verifies(world):
    made = await world.publish(checkout__limits={"max": 1}, banner={"text": "a"})
    await world.synced(made["number"])
    answer = await world.bundles.get(BUNDLE, params={"view": "checkout/"})
    replica = believed(world, ("checkout/",), answer.content)
    assert replica.configs == {"checkout/limits": {"max": 1}}
    assert answer.headers["etag"] == f'"{replica.view_digest}"'


async def test_the_etag_stays_while_the_view_stays(world):
    await world.publish(checkout__limits={"max": 1}, banner={"text": "a"})
    await world.synced(2)
    tag = (await world.bundles.get(BUNDLE, params={"view": "checkout/"})).headers["etag"]
    await world.publish(banner={"text": "b"})
    await world.synced(3)
    same = await world.bundles.get(BUNDLE, params={"view": "checkout/"}, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    await world.publish(checkout__limits={"max": 2})
    await world.synced(4)
    other = await world.bundles.get(BUNDLE, params={"view": "checkout/"}, headers={"If-None-Match": tag})
    assert other.status_code == 200


async def test_have_is_answered_with_the_frame_that_the_stream_would_send(world):
    await world.publish(banner={"text": "a"})
    await world.synced(2)
    replica = believed(world, ("",), (await world.bundles.get(BUNDLE)).content)
    current = await world.bundles.get(BUNDLE, params={"have": str(replica.cursor)})
    assert isinstance(msgspec.json.decode(current.content, type=frames.FromServer), frames.Current)
    assert current.headers["cache-control"] == "no-store"
    await world.publish(banner={"text": "b"})
    await world.synced(3)
    frame = msgspec.json.decode(
        (await world.bundles.get(BUNDLE, params={"have": str(replica.cursor)})).content, type=frames.FromServer
    )
    assert isinstance(frame, frames.DeltaFrame)
    replica.adopt(replica.consider(frame, now_us()))
    assert replica.configs == {"banner": {"text": "b"}}


async def test_a_long_poll_is_answered_by_the_next_version(world):
    replica = believed(world, ("",), (await world.bundles.get(BUNDLE)).content)
    waiting = asyncio.create_task(world.bundles.get(BUNDLE, params={"have": str(replica.cursor), "wait": "25"}))
    await world.publish(banner={"text": "now"})
    frame = msgspec.json.decode((await waiting).content, type=frames.FromServer)
    replica.adopt(replica.consider(frame, now_us()))
    assert replica.configs == {"banner": {"text": "now"}}


async def test_a_long_poll_ends_with_current_when_nothing_comes(world):
    head = head_of((await world.bundles.get(f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}")).json())
    answer = await world.bundles.get(BUNDLE, params={"have": str(head.cursor), "wait": "0.2"})
    assert isinstance(msgspec.json.decode(answer.content, type=frames.FromServer), frames.Current)


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        (BUNDLE, {"have": "nonsense"}, 400),
        (BUNDLE, {"have": "1.2.sha256:short"}, 400),
        (BUNDLE, {"view": "../.."}, 400),
        (BUNDLE, {"wait": "99"}, 400),
        (f"/v1/bundles/{NAMESPACE}/nowhere", {}, 403),
        ("/v1/bundles/other/production", {}, 403),
        ("/v1/nothing", {}, 404),
    ],
)
async def test_what_is_refused_with_a_problem_document(world, path, params, status):
    answer = await world.bundles.get(path, params=params)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


async def test_a_cursor_of_another_history_gets_a_snapshot(world):
    lost = Cursor(1, 1, "sha256:" + "5" * 64)
    frame = msgspec.json.decode((await world.bundles.get(BUNDLE, params={"have": str(lost)})).content, type=frames.FromServer)
    assert isinstance(frame, frames.SnapshotFrame)


async def test_without_a_token_there_is_health_and_nothing_else(world):
    import httpx

    async with httpx.AsyncClient(base_url=world.bundles.base_url) as nobody:
        assert (await nobody.get("/healthz")).status_code == 200
        assert (await nobody.get("/readyz")).json() == {"status": "ready"}
        assert "heliograph_connections" in (await nobody.get("/metrics")).text
        for path in (BUNDLE, f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}"):
            assert (await nobody.get(path)).status_code == 401
        assert (await nobody.post("/v1/receipts", json={})).status_code == 401


@pytest.mark.parametrize("sync_settings", [{"requests_per_address_s": 3}])
async def test_too_many_requests_of_one_address_are_told_when_to_come_back(world):
    answers = [await world.bundles.get(BUNDLE) for _ in range(30)]
    assert answers[0].status_code == 200
    told = next(each for each in answers if each.status_code == 429)
    assert int(told.headers["retry-after"]) >= 1
    assert told.json()["code"] == "throttled"
    assert (await world.bundles.get("/healthz")).status_code == 200
