"""The short way to a bundle, a head or the next version, in front of the framework.

Pollers ask for the same thing again and again, and mostly it has not changed. When everything the answer needs is in memory (the token was checked
within the last seconds, the environment is here) it is given from there, with the same replies as the routes in `api` give, for a fraction of their
cost. For everything else, errors and traced requests included, the routes are the way: nothing is decided here that they would decide otherwise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

from heliograph.access.permissions import Action, permits
from heliograph.access.principal import Knows
from heliograph.core import frames, names
from heliograph.core.errors import HeliographError
from heliograph.core.names import View
from heliograph.core.records import Cursor
from heliograph.runtime.clock import now_us
from heliograph.runtime.http_server import connection_of
from heliograph.services.sync import replies
from heliograph.services.sync.admission import Admission
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.hub import Hub
from heliograph.services.sync.replies import Reply
from heliograph.telemetry.metrics import Metrics

MAX_WAIT_S: Final = 25.0
MAX_ASKED: Final = 4096
"""Addresses whose meaning is remembered."""
MAX_REMEMBERED: Final = 1024
"""Bytes of such an address: a view of some dozens of configs. Strangers may ask, too."""
HELD: Final = "heliograph.held"
"""In a request's scope: it has waited for its time."""
BUNDLES: Final = "/v1/bundles/{namespace}/{environment}"
HEADS: Final = "/v1/heads/{namespace}/{environment}"
Counted = tuple[Counter, Histogram, Counter]
_KINDS: Final = {"bundles": BUNDLES, "heads": HEADS}


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address means. ``have`` None: a bundle, or a head."""

    route: str
    namespace: str
    environment: str
    view: View
    have: Cursor | None = None
    wait_s: float = 0.0


class Shortcut:
    def __init__(self, app: ASGIApp, hub: Hub, authenticator: Knows, admission: Admission, metrics: Metrics) -> None:
        self._app = app
        self._hub = hub
        self._authenticator = authenticator
        self._admission = admission
        self._metrics = metrics
        self._asked: dict[tuple[str, bytes], Asked] = {}
        self._counters: dict[tuple[str, int, str], Counted] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._answered(scope, send):
            await self._app(scope, receive, send)

    async def _answered(self, scope: Scope, send: Send) -> bool:
        if scope["type"] != "http" or scope["method"] != "GET" or (asked := self._meaning(scope)) is None:
            return False
        began = time.perf_counter()
        try:
            reply = await self._reply(asked, scope)
        except HeliographError:  # it is the framework's to say, the same way
            return False
        if reply is None:
            return False
        await _send(reply, send, last=self._hub.draining)
        self._count(asked, reply.status, time.perf_counter() - began)
        return True

    def _meaning(self, scope: Scope) -> Asked | None:
        """None for what is not asked here, or not in good order."""
        key = (scope["path"], scope["query_string"])
        asked = self._asked.get(key)
        if asked is None and (asked := _read(*key)) is not None and sum(map(len, key)) <= MAX_REMEMBERED:
            if len(self._asked) >= MAX_ASKED:
                self._asked.clear()
            self._asked[key] = asked
        return asked

    async def _reply(self, asked: Asked, scope: Scope) -> Reply | None:
        headers = dict(scope["headers"])
        token, environment = _bearer(headers), self._environment(asked)
        if token is None or environment is None or b"traceparent" in headers:
            return None
        principal = self._authenticator.known(token)
        if principal is None or not permits(principal, Action.HEAD, asked.namespace, asked.environment):
            return None
        if scope["client"]:
            self._admission.request(scope["client"][0])
        if asked.route is HEADS:
            return replies.head(environment)
        if asked.have is None:
            known = headers.get(b"if-none-match", b"").decode("latin-1")
            return replies.unchanged(environment, asked.view, known) or await self._bundle(environment, asked.view)
        await self._hold(asked, environment, scope, token)
        await self._hub.gathered(environment, asked.view, asked.have)
        return replies.frame(environment, asked.view, asked.have)

    async def _bundle(self, environment: Environment, view: View) -> Reply:
        await self._hub.gathered(environment, view, None)
        return replies.bundle(environment, view)

    def _environment(self, asked: Asked) -> Environment | None:
        room = self._hub.room(asked.namespace, asked.environment) if self._hub.warm else None
        if room is None:
            return None
        room.asked_us = now_us()
        return room.environment

    async def _hold(self, asked: Asked, environment: Environment, scope: Scope, token: str) -> None:
        """Raises what has become of the environment, or of the token, meanwhile."""
        if asked.have is None or not asked.wait_s:
            return
        protocol = connection_of(scope)
        try:
            await self._hub.hold(environment, asked.have, asked.wait_s, protocol.when_gone)
            scope[HELD] = True
        finally:
            protocol.when_gone(None)
        await self._authenticator.principal(token)

    def _count(self, asked: Asked, status: int, seconds: float) -> None:
        key = (asked.route, status, kind_of(asked.have, asked.wait_s))
        requests, took, answers = self._counters.get(key) or self._counted(*key)
        requests.inc()
        took.observe(seconds)
        if asked.route is BUNDLES:
            answers.inc()

    def _counted(self, route: str, status: int, kind: str) -> Counted:
        metrics = self._metrics
        found = self._counters[route, status, kind] = (
            metrics.http_requests.labels("GET", route, str(int(status))),
            metrics.http_request_seconds.labels("GET", route),
            metrics.bundle_answers.labels(kind),
        )
        return found


def kind_of(have: Cursor | None, wait_s: float) -> str:
    """As the metric has it."""
    return "bundle" if have is None else "poll" if wait_s else "frame"


def _read(path: str, query: bytes) -> Asked | None:
    """What the framework would take from this address; None where it would object."""
    place = path.split("/")
    if len(place) != 5 or place[:2] != ["", "v1"] or place[2] not in _KINDS:
        return None
    try:
        asked = parse_qs(
            query.decode("ascii"), keep_blank_values=True, max_num_fields=2 * frames.MAX_SELECTORS, errors="strict"
        )
        [have], [wait] = asked.get("have", [""]), asked.get("wait", ["0"])
        return Asked(
            route=_KINDS[place[2]],
            namespace=names.namespace(place[3]),
            environment=names.environment(place[4]),
            view=names.view(asked.get("view", [""])),
            have=Cursor.parse(have) if "have" in asked else None,
            wait_s=_seconds(wait),
        )
    except (ValueError, HeliographError):
        return None


def _seconds(text: str) -> float:
    """Raises ValueError for a wait that is none."""
    if not 0 <= (seconds := float(text)) <= MAX_WAIT_S:
        raise ValueError
    return seconds


def _bearer(headers: dict[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" and len(token) <= 256 else None


async def _send(reply: Reply, send: Send, *, last: bool) -> None:
    """`last`: the client's next request is for another node."""
    headers = [*reply.headers, (b"connection", b"close")] if last else list(reply.headers)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
