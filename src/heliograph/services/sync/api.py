"""Bundles, long poll and receipts over HTTP: the same cursors, frames and rules as the stream, for clients that cannot hold a socket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Query, Request, Response

from heliograph.access.permissions import Action, allow
from heliograph.access.principal import Authenticator, Principal
from heliograph.core import frames, names
from heliograph.core.dsse import to_envelope
from heliograph.core.errors import Forbidden, Invalid, InvalidRequest, NotReady, TooLarge, Unavailable
from heliograph.core.events import Received
from heliograph.core.records import HEAD_TYPE, Cursor
from heliograph.runtime.clock import now_us
from heliograph.runtime.http import Json, RawJson, bearer_token
from heliograph.services.sync.environment import Environment
from heliograph.services.sync.hub import Hub, is_ahead
from heliograph.services.sync.receipts import Outbox
from heliograph.services.sync.session import Session, Subscriber, received
from heliograph.telemetry.metrics import Metrics

MAX_WAIT_S: Final = 25.0
MAX_RECEIPTS: Final = 1000
STORE_S: Final = 20.0
BUNDLE_AGE_S: Final = 5
HEAD_AGE_S: Final = 1


class PolledReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt with the subscription it belongs to."""

    namespace: str
    environment: str
    view: tuple[str, ...] = ("",)
    receipt: frames.Receipt


class PolledReceipts(msgspec.Struct, frozen=True, kw_only=True):
    instance: str
    incarnation: int
    fingerprint: frames.Fingerprint
    receipts: tuple[PolledReceipt, ...]


def make_router(hub: Hub, outbox: Outbox, authenticator: Authenticator, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    async def principal(request: Request) -> Principal:
        return await authenticator.principal(bearer_token(request))

    @router.get("/v1/heads/{namespace}/{environment}")
    async def head(request: Request, namespace: str, environment: str) -> Response:
        """The signed head as this node has it, as a DSSE envelope."""
        allow(await principal(request), Action.HEAD, namespace, environment)
        found = await hub.find(names.namespace(namespace), names.environment(environment))
        return Json(to_envelope(found.signed_head, HEAD_TYPE), headers={"Cache-Control": f"private, max-age={HEAD_AGE_S}"})

    @router.get("/v1/bundles/{namespace}/{environment}")
    async def bundle(
        request: Request,
        namespace: str,
        environment: str,
        view: Annotated[list[str] | None, Query()] = None,
        have: str | None = None,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Response:
        """A snapshot of a view, with an ETag that stays until something in the view changes.

        ``view`` is a folder (``checkout/``) or a name, repeated for several; without it, everything. With ``have``, the cursor
        ``<epoch>.<number>.<version id>`` of what the client runs on, the answer is the frame that the stream would send from there; ``wait`` holds it
        for so many seconds while there is nothing new.
        """
        allow(await principal(request), Action.HEAD, namespace, environment)
        found = await hub.find(names.namespace(namespace), names.environment(environment))
        wanted = names.view(view if view is not None else [""])
        metrics.bundle_answers.labels("bundle" if have is None else "poll" if wait else "frame").inc()
        if have is None:
            return _bundle(found, wanted, request.headers.get("if-none-match", ""))
        return await _frame(found, wanted, _cursor(have), wait)

    @router.post("/v1/receipts")
    async def receipts(request: Request) -> Response:
        """Takes what an instance says of its versions. Answered when it is durable: ``acknowledged`` is the highest ``seq``."""
        asking = await principal(request)
        told = await _read(request)
        if len(told.receipts) > MAX_RECEIPTS:
            raise TooLarge(f"at most {MAX_RECEIPTS} receipts at a time")
        stored = await _stored(hub, asking, told)
        await _keep(outbox, stored)
        return Json({"acknowledged": max((each.receipt.seq for each in told.receipts), default=-1)})

    return router


def _bundle(environment: Environment, view: names.View, known: str) -> Response:
    """A snapshot of the view; its ETag stays the same until something in the view changes."""
    tag = f'"{environment.view_digest(view)}"'
    headers = {
        "ETag": tag,
        "Cache-Control": f"private, max-age={BUNDLE_AGE_S}",
        "Heliograph-Version": str(environment.head.number),
    }
    if tag in {each.strip().removeprefix("W/") for each in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return RawJson(_whole(environment, view), headers=headers)


def _whole(environment: Environment, view: names.View) -> bytes:
    parts = environment.frames(0, view, None)
    return parts[0] if len(parts) == 1 else b"[" + b",".join(parts) + b"]"


async def _frame(environment: Environment, view: names.View, have: Cursor, wait_s: float) -> Response:
    """The frame that the stream would send to a client at `have`; held up to `wait_s` while there is nothing new. Raises NotReady for one that was
    served by a node that is ahead of this one, and goes on being so."""
    if (environment.cursor == have or is_ahead(have, environment.cursor)) and wait_s:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while environment.cursor == have or is_ahead(have, environment.cursor):
                    await environment.moved_from(environment.cursor)
    if is_ahead(have, environment.cursor):
        raise NotReady(f"version {have.number} is not here yet", retry_after=1)
    headers = {"Cache-Control": "no-store"}
    if environment.cursor == have:
        return RawJson(environment.current(0), headers=headers)
    parts = environment.frames(0, view, have)
    return RawJson(parts[0] if len(parts) == 1 else b"[" + b",".join(parts) + b"]", headers=headers)


def _cursor(text: str) -> Cursor:
    try:
        return Cursor.parse(text)
    except ValueError:
        raise InvalidRequest("have is not a cursor: expected <epoch>.<number>.<version id>") from None


async def _read(request: Request) -> PolledReceipts:
    try:
        return msgspec.json.decode(await request.body(), type=PolledReceipts)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from None
    except msgspec.DecodeError:
        raise Invalid("the body is not JSON") from None


async def _stored(hub: Hub, asking: Principal, told: PolledReceipts) -> list[Received]:
    """What each receipt becomes, or the error of the first that cannot be: then none is stored."""
    if not told.instance or len(told.instance) > 100 or not hub.may_speak_for(told.instance, asking.id, told.incarnation):
        raise Forbidden("the instance id belongs to another token or a newer incarnation")
    session = Session(
        connection=f"poll-{told.instance}",
        node=hub.node,
        principal=asking,
        history=hub,
        opened_us=now_us(),
        heartbeat_us=0,
        instance=told.instance,
    )
    out = []
    for each in told.receipts:
        allow(asking, Action.CONNECT, each.namespace, each.environment)
        environment = await hub.find(names.namespace(each.namespace), names.environment(each.environment))
        at = each.receipt.epoch, each.receipt.number
        if at > (environment.cursor.epoch, environment.cursor.number):  # it may have come from a node that is ahead of this one
            raise NotReady(f"version {each.receipt.number} is not here yet", retry_after=1)
        subscriber = Subscriber(
            session, each.receipt.subscription, each.namespace, each.environment, names.view(each.view), environment.cursor
        )
        out.append(received(each.receipt, subscriber, hub, now_us()))
    return out


async def _keep(outbox: Outbox, receipts: list[Received]) -> None:
    """Returns when all are durable."""
    left = len(receipts)
    done = asyncio.Event()

    def durable() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    for each in receipts:
        outbox.put(each, each.instance, durable)
    if not receipts:
        return
    try:
        async with asyncio.timeout(STORE_S):
            await done.wait()
    except TimeoutError:
        raise Unavailable("the log takes no receipts now; post them again", retry_after=1) from None
