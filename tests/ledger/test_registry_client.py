"""What the ledger says to the registry over HTTP, against a server that says what the registry says."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from fastapi import FastAPI, Request, Response

from heliograph.core.errors import Corrupt, InvalidRequest, Unavailable
from heliograph.services.ledger.ledger import Ledger
from heliograph.services.ledger.registry import HttpRegistry


class Answers:
    """Remembers what was asked and answers in turn."""

    def __init__(self) -> None:
        self.asked = []
        self.answers = []
        app = FastAPI()
        app.add_api_route("/{path:path}", self.answer, methods=["GET", "POST"])
        transport = httpx.ASGITransport(app)
        client = httpx.AsyncClient(transport=transport, base_url="http://registry", headers={"Authorization": "Bearer t"})
        self.registry = HttpRegistry(client)

    async def answer(self, request: Request) -> Response:
        self.asked.append(
            (request.method, str(request.url).removeprefix("http://registry"), dict(request.headers), await request.body())
        )
        status, body = self.answers.pop(0)
        return Response(msgspec.json.encode(body), status)


@pytest.fixture
async def answers():
    found = Answers()
    yield found
    await found.registry.close()


@pytest.fixture
async def report(stage, story):
    async with stage.leading() as term:
        await stage.receipts(story.subscribed("secretive-host", -1))
        v = await stage.commit(story.version(received=0), at=2)
        await stage.receipts(story.answer("secretive-host", v, "applied", 10))
        await stage.caught_up(term)
        stage.clock.set(20)
        await term.keeper.tick()
        return await Ledger.propagation(stage.ledger, story.address, 1)


async def test_a_closed_propagation_is_told_with_its_figures_and_without_names(answers, report):
    answers.answers = [(204, None)]
    await answers.registry.record_closed(report, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    [(method, path, headers, body)] = answers.asked
    said = msgspec.json.decode(body)
    assert (method, path) == ("POST", "/v1/internal/audit")
    assert headers["authorization"] == "Bearer t"
    assert headers["idempotency-key"] == f"propagation.closed:{report.version}"
    assert headers["traceparent"].startswith("00-0af7")
    assert (said["action"], said["namespace"], said["environment"]) == ("propagation.closed", "shop", "production")
    assert said["detail"]["digest"] == report.digest
    assert said["detail"]["applied"] == 1
    assert said["detail"]["times_ms"]["applied"]["p99"] == 10.0
    assert b"secretive-host" not in body


@pytest.mark.parametrize(
    ("status", "error"), [(503, Unavailable), (401, Unavailable), (429, Unavailable), (422, InvalidRequest)]
)
async def test_what_may_succeed_later_is_told_apart_from_what_will_not(answers, report, status, error):
    answers.answers = [(status, None)]
    with pytest.raises(error):
        await answers.registry.record_closed(report, None)


async def test_nobody_there(report):
    client = httpx.AsyncClient(base_url="http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        await HttpRegistry(client).record_closed(report, None)
    await client.aclose()


def head(story):
    version = story.version(received=0)
    return {"namespace": "shop", "environment": "production", "head": version.head, "version": version.version}


async def test_heads_are_read_to_the_last_page(answers, story):
    answers.answers = [(200, {"items": [head(story)], "next": "shop/production"}), (200, {"items": [], "next": None})]
    assert [each.environment async for each in answers.registry.heads()] == ["production"]
    assert [path for _, path, _, _ in answers.asked] == ["/v1/internal/heads", "/v1/internal/heads?cursor=shop%2Fproduction"]


async def test_nonsense_is_not_taken_for_heads(answers):
    answers.answers = [(200, {"nope": 1})]
    with pytest.raises(Corrupt):
        [each async for each in answers.registry.heads()]
