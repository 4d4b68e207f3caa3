"""The edge of every request, over a real socket."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import Query, Request
from fastapi.responses import StreamingResponse

from heliograph.core.errors import Forbidden, Overloaded, StaleBase, Unauthenticated
from heliograph.runtime import http_edge
from heliograph.runtime.http import Json, bearer_token, make_app, serve_http
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import Metrics

MIB = 1024 * 1024


class Service:
    """An app with a route for each thing that can happen."""

    def __init__(self, **limits) -> None:
        self.metrics = Metrics()
        self.readiness = Readiness("database")
        self.app = make_app("test", metrics=self.metrics, readiness=self.readiness, **limits)
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.add_routes()

    def add_routes(self) -> None:  # noqa: C901  # one line each
        app = self.app

        @app.post("/echo")
        @app.post("/large")
        async def echo(request: Request):
            return Json({"size": len(await request.body()), "received_at_us": request.state.received_at_us})

        @app.post("/unread")
        async def unread():
            raise Forbidden("not you")

        @app.post("/parsed")
        async def parsed(body: dict):  # the framework reads the body and wraps what happens then
            return Json(body)

        @app.get("/held")
        async def held():
            self.entered.set()
            await self.go_on.wait()
            return Json({"held": True})

        @app.get("/broken")
        async def broken():
            raise RuntimeError("the password is hunter2")

        @app.get("/stale")
        async def stale():
            raise StaleBase("look again", head="sha256:" + "0" * 64, number=42, more={"diff": []})

        @app.get("/overloaded")
        async def overloaded():
            raise Overloaded(retry_after=3.2)

        @app.get("/who")
        async def who(request: Request):
            return Json({"token": bearer_token(request)})

        @app.get("/paged")
        async def paged(limit: int = Query(10, le=500)):
            return Json({"limit": limit})

        @app.get("/torn")
        async def torn():
            async def lines():
                yield b"one\n"
                raise RuntimeError("in the middle")

            return StreamingResponse(lines())

    @asynccontextmanager
    async def served(self, port, **options):
        stop, started = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(serve_http(self.app, "127.0.0.1", port, stop=stop, on_started=started.set, **options))
            await started.wait()
            try:
                yield stop, task
            finally:
                stop.set()


@pytest.fixture
async def service(free_port):
    service, port = Service(large={"/large": 4 * MIB}), free_port()
    async with service.served(port), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        service.http, service.port = http, port
        yield service


def problem(answer, status, code):
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    body = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:heliograph:problem:{code}")
    assert body["title"]
    assert body["detail"]
    return body


async def sent(port, *pieces):
    """What comes back for these bytes, until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()


