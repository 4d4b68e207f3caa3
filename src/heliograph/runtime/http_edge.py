"""The edge of every HTTP request, as one plain ASGI middleware: one that wraps answers in tasks and queues would cost more than most handlers.

Each request gets a trace (kept from ``traceparent`` or begun), the moment it arrived, limits on its body and on the time until it is answered,
metrics, and, whatever happens, a problem document instead of a traceback.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Final

import msgspec
import structlog
from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heliograph.core.errors import HeliographError, Overloaded, TimedOut, TooLarge
from heliograph.runtime import problems
from heliograph.runtime.clock import now_us
from heliograph.telemetry import tracing
from heliograph.telemetry.metrics import Metrics

log = structlog.get_logger()

MAX_BODY: Final = 2 * 1024 * 1024
BODY_S: Final = 30.0
"""Seconds in which a request's body must have arrived: a sender of single bytes keeps nothing busy for longer."""
REQUEST_S: Final = 120.0
"""Seconds until an answer must have begun: above the longest wait that a caller may ask for."""
MAX_IN_FLIGHT: Final = 10_000
"""Requests at a time, most of which are long polls; more are told to come back. Health is always answered."""
DISCARD_S: Final = 5.0
MAX_DISCARD: Final = 8 * 1024 * 1024

HEALTH: Final = frozenset({"/healthz", "/readyz", "/metrics"})


def problem_response(error: HeliographError) -> Response:
    return Response(msgspec.json.encode(problems.problem(error)), problems.status_of(error), problems.headers(error))


def other_problem(
    status: int, code: str, title: str, detail: str, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """A problem document for what is no error of ours."""
    body = {"type": f"urn:heliograph:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return Response(msgspec.json.encode(body | more), status, {**(headers or {}), "Content-Type": problems.CONTENT_TYPE})


class Edge:
    """`large`: path suffix -> body limit for the routes that take more than `max_body` bytes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body: int = MAX_BODY,
        large: dict[str, int] | None = None,
        request_s: float = REQUEST_S,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body = max_body
        self._large = large or {}
        self._request_s = request_s
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        trace = tracing.continued(headers.get(b"traceparent", b"").decode("latin-1") or None)
        # our server has stamped it when the first byte came
        scope["state"] = {"received_at_us": now_us(), **scope.get("state", {}), "trace": trace}
        token = tracing.current.set(trace)
        try:
            with structlog.contextvars.bound_contextvars(trace=trace.trace_id):
                body = _Body(receive, headers, self._limit(scope["path"]))
                await self._measured(scope, body, _Answer(send, body, trace))
        finally:
            tracing.current.reset(token)

    def _limit(self, path: str) -> int:
        return next((size for suffix, size in self._large.items() if path.endswith(suffix)), self._max_body)

    async def _measured(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        began = time.perf_counter()
        self._in_flight += 1
        self._metrics.http_requests_in_flight.inc()
        try:
            await self._answered(scope, body, answer)
        finally:
            self._in_flight -= 1
            self._metrics.http_requests_in_flight.dec()
            self._metrics.http_requests.labels(scope["method"], _route(scope), str(answer.status)).inc()
            self._metrics.http_request_seconds.labels(scope["method"], _route(scope)).observe(time.perf_counter() - began)

    async def _answered(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        """By the app, or else by a problem; where the answer has begun already it stays unfinished, and the connection is closed on it."""
        try:
            async with asyncio.timeout(self._request_s) as deadline:
                if self._in_flight > self._max_in_flight and scope["path"] not in HEALTH:
                    raise Overloaded("too many requests at once", retry_after=1)
                await self._app(scope, body.receive, answer.within(deadline))
            return
        except HeliographError as error:
            problem = problem_response(error)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                problem = problem_response(TimedOut(f"there was no answer within {self._request_s:.0f} s"))
            else:
                incident = secrets.token_hex(6)
                log.exception("request_failed", incident=incident, route=_route(scope))
                problem = _incident(incident)
        if not answer.begun:
            await problem(scope, body.receive, answer.send)


class _Body:
    """A request's body on its way in: so many bytes, within so many seconds."""

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0
        declared = headers.get(b"content-length", b"0")
        self._declared = int(declared) if declared.isdigit() else 0
        self._sender_waits = headers.get(b"expect", b"").lower() == b"100-continue"
        self._deadline = asyncio.get_running_loop().time() + BODY_S
        self.complete = self._declared == 0 and b"transfer-encoding" not in headers

    async def receive(self) -> Message:
        """Raises TooLarge, TimedOut."""
        if self.complete:  # what follows the body is only the news that the client has gone
            return await self._receive()
        if self._declared > self._limit:
            raise self._too_large()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError:
            raise TimedOut(f"the request's body did not arrive within {BODY_S:.0f} s") from None
        if self._seen > self._limit:
            raise self._too_large()
        return message

    async def discard(self) -> None:
        """Takes in what the client is still sending, within bounds: closed on unread bytes, a connection is reset, and the client may never
        see why."""
        if self._sender_waits and not self._seen:
            return
        try:
            async with asyncio.timeout(DISCARD_S):
                while not self.complete and self._seen < self._limit + MAX_DISCARD:
                    await self._next()
        except TimeoutError:
            pass

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request's body is larger than {self._limit:,} bytes")


class _Answer:
    """An answer on its way out: its status, and whether it has begun."""

    def __init__(self, send: Send, body: _Body, trace: tracing.Trace) -> None:
        self._send = send
        self._body = body
        self._trace = trace
        self.status = 500
        self.begun = False

    def within(self, deadline: asyncio.Timeout) -> Send:
        """`send` for the app: the deadline is for the answer's begin; a long one may take its time."""

        async def send(message: Message) -> None:
            await self.send(message)
            if message["type"] == "http.response.start" and not deadline.expired():
                deadline.reschedule(None)

        return send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        await self._send(message)

    async def _begin(self, message: Message) -> None:
        self.status = message["status"]
        headers = [*message["headers"], (b"traceresponse", str(self._trace).encode())]
        if not self._body.complete:
            await self._body.discard()
            if not self._body.complete:  # what else it sends is no next request
                headers.append((b"connection", b"close"))
        message["headers"] = headers
        self.begun = True


def _route(scope: Scope) -> str:
    """The route's pattern, so that metrics stay few; never the path, which holds names."""
    route = scope.get("route")
    return getattr(route, "path", "unmatched")


def _incident(incident: str) -> Response:
    detail = f"an error of the server; its log names it incident {incident}"
    return other_problem(500, "internal", "Something went wrong", detail, incident=incident)
