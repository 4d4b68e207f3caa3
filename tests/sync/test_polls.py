"""Requests that wait, and the short way: many at once, those who go, and that both ways to an answer say the same."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from tests.sync.conftest import DEADLINE_S, ENVIRONMENT, NAMESPACE, PATH, head_of
from tests.sync.test_node import metric

from heliograph.core import frames
from heliograph.core.records import Cursor, Head
from heliograph.services.sync import polls
from heliograph.services.sync.polls import Polls
from heliograph.telemetry.metrics import Metrics

BUNDLE = f"/v1/bundles/{NAMESPACE}/{ENVIRONMENT}"
HEAD = f"/v1/heads/{NAMESPACE}/{ENVIRONMENT}"
TRACED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


async def cursor(world: Any) -> str:
    return str(head_of((await world.bundles.get(HEAD)).json()).cursor)


def waiting(world: Any, have: str, **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(world.bundles.get(BUNDLE, params={"have": have, "wait": "25"}, headers=headers))


async def held(world: Any, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await metric(world, "heliograph_polls_held") != count:
            await asyncio.sleep(0.02)


# --- the short way ------------------------------------------------------------------------------------------------------------------


ASKED: list[tuple[str, dict[str, Any]]] = [
    (HEAD, {}),
    (BUNDLE, {}),
    (BUNDLE, {"view": ["checkout/", "banner"]}),
    (BUNDLE, {"view": "checkout%2Flimits"}),
    (BUNDLE, {"view": ""}),
    (BUNDLE, {"view": "nowhere/", "other": "ignored"}),
    (BUNDLE, {"have": "{have}"}),
    (BUNDLE, {"have": "{have}", "wait": "0.05"}),
    (BUNDLE, {"have": "1.1.sha256:" + "5" * 64}),
    (BUNDLE, {"have": ""}),
    (BUNDLE, {"wait": "nan"}),
    (BUNDLE, {"wait": "26"}),
    (BUNDLE, {"view": "../"}),
    (BUNDLE + "/more", {}),
    (f"/v1/bundles/{NAMESPACE}/staging", {}),
]
UNLIKE = {"date", "traceresponse"}


async def test_both_ways_say_the_same(world):
    await world.publish(checkout__limits={"max": 1}, banner={"text": "a"})
    await world.synced(2)
    have = await cursor(world)
    for path, params in ASKED:
        asked = {key: value.format(have=have) if isinstance(value, str) else value for key, value in params.items()}
        short, long = [await world.bundles.get(path, params=asked, headers=headers) for headers in ({}, TRACED)]
        assert (short.status_code, short.content) == (long.status_code, long.content), (path, params)
        said = [{name: each.headers[name] for name in each.headers.keys() - UNLIKE} for each in (short, long)]
        assert said[0] == said[1], (path, params)
        assert "traceresponse" in long.headers


async def test_what_has_not_changed_is_said_by_either_way_and_counted(world):
    tag = (await world.bundles.get(BUNDLE)).headers["etag"]
    for known in (tag, f'W/{tag}, "other"'):
        for headers in ({}, TRACED):
            answer = await world.bundles.get(BUNDLE, headers={"If-None-Match": known, **headers})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    exposed = (await world.bundles.get("/metrics")).text
    assert 'route="/v1/bundles/{namespace}/{environment}",status="304"} 4.0' in exposed


# --- those who wait -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, TRACED], ids=["short", "long"])
async def test_all_who_wait_get_the_same_bytes_of_the_next_version(world, headers):
    have = await cursor(world)
    asking = [waiting(world, have, **headers) for _ in range(20)]
    await held(world, 20)
    await world.publish(banner={"text": "now"})
    answers = await asyncio.gather(*asking)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert isinstance(msgspec.json.decode(answers[0].content, type=frames.FromServer), frames.DeltaFrame)
    await held(world, 0)


async def test_who_goes_away_is_held_no_longer(world):
    have = await cursor(world)
    asking = [waiting(world, have), waiting(world, have, **TRACED)]
    await held(world, 2)
    for each in asking:
        each.cancel()
    await held(world, 0)


async def test_a_token_that_is_revoked_meanwhile_gets_nothing(world):
    asked = {"kind": "client", "name": "soon gone", "scopes": [{"namespace": NAMESPACE, "environment": ENVIRONMENT}]}
    made = (await world.api.post("/v1/tokens", json=asked)).raise_for_status().json()
    soon_gone = {"Authorization": f"Bearer {made['token']}"}
    await world.bundles.get(BUNDLE, headers=soon_gone)
    asking = waiting(world, await cursor(world), **soon_gone)
    await held(world, 1)
    (await world.api.delete(f"/v1/tokens/{made['id']}")).raise_for_status()
    await world.publish(banner={"text": "not for everybody"})
    assert (await asking).status_code == 401


async def test_an_environment_that_is_deleted_ends_the_wait(world):
    (await world.api.post(PATH.rsplit("/", 1)[0], json={"name": "brief"})).raise_for_status()
    admin = {"Authorization": f"Bearer {world.tokens['admin']}"}
    path = f"/v1/bundles/{NAMESPACE}/brief"
    frame = msgspec.json.decode((await world.bundles.get(path, headers=admin)).content, type=frames.SnapshotFrame)
    have = str(Head.read(frame.head.payload).cursor)
    asking = asyncio.create_task(world.bundles.get(path, params={"have": have, "wait": "25"}, headers=admin))
    await held(world, 1)
    (await world.api.delete(f"/v1/namespaces/{NAMESPACE}/environments/brief")).raise_for_status()
    assert (await asking).status_code == 404


async def test_a_stopping_node_answers_those_who_wait_and_takes_no_more(world):
    have = await cursor(world)
    asking = [waiting(world, have) for _ in range(3)]
    await held(world, 3)
    ending = asyncio.create_task(world.sync.end())
    for answer in await asyncio.gather(*asking):
        assert isinstance(msgspec.json.decode(answer.content, type=frames.FromServer), frames.Current)
        assert answer.headers["connection"] == "close"
    await ending
    await world.sync.start()


class TestLimit:
    @pytest.fixture
    def sync_settings(self):
        return {"max_connections": 4}

    async def test_those_who_wait_count_as_connections(self, world):
        have = await cursor(world)
        async with world.client() as client:
            await client.until(1)
            asking = [waiting(world, have) for _ in range(3)]
            await held(world, 3)
            refused = await waiting(world, have)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            await world.publish(banner={"text": "now"})
            assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}


# --- many at once -------------------------------------------------------------------------------------------------------------------


class Crowd:
    """So many who wait for one environment, and how many of them were answered in each turn of the loop."""

    def __init__(self, count: int, *, fanning: bool = False) -> None:
        self.environment: Any = SimpleNamespaceWithHash(cursor=Cursor(1, 1, "a"), closed=False)
        self.fanning = fanning
        self.polls = Polls(Metrics(), lambda: self.fanning)
        self.answered = 0
        self.tasks = [asyncio.create_task(self.wait()) for _ in range(count)]

    async def wait(self, wait_s: float = 30.0) -> None:
        await self.polls.hold(self.environment, Cursor(1, 1, "a"), wait_s, lambda _: None)
        self.answered += 1

    async def turns(self, work: Any) -> list[int]:
        working, seen, last = asyncio.create_task(work), [], 0
        while not working.done() or self.answered < len(self.tasks):
            await asyncio.sleep(0)
            seen.append(self.answered - last)
            last = self.answered
        return [each for each in seen if each]


class SimpleNamespaceWithHash(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.mark.parametrize(("fanning", "most"), [(False, polls.WOKEN), (True, polls.WOKEN_BEHIND)])
async def test_a_crowd_is_woken_some_at_a_time_and_fewer_behind_a_fan_out(fanning, most):
    crowd = Crowd(300, fanning=fanning)
    await asyncio.sleep(0)
    assert len(crowd.polls) == 300
    seen = await crowd.turns(crowd.polls.wake(crowd.environment))
    assert max(seen) <= most
    assert sum(seen) == 300
    assert len(crowd.polls) == 0


async def test_who_begins_to_wait_while_others_are_woken_waits_for_the_next():
    crowd = Crowd(200)
    await asyncio.sleep(0)
    waking = asyncio.create_task(crowd.polls.wake(crowd.environment))
    await asyncio.sleep(0)
    late = asyncio.create_task(crowd.wait())
    await waking
    await asyncio.gather(*crowd.tasks)
    assert not late.done()
    assert crowd.polls.awaits(crowd.environment)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert not crowd.polls.awaits(crowd.environment)


async def test_a_wait_that_is_over_leaves_nothing_behind():
    crowd = Crowd(0)
    await crowd.wait(0.01)
    assert not crowd.polls.awaits(crowd.environment)
    assert len(crowd.polls) == 0


async def test_a_drain_answers_everybody_within_its_time():
    crowd = Crowd(120)
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        await crowd.polls.drain(0.1)
        await asyncio.gather(*crowd.tasks)