async def chunks(size, *, of=64 * 1024):
    for _ in range(size // of):
        yield b"x" * of


# --- problems -------------------------------------------------------------------------------------------------------------------


async def test_what_the_router_refuses_is_a_problem_too(service):
    problem(await service.http.get("/nowhere"), 404, "not-found")
    answer = await service.http.delete("/who")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"
    body = problem(await service.http.get("/paged?limit=many"), 400, "invalid-request")
    assert body["faults"][0]["pointer"] == "/query/limit"
    problem(await service.http.post("/parsed", content=b"{"), 400, "invalid-request")


async def test_an_unexpected_error_is_named_to_the_caller_and_told_to_the_log_only(service, capsys):
    body = problem(await service.http.get("/broken"), 500, "internal")
    assert body["incident"] in body["detail"]
    assert "hunter2" not in json.dumps(body)
    assert body["incident"] in capsys.readouterr().out


async def test_an_error_carries_its_data_and_its_headers(service):
    body = problem(await service.http.get("/stale"), 412, "stale-base")
    assert (body["head"], body["number"], body["diff"]) == ("sha256:" + "0" * 64, 42, [])
    answer = await service.http.get("/overloaded")
    problem(answer, 503, "overloaded")
    assert answer.headers["retry-after"] == "3"
    answer = await service.http.get("/who", headers={"Authorization": "Basic eA=="})
    problem(answer, 401, Unauthenticated.code)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert (await service.http.get("/who", headers={"Authorization": "bearer hel_x"})).json() == {"token": "hel_x"}


async def test_bytes_that_are_no_http_are_answered_by_a_problem(service):
    head, _, body = (await sent(service.port, b"\x16\x03\x01 hello\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "bad-http"


async def test_an_answer_that_fails_half_way_is_cut_and_never_looks_complete(service):
    with pytest.raises(httpx.RemoteProtocolError):
        await service.http.get("/torn")


# --- bodies ---------------------------------------------------------------------------------------------------------------------


async def test_a_body_beyond_the_limit_is_refused_whether_it_is_declared_or_not(service):
    for content in (b"x" * (3 * MIB), chunks(3 * MIB)):
        problem(await service.http.post("/echo", content=content), 413, "too-large")
    assert (await service.http.post("/echo", content=b"x" * 2 * MIB)).json()["size"] == 2 * MIB
    assert (await service.http.post("/large", content=chunks(3 * MIB))).json()["size"] == 3 * MIB
    problem(await service.http.post("/large", content=chunks(5 * MIB)), 413, "too-large")
    problem(await service.http.post("/parsed", content=chunks(3 * MIB)), 413, "too-large")


async def test_a_client_that_asks_before_sending_is_told_at_once(service):
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3145728\r\n\r\n"
    answer = await sent(service.port, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


async def test_a_refusal_reaches_a_client_that_is_still_sending(service):
    for _ in range(5):
        problem(await service.http.post("/unread", content=chunks(4 * MIB)), 403, "forbidden")


async def test_a_body_that_does_not_arrive_is_not_waited_for(service, monkeypatch):
    monkeypatch.setattr(http_edge, "BODY_S", 0.3)
    monkeypatch.setattr(http_edge, "DISCARD_S", 0.1)
    answer = await sent(service.port, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer
    answer = await sent(service.port, b"POST /unread HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")


async def test_trailers_do_not_become_headers(service):
    request = (
        b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n"
    )
    seen = []

    async def look(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        seen.append(dict(scope["headers"]))
        await Json({})(scope, receive, send)

    service.app.mount("/look", look)
    await sent(service.port, request.replace(b"/echo", b"/look/"))
    assert b"authorization" not in seen[0]


# --- limits ---------------------------------------------------------------------------------------------------------------------


async def test_an_answer_must_begin_in_time_and_may_then_take_longer(free_port):
    service, port = Service(request_s=0.3), free_port()

    @service.app.get("/long")
    async def long():
        async def lines():
            yield b"begun "
            await asyncio.sleep(0.6)
            yield b"ended"

        return StreamingResponse(lines())

    async with service.served(port), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        problem(await http.get("/held"), 503, "timed-out")
        assert (await http.get("/long")).text == "begun ended"


async def test_too_many_requests_at_once_are_told_to_come_back_but_health_is_answered(free_port):
    service, port = Service(max_in_flight=1), free_port()
    async with service.served(port), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        held = asyncio.create_task(http.get("/held"))
        await service.entered.wait()
        answer = await http.get("/paged")
        problem(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200
        service.go_on.set()
        assert (await held).status_code == 200
        assert (await http.get("/paged")).status_code == 200


# --- health, metrics, traces ------------------------------------------------------------------------------------------------------


async def test_ready_only_while_nothing_is_missing(service):
    assert (await service.http.get("/healthz")).json() == {"status": "alive"}
    body = problem(await service.http.get("/readyz"), 503, "not-ready")
    assert body["missing"] == {"database": "starting"}
    service.readiness.met("database")
    assert (await service.http.get("/readyz")).json() == {"status": "ready"}


async def test_metrics_are_labelled_by_route_and_never_by_path(service):
    await service.http.get("/paged?limit=1")
    await service.http.get("/shop/secret-name")
    text = (await service.http.get("/metrics")).text
    assert 'heliograph_http_requests_total{method="GET",route="/paged",status="200"} 1.0' in text
    assert 'heliograph_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert "secret-name" not in text


async def test_the_callers_trace_is_continued_and_a_broken_one_is_replaced(service):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = await service.http.get("/healthz", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
    assert answer.headers["traceresponse"].split("-")[1] == trace_id
    assert answer.headers["traceresponse"].split("-")[2] != "b7ad6b7169203331"
    answer = await service.http.get("/healthz", headers={"traceparent": "00-zz"})
    assert len(answer.headers["traceresponse"]) == 55


async def test_the_moment_of_arrival_is_the_first_bytes_and_not_the_bodys_end(service):
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    arrivals = []
    for pause in (0, 0.2):
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        await writer.drain()
        before = http_edge.now_us()
        await asyncio.sleep(pause)
        writer.write(b"body")
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(next(line for line in head.split(b"\r\n") if line.startswith(b"content-length")).split()[1])
        arrivals.append(json.loads(await reader.readexactly(size))["received_at_us"] - before)
    writer.close()
    assert arrivals[1] < 100_000
