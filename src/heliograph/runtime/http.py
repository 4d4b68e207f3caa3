"""The HTTP app that every service begins with.

    app = make_app("registry", metrics=metrics, readiness=readiness)
    await serve_http(app, host, port, stop=stop, on_started=...)

What happens at the edge of each request is in `http_edge`, the server in `http_server`.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from heliograph.core.errors import Fault, HeliographError, InvalidRequest, NotFound, Unauthenticated
from heliograph.runtime.http_edge import MAX_BODY, Edge, other_problem, problem_response
from heliograph.runtime.http_server import serve_http
from heliograph.telemetry.health import Health, OwnHealth, Readiness
from heliograph.telemetry.metrics import CONTENT_TYPE, Metrics

__all__ = ["Json", "RawJson", "bearer_token", "make_app", "serve_http"]


class Json(Response):
    """A JSON answer encoded by msgspec: structs and plain values alike."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


class RawJson(Response):
    """JSON that is text already."""

    media_type = "application/json"


def make_app(
    title: str,
    *,
    metrics: Metrics,
    readiness: Readiness,
    health: Health | None = None,
    max_body: int = MAX_BODY,
    large: dict[str, int] | None = None,
    **limits: Any,
) -> FastAPI:
    """`health`: of more than this process, where it is one of several. `large`: path suffix -> body limit for the routes that take more than
    `max_body` bytes. `limits`: as `Edge` takes them."""
    app = FastAPI(title=f"Heliograph {title}", docs_url=None, redoc_url=None, openapi_url=None, default_response_class=Json)
    app.add_exception_handler(HeliographError, _domain_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    _add_health(app, health or OwnHealth(metrics, readiness))
    app.add_middleware(Edge, metrics=metrics, max_body=max_body, large=large, **limits)
    return app


def _add_health(app: FastAPI, health: Health) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return Json({"status": "alive"})

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        missing, impaired = await health.missing(), await health.impairments()
        if not missing:
            return Json({"status": "degraded", "impaired": impaired} if impaired else {"status": "ready"})
        missing |= impaired  # what is impaired may be why something is missing
        detail = "; ".join(f"{condition}: {reason}" for condition, reason in missing.items())
        return other_problem(503, "not-ready", "Not ready", detail, {"Retry-After": "1"}, missing=missing)

    @app.get("/metrics", include_in_schema=False)
    async def exposition() -> Response:
        return Response(await health.exposition(), media_type=CONTENT_TYPE)


async def _domain_error(_: Request, error: Exception) -> Response:
    return problem_response(cast("HeliographError", error))


async def _http_error(_: Request, error: Exception) -> Response:
    """What the framework says by itself: no such path, no such method; or a limit of ours that it has wrapped."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, HeliographError):
        return problem_response(error.__cause__)
    if error.status_code == 404:
        return problem_response(NotFound("no such resource here; see the API's description"))
    code = "method-not-allowed" if error.status_code == 405 else f"http-{error.status_code}"
    return other_problem(error.status_code, code, error.detail, error.detail, dict(error.headers or {}))


async def _bad_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        Fault("/" + "/".join(str(each) for each in fault["loc"]), str(fault["type"]), str(fault["msg"]))
        for fault in error.errors()
    ]
    return problem_response(InvalidRequest("a parameter of the request is not understood", faults))


def bearer_token(request: Request) -> str:
    """The token of the Authorization header. Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > 256:
        raise Unauthenticated("send a token: Authorization: Bearer hel_…")
    return token.strip()
