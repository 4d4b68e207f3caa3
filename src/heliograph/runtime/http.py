"""The HTTP app that every service begins with, and the server it runs on.

    app = make_app("registry", metrics=metrics, readiness=readiness)
    await serve_http(app, host, port, stop=stop, on_started=...)

Middlewares are plain ASGI: one that wraps responses in tasks and queues would cost more than most handlers. Each request gets a trace (kept from
``traceparent`` or begun), the moment it arrived, a limit on its body's size and on the time it may take to arrive, and, whatever happens, a problem
document instead of a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from heliograph.core.errors import Fault, HeliographError, InvalidRequest, TimedOut, TooLarge, Unauthenticated
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.telemetry import tracing
from heliograph.telemetry.health import Readiness
from heliograph.telemetry.metrics import CONTENT_TYPE, Metrics

log = structlog.get_logger()

MAX_BODY: Final = 2 * 1024 * 1024
BODY_S: Final = 30.0
"""Seconds in which a request's body must have arrived: a sender of single bytes keeps nothing busy for longer."""
HEADERS_S: Final = 10.0
KEEP_ALIVE_S: Final = 65  # above a load balancer's usual 60, so that it closes first
BACKLOG: Final = 1024


class Json(Response):
    """A JSON answer encoded by msgspec: structs and plain values alike."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


class RawJson(Response):
    """JSON that is text already."""

    media_type = "application/json"


def make_app(
    title: str, *, metrics: Metrics, readiness: Readiness, max_body: int = MAX_BODY, large: dict[str, int] | None = None
) -> FastAPI:
    """`large`: path suffix -> body limit for the routes that take more than `max_body` bytes."""
    app = FastAPI(title=f"Heliograph {title}", docs_url=None, redoc_url=None, openapi_url=None, default_response_class=Json)
    app.add_exception_handler(HeliographError, _domain_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    _add_health(app, metrics, readiness)
    app.add_middleware(_Edge, metrics=metrics, limit=max_body, large=large or {})
    return app


def _add_health(app: FastAPI, metrics: Metrics, readiness: Readiness) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return Json({"status": "alive"})

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        if readiness.ready:
            return Json({"status": "ready"})
        return Json({"status": "not ready", "missing": readiness.missing()}, status_code=503)

    @app.get("/metrics", include_in_schema=False)
    async def exposition() -> Response:
        text = await asyncio.to_thread(metrics.exposition)  # it reads /proc
        return Response(text, media_type=CONTENT_TYPE)


# --- errors ---------------------------------------------------------------------------------------------------------------------


def problem_response(error: HeliographError) -> Response:
    return Response(msgspec.json.encode(problems.problem(error)), problems.status_of(error), problems.headers(error))


async def _domain_error(_: Request, error: Exception) -> Response:
    return problem_response(cast("HeliographError", error))


async def _http_error(_: Request, error: Exception) -> Response:
    """What the router says by itself: no such path, no such method."""
    assert isinstance(error, HTTPException)
    body = {
        "type": "about:blank",
        "title": error.detail,
        "status": error.status_code,
        "detail": "no such resource here; see the API's description" if error.status_code == 404 else error.detail,
        "code": {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http"),
    }
    headers = {"Content-Type": "application/problem+json", **(error.headers or {})}
    return Response(msgspec.json.encode(body), error.status_code, headers)


async def _bad_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        Fault("/" + "/".join(str(each) for each in fault["loc"]), str(fault["type"]), str(fault["msg"]))
        for fault in error.errors()
    ]
    return problem_response(InvalidRequest("a parameter of the request is not understood", faults))


# --- the edge of every request --------------------------------------------------------------------------------------------------


class _Edge:
    """Trace, arrival time, body limits, metrics, and the last word on errors."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, limit: int, large: dict[str, int]) -> None:
        self._app = app
        self._metrics = metrics
        self._limit = limit
        self._large = large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        trace = tracing.continued(headers.get(b"traceparent", b"").decode("latin-1") or None)
        scope["state"] = {**scope.get("state", {}), "received_at_us": now_us(), "trace": trace}
        token = tracing.current.set(trace)
        structlog.contextvars.bind_contextvars(trace=trace.trace_id)
        try:
            await self._measured(scope, self._bounded(scope, headers, receive), send, trace)
        finally:
            structlog.contextvars.unbind_contextvars("trace")
            tracing.current.reset(token)

    async def _measured(self, scope: Scope, receive: Receive, send: Send, trace: tracing.Trace) -> None:
        status = 500
        begun = False
        started = now_us()

        async def sending(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message["headers"], (b"traceresponse", str(trace).encode())]
            await send(message)

        self._metrics.http_requests_in_flight.inc()
        try:
            await self._app(scope, receive, sending)
        except HeliographError as error:
            if not begun:
                await problem_response(error)(scope, receive, sending)
        except Exception:
            incident = secrets.token_hex(6)
            log.exception("request_failed", incident=incident, path=_route(scope))
            if not begun:
                await _incident(incident)(scope, receive, sending)
        finally:
            self._metrics.http_requests_in_flight.dec()
            self._metrics.http_requests.labels(scope["method"], _route(scope), str(status)).inc()
            self._metrics.http_request_seconds.labels(scope["method"], _route(scope)).observe((now_us() - started) / 1e6)

    def _bounded(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        limit = next((size for suffix, size in self._large.items() if scope["path"].endswith(suffix)), self._limit)
        declared = headers.get(b"content-length", b"0")
        too_large = TooLarge(f"the request's body is larger than {limit:,} bytes")
        seen = 0
        deadline = asyncio.get_running_loop().time() + BODY_S
        complete = False

        async def receiving() -> Message:
            nonlocal seen, complete
            if declared.isdigit() and int(declared) > limit:
                raise too_large
            if complete:  # what follows the body is only the news that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise TimedOut(f"the request's body did not arrive within {BODY_S:.0f} s") from None
            seen += len(message.get("body", b""))
            if seen > limit:
                raise too_large
            complete = not message.get("more_body", False)
            return message

        return receiving


def _route(scope: Scope) -> str:
    """The route's pattern, so that metrics stay few; never the path, which holds names."""
    route = scope.get("route")
    return getattr(route, "path", "unmatched")


def _incident(incident: str) -> Response:
    body = {
        "type": "urn:heliograph:problem:internal",
        "title": "Something went wrong",
        "status": 500,
        "detail": f"an error of the server; its log names it incident {incident}",
        "code": "internal",
        "incident": incident,
    }
    return Response(msgspec.json.encode(body), 500, {"Content-Type": "application/problem+json"})


# --- who asks -------------------------------------------------------------------------------------------------------------------


def bearer_token(request: Request) -> str:
    """The token of the Authorization header. Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > 256:
        raise Unauthenticated("send a token: Authorization: Bearer hel_…")
    return token.strip()


# --- the server -----------------------------------------------------------------------------------------------------------------


class _PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose headers do not arrive: uvicorn itself would wait for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def _wait_for_headers(self) -> None:
        self._forget()
        self._deadline = self.loop.call_later(HEADERS_S, self._give_up)

    def _forget(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_headers()

    def on_headers_complete(self) -> None:
        self._forget()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: stopping is our supervisor's decision."""

    def install_signal_handlers(self) -> None:
        pass

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


async def serve_http(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    stop: asyncio.Event,
    on_started: Callable[[], None] = lambda: None,
    drain_s: float = 10.0,
) -> None:
    """Serves until `stop`, then finishes the requests in hand within `drain_s` seconds. Raises InvalidRequest when it cannot listen."""
    config = uvicorn.Config(
        app,
        http=_PatientProtocol,
        loop="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(drain_s)),
        ws="none",
    )
    server = _Server(config)
    listening = bind(host, port)
    serving = asyncio.create_task(server.serve(sockets=[listening]), name=f"http {port}")
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # uvicorn has a flag only
        if not serving.done():
            on_started()
        await _either(serving, stop)
    finally:
        server.should_exit = True
        await serving
        listening.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening address, or InvalidRequest with the reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InvalidRequest(f"cannot listen on {host}:{port}: {error.strerror}; is another one running?") from None
    listening.setblocking(False)
    return listening


async def _either(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
